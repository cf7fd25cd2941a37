//! Sends what is kept on record, and writes its response to the client that still waits: the shell around
//! [`super::exchange`] for one request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;
use tokio::sync::{mpsc, oneshot};

use crate::id::RequestId;
use crate::ledger::{Sending, Taken};
use crate::lifecycle::admit::Journey;
use crate::lifecycle::facts::Facts;
use crate::lifecycle::idempotency::Claim;
use crate::lifecycle::reply::Reply;
use crate::store::record::ledger::{StoredHead, StoredResponse, Subject};

use super::exchange::{self, Body, Delivered, Fed, Rest, Terms};
use super::gate::{Carried, Gate, Placed};
use super::upload::{self, Step, Upload};
use super::{body, headers, response};

/// What came of trying to deliver.
pub enum Tried {
    /// Nothing was sent; decide again.
    Again,
    /// Answer this.
    Reply(Reply),
    /// The app answered: the head, the body or its begin, the rest of it, and what of the request's body
    /// is still on its way to the app.
    Answered(Box<http::response::Parts>, Bytes, Option<(Rest, Option<Upload>)>),
}

/// 1xx answers of an app that wait for a client to take them, at most.
const HINTS: usize = 4;

/// Sends the request to where it was placed, at most once.
pub async fn deliver(
    session: &mut Session,
    gate: &Gate,
    journey: &mut Journey,
    carried: &mut Carried,
    placed: Placed,
) -> pingora::Result<Tried> {
    let limits = gate.limits.load_full();
    let Some((placement, claim)) = placed.placement().zip(journey.claim().cloned()) else {
        return Err(Error::explain(ErrorType::InternalError, "nothing was placed"));
    };
    let Some(address) = placement.allocation.address else {
        return Err(Error::explain(ErrorType::InternalError, "the allocation has no address"));
    };
    let mut head = request_head(session, journey, &placed)?;
    let connection = match exchange::connect(address, limits.connect_timeout).await {
        Ok(connection) => connection,
        Err(_) => {
            return Ok(match gate.connect_failed(journey, placement) {
                Some(reply) => Tried::Reply(reply),
                None => Tried::Again,
            });
        }
    };
    let sending = if journey.passes_unrecorded() {
        None
    } else {
        match record(gate, journey, carried, &claim).await {
            Ok(sending) => Some(sending),
            Err(tried) => return Ok(tried),
        }
    };
    mark(&mut head, journey)?;
    let (body, feed) = body_of(journey, carried, &mut head)?;
    let request = to_request(head, journey.facts(), body);
    let Ok(mut request) = request else {
        if let Some(sending) = sending {
            sending.unsent();
        }
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the target is not a URI"));
    };
    let terms = Terms {
        response_timeout: limits.response_timeout,
        max_response: gate.ledger.max_response(),
    };
    let hints = hinted(&mut request);
    let (tell, told) = oneshot::channel();
    let open = gate.exchanges.begin();
    // From here on the client may leave: the exchange goes on, and keeps its place in the allocation.
    tokio::spawn(async move {
        exchange::run(connection, request, sending, terms, tell).await;
        drop((placed, open));
    });
    let mut refused = None;
    let upload = feed.map(|feed| Upload::new(session, feed));
    let between = Between { upload, hints, told };
    let (delivered, upload) = between.pump(session, journey, gate, &mut refused).await;
    Ok(match delivered {
        Some(Delivered::Whole(head, body)) => {
            match journey.withheld(head.status.as_u16(), gate.clock.now()) {
                Some(reply) => Tried::Reply(reply),
                None => Tried::Answered(Box::new(head), body, None),
            }
        }
        Some(Delivered::Streaming(head, first, rest)) => {
            let withheld = || journey.withheld(head.status.as_u16(), gate.clock.now());
            // One whose body the edge cut off breaks off as well.
            match refused.or_else(withheld) {
                Some(reply) => Tried::Reply(reply),
                None => Tried::Answered(Box::new(head), first, Some((rest, upload))),
            }
        }
        Some(Delivered::Failed(failure)) => Tried::Reply(match refused {
            // The edge cut it off itself, and has said why.
            Some(reply) => reply,
            None => journey.upstream_failed(failure, gate.clock.now()),
        }),
        // The task is gone without a word: it panicked, and dropping what it held said "unknown".
        None => {
            return Err(Error::explain(ErrorType::InternalError, "the exchange ended unheard"));
        }
    })
}

/// Writes that the request is about to be sent; from here on it is, or its outcome is unknown.
async fn record(
    gate: &Gate,
    journey: &mut Journey,
    carried: &mut Carried,
    claim: &Claim,
) -> Result<Sending, Tried> {
    let whole = journey.reads_whole_body();
    let operation = journey.operation().cloned();
    let reserved = carried.reservation.take();
    let taken = gate.ledger.forward(reserved, claim, whole, operation.as_ref()).await;
    let now = gate.clock.now();
    match taken {
        Ok(Taken::Held(sending)) => {
            journey.forwarding(sending.attempt(), now);
            Ok(sending)
        }
        Ok(Taken::Found(seen)) => {
            journey.found(seen, now);
            Err(Tried::Again)
        }
        Err(e) => {
            log::debug!("ledger: {e}");
            Err(Tried::Reply(journey.ledger_failed(now)))
        }
    }
}

