//! What a request says of itself: parsed once, where it enters, into values that cannot be wrong
//! afterwards.
//!
//! The path is normalised for classification: percent-encoded unreserved characters are decoded
//! (RFC 3986 §6.2.2.2), dot segments are resolved (§5.2.4), `%2f` is never decoded, slashes are
//! not merged. What has no safe reading (control characters, a backslash, a broken escape, `..`
//! above the root) is refused. The app gets the bytes that the client sent, and may read them otherwise:
//! where that could walk around a guard, [`crate::contract::Loose`] knows its other readings.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use crate::clock::Mono;
use crate::id::{Host, RequestId};

use super::affinity::{Prior, SessionId};
use super::hop;
use super::origin::Origin;
use super::parent::TraceParent;

mod target;

pub use target::{LONGEST_TARGET, kept_method, kept_path, shown};
use target::{normalise, origin_form, split_target};

const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why a request could not be read; [`super::reply::Reply::bad_request`] says what each is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// RFC 9112 §3.2: an HTTP/1.1 request must have exactly one Host.
    #[error("no Host header: send exactly one")]
    HostMissing,
    /// RFC 9112 §3.2.
    #[error("more than one Host header: send exactly one")]
    HostRepeated,
    /// RFC 9110 §7.2.
    #[error("the Host header is not a host name with an optional port")]
    HostInvalid,
    /// RFC 9112 §3.2.2 lets absolute-form override Host; a disagreement is how requests are smuggled.
    #[error("the Host header differs from the host in the request target")]
    HostMismatch,
    /// See the module's text.
    #[error(
        "the path has no safe reading: control characters, a backslash, a broken percent escape or .. above the root"
    )]
    Path,
    /// See [`crate::contract::Unrouted::Spelling`].
    #[error(
        "an app may take this path for one of an action, a webhook or its session store, which is spelled \
         otherwise: send it exactly as the app's contract has it"
    )]
    Spelling,
    /// RFC 9112: it cannot be parsed, or its length has two readings.
    #[error(
        "the head is none of HTTP/1.1, or has two readings (a space or # in its target has), or asks for a \
         tunnel"
    )]
    Malformed,
    /// RFC 9110 §15.5.15.
    #[error("the request target is too long")]
    TargetTooLong,
    /// RFC 6585 §5.
    #[error("the header fields are too many or too long")]
    HeadTooLarge,
}

/// Whether a head keeps to the bounds: bytes of target, names and values, and number of fields. Lines
/// of cookies are one field, since HTTP/2 lets a client split it (RFC 9113 §8.2.3); a `Connection`
/// names no more fields than there may be.
///
/// # Errors
/// [`BadRequest::HeadTooLarge`], [`BadRequest::TargetTooLong`]
pub fn check_head(
    headers: &HeaderMap,
    target: usize,
    most_bytes: usize,
    most_fields: usize,
) -> Result<(), BadRequest> {
    if target > most_bytes.min(LONGEST_TARGET) {
        return Err(BadRequest::TargetTooLong);
    }
    // Four bytes more for each: colon, space and line end.
    let fields = headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4);
    let bytes: usize = fields.sum::<usize>() + target;
    let count = headers.len() - hop::more_lines(headers, header::COOKIE);
    if count > most_fields || hop::named(headers) > most_fields || bytes > most_bytes {
        return Err(BadRequest::HeadTooLarge);
    }
    Ok(())
}

/// Refuses a transfer coding other than `chunked` (RFC 9112 §6.1): the edge does not undo it, and the app
/// would not be told of it.
fn check_coding(headers: &HeaderMap) -> Result<(), BadRequest> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(BadRequest::Malformed),
    }
}

/// How the client wants an error told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorForm {
    /// `application/problem+json` (RFC 9457).
    Problem,
    /// A small page, for a browser's navigation.
    Page,
}

/// What the request carries under `Idempotency-Key`
/// (draft-ietf-httpapi-idempotency-key-header-07).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyKey {
    /// No such header.
    Absent,
    /// More than one, empty, over 255 characters, or not a string.
    Invalid,
    /// The key itself, without quotes: quoted and bare forms are equal.
    Present(String),
}

