//! Requests that the edge answers itself: their answers and traces are kept here, as
//! [`crate::lifecycle::enter`] decided them.

use std::time::Duration;

use http::{Method, header};
use pingora::http::RequestHeader;
use pingora_proxy::Session;

use crate::lifecycle::access::{self, Answer, Guess};
use crate::lifecycle::enter::Answered;
use crate::lifecycle::facts::{self, BadRequest, Facts};
use crate::lifecycle::trace::Trace;
use crate::telemetry::{NO_CLASS, TraceRecord};

use super::request::Ctx;
use super::service::EdgeProxy;

impl EdgeProxy {
    /// Keeps the answer and the trace of a request that the edge answers itself.
    pub(super) fn answered(&self, session: &Session, ctx: &mut Ctx, answered: Answered) {
        let Answered { facts, view, trace, answer, guess } = answered;
        if let (Some(guess), Some(origin)) = (guess, &facts.origin) {
            let headers = &session.req_header().headers;
            let cookie = access::cookie(headers).filter(|_| guess == Guess::Cookie);
            self.wrong.count(origin.address, cookie, self.now());
        }
        match answer {
            Answer::Reply(reply) => ctx.reply = Some(reply),
            Answer::Welcome { location, cookie } => ctx.welcome = Some((location, cookie)),
        }
        let path = facts.sent().to_owned();
        let record = self.record(trace, facts.method, facts.host, path);
        let environment = view.as_ref().map(|v| v.environment.clone());
        ctx.unrouted = Some(TraceRecord { environment, ..record });
        ctx.view = view;
    }

    /// Keeps the answer and the trace of a request whose head, with `target` in it, has no one reading.
    pub(super) fn unreadable(&self, ctx: &mut Ctx, why: BadRequest, method: Method, target: &[u8]) {
        let (trace, reply) = Trace::unreadable(ctx.id, ctx.received, why, self.now());
        ctx.reply = Some(reply);
        ctx.unrouted = Some(self.record(trace, method, String::new(), facts::shown(target)));
    }

    fn record(&self, trace: Trace, method: Method, host: String, path: String) -> TraceRecord {
        TraceRecord {
            method,
            host,
            path,
            class: NO_CLASS,
            environment: None,
            status: None,
            operation: None,
            held: Duration::ZERO,
            total: Duration::ZERO,
            at: self.parts.gate.clock.wall(),
            trace,
        }
    }
}

/// Writes `facts`' query into the request itself, so that no way to an app has the token in it.
pub(super) fn take_out_token(head: &mut RequestHeader, facts: &Facts) {
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
