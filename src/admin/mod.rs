//! The admin API and the console: request → command or view. No decisions.
//!
//! [`access`] says who may use it, [`problem`] gives every error one form, [`openapi`] describes
//! every resource under `/v1` from the handlers themselves. A resource is added by its handler's
//! `#[utoipa::path]` and one line in [`resources`].

pub mod access;
mod api;
mod blobs;
mod certificates;
mod config;
mod console;
pub mod credential;
mod cron;
mod env_vars;
mod environments;
mod exec;
mod ledger;
mod listen;
mod logs;
mod openapi;
mod own;
mod page;
mod problem;
mod records;
mod releases;
mod stream;
pub mod types;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use tokio::sync::Semaphore;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::artifact::Artifacts;
use crate::certificates::{Orders, Shown};
use crate::control::{Commands, Reloader};
use crate::ledger::{Audit, Ledger};
use crate::lifecycle::access::WrongTokens;
use crate::lifecycle::enter::Policies;
use crate::node::Node;
use crate::output::Outputs;
use crate::session::Sessions;
use crate::telemetry::Telemetry;
use crate::wake::hold::HoldQueues;

use access::Access;
use credential::Credentials;
use problem::Problem;

pub use access::OWN;
pub use api::TraceFilter;
pub use blobs::MOST_BATCHES;
pub use certificates::{CertificateRow, RenewRequest};
pub use config::{ConfigRow, ReloadAttempt};
pub use cron::{CronRow, CronRunRow};
pub use env_vars::{EnvChanged, EnvRequest, EnvRow};
pub use exec::{ExecFrame, ExecRequest};
pub use ledger::{AuditFilter, AuditRow, LedgerFilter, LedgerRow, Resolve};
pub use listen::{Bounds, HeadLimits, Place};
pub use logs::{FollowQuery, LogBatch, LogFilter, LogRow};
pub use stream::MOST_STREAMS;

/// Largest JSON body: variables of an environment, 256 KiB, whose every character may be escaped in six.
const BODY_LIMIT: usize = 2 << 20;

/// What the admin API works with.
#[derive(Clone)]
pub struct Admin {
    /// This node.
    pub node: Node,
    /// Carries out commands.
    pub commands: Arc<Commands>,
    /// Metrics and traces.
    pub telemetry: Arc<Telemetry>,
    /// Where artifacts are uploaded to.
    pub artifacts: Arc<Artifacts>,
    /// Held requests, which the metrics count.
    pub queues: Arc<HoldQueues>,
    /// What apps print.
    pub outputs: Arc<Outputs>,
    /// Where sessions were; `explain` says where they would go.
    pub sessions: Arc<Sessions>,
    /// The operator's policies for all requests, for `explain`.
    pub policies: Arc<ArcSwap<Policies>>,
    /// Counts wrong tokens of previews that `explain` was asked about.
    pub guesses: Arc<WrongTokens>,
    /// Reads the configuration again.
    pub reloader: Arc<Reloader>,
    /// Records of keyed actions and events.
    pub ledger: Arc<Ledger>,
    /// Evidence of unsafe requests.
    pub audit: Arc<Audit>,
    /// Whether this edge takes traffic; `/readyz` says so.
    pub ready: Arc<AtomicBool>,
    /// Who may use it.
    pub access: Arc<ArcSwap<Access>>,
    /// What of certificates this node shows.
    pub certificates: Arc<Shown>,
    /// Which certificates are ordered.
    pub orders: Arc<Orders>,
    /// Opens allocations' credentials.
    pub credentials: Arc<Credentials>,
    /// Streams that may still be opened; [`MOST_STREAMS`] at first.
    pub streams: Arc<Semaphore>,
    /// Batches of blobs that may still be taken; [`MOST_BATCHES`] at first.
    pub batches: Arc<Semaphore>,
}

/// Serves until `stop` resolves, connections under `bounds`.
pub async fn serve(
    listener: tokio::net::TcpListener,
    admin: Admin,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    listen::serve(listener, router(admin), bounds, stop).await;
}

