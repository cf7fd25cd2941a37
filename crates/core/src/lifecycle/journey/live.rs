//! A live socket's part of its journey: its session is looked for before it is placed, and what the
//! app is told about it is decided once it is known where.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::facts::Facts;
use crate::lifecycle::reply::{Problem, Reply};
use crate::lifecycle::resume::{
    self, Decision, Lookup, Original, Session, StoreAnswer, StoreStep, Verdict,
};
use crate::lifecycle::trace::{Found, StepKind};
use crate::snapshot::AllocationView;

use super::{Command, Journey, Placement, Wish};

/// What is known of a live socket's session.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) session: Session,
    verdict: Option<Verdict>,
    /// Where it was last placed.
    placed_on: Option<Arc<AllocationView>>,
}

impl Live {
    pub(super) fn of(facts: &Facts) -> Option<Box<Self>> {
        facts.websocket.then(|| {
            let (id, token) = (facts.session.clone(), facts.affinity.clone());
            let session = Session { id, token, ..Session::default() };
            Box::new(Self { session, verdict: None, placed_on: None })
        })
    }
}

impl Journey {
    /// The live session's id.
    pub fn session(&self) -> Option<&SessionId> {
        self.live.as_ref()?.session.id.as_ref()
    }
    pub(super) fn found_session(&mut self, record: Lookup) {
        if let Some(live) = &mut self.live {
            live.session.record = record;
        }
    }
    pub(super) fn store_answered(&mut self, answer: StoreAnswer) {
        if let Some(live) = &mut self.live {
            live.session.store = answer;
        }
    }
    pub(super) fn not_admitted(&mut self, pick: u64, now: Mono) -> Command {
        let detail = "As many live sockets are open, or wait to be accepted, as may.";
        let wait = Duration::from_millis(1000 + pick % 4000);
        self.tell(Reply::refused(Problem::Saturated, 503, detail).retry_after(wait), now)
    }

    /// The host is another environment's since the last decision: nothing that was found out about
    /// the session is about this one.
    pub(super) fn environment_changed(&mut self) {
        self.facts.affinity = None;
        if let Some(live) = &mut self.live {
            let id = live.session.id.take();
            live.session = Session { id, ..Session::default() };
        }
    }

    pub(super) fn store_was_asked(&self) -> bool {
        self.live.as_ref().is_some_and(|l| l.session.store != StoreAnswer::NotAsked)
    }
    /// What the app is told about a live socket's session.
    pub fn verdict(&self) -> Option<Verdict> {
        self.live.as_ref()?.verdict
    }
    /// Where it would like to go.
    pub fn wish(&self) -> Wish {
        let prior = match &self.live {
            Some(live) => live.session.near(),
            None => self.facts.affinity.as_ref(),
        };
        Wish {
            allocation: prior.map(|p| p.allocation.clone()),
            ring: self.facts.session.as_ref().map(|s| s.name().ring()),
        }
    }

    pub(super) fn session_found(&mut self, now: Mono) {
        let Some(live) = &self.live else { return };
        let session = &live.session;
        let found = Found {
            prior: session.prior().cloned(),
            original: session.prior().map(|p| Original::of(&self.view, p)),
            browser_on: session.token.as_ref().map(|t| t.allocation.clone()),
            has_id: session.id.is_some(),
            record_unavailable: session.record == Lookup::Unavailable,
        };
        self.trace.push(now, StepKind::FindSession(Box::new(found)));
    }

    /// Decides about the session of a live socket that is to go to `placed`; `None` for any other request.
    pub(super) fn decide_session(&self, placed: &Placement) -> Option<Decision> {
        let live = self.live.as_ref()?;
        let route = self.route().map(|r| &r.class);
        Some(resume::decide(&live.session, route, &self.view, &placed.allocation))
    }

    pub(super) fn session_decided(
        &mut self,
        placed: &Placement,
        decision: Option<Decision>,
        now: Mono,
    ) {
        let (Some(live), Some(decision)) = (&mut self.live, decision) else { return };
        let (step, verdict) = match decision {
            Decision::Decided(step, verdict) => (step, Some(verdict)),
            // The request is only explained: the store is not asked.
            Decision::AskStore => (StoreStep::Asked(StoreAnswer::NotAsked), None),
        };
        live.placed_on = Some(Arc::clone(&placed.allocation));
        live.verdict = verdict;
        let written = live.session.prior().and_then(|p| p.schema);
        self.trace.push(now, StepKind::CheckStore(step));
        let schemas = Box::new((written, self.view.schema));
        self.trace.push(now, StepKind::Hydrate { verdict, schemas });
    }

    /// Whether `status` means that the app accepted a live socket; then the step is recorded.
    pub(super) fn pinned(&mut self, now: Mono, status: Option<u16>) -> bool {
        let accepted = matches!(status, Some(101) | None);
        let Some(pinned) =
            self.live.as_ref().filter(|_| accepted).and_then(|l| l.placed_on.clone())
        else {
            return false;
        };
        self.trace.push(now, StepKind::Pin(pinned));
        true
    }
}
