//! Requests that make no journey: those for no environment, and those that are not let into a preview.
//! Their answers and traces are kept here; who is let in is decided by [`crate::lifecycle::access`].

use std::sync::Arc;
use std::time::Duration;

use http::{Method, header};
use pingora::http::RequestHeader;
use pingora_proxy::Session;

use crate::lifecycle::access::{self, Verdict};
use crate::lifecycle::facts::{self, BadRequest, Facts};
use crate::lifecycle::reply::Reply;
use crate::lifecycle::trace::{Outcome, StepKind, Trace};
use crate::snapshot::EnvView;
use crate::telemetry::{NO_CLASS, TraceRecord};

use super::request::Ctx;
use super::service::EdgeProxy;

impl EdgeProxy {
    /// Whether a preview is open to the request. If not, its answer and its trace are kept.
    pub(super) fn may_see(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        facts: &mut Facts,
        view: &Arc<EnvView>,
    ) -> bool {
        let previews = self.previews.load();
        let tokens = match previews.get(view.environment.app()) {
            Some(policy) if !view.environment.is_production() => &policy.tokens,
            _ => return true,
        };
        let now = self.now();
        let from = facts.origin.as_ref().map(|o| o.address);
        let headers = &session.req_header().headers;
        let locked = from.filter(|_| !tokens.is_empty()).and_then(|f| self.wrong.wait(f, now));
        let mut trace = Trace::new(ctx.id, ctx.received);
        let step = |found| StepKind::CheckAccess(Arc::clone(view), found);
        let reply =
            match access::check(tokens, facts, headers, locked, self.parts.gate.clock.wall()) {
                Verdict::Pass => return true,
                Verdict::PassWith { query } => {
                    facts.query = query;
                    take_out_token(session.req_header_mut(), facts);
                    return true;
                }
                Verdict::None(reply) => {
                    trace.push(now, step("none shown"));
                    reply
                }
                Verdict::Locked(reply) => {
                    trace.push(now, step("too many wrong ones"));
                    reply
                }
                Verdict::Wrong(reply) => {
                    from.inspect(|from| self.wrong.count(*from, None, now));
                    trace.push(now, step("wrong"));
                    reply
                }
                Verdict::WrongCookie(reply) => {
                    from.inspect(|from| self.wrong.count(*from, access::cookie(headers), now));
                    trace.push(now, step("wrong"));
                    reply
                }
                Verdict::Welcome { location, cookie } => {
                    trace.push(now, step("right"));
                    trace.outcome = Outcome::Welcomed;
                    ctx.welcome = Some((location, cookie));
                    self.keep(ctx, trace, facts, view);
                    return false;
                }
            };
        trace.answered(now, &reply);
        ctx.reply = Some(reply);
        self.keep(ctx, trace, facts, view);
        false
    }

    /// Keeps the trace of a request that makes no journey.
    fn keep(&self, ctx: &mut Ctx, trace: Trace, facts: &Facts, view: &EnvView) {
        let (host, path) = (facts.host.clone(), facts.sent().to_owned());
        let record = self.record(trace, facts.method.clone(), host, path);
        let environment = Some(view.environment.clone());
        ctx.unrouted = Some(TraceRecord { environment, ..record });
    }

    /// Keeps the answer and the trace of a request that makes no journey; `view` is that of its host.
    pub(super) fn unrouted(
        &self,
        ctx: &mut Ctx,
        (trace, reply): (Trace, Reply),
        facts: &Facts,
        view: Option<&Arc<EnvView>>,
    ) {
        ctx.reply = Some(reply);
        let (host, path) = (facts.host.clone(), facts.sent().to_owned());
        let record = self.record(trace, facts.method.clone(), host, path);
        let environment = view.map(|v| v.environment.clone());
        ctx.unrouted = Some(TraceRecord { environment, ..record });
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
fn take_out_token(head: &mut RequestHeader, facts: &Facts) {
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
