//! One request, sent once over a connection of its own, by a task that outlives the client.
//!
//! Pingora ties the upstream's response to the client's connection: when the client leaves, the
//! response is dropped half-read, and what came of the request is not known although the app says
//! it. So whatever is kept on record is sent from here: the response is read to its end and
//! recorded whether anybody waits for it or not. The connection is a fresh one, since a pooled one
//! may be closing just now, which after the first byte could not be told from an app that died.
//!
//! Order, and it is the whole point: connect (nothing is sent), write `forwarded` to disk, send.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{self, HeaderMap};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ledger::Sending;
use crate::lifecycle::idempotency::Came;
use crate::lifecycle::retry::UpstreamFailure;
use crate::store::record::ledger::{StoredHead, StoredResponse};

use super::app::{self, Leg};
use super::response::{self, Pieces};

/// A client's body that comes no further.
#[derive(Debug, thiserror::Error)]
#[error("the client did not send its whole body")]
pub struct BodyCut;

/// A request's body: whole, or as it comes.
pub type Body = UnsyncBoxBody<Bytes, BodyCut>;

/// A body that is there.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|e: Infallible| match e {}).boxed_unsync()
}

/// What a body is fed with.
pub enum Fed {
    /// More of it.
    Piece(Bytes),
    /// Its end. Without it the app must not see one: it would take a part for the whole.
    End,
}

/// A body that is fed piece by piece, with its end at last; a feed that is dropped before cuts it off.
pub fn fed() -> (mpsc::Sender<Fed>, Body) {
    let (feed, fed) = mpsc::channel(1);
    let frames = stream::unfold(Some(fed), |fed: Option<mpsc::Receiver<Fed>>| async {
        let mut fed = fed?;
        match fed.recv().await {
            Some(Fed::Piece(piece)) => Some((Ok(Frame::data(piece)), Some(fed))),
            Some(Fed::End) => None,
            None => Some((Err(BodyCut), None)),
        }
    });
    (feed, StreamBody::new(frames).boxed_unsync())
}

/// A connection of which no byte was used.
pub struct Connection {
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects. Nothing is sent.
///
/// # Errors
/// When there is no connection within `within`.
pub async fn connect(address: SocketAddr, within: Duration) -> std::io::Result<Connection> {
    let tcp = timeout(within, TcpStream::connect(address))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    tcp.set_nodelay(true)?;
    let (sender, driver) =
        app::http().handshake(TokioIo::new(Leg::new(tcp))).await.map_err(std::io::Error::other)?;
    let driver = tokio::spawn(async move {
        // What ends a connection is told to the task that waits for the response.
        let _ = driver.await;
    });
    Ok(Connection { sender, driver })
}

/// How an exchange is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// For the response's head, and for each piece of its body.
    pub response_timeout: Duration,
    /// Largest response that is kept whole, head and body.
    pub max_response: usize,
}

/// What the client is to be sent.
pub enum Delivered {
    /// A whole response; it is on record.
    Whole(http::response::Parts, Bytes),
    /// A response that is too large, or of a kind that never ends, to be kept. Its first bytes, and
    /// the rest as it comes.
    Streaming(http::response::Parts, Bytes, Rest),
    /// No whole response came.
    Failed(UpstreamFailure),
}

/// The rest of a response; an error means that it was cut.
pub type Rest = mpsc::Receiver<Result<Bytes, UpstreamFailure>>;

impl Pieces for Rest {
    async fn next(&mut self) -> Option<Result<Bytes, UpstreamFailure>> {
        self.recv().await
    }
}

