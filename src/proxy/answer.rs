//! Writes answers that do not go through Pingora's loop: the edge's own, stored ones, and those that the edge
//! read from an app itself, whole or cut where the app cut them. What a provider is answered is evidence first.

use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType};
use pingora::protocols::http::HttpTask;
use pingora_proxy::Session;

use crate::lifecycle::answer::Answer;
use crate::lifecycle::facts::ErrorForm;
use crate::lifecycle::grpc::Dialect;
use crate::lifecycle::grpc_status;
use crate::lifecycle::journey::Journey;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::standing::Standing;
use crate::record::ledger::{StoredHead, StoredResponse, Subject};
use crate::wire::Client;

use super::downstream::Downstream as _;
use super::edge::{Ctx, EdgeProxy};
use super::exchange::{Part, Piece};
use super::head;

impl EdgeProxy {
    /// Sends the client what is not the app's answer; nothing where the client is gone. A connection with an
    /// unread body is closed after it: its bytes would be read as the next request.
    pub(super) async fn answer(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<()> {
        self.record_before_answer(ctx).await;
        let Some(answer) = ctx.answer() else {
            session.set_keepalive(None);
            return Ok(());
        };
        if ctx.body_unread {
            session.set_keepalive(None);
        }
        let mut trailers = HeaderMap::new();
        let (head, body) = match answer {
            Answer::Reply(reply) => self.own(session, ctx, reply)?,
            Answer::Standing(standing) => self.standing(session, ctx, *standing)?,
            Answer::Welcome { location, cookie } => welcome(ctx, location, cookie)?,
            Answer::Validation(shown) => validation(ctx, shown)?,
            Answer::Stored(stored) => {
                trailers = fields(&stored.head.trailers);
                ctx.trailers.clean(&mut trailers);
                self.stored(ctx, stored)?
            }
            Answer::Acknowledge => accepted_before(ctx)?,
        };
        write(session, head, body, trailers).await
    }

    /// What a provider is answered about a verified delivery, other than the app's own answer, is on
    /// record before it is sent.
    async fn record_before_answer(&self, ctx: &mut Ctx) {
        let Some(journey) = ctx.journey.as_ref().filter(|j| j.event_id().is_some() && !ctx.audited)
        else {
            return;
        };
        let status = journey.answer().map(Answer::status);
        let evidence = journey.evidence_of(status, self.now(), self.gate.clock.wall());
        let Some(evidence) = evidence else { return };
        match self.gate.audit.before_answer(&evidence).await {
            Ok(()) => ctx.audited = true,
            // The answer is the same without it, and the provider delivers again.
            Err(e) => log::warn!("audit: {e}"),
        }
    }

    /// An answer of the edge's own.
    fn own(
        &self,
        session: &Session,
        ctx: &Ctx,
        reply: &Reply,
    ) -> pingora::Result<(ResponseHeader, Bytes)> {
        let policies = self.policies.load();
        let brand = policies.brand(ctx.view.as_deref());
        let (content_type, body) = reply.body(ctx.form, ctx.id, brand);
        let mut head = ResponseHeader::build(reply.sent_status(ctx.form), Some(12))?;
        head.insert_header("content-type", content_type)?;
        head.insert_header("content-length", body.len())?;
        if let ErrorForm::Grpc(dialect) = ctx.form {
            for (name, value) in grpc_status::fields(reply, dialect) {
                head.insert_header(name, value)?;
            }
        }
        let page = reply.page_fields(ctx.form, brand);
        for (name, value) in reply.headers(head::NAME).into_iter().chain(page) {
            head.insert_header(name, value)?;
        }
        let_read(session, ctx, &mut head)?;
        let opened = head.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        if opened && matches!(ctx.form, ErrorForm::Grpc(Dialect::Web | Dialect::WebText)) {
            let told = "Grpc-Status, Grpc-Message, Grpc-Retry-Pushback-Ms";
            head.append_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, told)?;
        }
        self.mark(&mut head, ctx)?;
        Ok((head, Bytes::from(body)))
    }

