//! Sends what is kept on record, and writes its response to whoever still waits: the shell around
//! [`super::exchange`] for one request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use pingora::ErrorSource;
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

use super::body;
use super::exchange::{self, Body, BodyCut, Delivered, Terms};
use super::gate::{Carried, Gate, Placed};
use super::headers;

/// What came of trying to deliver.
pub enum Tried {
    /// Nothing was sent; decide again.
    Again,
    /// Answer this.
    Reply(Reply),
    /// The app answered.
    Answered(Box<http::response::Parts>, Bytes, Option<mpsc::Receiver<Result<Bytes, BodyCut>>>),
}

/// Feeds a body that is sent as it comes.
type Feed = mpsc::Sender<Result<Bytes, BodyCut>>;

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
    let sending = if journey.passes_duplicate() {
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
    let Ok(request) = request else {
        if let Some(sending) = sending {
            sending.unsent();
        }
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the target is not a URI"));
    };
    let terms = Terms {
        response_timeout: limits.response_timeout,
        max_response: gate.ledger.max_response(),
    };
    let (tell, mut told) = oneshot::channel();
    let open = gate.exchanges.begin();
    // From here on the client may leave: the exchange goes on, and keeps its place in the allocation.
    tokio::spawn(async move {
        exchange::run(connection, request, sending, terms, tell).await;
        drop((placed, open));
    });
    let mut refused = None;
    let delivered = match feed {
        Some(feed) => pump(session, journey, gate, feed, &mut told, &mut refused).await,
        None => (&mut told).await.ok(),
    };
    Ok(match delivered {
        Some(Delivered::Whole(head, body)) => {
            match journey.withheld(head.status.as_u16(), gate.clock.now()) {
                Some(reply) => Tried::Reply(reply),
                None => Tried::Answered(Box::new(head), body, None),
            }
        }
        Some(Delivered::Streaming(head, first, rest)) => {
            match journey.withheld(head.status.as_u16(), gate.clock.now()) {
                Some(reply) => Tried::Reply(reply),
                None => Tried::Answered(Box::new(head), first, Some(rest)),
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

/// Writes that the request is about to be sent; from here on it is, or nobody knows.
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
        let verdict = if journey.passes_duplicate() { "duplicate" } else { "verified" };
        head.insert_header("vango-edge-webhook-verdict", verdict)?;
    }
    Ok(())
}

/// Passes the client's body on while the response is waited for.
async fn pump(
    session: &mut Session,
    journey: &mut Journey,
    gate: &Gate,
    feed: Feed,
    told: &mut oneshot::Receiver<Delivered>,
    refused: &mut Option<Reply>,
) -> Option<Delivered> {
    let (mut feed, mut sent) = (Some(feed), 0u64);
    loop {
        tokio::select! {
            biased;
            delivered = &mut *told => return delivered.ok(),
            read = session.as_downstream_mut().read_request_body(), if feed.is_some() => {
                let piece = match read {
                    Ok(Some(piece)) => {
                        sent += piece.len() as u64;
                        *refused = journey.body_grew(sent, gate.clock.now());
                        if refused.is_some() { Err(BodyCut) } else { Ok(piece) }
                    }
                    // Closing the feed is the body's end.
                    Ok(None) => {
                        feed = None;
                        continue;
                    }
                    Err(e) => {
                        if body::is_malformed(&e) {
                            *refused = Some(journey.body_malformed(gate.clock.now()));
                        }
                        Err(BodyCut)
                    }
                };
                let cut = piece.is_err();
                let gone = match &feed {
                    Some(feed) => feed.send(piece).await.is_err(),
                    None => true,
                };
                if cut || gone {
                    feed = None;
                }
            }
        }
    }
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
) -> pingora::Result<(Body, Option<Feed>)> {
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

/// Writes the app's response, or what was stored of it.
pub async fn write(
    session: &mut Session,
    id: RequestId,
    claim: &Claim,
    head: &http::response::Parts,
    (first, rest): (Bytes, Option<mpsc::Receiver<Result<Bytes, BodyCut>>>),
    mark: impl Fn(&mut ResponseHeader) -> pingora::Result<()>,
) -> pingora::Result<()> {
    let mut out = ResponseHeader::build(head.status, Some(head.headers.len() + 4))?;
    for (name, value) in &head.headers {
        out.append_header(name.clone(), value.clone())?;
    }
    out.insert_header("x-request-id", id.to_string())?;
    mark(&mut out)?;
    if claim.subject == Subject::Action {
        let seconds = (claim.retention_ms / 1000).to_string();
        out.insert_header("vango-edge-idempotency-retention", seconds)?;
    }
    let bodiless = matches!(head.status.as_u16(), 204 | 304);
    let no_body = bodiless || session.req_header().method == Method::HEAD;
    match &rest {
        None if !bodiless => out.insert_header(header::CONTENT_LENGTH, first.len())?,
        Some(_) if !no_body => out.insert_header(header::TRANSFER_ENCODING, "chunked")?,
        _ => {}
    }
    session.write_response_header(Box::new(out), no_body).await?;
    if no_body {
        return Ok(());
    }
    let Some(mut rest) = rest else {
        return session.write_response_body(Some(first), true).await;
    };
    if !first.is_empty() {
        session.write_response_body(Some(first), false).await?;
    }
    while let Some(piece) = rest.recv().await {
        let Ok(piece) = piece else {
            // The client must see that this is not the end: the connection is closed without one.
            session.set_keepalive(None);
            let mut cut = Error::explain(ErrorType::ConnectionClosed, "the response was cut");
            cut.esource = ErrorSource::Upstream;
            return Err(cut);
        };
        session.write_response_body(Some(piece), false).await?;
    }
    session.write_response_body(None, true).await
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
