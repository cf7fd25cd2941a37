//! Performs wake operations, one executor each, detached from every request.
//!
//! An executor claims an operation under a lease, carries it through its states with a transaction
//! each, and lets go. Every transaction names the operation's and the claim's revision: an executor
//! that was paused past its lease changes nothing more and ends what it started. Losing an
//! executor makes the operation claimable; nothing is ever silently done.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::artifact::{ArtifactError, Artifacts};
use crate::clock::{Clock, Entropy, Mono};
use crate::contract::{self, Contract, Ready};
use crate::id::{AllocationId, DeploymentId, Environment, Generation, OperationId};
use crate::lifecycle::admit::Woke;
use crate::runner::{
    AdoptSpec, ProcessIdentity, ReadyCheck, ResourceLimits, Runner, StartError, StartSpec,
};
use crate::snapshot::SnapshotReader;
use crate::store::record::{
    Allocation, AllocationState, Deployment, Executor, Failure, Operation, Process, Record,
    RecordError, RouteOwner, Starts, WakeState, key,
};
use crate::store::{LeaseId, StateStore, StoreError, Txn};

use super::machine::{self, BackoffPolicy, Ensure, WakeEvent, advance, backoff};

/// How long a claim outlives an executor that stopped renewing it.
pub const CLAIM_TTL: Duration = Duration::from_secs(10);

/// How soon an ended allocation is looked at again whose start is still being recorded.
const EXIT_LOOK: Duration = Duration::from_millis(50);
/// From SIGTERM to SIGKILL for a process that never took a request.
const SUPERSEDED: Duration = Duration::from_secs(2);

/// How long an adopted process may take to prove that it is ready: it was, a moment ago.
const ADOPTION: Duration = Duration::from_secs(3);

