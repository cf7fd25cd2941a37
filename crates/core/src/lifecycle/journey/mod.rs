//! One request as a state machine. [`Journey::on`] takes what happened and says what to do next; every
//! path ends in a request that is sent, an answer, or a client that has left. [`drive`] performs what it
//! says, with a [`Carrier`]: the connection of a client, a socket, an explanation that does nothing, or the
//! simulation. The other files here add to [`Journey`], each for one part: `decide` chooses, `wait` wakes
//! and holds, `live` is about sockets, `keyed` about keys, `on_record` about events and what is kept of a
//! request, `delivery` about a provider's signature, `sent` about what came of sending.
//!
//! A cold request is a hot request plus one bounded wait: after the wait, it is decided again, on the
//! newest snapshot.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Mono;
use crate::contract::{Posture, Route, RouteClass};
use crate::id::{AllocationId, OperationId};
use crate::record::ledger::StoredResponse;
use crate::snapshot::EnvView;

use super::answer::Answer;
use super::enter::Classified;
use super::facts::Facts;
use super::fields::IdempotencyKey;
use super::idempotency::{Claim, ExistingRecord};
use super::reply::Reply;
use super::resume::{Decision, Lookup, StoreAnswer};
use super::trace::{HoldEnd, Outcome, StepKind, Trace, UpstreamFailure};
use super::webhook::Refusal;

mod decide;
mod delivery;
mod keyed;
mod live;
mod on_record;
mod sent;
mod wait;

pub use decide::{Choice, Placement, Wish, choose};
pub use delivery::DeliveryMetric;
pub use sent::MAX_ATTEMPTS;

use live::Live;
use on_record::OnRecord;

/// Where a request is. What may be reported in a state is what [`Journey::on`] matches there.
#[derive(Debug)]
enum State {
    /// It came. To `FindingSession` for a socket that names a session, else to `Deciding`.
    New,
    /// The socket's routing record is read. To `Deciding`.
    FindingSession,
    /// The newest snapshot is to be looked at. To every state of the next six, to `Placed` or `Told`.
    Deciding {
        /// It was not decided before.
        first: bool,
        /// A place that the hold queue took for it, or that it kept meanwhile.
        granted: Option<Placement>,
    },
    /// The app's durable store is asked whether the session is there. To `Deciding`, with its place.
    AskingStore(Placement),
    /// Its whole body is read, before anything is sent. To `Deciding`, or `Told` where it is refused.
    ReadingBody { granted: Option<Placement>, since: Mono },
    /// The key is taken in the ledger, while nothing is sent. To `Deciding`, or `Told`.
    Reserving,
    /// The stored response of the key's first request is read. To `Told`.
    Replaying,
    /// A place in the hold queue is taken. To `Waking` or `Held`; to `Told` where the queue is full.
    Entering {
        /// A wake is asked for then.
        wakes: bool,
    },
    /// A wake is made or joined. To `Held`, or `Told`.
    Waking {
        /// It waits for it, with a place in the queue.
        holds: bool,
    },
    /// It waits in the queue. To `Deciding`, `Told`, or `Gone`.
    Held,
    /// It has a place, and a connection is made. To `Recording` or `Sent`; to `Deciding` or `Told` where
    /// none can be had.
    Placed(Placement),
    /// The ledger writes it as forwarded. To `Sent`; to `Deciding` or `Told` where a record is in the way
    /// or the ledger fails.
    Recording(Placement),
    /// Something of it may have reached the app. To `Answering` or `Told`; to `Deciding` where the app says
    /// that it did not look at it, and a safe one where [`Journey::may_resend`] says so.
    Sent(Option<Placement>),
    /// The app's answer began. To `Told` where the edge cuts the request's body off, or where nothing of the
    /// answer had reached the client when it failed.
    Answering {
        began: Mono,
        /// Its place, until it is over.
        placed: Option<Placement>,
    },
    /// The edge answers. To `Answering` where it had cut the body off, and the app's answer is there.
    Told(Box<Answer>),
    /// Its client has left; nothing is answered.
    Gone,
}

