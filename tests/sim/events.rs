//! What may happen next: everything that is enabled, with a weight, and one of it at random.

use std::time::Duration;

use vango_edge::clock::Mono;
use vango_edge::control::plan;
use vango_edge::id::{AllocationId, Environment};
use vango_edge::lifecycle::retry::UpstreamFailure;
use vango_edge::store::record::key;

use crate::edge::State;
use crate::plane::Stage;
use crate::world::{HOSTS, Sim};

#[derive(Debug, Clone)]
enum Event {
    Arrive,
    Pin(usize),
    Decide(usize),
    Asked(usize),
    Released(usize),
    Connect(usize),
    Served(usize),
    UpstreamFailed(usize, UpstreamFailure),
    Leave(usize),
    Look(usize),
    Publish,
    AskStep(Environment),
    Execute(u32),
    TakeUp(Environment),
    LoseLease(Environment),
    Crash(u32),
    Exit(AllocationId),
    TakeExit(usize),
    SleepIfIdle(Environment),
    Sleep(Environment),
    Drain(Environment),
    ScaleOut(Environment),
    Promote(Environment, usize),
    Move(&'static str, Environment),
    Time(Duration),
    Stop,
}

impl Sim {
    pub fn random_event(&mut self) {
        let enabled = self.enabled();
        let total: u32 = enabled.iter().map(|(weight, _)| weight).sum();
        let mut at = self.dice.below(total as usize) as u32;
        let chosen = enabled.into_iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        if let Some((_, event)) = chosen {
            self.step += 1;
            self.perform(event);
        }
    }

    fn enabled(&self) -> Vec<(u32, Event)> {
        let mut out = vec![(5, Event::Time(self.some_time()))];
        if !self.calm {
            if self.open.len() < 14 {
                out.push((if self.stopping { 2 } else { 14 }, Event::Arrive));
            }
            self.faults(&mut out);
        }
        for n in &self.open {
            self.of_request(*n, &mut out);
        }
        self.of_plane(&mut out);
        out
    }

    fn of_request(&self, n: usize, out: &mut Vec<(u32, Event)>) {
        let request = &self.requests[n];
        let overdue = self.now() >= request.journey.deadline();
        match &request.state {
            State::Deciding { pinned, .. } => {
                out.push((8, Event::Decide(n)));
                if pinned.is_none() && !self.calm {
                    out.push((3, Event::Pin(n)));
                }
            }
            State::Asking { answer, .. } if answer.is_some() || overdue => {
                out.push((8, Event::Asked(n)));
            }
            State::Held { waiting } => {
                if waiting.told.is_some() || overdue || self.sees_leaving(n) {
                    out.push((8, Event::Released(n)));
                }
                if request.left && !request.seen_leaving {
                    out.push((4, Event::Look(n)));
                }
            }
            State::Placed { .. } => out.push((8, Event::Connect(n))),
            State::Sent { placed, .. } => {
                let id = &placed.placement.allocation.id;
                let alive = self.processes.get(id).is_some_and(|p| p.alive);
                if alive {
                    out.push((4, Event::Served(n)));
                }
                if !alive || !self.calm {
                    let weight = if alive { 1 } else { 8 };
                    out.push((weight, Event::UpstreamFailed(n, UpstreamFailure::Closed)));
                }
                if !self.calm {
                    out.push((1, Event::UpstreamFailed(n, UpstreamFailure::Silent)));
                }
            }
            _ => {}
        }
        if !request.left && !self.calm {
            out.push((1, Event::Leave(n)));
        }
    }

