//! What goes to the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::protocols::IO;
use tokio::io::{AsyncWrite, ReadBuf};
use vango_edge_core::lifecycle::facts::{BadRequest, LONGEST_TARGET};

use crate::client::Phase;
use crate::observer::Cut;
use crate::pace::A_TURN;

use super::{Guarded, timed_out};

impl Guarded {
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
        if self.instead.is_none() && is_refusal(self.client.phase().0, bytes) {
            let why = if self.line.0 > LONGEST_TARGET {
                BadRequest::TargetTooLong
            } else {
                BadRequest::Malformed
            };
            self.instead = Some((self.client.unreadable(why, self.head.0), 0));
        }
        self.instead.is_some()
    }

    /// What a write comes to that is not made: of a connection that was cut off, or whose others have their
    /// turn, or in place of which something else is sent. `bytes` begin with `first`.
    fn not_made(
        &mut self,
        first: &[u8],
        bytes: impl FnOnce() -> usize,
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<usize>>> {
        if let Some(ended) = self.ended(true) {
            return Some(Poll::Ready(Err(ended)));
        }
        if self.gives_way(cx) {
            return Some(Poll::Pending);
        }
        self.is_replaced(first).then(|| self.replace(bytes(), cx))
    }

    /// Does `next` with the stream below once what was gathered is sent.
    fn after_gathered<T>(
        &mut self,
        cx: &mut Context<'_>,
        next: impl FnOnce(Pin<&mut dyn IO>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        ready!(self.gather.poll_empty(&mut *self.inner, cx))?;
        next(Pin::new(&mut *self.inner), cx)
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
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(instead) = this.not_made(buf, || buf.len(), cx) {
            return instead;
        }
        // A 1xx is not the answer proper.
        this.answering |= !buf.starts_with(b"HTTP/1.1 1");
        let outcome = if this.gathers() {
            this.gather.poll_write(&mut *this.inner, cx, buf)
        } else {
            this.after_gathered(cx, |inner, cx| inner.poll_write(cx, buf))
        };
        this.written(outcome, |n| *n, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first: &[u8] = bufs.first().map_or(&[], |b| b);
        if let Some(instead) = this.not_made(first, || bufs.iter().map(|b| b.len()).sum(), cx) {
            return instead;
        }
        let outcome = this.after_gathered(cx, |inner, cx| inner.poll_write_vectored(cx, bufs));
        this.written(outcome, |n| *n, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = this.after_gathered(cx, |inner, cx| inner.poll_flush(cx));
        this.written(outcome, |()| 0, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            // Its client may be gone, and is waited for as for any write.
            let outcome = this.after_gathered(cx, |inner, cx| inner.poll_shutdown(cx));
            ready!(this.written(outcome, |()| 0, cx))?;
            this.shut = true;
            if this.may_be_sent_more(cx) {
                this.begin_linger();
            }
        }
        this.linger(cx).map(Ok)
    }
}

/// Whether `bytes`, written in `phase`, are Pingora's refusal of a head. Nothing is parsed here: whatever is
/// written before a callback has seen the request's head can only be that.
fn is_refusal(phase: Phase, bytes: &[u8]) -> bool {
    matches!(phase, Phase::Idle | Phase::Head) && bytes.starts_with(b"HTTP/1.1 4")
}
