//! The given part of a golden test: records in, a snapshot out, and the request's facts.

use std::sync::Arc;
use std::time::Duration;

use vango_edge::clock::{Mono, SeededEntropy, Wall};
use vango_edge::id::{
    AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, RequestId,
};
use vango_edge::lifecycle::affinity::{Given, KnownBy, Prior};
use vango_edge::lifecycle::answer::Answer;
use vango_edge::lifecycle::enter::{Arrival, Policies, classify, enter};
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::idempotency::ExistingRecord;
use vango_edge::lifecycle::journey::{
    Ask, BodyRefusal, Command, Event, Go, Journey, LedgerFailed, Look, Recorded, Woke,
};
use vango_edge::lifecycle::reply::Reply;
use vango_edge::lifecycle::resume::{Lookup, StoreAnswer};
use vango_edge::lifecycle::trace::{HoldEnd, Step, StepText, Trace, UpstreamFailure};
use vango_edge::lifecycle::validation::Validations;
use vango_edge::record::{
    Allocation, AllocationState, Deployment, Failure, Operation, Record, RouteOwner, WakePhases,
    WakeState, key,
};
use vango_edge::snapshot::{AllocationView, Change, EnvView, Publisher, Snapshot};

/// The wall clock of every request.
pub const WALL: Wall = Wall(1_700_000_000_000);
pub const T0: Mono = Mono(1_000_000_000_000);

/// The sample's contract, as far as the traces need it.
pub const CONTRACT: &str = r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
ready = { path = "/readyz" }
[wake]
budget = "10s"
[scale]
concurrency = 2
[[route]]
path = "/vango/live"
class = "live"
session = ["cookie:vango_session"]
[[route]]
path = "/actions/plain"
class = "action"
max_body = "1KiB"
idempotency = "none"
[[route]]
path = "/actions/edge"
class = "action"
idempotency = "edge"
principal = "cookie:vango_session"
[[route]]
path = "/actions/*"
class = "action"
idempotency = "app"
[[route]]
path = "/webhooks/lost"
class = "webhook"
provider = "github"
secret = "GITHUB_WEBHOOK_SECRET"
[[route]]
path = "/webhooks/defer"
class = "webhook"
provider = "stripe"
secret = "STRIPE_WEBHOOK_SECRET"
when_cold = "defer"
[[route]]
path = "/webhooks/block"
class = "webhook"
provider = "stripe"
secret = "STRIPE_WEBHOOK_SECRET"
when_cold = "block"
[[route]]
path = "/webhooks/again"
class = "webhook"
provider = "stripe"
secret = "STRIPE_WEBHOOK_SECRET"
duplicate = "forward"
[[route]]
path = "/webhooks/*"
class = "webhook"
provider = "stripe"
secret = "STRIPE_WEBHOOK_SECRET"
[[route]]
path = "/*"
class = "page"
"#;

/// The preview's host.
pub const PREVIEW: &str = "pr-7.preview.studylab.localhost";

/// A world of one app, changed by records as the store would change it.
pub struct World {
    pub publisher: Publisher,
    revision: u64,
    pub now: Mono,
    contract: String,
}

pub fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}
pub fn environment() -> Environment {
    "studylab".parse().unwrap()
}
pub fn preview() -> Environment {
    "studylab/pr-7".parse().unwrap()
}
fn deployment_of(environment: Environment, id: DeploymentId, digest: Digest) -> Deployment {
    Deployment {
        id,
        environment,
        digest,
        contract: CONTRACT.into(),
        created: Wall(0),
        files: 1,
        bytes: 1,
        assets: None,
        replaced: None,
        promoted_from: None,
        schema: None,
    }
}
pub fn al(c: char) -> AllocationId {
    format!("al-{}", c.to_string().repeat(16)).parse().unwrap()
}
pub fn dp(n: u8) -> DeploymentId {
    format!("dp-{}", char::from(b'a' + n).to_string().repeat(16)).parse().unwrap()
}

impl World {
    /// studylab is deployed under epoch 1 and asleep.
    pub fn asleep() -> Self {
        Self::asleep_with(CONTRACT)
    }

    /// The same with another contract.
    pub fn asleep_with(contract: &str) -> Self {
        let publisher = Publisher::new();
        let mut world = Self { publisher, revision: 0, now: T0, contract: contract.into() };
        world.deploy(1, Epoch(1));
        world
    }

    /// studylab is deployed, and allocation `a` is ready.
    pub fn hot() -> Self {
        let mut world = Self::asleep();
        world.ready('a');
        world
    }

