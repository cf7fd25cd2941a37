//! What a request meets whose app has no place for it: a wake, a wait within its budget, or the
//! answer that says why not and when to come again.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::lifecycle::classify::Posture;
use crate::lifecycle::reply::{Problem, Reply};
use crate::lifecycle::retry;
use crate::lifecycle::trace::{HoldEnd, Outcome, QueueBound, StepKind};
use crate::snapshot::{EnvView, OperationView};
use crate::store::record::WakeState;

use super::{Journey, Next, Woke};

impl Journey {
    pub(super) fn cold(&mut self, now: Mono, pick: u64) -> Next {
        if self.wants_reservation() {
            return Next::Reserve;
        }
        if let Some(answer) = self.blocked_delivery(now) {
            return answer;
        }
        let may_hold = self.waits_cold();
        let view = Arc::clone(&self.view);
        if self.posture == Posture::Safe && !self.was_classified() {
            let classify = StepKind::Classify(self.posture, Arc::clone(&view), self.route);
            self.trace.push(now, classify);
        }
        // Only an operation of the epoch that owns the route now says anything about it.
        let current = view.operation.as_ref().filter(|o| o.epoch == view.owner.epoch);
        match current {
            Some(o) if o.state == WakeState::Failed && o.backoff_until.is_some_and(|t| now < t) => {
                self.operation = Some(o.id.clone());
                let reply = wake_failed(o, now, pick);
                self.answer(now, reply)
            }
            Some(o) if o.state.in_progress() => {
                let joined = Woke::Operation { id: o.id.clone(), created: false };
                self.note_wake(now, &joined);
                if may_hold { self.hold(now, true) } else { self.app_cold(now) }
            }
            _ => {
                if may_hold {
                    self.hold(now, true);
                }
                Next::Wake { hold: may_hold }
            }
        }
    }

    /// Nothing is ready, and this request is none to change that for.
    pub(super) fn asleep(&mut self, now: Mono) -> Reply {
        let view = Arc::clone(&self.view);
        if self.posture == Posture::Safe {
            let classify = StepKind::Classify(self.posture, Arc::clone(&view), self.route);
            self.trace.push(now, classify);
        }
        let status = view.contract.routes.get(self.route).and_then(|r| r.asleep_status);
        let typical = view.operation.as_ref().map_or(0, |o| o.stats.typical_ms);
        let detail = "The app is asleep, and its contract says that this request does not wake it.";
        match status {
            Some(status) => Reply::refused(Problem::Asleep, status, detail),
            None => Reply::refused(Problem::Asleep, 503, detail)
                .retry_after(Duration::from_millis(typical.max(1000))),
        }
    }

    pub(super) fn was_classified(&self) -> bool {
        self.trace.steps.iter().any(|s| matches!(s.kind, StepKind::Classify(..)))
    }

    pub(super) fn note_wake(&mut self, now: Mono, woke: &Woke) {
        let Woke::Operation { id, created } = woke else { return };
        if self.operation.as_ref() == Some(id) {
            return;
        }
        self.operation = Some(id.clone());
        let safe = self.posture == Posture::Safe;
        let operation = Some(id.clone());
        self.trace.push(now, StepKind::Wake { operation, created: *created, safe });
    }

    pub(super) fn app_cold(&mut self, now: Mono) -> Next {
        if self.is_delivery() {
            let reply = self.deferred("deferred: the app is asleep and is being woken", now);
            return self.answer(now, reply);
        }
        let typical = self.view.operation.as_ref().map_or(0, |o| o.stats.typical_ms);
        let wait = Duration::from_millis(typical.max(1000));
        let detail = "The app was asleep and is being started. This action was not sent to it: \
                      send it again.";
        self.answer(now, Reply::refused(Problem::AppCold, 503, detail).retry_after(wait))
    }

    /// Reports what came of [`Next::Wake`]. `Some` is the answer to give; `None` means to go on
    /// with the hold that was begun.
    pub fn woke(&mut self, woke: &Woke, hold: bool, now: Mono) -> Option<Reply> {
        self.note_wake(now, woke);
        let next = match woke {
            Woke::Unavailable => {
                let detail = "The edge cannot record a wake just now; nothing was sent.";
                let reply = Reply::refused(Problem::NotForwarded, 503, detail)
                    .retry_after(Duration::from_secs(1));
                self.answer(now, reply)
            }
            _ if hold => return None,
            _ => self.app_cold(now),
        };
        match next {
            Next::Reply(reply) => Some(reply),
            _ => None,
        }
    }

