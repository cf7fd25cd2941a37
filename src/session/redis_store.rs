//! `state.store = { kind = "redis", … }`: `EXISTS key`, over one multiplexed connection for each
//! environment, which one question makes and the others wait for: a herd of sockets opens one. A
//! connection that failed is dropped and made anew, with the secret read anew, by the next question;
//! the circuit spaces those.
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

use super::stores::{DEADLINE, DurableStore, Question, StoreFailure, StoreSecrets};

/// Connections that are kept; beyond, all are made anew.
const MOST: usize = 1024;

/// A connection is an environment's, by the name of the secret with its URL.
type At = (Environment, String);

/// A connection, once it is made; locked while one question makes it.
type SharedConnection = Arc<tokio::sync::Mutex<Option<MultiplexedConnection>>>;

/// Asks Redis.
pub struct RedisStore {
    secrets: Arc<dyn StoreSecrets>,
    connections: Mutex<HashMap<At, SharedConnection>>,
}

impl RedisStore {
    /// Finds the URLs in `secrets`.
    pub fn new(secrets: Arc<dyn StoreSecrets>) -> Self {
        Self { secrets, connections: Mutex::default() }
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<At, SharedConnection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, at: &At) -> SharedConnection {
        let mut connections = self.connections();
        if connections.len() >= MOST && !connections.contains_key(at) {
            connections.clear();
        }
        Arc::clone(connections.entry(at.clone()).or_default())
    }

    async fn connection(
        &self,
        (environment, secret): &At,
        slot: &SharedConnection,
    ) -> Result<MultiplexedConnection, StoreFailure> {
        let mut open = slot.lock().await;
        if let Some(open) = &*open {
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
            // The question's own patience is shorter, and knows what time was the edge's own.
            .set_connection_timeout(Some(DEADLINE * 10))
            .set_response_timeout(Some(DEADLINE * 10));
        let made = client.get_multiplexed_async_connection_with_config(&config).await;
        let made = made.map_err(|e| match e.kind() {
            redis::ErrorKind::InvalidClientConfig => {
                StoreFailure::Configured(format!("secret {secret}: {}", kind(&e)))
            }
            _ => StoreFailure::Away(kind(&e)),
        })?;
        Ok(open.insert(made).clone())
    }
}

/// What went wrong, without what was said.
fn kind(e: &redis::RedisError) -> String {
    format!("Redis: {:?}", e.kind())
}

#[async_trait]
impl DurableStore for RedisStore {
    async fn has(&self, question: &Question<'_>) -> Result<bool, StoreFailure> {
        let Some(SessionStore::Redis { secret, key }) =
            question.view.contract.state.as_ref().and_then(|s| s.store.as_ref())
        else {
            return Err(StoreFailure::Configured("the contract names no Redis".into()));
        };
        let at = (question.view.environment.clone(), secret.clone());
        let slot = self.slot(&at);
        let mut connection = self.connection(&at, &slot).await?;
        let key = key.replace("{id}", question.id.expose());
        let mut forget = ForgetUnlessAnswered { store: self, at: Some((at, slot)) };
        let there: Result<bool, _> =
            redis::cmd("EXISTS").arg(key).query_async(&mut connection).await;
        let there = there.map_err(|e| StoreFailure::Away(kind(&e)))?;
        forget.at = None;
        Ok(there)
    }
}

/// A connection that did not answer is given to no other caller; one that was made since is kept.
struct ForgetUnlessAnswered<'a> {
    store: &'a RedisStore,
    at: Option<(At, SharedConnection)>,
}

impl Drop for ForgetUnlessAnswered<'_> {
    fn drop(&mut self) {
        if let Some((at, slot)) = self.at.take() {
            let mut connections = self.store.connections();
            if connections.get(&at).is_some_and(|there| Arc::ptr_eq(there, &slot)) {
                connections.remove(&at);
            }
        }
    }
}
