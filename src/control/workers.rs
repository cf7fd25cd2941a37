//! Workers: processes of an environment that take no requests (`[[process.worker]]`). Each has a task of its own,
//! which starts it, freezes it, ends it, and starts it again with a back-off. What is to run now is decided by
//! [`vango_edge_core::control::beside`].
//!
//! Invariants: of a worker one process runs at a time, whatever owns the environment: the next is started when the
//! one before has ended. It is of the owner's artifact and epoch; once these are over it is told to end. One that
//! an earlier process of the edge left was ended before anything was routed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vango_edge_core::control::beside::{self, Wanted};
use vango_edge_core::wake::machine::{BackoffPolicy, PROVED, backoff};

use crate::contract::{Contract, Worker};
use crate::id::{AllocationId, Digest, Environment, Epoch, OperationId};
use crate::node::Node;
use crate::runner::{Once, OnceSpec, Prints, Runner};
use crate::wake::{StartRequest, Starts};

/// How often it is looked what is to run.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A worker of an environment.
type Key = (Environment, String);

/// What is known of one, for people.
#[derive(Debug, Clone)]
pub struct WorkerState {
    pub environment: Environment,
    pub name: String,
    /// `starting`, `running`, `frozen`, `ending` or `waiting` (before it is started again).
    pub state: &'static str,
    pub epoch: Epoch,
    pub digest: Digest,
    /// The mark of its process, as the log has it.
    pub id: Option<AllocationId>,
    pub pid: Option<u32>,
    /// How often in a row it ended by itself or did not start.
    pub failures: u32,
    /// Bytes of memory that it holds while it is frozen.
    pub frozen_bytes: u64,
}

/// Keeps workers running.
pub struct Workers {
    node: Node,
    starts: Arc<Starts>,
    runner: Arc<dyn Runner>,
    backoff: BackoffPolicy,
    kept: Mutex<BTreeMap<Key, WorkerState>>,
}

/// What is to run, and as what.
struct Goal {
    wanted: Wanted,
    worker: Worker,
    contract: Arc<Contract>,
    start: StartRequest,
}

impl Goal {
    fn is_still(&self, next: &Self) -> bool {
        let of = |goal: &Self| (goal.start.epoch, goal.start.digest);
        of(self) == of(next) && self.worker == next.worker
    }
}