/// One request on its way.
#[derive(Debug)]
pub struct Journey {
    facts: Facts,
    view: Arc<EnvView>,
    route: usize,
    posture: Posture,
    may_wake: bool,
    deadline: Mono,
    excluded: Vec<AllocationId>,
    placements_tried: u32,
    operation: Option<OperationId>,
    state: State,
    hold: Hold,
    /// Its posture is in the trace.
    posture_shown: bool,
    /// Only of a live socket.
    live: Option<Box<Live>>,
    on_record: Option<OnRecord>,
    /// The contract and the route under which the head of an unsafe request was read.
    read_under: Option<(Arc<EnvView>, usize)>,
    /// What an operator will find on record about a delivery.
    reason: Option<&'static str>,
    /// The app's answer to a call says, in gRPC's own words, that the app failed.
    call_failed: bool,
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
    /// Begins. The deadline is absolute: the contract's wake budget from when the request came, without the
    /// time that its body took where that is read before it is placed, or its client's patience where that is
    /// shorter.
    pub fn begin(facts: Facts, classified: Classified) -> Self {
        let Classified { view, route, posture, may_wake } = classified;
        let class = view.contract.routes.get(route).map(|r| &r.class);
        let budget = view.contract.wake.budget;
        // Elsewhere it is a plain request (RFC 9110 §7.8).
        let websocket = facts.websocket && matches!(class, Some(RouteClass::Live(_)));
        let facts = Facts { websocket, ..facts };
        Self {
            deadline: facts.received + facts.patience().unwrap_or(budget).min(budget),
            trace: Trace::new(facts.id, facts.received),
            live: Live::of(&facts),
            facts,
            view,
            route,
            posture,
            may_wake,
            excluded: Vec::new(),
            placements_tried: 0,
            operation: None,
            state: State::New,
            hold: Hold::default(),
            posture_shown: false,
            on_record: None,
            read_under: None,
            reason: None,
            call_failed: false,
        }
    }

