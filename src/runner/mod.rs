//! Runs allocations. [`Runner`] is what the wake worker needs; [`ProcessRunner`] does it with
//! processes of this machine.
//!
//! Invariants: a process is the leader of a group of its own, starts with an environment of its own
//! and can gain no privileges; it is ready only when a check over the path that traffic takes said
//! so and the port is held by that process; when [`Runner::stop`] returns, nothing that it started
//! runs any more, `setsid` or not; a generation at or below one that was started is refused. What an
//! earlier process of the edge started is adopted only if it is proved to be the one that was
//! recorded: by boot, process id and start time, by who holds its port, and by a check that it is
//! ready.
//!
//! Deliberately absent: restarting (the wake machine decides), a sandbox for the file system and
//! limits of memory and CPU (they need a container or a delegated cgroup).

mod adopt;
mod cgroup;
mod freeze;
mod log;
mod pidfd;
mod proc;
mod process;
mod readiness;
mod running;
mod spawn;

pub use process::{ProcessRunner, ProcessRunnerOptions};
pub use spawn::PATH;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::id::{AllocationId, Digest, Environment, Epoch, Generation};

/// What is to be started.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// Its id.
    pub allocation: AllocationId,
    /// Whose it is.
    pub environment: Environment,
    /// Which start of the environment this is.
    pub generation: Generation,
    /// Under which epoch of the route owner.
    pub epoch: Epoch,
    /// From which artifact.
    pub digest: Digest,
    /// The artifact's unpacked root: the working directory.
    pub root: PathBuf,
    /// Program and arguments. A program with a `/` is resolved in the root, another in `PATH`.
    pub command: Vec<String>,
    /// Its environment, besides what the runner sets. May hold secrets: never logged.
    pub env: Vec<(String, String)>,
    /// When it is ready.
    pub ready: ReadyCheck,
    /// From the start to readiness, at most.
    pub start_timeout: Duration,
    /// Bounds.
    pub limits: ResourceLimits,
    /// The `Host` of readiness requests.
    pub host: String,
}

/// How readiness is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyCheck {
    /// `GET path` is answered 2xx.
    Http {
        /// The path.
        path: String,
    },
    /// The port accepts connections.
    Tcp,
    /// The process sends `READY=1` to `NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
}

/// Bounds of one process (getrlimit(2)); its children inherit them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Open files; not more than the edge itself may have.
    pub open_files: u64,
    /// Bytes of a core dump.
    pub core_bytes: u64,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { open_files: 65_536, core_bytes: 0 }
    }
}

/// Names one process of one machine beyond the reuse of process ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Its control group's directory, if it has one of its own.
    pub cgroup: Option<PathBuf>,
}

/// A started allocation. It is not ready yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The process.
    pub identity: ProcessIdentity,
    /// Where it is to listen.
    pub address: SocketAddr,
}

/// What an earlier process of the edge recorded of an allocation that may run still.
#[derive(Debug, Clone)]
pub struct AdoptSpec {
    /// Its id.
    pub allocation: AllocationId,
    /// Whose it is.
    pub environment: Environment,
    /// Which start of the environment it is.
    pub generation: Generation,
    /// Its process.
    pub identity: ProcessIdentity,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it says that it is ready. An app with [`ReadyCheck::Notify`] said so to the earlier
    /// process; now its port has to accept. `None` for one that is frozen: nothing is asked of it.
    pub ready: Option<ReadyCheck>,
    /// The `Host` of readiness requests.
    pub host: String,
    /// How long it may take to prove that it is ready.
    pub within: Duration,
}

/// Why an allocation was not adopted. It may run still: the caller ends it.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is not the process that was recorded.
    #[error("it does not run any more: {0}")]
    Gone(&'static str),
    /// It runs, and is not fit for requests.
    #[error(transparent)]
    Unfit(#[from] StartError),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// That is not known.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(n) => match nix::sys::signal::Signal::try_from(*n) {
                Ok(signal) => write!(f, "{}", signal.as_str()),
                Err(_) => write!(f, "signal {n}"),
            },
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// An allocation's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Which.
    pub allocation: AllocationId,
    /// Whose.
    pub environment: Environment,
    /// How.
    pub status: ExitStatus,
    /// Whether [`Runner::stop`] was called before.
    pub asked: bool,
}

