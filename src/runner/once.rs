//! Commands that run once beside allocations: as a process of the app in all but what takes requests. Each
//! has a mark, a directory, a control group and an end of its own, and keeps nothing awake.
//!
//! One that this process of the edge leaves behind has files below `allocations/` and no record: the next
//! one ends it, as any process that no record names.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;

use crate::id::AllocationId;

use super::expanded::Variables;
use super::group::{Ended, Group};
use super::log::{self, Tail};
use super::shared::{Shared, Watched};
use super::spawn::{self, Streams};
use super::{ExitStatus, FreezeError, Program, Room, StartError, StopError};

/// What is to run once.
#[derive(Debug)]
pub struct OnceSpec {
    /// Its mark, and the name of its directory and its control group.
    pub id: AllocationId,
    /// As the log names its process.
    pub name: String,
    pub program: Program,
    pub prints: Prints,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
}

/// Where a command prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prints {
    /// Into its environment's log; it reads nothing.
    ToLog,
    /// To what started it, which may also let it read.
    Piped { stdin: bool },
}

/// The ends of a command's pipes; it waits while nothing reads them.
#[derive(Debug, Default)]
pub struct Pipes {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

/// What a runner has of a command that it launched.
#[async_trait]
pub trait Launched: Send + Sync {
    /// Its mark.
    fn id(&self) -> &AllocationId;
    /// Its process, for people.
    fn pid(&self) -> u32;
    /// As [`Once::ended`].
    fn ended(&self) -> BoxFuture<'static, ExitStatus>;
    fn has_ended(&self) -> bool;
    /// Whether it was told to end.
    fn asked(&self) -> bool;
    /// As [`Once::freeze`].
    ///
    /// # Errors
    /// [`FreezeError`]; it may run in part.
    async fn freeze(&self) -> Result<(), FreezeError>;
    /// As [`Once::thaw`].
    ///
    /// # Errors
    /// [`FreezeError`].
    fn thaw(&self) -> Result<(), FreezeError>;
    /// As [`Once::memory`].
    async fn memory(&self) -> u64;
    /// Ends it: SIGTERM, and after `grace` SIGKILL.
    ///
    /// # Errors
    /// [`StopError`] when something still runs.
    async fn end(&self, grace: Duration) -> Result<(), StopError>;
    /// As [`Once::printed`].
    fn printed(&self, max: usize) -> String;
}

/// A process of this machine, and the end of what it printed.
struct Process {
    group: Arc<Group>,
    tail: Arc<Tail>,
}

#[async_trait]
impl Launched for Process {
    fn id(&self) -> &AllocationId {
        &self.group.allocation
    }
    fn pid(&self) -> u32 {
        self.group.process.pid
    }
    fn ended(&self) -> BoxFuture<'static, ExitStatus> {
        let mut ended = self.group.ended.subscribe();
        Box::pin(async move {
            let end = ended.wait_for(Option::is_some).await;
            end.ok().and_then(|e| e.as_ref().map(|e| e.status)).unwrap_or(ExitStatus::Unknown)
        })
    }
    fn has_ended(&self) -> bool {
        self.group.ended.borrow().is_some()
    }
    fn asked(&self) -> bool {
        self.group.asked.load(Ordering::Acquire)
    }
    async fn freeze(&self) -> Result<(), FreezeError> {
        self.group.freeze().await
    }
    fn thaw(&self) -> Result<(), FreezeError> {
        self.group.thaw()
    }
    async fn memory(&self) -> u64 {
        let group = Arc::clone(&self.group);
        tokio::task::spawn_blocking(move || group.memory()).await.unwrap_or(0)
    }
    async fn end(&self, grace: Duration) -> Result<(), StopError> {
        self.group.end(grace).await
    }
    fn printed(&self, max: usize) -> String {
        self.tail.last(max)
    }
}

/// A command that runs, or has ended. Dropped before it has, it is ended.
pub struct Once {
    launched: Arc<dyn Launched>,
    grace: Duration,
    runtime: Handle,
    pub pipes: Pipes,
}

impl Once {
    /// Of what was launched on this runtime; `grace` is from SIGTERM to SIGKILL.
    pub fn of(launched: Arc<dyn Launched>, grace: Duration, pipes: Pipes) -> Self {
        Self { launched, grace, runtime: Handle::current(), pipes }
    }

    /// Until it has ended, and everything that it started.
    pub fn ended(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        self.launched.ended()
    }

    /// Its process, for people.
    pub fn pid(&self) -> u32 {
        self.launched.pid()
    }

    /// Takes processor time away from it and what it started; returns when it stands still.
    ///
    /// # Errors
    /// [`FreezeError`]; it may run in part.
    pub async fn freeze(&self) -> Result<(), FreezeError> {
        self.launched.freeze().await
    }

