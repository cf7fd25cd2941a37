//! Sends requests that are kept on record, or whose body was read already, at most once each, and writes the
//! response to the client that still waits: the shell around [`super::exchange`] for one request. The client's body goes on to the app
//! piece by piece, before the answer and beside it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Mono;
use crate::contract::Protocol;
use crate::lifecycle::journey::{BodyRefusal, Event, Go, Journey};
use crate::snapshot::AllocationView;
use crate::wire::{Client, Cut, ExpectedBody, Phase};

use super::answer::{self, Meanwhile, Nothing};
use super::downstream;
use super::edge::{Ctx, EdgeProxy};
use super::exchange::{self, Body, Exchanged, Fed, Part, Rest};
use super::gate::{Carried, Gate};
use super::head;

impl EdgeProxy {
    /// Sends a request that is kept on record, at most once, and answers.
    pub(super) async fn send_recorded(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        let gate = &*self.gate;
        // Ends: each turn without an answer excludes an allocation or meets a record.
        while let Some(journey) = &mut ctx.journey {
            match attempt(session, gate, journey, &mut ctx.carried, ctx.trailers.asked).await? {
                Tried::Answered(head, first, After::End(mut trailers)) => {
                    let head = self.recorded_head(ctx, head.status, &head.headers)?;
                    ctx.trailers.clean(&mut trailers);
                    return answer::write(session, head, first, trailers).await;
                }
                Tried::Answered(head, first, After::Rest(mut rest, upload)) => {
                    let head = self.recorded_head(ctx, head.status, &head.headers)?;
                    let Ctx { journey: Some(journey), trailers, .. } = ctx else { break };
                    let mut beside = Beside { upload, journey, gate };
                    let rest = stream::poll_fn(|cx| rest.poll_recv(cx));
                    // The journey is with what is beside the answer until its end.
                    let ended = OnceLock::new();
                    let rest = rest.map(|part| {
                        part.map(|part| match part {
                            Part::Trailers(mut sent) => {
                                ended.get_or_init(|| sent.clone());
                                trailers.clean(&mut sent);
                                Part::Trailers(sent)
                            }
                            data => data,
                        })
                    });
                    let answered = answer::stream(session, head, first, rest, &mut beside).await;
                    if let Some(fields) = ended.get() {
                        beside.journey.heard_fields(fields);
                    }
                    return answered;
                }
                Tried::Went(Go::Again) if self.drive(session, ctx).await == Go::Connect => {}
                Tried::Went(_) => break,
            }
        }
        self.answer(session, ctx).await
    }
}

/// What came of an attempt.
enum Tried {
    /// The app did not answer, or the edge answers in its place: what is next.
    Went(Go),
    /// The app answered: the head, the body or its begin, and what comes after that.
    Answered(Box<http::response::Parts>, Bytes, After),
}

/// What comes after the begin of an answer.
enum After {
    /// Its end, with trailers.
    End(HeaderMap),
    /// The rest of it, and what of the request's body is still on its way to the app.
    Rest(Rest, Upload),
}

/// 1xx answers of an app that wait for a client to take them, at most.
const HINTS: usize = 4;

/// Sends the request to where it was placed, at most once.
async fn attempt(
    session: &mut Session,
    gate: &Gate,
    journey: &mut Journey,
    carried: &mut Carried,
    takes_trailers: bool,
) -> pingora::Result<Tried> {
    let limits = gate.limits.load().of_route(journey);
    let placed = journey.placement().map(|p| Arc::clone(&p.allocation));
    let Some((address, target)) = placed.and_then(|target| Some((target.address?, target))) else {
        return Err(Error::explain(ErrorType::InternalError, "the allocation has no address"));
    };
    let mut head = request_head(session, journey, &target, gate.clock.now())?;
    let protocol = target.contract.process.protocol;
    if takes_trailers && protocol == Protocol::H2c {
        // gRPC's servers take no call without it.
        head.insert_header(header::TE, "trailers")?;
    }
    let (within, silent) = (limits.connect_timeout, limits.response_timeout);
    let connection = exchange::connect(address, protocol, within, silent).await;
    let Some(connection) = connection else {
        return Ok(Tried::Went(gate.connect_failed(journey)));
    };
    let (mut go, mut sending) = (gate.report(journey, Event::Connected), None);
    if go == Go::Record {
        (go, sending) = gate.record(journey, carried).await;
    }
    if go != Go::Send {
        return Ok(Tried::Went(go));
    }
    let (mut request, feed) = match request_of(head, journey, gate, carried) {
        Ok(made) => made,
        Err(e) => {
            // Dropped, it would read as one that may have reached the app.
            if let Some(sending) = sending {
                sending.unsent();
            }
            return Err(e);
        }
    };
    let (within, most) = (limits.response_timeout, gate.ledger.max_response());
    let hints = hinted(&mut request);
    let (tell, exchanged) = oneshot::channel();
    let (open, placement) = (gate.exchanges.begin(), journey.take_placement());
    // From here on the client may leave: the exchange goes on, and keeps its place in the allocation.
    tokio::spawn(async move {
        exchange::run(connection, request, sending, within, most, tell).await;
        drop((placement, open));
    });
    let mut upload = Upload::new(session, feed);
    let exchanged = pump(session, journey, gate, &mut upload, hints, exchanged).await;
    let Ok(exchanged) = exchanged else {
        // The task is gone without a word: it panicked, and dropping what it held said "unknown".
        return Err(Error::explain(ErrorType::InternalError, "the exchange ended unheard"));
    };
    let (head, body, after) = match exchanged {
        Exchanged::Whole(head, body, trailers) => (head, body, After::End(trailers)),
        // The edge cut the request's body off, and has said why: the answer breaks off as well.
        _ if journey.answer().is_some() => return Ok(Tried::Went(Go::Tell)),
        Exchanged::Streaming(head, first, rest) => (head, first, After::Rest(rest, upload)),
        // Its body is gone with the connection.
        Exchanged::Unprocessed => {
            let unprocessed = Event::Unprocessed { again: false };
            return Ok(Tried::Went(gate.report(journey, unprocessed)));
        }
        Exchanged::Failed(failure) => {
            return Ok(Tried::Went(gate.report(journey, Event::Failed(failure))));
        }
    };
    journey.heard_fields(&head.headers);
    if let After::End(trailers) = &after {
        journey.heard_fields(trailers);
    }
    let go = gate.report(journey, Event::Answered { status: head.status.as_u16() });
    Ok(if go == Go::PassOn {
        Tried::Answered(Box::new(head), body, after)
    } else {
        Tried::Went(go)
    })
}

