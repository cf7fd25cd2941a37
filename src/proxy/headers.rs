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

/// Names that only the edge may set, whoever else sent them.
const OURS: [HeaderName; 6] = [
    header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    REQUEST_ID,
    HeaderName::from_static("x-real-ip"),
];

/// Fields that are added at most, so that the map grows once: those above and an allocation's.
const ADDED: usize = 12;

/// Makes `upstream` what the app is to see of the request, which came from `client`.
///
/// Names with an underscore are dropped: servers that turn `-` into `_` could not tell
/// `vango_edge_epoch` from the edge's own (nginx drops them by default too). Names reach the app in
/// lower case, as they do over HTTP/2 (RFC 9110 §5.1 has them case-insensitive; RFC 9113 §8.2
/// lower-case): keeping each client's spelling costs a second map for each request.
///
/// # Errors
/// Pingora's, when the path is not one; a normalised one always is.
pub fn for_app(
    upstream: &mut RequestHeader,
    facts: &Facts,
    allocation: &AllocationView,
    verdict: Option<Verdict>,
    client: Option<&HeaderValue>,
    tls: bool,
) -> pingora::Result<()> {
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = Parts::from(std::mem::replace(upstream, RequestHeader::from(nothing)));
    let headers = &mut parts.headers;
    let theirs = |n: &&HeaderName| {
        let name = n.as_str();
        name.starts_with("vango-edge-") || name.contains('_') || OURS.contains(n)
    };
    let foreign: Vec<HeaderName> = headers.keys().filter(theirs).cloned().collect();
    for name in foreign {
        headers.remove(&name);
    }
    headers.reserve(ADDED);
    if let Some(client) = client {
        headers.insert(FORWARDED_FOR, client.clone());
    }
    let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
    headers.insert(FORWARDED_PROTO, proto);
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(REQUEST_ID, facts.id.header_value());
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
    if facts.path_changed {
        // The app routes on the same reading of the path that the edge did.
        upstream.set_raw_path(facts.target().as_bytes())?;
    }
    Ok(())
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
