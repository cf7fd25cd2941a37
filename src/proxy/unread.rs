//! The answer to a head that Pingora cannot read, in place of its own: it answers such a one before
//! any callback, empty, as `Server: Pingora`, and with nothing by which it could be found again.
//!
//! Nothing is parsed here. Whatever is written before a callback has seen the request's head can only
//! be Pingora's refusal of it, so the stream sends this instead.

use std::time::Duration;

use http::Method;

use crate::clock::{Clock, Entropy, Mono};
use crate::id::RequestId;
use crate::lifecycle::facts::{BadRequest, ErrorForm};
use crate::lifecycle::trace::Trace;
use crate::telemetry::{NO_CLASS, TraceRecord};

use super::answer::NAME;
use super::client::{Client, Phase};

/// Whether `bytes`, written in `phase`, are Pingora's refusal of a head.
pub(super) fn is_refusal(phase: Phase, bytes: &[u8]) -> bool {
    matches!(phase, Phase::Idle | Phase::Head) && bytes.starts_with(b"HTTP/1.1 4")
}

/// The edge's own refusal of the head that began to come at `began`: whole, as it is sent. It is
/// counted and traced.
pub(super) fn refusal(
    client: &Client,
    why: BadRequest,
    began: Mono,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Vec<u8> {
    let (id, now) = (RequestId::random(entropy), clock.now());
    let received = if began == Mono(0) { now } else { began };
    let (mut trace, reply) = Trace::unreadable(id, received, why, now);
    let status = http::StatusCode::from_u16(reply.status).unwrap_or(http::StatusCode::BAD_REQUEST);
    let (content_type, body) = reply.body(ErrorForm::Problem, id);
    let mut head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\nX-Request-Id: {id}\r\n",
        body.len()
    );
    for (name, value) in reply.headers(NAME) {
        head += &format!("{name}: {value}\r\n");
    }
    trace.client = Some(client.origin.address);
    client.unread(TraceRecord {
        // No method has this name.
        method: Method::from_bytes(b"-").unwrap_or_default(),
        host: String::new(),
        path: String::new(),
        class: NO_CLASS,
        environment: None,
        status: Some(reply.status),
        operation: None,
        held: Duration::ZERO,
        total: now.since(received),
        at: clock.wall(),
        trace,
    });
    [head.as_bytes(), b"\r\n", body.as_bytes()].concat()
}
