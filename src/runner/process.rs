//! Allocations as processes of this machine.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::id::{AllocationId, Environment, Generation};

use super::cgroup::{Cgroup, Cgroups};
use super::log::{LogFile, Tail};
use super::pidfd::PidFd;
use super::running::{AFTER_KILL, Ended, Running, end_process, kill_marked};
use super::spawn::{self, Place, Port};
use super::{
    AdoptError, AdoptSpec, Exit, ExitStatus, FreezeError, ProcessIdentity, Room, Runner,
    StartError, StartSpec, Started, StopError, log, proc,
};

/// Ended allocations of which something is kept.
const ENDED: usize = 64;

/// What a [`ProcessRunner`] works with.
pub struct ProcessRunnerOptions {
    /// Where processes' files are: `allocations/` while they run, `home/` and `log/` for good.
    pub run_dir: PathBuf,
    /// Bytes of output kept on disk for each environment.
    pub log_bytes: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Processes at the same time.
    pub max_processes: usize,
}

/// Runs allocations as processes.
pub struct ProcessRunner {
    shared: Arc<Shared>,
    exits: Mutex<Option<mpsc::Receiver<Exit>>>,
}

pub(super) struct Shared {
    pub(super) options: ProcessRunnerOptions,
    pub(super) boot_id: String,
    cgroups: Option<Cgroups>,
    pub(super) slots: Arc<Semaphore>,
    state: Mutex<State>,
    exited: mpsc::Sender<Exit>,
    /// Whether readiness says that it came over HTTPS.
    pub(super) https: AtomicBool,
    /// Whether starts are refused. A start reads it from before the fork until it is watched.
    closed: Arc<RwLock<bool>>,
}

#[derive(Default)]
struct State {
    running: HashMap<AllocationId, Arc<Running>>,
    ended: VecDeque<Past>,
    /// The highest generation of each environment that was started here.
    started: HashMap<Environment, Generation>,
    logs: HashMap<Environment, Arc<LogFile>>,
}

/// What is kept of an allocation whose process has ended.
struct Past {
    allocation: AllocationId,
    tail: Arc<Tail>,
    /// How it ended, unless it was asked to.
    by_itself: Option<ExitStatus>,
}

impl State {
    fn past(&self, allocation: &AllocationId) -> Option<&Past> {
        self.ended.iter().find(|past| past.allocation == *allocation)
    }
}

