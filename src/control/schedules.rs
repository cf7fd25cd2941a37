//! What schedules start (`[[cron]]`): a process of the environment's owner, or a request to its app, which wakes
//! for it. When a time has come is decided by [`vango_edge_core::control::beside`].
//!
//! Invariants: that a time is run is on disk before anything of the run begins, so that no time is run twice,
//! whatever is killed when; of an entry one run goes on at a time; every run has a deadline, and is in the audit and
//! in the log of what its environment prints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Empty;
use tokio::time::Instant;
use vango_edge_core::control::beside::{Due, due};

use crate::app;
use crate::clock::Wall;
use crate::contract::{CronEntry, Task};
use crate::crash;
use crate::id::{AllocationId, Environment, OperationId};
use crate::node::{Node, ReadError, as_read};
use crate::record::ledger::AuditEvidence;
use crate::record::{CronEnd, CronRun, CronState, Record, key};
use crate::runner::{OnceSpec, Prints, Runner};
use crate::snapshot::EnvView;
use crate::store::Txn;
use crate::wake::{StartRequest, Starts, Wakes};

use super::one_offs::did_all;

/// How often it is looked whether a time has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often a request that waits for its app looks whether it is up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often records of entries that are gone are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// Says which entry a request is of. Clients cannot send it: the edge takes it off.
const HEADER: &str = "vango-edge-cron";

/// An entry of an environment.
type Key = (Environment, String);

/// An entry as people see it.
#[derive(Debug, Clone)]
pub struct CronView {
    pub environment: Environment,
    pub entry: CronEntry,
    /// When it runs next.
    pub next: Option<Wall>,
    pub last: Option<CronRun>,
}

/// Takes down what became of a run.
pub type Decided = Box<dyn Fn(AuditEvidence) + Send + Sync>;

/// Runs what schedules say.
pub struct Schedules {
    node: Node,
    starts: Arc<Starts>,
    runner: Arc<dyn Runner>,
    wakes: Arc<Wakes>,
    decided: Decided,
    /// Up to when each entry is settled, as it is on record.
    settled: Mutex<BTreeMap<Key, Wall>>,
    /// Those that run now.
    running: Mutex<BTreeSet<Key>>,
}

impl Schedules {
    /// Every run is told to `decided`.
    pub fn new(
        node: Node,
        starts: Arc<Starts>,
        runner: Arc<dyn Runner>,
        wakes: Arc<Wakes>,
        decided: Decided,
    ) -> Arc<Self> {
        let (settled, running) = Default::default();
        Arc::new(Self { node, starts, runner, wakes, decided, settled, running })
    }

