//! Pingora's HTTP engine as the edge has it, over the connections of [`crate::wire`]: how it is set up, how a
//! connection is taken over from it, and what it and its connections tell the edge.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::memory::H2Memory;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, Session};

use crate::clock::{Clock, Mono};
use crate::config::ClientConfig;
use crate::lifecycle::facts::{BadRequest, ErrorForm};
use crate::lifecycle::journey::MAX_ATTEMPTS;
use crate::lifecycle::page::Brand;
use crate::lifecycle::trace::Trace;
use crate::telemetry::TraceRecord;
use crate::wire::turns::{self, Urgency};
use crate::wire::{self, AcceptRules, Client, Cut, Observer, Phase};

use super::edge::EdgeProxy;
use super::gate::Gate;
use super::head::NAME;

/// A client that resets HTTP/2 streams before they are accepted, or makes the edge reset them
/// (CVE-2023-44487, CVE-2025-8671), is sent away after so many.
const H2_RESETS: usize = 20;

/// The proxy's HTTP engine and its connections.
pub type Serving = wire::Serving<Engine>;

/// Serves with `proxy`. `threads` is how many serve, which sizes the pool of connections to allocations.
pub fn serving(
    proxy: EdgeProxy,
    threads: usize,
    client: &ClientConfig,
    rules: Arc<ArcSwap<AcceptRules>>,
) -> Serving {
    let conf = ServerConf {
        threads,
        // All attempts of one request; what is tried again is decided by the lifecycle.
        max_retries: MAX_ATTEMPTS as usize + 1,
        ..ServerConf::default()
    };
    let gate = Arc::clone(&proxy.gate);
    let mut proxy = HttpProxy::new(proxy, Arc::new(conf));
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(client.connection.idle);
    options.h2_memory = Some((
        H2Memory::new(client.h2_memory, client.connection.min_response_rate),
        client.h2_window,
    ));
    proxy.server_options = Some(options);
    let mut offered = default_h2_options();
    offered
        .max_concurrent_streams(client.h2_streams)
        .initial_window_size(client.h2_window)
        .initial_connection_window_size(client.h2_window.saturating_mul(4))
        .max_header_list_size(u32::try_from(client.connection.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_RESETS)
        .max_local_error_reset_streams(Some(H2_RESETS));
    proxy.h2_options = Some(offered);
    proxy.handle_init_modules();
    let (clock, entropy) = (Arc::clone(&gate.clock), Arc::clone(&gate.entropy));
    let engine = Arc::new(Engine { proxy: Arc::new(proxy), clock: Arc::clone(&clock) });
    let places = Arc::clone(&gate.connections);
    Serving::new(engine, rules, places, gate, clock, entropy)
}

/// Pingora's HTTP engine, and what was taken over from it.
pub struct Engine {
    proxy: Arc<HttpProxy<EdgeProxy>>,
    clock: Arc<dyn Clock>,
}

/// What is done with a connection once its request is over; `None` when Pingora did not give it
/// back.
type Then = Box<dyn FnOnce(Option<Stream>) -> BoxFuture<'static, ()> + Send>;

type TakenOver = Arc<Mutex<Option<Then>>>;

tokio::task_local! {
    static TAKEN_OVER: TakenOver;
}

/// Gives the session's connection to `then` when this request is over. The filter that calls this answers
/// nothing itself, since a filter cannot give its connection away: the [`Engine`] that called Pingora finds
/// `then` and the connection together. Pingora gives a connection back only if the client sent nothing beyond
/// its request. Where the request does not run in an [`Engine`], or is not HTTP/1, `then` is dropped.
pub fn take_over(session: &mut Session, then: Then) {
    if session.is_http2() {
        return;
    }
    // What came beyond the request makes Pingora close the connection instead of giving it back.
    session.set_pipelining_enabled(false);
    if let Some(client) = Client::of(session) {
        client.enter(Phase::Upgraded);
    }
    // Pingora gives back what it would keep alive.
    session.set_keepalive(Some(60));
    session.as_downstream_mut().set_keepalive_reuses_remaining(Some(1));
    let _ = TAKEN_OVER.try_with(|taken| {
        *taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(then);
    });
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
            let urgency = Client::of(&session).map(|c| Urgency::of_stream(&c.urgency));
            let request = self.proxy.process_new_http(session, shutdown);
            return turns::run(&self.clock, urgency.unwrap_or_default(), request).await;
        }
        let taken = TakenOver::default();
        let request = self.proxy.process_new_http(session, shutdown);
        let reused = TAKEN_OVER.scope(taken.clone(), request).await;
        let then = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(then) = then else { return reused };
        let stream = reused.map(|r| r.consume().0);
        // In a task of its own: what Pingora needed for the request is freed.
        tokio::spawn(then(stream));
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

impl Observer for Gate {
    fn opened(&self) -> Box<dyn Any + Send> {
        Box::new(self.telemetry.metrics.opened())
    }

    fn cut(&self, why: Cut) {
        self.telemetry.metrics.cut(why);
    }

    /// Counted and traced like any other refusal. Pingora would answer before any callback, empty, as
    /// `Server: Pingora`, and with nothing by which it could be found again.
    fn unreadable(&self, client: IpAddr, why: BadRequest, began: Mono) -> Vec<u8> {
        let (id, now) = (self.request_id(), self.clock.now());
        let received = if began == Mono(0) { now } else { began };
        let (mut trace, reply) = Trace::unreadable(id, received, why, now);
        let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_REQUEST);
        let (content_type, body) = reply.body(ErrorForm::Problem, id, Brand::plain());
        let mut head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\nX-Request-Id: {id}\r\n",
            body.len()
        );
        for (name, value) in reply.headers(NAME) {
            head += &format!("{name}: {value}\r\n");
        }
        trace.client = Some(client);
        // No method has this name.
        let method = Method::from_bytes(b"-").unwrap_or_default();
        let (host, path, at) = (String::new(), String::new(), self.clock.wall());
        let record = TraceRecord::new(method, host, path, trace, now, at);
        self.telemetry.unrouted(TraceRecord { status: Some(reply.status), ..record });
        [head.as_bytes(), b"\r\n", body.as_bytes()].concat()
    }
}
