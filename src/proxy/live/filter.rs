//! The request filter's part: whose sockets the edge carries itself, and how they are taken over.

use std::sync::Arc;

use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::proxy::gate::Placed;
use crate::proxy::record::{self, End};
use crate::proxy::request::Ctx;
use crate::proxy::service::EdgeProxy;

use super::upgrade::{Asked, accepted, relay};
use super::{Hello, Way, carry, hello, take_over};

impl EdgeProxy {
    /// Asks for the socket, and leaves word for its connection; or answers.
    pub(in crate::proxy) async fn live(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if ctx.journey().and_then(|j| j.route()).is_some_and(|r| hello::wanted(&r.class)) {
            return self.live_by_hello(session, ctx).await;
        }
        let head = session.req_header().clone();
        let parts = Arc::clone(self.parts());
        let way = Way { parts: &parts, head: &head, limits: self.limits() };
        loop {
            if !self.pass(session, ctx).await {
                return self.answer(session, ctx).await;
            }
            let Some((journey, placed)) = ctx.journey_and_place() else {
                return self.answer(session, ctx).await;
            };
            match way.ask(session, journey, placed).await {
                Ok(Some((_, Asked::Refused | Asked::Failed(_)))) => {}
                Ok(Some((placed, Asked::Accepted(headers, app, from_app)))) => {
                    let head = accepted(&headers, &way.ours(journey, &placed));
                    let socket = way.accepted(journey, &placed, app, from_app);
                    return self.hand_over(session, ctx, placed, head, socket);
                }
                Ok(Some((placed, Asked::Answered(answer)))) => {
                    ctx.answered_at(parts.gate.clock.now());
                    let within = way.limits.response_timeout;
                    let mark = |head: &mut ResponseHeader| {
                        head.insert_header("x-request-id", ctx.id().to_string())?;
                        self.mark(head, ctx)
                    };
                    let relayed = relay(session, answer, mark, within).await;
                    drop(placed);
                    return relayed;
                }
                Ok(None) => {
                    ctx.left();
                    return self.answer(session, ctx).await;
                }
                Err(reply) => {
                    ctx.reply_with(reply);
                    return self.answer(session, ctx).await;
                }
            }
        }
    }

    fn hand_over(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        placed: Placed,
        head: Vec<u8>,
        socket: Option<super::Accepted<tokio::net::TcpStream>>,
    ) -> pingora::Result<()> {
        // An open socket is counted apart: its place is free for requests again.
        drop(placed);
        let (Some(journey), Some(socket)) = (ctx.take_journey(), socket) else { return Ok(()) };
        let parts = Arc::clone(self.parts());
        let word = Box::new(move |stream| {
            Box::pin(async move {
                let (gate, telemetry) = (&parts.gate, &parts.telemetry);
                match carry::greet(stream, &head).await {
                    None => record::close(gate, telemetry, journey, End::Left { status: None }),
                    Some(client) => {
                        let end = End::Answered { status: Some(101) };
                        record::close(gate, telemetry, journey, end);
                        // A task of its own: in this one the socket would keep the room of its
                        // journey and its head as long as it is open.
                        tokio::spawn(socket.carry(client, parts));
                    }
                }
            }) as _
        });
        take_over(session, word);
        Ok(())
    }

    async fn live_by_hello(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        let forwarded = ctx.journey().and_then(|j| j.facts().forwarded_host());
        let accept = match hello::check(&session.req_header().headers, forwarded) {
            Ok(accept) => accept,
            Err(reply) => {
                let now = self.parts().gate.clock.now();
                ctx.refuse(reply, now);
                return self.answer(session, ctx).await;
            }
        };
        let Some(journey) = ctx.take_journey() else { return Ok(()) };
        let hello = Hello {
            parts: Arc::clone(self.parts()),
            facts: journey.facts().clone(),
            head: session.req_header().clone(),
            limits: self.limits(),
            cut: journey.route().is_some_and(|r| hello::is_cut(&r.class)),
        };
        take_over(session, Box::new(move |stream| Box::pin(hello.run(stream, accept))));
        Ok(())
    }
}
