//! What the edge knows of sessions, and whom it asks: its sealed token, the routing record, and the
//! app's own durable store. It answers; what the answers mean is decided in
//! [`crate::lifecycle::resume`].
//!
//! Invariants: nothing here can make a request fail. A token that does not open, a record that is
//! not read in time and a store that is away are answers too. Session ids and keys are in no log,
//! no trace and no record's key.

mod circuit;
mod durable;
mod http;
mod keys;
mod redis;
mod routes;
mod token;

pub use durable::{Ask, DurableStore, StoreFailure, StoreSecrets, Stores};
pub use http::HttpStore;
pub use keys::{KeyError, KeyRing};
pub use redis::RedisStore;
pub use routes::SessionRoutes;
pub use token::{Tokens, cookie_name};

use std::sync::Arc;

use crate::id::Environment;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::resume::{Lookup, StoreAnswer};

/// Everything the proxy asks about sessions.
pub struct Sessions {
    /// The edge's token.
    pub tokens: Tokens,
    /// Routing records.
    pub routes: Arc<SessionRoutes>,
    /// Apps' durable stores.
    pub stores: Stores,
}

impl Sessions {
    /// Looks the session's routing record up.
    pub async fn look_up(&self, environment: &Environment, id: &SessionId) -> Lookup {
        self.routes.find(environment, id.name()).await
    }

    /// Asks the app's durable store for the session.
    pub async fn ask(&self, ask: &Ask<'_>) -> StoreAnswer {
        self.stores.ask(ask).await
    }
}
