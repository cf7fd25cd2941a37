//! Leased work, for wakes, promotions and orders of certificates alike: one executor at a time, and a record that says how far it is.
//!
//! An [`Executor`] claims a record under a lease, carries it through its states with a transaction each, and
//! lets go. Every transaction names the record's and the claim's revision: an executor that was paused past
//! its lease changes nothing more. Losing an executor makes the record claimable; it is never silently done.

use std::collections::HashSet;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::clock::{Mono, Wall};
use crate::crash;
use crate::id::OperationId;
use crate::node::{Node, ReadError};
use crate::record::{Executor as ExecutorRecord, Record};
use crate::store::{LeaseId, StateStore, StoreError, Txn};

/// Pause before what an executor gave up is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// What an executor does with what it claimed.
pub trait Work: Send + Sync + 'static {
    /// The record that it carries out.
    type Of: Leased;
    /// What is waited for before anything is claimed.
    type Permit: Send;

    /// Waits until it may begin.
    fn permit(&self) -> impl Future<Output = Self::Permit> + Send;
    /// Carries it on to a terminal state.
    fn carry(
        &self,
        claim: &mut LeaseClaim<Self::Of>,
        permit: Self::Permit,
    ) -> impl Future<Output = Result<(), Lost>> + Send;
    /// Whether this node knows that there is something to carry out. Asked again after each execution, since
    /// what was published meanwhile was passed over.
    fn is_open(&self, subject: &SubjectOf<Self>) -> bool;
}

/// What `W` is about: an environment, or a host.
pub type SubjectOf<W> = <<W as Work>::Of as Leased>::Subject;

/// Carries out one kind of work on this node, one executor for each subject, detached from the
/// requests that asked.
pub struct Executor<W: Work> {
    pub(super) node: Node,
    pub(super) work: W,
    /// Subjects that this process is at now.
    at_work: Mutex<HashSet<SubjectOf<W>>>,
}

impl<W: Work> Executor<W> {
    pub fn new(node: Node, work: W) -> Arc<Self> {
        Arc::new(Self { node, work, at_work: Mutex::default() })
    }

    /// Takes up the subject's record if this process is not at it already. Returns at once; the
    /// work is detached.
    pub fn consider(self: &Arc<Self>, subject: &SubjectOf<W>) {
        if !self.at_work().insert(subject.clone()) {
            return;
        }
        let (executor, subject) = (Arc::clone(self), subject.clone());
        self.node.runtime.spawn(async move {
            let outcome = executor.execute(&subject).await;
            executor.at_work().remove(&subject);
            if let Err(e) = outcome {
                let name = W::Of::NAME;
                match e {
                    Lost::Claim | Lost::Raced => {
                        log::debug!("{name} of {subject}: the claim is another's");
                    }
                    Lost::Read(e) => {
                        log::warn!("{name} of {subject}: given up, claimable again: {e}");
                    }
                }
                // Normally a claim's end or a new record brings the next executor; but what was
                // published while this one was leaving found it still here.
                tokio::time::sleep(AGAIN).await;
            }
            executor.consider_if_open(&subject);
        });
    }

    /// The same, if this node knows that there is something to carry out.
    pub fn consider_if_open(self: &Arc<Self>, subject: &SubjectOf<W>) {
        if self.work.is_open(subject) {
            self.consider(subject);
        }
    }

    /// Keeps this node's executor off the subject, for what is done without a claim. `None` while it is
    /// being executed.
    pub(super) fn keep_off<'a>(
        self: &'a Arc<Self>,
        subject: &'a SubjectOf<W>,
    ) -> Option<KeptOff<'a, W>> {
        let is_free = self.at_work().insert(subject.clone());
        // Made only where it is the caller's: dropping it lets the executor in, and takes the lock for it.
        is_free.then(|| KeptOff(self, subject))
    }

    /// Lets go of what an earlier process of this node had claimed: the state directory's lock says that
    /// it is gone. Returns how many claims that were.
    ///
    /// # Errors
    /// [`StoreError`]; what was not let go of ends with its lease.
    pub async fn let_go_of_claims(&self) -> Result<usize, StoreError> {
        let mut released = 0;
        for (at, entry) in self.node.listed(W::Of::EXECUTORS).await? {
            if ExecutorRecord::decode(&entry.value).is_ok_and(|e| *e.node == *self.node.name) {
                let txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
                self.node.store.txn(txn).await?;
                released += 1;
            }
        }
        Ok(released)
    }

    fn at_work(&self) -> MutexGuard<'_, HashSet<SubjectOf<W>>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn execute(&self, subject: &SubjectOf<W>) -> Result<(), Lost> {
        let began = self.node.clock.now();
        let permit = self.work.permit().await;
        let mut claim = LeaseClaim::take(self.node.clone(), subject, began).await?;
        // Aborted when dropped, with this function at the latest.
        let mut renewed = JoinSet::new();
        renewed.spawn(renew(Arc::clone(&self.node.store), claim.lease));
        let outcome = self.work.carry(&mut claim, permit).await;
        drop(renewed);
        // Whatever the record says: if it is not over, another executor may claim it.
        let _ = self.node.store.lease_revoke(claim.lease).await;
        outcome
    }
}

