//! Processes that outlived the one that started them, processes that end, and such as run without listening:
//! adopted, ended, or taken off the registry.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::id::{AllocationId, Environment};
use crate::runner::{AdoptSpec, ProcessIdentity};
use crate::store::record::{
    Allocation, AllocationState, Failure, Operation, Process, Record, RouteOwner, WakeState, key,
};
use crate::store::{StoreError, Txn};
use crate::wake::machine::{self, BackoffPolicy, WakeEvent, backoff};

use super::start::ready_check;
use super::{CLAIM_TTL, Lost, SUPERSEDED, Worker};

/// How soon an ended allocation is looked at again whose start is still being recorded.
const EXIT_LOOK: Duration = Duration::from_millis(50);

/// How long an adopted process may take to prove that it is ready: it was, a moment ago.
const ADOPTION: Duration = Duration::from_secs(3);

impl Worker {
    /// Takes over the running allocation of a record that an earlier process of this node wrote;
    /// `owner` is the environment's.
    ///
    /// # Errors
    /// Why not, for the log. It may run still.
    pub async fn adopt(&self, left: &Allocation, owner: &RouteOwner) -> Result<(), String> {
        let (Some(address), Some(process)) = (left.address, &left.process) else {
            return Err("its record names no process".into());
        };
        let contract = match self.contract::<Lost>(&left.environment, &owner.deployment).await {
            Ok(Ok(contract)) => contract,
            Ok(Err(trouble)) => return Err(trouble.failure.detail),
            Err(e) => return Err(e.to_string()),
        };
        let spec = AdoptSpec {
            allocation: left.id.clone(),
            environment: left.environment.clone(),
            generation: left.generation,
            identity: to_identity(process),
            address,
            ready: (left.state != AllocationState::Frozen).then(|| ready_check(&contract)),
            host: owner.host.to_string(),
            within: ADOPTION,
        };
        self.runner.adopt(spec).await.map_err(|e| e.to_string())?;
        if left.state == AllocationState::Frozen {
            // The earlier process may have died between a thaw and its record.
            self.runner.freeze(&left.id).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Ends the process of a record, whether this process started it or an earlier one did: SIGTERM,
    /// after `grace` SIGKILL.
    pub async fn end_recorded(&self, left: &Allocation, grace: Duration) {
        if let Err(e) = self.runner.stop(&left.id, grace).await {
            log::error!("{} could not be ended: {e}", left.id);
        }
        let identity = left.process.as_ref().map(to_identity);
        if let Err(e) = self.runner.end_leftover(identity.as_ref(), &left.id, grace).await {
            log::error!(
                "{}: what is left of {} could not be ended: {e}",
                left.environment,
                left.id
            );
        }
    }

    pub(super) async fn end(&self, allocation: &AllocationId) {
        if let Err(e) = self.runner.stop(allocation, SUPERSEDED).await {
            log::error!("{allocation} could not be ended: {e}");
        }
    }

    /// An allocation ended by itself. Its record goes; if it ended right after it was ready, the
    /// wake that started it has failed after all, and backs off.
    ///
    /// # Errors
    /// [`StoreError`] when the record could not be changed; the caller tries again.
    pub async fn exited(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        how: &str,
    ) -> Result<(), StoreError> {
        let (mut conflicts, until) = (0, self.clock.now() + CLAIM_TTL);
        while conflicts < 5 {
            match self.exited_once(environment, allocation, how).await {
                Ok(true) => return Ok(()),
                // Its executor may have seen it ready before it ended, and be about to write that:
                // without another look, the record of a dead process would stay. An executor that
                // is lost writes nothing more, and the next one ends what it left.
                Ok(false) if self.clock.now() < until => tokio::time::sleep(EXIT_LOOK).await,
                Ok(false) => break,
                Err(Lost::Claim) => conflicts += 1,
                Err(Lost::Store(e)) => return Err(e),
                Err(Lost::Record(e)) => {
                    log::error!("{environment}: {allocation} ended: {how}: {e}");
                    return Ok(());
                }
            }
        }
        log::warn!("{environment}: {allocation} ended: {how}; its record was changed meanwhile");
        Ok(())
    }

    /// `false` while its executor has yet to record what became of the start.
    async fn exited_once(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        how: &str,
    ) -> Result<bool, Lost> {
        let at = key::allocation(environment, allocation);
        let Some(entry) = self.store.get(&at).await? else { return Ok(true) };
        let record = Allocation::decode(&entry.value)?;
        if matches!(record.state, AllocationState::Planned | AllocationState::Starting) {
            // Its executor is waiting for it and will say what happened, in the log too.
            return Ok(false);
        }
        let txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
        let failure = Failure {
            safe: "it ended right after it became ready".into(),
            detail: format!("{allocation}: {how}, right after it became ready"),
            artifact: false,
        };
        let txn = self.failed_early(txn, &record, failure, backoff).await?;
        self.store.txn(txn).await?;
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
        let at = key::operation(&record.environment);
        let lived = record.ready.map(|r| self.clock.wall().since(r));
        if lived.is_none_or(|d| d >= machine::PROVED) {
            return Ok(txn);
        }
        let Some(stored) = self.store.get(&at).await? else { return Ok(txn) };
        let operation = Operation::decode(&stored.value)?;
        if operation.allocation.as_ref() != Some(&record.id) || operation.state != WakeState::Hot {
            return Ok(txn);
        }
        let backoff = pause(self.backoff, operation.failures, self.entropy.next_u64());
        let next = self.step(&operation, WakeEvent::Failed { failure, backoff })?;
        Ok(txn
            .unchanged(&at, stored.mod_revision)
            .put(&at, next.encode())
            .put(key::history(next.requested, &next.id), next.encode()))
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
        let (worker, environment) = (Arc::clone(self), environment.clone());
        let allocation = allocation.clone();
        self.runtime.spawn(async move {
            match worker.end_deaf(&environment, &allocation).await {
                // Another transaction changed its record: the next connection that is refused asks again.
                Ok(()) | Err(Lost::Claim) => {}
                Err(e) => log::warn!("{environment}: {allocation} was not replaced: {e}"),
            }
            worker.doubted.lock().unwrap_or_else(PoisonError::into_inner).remove(&allocation);
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
        let Some(entry) = self.store.get(&at).await? else { return Ok(()) };
        let record = Allocation::decode(&entry.value)?;
        if record.state != AllocationState::Ready {
            return Ok(());
        }
        let stopping = Allocation { state: AllocationState::Stopping, ..record.clone() };
        let txn = Txn::new().unchanged(&at, entry.mod_revision).put(&at, stopping.encode());
        let failure = Failure {
            safe: "it stopped listening right after it became ready".into(),
            detail: format!("{allocation} runs, and nothing of it listens on its port any more"),
            artifact: false,
        };
        let txn = self.failed_early(txn, &record, failure, machine::deaf_backoff).await?;
        let revision = self.store.txn(txn).await?;
        let port = record.address.map_or(0, |a| a.port());
        log::warn!(
            "{environment}: {allocation} runs, and nothing of it listens on its port {port} any more: it \
             is ended, and the next request starts another"
        );
        self.end_recorded(&record, SUPERSEDED).await;
        // A wake that came meanwhile has taken it off.
        self.store.txn(Txn::new().unchanged(&at, revision).delete(&at)).await?;
        Ok(())
    }
}

fn to_identity(p: &Process) -> ProcessIdentity {
    ProcessIdentity {
        pid: p.pid,
        start_time: p.start_time,
        boot_id: p.boot_id.clone(),
        cgroup: p.cgroup.clone(),
    }
}
