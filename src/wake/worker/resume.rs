//! What of an environment is still there when its wake begins: taken back if it is fit, ended if it
//! is not.

use crate::id::Environment;
use crate::store::record::{Allocation, AllocationState, Record, key};
use crate::store::{StoreError, Txn};
use crate::wake::machine::{self, WakeEvent};

use super::{Claim, Lost, SUPERSEDED, Worker, micros};

/// An allocation's record as it was read.
pub(super) struct Found {
    pub(super) at: String,
    pub(super) record: Allocation,
    /// Of its last put.
    pub(super) revision: u64,
    /// Of its first.
    created: u64,
}

impl Worker {
    /// Takes back an allocation that is still in memory, if there is one: a frozen one is thawed, one
    /// that is only draining goes on. Whether it did; if not, nothing of the environment is left.
    pub(super) async fn resume(&self, claim: &mut Claim) -> Result<bool, Lost> {
        // Bounded: each turn but the last follows a change by another transaction.
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

    /// What must be gone before another is started: what an executor before this one may have left,
    /// and what is on its way out. The latter has had its SIGTERM and nothing in flight; since someone
    /// waits now, it gets less time than its contract gives it.
    pub(super) async fn end_earlier_attempts(&self, claim: &Claim) -> Result<(), Lost> {
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

    /// The environment's allocations.
    pub(super) async fn recorded(&self, environment: &Environment) -> Result<Vec<Found>, Lost> {
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
}
