//! Pingora's callbacks, each a few lines: what they do is decided in [`crate::lifecycle`] and
//! performed in [`super::gate`] and in the modules that add to [`EdgeProxy`], each for one part of a
//! request's way: `entrance`, `visit`, `affinity`, `reply`, `live`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, HttpPeer};
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;
use pingora::{ErrorSource, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::artifact::AssetBytes;
use crate::clock::Mono;
use crate::lifecycle::access::WrongTokens;
use crate::lifecycle::admit::Journey;
use crate::lifecycle::classify::Posture;
use crate::lifecycle::enter::{Arrival, Entered, Policies, enter};
use crate::lifecycle::facts::{self, Facts};
use crate::lifecycle::reply::Reply;
use crate::lifecycle::trailers::Trailers;
use crate::sockets::{Admission, AdmissionLimits, Sockets};
use crate::telemetry::{Cut, Telemetry, TraceRecord};

use super::client::{Client, Phase, Shared};
use super::entrance::take_out_token;
use super::gate::{Carried, Gate, Passed, Placed};
use super::live::LiveParts;
use super::record::{self, End, Told};
use super::request::Ctx;
use super::{answer, body, headers, received, response};

/// Seconds that a connection may be idle after a request that found places scarce.
const CROWDED_IDLE_S: u64 = 1;

/// Timeouts toward allocations, for which Pingora's own default is none.
#[derive(Debug, Clone, Copy)]
pub struct ProxyLimits {
    /// To connect to an allocation.
    pub connect_timeout: Duration,
    /// For each read of a response, its head included.
    pub response_timeout: Duration,
    /// A pooled connection unused for this long is closed.
    pub idle_timeout: Duration,
    /// For a body that the edge reads whole.
    pub body_timeout: Duration,
    /// Live sockets that may be open.
    pub sockets: usize,
    /// A live socket on which nothing passes for this long is closed.
    pub socket_idle: Duration,
}

/// What the proxy works with.
pub struct ProxyParts {
    /// Decides where requests go.
    pub gate: Gate,
    /// Live sockets that are open.
    pub sockets: Arc<Sockets>,
    /// Bytes of static files.
    pub files: Arc<AssetBytes>,
    /// What its operator wants of all requests; a reload swaps it.
    pub policies: Arc<ArcSwap<Policies>>,
    /// Where finished requests are told.
    pub telemetry: Arc<Telemetry>,
    /// Timeouts; a reload swaps them.
    pub limits: Arc<ArcSwap<ProxyLimits>>,
}

/// The edge, as Pingora sees it.
pub struct EdgeProxy {
    pub(super) parts: Arc<LiveParts>,
    pub(super) files: Arc<AssetBytes>,
    pub(super) policies: Arc<ArcSwap<Policies>>,
    pub(super) wrong: WrongTokens,
    pub(super) telemetry: Arc<Telemetry>,
    limits: Arc<ArcSwap<ProxyLimits>>,
}

/// A herd that comes back reaches an allocation 32 at a time; the node's own bound on open sockets is
/// `limits.sockets`.
const ADMISSION: AdmissionLimits = AdmissionLimits { at_once: 32, waiting: 50_000 };

impl EdgeProxy {
    /// The proxy over its parts.
    pub fn new(parts: ProxyParts) -> Self {
        let ProxyParts { gate, sockets, files, policies, telemetry, limits } = parts;
        let parts = Arc::new(LiveParts {
            gate,
            sockets,
            admission: Admission::new(ADMISSION),
            telemetry: Arc::clone(&telemetry),
        });
        Self { parts, files, policies, wrong: WrongTokens::default(), telemetry, limits }
    }

    /// What live sockets are carried with.
    pub(super) fn parts(&self) -> &Arc<LiveParts> {
        &self.parts
    }

    /// The limits in force.
    pub(super) fn limits(&self) -> ProxyLimits {
        **self.limits.load()
    }

    /// What its connections share with it.
    pub(super) fn shared(&self) -> Shared {
        let gate = &self.parts.gate;
        Shared {
            admission: Arc::clone(&gate.admission),
            telemetry: Arc::clone(&self.telemetry),
            clock: Arc::clone(&gate.clock),
            entropy: Arc::clone(&gate.entropy),
        }
    }

    pub(super) fn now(&self) -> Mono {
        self.parts.gate.clock.now()
    }

    /// Asks the gate; `true` when the request may be forwarded.
    pub(super) async fn pass(&self, session: &mut Session, ctx: &mut Ctx) -> bool {
        let Some(journey) = &mut ctx.journey else { return false };
        ctx.tried = false;
        let passed = self.parts.gate.pass(session, journey, &mut ctx.carried).await;
        ctx.body_unread &= !journey.body_is_read();
        match passed {
            Passed::Forward(placed) => {
                ctx.placed = Some(placed);
                true
            }
            Passed::Replay(stored) => {
                ctx.replay = Some(stored);
                false
            }
            Passed::Acknowledge => {
                ctx.acknowledge = true;
                false
            }
            Passed::Reply(reply) => {
                ctx.reply = Some(reply);
                false
            }
            Passed::Gone => {
                ctx.gone = true;
                false
            }
        }
    }

    fn peer(&self, ctx: &Ctx) -> Option<HttpPeer> {
        let allocation = &ctx.placed.as_ref()?.placement()?.allocation;
        let mut peer = HttpPeer::new(allocation.address?, false, String::new());
        // A restarted allocation on the same port never gets an old connection.
        peer.group_key = allocation.pool_key;
        let journey = ctx.journey.as_ref();
        let pooled = journey.is_some_and(|j| j.posture() == Posture::Safe && j.attempts() <= 1);
        let limits = self.limits.load();
        let options = &mut peer.options;
        options.connection_timeout = Some(limits.connect_timeout);
        options.total_connection_timeout = Some(limits.connect_timeout);
        options.idle_timeout = Some(limits.idle_timeout);
        options.write_timeout = Some(limits.response_timeout);
        if !pooled {
            // A connection from the pool may be closing just now, and after the first byte that
            // looks like an app that died: what may not be sent twice gets one of its own, under a
            // key that no other request asks for. So does what is sent again because one was closing: an
            // app closes all that have been idle for as long.
            peer.group_key ^= self.parts.gate.entropy.next_u64() | 1;
            options.idle_timeout = Some(Duration::ZERO);
        }
        options.read_timeout = Some(limits.response_timeout);
        // Sockets go another way ([`super::live`]): what Pingora carries is never a tunnel.
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        Some(peer)
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    /// Boxed: Pingora moves it from future to future, and each of these is as large as it.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx::new(self.parts.gate.request_id(), self.now()))
    }

    /// Classifies.
    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        // So that a pipelined request is not taken for a client that left.
        session.set_pipelining_enabled(true);
        ctx.client = Client::of(session).cloned();
        if let Some(client) = &ctx.client {
            if !client.asks() {
                ctx.gone = true;
                return Err(Error::new_down(ErrorType::ConnectionClosed));
            }
            // A connection that takes nothing is ended by `Guarded`, which counts it: this one comes later.
            // Of HTTP/2 one stream may take nothing while others do.
            let later = if session.is_http2() { 1 } else { 2 };
            session.set_write_timeout(Some(client.limits.write_timeout * later));
            let crowded = self.parts.gate.admission.is_crowded();
            client.begins(session.req_header().version == http::Version::HTTP_11, crowded);
            session.set_total_drain_timeout(Some(client.lingers()));
            if crowded {
                // Who goes on asking keeps its place; who does not gives it to the next one.
                session.set_keepalive(Some(CROWDED_IDLE_S));
            }
        }
        let head = session.req_header();
        ctx.origin = ctx.client.as_ref().map(|c| c.origin_of(&head.headers));
        ctx.trailers = Trailers::of(head);
        let method = head.method.clone();
        let parsed = received::target(head).and_then(|target| {
            if let Some(c) = &ctx.client {
                let (bytes, fields) = (c.limits.header_bytes, c.limits.header_fields);
                facts::check_head(&head.headers, target.len(), bytes, fields)?;
            }
            Facts::parse(head, target, ctx.id, ctx.received)
        });
        let parsed = parsed.inspect(|_| received::settle(session.req_header_mut())).map(|facts| {
            let streamed = session.is_http2() && !session.as_downstream_mut().is_body_empty();
            Facts { body: facts.body || streamed, ..facts }
        });
        let has_body = parsed.as_ref().is_ok_and(|f| f.body);
        if let Some(client) = &ctx.client {
            // What cannot be read may have one too.
            let more = has_body || parsed.is_err();
            client.enter(if more { Phase::Body } else { Phase::Answer });
        }
        let facts = match parsed {
            Ok(facts) => Facts { origin: ctx.origin.clone(), ..facts },
            Err(why) => {
                ctx.body_unread = true;
                self.unreadable(ctx, why, method, received::sent(session.req_header()));
                return Ok(());
            }
        };
        ctx.form = facts.error_form;
        ctx.body_unread = facts.body;
        let misdirected = ctx.client.as_ref().is_some_and(|c| !c.belongs(&facts.host));
        let share = ctx.take_share(&self.parts.gate.admission);
        let refused = share.err().or_else(|| misdirected.then(|| Reply::misdirected(&facts.host)));
        let (now, wall) = (self.now(), self.parts.gate.clock.wall());
        let entered = {
            let snapshot = self.parts.gate.snapshots.load();
            let locked = |from| self.wrong.wait(from, now);
            let headers = &session.req_header().headers;
            let arrival = Arrival { facts, headers, refused, locked: &locked };
            enter(arrival, &snapshot, &self.policies.load(), now, wall)
        };
        match entered {
            Entered::Edge(answered) => self.answered(session, ctx, *answered),
            Entered::Asset(visit) => {
                ctx.view = Some(Arc::clone(visit.view()));
                ctx.visit = Some(visit);
            }
            Entered::Route { mut facts, classified, showed_token } => {
                ctx.view = Some(Arc::clone(&classified.view));
                if showed_token {
                    take_out_token(session.req_header_mut(), &facts);
                }
                if classified.wakes {
                    classified.view.live.touch(ctx.received);
                }
                self.recognise(session, &classified, &mut facts);
                let mut journey = Journey::begin(*facts, classified);
                let secret = !self.parts.gate.secrets_for(&journey).is_empty();
                journey.read_head(&session.req_header().headers, secret, wall);
                ctx.journey = Some(journey);
            }
        }
        Ok(())
    }

    /// Gates and holds. What is no hold is boxed: a request that waits keeps only what waiting takes.
    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<bool> {
        if let Some(visit) = ctx.visit.take() {
            Box::pin(self.serve_asset(session, ctx, visit)).await?;
            return Ok(true);
        }
        if let Some((location, cookie)) = &ctx.welcome {
            answer::welcome(session, location, cookie, ctx.id, ctx.body_unread).await?;
            return Ok(true);
        }
        if ctx.reply.is_none() && ctx.is_a_live_socket() && !session.is_http2() {
            Box::pin(self.live(session, ctx)).await?;
            return Ok(true);
        }
        if ctx.reply.is_none() && self.pass(session, ctx).await {
            if ctx.journey.as_ref().is_some_and(|j| j.claim().is_some()) {
                Box::pin(self.deliver(session, ctx)).await?;
                return Ok(true);
            }
            return Ok(false);
        }
        self.answer(session, ctx).await?;
        Ok(true)
    }

    /// Places; again after a connection failed.
    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<Box<HttpPeer>> {
        if ctx.tried {
            ctx.placed = None;
            if !self.pass(session, ctx).await {
                return Err(Error::explain(ErrorType::InternalError, "answered by the edge"));
            }
        }
        ctx.tried = true;
        let peer = self.peer(ctx);
        peer.map(Box::new)
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "no allocation was placed"))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        let (Some(journey), Some(placement)) =
            (&ctx.journey, ctx.placed.as_ref().and_then(Placed::placement))
        else {
            return Err(Error::explain(ErrorType::InternalError, "no allocation was placed"));
        };
        if let Some(client) = &ctx.client
            && session.is_http2()
            && !session.as_downstream_mut().is_body_done()
        {
            ctx.expected.get_or_insert_with(|| client.expect_body());
        }
        let (facts, target) = (journey.facts(), &placement.allocation);
        let verdict = journey.verdict();
        headers::for_app(upstream, facts, target, verdict);
        if ctx.trailers.asked {
            // Said anew to the app's connection (RFC 9110 §10.1.4).
            upstream.insert_header(header::TE, "trailers")?;
            upstream.insert_header(header::CONNECTION, "te")?;
        }
        if let Some(subject) = journey.app_subject() {
            let attempt = self.parts.gate.attempts.next(subject);
            upstream.insert_header("vango-edge-idempotency-attempt", attempt.to_string())?;
        }
        Ok(())
    }

    /// Counts a body whose length the head did not say, or said wrongly.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        if end_of_stream {
            ctx.expected = None;
            if let Some(client) = &ctx.client {
                client.enter(Phase::Answer);
            }
        }
        ctx.body_bytes += body.as_ref().map_or(0, |b| b.len() as u64);
        let now = self.now();
        let Some(reply) = ctx.journey.as_mut().and_then(|j| j.body_grew(ctx.body_bytes, now))
        else {
            return Ok(());
        };
        ctx.reply = Some(reply);
        Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too long"))
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        ctx.heard = true;
        response::clean(response, &mut ctx.trailers)?;
        if response.status.is_informational() {
            return Ok(());
        }
        ctx.first_byte.get_or_insert_with(|| self.parts.gate.clock.now());
        if let Some(client) = &ctx.client {
            client.answers(response::is_event_stream(&response.headers));
        }
        self.mark(response, ctx)?;
        self.keep_affinity(response, ctx)?;
        response.insert_header("x-request-id", ctx.id.header_value())
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        ctx.trailers.clean(trailers);
        Ok(())
    }

    /// Nothing has been sent: any method may be tried elsewhere.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Ctx>,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let placed = ctx.placed.take();
        let refused = match (&mut ctx.journey, placed.as_ref().and_then(Placed::placement)) {
            (Some(journey), Some(placement)) => self.parts.gate.connect_failed(journey, placement),
            _ => None,
        };
        e.set_retry(refused.is_none() && ctx.journey.is_some());
        ctx.reply = refused;
        e
    }

    /// Something may have been sent: only what [`crate::lifecycle::retry`] allows goes again,
    /// whatever Pingora marked.
    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Box<Ctx>,
        client_reused: bool,
    ) -> Box<Error> {
        let mut e = e.more_context(format!("Peer: {peer}"));
        let whole = !session.as_ref().retry_buffer_truncated() && !ctx.heard;
        let allowed = ctx.journey.as_ref().is_some_and(|j| j.may_resend(client_reused));
        if whole && allowed && matches!(e.retry, RetryType::ReusedOnly | RetryType::Decided(true)) {
            e.set_retry(true);
        } else {
            e.set_retry(false);
        }
        e
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        e: &Error,
        ctx: &mut Box<Ctx>,
    ) -> FailToProxy {
        let closed = FailToProxy { error_code: 0, can_reuse_downstream: false };
        session.set_keepalive(None);
        if ctx.gone {
            return closed;
        }
        if response::final_status(session).is_some() {
            if !session.is_http2() && *e.esource() != ErrorSource::Downstream {
                // The part of it that came goes out, and the connection ends without its end.
                session.as_downstream_mut().shutdown().await;
            }
            return closed;
        }
        if ctx.reply.is_none() {
            let slow = ctx.client.as_ref().and_then(|c| c.why_cut()) == Some(Cut::BodyRate);
            let now = self.now();
            if body::is_malformed(e)
                && *e.esource() == ErrorSource::Downstream
                && let Some(journey) = &mut ctx.journey
            {
                ctx.reply = Some(journey.body_malformed(now));
            } else if slow && let Some(journey) = &mut ctx.journey {
                ctx.reply = Some(journey.body_stalled(now));
            } else if *e.esource() == ErrorSource::Downstream {
                ctx.gone = true;
                return closed;
            }
        }
        if ctx.reply.is_none() {
            let (failure, now) = (response::failure(e), self.now());
            ctx.reply = ctx.journey.as_mut().map(|j| j.upstream_failed(failure, now));
        }
        match self.answer(session, ctx).await {
            Ok(()) => FailToProxy {
                error_code: ctx.reply.as_ref().map_or(0, |r| r.status),
                // Whole: the session is finished in order.
                can_reuse_downstream: ctx.reply.is_some(),
            },
            Err(_) => closed,
        }
    }

    /// Without the target, which may have a preview's token or an app's secret in its query.
    fn request_summary(&self, session: &Session, ctx: &Box<Ctx>) -> String {
        format!("{} request {}", session.req_header().method, ctx.id)
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Box<Ctx>, _error: &Error) -> bool {
        // What the edge answered is in the trace; the log is for what it did not foresee.
        ctx.reply.is_some() || ctx.gone
    }

    /// Closes the trace and counts.
    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Box<Ctx>) {
        drop(ctx.placed.take());
        ctx.carried = Carried::default();
        let now = self.now();
        ctx.expected = None;
        if let Some(client) = &ctx.client {
            if session.is_http2() {
                if e.is_some_and(|e| {
                    *e.etype() == ErrorType::WriteTimedout && *e.esource() != ErrorSource::Upstream
                }) {
                    self.telemetry.metrics.connections.cut(Cut::WriteTime);
                }
                client.stream_ended(
                    ctx.gone || (e.is_some() && response::final_status(session).is_none()),
                );
            } else if session.as_downstream_mut().is_body_done() {
                client.enter(Phase::Idle);
            }
        }
        let status = response::final_status(session);
        if let Some(visit) = ctx.visit.take() {
            return self.visited(visit, status, now);
        }
        let Some(journey) = ctx.journey.take() else {
            if let Some(mut record) = ctx.unrouted.take() {
                record.trace.client = ctx.origin.as_ref().map(|o| o.address);
                let total = now.since(ctx.received);
                self.telemetry.unrouted(TraceRecord { status, total, ..record });
            }
            return;
        };
        let end = match (&ctx.reply, ctx.gone, e) {
            (Some(_), ..) => End::Replied { status },
            _ if ctx.from_record => End::Replied { status },
            (None, true, _) => End::Left { status },
            (None, false, Some(_)) if status.is_none() => End::Left { status },
            (None, false, Some(e)) if *e.esource() == ErrorSource::Upstream => {
                End::BrokeOff { status, failure: response::failure(e) }
            }
            _ => End::Answered { status },
        };
        let answered = ctx.first_byte.unwrap_or(now);
        let told = Told { reply: ctx.reply.as_ref(), kept: ctx.audited };
        record::close_at(&self.parts.gate, &self.telemetry, journey, end, answered, told);
    }
}