    fn of_plane(&self, out: &mut Vec<(u32, Event)>) {
        if self.store.revision() > self.published {
            out.push((10, Event::Publish));
        }
        for environment in self.asking.keys() {
            out.push((8, Event::AskStep(environment.clone())));
        }
        for (id, x) in &self.executors {
            if !matches!(x.stage, Stage::Again(at) if self.now() < at) {
                out.push((8, Event::Execute(*id)));
            }
        }
        for at in 0..self.exits.len() {
            out.push((6, Event::TakeExit(at)));
        }
        for environment in self.sleepers.keys() {
            out.push((4, Event::Drain(environment.clone())));
        }
        for environment in self.environments.clone() {
            // The lease of an executor that is gone is not renewed.
            let held = self.executors.values().any(|x| {
                x.environment == environment
                    && x.claim.as_ref().map(|c| c.executor_revision)
                        == self.store.get(&key::executor(&environment)).map(|e| e.mod_revision)
            });
            if !held && !self.unclaimed(&environment) {
                out.push((2, Event::LoseLease(environment)));
            }
        }
    }

    fn faults(&self, out: &mut Vec<(u32, Event)>) {
        for environment in self.environments.clone() {
            if self.in_progress(&environment) {
                if self.unclaimed(&environment) || self.dice_would(5) {
                    out.push((1, Event::TakeUp(environment.clone())));
                }
                if !self.unclaimed(&environment) && self.dice_would(3) {
                    out.push((1, Event::LoseLease(environment.clone())));
                }
            }
            out.push((2, Event::SleepIfIdle(environment.clone())));
            if self.step.is_multiple_of(4) {
                out.push((1, Event::Sleep(environment.clone())));
                out.push((1, Event::ScaleOut(environment.clone())));
                let digest = (self.step as usize / 4) % Self::contracts();
                out.push((1, Event::Promote(environment.clone(), digest)));
                let host = HOSTS[(self.step as usize / 4) % HOSTS.len()];
                out.push((1, Event::Move(host, environment)));
            }
        }
        for (id, x) in &self.executors {
            if x.node == 1 {
                out.push((1, Event::Crash(*id)));
            }
        }
        for (id, process) in &self.processes {
            if process.alive {
                out.push((1, Event::Exit(id.clone())));
            }
        }
        if self.seed.is_multiple_of(8) && self.step > 100 && !self.stopping {
            out.push((1, Event::Stop));
        }
    }

    /// True on one step in `n`, without a throw of the dice.
    fn dice_would(&self, n: u64) -> bool {
        self.step.is_multiple_of(n)
    }

    /// Up to the next moment at which something is due.
    fn some_time(&self) -> Duration {
        let scale = [1, 10, 100, 400, 1_500, 4_000, 15_000][self.dice.below(7)];
        let by = Duration::from_millis(1 + self.dice.below(scale) as u64);
        let waits = |n: &usize| {
            matches!(self.state(*n), State::Held { .. } | State::Asking { .. })
                .then(|| self.requests[*n].journey.deadline())
        };
        let due = self.open.iter().filter_map(waits).min();
        due.map_or(by, |due| by.min(due.since(self.now())))
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive_at_random(),
            Event::Pin(n) => self.pin(n),
            Event::Decide(n) => self.decide(n),
            Event::Asked(n) => self.asked(n),
            Event::Released(n) => self.released(n),
            Event::Connect(n) => self.connect(n),
            Event::Served(n) => self.served(n),
            Event::UpstreamFailed(n, failure) => self.upstream_failed(n, failure),
            Event::Leave(n) => self.leave(n),
            Event::Look(n) => self.look(n),
            Event::Publish => {
                self.publish_next();
                self.note(|s| format!("revision {} is published", s.published));
            }
            Event::AskStep(environment) => self.ask_step(&environment),
            Event::Execute(id) => self.execute(id),
            Event::TakeUp(environment) => self.take_up(1, &environment),
            Event::LoseLease(environment) => self.lose_lease(&environment),
            Event::Crash(id) => self.crash(id),
            Event::Exit(id) => self.exit(&id),
            Event::TakeExit(at) => self.take_exit(at),
            Event::SleepIfIdle(environment) => self.sleep_if_idle(&environment),
            Event::Sleep(environment) => {
                self.happened("an environment was put to sleep under load");
                self.sleep(&environment);
            }
            Event::Drain(environment) => self.drain(&environment),
            Event::ScaleOut(environment) => {
                self.happened("a second allocation was ready");
                self.scale_out(&environment);
            }
            Event::Promote(environment, digest) => self.promote(&environment, digest),
            Event::Move(host, environment) => self.move_host(host, &environment),
            Event::Time(by) => self.advance(by),
            Event::Stop => {
                self.note(|_| "the edge stops".into());
                self.stopping = true;
                self.queues.shut_down();
            }
        }
    }

