//! Which allocation this process is, as its environment says, and what the edge says about one
//! request in its headers. Two sources on purpose: a request that was decided under another epoch
//! than the process was started under is visible on the page.

use axum::http::HeaderMap;

/// What the runner said when it started this process. `None`: not started by an edge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// `VANGO_EDGE_ALLOCATION`
    pub allocation: Option<String>,
    /// `VANGO_EDGE_ENVIRONMENT`, as `app/environment`
    pub environment: Option<String>,
    /// `VANGO_EDGE_EPOCH`: the route owner's epoch at the start
    pub epoch: Option<String>,
    /// `VANGO_EDGE_DIGEST`: the artifact's digest
    pub digest: Option<String>,
    /// `VANGO_EDGE_GENERATION`: the how-manieth start of this environment
    pub generation: Option<String>,
}

impl Identity {
    /// Reads the identity from the environment.
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            allocation: var("VANGO_EDGE_ALLOCATION"),
            environment: var("VANGO_EDGE_ENVIRONMENT"),
            epoch: var("VANGO_EDGE_EPOCH"),
            digest: var("VANGO_EDGE_DIGEST"),
            generation: var("VANGO_EDGE_GENERATION"),
        }
    }

    /// The allocation's id, or `local` without an edge.
    pub fn allocation(&self) -> &str {
        self.allocation.as_deref().unwrap_or("local")
    }
}

/// The first 12 hex digits of a digest, or the text itself if it is something else.
pub fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// Every `Vango-Edge-*` header of a request, in order, name in lower case.
pub fn edge_headers(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("vango-edge-"))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
}

/// The value of the first of `names` that the request carries as text.
pub fn header<'h>(headers: &'h HeaderMap, names: &[&str]) -> Option<&'h str> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shortened_and_odd_ones_kept() {
        assert_eq!(short_digest(&format!("sha256:{}", "ab".repeat(32))), "abababababab");
        assert_eq!(short_digest("dev"), "dev");
        assert_eq!(short_digest("sha256:ééééééééé"), "éééééé");
    }
}
