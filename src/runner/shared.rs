//! What a runner of processes, its watches and the adoption of an earlier process's allocations share.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, mpsc};

use crate::clock::Clock;
use crate::id::{AllocationId, Environment, Generation};
use crate::line::Stream;
use crate::output::{Outputs, Source};
use crate::record::Process;

use super::cgroup::Cgroups;
use super::group::{Ended, Group, mark};
use super::log::{Ends, Pumps, Tail};
use super::pidfd::PidFd;
use super::running::Running;
use super::scratch;
use super::spawn::{self, Place, Streams};
use super::{Exit, ExitStatus, Needs, Program, StartError, StartSpec, Started, log, proc};

/// An allocation's own process, as the log names it.
pub(super) const WEB: &str = "web";

/// Ended allocations of which something is kept.
const ENDED: usize = 64;

/// What a [`super::ProcessRunner`] works with.
pub struct ProcessRunnerOptions {
    /// Where processes' files are: `allocations/` while they run, `home/` for good.
    pub run_dir: PathBuf,
    /// Where what they print is kept.
    pub outputs: Arc<Outputs>,
    /// For readiness and stop deadlines.
    pub clock: Arc<dyn Clock>,
    /// Processes at the same time.
    pub max_processes: usize,
    /// Bytes that one process may write beside its code.
    pub scratch_bytes: u64,
}

pub(super) struct Shared {
    pub(super) options: ProcessRunnerOptions,
    pub(super) boot_id: String,
    pub(super) cgroups: Option<Cgroups>,
    pub(super) slots: Arc<Semaphore>,
    /// Whether overlays can be mounted, once that was tried.
    pub(super) overlay: OnceLock<bool>,
    pub(super) state: Mutex<State>,
    pub(super) exited: mpsc::Sender<Exit>,
    /// Whether readiness says that it came over HTTPS.
    pub(super) https: AtomicBool,
    /// Whether starts are refused. A start reads it from before the fork until it is watched.
    pub(super) closed: Arc<RwLock<bool>>,
}

/// What the end of a process is waited for by, and what it needs until then.
pub(super) struct Watched {
    pub(super) pidfd: PidFd,
    /// None of one that an earlier process of the edge started.
    pub(super) child: Option<Child>,
    pub(super) needs: Needs,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) running: HashMap<AllocationId, Arc<Running>>,
    /// Commands that run once, and their time from SIGTERM to SIGKILL.
    pub(super) once: HashMap<AllocationId, (Arc<Group>, Duration)>,
    pub(super) ended: VecDeque<Past>,
    /// The highest generation of each environment that was started here.
    pub(super) started: HashMap<Environment, Generation>,
}

/// What is kept of an allocation whose process has ended.
pub(super) struct Past {
    pub(super) allocation: AllocationId,
    pub(super) tail: Arc<Tail>,
    /// How it ended, unless it was asked to.
    pub(super) by_itself: Option<ExitStatus>,
}

