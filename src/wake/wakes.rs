//! Wakes that requests ask for: one operation for all of them.
//!
//! An allocation that is still in memory is taken back at once, in one transaction. A wake that starts
//! something is recorded before each step, because a process that no record names
//! must not outlive a crash. Taking back starts nothing: the process and its record are there, and a
//! thaw can be undone and repeated. So the operation is made, claimed and over in one record, with the
//! allocation's, instead of in three transactions, two lists and a lease, each of which a request
//! waits for. What each of them was for is kept:
//!
//! - *Started once*: nothing is started here. The transaction makes the operation only if no other one
//!   was made since it was decided (`unchanged` or `absent` of the operation's key), so of two who ask,
//!   on this node or another, one wins, and the other one finds an allocation that is ready.
//! - *Epochs*: the transaction holds only if the owner is still the one that was decided under, and the
//!   allocation is of that epoch and digest.
//! - *The point of no return*: it holds only if the allocation's record is as it was read. An allocation
//!   that went on to `stopping` is left to its end.
//! - *One executor*: for as long as this takes, the environment counts as being executed here, so that
//!   no executor of this node thaws or freezes the same process. Another node's has no hold on it.
//! - *A crash* before the transaction leaves the record `frozen`, whatever the process does; the
//!   edge that adopts it freezes it again. After it, the allocation is ready and the operation over: there
//!   is no state in between from which an executor would have to go on.
//!
//! Whatever does not fit takes the long way: an executor carries the operation on ([`WakeWork`]), which starts
//! over from the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::oneshot;

use crate::clock::Wall;
use crate::id::{AllocationId, Environment, OperationId};
use crate::lifecycle::journey::Woke;
use crate::node::{Found, Node, as_read};
use crate::record::{Allocation, AllocationState, Operation, Record, RouteOwner, WakeState, key};
use crate::store::{StoreError, Txn};

use super::allocations::{Allocations, Back, InMemory, SUPERSEDED};
use super::executor::{Executor, LeaseClaim, Leased, Lost, Work};
use super::exits::Exits;
use super::starts::{NotStarted, StartPermit, StartRequest, StartStep, Starter, Starts};
use vango_edge_core::wake::machine::{self, BackoffPolicy, Ensure, WakeEvent, advance, backoff};

/// Tries when another transaction changes the records meanwhile.
const TRIES: u32 = 5;

/// What came of asking, for each caller that waits for it; told in the order in which they asked.
type Answer = Shared<oneshot::Receiver<Woke>>;

/// Asks for wakes.
pub struct Wakes {
    /// Carries them out.
    pub executor: Arc<Executor<WakeWork>>,
    /// Environments for which a wake is being asked for now, and where its answer comes.
    asking: Mutex<HashMap<Environment, Answer>>,
}

impl Wakes {
    pub fn new(executor: Arc<Executor<WakeWork>>) -> Arc<Self> {
        Arc::new(Self { executor, asking: Mutex::default() })
    }

    /// Asks for a wake: one transaction for all who ask at the same time. It goes on without the
    /// caller.
    pub async fn wake(self: &Arc<Self>, environment: &Environment) -> Woke {
        let (answer, first) = self.ask(environment);
        match answer.await {
            Ok(Woke::Operation { id, created }) => {
                Woke::Operation { id, created: created && first }
            }
            Ok(woke) => woke,
            // The task that asked is gone without a word.
            Err(_) => Woke::Unavailable,
        }
    }

    /// The same for requests that wait already: the caller does not wait for the answer.
    pub fn wake_detached(self: &Arc<Self>, environment: &Environment) {
        drop(self.ask(environment));
    }

