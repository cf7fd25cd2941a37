//! What came of sending a request to its place: no connection, no response, or the app's answer. What may
//! happen after a failure, two facts decide: was anything sent, and is the request safe? Nothing here ever
//! lets an unsafe request be sent twice.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

use crate::clock::Mono;
use crate::contract::Posture;
use crate::lifecycle::facts::ErrorForm;
use crate::lifecycle::grpc;
use crate::lifecycle::reply::{Forwarded, Problem, Reply};
use crate::lifecycle::trace::{Outcome, StepKind, UpstreamFailure};

use super::{BodyRefusal, Broke, Command, Go, Journey, Placement, State};

/// Attempts one request may make, the first included, while nothing of it has been sent.
pub const MAX_ATTEMPTS: u32 = 4;

impl Journey {
    /// No connection to its place; nothing was sent, and any method may go elsewhere.
    pub(super) fn connect_failed(&mut self, placed: &Placement, now: Mono) -> Command {
        self.trace.push(now, StepKind::ConnectFailed(Arc::clone(&placed.allocation)));
        self.excluded.push(placed.allocation.id.clone());
        if self.placements_tried < MAX_ATTEMPTS && now < self.deadline {
            return self.look(false, None);
        }
        self.tell(Reply::not_forwarded(), now)
    }

    /// The app's side says that it did nothing with it. HTTP/2 has that said so that any request may be sent
    /// again (RFC 9113 §8.7): it is the one way in which an unsafe request goes twice, and is carried out
    /// once.
    pub(super) fn unprocessed(
        &mut self,
        placed: Option<Placement>,
        again: bool,
        now: Mono,
    ) -> Command {
        if let Some(placed) = &placed {
            self.trace.push(now, StepKind::Unprocessed(Arc::clone(&placed.allocation)));
        }
        if again && self.placements_tried < MAX_ATTEMPTS && now < self.deadline {
            return self.look(false, None);
        }
        self.tell(Reply::unprocessed(), now)
    }

    /// There is a connection, of which nothing is used.
    pub(super) fn connected(&mut self, placed: Placement) -> Command {
        if self.claim().is_some() && !self.passes_unrecorded() {
            self.state = State::Recording(placed);
            return Command::Go(Go::Record);
        }
        self.state = State::Sent(Some(placed));
        Command::Go(Go::Send)
    }

    /// The request was sent, in whole or in part, and no response came.
    pub(super) fn failed(&mut self, failure: UpstreamFailure, now: Mono) -> Command {
        if self.is_recorded_delivery() {
            self.evidence("sent to the app, and no answer came", now);
        }
        self.no_answer(failure, now)
    }

    /// The client gets no answer of the app.
    pub(super) fn no_answer(&mut self, failure: UpstreamFailure, now: Mono) -> Command {
        self.trace.push(now, StepKind::UpstreamFailed(failure));
        self.tell(after_send(self.posture == Posture::Safe, failure), now)
    }

    /// The app's answer began.
    pub(super) fn app_answered(
        &mut self,
        status: u16,
        placed: Option<Placement>,
        now: Mono,
    ) -> Command {
        if self.is_recorded_delivery() {
            self.evidence("delivered to the app", now);
        }
        if let Some(withheld) = self.withheld(status, now) {
            return self.tell(withheld, now);
        }
        self.state = State::Answering { began: now, placed };
        Command::Go(Go::PassOn)
    }

    /// The body is refused while it is on its way. What of it was sent cannot be taken back.
    pub(super) fn body_cut_off(&mut self, why: BodyRefusal, now: Mono) -> Command {
        let reply = match why {
            BodyRefusal::TooLong | BodyRefusal::NoRoom => {
                Reply::content_too_large(self.max_body().unwrap_or_default())
            }
            BodyRefusal::Malformed => Reply::body_malformed(),
            BodyRefusal::TooSlow => {
                let detail =
                    "The body came too slowly; what had come of it may have reached the app.";
                Reply::refused(Problem::RequestTimeout, 408, detail)
            }
        };
        self.tell(Reply { forwarded: Forwarded::OutcomeUnknown, ..reply }, now)
    }

    /// Whether the same bytes may go again after a reused connection broke.
    pub fn may_resend(&self, reused: bool) -> bool {
        may_resend(self.posture == Posture::Safe, reused, self.placements_tried)
    }

