//! The stream between a client and Pingora: it ends what is too slow or too large, which Pingora
//! has no setting for (its read timeout is for each read, and a byte every minute satisfies it).
//!
//! It counts only while the edge waits for the client. A hold with an unread body reads nothing,
//! and so costs a client nothing; a slow app is not the client's fault either.

mod read;
mod transport;
mod write;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{Shutdown, Stream};
use vango_edge_core::clock::{Clock, Mono};

use crate::client::{Client, Phase};
use crate::gather::Gather;
use crate::linger::Linger;
use crate::meter::Meter;
use crate::observer::Cut;
use crate::pace::Timer;

/// A client's stream under its limits.
pub struct Guarded {
    inner: Stream,
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    /// Phases that the client had entered when this one was noticed.
    entered: u32,
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

fn timed_out(why: Cut) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why.name())
}

impl Guarded {
    /// Watches over `inner`, whose connection began at `began`.
    pub fn new(inner: Stream, client: Arc<Client>, clock: Arc<dyn Clock>, began: Mono) -> Self {
        let (_, entered) = client.phase();
        Self {
            inner,
            client,
            clock,
            entered,
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
        let (phase, entered) = self.client.phase();
        if entered != self.entered {
            self.entered = entered;
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

    fn begin_linger(&mut self) {
        let bounds = self.client.linger_bounds();
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

    /// A connection that was cut off takes nothing more, except what tells its client why.
    fn ended(&self, writing: bool) -> Option<io::Error> {
        let why = self.client.why_cut()?;
        (!(writing && why == Cut::BodyRate)).then(|| timed_out(why))
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}
