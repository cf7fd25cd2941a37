//! Runs allocations. [`Runner`] is what wakes need; [`ProcessRunner`] does it with
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
mod expanded;
mod group;
mod log;
mod once;
mod pidfd;
mod proc;
mod process;
mod readiness;
mod running;
mod scratch;
mod shared;
mod spawn;

pub use expanded::PATH;
pub use once::{Launched, Once, OnceSpec, Pipes, Prints};
pub use process::ProcessRunner;
pub use shared::ProcessRunnerOptions;

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::contract::Ready;
use crate::id::{AllocationId, Digest, Environment, Epoch, Generation};
use crate::record::Process;

/// A program of an artifact, and whose it is: an allocation's own, or one that runs beside it.
#[derive(Debug, Clone)]
pub struct Program {
    /// The environment that it belongs to.
    pub environment: Environment,
    /// Under which epoch of the route owner.
    pub epoch: Epoch,
    /// From which artifact.
    pub digest: Digest,
    /// The artifact's unpacked root: the working directory.
    pub root: PathBuf,
    /// What has to stay for as long as it runs.
    pub needs: Needs,
    /// Program and arguments, with names such as `$PORT` in them (`contract::expand`). A program with a `/` is
    /// resolved in the root, another in `PATH`.
    pub command: Vec<String>,
    /// Directories of the artifact that stand before the others of `PATH`.
    pub path: Vec<String>,
    /// Its environment, besides what the runner sets, with names in its values; of two with one name the last
    /// counts. Never logged.
    pub env: Vec<(String, String)>,
    /// More of it, as it is: in no command. Never logged.
    pub secrets: Vec<(String, String)>,
    /// Whether it gets a view of the root that it may write to.
    pub scratch: bool,
}

/// What a process needs for as long as it runs, such as the tree that it runs from: let go of once it has ended.
#[derive(Clone, Default)]
pub struct Needs(Option<Arc<dyn Any + Send + Sync>>);

impl Needs {
    /// All that dropping `what` would take away.
    pub fn of(what: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(what)))
    }
}

impl fmt::Debug for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Needs").field(&self.0.is_some()).finish()
    }
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct StartSpec {
    pub allocation: AllocationId,
    /// Which start of the environment this is.
    pub generation: Generation,
    pub program: Program,
    /// When it is ready.
    pub ready: Ready,
    /// From the start to readiness, at most.
    pub start_timeout: Duration,
    /// The `Host` of readiness requests.
    pub host: String,
}

/// A started allocation. It is not ready yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub process: Process,
    /// Where it is to listen.
    pub address: SocketAddr,
}

/// What an earlier process of the edge recorded of an allocation that may run still.
#[derive(Debug, Clone)]
pub struct AdoptSpec {
    pub allocation: AllocationId,
    /// The environment that it belongs to.
    pub environment: Environment,
    /// Which start of the environment it is.
    pub generation: Generation,
    pub process: Process,
    pub address: SocketAddr,
    /// How it says that it is ready. An app with [`Ready::Notify`] said so to the earlier
    /// process; now its port has to accept. `None` for one that is frozen: nothing is asked of it.
    pub ready: Option<Ready>,
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
    pub allocation: AllocationId,
    /// The environment that it belongs to.
    pub environment: Environment,
    /// How its process ended.
    pub status: ExitStatus,
    /// Whether [`Runner::stop`] was called before.
    pub asked: bool,
}

/// What the system refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Refused {
    what: String,
    source: std::io::Error,
}

/// Why an allocation did not start or did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be executed.
    #[error("{program} could not be started: {source}")]
    Spawn {
        /// As the contract names it.
        program: String,
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("it ended before it was ready: {0}")]
    Exited(ExitStatus),
    /// It was not ready in time.
    #[error("it was not ready within {limit:?}; last check: {last}")]
    NotReady {
        limit: Duration,
        /// What the last check found.
        last: String,
    },
    /// It listens, and not where its requests go.
    #[error("it was not ready within {limit:?}: it {instead}")]
    Elsewhere {
        limit: Duration,
        /// Where, and where not.
        instead: String,
    },
    /// Another process listens on its port.
    #[error("its port {port} is held by another process")]
    PortTaken { port: u16 },
    /// This generation, or a later one, was started already.
    #[error("generation {given} of {environment} was started already; the last one is {last}")]
    Fenced {
        /// The environment that it belongs to.
        environment: Environment,
        /// Which was asked for.
        given: Generation,
        last: Generation,
    },
    /// The node runs as many processes as it may.
    #[error("this node runs {0} processes, its maximum (runner.max_processes)")]
    Full(usize),
    /// It was stopped while it was starting, or was never started.
    #[error("it was stopped")]
    Stopped,
    /// A file, socket or thread that it needs could not be made.
    #[error(transparent)]
    System(#[from] Refused),
}

impl StartError {
    pub(crate) fn system(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::System(Refused { what: what.into(), source })
    }

    /// What a client may be told.
    pub fn safe_cause(&self) -> &'static str {
        match self {
            Self::Spawn { .. } => "the app's program could not be started",
            Self::Exited(_) => "the app ended before it was ready",
            Self::NotReady { .. } => "the app was not ready in time",
            Self::Elsewhere { .. } => "the app listens on another address than 127.0.0.1:$PORT",
            Self::PortTaken { .. } => "the app's port was taken",
            Self::Full(_) => "the node runs as many apps as it may",
            Self::Fenced { .. } | Self::Stopped => "the start was superseded",
            Self::System(_) => "the node could not start the app",
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
    /// The system refused it.
    #[error(transparent)]
    System(#[from] Refused),
}

/// Why something still runs.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// These processes outlived SIGKILL, as one in uninterruptible sleep does.
    #[error("processes {0:?} are still there after SIGKILL")]
    Alive(Vec<u32>),
    /// The system refused it.
    #[error(transparent)]
    System(#[from] Refused),
}

/// A place for one more process on the node; given back when it is dropped.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

impl Room {
    /// One of the places that a runner counts with a semaphore.
    pub fn of(place: OwnedSemaphorePermit) -> Self {
        Self(place)
    }
}

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

    /// The same for what an earlier process of the edge started: found by the process it recorded,
    /// and by the mark in the environment of everything that it started.
    ///
    /// # Errors
    /// [`StopError`] when something still runs.
    async fn end_leftover(
        &self,
        process: Option<&Process>,
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

    /// Runs a command once beside allocations, in a place of the caller's until it has ended; returns as soon
    /// as it runs.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    async fn once(&self, spec: OnceSpec, room: Room) -> Result<Once, StartError>;

    /// Refuses every start from here on; when it returns, none is at work, and every command that runs once
    /// has ended.
    async fn close(&self);

    /// Where exits are told; `None` after the first call.
    fn exits(&self) -> Option<mpsc::Receiver<Exit>>;

    /// Says something about a process of an allocation, or of a command, in the log of what its environment prints.
    fn note(
        &self,
        _environment: &Environment,
        _allocation: &AllocationId,
        _process: &str,
        _text: &str,
    ) {
    }

    /// The end of an allocation's output, at most `max` bytes of UTF-8; `None` when the allocation
    /// is not known any more.
    fn log_tail(&self, allocation: &AllocationId, max: usize) -> Option<String>;
}
