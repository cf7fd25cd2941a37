//! What a request says of itself: parsed once, where it enters, into values that cannot be wrong
//! afterwards.
//!
//! The path is normalised for classification: percent-encoded unreserved characters are decoded
//! (RFC 3986 §6.2.2.2), dot segments are resolved (§5.2.4), `%2f` is never decoded, slashes are
//! not merged. What has no safe reading (control characters, a backslash, a broken escape, `..`
//! above the root) is refused. The app gets the bytes that the client sent, and may read them otherwise:
//! where that could walk around a guard, [`crate::contract::Loose`] knows its other readings.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use crate::clock::Mono;
use crate::contract::Asked;
use crate::id::{Host, RequestId};

use super::affinity::{Prior, SessionId};
use super::fields::{self, IdempotencyKey, TraceParent, idempotency_key};
use super::grpc::{self, Dialect};
use super::origin::Origin;

const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

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
    /// See [`crate::contract::Unrouted::Method`].
    #[error(
        "what is asked of this path differs by method, and a header (X-HTTP-Method-Override or another of its \
         kind) says another than the request line: send the method that is meant, and no such header"
    )]
    Method,
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
    let count = headers.len() - fields::more_lines(headers, header::COOKIE);
    if count > most_fields || fields::count_nominated(headers) > most_fields || bytes > most_bytes {
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
    /// A page, for a browser that goes to an address.
    Page,
    /// A page, for a browser that has sent a form there.
    FormPage,
    /// A status of gRPC.
    Grpc(Dialect),
}

#[derive(Debug, Clone)]
pub struct Facts {
    /// The request's public id.
    pub id: RequestId,
    /// When its headers were complete.
    pub received: Mono,
    pub method: Method,
    /// A field asks the app to read another method than this one: behind Slim or Yii a GET with
    /// `X-HTTP-Method-Override: POST` **is** a POST. Such a request is not safe, whatever its method.
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
    /// Its length in bytes, if the head says it.
    pub content_length: Option<u64>,
    /// Bytes of header names and values; what holding it costs at least.
    pub header_bytes: usize,
    /// Of `OPTIONS`: how many more intermediaries it may pass (RFC 9110 §7.6.2).
    pub max_forwards: Option<u32>,
    /// The first `User-Agent` field.
    pub user_agent: Option<HeaderValue>,
    /// How errors are told.
    pub error_form: ErrorForm,
    /// How many milliseconds its client waits from when it came, where it says so (`grpc-timeout`): every
    /// request has room for it, and a `Duration` is four times as large.
    pub patience_ms: Option<NonZeroU32>,
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
        check_target(target)?;
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
            patience_ms: Dialect::of(headers)
                .and_then(|_| grpc::timeout(headers))
                .map(milliseconds),
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

    /// How long its client waits from when it came, where it says so.
    pub fn patience(&self) -> Option<Duration> {
        self.patience_ms.map(|ms| Duration::from_millis(ms.get().into()))
    }

