//! One request, sent once over a connection of its own, by a task that outlives the client.
//!
//! Pingora ties the upstream's response to the client's connection: when the client leaves, the
//! response is dropped half-read, and what came of the request is not known although the app says
//! it. So requests that are kept on record are sent from here: the response is read to its end and
//! recorded whether a client waits for it or not. The connection is a fresh one, since a pooled one
//! may be closing just now, which after the first byte could not be told from an app that died.
//!
//! Order, and it is the whole point: connect (nothing is sent), write `forwarded` to disk, send.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http::header::{self, HeaderMap};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::app::{self, Leg};
use crate::contract::Protocol;
use crate::ledger::Sending;
use crate::lifecycle::idempotency::AttemptOutcome;
use crate::lifecycle::trace::UpstreamFailure;
use crate::record::ledger::{StoredHead, StoredResponse};

use super::head;
use super::silence::Silence;

/// A request's body: whole, or as it comes.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

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
            // The client did not send its whole body.
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    });
    (feed, StreamBody::new(frames).boxed_unsync())
}

/// A connection of which no byte was used.
pub struct Connection {
    sender: Sender,
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    H2c(http2::SendRequest<Body>),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects, `None` where there is no connection within `within`, or one of HTTP/2 is not acknowledged by its app
/// for as long as an app may be silent, `silent`. Nothing of a request is sent.
pub async fn connect(
    address: SocketAddr,
    protocol: Protocol,
    within: Duration,
    silent: Duration,
) -> Option<Connection> {
    let tcp = timeout(within, TcpStream::connect(address)).await.ok()?.ok()?;
    tcp.set_nodelay(true).ok()?;
    // What ends a connection is told to the task that waits for the response.
    Some(match protocol {
        Protocol::Http1 => {
            let io = TokioIo::new(Leg::new(tcp));
            let (sender, driver) = app::http().handshake(io).await.ok()?;
            let driver = tokio::spawn(async move { drop(driver.await) });
            Connection { sender: Sender::Http1(sender), driver }
        }
        Protocol::H2c => {
            let (io, acknowledged) = app::Greeted::new(tcp);
            let (sender, driver) = app::h2c().handshake(TokioIo::new(io)).await.ok()?;
            let driver = tokio::spawn(async move { drop(driver.await) });
            let connection = Connection { sender: Sender::H2c(sender), driver };
            // Without it a record would say "forwarded" of what no app reads, and be unknown for ever.
            timeout(silent, acknowledged).await.ok()?.ok()?;
            connection
        }
    })
}

impl Connection {
    /// Sends `request`, and reads the head of its response.
    async fn send(&mut self, mut request: http::Request<Body>) -> Result<Heard, Unheard> {
        let answer = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::H2c(sender) => {
                // Of a head that was read it cannot fail; nothing was sent then.
                app::into_h2c(&mut request).map_err(|_| Unheard::Unprocessed)?;
                sender.try_send_request(request).await
            }
        };
        answer.map_err(|mut e| {
            // A connection that ended while the record was written gives back what it sent nothing of.
            if e.take_message().is_some() || app::is_unprocessed(e.error()) {
                return Unheard::Unprocessed;
            }
            Unheard::Failed(UpstreamFailure::Closed)
        })
    }
}

type Heard = http::Response<Incoming>;

/// Why there is no response.
enum Unheard {
    /// Nothing of the request was sent, or the app says that it did nothing with it.
    Unprocessed,
    Failed(UpstreamFailure),
}

impl From<UpstreamFailure> for Unheard {
    fn from(failure: UpstreamFailure) -> Self {
        Self::Failed(failure)
    }
}

/// What the client is to be sent.
pub enum Exchanged {
    /// A whole response, with its trailers; it is on record.
    Whole(http::response::Parts, Bytes, HeaderMap),
    /// A response that is not kept, because it is too large or never ends. Its first bytes, and the rest
    /// as it comes.
    Streaming(http::response::Parts, Bytes, Rest),
    /// Nothing of the request was sent, or the app says that it did nothing with it: it is not on record.
    Unprocessed,
    /// No whole response came.
    Failed(UpstreamFailure),
}

/// A piece of a response's body; an error means that it was cut.
pub type Piece = Result<Part, UpstreamFailure>;

/// What a response's body is made of.
pub enum Part {
    Data(Bytes),
    /// Its end, with trailers.
    Trailers(HeaderMap),
}

/// The rest of a response.
pub type Rest = mpsc::Receiver<Piece>;

