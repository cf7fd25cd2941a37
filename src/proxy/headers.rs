//! What the app sees: the client's headers, less those that only the edge may set, plus the
//! edge's.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;

use crate::id::hex;
use crate::lifecycle::facts::Facts;
use crate::lifecycle::resume::Verdict;
use crate::snapshot::AllocationView;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
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

/// Whether a client's field of this name is not passed on. CGI-like servers make one name of those that
/// differ only in what is neither letter nor digit: to PHP, `Vango.Edge.Epoch` is the edge's own.
fn is_foreign(name: &HeaderName) -> bool {
    let text = name.as_str();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain {
        return text.starts_with(PREFIX)
            || text == HTTP_PROXY
            || PATH_OVERRIDES.contains(&text)
            || OURS.contains(name);
    }
    let folded: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    text.contains('_')
        || folded.starts_with(PREFIX)
        || PATH_OVERRIDES.contains(&folded.as_str())
        || OURS.iter().any(|n| *n == folded.as_str())
}

/// Fields that are added at most, so that the map grows once: those above and an allocation's.
const ADDED: usize = 12;

/// Makes `upstream` what the app is to see of the request.
///
/// Names with an underscore are dropped, as nginx does by default, and so are those that some servers
/// could not tell from the edge's own ([`is_foreign`]). Names reach the app in
/// lower case, as they do over HTTP/2 (RFC 9110 §5.1 has them case-insensitive; RFC 9113 §8.2
/// lower-case): keeping each client's spelling costs a second map for each request. The target is the
/// client's, byte by byte.
pub fn for_app(
    upstream: &mut RequestHeader,
    facts: &Facts,
    allocation: &AllocationView,
    verdict: Option<Verdict>,
) {
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = Parts::from(std::mem::replace(upstream, RequestHeader::from(nothing)));
    let headers = &mut parts.headers;
    let foreign: Vec<HeaderName> = headers.keys().filter(|n| is_foreign(n)).cloned().collect();
    for name in foreign {
        headers.remove(&name);
    }
    headers.reserve(ADDED);
    if let Some(origin) = &facts.origin {
        headers.insert(FORWARDED_FOR, origin.forwarded_for.clone());
    }
    let proto = HeaderValue::from_static(if facts.is_secure() { "https" } else { "http" });
    headers.insert(FORWARDED_PROTO, proto);
    if let Some(host) = facts.forwarded_host().or_else(|| headers.get(header::HOST)).cloned() {
        headers.insert(FORWARDED_HOST, host);
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
    if let Some(verdict) = verdict {
        headers.insert(RESUME, HeaderValue::from_static(verdict.name()));
        headers.insert(RESUME_REASON, HeaderValue::from_static(verdict.reason()));
    }
    *upstream = RequestHeader::from(parts);
}

/// A trace that begins here: its id is the request's (W3C Trace Context §3.2.2.3).
fn restarted(facts: &Facts) -> HeaderValue {
    let mut text = *b"00-................................-................-00";
    text[3..35].copy_from_slice(&facts.id.hex());
    text[36..52].copy_from_slice(&hex::<16>(u128::from(facts.id.span())));
    // Hex digits and hyphens are a header value.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// `Strict-Transport-Security` (RFC 6797 §6.1).
pub fn hsts(age: Duration) -> String {
    format!("max-age={}", age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(is_foreign(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x.custom", "x-custom", "vango-edges", "proxy-x", "cookie", "traceparent"] {
            assert!(!is_foreign(&HeaderName::from_static(name)), "{name}");
        }
    }
}
