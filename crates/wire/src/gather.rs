//! Small writes gathered into one: Pingora writes the head of an answer and its body apart, and each
//! write to a socket without delay is a segment of its own, for which the kernel takes more time than
//! the edge takes for the whole request.
//!
//! What is gathered goes out when it is flushed, which Pingora does at the end of each answer and
//! after each part of one whose length is not known (it buffers its own streams the same way). Its
//! memory is given back then: a connection on which nothing is written keeps none.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Bytes that are gathered at most: the head and the body of a small answer. Larger writes go out at
/// once, together with what was gathered.
const MOST: usize = 2048;

/// What was written and not sent.
#[derive(Debug, Default)]
pub struct Gather(Vec<u8>);

impl Gather {
    /// Whether all that was written is sent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes to `to`, at once or later.
    pub fn poll_write<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.0.len() + bytes.len() <= MOST {
            if self.0.capacity() == 0 {
                self.0.reserve_exact(MOST);
            }
            self.0.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        while !self.0.is_empty() {
            let both = [IoSlice::new(&self.0), IoSlice::new(bytes)];
            let n = ready!(Pin::new(&mut *to).poll_write_vectored(cx, &both))?;
            let beyond = self.sent(n)?;
            if beyond > 0 {
                return Poll::Ready(Ok(beyond));
            }
        }
        Pin::new(to).poll_write(cx, bytes)
    }

    /// Ready once all that was gathered is sent; `to` itself is not flushed.
    pub fn poll_empty<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.0.is_empty() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.0))?;
            self.sent(n)?;
        }
        Poll::Ready(Ok(()))
    }

    /// `n` bytes were sent, those gathered first; says how many more than these.
    fn sent(&mut self, n: usize) -> io::Result<usize> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let left = self.0.len().saturating_sub(n);
        let beyond = n.saturating_sub(self.0.len());
        if left == 0 {
            self.0 = Vec::new();
        } else {
            self.0.drain(..n);
        }
        Ok(beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes at most so many bytes a write, every other time.
    struct Slow {
        most: usize,
        ready: bool,
        writes: usize,
        got: Vec<u8>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            this.ready = !this.ready;
            if !this.ready {
                return Poll::Pending;
            }
            this.writes += 1;
            let before = this.got.len();
            this.got.extend(bufs.iter().flat_map(|b| b.iter()).take(this.most));
            Poll::Ready(Ok(this.got.len() - before))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn until<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>) -> T {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..1_000_000 {
            if let Poll::Ready(done) = poll(&mut cx) {
                return done.unwrap();
            }
        }
        panic!("it never ends")
    }

    #[test]
    fn a_head_and_a_small_body_are_one_write_and_leave_nothing() {
        let mut to = Slow { most: usize::MAX, ready: false, writes: 0, got: Vec::new() };
        let mut gather = Gather::default();
        for part in [b"head".as_slice(), b"", b"body"] {
            assert_eq!(until(|cx| gather.poll_write(&mut to, cx, part)), part.len());
        }
        assert!(to.got.is_empty() && !gather.is_empty());
        until(|cx| gather.poll_empty(&mut to, cx));
        assert_eq!((to.got.as_slice(), to.writes), (b"headbody".as_slice(), 1));
        assert!(gather.is_empty() && gather.0.capacity() == 0);
    }

    #[test]
    fn whatever_the_sizes_the_bytes_are_the_same_in_their_order() {
        for most in [1, 3, 2047, 2048, 2049, 100_000] {
            let mut to = Slow { most, ready: false, writes: 0, got: Vec::new() };
            let (mut gather, mut sent) = (Gather::default(), Vec::new());
            for (n, size) in
                [10, 2038, 1, 5000, 0, 2048, 2049, 2, 70_000, 3].into_iter().enumerate()
            {
                let bytes = vec![n as u8; size];
                let mut at = 0;
                while at < size {
                    at += until(|cx| gather.poll_write(&mut to, cx, &bytes[at..]));
                    assert!(gather.0.len() <= MOST);
                }
                sent.extend(bytes);
            }
            until(|cx| gather.poll_empty(&mut to, cx));
            assert!(to.got == sent, "{most} at a time");
        }
    }
}
