//! Takes over what an earlier process of the edge started.
//!
//! An id that a record names may be another program's by now, on this boot or on a later one, and
//! another program may listen on its port. So nothing is believed that is not proved: the boot, the
//! process id with its start time, that it leads a group of its own, that it has not ended, and,
//! unless it is frozen, that it is ready and that the port is its own. (Not the mark in its environment: a
//! program that sets its title overwrites that.)

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::contract::Ready;

use super::cgroup::Cgroup;
use super::group::Group;
use super::pidfd::PidFd;
use super::running::Running;
use super::shared::{Shared, WEB, Watched};
use super::spawn::{self, Port};
use super::{AdoptError, AdoptSpec, Needs, StartError, log, proc};

/// Proves and takes over; nothing is changed when it fails.
pub(super) async fn adopt(shared: &Arc<Shared>, spec: AdoptSpec) -> Result<(), AdoptError> {
    let pidfd = identify(shared, &spec)?;
    let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
        return Err(StartError::Full(shared.options.max_processes).into());
    };
    let recorded = spec.process.cgroup.as_deref();
    let cgroup = recorded.and_then(|path| Cgroup::recorded(path, &spec.allocation));
    let awake = spec.ready.is_some();
    let running = Arc::new(Running {
        deadline: shared.options.clock.now() + spec.within,
        start_timeout: spec.within,
        environment: spec.environment.clone(),
        group: Group::of(spec.allocation.clone(), spec.process, true, cgroup),
        port: Port { address: spec.address, _reserved: None },
        ready: match spec.ready {
            // It said so once, to the process before this one.
            Some(Ready::Notify) | None => Ready::Tcp,
            Some(ready) => ready,
        },
        host: spec.host,
        https: shared.https.load(Ordering::Relaxed),
        notify: None,
        tail: Arc::default(),
        _slot: slot,
    });
    if awake {
        let ended = async {
            let _ = pidfd.ended().await;
            AdoptError::Gone("it ended while it was looked at")
        };
        running.until_proved(running.start_timeout, ended).await?;
    }
    shared.fence_adopted(&spec.environment, spec.generation);
    let dir = spawn::dir_of(&shared.options.run_dir, &spec.allocation);
    let output = log::reopen_pipes(&dir).unwrap_or_else(|e| {
        // It goes on all the same: once its pipe is full, its prints wait.
        ::log::warn!("{}: what it prints is lost: {e}", dir.display());
        Vec::new()
    });
    shared.options.outputs.note(
        &spec.environment,
        &spec.allocation,
        WEB,
        "the edge was started again",
    );
    // The tree that it runs from is kept by its record.
    let watched = Watched { pidfd, child: None, needs: Needs::default() };
    shared.watch(running, watched, output);
    Ok(())
}

/// Whether the recorded process is there and is the recorded one.
fn identify(shared: &Shared, spec: &AdoptSpec) -> Result<PidFd, AdoptError> {
    let process = &spec.process;
    if process.boot_id != shared.boot_id {
        return Err(AdoptError::Gone("this machine was started again since"));
    }
    let Ok(pidfd) = PidFd::open(process.pid) else {
        return Err(AdoptError::Gone("no process has its id"));
    };
    // Looked at after the descriptor was opened: what is true of the id now is true of what the
    // descriptor names.
    if proc::start_time(process.pid) != Some(process.start_time) {
        return Err(AdoptError::Gone("its process id is another's"));
    }
    if proc::ended(process.pid) {
        return Err(AdoptError::Gone("it has ended"));
    }
    if proc::group(process.pid) != Some(process.pid) {
        return Err(AdoptError::Gone("its process leads no group"));
    }
    Ok(pidfd)
}
