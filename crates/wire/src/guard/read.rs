//! What comes from the client: how long it may take, how large its head may be, and what its FIN means.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::SocketDigest;
use tokio::io::{AsyncRead, ReadBuf};
use vango_edge_core::clock::Mono;

use crate::client::Phase;
use crate::observer::Cut;
use crate::peer::{LOOK_EVERY, Peer};

use super::{Guarded, timed_out};

/// A client that sent a FIN is asked whether it is still there once it has waited so long. What is answered
/// sooner tells it soon enough.
const ASK_AFTER: Duration = Duration::from_millis(250);

/// The question; see [`crate::peer`].
const ASK: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

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

impl Guarded {
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
                self.entered = self.client.phase().1;
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

    /// The client's FIN came while its answer is owed: it has said all it will say, or it is gone. It is
    /// asked which (see [`crate::peer`]). An event stream ends with it, since it would end by nothing else.
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