    /// Reports how a hold ended, with the environment as it is now. `Some` is the answer to give;
    /// `None` means to decide again, or, after [`HoldEnd::ClientLeft`], to stop.
    pub fn held(
        &mut self,
        end: HoldEnd,
        view: Option<&Arc<EnvView>>,
        now: Mono,
        pick: u64,
    ) -> Option<Reply> {
        if let Some(view) = view {
            self.view = Arc::clone(view);
        }
        let held = self.hold.since.take().map_or(Duration::ZERO, |s| now.since(s));
        self.hold.total += held;
        let state = self.hold_state();
        if end == HoldEnd::Recheck && state.is_none_or(WakeState::in_progress) {
            // Nothing to tell: the same wait goes on.
            return None;
        }
        if self.hold.for_wake && !matches!(end, HoldEnd::QueueFull(_)) {
            let phases = self.view.operation.as_ref().map(|o| o.phases).unwrap_or_default();
            let view = Arc::clone(&self.view);
            let phases = Box::new(phases);
            self.trace.push(now, StepKind::Start { view, state, phases });
        }
        self.trace.push(now, StepKind::Hold { held: self.hold.total, end: Some(end), state });
        let reply = match end {
            HoldEnd::Released | HoldEnd::Recheck => return None,
            HoldEnd::ClientLeft => {
                self.trace.outcome = Outcome::ClientLeft;
                return None;
            }
            HoldEnd::DeadlinePassed => self.too_late(now, pick),
            HoldEnd::QueueFull(bound) => queue_full(bound, self.view.operation.as_ref()),
            HoldEnd::ShuttingDown => Reply::refused(
                Problem::ShuttingDown,
                503,
                "This edge is stopping; nothing was sent. Another one, or this one in a moment, \
                 will answer.",
            )
            .retry_after(Duration::from_secs(1)),
        };
        match self.answer(now, reply) {
            Next::Reply(reply) => Some(reply),
            _ => None,
        }
    }

    pub(super) fn hold_state(&self) -> Option<WakeState> {
        if !self.hold.for_wake {
            return None;
        }
        Some(self.view.operation.as_ref().map_or(WakeState::WakeRequested, |o| o.state))
    }

    /// Waiting ends `after` the request came, if not earlier.
    pub(in crate::lifecycle) fn limit_hold(&mut self, after: Duration) {
        self.deadline = self.deadline.min(self.facts.received + after);
    }

    pub(super) fn too_late(&mut self, now: Mono, pick: u64) -> Reply {
        if self.is_delivery() {
            let reply = self.deferred("deferred: no place in the app in the provider's time", now);
            return reply.operation(self.operation.clone());
        }
        let budget = self.view.contract.wake.budget;
        let operation = self.view.operation.as_ref();
        match operation {
            _ if self.view.live.no_room() && self.view.ready.is_empty() => Reply::refused(
                Problem::NodeFull,
                503,
                "This node runs as many apps as it may. This one is started when there is a place.",
            )
            .retry_after(jittered(Duration::from_secs(1), pick)),
            Some(o) if o.state == WakeState::Failed && o.epoch == self.view.owner.epoch => {
                wake_failed(o, now, pick)
            }
            _ if !self.excluded.is_empty() || self.view.is_down() => retry::not_forwarded(),
            _ if !self.view.ready.is_empty() => Reply::refused(
                Problem::Saturated,
                503,
                format!("Every allocation of the app was busy for {budget:?}."),
            )
            .retry_after(jittered(Duration::from_secs(1), pick)),
            _ => {
                let typical = operation.map_or(0, |o| o.stats.typical_ms);
                let left = Duration::from_millis(typical).saturating_sub(budget);
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

fn queue_full(bound: QueueBound, operation: Option<&OperationView>) -> Reply {
    let typical = operation.map_or(0, |o| o.stats.typical_ms).max(1000);
    Reply::refused(
        Problem::HoldQueueFull,
        503,
        format!("As many requests wait as may ({}).", bound.name()),
    )
    .retry_after(Duration::from_millis(typical))
}
