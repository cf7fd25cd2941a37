//! Ends allocations whose epoch is over: the owner has moved on, so that they get no new request.
//! Requests in flight finish within the contract's `process.drain_timeout`; live sockets stay as long, and
//! are told then to come back, apart from each other.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::clock::Mono;
use crate::id::{AllocationId, Environment};
use crate::store::record::{Allocation, AllocationState, Record, key};
use crate::store::{StoreError, Txn};

use super::plan::retire::Retiring;
use super::{Control, plan};

/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Pause between two looks at what drains.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Pause between two rounds in which the sockets of what drains are told when they end.
const TELL_AGAIN: Duration = Duration::from_millis(500);

impl Control {
    /// Ends what is over, for as long as the process runs.
    pub async fn retire(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let snapshot = Arc::clone(&self.snapshots.load());
            for view in snapshot.environments() {
                for a in view.others.iter().filter(|a| plan::retire::is_over(a, view.owner.epoch)) {
                    self.retire_detached(&view.environment, &a.id);
                }
            }
        }
    }

    fn retire_detached(self: &Arc<Self>, environment: &Environment, id: &AllocationId) {
        let mut retiring = self.retiring.lock().unwrap_or_else(PoisonError::into_inner);
        if !retiring.insert(id.clone()) {
            return;
        }
        drop(retiring);
        let (control, environment, id) = (Arc::clone(self), environment.clone(), id.clone());
        tokio::spawn(async move {
            match control.retire_one(&environment, &id).await {
                Ok(true) => log::info!("{environment}: {id} ended, its epoch is over"),
                Ok(false) => {}
                Err(e) => log::warn!("{environment}: {id} was not ended: {e}"),
            }
            let mut retiring = control.retiring.lock().unwrap_or_else(PoisonError::into_inner);
            retiring.remove(&id);
        });
    }

    async fn retire_one(
        &self,
        environment: &Environment,
        id: &AllocationId,
    ) -> Result<bool, StoreError> {
        let at = key::allocation(environment, id);
        let Some(entry) = self.store.get(&at).await? else { return Ok(false) };
        let Ok(record) = Allocation::decode(&entry.value) else { return Ok(false) };
        let mut revision = entry.mod_revision;
        if record.state == AllocationState::Ready {
            let draining = Allocation { state: AllocationState::Draining, ..record.clone() };
            let txn = Txn::new().unchanged(&at, revision).put(&at, draining.encode());
            match self.store.txn(txn).await {
                Ok(now) => revision = now,
                // It ended, or another one is at it.
                Err(StoreError::Conflict { .. }) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.emptied(environment, id).await;
        self.worker.end_recorded(&record, self.stop_timeout(environment)).await;
        match self.store.txn(Txn::new().unchanged(&at, revision).delete(&at)).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until nothing is open in it, or the limits are over; it gets nothing more then. Its live
    /// sockets are told to end, apart from each other, at the drain limit.
    async fn emptied(&self, environment: &Environment, id: &AllocationId) {
        let started = self.clock.now();
        let mut told: Option<Mono> = None;
        loop {
            let (load, process) = {
                let snapshot = self.snapshots.load();
                let Some(view) = snapshot.environment(environment) else { return };
                let found = view.ready.iter().chain(&view.others).find(|a| a.id == *id);
                // Not routed: no request can be on it.
                let Some(found) = found else { return };
                (Arc::clone(&found.load), view.contract.process.clone())
            };
            let now = self.clock.now();
            let (in_flight, sockets) = (load.in_flight(), load.sockets());
            if sockets > 0 && told.is_none_or(|at| now.since(at) >= TELL_AGAIN) {
                // One that was being accepted meanwhile is told in the next round.
                self.sockets.drain(id, started + process.drain_timeout);
                told = Some(now);
            }
            match plan::retire::retire(in_flight, sockets, now.since(started), &process) {
                // A request that was decided on an older snapshot may have been quicker.
                Retiring::End if load.seal() => return,
                Retiring::Cut => {
                    load.seal_anyway();
                    return;
                }
                Retiring::End | Retiring::Wait => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}
