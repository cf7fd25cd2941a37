//! What the client gets of an app's answer: the fields that are for it, whole or cut where the app cut it,
//! by whichever way it came from the app. Pages, keyed actions and refusals of live sockets use it alike.

use std::future::Future;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use pingora::ErrorSource;
use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;

use crate::lifecycle::hop;
use crate::lifecycle::retry::UpstreamFailure;
use crate::lifecycle::trailers::Trailers;

use super::client::Client;
use super::watch;

/// The fields of an app's answer that are not for the client.
fn not_for_the_client(status: StatusCode, headers: &HeaderMap) -> Vec<HeaderName> {
    let mut out = hop::fields(headers);
    if status == StatusCode::UPGRADE_REQUIRED {
        // It says which protocol is wanted (RFC 9110 §15.5.22).
        out.retain(|n| *n != header::UPGRADE);
    }
    if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6, RFC 9112 §6.1: neither goes with a 204.
        let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        out.extend(framing.into_iter().filter(|n| headers.contains_key(n)));
    }
    out
}

/// Makes `response`, which Pingora read from an app, what the client is to get. `trailers` may come
/// behind it.
///
/// # Errors
/// For a 101 to a request that asked for none: its connection stays one of HTTP.
pub fn clean(response: &mut ResponseHeader, trailers: &mut Trailers) -> pingora::Result<()> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(broken(UpstreamFailure::Closed, "the app answered 101 unasked"));
    }
    let announced = trailers.announced(&response.headers);
    for name in not_for_the_client(response.status, &response.headers) {
        response.remove_header(&name);
    }
    if let Some(names) = announced {
        response.insert_header(header::TRAILER, names)?;
    }
    // The edge's own version, whichever the app speaks (RFC 9112 §2.3).
    response.set_version(Version::HTTP_11);
    Ok(())
}

/// Takes off an answer that the edge reads itself what is not for its client, and its framing, which is
/// made anew.
pub fn strip(status: StatusCode, headers: &mut HeaderMap) {
    for name in not_for_the_client(status, headers) {
        headers.remove(name);
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
}

/// The client's copy of an answer that the edge read from an app itself.
pub fn copied(status: StatusCode, headers: &HeaderMap) -> pingora::Result<ResponseHeader> {
    let mut out = ResponseHeader::build(status, Some(headers.len() + 4))?;
    let gone = not_for_the_client(status, headers);
    for (name, value) in headers {
        if *name != header::TRANSFER_ENCODING && !gone.contains(name) {
            out.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(out)
}

/// Whether the answer goes on until its client leaves or its app ends.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    kind.and_then(|k| k.get(..17)).is_some_and(|k| k.eq_ignore_ascii_case(b"text/event-stream"))
}

/// The rest of a body that the app still sends.
pub trait Pieces: Send {
    /// The next piece, none at the end. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, UpstreamFailure>>> + Send;
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
        left(session).await;
        gone()
    }
}

/// Why an answer ends whose client left.
pub fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client left").into_down()
}

/// Sends `head`, framed by the `length` of its body where that is known; whether a body follows.
async fn write_head(
    session: &mut Session,
    mut head: ResponseHeader,
    length: Option<usize>,
) -> pingora::Result<bool> {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let no_body = bodiless || session.req_header().method == Method::HEAD;
    match length {
        _ if no_body => {}
        Some(length) => head.insert_header(header::CONTENT_LENGTH, length)?,
        None if head.headers.contains_key(header::CONTENT_LENGTH) => {}
        None => head.insert_header(header::TRANSFER_ENCODING, "chunked")?,
    }
    if let Some(client) = Client::of(session) {
        client.answers(is_event_stream(&head.headers));
    }
    session.write_response_header(Box::new(head), no_body).await?;
    Ok(!no_body)
}

