//! A client that waits while its request is carried ([`Downstream`]): whether it has left, and its whole
//! body. Here for the clients of Pingora's sessions; sockets and the simulation bring their own.
//!
//! Pingora never cancels a filter: without a look at its client, a held request would be forwarded after the
//! client had gone. A client that has said all it will say may close its sending side and wait for its
//! answer (RFC 9112 §9.6). From here that looks like one that has gone: both send a FIN. So one that sent a
//! FIN is asked whether it is still there, by a `100 Continue`, which every client of HTTP/1.1 must be able
//! to read (RFC 9110 §15.2): one that has gone answers it with a reset. Over HTTP/1.0 there is no such
//! question; a FIN counts as leaving there for what is unsafe, so that nothing is done for a client that may
//! have gone.
//!
//! Bodies that the edge reads whole before it sends anything are bounded each, bounded together
//! ([`BodyBudget`]), and in time. Pingora's own buffer for retries holds 64 KiB; these are kept apart from
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;

use crate::lifecycle::journey::BodyRefusal;
use crate::wire::peer::{LOOK_EVERY, Peer};
use crate::wire::{Client, Phase};

/// A client that waits.
pub trait Downstream: Send {
    /// Resolves when it has left. Consumes nothing of an unread body. Cancel safe.
    fn left(&mut self, body_unread: bool) -> impl Future<Output = ()> + Send;
    /// Whether it has left already. May ask it, and then takes a moment.
    fn has_left(&mut self) -> impl Future<Output = bool> + Send;
    /// Whether its connection takes of a body what its window has room for, and keeps it until it is read.
    fn takes_ahead(&self) -> bool {
        false
    }
    /// Reads its whole body, at most `limit` bytes; one that sends none has nothing to read.
    fn read_whole(
        &mut self,
        _limit: u64,
        _budget: &Arc<BodyBudget>,
        _within: Duration,
    ) -> impl Future<Output = Result<Buffered, Unread>> + Send {
        async { Err(Unread::Gone) }
    }
}

