//! The stream between a client and Pingora: it ends what is too slow or too large, which Pingora
//! has no setting for (its read timeout is for each read, and a byte every minute satisfies it).
//!
//! It counts only while the edge waits for the client. A hold with an unread body reads nothing,
//! and so costs a client nothing; a slow app is not the client's fault either.

mod transport;

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{Shutdown, SocketDigest, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::clock::{Clock, Entropy, Mono};
use crate::lifecycle::facts::{BadRequest, LONGEST_TARGET};
use crate::telemetry::Cut;

use super::client::{Client, Phase};
use super::gather::Gather;
use super::linger::{Bounds, Linger};
use super::meter::Meter;
use super::unread;
use super::watch::{LOOK_EVERY, Peer};

/// A client that sent a FIN is asked whether it is still there once it has waited so long. What is answered
/// sooner tells it soon enough.
const ASK_AFTER: Duration = Duration::from_millis(250);

/// The question; see [`super::watch`].
const ASK: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Bytes that a connection writes before the others have their turn, however fast its client takes
/// them: a request beside a few hundred large answers waits for so much of each, not for megabytes.
pub(super) const A_TURN: usize = 64 * 1024;

/// An HTTP/2 connection preface and the head of its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24 + 9;

/// The first bytes of a PROXY header, version 2: no HTTP or TLS begins so.
const PROXY_SIGNATURE: &[u8] = b"\r\n\r\n\0";

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\
    Cache-Control: no-store\r\nProxy-Status: vango-edge; error=http_request_error\r\n\
    Content-Length: 0\r\n\r\n";
const TARGET_TOO_LONG: &[u8] = b"HTTP/1.1 414 URI Too Long\r\nConnection: close\r\n\
    Cache-Control: no-store\r\nProxy-Status: vango-edge; error=http_request_error\r\n\
    Content-Length: 0\r\n\r\n";
const TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\
    Cache-Control: no-store\r\nProxy-Status: vango-edge; error=http_request_error\r\n\
    Content-Length: 0\r\n\r\n";

/// A client's stream under its limits.
pub struct Guarded {
    inner: Stream,
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    turn: u32,
    /// When the head began that is being read; bytes of it so far.
    head: (Mono, usize),
    /// Bytes of its first line so far, and whether that is whole.
    line: (usize, bool),
    reading: Meter,
    writing: Meter,
    read_timer: Timer,
    write_timer: Timer,
    /// What still comes is thrown away.
    linger: Option<Box<Linger>>,
    /// Its end was sent.
    shut: bool,
    /// When the client's FIN was seen, and whether it was asked what that means.
    fin: Option<(Mono, bool)>,
    /// The answer proper has begun.
    answering: bool,
    /// Written since others last had their turn.
    at_once: usize,
    /// What is sent in place of Pingora's refusal of a head, and how much of it was.
    instead: Option<(Vec<u8>, usize)>,
    gather: Gather,
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded")
            .field("client", &self.client.origin.address)
            .finish_non_exhaustive()
    }
}

/// A timer that exists once it is needed.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready once `left` is over; until then the task is woken for it.
    pub(super) fn poll(&mut self, left: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if left.is_zero() {
            return Poll::Ready(());
        }
        let at = Instant::now() + left;
        let timer = match &mut self.0 {
            Some(timer) => {
                timer.as_mut().reset(at);
                timer
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        timer.as_mut().poll(cx)
    }
}

fn timed_out(why: Cut) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why.name())
}

impl Guarded {
    /// Watches over `inner`, whose connection began at `began`.
    pub fn new(
        inner: Stream,
        client: Arc<Client>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        began: Mono,
    ) -> Self {
        let (_, turn) = client.phase();
        Self {
            inner,
            client,
            clock,
            entropy,
            turn,
            head: (began, 0),
            line: (0, false),
            reading: Meter::default(),
            writing: Meter::default(),
            read_timer: Timer::default(),
            write_timer: Timer::default(),
            linger: None,
            shut: false,
            fin: None,
            answering: false,
            at_once: 0,
            instead: None,
            gather: Gather::default(),
        }
    }

    /// The socket, when there is nothing between it and HTTP.
    pub fn plain(&self) -> Option<&Socket> {
        self.inner.as_any().downcast_ref().filter(|_| self.gather.is_empty())
    }

