//! The shell around a journey, as `src/proxy/gate.rs` and `src/proxy/service.rs` are: the same
//! calls in the same order, cut where another task may run in between.

use std::sync::Arc;

use futures_util::FutureExt;
use vango_edge::clock::{Entropy, Wall};
use vango_edge::id::{Environment, Generation, RequestId};
use vango_edge::lifecycle::admit::{Journey, Next, Woke};
use vango_edge::lifecycle::affinity::{Given, KnownBy, Prior};
use vango_edge::lifecycle::classify::{Posture, classify};
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::place::Placement;
use vango_edge::lifecycle::reply::{Problem, Reply};
use vango_edge::lifecycle::retry::UpstreamFailure;
use vango_edge::lifecycle::trace::{HoldEnd, Outcome};
use vango_edge::snapshot::{EnvView, Live};
use vango_edge::store::record::key;
use vango_edge::wake::hold::{Release, Ticket};

use crate::world::{HOSTS, Sim};

/// A place in an allocation, as the gate keeps it.
pub struct Placed {
    pub placement: Placement,
    environment: Environment,
    live: Arc<Live>,
}

/// A ticket, and what it was told: looked at after every event, acted on when the request runs.
pub struct Waiting {
    pub ticket: Ticket,
    pub told: Option<Release>,
    pub environment: Environment,
}

/// Where a request is between two events.
pub enum State {
    /// About to decide; on this snapshot if it is pinned already.
    Deciding { pinned: Option<Option<Arc<EnvView>>>, granted: Option<(Placement, Environment)> },
    /// Waits for the answer of a wake it asked for, in the queue or not.
    Asking { waiting: Option<Waiting>, environment: Environment, answer: Option<Woke> },
    /// In the queue.
    Held { waiting: Waiting },
    /// About to connect.
    Placed { placed: Placed },
    /// Sent; the app has yet to answer.
    Sent { placed: Placed, reused: bool },
    /// Over.
    Ended,
}

/// One request.
pub struct Request {
    pub journey: Journey,
    pub state: State,
    /// The client has left.
    pub left: bool,
    /// It left while it was held and could be seen to: it must not be forwarded any more.
    pub seen_leaving: bool,
    pub sent: u32,
    /// Sends on a reused connection that broke.
    pub resends: u32,
    pub answered: bool,
    /// It was decided to be refused because the app is cold.
    pub refused_cold: bool,
}

impl Request {
    pub fn waiting(&self) -> Option<&Waiting> {
        match &self.state {
            State::Asking { waiting, .. } => waiting.as_ref(),
            State::Held { waiting } => Some(waiting),
            _ => None,
        }
    }
    fn waiting_mut(&mut self) -> Option<&mut Waiting> {
        match &mut self.state {
            State::Asking { waiting, .. } => waiting.as_mut(),
            State::Held { waiting } => Some(waiting),
            _ => None,
        }
    }
    /// The place it has.
    pub fn placement(&self) -> Option<&Placement> {
        match &self.state {
            State::Deciding { granted, .. } => granted.as_ref().map(|(p, _)| p),
            State::Placed { placed } | State::Sent { placed, .. } => Some(&placed.placement),
            _ => None,
        }
    }
    /// Takes in what its ticket was told, so that it can be asked about.
    pub fn listen(&mut self) {
        if let Some(waiting) = self.waiting_mut()
            && waiting.told.is_none()
        {
            waiting.told = waiting.ticket.released().now_or_never();
        }
    }
}