    /// An allocation under the first deployment's authority is ready.
    pub fn ready(&mut self, c: char) {
        self.allocation(c, Epoch(1), 1, AllocationState::Ready);
    }

    pub fn put(&mut self, key: &str, value: Option<&[u8]>) {
        self.revision += 1;
        let change = Change { key, value };
        let (_, outcome) = self.publisher.publish([change], self.revision, self.now);
        outcome.unwrap();
    }

    pub fn deploy(&mut self, n: u8, epoch: Epoch) {
        let contract = self.contract.clone();
        self.deploy_with(n, epoch, &contract, None);
    }

    /// The same, with another contract and the index of the artifact's static files.
    pub fn deploy_with(&mut self, n: u8, epoch: Epoch, contract: &str, assets: Option<Digest>) {
        self.deployment(n, contract, assets, None);
        self.owner("studylab.localhost", environment(), (dp(n), digest(n)), epoch);
    }

    /// A deployment's record alone.
    pub fn deployment(
        &mut self,
        n: u8,
        contract: &str,
        assets: Option<Digest>,
        replaced: Option<Wall>,
    ) {
        let contract = contract.into();
        let of_production = deployment_of(environment(), dp(n), digest(n));
        let deployment = Deployment { contract, assets, replaced, ..of_production };
        self.put(&key::deployment(&environment(), &dp(n)), Some(&deployment.encode()));
    }

    /// The preview runs artifact 2, asleep.
    pub fn deploy_preview(&mut self) {
        let deployment = deployment_of(preview(), dp(7), digest(2));
        self.put(&key::deployment(&preview(), &dp(7)), Some(&deployment.encode()));
        self.owner(PREVIEW, preview(), (dp(7), digest(2)), Epoch(1));
    }

    fn owner(
        &mut self,
        host: &str,
        environment: Environment,
        (deployment, digest): (DeploymentId, Digest),
        epoch: Epoch,
    ) {
        let (host, path) = (host.parse().unwrap(), "/".into());
        let owner = RouteOwner { host, path, environment, deployment, digest, epoch };
        self.put(&key::owner(&owner.host, "/"), Some(&owner.encode()));
    }

    pub fn allocation(&mut self, c: char, epoch: Epoch, n: u8, state: AllocationState) {
        self.allocation_of(c, epoch, n, state, "op-aaaaaaaaaaaaaaaa");
    }

    pub fn allocation_of(
        &mut self,
        c: char,
        epoch: Epoch,
        n: u8,
        state: AllocationState,
        operation: &str,
    ) {
        let record = Allocation {
            id: al(c),
            environment: environment(),
            generation: Generation(1),
            epoch,
            digest: digest(n),
            state,
            address: Some("127.0.0.1:4000".parse().unwrap()),
            process: None,
            operation: operation.parse().unwrap(),
            created: Wall(0),
            ready: Some(Wall(0)),
        };
        self.put(&key::allocation(&environment(), &al(c)), Some(&record.encode()));
    }

    pub fn gone(&mut self, c: char) {
        self.put(&key::allocation(&environment(), &al(c)), None);
    }

    pub fn operation(&mut self, state: WakeState, failures: u32) {
        let phases = WakePhases {
            reserve_us: Some(100),
            artifact_us: Some(200),
            spawn_us: Some(900),
            ready_us: Some(21_000),
            thaw_us: None,
        };
        self.operation_with(state, failures, phases);
    }

    pub fn operation_with(&mut self, state: WakeState, failures: u32, phases: WakePhases) {
        let record = Operation {
            id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: environment(),
            epoch: Epoch(1),
            digest: digest(1),
            deployment: dp(1),
            state,
            attempt: 1,
            requested: Wall(0),
            changed: Wall(0),
            phases,
            allocation: Some(al('a')),
            failure: (state == WakeState::Failed).then(|| Failure {
                safe: "it exited before it was ready".into(),
                detail: "exit code 3".into(),
                artifact: false,
            }),
            failures,
            backoff_ms: if state == WakeState::Failed { 4_000 } else { 0 },
            typical_ms: 22,
        };
        self.put(&key::operation(&environment()), Some(&record.encode()));
    }

    pub fn after(&mut self, d: Duration) -> &mut Self {
        self.now = self.now + d;
        self
    }

    pub fn view(&self) -> Arc<EnvView> {
        let reader = self.publisher.reader();
        let snapshot = reader.load();
        Arc::clone(snapshot.host("studylab.localhost").unwrap())
    }