/// A subject that this node's executor leaves alone until this is dropped.
pub(super) struct KeptOff<'a, W: Work>(&'a Arc<Executor<W>>, &'a SubjectOf<W>);

impl<W: Work> Drop for KeptOff<'_, W> {
    fn drop(&mut self) {
        self.0.at_work().remove(self.1);
        // What was published meanwhile was passed over.
        self.0.consider_if_open(self.1);
    }
}

/// How long a claim outlives an executor that stopped renewing it.
pub(super) const CLAIM_TTL: Duration = Duration::from_secs(10);

/// A record of work that is carried out under a lease. A subject has one of a kind at a time.
pub trait Leased: Record + Clone + Send + Sync + 'static {
    /// What it is about.
    type Subject: Clone + Eq + Hash + Display + Send + Sync + 'static;
    /// What happens to it.
    type Event: Send;
    /// As crash points and the log name it.
    const NAME: &'static str;
    /// Whether each step is on disk before the next one begins.
    const SYNCED: bool;
    /// Prefix of the records of its executors.
    const EXECUTORS: &'static str;

    fn at(subject: &Self::Subject) -> String;
    /// Where it is kept once it is over.
    fn kept_at(&self) -> String;
    /// Its id, and the attempt that an executor claimed.
    fn attempt(&self) -> (&OperationId, u32);
    /// Its state's name, and whether it goes on.
    fn state(&self) -> (&'static str, bool);
    /// An executor took it up, so long after it began to try.
    fn claimed(after: Duration) -> Self::Event;
    /// The record after `event`.
    ///
    /// # Errors
    /// The state has no such exit: our own bug, or an executor that lost its claim.
    fn after(&self, event: Self::Event, now: Wall) -> Result<Self, String>;

    /// The key of its executor.
    fn executor_at(subject: &Self::Subject) -> String {
        format!("{}{subject}", Self::EXECUTORS)
    }
}

/// Why an executor stopped without a terminal state, or a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another executor has it, or it is over.
    #[error("the claim is lost")]
    Claim,
    /// What a step stands on was changed by another transaction; a claim is still held.
    #[error("what it stands on changed meanwhile")]
    Raced,
    /// The store cannot be used, or a record not be read.
    #[error(transparent)]
    Read(ReadError),
}

impl From<ReadError> for Lost {
    fn from(e: ReadError) -> Self {
        if e.is_conflict() { Self::Raced } else { Self::Read(e) }
    }
}

impl From<StoreError> for Lost {
    fn from(e: StoreError) -> Self {
        ReadError::from(e).into()
    }
}

/// A record that is claimed: what every further transaction is conditioned on.
pub struct LeaseClaim<L: Leased> {
    node: Node,
    subject: L::Subject,
    /// As it is stored.
    record: L,
    revision: u64,
    /// The revision of the claim: what was made before it is an earlier executor's.
    pub(super) claimed: u64,
    lease: LeaseId,
    /// When its executor began to try.
    pub(super) began: Mono,
}

impl<L: Leased> LeaseClaim<L> {
    pub fn record(&self) -> &L {
        &self.record
    }

