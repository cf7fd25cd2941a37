//! Transactions that are decided but not written: what they change, what their answers will be.
//! The writer evaluates each next transaction on top of this, then writes all of it at once.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::storage::{self, Write};
use super::{Entry, Event, EventKind, LeaseId, StoreError};

/// A batch is written once it has so many answers to give.
const ANSWERS: usize = 1024;
/// A batch is written once its writes take so many bytes.
const BYTES: usize = 4 * 1024 * 1024;

/// What becomes of one key.
pub(super) struct Change {
    pub(super) key: String,
    pub(super) before: Option<Entry>,
    pub(super) after: Option<Entry>,
}

/// An answer that waits for the write, and the caller's place in the queue, free once it is given.
struct Answer {
    to: oneshot::Sender<Result<u64, StoreError>>,
    result: Result<u64, StoreError>,
    _place: OwnedSemaphorePermit,
}

/// A key that was attached to a lease or taken off it.
pub(super) struct Attachment {
    pub(super) lease: LeaseId,
    pub(super) key: String,
    pub(super) attached: bool,
}

/// The pending batch.
pub(super) struct Batch {
    /// The revision of the last transaction in it.
    pub(super) revision: u64,
    pub(super) writes: Vec<Write>,
    pub(super) sync: bool,
    /// The events of each new revision, in order.
    pub(super) commits: Vec<Arc<[Event]>>,
    pub(super) attachments: Vec<Attachment>,
    /// Leases that end with it.
    pub(super) ended: Vec<LeaseId>,
    overlay: HashMap<String, Option<Entry>>,
    /// By how much the number of a lease's keys grows.
    growth: HashMap<LeaseId, isize>,
    bytes: usize,
    answers: Vec<Answer>,
}

impl Batch {
    /// An empty batch on top of `revision`.
    pub(super) fn new(revision: u64) -> Self {
        Self {
            revision,
            writes: Vec::new(),
            sync: false,
            commits: Vec::new(),
            attachments: Vec::new(),
            ended: Vec::new(),
            overlay: HashMap::new(),
            growth: HashMap::new(),
            bytes: 0,
            answers: Vec::new(),
        }
    }

    /// Whether nothing needs to be written or answered.
    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.writes.is_empty() && !self.sync
    }

    /// Whether it should be written before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.answers.len() >= ANSWERS || self.bytes >= BYTES
    }

    /// What the batch makes of `key`: none if it leaves it alone, else its entry or its absence.
    pub(super) fn pending(&self, key: &str) -> Option<&Option<Entry>> {
        self.overlay.get(key)
    }

    /// By how much the batch changes the number of keys attached to `lease`.
    pub(super) fn growth(&self, lease: LeaseId) -> isize {
        self.growth.get(&lease).copied().unwrap_or(0)
    }

    /// Commits `changes` at the next revision, which their new entries must carry.
    /// Changes from absent to absent are left out; if that leaves none, no revision is taken.
    pub(super) fn commit(&mut self, changes: Vec<Change>) {
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            let Change { key, before, after } = change;
            if before.is_none() && after.is_none() {
                continue;
            }
            let was = before.and_then(|entry| entry.lease);
            let is = after.as_ref().and_then(|entry| entry.lease);
            if was != is {
                was.into_iter().for_each(|lease| self.attach(lease, &key, false));
                is.into_iter().for_each(|lease| self.attach(lease, &key, true));
            }
            let stored = storage::entry_key(&key);
            let kind = match &after {
                Some(entry) => {
                    assert_eq!(entry.mod_revision, revision, "an entry carries its revision");
                    self.bytes += key.len() + entry.value.len();
                    self.writes.push(Write::Put(stored, storage::encode_entry(entry)));
                    EventKind::Put(entry.clone())
                }
                None => {
                    self.bytes += key.len();
                    self.writes.push(Write::Delete(stored));
                    EventKind::Delete
                }
            };
            self.overlay.insert(key.clone(), after);
            events.push(Event { revision, key, kind });
        }
        if !events.is_empty() {
            self.revision = revision;
            self.commits.push(events.into());
        }
    }

    fn attach(&mut self, lease: LeaseId, key: &str, attached: bool) {
        let stored = storage::attached_key(lease, key);
        self.writes.push(match attached {
            true => Write::Put(stored, bytes::Bytes::new()),
            false => Write::Delete(stored),
        });
        *self.growth.entry(lease).or_insert(0) += if attached { 1 } else { -1 };
        self.attachments.push(Attachment { lease, key: key.to_owned(), attached });
    }

    /// Remembers what to answer once the batch is written. Refusals wait too: they may rest on
    /// changes of this batch, which may yet fail.
    pub(super) fn answer(
        &mut self,
        to: oneshot::Sender<Result<u64, StoreError>>,
        result: Result<u64, StoreError>,
        place: OwnedSemaphorePermit,
    ) {
        self.answers.push(Answer { to, result, _place: place });
    }

    /// Gives the answers; all of them are `failed` if the write failed.
    pub(super) fn give_answers(self, failed: Option<&StoreError>) {
        for answer in self.answers {
            // A caller that no longer waits is no error.
            let _ = answer.to.send(failed.map_or(answer.result, |error| Err(error.clone())));
        }
    }
}