/// Sends `request`, reads the response to its end, records what came of it, and tells. `tell` may
/// be gone: the record is made all the same.
pub async fn run(
    mut connection: Connection,
    request: http::Request<Body>,
    sending: Option<Sending>,
    terms: Terms,
    tell: oneshot::Sender<Delivered>,
) {
    let response =
        match timeout(terms.response_timeout, connection.sender.send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => return failed(sending, UpstreamFailure::Closed, tell).await,
            Err(_) => return failed(sending, UpstreamFailure::Silent, tell).await,
        };
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        // Nothing asked for it: what follows is no HTTP.
        return failed(sending, UpstreamFailure::Closed, tell).await;
    }
    let (mut head, mut body) = response.into_parts();
    response::strip(head.status, &mut head.headers);
    let status = head.status.as_u16();
    let mut kept = BytesMut::new();
    let room = terms.max_response.saturating_sub(size(&head.headers));
    let endless = response::is_event_stream(&head.headers);
    loop {
        if endless || kept.len() > room {
            end(sending, Came::NotStored { status }, None).await;
            return stream_on(head, kept.freeze(), body, terms, tell).await;
        }
        match next(&mut body, terms.response_timeout).await {
            Ok(Some(piece)) => kept.extend_from_slice(&piece),
            Ok(None) => break,
            Err(failure) => return failed(sending, failure, tell).await,
        }
    }
    let whole = kept.freeze();
    let stored = StoredResponse { head: stored_head(&head), body: whole.clone() };
    end(sending, Came::Whole { status }, Some(stored)).await;
    // Its client may have left.
    let _ = tell.send(Delivered::Whole(head, whole));
}

/// Records what came of it. A duplicate that is passed on has no record of its own.
async fn end(sending: Option<Sending>, came: Came, stored: Option<StoredResponse>) {
    if let Some(sending) = sending {
        sending.ended(came, stored).await;
    }
}

async fn failed(
    sending: Option<Sending>,
    failure: UpstreamFailure,
    tell: oneshot::Sender<Delivered>,
) {
    end(sending, Came::Nothing, None).await;
    let _ = tell.send(Delivered::Failed(failure));
}

