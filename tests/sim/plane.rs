//! What changes shared truth: asks, executors, exits and sleep, with the transactions of
//! `src/wake/worker.rs` and `src/control/sleep.rs`, cut where another task or node may come in
//! between.

use std::time::Duration;

use vango_edge::clock::{Clock, Entropy, Mono};
use vango_edge::id::{AllocationId, Environment, Generation, OperationId};
use vango_edge::lifecycle::admit::Woke;
use vango_edge::store::record::{
    Allocation, AllocationState, Executor as ExecutorRecord, Failure, Operation, Record,
    RouteOwner, Starts, WakeState, key,
};
use vango_edge::wake::machine::{self, BackoffPolicy, Ensure, WakeEvent, advance, backoff};

use crate::edge::State;
use crate::store::Txn;
use crate::world::Sim;

const BACKOFF: BackoffPolicy =
    BackoffPolicy { first: Duration::from_secs(1), max: Duration::from_secs(8) };

/// An ask that goes on for all who joined it.
#[derive(Default)]
pub struct Ask {
    /// The requests that wait for its answer.
    pub joined: Vec<usize>,
    /// What is to be written, if it has read already.
    write: Option<(Txn, OperationId)>,
    tries: u32,
}

/// A process, as the runner of its node knows it.
pub struct Process {
    pub environment: Environment,
    pub alive: bool,
    /// Its end is not noted: it was ended on purpose.
    asked: bool,
}

/// Where an executor is.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    Claim,
    EndEarlier,
    Plan,
    Spawn,
    RecordSpawned,
    Readiness,
    RecordReady,
    Fail(&'static str),
    /// Lets its claim go; with or without having come to an end.
    Release(bool),
    /// Comes back after it lost its claim.
    Again(Mono),
}

/// An executor of one operation.
pub struct Executor {
    pub node: usize,
    pub environment: Environment,
    pub stage: Stage,
    pub claim: Option<Claim>,
    record: Option<Allocation>,
}

pub struct Claim {
    pub operation: Operation,
    revision: u64,
    pub executor_revision: u64,
}

/// An environment on its way to sleep.
pub struct Sleeper {
    draining: Vec<(String, Allocation, u64)>,
    started: Mono,
}

impl Sleeper {
    /// When the longest limit of any contract is over.
    pub fn limit(&self) -> Mono {
        self.started + Duration::from_secs(11)
    }
}

impl Sim {
    /// `Worker::wake_detached`: the caller does not wait for the answer.
    pub fn ask(&mut self, environment: &Environment) {
        if !self.asking.contains_key(environment) {
            self.happened("a wake was asked for again by those who wait");
            self.note(|_| format!("{environment} is asked to wake by its queue"));
        }
        self.asking.entry(environment.clone()).or_default();
    }

    /// `Worker::wake`, up to where it waits.
    pub fn join(&mut self, environment: &Environment, n: usize) {
        self.asking.entry(environment.clone()).or_default().joined.push(n);
    }

    /// One step of `Worker::ensure`: reads and decides, or writes.
    pub fn ask_step(&mut self, environment: &Environment) {
        let Some(mut ask) = self.asking.remove(environment) else { return };
        if !self.calm && self.dice.one_in(60) {
            return self.tell(environment, ask, Woke::Unavailable);
        }
        if let Some((txn, id)) = ask.write.take() {
            if self.store.holds(&txn) {
                self.check_no_start_in_backoff(environment);
            }
            return match self.commit(txn) {
                Ok(_) => self.tell(environment, ask, Woke::Operation { id, created: true }),
                Err(_) => {
                    self.happened("an ask lost its transaction");
                    ask.tries += 1;
                    if ask.tries == 5 {
                        return self.tell(environment, ask, Woke::Unavailable);
                    }
                    self.asking.insert(environment.clone(), ask);
                }
            };
        }
        let view = self.snapshots.load().environment(environment).cloned();
        let Some(view) = view else { return self.tell(environment, ask, Woke::Unavailable) };
        let owner_key = key::owner(&view.hosts[0], "/");
        let Some(entry) = self.store.get(&owner_key).cloned() else {
            return self.tell(environment, ask, Woke::Unavailable);
        };
        let owner = RouteOwner::decode(&entry.value).unwrap();
        let current = self.stored_operation(environment);
        let id = OperationId::random(&*self.entropy);
        let (now, wall) = (self.now(), self.clock.wall());
        let ensured = machine::ensure(current.as_ref().map(|c| &c.0), &owner, &view, id, now, wall);
        match ensured {
            Ensure::Attach(id) => {
                self.tell(environment, ask, Woke::Operation { id, created: false });
            }
            Ensure::Ready => self.tell(environment, ask, Woke::Ready),
            Ensure::Moved => {
                self.happened("a wake was asked for a host that had moved");
                self.tell(environment, ask, Woke::Ready);
            }
            Ensure::BackingOff => self.tell(environment, ask, Woke::BackingOff),
            Ensure::Create(operation) => {
                let at = key::operation(environment);
                let txn = Txn::new()
                    .unchanged(owner_key, entry.mod_revision)
                    .replaces(&at, current.map(|c| c.1))
                    .put(&at, operation.encode());
                ask.write = Some((txn, operation.id.clone()));
                self.asking.insert(environment.clone(), ask);
            }
        }
    }

