//! `state.store = { kind = "redis", … }`: `EXISTS key`, over one multiplexed connection for each
//! environment. A connection that failed is dropped and made anew, with the secret read anew, by
//! the next question; the circuit spaces those.
//!
//! Over `rediss://` the server's certificate must be one that the system trusts (`SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name others), for the URL's host.
//!
//! Deliberately absent: certificates of clients, clusters, and everything but this one command.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;

use crate::contract::SessionStore;
use crate::id::Environment;

use super::durable::{Ask, DEADLINE, DurableStore, StoreFailure, StoreSecrets};

/// Connections that are kept; beyond, all are made anew.
const MOST: usize = 1024;

/// Asks Redis.
pub struct RedisStore {
    secrets: Arc<dyn StoreSecrets>,
    connections: Mutex<HashMap<(Environment, String), MultiplexedConnection>>,
}

impl RedisStore {
    /// Finds the URLs in `secrets`.
    pub fn new(secrets: Arc<dyn StoreSecrets>) -> Self {
        Self { secrets, connections: Mutex::default() }
    }

    fn connections(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<(Environment, String), MultiplexedConnection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(
        &self,
        environment: &Environment,
        secret: &str,
    ) -> Result<MultiplexedConnection, StoreFailure> {
        let at = (environment.clone(), secret.to_owned());
        if let Some(open) = self.connections().get(&at) {
            return Ok(open.clone());
        }
        let url = self.secrets.read(environment, secret).map_err(StoreFailure::Configured)?;
        // The error may quote the URL, which may carry a password.
        let client = redis::Client::open(url).map_err(|_| {
            let why =
                "expected redis[s]://[user:password@]host[:port][/db] or redis+unix:///socket";
            StoreFailure::Configured(format!("secret {secret}: {why}"))
        })?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE));
        let made = client.get_multiplexed_async_connection_with_config(&config).await;
        let made = made.map_err(|e| StoreFailure::Away(kind(&e)))?;
        let mut connections = self.connections();
        if connections.len() >= MOST {
            connections.clear();
        }
        connections.insert(at, made.clone());
        Ok(made)
    }
}

/// What went wrong, without what was said.
fn kind(e: &redis::RedisError) -> String {
    format!("Redis: {:?}", e.kind())
}

#[async_trait]
impl DurableStore for RedisStore {
    async fn has(&self, ask: &Ask<'_>) -> Result<bool, StoreFailure> {
        let Some(SessionStore::Redis { secret, key }) =
            ask.view.contract.state.as_ref().and_then(|s| s.store.as_ref())
        else {
            return Err(StoreFailure::Configured("the contract names no Redis".into()));
        };
        let environment = &ask.view.environment;
        let mut connection = self.connection(environment, secret).await?;
        // Until it is answered nobody else should be given a connection that may hang.
        let at = (environment.clone(), secret.clone());
        let key = key.replace("{id}", ask.id.expose());
        let mut forget = ForgetUnlessAnswered { store: self, at: Some(at) };
        let there: Result<bool, _> =
            redis::cmd("EXISTS").arg(key).query_async(&mut connection).await;
        let there = there.map_err(|e| StoreFailure::Away(kind(&e)))?;
        forget.at = None;
        Ok(there)
    }
}

struct ForgetUnlessAnswered<'a> {
    store: &'a RedisStore,
    at: Option<(Environment, String)>,
}

impl Drop for ForgetUnlessAnswered<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at.take() {
            self.store.connections().remove(&at);
        }
    }
}