    pub fn facts(&self, request: http::request::Builder, path: &str) -> Facts {
        let (parts, ()) =
            request.header("host", "studylab.localhost").body(()).unwrap().into_parts();
        let id = RequestId::random(&SeededEntropy::new(1));
        Facts::parse(&parts, path.as_bytes(), id, self.now).unwrap()
    }

    pub fn begin(&self, request: http::request::Builder, path: &str) -> Journey {
        let (parts, ()) =
            request.header("host", "studylab.localhost").body(()).unwrap().into_parts();
        let id = RequestId::random(&SeededEntropy::new(1));
        let facts = Facts::parse(&parts, path.as_bytes(), id, self.now).unwrap();
        let classified = classify(&self.publisher.reader().load(), &facts).unwrap();
        let mut journey = Journey::begin(facts, classified);
        journey.read_head(&parts.headers, true, WALL);
        journey
    }

    pub fn decide(&self, journey: &mut Journey) -> Next {
        journey.decide(Some(&self.view()), self.now, 0)
    }
}

/// What a decision comes to; the hold queue has room for it.
#[derive(Debug)]
pub enum Next {
    Forward(Placed),
    Wake { hold: bool },
    Hold,
    AskStore,
    ReadBody { limit: u64 },
    Reserve,
    Replay,
    Acknowledge,
    Reply(Reply),
}

/// Where it was placed.
#[derive(Debug)]
pub struct Placed {
    pub allocation: Arc<AllocationView>,
}

/// A journey in a test: what happens to it, and what comes of that.
pub trait Happens {
    fn decide(&mut self, view: Option<&Arc<EnvView>>, now: Mono, pick: u64) -> Next;
    /// The edge's own answer, where `event` leads to one.
    fn happens(&mut self, event: Event, now: Mono) -> Option<Reply>;

    fn report(&mut self, event: Event, now: Mono) -> Command;

    fn recorded(&mut self, found: Lookup);
    fn woke(&mut self, woke: &Woke, now: Mono) -> Option<Reply> {
        self.happens(Event::Woke(woke.clone()), now)
    }
    fn held(
        &mut self,
        end: HoldEnd,
        view: Option<&Arc<EnvView>>,
        now: Mono,
        pick: u64,
    ) -> Option<Reply> {
        let look = Look { view: view.cloned(), pick, reserves: true };
        self.happens(Event::Held { end, granted: None, look }, now)
    }
    fn store_answered(&mut self, answer: StoreAnswer, now: Mono) {
        assert_eq!(self.happens(Event::Store(answer), now), None);
    }
    fn body_read(&mut self, body: &[u8], secrets: &[&[u8]], now: Mono) -> Option<Reply>;
    fn body_refused(&mut self, why: BodyRefusal, now: Mono) -> Reply {
        self.happens(Event::BodyRefused(why), now).unwrap()
    }
    fn reserved(&mut self, found: Option<Box<ExistingRecord>>, now: Mono) {
        assert_eq!(self.happens(Event::Reserved(Ok(found)), now), None);
    }
    /// A record is in the way of what was about to be sent.
    fn found(&mut self, seen: Box<ExistingRecord>, now: Mono) {
        assert_eq!(self.report(Event::Connected, now), Command::Go(Go::Record));
        let found = self.report(Event::Recorded(Ok(Recorded::InTheWay(seen))), now);
        assert_eq!(found, Command::Look);
    }
    /// It is on record as this attempt, and sent.
    fn forwarding(&mut self, attempt: u32, now: Mono) {
        assert_eq!(self.report(Event::Connected, now), Command::Go(Go::Record));
        let recorded = self.report(Event::Recorded(Ok(Recorded::Attempt(attempt))), now);
        assert_eq!(recorded, Command::Go(Go::Send));
    }
    fn ledger_failed(&mut self, event: fn(LedgerFailed) -> Event, now: Mono) -> Reply {
        self.happens(event(LedgerFailed), now).unwrap()
    }
    fn connect_failed(&mut self, now: Mono) -> Option<Reply> {
        self.happens(Event::ConnectFailed, now)
    }
    /// The app's answer begins. What is on no record is sent just before.
    fn answers(&mut self, status: u16, now: Mono) -> Option<Reply>;
    fn upstream_failed(&mut self, failure: UpstreamFailure, now: Mono) -> Reply;
    fn served(&mut self, status: u16, now: Mono);
}

