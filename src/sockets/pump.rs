//! Carries a live socket's bytes both ways, untouched.
//!
//! A silent socket has no buffer: bytes are read into one that the thread's sockets share and
//! written on at once. What the other side does not take is kept, at most [`CHUNK`] bytes each way,
//! and no more is read until it has gone: the kernel's windows push back on the side that sends too fast.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::hello::{ANSWER_BYTES, FirstFrame, answer};

use super::frames::{Frames, Protocol};

/// Bytes read at a time.
pub const CHUNK: usize = 16 * 1024;
/// Reads of one direction before the task yields to others.
const READS_BEFORE_YIELD: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8; CHUNK]>> = RefCell::new(Box::new([0; CHUNK]));
}

/// Which side ended, in whatever way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Client,
    App,
}

/// Why the pump stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Paused {
    /// A leg ended; for good.
    Ended(Ended),
    /// The app has said which session the socket is of; once, and on it goes.
    Named(SessionId),
}

/// The app's first frame, where that is Vango's answer to a hello.
#[derive(Debug)]
enum First {
    /// So much of it has come.
    Coming(Vec<u8>),
    /// It names a session.
    Names(SessionId),
    /// It has passed, or is not looked at.
    Passed,
}

impl First {
    /// Copies what belongs to the first frame, and nothing after it.
    fn look(&mut self, bytes: &[u8]) {
        let Self::Coming(before) = self else { return };
        before.extend_from_slice(&bytes[..bytes.len().min(ANSWER_BYTES - before.len())]);
        match answer(before) {
            FirstFrame::Incomplete => {}
            FirstFrame::Whole(Some(session)) => *self = Self::Names(session),
            FirstFrame::Whole(None) => *self = Self::Passed,
        }
    }