/// The facts.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The request's public id.
    pub id: RequestId,
    /// When its headers were complete.
    pub received: Mono,
    /// Its method.
    pub method: Method,
    /// A field asks the app to read another method than this one.
    pub method_overridden: bool,
    /// By its head a browser's preflight; see [`Facts::is_preflight`].
    pub preflight: bool,
    /// Lower-case host without port.
    pub host: String,
    /// Normalised path, for matching.
    pub path: String,
    /// The path as it was sent, where that is another.
    pub spelled: Option<String>,
    /// Query without `?`.
    pub query: Option<String>,
    /// Asks for a WebSocket (RFC 6455 §4.1), until it is known that its route carries none.
    pub websocket: bool,
    /// A body follows the headers. Over HTTP/2 the stream says so and not the head (RFC 9113 §8.1).
    pub body: bool,
    /// How many, if the head says so.
    pub content_length: Option<u64>,
    /// Bytes of header names and values; what holding it costs at least.
    pub header_bytes: usize,
    /// Of `OPTIONS`: how many more intermediaries it may pass (RFC 9110 §7.6.2).
    pub max_forwards: Option<u32>,
    /// What the client calls itself, where it says it first.
    pub user_agent: Option<HeaderValue>,
    /// How errors are told.
    pub error_form: ErrorForm,
    /// Its idempotency key.
    pub key: IdempotencyKey,
    /// Whose trace it belongs to, where its client says so.
    pub parent: Option<TraceParent>,
    /// Where it comes from. Filled in where the connection is at hand.
    pub origin: Option<Arc<Origin>>,
    /// Where its session was before, if the edge's token says so. Filled in once it is known whose
    /// request it is.
    pub affinity: Option<Prior>,
    /// The app's session id, where its contract says how to find one.
    pub session: Option<SessionId>,
}

impl Facts {
    /// Reads a request's head. `target` is the path and query as sent.
    ///
    /// # Errors
    /// [`BadRequest`] says what to answer 400 for.
    pub fn parse(
        parts: &Parts,
        target: &[u8],
        id: RequestId,
        received: Mono,
    ) -> Result<Self, BadRequest> {
        target::check(target)?;
        if parts.method == Method::CONNECT {
            return Err(BadRequest::Malformed);
        }
        let host = host(parts)?;
        let origin = origin_form(target);
        let (raw_path, query) = split_target(origin)?;
        let path = normalise(raw_path).ok_or(BadRequest::Path)?;
        let headers = &parts.headers;
        check_coding(headers)?;
        let length = headers.get(header::CONTENT_LENGTH);
        let body = length.is_some_and(|v| v.as_bytes() != b"0")
            || headers.contains_key(header::TRANSFER_ENCODING);
        Ok(Self {
            id,
            received,
            method: parts.method.clone(),
            method_overridden: headers.keys().any(overrides_method),
            preflight: parts.method == Method::OPTIONS
                && headers.contains_key(header::ORIGIN)
                && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD),
            host,
            // Only ASCII has a normalised form.
            spelled: (path.as_bytes() != raw_path)
                .then(|| String::from_utf8_lossy(raw_path).into_owned()),
            path,
            query,
            // A handshake has no body.
            websocket: !body && is_websocket(parts),
            body,
            content_length: length.and_then(content_length),
            header_bytes: headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum(),
            max_forwards: max_forwards(&parts.method, headers),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            error_form: error_form(&parts.method, headers),
            key: idempotency_key(headers),
            parent: headers.get(TRACEPARENT).and_then(|v| TraceParent::parse(v.as_bytes())),
            origin: None,
            affinity: None,
            session: None,
        })
    }

    /// Whether it is a browser's question whether a script of another origin may send a request (Fetch
    /// §4.8). A browser shows no credentials with it, so that it may be any client's.
    pub fn is_preflight(&self) -> bool {
        self.preflight && !self.body && !self.method_overridden
    }

    /// Whether the client's name for itself has one of `parts`, which are lower case, in it.
    pub fn agent_has(&self, parts: &[String]) -> bool {
        let Some(agent) = self.user_agent.as_ref().filter(|_| !parts.is_empty()) else {
            return false;
        };
        let agent = agent.as_bytes().to_ascii_lowercase();
        parts.iter().any(|part| agent.windows(part.len()).any(|w| w == part.as_bytes()))
    }

    /// Whether its client's connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.origin.as_ref().is_some_and(|o| o.secure)
    }

    /// Its owner has these `hosts`: a trusted proxy that says its client asked for another one is not
    /// believed, since a proxy that sets no `X-Forwarded-Host` passes on what its client wrote there.
    pub fn owned_by(&mut self, hosts: &[Host]) {
        let said = self.origin.as_ref().and_then(|o| o.host.as_ref());
        let Some(said) = said else { return };
        let host = said.to_str().ok().and_then(host_of_authority);
        if !host.is_some_and(|said| hosts.iter().any(|h| h.as_str() == said)) {
            self.origin =
                self.origin.take().map(|o| Arc::new(Origin { host: None, ..(*o).clone() }));
        }
    }

    /// The host that its client asked for, as a trusted proxy says.
    pub fn forwarded_host(&self) -> Option<&HeaderValue> {
        self.origin.as_ref()?.host.as_ref()
    }

    /// The path as it was sent.
    pub fn sent(&self) -> &str {
        self.spelled.as_deref().unwrap_or(&self.path)
    }

    /// Path and query as they were sent: the app's.
    pub fn target(&self) -> String {
        self.with_query(self.sent())
    }

    /// Path and query, normalised: the same for all that RFC 3986 §6.2.2 calls the same.
    pub fn normal_target(&self) -> String {
        self.with_query(&self.path)
    }

    fn with_query(&self, path: &str) -> String {
        match &self.query {
            Some(q) => format!("{path}?{q}"),
            None => path.to_owned(),
        }
    }
}