    /// What is to be done for it now: at its beginning, after a connection failed, and after
    /// [`Self::may_resend`] allowed another attempt.
    pub fn next_command(&mut self) -> Command {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::New if self.session().is_some() => {
                self.state = State::FindingSession;
                Command::Do(Ask::FindSession)
            }
            State::New => self.look(true, None),
            State::Deciding { first, granted } => self.look(first, granted),
            // What was sent of an unsafe request is never sent again, whatever its carrier believes.
            State::Sent(_) if self.posture == Posture::Safe => self.look(false, None),
            other => {
                let told = matches!(other, State::Told(_));
                self.state = other;
                Command::Go(if told { Go::Tell } else { Go::Stop })
            }
        }
    }

    /// What to do after `event`, which happened at `now`.
    pub fn on(&mut self, event: Event, now: Mono) -> Command {
        match (std::mem::replace(&mut self.state, State::Gone), event) {
            (State::Told(answer), Event::Left) => {
                self.state = State::Told(answer);
                Command::Go(Go::Stop)
            }
            (_, Event::Left) => {
                self.trace.outcome = Outcome::ClientLeft;
                Command::Go(Go::Stop)
            }
            (_, Event::Refused(reply)) => self.tell(*reply, now),
            (State::FindingSession, Event::Session(found)) => {
                self.found_session(found);
                self.look(true, None)
            }
            (State::Deciding { first, granted }, Event::Look(look)) => {
                self.decide(first, granted, look, now)
            }
            (State::AskingStore(placed), Event::Store(answer)) => {
                self.store_answered(answer);
                self.look(false, Some(placed))
            }
            (State::AskingStore(placed), Event::WouldBe) => {
                self.placed(placed, Some(Decision::AskStore), now)
            }
            (State::ReadingBody { granted, since }, Event::Body(examined)) => {
                self.extend_hold(now.since(since));
                self.body_read(examined, granted, now)
            }
            (State::ReadingBody { granted, .. }, Event::WouldBe) => self.body_unread(granted, now),
            (State::ReadingBody { .. }, Event::BodyRefused(why)) => self.body_refused(why, now),
            (State::Reserving, Event::Reserved(found)) => self.reserved(found, now),
            (State::Reserving, Event::WouldBe) => self.has_key(),
            (State::Replaying, Event::Stored(stored)) => self.stored(stored, now),
            (State::Entering { wakes: true }, Event::Entered) => {
                self.state = State::Waking { holds: true };
                Command::Do(Ask::Wake)
            }
            (State::Entering { wakes: false }, Event::Entered) => self.wait(),
            (State::Waking { holds }, Event::Woke(woke)) => self.woke(&woke, holds, now),
            (State::Waking { holds }, Event::WouldBe) => self.would_wake(holds, now),
            (State::Entering { .. } | State::Held, Event::Held { end, granted, look }) => {
                self.held(end, granted, look, now)
            }
            (State::Held, Event::WouldBe) => self.would_wait(now),
            (State::Placed(_), Event::NotAdmitted { pick }) => self.not_admitted(pick, now),
            (State::Placed(placed), Event::ConnectFailed) => self.connect_failed(&placed, now),
            (State::Placed(placed), Event::Connected) => self.connected(placed),
            (State::Recording(placed), Event::Recorded(recorded)) => {
                self.recorded(recorded, placed, now)
            }
            (State::Sent(placed), Event::Unprocessed { again }) => {
                self.unprocessed(placed, again, now)
            }
            (State::Sent(_), Event::Failed(failure)) => self.failed(failure, now),
            (State::Answering { .. }, Event::Failed(failure)) => self.no_answer(failure, now),
            // Nothing was sent.
            (_, Event::Failed(_)) => self.tell(Reply::not_forwarded(), now),
            (State::Sent(placement), Event::Answered { status }) => {
                self.app_answered(status, placement, now)
            }
            // Its body was cut off, and the app had answered by then: its answer is the truer one.
            (State::Told(_), Event::Answered { status }) => self.app_answered(status, None, now),
            (
                State::Placed(_) | State::Sent(_) | State::Answering { .. },
                Event::BodyRefused(why),
            ) => self.body_cut_off(why, now),
            (state, event) => {
                debug_assert!(false, "{event:?} cannot happen in {state:?}");
                self.trace.push(now, StepKind::LostItsWay);
                self.tell(Reply::lost_its_way(), now)
            }
        }
    }

    fn look(&mut self, first: bool, granted: Option<Placement>) -> Command {
        self.state = State::Deciding { first, granted };
        Command::Look
    }

    fn wait(&mut self) -> Command {
        self.state = State::Held;
        Command::Do(Ask::Wait)
    }

    /// Answers `reply`, with the operation that it waited for.
    fn answer_with(&mut self, reply: Reply, now: Mono) -> Command {
        let operation = reply.operation.or(self.operation.clone());
        self.tell(Reply { operation, ..reply }, now)
    }

    /// Answers `reply`.
    fn tell(&mut self, reply: Reply, now: Mono) -> Command {
        self.trace.answered(now, &reply);
        self.state = State::Told(Box::new(Answer::Reply(reply)));
        Command::Go(Go::Tell)
    }

    /// What its client is told, where that is not the app's answer.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.state {
            State::Told(answer) => Some(answer),
            _ => None,
        }
    }
    /// The same, where it is the edge's own.
    pub fn reply(&self) -> Option<&Reply> {
        self.answer().and_then(Answer::reply)
    }
    /// Where it goes, while it has a place.
    pub fn placement(&self) -> Option<&Placement> {
        match &self.state {
            State::AskingStore(placed) | State::Placed(placed) | State::Recording(placed) => {
                Some(placed)
            }
            State::Sent(placed) | State::Answering { placed, .. } => placed.as_ref(),
            _ => None,
        }
    }
    /// Its place, for what outlives the request: its exchange with the app.
    pub fn take_placement(&mut self) -> Option<Placement> {
        match &mut self.state {
            State::Sent(placed) | State::Answering { placed, .. } => placed.take(),
            _ => None,
        }
    }
    /// Whether its client has left.
    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }
    /// When the app's answer began.
    pub fn began(&self) -> Option<Mono> {
        match self.state {
            State::Answering { began, .. } => Some(began),
            _ => None,
        }
    }

    /// What is left of it at its end: the request, whose it was, and what was decided.
    pub fn into_parts(self) -> (Facts, Arc<EnvView>, Trace) {
        (self.facts, self.view, self.trace)
    }

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
    /// Whether it may wake the app, and keeps it awake.
    pub fn may_wake(&self) -> bool {
        self.may_wake
    }
    /// The route's class, for metrics.
    pub fn class(&self) -> &'static str {
        self.route().map_or("page", |r| r.class.name())
    }
    /// When waiting ends.
    pub fn deadline(&self) -> Mono {
        self.deadline
    }
    /// How long its client waits from `now`, where it says so.
    pub fn patience_left(&self, now: Mono) -> Option<Duration> {
        Some((self.facts.received + self.facts.patience()?).since(now))
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
    /// Placements whose connection was tried.
    pub fn placements_tried(&self) -> u32 {
        self.placements_tried
    }
}

