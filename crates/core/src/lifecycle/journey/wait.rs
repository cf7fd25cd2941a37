//! What a request meets whose app has no place for it: a wake, a wait within its budget, or the
//! answer that says why not and when to come again.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::contract::{Cold, Posture, Route};
use crate::lifecycle::reply::{Problem, Reply};
use crate::lifecycle::trace::{HoldEnd, Outcome, QueueBound, StepKind};
use crate::lifecycle::webhook;
use crate::record::{WakePhases, WakeState};
use crate::snapshot::OperationView;

use super::{Ask, Command, Go, Journey, Look, Placement, State, Woke};

/// What a request waits for in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldFor {
    /// A place in an app that is up.
    Place,
    /// A wake that is under way.
    JoinedWake,
    /// A wake that it asks for itself once it has its place in the queue.
    OwnWake,
}

impl Journey {
    /// Nothing is ready: a wake is made or joined, unless something speaks against it.
    pub(super) fn cold(&mut self, now: Mono, pick: u64) -> Command {
        if self.wants_reservation() {
            self.state = State::Reserving;
            return Command::Do(Ask::Reserve);
        }
        if let Some(answer) = self.blocked_delivery(now) {
            return answer;
        }
        let holds = self.waits_cold() && now < self.deadline;
        let view = Arc::clone(&self.view);
        if self.posture == Posture::Safe && !self.posture_shown {
            self.show_posture(now);
        }
        // Only an operation of the epoch that owns the route now says anything about it.
        let current = view.operation.as_ref().filter(|o| o.epoch == view.owner.epoch);
        match current {
            Some(o) if o.state == WakeState::Failed && o.backoff_until.is_some_and(|t| now < t) => {
                self.operation = Some(o.id.clone());
                self.answer_with(wake_failed(o, now, pick), now)
            }
            Some(o) if o.state.in_progress() => {
                let joined = Woke::Operation { id: o.id.clone(), created: false };
                self.note_wake(&joined, now);
                if holds { self.hold(now, HoldFor::JoinedWake) } else { self.app_cold(now) }
            }
            _ if holds => self.hold(now, HoldFor::OwnWake),
            _ => {
                self.state = State::Waking { holds: false };
                Command::Do(Ask::Wake)
            }
        }
    }

    /// Whether it may wait while nothing is ready: an unsafe request without idempotency waits for
    /// a place in an app that is up, and for a start only where its contract says so. What waits is sent once.
    pub fn waits_cold(&self) -> bool {
        match self.posture {
            Posture::Safe | Posture::AppIdempotent | Posture::EdgeIdempotent => true,
            Posture::Webhook => self.delivery_waits(),
            Posture::Unsafe => self.route().is_some_and(|r| r.cold == Cold::Hold),
        }
    }

    /// Waits in the queue.
    pub(super) fn hold(&mut self, now: Mono, wanted: HoldFor) -> Command {
        let wakes = wanted == HoldFor::OwnWake;
        self.hold.since = Some(now);
        self.hold.for_wake = wanted != HoldFor::Place;
        self.hold.waited = true;
        self.state = State::Entering { wakes };
        Command::Do(Ask::Enter { wakes })
    }

    /// Nothing is ready, and this request does not justify a wake.
    pub(super) fn asleep(&mut self, now: Mono) -> Reply {
        let view = Arc::clone(&self.view);
        if self.posture == Posture::Safe {
            self.show_posture(now);
        }
        let status = self.route().and_then(|r| r.asleep_status);
        let detail = "The app is asleep, and its contract says that this request does not wake it.";
        match status {
            Some(status) => Reply::refused(Problem::Asleep, status, detail),
            None => Reply::refused(Problem::Asleep, 503, detail).retry_after(view.typical_wake()),
        }
    }

    fn note_wake(&mut self, woke: &Woke, now: Mono) {
        let Woke::Operation { id, created } = woke else { return };
        if self.operation.as_ref() == Some(id) {
            return;
        }
        self.operation = Some(id.clone());
        let safe = self.posture == Posture::Safe;
        let operation = Some(id.clone());
        self.trace.push(now, StepKind::Wake { operation, created: *created, safe });
    }

