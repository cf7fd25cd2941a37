//! The one thread that writes: takes calls from the queue, decides transactions in their order,
//! writes what is waiting as one batch, then publishes and answers.
//!
//! While the disk works on one batch the next one gathers in the queue, so many callers share an
//! fsync and a lone caller waits for no other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use vango_edge_core::clock::{Clock, Mono};

use super::batch::{Batch, Change};
use super::history::History;
use super::lease::Leases;
use super::storage::{self, Storage, StorageError, Write};
use super::{Durability, Entry, LEASE_KEYS, LEASES, LeaseId, Op, StoreError, Txn, load};

/// Leases ended in one batch. More that are due follow in the next.
const ENDED_AT_ONCE: usize = 64;
/// Calls served before leases and health are looked at again.
const ROUND: usize = 2048;
/// Longest sleep of an idle writer.
const IDLE: Duration = Duration::from_secs(60);
/// Wait before the first try to recover from a failed write; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait between tries to recover.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Where an answer goes.
pub(super) type AnswerTo<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for. Sizes are checked before a call is queued.
pub(super) enum Call {
    Txn(Txn, AnswerTo<u64>),
    Grant(Duration, AnswerTo<LeaseId>),
    KeepAlive(LeaseId, AnswerTo<()>),
    Revoke(LeaseId, AnswerTo<()>),
    /// Look at the clock.
    Poke(AnswerTo<()>),
    /// Answer what was queued before, then end.
    Close(AnswerTo<()>),
}

/// A call and its place in the queue, which is free again once the call is answered.
pub(super) struct Queued {
    pub(super) call: Call,
    pub(super) place: OwnedSemaphorePermit,
}

enum Health {
    Writable,
    /// The last write failed; nothing is written before the storage has recovered.
    Failed {
        said: StoreError,
        retry_at: Mono,
    },
}

pub(super) struct Writer<S: Storage> {
    storage: Arc<S>,
    clock: Arc<dyn Clock>,
    history: Arc<History>,
    calls: Receiver<Queued>,
    revision: u64,
    leases: Leases,
    health: Health,
    backoff: Duration,
}

/// However the thread ends, a panic included, watches end and the directory is free.
impl<S: Storage> Drop for Writer<S> {
    fn drop(&mut self) {
        self.history.close();
        self.storage.close();
    }
}

impl<S: Storage> Writer<S> {
    pub(super) fn new(
        storage: Arc<S>,
        clock: Arc<dyn Clock>,
        history: Arc<History>,
        calls: Receiver<Queued>,
        revision: u64,
        leases: Leases,
    ) -> Self {
        let (health, backoff) = (Health::Writable, BACKOFF_MIN);
        Self { storage, clock, history, calls, revision, leases, health, backoff }
    }

