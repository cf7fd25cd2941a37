//! Asks an app's durable session store whether a session is there: one short question, under a
//! deadline, through a circuit for each environment. What cannot be answered is
//! [`StoreAnswer::Unavailable`], and the session starts fresh.
//!
//! A herd of sockets is no reason for that: [`AT_ONCE`] questions are open to a store at a time, the
//! others wait in order for as long as their sockets may, and a question's time begins when it is sent.
//! Time in which the edge itself did not run is not counted against the store ([`patience`]).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::contract::SessionStore;
use crate::id::Environment;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::resume::StoreAnswer;
use crate::snapshot::{AllocationView, EnvView};

use super::circuit::Circuit;

/// How long a store has for its answer, connecting included, from when it is asked.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// Questions that one environment's store is asked at a time.
pub const AT_ONCE: usize = 32;

/// Reads an operator's secret now.
pub trait StoreSecrets: Send + Sync {
    /// The value of the secret `name` of `environment`.
    ///
    /// # Errors
    /// What is missing, by name, never by value.
    fn read(&self, environment: &Environment, name: &str) -> Result<String, String>;
}

/// A question.
pub struct Ask<'a> {
    /// Whose session, and by which contract it is stored.
    pub view: &'a EnvView,
    /// The allocation that will take it; a runtime service over HTTP is asked there.
    pub target: &'a AllocationView,
    /// The session.
    pub id: &'a SessionId,
}

/// Why a store gave no answer. For the operator; nothing of the URL or the session is in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// A secret is missing or is no URL.
    #[error("{0}")]
    Configured(String),
    /// It could not be reached, or said something else than yes or no.
    #[error("{0}")]
    Away(String),
}

/// A kind of store.
#[async_trait]
pub trait DurableStore: Send + Sync {
    /// Whether the session is there. May be dropped at any time.
    ///
    /// # Errors
    /// [`StoreFailure`]; the next call begins anew.
    async fn has(&self, ask: &Ask<'_>) -> Result<bool, StoreFailure>;
}

/// Every kind of store, behind circuits.
pub struct Stores {
    redis: Box<dyn DurableStore>,
    http: Box<dyn DurableStore>,
    clock: Arc<dyn Clock>,
    /// Of environments whose store failed last; as many as there are environments.
    circuits: Mutex<HashMap<Environment, Circuit>>,
    /// Of environments whose store is being asked.
    turns: Mutex<HashMap<Environment, Arc<Semaphore>>>,
}

impl Stores {
    /// Stores of these adapters.
    pub fn new(
        redis: Box<dyn DurableStore>,
        http: Box<dyn DurableStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { redis, http, clock, circuits: Mutex::default(), turns: Mutex::default() }
    }

    /// Asks when it is its turn, which it waits for until `within` is over; the answer has [`DEADLINE`].
    pub async fn ask(&self, ask: &Ask<'_>, within: Duration) -> StoreAnswer {
        let store = match ask.view.contract.state.as_ref().and_then(|s| s.store.as_ref()) {
            Some(SessionStore::Redis { .. }) => &self.redis,
            Some(SessionStore::Http { .. }) => &self.http,
            None => return StoreAnswer::NotAsked,
        };
        let environment = &ask.view.environment;
        let turns = self.turns(environment);
        let Ok(Ok(_turn)) = tokio::time::timeout(within, turns.acquire()).await else {
            return StoreAnswer::Unavailable;
        };
        let now = self.clock.now();
        if !self.circuit(environment, |c| c.admit(now)) {
            return StoreAnswer::Unavailable;
        }
        let mut admitted = Admitted { stores: self, environment, reported: false };
        let answer = patience(DEADLINE, store.has(ask)).await;
        admitted.reported = true;
        let failure = match answer {
            Ok(Ok(there)) => {
                self.circuit(environment, Circuit::answered);
                return if there { StoreAnswer::Present } else { StoreAnswer::Absent };
            }
            Ok(Err(failure)) => failure.to_string(),
            Err(OutOfPatience) => format!("no answer within {DEADLINE:?}"),
        };
        let now = self.clock.now();
        self.circuit(environment, |c| c.failed(now));
        log::warn!("{environment}: session store: {failure}");
        StoreAnswer::Unavailable
    }

    fn turns(&self, environment: &Environment) -> Arc<Semaphore> {
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = all.get(environment) {
            return Arc::clone(turns);
        }
        // Stores that are not being asked now: the map stays as small as what is going on.
        all.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        all.insert(environment.clone(), Arc::clone(&turns));
        turns
    }

