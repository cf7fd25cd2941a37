//! What a client is told: the app's answer that was put on record first, a stored one, or the edge's
//! own, with the marks that an environment's answers carry. What a provider is told is evidence first.

use http::header;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use super::deliver::{self, Tried};
use super::request::Ctx;
use super::service::EdgeProxy;
use super::upload::Beside;
use super::{answer, headers, preview, response};

impl EdgeProxy {
    /// Sends what is kept on record, at most once, and answers.
    pub(super) async fn deliver(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        // Ends: each turn without an answer excludes an allocation or meets a record.
        while let (Some(placed), Some(journey)) = (ctx.placed.take(), &mut ctx.journey) {
            let carried = &mut ctx.carried;
            let tried = deliver::deliver(session, &self.parts.gate, journey, carried, placed).await;
            match tried? {
                Tried::Answered(head, first, rest) => {
                    ctx.first_byte = Some(self.now());
                    let Some(claim) = journey.claim().cloned() else { break };
                    let mark = |head: &mut ResponseHeader| self.mark(head, ctx);
                    let head = deliver::marked(ctx.id, &claim, &head, mark)?;
                    let Some((rest, upload)) = rest else {
                        return response::write(session, head, first).await;
                    };
                    let Some(journey) = &mut ctx.journey else { break };
                    let gate = &self.parts.gate;
                    let mut beside = Beside { upload, journey, gate, refused: None };
                    let written = response::stream(session, head, first, rest, &mut beside).await;
                    ctx.reply = beside.refused;
                    return written;
                }
                Tried::Reply(reply) => {
                    ctx.reply = Some(reply);
                    break;
                }
                Tried::Again => {
                    if !self.pass(session, ctx).await {
                        break;
                    }
                }
            }
        }
        self.answer(session, ctx).await
    }

    pub(super) async fn answer(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        self.record_before_answer(ctx).await;
        if let (Some(stored), Some(journey)) = (ctx.replay.take(), &mut ctx.journey) {
            let (head, body) = deliver::replayed(stored);
            journey.replayed();
            ctx.from_record = true;
            if ctx.body_unread {
                session.set_keepalive(None);
            }
            let Some(claim) = journey.claim().cloned() else { return Ok(()) };
            let mark = |head: &mut ResponseHeader| self.mark(head, ctx);
            let head = deliver::marked(ctx.id, &claim, &head, mark)?;
            return response::write(session, head, body).await;
        }
        if ctx.acknowledge {
            ctx.from_record = true;
            return deliver::acknowledge(session, ctx.id).await;
        }
        match &ctx.reply {
            Some(reply) => {
                let origin = session.req_header().headers.get(header::ORIGIN).cloned();
                let mark = |head: &mut ResponseHeader| {
                    let readers = ctx.view.as_ref().map(|v| &v.contract.readers);
                    let fields = readers.map(|r| r.fields(origin.as_ref())).unwrap_or_default();
                    for (name, value) in fields {
                        head.insert_header(name, value)?;
                    }
                    self.mark(head, ctx)
                };
                answer::write(session, reply, ctx.form, ctx.id, ctx.body_unread, mark).await
            }
            None => {
                session.set_keepalive(None);
                Ok(())
            }
        }
    }

    /// What a provider is told about a verified delivery, other than the app's own answer, is on
    /// record before it is told.
    pub(super) async fn record_before_answer(&self, ctx: &mut Ctx) {
        let Some(journey) = ctx.journey.as_ref().filter(|j| j.event().is_some() && !ctx.audited)
        else {
            return;
        };
        let status = ctx.reply.as_ref().map(|r| r.status).or(ctx.acknowledge.then_some(200));
        let gate = &self.parts.gate;
        let evidence =
            journey.evidence_of(ctx.reply.as_ref(), status, self.now(), gate.clock.wall());
        let Some(evidence) = evidence else { return };
        match gate.audit.before_answer(&evidence).await {
            Ok(()) => ctx.audited = true,
            // The answer is the same without it, and the provider delivers again.
            Err(e) => log::warn!("audit: {e}"),
        }
    }

    /// Marks a preview's answers; see [`preview::mark`].
    pub(super) fn mark(&self, head: &mut ResponseHeader, ctx: &Ctx) -> pingora::Result<()> {
        let is_secure = ctx.origin.as_ref().is_some_and(|o| o.secure);
        if let Some(hsts) = ctx.client.as_ref().and_then(|c| c.hsts).filter(|_| is_secure) {
            head.insert_header("strict-transport-security", headers::hsts(hsts))?;
        }
        let Some(view) = ctx.view.as_ref().filter(|v| !v.environment.is_production()) else {
            return Ok(());
        };
        preview::mark(head, view, self.policies.load().noindex(view))
    }
}