    fn tell(&mut self, environment: &Environment, ask: Ask, woke: Woke) {
        self.note(|_| format!("the ask for {environment} ends: {woke:?}"));
        let mut first = true;
        for n in ask.joined {
            if let State::Asking { answer, .. } = &mut self.requests[n].state {
                *answer = Some(match &woke {
                    Woke::Operation { id, created } => {
                        Woke::Operation { id: id.clone(), created: *created && first }
                    }
                    other => other.clone(),
                });
            }
            first = false;
        }
    }

    /// `Worker::consider`, by this node's snapshot.
    pub fn consider(&mut self, environment: &Environment) {
        let in_progress = self
            .snapshots
            .load()
            .environment(environment)
            .and_then(|v| v.operation.as_ref())
            .is_some_and(|o| o.state.in_progress());
        if in_progress {
            self.take_up(0, environment);
        }
    }

    /// An executor on `node`, unless it has one for the environment.
    pub fn take_up(&mut self, node: usize, environment: &Environment) {
        if !self.executing[node].insert(environment.clone()) {
            return;
        }
        let executor = Executor {
            node,
            environment: environment.clone(),
            stage: Stage::Claim,
            claim: None,
            record: None,
        };
        self.executors.insert(self.next_executor, executor);
        self.next_executor += 1;
    }

    /// One step of `Worker::execute`.
    pub fn execute(&mut self, id: u32) {
        let Some(mut x) = self.executors.remove(&id) else { return };
        let before = x.stage.clone();
        self.execute_step(&mut x);
        self.note(|_| format!("executor {id} of {}: {before:?} → {:?}", x.environment, x.stage));
        match x.stage {
            Stage::Release(ended) if before == x.stage => self.released_claim(x, ended),
            Stage::Again(at) if before == x.stage && self.now() >= at => {
                self.executing[x.node].remove(&x.environment);
                if x.node == 0 {
                    self.consider(&x.environment);
                }
            }
            _ => {
                self.executors.insert(id, x);
            }
        }
    }

    /// The lease is let go, and the environment looked at again.
    fn released_claim(&mut self, mut x: Executor, ended: bool) {
        if let Some(claim) = &x.claim {
            let at = key::executor(&x.environment);
            // A lease takes only its own key with it.
            let _ = self.commit(Txn::new().unchanged(&at, claim.executor_revision).delete(&at));
        }
        if ended {
            self.executing[x.node].remove(&x.environment);
            if x.node == 0 {
                self.consider(&x.environment);
            }
        } else {
            x.stage = Stage::Again(self.now() + Duration::from_secs(1));
            self.executors.insert(self.next_executor, x);
            self.next_executor += 1;
        }
    }

    fn execute_step(&mut self, x: &mut Executor) {
        x.stage = match x.stage.clone() {
            Stage::Claim => self.claim(x),
            Stage::EndEarlier => self.end_earlier(x),
            Stage::Plan if self.trouble(10) => Stage::Fail("the artifact is damaged"),
            Stage::Plan => self.plan(x),
            Stage::Spawn => self.spawn(x),
            Stage::RecordSpawned => {
                let record = x.record.as_mut().unwrap();
                record.state = AllocationState::Starting;
                record.address = Some("127.0.0.1:4000".parse().unwrap());
                self.record(x, WakeEvent::Spawned { spawn_us: 900 }, Stage::Readiness)
            }
            Stage::Readiness => self.readiness(x),
            Stage::RecordReady => {
                let wall = self.clock.wall();
                let record = x.record.as_mut().unwrap();
                record.state = AllocationState::Ready;
                record.ready = Some(wall);
                self.record(x, WakeEvent::Ready { ready_us: 21_000 }, Stage::Release(true))
            }
            Stage::Fail(why) => self.fail(x, why),
            other => other,
        };
        if x.stage == Stage::Release(false) {
            self.happened("an executor was lost");
            // It ends what it started.
            if let Some(record) = &x.record {
                self.end_process(&record.id.clone());
            }
        }
    }