    fn app_cold(&mut self, now: Mono) -> Command {
        if self.is_delivery() {
            let reply = self.deferred("deferred: the app is asleep and is being woken", now);
            return self.answer_with(reply, now);
        }
        let wait = self.view.typical_wake();
        let detail = "The app was asleep and is being started. This action was not sent to it: \
                      send it again.";
        let hint = self.route().map(Route::hint_to_hold);
        let reply = Reply { hint, ..Reply::refused(Problem::AppCold, 503, detail) };
        self.answer_with(reply.retry_after(wait), now)
    }

    /// A wake was asked for; with `holds` it has a place in the queue.
    pub(super) fn woke(&mut self, woke: &Woke, holds: bool, now: Mono) -> Command {
        self.note_wake(woke, now);
        match woke {
            Woke::Unavailable => {
                let detail = "The edge cannot record a wake just now; nothing was sent.";
                let reply = Reply::refused(Problem::NotForwarded, 503, detail)
                    .retry_after(Duration::from_secs(1));
                self.answer_with(reply, now)
            }
            _ if holds => self.wait(),
            _ => self.app_cold(now),
        }
    }

    /// It would be woken, and wait for that with `holds`.
    pub(super) fn would_wake(&mut self, holds: bool, now: Mono) -> Command {
        let safe = self.posture == Posture::Safe;
        self.trace.push(now, StepKind::Wake { operation: None, created: true, safe });
        if holds { self.wait() } else { self.app_cold(now) }
    }

    /// It would wait, and then be given to the app.
    pub(super) fn would_wait(&mut self, now: Mono) -> Command {
        let view = Arc::clone(&self.view);
        let asleep = view.ready.is_empty();
        // Of the operation that it would join.
        let joined = view.operation.as_ref().filter(|o| self.operation.as_ref() == Some(&o.id));
        let state = joined.map(|o| o.state);
        if asleep {
            let thaw_us = view.in_memory().map(|_| 0);
            let phases = Box::new(WakePhases { thaw_us, ..WakePhases::default() });
            self.trace.push(now, StepKind::Start { view, state, phases });
        }
        let state = asleep.then_some(state.unwrap_or(WakeState::WakeRequested));
        self.trace.push(now, StepKind::Hold { held: Duration::ZERO, end: None, state });
        self.ran(None, now);
        self.trace.outcome = if asleep { Outcome::Woken } else { Outcome::Held };
        self.attach_evidence(None, now);
        Command::Go(Go::Stop)
    }

    /// A hold ended, or could not begin.
    pub(super) fn held(
        &mut self,
        end: HoldEnd,
        granted: Option<Placement>,
        look: Look,
        now: Mono,
    ) -> Command {
        if let Some(view) = look.view {
            self.view = view;
        }
        let held = self.hold.since.take().map_or(Duration::ZERO, |s| now.since(s));
        self.hold.total += held;
        let state = self.hold_state();
        if end == HoldEnd::Recheck && state.is_none_or(WakeState::in_progress) {
            // Nothing to tell: the same wait goes on.
            return self.look(false, granted);
        }
        if self.hold.for_wake && !matches!(end, HoldEnd::QueueFull(_)) {
            let phases = self.view.operation.as_ref().map(|o| o.phases).unwrap_or_default();
            let view = Arc::clone(&self.view);
            let phases = Box::new(phases);
            self.trace.push(now, StepKind::Start { view, state, phases });
        }
        self.trace.push(now, StepKind::Hold { held: self.hold.total, end: Some(end), state });
        let reply = match end {
            HoldEnd::Released | HoldEnd::Recheck => return self.look(false, granted),
            HoldEnd::ClientLeft => {
                self.trace.outcome = Outcome::ClientLeft;
                return Command::Go(Go::Stop);
            }
            HoldEnd::DeadlinePassed => self.too_late(now, look.pick),
            HoldEnd::QueueFull(bound) => {
                let what = match bound {
                    QueueBound::Connections => {
                        "As many clients are connected as while any may wait"
                    }
                    _ => "As many requests wait as may",
                };
                let detail = format!("{what} ({}).", bound.name());
                Reply::refused(Problem::HoldQueueFull, 503, detail)
                    .retry_after(self.view.typical_wake())
            }
            HoldEnd::ShuttingDown => Reply::refused(
                Problem::ShuttingDown,
                503,
                "This edge is stopping; nothing was sent. Another one, or this one in a moment, \
                 will answer.",
            )
            .retry_after(Duration::from_secs(1)),
        };
        self.answer_with(reply, now)
    }