    /// It is over: `status` was sent to its client, and `broke` says what ended it before its end.
    pub fn over(&mut self, status: Option<u16>, broke: Option<Broke>, now: Mono) {
        let began = match std::mem::replace(&mut self.state, State::Gone) {
            // Its outcome was decided.
            told @ State::Told(_) => return self.state = told,
            State::Gone => return self.trace.outcome = Outcome::ClientLeft,
            State::Answering { began, .. } => began,
            _ => now,
        };
        match (status, broke) {
            (None, Some(_)) => self.trace.outcome = Outcome::ClientLeft,
            (_, Some(Broke::App(failure))) => {
                self.answered(status, began);
                self.trace.push(now, StepKind::BrokeOff(failure));
                self.trace.outcome = Outcome::CutOff;
                self.attach_evidence(status, now);
            }
            (_, Some(Broke::Client) | None) => {
                self.answered(status, began);
                self.attach_evidence(status, began);
            }
        }
    }

    /// The app would answer.
    pub(in crate::lifecycle) fn would_answer(&mut self, now: Mono) {
        self.answered(None, now);
        self.attach_evidence(None, now);
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
    pub(super) fn ran(&mut self, status: Option<u16>, now: Mono) {
        let kind = if self.view.environment.is_production() {
            StepKind::Run { status }
        } else {
            StepKind::RunPreview { view: Arc::clone(&self.view), status }
        };
        self.trace.push(now, kind);
    }

    /// The app's answer has these fields, in its head or its trailers.
    pub fn heard_fields(&mut self, fields: &HeaderMap) {
        if matches!(self.facts.error_form, ErrorForm::Grpc(_)) {
            self.call_failed |= grpc::is_app_failure(fields);
        }
    }

    /// Whether this end counts as an error for its preview's promotion; `None` where it does not count at
    /// all. A preflight does not: it passes without the preview's token, and would let any client speak for
    /// an artifact or against it.
    pub fn preview_evidence(&self, status: Option<u16>) -> Option<bool> {
        if self.facts.is_preflight() {
            return None;
        }
        self.trace.outcome.evidence(status).map(|error| error || self.call_failed)
    }

    /// What a preview's answer means for its promotion.
    pub(super) fn attach_evidence(&mut self, status: Option<u16>, now: Mono) {
        if self.view.environment.is_production() {
            return;
        }
        // Only explaining: it would have been an answer.
        let error = self.preview_evidence(Some(status.unwrap_or(200)));
        let view = Arc::clone(&self.view);
        self.trace.push(now, StepKind::AttachEvidence { view: Arc::clone(&view), error });
        self.trace.push(now, StepKind::PromoteLater(view));
    }
}

/// Whether a request on a **reused** connection that broke before any response byte may be sent
/// again. RFC 9110 §9.2.2: only where the method is idempotent; here: only where it is safe, once.
fn may_resend(safe: bool, reused: bool, attempts: u32) -> bool {
    safe && reused && attempts < 2
}

/// The answer after the request was sent and no response came.
fn after_send(safe: bool, failure: UpstreamFailure) -> Reply {
    let (status, problem, what) = match failure {
        UpstreamFailure::Closed => (502, Problem::UpstreamClosed, "closed the connection"),
        UpstreamFailure::Silent => (504, Problem::UpstreamTimeout, "did not answer in time"),
    };
    if safe {
        return Reply {
            forwarded: Forwarded::OutcomeUnknown,
            ..Reply::refused(problem, status, format!("The app {what}."))
        };
    }
    let detail = format!(
        "The request was sent and the app {what}. It may have been carried out: look before you \
         send it again."
    );
    Reply {
        forwarded: Forwarded::OutcomeUnknown,
        ..Reply::refused(Problem::OutcomeUnknown, status, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsafe_request_is_never_sent_again() {
        for reused in [false, true] {
            for attempts in 0..5 {
                assert!(!may_resend(false, reused, attempts));
            }
        }
        assert!(may_resend(true, true, 1));
        assert!(!may_resend(true, true, 2) && !may_resend(true, false, 1));
    }

    #[test]
    fn an_unsafe_failure_is_an_unknown_outcome_without_retry_after() {
        for failure in [UpstreamFailure::Closed, UpstreamFailure::Silent] {
            let reply = after_send(false, failure);
            assert_eq!(reply.problem, Problem::OutcomeUnknown);
            assert_eq!(reply.forwarded, Forwarded::OutcomeUnknown);
            assert_eq!(reply.retry_after, None);
        }
        assert_eq!(after_send(true, UpstreamFailure::Silent).status, 504);
    }
}
