//! What the app sees: the client's headers, less those that only the edge may set, plus the
//! edge's.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;

use crate::lifecycle::facts::Facts;
use crate::lifecycle::resume::Verdict;
use crate::snapshot::AllocationView;

/// Names that only the edge may set, whoever else sent them.
const OURS: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "x-real-ip",
];

/// Makes `upstream` what the app is to see of the request.
///
/// Names with an underscore are dropped: servers that turn `-` into `_` could not tell
/// `vango_edge_epoch` from the edge's own (nginx drops them by default too).
///
/// # Errors
/// Pingora's, when a value is not a header value; ours always are.
pub fn for_app(
    upstream: &mut RequestHeader,
    facts: &Facts,
    allocation: &AllocationView,
    verdict: Option<Verdict>,
    client: Option<SocketAddr>,
    tls: bool,
) -> pingora::Result<()> {
    let foreign: Vec<HeaderName> = upstream
        .headers
        .keys()
        .filter(|n| {
            let n = n.as_str();
            n.starts_with("vango-edge-") || n.contains('_') || OURS.contains(&n)
        })
        .cloned()
        .collect();
    for name in foreign {
        upstream.remove_header(&name);
    }
    if let Some(client) = client {
        upstream.insert_header("x-forwarded-for", client.ip().to_string())?;
    }
    let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
    upstream.insert_header("x-forwarded-proto", proto)?;
    if let Some(host) = upstream.headers.get(header::HOST).cloned() {
        upstream.insert_header("x-forwarded-host", host)?;
    }
    upstream.insert_header("x-request-id", facts.id.to_string())?;
    if facts.parent.is_none() {
        upstream.remove_header("tracestate");
        let restarted = format!("00-{}-{:016x}-00", facts.id, facts.id.span());
        upstream.insert_header("traceparent", restarted)?;
    }
    for (name, value) in &allocation.headers {
        upstream.insert_header(name.clone(), value.clone())?;
    }
    if let Some(verdict) = verdict {
        upstream.insert_header("vango-edge-resume", verdict.name())?;
        upstream.insert_header("vango-edge-resume-reason", verdict.reason())?;
    }
    if facts.path_changed {
        // The app routes on the same reading of the path that the edge did.
        upstream.set_raw_path(facts.target().as_bytes())?;
    }
    Ok(())
}

/// `Strict-Transport-Security` (RFC 6797 §6.1).
pub fn hsts(age: Duration) -> String {
    format!("max-age={}", age.as_secs())
}