    fn sleep_if_idle(&mut self, environment: &Environment) {
        let Some(view) = self.snapshots.load().environment(environment).cloned() else { return };
        let now = self.now();
        let newest =
            view.ready.iter().map(|a| *self.up_since.entry(a.id.clone()).or_insert(now)).max();
        if plan::sleep::is_idle(&view, newest.unwrap_or(Mono(now.0)), now) {
            self.happened("an idle environment went to sleep");
            self.sleep(environment);
        }
    }

    fn promote(&mut self, environment: &Environment, digest: usize) {
        let Some(before) = self.digest_of(environment) else { return };
        self.happened(if before == digest {
            "the owner moved under the same digest"
        } else {
            "the owner moved to another digest"
        });
        self.note(|_| format!("{environment} is promoted to digest {digest}"));
        self.deploy(environment, digest, &[]);
    }

    fn move_host(&mut self, host: &'static str, environment: &Environment) {
        if self.owners(environment).iter().any(|o| o.host.as_str() == host) {
            return;
        }
        let digest = self.digest_of(environment).unwrap_or(self.step as usize % Self::contracts());
        self.happened("a host moved to another environment");
        self.note(|_| format!("{host} moves to {environment}"));
        self.deploy(environment, digest, &[host]);
    }

    /// No faults and no new client any more: all that is due happens, without a deadline passing.
    /// Then those who still wait may only be ones that excluded everything that is ready; their
    /// deadlines pass, and a last request to each host is served.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.note(|_| "calm".into());
        // As anyone would after an outage of the store, which may have swallowed an ask.
        self.one_each();
        self.settle();
        self.check_no_request_is_stuck();
        self.let_deadlines_pass();
        if !self.stopping {
            // Past the longest back-off.
            self.advance(Duration::from_secs(9));
            let before = self.requests.len();
            self.one_each();
            self.settle();
            self.check_healed(before);
        }
        self.let_deadlines_pass();
    }

    fn one_each(&mut self) {
        for host in HOSTS {
            self.arrive(host, "GET", "/", false);
        }
        self.step += 1;
        self.check();
    }

    /// Performs what is enabled, in random order, until only time is left; moves time only as far
    /// as an executor's pause needs it.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut enabled = self.enabled();
            enabled.retain(|(_, e)| !matches!(e, Event::Time(_)));
            self.step += 1;
            if enabled.is_empty() {
                let pauses = self.executors.values().filter_map(|x| match x.stage {
                    Stage::Again(at) => Some(at),
                    _ => None,
                });
                let drains = self.sleepers.values().map(|s| s.limit());
                let Some(due) = pauses.chain(drains).min() else { return };
                let deadlines = self.open.iter().map(|n| self.requests[*n].journey.deadline());
                // No request is made to wait beyond it while something else is due.
                let due = deadlines.chain([due]).min().unwrap_or(due);
                self.advance(due.since(self.now()));
            } else {
                let event = self.dice.pick(&enabled).1.clone();
                self.perform(event);
            }
            self.check();
        }
        self.broken("it does not settle");
    }

    fn let_deadlines_pass(&mut self) {
        for _ in 0..200 {
            let held = |n: &usize| matches!(self.state(*n), State::Held { .. });
            let due =
                self.open.iter().filter(|n| held(n)).map(|n| self.requests[*n].journey.deadline());
            let Some(due) = due.min() else { return };
            self.advance(due.since(self.now()));
            self.settle();
        }
        self.broken("holds do not end");
    }
}
