//! What is promised, checked after every event and at the end.

use std::collections::BTreeMap;

use vango_edge::id::{AllocationId, Environment, OperationId};
use vango_edge::lifecycle::admit::Next;
use vango_edge::lifecycle::classify::Posture;
use vango_edge::lifecycle::facts::IdempotencyKey;
use vango_edge::lifecycle::reply::{Forwarded, Reply};
use vango_edge::lifecycle::trace::{Outcome, StepKind};
use vango_edge::snapshot::EnvView;
use vango_edge::store::record::{Allocation, AllocationState, Operation, Record, WakeState, key};

use crate::edge::{NO_STORE, State, by_the_app, says_not_sent};
use crate::world::Sim;

impl Sim {
    /// After every event.
    pub fn check(&mut self) {
        for n in self.open.clone() {
            self.requests[n].listen();
        }
        for environment in self.environments.clone() {
            self.check_queue(&environment);
        }
        let tickets = self.open.iter().filter_map(|n| {
            self.requests[*n].waiting().map(|_| self.requests[*n].journey.facts().header_bytes)
        });
        let (held, bytes) = tickets.fold((0, 0), |(n, b), bytes| (n + 1, b + bytes as u64));
        if (self.queues.held(), self.queues.held_bytes()) != (held, bytes) {
            self.broken(format!(
                "{held} hold {bytes} bytes; the queues count {} and {}",
                self.queues.held(),
                self.queues.held_bytes()
            ));
        }
        self.check_places();
        if self.checked < self.store.revision() {
            self.checked = self.store.revision();
            self.check_allocations();
        }
    }

    /// No request waits for what is there, and none waits that must not.
    fn check_queue(&self, environment: &Environment) {
        let mine = |n: &&usize| {
            self.requests[**n]
                .waiting()
                .is_some_and(|w| w.environment == *environment && w.told.is_none())
        };
        let waiting: Vec<usize> = self.open.iter().filter(mine).copied().collect();
        let snapshot = self.snapshots.load();
        let Some(view) = snapshot.environment(environment) else {
            if !waiting.is_empty() {
                self.broken(format!("{waiting:?} wait for {environment}, which has no owner"));
            }
            return;
        };
        if view.live.waiting() != waiting.len() {
            let counted = view.live.waiting();
            self.broken(format!("{waiting:?} wait for {environment}, {counted} are counted"));
        }
        if self.stopping && !waiting.is_empty() {
            self.broken(format!("{waiting:?} wait for {environment} while the edge stops"));
        }
        for n in waiting {
            let excluded = self.requests[n].journey.excluded();
            let free = view
                .ready
                .iter()
                .find(|a| a.load.in_flight() < a.concurrency && !excluded.contains(&a.id));
            if let Some(free) = free {
                self.broken(format!("#{n} waits although {} has a place: a lost wake-up", free.id));
            }
            if view.ready.is_empty() && self.is_plain_unsafe(n) {
                self.broken(format!("#{n} is unsafe and is held for a cold app"));
            }
            let backing_off = view.operation.as_ref().is_some_and(|o| {
                o.epoch == view.owner.epoch && o.backoff_until.is_some_and(|t| self.now() < t)
            });
            // A back-off that began on the snapshot is told to all; one may only end while they
            // wait.
            if view.ready.is_empty() && backing_off {
                self.broken(format!("#{n} waits although the start failed and is paused"));
            }
        }
    }

    /// No allocation has more than its concurrency.
    fn check_places(&self) {
        let mut taken: BTreeMap<&AllocationId, (u32, u32)> = BTreeMap::new();
        for placement in self.open.iter().filter_map(|n| self.requests[*n].placement()) {
            let a = &placement.allocation;
            let (n, most) = taken.entry(&a.id).or_insert((0, a.concurrency));
            *n += 1;
            *most = (*most).max(a.concurrency);
        }
        for (id, (n, most)) in taken {
            if n > most {
                self.broken(format!("{id} has {n} requests at once, more than {most}"));
            }
        }
    }

    /// One allocation at most for each operation.
    fn check_allocations(&self) {
        let mut started: BTreeMap<OperationId, AllocationId> = BTreeMap::new();
        for (_, entry) in self.store.list(key::ALLOCATIONS) {
            let a = Allocation::decode(&entry.value).unwrap();
            if a.state != AllocationState::Draining
                && let Some(other) = started.insert(a.operation.clone(), a.id.clone())
            {
                self.broken(format!("{} started {} and {other}", a.operation, a.id));
            }
        }
    }