    /// Serves until it is told to close or the store is dropped.
    pub(super) fn run(mut self) {
        let closing = loop {
            let first = match self.calls.recv_timeout(self.idle()) {
                Ok(queued) => Some(queued),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            self.recover_if_due();
            self.end_due_leases();
            if let Some(first) = first
                && let ControlFlow::Break(answer) = self.serve(first)
            {
                break Some(answer);
            }
        };
        if matches!(self.health, Health::Writable) {
            let mut last = Batch::new(self.revision);
            last.sync = true;
            // Its failure is logged; no caller waits for it.
            let _ = self.write(last);
        }
        drop(self);
        if let Some(answer) = closing {
            let _ = answer.send(Ok(()));
        }
    }

    /// Serves what waits now, on the caller's thread; `None` once it was told to close.
    pub(super) fn serve_queued(mut self) -> Option<Self> {
        self.recover_if_due();
        self.end_due_leases();
        while let Ok(next) = self.calls.try_recv() {
            if let ControlFlow::Break(answer) = self.serve(next) {
                drop(self);
                let _ = answer.send(Ok(()));
                return None;
            }
        }
        Some(self)
    }

    /// How long nothing needs to be done unless a call comes.
    fn idle(&self) -> Duration {
        let next = match &self.health {
            Health::Writable => self.leases.next_deadline(),
            Health::Failed { retry_at, .. } => Some(*retry_at),
        };
        next.map_or(IDLE, |next| next.since(self.clock.now()).min(IDLE))
    }

    /// Serves `first` and what else is queued, up to one batch of transactions or [`ROUND`] calls.
    fn serve(&mut self, first: Queued) -> ControlFlow<AnswerTo<()>> {
        let mut batch = Batch::new(self.revision);
        let mut next = Some(first);
        let mut served = 0;
        while let Some(Queued { call, place }) = next.take() {
            match call {
                Call::Txn(txn, answer) => self.decide(&mut batch, txn, answer, place),
                other => {
                    // Leases are looked up, not overlaid: what is pending is written first.
                    let pending = std::mem::replace(&mut batch, Batch::new(0));
                    // Its callers have been answered.
                    let _ = self.write(pending);
                    self.perform(other)?;
                    batch = Batch::new(self.revision);
                }
            }
            // Callers that come back at once must not keep the thread from its leases and, when it
            // cannot write, from recovering.
            served += 1;
            let writable = matches!(self.health, Health::Writable);
            if writable && served < ROUND && !batch.is_full() {
                next = self.calls.try_recv().ok();
            }
        }
        let _ = self.write(batch);
        ControlFlow::Continue(())
    }

    fn decide(
        &self,
        batch: &mut Batch,
        txn: Txn,
        answer: AnswerTo<u64>,
        place: OwnedSemaphorePermit,
    ) {
        if let Some(refused) = self.refused() {
            let _ = answer.send(Err(refused));
            return;
        }
        let sync = txn.durability == Durability::Synced;
        let result = self.evaluate(batch, txn).map(|changes| {
            batch.commit(changes);
            batch.sync |= sync;
            batch.revision
        });
        batch.answer(answer, result, place);
    }

    /// What `txn` changes, if all its checks hold on top of `batch`.
    fn evaluate(&self, batch: &Batch, txn: Txn) -> Result<Vec<Change>, StoreError> {
        for check in &txn.checks {
            let entry = self.entry(batch, check.key())?;
            if !check.holds(entry.map(|entry| entry.mod_revision)) {
                return Err(StoreError::Conflict { key: check.key().to_owned() });
            }
        }
        let revision = batch.revision + 1;
        let now = self.clock.now();
        let mut attached: isize = 0;
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let before = self.entry(batch, op.key())?;
            changes.push(match op {
                Op::Delete { key } => Change { key, before, after: None },
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease {
                        // One transaction may attach to several leases; counting them together errs
                        // by less than its operations, on the side of refusing.
                        attached += 1;
                        self.may_attach(batch, lease, attached, now)?;
                    }
                    let create_revision = before.as_ref().map_or(revision, |b| b.create_revision);
                    let entry = Entry { value, create_revision, mod_revision: revision, lease };
                    Change { key, before, after: Some(entry) }
                }
            });
        }
        Ok(changes)
    }

    fn may_attach(
        &self,
        batch: &Batch,
        lease: LeaseId,
        more: isize,
        now: Mono,
    ) -> Result<(), StoreError> {
        if !self.leases.alive(lease, now) {
            return Err(StoreError::LeaseGone(lease));
        }
        let keys = self.leases.key_count(lease) as isize + batch.growth(lease) + more;
        if keys > LEASE_KEYS as isize {
            return Err(StoreError::Invalid(format!(
                "lease {lease} would have {keys} keys; at most {LEASE_KEYS}"
            )));
        }
        Ok(())
    }

    /// The entry of `key` as it is on top of `batch`.
    fn entry(&self, batch: &Batch, key: &str) -> Result<Option<Entry>, StorageError> {
        if let Some(pending) = batch.pending(key) {
            return Ok(pending.clone());
        }
        let stored = storage::entry_key(key);
        let value = self.storage.get(&stored)?;
        value.map(|value| storage::decode_entry(&stored, &value)).transpose()
    }

    /// Everything but transactions, one at a time.
    fn perform(&mut self, call: Call) -> ControlFlow<AnswerTo<()>> {
        // An answer that its caller does not wait for any more is no error.
        match call {
            Call::Txn(_, answer) => {
                debug_assert!(false, "transactions are batched");
                let _ = answer.send(Err(StoreError::Closed));
            }
            Call::Grant(ttl, answer) => {
                let _ = answer.send(self.grant(ttl));
            }
            Call::KeepAlive(lease, answer) => {
                let kept = self.leases.keep_alive(lease, self.clock.now());
                let _ = answer.send(kept.then_some(()).ok_or(StoreError::LeaseGone(lease)));
            }
            Call::Revoke(lease, answer) => {
                let _ = answer.send(match self.leases.alive(lease, self.clock.now()) {
                    true => self.end_leases(&[lease]),
                    false => Err(StoreError::LeaseGone(lease)),
                });
            }
            Call::Poke(answer) => {
                let _ = answer.send(Ok(()));
            }
            Call::Close(answer) => return ControlFlow::Break(answer),
        }
        ControlFlow::Continue(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if self.leases.len() >= LEASES {
            return Err(StoreError::Busy);
        }
        let id = self.leases.next_id();
        let mut batch = Batch::new(self.revision);
        batch.writes.push(Write::Put(storage::lease_key(id), storage::encode_u64(ttl.as_secs())));
        batch.writes.push(Write::Put(storage::LAST_LEASE_KEY.to_vec(), storage::encode_u64(id.0)));
        self.write(batch)?;
        self.leases.grant(id, ttl, self.clock.now() + ttl);
        Ok(id)
    }

    fn end_due_leases(&mut self) {
        if matches!(self.health, Health::Failed { .. }) {
            return;
        }
        let due = self.leases.due(self.clock.now(), ENDED_AT_ONCE);
        if due.is_empty() {
            return;
        }
        // After a failure the leases stay due. Waiting to recover keeps that from being a busy loop,
        // also if it was a read that failed.
        if let Err(error) = self.end_leases(&due)
            && matches!(self.health, Health::Writable)
        {
            self.failed(error);
        }
    }

    /// Removes the leases and their keys, each lease at a revision of its own.
    fn end_leases(&mut self, leases: &[LeaseId]) -> Result<(), StoreError> {
        let mut batch = Batch::new(self.revision);
        for &lease in leases {
            let mut changes = Vec::with_capacity(self.leases.key_count(lease));
            for key in self.leases.keys(lease) {
                let before = self.entry(&batch, key)?;
                debug_assert_eq!(before.as_ref().and_then(|entry| entry.lease), Some(lease));
                changes.push(Change { key: key.to_owned(), before, after: None });
            }
            batch.commit(changes);
            batch.writes.push(Write::Delete(storage::lease_key(lease)));
            batch.ended.push(lease);
        }
        self.write(batch)
    }

    /// Writes the batch, makes it known and answers; on failure answers that.
    fn write(&mut self, mut batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        if let Some(refused) = self.refused() {
            batch.give_answers(Some(&refused));
            return Err(refused);
        }
        let mut writes = std::mem::take(&mut batch.writes);
        if batch.revision != self.revision || batch.sync {
            let revision = storage::encode_u64(batch.revision);
            writes.push(Write::Put(storage::REVISION_KEY.to_vec(), revision));
        }
        if !writes.is_empty()
            && let Err(error) = self.storage.write(writes, batch.sync)
        {
            let said = self.failed(error.into());
            batch.give_answers(Some(&said));
            return Err(said);
        }
        self.backoff = BACKOFF_MIN;
        self.revision = batch.revision;
        for attachment in batch.attachments.drain(..) {
            match attachment.attached {
                true => self.leases.attach(attachment.lease, &attachment.key),
                false => self.leases.detach(attachment.lease, &attachment.key),
            }
        }
        batch.ended.drain(..).for_each(|lease| self.leases.remove(lease));
        self.history.publish(std::mem::take(&mut batch.commits));
        batch.give_answers(None);
        Ok(())
    }

    /// What is said of writes that are not tried, since one failed before them.
    fn refused(&self) -> Option<StoreError> {
        match &self.health {
            Health::Writable => None,
            Health::Failed { said: StoreError::Unavailable(said), .. } => {
                Some(StoreError::NotWritable(said.clone()))
            }
            Health::Failed { said, .. } => Some(said.clone()),
        }
    }

    /// Stops writing until the storage has recovered.
    fn failed(&mut self, said: StoreError) -> StoreError {
        log::error!("store: not writable, trying again in {:?}: {said}", self.backoff);
        let retry_at = self.clock.now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.health = Health::Failed { said: said.clone(), retry_at };
        said
    }

    fn recover_if_due(&mut self) {
        match &self.health {
            Health::Failed { retry_at, .. } if *retry_at <= self.clock.now() => {}
            Health::Failed { .. } | Health::Writable => return,
        }
        match self.storage.recover().and_then(|()| self.reload()) {
            Ok(()) => {
                log::warn!("store: writable again at revision {}", self.revision);
                self.health = Health::Writable;
            }
            Err(error) => {
                self.failed(error.into());
            }
        }
    }

    /// Takes over what the storage holds, which after a failed write may be more than was known.
    fn reload(&mut self) -> Result<(), StorageError> {
        let now = self.clock.now();
        let known = &self.leases;
        let loaded = load::load(&*self.storage, |lease, ttl| {
            // The store did not restart: no lease gets more time than it had.
            known.deadline(lease).unwrap_or(now + ttl)
        })?;
        if loaded.revision < self.revision {
            return Err(StorageError::Corrupt(format!(
                "revision {} was acknowledged, but after recovery the newest is {}",
                self.revision, loaded.revision
            )));
        }
        if loaded.revision > self.revision {
            self.history.reset(loaded.revision);
        }
        self.revision = loaded.revision;
        self.leases = loaded.leases;
        Ok(())
    }
}
