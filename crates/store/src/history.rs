//! The last revisions, for watches: a ring bounded by count and bytes, read by each watch at its own
//! pace. One buffer for all of them, so a slow watch costs nothing but its place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::watch as signal;

use super::{Event, EventKind, EventSource, StoreError};

/// Revisions a watch looks at before it lets go of the lock.
const STRIDE: usize = 256;

/// The ring, shared by the writer and the watches.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
    /// The newest revision; dropped when the store closes.
    newest: Mutex<Option<signal::Sender<u64>>>,
}

#[derive(Debug)]
struct Ring {
    /// Events of consecutive revisions, the last of which is `newest`.
    revisions: VecDeque<Arc<[Event]>>,
    newest: u64,
    bytes: usize,
    most_revisions: usize,
    most_bytes: usize,
}

impl Ring {
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.revisions.len() as u64
    }

    fn push(&mut self, events: Arc<[Event]>) {
        let revision = events.first().map_or(0, |event| event.revision);
        assert_eq!(revision, self.newest + 1, "revisions are consecutive");
        self.newest = revision;
        self.bytes += size(&events);
        self.revisions.push_back(events);
        while self.revisions.len() > self.most_revisions
            || (self.bytes > self.most_bytes && self.revisions.len() > 1)
        {
            let Some(dropped) = self.revisions.pop_front() else { break };
            self.bytes -= size(&dropped);
        }
    }
}

/// Bytes of keys and values of one revision.
fn size(events: &[Event]) -> usize {
    let value = |event: &Event| match &event.kind {
        EventKind::Put(entry) => entry.value.len(),
        EventKind::Delete => 0,
    };
    events.iter().map(|event| event.key.len() + value(event)).sum()
}

impl History {
    /// An empty history after revision `newest`.
    pub(super) fn new(newest: u64, most_revisions: usize, most_bytes: usize) -> Self {
        let ring = Ring {
            revisions: VecDeque::new(),
            newest,
            bytes: 0,
            most_revisions: most_revisions.max(1),
            most_bytes,
        };
        Self { ring: Mutex::new(ring), newest: Mutex::new(Some(signal::Sender::new(newest))) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn signal(&self) -> MutexGuard<'_, Option<signal::Sender<u64>>> {
        self.newest.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The newest revision that watches can see; none once closed.
    pub(super) fn newest(&self) -> Option<u64> {
        self.signal().is_some().then(|| self.ring().newest)
    }

    /// Adds committed revisions, in order, and wakes the watches once.
    pub(super) fn publish(&self, commits: Vec<Arc<[Event]>>) {
        if commits.is_empty() {
            return;
        }
        let newest = {
            let mut ring = self.ring();
            commits.into_iter().for_each(|events| ring.push(events));
            ring.newest
        };
        self.announce(newest);
    }

    /// Forgets everything: revisions up to `newest` were found committed whose events are unknown.
    pub(super) fn reset(&self, newest: u64) {
        {
            let mut ring = self.ring();
            ring.revisions.clear();
            ring.bytes = 0;
            ring.newest = newest;
        }
        self.announce(newest);
    }

    fn announce(&self, newest: u64) {
        if let Some(signal) = &*self.signal() {
            signal.send_replace(newest);
        }
    }

    /// Lets the watches end once they have delivered what is there.
    pub(super) fn close(&self) {
        self.signal().take();
    }

    /// A source of the events under `prefix` from revision `from` on; 0 means from now.
    pub(super) fn follow(self: &Arc<Self>, prefix: &str, from: u64) -> Result<Follow, StoreError> {
        let changed = self.signal().as_ref().ok_or(StoreError::Closed)?.subscribe();
        let ring = self.ring();
        let next = if from == 0 { ring.newest + 1 } else { from };
        if next < ring.oldest() {
            return Err(StoreError::Compacted { oldest: ring.oldest() });
        }
        Ok(Follow { history: self.clone(), prefix: prefix.to_owned(), next, changed, ended: None })
    }
}

/// One watch's place in the history.
pub(super) struct Follow {
    history: Arc<History>,
    prefix: String,
    /// The next revision to look at.
    next: u64,
    changed: signal::Receiver<u64>,
    /// The error that ended the watch.
    ended: Option<StoreError>,
}

impl Follow {
    /// The next revision with events under the prefix, if it is there already.
    fn take(&mut self) -> Result<Option<Vec<Event>>, StoreError> {
        loop {
            let stride: Vec<Arc<[Event]>> = {
                let ring = self.history.ring();
                if self.next > ring.newest {
                    return Ok(None);
                }
                if self.next < ring.oldest() {
                    return Err(StoreError::Compacted { oldest: ring.oldest() });
                }
                let skip = (self.next - ring.oldest()) as usize;
                ring.revisions.range(skip..).take(STRIDE).cloned().collect()
            };
            for events in stride {
                self.next += 1;
                let mine: Vec<Event> =
                    events.iter().filter(|e| e.key.starts_with(&self.prefix)).cloned().collect();
                if !mine.is_empty() {
                    return Ok(Some(mine));
                }
            }
        }
    }
}

#[async_trait]
impl EventSource for Follow {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        loop {
            // Marked as seen before looking: a revision that comes in between wakes the wait below.
            self.changed.borrow_and_update();
            let closed = self.changed.has_changed().is_err();
            let ended = match self.take() {
                Ok(Some(events)) => return Ok(events),
                Ok(None) if closed => StoreError::Closed,
                Ok(None) => {
                    // An error means closed: the next round delivers what is left, then says so.
                    let _ = self.changed.changed().await;
                    continue;
                }
                Err(compacted) => compacted,
            };
            self.ended = Some(ended.clone());
            return Err(ended);
        }
    }
}
