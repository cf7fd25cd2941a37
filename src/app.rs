//! The edge's own connections to apps, of HTTP/1.1 or of HTTP/2 without TLS, for what Pingora's are not made
//! for: an exchange that outlives its client, an upgrade, and questions of the edge's own. All read an app's
//! answer as Pingora's do.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Uri, Version, header, response};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::contract::Protocol;

/// Header fields an app may answer with; Pingora's own bound.
const MAX_HEADERS: usize = 256;

/// Bytes of header fields an app may answer with over HTTP/2, about as many as over HTTP/1.1.
const MAX_HEADER_BYTES: u32 = 1 << 20;
/// Bytes that an app may send ahead over HTTP/2.
const WINDOW: u32 = 256 << 10;

/// How connections to apps of HTTP/2 are set up.
pub fn h2c() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    builder
}

/// Makes `request` one of HTTP/2: the host is part of the target, and nothing is said to the connection.
///
/// # Errors
/// When its `Host` is none.
pub fn into_h2c<B>(request: &mut Request<B>) -> Result<(), http::Error> {
    let host = request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::CONNECTION);
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = host {
        target.authority = Some(Authority::try_from(host.as_bytes())?);
    }
    target.scheme = Some(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(target)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// Whether an app's side of HTTP/2 says that it did nothing with a request that failed for `e`: it refused
/// the stream, or left the connection with a word that does not count it. Such a request may be sent again,
/// whatever it asks for (RFC 9113 §6.8, §8.7).
pub fn is_unprocessed(e: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(e);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<h2::Error>() {
            let refused = e.is_reset() && e.reason() == Some(h2::Reason::REFUSED_STREAM);
            // Streams that a GOAWAY counts are told another error by h2.
            return e.is_remote() && (e.is_go_away() || refused);
        }
        cause = e.source();
    }
    false
}

/// How connections to apps of HTTP/1.1 are set up.
pub fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS);
    // RFC 9112 §5.2: a folded line is joined, or the answer is lost though it came.
    builder.allow_obsolete_multiline_headers_in_responses(true);
    builder.allow_spaces_after_header_name_in_responses(true);
    builder
}

/// Asks `address` over a connection of its own, and gives the head of the answer. The body is of no use: the
/// connection is dropped with it. The caller bounds the time.
///
/// # Errors
/// When there is no connection or no answer; the text says why.
pub async fn ask(
    address: SocketAddr,
    protocol: Protocol,
    mut request: Request<Empty<Bytes>>,
) -> io::Result<response::Parts> {
    let tcp = TcpStream::connect(address).await?;
    if protocol == Protocol::H2c {
        into_h2c(&mut request).map_err(io::Error::other)?;
        let (mut send, connection) = h2c().handshake(TokioIo::new(tcp)).await.map_err(why)?;
        let mut answered = pin!(send.send_request(request));
        let answer = tokio::select! {
            answer = &mut answered => answer,
            _ = connection => answered.await,
        };
        return answer.map(|answer| answer.into_parts().0).map_err(why);
    }
    let (mut send, connection) = http().handshake(TokioIo::new(tcp)).await.map_err(why)?;
    let mut answered = pin!(send.send_request(request));
    let answer = tokio::select! {
        answer = &mut answered => answer,
        // One that has ended may have brought the answer before: that is there then, or never.
        _ = connection => answered.await,
    };
    answer.map(|answer| answer.into_parts().0).map_err(why)
}

/// hyper's own text leaves the cause out.
fn why(e: hyper::Error) -> io::Error {
    io::Error::other(e.source().map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}")))
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

/// A connection of HTTP/2 that says when the app has acknowledged the edge's SETTINGS, which every server owes to
/// a client's first bytes (RFC 9113 §3.4, §6.5.3).
///
/// Until then nothing shows that the app reads, or that it speaks HTTP/2 at all: the kernel takes connections for
/// an app that hangs, and what a server of HTTP/1.1 answers to a request could not be told from one that is lost.
#[derive(Debug)]
pub struct Greeted {
    tcp: TcpStream,
    frames: Frames,
    /// Taken once it is told.
    acknowledged: Option<oneshot::Sender<()>>,
}

impl Greeted {
    /// Over `tcp`, and what is told once the app has acknowledged; dropped where the connection ends before.
    pub fn new(tcp: TcpStream) -> (Self, oneshot::Receiver<()>) {
        let (tell, acknowledged) = oneshot::channel();
        (Self { tcp, frames: Frames::default(), acknowledged: Some(tell) }, acknowledged)
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tcp).poll_read(cx, buf);
        if this.acknowledged.is_some()
            && this.frames.acknowledge(&buf.filled()[before..])
            && let Some(tell) = this.acknowledged.take()
        {
            // What waits for it may have given up.
            let _ = tell.send(());
        }
        read
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// Heads of an app's frames, as its bytes come (RFC 9113 §4.1). Whether they are right, the connection judges.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 9],
    /// Bytes of the head that are there.
    have: usize,
    /// Bytes of a frame's payload that are still to come.
    skip: usize,
}

impl Frames {
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;

    /// Whether an acknowledgement of SETTINGS is among `bytes`, which follow those that were there before.
    fn acknowledge(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.head.len() {
                let [a, b, c, kind, flags, ..] = self.head;
                self.have = 0;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                if kind == Self::SETTINGS && flags & Self::ACK != 0 {
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_acknowledged_wherever_the_bytes_are_cut() {
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4];
        let update = [0, 0, 4, 8, 1, 0, 0, 0, 0, 0, 0, 4, 1];
        let ack = [0, 0, 0, 4, 1, 0, 0, 0, 0];
        let all = [&settings[..], &update, &ack].concat();
        for cut in 0..all.len() {
            let mut frames = Frames::default();
            assert!(!frames.acknowledge(&all[..cut]), "{cut}");
            assert!(frames.acknowledge(&all[cut..]), "{cut}");
        }
        let mut one_by_one = Frames::default();
        let at = all.iter().position(|byte| one_by_one.acknowledge(&[*byte]));
        assert_eq!(at, Some(all.len() - 1));
        // What its payload has is no frame, and neither is what a server of HTTP/1.1 answers.
        let wrapped = [&[0, 0, 9, 0, 1, 0, 0, 0, 1][..], &ack].concat();
        assert!(!Frames::default().acknowledge(&wrapped));
        assert!(!Frames::default().acknowledge(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    }
}
