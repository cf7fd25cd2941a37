//! The only way up: from a request to start something to an allocation that is ready, or to the reason why it
//! is not. Nothing here decides whether to start.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::artifact::{ArtifactError, Tree, TreeSource, Wrote};
use crate::contract::{self, Contract};
use crate::id::{
    AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, Host, OperationId,
};
use crate::node::{Node, ReadError, as_read};
use crate::record::{
    Allocation, AllocationState, Deployment, Failure, Record, Starts as Counter, Variables, key,
};
use crate::runner::{Needs, Program, Room, Runner, StartError, StartSpec};
use crate::store::Txn;

use super::allocations::{Allocations, SUPERSEDED};
use super::executor::Lost;

/// How often a start that waits for a place looks whether a request waits for it.
const ROOM_LOOK: Duration = Duration::from_millis(500);

/// Tries when another start of the environment takes the generation meanwhile.
const TRIES: u32 = 5;

/// What is to be started, and for what.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The environment that is started.
    pub environment: Environment,
    /// Its deployment, of that environment.
    pub deployment: DeploymentId,
    pub digest: Digest,
    /// The epoch it is to serve under.
    pub epoch: Epoch,
    /// The operation it is started for.
    pub operation: OperationId,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartStep {
    /// It has a generation, and waited so long for a place.
    Planned(Duration),
    /// Its process exists; that took so long.
    Spawned(Duration),
    /// It is ready; that took so long.
    Ready(Duration),
}

/// Records the steps of a start under conditions of its own: those of a wake's claim; for a start ahead,
/// that the allocation's record is still there.
pub(super) trait Starter: Send {
    /// Records a step of the start of `allocation`: commits `txn`. [`Lost::Raced`] of the first step means
    /// that another start took the generation.
    fn record(
        &mut self,
        step: StartStep,
        allocation: &AllocationId,
        txn: Txn,
    ) -> impl Future<Output = Result<(), Lost>> + Send;
}

/// Gives a process its secrets; the only place their values pass through here.
pub trait Secrets: Send + Sync {
    /// Name and value of each secret that `contract` names for `environment`, and of those that the
    /// edge itself gives `allocation`: what runs beside one has no credential.
    ///
    /// # Errors
    /// What is missing, by name, never by value.
    fn of(
        &self,
        environment: &Environment,
        allocation: Option<&AllocationId>,
        contract: &Contract,
    ) -> Result<Vec<(String, String)>, String>;
}

/// Starts allocations, some at the same time; first come, first served.
pub struct Starts {
    node: Node,
    runner: Arc<dyn Runner>,
    trees: Arc<dyn TreeSource>,
    secrets: Arc<dyn Secrets>,
    permits: Arc<Semaphore>,
}

/// The permit of one start among all; given back when dropped, and while the start waits for a place.
pub(super) type StartPermit = Option<OwnedSemaphorePermit>;

