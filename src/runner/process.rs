//! Allocations as processes of this machine.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::clock::{Clock, Mono};
use crate::id::{AllocationId, Environment, Generation};

use super::cgroup::{Cgroup, Cgroups};
use super::log::{LogFile, Tail};
use super::pidfd::PidFd;
use super::spawn::{self, Place, ReservedPort};
use super::{
    Exit, ExitStatus, ProcessIdentity, ReadyCheck, Runner, StartError, StartSpec, Started,
    StopError, log, proc, readiness,
};

/// Outputs of ended allocations that are kept.
const ENDED: usize = 64;

/// From SIGKILL to the end, at most: only a process in uninterruptible sleep takes longer.
const AFTER_KILL: Duration = Duration::from_secs(5);

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

struct Shared {
    options: ProcessRunnerOptions,
    boot_id: String,
    cgroups: Option<Cgroups>,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    exited: mpsc::Sender<Exit>,
}

#[derive(Default)]
struct State {
    running: HashMap<AllocationId, Arc<Running>>,
    ended: VecDeque<(AllocationId, Arc<Tail>)>,
    /// The highest generation of each environment that was started here.
    started: HashMap<Environment, Generation>,
    logs: HashMap<Environment, Arc<LogFile>>,
}

/// How an allocation ended, and what of it could not be ended.
#[derive(Debug, Clone)]
struct Ended {
    status: ExitStatus,
    left: Vec<u32>,
}

struct Running {
    allocation: AllocationId,
    environment: Environment,
    identity: ProcessIdentity,
    port: ReservedPort,
    ready: ReadyCheck,
    host: String,
    start_timeout: Duration,
    deadline: Mono,
    cgroup: Option<Cgroup>,
    notify: Option<UnixDatagram>,
    asked: AtomicBool,
    /// Whether the process was reaped: until then its id, and its group's, are nobody else's.
    reaped: Mutex<bool>,
    ended: watch::Receiver<Option<Ended>>,
    tail: Arc<Tail>,
    _slot: OwnedSemaphorePermit,
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

    fn log_file(&self, environment: &Environment) -> Arc<LogFile> {
        let name = format!("{}.{}.log", environment.app(), environment.name());
        let path = self.options.run_dir.join("log").join(name);
        let mut state = self.state();
        let file = state.logs.entry(environment.clone());
        Arc::clone(file.or_insert_with(|| Arc::new(LogFile::new(path, self.options.log_bytes))))
    }

    /// Starts the process and what watches it. Nothing is awaited between the fork and the watch,
    /// so a caller that goes away leaves no process that nobody watches.
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
                // Without it nobody would notice its end.
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
        let (tell, ended) = watch::channel(None);
        let (stop_log, log_stopped) = oneshot::channel();
        let tail = Arc::new(Tail::default());
        let log_file = self.log_file(&spec.environment);
        let pump = tokio::spawn(log::pump(place.output, log_file, Arc::clone(&tail), log_stopped));
        let running = Arc::new(Running {
            deadline: began + spec.start_timeout,
            start_timeout: spec.start_timeout,
            allocation: spec.allocation,
            environment: spec.environment,
            identity: identity.clone(),
            port: place.port,
            ready: spec.ready,
            host: spec.host,
            cgroup: place.cgroup,
            notify: place.notify,
            asked: AtomicBool::new(false),
            reaped: Mutex::new(false),
            ended,
            tail,
            _slot: slot,
        });
        let address = running.port.address;
        self.state().running.insert(running.allocation.clone(), Arc::clone(&running));
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(e) = pidfd.ended().await {
                ::log::error!("{}: its end cannot be waited for: {e}", running.allocation);
            }
            let left = running.kill_rest().await;
            let status = running.reap(child);
            drop(stop_log);
            let _ = pump.await;
            shared.retire(&running);
            tell.send_replace(Some(Ended { status, left }));
            let exit = Exit {
                allocation: running.allocation.clone(),
                environment: running.environment.clone(),
                status,
                asked: running.asked.load(Ordering::Acquire),
            };
            // Nobody listens in a test, or at the very end.
            let _ = shared.exited.send(exit).await;
        });
        Ok(Started { identity, address })
    }

    fn retire(&self, running: &Running) {
        spawn::remove_dir(&self.options.run_dir, &running.allocation);
        let mut state = self.state();
        state.running.remove(&running.allocation);
        state.ended.push_back((running.allocation.clone(), Arc::clone(&running.tail)));
        if state.ended.len() > ENDED {
            state.ended.pop_front();
        }
    }

    /// Removes what a start that did not come about left.
    fn clear(&self, allocation: &AllocationId) {
        if let Some(cgroup) = self.cgroups.as_ref().and_then(|c| c.find(allocation)) {
            cgroup.remove_if_empty();
        }
        spawn::remove_dir(&self.options.run_dir, allocation);
    }
}