/// The body of an answer as a stream, without trailers; each piece is waited for at most `within`.
pub fn body_pieces(body: Incoming, within: Duration) -> impl Stream<Item = Piece> + Send {
    stream::unfold((body, Silence::new(within)), move |(mut body, silence)| async move {
        let piece = next(&mut body, &silence).await.transpose()?;
        (!matches!(piece, Ok(Part::Trailers(_)))).then_some((piece, (body, silence)))
    })
}

/// Sends `request`, reads the response to its end, records what came of it, and tells. `tell` may
/// be gone: the record is made all the same. The response's head and each piece of its body are waited for
/// `within` from the last piece of the request's body on; it is kept whole up to `most` bytes, head and body.
pub async fn run(
    mut connection: Connection,
    request: http::Request<Body>,
    sending: Option<Sending>,
    within: Duration,
    most: usize,
    tell: oneshot::Sender<Exchanged>,
) {
    let silence = Silence::new(within);
    let request = request.map(|body| silence.broken_by(body).boxed_unsync());
    let heard = hear(&mut connection, request, &silence, most).await;
    let (came, stored) = match &heard {
        Ok((head, body, End::Whole(trailers))) => {
            let stored = StoredResponse { head: stored_head(head, trailers), body: body.clone() };
            (Some(AttemptOutcome::Whole { status: head.status.as_u16() }), Some(stored))
        }
        Ok((head, _, End::Open(_))) => {
            (Some(AttemptOutcome::NotStored { status: head.status.as_u16() }), None)
        }
        Err(Unheard::Failed(_)) => (Some(AttemptOutcome::Nothing), None),
        Err(Unheard::Unprocessed) => (None, None),
    };
    // A duplicate that is passed on has no record of its own.
    match (sending, came) {
        (Some(sending), Some(came)) => sending.ended(came, stored).await,
        (Some(sending), None) => sending.unsent(),
        (None, _) => {}
    }
    let exchanged = match heard {
        Ok((head, first, End::Open(body))) => {
            return stream_on(head, first, body, &silence, tell).await;
        }
        Ok((head, body, End::Whole(trailers))) => Exchanged::Whole(head, body, trailers),
        Err(Unheard::Unprocessed) => Exchanged::Unprocessed,
        Err(Unheard::Failed(failure)) => Exchanged::Failed(failure),
    };
    // Its client may have left.
    let _ = tell.send(exchanged);
}

/// How far a response was read.
enum End {
    /// To its end, with these trailers.
    Whole(HeaderMap),
    /// This is left of it: it is too large to be kept, or never ends.
    Open(Incoming),
}

/// Reads the response to `request`: its head, its body as far as it is kept, and its end. Trailers that come over
/// HTTP/1.1 are dropped here and in [`stream_on`]: such an app was not told that any are taken, and what its head
/// says of those that end with the connection is gone.
async fn hear(
    connection: &mut Connection,
    request: http::Request<Body>,
    silence: &Silence,
    most: usize,
) -> Result<(http::response::Parts, Bytes, End), Unheard> {
    let response = silence.until(connection.send(request)).await??;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        // Nothing asked for it: what follows is no HTTP.
        return Err(UpstreamFailure::Closed.into());
    }
    let (mut head, mut body) = response.into_parts();
    head::strip(head.status, &mut head.headers);
    let mut kept = BytesMut::new();
    let room = most.saturating_sub(size(&head.headers));
    let endless = head::is_event_stream(&head.headers);
    while !endless && kept.len() <= room {
        match next(&mut body, silence).await? {
            Some(Part::Data(piece)) => kept.extend_from_slice(&piece),
            Some(Part::Trailers(trailers)) => {
                let kept_too = head.version == http::Version::HTTP_2;
                let trailers = if kept_too { trailers } else { HeaderMap::new() };
                return Ok((head, kept.freeze(), End::Whole(trailers)));
            }
            None => return Ok((head, kept.freeze(), End::Whole(HeaderMap::new()))),
        }
    }
    Ok((head, kept.freeze(), End::Open(body)))
}

/// The next part of a body.
async fn next(body: &mut Incoming, silence: &Silence) -> Result<Option<Part>, UpstreamFailure> {
    match silence.until(body.frame()).await? {
        None => Ok(None),
        Some(Err(_)) => Err(UpstreamFailure::Closed),
        Some(Ok(frame)) => match frame.into_data() {
            Ok(data) => Ok(Some(Part::Data(data))),
            Err(frame) => Ok(frame.into_trailers().ok().map(Part::Trailers)),
        },
    }
}