impl Starts {
    /// At most `parallel` starts go on at a time.
    pub fn new(
        node: Node,
        runner: Arc<dyn Runner>,
        trees: Arc<dyn TreeSource>,
        secrets: Arc<dyn Secrets>,
        parallel: usize,
    ) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(parallel));
        Arc::new(Self { node, runner, trees, secrets, permits })
    }

    /// Waits until one more start may begin.
    pub(super) async fn permit(&self) -> StartPermit {
        // The semaphore is never closed.
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    /// Starts an allocation of an epoch that does not own its routes yet, so that it is ready the moment the
    /// owner moves there. It gets no request before: routing knows the owner's epoch only. Its record is
    /// there before its process is, and is taken off `allocations` if it does not become ready.
    ///
    /// # Errors
    /// [`NotStarted`]; nothing runs then.
    pub async fn start_ahead(
        &self,
        wanted: &StartRequest,
        allocations: &Allocations,
    ) -> Result<Allocation, NotStarted> {
        let mut permit = self.permit().await;
        let id = AllocationId::random(&*self.node.entropy);
        let mut by = Ahead(&self.node, wanted);
        let started = self.start(&mut by, wanted, &id, &mut permit).await;
        if let Err(e) = &started {
            let StartRequest { environment, .. } = wanted;
            log::warn!("{environment}: {id}: {e}\n{}", self.tail(&id).trim_end());
            let at = key::allocation(environment, &id);
            if let Ok(Some(found)) = self.node.read::<Allocation>(&at).await
                && let Err(e) = allocations.end(&found.record, SUPERSEDED, Txn::new()).await
            {
                log::warn!("{environment}: {id} stays in the registry: {e}");
            }
        }
        started
    }

    /// From `wanted` to a ready allocation, each step recorded by `by`. What was started runs still if this
    /// fails, and what was recorded stays: that is for the caller, who knows whether it may be taken away.
    ///
    /// # Errors
    /// [`NotStarted`].
    pub(super) async fn start(
        &self,
        by: &mut impl Starter,
        wanted: &StartRequest,
        id: &AllocationId,
        permit: &mut StartPermit,
    ) -> Result<Allocation, NotStarted> {
        let mut started = self.start_once(by, wanted, id, permit).await;
        if let Err(NotStarted::Failed(failure)) = &mut started {
            let environment = &wanted.environment;
            self.runner.note(environment, id, "web", &format!("did not start: {}", failure.detail));
            failure.detail.push_str(&see_logs(environment, id));
        }
        started
    }

    async fn start_once(
        &self,
        by: &mut impl Starter,
        wanted: &StartRequest,
        id: &AllocationId,
        permit: &mut StartPermit,
    ) -> Result<Allocation, NotStarted> {
        let spec = self.spec(wanted, id).await?;
        let clock = &self.node.clock;
        let (mut tries, mut waited) = (0, Duration::ZERO);
        let (mut record, started, took) = loop {
            tries += 1;
            let asked = clock.now();
            let room = self.room(wanted, permit).await?;
            waited += clock.now().since(asked);
            // Recorded before anything is spawned: a crash from here on leaves no process that no
            // record names.
            let record = self.plan(by, wanted, id, waited).await?;
            let spec = StartSpec { generation: record.generation, ..spec.clone() };
            let at = clock.now();
            match self.runner.start(spec, room).await {
                Ok(started) => break (record, started, clock.now().since(at)),
                // Another start of the environment was quicker.
                Err(StartError::Fenced { .. }) if tries < TRIES => {}
                Err(e) => return Err(e.into()),
            }
        };
        let at = key::allocation(&wanted.environment, id);
        let spawned = clock.now();
        record.state = AllocationState::Starting;
        record.address = Some(started.address);
        record.process = Some(started.process);
        by.record(StartStep::Spawned(took), id, Txn::new().put(&at, record.encode())).await?;
        self.runner.ready(id).await?;
        record.state = AllocationState::Ready;
        record.ready = Some(clock.wall());
        let took = clock.now().since(spawned);
        by.record(StartStep::Ready(took), id, Txn::new().put(&at, record.encode())).await?;
        Ok(record)
    }

    /// The end of what an allocation wrote, for the log.
    pub(super) fn tail(&self, id: &AllocationId) -> String {
        self.runner.log_tail(id, 2048).unwrap_or_default()
    }

    /// A place for one more process. Where the node is full it waits for one, first come, first served: at
    /// least for the app's wake budget, and for as long as a request waits for it.
    async fn room(
        &self,
        wanted: &StartRequest,
        permit: &mut StartPermit,
    ) -> Result<Room, StartError> {
        let full = match self.runner.try_room() {
            Ok(room) => return Ok(room),
            Err(full) => full,
        };
        let environment = &wanted.environment;
        let Some(view) = self.node.view(environment) else { return Err(full) };
        log::warn!("{environment} waits for a place: {full}");
        // What is in memory can be taken back meanwhile: that needs no place.
        drop(permit.take());
        // A start ahead of the owner's move is not what its requests wait for.
        let _waits = (wanted.epoch == view.owner.epoch).then(|| view.counters.waits_for_room());
        let until = self.node.clock.now() + view.contract.wake.budget;
        let mut next = pin!(self.runner.room());
        loop {
            tokio::select! {
                room = &mut next => {
                    *permit = self.permit().await;
                    return Ok(room);
                }
                () = tokio::time::sleep(ROOM_LOOK) => {}
            }
            if self.node.clock.now() >= until && view.counters.waiting() == 0 {
                return Err(full);
            }
        }
    }

    /// How `wanted` is started. Its generation is given out with its record, later.
    async fn spec(
        &self,
        wanted: &StartRequest,
        id: &AllocationId,
    ) -> Result<StartSpec, NotStarted> {
        let contract = self.contract(&wanted.environment, &wanted.deployment).await?;
        let program = self.program(wanted, Some(id), &contract).await?;
        let host = self.host(&wanted.environment);
        Ok(StartSpec {
            allocation: id.clone(),
            generation: Generation(0),
            program,
            ready: contract.process.ready,
            start_timeout: contract.wake.start_timeout,
            host: host.map_or_else(|| "localhost".into(), |h| h.to_string()),
        })
    }

    /// A host of the environment, of one that owns none yet the first that it is to own.
    fn host(&self, environment: &Environment) -> Option<Host> {
        let owned = self.node.view(environment).and_then(|v| v.hosts.first().cloned());
        owned.or_else(|| {
            let config = self.node.config.load();
            let app = config.apps.get(environment.app())?;
            app.hosts_of(environment).into_iter().next()
        })
    }

    /// The program of `contract` for a process: of `allocation`, or of a command that runs beside any. Which of two values of one name counts is said here and in what the runner adds.
    ///
    /// # Errors
    /// [`NotStarted::Failed`]: the artifact cannot be had, or a secret is not configured.
    pub(crate) async fn program(
        &self,
        wanted: &StartRequest,
        allocation: Option<&AllocationId>,
        contract: &Contract,
    ) -> Result<Program, NotStarted> {
        let Tree { root, used, .. } = self.tree(&wanted.digest).await?;
        let secrets = self.secrets.of(&wanted.environment, allocation, contract);
        let secrets = secrets.map_err(|e| NotStarted::failed("a secret is not configured", e))?;
        let at = key::variables(&wanted.environment);
        let variables = self.node.read::<Variables>(&at).await?;
        let set = variables.map(|v| v.record.for_start(&wanted.operation).clone());
        // An operator's values are meant as they are: no name in them is replaced.
        let set = set.into_iter().flatten().map(|(name, value)| (name, value.replace('$', "$$")));
        Ok(Program {
            environment: wanted.environment.clone(),
            epoch: wanted.epoch,
            digest: wanted.digest,
            root,
            needs: used.map_or_else(Needs::default, Needs::of),
            command: contract.process.command.clone(),
            path: contract.process.path.clone(),
            // Of two with one name the last counts.
            env: contract.process.env.clone().into_iter().chain(set).collect(),
            secrets,
            scratch: contract.process.scratch,
        })
    }

    /// The unpacked tree of `digest`, held as long as it says so. What an app wrote beside itself is said in the log.
    ///
    /// # Errors
    /// [`ArtifactError`]: it cannot be had.
    pub async fn tree(&self, digest: &Digest) -> Result<Tree, ArtifactError> {
        let snapshots = &self.node.snapshots;
        let in_use = || {
            let snapshot = snapshots.load();
            let mut all = snapshot.environments().flat_map(|v| v.ready.iter().chain(&v.others));
            all.any(|a| a.digest == *digest && a.pid.is_some())
        };
        let tree = self.trees.tree(digest, &in_use).await?;
        if let Some(Wrote { files, bytes, paths, removed }) = &tree.wrote {
            let what = if *removed {
                "removed: each start gets exactly the artifact"
            } else {
                "left there while another process runs from it"
            };
            // As Python's `__pycache__` is at each wake of an app that runs as root.
            log::info!(
                "an app wrote {files} files ({bytes} bytes) beside itself, into the tree of {digest}, and \
                 they are {what}: {paths}. What is to stay belongs below $HOME, what is not below $TMPDIR; \
                 `writable = \"scratch\"` in its contract gives it a view of its own to write to"
            );
        }
        Ok(tree)
    }

    /// The contract of a deployment.
    pub(crate) async fn contract(
        &self,
        environment: &Environment,
        deployment: &DeploymentId,
    ) -> Result<Contract, NotStarted> {
        let at = key::deployment(environment, deployment);
        let Some(found) = self.node.read::<Deployment>(&at).await? else {
            return Err(NotStarted::failed("the deployment is gone", format!("no record {at}")));
        };
        let file = std::path::Path::new("vango-edge.toml");
        contract::parse(file, &found.record.contract).map_err(|errors| {
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            NotStarted::failed("the artifact's contract cannot be read", all.join("; "))
        })
    }

    /// Gives out the next generation of the environment, with the record of what has it.
    async fn plan(
        &self,
        by: &mut impl Starter,
        wanted: &StartRequest,
        id: &AllocationId,
        waited: Duration,
    ) -> Result<Allocation, Lost> {
        let counter = key::starts(&wanted.environment);
        loop {
            let last = self.node.read::<Counter>(&counter).await?;
            let generation = last.as_ref().map_or(Generation(0), |f| f.record.generation).next();
            let record = Allocation {
                id: id.clone(),
                environment: wanted.environment.clone(),
                generation,
                epoch: wanted.epoch,
                digest: wanted.digest,
                state: AllocationState::Planned,
                address: None,
                process: None,
                operation: wanted.operation.clone(),
                created: self.node.clock.wall(),
                ready: None,
            };
            let txn = as_read(Txn::new(), &counter, last.as_ref())
                .put(&counter, Counter { generation }.encode())
                .put(key::allocation(&wanted.environment, id), record.encode());
            match by.record(StartStep::Planned(waited), id, txn).await {
                Ok(()) => return Ok(record),
                // Each time it is another start that went on: this ends.
                Err(Lost::Raced) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Where an operator finds what a process printed, as the end of a failure's text.
pub(super) fn see_logs(environment: &Environment, id: &AllocationId) -> String {
    format!(" (`vango-edge logs {environment} --allocation {id}` has what it printed)")
}

/// Records a start that no wake asked for.
struct Ahead<'a>(&'a Node, &'a StartRequest);

impl Starter for Ahead<'_> {
    async fn record(&mut self, step: StartStep, id: &AllocationId, txn: Txn) -> Result<(), Lost> {
        let txn = match step {
            StartStep::Planned(_) => txn,
            // An executor that lost its promotion meanwhile does not put back what the next one took away.
            _ => txn.exists(key::allocation(&self.1.environment, id)),
        };
        self.0.store.txn(txn).await?;
        Ok(())
    }
}

/// Why a start did not come about.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    /// It cannot be started, or did not become ready.
    #[error("{}", .0.detail)]
    Failed(Failure),
    /// The node has no place for it: nothing is known of the app.
    #[error("{}", .0.detail)]
    NoRoom(Failure),
    /// A step could not be recorded.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl NotStarted {
    fn failed(safe: &str, detail: String) -> Self {
        Self::Failed(Failure::new(safe, detail))
    }
}

impl From<ReadError> for NotStarted {
    fn from(e: ReadError) -> Self {
        Self::Lost(e.into())
    }
}

impl From<ArtifactError> for NotStarted {
    fn from(e: ArtifactError) -> Self {
        let failure = Failure::new(e.safe_cause(), e.to_string());
        Self::Failed(Failure { artifact: e.is_artifact(), ..failure })
    }
}

impl From<StartError> for NotStarted {
    fn from(e: StartError) -> Self {
        let failure = Failure::new(e.safe_cause(), e.to_string());
        match e {
            StartError::Full(_) => Self::NoRoom(failure),
            _ => Self::Failed(failure),
        }
    }
}