    /// Before a key is changed.
    pub fn check_change(&self, at: &str, value: Option<&[u8]>) {
        if let (Some(environment), Some(value)) = (at.strip_prefix(key::OPERATIONS), value) {
            let next = Operation::decode(value).unwrap();
            if next.environment.to_string() != environment {
                self.broken(format!("{at} is to hold an operation of {}", next.environment));
            }
            let environment: Environment = environment.parse().unwrap();
            self.check_failures(&environment, &next);
            if let Some((before, _)) = self.stored_operation(&environment)
                && before.state.in_progress()
                && before.epoch == next.epoch
                && before.id != next.id
            {
                self.broken(format!("{} replaces {}, which is in progress", next.id, before.id));
            }
        }
        if let (true, Some(value)) = (at.starts_with(key::ALLOCATIONS), value) {
            let a = Allocation::decode(value).unwrap();
            let known = self.store.get(at).is_some();
            let new = matches!(a.state, AllocationState::Planned)
                || a.generation.0 >= 1_000 && a.state == AllocationState::Ready;
            if !known && !new {
                self.broken(format!("{} comes back as {:?}", a.id, a.state));
            }
        }
    }

    /// Failures in a row of one digest add up until a start has succeeded.
    fn check_failures(&self, environment: &Environment, next: &Operation) {
        let failed = u32::from(next.state == WakeState::Failed);
        let expected = match self.stored_operation(environment) {
            Some((before, _)) if before.id == next.id => before.failures + failed,
            Some((before, _)) if before.digest == next.digest => match before.state {
                WakeState::Hot => 0,
                _ => before.failures,
            },
            _ => 0,
        };
        if next.failures != expected {
            let counted = next.failures;
            self.broken(format!("{} counts {counted} failures, not {expected}", next.id));
        }
    }

    /// An operation is about to be made: not while a failure's pause is seen to run.
    pub fn check_no_start_in_backoff(&self, environment: &Environment) {
        let snapshot = self.snapshots.load();
        let Some(view) = snapshot.environment(environment) else { return };
        let Some((stored, _)) = self.stored_operation(environment) else { return };
        if let Some(o) = &view.operation
            && o.id == stored.id
            && o.epoch == view.owner.epoch
            && self.owners(environment).iter().all(|w| w.epoch == o.epoch)
            && o.backoff_until.is_some_and(|t| self.now() < t)
        {
            self.broken(format!("{environment} is to start while {} is paused", o.id));
        }
    }

    pub fn check_epochs(&mut self) {
        for environment in self.environments.clone() {
            let epoch = self.snapshots.load().environment(&environment).map(|v| v.owner.epoch.0);
            let Some(epoch) = epoch else { continue };
            let before = self.epochs_seen.insert(environment.clone(), epoch).unwrap_or(0);
            if epoch < before {
                self.broken(format!("{environment} went from epoch {before} to {epoch}"));
            }
        }
    }

    /// A decision on `view`.
    pub fn check_decision(&self, n: usize, view: Option<&EnvView>, next: &Next) {
        let request = &self.requests[n];
        match next {
            Next::Forward(placed) => {
                let Some(view) = view else {
                    self.broken(format!("#{n} is forwarded without an owner"))
                };
                let a = &placed.allocation;
                let inside = a.epoch == view.owner.epoch
                    && a.digest == view.owner.digest
                    && view.ready.iter().any(|r| r.id == a.id);
                if !inside {
                    self.broken(format!("#{n} goes to {}, outside the owner's authority", a.id));
                }
                if request.journey.excluded().contains(&a.id) {
                    self.broken(format!("#{n} goes to {} again, which it excluded", a.id));
                }
                self.check_may_be_sent(n, view);
            }
            Next::Hold | Next::Wake { hold: true } => {
                if self.now() >= request.journey.deadline() {
                    self.broken(format!("#{n} is held past its deadline"));
                }
                let cold = view.is_some_and(|v| v.ready.is_empty());
                if cold && self.is_plain_unsafe(n) {
                    self.broken(format!("#{n} is unsafe and is held for a cold app"));
                }
            }
            Next::Wake { hold: false } | Next::Reply(_) => {}
            Next::AskStore(_) => unreachable!("{NO_STORE}"),
            Next::ReadBody { .. } | Next::Reserve | Next::Replay | Next::Acknowledge => {
                unreachable!("no route of the simulation is kept on record")
            }
        }
    }

    /// By the contract of the owner that gets it, not by one that was replaced.
    fn check_may_be_sent(&self, n: usize, view: &EnvView) {
        let request = &self.requests[n];
        if request.refused_cold || request.answered || request.seen_leaving {
            self.broken(format!("#{n} is forwarded after it was over"));
        }
        let facts = request.journey.facts();
        let snapshot = self.snapshots.load();
        // The class by the contract it is forwarded under.
        let class =
            view.contract.route(&facts.path, facts.sent(), true).map(|(_, r)| r.class.clone());
        let Ok(class) = class else { self.broken(format!("#{n} has no route there")) };
        drop(snapshot);
        use vango_edge::contract::{Idempotency, RouteClass};
        let posture = match class {
            _ if matches!(facts.method.as_str(), "GET" | "HEAD" | "OPTIONS") => Posture::Safe,
            RouteClass::Action(a) if a.idempotency == Idempotency::App => Posture::AppIdempotent,
            RouteClass::Action(_) => Posture::Unsafe,
            _ => Posture::Unsafe,
        };
        if posture != request.journey.posture() {
            let now = request.journey.posture();
            self.broken(format!("#{n} is {posture:?} for its owner, and treated as {now:?}"));
        }
        if posture == Posture::AppIdempotent && !matches!(facts.key, IdempotencyKey::Present(_)) {
            self.broken(format!("#{n} goes without the key its owner requires"));
        }
        if posture != Posture::Safe && request.sent > 0 {
            self.broken(format!("#{n} is unsafe and is to be sent again"));
        }
    }

