//! Requests for a static file: sent as [`crate::lifecycle::asset`] planned them, from
//! [`crate::artifact::AssetBytes`], and counted as no activity.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;

use crate::artifact::{AssetBytes, Content};
use crate::clock::Mono;
use crate::lifecycle::answer::Answer;
use crate::lifecycle::asset::{Action, Body, Plan, Visit};
use crate::telemetry::{ASSET, TraceRecord};

use super::edge::{Ctx, EdgeProxy};

/// How long the first byte may take to come from the disk or the artifact store.
const DEADLINE: Duration = Duration::from_secs(10);

impl EdgeProxy {
    /// Sends an asset, or says why not.
    pub(super) async fn serve_asset(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut visit: Box<Visit>,
    ) -> pingora::Result<()> {
        let mut sent = Ok(());
        match &visit.action {
            Action::Reply(reply) => ctx.own_answer = Some(Answer::Reply(reply.clone())),
            Action::Serve(plan) => match open(&self.files, plan).await {
                Ok(content) => {
                    sent = self.send_asset(session, ctx, plan, content).await;
                    match &sent {
                        Ok(()) => visit.served(self.now()),
                        Err(e) if *e.etype() == ErrorType::FileReadError => {
                            log::error!("{}: {e}", visit.view().environment);
                            visit.cut_off();
                        }
                        Err(_) => visit.client_left(),
                    }
                }
                Err(why) => {
                    log::error!("{}: {why}", visit.view().environment);
                    ctx.own_answer = Some(Answer::Reply(visit.unavailable(self.now())));
                }
            },
        }
        ctx.visit = Some(visit);
        sent?;
        if ctx.own_answer.is_some() { self.answer(session, ctx).await } else { Ok(()) }
    }

    /// Sends what `plan` says, of `content`.
    ///
    /// # Errors
    /// When the connection fails, or its bytes break off; what was sent is not whole.
    async fn send_asset(
        &self,
        session: &mut Session,
        ctx: &Ctx,
        plan: &Plan,
        content: Option<Content>,
    ) -> pingora::Result<()> {
        let mut head = ResponseHeader::build(plan.status, Some(plan.headers.len() + 2))?;
        for (name, value) in &plan.headers {
            head.append_header(name.clone(), value.clone())?;
        }
        self.mark(&mut head, ctx)?;
        if ctx.body_unread {
            session.set_keepalive(None);
        }
        session.write_response_header(Box::new(head), content.is_none()).await?;
        let Some(content) = content else { return Ok(()) };
        match &plan.body {
            Body::None => {}
            Body::Part(part) => copy(session, &content, part.clone()).await?,
            Body::Parts { parts, end } => {
                for (head, part) in parts {
                    session.write_response_body(Some(head.clone()), false).await?;
                    copy(session, &content, part.clone()).await?;
                }
                session.write_response_body(Some(end.clone()), false).await?;
            }
        }
        session.write_response_body(None, true).await
    }

    /// Closes the trace of a request for an asset. It counts for the class `asset` and is no activity:
    /// an open page's pictures keep no app awake.
    pub(super) fn visited(&self, mut visit: Box<Visit>, status: Option<u16>, now: Mono) {
        if let Some(error) = visit.evidence(status) {
            visit.view().tally.count(error);
        }
        visit.trace.client = visit.facts().origin.as_ref().map(|o| o.address);
        let (facts, view) = (visit.facts(), Arc::clone(visit.view()));
        let environment = Some(view.environment.clone());
        let (method, host, path) =
            (facts.method.clone(), facts.host.clone(), facts.sent().to_owned());
        let at = self.gate.clock.wall();
        let record = TraceRecord::new(method, host, path, visit.trace, now, at);
        let record = TraceRecord { class: ASSET, environment, status, ..record };
        self.gate.telemetry.finished(record, &view.counters);
    }
}

/// Opens the file that `plan` sends, none where it sends no body. Its digest is checked with it, before the
/// head is sent: what is damaged is an error and not half an answer.
async fn open(files: &AssetBytes, plan: &Plan) -> Result<Option<Content>, String> {
    let Some(source) = plan.representation.filter(|_| !matches!(plan.body, Body::None)) else {
        return Ok(None);
    };
    match tokio::time::timeout(DEADLINE, files.open(&source.digest, source.size)).await {
        Ok(opened) => opened.map(Some).map_err(|e| e.to_string()),
        Err(_) => Err(format!("{} was not read in time", source.digest)),
    }
}

async fn copy(session: &mut Session, content: &Content, part: Range<u64>) -> pingora::Result<()> {
    let mut at = part.start;
    // Ends: each read gives at least a byte of what is left, or an error.
    while at < part.end {
        let read = content.read(at..part.end).await;
        let bytes = read.map_err(|e| {
            Error::explain(ErrorType::FileReadError, format!("a static file was cut off: {e}"))
        })?;
        at += bytes.len() as u64;
        session.write_response_body(Some(bytes), false).await?;
    }
    Ok(())
}