impl ProcessRunner {
    /// A runner of this machine's processes. Must be made on a runtime.
    ///
    /// # Errors
    /// [`StartError::System`] when `run_dir` cannot be made or `/proc` cannot be read.
    pub fn new(options: ProcessRunnerOptions) -> Result<Self, StartError> {
        let at = |path: &PathBuf| path.display().to_string();
        for dir in ["allocations", "home", "log"] {
            let dir = options.run_dir.join(dir);
            std::fs::create_dir_all(&dir).map_err(|e| StartError::system(at(&dir), e))?;
        }
        // Apps get absolute paths: their working directory is another one.
        let run_dir = options.run_dir.canonicalize();
        let run_dir = run_dir.map_err(|e| StartError::system(at(&options.run_dir), e))?;
        let options = ProcessRunnerOptions { run_dir, ..options };
        let boot_id = proc::boot_id().map_err(|e| StartError::system("/proc", e))?;
        let cgroups = Cgroups::detect();
        if cgroups.is_none() {
            ::log::info!(
                "no control group (v2) to make groups in: what an app leaves behind is found by \
                 its process group and its environment"
            );
        }
        let (exited, exits) = mpsc::channel(1024);
        let shared = Shared {
            slots: Arc::new(Semaphore::new(options.max_processes)),
            options,
            boot_id,
            cgroups,
            state: Mutex::default(),
            exited,
            https: AtomicBool::new(false),
            closed: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared), exits: Mutex::new(Some(exits)) })
    }

    fn running(&self, allocation: &AllocationId) -> Option<Arc<Running>> {
        self.shared.state().running.get(allocation).cloned()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fence(&self, spec: &StartSpec) -> Result<(), StartError> {
        let mut state = self.state();
        match state.started.get(&spec.environment) {
            Some(last) if *last >= spec.generation => Err(StartError::Fenced {
                environment: spec.environment.clone(),
                given: spec.generation,
                last: *last,
            }),
            _ => {
                state.started.insert(spec.environment.clone(), spec.generation);
                Ok(())
            }
        }
    }

    /// Nothing at or below an adopted generation is started.
    pub(super) fn fence_adopted(&self, environment: &Environment, generation: Generation) {
        let mut state = self.state();
        let last = state.started.entry(environment.clone()).or_insert(generation);
        *last = generation.max(*last);
    }

    fn log_file(&self, environment: &Environment) -> Arc<LogFile> {
        let name = format!("{}.{}.log", environment.app(), environment.name());
        let path = self.options.run_dir.join("log").join(name);
        let mut state = self.state();
        let file = state.logs.entry(environment.clone());
        Arc::clone(file.or_insert_with(|| Arc::new(LogFile::new(path, self.options.log_bytes))))
    }

    /// Starts the process and what watches it. Nothing is awaited between the fork and the watch,
    /// so a caller that goes away leaves no process without its watch.
    fn launch(
        self: &Arc<Self>,
        spec: StartSpec,
        slot: OwnedSemaphorePermit,
    ) -> Result<Started, StartError> {
        let run_dir = &self.options.run_dir;
        let place = Place::make(run_dir, self.cgroups.as_ref(), &spec)?;
        let began = self.options.clock.now();
        let mut child = place.spawn(&spec)?;
        let pid = child.id();
        let pidfd = match PidFd::open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                // Without it its end would go unnoticed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(StartError::system("pidfd_open (Linux 5.3 or later is needed)", e));
            }
        };
        let identity = ProcessIdentity {
            pid,
            // It cannot be gone: it was not reaped.
            start_time: proc::start_time(pid).unwrap_or_default(),
            boot_id: self.boot_id.clone(),
            cgroup: place.cgroup.as_ref().map(|c| c.path().to_owned()),
        };
        let running = Running {
            deadline: began + spec.start_timeout,
            start_timeout: spec.start_timeout,
            allocation: spec.allocation,
            environment: spec.environment,
            identity: identity.clone(),
            adopted: false,
            port: Port::Reserved(place.port),
            ready: spec.ready,
            host: spec.host,
            https: self.https.load(Ordering::Relaxed),
            cgroup: place.cgroup,
            notify: place.notify,
            asked: AtomicBool::new(false),
            reaped: Mutex::new(false),
            ended: watch::channel(None).1,
            tail: Arc::default(),
            _slot: slot,
        };
        let address = running.port.address();
        self.watch(running, pidfd, Some(child), Some(place.output));
        Ok(Started { identity, address })
    }

    /// Puts a running process on the list, reads what it prints and waits for its end.
    pub(super) fn watch(
        self: &Arc<Self>,
        mut running: Running,
        pidfd: PidFd,
        child: Option<Child>,
        output: Option<pipe::Receiver>,
    ) -> Arc<Running> {
        let (tell, ended) = watch::channel(None);
        running.ended = ended;
        let (stop_log, log_stopped) = oneshot::channel();
        let pump = output.map(|output| {
            let file = self.log_file(&running.environment);
            tokio::spawn(log::pump(output, file, Arc::clone(&running.tail), log_stopped))
        });
        let running = Arc::new(running);
        self.state().running.insert(running.allocation.clone(), Arc::clone(&running));
        let (shared, watched) = (Arc::clone(self), Arc::clone(&running));
        tokio::spawn(async move {
            if let Err(e) = pidfd.ended().await {
                ::log::error!("{}: its end cannot be waited for: {e}", running.allocation);
            }
            let left = running.kill_rest().await;
            let status = running.reap(child);
            drop(stop_log);
            if let Some(pump) = pump {
                let _ = pump.await;
            }
            shared.retire(&running, status);
            tell.send_replace(Some(Ended { status, left }));
            let exit = Exit {
                allocation: running.allocation.clone(),
                environment: running.environment.clone(),
                status,
                asked: running.asked.load(Ordering::Acquire),
            };
            // There is no receiver in a test, or at the very end.
            let _ = shared.exited.send(exit).await;
        });
        watched
    }

    fn retire(&self, running: &Running, status: ExitStatus) {
        spawn::remove_dir(&self.options.run_dir, &running.allocation);
        let mut state = self.state();
        state.running.remove(&running.allocation);
        state.ended.push_back(Past {
            allocation: running.allocation.clone(),
            tail: Arc::clone(&running.tail),
            by_itself: (!running.asked.load(Ordering::Acquire)).then_some(status),
        });
        if state.ended.len() > ENDED {
            state.ended.pop_front();
        }
    }

    /// The process of an allocation of which there is no record: it leads a group, and has the mark in its
    /// environment or, where a program has written over that, prints into the allocation's pipe.
    async fn found(self: &Arc<Self>, allocation: &AllocationId) -> Option<ProcessIdentity> {
        let (shared, mark) = (Arc::clone(self), spawn::mark(allocation));
        let pipe = spawn::dir_of(&self.options.run_dir, allocation).join(log::PIPE);
        let looked = tokio::task::spawn_blocking(move || {
            let prints = |pid: u32| {
                let output = std::fs::read_link(format!("/proc/{pid}/fd/1"));
                output.is_ok_and(|output| output == pipe)
            };
            let mut all = proc::pids().into_iter().filter(|pid| proc::group(*pid) == Some(*pid));
            let pid = all.find(|pid| proc::has_env(*pid, &mark) || prints(*pid))?;
            let start_time = proc::start_time(pid)?;
            let boot_id = shared.boot_id.clone();
            Some(ProcessIdentity { pid, start_time, boot_id, cgroup: None })
        });
        looked.await.unwrap_or_default()
    }

    /// Removes what a start that did not come about left.
    fn clear(&self, allocation: &AllocationId) {
        if let Some(cgroup) = self.cgroups.as_ref().and_then(|c| c.find(allocation)) {
            cgroup.remove_if_empty();
        }
        spawn::remove_dir(&self.options.run_dir, allocation);
    }
}

