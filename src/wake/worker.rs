//! Performs wake operations, one executor each, detached from every request.
//!
//! An executor claims an operation under a lease, carries it through its states with a transaction
//! each, and lets go. Every transaction names the operation's and the claim's revision: an executor
//! that was paused past its lease changes nothing more and ends what it started. Losing an
//! executor makes the operation claimable; nothing is ever silently done.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::artifact::Artifacts;
use crate::clock::{Clock, Entropy, Mono};
use crate::contract::Contract;
use crate::id::{AllocationId, Environment, OperationId};
use crate::lifecycle::admit::Woke;
use crate::runner::Runner;
use crate::snapshot::SnapshotReader;
use crate::store::record::{Executor, Operation, Record, RecordError, RouteOwner, key};
use crate::store::{LeaseId, StateStore, StoreError, Txn};

use super::machine::{self, BackoffPolicy, Ensure, WakeEvent, advance, backoff};

mod back;
mod leave;
mod resume;
pub(super) mod start;

use start::Trouble;

/// How long a claim outlives an executor that stopped renewing it.
pub const CLAIM_TTL: Duration = Duration::from_secs(10);

/// From SIGTERM to SIGKILL for a process that never took a request.
const SUPERSEDED: Duration = Duration::from_secs(2);

/// Gives a process its secrets; the only place their values pass through here.
pub trait Secrets: Send + Sync {
    /// Name and value of each secret that `contract` names for `environment`, and of those that the
    /// edge itself gives `allocation`.
    ///
    /// # Errors
    /// What is missing, by name, never by value.
    fn of(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        contract: &Contract,
    ) -> Result<Vec<(String, String)>, String>;
}

/// Told what the worker did, for metrics.
pub trait Observer: Send + Sync {
    /// An operation reached a terminal state.
    fn finished(&self, operation: &Operation);
}

/// What the worker works with.
pub struct Worker {
    /// This node's name in executor records.
    pub node: String,
    /// Shared truth.
    pub store: Arc<dyn StateStore>,
    /// Starts and ends processes.
    pub runner: Arc<dyn Runner>,
    /// Verified trees of artifacts.
    pub artifacts: Arc<Artifacts>,
    /// What routing sees.
    pub snapshots: SnapshotReader,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Values of secrets.
    pub secrets: Arc<dyn Secrets>,
    /// Spacing of starts after failures.
    pub backoff: BackoffPolicy,
    /// Starts at the same time; first come, first served.
    pub starts: Semaphore,
    /// Where finished operations are told.
    pub observer: Arc<dyn Observer>,
    /// Where detached work runs: never inside the request that asked.
    pub runtime: tokio::runtime::Handle,
    /// Environments whose operation this process executes now.
    pub executing: Mutex<HashSet<Environment>>,
    /// Allocations that refused a connection and are being looked at.
    pub doubted: Mutex<HashSet<AllocationId>>,
    /// Environments for which a wake is being asked for now, and where its answer comes.
    pub asking: Mutex<HashMap<Environment, watch::Receiver<Option<Woke>>>>,
}

/// Why an executor stopped without a terminal state.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// Someone else has the operation, or it is over.
    #[error("the claim is lost")]
    Claim,
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<StoreError> for Lost {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict { .. } => Self::Claim,
            e => Self::Store(e),
        }
    }
}

/// An operation in hand: what every further transaction is conditioned on.
struct Claim {
    operation: Operation,
    revision: u64,
    executor_revision: u64,
    lease: LeaseId,
    began: Mono,
}

impl Worker {
    /// Asks for a wake: one transaction for all who ask at the same time. It goes on without the
    /// caller.
    pub async fn wake(self: &Arc<Self>, environment: &Environment) -> Woke {
        let (mut answer, first) = self.ask(environment);
        let woke = match answer.wait_for(Option::is_some).await {
            Ok(woke) => woke.clone(),
            Err(_) => None,
        };
        match woke {
            Some(Woke::Operation { id, created }) => {
                Woke::Operation { id, created: created && first }
            }
            Some(woke) => woke,
            None => Woke::Unavailable,
        }
    }

