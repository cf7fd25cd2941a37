//! What is promised, checked whenever something happened and at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use vango_edge::clock::Clock;
use vango_edge::contract::Posture;
use vango_edge::control::Deployed;
use vango_edge::id::{AllocationId, Epoch};
use vango_edge::lifecycle::fields::IdempotencyKey;
use vango_edge::lifecycle::journey::{Go, Journey};
use vango_edge::lifecycle::reply::{Forwarded, Problem};
use vango_edge::lifecycle::trace::{Outcome, Step, StepKind};
use vango_edge::record::key;
use vango_edge::store::StateStore;
use vango_edge::telemetry::TraceRecord;

use crate::client::is_safe;
use crate::edge::{Edge, HELD};
use crate::world::Sim;

/// What is known of a request.
#[derive(Default)]
pub struct Row {
    pub open: bool,
    pub host: String,
    pub posture: Option<Posture>,
    /// It waits in the hold queue.
    pub waits: bool,
    /// Its host's epoch when it was told to wait no longer.
    pub told_under: Option<Epoch>,
    /// A place was taken for it while it waited.
    pub granted: bool,
    /// A place was taken for it, and it waits again.
    pub passed_over: bool,
    /// Places that it did not take up.
    pub not_taken: u32,
    /// Where it has a place, and how many that takes.
    pub on: Option<(AllocationId, u32)>,
    /// Allocations that it could not connect to.
    pub excluded: Vec<AllocationId>,
    /// How often it was sent.
    pub sent: u32,
    /// The edge knows that its client has left.
    pub known_left: bool,
    pub outcome: Option<Outcome>,
}

/// What the driver may take beyond a request's deadline: a ledger and a body have bounds of their own.
const SLACK: Duration = Duration::from_secs(6);

/// What a wait may take longer than its budget: a timer's tick, and a look at the connection.
const TICK: Duration = Duration::from_millis(40);

impl Sim {
    /// Whenever something happened.
    pub fn check(&self, edge: &Edge) {
        let queues = &edge.queues;
        if queues.held() > HELD.max_held || queues.held_bytes() > HELD.max_held_bytes {
            let (n, bytes) = (queues.held(), queues.held_bytes());
            self.broken(format!("{n} requests of {bytes} bytes are held"));
        }
        self.check_queues();
        self.check_places();
    }

    /// No request waits for what is there, and none waits that must not.
    fn check_queues(&self) {
        let snapshot = Arc::clone(&self.snapshots.load());
        for environment in crate::events::environments() {
            let Some(view) = snapshot.environment(environment) else { continue };
            let waiting = view.counters.waiting();
            if waiting == 0 {
                continue;
            }
            if self.is_stopping() {
                self.broken(format!("{waiting} wait for {environment} while the edge stops"));
            }
            for a in &view.ready {
                let shunned = self.rows().values().any(|r| r.open && r.excluded.contains(&a.id));
                // Dropped at once, unseen: a look at the queue is not caused by looking.
                if !shunned && a.load.reserve(a.concurrency).is_some() {
                    let id = &a.id;
                    self.broken(format!(
                        "{waiting} wait for {environment} although {id} has a place: a lost wake-up"
                    ));
                }
            }
            if view.ready.is_empty()
                && let Some(paused) = self.is_paused(environment)
            {
                self.broken(format!(
                    "{waiting} wait for {environment} although {paused} is paused"
                ));
            }
        }
    }

    /// No allocation has more than its concurrency.
    fn check_places(&self) {
        let mut taken: BTreeMap<AllocationId, (u32, u32)> = BTreeMap::new();
        for (id, most) in self.rows().values().filter_map(|r| r.on.clone()) {
            let (n, of) = taken.entry(id).or_default();
            *n += 1;
            *of = (*of).max(most);
        }
        if let Some((id, (n, _))) = taken.iter().find(|(_, (n, most))| n > most) {
            self.broken(format!("{id} has {n} requests at once"));
        }
    }

    /// The epoch under which a request's host is owned now.
    pub fn epoch_of(&self, n: u64) -> Option<Epoch> {
        let host = self.row(n, |r| r.host.clone());
        self.snapshots.load().host(&host).map(|v| v.owner.epoch)
    }

