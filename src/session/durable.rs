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
