//! The steps a request would take now, found by the same decisions that serve it, without sending,
//! reserving, waking or counting anything. What only time can tell is said as "would be".

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::snapshot::EnvView;

use super::asset::{Action, Visit};
use super::enter::{Classified, Entered};
use super::facts::Facts;
use super::journey::{Ask, Carrier, Event, Go, Journey, Look, drive};
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
    let mut journey = Journey::begin(facts, classified);
    // Whether this edge has the secret is known where it is kept; the steps are those of one that has.
    journey.read_head(headers, true, wall);
    let mut carrier = Explaining { view, record, now };
    let go = {
        let driven = pin!(drive(&mut journey, &mut carrier));
        driven.poll(&mut Context::from_waker(Waker::noop()))
    };
    // It waits for nothing, and is over at once.
    if go == Poll::Ready(Go::Connect) {
        journey.would_answer(now);
    }
    journey.trace
}

/// Carries a request nowhere: it looks, and does nothing that is asked.
struct Explaining {
    view: Arc<EnvView>,
    record: Lookup,
    now: Mono,
}

impl Carrier for Explaining {
    fn now(&self) -> Mono {
        self.now
    }

    fn look(&self, _journey: &Journey) -> Look {
        Look { view: Some(Arc::clone(&self.view)), pick: 0, reserves: false }
    }

    fn perform(&mut self, ask: Ask, _journey: &Journey) -> impl Future<Output = Event> + Send {
        std::future::ready(match ask {
            Ask::FindSession => Event::Session(self.record.clone()),
            Ask::Enter { .. } => Event::Entered,
            _ => Event::WouldBe,
        })
    }
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
