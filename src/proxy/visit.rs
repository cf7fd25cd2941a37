//! Requests for a static file: sent as [`crate::lifecycle::asset`] planned them, by
//! [`super::asset`], and counted as no activity.

use std::sync::Arc;
use std::time::Duration;

use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::clock::Mono;
use crate::lifecycle::asset::{Action, Visit};
use crate::telemetry::{ASSET, TraceRecord};

use super::asset;
use super::request::Ctx;
use super::service::EdgeProxy;

impl EdgeProxy {
    /// Sends an asset, or says why not.
    pub(super) async fn serve_asset(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut visit: Box<Visit>,
    ) -> pingora::Result<()> {
        let sent = match &visit.action {
            Action::Serve(plan) => {
                let mark = |head: &mut ResponseHeader| self.mark(head, ctx);
                asset::send(session, plan, &self.files, ctx.id, ctx.body_unread, mark).await
            }
            Action::Reply(reply) => {
                ctx.reply = Some(reply.clone());
                Ok(())
            }
        };
        let sent = match sent {
            Ok(()) => {
                visit.served(self.now());
                Ok(())
            }
            Err(asset::Failed::Unavailable(why)) => {
                log::error!("{}: {why}", visit.view().environment);
                ctx.reply = Some(visit.unavailable(self.now()));
                Ok(())
            }
            Err(asset::Failed::Broken(e)) => {
                visit.client_left();
                Err(e)
            }
        };
        ctx.visit = Some(visit);
        sent?;
        if ctx.reply.is_some() { self.answer(session, ctx).await } else { Ok(()) }
    }

    /// Closes the trace of a request for an asset. It counts for the class `asset` and is no activity:
    /// an open page's pictures keep no app awake.
    pub(super) fn visited(&self, mut visit: Box<Visit>, status: Option<u16>, now: Mono) {
        visit.trace.client = visit.facts().origin.as_ref().map(|o| o.address);
        let (facts, view) = (visit.facts(), Arc::clone(visit.view()));
        let record = TraceRecord {
            method: facts.method.clone(),
            host: facts.host.clone(),
            path: facts.sent().to_owned(),
            class: ASSET,
            environment: Some(view.environment.clone()),
            status,
            operation: None,
            held: Duration::ZERO,
            total: now.since(facts.received),
            at: self.parts.gate.clock.wall(),
            trace: visit.trace,
        };
        self.telemetry.finished(record, &view.live);
    }
}
