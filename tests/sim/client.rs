//! Clients: what they send, when they leave, and the way of a request as `src/proxy/service.rs` and
//! `src/proxy/send_recorded.rs` go it, over an app that is the simulation's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::HeaderMap;
use sha2::Sha256;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use vango_edge::clock::Clock;
use vango_edge::contract::Posture;
use vango_edge::ledger::Sending;
use vango_edge::lifecycle::enter::{Arrival, Entered, Policies, enter};
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::idempotency::AttemptOutcome;
use vango_edge::lifecycle::journey::{BodyRefusal, Broke, Event, Go, Journey};
use vango_edge::lifecycle::validation::Validations;
use vango_edge::proxy::{BodyBudget, Buffered, Carried, Downstream, Unread};
use vango_edge::record::ledger::{StoredHead, StoredResponse};

use crate::app::Heard;
use crate::edge::{Edge, WEBHOOK_SECRET};
use crate::world::Sim;

pub const HOSTS: [&str; 4] = ["a.localhost", "b.localhost", "c.localhost", "pr-1.p.localhost"];

/// A request that is about to be sent.
pub struct Wanted {
    pub host: &'static str,
    pub method: &'static str,
    pub path: &'static str,
    pub key: Option<usize>,
    pub body: Option<String>,
    pub signature: Option<String>,
    pub websocket: bool,
    pub leaves: Option<Duration>,
}

impl Wanted {
    pub fn page(host: &'static str) -> Self {
        Self {
            host,
            method: "GET",
            path: "/",
            key: None,
            body: None,
            signature: None,
            websocket: false,
            leaves: None,
        }
    }

    pub fn any(sim: &Sim) -> Self {
        let dice = &sim.dice;
        let host = if dice.one_in(40) { "nowhere.localhost" } else { *dice.pick(&HOSTS) };
        let (method, path) = *dice.pick(&[
            ("GET", "/"),
            ("GET", "/"),
            ("GET", "/dashboard"),
            ("POST", "/dashboard"),
            ("POST", "/actions/plain"),
            ("POST", "/actions/plain"),
            ("POST", "/actions/app"),
            ("POST", "/actions/keyed"),
            ("POST", "/actions/keyed"),
            ("POST", "/actions/keyed"),
            ("POST", "/webhooks/stripe"),
            ("POST", "/webhooks/stripe"),
            ("GET", "/live"),
        ]);
        let mut wanted = Self { method, path, ..Self::page(host) };
        wanted.leaves = dice.one_in(5).then(|| dice.ms(&[5, 300, 2_000, 6_000]));
        wanted.websocket = path == "/live";
        if path.starts_with("/actions/") && !dice.one_in(12) {
            wanted.key = Some(dice.below(6));
        }
        if method == "POST" {
            wanted.body = (!dice.one_in(4)).then(|| format!("n={}", dice.below(2)));
        }
        if path.starts_with("/webhooks/") {
            let body = format!(r#"{{"id":"evt_{}","object":"event"}}"#, dice.below(5));
            let secret = if dice.one_in(8) { "another" } else { WEBHOOK_SECRET };
            wanted.signature = Some(sign(secret, sim.clock.wall().0 / 1000, &body));
            wanted.body = Some(body);
        }
        wanted
    }

    fn head(&self) -> http::request::Parts {
        let mut head = http::Request::builder().method(self.method).uri(self.path);
        head = head.header("host", self.host).header("cookie", "session=s1");
        if let Some(key) = self.key {
            head = head.header("idempotency-key", format!("\"key-{key}\""));
        }
        if let Some(body) = &self.body {
            head = head.header("content-length", body.len());
        }
        if let Some(signature) = &self.signature {
            head = head.header("stripe-signature", signature);
        }
        if self.websocket {
            head = head.header("connection", "upgrade").header("upgrade", "websocket");
            head = head.header("sec-websocket-version", "13");
            head = head.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        }
        head.body(()).unwrap().into_parts().0
    }
}

fn sign(secret: &str, at: u64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at}.{body}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("t={at},v1={hex}")
}

/// A client's connection.
struct Client {
    sim: Arc<Sim>,
    n: u64,
    leaves: Option<Instant>,
    body: Option<Bytes>,
}

/// It waits, until this is dropped.
struct Waiting<'a>(&'a Sim, u64);

