//! Live sockets: the edge takes an accepted upgrade over from Pingora's HTTP engine and carries it
//! itself, so that a silent socket costs no buffers, and an end on one side is an end on the other.
//!
//! A request filter cannot give its connection away: it leaves word with [`take_over`], answers
//! nothing, and the [`Engine`] that called Pingora finds the word and the connection together when
//! the request is over. Pingora gives a connection back only if the client sent nothing beyond its
//! request.
//!
//! [`filter`] is where a request becomes a socket, [`way`] leads it to its allocation, [`upgrade`] is
//! the app's side of the handshake, [`client`] the client's leg, [`carry`] the life of a socket,
//! [`rest`] what may become of a client whose app is gone, [`hello`] the sockets whose first frame says whose they are.
//!
//! Deliberately absent: WebSocket over HTTP/2 (RFC 8441). Clients that speak HTTP/2 open a
//! connection of HTTP/1.1 for it, as browsers do where the setting is not announced.

mod carry;
mod client;
mod filter;
mod hello;
mod rest;
mod upgrade;
mod way;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, Session};

use crate::proxy::client::{Client as Connection, Phase};
use crate::sockets::{Admission, Sockets};
use crate::telemetry::Telemetry;

use super::gate::Gate;
use super::service::EdgeProxy;
use super::turns::{Turns, Urgency};

use carry::Accepted;
use hello::Hello;
use way::Way;

/// What live sockets are carried with.
pub struct LiveParts {
    /// Decides where they go.
    pub gate: Gate,
    /// Those that are open.
    pub sockets: Arc<Sockets>,
    /// Paces those that come.
    pub admission: Admission,
    /// Counts their ends.
    pub telemetry: Arc<Telemetry>,
}

/// What is done with a connection once its request is over; `None` when Pingora did not give it
/// back.
type Word = Box<dyn FnOnce(Option<Stream>) -> BoxFuture<'static, ()> + Send>;

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Option<Word>>>);

tokio::task_local! {
    static TAKEN: Taken;
}

/// Leaves word that the session's connection is to be given to `word` when this request is over.
/// The filter that calls this answers nothing itself. `false` when the request does not run in an
/// [`Engine`], or is not HTTP/1.
pub(super) fn take_over(session: &mut Session, word: Word) -> bool {
    if session.is_http2() {
        return false;
    }
    // What came beyond the request makes Pingora close the connection instead of giving it back.
    session.set_pipelining_enabled(false);
    if let Some(client) = Connection::of(session) {
        client.enter(Phase::Upgraded);
    }
    // Pingora gives back what it would keep alive.
    session.set_keepalive(Some(60));
    session.as_downstream_mut().set_keepalive_reuses_remaining(Some(1));
    TAKEN
        .try_with(|taken| *taken.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(word))
        .is_ok()
}

/// Pingora's HTTP engine, and what was taken over from it.
pub(super) struct Engine {
    proxy: Arc<HttpProxy<EdgeProxy>>,
    turns: Turns,
}

impl Engine {
    pub(super) fn new(proxy: HttpProxy<EdgeProxy>, turns: Turns) -> Self {
        Self { proxy: Arc::new(proxy), turns }
    }
}

#[async_trait]
impl HttpServerApp for Engine {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.is_http2() {
            // A task of its own, which Pingora made. One of HTTP/1.1 is its connection's.
            let urgency = Connection::of(&session).map(|c| Urgency::of_stream(&c.urgency));
            let request = self.proxy.process_new_http(session, shutdown);
            return self.turns.run(urgency.unwrap_or_default(), request).await;
        }
        let taken = Taken::default();
        let request = self.proxy.process_new_http(session, shutdown);
        let reused = TAKEN.scope(taken.clone(), request).await;
        let word = taken.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(word) = word else { return reused };
        let stream = reused.map(|r| r.consume().0);
        // In a task of its own: what Pingora needed for the request is freed.
        tokio::spawn(word(stream));
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxy.server_options()
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