/// Every resource under `/v1`, described.
fn resources() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(api::routes))
        .routes(routes!(environments::environments))
        .routes(routes!(api::allocations))
        .routes(routes!(logs::text))
        .routes(routes!(logs::logs))
        .routes(routes!(logs::log_stream))
        .routes(routes!(api::operations))
        .routes(routes!(cron::cron))
        .routes(routes!(api::deployments, api::deploy))
        .routes(routes!(blobs::has_blob, blobs::put_blob))
        .routes(routes!(blobs::put_blobs))
        .routes(routes!(blobs::missing))
        .routes(routes!(blobs::encodings))
        .routes(routes!(ledger::ledger))
        .routes(routes!(ledger::one))
        .routes(routes!(ledger::resolve))
        .routes(routes!(ledger::audit))
        .routes(routes!(own::ledger))
        .routes(routes!(own::resolve))
        .routes(routes!(certificates::certificates))
        .routes(routes!(certificates::renew))
        .routes(routes!(config::config))
        .routes(routes!(config::reload))
        .routes(routes!(api::traces))
        .routes(routes!(stream::trace_stream))
        .routes(routes!(stream::change_stream))
        .routes(routes!(api::explain))
        .routes(routes!(api::sleep))
        .routes(routes!(api::wake))
        .routes(routes!(env_vars::names, env_vars::change))
        .routes(routes!(env_vars::values))
        .routes(routes!(exec::exec))
        .routes(routes!(exec::stdin))
        .routes(routes!(releases::evidence, releases::record_evidence))
        .routes(routes!(releases::statement))
        .routes(routes!(releases::promote))
        .routes(routes!(releases::rollback))
        .routes(routes!(releases::promotion))
        .routes(routes!(releases::remove))
        .routes(routes!(releases::collect))
}

/// The OpenAPI document of every resource under `/v1`.
pub fn document() -> OpenApi {
    let mut document = resources().into_openapi();
    openapi::complete(&mut document);
    document
}

fn router(admin: Admin) -> Router {
    let (resources, _) = resources().split_for_parts();
    let document = Arc::new(document());
    let described = move || {
        let document = Arc::clone(&document);
        async move { Json(OpenApi::clone(&document)) }
    };
    resources
        .route("/v1/openapi.json", get(described))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(api::metrics))
        .merge(console::files())
        .fallback(|| async { Problem::not_found("no such resource of the admin API") })
        .layer(middleware::from_fn(to_its_end))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(problem::in_one_form))
        .layer(middleware::from_fn_with_state(admin.clone(), access::checked))
        .with_state(admin)
}

/// Runs a command in a task of its own: a client that hangs up would end it between two of its steps, with
/// an environment's owner gone and its processes left.
async fn to_its_end(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(e) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::routing::post;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_command_whose_client_hangs_up_goes_on_to_its_end() {
        let (say, mut said) = mpsc::unbounded_channel();
        let command = move || async move {
            say.send("began").unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            say.send("ended").unwrap();
        };
        let routes = Router::new()
            .route("/", post(command.clone()).get(command))
            .layer(middleware::from_fn(to_its_end));
        for (method, ends) in [("POST", Some("ended")), ("GET", None)] {
            let request = Request::builder().method(method).body(axum::body::Body::empty());
            let asked = TowerToHyperService::new(routes.clone()).call(request.unwrap());
            let hung_up = tokio::time::timeout(Duration::from_millis(10), asked).await;
            assert!(hung_up.is_err());
            assert_eq!(said.recv().await, Some("began"));
            let then = tokio::time::timeout(Duration::from_secs(5), said.recv()).await;
            assert_eq!(then.ok().flatten(), ends, "{method}");
        }
    }

    #[test]
    fn every_resource_is_described_with_its_errors() {
        let document = serde_json::to_value(document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() >= 12, "{paths:?}");
        let mut ids = std::collections::BTreeSet::new();
        for (path, methods) in paths {
            assert!(path.starts_with("/v1/"), "{path} is not versioned");
            for (method, operation) in methods.as_object().unwrap() {
                let what = format!("{method} {path}");
                assert!(
                    ids.insert(operation["operationId"].as_str()),
                    "{what}: its id is not its own"
                );
                assert!(operation["summary"].is_string(), "{what} does not say what it is for");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let form = &response["content"]["application/problem+json"]["schema"]["$ref"];
                    let problem = status.starts_with(['4', '5']);
                    assert_eq!(problem, form.is_string(), "{what} {status}: {response}");
                }
                for common in ["401", "403"] {
                    assert!(operation["responses"][common].is_object(), "{what} {common}");
                }
            }
        }
    }

    #[test]
    fn no_resource_is_added_without_a_description() {
        let source = include_str!("mod.rs");
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let bare = code.matches(".route(\"/v1/").count();
        assert_eq!(bare, 1, "only openapi.json itself: use routes!() in resources()");
    }
}
