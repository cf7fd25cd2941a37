//! The client's side of an accepted socket, taken over from Pingora's HTTP engine.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy::guard::Guarded;
use crate::sockets::frames;

/// How long a client may take to close its side after the edge has said goodbye.
const LINGER: Duration = Duration::from_secs(1);

/// A client's leg. Plain TCP without Pingora's 64 KiB of buffer; TLS as Pingora has it.
#[derive(Debug)]
pub enum Client {
    /// Plain.
    Tcp(TcpStream),
    /// Whatever else.
    Other(Stream),
}

impl Client {
    /// Takes the connection over. A client that sent anything after the head of its upgrade, before
    /// it was accepted, breaks RFC 6455 §4.1, and is refused: those bytes are how requests are
    /// smuggled past a proxy.
    ///
    /// # Errors
    /// When the client is gone or was too early.
    pub async fn take_over(mut stream: Stream) -> io::Result<Self> {
        let early = std::future::poll_fn(|cx| {
            let mut space = [0; 1];
            let mut space = ReadBuf::new(&mut space);
            match Pin::new(&mut stream).poll_read(cx, &mut space) {
                Poll::Pending => Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            }
        });
        early.await?;
        let plain = stream.as_any().downcast_ref::<Guarded>().and_then(Guarded::plain);
        let Some(plain) = plain else { return Ok(Self::Other(stream)) };
        // SAFETY: `plain` owns the descriptor and outlives the borrow, which ends on this line.
        let copy = unsafe { BorrowedFd::borrow_raw(plain.as_raw_fd()) }.try_clone_to_owned()?;
        drop(stream);
        let copy = std::net::TcpStream::from(copy);
        copy.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpStream::from_std(copy)?))
    }

    /// Says goodbye with `close`, if a frame may be put in here, and that nothing more comes.
    pub async fn say_goodbye(&mut self, close: Option<(u16, &str)>) {
        let goodbye = async {
            if let Some((code, reason)) = close {
                self.write_all(&frames::close_frame(code, reason)).await?;
            }
            self.flush().await?;
            self.shutdown().await
        };
        let _ = tokio::time::timeout(LINGER, goodbye).await;
    }

    /// Gives the client a moment to close its side. What it still sends is read and dropped: an
    /// unread byte would turn the close into a reset, and the client might never see the frame.
    pub async fn linger(mut self) {
        // Not an array: a socket that waits or rests would have room for it in its future.
        let mut rest = vec![0; 1024];
        let closed = async { while self.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _ = tokio::time::timeout(LINGER, closed).await;
    }

    /// Both, one after the other.
    pub async fn close(mut self, close: Option<(u16, &str)>) {
        self.say_goodbye(close).await;
        self.linger().await;
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, space),
            Self::Other(s) => Pin::new(s).poll_read(cx, space),
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Other(s) => Pin::new(s).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Other(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Other(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