    /// Gives it back.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn thaw(&self) -> Result<(), FreezeError> {
        self.launched.thaw()
    }

    /// Bytes of memory that it holds, with what it started.
    pub async fn memory(&self) -> u64 {
        self.launched.memory().await
    }

    /// Whether it was told to end, by this or by the edge that stops.
    pub fn asked(&self) -> bool {
        self.launched.asked()
    }

    /// Begins to end it: SIGTERM, and after its grace SIGKILL.
    pub fn end(&self) {
        if self.launched.has_ended() {
            return;
        }
        self.runtime.spawn(end(Arc::clone(&self.launched), self.grace));
    }

    /// Ends it if it runs for longer than `limit`, and says then that it did. A task of its own does: what reads
    /// the pipes may wait for a client that reads nothing, and a command whose pipe is full ends by nothing else.
    pub fn end_after(&self, limit: Duration) -> Arc<AtomicBool> {
        let over = Arc::<AtomicBool>::default();
        let (launched, grace, said) = (Arc::clone(&self.launched), self.grace, Arc::clone(&over));
        let ended = self.ended();
        self.runtime.spawn(async move {
            if tokio::time::timeout(limit, ended).await.is_err() {
                said.store(true, Ordering::Release);
                end(launched, grace).await;
            }
        });
        over
    }

    /// The end of what it printed into the log, at most `max` bytes.
    pub fn printed(&self, max: usize) -> String {
        self.launched.printed(max)
    }
}

async fn end(launched: Arc<dyn Launched>, grace: Duration) {
    if let Err(e) = launched.end(grace).await {
        ::log::error!("{}: a command could not be ended: {e}", launched.id());
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.end();
        // What it prints as it ends is read to its end: SIGPIPE would come before its own way to end does.
        let Pipes { stdin, stdout, stderr } = std::mem::take(&mut self.pipes);
        drop(stdin);
        if !self.launched.has_ended() {
            for mut pipe in [stdout, stderr].into_iter().flatten() {
                self.runtime.spawn(async move {
                    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
                });
            }
        }
    }
}

impl Shared {
    /// Starts it and what watches it: as [`Shared::launch`].
    pub(super) fn launch_once(
        self: &Arc<Self>,
        spec: OnceSpec,
        room: Room,
    ) -> Result<Once, StartError> {
        let OnceSpec { id, name, program, prints, grace } = spec;
        let place = self.place(&id, &program)?;
        let (output, streams) = match prints {
            Prints::ToLog => {
                let (output, stdio) = place.output()?;
                (output, Streams::printing_to(stdio))
            }
            Prints::Piped { stdin } => {
                let stdin = if stdin { Stdio::piped() } else { Stdio::null() };
                let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
                (log::Ends::new(), Streams { stdin, stdout, stderr })
            }
        };
        let mut child = place.spawn(&program, Variables::new(), streams)?;
        let pipes = pipes_of(&mut child);
        let (group, pidfd, child) = self.group(place, child)?;
        let watched = Watched { pidfd, child: Some(child), needs: program.needs };
        // For the next process of the edge: a program may write over the mark in its environment.
        if let Err(e) = spawn::record(&self.options.run_dir, &id, &group.process) {
            ::log::warn!("{id}: what runs is not written down: {e}");
        }
        let (group, tail) = (Arc::new(group), Arc::<Tail>::default());
        let environment = program.environment;
        // Without its arguments, which may be secret.
        let started = format!("started: {}", program.command.first().map_or("", |name| name));
        self.options.outputs.note(&environment, &id, &name, &started);
        let pumps = self.pumps(output, &environment, &group, &name, &tail);
        self.state().once.insert(id, (Arc::clone(&group), grace));
        let (shared, of) = (Arc::clone(self), Arc::clone(&group));
        tokio::spawn(async move {
            let (status, left) = shared.until_over(&environment, &of, &name, watched, pumps).await;
            spawn::remove_dir(&shared.options.run_dir, &of.allocation);
            shared.state().once.remove(&of.allocation);
            of.ended.send_replace(Some(Ended { status, left }));
            drop(room);
        });
        let pipes = pipes.map_err(|e| {
            // What could be read is all that it is for.
            let group = Arc::clone(&group);
            tokio::spawn(async move { group.end(Duration::ZERO).await });
            StartError::system("its pipes", e)
        })?;
        Ok(Once::of(Arc::new(Process { group, tail }), grace, pipes))
    }

    /// Ends every command, each within its own grace and `limit`.
    pub(super) async fn end_commands(&self, limit: Duration) {
        let all: Vec<_> = self.state().once.values().cloned().collect();
        let ending = all.iter().map(|(group, grace)| async move {
            if let Err(e) = group.end(limit.min(*grace)).await {
                ::log::error!("{}: a command could not be ended: {e}", group.allocation);
            }
        });
        futures_util::future::join_all(ending).await;
    }
}