    fn hold_state(&self) -> Option<WakeState> {
        if !self.hold.for_wake {
            return None;
        }
        Some(self.view.operation.as_ref().map_or(WakeState::WakeRequested, |o| o.state))
    }

    /// Waiting ends `after` the request came, if not earlier.
    pub(in crate::lifecycle) fn limit_hold(&mut self, after: Duration) {
        self.deadline = self.deadline.min(self.facts.received + after);
    }

    /// Its body took this long. That was its client's time, and the budget is its app's: spent on the body, it
    /// would leave none to wake the app in, and a client with a slow line would never get through. What its client
    /// or its provider waits is not longer for that.
    pub(super) fn extend_hold(&mut self, took: Duration) {
        let waits = [self.facts.patience(), self.webhook().map(webhook::hold_limit)];
        let end = self.deadline + took;
        let ends = waits.into_iter().flatten().map(|wait| self.facts.received + wait);
        self.deadline = ends.fold(end, Mono::min);
    }

    pub(super) fn too_late(&mut self, now: Mono, pick: u64) -> Reply {
        if self.is_delivery() {
            let reply = self.deferred("deferred: no place in the app in the provider's time", now);
            return reply.operation(self.operation.clone());
        }
        let budget = self.view.contract.wake.budget;
        let operation = self.view.operation.as_ref();
        match operation {
            _ if self.view.counters.no_room() && self.view.ready.is_empty() => Reply::refused(
                Problem::NodeFull,
                503,
                "This node runs as many apps as it may. This one is started when there is a place.",
            )
            .retry_after(jittered(Duration::from_secs(1), pick)),
            Some(o) if o.state == WakeState::Failed && o.epoch == self.view.owner.epoch => {
                wake_failed(o, now, pick)
            }
            _ if !self.excluded.is_empty() || self.view.is_down() => Reply::not_forwarded(),
            _ if !self.view.ready.is_empty() => Reply::refused(
                Problem::Saturated,
                503,
                format!("Every allocation of the app was busy for {budget:?}."),
            )
            .retry_after(jittered(Duration::from_secs(1), pick)),
            _ => {
                let left = self.view.typical_wake().saturating_sub(budget);
                Reply::refused(
                    Problem::WakeTimeout,
                    503,
                    format!(
                        "The app did not become ready within {budget:?}; it is still starting."
                    ),
                )
                .retry_after(jittered(left.max(Duration::from_secs(1)), pick))
            }
        }
    }
}

/// `wait`, longer by up to a quarter, so that a refused crowd does not come back at once.
fn jittered(wait: Duration, pick: u64) -> Duration {
    let quarter = u64::try_from(wait.as_millis() / 4).unwrap_or(u64::MAX).max(1);
    wait + Duration::from_millis(pick % quarter)
}

fn wake_failed(operation: &OperationView, now: Mono, pick: u64) -> Reply {
    let left = operation.backoff_until.map_or(Duration::ZERO, |t| t.since(now));
    if let Some(failure) = operation.failure.as_ref().filter(|f| f.artifact) {
        let reply = Reply::artifact_unavailable(&failure.safe).retry_after(jittered(left, pick));
        return reply.operation(Some(operation.id.clone()));
    }
    let cause = operation.failure.as_ref().map_or("unknown cause", |f| f.safe.as_str());
    Reply::refused(
        Problem::WakeFailed,
        503,
        format!("The app's start failed: {cause}. A new one is tried after a pause."),
    )
    .retry_after(jittered(left, pick))
    .operation(Some(operation.id.clone()))
}
