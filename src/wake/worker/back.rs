//! The short wake: an allocation that is still in memory is taken back in one transaction.
//!
//! A wake that starts something is recorded before each step, because a process that no record names
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
//! Whatever does not fit takes the long way, which starts over from the store.

use std::sync::Arc;

use crate::id::{AllocationId, Environment};
use crate::store::record::{Allocation, AllocationState, Operation, Record, WakeState, key};
use crate::store::{StoreError, Txn};

use crate::wake::machine;

use super::resume::Found;
use super::{Lost, Worker, micros};

/// The environment's turn at this node's executors; given back when dropped.
struct Turn<'a>(&'a Arc<Worker>, &'a Environment);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.executing().remove(self.1);
        // What was published meanwhile was passed over.
        self.0.consider(self.1);
    }
}

impl Worker {
    /// Takes back what `operation`, which is not stored yet, would find in memory. `txn` has the checks
    /// under which it may be made. `false` when nothing fits, and the long way is to be gone.
    pub(super) async fn take_back(
        self: &Arc<Self>,
        operation: &Operation,
        txn: Txn,
    ) -> Result<bool, Lost> {
        let environment = &operation.environment;
        if !self.executing().insert(environment.clone()) {
            return Ok(false);
        }
        let _turn = Turn(self, environment);
        let began = self.clock.now();
        let left = self.recorded(environment).await?;
        let fit = machine::resumable(operation, left.iter().map(|f| &f.record));
        let fit = fit.map(|a| a.id.clone());
        let Some(found) = left.into_iter().find(|f| Some(&f.record.id) == fit.as_ref()) else {
            return Ok(false);
        };
        let read = self.clock.now();
        let Found { at, record, revision, .. } = found;
        let frozen = record.state == AllocationState::Frozen;
        if frozen && let Err(e) = self.runner.thaw(&record.id).await {
            log::debug!("{environment}: {} was not thawed: {e}", record.id);
            return Ok(false);
        }
        let (reserve_us, thaw_us) =
            (micros(read.since(began)), micros(self.clock.now().since(read)));
        let taken =
            machine::taken_back(operation, &record.id, reserve_us, thaw_us, self.clock.wall());
        let Ok(taken) = taken else { return Ok(false) };
        let id = record.id.clone();
        let ready =
            Allocation { state: AllocationState::Ready, operation: taken.id.clone(), ..record };
        let txn = txn
            .put(key::operation(environment), taken.encode())
            .put(key::history(taken.requested, &taken.id), taken.encode())
            .unchanged(&at, revision)
            .put(&at, ready.encode());
        if let Err(e) = self.store.txn(txn).await {
            if frozen {
                self.undo(&at, &id).await;
            }
            return Err(e.into());
        }
        debug_assert_eq!(taken.state, WakeState::Hot);
        log::info!("{environment} is awake again: {} {id} in {:?}", taken.id, taken.phases.total());
        self.observer.finished(&taken);
        Ok(true)
    }

    /// It was thawed, and nothing says so: it stands still again, unless its record went elsewhere
    /// meanwhile. Only executors of this node thaw it, and this one has the turn.
    async fn undo(&self, at: &str, allocation: &AllocationId) {
        let stored = match self.store.get(at).await {
            Ok(Some(entry)) => Allocation::decode(&entry.value).ok(),
            Ok(None) => None,
            Err(StoreError::Closed) => return,
            // It was frozen when it was last read.
            Err(e) => {
                log::debug!("{allocation}: {e}");
                return self.freeze_again(allocation).await;
            }
        };
        if stored.is_some_and(|a| a.state == AllocationState::Frozen) {
            self.freeze_again(allocation).await;
        }
    }

    async fn freeze_again(&self, allocation: &AllocationId) {
        if let Err(e) = self.runner.freeze(allocation).await {
            log::warn!("{allocation} was thawed for a wake that was not recorded, and runs: {e}");
        }
    }
}
