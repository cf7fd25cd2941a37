//! Pingora's callbacks, in the order in which a request meets them. What they do is decided in
//! [`crate::lifecycle`] and performed in [`super::gate`] and in the modules that add to [`EdgeProxy`]:
//! `answer`, `asset`, `send_recorded`, `live`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, HttpPeer};
use pingora::{ErrorSource, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::contract::Protocol;
use crate::lifecycle::access::{self, Guess};
use crate::lifecycle::affinity::{self, Given};
use crate::lifecycle::answer::Answer;
use crate::lifecycle::enter::{Answered, Arrival, Classified, Entered, enter};
use crate::lifecycle::facts::{self, BadRequest, ErrorForm, Facts};
use crate::lifecycle::fields::Trailers;
use crate::lifecycle::grpc_status;
use crate::lifecycle::journey::{BodyRefusal, Broke, Event, Go, Journey};
use crate::lifecycle::reply::Reply;
use crate::lifecycle::trace::{Trace, UpstreamFailure};
use crate::telemetry::TraceRecord;
use crate::wire::{Client, Cut, Phase};

use super::downstream;
use super::edge::{Ctx, EdgeProxy};
use super::gate::Carried;
use super::head;
use super::upstream::{failure, is_unprocessed};

/// Seconds that a connection may be idle after a request that found places scarce.
const CROWDED_IDLE_S: u64 = 1;

#[async_trait]
impl ProxyHttp for EdgeProxy {
    /// Boxed: Pingora moves it from future to future, and each of these is as large as it.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx::new(self.gate.request_id(), self.now()))
    }

    /// Reads what came and says who answers: the edge, the artifact, or the app.
    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        self.meet_client(session, ctx)?;
        let facts = match read_head(session, ctx) {
            Ok(facts) => facts,
            Err(why) => {
                self.answer_unreadable(session, ctx, why);
                return Ok(());
            }
        };
        let refused = self.refused(ctx, &facts);
        match self.enter(session, facts, refused) {
            Entered::Edge(answered) => self.keep_answer(session, ctx, *answered),
            Entered::Asset(visit) => {
                ctx.view = Some(Arc::clone(visit.view()));
                ctx.visit = Some(visit);
            }
            Entered::Route { facts, classified, showed_token } => {
                if showed_token {
                    head::take_out_token(session.req_header_mut(), &facts);
                }
                self.begin_journey(session, ctx, facts, classified);
            }
        }
        Ok(())
    }

    /// Drives the journey. What serves a file, a socket or a request on record is boxed, so that a held
    /// request's future is no larger than waiting needs.
    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<bool> {
        if let Some(visit) = ctx.visit.take() {
            Box::pin(self.serve_asset(session, ctx, visit)).await?;
            return Ok(true);
        }
        let websocket = ctx.journey.as_ref().is_some_and(|j| j.facts().websocket);
        if websocket && !session.is_http2() {
            Box::pin(self.live(session, ctx)).await?;
            return Ok(true);
        }
        if self.drive(session, ctx).await == Go::Connect {
            if ctx.journey.as_ref().is_some_and(Journey::is_sent_apart) {
                Box::pin(self.send_recorded(session, ctx)).await?;
                return Ok(true);
            }
            return Ok(false);
        }
        self.answer(session, ctx).await?;
        Ok(true)
    }

    /// Connects to the placement: the first time to that of `request_filter`, and after a failed connection
    /// to a new one.
    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<Box<HttpPeer>> {
        if ctx.tried && self.drive(session, ctx).await != Go::Connect {
            return Err(not_passed_on("answered by the edge"));
        }
        // `drive` resets it.
        ctx.tried = true;
        let peer = ctx.journey.as_ref().and_then(|j| self.peer(j));
        peer.map(Box::new).ok_or_else(|| not_passed_on("no allocation was placed"))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        ctx.body_bytes = 0;
        // A request that needs a record never takes this way: it would be sent before the record is written.
        if self.report(ctx, Event::Connected) != Go::Send {
            return Err(not_passed_on("it may not be sent"));
        }
        let placed = ctx.journey.as_ref().and_then(|j| Some((j, j.placement()?)));
        let Some((journey, placement)) = placed else {
            return Err(not_passed_on("no allocation was placed"));
        };
        if let Some(client) = &ctx.client
            && session.is_http2()
            && !session.as_downstream_mut().is_body_done()
        {
            ctx.expected.get_or_insert_with(|| client.expect_body());
        }
        let h2c = placement.allocation.contract.process.protocol == Protocol::H2c;
        head::for_app(upstream, journey, &placement.allocation, self.now());
        if ctx.trailers.asked {
            // Said anew to the app's connection (RFC 9110 §10.1.4), of which HTTP/2 says nothing else.
            upstream.insert_header(header::TE, "trailers")?;
            if !h2c {
                upstream.insert_header(header::CONNECTION, "te")?;
            }
        }
        if let Some(subject) = journey.app_subject() {
            let attempt = self.gate.attempts.next(subject);
            upstream.insert_header("vango-edge-idempotency-attempt", attempt.to_string())?;
        }
        if h2c && upstream.remove_header(&header::EXPECT).is_some() {
            // Servers of HTTP/2 seldom say a 100, those of gRPC never. It is there, and has a place for it.
            downstream::invite(session).await?;
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
        let most = ctx.journey.as_ref().and_then(Journey::max_body);
        if most.is_none_or(|most| ctx.body_bytes <= most) {
            return Ok(());
        }
        self.report(ctx, Event::BodyRefused(BodyRefusal::TooLong));
        Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too long"))
    }

    /// Where the app has a place for them, which is HTTP/2's; elsewhere a request's trailers are dropped.
    fn request_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        _ctx: &mut Box<Ctx>,
    ) {
        head::clean_trailers(trailers);
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        ctx.heard = true;
        head::clean(response, &mut ctx.trailers)?;
        if response.status.is_informational() {
            return Ok(());
        }
        if self.report(ctx, Event::Answered { status: response.status.as_u16() }) != Go::PassOn {
            return Err(not_passed_on("its answer is not for the client"));
        }
        // A call's answer may be a head and nothing else.
        if let Some(journey) = &mut ctx.journey {
            journey.heard_fields(&response.headers);
        }
        if let Some(client) = &ctx.client {
            client.answers(head::is_event_stream(&response.headers));
        }
        if let Some(journey) = &ctx.journey
            && journey.view().contract.live().is_some()
            && let Some(route) = journey.route()
            && affinity::may_carry_token(&route.class, response.status.as_u16(), &response.headers)
            && let Some(cookie) = self.gate.affinity_cookie(journey, Given::Page)
        {
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        self.mark(response, ctx)
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> pingora::Result<()> {
        if let Some(journey) = &mut ctx.journey {
            journey.heard_fields(trailers);
        }
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
        let journey = ctx.journey.as_mut();
        let again = journey.is_some_and(|j| self.gate.connect_failed(j) == Go::Again);
        e.set_retry(again);
        e
    }

    /// Something may have been sent: only what [`Journey::may_resend`] allows goes again,
    /// whatever Pingora marked; and what the app did nothing with, by its own word.
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
        if !ctx.heard && is_unprocessed(&e) {
            e.set_retry(self.report(ctx, Event::Unprocessed { again: whole }) == Go::Again);
            return e;
        }
        let allowed = ctx.journey.as_ref().is_some_and(|j| j.may_resend(client_reused));
        let marked = matches!(e.retry, RetryType::ReusedOnly | RetryType::Decided(true));
        e.set_retry(whole && allowed && marked);
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
        if ctx.is_gone() {
            return closed;
        }
        if final_status(session).is_some() {
            if *e.esource() == ErrorSource::Downstream {
                return closed;
            }
            if !session.is_http2() {
                // The part of it that came goes out, and the connection ends without its end.
                session.as_downstream_mut().shutdown().await;
            } else if matches!(ctx.form, ErrorForm::Grpc(_)) {
                let told = grpc_status::broken_off(failure(e) == UpstreamFailure::Silent);
                let told =
                    told.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
                // A client that is gone is told nothing.
                let _ = session
                    .as_downstream_mut()
                    .write_response_trailers(told.into_iter().collect())
                    .await;
            }
            return closed;
        }
        if ctx.answer().is_none() {
            let slow = ctx.client.as_ref().and_then(|c| c.why_cut()) == Some(Cut::BodyRate);
            let event = match *e.esource() {
                ErrorSource::Downstream if downstream::is_malformed(e) => {
                    Event::BodyRefused(BodyRefusal::Malformed)
                }
                _ if slow => Event::BodyRefused(BodyRefusal::TooSlow),
                ErrorSource::Downstream => Event::Left,
                _ => Event::Failed(failure(e)),
            };
            if self.report(ctx, event) == Go::Stop {
                return closed;
            }
        }
        match self.answer(session, ctx).await {
            Ok(()) => FailToProxy {
                error_code: ctx.answer().map_or(0, Answer::status),
                // Whole: the session is finished in order.
                can_reuse_downstream: ctx.answer().is_some(),
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
        ctx.answer().is_some() || ctx.is_gone()
    }

    /// Closes the trace and counts.
    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Box<Ctx>) {
        ctx.carried = Carried::default();
        let now = self.now();
        ctx.expected = None;
        if let Some(client) = &ctx.client {
            if session.is_http2() {
                if e.is_some_and(|e| {
                    *e.etype() == ErrorType::WriteTimedout && *e.esource() != ErrorSource::Upstream
                }) {
                    self.gate.telemetry.metrics.cut(Cut::WriteTime);
                }
                client.stream_ended(
                    ctx.is_gone() || (e.is_some() && final_status(session).is_none()),
                );
            } else if session.as_downstream_mut().is_body_done() {
                client.enter(Phase::Idle);
            }
        }
        let status = final_status(session).map(|sent| ctx.refusal_to_grpc().unwrap_or(sent));
        if let Some(visit) = ctx.visit.take() {
            return self.visited(visit, status, now);
        }
        let Some(journey) = ctx.journey.take() else {
            if let Some(record) = ctx.unrouted.take() {
                let total = now.since(ctx.received);
                self.gate.telemetry.unrouted(TraceRecord { status, total, ..record });
            }
            return;
        };
        let broke = e.map(|e| match *e.esource() {
            ErrorSource::Upstream => Broke::App(failure(e)),
            _ => Broke::Client,
        });
        self.gate.close(journey, status, broke, ctx.audited);
    }
}

/// Reads the head of the request, and settles it: edge and app read the same from here on.
///
/// # Errors
/// When it can be read in more than one way, or in none.
fn read_head(session: &mut Session, ctx: &mut Ctx) -> Result<Facts, BadRequest> {
    let head = session.req_header();
    ctx.origin = ctx.client.as_ref().map(|c| c.origin_of(&head.headers));
    ctx.trailers = Trailers::of(head);
    let parsed = head::target(head).and_then(|target| {
        if let Some(c) = &ctx.client {
            let (bytes, fields) = (c.limits.header_bytes, c.limits.header_fields);
            facts::check_head(&head.headers, target.len(), bytes, fields)?;
        }
        Facts::parse(head, target, ctx.id, ctx.received)
    });
    let parsed = parsed.map(|facts| {
        head::settle(session.req_header_mut());
        ctx.form = facts.error_form;
        let streamed = session.is_http2() && !session.as_downstream_mut().is_body_empty();
        Facts { body: facts.body || streamed, origin: ctx.origin.clone(), ..facts }
    });
    // What cannot be read may have one too.
    ctx.body_unread = parsed.as_ref().map_or(true, |f| f.body);
    if let Some(client) = &ctx.client {
        client.enter(if ctx.body_unread { Phase::Body } else { Phase::Answer });
    }
    parsed
}

/// How a request enters, step by step.
impl EdgeProxy {
    /// Tells the client's connection that it asks for something.
    ///
    /// # Errors
    /// When the connection is about to be closed: nothing is done for it.
    fn meet_client(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        // So that a pipelined request is not taken for a client that left.
        session.set_pipelining_enabled(true);
        ctx.client = Client::of(session).cloned();
        let Some(client) = &ctx.client else { return Ok(()) };
        if !client.asks() {
            ctx.ignored = true;
            return Err(Error::new_down(ErrorType::ConnectionClosed));
        }
        // A connection that takes nothing is ended, and counted, by `Guarded`: this timeout is longer, in
        // case that fails. Of HTTP/2 one stream may take nothing while others do.
        let later = if session.is_http2() { 1 } else { 2 };
        session.set_write_timeout(Some(client.limits.write_timeout * later));
        let crowded = self.gate.connections.is_crowded();
        client.begins(session.req_header().version == http::Version::HTTP_11, crowded);
        session.set_total_drain_timeout(Some(client.lingers()));
        if crowded {
            // A connection that goes on asking keeps its place; an idle one soon gives it to another client.
            session.set_keepalive(Some(CROWDED_IDLE_S));
        }
        Ok(())
    }

    /// Keeps the answer and the trace of a request whose head can be read in more than one way, or in none.
    fn answer_unreadable(&self, session: &Session, ctx: &mut Ctx, why: BadRequest) {
        let head = session.req_header();
        let (mut trace, reply) = Trace::unreadable(ctx.id, ctx.received, why, self.now());
        trace.client = ctx.origin.as_ref().map(|o| o.address);
        let path = facts::shown(head::sent_target(head));
        ctx.own_answer = Some(Answer::Reply(reply));
        ctx.unrouted = Some(self.unrouted(trace, head.method.clone(), String::new(), path));
    }

    /// Counts the request for its client; what it is refused with where the client has as many as it may, or where its
    /// connection is for another host.
    fn refused(&self, ctx: &mut Ctx, facts: &Facts) -> Option<Reply> {
        let client = ctx.client.as_ref()?;
        if let Some(origin) = &ctx.origin {
            match client.share(origin, &self.gate.connections) {
                Ok(share) => ctx.share = share,
                Err(most) => return Some(Reply::too_many_requests(most)),
            }
        }
        (!client.belongs(&facts.host)).then(|| Reply::misdirected(&facts.host))
    }

    /// Has the core say who answers, on the newest snapshot.
    fn enter(&self, session: &Session, facts: Facts, refused: Option<Reply>) -> Entered {
        let (now, wall) = (self.now(), self.gate.clock.wall());
        let snapshot = self.gate.snapshots.load();
        let locked = |from| self.wrong.wait(from, now);
        let headers = &session.req_header().headers;
        let validations = self.validations.load();
        let validations = &**validations;
        let arrival = Arrival { facts, headers, refused, locked: &locked, validations };
        enter(arrival, &snapshot, &self.policies.load(), now, wall)
    }

    /// Keeps the answer and the trace of a request that the edge answers itself.
    fn keep_answer(&self, session: &Session, ctx: &mut Ctx, answered: Answered) {
        let Answered { facts, view, mut trace, answer, guess } = answered;
        let origin = facts.origin.as_ref();
        if let (Some(guess), Some(origin)) = (guess, origin) {
            let headers = &session.req_header().headers;
            let cookie = access::cookie(headers).filter(|_| guess == Guess::Cookie);
            self.wrong.count(origin.address, cookie, self.now());
        }
        if matches!(answer, Answer::Standing(_)) {
            // Counted, and not kept: ten thousand pages that wait would push everything else out of the ring.
            self.gate.telemetry.metrics.standing();
            ctx.own_answer = Some(answer);
            ctx.view = view;
            return;
        }
        trace.client = origin.map(|o| o.address);
        let path = facts.sent().to_owned();
        let record = self.unrouted(trace, facts.method, facts.host, path);
        let environment = view.as_ref().map(|v| v.environment.clone());
        ctx.own_answer = Some(answer);
        ctx.unrouted = Some(TraceRecord { environment, ..record });
        ctx.view = view;
    }

    fn unrouted(&self, trace: Trace, method: Method, host: String, path: String) -> TraceRecord {
        let (now, at) = (self.now(), self.gate.clock.wall());
        TraceRecord::new(method, host, path, trace, now, at)
    }

    /// Begins the journey of a request that goes by its route.
    fn begin_journey(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        mut facts: Box<Facts>,
        classified: Classified,
    ) {
        let (gate, headers) = (&self.gate, &session.req_header().headers);
        ctx.view = Some(Arc::clone(&classified.view));
        if classified.may_wake {
            classified.view.counters.touch(ctx.received);
        }
        gate.sessions.recognise(&classified, headers, || gate.clock.wall(), &mut facts);
        let mut journey = Journey::begin(*facts, classified);
        let secret = !gate.secrets_for(&journey).is_empty();
        journey.read_head(headers, secret, gate.clock.wall());
        ctx.journey = Some(journey);
    }
}

/// Ends Pingora's turn at a request, or at an answer, that is not to be passed on; `why` is for its log.
fn not_passed_on(why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InternalError, why)
}

/// The status of the answer proper that was sent. A 1xx is none: an answer is still owed after it
/// (RFC 9110 §15.2).
fn final_status(session: &Session) -> Option<u16> {
    let status = session.response_written()?.status;
    (status == StatusCode::SWITCHING_PROTOCOLS || !status.is_informational())
        .then(|| status.as_u16())
}