    /// The driver came to an end for now.
    pub fn check_driven(&self, n: u64, journey: &Journey, go: Go) {
        let now = self.clock.now();
        let late = now.since(journey.deadline());
        if late > SLACK {
            self.broken(format!("#{n} is {late:?} late"));
        }
        let budget = journey.deadline().since(journey.facts().received);
        if journey.held_for() > budget + TICK {
            let held = journey.held_for();
            self.broken(format!(
                "#{n} was held for {held:?}, longer than its budget of {budget:?}"
            ));
        }
        if go != Go::Connect {
            return;
        }
        let (view, Some(placement)) = (journey.view(), journey.placement()) else {
            self.broken(format!("#{n} has no place"))
        };
        let a = &placement.allocation;
        self.note(|| format!("#{n} is placed on {}", a.id));
        let inside = a.epoch == view.owner.epoch
            && a.digest == view.owner.digest
            && view.ready.iter().any(|r| r.id == a.id);
        if !inside {
            self.broken(format!("#{n} goes to {}, outside the owner's authority", a.id));
        }
        let owner = &view.owner;
        if !self.truth().moves.is_released(&owner.deployment, &owner.digest) {
            self.broken(format!("#{n} goes to {}, which was not released", owner.deployment));
        }
        let (told_under, excluded, left) =
            self.row(n, |r| (r.told_under.take(), r.excluded.contains(&a.id), r.known_left));
        if told_under.is_some_and(|epoch| a.epoch < epoch) {
            self.broken(format!("#{n} goes to {} by an older owner than it was told under", a.id));
        }
        if excluded || journey.excluded().contains(&a.id) {
            self.broken(format!("#{n} goes to {} again, which it excluded", a.id));
        }
        if left {
            self.broken(format!("#{n} is forwarded, and its client has left"));
        }
        self.check_rules(n, journey);
    }

    /// By the contract of the owner that gets it, not by one that was replaced.
    fn check_rules(&self, n: u64, journey: &Journey) {
        let (facts, view) = (journey.facts(), journey.view());
        let Ok(taken) = view.contract.route(&facts.asked()) else {
            self.broken(format!("#{n} has no route there"))
        };
        let posture = taken.posture();
        if posture != journey.posture() {
            let now = journey.posture();
            self.broken(format!("#{n} is {posture:?} for its owner, and treated as {now:?}"));
        }
        let keyed = matches!(posture, Posture::AppIdempotent | Posture::EdgeIdempotent);
        if keyed && !matches!(facts.key, IdempotencyKey::Present(_)) {
            self.broken(format!("#{n} goes without the key its owner requires"));
        }
        if matches!(posture, Posture::EdgeIdempotent | Posture::Webhook)
            && journey.claim().is_none()
        {
            self.broken(format!("#{n} goes, and is to be on no record"));
        }
    }

    /// The app gets its bytes now.
    pub fn check_sent(&self, n: u64, journey: &Journey) {
        let (sent, left) = self.row(n, |r| {
            r.sent += 1;
            r.posture = Some(journey.posture());
            (r.sent, r.known_left)
        });
        self.note(|| format!("#{n} is sent"));
        if left {
            self.broken(format!("#{n} is sent, and its client has left"));
        }
        let most = if is_safe(Some(journey.posture())) { 2 } else { 1 };
        if sent > most {
            self.broken(format!("#{n} is {:?} and is sent {sent} times", journey.posture()));
        }
    }

    /// The edge answers it.
    pub fn check_told(&self, n: u64, journey: &Journey) {
        let Some(reply) = journey.reply() else { return };
        self.note(|| format!("#{n} is answered {} {}", reply.problem.name(), reply.status));
        let sent = self.row(n, |r| r.sent);
        let unsafe_and_sent = sent > 0 && !is_safe(Some(journey.posture()));
        if reply.forwarded == Forwarded::No && says_not_sent(reply.problem) && unsafe_and_sent {
            self.broken(format!("#{n} was sent, and its client is told that it was not"));
        }
        if reply.status == 503 && reply.retry_after.is_none() {
            self.broken(format!("#{n} is told to come back, and not when"));
        }
    }

    /// It is over, and its trace closed.
    pub fn check_trace(&self, n: u64, record: &TraceRecord, preview: bool) {
        let (trace, outcome) = (&record.trace, record.trace.outcome);
        let (sent, not_taken) = self.row(n, |r| {
            r.outcome = Some(outcome);
            (r.sent, r.not_taken)
        });
        for step in &trace.steps {
            let text = Step::text(step);
            self.note(|| format!("#{n}   {} {} {}", text.action, text.value, text.detail));
            if let StepKind::Wake { created, operation: Some(_), .. } = step.kind {
                self.happened(if created {
                    "a wake was made by a request"
                } else {
                    "a wake was joined"
                });
            }
        }
        self.note(|| format!("#{n} is over: {}", outcome.name()));
        self.ended(outcome.name());
        if not_taken > 0 {
            self.happened("a place was granted and not taken up");
        }
        if preview && by_the_app(outcome) {
            self.happened("a preview was served");
        }
        if outcome == Outcome::Open {
            self.broken(format!("#{n} ended without an outcome"));
        }
        if trace.steps.is_empty() || trace.steps.len() > 32 {
            self.broken(format!("#{n} has {} steps", trace.steps.len()));
        }
        if by_the_app(outcome) && sent == 0 {
            self.broken(format!("#{n} was served without being sent"));
        }
        let selected = trace.steps.iter().filter(|s| matches!(s.kind, StepKind::Select(..)));
        if trace.dropped() == 0 && selected.count() < sent as usize {
            self.broken(format!("#{n} was sent more often than its trace selects"));
        }
    }

