//! The ledger: keeps, on disk, which keyed actions and provider events were given to an app.
//!
//! The rules are [`crate::lifecycle::idempotency`]'s; this module performs them as compare-and-set
//! transactions on a [`StateStore`], so that the same code runs over RocksDB and over etcd.
//!
//! Invariants:
//! - [`Ledger::forward`] returns only once `forwarded` is on disk (synced). No byte is sent before.
//! - A subject has one holder in this process at a time ([`SubjectLock`]); a record that is open and has
//!   no holder is never taken for one that is at work.
//! - What is held is let go of by dropping it: dropping a [`Reservation`] releases it (nothing was
//!   sent), dropping a [`Sending`] makes it unknown (something may have been).
//! - When the store does not answer, nothing is sent: callers get [`LedgerError`] and say so. Whether
//!   the record is there all the same is known once the store has recovered; until then its subject is
//!   held, and then it is free again.
//! - [`Sending::ended`] returns once an answer is on disk (synced): what a client was told is known after a
//!   power cut.
//!
//! Deliberately absent: leases on records. A record is of a node's process; another process of the
//! same node means that the holder is gone, since the state directory admits one at a time.

mod audit;
mod expiry;
mod held;

pub use crate::config::{AuditLimits, LedgerLimits};
pub use audit::{Audit, MOST_REFUSED, MOST_REFUSED_OF_ONE, Wanted};
pub use held::{Reservation, Sending};

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::id::OperationId;
use crate::lifecycle::idempotency::{
    self, Claim, Delivered, ExistingRecord, Holder, Repeat, RequestFingerprint, Resolution, judge,
    judge_event,
};
use crate::record::ledger::{AttemptState, Attempted, StoredResponse, Subject, key};
use crate::record::{Record, RecordError};
use crate::store::{Pages, StateStore, StoreError, Txn};

/// How long a transaction that a request waits for may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Tries to take a subject whose record changes meanwhile.
const TRIES: usize = 4;
/// How often a process that stops looks whether the ledger is done.
const SETTLE_LOOK: Duration = Duration::from_millis(5);

/// Why the ledger could not say or do what it was asked for. Nothing may be sent then.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store did not answer, or not in time.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's answer did not come in time.
    #[error("the ledger's store gave no answer within {DEADLINE:?}")]
    TimedOut,
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// As many records as may be kept.
    #[error("the ledger is full: it keeps at most {0} records (ledger.max_records)")]
    Full(u64),
    /// The record kept changing.
    #[error("the record changed each time it was looked at")]
    Restless,
}

/// What came of asking for a subject.
pub enum Taken<T> {
    /// It is the caller's.
    Held(T),
    /// A record is in the way.
    Found(Box<ExistingRecord>),
}

impl<T> Taken<T> {
    fn map<U>(self, held: impl FnOnce(T) -> U) -> Taken<U> {
        match self {
            Self::Held(it) => Taken::Held(held(it)),
            Self::Found(found) => Taken::Found(found),
        }
    }
}

/// A record and where it is.
#[derive(Debug, Clone)]
pub struct Row {
    /// `<environment>/<hash>`.
    pub at: String,
    pub record: Attempted,
}

/// The ledger of one node.
pub struct Ledger {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    holder: Holder,
    limits: LedgerLimits,
    /// Subjects that this process is at work on.
    held: Mutex<HashSet<String>>,
    records: AtomicU64,
    /// Where what outlives a request is finished.
    runtime: tokio::runtime::Handle,
}

/// This process's right to be at work on a subject; free again when dropped.
pub(crate) struct SubjectLock {
    ledger: Arc<Ledger>,
    at: String,
}

/// A subject, the record that its holder wrote last, and that record's revision.
type Held = (SubjectLock, Attempted, u64);

impl Drop for SubjectLock {
    fn drop(&mut self) {
        self.ledger.held().remove(&self.at);
    }
}

/// Whether a claim may take the subject of `record`.
fn is_free(record: &Attempted, claim: &Claim, whole: bool, alive: bool) -> bool {
    match claim.subject {
        Subject::Action => judge(record, &claim.fingerprint, whole, alive) == Repeat::Free,
        Subject::Event => judge_event(record, alive) == Delivered::Free,
    }
}

