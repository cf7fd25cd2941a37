//! What is kept of an unsafe request once it has ended, so that an operator can say later what was
//! decided about it and why. Made from its steps; part of [`Journey`].

use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::store::record::ledger::Evidence;

use super::admit::Journey;
use super::classify::Posture;
use super::facts::{IdempotencyKey, kept_method};
use super::idempotency::key_hash;
use super::reply::Reply;
use super::trace::{Outcome, StepKind};

impl Journey {
    /// The evidence of this request; none for a safe one. `reply` is what the edge answers itself,
    /// `status` what was sent or is about to be.
    pub fn evidence_of(
        &self,
        reply: Option<&Reply>,
        status: Option<u16>,
        now: Mono,
        wall: Wall,
    ) -> Option<Evidence> {
        if self.posture() == Posture::Safe {
            return None;
        }
        let route = self.view.contract.routes.get(self.route)?;
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let key = match (self.event(), &self.facts.key) {
            (Some(event), _) => Some(event),
            (None, IdempotencyKey::Present(key)) => Some(key.as_str()),
            _ => None,
        };
        let told = self.trace.steps.iter().rev().find_map(|s| match s.kind {
            StepKind::Evidence { what, .. } => Some(what),
            _ => None,
        });
        let mut why = match (told, reply) {
            (Some(what), _) => what.to_owned(),
            (None, Some(reply)) => reply.problem.title().to_owned(),
            (None, None) if self.trace.outcome == Outcome::CutOff => "the answer broke off".into(),
            (None, None) => String::new(),
        };
        if let Some(loss) = self.loss(status) {
            why.push_str("; ");
            why.push_str(loss);
        }
        Some(Evidence {
            at: wall,
            request: self.facts.id.to_string(),
            environment: self.view.environment.clone(),
            route: route.path.to_string(),
            class: route.class.name().to_owned(),
            method: kept_method(&self.facts.method).to_owned(),
            decision: self.trace.outcome.name().to_owned(),
            forwarded: self.forwarded_text(reply, status).to_owned(),
            why,
            status,
            key_hash: key.map(key_hash),
            event: self.event().map(str::to_owned),
            attempt: self.attempt(),
            operation: self.operation().cloned(),
            held_us: us(self.held_for()),
            total_us: us(now.since(self.facts.received)),
        })
    }

    /// Which of three is true of this request, as far as its steps tell.
    fn forwarded_text(&self, reply: Option<&Reply>, status: Option<u16>) -> &'static str {
        match (reply, self.trace.outcome) {
            (Some(reply), _) => reply.forwarded.text(),
            (None, Outcome::Replayed | Outcome::Duplicate) => "answered by the app",
            (None, _) if status.is_some() => "answered by the app",
            // The client left. What was placed may have been sent.
            (None, _) if self.attempts() > 0 => "forwarded, outcome unknown",
            (None, _) => "not forwarded",
        }
    }
}
