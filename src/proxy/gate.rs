//! What a request's commands are performed with: the hold queue, wakes, the ledger, sessions. A client's
//! connection or socket ([`Downstream`]) and the gate together carry a request
//! ([`crate::lifecycle::journey::drive`]), from its first decision to the record of its end.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::clock::{Clock, Entropy, Mono};
use crate::config::Secret;
use crate::id::{Environment, RequestId};
use crate::ledger::{Audit, Ledger, LedgerError, Reservation, Sending, Taken};
use crate::lifecycle::affinity::{self, Given};
use crate::lifecycle::journey::{
    Ask, Broke, Carrier, Command, Event, Go, Journey, LedgerFailed, Look, Placement, Recorded,
    Woke, drive,
};
use crate::lifecycle::origin::customer;
use crate::lifecycle::resume::{Lookup, StoreAnswer};
use crate::lifecycle::trace::{HoldEnd, Outcome, QueueBound};
use crate::session::{Question, Sessions};
use crate::snapshot::SnapshotReader;
use crate::sockets::{Admission, AdmissionLimits, Sockets};
use crate::telemetry::{Telemetry, TraceRecord};
use crate::wake::hold::{HoldQueues, Release, Ticket};
use crate::wake::{Exits, Wakes};
use crate::wire::Places;

use super::downstream::{BodyBudget, Buffered, Downstream, Unread};
use super::exchange::Exchanges;

/// Limits toward allocations, where Pingora has no timeouts of its own, of bodies that are read whole, and of
/// live sockets.
#[derive(Debug, Clone, Copy)]
pub struct ProxyLimits {
    /// To connect to an allocation.
    pub connect_timeout: Duration,
    /// For each read of a response, its head included, where the route says nothing.
    pub response_timeout: Duration,
    /// The longest that a route may say.
    pub max_route_timeout: Duration,
    /// A pooled connection unused for this long is closed.
    pub idle_timeout: Duration,
    /// For a body that the edge reads whole.
    pub body_timeout: Duration,
    /// Live sockets that may be open.
    pub sockets: usize,
    /// A live socket on which nothing passes for this long is closed.
    pub socket_idle: Duration,
}

impl ProxyLimits {
    /// These for a request of `journey`'s route, which may say itself how long its app may be silent.
    pub fn of_route(&self, journey: &Journey) -> Self {
        let named = journey.route().and_then(|r| r.timeout);
        let response_timeout =
            named.map_or(self.response_timeout, |timeout| timeout.min(self.max_route_timeout));
        Self { response_timeout, ..*self }
    }
}

/// The operator's secrets by which providers' deliveries are verified; a reload swaps them.
pub trait WebhookSecrets: Send + Sync {
    /// Every value under `name` that counts now, the current one first; empty where no secret has that name.
    fn of(&self, environment: &Environment, name: &str) -> Vec<Secret>;
}

/// A herd of live sockets that comes back reaches an allocation 32 at a time; the node's own bound on open
/// sockets is `limits.sockets`.
pub const UPGRADES: AdmissionLimits = AdmissionLimits { at_once: 32, waiting: 50_000 };

/// What the gate works with.
pub struct Gate {
    /// For verifying deliveries.
    pub secrets: Arc<dyn WebhookSecrets>,
    /// Keeps which keyed actions and events were sent, and what came of each.
    pub ledger: Arc<Ledger>,
    /// Keeps what was decided about deliveries.
    pub audit: Arc<Audit>,
    /// For bodies that are read whole.
    pub budget: Arc<BodyBudget>,
    /// Bytes of a body that nothing reads which a client may send all the same, over HTTP/2.
    pub ahead: u64,
    /// Exchanges with apps, which go on without their clients.
    pub exchanges: Arc<Exchanges>,
    /// How often keys were sent to apps that deduplicate themselves.
    pub attempts: Attempts,
    /// Timeouts; a reload swaps them.
    pub limits: Arc<ArcSwap<ProxyLimits>>,
    pub snapshots: SnapshotReader,
    /// Requests that wait for their app.
    pub queues: Arc<HoldQueues>,
    /// Asked for wakes.
    pub wakes: Arc<Wakes>,
    /// Told of allocations that refuse connections.
    pub exits: Arc<Exits>,
    /// Deadlines by its monotonic time, evidence by its wall time.
    pub clock: Arc<dyn Clock>,
    /// For request ids and for the choice between two allocations.
    pub entropy: Arc<dyn Entropy>,
    pub sessions: Arc<Sessions>,
    /// How many client connections there may be.
    pub connections: Arc<Places>,
    /// Live sockets that are open.
    pub sockets: Arc<Sockets>,
    /// Paces live sockets that are being accepted, by [`UPGRADES`].
    pub upgrades: Admission,
    /// Counts and traces of finished requests.
    pub telemetry: Arc<Telemetry>,
}

