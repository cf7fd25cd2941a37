//! Heads on their way through the edge. A client's request is made once what the edge and the app both read
//! ([`settle`]): what was said to this connection is taken off, cookies are one line, and a length is one
//! number. Every route sends on what was settled here, so that no two of them can read a request
//! differently. The app gets of it what the client sent, less the fields that only the edge may set, plus the
//! edge's ([`for_app`]). Of the app's answer the client gets what does not belong to the app's connection
//! ([`clean`], [`copied`]).

use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::ErrorSource;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType};
use pingora::protocols::http::v2::server::BadTarget;

use crate::clock::Mono;
use crate::lifecycle::facts::{BadRequest, Facts};
use crate::lifecycle::fields::{self, Trailers};
use crate::lifecycle::grpc;
use crate::lifecycle::journey::Journey;
use crate::lifecycle::trace::UpstreamFailure;
use crate::snapshot::AllocationView;

/// The target of `head`, as it was sent.
///
/// # Errors
/// Over HTTP/2, for one of which the crate `http` has no URI: the path in `head` is a placeholder then. Over
/// HTTP/1.1 Pingora refuses these by itself ([`super::engine`]).
pub fn target(head: &RequestHeader) -> Result<&[u8], BadRequest> {
    match head.extensions.get::<BadTarget>() {
        None => Ok(head.raw_path()),
        Some(bad) if bad.too_long => Err(BadRequest::TargetTooLong),
        Some(_) => Err(BadRequest::Malformed),
    }
}

/// What was sent as the target of `head`, for a trace: nothing where it was too long to be kept.
pub fn sent_target(head: &RequestHeader) -> &[u8] {
    head.extensions.get::<BadTarget>().map_or_else(|| head.raw_path(), |bad| &bad.sent)
}

/// Makes `head` what edge and app both read.
///
/// `Upgrade` goes with the rest: Pingora would open a tunnel for any request that has it. A route for live
/// sockets makes its own ([`super::live`]).
pub fn settle(head: &mut RequestHeader) {
    for name in fields::hop_by_hop(&head.headers) {
        head.remove_header(&name);
    }
    if let Some(cookies) = fields::joined_cookies(&head.headers) {
        let _ = head.insert_header(header::COOKIE, cookies);
    }
    if let Some(length) = one_length(head) {
        let _ = head.insert_header(header::CONTENT_LENGTH, length);
    }
}

/// A length that was said more than once (RFC 9110 §8.6). Pingora has refused those that differ.
fn one_length(head: &RequestHeader) -> Option<HeaderValue> {
    let mut lines = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let first = lines.next()?.as_bytes();
    let once = lines.next().is_none() && !first.contains(&b',');
    let length = first.split(|b| *b == b',').next()?.trim_ascii();
    (!once).then(|| HeaderValue::from_bytes(length).ok()).flatten()
}

/// Writes `facts`' query into the request itself, so that no way to an app has the token in it.
pub fn take_out_token(head: &mut RequestHeader, facts: &Facts) {
    let target = head.raw_path();
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    let mut target = path.to_vec();
    if let Some(query) = &facts.query {
        target.push(b'?');
        target.extend(query.bytes());
    }
    // Over HTTP/2 the target is all that has the host.
    let host = head.uri.authority().map(|a| a.as_str().to_owned());
    let kept = match host.filter(|_| !head.headers.contains_key(header::HOST)) {
        Some(host) => head.insert_header(header::HOST, host),
        None => Ok(()),
    };
    let kept = kept.and_then(|()| head.set_raw_path(&target));
    debug_assert!(kept.is_ok(), "a part of a target that was read is one");
}

/// Name of this proxy in `Proxy-Status` (RFC 9209).
pub const NAME: &str = "vango-edge";

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const RESUME: HeaderName = HeaderName::from_static("vango-edge-resume");
const RESUME_REASON: HeaderName = HeaderName::from_static("vango-edge-resume-reason");