    fn circuit<T>(&self, environment: &Environment, f: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        let circuit = circuits.entry(environment.clone()).or_default();
        let out = f(circuit);
        if circuit.is_fresh() {
            circuits.remove(environment);
        }
        out
    }
}

/// The other side had its time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfPatience;

/// Waits for `answer` for so long, counted in slices: one in which this process did not get to run, since
/// the machine had other work, counts as one slice however long it took. An answer that came meanwhile
/// is taken before the next slice begins.
pub(super) async fn patience<T>(
    time: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, OutOfPatience> {
    const SLICES: u32 = 10;
    let mut answer = pin!(answer);
    for _ in 0..SLICES {
        if let Ok(answer) = tokio::time::timeout(time / SLICES, &mut answer).await {
            return Ok(answer);
        }
    }
    Err(OutOfPatience)
}

/// A call that was admitted and may be dropped before it ends.
struct Admitted<'a> {
    stores: &'a Stores,
    environment: &'a Environment,
    reported: bool,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.stores.circuit(self.environment, Circuit::abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::{ManualClock, Mono, Wall};
    use crate::id::{Digest, Epoch, Generation};
    use crate::lifecycle::affinity::FoundIn;
    use crate::snapshot::{Change, Publisher};
    use crate::store::record::{Allocation, AllocationState, Deployment, Record, RouteOwner, key};

    /// Answers as it is scripted, and then never.
    struct Scripted {
        answers: Mutex<Vec<Result<bool, StoreFailure>>>,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl DurableStore for Scripted {
        async fn has(&self, ask: &Ask<'_>) -> Result<bool, StoreFailure> {
            assert_eq!(ask.id.expose(), "s-1");
            self.asked.fetch_add(1, Ordering::SeqCst);
            let next = self.answers.lock().unwrap().pop();
            match next {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    fn view() -> Arc<EnvView> {
        let environment: Environment = "a".parse().unwrap();
        let digest = Digest::from_bytes([1; 32]);
        let contract = "[app]\nname = \"a\"\n[process]\ncommand = [\"./a\"]\n[state]\nstore = { kind = \
                        \"http\", path = \"/s/{id}\" }\n";
        let deployment = Deployment {
            id: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: environment.clone(),
            digest,
            contract: contract.into(),
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
            address: Some("127.0.0.1:1".parse().unwrap()),
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

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_costs_its_deadline_three_times_and_is_asked_again_later() {
        let clock = Arc::new(ManualClock::new());
        let asked = Arc::new(AtomicUsize::new(0));
        let script = |answers| {
            Box::new(Scripted { answers: Mutex::new(answers), asked: Arc::clone(&asked) })
        };
        let away = || Err(StoreFailure::Away("it said 500".into()));
        // From the last to the first.
        let http = script(vec![Ok(true), away(), Ok(false), Ok(true)]);
        let stores = Stores::new(script(Vec::new()), http, clock.clone());
        let view = view();
        let id = SessionId::new("s-1", FoundIn::Query).unwrap();
        let ask = Ask { view: &view, target: &view.ready[0], id: &id };
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Absent);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        // An answer closes the circuit; silence three times in a row opens it.
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        }
        assert_eq!(began.elapsed(), DEADLINE * 3);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        assert_eq!((began.elapsed(), asked.load(Ordering::SeqCst)), (DEADLINE * 3, 7), "not asked");
        clock.advance(Duration::from_secs(1));
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        assert_eq!(asked.load(Ordering::SeqCst), 8, "one finds out");
    }

    /// Answers after 20 ms, and counts how many ask at once.
    struct Slow(Arc<[AtomicUsize; 2]>);

    #[async_trait]
    impl DurableStore for Slow {
        async fn has(&self, _: &Ask<'_>) -> Result<bool, StoreFailure> {
            let [now, most] = &*self.0;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(true)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_waits_for_its_turn_and_not_on_the_stores_time() {
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let store = || Box::new(Slow(Arc::clone(&counts)));
        let stores = Stores::new(store(), store(), Arc::new(ManualClock::new()));
        let view = view();
        let id = SessionId::new("s-1", FoundIn::Query).unwrap();
        let ask = Ask { view: &view, target: &view.ready[0], id: &id };
        let began = tokio::time::Instant::now();
        let herd = futures_util::future::join_all((0..2000).map(|_| stores.ask(&ask, LONG)));
        assert!(herd.await.iter().all(|a| *a == StoreAnswer::Present));
        // More than twice the store's own time, of which each question took 20 ms.
        assert!(began.elapsed() > DEADLINE * 2);
        assert_eq!(counts[1].load(Ordering::SeqCst), AT_ONCE);
        // One whose turn does not come in its own time is not asked, and is no failure of the store's.
        let mut late = futures_util::future::join_all(
            (0..=AT_ONCE).map(|_| stores.ask(&ask, Duration::from_millis(10))),
        )
        .await;
        assert_eq!(late.pop(), Some(StoreAnswer::Unavailable));
        assert!(late.iter().all(|a| *a == StoreAnswer::Present));
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
    }

    #[tokio::test]
    async fn time_in_which_the_edge_did_not_run_is_not_the_stores() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let busy = async {
            // This thread is the only one: nothing else runs meanwhile.
            std::thread::sleep(DEADLINE * 2);
            let _ = send.send(());
        };
        let (answer, ()) = tokio::join!(patience(DEADLINE, receive), busy);
        assert_eq!(answer, Ok(Ok(())));
        assert_eq!(
            patience(Duration::from_millis(20), std::future::pending::<()>()).await,
            Err(OutOfPatience)
        );
    }
}
