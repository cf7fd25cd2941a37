//! Ends allocations whose epoch is over: the owner has moved on, so that they get no new request.
//! What is in flight finishes, live sockets included, within the contract's `process.stop_timeout`.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::id::{AllocationId, Environment};
use crate::store::record::{Allocation, AllocationState, Record, key};
use crate::store::{StoreError, Txn};

use super::{Control, plan};

/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Pause between two looks at what drains.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Control {
    /// Ends what is over, for as long as the process runs.
    pub async fn retire(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let snapshot = Arc::clone(&self.snapshots.load());
            for view in snapshot.environments() {
                for a in view.others.iter().filter(|a| plan::is_over(a, view.owner.epoch)) {
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

    /// Waits until nothing is in flight in it, or the limit is over.
    async fn emptied(&self, environment: &Environment, id: &AllocationId) {
        let started = self.clock.now();
        loop {
            let (in_flight, limit) = {
                let snapshot = self.snapshots.load();
                let Some(view) = snapshot.environment(environment) else { return };
                let found = view.ready.iter().chain(&view.others).find(|a| a.id == *id);
                (found.map_or(0, |a| a.load.in_flight()), view.contract.process.stop_timeout)
            };
            if in_flight == 0 || self.clock.now().since(started) >= limit {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