    /// How the app of the request's host stands.
    fn standing(
        &self,
        session: &Session,
        ctx: &Ctx,
        standing: Standing,
    ) -> pingora::Result<(ResponseHeader, Bytes)> {
        let body = standing.json();
        let mut head = ResponseHeader::build(200, Some(6))?;
        head.insert_header("content-type", "application/json")?;
        head.insert_header("content-length", body.len())?;
        head.insert_header("cache-control", "no-store")?;
        let_read(session, ctx, &mut head)?;
        self.mark(&mut head, ctx)?;
        Ok((head, Bytes::from(body)))
    }

    /// The stored response of an earlier request with the same key.
    fn stored(
        &self,
        ctx: &Ctx,
        stored: &StoredResponse,
    ) -> pingora::Result<(ResponseHeader, Bytes)> {
        let mut headers = fields(&stored.head.headers);
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        let status = StatusCode::from_u16(stored.head.status).unwrap_or_default();
        Ok((self.recorded_head(ctx, status, &headers)?, stored.body.clone()))
    }

    /// The head of an app's answer to a request that is kept on record, as the client gets it.
    pub(super) fn recorded_head(
        &self,
        ctx: &Ctx,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> pingora::Result<ResponseHeader> {
        let mut out = head::copied(status, headers)?;
        self.mark(&mut out, ctx)?;
        let claim = ctx.journey.as_ref().and_then(Journey::claim);
        if let Some(claim) = claim.filter(|c| c.subject == Subject::Action) {
            let seconds = (claim.retention_ms / 1000).to_string();
            out.insert_header("vango-edge-idempotency-retention", seconds)?;
        }
        Ok(out)
    }
}

/// Fields as they were before they were stored.
fn fields(stored: &[(String, String)]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in stored {
        if let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), HeaderValue::from_bytes(&StoredHead::bytes(value)))
        {
            out.append(name, value);
        }
    }
    out
}

/// Lets scripts of other origins read an answer of the edge's own, as the contract says.
fn let_read(session: &Session, ctx: &Ctx, head: &mut ResponseHeader) -> pingora::Result<()> {
    let Some(view) = &ctx.view else { return Ok(()) };
    let origin = session.req_header().headers.get(header::ORIGIN);
    for (name, value) in view.contract.readers.fields(origin) {
        head.insert_header(name, value)?;
    }
    Ok(())
}

/// Sends the client of a preview to `location`, with the `cookie` that opens it.
fn welcome(ctx: &Ctx, location: &str, cookie: &str) -> pingora::Result<(ResponseHeader, Bytes)> {
    let mut head = ResponseHeader::build(303, Some(8))?;
    head.insert_header("location", location)?;
    head.insert_header("set-cookie", cookie)?;
    head.insert_header("cache-control", "no-store")?;
    // No site is told the address that carried the token.
    head.insert_header("referrer-policy", "no-referrer")?;
    head.insert_header("content-length", "0")?;
    head.insert_header("x-request-id", ctx.id.header_value())?;
    Ok((head, Bytes::new()))
}

