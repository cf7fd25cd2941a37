//! How environments fall asleep: which are idle, and in two phases how: no new requests, and once nothing
//! is in flight the process is frozen or stopped.
//!
//! Between the two nothing is lost. A request that comes while an allocation drains finds nothing
//! ready and asks for a wake, which takes the same allocation back. One that still looks at an older
//! snapshot finds the allocation sealed, and waits for that wake. The change to `stopping` is the
//! point of no return: a wake that finds it lets the process end, and starts the next.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vango_edge_core::control::allocations::{self as plan, Drain, FrozenOne, SleepFor};

use crate::clock::Mono;
use crate::contract::SleepMode;
use crate::id::{AllocationId, Environment};
use crate::node::{Found, Node};
use crate::record::{Allocation, AllocationState};
use crate::snapshot::{Load, Snapshot};
use crate::sockets::Sockets;
use crate::store::StoreError;
use crate::wake::hold::HoldQueues;
use crate::wake::{Allocations, Froze, Wakes};

use super::workers::Workers;

/// How often idleness is looked at, and what is frozen; more often where an app that is up asks for
/// less, down to the shortest.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);

/// Pause between two looks at what drains.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Pause between two rounds in which the sockets of what drains are told when they end.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// What was put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slept {
    /// Allocations that were stopped.
    pub stopped: usize,
    /// Allocations that are frozen now.
    pub frozen: usize,
}

/// What this process has seen of allocations: when first, and, once frozen, what they hold.
#[derive(Default)]
struct Seen {
    ready: HashMap<AllocationId, Mono>,
    frozen: HashMap<AllocationId, (Mono, u64)>,
    /// The shortest idle time among the contracts of what is up.
    shortest: Option<Duration>,
}

/// Puts environments to sleep.
pub struct Sleeper {
    node: Node,
    allocations: Arc<Allocations>,
    sockets: Arc<Sockets>,
    queues: Arc<HoldQueues>,
    wakes: Arc<Wakes>,
    workers: Arc<Workers>,
    /// Environments that are being put to sleep now.
    sleeping: Mutex<HashSet<Environment>>,
}

impl Sleeper {
    /// What was taken back meanwhile concerns `queues`; what a contract keeps up goes to `wakes`.
    pub fn new(
        node: Node,
        allocations: Arc<Allocations>,
        queues: Arc<HoldQueues>,
        sockets: Arc<Sockets>,
        wakes: Arc<Wakes>,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let sleeping = Mutex::default();
        Arc::new(Self { node, allocations, sockets, queues, wakes, workers, sleeping })
    }