    fn trouble(&self, one_in: usize) -> bool {
        !self.calm && self.dice.one_in(one_in)
    }

    /// `Worker::claim`.
    fn claim(&mut self, x: &mut Executor) -> Stage {
        let at = key::operation(&x.environment);
        let Some((operation, revision)) = self.stored_operation(&x.environment) else {
            return Stage::Release(false);
        };
        if !operation.state.in_progress() {
            return Stage::Release(false);
        }
        let wall = self.clock.wall();
        let next = match advance(&operation, WakeEvent::Claimed { reserve_us: 100 }, wall) {
            Ok(next) => next,
            Err(e) => self.broken(e.to_string()),
        };
        let executor_key = key::executor(&x.environment);
        let record = ExecutorRecord {
            node: format!("node-{}", x.node),
            operation: next.id.clone(),
            attempt: next.attempt,
        };
        let txn = Txn::new()
            .absent(&executor_key)
            .unchanged(&at, revision)
            .put(&executor_key, record.encode())
            .put(&at, next.encode());
        let Ok(revision) = self.commit(txn) else { return Stage::Release(false) };
        self.attempts += 1;
        x.claim = Some(Claim { operation: next, revision, executor_revision: revision });
        Stage::EndEarlier
    }

    /// `Worker::end_earlier_attempts`.
    fn end_earlier(&mut self, x: &Executor) -> Stage {
        let prefix = key::allocations(&x.environment);
        let all: Vec<_> = self
            .store
            .list(&prefix)
            .map(|(at, e)| (at.clone(), Allocation::decode(&e.value).unwrap(), e.clone()))
            .collect();
        let claimed = x.claim.as_ref().unwrap().executor_revision;
        for (at, left, entry) in all {
            let earlier = entry.create_revision < claimed;
            if earlier && matches!(left.state, AllocationState::Planned | AllocationState::Starting)
            {
                self.end_process(&left.id);
                let txn = Txn::new()
                    .unchanged(key::executor(&x.environment), claimed)
                    .unchanged(&at, entry.mod_revision)
                    .delete(&at);
                if self.commit(txn).is_err() {
                    return Stage::Release(false);
                }
            }
        }
        Stage::Plan
    }

    /// `Worker::plan`.
    fn plan(&mut self, x: &mut Executor) -> Stage {
        let starts_key = key::starts(&x.environment);
        let stored = self.store.get(&starts_key).cloned();
        let last = stored.as_ref().map(|e| Starts::decode(&e.value).unwrap());
        let generation = last.map_or(Generation(0), |s| s.generation).next();
        let operation = &x.claim.as_ref().unwrap().operation;
        let record = Allocation {
            id: AllocationId::random(&*self.entropy),
            environment: x.environment.clone(),
            generation,
            epoch: operation.epoch,
            digest: operation.digest,
            state: AllocationState::Planned,
            address: None,
            process: None,
            operation: operation.id.clone(),
            created: self.clock.wall(),
            ready: None,
        };
        let (at, value) = (key::allocation(&x.environment, &record.id), record.encode());
        let event = WakeEvent::Planned { allocation: record.id.clone(), artifact_us: 200 };
        x.record = Some(record);
        let planned = self.commit_step(x, event, |txn| {
            txn.replaces(&starts_key, stored.map(|e| e.mod_revision))
                .put(&starts_key, Starts { generation }.encode())
                .put(at, value)
        });
        if planned { Stage::Spawn } else { Stage::Release(false) }
    }

    /// `Runner::start`.
    fn spawn(&mut self, x: &Executor) -> Stage {
        let operation = &x.claim.as_ref().unwrap().operation;
        if !self.starts.insert((operation.id.clone(), operation.attempt)) {
            self.broken(format!("{} attempt {} starts twice", operation.id, operation.attempt));
        }
        if self.trouble(10) {
            return Stage::Fail("it could not be spawned");
        }
        let id = x.record.as_ref().unwrap().id.clone();
        let process = Process { environment: x.environment.clone(), alive: true, asked: false };
        self.processes.insert(id, process);
        Stage::RecordSpawned
    }