impl<'a> Waiting<'a> {
    fn new(client: &'a Client) -> Self {
        let (sim, n) = (&*client.sim, client.n);
        sim.row(n, |r| {
            r.waits = true;
            if std::mem::take(&mut r.granted) {
                r.passed_over = true;
            }
        });
        Self(sim, n)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let epoch = self.0.epoch_of(self.1);
        self.0.row(self.1, |r| {
            r.waits = false;
            r.told_under = epoch;
        });
    }
}

impl Client {
    fn has_gone(&self) -> bool {
        self.leaves.is_some_and(|at| Instant::now() >= at)
    }

    async fn leaving(&self) {
        match self.leaves {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn known_to_have_left(&self) {
        self.sim.row(self.n, |r| r.known_left = true);
    }
}

impl Downstream for Client {
    async fn left(&mut self, body_unread: bool) {
        let waiting = Waiting::new(self);
        self.leaving().await;
        if body_unread {
            // Only a look finds it.
            sleep(Duration::from_millis(20)).await;
        }
        drop(waiting);
        self.known_to_have_left();
    }

    async fn has_left(&mut self) -> bool {
        self.sim.row(self.n, |r| r.granted = true);
        let takes = self.sim.dice.ms(&[1, 1, 3, 25]);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        let left = self.has_gone();
        if left {
            self.sim.happened("the client left while its place was on its way");
            self.known_to_have_left();
        }
        left
    }

    async fn read_whole(
        &mut self,
        limit: u64,
        budget: &Arc<BodyBudget>,
        within: Duration,
    ) -> Result<Buffered, Unread> {
        let dice = &self.sim.dice;
        let takes = if dice.one_in(50) { within * 2 } else { dice.ms(&[1, 10, 100]) };
        tokio::select! {
            biased;
            () = self.leaving() => {
                self.known_to_have_left();
                Err(Unread::Gone)
            }
            () = sleep(within) => Err(Unread::Refused(BodyRefusal::TooSlow)),
            () = sleep(takes) => budget.keep(self.body.clone().unwrap_or_default(), limit),
        }
    }
}

/// One request, from its head to its end.
pub struct Request {
    sim: Arc<Sim>,
    edge: Arc<Edge>,
    client: Client,
    carried: Carried,
    audited: bool,
}

/// How a turn at the app ended.
enum Turn {
    /// What is next is the journey's word.
    Went(Go),
    /// It is over: this was sent to the client, and that ended it.
    Over(Option<u16>, Option<Broke>),
}

impl Request {
    pub fn new(sim: &Arc<Sim>, edge: &Arc<Edge>, wanted: &Wanted) -> Self {
        let client = Client {
            sim: Arc::clone(sim),
            n: sim.next_request(),
            leaves: wanted.leaves.map(|d| Instant::now() + d),
            body: wanted.body.clone().map(Bytes::from),
        };
        let (sim, edge) = (Arc::clone(sim), Arc::clone(edge));
        Self { sim, edge, client, carried: Carried::default(), audited: false }
    }

    pub fn number(&self) -> u64 {
        self.client.n
    }

    pub async fn run(mut self, wanted: Wanted) {
        let (n, sim) = (self.client.n, Arc::clone(&self.sim));
        let head = wanted.head();
        sim.row(n, |r| {
            r.open = true;
            r.host = wanted.host.to_owned();
        });
        sim.note(|| format!("#{n} {} {} of {}", wanted.method, wanted.path, wanted.host));
        if let Some(mut journey) = self.enter(&head, wanted.path) {
            let (status, broke) = self.carry(&mut journey).await;
            self.end(journey, status, broke);
        }
        sim.row(n, |r| r.open = false);
    }

    fn enter(&self, head: &http::request::Parts, path: &str) -> Option<Journey> {
        let (sim, gate) = (&self.sim, &self.edge.gate);
        let id = gate.request_id();
        let (now, wall) = (gate.clock.now(), gate.clock.wall());
        let facts = Facts::parse(head, path.as_bytes(), id, now).unwrap();
        let entered = {
            let snapshot = gate.snapshots.load();
            let arrival = Arrival {
                facts,
                headers: &head.headers,
                refused: None,
                locked: &|_| None,
                validations: &Validations::default(),
            };
            enter(arrival, &snapshot, &Policies::default(), now, wall)
        };
        let (mut facts, classified) = match entered {
            Entered::Route { facts, classified, .. } => (facts, classified),
            Entered::Edge(answered) => {
                sim.row(self.client.n, |r| r.outcome = Some(answered.trace.outcome));
                sim.ended(answered.trace.outcome.name());
                return None;
            }
            Entered::Asset(_) => sim.broken("no contract here has assets"),
        };
        if classified.may_wake {
            classified.view.counters.touch(now);
        }
        gate.sessions.recognise(&classified, &head.headers, || wall, &mut facts);
        let mut journey = Journey::begin(*facts, classified);
        self.read_head(&mut journey, &head.headers);
        Some(journey)
    }

    fn read_head(&self, journey: &mut Journey, headers: &HeaderMap) {
        let gate = &self.edge.gate;
        let secret = !gate.secrets_for(journey).is_empty();
        journey.read_head(headers, secret, gate.clock.wall());
    }

    /// Until it is over.
    async fn carry(&mut self, journey: &mut Journey) -> (Option<u16>, Option<Broke>) {
        let mut go = self.drive(journey).await;
        loop {
            let turn = match go {
                Go::Connect if journey.claim().is_some() => self.deliver(journey).await,
                Go::Connect => self.pass_on(journey).await,
                Go::Again => Turn::Went(self.drive(journey).await),
                Go::Tell => return self.tell(journey).await,
                Go::Stop => return (None, None),
                Go::Record | Go::Send | Go::PassOn => {
                    self.sim.broken(format!("#{} is at {go:?}", self.client.n))
                }
            };
            match turn {
                Turn::Went(next) => go = next,
                Turn::Over(status, broke) => return (status, broke),
            }
        }
    }

    async fn drive(&mut self, journey: &mut Journey) -> Go {
        let (n, sim) = (self.client.n, &self.sim);
        sim.row(n, |r| r.posture = Some(journey.posture()));
        let go = self.edge.gate.drive(&mut self.client, journey, &mut self.carried).await;
        sim.row(n, |r| {
            if r.granted && go != Go::Connect || std::mem::take(&mut r.passed_over) {
                r.not_taken += 1;
            }
            r.granted = false;
        });
        sim.check_driven(n, journey, go);
        go
    }

    /// Connects to where it was placed.
    async fn connect(&mut self, journey: &mut Journey) -> bool {
        let (n, sim) = (self.client.n, Arc::clone(&self.sim));
        let placed =
            journey.placement().map(|p| (p.allocation.id.clone(), p.allocation.concurrency));
        let Some((id, most)) = placed else { sim.broken(format!("#{n} has no place")) };
        sim.row(n, |r| r.on = Some((id.clone(), most)));
        let connected = sim.connects(&id).await;
        if !connected {
            sim.happened("a connection failed");
            sim.note(|| format!("#{n} cannot connect to {id}"));
            sim.row(n, |r| {
                r.on = None;
                r.excluded.push(id);
            });
        }
        connected
    }

    /// As Pingora's loop carries it.
    async fn pass_on(&mut self, journey: &mut Journey) -> Turn {
        let (n, sim) = (self.client.n, Arc::clone(&self.sim));
        let gate = &Arc::clone(&self.edge).gate;
        if !self.connect(journey).await {
            return Turn::Went(gate.connect_failed(journey));
        }
        let id = journey.placement().unwrap().allocation.id.clone();
        let go = gate.report(journey, Event::Connected);
        if go != Go::Send {
            sim.broken(format!("#{n} is on no record and does not go at once: {go:?}"));
        }
        sim.check_sent(n, journey);
        let reused = sim.row(n, |r| r.sent == 1) && sim.dice.one_in(2);
        let heard = tokio::select! {
            biased;
            () = self.client.leaving() => None,
            heard = sim.exchange(&id) => Some(heard),
        };
        sim.note(|| format!("#{n} at {id}: {heard:?}"));
        let turn = match heard {
            None => Turn::Over(None, Some(Broke::Client)),
            Some(Heard::Status(status)) => {
                let status = if journey.facts().websocket { 101 } else { status };
                match gate.report(journey, Event::Answered { status }) {
                    Go::PassOn => Turn::Over(Some(status), None),
                    go => Turn::Went(go),
                }
            }
            Some(Heard::Nothing(failure)) => {
                let broke = failure == vango_edge::lifecycle::trace::UpstreamFailure::Closed;
                if broke && journey.may_resend(reused) {
                    sim.happened("a safe request was sent again on a broken reused connection");
                    Turn::Went(Go::Again)
                } else {
                    Turn::Went(gate.report(journey, Event::Failed(failure)))
                }
            }
        };
        sim.row(n, |r| r.on = None);
        turn
    }

    /// As what is kept on record is sent: by a task of its own, which goes on without its client.
    async fn deliver(&mut self, journey: &mut Journey) -> Turn {
        let (n, sim) = (self.client.n, Arc::clone(&self.sim));
        let gate = &Arc::clone(&self.edge).gate;
        if !self.connect(journey).await {
            return Turn::Went(gate.connect_failed(journey));
        }
        let id = journey.placement().unwrap().allocation.id.clone();
        let (mut go, mut sending) = (gate.report(journey, Event::Connected), None);
        if go == Go::Record {
            (go, sending) = gate.record(journey, &mut self.carried).await;
        }
        if go != Go::Send {
            sim.row(n, |r| r.on = None);
            return Turn::Went(go);
        }
        sim.check_sent(n, journey);
        if sending.is_none() && !journey.passes_unrecorded() {
            sim.broken(format!("#{n} is sent, and the ledger does not say so"));
        }
        let claim = journey.claim().cloned().unwrap();
        let on_record = sending.is_some().then(|| (claim.subject, claim.at.clone()));
        if let Some((subject, at)) = &on_record {
            sim.given(*subject, at, journey.ledger_attempt());
        }
        self.carried.body = None;
        let (tell, told) = oneshot::channel();
        let (open, placement) = (gate.exchanges.begin(), journey.take_placement());
        let exchange = async move {
            let heard = sim.exchange(&id).await;
            sim.note(|| format!("#{n} at {id}: {heard:?}"));
            if let Some((_, at)) = &on_record {
                sim.made(at, heard);
            }
            if let Some(sending) = sending {
                end_sending(&sim, sending, heard).await;
            }
            let _ = tell.send(heard);
            sim.row(n, |r| r.on = None);
            drop((placement, open));
        };
        tokio::spawn(exchange);
        let Ok(heard) = told.await else {
            self.sim.broken(format!("#{n}'s exchange ended unheard"))
        };
        match heard {
            Heard::Nothing(failure) => Turn::Went(gate.report(journey, Event::Failed(failure))),
            Heard::Status(status) => match gate.report(journey, Event::Answered { status }) {
                Go::PassOn if self.client.has_gone() => {
                    Turn::Over(Some(status), Some(Broke::Client))
                }
                Go::PassOn => Turn::Over(Some(status), None),
                go => Turn::Went(go),
            },
        }
    }

    /// The edge answers; what a provider is told is on record before.
    async fn tell(&mut self, journey: &mut Journey) -> (Option<u16>, Option<Broke>) {
        let gate = &self.edge.gate;
        let status = journey.answer().map(vango_edge::lifecycle::answer::Answer::status);
        if journey.event_id().is_some() {
            let evidence = journey.evidence_of(status, gate.clock.now(), gate.clock.wall());
            if let Some(evidence) = evidence {
                self.audited = gate.audit.before_answer(&evidence).await.is_ok();
            }
        }
        self.sim.check_told(self.client.n, journey);
        (status, None)
    }

    /// Closes its trace.
    fn end(self, journey: Journey, status: Option<u16>, broke: Option<Broke>) {
        let (n, sim) = (self.client.n, &self.sim);
        let preview = !journey.view().environment.is_production();
        let ring = &self.edge.gate.telemetry.ring;
        let before = ring.pushed();
        drop(self.carried);
        self.edge.gate.close(journey, status, broke, self.audited);
        let since = ring.since(before);
        sim.check_trace(n, &since.records[0], preview);
    }
}

async fn end_sending(sim: &Sim, sending: Sending, heard: Heard) {
    match heard {
        // Too large to be kept, once in a while.
        Heard::Status(status) if sim.dice.one_in(12) => {
            sending.ended(AttemptOutcome::NotStored { status }, None).await;
        }
        Heard::Status(status) => {
            let head = StoredHead { status, headers: Vec::new(), trailers: Vec::new() };
            let stored = StoredResponse { head, body: Bytes::from_static(b"done") };
            sending.ended(AttemptOutcome::Whole { status }, Some(stored)).await;
        }
        Heard::Nothing(_) => sending.ended(AttemptOutcome::Nothing, None).await,
    }
}

/// Whether a request may go to an app twice.
pub fn is_safe(posture: Option<Posture>) -> bool {
    posture == Some(Posture::Safe)
}
