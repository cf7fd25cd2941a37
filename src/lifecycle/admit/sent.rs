//! What came of sending a request to its place: no connection, no response, or the app's answer.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::lifecycle::classify::Posture;
use crate::lifecycle::place::Placement;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::retry::{self, MAX_ATTEMPTS, UpstreamFailure};
use crate::lifecycle::trace::{Outcome, StepKind};

use super::Journey;

impl Journey {
    /// A connection to `placed` could not be made; nothing was sent. `Some` is the answer to give;
    /// `None` means to decide again, any method: nothing was sent.
    pub fn connect_failed(&mut self, placed: &Placement, now: Mono) -> Option<Reply> {
        self.trace.push(now, StepKind::ConnectFailed(Arc::clone(&placed.allocation)));
        self.excluded.push(placed.allocation.id.clone());
        if self.attempts < MAX_ATTEMPTS && now < self.deadline {
            return None;
        }
        let reply = retry::not_forwarded();
        self.trace.answered(now, &reply);
        Some(reply)
    }

    /// The request was sent, in whole or in part, and no response came.
    pub fn upstream_failed(&mut self, failure: UpstreamFailure, now: Mono) -> Reply {
        let reply = retry::after_send(self.posture == Posture::Safe, failure);
        self.trace.push(now, StepKind::UpstreamFailed(failure));
        self.trace.answered(now, &reply);
        reply
    }

    /// Whether the same bytes may go again after a reused connection broke.
    pub fn may_resend(&self, reused: bool) -> bool {
        retry::may_resend(self.posture == Posture::Safe, reused, self.attempts)
    }

    /// The app answered with `status`.
    pub fn served(&mut self, status: Option<u16>, now: Mono) {
        self.answered(status, now);
        self.attach_evidence(status, now);
    }

    /// The app began to answer with `status` at `began`, and the answer broke off.
    pub fn broke_off(
        &mut self,
        status: Option<u16>,
        began: Mono,
        failure: UpstreamFailure,
        now: Mono,
    ) {
        self.answered(status, began);
        self.trace.push(now, StepKind::BrokeOff(failure));
        self.trace.outcome = Outcome::CutOff;
        self.attach_evidence(status, now);
    }

    fn answered(&mut self, status: Option<u16>, now: Mono) {
        let preview = !self.view.environment.is_production();
        let pinned = self.pinned(now, status);
        if self.is_delivery() {
            self.trace.push(now, StepKind::ProcessOnce { status });
        } else if !pinned {
            self.ran(status, now);
        }
        if matches!(self.posture, Posture::AppIdempotent | Posture::EdgeIdempotent) {
            self.trace.push(now, StepKind::AttachRetry);
        }
        self.trace.outcome = if self.operation.is_some() {
            Outcome::Woken
        } else if self.hold.total > Duration::ZERO {
            Outcome::Held
        } else {
            if self.posture == Posture::Safe && !pinned && !preview {
                self.trace.push(now, StepKind::NoMutation(self.view.owner.epoch));
            }
            Outcome::Hot
        };
    }

    /// The app answered, or would.
    pub(in crate::lifecycle) fn ran(&mut self, status: Option<u16>, now: Mono) {
        let kind = if self.view.environment.is_production() {
            StepKind::Run { status }
        } else {
            StepKind::RunPreview { view: Arc::clone(&self.view), status }
        };
        self.trace.push(now, kind);
    }

    /// Whether this end counts for its preview's promotion, and as an error. A preflight does not: it
    /// passes without the preview's token, and would let any client speak for an artifact or against it.
    pub fn counts(&self, status: Option<u16>) -> Option<bool> {
        if self.facts.is_preflight() { None } else { self.trace.outcome.evidence(status) }
    }

    /// What a preview's answer means for its promotion.
    pub(in crate::lifecycle) fn attach_evidence(&mut self, status: Option<u16>, now: Mono) {
        if self.view.environment.is_production() {
            return;
        }
        // Only explaining: it would have been an answer.
        let error = self.counts(Some(status.unwrap_or(200)));
        let view = Arc::clone(&self.view);
        self.trace.push(now, StepKind::AttachEvidence { view: Arc::clone(&view), error });
        self.trace.push(now, StepKind::PromoteLater(view));
    }

    /// The client left before an answer was complete.
    pub fn client_left(&mut self) {
        self.trace.outcome = Outcome::ClientLeft;
    }
}
