//! Keeps an allocation in memory without processor time: by its control group where it has one of
//! its own, by SIGSTOP to its process group where not.
//!
//! The group is exact: what it forks at the moment stands still too, and no process can tell. SIGSTOP
//! does not reach what left the process group, and a parent would see its child stop; so what it
//! started elsewhere runs on.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst` (`cgroup.freeze`, `cgroup.events`).

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::cgroup::Cgroup;
use super::running::Running;
use super::{FreezeError, proc};

/// A process in a system call that cannot be interrupted stands still only after it.
const STANDS_STILL: Duration = Duration::from_secs(1);

impl Running {
    /// Freezes it; returns when it stands still.
    pub async fn freeze(&self) -> Result<(), FreezeError> {
        match &self.cgroup {
            Some(cgroup) => cgroup.freeze(true).map_err(|e| system(cgroup, e))?,
            None => self.signal_group(Signal::SIGSTOP),
        }
        let still = async {
            let mut pause = Duration::from_micros(200);
            while !self.stands_still()? {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Ok(())
        };
        match tokio::time::timeout(STANDS_STILL, still).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FreezeError::Slow(STANDS_STILL)),
        }
    }

    fn stands_still(&self) -> Result<bool, FreezeError> {
        if self.ended.borrow().is_some() || proc::ended(self.identity.pid) {
            return Err(FreezeError::Gone);
        }
        match &self.cgroup {
            Some(cgroup) => cgroup.is_frozen().map_err(|e| system(cgroup, e)),
            None => Ok(proc::stopped(self.identity.pid)),
        }
    }

    /// Thaws it. It runs as soon as the kernel lets it: nothing is waited for.
    pub fn thaw(&self) -> Result<(), FreezeError> {
        if self.ended.borrow().is_some() || proc::ended(self.identity.pid) {
            return Err(FreezeError::Gone);
        }
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
}

fn system(cgroup: &Cgroup, source: io::Error) -> FreezeError {
    FreezeError::System { what: cgroup.path().display().to_string(), source }
}