impl Running {
    /// Signals the process group, if the process was not reaped yet.
    fn signal_group(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped && let Ok(pid) = i32::try_from(self.identity.pid) {
            // ESRCH: it is just being reaped.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    async fn end_within(&self, limit: Duration) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let end = tokio::time::timeout(limit, ended.wait_for(Option::is_some)).await;
        end.ok()?.ok()?.clone()
    }

    /// Ends what the process left; called while it is a zombie, so that its group is still its own.
    /// Returns what could not be ended.
    async fn kill_rest(&self) -> Vec<u32> {
        self.signal_group(Signal::SIGKILL);
        if let Some(cgroup) = &self.cgroup {
            match cgroup.kill(AFTER_KILL).await {
                Ok(true) => return Vec::new(),
                Ok(false) => return cgroup.pids(),
                Err(e) => ::log::error!("{}: {e}", cgroup.path().display()),
            }
        }
        kill_marked(&self.allocation, AFTER_KILL).await
    }

    fn reap(&self, mut child: Child) -> ExitStatus {
        use std::os::unix::process::ExitStatusExt;
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        // It has ended: this does not wait.
        let status = child.wait();
        *reaped = true;
        match status {
            Ok(s) => match (s.code(), s.signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => ExitStatus::Unknown,
            },
            Err(_) => ExitStatus::Unknown,
        }
    }

    /// Checks until it is ready. Every word of the check goes to `last`, for who gives up.
    async fn until_ready(&self, last: &Mutex<String>) {
        let mut checks = 0;
        loop {
            let address = self.port.address;
            let found = match &self.ready {
                ReadyCheck::Http { path } => readiness::http(address, &self.host, path).await,
                ReadyCheck::Tcp => readiness::tcp(address).await,
                ReadyCheck::Notify if checks == 0 => Err("it has not sent READY=1".to_owned()),
                ReadyCheck::Notify => Ok(()),
            };
            match found {
                Ok(()) => return,
                Err(why) => *last.lock().unwrap_or_else(PoisonError::into_inner) = why,
            }
            match &self.ready {
                ReadyCheck::Notify => self.notified().await,
                _ => tokio::select! {
                    () = tokio::time::sleep(readiness::pause(checks)) => {}
                    // An app that says so is asked at once.
                    () = self.notified() => {}
                },
            }
            checks += 1;
        }
    }

    /// Until the process sends `READY=1` (sd_notify(3)); never without a socket.
    async fn notified(&self) {
        let Some(socket) = &self.notify else { return std::future::pending().await };
        let mut message = [0u8; 4096];
        loop {
            match socket.recv(&mut message).await {
                Ok(n) if message[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") => {
                    return;
                }
                Ok(_) => {}
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// Whether the port is held by the process or by something it started.
    fn holds_port(&self) -> std::io::Result<bool> {
        let inodes = proc::listeners(self.port.address.port())?;
        if proc::holds_socket(self.identity.pid, &inodes) {
            return Ok(true);
        }
        let mark = spawn::mark(&self.allocation);
        let own =
            |pid: &u32| proc::group(*pid) == Some(self.identity.pid) || proc::has_env(*pid, &mark);
        let others = match &self.cgroup {
            Some(cgroup) => cgroup.pids(),
            None => proc::pids().into_iter().filter(own).collect(),
        };
        Ok(others.into_iter().any(|pid| proc::holds_socket(pid, &inodes)))
    }
}

/// SIGKILL for every process that has the allocation's mark in its environment, until none is left
/// or `limit` is over. Returns those that are left.
async fn kill_marked(allocation: &AllocationId, limit: Duration) -> Vec<u32> {
    let mark = spawn::mark(allocation);
    let left = Arc::new(Mutex::new(Vec::new()));
    let until_none = async {
        loop {
            let found = {
                let mark = mark.clone();
                tokio::task::spawn_blocking(move || marked(&mark)).await.unwrap_or_default()
            };
            *left.lock().unwrap_or_else(PoisonError::into_inner) = found.clone();
            if found.is_empty() {
                return;
            }
            for pid in found {
                // By descriptor, and looked at again: the id may be another's by now.
                if let Ok(process) = PidFd::open(pid)
                    && proc::has_env(pid, &mark)
                {
                    let _ = process.signal(Signal::SIGKILL);
                    process.ended_within(Duration::from_millis(500)).await;
                }
            }
        }
    };
    let _ = tokio::time::timeout(limit, until_none).await;
    let left = left.lock().unwrap_or_else(PoisonError::into_inner);
    left.clone()
}

fn marked(mark: &str) -> Vec<u32> {
    let this = std::process::id();
    let all = proc::pids().into_iter();
    all.filter(|pid| *pid != this && proc::has_env(*pid, mark) && !proc::ended(*pid)).collect()
}

#[async_trait]
impl Runner for ProcessRunner {
    async fn start(&self, spec: StartSpec) -> Result<Started, StartError> {
        let Ok(slot) = Arc::clone(&self.shared.slots).try_acquire_owned() else {
            return Err(StartError::Full(self.shared.options.max_processes));
        };
        self.shared.fence(&spec)?;
        let (shared, allocation) = (Arc::clone(&self.shared), spec.allocation.clone());
        // On a blocking thread: a fork of a large process takes its time. Not given up when the
        // caller is: what was started is watched.
        let started = tokio::task::spawn_blocking(move || shared.launch(spec, slot)).await;
        let started = started
            .unwrap_or_else(|e| Err(StartError::system("starting", std::io::Error::other(e))));
        if started.is_err() {
            self.shared.clear(&allocation);
        }
        started
    }

    async fn ready(&self, allocation: &AllocationId) -> Result<(), StartError> {
        let Some(running) = self.running(allocation) else {
            return Err(StartError::Stopped);
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
        let port = running.port.address.port();
        let held = tokio::task::spawn_blocking(move || running.holds_port()).await;
        match held.map_err(std::io::Error::other).and_then(|held| held) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StartError::PortTaken { port }),
            Err(e) => Err(StartError::system("asking who holds its port", e)),
        }
    }

    async fn stop(&self, allocation: &AllocationId, grace: Duration) -> Result<(), StopError> {
        let Some(running) = self.running(allocation) else { return Ok(()) };
        running.asked.store(true, Ordering::Release);
        running.signal_group(Signal::SIGTERM);
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

    fn exits(&self) -> Option<mpsc::Receiver<Exit>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn log_tail(&self, allocation: &AllocationId, max: usize) -> Option<String> {
        let state = self.shared.state();
        let tail =
            state.running.get(allocation).map(|r| &r.tail).or_else(|| {
                state.ended.iter().find(|(id, _)| id == allocation).map(|(_, tail)| tail)
            });
        tail.map(|tail| tail.last(max))
    }
}

/// Ends a process that is not our child, if it is still the one that was recorded: SIGTERM for its
/// group, then SIGKILL.
async fn end_process(identity: &ProcessIdentity, grace: Duration) {
    let same = || proc::start_time(identity.pid) == Some(identity.start_time);
    let Ok(process) = PidFd::open(identity.pid) else { return };
    let Ok(pid) = i32::try_from(identity.pid) else { return };
    for (signal, limit) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, AFTER_KILL)] {
        // While it is there its group is its own.
        if !same() || proc::ended(identity.pid) {
            return;
        }
        let _ = killpg(Pid::from_raw(pid), signal);
        if process.ended_within(limit).await {
            return;
        }
    }
}