    fn asking(&self) -> MutexGuard<'_, HashMap<Environment, Answer>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(self: &Arc<Self>, environment: &Environment) -> (Answer, bool) {
        let mut asking = self.asking();
        if let Some(answer) = asking.get(environment) {
            return (answer.clone(), false);
        }
        let (tell, answer) = oneshot::channel();
        let answer = answer.shared();
        asking.insert(environment.clone(), answer.clone());
        let (wakes, environment) = (Arc::clone(self), environment.clone());
        self.executor.node.runtime.spawn(async move {
            let woke = wakes.ensure(&environment).await;
            // Off the table first: a caller that comes from here on asks anew.
            wakes.asking().remove(&environment);
            // The callers may have left.
            let _ = tell.send(woke);
        });
        (answer, true)
    }

    /// Makes or joins the environment's wake, in one transaction. Tried again a few times when
    /// another one changes the records meanwhile.
    async fn ensure(&self, environment: &Environment) -> Woke {
        for _ in 0..TRIES {
            match self.ensure_once(environment).await {
                Ok(woke) => return woke,
                Err(Lost::Claim | Lost::Raced) => {}
                Err(e) => {
                    log::warn!("wake of {environment}: {e}");
                    return Woke::Unavailable;
                }
            }
        }
        Woke::Unavailable
    }

    async fn ensure_once(&self, environment: &Environment) -> Result<Woke, Lost> {
        let node = &self.executor.node;
        let Some(view) = node.view(environment) else { return Ok(Woke::Unavailable) };
        let Some(host) = view.hosts.first() else { return Ok(Woke::Unavailable) };
        // A request that was held while the app came to be one without a process.
        if view.contract.is_static {
            return Ok(Woke::Unavailable);
        }
        let owner_key = key::owner(host, "/");
        let operation_key = key::operation(environment);
        // At once: each is a visit to a thread that may wait for the disk.
        let (owner, stored) = tokio::try_join!(
            node.read::<RouteOwner>(&owner_key),
            node.read::<Operation>(&operation_key)
        )?;
        let Some(owner) = owner else { return Ok(Woke::Unavailable) };
        let current = stored.as_ref().map(|f| &f.record);
        let id = OperationId::random(&*node.entropy);
        let (now, wall) = (node.clock.now(), node.clock.wall());
        match machine::ensure(current, &owner.record, &view, id, now, wall) {
            Ensure::Attach(id) => Ok(Woke::Operation { id, created: false }),
            // Both are about to be shown by the snapshot, and held requests are told then.
            Ensure::Ready | Ensure::Moved => Ok(Woke::Ready),
            Ensure::BackingOff => Ok(Woke::BackingOff),
            Ensure::Create(operation) => {
                let txn = as_read(owner.unchanged(), &operation_key, stored.as_ref());
                if view.in_memory().is_none() || !self.take_back(&operation, txn.clone()).await? {
                    node.store.txn(txn.put(&operation_key, operation.encode())).await?;
                }
                Ok(Woke::Operation { id: operation.id, created: true })
            }
        }
    }

    /// Takes back what `operation`, which is not stored yet, would find in memory. `txn` has the checks
    /// under which it may be made. `false` when nothing fits, and an executor has to start one.
    async fn take_back(&self, operation: &Operation, txn: Txn) -> Result<bool, Lost> {
        let environment = &operation.environment;
        let Some(_kept_off) = self.executor.keep_off(environment) else { return Ok(false) };
        let WakeWork { node: Node { clock, store, .. }, allocations, observer, .. } =
            &self.executor.work;
        let began = clock.now();
        let back = match allocations.back(operation).await? {
            InMemory::Nothing => return Ok(false),
            InMemory::Stuck(found, why) => {
                log::debug!("{environment}: {} was not thawed: {why}", found.record.id);
                return Ok(false);
            }
            InMemory::Back(back) => back,
        };
        let reserved = clock.now().since(began).saturating_sub(back.thaw);
        let (reserve_us, thaw_us) = (micros(reserved), micros(back.thaw));
        let taken = machine::taken_back(operation, &back.id, reserve_us, thaw_us, clock.wall());
        let Ok(taken) = taken else { return Ok(false) };
        let txn = txn
            .put(key::operation(environment), taken.encode())
            .put(key::history(taken.requested, &taken.id), taken.encode())
            .and(back.txn.clone());
        if let Err(e) = store.txn(txn).await {
            allocations.undo(&back).await;
            return Err(e.into());
        }
        debug_assert_eq!(taken.state, WakeState::Hot);
        let took = taken.phases.total();
        log::info!("{environment} is awake again: {} {} in {took:?}", taken.id, back.id);
        observer.finished(&taken);
        Ok(true)
    }
}