fn host(parts: &Parts) -> Result<String, BadRequest> {
    let mut sent = parts.headers.get_all(header::HOST).iter();
    let first = sent.next();
    if sent.next().is_some() {
        return Err(BadRequest::HostRepeated);
    }
    let from_header = first
        .map(|v| v.to_str().ok().and_then(host_of_authority).ok_or(BadRequest::HostInvalid))
        .transpose()?;
    let from_target = parts
        .uri
        .authority()
        .map(|a| host_of_authority(a.as_str()).ok_or(BadRequest::HostInvalid))
        .transpose()?;
    match (from_header, from_target) {
        (Some(h), Some(t)) if h != t => Err(BadRequest::HostMismatch),
        (Some(h), _) | (None, Some(h)) if parts.version >= Version::HTTP_2 => Ok(h),
        (Some(h), _) => Ok(h),
        (None, _) => Err(BadRequest::HostMissing),
    }
}

/// Lower-case host of `host[:port]`, or `None` if it is not one. User information is refused.
pub fn host_of_authority(authority: &str) -> Option<String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 2;
            (&authority[..end], &authority[end..])
        }
        None => match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        },
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|p| p.is_empty() || p.parse::<u16>().is_ok());
    // A trailing dot names the same host (RFC 1034 §3.1); owners are written without it.
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    (port_ok && Host::is(&host)).then_some(host)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// HTTP/1.0 has no upgrades (RFC 9110 §7.8).
fn is_websocket(parts: &Parts) -> bool {
    parts.method == Method::GET
        && parts.version > Version::HTTP_10
        && has_token(&parts.headers, header::CONNECTION, "upgrade")
        && has_token(&parts.headers, header::UPGRADE, "websocket")
}

/// Fields by which frameworks read another method than the request line's.
fn overrides_method(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "x-http-method-override" | "x-http-method" | "x-method-override")
}

/// Pingora has refused heads with lengths that differ, or one that is no number.
fn content_length(said: &HeaderValue) -> Option<u64> {
    said.to_str().ok()?.split(',').next()?.trim().parse().ok()
}

/// What is no number is for the app to judge; one beyond counting is as good as the largest.
fn max_forwards(method: &Method, headers: &HeaderMap) -> Option<u32> {
    if *method != Method::OPTIONS {
        return None;
    }
    let sent = headers.get(header::MAX_FORWARDS)?;
    let digits = sent.to_str().ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()))?;
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(u32::MAX))
}

