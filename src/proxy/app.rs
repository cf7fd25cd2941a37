//! The edge's own connections of HTTP/1.1 to apps, for what Pingora's are not made for: an exchange that
//! outlives its client, and an upgrade. Both read an app's answer as Pingora's do.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::client::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Header fields an app may answer with; Pingora's own bound.
const MAX_HEADERS: usize = 256;

/// How connections to apps are set up.
pub fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS);
    // RFC 9112 §5.2: a folded line is joined, or the answer is lost though it came.
    builder.allow_obsolete_multiline_headers_in_responses(true);
    builder.allow_spaces_after_header_name_in_responses(true);
    builder
}

/// A connection to an app on which a request that is not taken any more does not end the answer.
///
/// An app may answer before it has read a whole body, and close. The next write of the body then fails,
/// and hyper would give the connection up, with the answer unread in it (RFC 9112 §9.5: a client that is
/// sending watches for an answer and stops). Here such a write is dropped; what was answered is read,
/// or the end is found by reading.
#[derive(Debug)]
pub struct Leg {
    tcp: TcpStream,
    /// The app takes nothing more.
    deaf: bool,
}

impl Leg {
    /// Over `tcp`.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, deaf: false }
    }

    /// The connection itself.
    pub fn into_inner(self) -> TcpStream {
        self.tcp
    }

    fn unless_deaf<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        dropped: impl FnOnce() -> T,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(e))
                if matches!(
                    e.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                self.deaf = true;
                Poll::Ready(Ok(dropped()))
            }
            outcome => outcome,
        }
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = Pin::new(&mut this.tcp).poll_write(cx, bytes);
        this.unless_deaf(outcome, || bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = || bufs.iter().map(|b| b.len()).sum();
        if this.deaf {
            return Poll::Ready(Ok(all()));
        }
        let outcome = Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        this.unless_deaf(outcome, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.tcp).poll_flush(cx);
        this.unless_deaf(outcome, || ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