    /// `Runner::ready`.
    fn readiness(&mut self, x: &Executor) -> Stage {
        let id = &x.record.as_ref().unwrap().id;
        if !self.processes[id].alive {
            Stage::Fail("it exited before it was ready")
        } else if self.trouble(12) {
            self.happened("a start timed out");
            Stage::Fail("it was not ready in time")
        } else if self.trouble(2) {
            Stage::Readiness
        } else {
            Stage::RecordReady
        }
    }

    /// `Worker::fail`.
    fn fail(&mut self, x: &mut Executor, why: &str) -> Stage {
        self.happened("a start failed");
        if let Some(record) = &x.record {
            self.end_process(&record.id.clone());
        }
        let failures = x.claim.as_ref().unwrap().operation.failures;
        let pause = backoff(BACKOFF, failures, self.entropy.next_u64());
        let failure = Failure { safe: why.into(), detail: why.into(), artifact: false };
        let gone = x.record.as_ref().map(|r| key::allocation(&x.environment, &r.id));
        let failed =
            self.commit_step(x, WakeEvent::Failed { failure, backoff: pause }, |txn| match gone {
                Some(gone) => txn.delete(gone),
                None => txn,
            });
        Stage::Release(failed)
    }

    /// One transition with its allocation's record.
    fn record(&mut self, x: &mut Executor, event: WakeEvent, next: Stage) -> Stage {
        let record = x.record.as_ref().unwrap();
        let (at, value) = (key::allocation(&x.environment, &record.id), record.encode());
        if self.commit_step(x, event, |t| t.put(at, value)) { next } else { Stage::Release(false) }
    }

    /// `Worker::commit`.
    fn commit_step(
        &mut self,
        x: &mut Executor,
        event: WakeEvent,
        with: impl FnOnce(Txn) -> Txn,
    ) -> bool {
        let wall = self.clock.wall();
        let claim = x.claim.as_mut().unwrap();
        let next = match advance(&claim.operation, event, wall) {
            Ok(next) => next,
            Err(e) => self.broken(e.to_string()),
        };
        let at = key::operation(&next.environment);
        let txn = Txn::new()
            .unchanged(&at, claim.revision)
            .unchanged(key::executor(&next.environment), claim.executor_revision)
            .put(&at, next.encode());
        match self.commit(with(txn)) {
            Ok(revision) => {
                claim.revision = revision;
                claim.operation = next;
                true
            }
            Err(_) => false,
        }
    }

    /// `Runner::stop` and `Runner::end_leftover`: an end that was asked for is not reported.
    fn end_process(&mut self, id: &AllocationId) {
        if let Some(process) = self.processes.get_mut(id) {
            process.alive = false;
            process.asked = true;
        }
    }

    /// A process ends by itself; the runner tells.
    pub fn exit(&mut self, id: &AllocationId) {
        self.note(|_| format!("{id} exits"));
        let process = self.processes.get_mut(id).unwrap();
        process.alive = false;
        if !process.asked {
            self.exits.push((process.environment.clone(), id.clone()));
        }
    }

    /// `Worker::exited`.
    pub fn take_exit(&mut self, at: usize) {
        let (environment, id) = self.exits.remove(at);
        self.exited(&environment, &id);
    }

    fn exited(&mut self, environment: &Environment, id: &AllocationId) {
        let at = key::allocation(environment, id);
        let Some(entry) = self.store.get(&at).cloned() else { return };
        let record = Allocation::decode(&entry.value).unwrap();
        self.note(|_| format!("the end of {id} is recorded; it was {:?}", record.state));
        if matches!(record.state, AllocationState::Planned | AllocationState::Starting) {
            self.happened("an exit was seen before its readiness was recorded");
            // Looked at again, for as long as its executor may write.
            let executed = |x: &Executor| {
                !matches!(x.stage, Stage::Release(_) | Stage::Again(_))
                    && x.record.as_ref().is_some_and(|r| r.id == *id)
            };
            if self.executors.values().any(executed) {
                self.exits.push((environment.clone(), id.clone()));
            }
            return;
        }
        let mut txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
        let lived = record.ready.map(|r| self.clock.wall().since(r));
        if lived.is_some_and(|d| d >= machine::PROVED) {
            self.happened("an allocation ended after it had proved itself");
        } else if let Some((operation, revision)) = self.stored_operation(environment)
            && operation.allocation.as_ref() == Some(id)
            && operation.state == WakeState::Hot
        {
            self.happened("an allocation ended right after it was ready");
            let pause = backoff(BACKOFF, operation.failures, self.entropy.next_u64());
            let failure = Failure {
                safe: "it ended right after it became ready".into(),
                detail: String::new(),
                artifact: false,
            };
            let event = WakeEvent::Failed { failure, backoff: pause };
            let next = match advance(&operation, event, self.clock.wall()) {
                Ok(next) => next,
                Err(e) => self.broken(e.to_string()),
            };
            let at = key::operation(environment);
            txn = txn.unchanged(&at, revision).put(&at, next.encode());
        }
        if self.commit(txn).is_err() {
            self.broken("nothing comes in between here");
        }
    }

