//! What every adapter must do. Time passes as it does; each wait is for a condition, or is the deadline
//! itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use vango_edge::clock::{Clock, ManualClock, Mono, SystemClock, Wall};
use vango_edge::id::{Digest, Environment, Epoch, Generation};
use vango_edge::lifecycle::affinity::{FoundIn, SessionId};
use vango_edge::lifecycle::resume::StoreAnswer;
use vango_edge::record::{Allocation, AllocationState, Deployment, Record, RouteOwner, key};
use vango_edge::session::{DEADLINE, DurableStore, Question, StoreFailure, StoreSecrets, Stores};
use vango_edge::snapshot::{Change, EnvView, Publisher};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(3);

/// A store that is really there, as an app would have it.
pub trait Backend: Send + Sync {
    /// The adapter under test, new.
    fn adapter(&self) -> Box<dyn DurableStore>;
    /// An environment whose contract names the store.
    fn view(&self) -> Arc<EnvView>;
    /// Keeps a session.
    fn keep(&self, id: &str);
    /// Takes no connection, and ends those that are open.
    fn leave(&mut self);
    /// Takes what is said, and says nothing.
    fn fall_silent(&mut self);
    /// Answers again, with what it had.
    fn come_back(&mut self);
    /// What must be in no error.
    fn secret(&self) -> String;
}

/// The operator's one secret.
pub struct Secret(pub String);

impl StoreSecrets for Secret {
    fn read(&self, _environment: &Environment, name: &str) -> Result<String, String> {
        assert_eq!(name, "STORE_URL");
        Ok(self.0.clone())
    }
}

/// An environment with this `state.store` and one ready allocation at `address`.
pub fn view(store: &str, address: &str) -> Arc<EnvView> {
    let environment: Environment = "a".parse().unwrap();
    let digest = Digest::from_bytes([1; 32]);
    let deployment = Deployment {
        id: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: environment.clone(),
        digest,
        contract: format!(
            "[app]\nname = \"a\"\n[process]\ncommand = [\"./a\"]\n[state]\nstore = {store}\n"
        ),
        created: Wall(0),
        files: 0,
        bytes: 0,
        assets: None,
        replaced: None,
        promoted_from: None,
        schema: None,
    };
    let owner = RouteOwner {
        host: "a.test".parse().unwrap(),
        path: "/".into(),
        environment: environment.clone(),
        deployment: deployment.id.clone(),
        digest,
        epoch: Epoch(1),
    };
    let allocation = Allocation {
        id: "al-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: environment.clone(),
        generation: Generation(1),
        epoch: Epoch(1),
        digest,
        state: AllocationState::Ready,
        address: Some(address.parse().unwrap()),
        process: None,
        operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        created: Wall(0),
        ready: Some(Wall(0)),
    };
    let records = [
        (key::deployment(&environment, &deployment.id), deployment.encode()),
        (key::owner(&owner.host, "/"), owner.encode()),
        (key::allocation(&environment, &allocation.id), allocation.encode()),
    ];
    let mut publisher = Publisher::new();
    let changes = records.iter().map(|(key, value)| Change { key, value: Some(value) });
    publisher.publish(changes, 1, Mono(1)).1.unwrap();
    let snapshot = publisher.reader().load().clone();
    Arc::clone(snapshot.environment(&environment).unwrap())
}

fn id(text: &str) -> SessionId {
    SessionId::new(text, FoundIn::Query).unwrap()
}

async fn has(
    store: &dyn DurableStore,
    view: &EnvView,
    session: &str,
) -> Result<bool, StoreFailure> {
    let asked = id(session);
    let ask = Question { view, target: &view.ready[0], id: &asked };
    tokio::time::timeout(PATIENCE, store.has(&ask)).await.expect("an answer or a failure")
}

/// An adapter for one kind that stands for both.
struct Same(Arc<dyn DurableStore>);

#[async_trait]
impl DurableStore for Same {
    async fn has(&self, ask: &Question<'_>) -> Result<bool, StoreFailure> {
        self.0.has(ask).await
    }
}

/// The backend's store behind its circuit.
fn stores(backend: &impl Backend, clock: Arc<dyn Clock>) -> Stores {
    let one: Arc<dyn DurableStore> = Arc::from(backend.adapter());
    Stores::new(Box::new(Same(Arc::clone(&one))), Box::new(Same(one)), clock)
}

async fn ask(stores: &Stores, view: &EnvView, session: &str) -> StoreAnswer {
    let asked = id(session);
    stores.ask(&Question { view, target: &view.ready[0], id: &asked }, DEADLINE).await
}