#[derive(Debug)]
pub enum Event {
    /// A socket's routing record was looked up.
    Session(Lookup),
    /// The newest snapshot was looked at.
    Look(Look),
    /// The durable store answered.
    Store(StoreAnswer),
    /// The whole body was read, and examined by [`Journey::examine`].
    Body(Examined),
    /// The body is refused: before anything was sent, or while it was on its way to the app.
    BodyRefused(BodyRefusal),
    /// The ledger was asked for the key: the record in the way, or none when it is this request's now.
    Reserved(Result<Option<Box<ExistingRecord>>, LedgerFailed>),
    /// The stored response was read; `None`: it is not there after all.
    Stored(Result<Option<StoredResponse>, LedgerFailed>),
    /// It has its position in the hold queue.
    Entered,
    /// A wake was asked for.
    Woke(Woke),
    /// A hold ended, or could not begin.
    Held {
        end: HoldEnd,
        /// A place that was taken for it.
        granted: Option<Placement>,
        /// What the newest snapshot shows.
        look: Look,
    },
    /// As many sockets wait or are open as may.
    NotAdmitted {
        /// 64 random bits.
        pick: u64,
    },
    /// No connection could be made; nothing was sent.
    ConnectFailed,
    /// There is a connection; nothing was sent yet.
    Connected,
    /// The ledger was to write that it is about to be sent: the attempt, or the record in the way.
    Recorded(Result<Recorded, LedgerFailed>),
    /// It was sent, and the app's side says that it did nothing with it: HTTP/2's REFUSED_STREAM, or a GOAWAY
    /// that does not count it (RFC 9113 §8.7).
    Unprocessed {
        /// All of it can go again.
        again: bool,
    },
    /// Something may have been sent, and no answer came.
    Failed(UpstreamFailure),
    /// The app's answer began.
    Answered { status: u16 },
    /// The edge refuses it for what its carrier found.
    Refused(Box<Reply>),
    /// The client has left.
    Left,
    /// Only from `explain`, which did not do what was asked: the journey goes on as if it had succeeded.
    WouldBe,
}

/// What a decision stands on besides the request.
#[derive(Debug, Clone)]
pub struct Look {
    /// The environment that owns the host in the newest snapshot.
    pub view: Option<Arc<EnvView>>,
    /// 64 random bits.
    pub pick: u64,
    /// A place is taken, and the queue is not overtaken; not where it is only explained.
    pub reserves: bool,
}