/// Names that only the edge may set: a client's are dropped.
const OURS: [HeaderName; 6] = [
    header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    REQUEST_ID,
    HeaderName::from_static("x-real-ip"),
];

/// The prefix of every other one.
const PREFIX: &str = "vango-edge-";

/// What CGI makes an environment variable of that programs take for their proxy (CVE-2016-5385).
const HTTP_PROXY: &str = "proxy";

/// By which IIS says what it rewrote; Symfony, Zend and others take the path from them.
const PATH_OVERRIDES: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// By which proxies say how their client asked: Rack, gunicorn and Symfony believe `X-Forwarded-Ssl` before
/// `X-Forwarded-Proto`, and build addresses with `X-Forwarded-Port`. They pass from a proxy that is trusted.
const OF_A_PROXY: &str = "x-forwarded-";

/// The same, under other names.
const OF_PROXIES: [&str; 3] = ["front-end-https", "x-scheme", "x-url-scheme"];

/// Whether a client's field of this name is not passed on, a trusted proxy's (`by_proxy`) or its own. CGI-like servers make one name of those that
/// differ only in what is neither letter nor digit: to PHP, `Vango.Edge.Epoch` is the edge's own.
fn is_foreign(name: &HeaderName, by_proxy: bool) -> bool {
    let text = &*fields::folded(name);
    text.starts_with(PREFIX)
        || text == HTTP_PROXY
        || PATH_OVERRIDES.contains(&text)
        || OURS.iter().any(|n| *n == text)
        || (!by_proxy && (text.starts_with(OF_A_PROXY) || OF_PROXIES.contains(&text)))
        || name.as_str().contains('_')
}

/// Leaves of a request's trailers what is for the app.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let gone = |name: &&HeaderName| is_foreign(name, false) || fields::is_of_the_head(name);
    let gone: Vec<HeaderName> = trailers.keys().filter(gone).cloned().collect();
    for name in gone {
        trailers.remove(name);
    }
}

/// Fields that are added at most, so that the map grows once: those above and an allocation's.
const ADDED: usize = 12;

