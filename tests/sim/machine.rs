//! The machine's processes, and the runner that starts and ends them: each is ready, dies, goes deaf or
//! stands still when its fate says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::sleep;
use vango_edge::clock::Clock;
use vango_edge::id::{AllocationId, Environment, Generation};
use vango_edge::record::{Allocation, AllocationState, Process as ProcessRecord};
use vango_edge::runner::{
    AdoptError, AdoptSpec, Exit, ExitStatus, FreezeError, Once, OnceSpec, Room, Runner, StartError,
    StartSpec, Started, StopError,
};
use vango_edge::wake::machine::PROVED;

use crate::command::Commands;
use crate::store::Life;
use crate::world::Sim;

/// Processes that may run at the same time on a node.
const ROOM: usize = 12;

/// A process.
pub struct Process {
    pub environment: Environment,
    pub alive: bool,
    pub frozen: bool,
    /// Nothing of it listens any more.
    pub deaf: bool,
    ready: bool,
    asked: bool,
    /// Told when any of this changes.
    changed: Arc<Notify>,
    /// Its node, if a wake of one started it.
    node: Option<Told>,
    room: Option<Room>,
}

/// Where a node's runner tells exits, and whether the node is gone.
#[derive(Clone)]
struct Told {
    exits: mpsc::Sender<Exit>,
    life: Arc<Life>,
}

/// All processes.
#[derive(Default)]
pub struct Machine {
    processes: Mutex<BTreeMap<AllocationId, Process>>,
    generations: Mutex<BTreeMap<Environment, Generation>>,
    pub commands: Commands,
    /// The first node's runner; it also hears of processes whose own node is gone.
    first: OnceLock<Told>,
}

impl Machine {
    pub fn with<T>(&self, id: &AllocationId, f: impl FnOnce(&mut Process) -> T) -> Option<T> {
        self.processes.lock().unwrap().get_mut(id).map(f)
    }

    /// Whether a connection to it is accepted.
    pub fn accepts(&self, id: &AllocationId) -> bool {
        self.with(id, |p| p.alive && !p.deaf).unwrap_or(false)
    }

    /// Those that run, by environment.
    pub fn alive(&self) -> Vec<(AllocationId, Environment)> {
        let all = self.processes.lock().unwrap();
        all.iter()
            .filter(|(_, p)| p.alive)
            .map(|(id, p)| (id.clone(), p.environment.clone()))
            .collect()
    }

    /// Returns once it is not alive any more.
    pub async fn died(&self, id: &AllocationId) {
        self.until(id, |p| !p.alive).await;
    }

    /// Returns once it has processor time.
    pub async fn runs(&self, id: &AllocationId) {
        self.until(id, |p| !p.frozen || !p.alive).await;
    }

    async fn until(&self, id: &AllocationId, what: impl Fn(&Process) -> bool) {
        loop {
            let Some(changed) = self.with(id, |p| Arc::clone(&p.changed)) else { return };
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            if self.with(id, |p| what(p)).unwrap_or(true) {
                return;
            }
            notified.await;
        }
    }

    fn change(&self, id: &AllocationId, f: impl FnOnce(&mut Process)) {
        let changed = self.with(id, |p| {
            f(p);
            Arc::clone(&p.changed)
        });
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
    }

    /// It ends, by itself or because it was told to.
    pub fn end(&self, sim: &Sim, id: &AllocationId) {
        let told = self.with(id, |p| {
            p.alive.then(|| Exit {
                allocation: id.clone(),
                environment: p.environment.clone(),
                status: ExitStatus::Code(1),
                asked: p.asked,
            })
        });
        let Some(exit) = told.flatten() else { return };
        self.change(id, |p| {
            p.alive = false;
            p.room = None;
        });
        if !exit.asked {
            self.say_how_old(sim, &exit);
        }
        let own = self.with(id, |p| p.node.clone()).flatten();
        let own = own.filter(|node| !node.life.is_over());
        if let Some(node) = own.as_ref().or(self.first.get()) {
            let _ = node.exits.try_send(exit);
        }
    }

