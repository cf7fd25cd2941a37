//! Closes a request's trace and counts it.

use crate::clock::Mono;
use crate::lifecycle::admit::Journey;
use crate::lifecycle::origin::customer;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::retry::UpstreamFailure;
use crate::lifecycle::trace::Outcome;
use crate::telemetry::{Telemetry, TraceRecord};

use super::gate::Gate;

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// By the app's answer.
    Answered {
        /// Its status, if one was sent.
        status: Option<u16>,
    },
    /// By the app's answer, which broke off.
    BrokeOff {
        /// Its status.
        status: Option<u16>,
        /// How the app failed.
        failure: UpstreamFailure,
    },
    /// By an answer of the edge's own, which the journey has recorded.
    Replied {
        /// Its status, if one was sent.
        status: Option<u16>,
    },
    /// By its client.
    Left {
        /// The status that was sent, if any.
        status: Option<u16>,
    },
}

/// What the edge answered itself, and whether evidence of it is kept already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told<'a> {
    /// The answer.
    pub reply: Option<&'a Reply>,
    /// Its evidence is kept.
    pub kept: bool,
}

/// Closes `journey`, which ended now.
pub fn close(gate: &Gate, telemetry: &Telemetry, journey: Journey, end: End) {
    let now = gate.clock.now();
    close_at(gate, telemetry, journey, end, now, Told::default());
}

/// The same; the app's answer began at `answered`.
pub fn close_at(
    gate: &Gate,
    telemetry: &Telemetry,
    mut journey: Journey,
    end: End,
    answered: Mono,
    told: Told<'_>,
) {
    let now = gate.clock.now();
    if journey.wakes() {
        journey.view().live.touch(now);
    }
    let status = match end {
        End::Answered { status } => {
            journey.served(status, answered);
            status
        }
        End::BrokeOff { status, failure } => {
            journey.broke_off(status, answered, failure, now);
            status
        }
        End::Replied { status } => status,
        End::Left { status } => {
            journey.client_left();
            status
        }
    };
    let wall = gate.clock.wall();
    let evidence = journey.evidence_of(told.reply, status, now, wall).filter(|_| !told.kept);
    match evidence {
        Some(evidence) if evidence.is_refusal() => {
            let origin = journey.facts().origin.as_ref();
            gate.audit.refused(evidence, origin.map(|o| customer(o.address)));
        }
        Some(evidence) => gate.audit.soon(evidence),
        None => {}
    }
    if let Some(counted) = journey.counted(status) {
        telemetry.delivery(counted);
    }
    let held = journey.held_for();
    let operation = journey.operation().cloned();
    let class = journey.class();
    let counts = journey.counts(status);
    let (facts, view, mut trace) = journey.into_parts();
    trace.parent = facts.parent;
    trace.client = facts.origin.map(|o| o.address);
    let record = TraceRecord {
        method: facts.method,
        host: facts.host,
        path: facts.spelled.unwrap_or(facts.path),
        class,
        environment: Some(view.environment.clone()),
        status,
        operation,
        held,
        total: now.since(facts.received),
        at: wall,
        trace,
    };
    debug_assert_ne!(record.trace.outcome, Outcome::Open);
    if let Some(error) = counts {
        view.tally.count(error);
    }
    telemetry.finished(record, &view.live);
}