impl Workers {
    /// Of what `starts` makes programs of, run by `runner`.
    pub fn new(
        node: Node,
        starts: Arc<Starts>,
        runner: Arc<dyn Runner>,
        backoff: BackoffPolicy,
    ) -> Arc<Self> {
        Arc::new(Self { node, starts, runner, backoff, kept: Mutex::default() })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Key, WorkerState>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that run or are about to, by environment.
    pub fn states(&self) -> Vec<WorkerState> {
        self.kept().values().cloned().collect()
    }

    /// Bytes of memory that an environment's workers hold while they are frozen.
    pub fn frozen_bytes(&self, environment: &Environment) -> u64 {
        let kept = self.kept();
        let own = kept.values().filter(|w| w.environment == *environment);
        own.map(|w| w.frozen_bytes).sum()
    }

    /// Keeps what is wanted running, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let snapshot = Arc::clone(&self.node.snapshots.load());
            for view in snapshot.environments() {
                for worker in &view.contract.process.workers {
                    if beside::wanted(view, worker) == Wanted::Running {
                        self.keep_detached((view.environment.clone(), worker.name.clone()));
                    }
                }
            }
        }
    }

    fn keep_detached(self: &Arc<Self>, key: Key) {
        let Some(goal) = self.goal(&key).filter(|goal| goal.wanted == Wanted::Running) else {
            return;
        };
        {
            let mut kept = self.kept();
            if kept.contains_key(&key) {
                return;
            }
            let (environment, name) = key.clone();
            let StartRequest { epoch, digest, .. } = goal.start;
            let (id, pid, failures, state, frozen_bytes) = (None, None, 0, "starting", 0);
            kept.insert(
                key.clone(),
                WorkerState {
                    environment,
                    name,
                    state,
                    epoch,
                    digest,
                    id,
                    pid,
                    failures,
                    frozen_bytes,
                },
            );
        }
        let workers = Arc::clone(self);
        tokio::spawn(async move {
            workers.keep(&key, goal).await;
            workers.kept().remove(&key);
        });
    }

    /// What is to become of it now; none where nothing of it is to run.
    fn goal(&self, (environment, name): &Key) -> Option<Goal> {
        let view = self.node.view(environment)?;
        let worker = view.contract.process.workers.iter().find(|w| w.name == *name)?.clone();
        let wanted = beside::wanted(&view, &worker);
        let start = StartRequest {
            environment: environment.clone(),
            deployment: view.owner.deployment.clone(),
            digest: view.owner.digest,
            epoch: view.owner.epoch,
            operation: OperationId::random(&*self.node.entropy),
        };
        let contract = Arc::clone(&view.contract);
        (wanted != Wanted::Nothing).then_some(Goal { wanted, worker, contract, start })
    }

    fn tell(&self, key: &Key, change: impl FnOnce(&mut WorkerState)) {
        if let Some(state) = self.kept().get_mut(key) {
            change(state);
        }
    }

    /// Starts it again and again, until nothing of it is wanted.
    async fn keep(&self, key: &Key, mut goal: Goal) {
        let mut failures = 0;
        loop {
            let began = self.node.clock.now();
            let ended = match self.start(key, &goal).await {
                Ok(once) => {
                    let why = self.watch(key, &goal, &once).await;
                    // The edge stops, and starts nothing more.
                    if why.is_some() && once.asked() {
                        return;
                    }
                    why
                }
                Err(why) => Some(why),
            };
            let (environment, name) = key;
            if let Some(why) = ended {
                if self.node.clock.now().since(began) >= PROVED {
                    failures = 0;
                }
                let pause = backoff(self.backoff, failures, self.node.entropy.next_u64());
                failures += 1;
                log::warn!("{environment}: the worker {name} {why}; next start in {pause:?}");
                self.tell(key, |s| {
                    (s.state, s.pid, s.failures) = ("waiting", None, failures);
                    s.frozen_bytes = 0;
                });
                let until = self.node.clock.now() + pause;
                // What changes meanwhile is not what failed.
                while self.node.clock.now() < until
                    && self.goal(key).is_some_and(|next| goal.is_still(&next))
                {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            match self.goal(key).filter(|next| next.wanted == Wanted::Running) {
                Some(next) => {
                    if !goal.is_still(&next) {
                        failures = 0;
                    }
                    goal = next;
                }
                None => return,
            }
        }
    }

    async fn start(&self, key: &Key, goal: &Goal) -> Result<Once, String> {
        let id = AllocationId::random(&*self.node.entropy);
        let StartRequest { epoch, digest, .. } = goal.start;
        self.tell(key, |s| {
            (s.state, s.id, s.epoch, s.digest) = ("starting", Some(id.clone()), epoch, digest);
        });
        let room = self.runner.try_room().map_err(|e| format!("was not started: {e}"))?;
        let program = self.starts.program(&goal.start, None, &goal.contract).await;
        let mut program = program.map_err(|e| format!("was not started: {e}"))?;
        program.command.clone_from(&goal.worker.command);
        program.env.extend(goal.worker.env.clone());
        let grace = goal.contract.process.stop_timeout;
        let name = goal.worker.name.clone();
        let spec =
            OnceSpec { id: id.clone(), name: name.clone(), program, prints: Prints::ToLog, grace };
        let once = self.runner.once(spec, room).await.map_err(|e| {
            self.runner.note(&goal.start.environment, &id, &name, &format!("did not start: {e}"));
            format!("was not started: {e}")
        })?;
        self.tell(key, |s| (s.state, s.pid) = ("running", Some(once.pid())));
        Ok(once)
    }

    /// Until it has ended; why, if it did so by itself.
    async fn watch(&self, key: &Key, goal: &Goal, once: &Once) -> Option<String> {
        let mut frozen = false;
        loop {
            tokio::select! {
                status = once.ended() => return Some(format!("ended: {status}")),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let next = self.goal(key).filter(|next| goal.is_still(next));
            let wanted = next.map_or(Wanted::Nothing, |next| next.wanted);
            let changed = match wanted {
                Wanted::Running if frozen => once.thaw(),
                Wanted::Frozen if !frozen => once.freeze().await,
                Wanted::Running | Wanted::Frozen => continue,
                Wanted::Nothing => break,
            };
            if let Err(e) = changed {
                log::warn!("{}: the worker {} is ended: {e}", key.0, key.1);
                break;
            }
            frozen = wanted == Wanted::Frozen;
            // What stands still does not grow.
            let bytes = if frozen { once.memory().await } else { 0 };
            let state = if frozen { "frozen" } else { "running" };
            self.tell(key, |s| (s.state, s.frozen_bytes) = (state, bytes));
        }
        self.tell(key, |s| (s.state, s.frozen_bytes) = ("ending", 0));
        once.end();
        once.ended().await;
        None
    }
}