/// Told what became of wakes, for metrics.
pub trait Observer: Send + Sync {
    /// An operation reached a terminal state.
    fn finished(&self, operation: &Operation);
}

/// What an executor does with a wake: takes back what is in memory, or starts an allocation.
pub struct WakeWork {
    node: Node,
    starts: Arc<Starts>,
    allocations: Arc<Allocations>,
    exits: Arc<Exits>,
    observer: Arc<dyn Observer>,
    backoff: BackoffPolicy,
}

impl Leased for Operation {
    type Subject = Environment;
    type Event = WakeEvent;
    const NAME: &'static str = "wake";
    /// Nothing of a wake outlives a power cut.
    const SYNCED: bool = false;
    const EXECUTORS: &'static str = key::EXECUTORS;

    fn at(environment: &Environment) -> String {
        key::operation(environment)
    }
    fn kept_at(&self) -> String {
        key::history(self.requested, &self.id)
    }
    fn attempt(&self) -> (&OperationId, u32) {
        (&self.id, self.attempt)
    }
    fn state(&self) -> (&'static str, bool) {
        (self.state.name(), self.state.in_progress())
    }
    fn claimed(after: Duration) -> WakeEvent {
        WakeEvent::Claimed { reserve_us: micros(after) }
    }
    fn after(&self, event: WakeEvent, now: Wall) -> Result<Self, String> {
        advance(self, event, now).map_err(|e| e.to_string())
    }
}

/// Records the steps of a start under a wake's claim, with how long each took.
struct Claimed<'a>(&'a Node, &'a mut LeaseClaim<Operation>);

impl Starter for Claimed<'_> {
    async fn record(&mut self, step: StartStep, id: &AllocationId, txn: Txn) -> Result<(), Lost> {
        let event = match step {
            StartStep::Planned(waited) => {
                // What is typical of the app is told without its wait for a place.
                let took = self.0.clock.now().since(self.1.began + waited);
                WakeEvent::Planned { allocation: id.clone(), artifact_us: micros(took) }
            }
            StartStep::Spawned(took) => WakeEvent::Spawned { spawn_us: micros(took) },
            StartStep::Ready(took) => WakeEvent::Ready { ready_us: micros(took) },
        };
        self.1.commit(event, txn).await
    }
}

impl Work for WakeWork {
    type Of = Operation;
    type Permit = StartPermit;

    async fn permit(&self) -> StartPermit {
        self.starts.permit().await
    }

    async fn carry(
        &self,
        claim: &mut LeaseClaim<Operation>,
        permit: StartPermit,
    ) -> Result<(), Lost> {
        self.end_earlier_attempts(claim).await?;
        if !self.resume(claim).await? {
            self.start(claim, permit).await?;
        }
        let o = claim.record();
        if let (WakeState::Hot, Some(id)) = (o.state, &o.allocation) {
            log::info!("{} is awake: {} {id} in {:?}", o.environment, o.id, o.phases.total());
        }
        self.observer.finished(o);
        Ok(())
    }

    fn is_open(&self, environment: &Environment) -> bool {
        let view = self.node.view(environment);
        view.and_then(|v| v.operation.as_ref().map(|o| o.state.in_progress())).unwrap_or_default()
    }
}

impl WakeWork {
    /// Starts that fail are spaced by `backoff`.
    pub fn new(
        node: Node,
        starts: Arc<Starts>,
        allocations: Arc<Allocations>,
        exits: Arc<Exits>,
        observer: Arc<dyn Observer>,
        backoff: BackoffPolicy,
    ) -> Self {
        Self { node, starts, allocations, exits, observer, backoff }
    }