/// A browser's navigation asks for `text/html` by name; anything else gets problem details.
fn error_form(method: &Method, headers: &HeaderMap) -> ErrorForm {
    let html = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim_start().starts_with("text/html")));
    let fetched = || headers.get(FETCH_MODE).is_some_and(|v| v.as_bytes() != b"navigate");
    if html && matches!(*method, Method::GET | Method::HEAD | Method::POST) && !fetched() {
        ErrorForm::Page
    } else {
        ErrorForm::Problem
    }
}

fn idempotency_key(headers: &HeaderMap) -> IdempotencyKey {
    let mut sent = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(first) = sent.next() else { return IdempotencyKey::Absent };
    if sent.next().is_some() {
        return IdempotencyKey::Invalid;
    }
    let Ok(text) = first.to_str() else { return IdempotencyKey::Invalid };
    let text = text.trim();
    let key = match text.strip_prefix('"') {
        // A structured-field string (RFC 8941 §3.3.3), without parameters.
        Some(rest) => rest.strip_suffix('"').and_then(unescape),
        None => Some(text.to_owned()),
    };
    match key {
        Some(k) if (1..=255).contains(&k.len()) && !k.contains('"') => IdempotencyKey::Present(k),
        _ => IdempotencyKey::Invalid,
    }
}

