//! Bodies that the edge reads whole before it sends anything: bounded each, bounded together, and
//! in time. Pingora's own buffer for retries holds 64 KiB; these are kept apart from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;

use crate::lifecycle::recorded::BodyRefusal;

/// Bytes of bodies that the node may keep.
#[derive(Debug)]
pub struct Room {
    used: AtomicU64,
    most: AtomicU64,
}

impl Room {
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

    fn take(&self, bytes: u64) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }
}

/// A body and its place in the room; free again when dropped.
#[derive(Debug)]
pub struct Buffered {
    /// The whole body.
    pub bytes: Bytes,
    _place: Place,
}

#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The edge takes no more of it.
    Refused(BodyRefusal),
    /// The client is gone, or what it sent is no body.
    Gone,
}

/// Reads the whole body, at most `limit` bytes, within `within`. Answers `100-continue` first, since
/// the app will not: it sees the request only once it is whole.
pub async fn read_whole(
    session: &mut Session,
    limit: u64,
    room: &Arc<Room>,
    within: Duration,
) -> Result<Buffered, Unread> {
    let reading = read(session, limit, room);
    match tokio::time::timeout(within, reading).await {
        Ok(read) => read,
        Err(_) => Err(Unread::Refused(BodyRefusal::TooSlow)),
    }
}

fn unread(e: Box<Error>) -> Unread {
    if is_malformed(&e) { Unread::Refused(BodyRefusal::Malformed) } else { Unread::Gone }
}

/// Whether a client's body could not be read because it is not one; Pingora's names.
pub fn is_malformed(e: &Error) -> bool {
    matches!(e.etype(), ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd"))
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

async fn read(session: &mut Session, limit: u64, room: &Arc<Room>) -> Result<Buffered, Unread> {
    let mut place = Place { room: Arc::clone(room), bytes: 0 };
    invite(session).await.map_err(|_| Unread::Gone)?;
    let downstream = session.as_downstream_mut();
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    while let Some(chunk) = downstream.read_request_body().await.map_err(unread)? {
        let more = chunk.len() as u64;
        if place.bytes + more > limit {
            return Err(Unread::Refused(BodyRefusal::TooLong));
        }
        if !room.take(more) {
            return Err(Unread::Refused(BodyRefusal::NoRoom));
        }
        place.bytes += more;
        match first.take() {
            // Most bodies come in one piece: no copy.
            None if whole.is_empty() => first = Some(chunk),
            None => whole.extend_from_slice(&chunk),
            Some(before) => {
                whole.extend_from_slice(&before);
                whole.extend_from_slice(&chunk);
            }
        }
    }
    let bytes = first.unwrap_or_else(|| whole.freeze());
    Ok(Buffered { bytes, _place: place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_whatever_happens() {
        let room = Room::new(10);
        let place = |bytes| {
            assert!(room.take(bytes));
            Place { room: Arc::clone(&room), bytes }
        };
        let a = place(6);
        assert!(!room.take(5) && !room.take(u64::MAX));
        let b = place(4);
        drop(a);
        assert_eq!(room.used(), 4);
        drop(b);
        assert_eq!(room.used(), 0);
    }
}
