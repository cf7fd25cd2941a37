//! Shared truth as it is changed: what each transaction may and may not do.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use vango_edge::clock::Clock;
use vango_edge::id::{AllocationId, Environment, Epoch, Host, OperationId};
use vango_edge::record::{
    Allocation, AllocationState, Operation, Record, RouteOwner, WakeState, key,
};
use vango_edge::store::{Op, StateStore, StoreError, Txn};

use crate::moves::Moves;
use crate::world::Sim;

/// Records as the last transaction left them.
#[derive(Default)]
pub struct Truth {
    operations: BTreeMap<Environment, Operation>,
    allocations: BTreeMap<AllocationId, Allocation>,
    /// The highest epoch that each host ever had.
    epochs: BTreeMap<String, Epoch>,
    /// Allocations that were given to a runner.
    ran: BTreeMap<AllocationId, ()>,
    /// Environments that a command puts to sleep just now.
    pub commanded: BTreeMap<Environment, u32>,
    /// What deployments, promotions and release commands come to.
    pub moves: Moves,
}

impl Truth {
    pub fn allocation(&self, id: &AllocationId) -> Option<Allocation> {
        self.allocations.get(id).cloned()
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }

    /// The newest epoch of a host.
    pub fn epoch(&self, host: &Host) -> Option<Epoch> {
        self.epochs.get(&host.to_string()).copied()
    }

    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values()
    }

    /// Failures in a row of one digest add up until a start has succeeded.
    fn failures_after(&self, next: &Operation) -> u32 {
        let failed = u32::from(next.state == WakeState::Failed && next.backoff_counts());
        match self.operations.get(&next.environment) {
            Some(before) if before.id == next.id && before.state == next.state => before.failures,
            Some(before) if before.id == next.id => before.failures + failed,
            Some(before) if before.digest == next.digest => match before.state {
                WakeState::Hot => 0,
                _ => before.failures,
            },
            _ => 0,
        }
    }
}

trait Counts {
    fn backoff_counts(&self) -> bool;
}

impl Counts for Operation {
    /// A node without room says nothing of the app.
    fn backoff_counts(&self) -> bool {
        self.failure.as_ref().is_none_or(|f| !f.safe.contains("as many apps as it may"))
    }
}

impl Sim {
    /// A transaction is about to be decided, and applied where its checks hold.
    pub async fn about_to_change(&self, txn: &Txn) {
        for op in &txn.ops {
            let Op::Put { key: at, lease: Some(_), .. } = op else { continue };
            let there = self.engine.get(at).now_or_never();
            let holds = txn.checks.iter().all(|check| {
                let entry = self.engine.get(check.key()).now_or_never();
                let entry = entry.and_then(Result::ok).flatten();
                check.holds(entry.map(|e| e.mod_revision))
            });
            if holds && matches!(there, Some(Ok(Some(_)))) {
                self.broken(format!("{at} is claimed while another executor has it"));
            }
        }
    }

    /// What became of it.
    pub fn changed(&self, txn: &Txn, answer: &Result<u64, StoreError>) {
        if let Err(StoreError::Conflict { .. }) = answer {
            let asks = |op: &Op| match op {
                Op::Put { key: at, value, .. } if at.starts_with(key::OPERATIONS) => {
                    Operation::decode(value).is_ok_and(|o| o.state == WakeState::WakeRequested)
                }
                _ => false,
            };
            if txn.ops.iter().any(asks) {
                self.happened("an ask lost its transaction");
            }
        }
        if answer.is_err() {
            return;
        }
        for op in &txn.ops {
            match op {
                Op::Put { key: at, value, .. } => self.put(at, value),
                Op::Delete { key: at } => self.deleted(at),
            }
        }
        self.moved(txn);
    }

    fn put(&self, at: &str, value: &[u8]) {
        if at.starts_with(key::OPERATIONS) {
            self.operation(Operation::decode(value).unwrap());
        } else if at.starts_with(key::ALLOCATIONS) {
            self.allocation(Allocation::decode(value).unwrap());
        } else if at.starts_with(key::OWNERS) {
            self.owner(&RouteOwner::decode(value).unwrap());
        }
    }

    fn deleted(&self, at: &str) {
        let Some(id) = at.strip_prefix(key::ALLOCATIONS).and_then(|r| r.rsplit('/').next()) else {
            return;
        };
        let id: AllocationId = id.parse().unwrap();
        self.note(|| format!("{id} is off the registry"));
        self.truth().allocations.remove(&id);
    }

