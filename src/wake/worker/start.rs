//! From a claimed operation to a ready allocation, and what every start needs: how it is started and
//! which generation it is. Nothing here decides whether to start.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use crate::artifact::{ArtifactError, Tree, Wrote};
use crate::contract::{self, Contract, Ready};
use crate::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, OperationId};
use crate::runner::{ProcessIdentity, ReadyCheck, ResourceLimits, Room, StartError, StartSpec};
use crate::store::record::{
    Allocation, AllocationState, Deployment, Failure, Operation, Process, Record, RecordError,
    Starts, key,
};
use crate::store::{StoreError, Txn};
use crate::wake::machine::WakeEvent;

use super::{Claim, Lost, Worker, micros};

/// Why a start did not come about; what the operation will say.
pub(in crate::wake) struct Trouble {
    /// In the operation's record.
    pub failure: Failure,
    /// The node has no place for it: nothing is known of the app.
    pub no_room: bool,
}

impl Trouble {
    pub(super) fn new(safe: impl Into<String>, detail: impl Into<String>) -> Self {
        let failure = Failure { safe: safe.into(), detail: detail.into(), artifact: false };
        Self { failure, no_room: false }
    }
}

impl From<ArtifactError> for Trouble {
    fn from(e: ArtifactError) -> Self {
        let (safe, detail) = (e.safe_cause().into(), e.to_string());
        Self { failure: Failure { safe, detail, artifact: e.is_artifact() }, no_room: false }
    }
}

impl From<StartError> for Trouble {
    fn from(e: StartError) -> Self {
        let no_room = matches!(e, StartError::Full(_));
        Self { no_room, ..Self::new(e.safe_cause(), e.to_string()) }
    }
}

/// How often a start that waits for a place looks whether a request waits for it.
const ROOM_LOOK: Duration = Duration::from_millis(500);

/// What is to be started, and for what.
#[derive(Debug, Clone)]
pub struct Wanted {
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

/// The next start of an environment, which is not recorded yet.
pub(in crate::wake) struct NextStart {
    /// Of what is about to be started.
    pub record: Allocation,
    /// Revision of the environment's start counter, if it has one.
    counted: Option<u64>,
}

impl NextStart {
    /// Takes the generation and records the allocation, if no other start took the generation meanwhile.
    pub fn write(&self, txn: Txn) -> Txn {
        let Allocation { environment, id, generation, .. } = &self.record;
        let starts = key::starts(environment);
        let txn = match self.counted {
            Some(revision) => txn.unchanged(&starts, revision),
            None => txn.absent(&starts),
        };
        txn.put(&starts, Starts { generation: *generation }.encode())
            .put(key::allocation(environment, id), self.record.encode())
    }
}

impl Worker {
    /// From a claimed operation to a ready allocation. `turn` is given back while it waits for a place.
    pub(super) async fn start<'w>(
        &'w self,
        claim: &mut Claim,
        allocation: &AllocationId,
        turn: &mut Option<SemaphorePermit<'w>>,
    ) -> Result<Result<(), Trouble>, Lost> {
        let Operation { environment, deployment, digest, epoch, id, .. } = claim.operation.clone();
        let wanted = Wanted { environment, deployment, digest, epoch, operation: id };
        let spec = match self.spec::<Lost>(&wanted, allocation).await? {
            Ok(spec) => spec,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let asked = self.clock.now();
        let room = match self.room(&wanted.environment, turn).await {
            Ok(room) => room,
            Err(trouble) => return Ok(Err(trouble)),
        };
        // What is typical of the app is told without it.
        claim.began = claim.began + self.clock.now().since(asked);
        // Recorded before anything is spawned: a crash from here on leaves no process that no
        // record names.
        let mut record = self.plan(claim, &wanted, allocation).await?;
        let spec = StartSpec { generation: record.generation, ..spec };
        let at = self.clock.now();
        let started = match self.runner.start(spec, room).await {
            Ok(started) => started,
            Err(e) => return Ok(Err(e.into())),
        };
        let spawned_at = self.clock.now();
        record.state = AllocationState::Starting;
        record.address = Some(started.address);
        record.process = Some(to_process(&started.identity));
        let spawn_us = micros(spawned_at.since(at));
        let allocation_key = key::allocation(&wanted.environment, allocation);
        let value = record.encode();
        self.commit(claim, WakeEvent::Spawned { spawn_us }, |t| t.put(&allocation_key, value))
            .await?;
        if let Err(e) = self.runner.ready(allocation).await {
            return Ok(Err(e.into()));
        }
        record.state = AllocationState::Ready;
        record.ready = Some(self.clock.wall());
        let ready_us = micros(self.clock.now().since(spawned_at));
        let value = record.encode();
        self.commit(claim, WakeEvent::Ready { ready_us }, |t| t.put(&allocation_key, value))
            .await?;
        Ok(Ok(()))
    }

    /// A place for one more process. Where the node is full it waits for one, first come, first served: at
    /// least for the app's wake budget, and for as long as a request waits for it.
    pub(in crate::wake) async fn room<'w>(
        &'w self,
        environment: &Environment,
        turn: &mut Option<SemaphorePermit<'w>>,
    ) -> Result<Room, Trouble> {
        let full = match self.runner.try_room() {
            Ok(room) => return Ok(room),
            Err(full) => full,
        };
        let view = self.snapshots.load().environment(environment).cloned();
        let Some(view) = view else { return Err(full.into()) };
        log::warn!("{environment} waits for a place: {full}");
        // What is in memory can be taken back meanwhile: that needs no place.
        drop(turn.take());
        view.live.set_no_room(true);
        let until = self.clock.now() + view.contract.wake.budget;
        let mut next = pin!(self.runner.room());
        loop {
            tokio::select! {
                room = &mut next => {
                    // The semaphore is never closed.
                    *turn = self.starts.acquire().await.ok();
                    view.live.set_no_room(false);
                    return Ok(room);
                }
                () = tokio::time::sleep(ROOM_LOOK) => {}
            }
            if self.clock.now() >= until && view.live.waiting() == 0 {
                return Err(full.into());
            }
        }
    }