fn pipes_of(child: &mut Child) -> io::Result<Pipes> {
    let stdin = child.stdin.take().map(|p| pipe::Sender::from_owned_fd(OwnedFd::from(p)));
    let stdout = child.stdout.take().map(|p| pipe::Receiver::from_owned_fd(OwnedFd::from(p)));
    let stderr = child.stderr.take().map(|p| pipe::Receiver::from_owned_fd(OwnedFd::from(p)));
    Ok(Pipes {
        stdin: stdin.transpose()?,
        stdout: stdout.transpose()?,
        stderr: stderr.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::clock::{SystemClock, SystemEntropy};
    use crate::id::{Digest, Epoch};
    use crate::runner::group::mark;
    use crate::runner::{ProcessRunner, ProcessRunnerOptions, Runner, proc};

    fn room() -> Room {
        Room::of(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap())
    }

    fn runner(dir: &Path) -> ProcessRunner {
        ProcessRunner::new(ProcessRunnerOptions {
            run_dir: dir.to_owned(),
            outputs: crate::output::Outputs::small(dir),
            clock: Arc::new(SystemClock::new()),
            max_processes: 1,
            scratch_bytes: 1 << 20,
        })
        .unwrap()
    }

    fn spec(dir: &Path, script: &str, prints: Prints) -> OnceSpec {
        OnceSpec {
            // Its control group is one of the machine, which other tests share.
            id: AllocationId::random(&SystemEntropy),
            name: "task".into(),
            program: Program {
                environment: "studylab".parse().unwrap(),
                epoch: Epoch(3),
                digest: Digest::from_bytes([1; 32]),
                root: dir.to_owned(),
                needs: Default::default(),
                command: ["sh", "-c", script].map(str::to_owned).into(),
                path: Vec::new(),
                secrets: Vec::new(),
                scratch: false,
                env: [("A", "1"), ("A", "2"), ("VANGO_EDGE_EPOCH", "9"), ("LANG", "C")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            },
            prints,
            grace: Duration::from_secs(60),
        }
    }

    async fn all(pipe: &mut Option<pipe::Receiver>) -> String {
        let mut text = String::new();
        pipe.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn it_reads_prints_and_ends_as_a_process_of_the_app() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let script = "cat; env | sort >&2; ls -d \"$HOME\" \"$TMPDIR\" >/dev/null && exit 7";
        let spec = spec(dir.path(), script, Prints::Piped { stdin: true });
        let mark = mark(&spec.id);
        let mut once = runner.once(spec, room()).await.unwrap();
        let mut stdin = once.pipes.stdin.take().unwrap();
        stdin.write_all(b"given").await.unwrap();
        drop(stdin);
        assert_eq!(all(&mut once.pipes.stdout).await, "given");
        let env = all(&mut once.pipes.stderr).await;
        for line in ["A=2", "VANGO_EDGE_EPOCH=3", "LANG=C", &mark] {
            assert!(env.lines().any(|l| l == line), "{line}: {env}");
        }
        for name in ["PORT=", "NOTIFY_SOCKET=", "VANGO_EDGE_GENERATION="] {
            assert!(!env.contains(&format!("\n{name}")), "{env}");
        }
        assert_eq!(once.ended().await, ExitStatus::Code(7));
        assert_eq!(runner.leftovers(), [], "nothing of it stays");
    }

    #[tokio::test]
    async fn what_it_prints_into_the_log_is_kept_and_what_it_leaves_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let script = "sleep 1000 & echo $! >pid; echo done; exit 0";
        let once = runner.once(spec(dir.path(), script, Prints::ToLog), room()).await.unwrap();
        assert_eq!(once.ended().await, ExitStatus::Code(0));
        assert_eq!(once.printed(100), "done\n");
        let log = dir.path().join("log/studylab/production/0000000001.log");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.lines().any(|line| line.ends_with(" task stdout F done")), "{log}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        assert!(proc::ended(pid.trim().parse().unwrap()));
    }

    #[tokio::test]
    async fn one_that_is_not_wanted_any_more_is_told_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let script = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.01; done";
        let mut once = runner
            .once(spec(dir.path(), script, Prints::Piped { stdin: false }), room())
            .await
            .unwrap();
        let mut stdout = once.pipes.stdout.take().unwrap();
        let mut up = [0; 3];
        stdout.read_exact(&mut up).await.unwrap();
        assert_eq!(runner.leftovers(), [], "it is no leftover while it runs");
        drop(once);
        let mut told = String::new();
        stdout.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "told\n");
    }

    #[tokio::test]
    async fn one_whose_time_is_over_ends_though_nothing_reads_what_it_prints() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let prints = Prints::Piped { stdin: false };
        let once = runner.once(spec(dir.path(), "exec yes", prints), room()).await.unwrap();
        let over = once.end_after(Duration::from_millis(1));
        assert_eq!(once.ended().await, ExitStatus::Signal(libc::SIGTERM));
        assert!(over.load(Ordering::Acquire) && once.asked());

        let once = runner.once(spec(dir.path(), "exit 0", prints), room()).await.unwrap();
        let over = once.end_after(Duration::from_secs(1000));
        assert_eq!(once.ended().await, ExitStatus::Code(0));
        assert!(!over.load(Ordering::Acquire) && !once.asked());
    }

    #[tokio::test]
    async fn a_runner_that_closes_leaves_no_command() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let once =
            runner.once(spec(dir.path(), "sleep 1000", Prints::ToLog), room()).await.unwrap();
        runner.close().await;
        assert_eq!(once.ended().await, ExitStatus::Signal(libc::SIGTERM));
        let again = runner.once(spec(dir.path(), "true", Prints::ToLog), room()).await;
        assert!(matches!(again.err(), Some(StartError::Stopped)));
    }
}