    async fn take(node: Node, subject: &L::Subject, began: Mono) -> Result<Self, Lost> {
        let found = node.read::<L>(&L::at(subject)).await?.ok_or(Lost::Claim)?;
        if !found.record.state().1 {
            return Err(Lost::Claim);
        }
        let event = L::claimed(node.clock.now().since(began));
        let next = after(&found.record, event, node.clock.wall())?;
        let lease = node.store.lease_grant(CLAIM_TTL).await?;
        let (id, attempt) = next.attempt();
        let executor =
            ExecutorRecord { node: node.name.to_string(), operation: id.clone(), attempt };
        let at = L::executor_at(subject);
        let txn = found
            .unchanged()
            .absent(&at)
            .put_leased(&at, executor.encode(), lease)
            .put(&found.at, next.encode());
        match write(&*node.store, &next, txn).await {
            Ok(revision) => {
                let subject = subject.clone();
                let claimed = revision;
                Ok(Self { node, subject, record: next, revision, claimed, lease, began })
            }
            Err(e) => {
                let _ = node.store.lease_revoke(lease).await;
                Err(e.into())
            }
        }
    }

    /// A transaction that holds only while the claim does.
    pub fn holds(&self) -> Txn {
        Txn::new().unchanged(L::executor_at(&self.subject), self.claimed)
    }

    /// Puts `value` under the claim's lease: it goes when the executor lets go, or is lost.
    pub fn put_leased(&self, at: &str, value: impl Into<Bytes>) -> Txn {
        Txn::new().put_leased(at, value, self.lease)
    }

    /// One transition, in one transaction with `more`.
    ///
    /// # Errors
    /// [`Lost::Raced`] when `more` does not hold, and the claim does.
    pub async fn commit(&mut self, event: L::Event, more: Txn) -> Result<(), Lost> {
        let next = after(&self.record, event, self.node.clock.wall())?;
        let at = L::at(&self.subject);
        let mut txn = self.holds().unchanged(&at, self.revision).put(&at, next.encode());
        if !next.state().1 {
            txn = txn.put(next.kept_at(), next.encode());
        }
        match write(&*self.node.store, &next, txn.and(more)).await {
            Ok(revision) => {
                self.revision = revision;
                self.record = next;
                Ok(())
            }
            Err(StoreError::Conflict { key })
                if key == at || key == L::executor_at(&self.subject) =>
            {
                Err(Lost::Claim)
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// The record after `event`; what the state has no exit for is said in the log.
pub(super) fn after<L: Leased>(record: &L, event: L::Event, now: Wall) -> Result<L, Lost> {
    record.after(event, now).map_err(|e| {
        log::warn!("{e}");
        Lost::Claim
    })
}

async fn write<L: Leased>(store: &dyn StateStore, next: &L, txn: Txn) -> Result<u64, StoreError> {
    let state = next.state().0;
    crash::before(L::NAME, state);
    let revision = store.txn(if L::SYNCED { txn.synced() } else { txn }).await?;
    crash::after(L::NAME, state);
    Ok(revision)
}

/// Keeps a claim's lease alive for as long as it is polled.
async fn renew(store: Arc<dyn StateStore>, lease: LeaseId) {
    // Ends with the executor that spawned it; a lease that is gone ends it too.
    loop {
        tokio::time::sleep(CLAIM_TTL / 3).await;
        if let Err(e) = store.lease_keep_alive(lease).await
            && !e.retryable()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::id::Environment;
    use crate::record::Operation;
    use crate::store::{MemoryStore, Options};

    /// Has nothing to carry out.
    struct Idle;

    impl Work for Idle {
        type Of = Operation;
        type Permit = ();
        async fn permit(&self) {}
        async fn carry(&self, _: &mut LeaseClaim<Operation>, (): ()) -> Result<(), Lost> {
            Ok(())
        }
        fn is_open(&self, _: &Environment) -> bool {
            false
        }
    }

    fn executor() -> Arc<Executor<Idle>> {
        let clock = Arc::new(ManualClock::new());
        let store = Arc::new(MemoryStore::new(clock.clone(), Options::default()).unwrap());
        Executor::new(Node::over(store, clock), Idle)
    }

    #[tokio::test]
    async fn an_environment_that_is_kept_off_stays_so_when_another_asks_in_vain() {
        let (executor, environment) = (executor(), "studylab".parse().unwrap());
        let kept_off = executor.keep_off(&environment);
        assert!(kept_off.is_some());
        for _ in 0..2 {
            assert!(executor.keep_off(&environment).is_none());
        }
        drop(kept_off);
        assert!(executor.keep_off(&environment).is_some());
    }
}