    fn ask(self: &Arc<Self>, environment: &Environment) -> (watch::Receiver<Option<Woke>>, bool) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = asking.get(environment) {
            return (answer.clone(), false);
        }
        let (tell, answer) = watch::channel(None);
        asking.insert(environment.clone(), answer.clone());
        let (worker, environment) = (Arc::clone(self), environment.clone());
        self.runtime.spawn(async move {
            let woke = worker.ensure(&environment).await;
            // Off the table first: who asks from here on asks again.
            let mut asking = worker.asking.lock().unwrap_or_else(PoisonError::into_inner);
            asking.remove(&environment);
            drop(asking);
            tell.send_replace(Some(woke));
        });
        (answer, true)
    }

    /// The same for requests that wait already: the caller does not wait for the answer.
    pub fn wake_detached(self: &Arc<Self>, environment: &Environment) {
        drop(self.ask(environment));
    }

    /// Makes or joins the environment's wake, in one transaction. Tried again a few times when
    /// another one changes the records meanwhile.
    async fn ensure(self: &Arc<Self>, environment: &Environment) -> Woke {
        for _ in 0..5 {
            match self.ensure_once(environment).await {
                Ok(woke) => return woke,
                Err(Lost::Claim) => {}
                Err(e) => {
                    log::warn!("wake of {environment}: {e}");
                    return Woke::Unavailable;
                }
            }
        }
        Woke::Unavailable
    }

    async fn ensure_once(self: &Arc<Self>, environment: &Environment) -> Result<Woke, Lost> {
        let view = {
            let snapshot = self.snapshots.load();
            snapshot.environment(environment).cloned()
        };
        let Some(view) = view else { return Ok(Woke::Unavailable) };
        let Some(host) = view.hosts.first() else { return Ok(Woke::Unavailable) };
        let owner_key = key::owner(host, "/");
        let operation_key = key::operation(environment);
        // At once: each is a visit to a thread that may wait for the disk.
        let (owner_entry, stored) =
            tokio::try_join!(self.store.get(&owner_key), self.store.get(&operation_key))?;
        let Some(owner_entry) = owner_entry else { return Ok(Woke::Unavailable) };
        let owner = RouteOwner::decode(&owner_entry.value)?;
        let current = stored.as_ref().map(|e| Operation::decode(&e.value)).transpose()?;
        let id = OperationId::random(&*self.entropy);
        let (now, wall) = (self.clock.now(), self.clock.wall());
        match machine::ensure(current.as_ref(), &owner, &view, id, now, wall) {
            Ensure::Attach(id) => Ok(Woke::Operation { id, created: false }),
            // Both are about to be shown by the snapshot, and held requests are told then.
            Ensure::Ready | Ensure::Moved => Ok(Woke::Ready),
            Ensure::BackingOff => Ok(Woke::BackingOff),
            Ensure::Create(operation) => {
                let txn = Txn::new().unchanged(&owner_key, owner_entry.mod_revision);
                let txn = match &stored {
                    Some(e) => txn.unchanged(&operation_key, e.mod_revision),
                    None => txn.absent(&operation_key),
                };
                if view.in_memory().is_some() && self.take_back(&operation, txn.clone()).await? {
                    return Ok(Woke::Operation { id: operation.id, created: true });
                }
                self.store.txn(txn.put(&operation_key, operation.encode())).await?;
                Ok(Woke::Operation { id: operation.id, created: true })
            }
        }
    }

    /// Takes up the environment's operation if it is in progress, no executor has it, and this process
    /// is not at it already. Returns at once; the work is detached.
    pub fn consider(self: &Arc<Self>, environment: &Environment) {
        let snapshot = self.snapshots.load();
        let in_progress = snapshot
            .environment(environment)
            .and_then(|v| v.operation.as_ref())
            .is_some_and(|o| o.state.in_progress());
        if !in_progress || !self.executing().insert(environment.clone()) {
            return;
        }
        let (worker, environment) = (Arc::clone(self), environment.clone());
        self.runtime.spawn(async move {
            let outcome = worker.execute(&environment).await;
            worker.executing().remove(&environment);
            match &outcome {
                Ok(()) => {}
                Err(Lost::Claim) => log::debug!("wake of {environment}: the claim is another's"),
                Err(e) => log::warn!("wake of {environment}: given up, claimable again: {e}"),
            }
            if outcome.is_err() {
                // Normally a claim's end or a new operation brings the next executor; but what was
                // published while this one was leaving found it still here.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            worker.consider(&environment);
        });
    }

    fn executing(&self) -> std::sync::MutexGuard<'_, HashSet<Environment>> {
        self.executing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn execute(&self, environment: &Environment) -> Result<(), Lost> {
        let began = self.clock.now();
        // The semaphore is never closed.
        let Ok(turn) = self.starts.acquire().await else { return Err(Lost::Claim) };
        let mut claim = self.claim(environment, began).await?;
        // Dropped, and so ended, with this function.
        let renewing = AbortOnDrop(tokio::spawn(renew(Arc::clone(&self.store), claim.lease)));
        let outcome = self.perform(&mut claim, &mut Some(turn)).await;
        drop(renewing);
        let _ = self.store.lease_revoke(claim.lease).await;
        outcome
    }

    async fn claim(&self, environment: &Environment, began: Mono) -> Result<Claim, Lost> {
        let operation_key = key::operation(environment);
        let entry = self.store.get(&operation_key).await?.ok_or(Lost::Claim)?;
        let operation = Operation::decode(&entry.value)?;
        if !operation.state.in_progress() {
            return Err(Lost::Claim);
        }
        let executor_key = key::executor(environment);
        let reserve_us = micros(self.clock.now().since(began));
        let next = self.step(&operation, WakeEvent::Claimed { reserve_us })?;
        let lease = self.store.lease_grant(CLAIM_TTL).await?;
        let executor =
            Executor { node: self.node.clone(), operation: next.id.clone(), attempt: next.attempt };
        let txn = Txn::new()
            .absent(&executor_key)
            .unchanged(&operation_key, entry.mod_revision)
            .put_leased(&executor_key, executor.encode(), lease)
            .put(&operation_key, next.encode());
        match self.store.txn(txn).await {
            Ok(revision) => {
                Ok(Claim { operation: next, revision, executor_revision: revision, lease, began })
            }
            Err(e) => {
                let _ = self.store.lease_revoke(lease).await;
                Err(e.into())
            }
        }
    }

    fn step(&self, operation: &Operation, event: WakeEvent) -> Result<Operation, Lost> {
        advance(operation, event, self.clock.wall()).map_err(|e| {
            log::warn!("{e}");
            Lost::Claim
        })
    }

    /// One transition, in one transaction with whatever else `with` adds to it.
    async fn commit(
        &self,
        claim: &mut Claim,
        event: WakeEvent,
        with: impl FnOnce(Txn) -> Txn,
    ) -> Result<(), Lost> {
        let next = self.step(&claim.operation, event)?;
        let operation_key = key::operation(&next.environment);
        let mut txn = Txn::new()
            .unchanged(&operation_key, claim.revision)
            .unchanged(key::executor(&next.environment), claim.executor_revision)
            .put(&operation_key, next.encode());
        if !next.state.in_progress() {
            txn = txn.put(key::history(next.requested, &next.id), next.encode());
        }
        claim.revision = self.store.txn(with(txn)).await?;
        claim.operation = next;
        Ok(())
    }

    async fn perform<'w>(
        &'w self,
        claim: &mut Claim,
        turn: &mut Option<SemaphorePermit<'w>>,
    ) -> Result<(), Lost> {
        let environment = claim.operation.environment.clone();
        self.end_earlier_attempts(claim).await?;
        if self.resume(claim).await? {
            log::info!(
                "{environment} is awake again: {} in {:?}",
                claim.operation.id,
                claim.operation.phases.total()
            );
            self.observer.finished(&claim.operation);
            return Ok(());
        }
        let allocation = AllocationId::random(&*self.entropy);
        match self.start(claim, &allocation, turn).await {
            Ok(Ok(())) => {
                log::info!(
                    "{environment} is awake: {} {} in {:?}",
                    claim.operation.id,
                    allocation,
                    claim.operation.phases.total()
                );
                self.observer.finished(&claim.operation);
                Ok(())
            }
            Ok(Err(trouble)) => {
                self.end(&allocation).await;
                self.fail(claim, &allocation, trouble).await
            }
            Err(lost) => {
                self.end(&allocation).await;
                Err(lost)
            }
        }
    }

    async fn fail(
        &self,
        claim: &mut Claim,
        allocation: &AllocationId,
        trouble: Trouble,
    ) -> Result<(), Lost> {
        let environment = claim.operation.environment.clone();
        if trouble.no_room {
            log::warn!(
                "{environment} did not start, and no request waits for it: {}",
                trouble.failure.detail
            );
            let event = WakeEvent::NoRoom { failure: trouble.failure };
            self.commit(claim, event, |txn| txn).await?;
            self.observer.finished(&claim.operation);
            return Ok(());
        }
        let pause = backoff(self.backoff, claim.operation.failures, self.entropy.next_u64());
        let tail = self.runner.log_tail(allocation, 2048).unwrap_or_default();
        log::warn!(
            "{environment} did not start ({}): {}; next try not before {pause:?}\n{}",
            claim.operation.id,
            trouble.failure.detail,
            tail.trim_end()
        );
        let event = WakeEvent::Failed { failure: trouble.failure, backoff: pause };
        let gone = key::allocation(&environment, allocation);
        self.commit(claim, event, |txn| txn.delete(gone)).await?;
        self.observer.finished(&claim.operation);
        Ok(())
    }
}

/// Keeps a claim's lease alive for as long as it is polled.
pub async fn renew(store: Arc<dyn StateStore>, lease: LeaseId) {
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

/// A task that ends when this is dropped.
pub struct AbortOnDrop(pub tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
