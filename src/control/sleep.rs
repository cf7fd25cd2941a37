//! Putting environments to sleep: no new requests, then drained, then stopped. A request that
//! comes in between finds nothing ready and wakes the environment again; none is refused for it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::clock::Mono;
use crate::id::{AllocationId, Environment};
use crate::store::record::{Allocation, AllocationState, Record, key};
use crate::store::{StoreError, Txn};

use super::{Control, plan};

/// How often idleness is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Control {
    /// Puts idle environments to sleep for as long as the process runs.
    pub async fn put_idle_to_sleep(self: &Arc<Self>) {
        let mut up_since: HashMap<AllocationId, Mono> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.clock.now();
            let snapshot = Arc::clone(&self.snapshots.load());
            let ready = |id: &AllocationId| {
                snapshot.environments().any(|e| e.ready.iter().any(|a| a.id == *id))
            };
            up_since.retain(|id, _| ready(id));
            for view in snapshot.environments().filter(|v| !v.ready.is_empty()) {
                let newest =
                    view.ready.iter().map(|a| *up_since.entry(a.id.clone()).or_insert(now));
                let Some(newest) = newest.max() else { continue };
                if plan::is_idle(view, newest, now) {
                    let (control, environment) = (Arc::clone(self), view.environment.clone());
                    tokio::spawn(async move {
                        if let Err(e) = control.sleep(&environment).await {
                            log::warn!("{environment} was not put to sleep: {e}");
                        }
                    });
                }
            }
        }
    }

    /// Puts `environment` to sleep now: its ready allocations take no new requests, those in
    /// flight finish within the contract's `process.stop_timeout`, then the processes are stopped.
    /// Returns how many were.
    ///
    /// # Errors
    /// [`StoreError`] when a record cannot be changed; what was not drained goes on serving.
    pub async fn sleep(&self, environment: &Environment) -> Result<usize, StoreError> {
        {
            let mut sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
            if !sleeping.insert(environment.clone()) {
                return Ok(0);
            }
        }
        let outcome = self.sleep_once(environment).await;
        self.sleeping.lock().unwrap_or_else(PoisonError::into_inner).remove(environment);
        outcome
    }

    async fn sleep_once(&self, environment: &Environment) -> Result<usize, StoreError> {
        let page = self.store.list(&key::allocations(environment), None, 1000).await?;
        let mut draining = Vec::new();
        for (at, entry) in page.entries {
            let Ok(mut record) = Allocation::decode(&entry.value) else { continue };
            match record.state {
                AllocationState::Ready => {
                    record.state = AllocationState::Draining;
                    let txn = Txn::new().unchanged(&at, entry.mod_revision);
                    match self.store.txn(txn.put(&at, record.encode())).await {
                        Ok(revision) => draining.push((at, record, revision)),
                        // It ended, or another one drains it.
                        Err(StoreError::Conflict { .. }) => {}
                        Err(e) => return Err(e),
                    }
                }
                AllocationState::Draining => draining.push((at, record, entry.mod_revision)),
                // A wake is at work on it.
                AllocationState::Planned | AllocationState::Starting => {}
            }
        }
        let stopped = draining.len();
        for (at, record, revision) in draining {
            self.drained(environment, &record.id).await;
            self.worker.end_recorded(&record).await;
            match self.store.txn(Txn::new().unchanged(&at, revision).delete(&at)).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if stopped > 0 {
            log::info!("{environment} sleeps");
        }
        Ok(stopped)
    }

    /// Waits until nothing is in flight in the allocation, or the contract's limit is over.
    async fn drained(&self, environment: &Environment, allocation: &AllocationId) {
        let started = self.clock.now();
        loop {
            let (ready, in_flight, limit) = {
                let snapshot = self.snapshots.load();
                let Some(view) = snapshot.environment(environment) else { return };
                let all = || view.ready.iter().chain(&view.others);
                let found = all().find(|a| a.id == *allocation);
                (
                    view.ready.iter().any(|a| a.id == *allocation),
                    found.map_or(0, |a| a.load.in_flight()),
                    view.contract.process.stop_timeout,
                )
            };
            // Not before routing has seen that it drains: until then it may still be chosen.
            if (!ready && in_flight == 0) || self.clock.now().since(started) >= limit {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
