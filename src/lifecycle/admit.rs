//! The gate: a request's own state machine. The shell asks [`Journey::decide`], performs what it
//! says, and feeds back what came of it; every path ends in a forward, an answer, or the client
//! having left.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::contract::{Route, RouteClass, Unrouted};
use crate::id::{AllocationId, OperationId};
use crate::snapshot::EnvView;

use super::classify::{Classified, Posture, under, wakes};
use super::facts::{Facts, IdempotencyKey};
use super::idempotency::DEFAULT_WHOLE_BODY;
use super::place::{self, Choice, Placement};
use super::recorded::OnRecord;
use super::reply::{Forwarded, Problem, Reply};
use super::retry;
use super::trace::{KeyVerdict, StepKind, Trace};

mod live;
mod sent;
mod wait;

use live::{AskFirst, Live};

/// What the shell is to do.
#[derive(Debug)]
pub enum Next {
    /// Send it there.
    Forward(Placement),
    /// Make or join a wake of the environment, then report with [`Journey::woke`]. When `hold`,
    /// take a place in the hold queue **before** asking, so that no release is missed.
    Wake {
        /// Wait for it.
        hold: bool,
    },
    /// Wait in the environment's hold queue until the deadline, then report with
    /// [`Journey::held`].
    Hold,
    /// Ask the app's durable store whether the live session is there, report with
    /// [`Journey::store_answered`], and decide again with this place.
    AskStore(Placement),
    /// Read the whole body, at most `limit` bytes, then report with [`Journey::body_read`] or
    /// [`Journey::body_refused`]. `granted` goes into the next decision.
    ReadBody {
        /// Bytes.
        limit: u64,
        /// A place that is kept meanwhile.
        granted: Option<Placement>,
    },
    /// Take the key in the ledger while nothing is sent, then report with [`Journey::reserved`].
    Reserve,
    /// Answer 200 for an event that was accepted before.
    Acknowledge,
    /// Answer with the stored response, then report with [`Journey::replayed`].
    Replay,
    /// Answer it.
    Reply(Reply),
}

/// What came of asking for a wake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woke {
    /// There is an operation; it may be over already.
    Operation {
        /// Its id.
        id: OperationId,
        /// It was made for this request.
        created: bool,
    },
    /// The environment was ready before it could be asked for.
    Ready,
    /// A back-off runs; the snapshot will show it.
    BackingOff,
    /// Shared truth could not be read or changed.
    Unavailable,
}

/// One request on its way.
#[derive(Debug)]
pub struct Journey {
    pub(super) facts: Facts,
    pub(super) view: Arc<EnvView>,
    pub(super) route: usize,
    pub(super) posture: Posture,
    wakes: bool,
    deadline: Mono,
    excluded: Vec<AllocationId>,
    pub(super) attempts: u32,
    operation: Option<OperationId>,
    hold: Hold,
    /// Only of a live socket.
    live: Option<Box<Live>>,
    pub(super) explaining: bool,
    pub(super) record: Option<OnRecord>,
    /// The contract and the route under which the head of an unsafe request was read.
    pub(super) read_under: Option<(Arc<EnvView>, usize)>,
    /// What was decided so far.
    pub trace: Trace,
}

#[derive(Debug, Default)]
struct Hold {
    since: Option<Mono>,
    total: Duration,
    for_wake: bool,
    /// It has waited before: its turn has come, and the queue is not overtaken.
    waited: bool,
}

impl Journey {
    /// Begins. The deadline is absolute: the contract's wake budget from when the request came.
    pub fn begin(facts: Facts, classified: Classified) -> Self {
        let Classified { view, route, posture, wakes } = classified;
        let class = view.contract.routes.get(route).map(|r| &r.class);
        // Elsewhere it is a plain request (RFC 9110 §7.8).
        let websocket = facts.websocket && matches!(class, Some(RouteClass::Live(_)));
        let facts = Facts { websocket, ..facts };
        Self {
            deadline: facts.received + view.contract.wake.budget,
            trace: Trace::new(facts.id, facts.received),
            live: Live::of(&facts),
            facts,
            view,
            route,
            posture,
            wakes,
            excluded: Vec::new(),
            attempts: 0,
            operation: None,
            hold: Hold::default(),
            explaining: false,
            record: None,
            read_under: None,
        }
    }

    /// The same, for a request that is never sent: nothing is reserved, woken or counted.
    pub fn begin_explaining(facts: Facts, classified: Classified) -> Self {
        Self { explaining: true, ..Self::begin(facts, classified) }
    }

    /// What is left of it at its end: the request, whose it was, and what was decided.
    pub fn into_parts(self) -> (Facts, Arc<EnvView>, Trace) {
        (self.facts, self.view, self.trace)
    }