/// What a request carries through the gate besides itself.
#[derive(Default)]
pub struct Carried {
    /// Its body, once it was read.
    pub body: Option<Buffered>,
    /// Its key, once it was reserved; released when dropped.
    pub reservation: Option<Reservation>,
}

impl Gate {
    /// Drives the journey of a client's request on until it is to be sent, answered or given up.
    pub async fn drive(
        &self,
        client: &mut impl Downstream,
        journey: &mut Journey,
        carried: &mut Carried,
    ) -> Go {
        drive(journey, &mut Carrying { gate: self, client, carried, ticket: None }).await
    }

    /// Reports what happened to a request after it was driven.
    pub fn report(&self, journey: &mut Journey, event: Event) -> Go {
        match journey.on(event, self.clock.now()) {
            Command::Go(go) => go,
            Command::Look => Go::Again,
            Command::Do(ask) => {
                debug_assert!(false, "{ask:?} is asked of the driver");
                Go::Stop
            }
        }
    }

    /// No connection to its place could be made: where this edge runs the app, it looks why.
    pub fn connect_failed(&self, journey: &mut Journey) -> Go {
        if let Some(placed) = journey.placement().filter(|p| !p.allocation.external) {
            self.exits.doubt(&journey.view().environment, &placed.allocation.id);
        }
        self.report(journey, Event::ConnectFailed)
    }

    /// Writes in the ledger that the request is about to be sent; from here on it is, or its outcome is
    /// unknown.
    pub async fn record(
        &self,
        journey: &mut Journey,
        carried: &mut Carried,
    ) -> (Go, Option<Sending>) {
        let Some(claim) = journey.claim() else {
            return (self.report(journey, Event::Recorded(Err(LedgerFailed))), None);
        };
        let (whole, operation) = (journey.reads_whole_body(), journey.operation());
        let reserved = carried.reservation.take();
        let (recorded, sending) = match self.ledger.forward(reserved, claim, whole, operation).await
        {
            Ok(Taken::Held(sending)) => (Ok(Recorded::Attempt(sending.attempt())), Some(sending)),
            Ok(Taken::Found(seen)) => (Ok(Recorded::InTheWay(seen)), None),
            Err(e) => (Err(ledger_failed(&e)), None),
        };
        (self.report(journey, Event::Recorded(recorded)), sending)
    }

    /// The values that a delivery is verified with; none for anything else.
    pub fn secrets_for(&self, journey: &Journey) -> Vec<Secret> {
        journey.secret_wanted().map_or_else(Vec::new, |(e, name)| self.secrets.of(e, name))
    }

    /// A new public id.
    pub fn request_id(&self) -> RequestId {
        RequestId::random(&*self.entropy)
    }

    /// The cookie that brings the browser back to where its request was placed, if it needs a new one.
    pub fn affinity_cookie(&self, journey: &Journey, given: Given) -> Option<HeaderValue> {
        let (view, facts) = (journey.view(), journey.facts());
        view.contract.live()?;
        let target = &journey.placement()?.allocation;
        let (tokens, now) = (&self.sessions.tokens, self.clock.wall());
        let seen = facts.affinity.as_ref();
        let given = affinity::token_due(seen, &target.id, given, now, tokens.lasts)?;
        tokens.cookie(view, target, given, (&facts.host, facts.is_secure()), now)
    }

    /// Closes the trace of `journey`, which ended now, and counts it: `status` was sent to its client,
    /// `broke` says what ended it before its end. With `audited` the audit has its evidence already.
    pub fn close(
        &self,
        mut journey: Journey,
        status: Option<u16>,
        broke: Option<Broke>,
        audited: bool,
    ) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        if journey.may_wake() {
            journey.view().counters.touch(now);
        }
        journey.over(status, broke, now);
        match journey.evidence_of(status, now, wall).filter(|_| !audited) {
            Some(evidence) if evidence.is_refusal() => {
                let origin = journey.facts().origin.as_ref();
                self.audit.refused(evidence, origin.map(|o| customer(o.address)));
            }
            Some(evidence) => self.audit.soon(evidence),
            None => {}
        }
        if let Some(metric) = journey.delivery_metric(status) {
            self.telemetry.delivery(metric);
        }
        let (held, operation) = (journey.held_for(), journey.operation().cloned());
        let (class, evidence) = (journey.class(), journey.preview_evidence(status));
        let (facts, view, mut trace) = journey.into_parts();
        debug_assert_ne!(trace.outcome, Outcome::Open);
        trace.parent = facts.parent;
        trace.client = facts.origin.map(|o| o.address);
        let environment = Some(view.environment.clone());
        let path = facts.spelled.unwrap_or(facts.path);
        let record = TraceRecord::new(facts.method, facts.host, path, trace, now, wall);
        let record = TraceRecord { class, environment, status, operation, held, ..record };
        if let Some(error) = evidence {
            view.tally.count(error);
        }
        self.telemetry.finished(record, &view.counters);
    }
}