/// The next piece of data; trailers are not passed on.
async fn next(body: &mut Incoming, within: Duration) -> Result<Option<Bytes>, UpstreamFailure> {
    loop {
        match timeout(within, body.frame()).await {
            Err(_) => return Err(UpstreamFailure::Silent),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(UpstreamFailure::Closed),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The rest goes to the client as it comes; without a client it is not read.
async fn stream_on(
    head: http::response::Parts,
    first: Bytes,
    mut body: Incoming,
    terms: Terms,
    tell: oneshot::Sender<Delivered>,
) {
    let (pieces, rest) = mpsc::channel(1);
    if tell.send(Delivered::Streaming(head, first, rest)).is_err() {
        return;
    }
    loop {
        let read = tokio::select! {
            biased;
            // The app learns at once that its client left, and not at its next piece.
            () = pieces.closed() => return,
            read = next(&mut body, terms.response_timeout) => read,
        };
        let Some(piece) = read.transpose() else { return };
        let cut = piece.is_err();
        if pieces.send(piece).await.is_err() || cut {
            return;
        }
    }
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum()
}

fn stored_head(head: &http::response::Parts) -> StoredHead {
    let headers = head.headers.iter().filter(|(name, _)| **name != header::SET_COOKIE);
    StoredHead {
        status: head.status.as_u16(),
        headers: headers
            .map(|(n, v)| (n.as_str().to_owned(), StoredHead::text(v.as_bytes())))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::ManualClock;
    use crate::ledger::{Ledger, LedgerLimits, Taken};
    use crate::lifecycle::idempotency::{Claim, Holder, Print};
    use crate::store::record::ledger::{AttemptState, Subject, key};
    use crate::store::{MemoryStore, Options};

    const WHOLE: &[u8] =
        b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\nX-A: 1\r\n\r\nhello";

    fn ledger() -> Arc<Ledger> {
        let clock = Arc::new(ManualClock::new());
        let store = MemoryStore::new(Arc::clone(&clock) as _, Options::default()).unwrap();
        let holder = Holder { node: "n".into(), run: "1".into() };
        let limits = LedgerLimits { max_records: 1000, max_response: 4096 };
        let runtime = tokio::runtime::Handle::current();
        Ledger::new(Arc::new(store), clock, holder, limits, runtime)
    }

    fn claim(key: &str) -> Claim {
        let environment = "studylab".parse().unwrap();
        Claim {
            subject: Subject::Action,
            at: key::subject(&environment, key),
            environment,
            route: "/a".into(),
            key_hash: key.into(),
            event: None,
            print: Print { head: "h".into(), body: None },
            retention_ms: 60_000,
            request: "r".into(),
        }
    }

    /// An app that reads one request, answers `bytes`, and ends the connection; with a reset, or in
    /// order. Says what it was sent.
    async fn app(bytes: Vec<u8>, reset: bool) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"tea") {
                assert!(tcp.read_buf(&mut got).await.unwrap() > 0);
            }
            tcp.write_all(&bytes).await.unwrap();
            if reset {
                nix::sys::socket::setsockopt(
                    &tcp,
                    nix::sys::socket::sockopt::Linger,
                    &libc::linger { l_onoff: 1, l_linger: 0 },
                )
                .unwrap();
            }
            got
        });
        (address, app)
    }

    /// Sends one keyed request to an app that answers `bytes`.
    async fn exchanged(ledger: &Arc<Ledger>, key: &str, bytes: &[u8], reset: bool) -> Delivered {
        let (address, app) = app(bytes.to_vec(), reset).await;
        let connection = connect(address, Duration::from_secs(5)).await.unwrap();
        let taken = ledger.forward(None, &claim(key), false, None).await.unwrap();
        let Taken::Held(sending) = taken else { panic!("{key} is taken") };
        let request = http::Request::post("/a").header("host", "a").header("content-length", 3);
        let request = request.body(whole(Bytes::from_static(b"tea"))).unwrap();
        let terms = Terms { response_timeout: Duration::from_secs(5), max_response: 4096 };
        let (tell, told) = oneshot::channel();
        tokio::spawn(run(connection, request, Some(sending), terms, tell));
        let delivered = told.await.unwrap();
        let got = String::from_utf8(app.await.unwrap()).unwrap();
        assert!(got.starts_with("POST /a HTTP/1.1\r\n") && got.ends_with("\r\n\r\ntea"), "{got}");
        delivered
    }

    /// At every byte: before the head, within it, within the body.
    #[tokio::test]
    async fn a_response_that_is_cut_is_none_and_its_record_says_unknown() {
        let ledger = ledger();
        for reset in [false, true] {
            for cut in 0..=WHOLE.len() {
                let key = format!("{reset}-{cut}");
                let delivered = exchanged(&ledger, &key, &WHOLE[..cut], reset).await;
                let record = ledger.get(&claim(&key).at).await.unwrap().unwrap();
                assert!(!record.alive);
                match delivered {
                    Delivered::Whole(head, body) => {
                        assert_eq!((cut, head.status.as_u16()), (WHOLE.len(), 201));
                        assert_eq!(&body[..], b"hello");
                        assert_eq!(record.record.state, AttemptState::Completed);
                        let stored = ledger.response(&claim(&key).at).await.unwrap().unwrap();
                        assert_eq!(stored.head.headers, [("x-a".into(), "1".into())]);
                    }
                    Delivered::Failed(failure) => {
                        // A reset may take a whole response with it.
                        assert!(cut < WHOLE.len() || reset, "{key}: {failure:?}");
                        assert_eq!(record.record.state, AttemptState::Unknown, "{key}");
                    }
                    Delivered::Streaming(..) => panic!("{key}: short enough to keep"),
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_never_ends_is_passed_on_and_not_kept() {
        let ledger = ledger();
        let large =
            [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", &[b'x'; 9000][..]].concat();
        let stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
        for (key, bytes, length) in [("large", &large[..], 9000), ("stream", &stream[..], 9)] {
            let Delivered::Streaming(_, first, mut rest) =
                exchanged(&ledger, key, bytes, false).await
            else {
                panic!("{key} is passed on as it comes")
            };
            let mut all = first.to_vec();
            while let Some(piece) = rest.recv().await {
                all.extend_from_slice(&piece.unwrap());
            }
            assert_eq!(all.len(), length, "{key}");
            let record = ledger.get(&claim(key).at).await.unwrap().unwrap().record;
            assert_eq!(record.state, AttemptState::CompletedUnreplayable);
            assert_eq!(record.status, Some(200));
        }
    }
}