    fn say_how_old(&self, sim: &Sim, exit: &Exit) {
        sim.note(|| format!("{} dies by itself", exit.allocation));
        let record = sim.truth().allocation(&exit.allocation);
        match record {
            Some(a) if matches!(a.state, AllocationState::Planned | AllocationState::Starting) => {
                sim.happened("an exit was seen before its readiness was recorded");
            }
            Some(Allocation { ready: Some(at), .. }) => {
                let proved = sim.clock.wall().since(at) >= PROVED;
                sim.happened(if proved {
                    "an allocation ended after it had proved itself"
                } else {
                    "an allocation ended soon after it was ready"
                });
            }
            _ => {}
        }
    }

    /// One that runs already, as if an executor of another node had started it.
    pub fn add(&self, record: &Allocation) {
        let process = Process {
            environment: record.environment.clone(),
            alive: true,
            frozen: false,
            deaf: false,
            ready: true,
            asked: false,
            changed: Arc::default(),
            node: None,
            room: None,
        };
        self.processes.lock().unwrap().insert(record.id.clone(), process);
    }
}

/// A node's runner.
pub struct SimRunner {
    sim: Arc<Sim>,
    /// Its node's.
    life: Arc<Life>,
    places: Arc<Semaphore>,
    told: Told,
    exits: Mutex<Option<mpsc::Receiver<Exit>>>,
    closed: AtomicBool,
}

impl SimRunner {
    pub fn new(sim: Arc<Sim>, life: Arc<Life>) -> Arc<Self> {
        let (tell, exits) = mpsc::channel(1000);
        let told = Told { exits: tell, life: Arc::clone(&life) };
        let _ = sim.machine.first.set(told.clone());
        Arc::new(Self {
            sim,
            life,
            places: Arc::new(Semaphore::new(ROOM)),
            told,
            exits: Mutex::new(Some(exits)),
            closed: AtomicBool::new(false),
        })
    }

    async fn takes(&self, scales: &[usize]) {
        let takes = self.sim.dice.ms(scales);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        self.life.goes_on().await;
    }

    /// What becomes of a process that was started.
    async fn fate(sim: Arc<Sim>, id: AllocationId) {
        let dice = &sim.dice;
        let trouble = |one_in| !sim.is_calm() && dice.one_in(one_in);
        let slow: &[usize] = if sim.is_calm() { &[30, 100] } else { &[30, 100, 300, 900] };
        let ready_after = dice.ms(slow) + Duration::from_millis(1);
        if trouble(10) {
            sleep(dice.ms(&[10, 200])).await;
            return sim.machine.end(&sim, &id);
        }
        // Or it is never ready.
        if !trouble(25) {
            sleep(ready_after).await;
            sim.machine.change(&id, |p| p.ready = true);
        }
        if trouble(6) {
            sleep(dice.ms(&[5, 200, 3_000, 20_000])).await;
            if !sim.is_calm() {
                sim.machine.end(&sim, &id);
            }
        } else if trouble(20) {
            sleep(dice.ms(&[500, 5_000])).await;
            if !sim.is_calm() {
                sim.note(|| format!("{id} listens no more"));
                sim.machine.change(&id, |p| p.deaf = true);
            }
        }
    }
}