    /// Puts idle environments to sleep, stops what has been frozen long enough, and wakes what its
    /// contract keeps up, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut seen = Seen::default();
        loop {
            let shortest = seen.shortest.unwrap_or(LOOK_EVERY) / 5;
            tokio::time::sleep(shortest.clamp(LOOK_EVERY_MIN, LOOK_EVERY)).await;
            let snapshot = Arc::clone(&self.node.snapshots.load());
            self.look_at_ready(&snapshot, &mut seen);
            self.look_at_frozen(&snapshot, &mut seen).await;
        }
    }

    fn look_at_ready(self: &Arc<Self>, snapshot: &Snapshot, seen: &mut Seen) {
        let now = self.node.clock.now();
        let ready: HashMap<_, _> = snapshot
            .environments()
            .flat_map(|e| &e.ready)
            .map(|a| (a.id.clone(), seen.ready.get(&a.id).copied().unwrap_or(now)))
            .collect();
        seen.ready = ready;
        let up = snapshot.environments().filter(|v| !v.ready.is_empty());
        seen.shortest = up.filter_map(|v| v.contract.sleep.after).min();
        for view in snapshot.environments() {
            if plan::wants_one_started(view) {
                self.wakes.wake_detached(&view.environment);
            }
            let Some(newest) = view.ready.iter().filter_map(|a| seen.ready.get(&a.id)).max() else {
                continue;
            };
            if plan::is_idle(view, *newest, now) {
                self.sleep_detached(&view.environment, SleepFor::Idleness);
            }
        }
    }

    async fn look_at_frozen(self: &Arc<Self>, snapshot: &Snapshot, seen: &mut Seen) {
        let (mut frozen, mut own) = (Vec::new(), HashMap::new());
        for view in snapshot.environments() {
            // They go with the owner's allocation: what they hold is counted once, with that.
            let mut beside = self.workers.frozen_bytes(&view.environment);
            for a in view.others.iter().filter(|a| a.state == AllocationState::Frozen) {
                let known = seen.frozen.get(&a.id).copied();
                let (since, bytes) = match known {
                    Some(known) => known,
                    // What stands still does not grow.
                    None => (self.node.clock.now(), self.allocations.memory(&a.id).await),
                };
                let current = view.has_authority(a.epoch, &a.digest);
                own.insert(a.id.clone(), (since, bytes));
                let beside = if current { std::mem::take(&mut beside) } else { 0 };
                frozen.push(FrozenOne {
                    id: a.id.clone(),
                    environment: view.environment.clone(),
                    since,
                    bytes: bytes.saturating_add(beside),
                    keep_for: view.contract.sleep.freeze_for,
                    current,
                });
            }
        }
        seen.frozen = own;
        let cap = self.node.config.load().runner.frozen_memory;
        for out in plan::kept_long_enough(&frozen, cap, self.node.clock.now()) {
            let sleeper = Arc::clone(self);
            tokio::spawn(async move {
                match sleeper.stop_frozen(&out.environment, Some(&out.id)).await {
                    Ok(0) => {}
                    Ok(_) => {
                        log::info!("{}: {} is not kept frozen longer", out.environment, out.id)
                    }
                    Err(e) => log::warn!("{}: {} was not stopped: {e}", out.environment, out.id),
                }
            });
        }
    }

    pub(super) fn sleep_detached(self: &Arc<Self>, environment: &Environment, why: SleepFor) {
        let (sleeper, environment) = (Arc::clone(self), environment.clone());
        tokio::spawn(async move {
            if let Err(e) = sleeper.sleep(&environment, why).await {
                log::warn!("{environment} was not put to sleep: {e}");
            }
        });
    }

    /// Puts `environment` to sleep now: its ready allocations take no new requests; those in flight
    /// finish, for a command within the contract's `process.drain_timeout`; then the processes are
    /// frozen or stopped, as the contract says. A command stops what is frozen already.
    ///
    /// # Errors
    /// [`StoreError`] when a record cannot be changed; what was not drained goes on serving.
    pub async fn sleep(
        &self,
        environment: &Environment,
        why: SleepFor,
    ) -> Result<Slept, StoreError> {
        {
            let mut sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
            if !sleeping.insert(environment.clone()) {
                return Ok(Slept::default());
            }
        }
        let outcome = self.sleep_once(environment, why).await;
        self.sleeping.lock().unwrap_or_else(PoisonError::into_inner).remove(environment);
        outcome
    }

    async fn sleep_once(
        &self,
        environment: &Environment,
        why: SleepFor,
    ) -> Result<Slept, StoreError> {
        let mut slept = Slept::default();
        let mut draining = Vec::new();
        if why == SleepFor::Command {
            slept.stopped += self.stop_frozen(environment, None).await?;
        }
        let view = self.node.view(environment);
        // A promotion started it for the next owner.
        let next = |a: &Allocation| view.as_ref().is_some_and(|v| a.epoch > v.owner.epoch);
        for found in self.allocations.of(environment).await? {
            if next(&found.record) {
                continue;
            }
            match found.record.state {
                AllocationState::Ready => {
                    let state = AllocationState::Draining;
                    draining.extend(self.allocations.change(found, state).await?);
                }
                AllocationState::Draining => draining.push(found),
                // A wake is at work on it, or it sleeps, or another one ends it.
                AllocationState::Planned
                | AllocationState::Starting
                | AllocationState::Frozen
                | AllocationState::Stopping => {}
            }
        }
        for found in draining {
            let step = self.put_to_sleep(environment, found, why).await?;
            slept.stopped += step.stopped;
            slept.frozen += step.frozen;
        }
        if slept != Slept::default() {
            log::info!("{environment} sleeps");
        }
        Ok(slept)
    }

    /// From `draining` to `frozen` or to its end, or back to `ready`.
    async fn put_to_sleep(
        &self,
        environment: &Environment,
        found: Found<Allocation>,
        why: SleepFor,
    ) -> Result<Slept, StoreError> {
        let known = self.node.allocation(environment, &found.record.id);
        let load = known.map(|a| Arc::clone(&a.load));
        let sealed = self.drained(environment, &found, load.as_deref(), why).await;
        let outcome = if sealed {
            self.freeze_or_stop(environment, found).await
        } else {
            self.allocations.change(found, AllocationState::Ready).await.map(|_| Slept::default())
        };
        if !matches!(outcome, Ok(slept) if slept != Slept::default())
            && let Some(load) = load
        {
            // A wake took it back meanwhile, or nothing could be recorded: it serves on.
            load.unseal();
            self.queues.pump(environment);
        }
        outcome
    }

    async fn freeze_or_stop(
        &self,
        environment: &Environment,
        found: Found<Allocation>,
    ) -> Result<Slept, StoreError> {
        let kept = self.node.view(environment).is_some_and(|v| {
            v.contract.sleep.mode == SleepMode::Freeze
                && v.has_authority(found.record.epoch, &found.record.digest)
        });
        if kept {
            match self.allocations.freeze(&found).await? {
                Froze::Yes => return Ok(Slept { frozen: 1, stopped: 0 }),
                Froze::TakenBack => return Ok(Slept::default()),
                Froze::No => {}
            }
        }
        let stopped = self.allocations.stop(found).await?;
        Ok(Slept { stopped: usize::from(stopped), frozen: 0 })
    }

    /// Stops what is frozen: `only` this one, or all of the environment.
    pub(super) async fn stop_frozen(
        &self,
        environment: &Environment,
        only: Option<&AllocationId>,
    ) -> Result<usize, StoreError> {
        let mut stopped = 0;
        for found in self.allocations.of(environment).await? {
            let wanted = found.record.state == AllocationState::Frozen
                && only.is_none_or(|id| found.record.id == *id);
            if wanted && self.allocations.stop(found).await? {
                stopped += 1;
            }
        }
        Ok(stopped)
    }

    /// Waits until the allocation is sealed; `false` when it is to take requests again.
    async fn drained(
        &self,
        environment: &Environment,
        found: &Found<Allocation>,
        load: Option<&Load>,
        why: SleepFor,
    ) -> bool {
        // Not routed: no request can be on it.
        let Some(load) = load else { return true };
        let allocation = &found.record.id;
        let started = self.node.clock.now();
        let mut told: Option<Mono> = None;
        loop {
            let Some(view) = self.node.view(environment) else { return load.seal() };
            let routed = view.ready.iter().any(|a| a.id == *allocation);
            // Without this a command waits its whole limit for what serves again.
            if routed && self.is_taken_back(environment, found).await {
                return false;
            }
            let waited = self.node.clock.now().since(started);
            let limit = view.contract_of(allocation).process.drain_timeout;
            let sockets = load.sockets();
            let idle = why == SleepFor::Idleness;
            let now = self.node.clock.now();
            if !routed && sockets > 0 && told.is_none_or(|at| now.since(at) >= TELL_AGAIN) {
                // One that was being accepted meanwhile is told in the next round.
                self.sockets.asleep(allocation, plan::sockets_end(why, started, limit));
                told = Some(now);
            }
            // An idle app's sockets carry nothing, by its contract: they do not make it busy.
            let busy = load.in_flight() + if idle { 0 } else { sockets };
            match plan::drain(why, routed, busy, waited, limit) {
                Drain::Resume => return false,
                Drain::Cut => {
                    load.seal_anyway();
                    return true;
                }
                // A request that was decided on an older snapshot may have been quicker.
                Drain::Seal if sockets == 0 && load.seal() => return true,
                Drain::Seal | Drain::Wait => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Whether a wake changed the record since. The snapshot cannot say: one that shows the allocation as
    /// ready may be from before it was draining.
    async fn is_taken_back(&self, environment: &Environment, found: &Found<Allocation>) -> bool {
        let all = self.allocations.of(environment).await;
        all.is_ok_and(|all| !all.iter().any(|f| f.at == found.at && f.revision == found.revision))
    }
}
