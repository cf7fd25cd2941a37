//! Allocations as processes of this machine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc};

use crate::id::{AllocationId, Environment};
use crate::record::Process;

use super::cgroup::{Cgroup, Cgroups};
use super::group::{AFTER_KILL, end_process, kill_marked};
use super::running::Running;
use super::shared::{ProcessRunnerOptions, Shared};
use super::spawn;
use super::{
    AdoptError, AdoptSpec, Exit, FreezeError, Once, OnceSpec, Refused, Room, Runner, StartError,
    StartSpec, Started, StopError, proc,
};

/// From SIGTERM to SIGKILL at most, for commands that run when the edge ends.
const COMMANDS: Duration = Duration::from_secs(30);

/// Runs allocations as processes.
pub struct ProcessRunner {
    shared: Arc<Shared>,
    exits: Mutex<Option<mpsc::Receiver<Exit>>>,
}

impl ProcessRunner {
    /// A runner of this machine's processes. Must be made on a runtime.
    ///
    /// # Errors
    /// [`StartError::System`] when `run_dir` cannot be made or `/proc` cannot be read.
    pub fn new(options: ProcessRunnerOptions) -> Result<Self, StartError> {
        let at = |path: &PathBuf| path.display().to_string();
        for dir in ["allocations", "home"] {
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
            overlay: OnceLock::new(),
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

    /// On a blocking thread, unless no start is taken any more: a fork of a large process takes its time. Not
    /// given up when the caller is: what was started is watched.
    async fn started<T: Send + 'static>(
        &self,
        start: impl FnOnce(&Arc<Shared>) -> Result<T, StartError> + Send + 'static,
    ) -> Result<T, StartError> {
        let closed = Arc::clone(&self.shared.closed).read_owned().await;
        if *closed {
            return Err(StartError::Stopped);
        }
        let shared = Arc::clone(&self.shared);
        let started = tokio::task::spawn_blocking(move || {
            let _open = closed;
            start(&shared)
        });
        let started = started.await;
        started.unwrap_or_else(|e| Err(StartError::system("starting", std::io::Error::other(e))))
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
        self.shared.fence(&spec)?;
        let allocation = spec.allocation.clone();
        let started = self.started(move |shared| shared.launch(spec, room.0)).await;
        if started.is_err() {
            self.shared.clear(&allocation);
        }
        started
    }

    async fn once(&self, spec: OnceSpec, room: Room) -> Result<Once, StartError> {
        let id = spec.id.clone();
        let started = self.started(move |shared| shared.launch_once(spec, room)).await;
        if started.is_err() {
            self.shared.clear(&id);
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
        let left = Duration::from_nanos(
            running.deadline.0.saturating_sub(self.shared.options.clock.now().0),
        );
        let ended = async {
            let mut ended = running.group.ended.subscribe();
            let end = ended.wait_for(Option::is_some).await;
            let status = end.ok().and_then(|e| e.as_ref().map(|e| e.status));
            match status {
                Some(status) if !running.group.asked.load(Ordering::Acquire) => {
                    StartError::Exited(status)
                }
                _ => StartError::Stopped,
            }
        };
        running.until_proved(left, ended).await
    }

    async fn stop(&self, allocation: &AllocationId, grace: Duration) -> Result<(), StopError> {
        let Some(running) = self.running(allocation) else { return Ok(()) };
        running.group.end(grace).await
    }

    async fn end_leftover(
        &self,
        process: Option<&Process>,
        allocation: &AllocationId,
        grace: Duration,
    ) -> Result<(), StopError> {
        if self.running(allocation).is_some() {
            return self.stop(allocation, grace).await;
        }
        let found = match process {
            Some(_) => None,
            None => match spawn::recorded(&self.shared.options.run_dir, allocation) {
                Some(recorded) => Some(recorded),
                None => self.shared.found(allocation).await,
            },
        };
        let process = process.or(found.as_ref());
        if let Some(process) = process.filter(|i| i.boot_id == self.shared.boot_id) {
            end_process(process, grace).await;
        }
        let recorded = process.and_then(|i| i.cgroup.as_deref());
        let cgroups = [
            recorded.and_then(|path| Cgroup::recorded(path, allocation)),
            self.shared.cgroups.as_ref().and_then(|c| c.find(allocation)),
        ];
        for cgroup in cgroups.into_iter().flatten() {
            match cgroup.kill(AFTER_KILL).await {
                Ok(true) => {}
                Ok(false) => return Err(StopError::Alive(cgroup.pids())),
                Err(source) => {
                    let what = cgroup.path().display().to_string();
                    return Err(Refused { what, source }.into());
                }
            }
        }
        let left = kill_marked(allocation, AFTER_KILL).await;
        spawn::remove_dir(&self.shared.options.run_dir, allocation);
        if left.is_empty() { Ok(()) } else { Err(StopError::Alive(left)) }
    }

    async fn freeze(&self, allocation: &AllocationId) -> Result<(), FreezeError> {
        self.running(allocation).ok_or(FreezeError::Gone)?.group.freeze().await
    }

    async fn thaw(&self, allocation: &AllocationId) -> Result<(), FreezeError> {
        self.running(allocation).ok_or(FreezeError::Gone)?.group.thaw()
    }

    async fn listens(&self, allocation: &AllocationId) -> Option<bool> {
        let running = self.running(allocation)?;
        let asked = move || {
            let held = running.holds_port().ok();
            held.filter(|_| !proc::ended(running.group.process.pid))
        };
        tokio::task::spawn_blocking(asked).await.ok()?
    }

    async fn memory(&self, allocation: &AllocationId) -> u64 {
        let Some(running) = self.running(allocation) else { return 0 };
        tokio::task::spawn_blocking(move || running.group.memory()).await.unwrap_or(0)
    }

    async fn adopt(&self, spec: AdoptSpec) -> Result<(), AdoptError> {
        super::adopt::adopt(&self.shared, spec).await
    }

    fn leftovers(&self) -> Vec<AllocationId> {
        let all = spawn::dirs(&self.shared.options.run_dir);
        let state = self.shared.state();
        let runs =
            |id: &AllocationId| state.running.contains_key(id) || state.once.contains_key(id);
        all.into_iter().filter(|id| !runs(id)).collect()
    }

    async fn close(&self) {
        *self.shared.closed.write().await = true;
        self.shared.end_commands(COMMANDS).await;
    }

    fn exits(&self) -> Option<mpsc::Receiver<Exit>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(
        &self,
        environment: &Environment,
        allocation: &AllocationId,
        process: &str,
        text: &str,
    ) {
        self.shared.options.outputs.note(environment, allocation, process, text);
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
    use crate::clock::{SystemClock, SystemEntropy};
    use crate::contract::Ready;
    use crate::id::{Digest, Epoch, Generation};
    use crate::runner::{ExitStatus, Program};

    #[tokio::test]
    async fn one_that_ended_before_its_readiness_is_asked_for_ended_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let runner = ProcessRunner::new(ProcessRunnerOptions {
            run_dir: dir.path().to_owned(),
            outputs: crate::output::Outputs::small(dir.path()),
            clock: Arc::new(SystemClock::new()),
            max_processes: 1,
            scratch_bytes: 1 << 20,
        })
        .unwrap();
        let mut exits = runner.exits().unwrap();
        // Its control group is one of the machine, which other tests share.
        let allocation = AllocationId::random(&SystemEntropy);
        let spec = StartSpec {
            allocation: allocation.clone(),
            generation: Generation(1),
            program: Program {
                environment: "studylab".parse().unwrap(),
                epoch: Epoch(1),
                digest: Digest::from_bytes([1; 32]),
                root: dir.path().to_owned(),
                needs: Default::default(),
                command: ["sh", "-c", "echo broken; exit 3"].map(str::to_owned).into(),
                path: Vec::new(),
                env: Vec::new(),
                secrets: Vec::new(),
                scratch: false,
            },
            ready: Ready::Tcp,
            start_timeout: Duration::from_secs(60),
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
