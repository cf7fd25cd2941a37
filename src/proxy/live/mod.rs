//! Live sockets: the edge takes an accepted upgrade over from Pingora's HTTP engine ([`super::engine`]) and
//! carries it itself, so that a silent socket costs no buffers, and an end on one side is an end on the other.
//!
//! Here is where a request becomes a socket; [`upgrade`] leads it to its allocation and asks the app,
//! [`carry`] is the life of a socket, and [`hello`] has the sockets whose first frame names their session.
//!
//! Deliberately absent: WebSocket over HTTP/2 (RFC 8441). Clients that speak HTTP/2 open a
//! connection of HTTP/1.1 for it, as browsers do where the setting is not announced.

mod carry;
mod hello;
mod upgrade;

use std::sync::Arc;

use bytes::Bytes;
use pingora_proxy::Session;
use tokio::net::TcpStream;

use crate::lifecycle::journey::{Broke, Event, Go};

use super::answer::{self, Nothing};
use super::edge::{Ctx, EdgeProxy};
use super::engine::take_over;
use super::{exchange, head};

use carry::Accepted;
use hello::Hello;
use upgrade::{AppAnswer, Upgrade, accepted, is_cut, waits_for_hello};

impl EdgeProxy {
    /// Asks for the socket, and takes its connection over; or answers.
    pub(super) async fn live(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        if ctx.journey.as_ref().is_some_and(waits_for_hello) {
            return self.live_by_hello(session, ctx).await;
        }
        let head = session.req_header().clone();
        let upgrade = Upgrade { gate: &self.gate, head: &head, limits: **self.gate.limits.load() };
        while self.drive(session, ctx).await == Go::Connect {
            let Some(journey) = &mut ctx.journey else { break };
            match upgrade.ask(session, journey).await {
                Ok(AppAnswer::Accepted(headers, app, from_app)) => {
                    let head = accepted(&headers, &upgrade.fields(journey));
                    let socket = upgrade.socket(journey, app, from_app);
                    self.hand_over(session, ctx, head, socket);
                    return Ok(());
                }
                Ok(AppAnswer::Other(response)) => {
                    let within = upgrade.limits.of_route(journey).response_timeout;
                    let (parts, body) = response.into_parts();
                    let mut head = head::copied(parts.status, &parts.headers)?;
                    self.mark(&mut head, ctx)?;
                    session.set_keepalive(None);
                    let rest = exchange::body_pieces(body, within);
                    return answer::stream(session, head, Bytes::new(), rest, &mut Nothing).await;
                }
                Err(Go::Again) => {}
                Err(_) => break,
            }
        }
        self.answer(session, ctx).await
    }

    fn hand_over(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        head: Vec<u8>,
        socket: Option<Accepted<TcpStream>>,
    ) {
        let (Some(mut journey), Some(socket)) = (ctx.journey.take(), socket) else { return };
        // An open socket is counted apart: its place is free for requests again.
        drop(journey.take_placement());
        let gate = Arc::clone(&self.gate);
        let then = Box::new(move |stream| {
            Box::pin(async move {
                match carry::greet(stream, &head).await {
                    None => gate.close(journey, None, Some(Broke::Client), false),
                    Some(client) => {
                        gate.close(journey, Some(101), None, false);
                        // A task of its own: in this one the socket would keep the room of its
                        // journey and its head as long as it is open.
                        tokio::spawn(socket.carry(client, gate));
                    }
                }
            }) as _
        });
        take_over(session, then);
    }

    async fn live_by_hello(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        let forwarded = ctx.journey.as_ref().and_then(|j| j.facts().forwarded_host());
        let accept = match hello::check(&session.req_header().headers, forwarded) {
            Ok(accept) => accept,
            Err(reply) => {
                self.report(ctx, Event::Refused(Box::new(reply)));
                return self.answer(session, ctx).await;
            }
        };
        let Some(journey) = ctx.journey.take() else { return Ok(()) };
        let hello = Hello {
            gate: Arc::clone(&self.gate),
            facts: journey.facts().clone(),
            head: session.req_header().clone(),
            limits: **self.gate.limits.load(),
            cut: is_cut(&journey),
        };
        take_over(session, Box::new(move |stream| Box::pin(hello.run(stream, accept))));
        Ok(())
    }
}