/// What an authority is to be shown (RFC 8555 §8.3).
fn validation(ctx: &Ctx, shown: &str) -> pingora::Result<(ResponseHeader, Bytes)> {
    let mut head = ResponseHeader::build(200, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header(header::CONTENT_LENGTH, shown.len())?;
    head.insert_header("x-request-id", ctx.id.header_value())?;
    Ok((head, Bytes::copy_from_slice(shown.as_bytes())))
}

/// 200 for an event that the app accepted before.
fn accepted_before(ctx: &Ctx) -> pingora::Result<(ResponseHeader, Bytes)> {
    let mut head = ResponseHeader::build(200, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header("x-request-id", ctx.id.header_value())?;
    head.insert_header("vango-edge-webhook-verdict", "duplicate")?;
    Ok((head, Bytes::from_static(b"{\"accepted\":\"before\"}\n")))
}

/// What is read of a client while it is answered.
pub trait Meanwhile: Send {
    /// It goes before the pieces of the answer that are there.
    const FIRST: bool;

    /// Ready once the answer is to end, with why. Cancel safe. Reading, it also sends what was gathered.
    fn over(&mut self, session: &mut Session) -> impl Future<Output = Box<Error>> + Send;
}

/// Nothing: its body is over, or not wanted. A client that leaves ends the answer: the app is told at once
/// and not at its next piece.
pub struct Nothing;

impl Meanwhile for Nothing {
    const FIRST: bool = false;

    async fn over(&mut self, session: &mut Session) -> Box<Error> {
        if !session.is_http2() && !session.as_downstream_mut().is_body_done() {
            // A read would take a byte of the body. That the client left is seen when it is written to.
            return std::future::pending().await;
        }
        session.left(false).await;
        gone()
    }
}

/// The error that ends an answer when its client has left.
pub fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client left").into_down()
}

/// Sends `head`, framed by the `length` of its body where that is known; whether anything follows. Where
/// nothing does, the head says so itself: to a gRPC client only such a head has the call's status in it.
async fn write_head(
    session: &mut Session,
    mut head: ResponseHeader,
    length: Option<usize>,
) -> pingora::Result<bool> {
    let empty = length == Some(0);
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let no_body = bodiless || session.req_header().method == Method::HEAD;
    match length {
        _ if no_body => {}
        // Also where the head says one: a wrong one would make the client take the next answer for this one's.
        Some(length) => head.insert_header(header::CONTENT_LENGTH, length)?,
        None if head.headers.contains_key(header::CONTENT_LENGTH) => {}
        None => head.insert_header(header::TRANSFER_ENCODING, "chunked")?,
    }
    if let Some(client) = Client::of(session) {
        client.answers(head::is_event_stream(&head.headers));
    }
    let over = no_body || empty;
    if over && session.is_http2() {
        // Only so the head itself has the stream's end.
        session.write_response_tasks(vec![HttpTask::Header(Box::new(head), true)]).await?;
    } else {
        session.write_response_header(Box::new(head), over).await?;
    }
    Ok(!over)
}

/// Sends `head`, `body` and `trailers`.
///
/// # Errors
/// Pingora's when the client is gone.
pub async fn write(
    session: &mut Session,
    head: ResponseHeader,
    body: Bytes,
    trailers: HeaderMap,
) -> pingora::Result<()> {
    if trailers.is_empty() {
        if write_head(session, head, Some(body.len())).await? {
            session.write_response_body(Some(body), true).await?;
        }
    } else if write_head(session, head, None).await? {
        if !body.is_empty() {
            session.write_response_body(Some(body), false).await?;
        }
        end(session, trailers).await?;
    }
    Ok(())
}

/// Ends an answer with `trailers`.
async fn end(session: &mut Session, trailers: HeaderMap) -> pingora::Result<()> {
    let ended = vec![HttpTask::Trailer(Some(Box::new(trailers))), HttpTask::Done];
    session.write_response_tasks(ended).await.map(|_| ())
}

/// Sends `head` and a body that begins with `first`, and `rest` as it comes.
///
/// # Errors
/// Pingora's when the client is gone; one of the upstream's when the app broke off, and what `meanwhile`
/// ended it for: the connection is to be closed without the body's end.
pub async fn stream(
    session: &mut Session,
    head: ResponseHeader,
    first: Bytes,
    rest: impl Stream<Item = Piece> + Send,
    meanwhile: &mut impl Meanwhile,
) -> pingora::Result<()> {
    if !write_head(session, head, None).await? {
        return Ok(());
    }
    if !first.is_empty() {
        session.write_response_body(Some(first), false).await?;
    }
    let mut rest = pin!(rest);
    loop {
        match next(&mut rest, meanwhile, session).await? {
            None => return session.write_response_body(None, true).await,
            Some(Ok(Part::Data(piece))) => session.write_response_body(Some(piece), false).await?,
            Some(Ok(Part::Trailers(trailers))) => return end(session, trailers).await,
            Some(Err(failure)) => {
                session.set_keepalive(None);
                return Err(head::broken(failure, "the answer broke off"));
            }
        }
    }
}

/// The next piece, while what is meant for the app goes there.
async fn next<M: Meanwhile>(
    rest: &mut (impl Stream<Item = Piece> + Send + Unpin),
    meanwhile: &mut M,
    session: &mut Session,
) -> pingora::Result<Option<Piece>> {
    if M::FIRST {
        tokio::select! {
            biased;
            over = meanwhile.over(session) => Err(over),
            piece = rest.next() => Ok(piece),
        }
    } else {
        tokio::select! {
            biased;
            piece = rest.next() => Ok(piece),
            over = meanwhile.over(session) => Err(over),
        }
    }
}