fn unescape(inner: &str) -> Option<String> {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => out.push(c),
                _ => return None,
            },
            '"' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededEntropy;

    fn parse(build: http::request::Builder, target: &str) -> Result<Facts, BadRequest> {
        let (parts, ()) = build.body(()).unwrap().into_parts();
        Facts::parse(&parts, target.as_bytes(), RequestId::random(&SeededEntropy::new(1)), Mono(0))
    }
    fn get() -> http::request::Builder {
        http::Request::builder().header("host", "Study.localhost:8080")
    }

    #[test]
    fn host_is_read_from_one_place_or_refused() {
        assert_eq!(parse(get(), "/").unwrap().host, "study.localhost");
        let none = http::Request::builder();
        assert_eq!(parse(none, "/").unwrap_err(), BadRequest::HostMissing);
        let two = get().header("host", "b");
        assert_eq!(parse(two, "/").unwrap_err(), BadRequest::HostRepeated);
        for h in ["a:b", "a@b", "a b", "", "a:99999", "[::1", "a/b"] {
            let bad = http::Request::builder().header("host", h);
            assert_eq!(parse(bad, "/").unwrap_err(), BadRequest::HostInvalid, "{h:?}");
        }
        let absolute = get().uri("http://other.localhost/");
        assert_eq!(parse(absolute, "/").unwrap_err(), BadRequest::HostMismatch);
        let h2 = http::Request::builder().version(Version::HTTP_2).uri("https://a.example/x");
        assert_eq!(parse(h2, "/x").unwrap().host, "a.example");
        let dot = http::Request::builder().header("host", "a.example.");
        assert_eq!(parse(dot, "/").unwrap().host, "a.example");
    }

    #[test]
    fn another_coding_than_chunked_is_refused() {
        let coded = |codings: &[&str]| {
            let add = |b: http::request::Builder, c: &&str| b.header("transfer-encoding", *c);
            parse(codings.iter().fold(get(), add), "/").map(|f| f.body)
        };
        assert_eq!(coded(&["Chunked"]), Ok(true));
        for refused in ["gzip, chunked", "chunked, chunked", ", chunked", ""] {
            assert_eq!(coded(&[refused]), Err(BadRequest::Malformed), "{refused:?}");
        }
        assert_eq!(coded(&["chunked", "chunked"]), Err(BadRequest::Malformed));
    }

    #[test]
    fn a_path_has_one_reading() {
        for (sent, read) in [
            ("/dashboard", "/dashboard"),
            ("/%64ashboard", "/dashboard"),
            ("/a/../webhooks/stripe", "/webhooks/stripe"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/./b/.", "/a/b/"),
            ("/a%2fb", "/a%2Fb"),
            ("//a//b", "//a//b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/..", "/"),
            ("*", "*"),
        ] {
            let facts = parse(get(), sent).unwrap();
            assert_eq!((facts.path.as_str(), facts.sent()), (read, sent), "{sent}");
        }
        for sent in ["/..", "/a/../../b", "/a\\b", "/%5c", "/%00", "/%zz", "/%4", "a", "", "/é"] {
            assert_eq!(parse(get(), sent).unwrap_err(), BadRequest::Path, "{sent:?}");
        }
        for sent in ["/a b", "/a#b", "/a?b#c", "/a\tb", "/a\x7f"] {
            assert_eq!(parse(get(), sent).unwrap_err(), BadRequest::Malformed, "{sent:?}");
        }
        let long = |n| parse(get(), &"/".repeat(n)).map(|_| ());
        assert_eq!(long(LONGEST_TARGET), Ok(()));
        assert_eq!(long(LONGEST_TARGET + 1), Err(BadRequest::TargetTooLong));
        for (sent, read) in
            [("http://study.localhost/a?b", "/a?b"), ("HTTP://Study.localhost:8080", "/")]
        {
            let facts = parse(get().uri("http://study.localhost:8080/a"), sent).unwrap();
            assert_eq!(facts.target(), read, "{sent}");
        }
        let facts = parse(get(), "/a/%2e?x=%2e&y").unwrap();
        assert_eq!(
            (facts.target().as_str(), facts.normal_target().as_str()),
            ("/a/%2e?x=%2e&y", "/a/?x=%2e&y")
        );
    }

    #[test]
    fn keys_quoted_and_bare_are_equal_and_odd_ones_invalid() {
        let key = |v: &str| parse(get().header("idempotency-key", v), "/").unwrap().key;
        assert_eq!(key("\"abc\""), IdempotencyKey::Present("abc".into()));
        assert_eq!(key("abc"), IdempotencyKey::Present("abc".into()));
        assert_eq!(key(r#""a\"b""#), IdempotencyKey::Invalid);
        for bad in ["", "\"", "\"\"", "\"a", "a\"b", &"k".repeat(256)] {
            assert_eq!(key(bad), IdempotencyKey::Invalid, "{bad:?}");
        }
        let two = get().header("idempotency-key", "a").header("idempotency-key", "b");
        assert_eq!(parse(two, "/").unwrap().key, IdempotencyKey::Invalid);
    }

    #[test]
    fn what_follows_the_head_is_known() {
        let f = parse(get().method("POST").header("content-length", "3"), "/").unwrap();
        assert!(f.body && !f.websocket);
        let ws = get().header("connection", "keep-alive, Upgrade").header("upgrade", "WebSocket");
        assert!(parse(ws, "/").unwrap().websocket);
        let ws = || get().header("connection", "upgrade").header("upgrade", "websocket");
        assert!(!parse(ws().version(Version::HTTP_10), "/").unwrap().websocket);
        assert!(!parse(ws().header("content-length", "1"), "/").unwrap().websocket);
        assert!(!parse(get().header("upgrade", "websocket"), "/").unwrap().websocket);
        let twice = get().header("content-length", "3, 3").header("content-length", "3");
        assert_eq!(parse(twice, "/").unwrap().content_length, Some(3));
    }

    #[test]
    fn lines_of_cookies_are_one_field_and_connection_names_no_more_than_may_be() {
        let check = |build: http::request::Builder, most| {
            let (parts, ()) = build.body(()).unwrap().into_parts();
            check_head(&parts.headers, 1, 1000, most)
        };
        let cookies = (0..9).fold(get(), |g, n| g.header("cookie", format!("c{n}=1")));
        assert_eq!(check(cookies, 2), Ok(()));
        let named = || get().header("connection", "a, b, c");
        assert_eq!(check(named(), 3), Ok(()));
        assert_eq!(check(named(), 2), Err(BadRequest::HeadTooLarge));
        let nav = get().header("accept", "text/html,*/*;q=0.8");
        assert_eq!(parse(nav, "/").unwrap().error_form, ErrorForm::Page);
        assert_eq!(
            parse(get().header("accept", "*/*"), "/").unwrap().error_form,
            ErrorForm::Problem
        );
    }
}