    /// Runs what is due, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut forgot = self.node.clock.now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let snapshot = Arc::clone(&self.node.snapshots.load());
            for view in snapshot.environments() {
                for entry in entries(view) {
                    if let Err(e) = self.look(view, entry).await {
                        let name = &entry.name;
                        log::warn!("{}: the schedule {name} was not read: {e}", view.environment);
                    }
                }
            }
            if self.node.clock.now().since(forgot) >= FORGET_EVERY {
                forgot = self.node.clock.now();
                if let Err(e) = self.forget().await {
                    log::warn!("old records of schedules were not removed: {e}");
                }
            }
        }
    }

    /// Every entry, with its next and its last run.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn views(&self) -> Result<Vec<CronView>, ReadError> {
        let snapshot = Arc::clone(&self.node.snapshots.load());
        let now = self.node.clock.wall();
        let mut all = Vec::new();
        for view in snapshot.environments() {
            for entry in entries(view) {
                let environment = view.environment.clone();
                let at = key::cron(&environment, &entry.name);
                let found = self.node.read::<CronState>(&at).await?.map(|f| f.record);
                let settled = found.as_ref().map_or(now, |state| state.settled.max(now));
                let next = entry.schedule.after(settled);
                let (entry, last) = (entry.clone(), found.and_then(|state| state.last));
                all.push(CronView { environment, entry, next, last });
            }
        }
        all.sort_by(|a, b| (&a.environment, &a.entry.name).cmp(&(&b.environment, &b.entry.name)));
        Ok(all)
    }

    async fn look(
        self: &Arc<Self>,
        view: &Arc<EnvView>,
        entry: &CronEntry,
    ) -> Result<(), ReadError> {
        let key = (view.environment.clone(), entry.name.clone());
        let known = locked(&self.settled).get(&key).copied();
        let settled = match known {
            Some(settled) => settled,
            None => self.first(&key).await?,
        };
        let now = self.node.clock.wall();
        match due(&entry.schedule, entry.missed, settled, now) {
            Due::Wait => {}
            Due::Reset => {
                log::warn!(
                    "{}: the clock was at {settled} before and is at {now}: the schedule {} goes on from here",
                    key.0,
                    key.1
                );
                self.settle(&key, now, None).await?;
            }
            Due::Missed(at) => {
                if self.settle(&key, now, None).await? {
                    self.tell(&key, "cron-missed", &format!("{}: due at {at} and later, while no edge ran or the clock stood elsewhere", key.1));
                }
            }
            Due::Run(at) if !locked(&self.running).insert(key.clone()) => {
                if self.settle(&key, now, None).await? {
                    self.tell(
                        &key,
                        "cron-skipped",
                        &format!("{}: due at {at} while its last run goes on", key.1),
                    );
                }
            }
            Due::Run(at) => {
                let owner = &view.owner;
                let (epoch, digest) = (owner.epoch, owner.digest);
                let run = CronRun { due: at, started: now, epoch, digest, ended: None };
                let recorded = self.settle(&key, now, Some(run)).await;
                if !matches!(recorded, Ok(true)) {
                    locked(&self.running).remove(&key);
                    return recorded.map(|_| ());
                }
                let (schedules, view, entry) = (Arc::clone(self), Arc::clone(view), entry.clone());
                tokio::spawn(async move {
                    schedules.carry(&key, &view, &entry, at).await;
                    locked(&schedules.running).remove(&key);
                });
            }
        }
        Ok(())
    }

    /// An entry that this process sees for the first time: what is on record, or settled up to now. A run that an
    /// earlier process began ended with it.
    async fn first(&self, key: &Key) -> Result<Wall, ReadError> {
        let at = key::cron(&key.0, &key.1);
        let now = self.node.clock.wall();
        let found = self.node.read::<CronState>(&at).await?;
        // It is read again after an error of the store, while a run of this process goes on.
        let ours = locked(&self.running).contains(key);
        let open =
            |state: &CronState| !ours && state.last.as_ref().is_some_and(|run| run.ended.is_none());
        let settled = match &found {
            Some(found) if !open(&found.record) => found.record.settled,
            _ => {
                let mut state = found.as_ref().map_or_else(|| new(key, now), |f| f.record.clone());
                let end = CronEnd { at: now, ok: false, how: "the edge ended while it ran".into() };
                if let Some(last) = &mut state.last {
                    last.ended = Some(end);
                    self.tell(
                        key,
                        "cron-failed",
                        &format!("{}: the edge ended while it ran", key.1),
                    );
                }
                let txn = as_read(Txn::new(), &at, found.as_ref()).put(&at, state.encode());
                self.node.commit(txn).await?;
                state.settled
            }
        };
        locked(&self.settled).insert(key.clone(), settled);
        Ok(settled)
    }

    /// Puts on record, on disk, that an entry is settled up to `now`, and a run if one begins; `false` when another
    /// transaction was quicker.
    async fn settle(&self, key: &Key, now: Wall, run: Option<CronRun>) -> Result<bool, ReadError> {
        let at = key::cron(&key.0, &key.1);
        let found = self.node.read::<CronState>(&at).await?;
        let mut state = found.as_ref().map_or_else(|| new(key, now), |f| f.record.clone());
        state.settled = now;
        if run.is_some() {
            state.last = run;
            crash::before("cron", "started");
        }
        let txn = as_read(Txn::new(), &at, found.as_ref()).put(&at, state.encode()).synced();
        if let Err(e) = self.node.commit(txn).await {
            // It is read anew with the next look.
            locked(&self.settled).remove(key);
            return if e.is_conflict() { Ok(false) } else { Err(e) };
        }
        if state.last.as_ref().is_some_and(|run| run.started == now) {
            crash::after("cron", "started");
        }
        locked(&self.settled).insert(key.clone(), now);
        Ok(true)
    }

    /// Runs it to its end, which is put on record.
    async fn carry(&self, key: &Key, view: &EnvView, entry: &CronEntry, due: Wall) {
        let (environment, name) = key;
        log::info!("{environment}: the schedule {name} runs, due at {due}");
        let done = match &entry.task {
            Task::Command { command, env } => {
                let env = env.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
                self.command(view, entry, command.clone(), env).await
            }
            Task::Request { method, path } => {
                let asked = self.request(environment, entry, method, path);
                let limit = format!("no answer within {:?}", entry.timeout);
                tokio::time::timeout(entry.timeout, asked).await.unwrap_or(Err(limit))
            }
        };
        let (ok, how) = match done {
            Ok(how) => (true, how),
            Err(how) => (false, how),
        };
        let decision = if ok { "cron-ran" } else { "cron-failed" };
        self.tell(key, decision, &format!("{name}: due at {due}: {how}"));
        if !ok {
            log::warn!("{environment}: the schedule {name} failed: {how}");
        }
        let end = CronEnd { at: self.node.clock.wall(), ok, how };
        if let Err(e) = self.end(key, due, end).await {
            log::warn!("{environment}: how the schedule {name} ended is not on record: {e}");
        }
    }

    async fn end(&self, key: &Key, due: Wall, end: CronEnd) -> Result<(), ReadError> {
        let at = key::cron(&key.0, &key.1);
        // Bounded: each try but the last follows a change by another transaction.
        for _ in 0..5 {
            let Some(found) = self.node.read::<CronState>(&at).await? else { return Ok(()) };
            let mut state = found.record.clone();
            let Some(last) = state.last.as_mut().filter(|last| last.due == due) else {
                return Ok(());
            };
            last.ended = Some(end.clone());
            let txn = found.unchanged().put(&at, state.encode());
            match self.node.commit(txn).await {
                Err(e) if e.is_conflict() => {}
                done => return done.map(|_| ()),
            }
        }
        Ok(())
    }

    /// A process of the owner; how it ended.
    async fn command(
        &self,
        view: &EnvView,
        entry: &CronEntry,
        command: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<String, String> {
        let id = AllocationId::random(&*self.node.entropy);
        let start = StartRequest {
            environment: view.environment.clone(),
            deployment: view.owner.deployment.clone(),
            digest: view.owner.digest,
            epoch: view.owner.epoch,
            operation: OperationId::random(&*self.node.entropy),
        };
        // One deadline: what it waits for room is of its time.
        let until = Instant::now() + entry.timeout;
        let room = tokio::time::timeout_at(until, self.runner.room()).await;
        let full = "it was not started: the node runs as many processes as it may";
        let room = room.map_err(|_| full)?;
        let program = self.starts.program(&start, None, &view.contract).await;
        let mut program = program.map_err(|e| format!("it was not started: {e}"))?;
        program.command = command;
        program.env.extend(env);
        let grace = view.contract.process.stop_timeout;
        let (name, prints) = (entry.name.clone(), Prints::ToLog);
        let spec = OnceSpec { id: id.clone(), name: name.clone(), program, prints, grace };
        let once = self.runner.once(spec, room).await.map_err(|e| {
            self.runner.note(&view.environment, &id, &name, &format!("did not start: {e}"));
            format!("it was not started: {e}")
        })?;
        let ended = tokio::time::timeout_at(until, once.ended()).await;
        match ended {
            Ok(status) if did_all(status, once.asked()) => Ok(status.to_string()),
            Ok(status) if once.asked() => Err(format!("the edge ended while it ran: {status}")),
            Ok(status) => Err(status.to_string()),
            Err(_) => {
                once.end();
                let status = once.ended().await;
                Err(format!("ended after {:?}, its timeout: {status}", entry.timeout))
            }
        }
    }

    /// A request to the app once it is up; its status. The caller bounds the time.
    async fn request(
        &self,
        environment: &Environment,
        entry: &CronEntry,
        method: &Method,
        path: &str,
    ) -> Result<String, String> {
        loop {
            let view = self.node.view(environment).ok_or("its routes have no owner any more")?;
            let own = view.ready.iter().filter(|a| view.has_authority(a.epoch, &a.digest));
            let place = own.filter_map(|a| Some((a, a.address?, a.load.reserve(a.concurrency)?)));
            let Some((allocation, address, _place)) = place.into_iter().next() else {
                if view.ready.is_empty() {
                    self.wakes.wake(environment).await;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            };
            view.counters.touch(self.node.clock.now());
            let host = view.hosts.first().map_or_else(|| "localhost".into(), ToString::to_string);
            let https = self.node.config.load().server.sees_https();
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, &host)
                .header(header::USER_AGENT, "vango-edge-cron")
                .header(header::CONNECTION, "close")
                .header("x-forwarded-for", "127.0.0.1")
                .header("x-forwarded-host", &host)
                .header("x-forwarded-proto", if https { "https" } else { "http" })
                .header(HEADER, &entry.name);
            for (name, value) in &allocation.headers {
                request = request.header(name, value);
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
            // Sent once: what came of it without an answer is not known.
            let answer = app::ask(address, allocation.contract.process.protocol, request).await;
            view.counters.touch(self.node.clock.now());
            let status = answer.map_err(|e| format!("{method} {path}: no answer: {e}"))?.status;
            let said = format!("{method} {path}: status {}", status.as_u16());
            return if status.is_success() { Ok(said) } else { Err(said) };
        }
    }

    fn tell(&self, (environment, _): &Key, decision: &str, why: &str) {
        let now = self.node.clock.wall();
        (self.decided)(AuditEvidence::of_environment(environment, now, decision, why));
    }

    /// Removes the records of entries that no contract has any more.
    async fn forget(&self) -> Result<(), ReadError> {
        let snapshot = Arc::clone(&self.node.snapshots.load());
        let kept: BTreeSet<Key> = snapshot
            .environments()
            .flat_map(|v| entries(v).map(|e| (v.environment.clone(), e.name.clone())))
            .collect();
        for found in self.node.readable::<CronState>(key::CRON).await? {
            let key = (found.record.environment.clone(), found.record.name.clone());
            if !kept.contains(&key) {
                self.node.commit_if(found.unchanged().delete(&found.at)).await?;
                locked(&self.settled).remove(&key);
            }
        }
        Ok(())
    }
}

fn new((environment, name): &Key, now: Wall) -> CronState {
    CronState { environment: environment.clone(), name: name.clone(), settled: now, last: None }
}

/// The entries that an environment runs.
fn entries(view: &EnvView) -> impl Iterator<Item = &CronEntry> {
    let production = view.environment.is_production();
    let all = view.contract.cron.iter().filter(|_| !view.external);
    all.filter(move |entry| production || entry.previews)
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
