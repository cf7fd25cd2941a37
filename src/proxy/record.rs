//! Closes a request's trace and counts it.

use std::sync::Arc;

use crate::clock::Mono;
use crate::lifecycle::admit::Journey;
use crate::lifecycle::trace::{Outcome, Trace};
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

/// Closes `journey`, which ended now.
pub fn close(gate: &Gate, telemetry: &Telemetry, journey: Journey, end: End) {
    let now = gate.clock.now();
    close_at(gate, telemetry, journey, end, now);
}

/// The same; the app's answer began at `answered`.
pub fn close_at(
    gate: &Gate,
    telemetry: &Telemetry,
    mut journey: Journey,
    end: End,
    answered: Mono,
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
        End::Replied { status } => status,
        End::Left { status } => {
            journey.client_left();
            status
        }
    };
    let held = journey.held_for();
    let operation = journey.operation().cloned();
    let class = journey.class();
    let view = Arc::clone(journey.view());
    let facts = journey.facts();
    let (id, received) = (facts.id, facts.received);
    let record = TraceRecord {
        method: facts.method.clone(),
        host: facts.host.clone(),
        path: facts.path.clone(),
        class,
        environment: Some(view.environment.clone()),
        status,
        operation,
        held,
        total: now.since(received),
        at: gate.clock.wall(),
        trace: std::mem::replace(&mut journey.trace, Trace::new(id, now)),
    };
    debug_assert_ne!(record.trace.outcome, Outcome::Open);
    if let Some(error) = record.trace.outcome.evidence(status) {
        view.tally.count(error);
    }
    telemetry.finished(record, &view.live);
}