/// Only logged: the request's trace and answer do not say why.
fn ledger_failed(e: &LedgerError) -> LedgerFailed {
    log::debug!("ledger: {e}");
    LedgerFailed
}

/// A request that waits for no app has at least this long to ask for its wake.
const WAKE_WITHIN: Duration = Duration::from_secs(1);

/// Keys remembered by [`Attempts`].
const KEYS: usize = 65_536;

/// How often a key was sent to an app that deduplicates itself (contract `app`), as far as this process
/// remembers: the newest [`KEYS`] keys. After a restart it begins anew; the app's own record decides, and
/// this is only what the edge can add.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<SentKeys>);

#[derive(Debug, Default)]
struct SentKeys {
    times: HashMap<String, u32>,
    oldest: VecDeque<String>,
}

impl Attempts {
    /// `subject` is being sent; says for which time, 1 for the first.
    pub fn next(&self, subject: String) -> u32 {
        // A panic while it was locked leaves at worst one key too many or too few.
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = sent.times.get_mut(&subject) {
            *n = n.saturating_add(1);
            return *n;
        }
        if sent.oldest.len() >= KEYS
            && let Some(oldest) = sent.oldest.pop_front()
        {
            sent.times.remove(&oldest);
        }
        sent.oldest.push_back(subject.clone());
        sent.times.insert(subject, 1);
        1
    }
}

/// A client's request at the gate.
struct Carrying<'a, D> {
    gate: &'a Gate,
    client: &'a mut D,
    carried: &'a mut Carried,
    /// Its place in the hold queue.
    ticket: Option<Ticket>,
}

impl<D: Downstream> Carrier for Carrying<'_, D> {
    fn now(&self) -> Mono {
        self.gate.clock.now()
    }

    fn look(&self, journey: &Journey) -> Look {
        let snapshot = self.gate.snapshots.load();
        let view = snapshot.host(&journey.facts().host).cloned();
        Look { view, pick: self.gate.entropy.next_u64(), reserves: true }
    }

    async fn perform(&mut self, ask: Ask, journey: &Journey) -> Event {
        match ask {
            Ask::FindSession => Event::Session(self.find_session(journey).await),
            Ask::AskStore => self.ask_store(journey).await,
            Ask::ReadBody { limit } => self.read_body(journey, limit).await,
            Ask::Reserve => self.reserve(journey).await,
            Ask::ReadStored => self.read_stored(journey).await,
            Ask::Enter { wakes } => self.enter(journey, wakes),
            Ask::Wake => Event::Woke(self.wake(journey).await),
            Ask::Wait => self.wait(journey).await,
        }
    }
}