impl State {
    pub(super) fn past(&self, allocation: &AllocationId) -> Option<&Past> {
        self.ended.iter().find(|past| past.allocation == *allocation)
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fence(&self, spec: &StartSpec) -> Result<(), StartError> {
        let mut state = self.state();
        let environment = &spec.program.environment;
        match state.started.get(environment) {
            Some(last) if *last >= spec.generation => Err(StartError::Fenced {
                environment: environment.clone(),
                given: spec.generation,
                last: *last,
            }),
            _ => {
                state.started.insert(environment.clone(), spec.generation);
                Ok(())
            }
        }
    }

    /// Nothing at or below an adopted generation is started.
    pub(super) fn fence_adopted(&self, environment: &Environment, generation: Generation) {
        let mut state = self.state();
        let last = state.started.entry(environment.clone()).or_insert(generation);
        *last = generation.max(*last);
    }

    /// What a process of `program` needs, made anew.
    pub(super) fn place(&self, id: &AllocationId, program: &Program) -> Result<Place, StartError> {
        let run_dir = &self.options.run_dir;
        let overlay =
            program.scratch && *self.overlay.get_or_init(|| scratch::can_overlay(run_dir));
        Place::make(run_dir, self.cgroups.as_ref(), id, &program.environment, overlay)
    }

    /// A child that was just started, with what its end is waited for by. It cannot be gone: it was not
    /// reaped.
    pub(super) fn group(
        &self,
        place: Place,
        mut child: Child,
    ) -> Result<(Group, PidFd, Child), StartError> {
        let pid = child.id();
        let pidfd = match PidFd::open(pid) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                // Without it its end would go unnoticed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(StartError::system("pidfd_open (Linux 5.3 or later is needed)", e));
            }
        };
        let process = Process {
            pid,
            start_time: proc::start_time(pid).unwrap_or_default(),
            boot_id: self.boot_id.clone(),
            cgroup: place.cgroup.as_ref().map(|c| c.path().to_owned()),
        };
        Ok((Group::of(place.id, process, false, place.cgroup), pidfd, child))
    }

    /// Starts the process and what watches it. Nothing is awaited between the fork and the watch,
    /// so a caller that goes away leaves no process without its watch.
    pub(super) fn launch(
        self: &Arc<Self>,
        spec: StartSpec,
        slot: OwnedSemaphorePermit,
    ) -> Result<Started, StartError> {
        let StartSpec { allocation, generation, program, ready, start_timeout, host } = spec;
        let place = self.place(&allocation, &program)?;
        let listening = place.listening(&ready)?;
        let (output, stdio) = place.output()?;
        let began = self.options.clock.now();
        let own = listening.own(&place, generation);
        let child = place.spawn(&program, own, Streams::printing_to(stdio))?;
        let (group, pidfd, child) = self.group(place, child)?;
        let process = group.process.clone();
        let started = format!(
            "started: artifact {}, epoch {}, generation {generation}, port {}",
            program.digest.short(),
            program.epoch,
            listening.port.address.port()
        );
        self.options.outputs.note(&program.environment, &allocation, WEB, &started);
        let running = Arc::new(Running {
            deadline: began + start_timeout,
            start_timeout,
            environment: program.environment,
            group,
            port: listening.port,
            ready,
            host,
            https: self.https.load(Ordering::Relaxed),
            notify: listening.notify,
            tail: Arc::default(),
            _slot: slot,
        });
        let address = running.port.address;
        self.watch(running, Watched { pidfd, child: Some(child), needs: program.needs }, output);
        Ok(Started { process, address })
    }

    /// Puts a running process on the list, reads what it prints and waits for its end.
    pub(super) fn watch(self: &Arc<Self>, running: Arc<Running>, watched: Watched, output: Ends) {
        let pumps = self.pumps(output, &running.environment, &running.group, WEB, &running.tail);
        self.state().running.insert(running.group.allocation.clone(), Arc::clone(&running));
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let (environment, group) = (&running.environment, &running.group);
            let (status, left) = shared.until_over(environment, group, WEB, watched, pumps).await;
            shared.retire(&running, status);
            running.group.ended.send_replace(Some(Ended { status, left }));
            let exit = Exit {
                allocation: running.group.allocation.clone(),
                environment: running.environment.clone(),
                status,
                asked: running.group.asked.load(Ordering::Acquire),
            };
            // There is no receiver in a test, or at the very end.
            let _ = shared.exited.send(exit).await;
        });
    }

    /// Until a process has ended, whatever it is for: meanwhile what it writes beside its code is bounded, then
    /// that is gone, what it printed is read to its end, and what it needed is let go of.
    pub(super) async fn until_over(
        &self,
        environment: &Environment,
        group: &Group,
        process: &str,
        watched: Watched,
        pumps: Pumps,
    ) -> (ExitStatus, Vec<u32>) {
        let Watched { pidfd, child, needs } = watched;
        let dir = spawn::dir_of(&self.options.run_dir, &group.allocation);
        let most = self.options.scratch_bytes;
        let over = tokio::select! {
            over = group.until_over(pidfd, child) => over,
            never = scratch::bound(&dir, most, environment, group) => match never {},
        };
        scratch::end(dir).await;
        pumps.finish().await;
        self.tell_end(environment, group, process, over.0);
        // Before its end is told: what starts then has it to itself.
        drop(needs);
        over
    }

    /// Reads what a process prints.
    pub(super) fn pumps(
        &self,
        ends: Ends,
        environment: &Environment,
        group: &Group,
        process: &str,
        tail: &Arc<Tail>,
    ) -> Pumps {
        let source = Source {
            environment: environment.clone(),
            allocation: group.allocation.clone(),
            process: process.to_owned(),
            stream: Stream::Stdout,
        };
        Pumps::start(ends, &self.options.outputs, &source, tail)
    }

    /// Says in the log how a process ended.
    pub(super) fn tell_end(
        &self,
        environment: &Environment,
        group: &Group,
        process: &str,
        status: ExitStatus,
    ) {
        let how = if group.asked.load(Ordering::Acquire) { "stopped" } else { "ended by itself" };
        let text = format!("{how}: {status}");
        self.options.outputs.note(environment, &group.allocation, process, &text);
    }

    pub(super) fn retire(&self, running: &Running, status: ExitStatus) {
        let group = &running.group;
        spawn::remove_dir(&self.options.run_dir, &group.allocation);
        let mut state = self.state();
        state.running.remove(&group.allocation);
        state.ended.push_back(Past {
            allocation: group.allocation.clone(),
            tail: Arc::clone(&running.tail),
            by_itself: (!group.asked.load(Ordering::Acquire)).then_some(status),
        });
        if state.ended.len() > ENDED {
            state.ended.pop_front();
        }
    }

    /// The process of an allocation of which there is no record: it leads a group, and has the mark in its
    /// environment or, where a program has written over that, prints into the allocation's pipe.
    pub(super) async fn found(self: &Arc<Self>, allocation: &AllocationId) -> Option<Process> {
        let (shared, mark) = (Arc::clone(self), mark(allocation));
        let (stdout, _) = log::PIPES[0];
        let pipe = spawn::dir_of(&self.options.run_dir, allocation).join(stdout);
        let looked = tokio::task::spawn_blocking(move || {
            let prints = |pid: u32| {
                let output = std::fs::read_link(format!("/proc/{pid}/fd/1"));
                output.is_ok_and(|output| output == pipe)
            };
            let mut all = proc::pids().into_iter().filter(|pid| proc::group(*pid) == Some(*pid));
            let pid = all.find(|pid| proc::has_env(*pid, &mark) || prints(*pid))?;
            let start_time = proc::start_time(pid)?;
            let boot_id = shared.boot_id.clone();
            Some(Process { pid, start_time, boot_id, cgroup: None })
        });
        looked.await.unwrap_or_default()
    }

    /// Removes what a start that did not come about left.
    pub(super) fn clear(&self, allocation: &AllocationId) {
        if let Some(cgroup) = self.cgroups.as_ref().and_then(|c| c.find(allocation)) {
            cgroup.remove_if_empty();
        }
        spawn::remove_dir(&self.options.run_dir, allocation);
    }
}