impl Sim {
    /// A new request is classified: `early_request_filter`.
    pub fn arrive(&mut self, host: &str, method: &str, path: &str, keyed: bool) {
        let mut request = http::Request::builder().method(method).header("host", host);
        let body = method == "POST" && !self.dice.one_in(3);
        if body {
            request = request.header("content-length", "5");
        }
        if keyed {
            request = request.header("idempotency-key", "\"k1\"");
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let id = RequestId::random(&*self.entropy);
        let mut facts = Facts::parse(&parts, path.as_bytes(), id, self.now()).unwrap();
        facts.affinity = self.some_prior();
        let Ok(classified) = classify(&self.snapshots.load(), &facts) else {
            self.note(|_| format!("{method} {path} at {host}: no owner"));
            *self.story.endings.entry("no-route").or_default() += 1;
            return;
        };
        classified.view.live.touch(self.now());
        let n = self.requests.len();
        let posture = classified.posture;
        self.requests.push(Request {
            journey: Journey::begin(facts, classified),
            state: State::Deciding { pinned: None, granted: None },
            left: false,
            seen_leaving: false,
            sent: 0,
            resends: 0,
            answered: false,
            refused_cold: false,
        });
        self.open.insert(n);
        self.note(|_| format!("#{n} {method} {path} at {host}: {posture:?}"));
    }

    pub fn arrive_at_random(&mut self) {
        let host = if self.dice.one_in(50) { "x.localhost" } else { *self.dice.pick(&HOSTS) };
        let (method, path, keyed) = *self.dice.pick(&[
            ("GET", "/dashboard", false),
            ("GET", "/dashboard", false),
            ("GET", "/", false),
            ("GET", "/", false),
            ("HEAD", "/vango/live", false),
            ("GET", "/actions/save", false),
            ("OPTIONS", "/actions/plain", false),
            ("POST", "/actions/plain", false),
            ("POST", "/actions/save", true),
            ("POST", "/actions/save", false),
            ("POST", "/dashboard", true),
        ]);
        self.arrive(host, method, path, keyed);
    }

    /// An affinity token may name anything that ever was.
    /// What an affinity token may say: some allocation that runs, or the start before it.
    fn some_prior(&self) -> Option<Prior> {
        let all: Vec<_> = self.processes.keys().collect();
        if all.is_empty() || !self.dice.one_in(4) {
            return None;
        }
        let allocation = (*self.dice.pick(&all)).clone();
        let view = self.snapshots.load();
        let generation = view
            .environments()
            .flat_map(|e| e.ready.iter().chain(&e.others))
            .find(|a| a.id == allocation)
            .map_or(Generation(0), |a| a.generation);
        let known_by = KnownBy::Token { expires: Wall(u64::MAX), given: Given::Page };
        Some(Prior { allocation, generation, schema: None, known_by })
    }

    fn newest(&self, n: usize) -> Option<Arc<EnvView>> {
        let host = &self.requests[n].journey.facts().host;
        self.snapshots.load().host(host).cloned()
    }

    /// Pins the snapshot that the next decision stands on.
    pub fn pin(&mut self, n: usize) {
        let newest = self.newest(n);
        if let State::Deciding { pinned, .. } = &mut self.requests[n].state {
            *pinned = Some(newest);
        }
    }

    /// One turn of `Gate::pass`, up to where it waits.
    pub fn decide(&mut self, n: usize) {
        let newest = self.newest(n);
        let (now, pick) = (self.now(), self.entropy.next_u64());
        let request = &mut self.requests[n];
        let State::Deciding { pinned, granted } =
            std::mem::replace(&mut request.state, State::Ended)
        else {
            panic!("deciding")
        };
        let stale = pinned
            .as_ref()
            .is_some_and(|p| p.as_ref().map(Arc::as_ptr) != newest.as_ref().map(Arc::as_ptr));
        let view = pinned.unwrap_or(newest);
        let (granted, from) = granted.unzip();
        let granted_id = granted.as_ref().map(|p| p.allocation.id.clone());
        let next = request.journey.decide(view.as_ref(), granted, now, pick);
        let taken =
            matches!(&next, Next::Forward(p) if Some(&p.allocation.id) == granted_id.as_ref());
        if stale {
            self.happened("a decision stood on a snapshot that was replaced meanwhile");
        }
        if from.is_some() && !taken {
            self.happened("a place was granted and not taken up");
        }
        // If the grant was not taken up, its place is free again.
        if let Some(environment) = &from {
            self.pump(environment);
        }
        self.note(|_| format!("#{n} decides: {}", brief(&next)));
        self.check_decision(n, view.as_deref(), &next);
        match next {
            Next::Forward(placement) => {
                let view = self.requests[n].journey.view();
                let placed = Placed {
                    placement,
                    environment: view.environment.clone(),
                    live: Arc::clone(&view.live),
                };
                self.requests[n].state = State::Placed { placed };
            }
            Next::Reply(reply) => self.answer(n, &reply),
            Next::Wake { hold: false } => {
                self.requests[n].refused_cold = true;
                self.ask_for(n, None);
            }
            Next::Wake { hold: true } => self.hold(n, true),
            Next::Hold => self.hold(n, false),
            Next::AskStore(_) => unreachable!("{NO_STORE}"),
            Next::ReadBody { .. } | Next::Reserve | Next::Replay | Next::Acknowledge => {
                unreachable!("no route of the simulation is kept on record")
            }
        }
    }

    /// `Gate::hold`: into the queue first, then asks.
    fn hold(&mut self, n: usize, wake: bool) {
        let journey = &self.requests[n].journey;
        let (view, facts) = (Arc::clone(journey.view()), journey.facts());
        let entered = self.queues.enter(
            &view,
            facts.header_bytes,
            journey.wish(),
            journey.excluded().to_vec(),
            wake,
            journey.waits_cold(),
        );
        self.ask_again();
        let ticket = match entered {
            Ok(ticket) => ticket,
            Err(bound) => return self.held(n, HoldEnd::QueueFull(bound), None),
        };
        let waiting = Waiting { ticket, told: None, environment: view.environment.clone() };
        if wake {
            self.ask_for(n, Some(waiting));
        } else {
            self.requests[n].state = State::Held { waiting };
        }
    }

    /// `Gate::wake`, up to where it waits for the answer.
    fn ask_for(&mut self, n: usize, waiting: Option<Waiting>) {
        let environment = self.requests[n].journey.view().environment.clone();
        self.join(&environment, n);
        self.requests[n].state = State::Asking { waiting, environment, answer: None };
    }

    /// The ask was answered, or its time is over.
    pub fn asked(&mut self, n: usize) {
        let now = self.now();
        let state = std::mem::replace(&mut self.requests[n].state, State::Ended);
        let State::Asking { waiting, environment, answer } = state else { panic!("asking") };
        let woke = answer.unwrap_or(Woke::Unavailable);
        self.note(|_| format!("#{n} is told of its ask: {woke:?}"));
        if let Woke::Operation { created, .. } = &woke {
            self.happened(if *created {
                "a wake was made by a request"
            } else {
                "a wake was joined"
            });
        }
        let reply = self.requests[n].journey.woke(&woke, waiting.is_some(), now);
        match (reply, waiting) {
            (Some(reply), waiting) => {
                self.let_go(waiting);
                self.answer(n, &reply);
            }
            (None, Some(waiting)) => {
                self.requests[n].state = State::Held { waiting };
                if matches!(woke, Woke::Ready | Woke::BackingOff) {
                    self.pump(&environment);
                }
            }
            (None, None) => {
                self.requests[n].state = State::Deciding { pinned: None, granted: None };
            }
        }
    }

    /// Leaves the queue; a place that was on its way goes to the next one.
    fn let_go(&mut self, waiting: Option<Waiting>) {
        if let Some(Waiting { ticket, told, .. }) = waiting {
            drop(ticket);
            drop(told);
            self.ask_again();
        }
    }

    /// Whether `Gate::wait` would see that its client is gone.
    pub fn sees_leaving(&self, n: usize) -> bool {
        let request = &self.requests[n];
        matches!(request.state, State::Held { .. }) && request.seen_leaving
    }

    /// `Gate::wait` has something to tell.
    pub fn released(&mut self, n: usize) {
        let left = self.sees_leaving(n);
        let (now, deadline) = (self.now(), self.requests[n].journey.deadline());
        let state = std::mem::replace(&mut self.requests[n].state, State::Ended);
        let State::Held { waiting: Waiting { ticket, told, environment } } = state else {
            panic!("held")
        };
        if now > deadline {
            self.broken(format!("#{n} waited beyond its deadline"));
        }
        let (end, placement, dropped) = match told {
            _ if left => {
                if matches!(told, Some(Release::Granted(_))) {
                    self.happened("the client left while its place was on its way");
                }
                (HoldEnd::ClientLeft, None, told)
            }
            Some(Release::Granted(grant)) => {
                (HoldEnd::Released, grant.take().map(|p| (p, environment)), None)
            }
            Some(Release::Recheck) => (HoldEnd::Recheck, None, None),
            Some(Release::ShuttingDown) => (HoldEnd::ShuttingDown, None, None),
            None if now >= deadline => (HoldEnd::DeadlinePassed, None, None),
            None => panic!("nothing to tell"),
        };
        drop(ticket);
        drop(dropped);
        self.ask_again();
        self.held(n, end, placement);
    }

    /// `Gate::held`.
    fn held(&mut self, n: usize, end: HoldEnd, granted: Option<(Placement, Environment)>) {
        let view = self.newest(n);
        let (now, pick) = (self.now(), self.entropy.next_u64());
        self.note(|_| format!("#{n} was held: {end:?}"));
        let reply = self.requests[n].journey.held(end, view.as_ref(), now, pick);
        match reply {
            Some(reply) => {
                self.answer(n, &reply);
                if let Some((placement, environment)) = granted {
                    drop(placement);
                    self.pump(&environment);
                }
            }
            None if end == HoldEnd::ClientLeft => self.end(n),
            None => self.requests[n].state = State::Deciding { pinned: None, granted },
        }
    }

    /// Gives a place back and tells those who wait.
    fn give_back(&mut self, placed: Placed) {
        let Placed { placement, environment, live } = placed;
        drop(placement);
        if live.waiting() > 0 {
            self.pump(&environment);
        }
    }

    fn take_placed(&mut self, n: usize) -> Placed {
        match std::mem::replace(&mut self.requests[n].state, State::Ended) {
            State::Placed { placed } | State::Sent { placed, .. } => placed,
            _ => panic!("placed"),
        }
    }

    /// Connects; a closed port, or a connection that failed for reasons of its own.
    pub fn connect(&mut self, n: usize) {
        let placed = self.take_placed(n);
        let id = placed.placement.allocation.id.clone();
        let alive = self.processes.get(&id).is_some_and(|p| p.alive);
        if !alive || (!self.calm && self.dice.one_in(12)) {
            self.happened("a connection failed");
            self.note(|_| format!("#{n} cannot connect to {id}"));
            let now = self.now();
            let refused = self.requests[n].journey.connect_failed(&placed.placement, now);
            match refused {
                Some(reply) => self.answer(n, &reply),
                None => {
                    self.requests[n].state = State::Deciding { pinned: None, granted: None };
                }
            }
            self.give_back(placed);
            return;
        }
        self.requests[n].sent += 1;
        let reused = self.requests[n].sent == 1 && self.dice.one_in(2);
        self.note(|_| format!("#{n} is sent to {id}"));
        self.requests[n].state = State::Sent { placed, reused };
        self.check_sent(n);
    }

    /// The app answers.
    pub fn served(&mut self, n: usize) {
        let placed = self.take_placed(n);
        let now = self.now();
        self.note(|_| format!("#{n} is served"));
        self.requests[n].journey.served(Some(200), now);
        self.requests[n].answered = true;
        self.requests[n].journey.view().live.touch(now);
        self.give_back(placed);
        self.end(n);
    }

    /// The connection breaks, or the app is silent, after the request was sent.
    pub fn upstream_failed(&mut self, n: usize, failure: UpstreamFailure) {
        let reused = matches!(self.state(n), State::Sent { reused: true, .. });
        let placed = self.take_placed(n);
        self.note(|_| format!("#{n} fails after it was sent: {failure:?}, reused: {reused}"));
        let broke = failure == UpstreamFailure::Closed;
        if broke && self.requests[n].journey.may_resend(reused) {
            if self.requests[n].journey.posture() != Posture::Safe {
                self.broken(format!("#{n} is unsafe and may be sent again"));
            }
            self.happened("a safe request was sent again on a broken reused connection");
            self.requests[n].resends += 1;
            self.requests[n].state = State::Deciding { pinned: None, granted: None };
            self.give_back(placed);
            return;
        }
        let now = self.now();
        let reply = self.requests[n].journey.upstream_failed(failure, now);
        self.answer(n, &reply);
        self.give_back(placed);
    }

    /// The client goes. While it is held that can be seen; while its request is with the app it
    /// ends; in between it is not looked at.
    pub fn leave(&mut self, n: usize) {
        self.note(|_| format!("#{n}'s client leaves"));
        self.requests[n].left = true;
        if matches!(self.state(n), State::Sent { .. }) {
            let placed = self.take_placed(n);
            self.requests[n].journey.client_left();
            self.give_back(placed);
            self.end(n);
        } else if !self.requests[n].journey.facts().body {
            self.look(n);
        }
    }

    /// The watch looks at the connection.
    pub fn look(&mut self, n: usize) {
        if matches!(self.state(n), State::Held { .. }) {
            self.requests[n].seen_leaving = true;
        }
    }

    fn answer(&mut self, n: usize, reply: &Reply) {
        if self.requests[n].answered {
            self.broken(format!("#{n} is answered twice"));
        }
        self.requests[n].answered = true;
        self.note(|_| format!("#{n} is answered {} {}", reply.problem.name(), reply.status));
        self.check_answer(n, reply);
        self.end(n);
    }

    fn end(&mut self, n: usize) {
        self.requests[n].state = State::Ended;
        self.open.remove(&n);
        self.check_trace(n);
        self.hash_steps(n);
        let outcome = self.requests[n].journey.trace.outcome;
        *self.story.endings.entry(outcome.name()).or_default() += 1;
    }

    /// Whether it may not be held for a cold app.
    pub fn is_plain_unsafe(&self, n: usize) -> bool {
        self.requests[n].journey.posture() == Posture::Unsafe
    }

    /// Whether an operation of the environment is claimed by no executor.
    pub fn unclaimed(&self, environment: &Environment) -> bool {
        self.store.get(&key::executor(environment)).is_none()
    }
}

/// Sessions that move have golden tests of their own.
pub const NO_STORE: &str = "no contract here promises that a session may move";

fn brief(next: &Next) -> String {
    match next {
        Next::Forward(p) => format!("forward to {}", p.allocation.id),
        Next::Wake { hold } => format!("wake, hold: {hold}"),
        Next::Hold => "hold".into(),
        Next::AskStore(_) => unreachable!("{NO_STORE}"),
        Next::ReadBody { .. } | Next::Reserve | Next::Replay | Next::Acknowledge => {
            unreachable!("no route of the simulation is kept on record")
        }
        Next::Reply(r) => format!("answer {}", r.problem.name()),
    }
}

/// Answers after which a client must be able to believe that nothing was sent.
pub fn says_not_sent(problem: Problem) -> bool {
    !matches!(problem, Problem::UpstreamClosed | Problem::UpstreamTimeout | Problem::OutcomeUnknown)
}

/// The outcomes of requests that the app answered.
pub fn by_the_app(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Hot | Outcome::Woken | Outcome::Held)
}