/// Tells the app which attempt of which record this is, and which event was verified.
fn mark(head: &mut RequestHeader, journey: &Journey) -> pingora::Result<()> {
    if journey.attempt() > 0 {
        head.insert_header("vango-edge-idempotency-attempt", journey.attempt().to_string())?;
        if let Some(claim) = journey.claim() {
            head.insert_header("vango-edge-idempotency-record", claim.record())?;
        }
    }
    if let Some(event) = journey.event() {
        head.insert_header("vango-edge-webhook-event", event)?;
    }
    if let Some(verdict) = journey.told() {
        head.insert_header("vango-edge-webhook-verdict", verdict)?;
    }
    Ok(())
}

/// What goes between the client and an exchange that is at work.
struct Between {
    /// The client's body, until it is over.
    upload: Option<Upload>,
    /// What the app says before its answer.
    hints: mpsc::Receiver<ResponseHeader>,
    /// Its answer.
    told: oneshot::Receiver<Delivered>,
}

impl Between {
    /// Passes the client's body on, and what the app says meanwhile, until there is an answer. What is left
    /// of the body then is read by what writes that.
    async fn pump(
        mut self,
        session: &mut Session,
        journey: &mut Journey,
        gate: &Gate,
        refused: &mut Option<Reply>,
    ) -> (Option<Delivered>, Option<Upload>) {
        // The app is there and its place is taken: the client may send its body. One that is gone is
        // found by reading.
        if self.upload.is_some() {
            let _ = body::invite(session).await;
        }
        loop {
            let step = tokio::select! {
                biased;
                Some(hint) = self.hints.recv() => {
                    // The exchange goes on without a client that is gone.
                    let _ = session.write_response_header(Box::new(hint), false).await;
                    continue;
                }
                delivered = &mut self.told => return (delivered.ok(), self.upload),
                step = upload::step(&mut self.upload, session, journey, gate) => step,
            };
            if let Step::BrokeOff(why) = step {
                *refused = why;
            }
        }
    }
}

/// Hands what the app says before its answer to the channel that this returns. Its 100 is the edge's matter.
fn hinted(request: &mut http::Request<Body>) -> mpsc::Receiver<ResponseHeader> {
    let (say, hints) = mpsc::channel(HINTS);
    hyper::ext::on_informational(request, move |hint| {
        if hint.status() != http::StatusCode::CONTINUE
            && let Ok(hint) = response::copied(hint.status(), hint.headers())
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
    placed: &Placed,
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
    let Some(placement) = placed.placement() else {
        return Err(Error::explain(ErrorType::InternalError, "nothing was placed"));
    };
    let (target, verdict) = (&placement.allocation, journey.verdict());
    headers::for_app(&mut head, facts, target, verdict);
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

fn to_request(
    head: RequestHeader,
    facts: &Facts,
    body: Body,
) -> Result<http::Request<Body>, http::Error> {
    let mut request = http::Request::builder()
        .method(head.method.clone())
        .uri(facts.target())
        .version(http::Version::HTTP_11)
        .body(body)?;
    *request.headers_mut() = head.headers.clone();
    Ok(request)
}

/// The head of the app's response, or of what was stored of it, as the client gets it.
pub fn marked(
    id: RequestId,
    claim: &Claim,
    head: &http::response::Parts,
    mark: impl Fn(&mut ResponseHeader) -> pingora::Result<()>,
) -> pingora::Result<ResponseHeader> {
    let mut out = response::copied(head.status, &head.headers)?;
    out.insert_header("x-request-id", id.to_string())?;
    mark(&mut out)?;
    if claim.subject == Subject::Action {
        let seconds = (claim.retention_ms / 1000).to_string();
        out.insert_header("vango-edge-idempotency-retention", seconds)?;
    }
    Ok(out)
}

/// A stored response as one to write.
pub fn replayed(stored: StoredResponse) -> (http::response::Parts, Bytes) {
    let (mut head, ()) = http::Response::new(()).into_parts();
    if let Ok(status) = http::StatusCode::from_u16(stored.head.status) {
        head.status = status;
    }
    for (name, value) in &stored.head.headers {
        if let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), HeaderValue::from_bytes(&StoredHead::bytes(value)))
        {
            head.headers.append(name, value);
        }
    }
    head.headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    (head, stored.body)
}

/// Answers 200 for an event that the app accepted before.
pub async fn acknowledge(session: &mut Session, id: RequestId) -> pingora::Result<()> {
    const BODY: &[u8] = b"{\"accepted\":\"before\"}\n";
    let mut head = ResponseHeader::build(200, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, BODY.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header("x-request-id", id.to_string())?;
    head.insert_header("vango-edge-webhook-verdict", "duplicate")?;
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(Bytes::from_static(BODY)), true).await
}

/// Counts exchanges that are going on, so that a stop can wait for them.
#[derive(Debug, Default)]
pub struct Exchanges {
    open: std::sync::atomic::AtomicUsize,
    ended: tokio::sync::Notify,
}

/// One that is going on.
pub struct Open(Arc<Exchanges>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        self.0.ended.notify_waiters();
    }
}

impl Exchanges {
    /// One begins.
    pub fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        Open(Arc::clone(self))
    }

    /// How many are going on.
    pub fn open(&self) -> usize {
        self.open.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Waits until none is, at most `limit`; says how many are left.
    pub async fn drained(&self, limit: std::time::Duration) -> usize {
        let all_ended = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                // Registered before the count is read, so that no end is missed.
                ended.as_mut().enable();
                if self.open() == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_ended).await;
        self.open()
    }
}