impl Happens for Journey {
    fn decide(&mut self, view: Option<&Arc<EnvView>>, now: Mono, pick: u64) -> Next {
        let look = || Event::Look(Look { view: view.cloned(), pick, reserves: true });
        let mut command = self.next_command();
        loop {
            command = match command {
                Command::Look => self.on(look(), now),
                Command::Do(Ask::FindSession) => self.on(Event::Session(Lookup::NotAsked), now),
                Command::Do(Ask::Enter { .. }) => match self.on(Event::Entered, now) {
                    Command::Do(Ask::Wake) => return Next::Wake { hold: true },
                    Command::Do(Ask::Wait) => return Next::Hold,
                    other => panic!("{other:?}"),
                },
                Command::Do(Ask::Wake) => return Next::Wake { hold: false },
                Command::Do(Ask::AskStore) => return Next::AskStore,
                Command::Do(Ask::ReadBody { limit }) => return Next::ReadBody { limit },
                Command::Do(Ask::Reserve) => return Next::Reserve,
                Command::Do(Ask::ReadStored) => return Next::Replay,
                Command::Go(Go::Connect) => {
                    let allocation = Arc::clone(&self.placement().unwrap().allocation);
                    return Next::Forward(Placed { allocation });
                }
                Command::Go(Go::Tell) => {
                    return match self.answer().unwrap() {
                        Answer::Reply(reply) => Next::Reply(reply.clone()),
                        Answer::Acknowledge => Next::Acknowledge,
                        other => panic!("{other:?}"),
                    };
                }
                other => panic!("{other:?}"),
            };
        }
    }

    fn happens(&mut self, event: Event, now: Mono) -> Option<Reply> {
        match self.on(event, now) {
            Command::Go(Go::Tell) => self.reply().cloned(),
            Command::Go(Go::Stop) => {
                assert!(self.is_gone(), "only a client that has left is given up");
                None
            }
            _ => None,
        }
    }

    fn report(&mut self, event: Event, now: Mono) -> Command {
        self.on(event, now)
    }

    fn recorded(&mut self, found: Lookup) {
        // One without an id has no record to look for.
        if self.session().is_some() {
            assert_eq!(self.next_command(), Command::Do(Ask::FindSession));
            assert_eq!(self.on(Event::Session(found), T0), Command::Look);
        }
    }

    fn body_read(&mut self, body: &[u8], secrets: &[&[u8]], now: Mono) -> Option<Reply> {
        let examined = self.examine(body, secrets);
        self.happens(Event::Body(examined), now)
    }

    fn answers(&mut self, status: u16, now: Mono) -> Option<Reply> {
        if self.ledger_attempt() == 0 {
            assert_eq!(self.on(Event::Connected, now), Command::Go(Go::Send));
        }
        self.happens(Event::Answered { status }, now)
    }

    fn upstream_failed(&mut self, failure: UpstreamFailure, now: Mono) -> Reply {
        if self.ledger_attempt() == 0 {
            assert_eq!(self.on(Event::Connected, now), Command::Go(Go::Send));
        }
        self.happens(Event::Failed(failure), now).unwrap()
    }

    fn served(&mut self, status: u16, now: Mono) {
        assert_eq!(self.answers(status, now), None);
        self.over(Some(status), None, now);
    }
}

/// What `vango-edge explain` shows of a request, where no policy is set.
pub fn explain(
    snapshot: &Snapshot,
    facts: Facts,
    headers: &http::HeaderMap,
    now: Mono,
    wall: Wall,
) -> Trace {
    let arrival = Arrival {
        facts,
        headers,
        refused: None,
        locked: &|_| None,
        validations: &Validations::default(),
    };
    let entered = enter(arrival, snapshot, &Policies::default(), now, wall);
    vango_edge::lifecycle::explain::explain(entered, headers, Lookup::NotAsked, now, wall)
}

/// A page's token that names allocation `c`.
pub fn prior(c: char) -> Prior {
    let known_by = KnownBy::Token { expires: Wall(u64::MAX), given: Given::Page };
    Prior { allocation: al(c), generation: Generation(1), schema: None, known_by }
}

/// The steps of a journey as text.
pub fn steps(journey: &Journey) -> Vec<StepText> {
    journey.trace.steps.iter().map(Step::text).collect()
}

/// One line a step: actor, truth, value, detail.
pub fn lines(journey: &Journey) -> Vec<String> {
    steps(journey)
        .into_iter()
        .map(|s| format!("{} | {} | {} | {}", s.actor, s.truth, s.value, s.detail))
        .collect()
}
