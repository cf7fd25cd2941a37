//! Takes over what an earlier process of the edge started.
//!
//! An id that a record names may be another program's by now, on this boot or on a later one, and
//! another program may listen on its port. So nothing is believed that is not proved: the boot, the
//! process id with its start time, that it leads a group of its own, that it has not ended, and,
//! unless it is frozen, that it is ready and that the port is its own. (Not the mark in its environment: a program that sets
//! its title overwrites that.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::cgroup::Cgroup;
use super::pidfd::PidFd;
use super::process::Shared;
use super::running::Running;
use super::spawn::{self, Port};
use super::{AdoptError, AdoptSpec, ReadyCheck, StartError, log, proc};

/// Proves and takes over; nothing is changed when it fails.
pub(super) async fn adopt(shared: &Arc<Shared>, spec: AdoptSpec) -> Result<(), AdoptError> {
    let pidfd = identify(shared, &spec)?;
    let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
        return Err(StartError::Full(shared.options.max_processes).into());
    };
    let recorded = spec.identity.cgroup.as_deref();
    let awake = spec.ready.is_some();
    let running = Arc::new(Running {
        deadline: shared.options.clock.now() + spec.within,
        start_timeout: spec.within,
        allocation: spec.allocation.clone(),
        environment: spec.environment.clone(),
        adopted: true,
        port: Port::Held(spec.address),
        ready: match spec.ready {
            // It said so once, to the process before this one.
            Some(ReadyCheck::Notify) | None => ReadyCheck::Tcp,
            Some(ready) => ready,
        },
        host: spec.host,
        https: shared.https.load(Ordering::Relaxed),
        cgroup: recorded.and_then(|path| Cgroup::recorded(path, &spec.allocation)),
        identity: spec.identity,
        notify: None,
        asked: AtomicBool::new(false),
        reaped: Mutex::new(false),
        ended: watch::channel(None).1,
        tail: Arc::default(),
        _slot: slot,
    });
    if awake {
        prove(&running, &pidfd).await?;
    }
    shared.fence_adopted(&spec.environment, spec.generation);
    let pipe = spawn::dir_of(&shared.options.run_dir, &spec.allocation).join(log::PIPE);
    let output = match log::reopen_pipe(&pipe) {
        Ok(output) => Some(output),
        Err(e) => {
            // It goes on all the same: once its pipe is full, its prints wait.
            ::log::warn!("{}: what it prints is lost: {e}", pipe.display());
            None
        }
    };
    // It was shared with no other task yet.
    let Some(running) = Arc::into_inner(running) else {
        let e = std::io::Error::other("it is still being looked at");
        return Err(StartError::system("adopting", e).into());
    };
    shared.watch(running, pidfd, None, output);
    Ok(())
}

/// Whether the recorded process is there and is the recorded one.
fn identify(shared: &Shared, spec: &AdoptSpec) -> Result<PidFd, AdoptError> {
    let identity = &spec.identity;
    if identity.boot_id != shared.boot_id {
        return Err(AdoptError::Gone("this machine was started again since"));
    }
    let Ok(pidfd) = PidFd::open(identity.pid) else {
        return Err(AdoptError::Gone("no process has its id"));
    };
    // Looked at after the descriptor was opened: what is true of the id now is true of what the
    // descriptor names.
    if proc::start_time(identity.pid) != Some(identity.start_time) {
        return Err(AdoptError::Gone("its process id is another's"));
    }
    if proc::ended(identity.pid) {
        return Err(AdoptError::Gone("it has ended"));
    }
    if proc::group(identity.pid) != Some(identity.pid) {
        return Err(AdoptError::Gone("its process leads no group"));
    }
    Ok(pidfd)
}

/// Whether it may have requests: it is ready within its time, and its port is its own.
async fn prove(running: &Arc<Running>, pidfd: &PidFd) -> Result<(), AdoptError> {
    let last = Mutex::new("none was made".to_owned());
    let limit = running.start_timeout;
    tokio::select! {
        _ = pidfd.ended() => return Err(AdoptError::Gone("it ended while it was looked at")),
        () = running.until_ready(&last) => {}
        () = tokio::time::sleep(limit) => {
            let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
            return Err(StartError::NotReady { limit, last }.into());
        }
    }
    Ok(running.check_port().await?)
}
