//! What every handler sees, and which handler answers what.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::assets::Assets;
use crate::identity::Identity;
use crate::live::Sessions;
use crate::sessions::SessionStore;
use crate::store::Store;
use crate::switches::Switches;
use crate::{actions, assets, dashboard, debug, live, sessions};

/// The process, as its handlers see it.
pub struct App {
    pub switches: Switches,
    pub identity: Identity,
    pub store: Store,
    pub assets: Assets,
    pub sessions: Sessions,
    /// Where sessions are kept for other allocations.
    pub durable: SessionStore,
    /// The schema that this artifact writes them under.
    pub schema: String,
    /// When the process began.
    pub began: Instant,
    /// How long after that it was ready; unset until then.
    pub ready: OnceLock<Duration>,
    /// Dashboard renders by this process.
    pub renders: std::sync::atomic::AtomicU64,
    /// When the process was asked to stop.
    pub stop: Stop,
}

/// The wish of SIGTERM or SIGINT. Clones hear the same one.
#[derive(Clone)]
pub struct Stop(pub watch::Receiver<bool>);

impl Stop {
    /// Returns once the process was asked to stop. Cancel safe.
    pub async fn asked(&mut self) {
        // An error means that no sender is left, which is a reason to stop too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Dynamic answers are for one request only.
pub const NO_STORE: (header::HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

/// Every route.
pub fn router(app: Arc<App>) -> Router {
    let mut routes = Router::new()
        .route("/", get(|| async { Redirect::to("/dashboard") }))
        .route("/dashboard", get(dashboard::show))
        .route("/vango/live", get(live::connect))
        .route("/actions/save", post(actions::save))
        .route("/actions/submit", post(actions::submit))
        .route("/webhooks/stripe", post(actions::stripe))
        .route("/assets/{*path}", get(assets::serve))
        .route("/internal/sessions/{id}", get(sessions::show))
        .route("/readyz", get(readyz))
        .route("/healthz", get(|| async { ([NO_STORE], "ok\n") }));
    if app.switches.debug {
        routes = routes
            .route("/debug/executions", get(debug::executions))
            .route("/debug/echo", any(debug::echo))
            .route("/debug/slow", get(debug::slow))
            .route("/debug/bytes", get(debug::bytes))
            .route("/debug/exit", post(debug::exit));
    }
    if app.switches.ready_delay.is_some() {
        // Otherwise nothing is accepted before readiness, and no request pays for this.
        routes = routes.layer(from_fn_with_state(Arc::clone(&app), only_when_ready));
    }
    routes.with_state(app)
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.ready.get().is_some() { ([NO_STORE], "ready\n").into_response() } else { not_ready() }
}

async fn only_when_ready(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.ready.get().is_some() { next.run(request).await } else { not_ready() }
}

fn not_ready() -> Response {
    let headers = [NO_STORE, (header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "starting\n").into_response()
}
