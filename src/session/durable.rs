//! Asks an app's durable session store whether a session is there: one short question, under a
//! deadline, through a circuit for each environment. What cannot be answered is
//! [`StoreAnswer::Unavailable`], and the session starts fresh.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::contract::SessionStore;
use crate::id::Environment;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::resume::StoreAnswer;
use crate::snapshot::{AllocationView, EnvView};

use super::circuit::Circuit;

/// How long a live socket waits for the store's answer, connecting included.
pub const DEADLINE: Duration = Duration::from_millis(500);

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
}

impl Stores {
    /// Stores of these adapters.
    pub fn new(
        redis: Box<dyn DurableStore>,
        http: Box<dyn DurableStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { redis, http, clock, circuits: Mutex::default() }
    }

    /// Asks, within [`DEADLINE`].
    pub async fn ask(&self, ask: &Ask<'_>) -> StoreAnswer {
        let store = match ask.view.contract.state.as_ref().and_then(|s| s.store.as_ref()) {
            Some(SessionStore::Redis { .. }) => &self.redis,
            Some(SessionStore::Http { .. }) => &self.http,
            None => return StoreAnswer::NotAsked,
        };
        let environment = &ask.view.environment;
        let now = self.clock.now();
        if !self.circuit(environment, |c| c.admit(now)) {
            return StoreAnswer::Unavailable;
        }
        let mut admitted = Admitted { stores: self, environment, reported: false };
        let answer = tokio::time::timeout(DEADLINE, store.has(ask)).await;
        admitted.reported = true;
        let failure = match answer {
            Ok(Ok(there)) => {
                self.circuit(environment, Circuit::answered);
                return if there { StoreAnswer::Present } else { StoreAnswer::Absent };
            }
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        let now = self.clock.now();
        self.circuit(environment, |c| c.failed(now));
        log::warn!("{environment}: session store: {failure}");
        StoreAnswer::Unavailable
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
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Present);
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Absent);
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Unavailable);
        // An answer closes the circuit; silence three times in a row opens it.
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Present);
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(stores.ask(&ask).await, StoreAnswer::Unavailable);
        }
        assert_eq!(began.elapsed(), DEADLINE * 3);
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Unavailable);
        assert_eq!((began.elapsed(), asked.load(Ordering::SeqCst)), (DEADLINE * 3, 7), "not asked");
        clock.advance(Duration::from_secs(1));
        assert_eq!(stores.ask(&ask).await, StoreAnswer::Unavailable);
        assert_eq!(asked.load(Ordering::SeqCst), 8, "one finds out");
    }
}