    /// A lease ends: its executor is paused, or gone.
    pub fn lose_lease(&mut self, environment: &Environment) {
        self.note(|_| format!("the executor's lease of {environment} ends"));
        let txn = Txn::new().delete(key::executor(environment));
        let _ = self.commit(txn);
    }

    /// A node goes down with its executor; its processes stay.
    pub fn crash(&mut self, id: u32) {
        let Some(x) = self.executors.remove(&id) else { return };
        self.happened("an executor crashed");
        self.note(|_| format!("executor {id} of {} crashes", x.environment));
        self.executing[x.node].remove(&x.environment);
    }

    /// `Control::sleep`, up to where it waits.
    pub fn sleep(&mut self, environment: &Environment) {
        if self.sleepers.contains_key(environment) {
            return;
        }
        let all: Vec<_> = self
            .store
            .list(&key::allocations(environment))
            .map(|(at, e)| (at.clone(), Allocation::decode(&e.value).unwrap(), e.mod_revision))
            .collect();
        let mut draining = Vec::new();
        for (at, mut record, revision) in all {
            match record.state {
                AllocationState::Ready => {
                    record.state = AllocationState::Draining;
                    let txn = Txn::new().unchanged(&at, revision).put(&at, record.encode());
                    let Ok(revision) = self.commit(txn) else { continue };
                    draining.push((at, record, revision));
                }
                AllocationState::Draining => draining.push((at, record, revision)),
                // Taking back and freezing are shown from outside, in tests/e2e.
                AllocationState::Planned
                | AllocationState::Starting
                | AllocationState::Frozen
                | AllocationState::Stopping => {}
            }
        }
        self.note(|_| format!("{environment} goes to sleep: {} to drain", draining.len()));
        let sleeper = Sleeper { draining, started: self.now() };
        self.sleepers.insert(environment.clone(), sleeper);
    }

    /// `Control::drained`, and the end of what is.
    pub fn drain(&mut self, environment: &Environment) {
        let Some(mut sleeper) = self.sleepers.remove(environment) else { return };
        let view = self.snapshots.load().environment(environment).cloned();
        let now = self.clock.now();
        let (ended, left): (Vec<_>, _) = sleeper.draining.into_iter().partition(|(_, r, _)| {
            let Some(view) = &view else { return true };
            let found = view.ready.iter().chain(&view.others).find(|a| a.id == r.id);
            let ready = view.ready.iter().any(|a| a.id == r.id);
            let in_flight = found.map_or(0, |a| a.load.in_flight());
            (!ready && in_flight == 0)
                || now.since(sleeper.started) >= view.contract.process.drain_timeout
        });
        sleeper.draining = left;
        for (at, record, revision) in ended {
            self.note(|_| format!("{} has drained", record.id));
            self.end_process(&record.id);
            // It ended by itself, or another one took it off.
            let _ = self.commit(Txn::new().unchanged(&at, revision).delete(&at));
        }
        if !sleeper.draining.is_empty() {
            self.sleepers.insert(environment.clone(), sleeper);
        }
    }

    /// A second ready allocation of the owner, as a scaler or another node's adoption would add it.
    pub fn scale_out(&mut self, environment: &Environment) {
        let Some(owner) = self.owners(environment).into_iter().next() else { return };
        let record = Allocation {
            id: AllocationId::random(&*self.entropy),
            environment: environment.clone(),
            generation: Generation(1_000 + self.step),
            epoch: owner.epoch,
            digest: owner.digest,
            state: AllocationState::Ready,
            address: Some("127.0.0.1:4001".parse().unwrap()),
            process: None,
            operation: OperationId::random(&*self.entropy),
            created: self.clock.wall(),
            ready: Some(self.clock.wall()),
        };
        self.note(|_| format!("{} is added to {environment}", record.id));
        let process = Process { environment: environment.clone(), alive: true, asked: false };
        self.processes.insert(record.id.clone(), process);
        let at = key::allocation(environment, &record.id);
        let _ = self.commit(Txn::new().absent(&at).put(&at, record.encode()));
    }
}