impl<D: Downstream> Carrying<'_, D> {
    async fn find_session(&mut self, journey: &Journey) -> Lookup {
        let Some(id) = journey.session() else { return Lookup::NotAsked };
        self.gate.sessions.routes.find(&journey.view().environment, id.name()).await
    }

    async fn ask_store(&mut self, journey: &Journey) -> Event {
        let (Some(placement), Some(id)) = (journey.placement(), journey.session()) else {
            return Event::Store(StoreAnswer::Unavailable);
        };
        let within = journey.deadline().since(self.now());
        let question = Question { view: journey.view(), target: &placement.allocation, id };
        tokio::select! {
            biased;
            () = self.client.left(false) => Event::Left,
            answer = self.gate.sessions.stores.ask(&question, within) => Event::Store(answer),
        }
    }

    async fn read_body(&mut self, journey: &Journey, limit: u64) -> Event {
        let within = self.gate.limits.load().body_timeout;
        match self.client.read_whole(limit, &self.gate.budget, within).await {
            Ok(body) => {
                let secrets = self.gate.secrets_for(journey);
                let secrets: Vec<&[u8]> = secrets.iter().map(|s| s.expose().as_bytes()).collect();
                let examined = journey.examine(&body.bytes, &secrets);
                self.carried.body = Some(body);
                Event::Body(examined)
            }
            Err(Unread::Refused(why)) => Event::BodyRefused(why),
            Err(Unread::Gone) => Event::Left,
        }
    }

    async fn reserve(&mut self, journey: &Journey) -> Event {
        let Some(claim) = journey.claim() else { return Event::Reserved(Err(LedgerFailed)) };
        Event::Reserved(match self.gate.ledger.reserve(claim, journey.reads_whole_body()).await {
            Ok(Taken::Held(reservation)) => {
                self.carried.reservation = Some(reservation);
                Ok(None)
            }
            Ok(Taken::Found(seen)) => Ok(Some(seen)),
            Err(e) => Err(ledger_failed(&e)),
        })
    }

    async fn read_stored(&mut self, journey: &Journey) -> Event {
        let Some(claim) = journey.claim() else { return Event::Stored(Ok(None)) };
        Event::Stored(self.gate.ledger.response(&claim.at).await.map_err(|e| ledger_failed(&e)))
    }

    fn enter(&mut self, journey: &Journey, wakes: bool) -> Event {
        if self.gate.connections.is_crowded() {
            // Each hold keeps a connection: the last places are for what need not wait.
            return self.held(journey, HoldEnd::QueueFull(QueueBound::Connections), None);
        }
        let entered = self.gate.queues.enter(
            journey.view(),
            self.held_bytes(journey),
            journey.wish(),
            journey.excluded().to_vec(),
            wakes,
            journey.waits_cold(),
        );
        match entered {
            Ok(ticket) => {
                self.ticket = Some(ticket);
                Event::Entered
            }
            Err(bound) => self.held(journey, HoldEnd::QueueFull(bound), None),
        }
    }

    /// What a request keeps in memory while it waits: its head, and of an unread body what its connection takes
    /// before it is read. A body that was read is in the budget of bodies.
    fn held_bytes(&self, journey: &Journey) -> u64 {
        let facts = journey.facts();
        let unread = facts.body && !journey.body_is_read() && self.client.takes_ahead();
        let body = facts.content_length.unwrap_or(u64::MAX).min(self.gate.ahead);
        facts.header_bytes as u64 + if unread { body } else { 0 }
    }

    /// Asks for a wake. The request is in the queue by now, so that nothing the wake publishes is missed.
    async fn wake(&mut self, journey: &Journey) -> Woke {
        let environment = &journey.view().environment;
        let asked = self.gate.wakes.wake(environment);
        // One that does not wait is answered with what it asked for, and may ask at its deadline.
        let least = if self.ticket.is_some() { Duration::from_millis(1) } else { WAKE_WITHIN };
        let left = journey.deadline().since(self.now()).max(least);
        let woke = tokio::time::timeout(left, asked).await.unwrap_or(Woke::Unavailable);
        if self.ticket.is_some() && matches!(woke, Woke::Ready | Woke::BackingOff) {
            // The snapshot is about to show it; if it does already, the queue was looked at
            // before. Look once more.
            self.gate.queues.pump(environment);
        }
        woke
    }

    async fn wait(&mut self, journey: &Journey) -> Event {
        let Some(ticket) = &mut self.ticket else {
            return self.held(journey, HoldEnd::Recheck, None);
        };
        let body_unread = journey.facts().body && !journey.body_is_read();
        let left = journey.deadline().since(self.gate.clock.now());
        let released = tokio::select! {
            biased;
            // First: a client that is gone and a place that came in the same moment mean gone.
            () = self.client.left(body_unread) => None,
            release = ticket.released() => Some(release),
            () = tokio::time::sleep(left) => {
                self.ticket = None;
                return self.held(journey, HoldEnd::DeadlinePassed, None);
            }
        };
        self.ticket = None;
        let (end, granted) = match released {
            Some(Release::Granted(placement)) => match self.client.has_left().await {
                // The place goes to the next one.
                true => (HoldEnd::ClientLeft, None),
                false => (HoldEnd::Released, Some(placement)),
            },
            Some(Release::Recheck) => (HoldEnd::Recheck, None),
            Some(Release::ShuttingDown) => (HoldEnd::ShuttingDown, None),
            None => (HoldEnd::ClientLeft, None),
        };
        self.held(journey, end, granted)
    }

    fn held(&self, journey: &Journey, end: HoldEnd, granted: Option<Placement>) -> Event {
        Event::Held { end, granted, look: self.look(journey) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_key_is_forgotten_first() {
        let attempts = Attempts::default();
        assert_eq!((attempts.next("a".into()), attempts.next("a".into())), (1, 2));
        for i in 0..KEYS {
            attempts.next(i.to_string());
        }
        assert_eq!(attempts.next("a".into()), 1);
        assert_eq!(attempts.0.lock().unwrap().times.len(), KEYS);
    }
}