/// The rest goes to the client as it comes; without a client it is not read.
async fn stream_on(
    head: http::response::Parts,
    first: Bytes,
    mut body: Incoming,
    silence: &Silence,
    tell: oneshot::Sender<Exchanged>,
) {
    let version = head.version;
    let (pieces, rest) = mpsc::channel(1);
    if tell.send(Exchanged::Streaming(head, first, rest)).is_err() {
        return;
    }
    loop {
        let read = tokio::select! {
            biased;
            // The app learns at once that its client left, and not at its next piece.
            () = pieces.closed() => return,
            read = next(&mut body, silence) => read,
        };
        let Some(piece) = read.transpose() else { return };
        if version != http::Version::HTTP_2 && matches!(piece, Ok(Part::Trailers(_))) {
            return;
        }
        let cut = piece.is_err();
        if pieces.send(piece).await.is_err() || cut {
            return;
        }
    }
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum()
}

fn stored_head(head: &http::response::Parts, trailers: &HeaderMap) -> StoredHead {
    let stored = |fields: &HeaderMap| {
        let fields = fields.iter().filter(|(name, _)| **name != header::SET_COOKIE);
        fields.map(|(n, v)| (n.as_str().to_owned(), StoredHead::text(v.as_bytes()))).collect()
    };
    StoredHead {
        status: head.status.as_u16(),
        headers: stored(&head.headers),
        trailers: stored(trailers),
    }
}

/// Exchanges that are under way, so that a stop can wait for them. Each has a receiver.
#[derive(Debug, Default)]
pub struct Exchanges(watch::Sender<()>);

impl Exchanges {
    /// One begins. It is over when what this returns is dropped.
    pub fn begin(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }

    /// How many are under way.
    pub fn open(&self) -> usize {
        self.0.receiver_count()
    }

