//! Allocations that end by themselves, and such as run and listen no more: taken off the registry, and the
//! wake that started them told if they did not prove themselves.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::id::{AllocationId, Environment};
use crate::node::{Node, ReadError};
use crate::record::{Allocation, AllocationState, Failure, Operation, Record, WakeState, key};
use crate::runner::{Exit, ExitStatus, Runner};
use crate::store::Txn;

use super::allocations::{Allocations, SUPERSEDED};
use super::executor::{CLAIM_TTL, Leased, Lost, after};
use super::starts::see_logs;
use vango_edge_core::wake::machine::{BackoffPolicy, PROVED, WakeEvent, backoff, deaf_backoff};

/// How soon an ended allocation is looked at again whose start is still being recorded.
const EXIT_LOOK: Duration = Duration::from_millis(50);

/// Pause before an end that could not be recorded is recorded again.
const AGAIN: Duration = Duration::from_millis(500);

/// Takes ended and deaf allocations out of service.
pub struct Exits {
    node: Node,
    runner: Arc<dyn Runner>,
    allocations: Arc<Allocations>,
    backoff: BackoffPolicy,
    /// Allocations that refused a connection and are being looked at.
    doubted: Mutex<HashSet<AllocationId>>,
}

impl Exits {
    /// Of what `runner` runs.
    pub fn new(
        node: Node,
        runner: Arc<dyn Runner>,
        allocations: Arc<Allocations>,
        backoff: BackoffPolicy,
    ) -> Arc<Self> {
        Arc::new(Self { node, runner, allocations, backoff, doubted: Mutex::default() })
    }

    /// Takes exits off the runner for as long as the process runs.
    pub async fn follow(self: Arc<Self>) {
        let Some(mut exits) = self.runner.exits() else { return };
        while let Some(exit) = exits.recv().await {
            if exit.asked {
                continue;
            }
            // Each by itself, as many as there are processes: one may have to wait for its start's
            // record.
            let exits = Arc::clone(&self);
            tokio::spawn(async move { exits.record(&exit).await });
        }
    }

    /// This edge ended a process because the store gave no answer about it. The record may say all the
    /// same that it is ready, and then it goes as if the process had ended by itself. Returns at once.
    pub(super) fn ended_unheard(
        self: &Arc<Self>,
        environment: &Environment,
        allocation: &AllocationId,
    ) {
        let (environment, allocation) = (environment.clone(), allocation.clone());
        let exit = Exit { allocation, environment, status: ExitStatus::Unknown, asked: true };
        let exits = Arc::clone(self);
        self.node.runtime.spawn(async move { exits.record(&exit).await });
    }

    /// An allocation ended by itself. Its record goes; if it ended right after it was ready, the
    /// wake that started it has failed after all, and backs off.
    async fn record(&self, exit: &Exit) {
        let Exit { environment, allocation, status, .. } = exit;
        let how = status.to_string();
        let clock = &self.node.clock;
        let (mut conflicts, mut until) = (0, clock.now() + CLAIM_TTL);
        while conflicts < 5 {
            match self.exited_once(environment, allocation, &how).await {
                Ok(true) => return,
                // Its executor may have seen it ready before it ended, and be about to write that:
                // without another look, the record of a dead process would stay. An executor that
                // is lost writes nothing more, and the next one ends what it left.
                Ok(false) if clock.now() < until => tokio::time::sleep(EXIT_LOOK).await,
                Ok(false) => break,
                Err(Lost::Claim | Lost::Raced) => conflicts += 1,
                Err(Lost::Read(ReadError::Store(e))) => {
                    log::warn!("{allocation}: its end ({how}) could not be recorded: {e}");
                    if !e.retryable() {
                        return;
                    }
                    // Until it is recorded, requests find a closed port, send nothing, and choose again.
                    tokio::time::sleep(AGAIN).await;
                    (conflicts, until) = (0, clock.now() + CLAIM_TTL);
                }
                Err(Lost::Read(ReadError::Record(e))) => {
                    return log::error!("{environment}: {allocation} ended: {how}: {e}");
                }
            }
        }
        log::info!("{environment}: {allocation} ended: {how}; its record was changed meanwhile");
    }

