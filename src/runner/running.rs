//! One process that this runner watches, started here or adopted from an earlier process of the
//! edge: its signals, its readiness, its end.

use std::process::Child;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::clock::Mono;
use crate::id::{AllocationId, Environment};

use super::cgroup::Cgroup;
use super::log::Tail;
use super::pidfd::PidFd;
use super::spawn::{self, Port};
use super::{ExitStatus, ProcessIdentity, ReadyCheck, StartError, proc, readiness};

/// From SIGKILL to the end, at most: only a process in uninterruptible sleep takes longer.
pub const AFTER_KILL: Duration = Duration::from_secs(5);

/// How an allocation ended, and what of it could not be ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub status: ExitStatus,
    pub left: Vec<u32>,
}

/// The process and what belongs to it.
pub struct Running {
    pub allocation: AllocationId,
    pub environment: Environment,
    pub identity: ProcessIdentity,
    /// An earlier process of the edge started it; its parent is another.
    pub adopted: bool,
    pub port: Port,
    pub ready: ReadyCheck,
    pub host: String,
    /// Whether readiness requests say that they came over HTTPS.
    pub https: bool,
    pub start_timeout: Duration,
    pub deadline: Mono,
    pub cgroup: Option<Cgroup>,
    pub notify: Option<UnixDatagram>,
    pub asked: AtomicBool,
    /// Whether the process was reaped: until then the kernel gives its id, and its group's, to no other.
    pub reaped: Mutex<bool>,
    pub ended: watch::Receiver<Option<Ended>>,
    pub tail: Arc<Tail>,
    pub _slot: OwnedSemaphorePermit,
}

impl Running {
    /// Signals the process group, if the process was not reaped yet.
    pub fn signal_group(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was adopted is reaped by its parent, and another process may have its id at any time
        // after that: so it is looked at right before.
        let same = || proc::start_time(self.identity.pid) == Some(self.identity.start_time);
        if !*reaped
            && (!self.adopted || same())
            && let Ok(pid) = i32::try_from(self.identity.pid)
        {
            // ESRCH: it is just being reaped.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    pub async fn end_within(&self, limit: Duration) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let end = tokio::time::timeout(limit, ended.wait_for(Option::is_some)).await;
        end.ok()?.ok()?.clone()
    }

    /// Ends what the process left; called while a child of ours is a zombie, so that its group is
    /// still its own. Returns what could not be ended.
    pub async fn kill_rest(&self) -> Vec<u32> {
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

    /// Takes the exit status of a child that has ended. One that was adopted has another parent,
    /// and how it ended is not told here.
    pub fn reap(&self, child: Option<Child>) -> ExitStatus {
        use std::os::unix::process::ExitStatusExt;
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut child) = child else {
            *reaped = true;
            return ExitStatus::Unknown;
        };
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
    pub async fn until_ready(&self, last: &Mutex<String>) {
        let mut checks = 0;
        loop {
            let address = self.port.address();
            let found = match &self.ready {
                ReadyCheck::Http { path } => {
                    readiness::http(address, &self.host, self.https, path).await
                }
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

    /// No other process may listen where its requests go.
    pub async fn check_port(self: &Arc<Self>) -> Result<(), StartError> {
        let (this, port) = (Arc::clone(self), self.port.address().port());
        let held = tokio::task::spawn_blocking(move || this.holds_port()).await;
        match held.map_err(std::io::Error::other).and_then(|held| held) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StartError::PortTaken { port }),
            Err(e) => Err(StartError::system("asking who holds its port", e)),
        }
    }

    /// Whether the port is held by the process or by something it started.
    pub fn holds_port(&self) -> std::io::Result<bool> {
        let inodes = proc::listeners(self.port.address().port())?;
        Ok(proc::holds_socket(self.identity.pid, &inodes)
            || self.pids().into_iter().any(|pid| proc::holds_socket(pid, &inodes)))
    }

    /// The ids of the process and of everything that it started. Blocks for reading `/proc`.
    pub fn pids(&self) -> Vec<u32> {
        let mark = spawn::mark(&self.allocation);
        let own =
            |pid: &u32| proc::group(*pid) == Some(self.identity.pid) || proc::has_env(*pid, &mark);
        match &self.cgroup {
            Some(cgroup) => cgroup.pids(),
            None => proc::pids().into_iter().filter(own).collect(),
        }
    }
}

/// SIGKILL for every process that has the allocation's mark in its environment, until none is left
/// or `limit` is over. Returns those that are left.
pub async fn kill_marked(allocation: &AllocationId, limit: Duration) -> Vec<u32> {
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

/// Ends a process that is not our child, if it is still the one that was recorded: SIGTERM for its
/// group, then SIGKILL.
pub async fn end_process(identity: &ProcessIdentity, grace: Duration) {
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
