//! A process with everything that it started, as one: its signals, how it is frozen, its end. An allocation's
//! or a one-off command's, started here or adopted from an earlier process of the edge.
//!
//! It is frozen by its control group where it has one of its own, by SIGSTOP to its process group
//! where not. The control group is exact: what it forks at the moment stands still too, and no process can
//! tell. SIGSTOP does not reach what left the process group, and a parent would see its child stop; so what
//! it started elsewhere runs on.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst` (`cgroup.freeze`, `cgroup.events`).

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::id::AllocationId;
use crate::record::Process;

use super::cgroup::{Cgroup, until};
use super::pidfd::PidFd;
use super::{ExitStatus, FreezeError, Refused, StopError, proc};

/// From SIGKILL to the end, at most: only a process in uninterruptible sleep takes longer.
pub const AFTER_KILL: Duration = Duration::from_secs(5);

/// A process in a system call that cannot be interrupted stands still only after it.
const STANDS_STILL: Duration = Duration::from_secs(1);

/// How it ended, and what of it could not be ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub status: ExitStatus,
    pub left: Vec<u32>,
}

/// A process and what it started.
pub struct Group {
    /// Whose mark is in the environment of all of them.
    pub allocation: AllocationId,
    /// The one that leads.
    pub process: Process,
    /// An earlier process of the edge started it; its parent is another.
    pub adopted: bool,
    pub cgroup: Option<Cgroup>,
    /// Whether it was told to end.
    pub asked: AtomicBool,
    /// Whether the process was reaped: until then the kernel gives its id, and its group's, to no other.
    reaped: Mutex<bool>,
    pub ended: watch::Sender<Option<Ended>>,
}

impl Group {
    /// Of a process that runs.
    pub fn of(
        allocation: AllocationId,
        process: Process,
        adopted: bool,
        cgroup: Option<Cgroup>,
    ) -> Self {
        let (asked, reaped, ended) = Default::default();
        Self { allocation, process, adopted, cgroup, asked, reaped, ended }
    }

    /// Ends it: SIGTERM, and after `grace` SIGKILL. One that is frozen is thawed for it.
    ///
    /// # Errors
    /// [`StopError`] when something still runs.
    pub async fn end(&self, grace: Duration) -> Result<(), StopError> {
        self.asked.store(true, Ordering::Release);
        self.signal_group(Signal::SIGTERM);
        // A frozen one gets its signal when it is thawed.
        if let Err(e) = self.thaw() {
            ::log::warn!("{}: {e}; it will be killed", self.allocation);
        }
        let mut end = self.end_within(grace).await;
        if end.is_none() {
            self.signal_group(Signal::SIGKILL);
            end = self.end_within(2 * AFTER_KILL).await;
        }
        match end {
            Some(Ended { left, .. }) if left.is_empty() => Ok(()),
            Some(Ended { left, .. }) => Err(StopError::Alive(left)),
            None => Err(StopError::Alive(vec![self.process.pid])),
        }
    }