/// Makes `upstream` what the app in `allocation` is to see of the request.
///
/// Names with an underscore are dropped, as nginx does by default, and so are those that some servers
/// could not tell from the edge's own ([`is_foreign`]). Names reach the app in
/// lower case, as they do over HTTP/2 (RFC 9110 §5.1 has them case-insensitive; RFC 9113 §8.2
/// lower-case): keeping each client's spelling costs a second map for each request. The target is the
/// client's, byte by byte.
pub fn for_app(
    upstream: &mut RequestHeader,
    journey: &Journey,
    allocation: &AllocationView,
    now: Mono,
) {
    let facts = journey.facts();
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = Parts::from(std::mem::replace(upstream, RequestHeader::from(nothing)));
    let headers = &mut parts.headers;
    let by_proxy = facts.origin.as_ref().is_some_and(|o| o.by_proxy);
    let foreign = headers.keys().filter(|n| is_foreign(n, by_proxy));
    let foreign: Vec<HeaderName> = foreign.cloned().collect();
    for name in foreign {
        headers.remove(&name);
    }
    headers.reserve(ADDED);
    if let Some(origin) = &facts.origin {
        headers.insert(FORWARDED_FOR, origin.forwarded_for.clone());
    }
    let proto = HeaderValue::from_static(if facts.is_secure() { "https" } else { "http" });
    headers.insert(FORWARDED_PROTO, proto);
    // From HTTP/2 to HTTP/2 the target is all that has it.
    let authority = || HeaderValue::try_from(parts.uri.authority()?.as_str()).ok();
    let host = facts.forwarded_host().or_else(|| headers.get(header::HOST)).cloned();
    if let Some(host) = host.or_else(authority) {
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(left) = journey.patience_left(now).filter(|_| journey.held_for() > Duration::ZERO) {
        // The app need not work longer than its client waits.
        if let Ok(left) = HeaderValue::try_from(grpc::timeout_text(left)) {
            headers.insert(GRPC_TIMEOUT, left);
        }
    }
    headers.insert(REQUEST_ID, facts.id.header_value());
    if let Some(more) = facts.max_forwards {
        headers.insert(header::MAX_FORWARDS, HeaderValue::from(more.saturating_sub(1)));
    }
    if facts.parent.is_none() {
        headers.remove(TRACESTATE);
        headers.insert(TRACEPARENT, restarted(facts));
    }
    for (name, value) in &allocation.headers {
        headers.insert(name.clone(), value.clone());
    }
    if let Some(verdict) = journey.verdict() {
        headers.insert(RESUME, HeaderValue::from_static(verdict.name()));
        headers.insert(RESUME_REASON, HeaderValue::from_static(verdict.reason()));
    }
    *upstream = RequestHeader::from(parts);
}

/// A trace that begins here: its id is the request's (W3C Trace Context §3.2.2.3).
fn restarted(facts: &Facts) -> HeaderValue {
    let mut text = *b"00-................................-................-00";
    text[3..35].copy_from_slice(&facts.id.hex());
    // Fails for another length only.
    let _ = hex::encode_to_slice(facts.id.span().to_be_bytes(), &mut text[36..52]);
    // Hex digits and hyphens are a header value.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The fields of an app's answer that are not for the client.
fn not_for_the_client(status: StatusCode, headers: &HeaderMap) -> Vec<HeaderName> {
    let mut out = fields::hop_by_hop(headers);
    if status == StatusCode::UPGRADE_REQUIRED {
        // It says which protocol is wanted (RFC 9110 §15.5.22).
        out.retain(|n| *n != header::UPGRADE);
    }
    if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6, RFC 9112 §6.1: neither goes with a 204.
        let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        out.extend(framing.into_iter().filter(|n| headers.contains_key(n)));
    }
    out
}

/// Makes `response`, which Pingora read from an app, what the client is to get. `trailers` may come
/// behind it.
///
/// # Errors
/// For a 101 to a request that asked for none: its connection stays one of HTTP.
pub fn clean(response: &mut ResponseHeader, trailers: &mut Trailers) -> pingora::Result<()> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(broken(UpstreamFailure::Closed, "the app answered 101 unasked"));
    }
    let announced = trailers.announced(response.version, &response.headers);
    for name in not_for_the_client(response.status, &response.headers) {
        response.remove_header(&name);
    }
    if let Some(names) = announced {
        response.insert_header(header::TRAILER, names)?;
    }
    // The edge's own version, whichever the app speaks (RFC 9112 §2.3).
    response.set_version(Version::HTTP_11);
    Ok(())
}