    /// `false` while its executor has yet to record what became of the start.
    async fn exited_once(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        how: &str,
    ) -> Result<bool, Lost> {
        let at = key::allocation(environment, allocation);
        let Some(found) = self.node.read::<Allocation>(&at).await? else { return Ok(true) };
        let state = found.record.state;
        if matches!(state, AllocationState::Planned | AllocationState::Starting) {
            // Its executor is waiting for it and will say what happened, in the log too.
            return Ok(false);
        }
        let logs = see_logs(environment, allocation);
        let detail = format!("{allocation}: {how}, right after it became ready{logs}");
        let failure = Failure::new("it ended right after it became ready", detail);
        let txn = found.unchanged().delete(&at);
        let txn = self.failed_early(txn, &found.record, failure, backoff).await?;
        self.node.store.txn(txn).await?;
        log::warn!("{environment}: {allocation} ended: {how}");
        Ok(true)
    }

    /// Adds to `txn`, which takes `record` out of service, that the wake that started it has failed after
    /// all, if it was ready for a short time only.
    async fn failed_early(
        &self,
        txn: Txn,
        record: &Allocation,
        failure: Failure,
        pause: fn(BackoffPolicy, u32, u64) -> Duration,
    ) -> Result<Txn, Lost> {
        let lived = record.ready.map(|r| self.node.clock.wall().since(r));
        if lived.is_none_or(|d| d >= PROVED) {
            return Ok(txn);
        }
        let at = key::operation(&record.environment);
        let Some(stored) = self.node.read::<Operation>(&at).await? else { return Ok(txn) };
        let operation = &stored.record;
        if operation.allocation.as_ref() != Some(&record.id) || operation.state != WakeState::Hot {
            return Ok(txn);
        }
        let backoff = pause(self.backoff, operation.failures, self.node.entropy.next_u64());
        let event = WakeEvent::Failed { failure, backoff };
        let next = after(operation, event, self.node.clock.wall())?;
        let txn = txn.and(stored.unchanged());
        Ok(txn.put(&at, next.encode()).put(next.kept_at(), next.encode()))
    }

    /// An allocation refused a connection. If it runs on and nothing of it listens on its port any more, it
    /// is taken out of service and ended, so that the requests that wait start another. Returns at once.
    pub fn doubt(self: &Arc<Self>, environment: &Environment, allocation: &AllocationId) {
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a crowd that is refused, one asks.
        if !doubted.insert(allocation.clone()) {
            return;
        }
        drop(doubted);
        let (exits, environment) = (Arc::clone(self), environment.clone());
        let allocation = allocation.clone();
        self.node.runtime.spawn(async move {
            match exits.end_deaf(&environment, &allocation).await {
                // Another transaction changed its record: the next connection that is refused asks again.
                Ok(()) | Err(Lost::Claim | Lost::Raced) => {}
                Err(e) => log::warn!("{environment}: {allocation} was not replaced: {e}"),
            }
            exits.doubted.lock().unwrap_or_else(PoisonError::into_inner).remove(&allocation);
        });
    }

    async fn end_deaf(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
    ) -> Result<(), Lost> {
        // One that has ended is told by its exit.
        if self.runner.listens(allocation).await != Some(false) {
            return Ok(());
        }
        let at = key::allocation(environment, allocation);
        let Some(found) = self.node.read::<Allocation>(&at).await? else { return Ok(()) };
        if found.record.state != AllocationState::Ready {
            return Ok(());
        }
        let stopping = Allocation { state: AllocationState::Stopping, ..found.record.clone() };
        let detail = format!("{allocation} runs, and nothing of it listens on its port any more");
        let failure = Failure::new("it stopped listening right after it became ready", detail);
        let txn = found.unchanged().put(&at, stopping.encode());
        let txn = self.failed_early(txn, &found.record, failure, deaf_backoff).await?;
        let revision = self.node.store.txn(txn).await?;
        let port = found.record.address.map_or(0, |a| a.port());
        log::warn!(
            "{environment}: {allocation} runs, and nothing of it listens on its port {port} any more: it \
             is ended, and the next request starts another"
        );
        let under = Txn::new().unchanged(&at, revision);
        // If it does not hold, a wake that came meanwhile has taken it off.
        self.allocations.end(&found.record, SUPERSEDED, under).await?;
        Ok(())
    }
}