    /// How `wanted` is started. Its generation is given out with its record, later.
    pub(in crate::wake) async fn spec<E: From<StoreError> + From<RecordError>>(
        &self,
        wanted: &Wanted,
        allocation: &AllocationId,
    ) -> Result<Result<StartSpec, Trouble>, E> {
        let contract = match self.contract::<E>(&wanted.environment, &wanted.deployment).await? {
            Ok(contract) => contract,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let root = match self.tree(&wanted.digest).await {
            Ok(root) => root,
            Err(e) => return Ok(Err(e.into())),
        };
        let mut env: Vec<_> =
            contract.process.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        match self.secrets.of(&wanted.environment, allocation, &contract) {
            Ok(secrets) => env.extend(secrets),
            Err(missing) => {
                return Ok(Err(Trouble::new("a secret is not configured", missing)));
            }
        }
        Ok(Ok(StartSpec {
            allocation: allocation.clone(),
            environment: wanted.environment.clone(),
            generation: Generation(0),
            epoch: wanted.epoch,
            digest: wanted.digest,
            root,
            ready: ready_check(&contract),
            start_timeout: contract.wake.start_timeout,
            command: contract.process.command,
            env,
            limits: ResourceLimits::default(),
            host: self.host_of(&wanted.environment),
        }))
    }

    /// The unpacked tree of `digest`. What an app wrote beside itself is said in the log.
    ///
    /// # Errors
    /// [`ArtifactError`]: it cannot be had.
    pub async fn tree(&self, digest: &Digest) -> Result<PathBuf, ArtifactError> {
        let snapshots = &self.snapshots;
        let in_use = || {
            let snapshot = snapshots.load();
            let mut all = snapshot.environments().flat_map(|v| v.ready.iter().chain(&v.others));
            all.any(|a| a.digest == *digest && a.pid.is_some())
        };
        let Tree { root, wrote } = self.artifacts.tree(digest, in_use).await?;
        if let Some(Wrote { files, bytes, paths, removed }) = wrote {
            let what = if removed {
                "removed: each start gets exactly the artifact"
            } else {
                "left there while another process runs from it"
            };
            log::warn!(
                "an app wrote {files} files ({bytes} bytes) beside itself, into the tree of {digest}, and \
                 they are {what}: {paths}. What is to stay belongs below $HOME, what is not below $TMPDIR"
            );
        }
        Ok(root)
    }

    pub(super) async fn contract<E: From<StoreError> + From<RecordError>>(
        &self,
        environment: &Environment,
        deployment: &DeploymentId,
    ) -> Result<Result<Contract, Trouble>, E> {
        let at = key::deployment(environment, deployment);
        let Some(entry) = self.store.get(&at).await? else {
            return Ok(Err(Trouble::new("the deployment is gone", format!("no record {at}"))));
        };
        let deployment = Deployment::decode(&entry.value)?;
        let file = std::path::Path::new("vango-edge.toml");
        Ok(contract::parse(file, &deployment.contract).map_err(|errors| {
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Trouble::new("the artifact's contract cannot be read", all.join("; "))
        }))
    }

    /// The next generation of the environment, and the record of what will have it.
    pub(in crate::wake) async fn next_start<E: From<StoreError> + From<RecordError>>(
        &self,
        wanted: &Wanted,
        allocation: &AllocationId,
    ) -> Result<NextStart, E> {
        let stored = self.store.get(&key::starts(&wanted.environment)).await?;
        let last = stored.as_ref().map(|e| Starts::decode(&e.value)).transpose()?;
        let record = Allocation {
            id: allocation.clone(),
            environment: wanted.environment.clone(),
            generation: last.map_or(Generation(0), |s| s.generation).next(),
            epoch: wanted.epoch,
            digest: wanted.digest,
            state: AllocationState::Planned,
            address: None,
            process: None,
            operation: wanted.operation.clone(),
            created: self.clock.wall(),
            ready: None,
        };
        Ok(NextStart { record, counted: stored.map(|e| e.mod_revision) })
    }

    async fn plan(
        &self,
        claim: &mut Claim,
        wanted: &Wanted,
        allocation: &AllocationId,
    ) -> Result<Allocation, Lost> {
        let next = self.next_start::<Lost>(wanted, allocation).await?;
        let artifact_us = micros(self.clock.now().since(claim.began));
        let event = WakeEvent::Planned { allocation: allocation.clone(), artifact_us };
        self.commit(claim, event, |txn| next.write(txn)).await?;
        Ok(next.record)
    }

    fn host_of(&self, environment: &Environment) -> String {
        let snapshot = self.snapshots.load();
        let host = snapshot.environment(environment).and_then(|v| v.hosts.first().cloned());
        host.map_or_else(|| "localhost".into(), |h| h.to_string())
    }
}

pub(super) fn ready_check(contract: &Contract) -> ReadyCheck {
    match &contract.process.ready {
        Ready::Http { path } => ReadyCheck::Http { path: path.clone() },
        Ready::Tcp => ReadyCheck::Tcp,
        Ready::Notify => ReadyCheck::Notify,
    }
}

pub(in crate::wake) fn to_process(i: &ProcessIdentity) -> Process {
    Process {
        pid: i.pid,
        start_time: i.start_time,
        boot_id: i.boot_id.clone(),
        cgroup: i.cgroup.clone(),
    }
}
