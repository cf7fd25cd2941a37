//! Who may use the admin API.
//!
//! Three questions, in this order. Is the `Host` a name of this edge? A page that points its own
//! name at this address (DNS rebinding) has another one. Is the `Origin`, which a browser sends
//! with whatever changes something, this API's own (CSRF)? And where tokens are configured, which
//! a listener that can be reached from other machines requires: does the request carry one whose
//! role allows it? Tokens are compared by digest and in constant time, every one of them. What apps
//! may use of it, below [`OWN`], asks for an allocation's credential instead of a token.

use std::convert::Infallible;
use std::fmt;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::{self, Role, SecretError, read_secret};
use crate::lifecycle::facts::host_of_authority;

use super::Admin;
use super::problem::Problem;

/// Where these resources are; left to the credentials of allocations.
pub const OWN: &str = "/v1/self";

/// Shortest token: what 128 random bits need as base64 is 22.
const SHORTEST: usize = 16;

/// Why the tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// One cannot be read.
    #[error("admin.tokens: {0}")]
    Unreadable(#[from] SecretError),
    /// Any machine that reaches the address could use it.
    #[error(
        "admin.tokens: {0} can be reached from other machines, and no token is asked for: add one, \
         or make admin.listen a loopback address and restart"
    )]
    Open(std::net::SocketAddr),
    /// One could be guessed.
    #[error(
        "admin.tokens: the token in {0} has fewer than {SHORTEST} characters; \
         `openssl rand -base64 32` makes a good one"
    )]
    Short(String),
}

/// A token that is asked for.
#[derive(Debug)]
struct Known {
    role: Role,
    digest: [u8; 32],
    /// As the audit has it: nothing of the token itself.
    name: String,
}

/// Who gives a command, as the audit has it: the token that the request carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct By(Option<String>);

impl By {
    /// The token, where any is asked for.
    pub fn token(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "the {name}"),
            None => f.write_str("an operator"),
        }
    }
}

impl FromRequestParts<Admin> for By {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Admin) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// The rules of one admin listener.
#[derive(Debug)]
pub struct Access {
    tokens: Vec<Known>,
    hosts: Vec<String>,
    /// The listener can be reached from this machine only.
    loopback: bool,
}