/// Takes off an answer that the edge reads itself what is not for its client, and its framing, which is
/// made anew.
pub fn strip(status: StatusCode, headers: &mut HeaderMap) {
    for name in not_for_the_client(status, headers) {
        headers.remove(name);
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
}

/// The client's copy of an answer that the edge read from an app itself.
pub fn copied(status: StatusCode, headers: &HeaderMap) -> pingora::Result<ResponseHeader> {
    let mut out = ResponseHeader::build(status, Some(headers.len() + 4))?;
    let gone = not_for_the_client(status, headers);
    for (name, value) in headers {
        if *name != header::TRANSFER_ENCODING && !gone.contains(name) {
            out.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(out)
}

/// Whether the answer goes on until its client leaves or its app ends.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    kind.and_then(|k| k.get(..17)).is_some_and(|k| k.eq_ignore_ascii_case(b"text/event-stream"))
}

/// An error of the app's: how it failed, and what that broke.
pub fn broken(failure: UpstreamFailure, what: &'static str) -> Box<Error> {
    let kind = match failure {
        UpstreamFailure::Closed => ErrorType::ConnectionClosed,
        UpstreamFailure::Silent => ErrorType::ReadTimedout,
    };
    let mut e = Error::explain(kind, what);
    e.esource = ErrorSource::Upstream;
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        settle(&mut head);
        head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect()
    }

    #[test]
    fn cookies_are_one_line_and_a_length_is_one_number() {
        assert_eq!(settled(&[("Cookie", "a=1")]), ["cookie: a=1"]);
        let three = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
        assert_eq!(settled(&three), ["cookie: a=1; b=2; c=3; d=4"]);
        for said in [&[("content-length", "3")][..], &[("Content-Length", "3, 3")]] {
            assert_eq!(settled(said), ["content-length: 3"]);
        }
        let twice = [("content-length", "3"), ("content-length", "3")];
        assert_eq!(settled(&twice), ["content-length: 3"]);
    }

    #[test]
    fn what_was_said_to_this_connection_is_gone() {
        let left = settled(&[
            ("Connection", "upgrade, X-A"),
            ("Upgrade", "h2c"),
            ("X-A", "1"),
            ("transfer-encoding", "Chunked"),
        ]);
        assert_eq!(left, ["transfer-encoding: Chunked"]);
    }

    #[test]
    fn names_that_a_server_could_take_for_the_edges_own_are_not_passed_on() {
        for name in [
            "vango-edge-epoch",
            "vango.edge.webhook.verdict",
            "vango-edge.epoch",
            "vango~edge*anything",
            "vango_edge_epoch",
            "any_thing",
            "x.forwarded.for",
            "x-forwarded!proto",
            "x.request.id",
            "forwarded",
            "proxy",
        ] {
            assert!(is_foreign(&HeaderName::from_static(name), true), "{name}");
        }
        for name in ["x.custom", "x-custom", "vango-edges", "proxy-x", "cookie", "traceparent"] {
            assert!(!is_foreign(&HeaderName::from_static(name), false), "{name}");
        }
        // A client that asks over plain HTTP would be taken for one over HTTPS.
        for name in ["x-forwarded-ssl", "x.forwarded.port", "x-forwarded-prefix", "front-end-https"]
        {
            assert!(is_foreign(&HeaderName::from_static(name), false), "{name}");
            assert!(!is_foreign(&HeaderName::from_static(name), true), "{name}");
        }
    }

    fn gone(status: u16, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let mut gone: Vec<_> =
            not_for_the_client(status, &headers).iter().map(|n| n.to_string()).collect();
        gone.sort_unstable();
        gone
    }

    #[test]
    fn what_belongs_to_the_apps_connection_is_not_for_the_client() {
        let hop = [("connection", "close"), ("keep-alive", "timeout=5"), ("upgrade", "h2c")];
        assert_eq!(gone(200, &hop), ["connection", "keep-alive", "upgrade"]);
        assert_eq!(gone(426, &hop), ["connection", "keep-alive"], "it says what is wanted");
        let named = [
            ("connection", "X-Hop, set-cookie, Cache-Control, upgrade"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("cache-control", "private"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(gone(426, &named), ["connection", "x-hop"]);
        assert_eq!(gone(200, &[("content-length", "5")]), [""; 0]);
        assert_eq!(gone(204, &[("content-length", "5")]), ["content-length"]);
        assert_eq!(gone(304, &[("content-length", "5")]), [""; 0], "of what a 200 would have");
    }

    #[test]
    fn an_unasked_101_is_no_answer() {
        let mut head = ResponseHeader::build(101, None).unwrap();
        let refused = clean(&mut head, &mut Trailers::default()).unwrap_err();
        assert_eq!(refused.esource(), &ErrorSource::Upstream);
    }

    #[test]
    fn event_streams_are_known_in_any_case() {
        let is = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", value.parse().unwrap());
            is_event_stream(&headers)
        };
        assert!(is("text/event-stream") && is("Text/Event-Stream; charset=utf-8"));
        assert!(!is("text/html") && !is_event_stream(&HeaderMap::new()));
    }
}