/// Sends `head` and `body`.
///
/// # Errors
/// Pingora's when the client is gone.
pub async fn write(
    session: &mut Session,
    head: ResponseHeader,
    body: Bytes,
) -> pingora::Result<()> {
    if write_head(session, head, Some(body.len())).await? {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
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
    mut rest: impl Pieces,
    meanwhile: &mut impl Meanwhile,
) -> pingora::Result<()> {
    if !write_head(session, head, None).await? {
        return Ok(());
    }
    if !first.is_empty() {
        session.write_response_body(Some(first), false).await?;
    }
    loop {
        let piece = next(&mut rest, meanwhile, session).await?;
        match piece {
            None => return session.write_response_body(None, true).await,
            Some(Ok(piece)) => session.write_response_body(Some(piece), false).await?,
            Some(Err(failure)) => {
                session.set_keepalive(None);
                return Err(broken(failure, "the answer broke off"));
            }
        }
    }
}

/// The next piece, while what is meant for the app goes there.
async fn next<M: Meanwhile>(
    rest: &mut impl Pieces,
    meanwhile: &mut M,
    session: &mut Session,
) -> pingora::Result<Option<Result<Bytes, UpstreamFailure>>> {
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

async fn left(session: &mut Session) {
    if !session.is_http2() && !session.as_downstream_mut().is_body_done() {
        // A read would take a byte of the body. That the client left is seen when it is written to.
        return std::future::pending().await;
    }
    watch::client_left(session, false).await;
}

fn broken(failure: UpstreamFailure, what: &'static str) -> Box<Error> {
    let kind = match failure {
        UpstreamFailure::Closed => ErrorType::ConnectionClosed,
        UpstreamFailure::Silent => ErrorType::ReadTimedout,
    };
    let mut e = Error::explain(kind, what);
    e.esource = ErrorSource::Upstream;
    e
}

/// How the app failed, of an error that is not the client's.
pub fn failure(e: &Error) -> UpstreamFailure {
    match e.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => UpstreamFailure::Silent,
        _ => UpstreamFailure::Closed,
    }
}

/// The status of the answer proper that was sent. A 1xx is none: an answer is still owed after it
/// (RFC 9110 §15.2).
pub fn final_status(session: &Session) -> Option<u16> {
    let status = session.response_written()?.status;
    (status == StatusCode::SWITCHING_PROTOCOLS || !status.is_informational())
        .then(|| status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(status: u16, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let mut gone: Vec<_> =
            not_for_the_client(status, &headers).iter().map(|n| n.to_string()).collect();
        gone.sort_unstable();
        gone
    }

    #[test]
    fn what_belongs_to_the_apps_connection_is_not_for_the_client() {
        let hop = [("connection", "close"), ("keep-alive", "timeout=5"), ("upgrade", "h2c")];
        assert_eq!(gone(200, &hop), ["connection", "keep-alive", "upgrade"]);
        assert_eq!(gone(426, &hop), ["connection", "keep-alive"], "it says what is wanted");
        let named = [
            ("connection", "X-Hop, set-cookie, Cache-Control, upgrade"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("cache-control", "private"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(gone(426, &named), ["connection", "x-hop"]);
        assert_eq!(gone(200, &[("content-length", "5")]), [""; 0]);
        assert_eq!(gone(204, &[("content-length", "5")]), ["content-length"]);
        assert_eq!(gone(304, &[("content-length", "5")]), [""; 0], "of what a 200 would have");
    }

    #[test]
    fn an_unasked_101_is_no_answer() {
        let mut head = ResponseHeader::build(101, None).unwrap();
        let refused = clean(&mut head, &mut Trailers::default()).unwrap_err();
        assert_eq!(refused.esource(), &ErrorSource::Upstream);
    }

    #[test]
    fn event_streams_are_known_in_any_case() {
        let is = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", value.parse().unwrap());
            is_event_stream(&headers)
        };
        assert!(is("text/event-stream") && is("Text/Event-Stream; charset=utf-8"));
        assert!(!is("text/html") && !is_event_stream(&HeaderMap::new()));
    }
}