/// Gives a process its secrets; the only place their values pass through here.
pub trait Secrets: Send + Sync {
    /// Name and value of each secret that `contract` names for `environment`.
    ///
    /// # Errors
    /// What is missing, by name, never by value.
    fn of(
        &self,
        environment: &Environment,
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

/// An allocation's record as it was read.
struct Found {
    at: String,
    record: Allocation,
    /// Of its last put.
    revision: u64,
    /// Of its first.
    created: u64,
}

/// Why a start did not come about; what the operation will say.
struct Trouble {
    failure: Failure,
}

impl Trouble {
    fn new(safe: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { failure: Failure { safe: safe.into(), detail: detail.into(), artifact: false } }
    }
}

impl From<ArtifactError> for Trouble {
    fn from(e: ArtifactError) -> Self {
        let (safe, detail) = (e.safe_cause().into(), e.to_string());
        Self { failure: Failure { safe, detail, artifact: e.is_artifact() } }
    }
}

impl From<StartError> for Trouble {
    fn from(e: StartError) -> Self {
        Self::new(e.safe_cause(), e.to_string())
    }
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

    /// The same, for those who wait already: nobody waits for the answer.
    pub fn wake_detached(self: &Arc<Self>, environment: &Environment) {
        drop(self.ask(environment));
    }

    /// Makes or joins the environment's wake, in one transaction. Tried again a few times when
    /// another one changes the records meanwhile.
    async fn ensure(&self, environment: &Environment) -> Woke {
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

    async fn ensure_once(&self, environment: &Environment) -> Result<Woke, Lost> {
        let view = {
            let snapshot = self.snapshots.load();
            snapshot.environment(environment).cloned()
        };
        let Some(view) = view else { return Ok(Woke::Unavailable) };
        let Some(host) = view.hosts.first() else { return Ok(Woke::Unavailable) };
        let owner_key = key::owner(host, "/");
        let operation_key = key::operation(environment);
        let Some(owner_entry) = self.store.get(&owner_key).await? else {
            return Ok(Woke::Unavailable);
        };
        let owner = RouteOwner::decode(&owner_entry.value)?;
        let stored = self.store.get(&operation_key).await?;
        let current = stored.as_ref().map(|e| Operation::decode(&e.value)).transpose()?;
        let id = OperationId::random(&*self.entropy);
        let (now, wall) = (self.clock.now(), self.clock.wall());
        match machine::ensure(current.as_ref(), &owner, &view, id, now, wall) {
            Ensure::Attach(id) => Ok(Woke::Operation { id, created: false }),
            // Both are about to be shown by the snapshot, and whoever waits is told then.
            Ensure::Ready | Ensure::Moved => Ok(Woke::Ready),
            Ensure::BackingOff => Ok(Woke::BackingOff),
            Ensure::Create(operation) => {
                let txn = Txn::new().unchanged(&owner_key, owner_entry.mod_revision);
                let txn = match &stored {
                    Some(e) => txn.unchanged(&operation_key, e.mod_revision),
                    None => txn.absent(&operation_key),
                };
                self.store.txn(txn.put(&operation_key, operation.encode())).await?;
                Ok(Woke::Operation { id: operation.id, created: true })
            }
        }
    }

    /// Takes up the environment's operation if it is in progress, nobody has it, and this process
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
        let Ok(_permit) = self.starts.acquire().await else { return Err(Lost::Claim) };
        let mut claim = self.claim(environment, began).await?;
        // Dropped, and so ended, with this function.
        let renewing = AbortOnDrop(tokio::spawn(renew(Arc::clone(&self.store), claim.lease)));
        let outcome = self.perform(&mut claim).await;
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

    async fn perform(&self, claim: &mut Claim) -> Result<(), Lost> {
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
        match self.start(claim, &allocation).await {
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

    /// Takes back an allocation that is still in memory, if there is one: a frozen one is thawed, one
    /// that is only draining goes on. Whether it did; if not, nothing of the environment is left.
    async fn resume(&self, claim: &mut Claim) -> Result<bool, Lost> {
        // Bounded: each turn but the last follows a change that somebody else made.
        for _ in 0..5 {
            let left = self.recorded(&claim.operation.environment).await?;
            let fit = machine::resumable(&claim.operation, left.iter().map(|f| &f.record));
            let fit = fit.map(|a| a.id.clone());
            let Some(found) = left.into_iter().find(|f| Some(&f.record.id) == fit.as_ref()) else {
                return Ok(false);
            };
            let began = self.clock.now();
            if found.record.state == AllocationState::Frozen
                && let Err(e) = self.runner.thaw(&found.record.id).await
            {
                let Allocation { environment, id, .. } = &found.record;
                log::warn!("{environment}: {id} was not thawed: {e}");
                self.forget(claim, found).await?;
                continue;
            }
            let Found { at, record, revision, .. } = found;
            let ready = Allocation {
                state: AllocationState::Ready,
                operation: claim.operation.id.clone(),
                ..record
            };
            let thaw_us = micros(self.clock.now().since(began));
            let event = WakeEvent::Resumed { allocation: ready.id.clone(), thaw_us };
            let value = ready.encode();
            match self.commit(claim, event, |t| t.unchanged(&at, revision).put(&at, value)).await {
                Ok(()) => return Ok(true),
                // It went further on its way to sleep, or the claim is lost: the next turn knows.
                Err(Lost::Claim) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Lost::Claim)
    }

    /// The environment's allocations.
    async fn recorded(&self, environment: &Environment) -> Result<Vec<Found>, Lost> {
        let page = self.store.list(&key::allocations(environment), None, 1000).await?;
        let decoded = page.entries.into_iter().map(|(at, entry)| {
            Ok(Found {
                record: Allocation::decode(&entry.value)?,
                revision: entry.mod_revision,
                created: entry.create_revision,
                at,
            })
        });
        decoded.collect()
    }

    /// Ends what is left of an allocation and takes it off the registry, for as long as the claim
    /// holds.
    async fn forget(&self, claim: &Claim, found: Found) -> Result<(), Lost> {
        self.end_recorded(&found.record, SUPERSEDED).await;
        let executor = key::executor(&claim.operation.environment);
        let txn = Txn::new().unchanged(executor, claim.executor_revision);
        let txn = txn.unchanged(&found.at, found.revision).delete(&found.at);
        match self.store.txn(txn).await {
            Ok(_) => Ok(()),
            // Who put it to sleep, or saw its end, has taken it off meanwhile; or the claim is lost,
            // and the next transaction finds that out.
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn fail(
        &self,
        claim: &mut Claim,
        allocation: &AllocationId,
        trouble: Trouble,
    ) -> Result<(), Lost> {
        let environment = claim.operation.environment.clone();
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

    /// From a claimed operation to a ready allocation.
    async fn start(
        &self,
        claim: &mut Claim,
        allocation: &AllocationId,
    ) -> Result<Result<(), Trouble>, Lost> {
        let environment = claim.operation.environment.clone();
        let operation = &claim.operation;
        let contract = match self.contract(&environment, &operation.deployment).await? {
            Ok(contract) => contract,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let root = match self.artifacts.tree(&claim.operation.digest).await {
            Ok(root) => root,
            Err(e) => return Ok(Err(e.into())),
        };
        let mut env: Vec<_> =
            contract.process.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        match self.secrets.of(&environment, &contract) {
            Ok(secrets) => env.extend(secrets),
            Err(missing) => {
                return Ok(Err(Trouble::new("a secret is not configured", missing)));
            }
        }
        // Recorded before anything is spawned: a crash from here on leaves no process that no
        // record names.
        let (generation, mut record) = self.plan(claim, allocation, &environment).await?;
        let spec = StartSpec {
            allocation: allocation.clone(),
            environment: environment.clone(),
            generation,
            epoch: claim.operation.epoch,
            digest: claim.operation.digest,
            root,
            command: contract.process.command.clone(),
            env,
            ready: ready_check(&contract),
            start_timeout: contract.wake.start_timeout,
            limits: ResourceLimits::default(),
            host: self.host_of(&environment),
        };
        let at = self.clock.now();
        let started = match self.runner.start(spec).await {
            Ok(started) => started,
            Err(e) => return Ok(Err(e.into())),
        };
        let spawned_at = self.clock.now();
        record.state = AllocationState::Starting;
        record.address = Some(started.address);
        record.process = Some(to_process(&started.identity));
        let spawn_us = micros(spawned_at.since(at));
        let allocation_key = key::allocation(&environment, allocation);
        let value = record.encode();
        self.commit(claim, WakeEvent::Spawned { spawn_us }, |t| t.put(&allocation_key, value))
            .await?;
        if let Err(e) = self.runner.ready(allocation).await {
            return Ok(Err(e.into()));
        }
        record.state = AllocationState::Ready;
        record.ready = Some(self.clock.wall());
        let ready_us = micros(self.clock.now().since(spawned_at));
        let value = record.encode();
        self.commit(claim, WakeEvent::Ready { ready_us }, |t| t.put(&allocation_key, value))
            .await?;
        Ok(Ok(()))
    }

    async fn contract(
        &self,
        environment: &Environment,
        deployment: &DeploymentId,
    ) -> Result<Result<Contract, Trouble>, Lost> {
        let at = key::deployment(environment, deployment);
        let Some(entry) = self.store.get(&at).await? else {
            return Ok(Err(Trouble::new("the deployment is gone", format!("no record {at}"))));
        };
        let deployment = Deployment::decode(&entry.value)?;
        let file = std::path::Path::new("vango-edge.toml");
        Ok(contract::parse(file, &deployment.contract).map_err(|errors| {
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Trouble::new("the artifact's contract cannot be read", all.join("; "))
        }))
    }

    async fn plan(
        &self,
        claim: &mut Claim,
        allocation: &AllocationId,
        environment: &Environment,
    ) -> Result<(Generation, Allocation), Lost> {
        let starts_key = key::starts(environment);
        let stored = self.store.get(&starts_key).await?;
        let last = stored.as_ref().map(|e| Starts::decode(&e.value)).transpose()?;
        let generation = last.map_or(Generation(0), |s| s.generation).next();
        let record = Allocation {
            id: allocation.clone(),
            environment: environment.clone(),
            generation,
            epoch: claim.operation.epoch,
            digest: claim.operation.digest,
            state: AllocationState::Planned,
            address: None,
            process: None,
            operation: claim.operation.id.clone(),
            created: self.clock.wall(),
            ready: None,
        };
        let artifact_us = micros(self.clock.now().since(claim.began));
        let event = WakeEvent::Planned { allocation: allocation.clone(), artifact_us };
        let value = record.encode();
        self.commit(claim, event, |txn| {
            let txn = match &stored {
                Some(e) => txn.unchanged(&starts_key, e.mod_revision),
                None => txn.absent(&starts_key),
            };
            txn.put(&starts_key, Starts { generation }.encode())
                .put(key::allocation(environment, allocation), value)
        })
        .await?;
        Ok((generation, record))
    }

    pub(super) fn host_of(&self, environment: &Environment) -> String {
        let snapshot = self.snapshots.load();
        let host = snapshot.environment(environment).and_then(|v| v.hosts.first().cloned());
        host.map_or_else(|| "localhost".into(), |h| h.to_string())
    }

    /// What must be gone before another is started: what an executor before this one may have left,
    /// and what is on its way out. The latter has had its SIGTERM and nothing in flight; since someone
    /// waits now, it gets less time than its contract gives it.
    async fn end_earlier_attempts(&self, claim: &Claim) -> Result<(), Lost> {
        for found in self.recorded(&claim.operation.environment).await? {
            if found.record.epoch > claim.operation.epoch {
                // A promotion is starting it for the next owner.
                continue;
            }
            // One that is newer than the claim is another executor's: this one was paused past its
            // lease.
            let earlier = found.created < claim.executor_revision;
            let ends = matches!(
                found.record.state,
                AllocationState::Planned | AllocationState::Starting | AllocationState::Stopping
            );
            if earlier && ends {
                self.forget(claim, found).await?;
            }
        }
        Ok(())
    }

    /// Takes over the running allocation of a record that an earlier process of this node wrote;
    /// `owner` is the environment's.
    ///
    /// # Errors
    /// Why not, for the log. It may run still.
    pub async fn adopt(&self, left: &Allocation, owner: &RouteOwner) -> Result<(), String> {
        let (Some(address), Some(process)) = (left.address, &left.process) else {
            return Err("its record names no process".into());
        };
        let contract = match self.contract(&left.environment, &owner.deployment).await {
            Ok(Ok(contract)) => contract,
            Ok(Err(trouble)) => return Err(trouble.failure.detail),
            Err(e) => return Err(e.to_string()),
        };
        let spec = AdoptSpec {
            allocation: left.id.clone(),
            environment: left.environment.clone(),
            generation: left.generation,
            identity: to_identity(process),
            address,
            ready: (left.state != AllocationState::Frozen).then(|| ready_check(&contract)),
            host: owner.host.to_string(),
            within: ADOPTION,
        };
        self.runner.adopt(spec).await.map_err(|e| e.to_string())?;
        if left.state == AllocationState::Frozen {
            // The earlier process may have died between a thaw and its record.
            self.runner.freeze(&left.id).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Ends the process of a record, whether this process started it or an earlier one did: SIGTERM,
    /// after `grace` SIGKILL.
    pub async fn end_recorded(&self, left: &Allocation, grace: Duration) {
        if let Err(e) = self.runner.stop(&left.id, grace).await {
            log::error!("{} could not be ended: {e}", left.id);
        }
        let identity = left.process.as_ref().map(to_identity);
        if let Err(e) = self.runner.end_leftover(identity.as_ref(), &left.id, grace).await {
            log::error!(
                "{}: what is left of {} could not be ended: {e}",
                left.environment,
                left.id
            );
        }
    }

    async fn end(&self, allocation: &AllocationId) {
        if let Err(e) = self.runner.stop(allocation, SUPERSEDED).await {
            log::error!("{allocation} could not be ended: {e}");
        }
    }

    /// An allocation ended by itself. Its record goes; if it ended right after it was ready, the
    /// wake that started it has failed after all, and backs off.
    ///
    /// # Errors
    /// [`StoreError`] when the record could not be changed; the caller tries again.
    pub async fn exited(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        how: &str,
    ) -> Result<(), StoreError> {
        let (mut conflicts, until) = (0, self.clock.now() + CLAIM_TTL);
        while conflicts < 5 {
            match self.exited_once(environment, allocation, how).await {
                Ok(true) => return Ok(()),
                // Its executor may have seen it ready before it ended, and be about to write that:
                // without another look, the record of a dead process would stay. An executor that
                // is lost writes nothing more, and the next one ends what it left.
                Ok(false) if self.clock.now() < until => tokio::time::sleep(EXIT_LOOK).await,
                Ok(false) => return Ok(()),
                Err(Lost::Claim) => conflicts += 1,
                Err(Lost::Store(e)) => return Err(e),
                Err(Lost::Record(e)) => {
                    log::error!("{environment}: {e}");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// `false` while its executor has yet to record what became of the start.
    async fn exited_once(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        how: &str,
    ) -> Result<bool, Lost> {
        let at = key::allocation(environment, allocation);
        let Some(entry) = self.store.get(&at).await? else { return Ok(true) };
        let record = Allocation::decode(&entry.value)?;
        if matches!(record.state, AllocationState::Planned | AllocationState::Starting) {
            // Its executor is waiting for it and will say what happened.
            return Ok(false);
        }
        let mut txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
        let operation_key = key::operation(environment);
        let lived = record.ready.map(|r| self.clock.wall().since(r));
        if lived.is_some_and(|d| d < machine::PROVED)
            && let Some(stored) = self.store.get(&operation_key).await?
        {
            let operation = Operation::decode(&stored.value)?;
            if operation.allocation.as_ref() == Some(allocation)
                && operation.state == WakeState::Hot
            {
                let pause = backoff(self.backoff, operation.failures, self.entropy.next_u64());
                let failure = Failure {
                    safe: "it ended right after it became ready".into(),
                    detail: format!("{allocation}: {how}, right after it became ready"),
                    artifact: false,
                };
                let next = self.step(&operation, WakeEvent::Failed { failure, backoff: pause })?;
                txn = txn
                    .unchanged(&operation_key, stored.mod_revision)
                    .put(&operation_key, next.encode())
                    .put(key::history(next.requested, &next.id), next.encode());
            }
        }
        self.store.txn(txn).await?;
        Ok(true)
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

pub(super) fn ready_check(contract: &Contract) -> ReadyCheck {
    match &contract.process.ready {
        Ready::Http { path } => ReadyCheck::Http { path: path.clone() },
        Ready::Tcp => ReadyCheck::Tcp,
        Ready::Notify => ReadyCheck::Notify,
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn to_process(i: &ProcessIdentity) -> Process {
    Process {
        pid: i.pid,
        start_time: i.start_time,
        boot_id: i.boot_id.clone(),
        cgroup: i.cgroup.clone(),
    }
}

fn to_identity(p: &Process) -> ProcessIdentity {
    ProcessIdentity {
        pid: p.pid,
        start_time: p.start_time,
        boot_id: p.boot_id.clone(),
        cgroup: p.cgroup.clone(),
    }
}