impl Access {
    /// Reads the tokens.
    ///
    /// # Errors
    /// When one cannot be read or is too short.
    pub fn new(config: &config::Admin) -> Result<Self, AccessError> {
        let mut tokens = Vec::new();
        for token in &config.tokens {
            let secret = read_secret(&token.source)?;
            if secret.expose().len() < SHORTEST {
                return Err(AccessError::Short(token.source.to_string()));
            }
            let name = match &token.name {
                Some(name) => format!("token {name}"),
                None => format!("token in {}", token.source),
            };
            let digest = Sha256::digest(secret.expose()).into();
            tokens.push(Known { role: token.role, digest, name });
        }
        let loopback = config.listen.ip().is_loopback();
        if tokens.is_empty() && !loopback {
            return Err(AccessError::Open(config.listen));
        }
        Ok(Self { tokens, hosts: config.hosts.clone(), loopback })
    }

    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<By, Problem> {
        let forbidden = |why: &str| Err(Problem::new(StatusCode::FORBIDDEN, why));
        let path = uri.path();
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|v| v.to_str().ok()).unwrap_or_default();
        // RFC 9112 §3.2: what is in front of this listener may have looked at another one.
        if hosts.next().is_some() || uri.authority().is_some_and(|a| a.as_str() != host) {
            return Err(Problem::bad("the request names more than one host: send exactly one"));
        }
        if !self.is_own(host) {
            return forbidden(
                "this Host is not a name of the admin API: use 127.0.0.1, [::1], localhost, or \
                 one of admin.hosts",
            );
        }
        if headers.contains_key(header::ORIGIN) {
            let origin = text(headers, header::ORIGIN).unwrap_or_default();
            let own = ["http://", "https://"].iter().any(|s| origin.strip_prefix(s) == Some(host));
            if !own {
                return forbidden("this Origin may not use the admin API");
            }
        }
        // Apps show another credential there, which the resource itself asks for.
        let own = path.strip_prefix(OWN).is_some_and(|rest| rest.starts_with('/'));
        let guarded = path == "/metrics" || (path.starts_with("/v1") && !own);
        if self.tokens.is_empty() || !guarded {
            return Ok(By::default());
        }
        let Some(token) = bearer(headers) else {
            return Err(Problem::unauthorized(
                "a token is required: `Authorization: Bearer TOKEN`, or VANGO_EDGE_TOKEN or \
                 --token-file of the command line",
            ));
        };
        match self.known(token) {
            None => Err(Problem::unauthorized("this edge does not know that token")),
            Some(known) if known.role < needed(method, path) => {
                forbidden("a token of the role read may look and explain, and change nothing")
            }
            Some(known) => Ok(By(Some(known.name.clone()))),
        }
    }

    /// Looks at every token whatever it finds, so that the time taken says nothing.
    fn known(&self, token: &str) -> Option<&Known> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found: Option<&Known> = None;
        for known in &self.tokens {
            let more = found.is_none_or(|found| found.role < known.role);
            if bool::from(known.digest.ct_eq(&digest)) && more {
                found = Some(known);
            }
        }
        found
    }

    fn is_own(&self, host: &str) -> bool {
        let Some(name) = host_of_authority(host) else { return false };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        // Rebinding needs a name: an address in Host is where the client really connected to.
        let address = name.parse::<std::net::IpAddr>();
        name == "localhost"
            || address.is_ok_and(|ip| ip.is_loopback() || !self.loopback)
            || self.hosts.iter().any(|h| h.eq_ignore_ascii_case(name))
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The least role that may do this. Explaining is a POST that changes nothing; values of variables are for those
/// who may change them.
fn needed(method: &Method, path: &str) -> Role {
    if path.ends_with("/env/values") {
        return Role::Operate;
    }
    let looks = matches!(*method, Method::GET | Method::HEAD) || path == "/v1/explain";
    if looks { Role::Read } else { Role::Operate }
}

/// Refuses what [`Access`] does not allow, before anything reads the request.
pub async fn checked(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    match admin.access.load().check(request.method(), request.uri(), request.headers()) {
        Ok(by) => {
            request.extensions_mut().insert(by);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(listen: &str, tokens: &[(Role, &str)]) -> Access {
        let loopback = listen.parse::<std::net::IpAddr>().unwrap().is_loopback();
        let known = |(role, token): &(Role, &str)| {
            let digest = Sha256::digest(token).into();
            Known { role: *role, digest, name: format!("token {}", token.len()) }
        };
        let tokens = tokens.iter().map(known).collect();
        Access { tokens, hosts: vec!["edge-1.example".into()], loopback }
    }

    fn status(access: &Access, method: &Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        match access.check(method, &path.parse().unwrap(), &map) {
            Ok(_) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_own_names_are_answered() {
        let near = access("127.0.0.1", &[]);
        for own in ["127.0.0.1:9901", "localhost", "[::1]:9901", "127.0.0.2", "edge-1.example:1"] {
            assert!(near.is_own(own), "{own}");
        }
        for foreign in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "localhost.evil",
            "[::1]evil",
            "[::1]:x",
            "[::1",
            "127.0.0.1:80:80",
            "evil@127.0.0.1",
            "localhost:evil",
        ] {
            assert!(!near.is_own(foreign), "{foreign}");
        }
        let far = access("10.0.0.1", &[]);
        assert!(far.is_own("10.0.0.1:9901") && !far.is_own("evil.example"));
    }

    #[test]
    fn a_request_names_one_host() {
        let access = access("127.0.0.1", &[]);
        let hosts = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(status(&access, &Method::GET, "/v1/routes", &hosts), 400);
        let asked = |target| status(&access, &Method::GET, target, &hosts[..1]);
        assert_eq!(asked("http://evil.example/v1/routes"), 400);
        assert_eq!(asked("http://127.0.0.1/v1/routes"), 200);
    }

    #[test]
    fn a_foreign_origin_is_refused_whatever_it_carries() {
        let access = access("127.0.0.1", &[(Role::Operate, "a-long-enough-token")]);
        let host = ("host", "127.0.0.1:9901");
        let token = ("authorization", "Bearer a-long-enough-token");
        let from = |origin| [host, token, ("origin", origin)];
        let post = |origin| status(&access, &Method::POST, "/v1/deployments", &from(origin));
        assert_eq!(post("http://127.0.0.1:9901"), 200);
        for origin in ["null", "http://evil.example", "http://127.0.0.1:9902", "127.0.0.1:9901"] {
            assert_eq!(post(origin), 403, "{origin}");
        }
    }

    #[test]
    fn a_role_allows_what_it_says() {
        let access = access(
            "10.0.0.1",
            &[(Role::Read, "read-read-read-read"), (Role::Operate, "operate-operate-1")],
        );
        let with = |token: &str, method: &Method, path: &str| {
            let bearer = format!("Bearer {token}");
            status(&access, method, path, &[("host", "10.0.0.1"), ("authorization", &bearer)])
        };
        let sleep = "/v1/environments/a/production/sleep";
        assert_eq!(with("read-read-read-read", &Method::GET, "/v1/traces"), 200);
        assert_eq!(with("read-read-read-read", &Method::POST, "/v1/explain"), 200);
        let values = "/v1/environments/a/production/env/values";
        assert_eq!(with("read-read-read-read", &Method::GET, values), 403);
        assert_eq!(with("operate-operate-1", &Method::GET, values), 200);
        assert_eq!(with("read-read-read-read", &Method::POST, sleep), 403);
        assert_eq!(with("operate-operate-1", &Method::POST, sleep), 200);
        assert_eq!(with("operate-operate-", &Method::GET, "/v1/traces"), 401);
        let bare = |path| status(&access, &Method::GET, path, &[("host", "10.0.0.1")]);
        assert_eq!((bare("/v1/traces"), bare("/metrics"), bare("/v1")), (401, 401, 401));
        assert_eq!((bare("/healthz"), bare("/readyz"), bare("/")), (200, 200, 200));
        assert_eq!(
            (bare("/v1/self/ledger"), bare("/v1/selfish"), bare("/v1/self")),
            (200, 401, 401)
        );
    }
}