/// The request as the app is to get it, and where its body is fed to it if that was not read whole.
fn request_of(
    mut head: RequestHeader,
    journey: &Journey,
    gate: &Gate,
    carried: &mut Carried,
) -> pingora::Result<(http::Request<Body>, Option<mpsc::Sender<Fed>>)> {
    add_attempt(&mut head, journey)?;
    // One whose key was in its body, and is on record with the app only.
    if let Some(subject) = journey.app_subject() {
        let attempt = gate.attempts.next(subject);
        head.insert_header("vango-edge-idempotency-attempt", attempt.to_string())?;
    }
    let (body, feed) = body_of(journey, carried, &mut head)?;
    let mut head = Parts::from(head);
    let Ok(target) = http::Uri::try_from(journey.facts().target()) else {
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the target is not a URI"));
    };
    (head.uri, head.version) = (target, http::Version::HTTP_11);
    Ok((http::Request::from_parts(head, body), feed))
}

/// Tells the app which attempt of which record this is, and which event was verified.
fn add_attempt(head: &mut RequestHeader, journey: &Journey) -> pingora::Result<()> {
    if journey.ledger_attempt() > 0 {
        head.insert_header("vango-edge-idempotency-attempt", journey.ledger_attempt().to_string())?;
        if let Some(claim) = journey.claim() {
            head.insert_header("vango-edge-idempotency-record", claim.record_name())?;
        }
    }
    if let Some(event) = journey.event_id() {
        head.insert_header("vango-edge-webhook-event", event)?;
    }
    if let Some(verdict) = journey.webhook_verdict() {
        head.insert_header("vango-edge-webhook-verdict", verdict)?;
    }
    Ok(())
}

/// Passes the client's body on, and the app's `hints` before its answer, until there is an answer. What is
/// left of the body then is read by what writes that.
async fn pump(
    session: &mut Session,
    journey: &mut Journey,
    gate: &Gate,
    upload: &mut Upload,
    mut hints: mpsc::Receiver<ResponseHeader>,
    mut exchanged: oneshot::Receiver<Exchanged>,
) -> Result<Exchanged, oneshot::error::RecvError> {
    // The app is there and its place is taken: the client may send its body. One that is gone is
    // found by reading.
    if upload.feed.is_some() {
        let _ = downstream::invite(session).await;
    }
    loop {
        tokio::select! {
            biased;
            Some(hint) = hints.recv() => {
                // The exchange goes on without a client that is gone.
                let _ = session.write_response_header(Box::new(hint), false).await;
            }
            exchanged = &mut exchanged => return exchanged,
            _ = upload.step(session, journey, gate) => {}
        }
    }
}

/// Hands what the app says before its answer to the channel that this returns. Its 100 is the edge's matter.
fn hinted(request: &mut http::Request<Body>) -> mpsc::Receiver<ResponseHeader> {
    let (say, hints) = mpsc::channel(HINTS);
    hyper::ext::on_informational(request, move |hint| {
        if hint.status() != http::StatusCode::CONTINUE
            && let Ok(hint) = head::copied(hint.status(), hint.headers())
        {
            // More than these are not waited for.
            let _ = say.try_send(hint);
        }
    });
    hints
}