    /// What the request is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
    /// The environment, as last seen.
    pub fn view(&self) -> &Arc<EnvView> {
        &self.view
    }
    /// What its class means.
    pub fn posture(&self) -> Posture {
        self.posture
    }
    /// The route of the contract it takes.
    pub fn route(&self) -> Option<&Route> {
        self.view.contract.routes.get(self.route)
    }
    /// Whether it keeps the app awake.
    pub fn wakes(&self) -> bool {
        self.wakes
    }
    /// The route's class, for metrics.
    pub fn class(&self) -> &'static str {
        self.view.contract.routes.get(self.route).map_or("page", |r| r.class.name())
    }
    /// When waiting ends.
    pub fn deadline(&self) -> Mono {
        self.deadline
    }
    /// How long it was held, all holds together.
    pub fn held_for(&self) -> Duration {
        self.hold.total
    }
    /// The operation it waited for.
    pub fn operation(&self) -> Option<&OperationId> {
        self.operation.as_ref()
    }
    /// Allocations whose connection failed; they are not tried again for this request.
    pub fn excluded(&self) -> &[AllocationId] {
        &self.excluded
    }
    /// Whether it may wait while nothing is ready: an unsafe request without idempotency waits for
    /// a place in an app that is up, never for a start.
    pub fn waits_cold(&self) -> bool {
        match self.posture {
            Posture::Safe | Posture::AppIdempotent | Posture::EdgeIdempotent => true,
            Posture::Webhook => self.delivery_waits(),
            Posture::Unsafe => false,
        }
    }
    /// Attempts begun.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Decides on `view`, which is the environment in the newest snapshot, or `None` when the
    /// host has no owner any more. `granted` is a place that the hold queue took for this request.
    /// `pick` is 64 random bits.
    pub fn decide(
        &mut self,
        view: Option<&Arc<EnvView>>,
        granted: Option<Placement>,
        now: Mono,
        pick: u64,
    ) -> Next {
        // The contract that counts is that of the owner who would get it, not of one before.
        let found = view.ok_or(Unrouted::NoRoute).and_then(|v| Ok((v, under(v, &self.facts)?)));
        let (view, (route, posture)) = match found {
            Ok(found) => found,
            Err(why) => return self.answer(now, Reply::unrouted(why, &self.facts.host)),
        };
        let first = self.trace.steps.is_empty();
        let changed = posture != self.posture;
        let other_rules = self.reads_under_other_rules(view, route, posture);
        (self.route, self.posture) = (route, posture);
        self.wakes = wakes(view, route, &self.facts);
        // After the store's answer, the owner is told again only if it changed meanwhile.
        let unchanged =
            self.store_was_asked() && granted.is_some() && Arc::ptr_eq(view, &self.view);
        if view.environment != self.view.environment {
            self.environment_changed();
        }
        self.view = Arc::clone(view);
        if first || !unchanged {
            self.trace.push(now, StepKind::LoadOwner(Arc::clone(view)));
        }
        if first {
            self.find_session(now);
        }
        if other_rules {
            return self.answer(now, retry::rules_changed());
        }
        // What the owner's contract refuses, cold and hot alike.
        let too_long = self.check_length();
        let refused =
            too_long.or_else(|| if first || changed { self.check_contract(now) } else { None });
        if let Some(refused) = refused {
            return self.answer(now, refused);
        }
        let granted = granted.filter(|p| self.still_ready(p));
        let granted = match self.follow_record(granted, now) {
            Ok(granted) => granted,
            Err(next) => return next,
        };
        if let Some(placed) = granted {
            return self.forward(now, placed);
        }
        // Those who wait go first: a newcomer does not overtake the queue.
        let overtaking = !self.hold.waited && view.live.waiting() > 0;
        let choice = if overtaking && !view.ready.is_empty() && !self.explaining {
            Choice::Full
        } else {
            place::choose(view, &self.wish(), &self.excluded, pick, !self.explaining)
        };
        match choice {
            Choice::Place(placed) => self.forward(now, placed),
            _ if now >= self.deadline => {
                let reply = self.too_late(now, pick);
                self.answer(now, reply)
            }
            // The edge can bring none up: there is nothing to wait for.
            Choice::Refused if view.external => self.answer(now, retry::not_forwarded()),
            // It is not worth a wake, and so not worth a wait that may end in one.
            Choice::Cold if !self.wakes => {
                let reply = self.asleep(now);
                self.answer(now, reply)
            }
            Choice::Full | Choice::Refused if !self.wakes => {
                let reply = self.too_late(now, pick);
                self.answer(now, reply)
            }
            Choice::Full | Choice::Refused => self.hold(now, false),
            Choice::Cold => self.cold(now, pick),
        }
    }

    /// A grant is honoured only inside the owner's authority as it is **now**.
    fn still_ready(&self, placed: &Placement) -> bool {
        self.view.ready.iter().any(|a| a.id == placed.allocation.id)
            && !self.excluded.contains(&placed.allocation.id)
    }

    fn forward(&mut self, now: Mono, placed: Placement) -> Next {
        let decided = match self.decide_session(&placed) {
            Err(AskFirst) => return Next::AskStore(placed),
            Ok(decided) => decided,
        };
        self.attempts += 1;
        self.trace.push(now, StepKind::Select(Arc::clone(&placed.allocation), placed.affinity));
        self.session_decided(now, &placed, decided);
        Next::Forward(placed)
    }

    pub(super) fn answer(&mut self, now: Mono, reply: Reply) -> Next {
        let reply = Reply { operation: reply.operation.or(self.operation.clone()), ..reply };
        self.trace.answered(now, &reply);
        Next::Reply(reply)
    }

    fn hold(&mut self, now: Mono, for_wake: bool) -> Next {
        self.hold.since = Some(now);
        self.hold.for_wake = for_wake;
        self.hold.waited = true;
        Next::Hold
    }

    fn max_body(&self) -> Option<u64> {
        let of_route = self.view.contract.routes.get(self.route).and_then(|r| r.max_body);
        of_route.or_else(|| self.reads_whole_body().then(|| self.default_whole_body()))
    }

    /// The bound of a body that is read whole.
    pub(super) fn whole_body_limit(&self) -> u64 {
        self.max_body().unwrap_or_else(|| self.default_whole_body())
    }

    fn default_whole_body(&self) -> u64 {
        self.webhook().map_or(DEFAULT_WHOLE_BODY, |w| super::webhook::manners(w).largest)
    }

    /// A body that says it is too long is refused before anything wakes.
    fn check_length(&self) -> Option<Reply> {
        let most = self.max_body()?;
        (self.facts.content_length? > most).then(|| Reply::content_too_large(most))
    }

    /// `sent` bytes of the body have come, and are on their way to the app. `Some` when that is
    /// more than the route takes: the app gets no more of it.
    pub fn body_grew(&mut self, sent: u64, now: Mono) -> Option<Reply> {
        let most = self.max_body().filter(|most| sent > *most)?;
        let reply =
            Reply { forwarded: Forwarded::OutcomeUnknown, ..Reply::content_too_large(most) };
        self.trace.answered(now, &reply);
        Some(reply)
    }

    /// What followed cannot be read as a body's chunks (RFC 9112 §7.1). What of it was sent cannot be
    /// taken back.
    pub fn body_malformed(&mut self, now: Mono) -> Reply {
        let reply = Reply { forwarded: Forwarded::OutcomeUnknown, ..Reply::body_malformed() };
        self.trace.answered(now, &reply);
        reply
    }

    /// Nothing more of the body came in time. What of it was sent cannot be taken back.
    pub fn body_stalled(&mut self, now: Mono) -> Reply {
        let detail = "The body came too slowly; what had come of it may have reached the app.";
        let reply = Reply {
            forwarded: Forwarded::OutcomeUnknown,
            ..Reply::refused(Problem::RequestTimeout, 408, detail)
        };
        self.trace.answered(now, &reply);
        reply
    }

    /// What the contract asks of an unsafe request, cold and hot alike.
    fn check_contract(&mut self, now: Mono) -> Option<Reply> {
        if self.posture == Posture::Safe {
            return None;
        }
        let classify = StepKind::Classify(self.posture, Arc::clone(&self.view), self.route);
        self.trace.push(now, classify);
        let (verdict, reply) = match (self.posture, &self.facts.key) {
            (Posture::Webhook, _) => return self.check_signature(now),
            (Posture::AppIdempotent, IdempotencyKey::Present(_)) => (KeyVerdict::Present, None),
            (Posture::AppIdempotent | Posture::EdgeIdempotent, IdempotencyKey::Absent) => (
                KeyVerdict::Missing,
                Some(Reply::refused(
                    Problem::IdempotencyKeyMissing,
                    400,
                    "Send an Idempotency-Key header: a string of 1 to 255 characters that is \
                     new for each action and the same for each retry of it.",
                )),
            ),
            (Posture::AppIdempotent | Posture::EdgeIdempotent, IdempotencyKey::Invalid) => (
                KeyVerdict::Invalid,
                Some(Reply::refused(
                    Problem::IdempotencyKeyInvalid,
                    400,
                    "The Idempotency-Key header must be one string of 1 to 255 characters.",
                )),
            ),
            (Posture::EdgeIdempotent, IdempotencyKey::Present(_)) => match self.no_principal() {
                Some(reply) => (KeyVerdict::NoPrincipal, Some(reply)),
                None => (KeyVerdict::Present, None),
            },
            (Posture::Unsafe | Posture::Safe, _) => (KeyVerdict::NotAsked, None),
        };
        self.trace.push(now, StepKind::CheckKey(verdict));
        reply
    }
}