pub async fn what_is_there_is_there_and_nothing_else_is(backend: impl Backend) {
    let (store, view) = (backend.adapter(), backend.view());
    let longest = "L".repeat(128);
    let kept = ["s-1", "A_b.c~d-9", "0", longest.as_str()];
    for session in kept {
        assert!(!has(&*store, &view, session).await.unwrap(), "{session}");
        backend.keep(session);
        assert!(has(&*store, &view, session).await.unwrap(), "{session}");
    }
    for other in ["s-", "s-11", "S-1", "a_b.c~d-9", "00", &longest[1..]] {
        assert!(!has(&*store, &view, other).await.unwrap(), "{other}");
    }
}

pub async fn one_that_is_away_is_no_answer_and_is_asked_again_when_it_is_back(
    mut backend: impl Backend,
) {
    let (store, view) = (backend.adapter(), backend.view());
    backend.keep("geheim-1");
    for _ in 0..2 {
        assert!(has(&*store, &view, "geheim-1").await.unwrap());
        backend.leave();
        for _ in 0..3 {
            let failure = has(&*store, &view, "geheim-1").await.unwrap_err();
            let said = format!("{failure} {failure:?}");
            assert!(matches!(failure, StoreFailure::Away(_)), "{said}");
            assert!(!said.contains("geheim") && !said.contains(&backend.secret()), "{said}");
        }
        backend.come_back();
    }
    assert!(has(&*store, &view, "geheim-1").await.unwrap(), "the same adapter, without a restart");
    assert!(!has(&*store, &view, "geheim-2").await.unwrap());
}

pub async fn one_that_is_silent_costs_the_deadline_and_no_more(mut backend: impl Backend) {
    let (stores, view) = (stores(&backend, Arc::new(SystemClock::new())), backend.view());
    backend.keep("s-1");
    assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Present);
    backend.fall_silent();
    let clock = SystemClock::new();
    let began = clock.now();
    assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Unavailable);
    let took = clock.now().since(began);
    // An adapter may give up a little earlier by a deadline of its own.
    assert!(took >= DEADLINE * 9 / 10 && took < DEADLINE + SLACK, "{took:?}");
    backend.come_back();
    assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Present);
}

pub async fn after_three_failures_no_caller_waits_until_one_finds_it_back(
    mut backend: impl Backend,
) {
    let clock = Arc::new(ManualClock::new());
    let (stores, view) = (stores(&backend, clock.clone()), backend.view());
    backend.keep("s-1");
    for opened in 1..=2 {
        backend.leave();
        for _ in 0..3 {
            assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Unavailable);
        }
        backend.come_back();
        // It is back, and the edge does not know it yet: the circuit is open.
        assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Unavailable, "time {opened}");
        clock.advance(Duration::from_millis(500));
        assert_eq!(ask(&stores, &view, "s-1").await, StoreAnswer::Present, "time {opened}");
        assert_eq!(ask(&stores, &view, "s-2").await, StoreAnswer::Absent, "time {opened}");
    }
}

pub async fn a_question_that_is_given_up_harms_no_other(mut backend: impl Backend) {
    let (store, view) = (backend.adapter(), backend.view());
    backend.keep("s-1");
    assert!(has(&*store, &view, "s-1").await.unwrap());
    backend.fall_silent();
    let asked = id("s-1");
    let ask = Question { view: &view, target: &view.ready[0], id: &asked };
    // Long enough to be on its way, and shorter than any deadline of an adapter's own.
    assert!(tokio::time::timeout(DEADLINE / 5, store.has(&ask)).await.is_err());
    backend.come_back();
    assert!(has(&*store, &view, "s-1").await.unwrap());
    assert!(!has(&*store, &view, "s-2").await.unwrap(), "not the answer to the question before");
}

pub async fn many_questions_at_once_get_their_own_answers(backend: impl Backend) {
    let (store, view): (Arc<dyn DurableStore>, _) = (Arc::from(backend.adapter()), backend.view());
    for n in (0..200).step_by(2) {
        backend.keep(&format!("s-{n}"));
    }
    let all: Vec<_> = (0..200)
        .map(|n| {
            let (store, view) = (Arc::clone(&store), Arc::clone(&view));
            tokio::spawn(async move { (n, has(&*store, &view, &format!("s-{n}")).await.unwrap()) })
        })
        .collect();
    for asked in all {
        let (n, there) = asked.await.unwrap();
        assert_eq!(there, n % 2 == 0, "s-{n}");
    }
}