    fn named(&mut self) -> Option<SessionId> {
        match std::mem::replace(self, Self::Passed) {
            Self::Names(session) => Some(session),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    frames: Frames,
    held: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// Both directions, and the two legs.
#[derive(Debug)]
pub struct Pump<C, A> {
    client: C,
    app: A,
    up: Flow,
    down: Flow,
    first: First,
}

impl<C, A> Pump<C, A>
where
    C: AsyncRead + AsyncWrite + Unpin,
    A: AsyncRead + AsyncWrite + Unpin,
{
    /// Legs that were upgraded; `from_client` and `from_app` were read of them already.
    pub fn new(
        client: C,
        app: A,
        from_client: Vec<u8>,
        from_app: Vec<u8>,
        protocol: Protocol,
    ) -> Self {
        let flow = |held: Vec<u8>| {
            let mut frames = Frames::of(protocol);
            frames.follow(&held);
            Flow { frames, held, ..Flow::default() }
        };
        let mut first = match protocol {
            Protocol::Vango => First::Coming(Vec::new()),
            Protocol::Unknown => First::Passed,
        };
        first.look(&from_app);
        Self { client, app, up: flow(from_client), down: flow(from_app), first }
    }

    /// Carries until a leg ends or the app names the session. `passed` is told of each run of bytes,
    /// and whether it carried the app's own traffic. May be dropped and called again.
    pub async fn run(&mut self, mut passed: impl FnMut(bool) + Send) -> Paused {
        let Self { client, app, up, down, first } = self;
        poll_fn(|cx| {
            // Towards the app first: a client that is gone is noticed before more is written to it.
            match up.poll(cx, client, app, &mut |data, _: &[u8]| passed(data)) {
                Poll::Ready(Stopped::Reading) => return Poll::Ready(Paused::Ended(Ended::Client)),
                Poll::Ready(Stopped::Writing) => return Poll::Ready(Paused::Ended(Ended::App)),
                Poll::Pending => {}
            }
            let down = down.poll(cx, app, client, &mut |data, bytes: &[u8]| {
                first.look(bytes);
                passed(data);
            });
            if let Some(session) = first.named() {
                // An end that was seen in the same moment is seen again.
                return Poll::Ready(Paused::Named(session));
            }
            match down {
                Poll::Ready(Stopped::Reading) => Poll::Ready(Paused::Ended(Ended::App)),
                Poll::Ready(Stopped::Writing) => Poll::Ready(Paused::Ended(Ended::Client)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Whether the app has said goodbye in its own words.
    pub fn app_said_goodbye(&self) -> bool {
        self.down.frames.closing()
    }

    /// The client's leg, once what the app had sent is written to it; the app's leg is closed.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn into_client(self) -> io::Result<Parted<C>> {
        let Self { mut client, app, up, down, .. } = self;
        drop(app);
        use tokio::io::AsyncWriteExt as _;
        if down.written < down.held.len() {
            client.write_all(&down.held[down.written..]).await?;
        }
        client.flush().await?;
        let may_add = down.frames.between_frames() && !down.frames.closing();
        Ok(Parted { client, frames: up.frames, may_add })
    }
}

/// A client's leg without its app's.
#[derive(Debug)]
pub struct Parted<C> {
    pub client: C,
    /// Where the client is in its own frames.
    pub frames: Frames,
    /// Whether a frame of the edge's own may be written to it.
    pub may_add: bool,
}

/// Why a direction carries no more.
enum Stopped {
    /// The end or an error of the side that is read.
    Reading,
    /// An error of the side that is written to.
    Writing,
}

impl Flow {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        passed: &mut impl FnMut(bool, &[u8]),
    ) -> Poll<Stopped> {
        for _ in 0..READS_BEFORE_YIELD {
            if ready!(self.poll_held(cx, to)).is_err() {
                return Poll::Ready(Stopped::Writing);
            }
            if self.unflushed {
                match Pin::new(&mut *to).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.unflushed = false,
                    Poll::Ready(Err(_)) => return Poll::Ready(Stopped::Writing),
                    // A TLS leg that is full: reading on would only pile up.
                    Poll::Pending => return Poll::Pending,
                }
            }
            if let Err(stopped) = ready!(self.poll_more(cx, from, to, passed)) {
                return Poll::Ready(stopped);
            }
        }
        // Goes on once other tasks have run.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_held(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
            self.unflushed = true;
        }
        self.held = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what the other side takes; `Err` when the direction has stopped.
    fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        passed: &mut impl FnMut(bool, &[u8]),
    ) -> Poll<Result<(), Stopped>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut space = ReadBuf::new(&mut scratch[..]);
            let read = ready!(Pin::new(from).poll_read(cx, &mut space));
            let bytes = space.filled();
            if read.is_err() || bytes.is_empty() {
                return Poll::Ready(Err(Stopped::Reading));
            }
            passed(self.frames.follow(bytes).data, bytes);
            self.unflushed = true;
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Stopped::Writing)),
                Poll::Pending => 0,
            };
            if written < bytes.len() {
                self.held = bytes[written..].to_vec();
            }
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn bytes_pass_both_ways_in_order_and_untouched() {
        let (mut client, edge_client) = duplex(64);
        let (mut app, edge_app) = duplex(64);
        let mut pump = Pump::new(
            edge_client,
            edge_app,
            b"first".to_vec(),
            b"hello".to_vec(),
            Protocol::Unknown,
        );
        let pumping = tokio::spawn(async move { (pump.run(|_| {}).await, pump) });
        let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let (up, down) = (sent.clone(), sent.clone());
        // Both sides send much more than fits, and read at the same time.
        let (mut cr, mut cw) = tokio::io::split(client);
        let (mut ar, mut aw) = tokio::io::split(app);
        let tasks = (
            tokio::spawn(async move { cw.write_all(&up).await.map(|()| cw) }),
            tokio::spawn(async move { aw.write_all(&down).await.map(|()| aw) }),
        );
        let mut got = vec![0; sent.len() + 5];
        ar.read_exact(&mut got).await.unwrap();
        assert!(got.starts_with(b"first") && got[5..] == sent[..]);
        cr.read_exact(&mut got).await.unwrap();
        assert!(got.starts_with(b"hello") && got[5..] == sent[..]);
        let (cw, aw) = (tasks.0.await.unwrap().unwrap(), tasks.1.await.unwrap().unwrap());
        client = cr.unsplit(cw);
        app = ar.unsplit(aw);
        drop(client);
        let (ended, pump) = pumping.await.unwrap();
        assert_eq!(ended, Paused::Ended(Ended::Client));
        drop(pump);
        assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0, "the app's leg goes with it");
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_sender() {
        let (mut client, edge_client) = duplex(1024);
        let (app, edge_app) = duplex(1024);
        let mut pump = Pump::new(edge_client, edge_app, Vec::new(), Vec::new(), Protocol::Unknown);
        let pumping = tokio::spawn(async move { pump.run(|_| {}).await });
        let sending = async {
            let mut sent = 0;
            while client.write_all(&[0; 1024]).await.is_ok() {
                sent += 1024;
            }
            sent
        };
        let stopped = tokio::time::timeout(std::time::Duration::from_millis(200), sending).await;
        assert!(stopped.is_err(), "it never gets further than the buffers");
        drop(app);
        assert_eq!(pumping.await.unwrap(), Paused::Ended(Ended::App));
    }

    #[tokio::test]
    async fn what_the_app_had_sent_is_written_before_the_edge_says_anything() {
        let (mut client, edge_client) = duplex(16);
        let (mut app, edge_app) = duplex(1024);
        let mut pump = Pump::new(edge_client, edge_app, Vec::new(), Vec::new(), Protocol::Unknown);
        let mut frame = vec![0x82, 100];
        frame.extend([7; 100]);
        app.write_all(&frame).await.unwrap();
        drop(app);
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.map(|_| got)
        });
        // The client takes 16 bytes at a time, so that some are held when the app's end is seen.
        assert_eq!(pump.run(|_| {}).await, Paused::Ended(Ended::App));
        assert!(!pump.app_said_goodbye());
        let Parted { client, may_add, .. } = pump.into_client().await.unwrap();
        assert!(may_add);
        drop(client);
        assert_eq!(reading.await.unwrap().unwrap(), frame);
    }

    #[tokio::test]
    async fn the_session_that_the_app_names_is_told_once_and_every_byte_passes() {
        let mut hello = vec![0x82, 10, 0, 0, 0, 6, 0, 3, b's', b'-', b'1', 0];
        hello.extend([0x82, 1, 9]);
        // Behind the 101, in one piece, and byte by byte.
        for (before, piece) in [(hello.len(), 1), (0, hello.len()), (0, 1), (3, 2)] {
            let (mut client, edge_client) = duplex(1024);
            let (mut app, edge_app) = duplex(1024);
            let held = hello[..before].to_vec();
            let mut pump = Pump::new(edge_client, edge_app, Vec::new(), held, Protocol::Vango);
            let rest = hello[before..].to_vec();
            let sending = tokio::spawn(async move {
                for piece in rest.chunks(piece) {
                    app.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let Paused::Named(session) = pump.run(|_| {}).await else { panic!("a name") };
            assert_eq!(session.expose(), "s-1");
            assert_eq!(pump.run(|_| {}).await, Paused::Ended(Ended::App));
            sending.await.unwrap();
            let mut got = Vec::new();
            let parted = pump.into_client().await.unwrap();
            drop(parted);
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, hello);
        }
    }
}