#[async_trait]
impl Runner for ProcessRunner {
    fn readiness_over_https(&self, https: bool) {
        self.shared.https.store(https, Ordering::Relaxed);
    }

    fn try_room(&self) -> Result<Room, StartError> {
        let slot = Arc::clone(&self.shared.slots).try_acquire_owned();
        slot.map(Room).map_err(|_| StartError::Full(self.shared.options.max_processes))
    }

    async fn room(&self) -> Room {
        match Arc::clone(&self.shared.slots).acquire_owned().await {
            Ok(slot) => Room(slot),
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    async fn start(&self, spec: StartSpec, room: Room) -> Result<Started, StartError> {
        let closed = Arc::clone(&self.shared.closed).read_owned().await;
        if *closed {
            return Err(StartError::Stopped);
        }
        self.shared.fence(&spec)?;
        let (shared, allocation) = (Arc::clone(&self.shared), spec.allocation.clone());
        // On a blocking thread: a fork of a large process takes its time. Not given up when the
        // caller is: what was started is watched.
        let started = tokio::task::spawn_blocking(move || {
            let _open = closed;
            shared.launch(spec, room.0)
        });
        let started = started.await;
        let started = started
            .unwrap_or_else(|e| Err(StartError::system("starting", std::io::Error::other(e))));
        if started.is_err() {
            self.shared.clear(&allocation);
        }
        started
    }

    async fn ready(&self, allocation: &AllocationId) -> Result<(), StartError> {
        let Some(running) = self.running(allocation) else {
            // It may have ended before this was asked: without its status, a broken app would be taken for
            // one that was stopped.
            let status = self.shared.state().past(allocation).and_then(|past| past.by_itself);
            return Err(status.map_or(StartError::Stopped, StartError::Exited));
        };
        let last = Mutex::new("none was made".to_owned());
        let left = Duration::from_nanos(
            running.deadline.0.saturating_sub(self.shared.options.clock.now().0),
        );
        let mut ended = running.ended.clone();
        tokio::select! {
            end = ended.wait_for(Option::is_some) => {
                let status = end.ok().and_then(|e| e.as_ref().map(|e| e.status));
                return Err(match status {
                    Some(status) if !running.asked.load(Ordering::Acquire) => StartError::Exited(status),
                    _ => StartError::Stopped,
                });
            }
            () = running.until_ready(&last) => {}
            () = tokio::time::sleep(left) => {
                let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
                return Err(StartError::NotReady { limit: running.start_timeout, last });
            }
        }
        running.check_port().await
    }

    async fn stop(&self, allocation: &AllocationId, grace: Duration) -> Result<(), StopError> {
        let Some(running) = self.running(allocation) else { return Ok(()) };
        running.asked.store(true, Ordering::Release);
        running.signal_group(Signal::SIGTERM);
        // A frozen one gets its signal when it is thawed.
        if let Err(e) = running.thaw() {
            ::log::warn!("{allocation}: {e}; it will be killed");
        }
        let mut end = running.end_within(grace).await;
        if end.is_none() {
            running.signal_group(Signal::SIGKILL);
            end = running.end_within(2 * AFTER_KILL).await;
        }
        match end {
            Some(Ended { left, .. }) if left.is_empty() => Ok(()),
            Some(Ended { left, .. }) => Err(StopError::Alive { pids: left }),
            None => Err(StopError::Alive { pids: vec![running.identity.pid] }),
        }
    }

    async fn end_leftover(
        &self,
        identity: Option<&ProcessIdentity>,
        allocation: &AllocationId,
        grace: Duration,
    ) -> Result<(), StopError> {
        if self.running(allocation).is_some() {
            return self.stop(allocation, grace).await;
        }
        let found = match identity {
            Some(_) => None,
            None => self.shared.found(allocation).await,
        };
        let identity = identity.or(found.as_ref());
        if let Some(identity) = identity.filter(|i| i.boot_id == self.shared.boot_id) {
            end_process(identity, grace).await;
        }
        let recorded = identity.and_then(|i| i.cgroup.as_deref());
        let cgroups = [
            recorded.and_then(|path| Cgroup::recorded(path, allocation)),
            self.shared.cgroups.as_ref().and_then(|c| c.find(allocation)),
        ];
        for cgroup in cgroups.into_iter().flatten() {
            match cgroup.kill(AFTER_KILL).await {
                Ok(true) => {}
                Ok(false) => return Err(StopError::Alive { pids: cgroup.pids() }),
                Err(source) => {
                    let what = cgroup.path().display().to_string();
                    return Err(StopError::System { what, source });
                }
            }
        }
        let left = kill_marked(allocation, AFTER_KILL).await;
        spawn::remove_dir(&self.shared.options.run_dir, allocation);
        if left.is_empty() { Ok(()) } else { Err(StopError::Alive { pids: left }) }
    }

    async fn freeze(&self, allocation: &AllocationId) -> Result<(), FreezeError> {
        self.running(allocation).ok_or(FreezeError::Gone)?.freeze().await
    }

    async fn thaw(&self, allocation: &AllocationId) -> Result<(), FreezeError> {
        self.running(allocation).ok_or(FreezeError::Gone)?.thaw()
    }

    async fn listens(&self, allocation: &AllocationId) -> Option<bool> {
        let running = self.running(allocation)?;
        let asked = move || {
            let held = running.holds_port().ok();
            held.filter(|_| !proc::ended(running.identity.pid))
        };
        tokio::task::spawn_blocking(asked).await.ok()?
    }

    async fn memory(&self, allocation: &AllocationId) -> u64 {
        let Some(running) = self.running(allocation) else { return 0 };
        tokio::task::spawn_blocking(move || running.memory()).await.unwrap_or(0)
    }

    async fn adopt(&self, spec: AdoptSpec) -> Result<(), AdoptError> {
        super::adopt::adopt(&self.shared, spec).await
    }

    fn leftovers(&self) -> Vec<AllocationId> {
        let all = spawn::dirs(&self.shared.options.run_dir);
        let state = self.shared.state();
        all.into_iter().filter(|id| !state.running.contains_key(id)).collect()
    }

    async fn close(&self) {
        *self.shared.closed.write().await = true;
    }

    fn exits(&self) -> Option<mpsc::Receiver<Exit>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn log_tail(&self, allocation: &AllocationId, max: usize) -> Option<String> {
        let state = self.shared.state();
        let running = state.running.get(allocation).map(|r| &r.tail);
        let tail = running.or_else(|| state.past(allocation).map(|past| &past.tail));
        tail.map(|tail| tail.last(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::id::{Digest, Epoch};
    use crate::runner::{ReadyCheck, ResourceLimits};

    #[tokio::test]
    async fn one_that_ended_before_its_readiness_is_asked_for_ended_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let runner = ProcessRunner::new(ProcessRunnerOptions {
            run_dir: dir.path().to_owned(),
            log_bytes: 4096,
            clock: Arc::new(SystemClock::new()),
            max_processes: 1,
        })
        .unwrap();
        let mut exits = runner.exits().unwrap();
        let allocation: AllocationId = "al-aaaaaaaaaaaaaaaa".parse().unwrap();
        let spec = StartSpec {
            allocation: allocation.clone(),
            environment: "studylab".parse().unwrap(),
            generation: Generation(1),
            epoch: Epoch(1),
            digest: Digest::from_bytes([1; 32]),
            root: dir.path().to_owned(),
            command: ["sh", "-c", "echo broken; exit 3"].map(str::to_owned).into(),
            env: Vec::new(),
            ready: ReadyCheck::Tcp,
            start_timeout: Duration::from_secs(60),
            limits: ResourceLimits::default(),
            host: "localhost".into(),
        };
        let room = runner.try_room().unwrap();
        runner.start(spec, room).await.unwrap();
        assert_eq!(exits.recv().await.unwrap().allocation, allocation);
        let ready = runner.ready(&allocation).await;
        assert!(matches!(ready, Err(StartError::Exited(ExitStatus::Code(3)))), "{ready:?}");
        assert_eq!(runner.log_tail(&allocation, 100).unwrap(), "broken\n");
        let unknown: AllocationId = "al-bbbbbbbbbbbbbbbb".parse().unwrap();
        assert!(matches!(runner.ready(&unknown).await, Err(StartError::Stopped)));
    }
}
