//! The steps a request would take now, found by the same decisions that serve it, without sending,
//! reserving, waking or counting anything. What only time can tell is said as "would be".

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::store::record::{WakePhases, WakeState};

use super::admit::{Journey, Next};
use super::asset::{Action, Visit};
use super::classify::{Classified, Posture};
use super::enter::Entered;
use super::facts::Facts;
use super::reply::Problem;
use super::resume::Lookup;
use super::trace::{Outcome, StepKind, Trace};

/// The trace of a request that has entered. `headers` are those it was read from, `record` is that of its
/// live session, where it has one.
pub fn explain(
    entered: Entered,
    headers: &HeaderMap,
    record: Lookup,
    now: Mono,
    wall: Wall,
) -> Trace {
    match entered {
        Entered::Edge(answered) => answered.trace,
        Entered::Asset(visit) => asset_later(*visit, now),
        Entered::Route { facts, classified, .. } => {
            on_its_route(*facts, classified, headers, record, now, wall)
        }
    }
}

fn on_its_route(
    facts: Facts,
    classified: Classified,
    headers: &HeaderMap,
    record: Lookup,
    now: Mono,
    wall: Wall,
) -> Trace {
    let view = Arc::clone(&classified.view);
    let mut journey = Journey::begin_explaining(facts, classified);
    journey.recorded(record);
    // Whether this edge has the secret is known where it is kept; the steps are those of one that has.
    journey.read_head(headers, true, wall);
    match journey.decide(Some(&view), None, now, 0) {
        Next::Forward(_) | Next::AskStore(_) => journey.served(None, now),
        // An explanation asks no record and reads no body; these say so by answering nothing.
        Next::Reply(_)
        | Next::ReadBody { .. }
        | Next::Reserve
        | Next::Replay
        | Next::Acknowledge => {}
        Next::Wake { hold } => {
            let safe = journey.posture() == Posture::Safe;
            journey.trace.push(now, StepKind::Wake { operation: None, created: true, safe });
            if hold {
                woken_later(&mut journey, now, None);
            } else {
                let problem = match journey.posture() {
                    Posture::Webhook => Problem::WakeDeferred,
                    _ => Problem::AppCold,
                };
                journey.trace.push(now, StepKind::Answer(problem, 503));
                journey.trace.outcome = Outcome::Refused(problem);
            }
        }
        Next::Hold => {
            let state = view.operation.as_ref().filter(|_| view.ready.is_empty()).map(|o| o.state);
            woken_later(&mut journey, now, state);
        }
    }
    journey.trace
}

fn asset_later(visit: Visit, now: Mono) -> Trace {
    let Visit { action, mut trace, .. } = visit;
    if let Action::Serve(plan) = action {
        trace.push(now, StepKind::ServeAsset { status: None, source: plan.representation });
        trace.push(now, StepKind::NoAllocation);
        trace.outcome = Outcome::Asset;
    }
    trace
}

fn woken_later(journey: &mut Journey, now: Mono, state: Option<WakeState>) {
    let view = Arc::clone(journey.view());
    let asleep = view.ready.is_empty();
    if asleep {
        let thaw_us = view.in_memory().map(|_| 0);
        let phases = WakePhases { thaw_us, ..WakePhases::default() };
        journey.trace.push(now, StepKind::Start { view, state, phases: Box::new(phases) });
    }
    let state = asleep.then_some(state.unwrap_or(WakeState::WakeRequested));
    journey.trace.push(now, StepKind::Hold { held: Duration::ZERO, end: None, state });
    journey.ran(None, now);
    journey.trace.outcome = if asleep { Outcome::Woken } else { Outcome::Held };
    journey.attach_evidence(None, now);
}