    /// Every request has ended, and nothing goes on.
    pub fn check_the_end(&self, edge: &Edge) {
        self.check(edge);
        let open: Vec<_> = self.rows().iter().filter(|(_, r)| r.open).map(|(n, _)| *n).collect();
        if !open.is_empty() {
            self.broken(format!("{open:?} have not ended"));
        }
        if (edge.queues.held(), edge.queues.held_bytes()) != (0, 0) {
            let (n, bytes) = (edge.queues.held(), edge.queues.held_bytes());
            self.broken(format!("the queues count {n} requests and {bytes} bytes"));
        }
        let going = self.truth().operations().find(|o| o.state.in_progress()).cloned();
        if let Some(o) = going {
            // One of an owner that is gone is nobody's.
            let snapshot = self.snapshots.load();
            if snapshot.environment(&o.environment).is_some_and(|v| v.owner.epoch == o.epoch) {
                self.broken(format!("{} of {} does not end", o.id, o.environment));
            }
        }
        if edge.gate.ledger.at_work() != 0 || edge.gate.exchanges.open() != 0 {
            self.broken("the ledger is at work for no request");
        }
        let snapshot = Arc::clone(&self.snapshots.load());
        if let Some(view) = snapshot.environments().find(|v| v.counters.no_room()) {
            self.broken(format!("no start waits, and {} is told of a full node", view.environment));
        }
        if edge.gate.budget.used() != 0 {
            self.broken("bodies are kept for no request");
        }
    }

    /// Nothing is left of what was begun: no promotion that does not end, no claim, no allocation that no owner
    /// will have, no process that no record names, no command.
    pub fn check_nothing_is_left(&self) {
        let truth = self.truth();
        let mut left = Vec::new();
        if let Some(p) = truth.moves.in_progress() {
            left.push(format!("promotion {} of {} does not end", p.id, p.environment));
        }
        for a in truth.allocations() {
            let owner = truth.moves.owner(&a.environment).map(|o| o.epoch);
            if owner.is_some_and(|epoch| a.epoch != epoch) {
                left.push(format!("{} of epoch {} is left, and {owner:?} owns", a.id, a.epoch));
            }
        }
        for (id, environment) in self.machine.alive() {
            if truth.allocation(&id).is_none() && !self.is_added(&id) {
                left.push(format!("{id} of {environment} runs, and no record names it"));
            }
        }
        drop(truth);
        for id in self.machine.commands.running() {
            left.push(format!("the release command {id} runs"));
        }
        for prefix in [key::PROMOTERS, key::EXECUTORS] {
            let listed = self.engine.list(prefix, None, 10).now_or_never();
            let listed = listed.and_then(Result::ok).map(|page| page.entries);
            for (at, _) in listed.into_iter().flatten() {
                left.push(format!("{at} is claimed for nothing"));
            }
        }
        if let Some(left) = left.first() {
            self.broken(left);
        }
    }

    /// What a command was told of a deployment is so.
    pub fn check_deployed(&self, told: &Deployed) {
        let Deployed { deployment, environment, epoch, hosts, .. } = told;
        self.note(|| format!("{environment} is deployed: {deployment}, {:?}", told.effect));
        let Some(epoch) = epoch else { return };
        let truth = self.truth();
        let short = hosts.iter().find(|h| truth.epoch(h).is_none_or(|of| of < *epoch));
        if let Some(host) = short.cloned() {
            drop(truth);
            self.broken(format!("{deployment} is said to own {host} under epoch {epoch}"));
        }
    }

    /// A request came to an app that starts, after every pause.
    pub fn check_healed(&self, n: u64) {
        let outcome = self.row(n, |r| r.outcome);
        if !outcome.is_some_and(by_the_app) {
            let outcome = outcome.map_or("open", Outcome::name);
            self.broken(format!("#{n} ended {outcome} although all is well"));
        }
    }
}

/// Answers after which a client must be able to believe that nothing was sent.
fn says_not_sent(problem: Problem) -> bool {
    !matches!(problem, Problem::UpstreamClosed | Problem::UpstreamTimeout | Problem::OutcomeUnknown)
}

/// The outcomes of requests that the app answered.
pub fn by_the_app(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Hot | Outcome::Woken | Outcome::Held)
}
