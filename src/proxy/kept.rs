//! A response's head that is kept until its body follows, so that both go in one write: for small
//! bodies, a second write costs the edge more than the rest of the answer.
//!
//! Only a head whose body is at hand already is kept (the shell says so, [`super::client::Client::body_follows`]),
//! never one whose body an app has yet to send: that one goes at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Longer heads are written at once.
pub const MOST: usize = 4096;

/// What is kept.
#[derive(Debug, Default)]
pub struct Kept {
    head: Vec<u8>,
    gone: usize,
}

impl Kept {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Keeps `head`; nothing is kept now.
    pub fn keep(&mut self, head: &[u8]) {
        debug_assert!(self.is_empty());
        self.head.extend_from_slice(head);
    }

    /// Writes what is left of the head, with as much of `body` behind it as goes. How much of the body
    /// went; never 0, unless it is empty.
    pub fn poll_with<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
        body: &[u8],
    ) -> Poll<io::Result<usize>> {
        while self.gone < self.head.len() {
            let head = &self.head[self.gone..];
            let written = if to.is_write_vectored() && !body.is_empty() {
                let both = [IoSlice::new(head), IoSlice::new(body)];
                ready!(Pin::new(&mut *to).poll_write_vectored(cx, &both))?
            } else {
                ready!(Pin::new(&mut *to).poll_write(cx, head))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_body = written.saturating_sub(head.len());
            self.gone += written - of_body;
            if of_body > 0 {
                *self = Self::default();
                return Poll::Ready(Ok(of_body));
            }
        }
        *self = Self::default();
        if body.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(to).poll_write(cx, body) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes at a time, and is not ready between two.
    #[derive(Default)]
    struct Slow {
        at_a_time: usize,
        vectored: bool,
        writes: usize,
        taken: Vec<u8>,
    }
    impl Slow {
        fn take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.writes += 1;
            if self.writes.is_multiple_of(2) && self.at_a_time < 100 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = bytes.len().min(self.at_a_time);
            self.taken.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        }
    }
    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.take(cx, bytes)
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
            self.take(cx, &all)
        }
        fn is_write_vectored(&self) -> bool {
            self.vectored
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn head_and_body_come_whole_and_in_order_however_they_are_taken() {
        for (at_a_time, vectored) in (1..12).chain([1000]).flat_map(|n| [(n, false), (n, true)]) {
            let mut to = Slow { at_a_time, vectored, ..Slow::default() };
            let mut kept = Kept::default();
            kept.keep(b"head:");
            let mut body = &b"body"[..];
            while !body.is_empty() {
                let poll = std::future::poll_fn(|cx| kept.poll_with(&mut to, cx, body));
                let n = poll.await.unwrap();
                assert!(n > 0 && kept.is_empty());
                body = &body[n..];
            }
            assert_eq!(to.taken, b"head:body", "{at_a_time} {vectored}");
            if at_a_time == 1000 {
                assert_eq!(to.writes, if vectored { 1 } else { 2 });
            }
        }
        // A head alone, when nothing follows after all.
        let mut to = Slow { at_a_time: 2, vectored: true, ..Slow::default() };
        let mut kept = Kept::default();
        kept.keep(b"head:");
        std::future::poll_fn(|cx| kept.poll_with(&mut to, cx, b"")).await.unwrap();
        assert_eq!((&to.taken[..], kept.is_empty()), (&b"head:"[..], true));
    }
}