/// The head that the app is to see.
fn request_head(
    session: &Session,
    journey: &Journey,
    target: &AllocationView,
    now: Mono,
) -> pingora::Result<RequestHeader> {
    let facts = journey.facts();
    let sent = session.req_header();
    let mut head = sent.clone();
    // The body is framed anew, and its sender was told to go on.
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT] {
        head.remove_header(&name);
    }
    if !head.headers.contains_key(header::HOST) {
        let authority = sent.uri.authority().map_or(facts.host.as_str(), |a| a.as_str());
        head.insert_header(header::HOST, authority.to_owned())?;
    }
    head::for_app(&mut head, journey, target, now);
    Ok(head)
}

/// The body, with its length in the head where it is known.
fn body_of(
    journey: &Journey,
    carried: &mut Carried,
    head: &mut RequestHeader,
) -> pingora::Result<(Body, Option<mpsc::Sender<Fed>>)> {
    let facts = journey.facts();
    if journey.reads_whole_body() || !facts.body {
        let bytes = carried.body.take().map(|b| b.bytes).unwrap_or_default();
        let says = matches!(facts.method, Method::POST | Method::PUT | Method::PATCH);
        if facts.body || facts.content_length.is_some() || says {
            head.insert_header(header::CONTENT_LENGTH, bytes.len())?;
        }
        return Ok((exchange::whole(bytes), None));
    }
    if let Some(length) = facts.content_length {
        head.insert_header(header::CONTENT_LENGTH, length)?;
    }
    let (feed, body) = exchange::fed();
    Ok((body, Some(feed)))
}

/// A client's body on its way to an app that may answer before it has all of it. Dropped before it is over,
/// it is cut off: the app sees no end of it.
struct Upload {
    /// `None` once it is over, or the app takes no more of it.
    feed: Option<mpsc::Sender<Fed>>,
    bytes: u64,
    /// Over HTTP/2: without it a body that drips has no bound, and keeps its place in the app.
    expected: Option<ExpectedBody>,
}

impl Upload {
    /// Begins to pass the body of `session` on to `feed`; with none it is over.
    fn new(session: &mut Session, feed: Option<mpsc::Sender<Fed>>) -> Self {
        let comes =
            feed.is_some() && session.is_http2() && !session.as_downstream_mut().is_body_done();
        let expected = Client::of(session).filter(|_| comes).map(Client::expect_body);
        Self { feed, bytes: 0, expected }
    }

    /// Passes the next piece on, once the app has room for it; never ready once it is over. Cancel safe.
    ///
    /// # Errors
    /// When it broke off: its client is gone, or the edge cut it off, and the journey has the answer.
    async fn step(
        &mut self,
        session: &mut Session,
        journey: &mut Journey,
        gate: &Gate,
    ) -> pingora::Result<()> {
        let Some(feed) = &self.feed else { return std::future::pending().await };
        let passed = pass(feed, &mut self.bytes, session, journey, gate).await;
        if !matches!(passed, Ok(true)) {
            (self.feed, self.expected) = (None, None);
        }
        passed.map(|_| ())
    }
}

/// Passes a piece on; `false` when there is no other, or the app takes no more.
async fn pass(
    feed: &mpsc::Sender<Fed>,
    bytes: &mut u64,
    session: &mut Session,
    journey: &mut Journey,
    gate: &Gate,
) -> pingora::Result<bool> {
    let Ok(room) = feed.reserve().await else { return Ok(false) };
    let read = session.as_downstream_mut().read_request_body().await;
    let slow = || Client::of(session).and_then(|c| c.why_cut()) == Some(Cut::BodyRate);
    let refused = match read {
        Ok(Some(piece)) => {
            *bytes += piece.len() as u64;
            if journey.max_body().is_none_or(|most| *bytes <= most) {
                room.send(Fed::Piece(piece));
                return Ok(true);
            }
            BodyRefusal::TooLong
        }
        Ok(None) => {
            room.send(Fed::End);
            if let Some(client) = Client::of(session) {
                client.enter(Phase::Answer);
            }
            return Ok(false);
        }
        Err(e) if downstream::is_malformed(&e) => BodyRefusal::Malformed,
        Err(_) if slow() => BodyRefusal::TooSlow,
        Err(_) => return Err(answer::gone()),
    };
    gate.report(journey, Event::BodyRefused(refused));
    Err(Error::explain(ErrorType::ReadError, "the body broke off while it was answered"))
}

/// What is left of an upload when its answer begins, which goes on beside it.
struct Beside<'a> {
    upload: Upload,
    journey: &'a mut Journey,
    gate: &'a Gate,
}

impl Meanwhile for Beside<'_> {
    /// An answer that is always there would keep the upload from ever going on.
    const FIRST: bool = true;

    async fn over(&mut self, session: &mut Session) -> Box<Error> {
        while self.upload.feed.is_some() {
            if let Err(e) = self.upload.step(session, self.journey, self.gate).await {
                return e;
            }
        }
        Nothing.over(session).await
    }
}
