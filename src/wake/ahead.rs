//! Starts an allocation of an epoch that does not own its routes yet, so that it is ready the moment
//! the owner moves there. It gets no request before: routing knows the owner's epoch only.

use std::sync::Arc;
use std::time::Duration;

use crate::contract;
use crate::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, OperationId};
use crate::runner::{ResourceLimits, StartError, StartSpec};
use crate::store::record::{
    Allocation, AllocationState, Deployment, Failure, Record, RecordError, Starts, key,
};
use crate::store::{StoreError, Txn};

use super::worker::{Worker, ready_check, to_process};

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// Whose.
    pub environment: Environment,
    /// Its deployment, of that environment.
    pub deployment: DeploymentId,
    /// Its artifact.
    pub digest: Digest,
    /// The epoch it is to serve under.
    pub epoch: Epoch,
    /// The operation it is started for.
    pub operation: OperationId,
}

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
    pub async fn start_ahead(self: &Arc<Self>, ahead: &Ahead) -> Result<Allocation, AheadError> {
        // The semaphore is never closed; a start is a start, whoever asks for it.
        let _permit = self.starts.acquire().await.ok();
        let allocation = AllocationId::random(&*self.entropy);
        match self.try_ahead(ahead, &allocation).await {
            Ok(record) => Ok(record),
            Err(e) => {
                self.forget_ahead(ahead, &allocation).await;
                Err(e)
            }
        }
    }

    async fn forget_ahead(&self, ahead: &Ahead, allocation: &AllocationId) {
        let at = key::allocation(&ahead.environment, allocation);
        let Ok(Some(entry)) = self.store.get(&at).await else { return };
        let Ok(record) = Allocation::decode(&entry.value) else { return };
        self.end_recorded(&record, FAILED).await;
        if let Err(e) = self.store.txn(Txn::new().delete(&at)).await {
            log::warn!("{}: {allocation} stays in the registry: {e}", ahead.environment);
        }
    }

    async fn try_ahead(
        &self,
        ahead: &Ahead,
        allocation: &AllocationId,
    ) -> Result<Allocation, AheadError> {
        let spec = self.spec_ahead(ahead, allocation).await?;
        let mut tries = 0;
        let (mut record, started) = loop {
            tries += 1;
            let record = self.plan_ahead(ahead, allocation).await?;
            let spec = StartSpec { generation: record.generation, ..spec.clone() };
            match self.runner.start(spec).await {
                Ok(started) => break (record, started),
                // A wake of the same environment was quicker.
                Err(StartError::Fenced { .. }) if tries < TRIES => {}
                Err(e) => return Err(failed(&e)),
            }
        };
        record.state = AllocationState::Starting;
        record.address = Some(started.address);
        record.process = Some(to_process(&started.identity));
        let at = key::allocation(&ahead.environment, allocation);
        self.store.txn(Txn::new().exists(&at).put(&at, record.encode())).await?;
        if let Err(e) = self.runner.ready(allocation).await {
            let tail = self.runner.log_tail(allocation, 2048).unwrap_or_default();
            log::warn!("{}: {allocation}: {e}\n{}", ahead.environment, tail.trim_end());
            return Err(failed(&e));
        }
        record.state = AllocationState::Ready;
        record.ready = Some(self.clock.wall());
        self.store.txn(Txn::new().exists(&at).put(&at, record.encode())).await?;
        Ok(record)
    }

    async fn spec_ahead(
        &self,
        ahead: &Ahead,
        allocation: &AllocationId,
    ) -> Result<StartSpec, AheadError> {
        let cannot = |safe: &str, detail: String, artifact| {
            AheadError::Start(Failure { safe: safe.into(), detail, artifact })
        };
        let at = key::deployment(&ahead.environment, &ahead.deployment);
        let Some(entry) = self.store.get(&at).await? else {
            return Err(cannot("the deployment is gone", format!("no record {at}"), false));
        };
        let deployment = Deployment::decode(&entry.value)?;
        let file = std::path::Path::new("vango-edge.toml");
        let contract = contract::parse(file, &deployment.contract).map_err(|errors| {
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            cannot("the artifact's contract cannot be read", all.join("; "), false)
        })?;
        let tree = self.artifacts.tree(&ahead.digest).await;
        let root = tree.map_err(|e| cannot(e.safe_cause(), e.to_string(), e.is_artifact()))?;
        let mut env: Vec<_> =
            contract.process.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let secrets = self.secrets.of(&ahead.environment, &contract);
        env.extend(secrets.map_err(|e| cannot("a secret is not configured", e, false))?);
        Ok(StartSpec {
            allocation: allocation.clone(),
            environment: ahead.environment.clone(),
            generation: crate::id::Generation(0),
            epoch: ahead.epoch,
            digest: ahead.digest,
            root,
            command: contract.process.command.clone(),
            env,
            ready: ready_check(&contract),
            start_timeout: contract.wake.start_timeout,
            limits: ResourceLimits::default(),
            host: self.host_of(&ahead.environment),
        })
    }

    /// The next generation, and the record of what will have it, in one transaction.
    async fn plan_ahead(
        &self,
        ahead: &Ahead,
        allocation: &AllocationId,
    ) -> Result<Allocation, AheadError> {
        let starts_key = key::starts(&ahead.environment);
        loop {
            let stored = self.store.get(&starts_key).await?;
            let last = stored.as_ref().map(|e| Starts::decode(&e.value)).transpose()?;
            let generation = last.map_or(crate::id::Generation(0), |s| s.generation).next();
            let record = Allocation {
                id: allocation.clone(),
                environment: ahead.environment.clone(),
                generation,
                epoch: ahead.epoch,
                digest: ahead.digest,
                state: AllocationState::Planned,
                address: None,
                process: None,
                operation: ahead.operation.clone(),
                created: self.clock.wall(),
                ready: None,
            };
            let txn = match &stored {
                Some(e) => Txn::new().unchanged(&starts_key, e.mod_revision),
                None => Txn::new().absent(&starts_key),
            };
            let txn = txn
                .put(&starts_key, Starts { generation }.encode())
                .put(key::allocation(&ahead.environment, allocation), record.encode());
            match self.store.txn(txn).await {
                Ok(_) => return Ok(record),
                // Each conflict is another start that went on: this ends.
                Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn failed(e: &StartError) -> AheadError {
    let failure = Failure { safe: e.safe_cause().into(), detail: e.to_string(), artifact: false };
    AheadError::Start(failure)
}
