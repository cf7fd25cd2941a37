//! What still comes after an answer is read and thrown away before the connection is closed: a close with
//! bytes unread is a reset, which takes the answer with it (RFC 9112 §9.6). Bounded, so that a client that
//! never stops sending costs less than one that sends nothing between its requests may (`limits.idle`).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::io::ReadBuf;
use vango_edge_core::clock::{Clock, Mono};

use crate::pace::{A_TURN, Timer};

/// How far a client is read after its answer.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In all.
    pub time: Duration,
    /// Without a byte.
    silence: Duration,
    /// How many were read, in bytes.
    bytes: usize,
}

impl Bounds {
    /// In the middle of its body.
    pub const BODY: Self =
        Self { time: Duration::from_secs(30), silence: Duration::from_secs(5), bytes: 64 << 20 };

    /// After a head, after it was cut off, and for every client where connections are scarce.
    pub const SHORT: Self =
        Self { time: Duration::from_secs(1), silence: Duration::from_secs(1), bytes: 1 << 20 };
}

/// One that is at it.
#[derive(Debug)]
pub struct Linger {
    bounds: Bounds,
    left: usize,
    began: Mono,
    /// Since when nothing has come.
    quiet: Mono,
}

impl Linger {
    /// Begins at `now`.
    pub fn new(bounds: Bounds, now: Mono) -> Self {
        Self { bounds, left: bounds.bytes, began: now, quiet: now }
    }

    /// Ready once the client has ended its side, or has had its time.
    pub fn poll(
        &mut self,
        stream: &mut Stream,
        clock: &dyn Clock,
        timer: &mut Timer,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut scratch = [0; 16 * 1024];
        let mut turn = A_TURN;
        let mut until = self.bounds.time.saturating_sub(clock.now().since(self.began));
        while self.left > 0 && !until.is_zero() {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut **stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buf.filled().len());
                    turn = turn.saturating_sub(buf.filled().len());
                    if turn == 0 {
                        self.quiet = clock.now();
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let now = clock.now();
                    if turn < A_TURN {
                        self.quiet = now;
                    }
                    until = self.bounds.time.saturating_sub(now.since(self.began));
                    let quiet = self.bounds.silence.saturating_sub(now.since(self.quiet));
                    ready!(timer.poll(quiet.min(until), cx));
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}