    /// Signals the process group, if the process was not reaped yet.
    pub fn signal_group(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was adopted is reaped by its parent, and another process may have its id at any time
        // after that: so it is looked at right before.
        let same = || proc::start_time(self.process.pid) == Some(self.process.start_time);
        if !*reaped
            && (!self.adopted || same())
            && let Ok(pid) = i32::try_from(self.process.pid)
        {
            // ESRCH: it is just being reaped.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Freezes it; returns when it stands still.
    pub async fn freeze(&self) -> Result<(), FreezeError> {
        match &self.cgroup {
            Some(cgroup) => cgroup.freeze(true).map_err(|e| system(cgroup, e))?,
            None => self.signal_group(Signal::SIGSTOP),
        }
        match until(STANDS_STILL, || self.stands_still()).await? {
            true => Ok(()),
            false => Err(FreezeError::Slow(STANDS_STILL)),
        }
    }

    fn stands_still(&self) -> Result<bool, FreezeError> {
        self.is_there()?;
        match &self.cgroup {
            Some(cgroup) => Ok(cgroup.is_frozen().map_err(|e| system(cgroup, e))?),
            None => Ok(proc::stopped(self.process.pid)),
        }
    }

    fn is_there(&self) -> Result<(), FreezeError> {
        let ended = self.ended.borrow().is_some() || proc::ended(self.process.pid);
        if ended { Err(FreezeError::Gone) } else { Ok(()) }
    }

    /// Thaws it. It runs as soon as the kernel lets it: nothing is waited for.
    pub fn thaw(&self) -> Result<(), FreezeError> {
        self.is_there()?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.freeze(false).map_err(|e| system(cgroup, e))?;
        }
        // Without a group of its own it was stopped by a signal. With one it may have been by an edge
        // that had none; to a process that runs it is nothing.
        self.signal_group(Signal::SIGCONT);
        Ok(())
    }

    /// Bytes of memory it holds. Blocks for reading `/proc`.
    pub fn memory(&self) -> u64 {
        self.pids().into_iter().map(proc::memory).sum()
    }

    pub async fn end_within(&self, limit: Duration) -> Option<Ended> {
        let mut ended = self.ended.subscribe();
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

    /// Until the process has ended and what it left was ended; how that went.
    pub async fn until_over(&self, pidfd: PidFd, child: Option<Child>) -> (ExitStatus, Vec<u32>) {
        if let Err(e) = pidfd.ended().await {
            ::log::error!("{}: its end cannot be waited for: {e}", self.allocation);
        }
        let left = self.kill_rest().await;
        (self.reap(child), left)
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

    /// The ids of the process and of everything that it started. Blocks for reading `/proc`.
    pub fn pids(&self) -> Vec<u32> {
        let marked = mark(&self.allocation);
        let own =
            |pid: &u32| proc::group(*pid) == Some(self.process.pid) || proc::has_env(*pid, &marked);
        match &self.cgroup {
            Some(cgroup) => cgroup.pids(),
            None => proc::pids().into_iter().filter(own).collect(),
        }
    }
}

fn system(cgroup: &Cgroup, source: std::io::Error) -> Refused {
    Refused { what: cgroup.path().display().to_string(), source }
}

/// In the environment of everything an allocation starts; also how a leftover is found.
pub const MARK: &str = "VANGO_EDGE_ALLOCATION";

/// The mark of one allocation, as it stands in an environment.
pub fn mark(allocation: &AllocationId) -> String {
    format!("{MARK}={allocation}")
}

/// SIGKILL for every process that has the allocation's mark in its environment, until none is left
/// or `limit` is over. Returns those that are left.
pub async fn kill_marked(allocation: &AllocationId, limit: Duration) -> Vec<u32> {
    let text = mark(allocation);
    let mut left = Vec::new();
    let until_none = async {
        loop {
            let at = text.clone();
            left = tokio::task::spawn_blocking(move || marked(&at)).await.unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for pid in &left {
                // By descriptor, and looked at again: the id may be another's by now.
                if let Ok(process) = PidFd::open(*pid)
                    && proc::has_env(*pid, &text)
                {
                    let _ = process.signal(Signal::SIGKILL);
                    process.ended_within(Duration::from_millis(500)).await;
                }
            }
        }
    };
    let _ = tokio::time::timeout(limit, until_none).await;
    left
}

fn marked(mark: &str) -> Vec<u32> {
    let this = std::process::id();
    let all = proc::pids().into_iter();
    all.filter(|pid| *pid != this && proc::has_env(*pid, mark) && !proc::ended(*pid)).collect()
}

/// Ends a process that is not our child, if it is still the one that was recorded: SIGTERM for its
/// group, then SIGKILL.
pub async fn end_process(process: &Process, grace: Duration) {
    let same = || proc::start_time(process.pid) == Some(process.start_time);
    let Ok(pidfd) = PidFd::open(process.pid) else { return };
    let Ok(pid) = i32::try_from(process.pid) else { return };
    for (signal, limit) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, AFTER_KILL)] {
        // While it is there its group is its own.
        if !same() || proc::ended(process.pid) {
            return;
        }
        let _ = killpg(Pid::from_raw(pid), signal);
        if pidfd.ended_within(limit).await {
            return;
        }
    }
}
