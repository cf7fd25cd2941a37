//! The admin API: request → command or view. No decisions. Loopback only; requests that a browser
//! was tricked into are refused by their `Host` (DNS rebinding) and `Origin` (CSRF).

mod api;
pub mod types;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, head, post};

use crate::control::Control;
use crate::runner::Runner;

/// What the admin API works with.
#[derive(Clone)]
pub struct Admin {
    /// Commands and views.
    pub control: Arc<Control>,
    /// Logs of allocations.
    pub runner: Arc<dyn Runner>,
    /// Whether this edge takes traffic; `/readyz` says so.
    pub ready: Arc<AtomicBool>,
}

/// Serves until `stop` resolves.
///
/// # Errors
/// When the socket cannot be served.
pub async fn serve(
    listener: tokio::net::TcpListener,
    admin: Admin,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(admin)).with_graceful_shutdown(stop).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(api::metrics))
        .route("/v1/routes", get(api::routes))
        .route("/v1/allocations", get(api::allocations))
        .route("/v1/allocations/{id}/log", get(api::log))
        .route("/v1/operations", get(api::operations))
        .route("/v1/deployments", get(api::deployments).post(api::deploy))
        .route("/v1/blobs/{digest}", head(api::has_blob).put(api::put_blob))
        .route("/v1/traces", get(api::traces))
        .route("/v1/explain", post(api::explain))
        .route("/v1/environments/{app}/{name}/sleep", post(api::sleep))
        .route("/v1/environments/{app}/{name}/wake", post(api::wake))
        .fallback(|| async {
            api::Problem::new(StatusCode::NOT_FOUND, "no such resource of the admin API")
        })
        .layer(middleware::from_fn(own_host_only))
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

/// `Host` must be a loopback name: a page that points its own name at 127.0.0.1 has another one.
/// `Origin`, which a browser sends with anything that changes something, must be this API's own.
async fn own_host_only(request: Request, next: Next) -> Response {
    match refusal(request.headers()) {
        Some(why) => api::Problem::new(StatusCode::FORBIDDEN, why).into_response(),
        None => next.run(request).await,
    }
}

fn refusal(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name| headers.get(name).and_then(|v: &header::HeaderValue| v.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(host) {
        return Some(
            "the admin API answers to loopback names only: use 127.0.0.1, [::1] or localhost",
        );
    }
    let own = format!("http://{host}");
    let foreign = headers.contains_key(header::ORIGIN) && text(header::ORIGIN) != Some(&own);
    foreign.then_some("this Origin may not use the admin API")
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_answered() {
        for own in ["127.0.0.1:9901", "localhost", "[::1]:9901", "127.0.0.2"] {
            assert!(is_loopback(own), "{own}");
        }
        for foreign in ["", "evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil"]
        {
            assert!(!is_loopback(foreign), "{foreign}");
        }
    }
}
