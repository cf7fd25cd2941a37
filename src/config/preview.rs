//! What an app's file says of its previews: their hosts, and the token that opens them.

use std::path::Path;

use crate::document::Table;
use crate::id::Host;

use super::HostPattern;
use super::load::secrets;
use super::secret::{SecretSource, read_secret};

/// Fewest characters of a token: what 128 random bits need as base64 is 22, and ten guesses a minute
/// from each of many addresses find what is much shorter.
const LEAST: usize = 16;

/// Reads `preview_hosts`.
pub(super) fn hosts(top: &Table<'_>) -> Vec<HostPattern> {
    let all = top.texts("preview_hosts");
    let read = |text: &String| host_pattern(text).map_err(|e| top.error("preview_hosts", e)).ok();
    all.iter().filter_map(read).collect()
}

/// Reads `preview_access`. A token that cannot be read here may be there where the edge runs, which
/// does not start without it.
pub(super) fn access(top: &Table<'_>, base: &Path) -> Vec<SecretSource> {
    let mut named = secrets(top, "preview_access", base);
    let token = named.remove("token").unwrap_or_default();
    if top.has("preview_access") && (token.is_empty() || !named.is_empty()) {
        top.error(
            "preview_access",
            "expected { token = { env = \"NAME\" } } or { token = { file = \"/path\" } }",
        );
    }
    for source in &token {
        let short = |t: &str| t.chars().count() < LEAST;
        if read_secret(source).is_ok_and(|secret| short(secret.expose())) {
            let why = format!(
                "the token in {source} has fewer than {LEAST} characters and could be guessed; \
                 `openssl rand -base64 32` makes a good one"
            );
            top.error("preview_access", why);
        }
    }
    token
}

fn host_pattern(text: &str) -> Result<HostPattern, String> {
    let wrong = || {
        format!(
            "expected a host with {{preview}} in it once, such as \
             \"{{preview}}.preview.app.example\", found {text:?}"
        )
    };
    let (before, after) = text.split_once("{preview}").ok_or_else(wrong)?;
    let example = format!("{before}x{after}");
    if after.contains("{preview}") || example.parse::<Host>().is_err() {
        return Err(wrong());
    }
    Ok(HostPattern { before: before.to_owned(), after: after.to_owned() })
}
