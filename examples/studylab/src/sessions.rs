//! Where live sessions are kept besides this process's memory, so that another allocation can go on
//! with one: in the product database, or in Redis if `STUDYLAB_SESSION_STORE` says so.
//!
//! The edge asks before it promises: `GET /internal/sessions/{id}` answers 200 for a session that is
//! there and 404 for one that is not; from outside the edge answers that path itself. In Redis it
//! looks for the key.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::actions::problem;
use crate::app::{App, NO_STORE};
use crate::store::{Store, StoreError};

/// How long a session is kept in Redis after its last change, in seconds.
const KEPT: u64 = 24 * 3600;
const REDIS_WITHIN: Duration = Duration::from_secs(2);

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub count: u64,
    /// Hash of the schema it was written under.
    pub schema: String,
}

/// Why a session could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Database(#[from] StoreError),
    #[error("session store: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("session store: no answer in time")]
    Silent,
    #[error("session store: what is stored is not a session")]
    Damaged,
}

/// A Redis, and the connection that is open to it.
pub struct Redis {
    client: redis::Client,
    open: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

/// The durable store of sessions.
pub enum SessionStore {
    Database(Store),
    Redis(Box<Redis>),
}

impl SessionStore {
    /// Redis at `url`, or the product database.
    pub fn new(url: Option<&str>, database: &Store) -> Result<Self, redis::RedisError> {
        Ok(match url {
            Some(url) => {
                let client = redis::Client::open(url)?;
                Self::Redis(Box::new(Redis { client, open: tokio::sync::Mutex::default() }))
            }
            None => Self::Database(database.clone()),
        })
    }

    /// What it is, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
            Self::Redis(_) => "redis",
        }
    }

    /// The session, if it is there.
    pub async fn read(&self, id: &str) -> Result<Option<Stored>, SessionError> {
        match self {
            Self::Database(store) => {
                let id = id.to_owned();
                Ok(store.read(move |database| database.session(&id)).await?)
            }
            Self::Redis(_) => {
                let found: Option<String> =
                    self.redis(|mut c| async move { c.get(key(id)).await }).await?;
                found
                    .map(|text| serde_json::from_str(&text).map_err(|_| SessionError::Damaged))
                    .transpose()
            }
        }
    }

    /// Writes the session, before a client is told of the change.
    pub async fn write(&self, id: &str, session: Stored) -> Result<(), SessionError> {
        match self {
            Self::Database(store) => {
                let id = id.to_owned();
                Ok(store.write(move |database| database.keep_session(&id, &session)).await?)
            }
            Self::Redis(_) => {
                let text = serde_json::to_string(&session).map_err(|_| SessionError::Damaged)?;
                self.redis(|mut c| async move { c.set_ex(key(id), text, KEPT).await }).await
            }
        }
    }

    async fn redis<T, F, A>(&self, ask: F) -> Result<T, SessionError>
    where
        F: FnOnce(MultiplexedConnection) -> A,
        A: Future<Output = redis::RedisResult<T>>,
    {
        let Self::Redis(redis) = self else { return Err(SessionError::Damaged) };
        let Redis { client, open } = &**redis;
        let asked = async {
            let mut open = open.lock().await;
            let connection = match open.as_ref() {
                Some(connection) => connection.clone(),
                None => open.insert(client.get_multiplexed_async_connection().await?).clone(),
            };
            drop(open);
            ask(connection).await
        };
        let answer = timeout(REDIS_WITHIN, asked).await;
        if !matches!(answer, Ok(Ok(_))) {
            // The next one connects anew.
            *open.lock().await = None;
        }
        Ok(answer.map_err(|_| SessionError::Silent)??)
    }
}

/// As the contract's `state.store` names it.
fn key(id: &str) -> String {
    format!("vango:session:{id}")
}

/// The edge's question.
pub async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.durable.read(&id).await {
        Ok(Some(_)) => ([NO_STORE], "there\n").into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, [NO_STORE], "not there\n").into_response(),
        Err(e) => problem(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()),
    }
}

/// The hash that this artifact declares, which is what it writes under.
pub fn own_schema() -> String {
    #[derive(Deserialize)]
    struct Schema {
        #[serde(rename = "schemaHash")]
        hash: String,
    }
    let declared = std::fs::read("vango_state_schema.json").ok();
    let parsed = declared.and_then(|text| serde_json::from_slice::<Schema>(&text).ok());
    parsed.map_or_else(String::new, |schema| schema.hash)
}