#[async_trait]
impl Runner for SimRunner {
    fn try_room(&self) -> Result<Room, StartError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map(Room::of).map_err(|_| StartError::Full(ROOM))
    }

    async fn room(&self) -> Room {
        Room::of(Arc::clone(&self.places).acquire_owned().await.unwrap())
    }

    async fn start(&self, spec: StartSpec, room: Room) -> Result<Started, StartError> {
        self.takes(&[1, 5, 20]).await;
        let StartSpec { allocation: id, generation, program, .. } = spec;
        let environment = program.environment;
        if self.closed.load(Ordering::Relaxed) {
            return Err(StartError::Stopped);
        }
        {
            let mut generations = self.sim.machine.generations.lock().unwrap();
            let last = generations.get(&environment).copied();
            if let Some(last) = last.filter(|last| generation <= *last) {
                return Err(StartError::Fenced { environment, given: generation, last });
            }
            generations.insert(environment.clone(), generation);
        }
        if !self.sim.is_calm() && self.sim.dice.one_in(15) {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(StartError::Spawn { program: "./studylab".into(), source });
        }
        self.sim.about_to_run(&id, &environment);
        let process = Process {
            environment,
            alive: true,
            frozen: false,
            deaf: false,
            ready: false,
            asked: false,
            changed: Arc::default(),
            node: Some(self.told.clone()),
            room: Some(room),
        };
        let n = {
            let mut all = self.sim.machine.processes.lock().unwrap();
            assert!(all.insert(id.clone(), process).is_none(), "{id} is started twice");
            all.len() as u32
        };
        self.sim.note(|| format!("{id} runs"));
        tokio::spawn(Self::fate(Arc::clone(&self.sim), id));
        Ok(Started {
            process: ProcessRecord {
                pid: 1000 + n,
                start_time: 1,
                boot_id: "boot".into(),
                cgroup: None,
            },
            address: SocketAddr::from(([127, 0, 0, 1], 4000 + n as u16)),
        })
    }

    async fn once(&self, spec: OnceSpec, room: Room) -> Result<Once, StartError> {
        self.takes(&[1, 5, 20]).await;
        if self.closed.load(Ordering::Relaxed) {
            return Err(StartError::Stopped);
        }
        if !self.sim.is_calm() && self.sim.dice.one_in(15) {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(StartError::Spawn { program: "./migrate".into(), source });
        }
        Ok(crate::command::launch(&self.sim, &self.life, spec, room))
    }

    async fn ready(&self, id: &AllocationId) -> Result<(), StartError> {
        let limit = Duration::from_secs(3);
        let told = self.sim.machine.until(id, |p| p.ready || !p.alive);
        if tokio::time::timeout(limit, told).await.is_err() {
            self.sim.happened("a start timed out");
            return Err(StartError::NotReady { limit, last: "connection refused".into() });
        }
        self.takes(&[1, 1, 10]).await;
        match self.sim.machine.with(id, |p| p.alive) {
            Some(true) => Ok(()),
            _ => Err(StartError::Exited(ExitStatus::Code(1))),
        }
    }

    async fn stop(&self, id: &AllocationId, _grace: Duration) -> Result<(), StopError> {
        self.takes(&[1, 5, 50]).await;
        self.sim.machine.change(id, |p| p.asked = true);
        self.sim.machine.end(&self.sim, id);
        Ok(())
    }

    async fn end_leftover(
        &self,
        _process: Option<&ProcessRecord>,
        id: &AllocationId,
        grace: Duration,
    ) -> Result<(), StopError> {
        self.stop(id, grace).await
    }

    async fn freeze(&self, id: &AllocationId) -> Result<(), FreezeError> {
        self.takes(&[1, 3, 15]).await;
        if !self.sim.is_calm() && self.sim.dice.one_in(12) {
            return Err(FreezeError::Slow(Duration::from_secs(1)));
        }
        if !self.sim.machine.with(id, |p| p.alive).unwrap_or(false) {
            return Err(FreezeError::Gone);
        }
        self.sim.note(|| format!("{id} stands still"));
        self.sim.machine.change(id, |p| p.frozen = true);
        Ok(())
    }

    async fn thaw(&self, id: &AllocationId) -> Result<(), FreezeError> {
        self.takes(&[1, 3, 15]).await;
        if !self.sim.machine.with(id, |p| p.alive).unwrap_or(false) {
            return Err(FreezeError::Gone);
        }
        self.sim.note(|| format!("{id} goes on"));
        self.sim.machine.change(id, |p| p.frozen = false);
        Ok(())
    }

    async fn listens(&self, id: &AllocationId) -> Option<bool> {
        self.takes(&[1, 10]).await;
        self.sim.machine.with(id, |p| p.alive.then_some(!p.deaf)).flatten()
    }

    async fn memory(&self, id: &AllocationId) -> u64 {
        self.sim.machine.with(id, |p| if p.alive { 1 << 20 } else { 0 }).unwrap_or(0)
    }

    async fn adopt(&self, spec: AdoptSpec) -> Result<(), AdoptError> {
        self.takes(&[1, 10]).await;
        let (id, told) = (&spec.allocation, self.told.clone());
        if !self.sim.machine.with(id, |p| p.alive && !p.asked).unwrap_or(false) {
            return Err(AdoptError::Gone("its process id is another's"));
        }
        self.sim.machine.change(id, |p| p.node = Some(told));
        Ok(())
    }

    fn leftovers(&self) -> Vec<AllocationId> {
        self.sim.machine.alive().into_iter().map(|(id, _)| id).collect()
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn exits(&self) -> Option<mpsc::Receiver<Exit>> {
        self.exits.lock().unwrap().take()
    }

    fn log_tail(&self, _: &AllocationId, _: usize) -> Option<String> {
        None
    }
}