    /// Whether what is written may wait for what is written next. Frames of HTTP/2 and of a live
    /// socket are put together by what writes them.
    fn gathers(&self) -> bool {
        !matches!(self.client.phase().0, Phase::Multiplexed | Phase::Upgraded)
    }

    /// The phase now; what was counted in an earlier one is over.
    fn phase(&mut self) -> Phase {
        let (phase, turn) = self.client.phase();
        if turn != self.turn {
            self.turn = turn;
            self.reading.start();
            if phase == Phase::Idle {
                // Between requests, where Pingora's own keepalive timeout counts.
                self.head = (Mono(0), 0);
                self.line = (0, false);
                self.writing.start();
                self.fin = None;
                self.answering = false;
            }
        }
        phase
    }

    /// How long may be waited for bytes, and what it is called when they do not come.
    fn read_bound(&mut self, phase: Phase) -> Option<(Duration, Cut)> {
        let limits = self.client.limits;
        let now = self.clock.now();
        let began = self.head.0;
        let of_head = || limits.header_timeout.saturating_sub(now.since(began));
        match phase {
            Phase::Idle if began == Mono(0) => None,
            Phase::Idle | Phase::Head => Some((of_head(), Cut::HeaderTime)),
            Phase::Multiplexed if self.head.1 < PREFACE => Some((of_head(), Cut::HeaderTime)),
            Phase::Multiplexed if self.client.bodies() == 0 => {
                self.reading.start();
                None
            }
            Phase::Body | Phase::Multiplexed => {
                self.reading.waiting(now);
                let left = self.reading.left(limits.min_body_rate, limits.rate_grace, now)?;
                Some((left, Cut::BodyRate))
            }
            Phase::Answer | Phase::Upgraded => None,
        }
    }

    /// `bytes` came in `phase`; the reason to end it here, if there is one.
    fn has_read(&mut self, phase: Phase, bytes: &[u8]) -> Option<Cut> {
        match phase {
            Phase::Idle => {
                if self.head.0 == Mono(0) {
                    self.head.0 = self.clock.now();
                }
                self.client.enter(Phase::Head);
                self.turn = self.client.phase().1;
                self.head.1 = bytes.len();
                self.follow_line(bytes);
                bytes.starts_with(PROXY_SIGNATURE).then_some(Cut::ProxyHeader)
            }
            Phase::Head => {
                self.head.1 += bytes.len();
                self.follow_line(bytes);
                None
            }
            Phase::Multiplexed => {
                self.head.1 = self.head.1.saturating_add(bytes.len());
                self.moved(bytes.len());
                None
            }
            Phase::Body | Phase::Answer | Phase::Upgraded => {
                self.moved(bytes.len());
                None
            }
        }
    }

    fn follow_line(&mut self, bytes: &[u8]) {
        if !self.line.1 {
            let end = bytes.iter().position(|b| *b == b'\n');
            self.line = (self.line.0 + end.unwrap_or(bytes.len()), end.is_some());
        }
    }

    fn moved(&mut self, bytes: usize) {
        let now = self.reading.is_waiting().then(|| self.clock.now());
        self.reading.moved(bytes, now);
    }

    /// Says why, as far as the socket takes it at once, and ends the connection.
    fn refuse(&mut self, why: Cut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.client.cut(why);
        let answer = match why {
            Cut::HeaderTime if self.head.1 > 0 => TOO_SLOW,
            Cut::HeaderSize if self.line.0 > self.client.limits.header_bytes => TARGET_TOO_LONG,
            Cut::HeaderSize => TOO_LARGE,
            _ => return Poll::Ready(Err(timed_out(why))),
        };
        let plain = self.client.phase().0 != Phase::Multiplexed;
        if plain
            && self.gather.is_empty()
            && let Poll::Ready(Ok(_)) = Pin::new(&mut *self.inner).poll_write(cx, answer)
            && let Poll::Ready(Ok(())) = Pin::new(&mut *self.inner).poll_flush(cx)
        {
            let _ = Pin::new(&mut *self.inner).poll_shutdown(cx);
            self.shut = true;
            self.begin_linger();
            ready!(self.linger(cx));
        }
        Poll::Ready(Err(timed_out(why)))
    }