    fn operation(&self, next: Operation) {
        let mut truth = self.truth();
        let before = truth.operations.get(&next.environment).cloned();
        let expected = truth.failures_after(&next);
        truth.operations.insert(next.environment.clone(), next.clone());
        drop(truth);
        self.note(|| format!("{} of {} is {}", next.id, next.environment, next.state.name()));
        if next.failures != expected {
            self.broken(format!("{} counts {} failures, not {expected}", next.id, next.failures));
        }
        let Some(before) = before else { return };
        if before.id != next.id {
            if before.state.in_progress() && before.epoch == next.epoch {
                self.broken(format!("{} replaces {}, which is in progress", next.id, before.id));
            }
            return;
        }
        if next.attempt > 1 && next.attempt > before.attempt {
            self.happened("an executor was lost");
        }
        if next.state == WakeState::Failed && before.state != WakeState::Failed {
            self.happened(if before.state == WakeState::Hot {
                "a wake failed after all"
            } else {
                "a start failed"
            });
        }
    }

    fn allocation(&self, next: Allocation) {
        let mut truth = self.truth();
        let before = truth.allocations.insert(next.id.clone(), next.clone());
        let state = before.as_ref().map(|a| a.state);
        let by_command = truth.commanded.contains_key(&next.environment);
        let same = |a: &&Allocation| {
            a.id != next.id
                && a.operation == next.operation
                && matches!(
                    a.state,
                    AllocationState::Planned | AllocationState::Starting | AllocationState::Ready
                )
        };
        let other = truth.allocations.values().find(same).map(|a| a.id.clone());
        drop(truth);
        self.note(|| {
            format!(
                "{} of {} (epoch {}) is {}",
                next.id,
                next.environment,
                next.epoch,
                next.state.name()
            )
        });
        if let Some(other) = other {
            self.broken(format!("{} has {} and {other}", next.operation, next.id));
        }
        let is_new = next.state == AllocationState::Planned || self.is_added(&next.id);
        if state.is_none() && !is_new {
            self.broken(format!("{} comes back as {:?}", next.id, next.state));
        }
        match (state, next.state) {
            (Some(AllocationState::Stopping), now) if now != AllocationState::Stopping => {
                self.broken(format!("{} comes back from the point of no return", next.id));
            }
            (Some(AllocationState::Frozen), AllocationState::Ready) => {
                self.happened("a frozen allocation was taken back");
            }
            (Some(AllocationState::Draining), AllocationState::Ready) => {
                self.happened("a draining allocation was taken back");
            }
            (Some(AllocationState::Ready), AllocationState::Draining) if !by_command => {
                self.happened("an idle environment went to sleep");
            }
            _ => {}
        }
    }

    fn owner(&self, next: &RouteOwner) {
        let host = next.host.to_string();
        let before = self.truth().epochs.insert(host.clone(), next.epoch);
        self.note(|| format!("{host} is {}'s under epoch {}", next.environment, next.epoch));
        if before.is_some_and(|before| next.epoch < before) {
            self.broken(format!("{host} goes from epoch {before:?} to {}", next.epoch));
        }
    }

    /// A process is about to be started.
    pub fn about_to_run(&self, id: &AllocationId, environment: &Environment) {
        if self.truth().ran.insert(id.clone(), ()).is_some() {
            self.broken(format!("{id} of {environment} is started twice"));
        }
        let recorded = self.engine.get(&key::allocation(environment, id)).now_or_never();
        let recorded = recorded.and_then(Result::ok).flatten();
        let recorded = recorded.map(|e| Allocation::decode(&e.value).unwrap().state);
        if !matches!(recorded, None | Some(AllocationState::Planned)) {
            self.broken(format!("{id} is started while its record says {recorded:?}"));
        }
    }

    /// Whether an operation is paused after a failure, as the newest snapshot shows it.
    pub fn is_paused(&self, environment: &Environment) -> Option<OperationId> {
        let snapshot = self.snapshots.load();
        let view = snapshot.environment(environment)?;
        let o = view.operation.as_ref().filter(|o| o.epoch == view.owner.epoch)?;
        o.backoff_until.is_some_and(|t| self.clock.now() < t).then(|| o.id.clone())
    }
}