/// Which state a claim takes its subject in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TakeAs<'a> {
    Reserved,
    Forwarded(Option<&'a OperationId>),
}

impl Ledger {
    /// The ledger over `store`. `holder` is this process: its run is new with each start.
    pub fn new(
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        holder: Holder,
        limits: LedgerLimits,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            holder,
            limits,
            held: Mutex::default(),
            records: AtomicU64::new(0),
            runtime,
        })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        // A panic while it was held leaves a set that is whole: each change is one call.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records kept now, as far as this process has counted.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Subjects at work now.
    pub fn at_work(&self) -> usize {
        self.held().len()
    }

    /// Whether this process is at work on the subject at `at`.
    pub fn works_on(&self, at: &str) -> bool {
        self.held().contains(at)
    }

    /// Returns once this process is at work on nothing any more, or after `within`; says on how many
    /// subjects it still is.
    pub async fn settled(&self, within: Duration) -> usize {
        let settle = async {
            while self.at_work() > 0 {
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(within, settle).await;
        self.at_work()
    }

    /// Largest response that is stored.
    pub fn max_response(&self) -> usize {
        self.limits.max_response
    }

    fn lock_subject(self: &Arc<Self>, at: &str) -> Option<SubjectLock> {
        let new = self.held().insert(at.to_owned());
        new.then(|| SubjectLock { ledger: Arc::clone(self), at: at.to_owned() })
    }

    /// Whether `record`'s holder is at work. A holder on another node counts as at work: only that
    /// node, or an operator, says otherwise.
    fn alive(&self, at: &str, record: &Attempted) -> bool {
        record.state.open()
            && (record.node != self.holder.node
                || (record.run == self.holder.run && self.works_on(at)))
    }

    /// Takes the subject while nothing is sent yet; durable.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing may be sent.
    pub async fn reserve(
        self: &Arc<Self>,
        claim: &Claim,
        whole: bool,
    ) -> Result<Taken<Reservation>, LedgerError> {
        Ok(self.take(claim, whole, TakeAs::Reserved).await?.map(|held| Reservation(Some(held))))
    }

    /// Takes the subject for sending: from the moment this returns, the record says `forwarded` on
    /// disk. `reserved` is what was reserved for the same claim before.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing may be sent.
    pub async fn forward(
        self: &Arc<Self>,
        reserved: Option<Reservation>,
        claim: &Claim,
        whole: bool,
        operation: Option<&OperationId>,
    ) -> Result<Taken<Sending>, LedgerError> {
        let Some((lock, before, revision)) = reserved.and_then(|mut reserved| reserved.0.take())
        else {
            let taken = self.take(claim, whole, TakeAs::Forwarded(operation)).await?;
            return Ok(taken.map(|held| Sending(Some(held))));
        };
        let now = self.clock.wall();
        let next = idempotency::forwarded(&before, &claim.fingerprint, operation.cloned(), now);
        let at = key::attempt(&lock.at);
        let txn = Txn::new().unchanged(&at, revision).put(&at, next.encode()).synced();
        match self.commit(txn).await {
            Ok(revision) => Ok(Taken::Held(Sending(Some((lock, next, revision))))),
            Err(e) => {
                lock.undo_later(claim.request.clone());
                Err(e)
            }
        }
    }

    async fn commit(&self, txn: Txn) -> Result<u64, LedgerError> {
        match tokio::time::timeout(DEADLINE, self.store.txn(txn)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(LedgerError::TimedOut),
        }
    }

    async fn take(
        self: &Arc<Self>,
        claim: &Claim,
        whole: bool,
        mode: TakeAs<'_>,
    ) -> Result<Taken<Held>, LedgerError> {
        let Some(lock) = self.lock_subject(&claim.at) else {
            return self.held_here(claim, whole).await.map(|f| Taken::Found(Box::new(f)));
        };
        // A record that the subject has already, and its revision.
        let mut existing: Option<(Attempted, u64)> = None;
        for _ in 0..TRIES {
            let is_new = existing.is_none();
            if is_new && self.records() >= self.limits.max_records {
                // Full. A record that is there already may still be answered from, or taken over.
                let found = self.read(&claim.at).await?;
                existing = Some(found.ok_or(LedgerError::Full(self.limits.max_records))?);
            } else {
                let next = self.taken(claim, mode, existing.as_ref().map(|(record, _)| record));
                match self.commit(self.taking(claim, &next, existing.as_ref())).await {
                    Ok(revision) => {
                        self.records.fetch_add(u64::from(is_new), Ordering::Relaxed);
                        return Ok(Taken::Held((lock, next, revision)));
                    }
                    Err(LedgerError::Store(StoreError::Conflict { .. })) => {
                        existing = self.read(&claim.at).await?;
                    }
                    // Free again at once: a disk that takes nothing must not gather tasks that wait for it. What
                    // was answered can be read, and is answered again.
                    Err(LedgerError::Store(e)) if e.applied_nothing() => {
                        let found = if is_new { self.read(&claim.at).await? } else { None };
                        existing = Some(found.ok_or(e)?);
                    }
                    Err(e) => {
                        // The outcome may be unknown; what was not sent is not left as if it were.
                        lock.undo_later(claim.request.clone());
                        return Err(e);
                    }
                }
            }
            if let Some((record, _)) = &existing {
                // This process holds the subject, so an open record of its own node has no holder.
                let alive = record.state.open() && record.node != self.holder.node;
                if !is_free(record, claim, whole, alive) {
                    let record = record.clone();
                    return Ok(Taken::Found(Box::new(ExistingRecord { record, alive })));
                }
            }
        }
        Err(LedgerError::Restless)
    }

    /// The record by which `claim` takes its subject, over nothing or over one that is `free`.
    fn taken(&self, claim: &Claim, mode: TakeAs<'_>, free: Option<&Attempted>) -> Attempted {
        let now = self.clock.wall();
        let reserved = idempotency::reserved(claim, &self.holder, free, now);
        match mode {
            TakeAs::Reserved => reserved,
            TakeAs::Forwarded(operation) => {
                idempotency::forwarded(&reserved, &claim.fingerprint, operation.cloned(), now)
            }
        }
    }

    /// The transaction that takes a subject: over a record that is free, or over nothing.
    fn taking(&self, claim: &Claim, next: &Attempted, before: Option<&(Attempted, u64)>) -> Txn {
        let at = key::attempt(&claim.at);
        let mut txn = match before {
            Some((_, revision)) => Txn::new().unchanged(&at, *revision),
            None => Txn::new().absent(&at),
        };
        let expires = before.map(|(record, _)| record.expires);
        if let Some(earlier) = expires.filter(|e| *e != next.expires) {
            txn = txn.delete(key::expiry(earlier, &claim.at));
        }
        if expires != Some(next.expires) {
            txn = txn.put(key::expiry(next.expires, &claim.at), &b""[..]);
        }
        txn.put(&at, next.encode()).put(key::open(&claim.at), &b""[..]).synced()
    }

    /// Another request of this process has the subject; its record may be on its way to disk.
    async fn held_here(&self, claim: &Claim, whole: bool) -> Result<ExistingRecord, LedgerError> {
        Ok(match self.get(&claim.at).await? {
            // What is free is being taken just now, by the one who has the subject.
            Some(ExistingRecord { record, alive }) if is_free(&record, claim, whole, alive) => {
                ExistingRecord {
                    record: Attempted { state: AttemptState::Reserved, ..record },
                    alive: true,
                }
            }
            Some(seen) => seen,
            None => {
                let unread =
                    RequestFingerprint { head: claim.fingerprint.head.clone(), body: None };
                let claim = Claim { fingerprint: unread, ..claim.clone() };
                let now = self.clock.wall();
                let record = idempotency::reserved(&claim, &self.holder, None, now);
                ExistingRecord { record, alive: true }
            }
        })
    }

    /// A record, and whether its holder is at work. A holder writes what came of it and then lets go:
    /// a caller that read the record before that and looks for the holder after it would take a request
    /// that was answered for one whose outcome is unknown. So an open record without a holder is read again, and
    /// believed only if it has not changed.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read.
    pub async fn get(&self, at: &str) -> Result<Option<ExistingRecord>, LedgerError> {
        let mut before: Option<u64> = None;
        loop {
            let Some((record, revision)) = self.read(at).await? else { return Ok(None) };
            let alive = self.alive(at, &record);
            if alive || !record.state.open() || before == Some(revision) {
                return Ok(Some(ExistingRecord { record, alive }));
            }
            before = Some(revision);
        }
    }

    async fn read(&self, at: &str) -> Result<Option<(Attempted, u64)>, LedgerError> {
        let entry = tokio::time::timeout(DEADLINE, self.store.get(&key::attempt(at)))
            .await
            .map_err(|_| LedgerError::TimedOut)??;
        entry.map(|e| Ok((Attempted::decode(&e.value)?, e.mod_revision))).transpose()
    }

    /// The stored response of a completed subject.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read.
    pub async fn response(&self, at: &str) -> Result<Option<StoredResponse>, LedgerError> {
        let entry = tokio::time::timeout(DEADLINE, self.store.get(&key::response(at)))
            .await
            .map_err(|_| LedgerError::TimedOut)??;
        entry.map(|e| Ok(StoredResponse::decode(&e.value)?)).transpose()
    }

    /// Records of an environment (or of an app, or all, by prefix) by where they are, at most
    /// `most`: those after the place `after`, or from the first on. Whether more come after them.
    ///
    /// # Errors
    /// [`LedgerError`] when they cannot be read.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
        wanted: impl Fn(&Attempted) -> bool,
    ) -> Result<(Vec<Row>, bool), LedgerError> {
        let prefix = format!("{}{prefix}", key::ATTEMPTS);
        let mut rows = Vec::new();
        let mut pages = Pages::new(&*self.store, &prefix, after.map(key::attempt));
        while let Some(page) = pages.next().await? {
            for (at, entry) in &page.entries {
                let record = Attempted::decode(&entry.value)?;
                if !wanted(&record) {
                    continue;
                }
                if rows.len() == most {
                    return Ok((rows, true));
                }
                let at = at.strip_prefix(key::ATTEMPTS).unwrap_or(at).to_owned();
                rows.push(Row { at, record });
            }
        }
        Ok((rows, false))
    }

    /// Says what became of an unknown attempt, and keeps in `audit` by the same transaction who said
    /// so. `None` when the record is not unknown, or is of another attempt, or not there.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read or written.
    pub async fn resolve(
        &self,
        audit: &Audit,
        at: &str,
        attempt: u32,
        resolution: Resolution,
        who: &str,
    ) -> Result<Option<Attempted>, LedgerError> {
        for _ in 0..TRIES {
            let Some((mut record, revision)) = self.read(at).await? else { return Ok(None) };
            if record.state == AttemptState::Forwarded && !self.alive(at, &record) {
                record.state = AttemptState::Unknown;
            }
            let now = self.clock.wall();
            let Some(next) = idempotency::resolved(&record, attempt, resolution, who, now) else {
                return Ok(None);
            };
            let key_at = key::attempt(at);
            let txn = Txn::new()
                .unchanged(&key_at, revision)
                .put(&key_at, next.encode())
                .delete(key::open(at));
            let txn = audit.with(txn, &idempotency::evidence_of(&next)).await?;
            match self.commit(txn.synced()).await {
                Ok(_) => return Ok(Some(next)),
                Err(LedgerError::Store(StoreError::Conflict { .. })) => {}
                Err(e) => return Err(e),
            }
        }
        Err(LedgerError::Restless)
    }
}

/// Keys that begin with `prefix`.
async fn count(store: &dyn StateStore, prefix: &str) -> Result<u64, StoreError> {
    let mut pages = Pages::new(store, prefix, None);
    let mut keys = 0;
    while let Some(page) = pages.next().await? {
        keys += page.entries.len() as u64;
    }
    Ok(keys)
}
