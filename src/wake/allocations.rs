//! Allocations that exist: what their records say, the only way back, and the only way down.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{AllocationId, Environment};
use crate::node::{Found, Node, ReadError};
use crate::record::{Allocation, AllocationState, Operation, Record, key};
use crate::runner::Runner;
use crate::store::{StoreError, Txn};

use vango_edge_core::wake::machine;

/// From SIGTERM to SIGKILL for a process that no request is on: one that never took any, or whose place a
/// waiting request needs.
pub(super) const SUPERSEDED: Duration = Duration::from_secs(2);

/// Changes and ends allocations.
pub struct Allocations {
    node: Node,
    runner: Arc<dyn Runner>,
}

/// What came of freezing an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Froze {
    /// It stands still, and its record says so.
    Yes,
    /// A wake was quicker: it runs.
    TakenBack,
    /// It cannot be frozen.
    No,
}

/// What of an environment is still in memory under an operation's authority.
pub(super) enum InMemory {
    Nothing,
    /// One that cannot be thawed, and why not.
    Stuck(Found<Allocation>, String),
    /// One that takes requests again as soon as its transaction is committed.
    Back(Back),
}

/// An allocation that runs again, on its way back.
pub(super) struct Back {
    pub(super) id: AllocationId,
    /// How long it took to thaw.
    pub(super) thaw: Duration,
    /// Says that it is ready, unless another transaction was quicker.
    pub(super) txn: Txn,
    at: String,
    frozen: bool,
}

impl Allocations {
    pub fn new(node: Node, runner: Arc<dyn Runner>) -> Arc<Self> {
        Arc::new(Self { node, runner })
    }

    /// The environment's allocations that can be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn of(
        &self,
        environment: &Environment,
    ) -> Result<Vec<Found<Allocation>>, StoreError> {
        self.node.readable(&key::allocations(environment)).await
    }

    /// The allocation's record in its next state; `None` when another transaction changed it first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change(
        &self,
        found: Found<Allocation>,
        state: AllocationState,
    ) -> Result<Option<Found<Allocation>>, StoreError> {
        let txn = found.unchanged();
        let record = Allocation { state, ..found.record };
        let revision = self.node.commit_if(txn.put(&found.at, record.encode())).await?;
        Ok(revision.map(|revision| Found { record, revision, ..found }))
    }

    /// Ends what is left of an allocation, then takes its record off the registry if `under` holds;
    /// `false` when it does not. In that order: a crash in between leaves a record of nothing, not a
    /// process without a record.
    ///
    /// # Errors
    /// [`StoreError`]; the process has ended all the same.
    pub async fn end(
        &self,
        record: &Allocation,
        grace: Duration,
        under: Txn,
    ) -> Result<bool, StoreError> {
        self.end_process(record, grace).await;
        let at = key::allocation(&record.environment, &record.id);
        Ok(self.node.commit_if(under.delete(at)).await?.is_some())
    }

    /// Ends the process of a record, whether this process started it or an earlier one did: SIGTERM,
    /// after `grace` SIGKILL.
    async fn end_process(&self, record: &Allocation, grace: Duration) {
        self.end_started(&record.id, grace).await;
        let process = record.process.as_ref();
        if let Err(e) = self.runner.end_leftover(process, &record.id, grace).await {
            let Allocation { environment, id, .. } = record;
            log::error!("{environment}: what is left of {id} could not be ended: {e}");
        }
    }

    /// Freezes what was drained.
    ///
    /// # Errors
    /// [`StoreError`]; it runs on.
    pub async fn freeze(&self, found: &Found<Allocation>) -> Result<Froze, StoreError> {
        let id = &found.record.id;
        if let Err(e) = self.runner.freeze(id).await {
            log::warn!("{}: {id} was not frozen and is stopped: {e}", found.record.environment);
            return Ok(Froze::No);
        }
        let frozen = self.change(found.clone(), AllocationState::Frozen).await;
        if !matches!(frozen, Ok(Some(_))) {
            // A wake took it back at the last moment, and counts on it.
            let _ = self.runner.thaw(id).await;
        }
        Ok(if frozen?.is_some() { Froze::Yes } else { Froze::TakenBack })
    }

    /// Past the point of no return, then the process ends, then its record goes. `false` when another
    /// transaction changed the record first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stop(&self, found: Found<Allocation>) -> Result<bool, StoreError> {
        let Some(found) = self.change(found, AllocationState::Stopping).await? else {
            return Ok(false);
        };
        let grace = self.node.stop_timeout(&found.record);
        // Its end may have been recorded by another task already.
        self.end(&found.record, grace, found.unchanged()).await?;
        Ok(true)
    }

    /// Bytes of memory that it holds.
    pub async fn memory(&self, id: &AllocationId) -> u64 {
        self.runner.memory(id).await
    }

    /// Ends what this process started; its record stays.
    pub(super) async fn end_started(&self, id: &AllocationId, grace: Duration) {
        if let Err(e) = self.runner.stop(id, grace).await {
            log::error!("{id} could not be ended: {e}");
        }
    }

    /// The only way back: what `operation` finds in memory, thawed if it stood still. Nothing is recorded
    /// yet; a caller that does not record it gives it to [`Self::undo`].
    pub(super) async fn back(&self, operation: &Operation) -> Result<InMemory, ReadError> {
        let at = key::allocations(&operation.environment);
        let left = self.node.all::<Allocation>(&at).await?;
        let fit = machine::resumable(operation, left.iter().map(|f| &f.record));
        let fit = fit.map(|a| a.id.clone());
        let Some(found) = left.into_iter().find(|f| Some(&f.record.id) == fit.as_ref()) else {
            return Ok(InMemory::Nothing);
        };
        let began = self.node.clock.now();
        let frozen = found.record.state == AllocationState::Frozen;
        if frozen && let Err(e) = self.runner.thaw(&found.record.id).await {
            return Ok(InMemory::Stuck(found, e.to_string()));
        }
        let txn = found.unchanged();
        let (id, at) = (found.record.id.clone(), found.at);
        let (state, operation) = (AllocationState::Ready, operation.id.clone());
        let ready = Allocation { state, operation, ..found.record };
        let txn = txn.put(&at, ready.encode());
        let thaw = self.node.clock.now().since(began);
        Ok(InMemory::Back(Back { id, thaw, txn, at, frozen }))
    }

    /// Freezes again what was thawed and not recorded, unless its record changed meanwhile. Only executors
    /// of this node thaw it, and the caller keeps them off the environment.
    pub(super) async fn undo(&self, back: &Back) {
        if !back.frozen {
            return;
        }
        let frozen = match self.node.store.get(&back.at).await {
            Ok(entry) => entry
                .and_then(|entry| Allocation::decode(&entry.value).ok())
                .is_some_and(|a| a.state == AllocationState::Frozen),
            Err(StoreError::Closed) => false,
            // It was frozen when it was last read.
            Err(_) => true,
        };
        if frozen && let Err(e) = self.runner.freeze(&back.id).await {
            log::warn!("{} was thawed for a wake that was not recorded, and runs: {e}", back.id);
        }
    }
}