    /// Starts an allocation, or records why there is none.
    async fn start(
        &self,
        claim: &mut LeaseClaim<Operation>,
        mut permit: StartPermit,
    ) -> Result<(), Lost> {
        let id = AllocationId::random(&*self.node.entropy);
        let Operation { environment, deployment, digest, epoch, id: operation, .. } =
            claim.record().clone();
        let wanted = StartRequest { environment, deployment, digest, epoch, operation };
        let mut by = Claimed(&self.node, claim);
        let Err(e) = self.starts.start(&mut by, &wanted, &id, &mut permit).await else {
            return Ok(());
        };
        self.allocations.end_started(&id, SUPERSEDED).await;
        let (environment, operation) = (&wanted.environment, &wanted.operation);
        match e {
            NotStarted::Lost(lost) => {
                if matches!(lost, Lost::Read(_)) {
                    // A transaction without an answer may have been committed.
                    self.exits.ended_unheard(environment, &id);
                }
                Err(lost)
            }
            NotStarted::NoRoom(failure) => {
                let why = &failure.detail;
                log::warn!("{environment} did not start, and no request waits for it: {why}");
                claim.commit(WakeEvent::NoRoom { failure }, Txn::new()).await
            }
            NotStarted::Failed(failure) => {
                let pick = self.node.entropy.next_u64();
                let pause = backoff(self.backoff, claim.record().failures, pick);
                let tail = self.starts.tail(&id);
                log::warn!(
                    "{environment} did not start ({operation}): {}; next try not before {pause:?}\n{}",
                    failure.detail,
                    tail.trim_end()
                );
                let event = WakeEvent::Failed { failure, backoff: pause };
                let gone = Txn::new().delete(key::allocation(environment, &id));
                claim.commit(event, gone).await
            }
        }
    }

    /// Takes back an allocation that is still in memory, if there is one: a frozen one is thawed, one
    /// that is only draining goes on. Whether it did; if not, nothing of the environment is left.
    async fn resume(&self, claim: &mut LeaseClaim<Operation>) -> Result<bool, Lost> {
        // Bounded: each try but the last follows a change by another transaction.
        for _ in 0..5 {
            let Back { id, thaw, txn, .. } = match self.allocations.back(claim.record()).await? {
                InMemory::Nothing => return Ok(false),
                InMemory::Stuck(found, why) => {
                    let Allocation { environment, id, .. } = &found.record;
                    log::warn!("{environment}: {id} was not thawed: {why}");
                    self.forget(claim, &found).await?;
                    continue;
                }
                InMemory::Back(back) => back,
            };
            let event = WakeEvent::Resumed { allocation: id, thaw_us: micros(thaw) };
            match claim.commit(event, txn).await {
                Ok(()) => return Ok(true),
                // It went further on its way to sleep: the next try finds that out.
                Err(Lost::Raced) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Lost::Raced)
    }

    /// What must be gone before another is started: what an executor before this one may have left,
    /// and what is on its way out. The latter has had its SIGTERM and nothing in flight; since a request
    /// waits now, it gets less time than its contract gives it.
    async fn end_earlier_attempts(&self, claim: &LeaseClaim<Operation>) -> Result<(), Lost> {
        let operation = claim.record();
        let all = self.node.all::<Allocation>(&key::allocations(&operation.environment)).await?;
        for found in all {
            if found.record.epoch > operation.epoch {
                // A promotion is starting it for the next owner.
                continue;
            }
            // One that is newer than the claim is another executor's: this one was paused past its
            // lease.
            let earlier = found.created < claim.claimed;
            let ends = matches!(
                found.record.state,
                AllocationState::Planned | AllocationState::Starting | AllocationState::Stopping
            );
            if earlier && ends {
                self.forget(claim, &found).await?;
            }
        }
        Ok(())
    }

    /// Ends what is left of an allocation and takes it off the registry, for as long as the claim
    /// holds.
    async fn forget(
        &self,
        claim: &LeaseClaim<Operation>,
        found: &Found<Allocation>,
    ) -> Result<(), StoreError> {
        let under = claim.holds().and(found.unchanged());
        // If it does not hold: what put it to sleep, or saw its end, has taken it off meanwhile; or the
        // claim is lost, and the next transaction finds that out.
        self.allocations.end(&found.record, SUPERSEDED, under).await.map(|_| ())
    }
}

pub(super) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