/// The ledger gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerFailed;

/// What came of asking the ledger to write that a request is about to be sent.
#[derive(Debug)]
pub enum Recorded {
    /// It is about to be sent, as this attempt.
    Attempt(u32),
    /// A record is in the way: nothing is sent.
    InTheWay(Box<ExistingRecord>),
}

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRefusal {
    /// It is longer than the route takes.
    TooLong,
    /// It did not come in time.
    TooSlow,
    /// Its chunks cannot be read (RFC 9112 §7.1).
    Malformed,
    /// The node keeps as many bytes of bodies as it may.
    NoRoom,
}

/// What came of asking for a wake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woke {
    /// There is an operation; it may be over already.
    Operation {
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

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Look at the newest snapshot, and report it with [`Event::Look`].
    Look,
    /// Do this, and report what came of it.
    Do(Ask),
    /// Nothing more is to be asked for now.
    Go(Go),
}

/// What a carrier does for a request before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Look the session's routing record up.
    FindSession,
    /// Ask the app's durable store whether the session is there.
    AskStore,
    /// Read the whole body, at most `limit` bytes, and examine it.
    ReadBody { limit: u64 },
    /// Take the key in the ledger.
    Reserve,
    /// Read the stored response.
    ReadStored,
    /// Take a place in the hold queue. It comes **before** the wake, so that no release is missed.
    Enter {
        /// A wake is asked for then: the queue need not.
        wakes: bool,
    },
    /// Make or join a wake of the environment.
    Wake,
    /// Wait in the queue, until the deadline.
    Wait,
}

/// Where a request goes from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// Connect to [`Journey::placement`].
    Connect,
    /// Write in the ledger that it is about to be sent.
    Record,
    Send,
    /// Give the client the app's answer.
    PassOn,
    /// Answer [`Journey::answer`].
    Tell,
    /// Drive it on: it is to be decided again.
    Again,
    /// Nothing more is done: the client has left, or the request was only explained.
    Stop,
}

/// What broke an exchange off before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broke {
    App(UpstreamFailure),
    /// The client, or the edge.
    Client,
}

/// What a whole body says.
#[derive(Debug)]
pub enum Examined {
    /// The claim of a keyed action, with its body in its fingerprint.
    Action(Option<Claim>),
    /// The key of a form that has it in a field, and its claim where the edge keeps the record.
    Form(IdempotencyKey, Option<Claim>),
    /// A delivery's event.
    Event(String),
    /// A delivery that is a handshake, under the name its record would have.
    Handshake(String),
    /// A delivery whose signature is wrong.
    Wrong(Refusal),
    /// A request that has no record.
    Nothing,
}

/// What a request is carried by until it is sent.
pub trait Carrier {
    fn now(&self) -> Mono;

    /// The newest snapshot's owner of the journey's host.
    fn look(&self, journey: &Journey) -> Look;

    /// Does what is asked, and says what came of it; [`Event::Left`] where the client left meanwhile.
    fn perform(&mut self, ask: Ask, journey: &Journey) -> impl Future<Output = Event> + Send;
}

/// Drives the journey on from where it stands, until it is to be sent, answered, or given up. Bounded by
/// its deadline: each turn ends, waits for a change, or takes one of few steps that are taken once (the
/// body is read, the ledger is asked); after the deadline nothing waits.
pub async fn drive(journey: &mut Journey, carrier: &mut (impl Carrier + Send)) -> Go {
    let mut command = journey.next_command();
    loop {
        let event = match command {
            Command::Look => Event::Look(carrier.look(journey)),
            Command::Do(ask) => carrier.perform(ask, journey).await,
            Command::Go(go) => return go,
        };
        command = journey.on(event, carrier.now());
    }
}
