//! What the edge knows of sessions, and whom it asks: its sealed token, the routing record, and the
//! app's own durable store. It answers; what the answers mean is decided in
//! [`crate::lifecycle::resume`].
//!
//! Invariants: nothing here can make a request fail. A token that does not open, a record that is
//! not read in time and a store that is away are answers too. Session ids and keys are in no log,
//! no trace and no record's key.

mod circuit;
mod http_store;
mod keys;
mod redis_store;
mod routes;
mod stores;
mod token;

pub use http_store::HttpStore;
pub use keys::{KeyError, KeyRing};
pub use redis_store::RedisStore;
pub use routes::SessionRoutes;
pub use stores::{DEADLINE, DurableStore, Question, StoreFailure, StoreSecrets, Stores};
pub use token::{Tokens, cookie_name};

use std::sync::Arc;

use http::{HeaderMap, header};

use crate::clock::Wall;
use crate::lifecycle::affinity;
use crate::lifecycle::enter::Classified;
use crate::lifecycle::facts::Facts;

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
    /// Reads into `facts` what names an earlier place of the request's session: the edge's token, and
    /// the session's own id where it counts. Only apps with a live route have sessions that are
    /// somewhere.
    pub fn recognise(
        &self,
        classified: &Classified,
        headers: &HeaderMap,
        now: impl FnOnce() -> Wall,
        facts: &mut Facts,
    ) {
        let view = &classified.view;
        if view.contract.live().is_none() {
            return;
        }
        if headers.contains_key(header::COOKIE) {
            let (host, of, tls) = (&facts.host, &view.environment, facts.is_secure());
            facts.affinity = self.tokens.read(headers, host, tls, of, now());
        }
        // A page's is only for the ring, and with one allocation there is nothing to choose.
        if facts.websocket || (facts.affinity.is_none() && view.ready.len() > 1) {
            let query = facts.query.as_deref();
            facts.session = affinity::session_id(&view.contract, classified.route, headers, query);
        }
    }
}