impl Downstream for Session {
    async fn left(&mut self, body_unread: bool) {
        if let Some(client) = Client::of(self) {
            // An HTTP/2 connection has other requests.
            if !self.is_http2() {
                client.urgency.has_time();
            }
            if !body_unread {
                client.enter(Phase::Answer);
            }
        }
        let downstream = self.as_downstream_mut();
        if downstream.is_http2() {
            if let Some(closed) = downstream.watch_h2_stream_close() {
                let _ = closed.await;
            }
            return;
        }
        if !body_unread {
            // Nothing more is expected: whatever ends this read ends the connection. A pipelined
            // request does not, since pipelining is enabled for the session; nor does a FIN, about which
            // the stream asks (`crate::wire::guard`).
            let _ = downstream.read_body_or_idle(true).await;
            return;
        }
        // Reading would eat a byte of the body. The kernel knows whether a FIN or RST came.
        let mut asked = false;
        loop {
            match peer(self) {
                Peer::Gone => return,
                Peer::Finished if !asked => asked = ask(self).await,
                Peer::Finished | Peer::Open => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asked once more when a place was given: [`Self::left`] learns of it later, and a request that is sent
    /// then is sent for a client that is gone.
    async fn has_left(&mut self) -> bool {
        match peer(self) {
            Peer::Open => return false,
            Peer::Gone => return true,
            Peer::Finished if self.is_http2() => return true,
            Peer::Finished => {}
        }
        if !ask(self).await {
            return !self.req_header().method.is_safe();
        }
        let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
        while waited < ANSWERS_WITHIN {
            if peer(self) == Peer::Gone {
                return true;
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause *= 2;
        }
        peer(self) == Peer::Gone
    }

    /// Of a body over HTTP/1.1 the kernel has what was not read.
    fn takes_ahead(&self) -> bool {
        self.is_http2()
    }

    /// Answers `100-continue` first, since the app will not: it sees the request only once it is whole.
    async fn read_whole(
        &mut self,
        limit: u64,
        budget: &Arc<BodyBudget>,
        within: Duration,
    ) -> Result<Buffered, Unread> {
        let reading = tokio::time::timeout(within, read(self, limit, budget));
        reading.await.unwrap_or(Err(Unread::Refused(BodyRefusal::TooSlow)))
    }
}

/// How long a client may take to answer that it has gone: a round trip.
const ANSWERS_WITHIN: Duration = Duration::from_millis(250);

fn peer(session: &mut Session) -> Peer {
    let socket = session.as_downstream_mut().digest().and_then(|d| d.socket_digest.as_ref());
    socket.map_or(Peer::Open, |s| Peer::of(s))
}

/// Asks a client that sent a FIN whether it is there; `false` where it cannot be asked.
async fn ask(session: &mut Session) -> bool {
    if session.req_header().version < Version::HTTP_11 {
        return false;
    }
    // An error is a reset that came already.
    let _ = session.as_downstream_mut().write_continue_response().await;
    true
}

/// Answers `100-continue` to a client that asked for it, over any version that has it: its body is wanted
/// now (RFC 9110 §10.1.1).
///
/// # Errors
/// Pingora's, when the client is gone.
pub async fn invite(session: &mut Session) -> pingora::Result<()> {
    let head = session.req_header();
    let expects = head.version >= Version::HTTP_11
        && head
            .headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects {
        session.as_downstream_mut().write_continue_response().await?;
    }
    Ok(())
}

/// Whether a client's body could not be read because it is not one; Pingora's names.
pub fn is_malformed(e: &Error) -> bool {
    matches!(e.etype(), ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd"))
}

async fn read(
    session: &mut Session,
    limit: u64,
    budget: &Arc<BodyBudget>,
) -> Result<Buffered, Unread> {
    let mut used = Used { budget: Arc::clone(budget), bytes: 0 };
    invite(session).await.map_err(|_| Unread::Gone)?;
    let downstream = session.as_downstream_mut();
    let mut pieces = Pieces::default();
    while let Some(chunk) = downstream.read_request_body().await.map_err(unread)? {
        used.grow(chunk.len() as u64, limit)?;
        pieces.add(chunk);
    }
    Ok(Buffered { bytes: pieces.whole(), _used: used })
}

/// A body that comes in pieces.
#[derive(Default)]
struct Pieces {
    first: Option<Bytes>,
    rest: BytesMut,
}

impl Pieces {
    fn add(&mut self, piece: Bytes) {
        match self.first.take() {
            // Most bodies come in one piece: no copy.
            None if self.rest.is_empty() => self.first = Some(piece),
            None => self.rest.extend_from_slice(&piece),
            Some(before) => {
                self.rest.extend_from_slice(&before);
                self.rest.extend_from_slice(&piece);
            }
        }
    }

    /// All of it, in as many bytes as it has: it waits for a whole wake, and what grew by doubling would hold
    /// up to twice what the budget counts.
    fn whole(self) -> Bytes {
        match self.first {
            Some(only) => only,
            None => Bytes::copy_from_slice(&self.rest),
        }
    }
}

fn unread(e: Box<Error>) -> Unread {
    if is_malformed(&e) { Unread::Refused(BodyRefusal::Malformed) } else { Unread::Gone }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The edge takes no more of it.
    Refused(BodyRefusal),
    /// The client is gone, or what it sent is no body.
    Gone,
}

/// Bytes of bodies that the node may keep.
#[derive(Debug)]
pub struct BodyBudget {
    used: AtomicU64,
    most: AtomicU64,
}

impl BodyBudget {
    /// Room for `most` bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most: AtomicU64::new(most) })
    }

    /// Bytes kept now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for `most` bytes from now on; what is kept stays.
    pub fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Keeps a body that is there as a whole.
    ///
    /// # Errors
    /// [`Unread::Refused`] where it is longer than `limit`, or there is no room for it.
    pub fn keep(self: &Arc<Self>, bytes: Bytes, limit: u64) -> Result<Buffered, Unread> {
        let mut used = Used { budget: Arc::clone(self), bytes: 0 };
        used.grow(bytes.len() as u64, limit)?;
        Ok(Buffered { bytes, _used: used })
    }
}

/// A body and what it uses of the budget; free again when dropped.
#[derive(Debug)]
pub struct Buffered {
    pub bytes: Bytes,
    _used: Used,
}

#[derive(Debug)]
struct Used {
    budget: Arc<BodyBudget>,
    bytes: u64,
}

impl Used {
    /// Takes room for `more` bytes, up to `limit` in all.
    fn grow(&mut self, more: u64, limit: u64) -> Result<(), Unread> {
        if self.bytes + more > limit {
            return Err(Unread::Refused(BodyRefusal::TooLong));
        }
        let most = self.budget.most.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(more).filter(|sum| *sum <= most);
        let taken = self.budget.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        taken.map_err(|_| Unread::Refused(BodyRefusal::NoRoom))?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_body_holds_no_more_than_is_counted() {
        for sizes in [&[][..], &[5], &[5, 7], &[16_384, 16_384, 1]] {
            let mut pieces = Pieces::default();
            for size in sizes {
                pieces.add(vec![b'x'; *size].into());
            }
            let whole = pieces.whole();
            let all: usize = sizes.iter().sum();
            assert_eq!(whole.len(), all);
            let held = BytesMut::from(whole).capacity();
            assert_eq!(held, all, "{sizes:?}");
        }
    }

    #[test]
    fn room_is_given_back_whatever_happens() {
        let budget = BodyBudget::new(10);
        let keep = |bytes: usize| budget.keep(vec![0; bytes].into(), 20);
        let a = keep(6).unwrap();
        assert_eq!(keep(5).unwrap_err(), Unread::Refused(BodyRefusal::NoRoom));
        assert_eq!(keep(21).unwrap_err(), Unread::Refused(BodyRefusal::TooLong));
        let b = keep(4).unwrap();
        let mut none = Used { budget: Arc::clone(&budget), bytes: 0 };
        assert_eq!(none.grow(u64::MAX, u64::MAX), Err(Unread::Refused(BodyRefusal::NoRoom)));
        drop(a);
        assert_eq!(budget.used(), 4);
        drop(b);
        assert_eq!(budget.used(), 0);
    }
}