    /// Whether its client's connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.origin.as_ref().is_some_and(|o| o.secure)
    }

    /// Forgets a forwarded host that is none of `hosts`, its owner's: a proxy that sets no
    /// `X-Forwarded-Host` passes on what its client wrote there.
    pub fn drop_foreign_forwarded_host(&mut self, hosts: &[Host]) {
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

    /// What a contract is asked, to say which route it takes.
    pub fn asked(&self) -> Asked<'_> {
        Asked {
            path: &self.path,
            sent: self.sent(),
            method: &self.method,
            overridden: self.method_overridden,
        }
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

/// At least one; 49 days are as good as more.
fn milliseconds(wait: Duration) -> NonZeroU32 {
    let ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    NonZeroU32::new(ms).unwrap_or(NonZeroU32::MIN)
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

/// Fields by which frameworks read another method than the request line's, as a server may spell them.
fn overrides_method(name: &HeaderName) -> bool {
    matches!(
        &*fields::folded(name),
        "x-http-method-override" | "x-http-method" | "x-method-override"
    )
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

/// A call of gRPC's has its own form; a browser's navigation asks for `text/html` by name; anything else
/// gets problem details.
fn error_form(method: &Method, headers: &HeaderMap) -> ErrorForm {
    if let Some(dialect) = Dialect::of(headers) {
        return ErrorForm::Grpc(dialect);
    }
    let html = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim_start().starts_with("text/html")));
    let fetched = || headers.get(FETCH_MODE).is_some_and(|v| v.as_bytes() != b"navigate");
    if !html || fetched() {
        return ErrorForm::Problem;
    }
    match *method {
        Method::GET | Method::HEAD => ErrorForm::Page,
        Method::POST => ErrorForm::FormPage,
        _ => ErrorForm::Problem,
    }
}

/// Bytes of a target at most: more, and the crate `http` makes no URI of it.
pub const LONGEST_TARGET: usize = 65_534;

/// Bytes of a path that are kept of a request, in traces and logs.
const MOST_OF_PATH: usize = 1024;
/// The same of a method's name; those that are registered have 17 at most.
const MOST_OF_METHOD: usize = 32;

/// A target that has no one reading, as a trace shows it: its path, and of that the begin.
pub fn shown(target: &[u8]) -> String {
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    String::from_utf8_lossy(&path[..path.len().min(MOST_OF_PATH)]).into_owned()
}

/// `path` as far as it is kept: a client may send as much as `limits.client.header_bytes` has.
pub fn kept_path(path: String) -> String {
    if path.len() > MOST_OF_PATH { shown(path.as_bytes()) } else { path }
}

/// The name of `method` as far as it is kept.
pub fn kept_method(method: &Method) -> &str {
    let name = method.as_str();
    // A name is a token, which is ASCII (RFC 9110 §5.6.2).
    name.get(..MOST_OF_METHOD).unwrap_or(name)
}

/// Refuses what is no target (RFC 9112 §3.2): its client has not made one of what it was given, and every
/// repair is a guess.
fn check_target(target: &[u8]) -> Result<(), BadRequest> {
    if target.len() > LONGEST_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    let broken = target.iter().any(|b| matches!(b, 0..=b' ' | b'#' | 0x7f));
    if broken { Err(BadRequest::Malformed) } else { Ok(()) }
}

/// The target without the scheme and authority of absolute-form, which a server must accept (RFC 9112
/// §3.2.2); the authority has been compared with Host.
fn origin_form(target: &[u8]) -> &[u8] {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    });
    let Some(rest) = rest else { return target };
    match rest.iter().position(|b| matches!(b, b'/' | b'?')) {
        Some(at) if rest[at] == b'/' => &rest[at..],
        // `http://host?a` has the empty path, which is `/` (RFC 9110 §4.2.3): rare enough to refuse.
        Some(_) => target,
        None => b"/",
    }
}

fn split_target(target: &[u8]) -> Result<(&[u8], Option<String>), BadRequest> {
    let (path, query) = match target.iter().position(|b| *b == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    };
    let query = query.map(|q| {
        let clean = q.iter().all(|b| b.is_ascii() && !b.is_ascii_control() && *b != b' ');
        clean.then(|| String::from_utf8_lossy(q).into_owned()).ok_or(BadRequest::Path)
    });
    Ok((path, query.transpose()?))
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// The normalised path, or `None` where there is no safe one. `*` (RFC 9110 §9.3.7) stays.
fn normalise(path: &[u8]) -> Option<String> {
    if path == b"*" {
        return Some("*".into());
    }
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'%' | b'\\' | b'#');
    if path.first() == Some(&b'/') && path.iter().all(plain) && !path.windows(2).any(|w| w == b"/.")
    {
        return String::from_utf8(path.to_vec()).ok();
    }
    let decoded = decode_unreserved(path)?;
    if !decoded.starts_with('/') {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = decoded[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {
                if last {
                    kept.push("");
                }
            }
            ".." => {
                kept.pop()?;
                if last {
                    kept.push("");
                }
            }
            s => kept.push(s),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

fn decode_unreserved(path: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.iter().copied();
    while let Some(b) = rest.next() {
        match b {
            b'%' => {
                let mut byte = [0];
                hex::decode_to_slice([rest.next()?, rest.next()?], &mut byte).ok()?;
                match byte[0] {
                    0..=0x1f | 0x7f | b'\\' => return None,
                    b if is_unreserved(b) => out.push(char::from(b)),
                    // Upper case, so that one resource has one name (RFC 3986 §6.2.2.1).
                    b => out.push_str(&format!("%{b:02X}")),
                }
            }
            b'\\' | b'#' => return None,
            b if b.is_ascii_graphic() => out.push(char::from(b)),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