/// Why an allocation did not start or did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be executed.
    #[error("{program} could not be started: {source}")]
    Spawn {
        /// As the contract names it.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("it ended before it was ready: {0}")]
    Exited(ExitStatus),
    /// It was not ready in time.
    #[error("it was not ready within {limit:?}; last check: {last}")]
    NotReady {
        /// The limit.
        limit: Duration,
        /// What the last check found.
        last: String,
    },
    /// Someone else listens on its port.
    #[error("its port {port} is held by another process")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// This generation, or a later one, was started already.
    #[error("generation {given} of {environment} was started already; the last one is {last}")]
    Fenced {
        /// Whose.
        environment: Environment,
        /// Which was asked for.
        given: Generation,
        /// The highest one.
        last: Generation,
    },
    /// The node runs as many processes as it may.
    #[error("this node runs {0} processes, its maximum (runner.max_processes)")]
    Full(usize),
    /// It was stopped while it was starting, or was never started.
    #[error("it was stopped")]
    Stopped,
    /// A file, socket or thread that it needs could not be made.
    #[error("{what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl StartError {
    pub(crate) fn system(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::System { what: what.into(), source }
    }

    /// What a client may be told.
    pub fn safe_cause(&self) -> &'static str {
        match self {
            Self::Spawn { .. } => "the app's program could not be started",
            Self::Exited(_) => "the app ended before it was ready",
            Self::NotReady { .. } => "the app was not ready in time",
            Self::PortTaken { .. } => "the app's port was taken",
            Self::Full(_) => "the node runs as many apps as it may",
            Self::Fenced { .. } | Self::Stopped => "the start was superseded",
            Self::System { .. } => "the node could not start the app",
        }
    }
}

/// Why an allocation was not frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It has ended, or was never started here.
    #[error("it does not run any more")]
    Gone,
    /// It did not stand still in time.
    #[error("it did not stand still within {0:?}")]
    Slow(Duration),
    /// The system did not let us.
    #[error("{what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Why something still runs.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It outlived SIGKILL, as a process in uninterruptible sleep does.
    #[error("processes {pids:?} are still there after SIGKILL")]
    Alive {
        /// Which.
        pids: Vec<u32>,
    },
    /// The system did not let us.
    #[error("{what}: {source}")]
    System {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A place for one more process on the node; given back when it is dropped.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

/// Starts, watches and ends allocations.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Whether readiness requests of later starts say that they came over HTTPS.
    fn readiness_over_https(&self, _https: bool) {}

    /// A place for one more process, if there is one and no other start waits for it.
    ///
    /// # Errors
    /// [`StartError::Full`].
    fn try_room(&self) -> Result<Room, StartError>;

    /// The next place that is free; first come, first served. Cancel safe.
    async fn room(&self) -> Room;

    /// Starts a process; returns as soon as it runs.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    async fn start(&self, spec: StartSpec, room: Room) -> Result<Started, StartError>;

    /// Waits until a started allocation is ready, has ended, or its `start_timeout` is over.
    ///
    /// # Errors
    /// [`StartError`]; the process may still run: the caller stops it.
    async fn ready(&self, allocation: &AllocationId) -> Result<(), StartError>;

    /// Ends an allocation: SIGTERM, and after `grace` SIGKILL, for everything that it started. One that
    /// is frozen is thawed for it. Does nothing for one that is not known.
    ///
    /// # Errors
    /// [`StopError`] when something still runs.
    async fn stop(&self, allocation: &AllocationId, grace: Duration) -> Result<(), StopError>;

    /// The same for what an earlier process of the edge started: found by the identity it recorded,
    /// and by the mark in the environment of everything that it started.
    ///
    /// # Errors
    /// [`StopError`] when something still runs.
    async fn end_leftover(
        &self,
        identity: Option<&ProcessIdentity>,
        allocation: &AllocationId,
        grace: Duration,
    ) -> Result<(), StopError>;

    /// Takes processor time away from an allocation, everything that it started included; it keeps its
    /// memory, its sockets and its timers. Returns when it stands still. Does nothing to one that does.
    ///
    /// # Errors
    /// [`FreezeError`]; it may run in part: the caller thaws or stops it.
    async fn freeze(&self, allocation: &AllocationId) -> Result<(), FreezeError>;

    /// Gives it back. Does nothing to one that runs.
    ///
    /// # Errors
    /// [`FreezeError`]; the caller stops it.
    async fn thaw(&self, allocation: &AllocationId) -> Result<(), FreezeError>;

    /// Whether anything of an allocation listens on its port; `None` where it has ended, is not known, or
    /// the system does not say. Reads files of `/proc`.
    async fn listens(&self, allocation: &AllocationId) -> Option<bool>;

    /// Bytes of memory that an allocation's processes hold, shared pages counted in proportion; 0 for
    /// one that is not known. Reads files of `/proc`.
    async fn memory(&self, allocation: &AllocationId) -> u64;

    /// Takes over an allocation that an earlier process of the edge started: from here on it is
    /// watched, read, stopped and counted as if it had been started here. Its exit is told with
    /// [`ExitStatus::Unknown`]: only a parent learns more.
    ///
    /// # Errors
    /// [`AdoptError`]; nothing was changed then.
    async fn adopt(&self, spec: AdoptSpec) -> Result<(), AdoptError>;

    /// Allocations of which an earlier process of the edge left files. What has no record is to be
    /// ended with [`Runner::end_leftover`], which removes them.
    fn leftovers(&self) -> Vec<AllocationId>;

    /// Refuses every start from here on; when it returns, none is at work.
    async fn close(&self);

    /// Where exits are told; `None` after the first call.
    fn exits(&self) -> Option<mpsc::Receiver<Exit>>;

    /// The end of an allocation's output, at most `max` bytes of UTF-8; `None` when the allocation
    /// is not known any more.
    fn log_tail(&self, allocation: &AllocationId, max: usize) -> Option<String>;
}