    /// Waits until none is, at most `limit`; says how many are left.
    pub async fn drained(&self, limit: Duration) -> usize {
        let _ = timeout(limit, self.0.closed()).await;
        self.open()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::ManualClock;
    use crate::ledger::{Ledger, LedgerLimits, Taken};
    use crate::lifecycle::idempotency::{Claim, Holder, RequestFingerprint};
    use crate::record::ledger::{AttemptState, Subject, key};
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
            fingerprint: RequestFingerprint { head: "h".into(), body: None },
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
    async fn exchanged(ledger: &Arc<Ledger>, key: &str, bytes: &[u8], reset: bool) -> Exchanged {
        let (address, app) = app(bytes.to_vec(), reset).await;
        let within = Duration::from_secs(5);
        let connection = connect(address, Protocol::Http1, within, within).await.unwrap();
        let taken = ledger.forward(None, &claim(key), false, None).await.unwrap();
        let Taken::Held(sending) = taken else { panic!("{key} is taken") };
        let request = http::Request::post("/a").header("host", "a").header("content-length", 3);
        let request = request.body(whole(Bytes::from_static(b"tea"))).unwrap();
        let (tell, told) = oneshot::channel();
        tokio::spawn(run(connection, request, Some(sending), Duration::from_secs(5), 4096, tell));
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
                    Exchanged::Whole(head, body, _) => {
                        assert_eq!((cut, head.status.as_u16()), (WHOLE.len(), 201));
                        assert_eq!(&body[..], b"hello");
                        assert_eq!(record.record.state, AttemptState::Completed);
                        let stored = ledger.response(&claim(&key).at).await.unwrap().unwrap();
                        assert_eq!(stored.head.headers, [("x-a".into(), "1".into())]);
                    }
                    Exchanged::Failed(failure) => {
                        // A reset may take a whole response with it.
                        assert!(cut < WHOLE.len() || reset, "{key}: {failure:?}");
                        assert_eq!(record.record.state, AttemptState::Unknown, "{key}");
                    }
                    Exchanged::Unprocessed => panic!("{key}: HTTP/1.1 has no word for it"),
                    Exchanged::Streaming(..) => panic!("{key}: short enough to keep"),
                }
            }
        }
    }

    #[tokio::test]
    async fn what_a_connection_that_ended_before_was_not_given_is_not_on_record() {
        let (ledger, within) = (ledger(), Duration::from_secs(5));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connection = connect(address, Protocol::Http1, within, within).await.unwrap();
        drop(listener.accept().await.unwrap());
        while !connection.driver.is_finished() {
            tokio::task::yield_now().await;
        }
        let claim = claim("left");
        let taken = ledger.forward(None, &claim, false, None).await.unwrap();
        let Taken::Held(sending) = taken else { panic!("it is taken") };
        let request = http::Request::post("/a").header("host", "a").header("content-length", 3);
        let request = request.body(whole(Bytes::from_static(b"tea"))).unwrap();
        let (tell, told) = oneshot::channel();
        run(connection, request, Some(sending), within, 4096, tell).await;
        assert!(matches!(told.await.unwrap(), Exchanged::Unprocessed));
        ledger.settled(within).await;
        assert!(ledger.get(&claim.at).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_too_large_or_never_ends_is_passed_on_and_not_kept() {
        let ledger = ledger();
        let large =
            [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", &[b'x'; 9000][..]].concat();
        let stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
        for (key, bytes, length) in [("large", &large[..], 9000), ("stream", &stream[..], 9)] {
            let Exchanged::Streaming(_, first, mut rest) =
                exchanged(&ledger, key, bytes, false).await
            else {
                panic!("{key} is passed on as it comes")
            };
            let mut all = first.to_vec();
            while let Some(piece) = rest.recv().await {
                let Part::Data(piece) = piece.unwrap() else { panic!("{key} has no trailers") };
                all.extend_from_slice(&piece);
            }
            assert_eq!(all.len(), length, "{key}");
            let record = ledger.get(&claim(key).at).await.unwrap().unwrap().record;
            assert_eq!(record.state, AttemptState::CompletedUnreplayable);
            assert_eq!(record.status, Some(200));
        }
    }

    /// A connection to an app that is the other end of a pipe, so that time can be a test's own.
    async fn piped() -> (Connection, DuplexStream) {
        let (io, app) = tokio::io::duplex(256);
        let (sender, driver) = app::http().handshake(TokioIo::new(io)).await.unwrap();
        let driver = tokio::spawn(async move { drop(driver.await) });
        (Connection { sender: Sender::Http1(sender), driver }, app)
    }

    /// Sends `pieces` bytes of an upload of eight, one in two thirds of the time that is waited, to an app that
    /// answers `first` to the first and `last` to the eighth. How long that took goes with what came of it.
    async fn uploaded(pieces: usize, first: &str, last: &str) -> (Exchanged, Duration) {
        let (connection, mut app) = piped().await;
        let (first, last) = (first.to_owned(), last.to_owned());
        let app = tokio::spawn(async move {
            let mut got = Vec::new();
            for (end, answer) in [("\r\n\r\nx", first), ("xxxxxxxx", last)] {
                while !got.ends_with(end.as_bytes()) {
                    // The exchange is over without it.
                    if app.read_buf(&mut got).await.is_ok_and(|n| n == 0) {
                        return;
                    }
                }
                app.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let (feed, body) = fed();
        let request = http::Request::post("/a").header("host", "a").header("content-length", 8);
        let (tell, told) = oneshot::channel();
        let (within, began) = (Duration::from_secs(60), tokio::time::Instant::now());
        let request = request.body(body).unwrap();
        tokio::spawn(run(connection, request, None, within, 4096, tell));
        let feeding = tokio::spawn(async move {
            for _ in 0..pieces {
                tokio::time::sleep(within * 2 / 3).await;
                let _ = feed.send(Fed::Piece(Bytes::from_static(b"x"))).await;
            }
            // Nothing more comes, and nothing says that it is over.
            std::future::pending::<()>().await;
        });
        let exchanged = match told.await.unwrap() {
            Exchanged::Streaming(head, first, mut rest) => {
                let mut all = BytesMut::from(&first[..]);
                let mut cut = None;
                while let Some(piece) = rest.recv().await {
                    match piece {
                        Ok(Part::Data(piece)) => all.extend_from_slice(&piece),
                        Ok(Part::Trailers(_)) => panic!("there are none"),
                        Err(failure) => cut = Some(failure),
                    }
                }
                cut.map_or_else(
                    || Exchanged::Whole(head, all.freeze(), HeaderMap::new()),
                    Exchanged::Failed,
                )
            }
            other => other,
        };
        let took = began.elapsed();
        feeding.abort();
        app.abort();
        (exchanged, took)
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_is_not_silent_while_an_upload_goes_on() {
        let whole = "HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n";
        let stream =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
        for (first, last) in [("", &*format!("{whole}hello")), (whole, "hello"), (stream, "hello")]
        {
            let (exchanged, took) = uploaded(8, first, last).await;
            let Exchanged::Whole(_, body, _) = exchanged else {
                panic!("{first:?} was cut after {took:?}")
            };
            assert_eq!((&body[..], took.as_secs()), (&b"hello"[..], 320), "{first:?}");
            // From the last piece on it is.
            let (exchanged, took) = uploaded(3, first, last).await;
            let Exchanged::Failed(UpstreamFailure::Silent) = exchanged else {
                panic!("{first:?} goes on after {took:?}")
            };
            assert_eq!(took.as_secs(), 120 + 60, "{first:?}");
        }
    }
}
