//! Processes that outlived the one that started them, and processes that end: adopted, ended, or
//! taken off the registry.

use std::time::Duration;

use crate::id::{AllocationId, Environment};
use crate::runner::{AdoptSpec, ProcessIdentity};
use crate::store::record::{
    Allocation, AllocationState, Failure, Operation, Process, Record, RouteOwner, WakeState, key,
};
use crate::store::{StoreError, Txn};
use crate::wake::machine::{self, WakeEvent, backoff};

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
        log::warn!("{environment}: {allocation} ended: {how}; its record is somebody else's");
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
        let mut txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
        let operation_key = key::operation(environment);
        let lived = record.ready.map(|r| self.clock.wall().since(r));
        if lived.is_some_and(|d| d < machine::PROVED)
            && let Some(stored) = self.store.get(&operation_key).await?
        {
            let operation = Operation::decode(&stored.value)?;
            if operation.allocation.as_ref() == Some(allocation)
                && operation.state == WakeState::Hot
            {
                let pause = backoff(self.backoff, operation.failures, self.entropy.next_u64());
                let failure = Failure {
                    safe: "it ended right after it became ready".into(),
                    detail: format!("{allocation}: {how}, right after it became ready"),
                    artifact: false,
                };
                let next = self.step(&operation, WakeEvent::Failed { failure, backoff: pause })?;
                txn = txn
                    .unchanged(&operation_key, stored.mod_revision)
                    .put(&operation_key, next.encode())
                    .put(key::history(next.requested, &next.id), next.encode());
            }
        }
        self.store.txn(txn).await?;
        log::warn!("{environment}: {allocation} ended: {how}");
        Ok(true)
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
