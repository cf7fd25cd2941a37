//! Starts an allocation of an epoch that does not own its routes yet, so that it is ready the moment
//! the owner moves there. It gets no request before: routing knows the owner's epoch only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use crate::id::AllocationId;
use crate::runner::{StartError, StartSpec};
use crate::store::record::{Allocation, AllocationState, Failure, Record, RecordError, key};
use crate::store::{StoreError, Txn};

use super::worker::Worker;
use super::worker::start::{Trouble, to_process};

pub use super::worker::start::Wanted;

/// Why nothing is ready.
#[derive(Debug, thiserror::Error)]
pub enum AheadError {
    /// It cannot be started, or did not become ready.
    #[error("{}", .0.detail)]
    Start(Failure),
    /// The store cannot be read or changed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A record cannot be read.
    #[error("{0}")]
    Record(#[from] RecordError),
}

/// From SIGTERM to SIGKILL for what did not become ready.
const FAILED: Duration = Duration::from_secs(2);

/// Tries when another start of the environment takes the generation meanwhile.
const TRIES: u32 = 5;

impl Worker {
    /// Starts an allocation and waits until it is ready. Its record is there before its process is,
    /// and goes if it does not become ready.
    ///
    /// # Errors
    /// [`AheadError`]; nothing runs then.
    pub async fn start_ahead(self: &Arc<Self>, wanted: &Wanted) -> Result<Allocation, AheadError> {
        // The semaphore is never closed; a start is a start, whatever it is for.
        let mut turn = self.starts.acquire().await.ok();
        let allocation = AllocationId::random(&*self.entropy);
        match self.try_ahead(wanted, &allocation, &mut turn).await {
            Ok(record) => Ok(record),
            Err(e) => {
                self.forget_ahead(wanted, &allocation).await;
                Err(e)
            }
        }
    }

    async fn forget_ahead(&self, wanted: &Wanted, allocation: &AllocationId) {
        let at = key::allocation(&wanted.environment, allocation);
        let Ok(Some(entry)) = self.store.get(&at).await else { return };
        let Ok(record) = Allocation::decode(&entry.value) else { return };
        self.end_recorded(&record, FAILED).await;
        if let Err(e) = self.store.txn(Txn::new().delete(&at)).await {
            log::warn!("{}: {allocation} stays in the registry: {e}", wanted.environment);
        }
    }

    async fn try_ahead<'w>(
        &'w self,
        wanted: &Wanted,
        allocation: &AllocationId,
        turn: &mut Option<SemaphorePermit<'w>>,
    ) -> Result<Allocation, AheadError> {
        let spec = self.spec::<AheadError>(wanted, allocation).await?.map_err(cannot)?;
        let mut tries = 0;
        let (mut record, started) = loop {
            tries += 1;
            let record = self.plan_ahead(wanted, allocation).await?;
            let spec = StartSpec { generation: record.generation, ..spec.clone() };
            let room = self.room(&wanted.environment, turn).await.map_err(cannot)?;
            match self.runner.start(spec, room).await {
                Ok(started) => break (record, started),
                // A wake of the same environment was quicker.
                Err(StartError::Fenced { .. }) if tries < TRIES => {}
                Err(e) => return Err(cannot(e)),
            }
        };
        record.state = AllocationState::Starting;
        record.address = Some(started.address);
        record.process = Some(to_process(&started.identity));
        let at = key::allocation(&wanted.environment, allocation);
        self.store.txn(Txn::new().exists(&at).put(&at, record.encode())).await?;
        if let Err(e) = self.runner.ready(allocation).await {
            let tail = self.runner.log_tail(allocation, 2048).unwrap_or_default();
            log::warn!("{}: {allocation}: {e}\n{}", wanted.environment, tail.trim_end());
            return Err(cannot(e));
        }
        record.state = AllocationState::Ready;
        record.ready = Some(self.clock.wall());
        self.store.txn(Txn::new().exists(&at).put(&at, record.encode())).await?;
        Ok(record)
    }

    /// The next generation, and the record of what will have it, in one transaction.
    async fn plan_ahead(
        &self,
        wanted: &Wanted,
        allocation: &AllocationId,
    ) -> Result<Allocation, AheadError> {
        loop {
            let next = self.next_start::<AheadError>(wanted, allocation).await?;
            match self.store.txn(next.write(Txn::new())).await {
                Ok(_) => return Ok(next.record),
                // Each conflict is another start that went on: this ends.
                Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn cannot(trouble: impl Into<Trouble>) -> AheadError {
    AheadError::Start(trouble.into().failure)
}