    /// It has just been sent.
    pub fn check_sent(&self, n: usize) {
        let request = &self.requests[n];
        if request.sent > 1 + request.resends {
            self.broken(format!("#{n} is sent {} times", request.sent));
        }
        if request.sent > 1 && request.journey.posture() != Posture::Safe {
            self.broken(format!("#{n} is unsafe and is sent again"));
        }
        if request.answered || request.seen_leaving {
            self.broken(format!("#{n} is sent after it was over"));
        }
    }

    pub fn check_answer(&self, n: usize, reply: &Reply) {
        let request = &self.requests[n];
        let told = reply.forwarded == Forwarded::No && says_not_sent(reply.problem);
        if told && request.sent > 0 && request.journey.posture() != Posture::Safe {
            self.broken(format!("#{n} was sent, and its client is told that it was not"));
        }
        if reply.status == 503 && reply.retry_after.is_none() {
            self.broken(format!("#{n} is told to come back, and not when"));
        }
        let budget = request.journey.deadline().since(request.journey.facts().received);
        if request.journey.held_for() > budget {
            self.broken(format!("#{n} was held for longer than its budget"));
        }
    }

    pub fn check_trace(&self, n: usize) {
        let request = &self.requests[n];
        let trace = &request.journey.trace;
        if trace.outcome == Outcome::Open {
            self.broken(format!("#{n} ended without an outcome"));
        }
        if trace.steps.is_empty() || trace.steps.len() > 32 {
            self.broken(format!("#{n} has {} steps", trace.steps.len()));
        }
        if by_the_app(trace.outcome) && request.sent == 0 {
            self.broken(format!("#{n} was served without being sent"));
        }
        let selected = trace.steps.iter().filter(|s| matches!(s.kind, StepKind::Select(..)));
        if trace.dropped() == 0 && selected.count() < request.sent as usize {
            self.broken(format!("#{n} was sent more often than its trace selects"));
        }
    }

    /// All that was due has happened, and no deadline has passed.
    pub fn check_no_request_is_stuck(&self) {
        for n in &self.open {
            let excluded = self.requests[*n].journey.excluded();
            let only_excluded = self.requests[*n].waiting().is_some_and(|w| {
                let snapshot = self.snapshots.load();
                let view = snapshot.environment(&w.environment);
                view.is_some_and(|v| v.ready.iter().all(|a| excluded.contains(&a.id)))
            });
            if !only_excluded || excluded.is_empty() {
                self.broken(format!("#{n} is stuck"));
            }
        }
    }

    /// Requests from `first` on came to an app that starts, after every pause.
    pub fn check_healed(&self, first: usize) {
        for n in first..self.requests.len() {
            let outcome = self.requests[n].journey.trace.outcome;
            if !by_the_app(outcome) {
                self.broken(format!("#{n} ended {} although all is well", outcome.name()));
            }
        }
    }

    pub fn check_the_end(&mut self) {
        self.check();
        if !self.open.is_empty() {
            self.broken(format!("{:?} have not ended", self.open));
        }
        if self.queues.held() != 0 || self.queues.held_bytes() != 0 {
            self.broken("the queues are not empty");
        }
        for environment in self.environments.clone() {
            let snapshot = self.snapshots.load();
            let Some(view) = snapshot.environment(&environment) else { continue };
            if view.live.waiting() != 0 {
                self.broken(format!("{environment} counts {} who wait", view.live.waiting()));
            }
            for a in view.ready.iter().chain(&view.others) {
                if a.load.in_flight() != 0 {
                    self.broken(format!("{} has {} in flight", a.id, a.load.in_flight()));
                }
            }
            let Some((operation, _)) = self.stored_operation(&environment) else { continue };
            if operation.state.in_progress() && operation.epoch == view.owner.epoch {
                self.broken(format!("{} is still {}", operation.id, operation.state.name()));
            }
            if operation.state == WakeState::Hot && operation.phases.ready_us.is_none() {
                self.broken(format!("{} is hot without having been ready", operation.id));
            }
        }
        if self.starts.len() as u64 > self.attempts {
            self.broken(format!("{} starts of {} attempts", self.starts.len(), self.attempts));
        }
        if self.requests.iter().any(|r| !matches!(r.state, State::Ended)) {
            self.broken("a request is left");
        }
    }
}