    fn begin_linger(&mut self) {
        let bounds = Bounds::of(&self.client);
        self.linger = Some(Box::new(Linger::new(bounds, self.clock.now())));
    }

    /// Reads and throws away until the client has gone or has had its time.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(linger) = &mut self.linger {
            ready!(linger.poll(&mut self.inner, &*self.clock, &mut self.read_timer, cx));
            self.linger = None;
        }
        Poll::Ready(())
    }

    /// Whether the client may still be sending, so that a close would reset the connection.
    fn may_be_sent_more(&mut self, cx: &mut Context<'_>) -> bool {
        match self.client.phase().0 {
            Phase::Head | Phase::Body => true,
            Phase::Idle | Phase::Answer => {
                let mut byte = [0; 1];
                let mut buf = ReadBuf::new(&mut byte);
                let read = Pin::new(&mut *self.inner).poll_read(cx, &mut buf);
                matches!(read, Poll::Ready(Ok(()))) && !buf.filled().is_empty()
            }
            Phase::Upgraded | Phase::Multiplexed => false,
        }
    }

    /// The client's FIN came while its answer is owed: it has said all it will say, or it is gone. It is
    /// asked which (see [`super::watch`]). An event stream ends with it, since it would end by nothing else.
    fn finished(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.answering && self.client.reads_stream() {
            return Poll::Ready(Ok(()));
        }
        let gone = |s: Arc<SocketDigest>| Peer::of(&s) == Peer::Gone;
        if self.inner.get_socket_digest().is_some_and(gone) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let now = self.clock.now();
        let (since, asked) = *self.fin.get_or_insert((now, false));
        let may_ask = !asked && !self.answering && self.client.reads_interim();
        if may_ask && now.since(since) >= ASK_AFTER {
            self.fin = Some((since, true));
            // An error is found where the connection is looked at.
            let _ = Pin::new(&mut *self.inner).poll_write(cx, ASK);
            let _ = Pin::new(&mut *self.inner).poll_flush(cx);
        }
        // Nothing wakes a reader for a reset that follows a FIN.
        let _ = self.read_timer.poll(LOOK_EVERY, cx);
        Poll::Pending
    }

    /// Sends what was gathered: the task that reads has nothing more to write just now.
    fn send_gathered(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.gather.is_empty() {
            return Ok(());
        }
        match self.gather.poll_empty(&mut *self.inner, cx) {
            Poll::Ready(Ok(())) => match Pin::new(&mut *self.inner).poll_flush(cx) {
                Poll::Ready(Err(e)) => Err(e),
                _ => Ok(()),
            },
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => Ok(()),
        }
    }

    /// A write waits for the client: ready with an error once it has waited too long.
    fn write_waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limits = self.client.limits;
        let now = self.clock.now();
        self.writing.waiting(now);
        let stall = limits.write_timeout.saturating_sub(self.writing.stalled(now));
        // A live socket sends when it has something to say; only a stall says anything of it.
        let rate = match self.phase() {
            Phase::Upgraded => None,
            _ => self.writing.left(limits.min_response_rate, limits.rate_grace, now),
        };
        let (left, why) = match rate {
            Some(left) if left < stall => (left, Cut::ResponseRate),
            _ => (stall, Cut::WriteTime),
        };
        ready!(self.write_timer.poll(left, cx));
        self.client.cut(why);
        Poll::Ready(timed_out(why))
    }

    fn written<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Ok(done)) => {
                let now = self.writing.is_waiting().then(|| self.clock.now());
                self.at_once += bytes(&done);
                self.writing.moved(bytes(&done), now);
                Poll::Ready(Ok(done))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                self.at_once = 0;
                Poll::Ready(Err(ready!(self.write_waits(cx))))
            }
        }
    }

    /// Whether what Pingora writes is not to be sent, because something else is.
    fn is_replaced(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_none() && unread::is_refusal(self.client.phase().0, bytes) {
            let why = if self.line.0 > LONGEST_TARGET {
                BadRequest::TargetTooLong
            } else {
                BadRequest::Malformed
            };
            let began = self.head.0;
            let answer = unread::refusal(&self.client, why, began, &*self.clock, &*self.entropy);
            self.instead = Some((answer, 0));
        }
        self.instead.is_some()
    }

    /// Sends what goes out in place of `bytes` bytes, which count as sent once it is.
    fn replace(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The answer before it, if anything of that is still here.
        let before = self.gather.poll_empty(&mut *self.inner, cx);
        ready!(self.written(before, |()| 0, cx))?;
        while let Some((answer, sent)) = self.instead.as_mut().filter(|(a, sent)| *sent < a.len()) {
            let outcome = Pin::new(&mut *self.inner).poll_write(cx, &answer[*sent..]);
            if let Poll::Ready(Ok(n @ 1..)) = outcome {
                *sent += n;
            } else {
                return self.written(outcome, |n| *n, cx);
            }
        }
        Poll::Ready(Ok(bytes))
    }

    /// Whether the others have their turn now; then it goes on after them.
    fn gives_way(&mut self, cx: &mut Context<'_>) -> bool {
        if self.writing.bytes() >= A_TURN as u64 && self.gathers() {
            self.client.urgency.has_time();
        }
        if self.at_once < A_TURN {
            return false;
        }
        self.at_once = 0;
        cx.waker().wake_by_ref();
        true
    }

    /// A connection that was cut off takes nothing more, except what tells its client why.
    fn ended(&self, writing: bool) -> Option<io::Error> {
        let why = self.client.why_cut()?;
        (!(writing && why == Cut::BodyRate)).then(|| timed_out(why))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_some() {
            ready!(this.linger(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if let Some(ended) = this.ended(false) {
            return Poll::Ready(Err(ended));
        }
        let phase = this.phase();
        if phase == Phase::Head && this.head.1 > this.client.limits.header_bytes {
            return this.refuse(Cut::HeaderSize, cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut *this.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if phase == Phase::Answer && buf.filled().len() == before => {
                this.send_gathered(cx)?;
                this.finished(cx)
            }
            Poll::Ready(Ok(())) => match this.has_read(phase, &buf.filled()[before..]) {
                Some(why) => this.refuse(why, cx),
                None => Poll::Ready(Ok(())),
            },
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                this.send_gathered(cx)?;
                match phase {
                    Phase::Multiplexed => this.client.reads(cx.waker()),
                    Phase::Head | Phase::Body => this.client.urgency.awaits(true),
                    _ => {}
                }
                let Some((left, why)) = this.read_bound(phase) else { return Poll::Pending };
                ready!(this.read_timer.poll(left, cx));
                this.refuse(why, cx)
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(ended) = this.ended(true) {
            return Poll::Ready(Err(ended));
        }
        if this.gives_way(cx) {
            return Poll::Pending;
        }
        if this.is_replaced(buf) {
            return this.replace(buf.len(), cx);
        }
        // A 1xx is not the answer proper.
        this.answering |= !buf.starts_with(b"HTTP/1.1 1");
        let outcome = if this.gathers() {
            this.gather.poll_write(&mut *this.inner, cx, buf)
        } else {
            match this.gather.poll_empty(&mut *this.inner, cx) {
                Poll::Ready(Ok(())) => Pin::new(&mut *this.inner).poll_write(cx, buf),
                waits => waits.map_ok(|()| 0),
            }
        };
        this.written(outcome, |n| *n, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(ended) = this.ended(true) {
            return Poll::Ready(Err(ended));
        }
        if this.gives_way(cx) {
            return Poll::Pending;
        }
        if this.is_replaced(bufs.first().map_or(&[], |b| b)) {
            return this.replace(bufs.iter().map(|b| b.len()).sum(), cx);
        }
        let outcome = match this.gather.poll_empty(&mut *this.inner, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut *this.inner).poll_write_vectored(cx, bufs),
            waits => waits.map_ok(|()| 0),
        };
        this.written(outcome, |n| *n, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = match this.gather.poll_empty(&mut *this.inner, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut *this.inner).poll_flush(cx),
            waits => waits,
        };
        this.written(outcome, |()| 0, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            // Its client may be gone, and is waited for as for any write.
            let outcome = match this.gather.poll_empty(&mut *this.inner, cx) {
                Poll::Ready(Ok(())) => Pin::new(&mut *this.inner).poll_shutdown(cx),
                waits => waits,
            };
            ready!(this.written(outcome, |()| 0, cx))?;
            this.shut = true;
            if this.may_be_sent_more(cx) {
                this.begin_linger();
            }
        }
        this.linger(cx).map(Ok)
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}
