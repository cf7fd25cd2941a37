//! The resources under `/v1`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::control::allocations::SleepFor;
use crate::control::{DeployError, Deployed, Slept, WorkerState};
use crate::id::{EnvName, RequestId};
use crate::lifecycle::enter::{Arrival, Entered, enter};
use crate::lifecycle::explain as core;
use crate::lifecycle::facts::{self, Facts};
use crate::lifecycle::fields;
use crate::lifecycle::journey::Woke;
use crate::lifecycle::origin::Origin;
use crate::lifecycle::resume::Lookup;
use crate::lifecycle::trace::{Outcome, Trace};
use crate::record::{AllocationState, Deployment, Operation, WakeState, key};
use crate::snapshot::{AllocationView, EnvView};
use crate::telemetry::{TraceRecord, micros};

use super::Admin;
use super::page::{Asked, Page, PageQuery, Rows};
use super::problem::Problem;
use super::records::{Answer, Named, digest, records};
use super::releases;
use super::types::{
    AllocationRow, DeployRequest, DeploymentRow, Done, ExplainRequest, Explanation, OperationRow,
    RouteRow, TraceRow,
};

pub async fn metrics(State(admin): State<Admin>) -> Result<Response, Problem> {
    let held = (admin.queues.held(), admin.queues.held_bytes());
    let metrics = &admin.telemetry.metrics;
    let text = metrics
        .text(&admin.node.snapshots, held.0, held.1, admin.node.clock.now())
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text).into_response())
}

/// In one word, for people.
pub(super) fn state_of(view: &EnvView) -> String {
    match &view.operation {
        _ if view.is_down() => "down".into(),
        _ if view.external => "up".into(),
        _ if view.contract.is_static => "static".into(),
        _ if !view.ready.is_empty() => "hot".into(),
        Some(o) if o.state.in_progress() => o.state.name().into(),
        Some(o) if o.state == WakeState::Failed => "failed".into(),
        _ if view.in_memory().is_some_and(|a| a.state == AllocationState::Frozen) => {
            "frozen".into()
        }
        _ => "asleep".into(),
    }
}

/// Who owns each host, under which epoch, by host.
#[utoipa::path(get, path = "/v1/routes", tag = "views", params(PageQuery),
    responses((status = 200, description = "A page of routed hosts", body = Vec<RouteRow>)))]
pub async fn routes(State(admin): State<Admin>, asked: Asked) -> Rows<RouteRow> {
    let snapshot = admin.node.snapshots.load();
    let mut rows: Vec<_> = snapshot
        .environments()
        .flat_map(|view| view.hosts.iter().map(move |host| (host, view)))
        .map(|(host, view)| RouteRow {
            host: host.to_string(),
            environment: view.environment.to_string(),
            epoch: view.owner.epoch.0,
            deployment: if view.external { "-".into() } else { view.owner.deployment.to_string() },
            digest: if view.external { "-".into() } else { view.owner.digest.to_string() },
            state: state_of(view),
        })
        .collect();
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    Page::cut(rows, |r| r.host.clone(), &asked)
}

/// Every allocation of `view`, those that answer first.
pub(super) fn allocation_rows(view: &EnvView) -> impl Iterator<Item = AllocationRow> {
    view.ready.iter().chain(&view.others).map(|a| allocation_row(view, a))
}

fn allocation_row(view: &EnvView, a: &AllocationView) -> AllocationRow {
    AllocationRow {
        id: a.id.to_string(),
        process: "web".into(),
        environment: view.environment.to_string(),
        generation: a.generation.0,
        epoch: a.epoch.0,
        digest: if a.external { "-".into() } else { a.digest.to_string() },
        state: match (a.external, a.load.is_down()) {
            (false, _) => a.state.name().into(),
            (true, false) => "up".into(),
            (true, true) => "down".into(),
        },
        address: a.address.map(|a| a.to_string()),
        pid: a.pid,
        in_flight: a.load.in_flight(),
        sockets: a.load.sockets(),
        total: a.load.total(),
    }
}

fn worker_row(worker: WorkerState) -> Option<AllocationRow> {
    Some(AllocationRow {
        id: worker.id?.to_string(),
        process: worker.name,
        environment: worker.environment.to_string(),
        generation: 0,
        epoch: worker.epoch.0,
        digest: worker.digest.to_string(),
        state: worker.state.into(),
        address: None,
        pid: worker.pid,
        in_flight: 0,
        sockets: 0,
        total: 0,
    })
}

/// Allocations in the registry, and the workers beside them, by environment.
#[utoipa::path(get, path = "/v1/allocations", tag = "views", params(PageQuery),
    responses((status = 200, description = "A page of allocations", body = Vec<AllocationRow>)))]
pub async fn allocations(State(admin): State<Admin>, asked: Asked) -> Rows<AllocationRow> {
    let snapshot = admin.node.snapshots.load();
    let mut rows: Vec<_> = snapshot.environments().flat_map(|v| allocation_rows(v)).collect();
    rows.extend(admin.commands.workers.states().into_iter().filter_map(worker_row));
    rows.sort_by(|a, b| (&a.environment, a.generation).cmp(&(&b.environment, b.generation)));
    Page::cut(rows, |r| r.id.clone(), &asked)
}

fn operation_row(o: Operation) -> OperationRow {
    OperationRow {
        id: o.id.to_string(),
        kind: "wake".into(),
        environment: o.environment.to_string(),
        state: o.state.name().into(),
        attempt: o.attempt,
        requested: o.requested.to_string(),
        phases: o.phases,
        allocation: o.allocation.map(|a| a.to_string()),
        failure: o.failure,
        failures: o.failures,
    }
}

/// Wakes with their phases, and promotions, newest first: those that go on and those that are kept.
#[utoipa::path(get, path = "/v1/operations", tag = "views", params(PageQuery),
    responses(
        (status = 200, description = "A page of operations", body = Vec<OperationRow>),
        (status = 503, description = "The store cannot be read")))]
pub async fn operations(State(admin): State<Admin>, asked: Asked) -> Rows<OperationRow> {
    let mut all: Vec<Operation> = records(&admin, key::HISTORY).await?;
    let current: Vec<Operation> = records(&admin, key::OPERATIONS).await?;
    all.extend(current.into_iter().filter(|o| o.state.in_progress()));
    // An operation that failed after it was hot is in the history under both; the later one counts.
    all.sort_by(|a, b| (b.requested, &b.id, b.changed).cmp(&(a.requested, &a.id, a.changed)));
    all.dedup_by(|later, earlier| later.id == earlier.id);
    let mut rows: Vec<_> = all.into_iter().map(operation_row).collect();
    rows.extend(releases::promotion_rows(&admin).await?);
    rows.sort_by(|a, b| (&b.requested, &b.id).cmp(&(&a.requested, &a.id)));
    Page::cut(rows, |r| r.id.clone(), &asked)
}

/// Deployments, newest first.
#[utoipa::path(get, path = "/v1/deployments", tag = "views", params(PageQuery),
    responses(
        (status = 200, description = "A page of deployments", body = Vec<DeploymentRow>),
        (status = 503, description = "The store cannot be read")))]
pub async fn deployments(State(admin): State<Admin>, asked: Asked) -> Rows<DeploymentRow> {
    let mut all: Vec<Deployment> = records(&admin, key::DEPLOYMENTS).await?;
    all.sort_by_key(|d| std::cmp::Reverse(d.created));
    let snapshot = admin.node.snapshots.load();
    let rows = all.into_iter().map(|d| DeploymentRow {
        current: snapshot.environment(&d.environment).is_some_and(|v| v.owner.deployment == d.id),
        id: d.id.to_string(),
        environment: d.environment.to_string(),
        digest: d.digest.to_string(),
        created: d.created.to_string(),
        files: d.files,
        bytes: d.bytes,
    });
    Page::cut(rows, |r| r.id.clone(), &asked)
}

/// Makes a deployment of an uploaded artifact. What serves moves to it as by a promotion, and the answer waits
/// for that; with a promotion policy, production's is stored and `next` says what brings it there.
#[utoipa::path(post, path = "/v1/deployments", tag = "commands", request_body = DeployRequest,
    responses(
        (status = 200, description = "The deployment", body = Deployed),
        (status = 404, description = "The edge has no such app"),
        (status = 409, description = "Another app owns a host, the owners changed meanwhile, or the artifact \
            did not become ready: what served before serves"),
        (status = 422, description = "The artifact or its contract is wrong"),
        (status = 503, description = "The store cannot be used")))]
pub async fn deploy(
    State(admin): State<Admin>,
    Json(request): Json<DeployRequest>,
) -> Answer<Deployed> {
    let digest = digest(&request.digest)?;
    let preview: Option<EnvName> =
        request.preview.map(|p| p.parse().map_err(Problem::bad)).transpose()?;
    admin.commands.deployments.deploy(digest, preview.as_ref()).await.map(Json).map_err(|e| {
        let status = match &e {
            DeployError::Artifact(_)
            | DeployError::Contract(_)
            | DeployError::Schema { .. }
            | DeployError::Beyond(_)
            | DeployError::Assets(_) => StatusCode::UNPROCESSABLE_ENTITY,
            DeployError::UnknownApp { .. } | DeployError::NoPreviewHost { .. } => {
                StatusCode::NOT_FOUND
            }
            DeployError::NotAPreview => StatusCode::BAD_REQUEST,
            DeployError::Static(_)
            | DeployError::HostTaken { .. }
            | DeployError::Raced
            | DeployError::Moving(..) => StatusCode::CONFLICT,
            DeployError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let detail = match &e {
            DeployError::Contract(errors) => errors.iter().fold(e.to_string(), |mut all, d| {
                all.push_str(&format!("\n{d}"));
                all
            }),
            _ => e.to_string(),
        };
        Problem::new(status, detail)
    })
}

/// Which traces.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TraceFilter {
    /// Only this app's.
    pub app: Option<String>,
    /// Only this class: page, action, webhook, live, asset or none.
    pub class: Option<String>,
    /// Only this method.
    pub method: Option<String>,
    /// Only this outcome: hot, woken, held, client-left, cut-off, a problem's name, or `refused` for
    /// every problem.
    pub outcome: Option<String>,
    /// Only those whose host and path contain this.
    pub path: Option<String>,
    /// Only this request.
    pub request: Option<String>,
}

impl TraceFilter {
    /// Whether `r` is wanted.
    pub(super) fn wants(&self, r: &TraceRecord) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let app = r.environment.as_ref().map_or("", |e| e.app().as_str());
        let outcome = r.trace.outcome;
        let refused = matches!(outcome, Outcome::Refused(_));
        is(&self.class, r.class)
            && is(&self.app, app)
            && is(&self.method, r.method.as_str())
            && (is(&self.outcome, outcome.name())
                || (refused && self.outcome.as_deref() == Some("refused")))
            && self.path.as_ref().is_none_or(|p| format!("{}{}", r.host, r.path).contains(p))
            && self.request.as_ref().is_none_or(|id| r.trace.request.to_string() == *id)
    }
}

pub(super) fn trace_row(r: &TraceRecord) -> TraceRow {
    TraceRow {
        request: r.trace.request.to_string(),
        at: r.at.to_string(),
        client: r.trace.client.map(|c| c.to_string()),
        method: r.method.to_string(),
        host: r.host.clone(),
        path: r.path.clone(),
        class: r.class.into(),
        environment: r.environment.as_ref().map(ToString::to_string),
        outcome: r.trace.outcome.name().into(),
        risk: r.trace.risk().name().into(),
        decision: r.trace.decision().into(),
        status: r.status,
        operation: r.operation.as_ref().map(ToString::to_string),
        total_us: micros(r.total),
        held_us: micros(r.held),
        steps: r.trace.steps.iter().map(crate::lifecycle::trace::Step::text).collect(),
        dropped_steps: r.trace.dropped(),
    }
}

/// The last requests and the steps they took, newest first.
#[utoipa::path(get, path = "/v1/traces", tag = "traces", params(PageQuery, TraceFilter),
    responses((status = 200, description = "A page of traces", body = Vec<TraceRow>)))]
pub async fn traces(
    State(admin): State<Admin>,
    asked: Asked,
    Query(filter): Query<TraceFilter>,
) -> Rows<TraceRow> {
    let all = admin.telemetry.ring.newest(usize::MAX);
    let wanted = all.iter().filter(|r| filter.wants(r));
    let page = Page::cut(wanted, |r| r.trace.request.to_string(), &asked)?;
    Ok(page.map(|r| trace_row(r)))
}

/// The steps a request would take now; sends and changes nothing.
#[utoipa::path(post, path = "/v1/explain", tag = "traces", request_body = ExplainRequest,
    responses((status = 200, description = "The steps", body = Explanation)))]
pub async fn explain(
    State(admin): State<Admin>,
    Json(request): Json<ExplainRequest>,
) -> Answer<Explanation> {
    let c = &admin.node;
    // Taken apart here, since a URI's parser would mend what is to be explained.
    let (tls, authority, target) = take_apart(&request.url);
    let mut builder = axum::http::Request::builder().method(request.method.as_str());
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    let (mut parts, ()) = builder.body(()).map_err(Problem::bad)?.into_parts();
    // What `curl -H 'Host: …' URL` sends: the header wins over the URL's own.
    if !parts.headers.contains_key(header::HOST) {
        let Some(authority) = authority else {
            let needed = "the URL needs a host: http://studylab.localhost/dashboard";
            return Err(Problem::bad(needed));
        };
        let authority = HeaderValue::try_from(authority).map_err(Problem::bad)?;
        parts.headers.insert(header::HOST, authority);
    }
    let now = c.clock.now();
    let id = RequestId::random(&*c.entropy);
    let limits = c.config.load().limits.client.connection;
    let (bytes, fields) = (limits.header_bytes, limits.header_fields);
    let read = facts::check_head(&parts.headers, target.len(), bytes, fields)
        .and_then(|()| Facts::parse(&parts, target.as_bytes(), id, now));
    let mut facts = match read {
        Ok(facts) => facts,
        Err(why) => return Ok(Json(explanation(&Trace::unreadable(id, now, why, now).0))),
    };
    fields::strip_hop_by_hop(&mut parts.headers);
    facts.origin = Some(Arc::new(Origin::new(Ipv4Addr::LOCALHOST.into(), tls)));
    let (headers, wall) = (&parts.headers, c.clock.wall());
    let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut entered = {
        let snapshot = c.snapshots.load();
        let locked = |from| admin.guesses.wait(from, now);
        let validations = &**admin.certificates.validations().load();
        let arrival = Arrival { facts, headers, refused: None, locked: &locked, validations };
        enter(arrival, &snapshot, &admin.policies.load(), now, wall)
    };
    let mut record = Lookup::NotAsked;
    match &mut entered {
        Entered::Edge(answered) if answered.guess.is_some() => {
            // Who may only look is not to find out a preview's token here.
            admin.guesses.count(from, None, now);
        }
        Entered::Route { facts, classified, .. } => {
            admin.sessions.recognise(classified, headers, || wall, facts);
            if let Some(id) = facts.session.as_ref().filter(|_| facts.websocket) {
                record = admin.sessions.routes.find(&classified.view.environment, id.name()).await;
            }
        }
        Entered::Edge(_) | Entered::Asset(_) => {}
    }
    let trace = core::explain(entered, headers, record, now, wall);
    Ok(Json(explanation(&trace)))
}

fn explanation(trace: &Trace) -> Explanation {
    Explanation {
        risk: trace.risk().name().into(),
        outcome: trace.outcome.name().into(),
        decision: trace.decision().into(),
        steps: trace.steps.iter().map(crate::lifecycle::trace::Step::text).collect(),
    }
}

/// Whether a URL is for HTTPS, its host and port, and the target that is sent for it, byte by byte.
fn take_apart(url: &str) -> (bool, Option<&str>, Cow<'_, str>) {
    let (tls, rest) = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        _ => return (false, None, url.into()),
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let target = match target {
        "" => "/".into(),
        target if target.starts_with('/') => target.into(),
        target => format!("/{target}").into(),
    };
    (tls, Some(authority), target)
}

/// Puts an environment to sleep now; answers when it sleeps.
#[utoipa::path(post, path = "/v1/environments/{app}/{name}/sleep", tag = "commands",
    params(Named),
    responses(
        (status = 200, description = "What it came to", body = Done),
        (status = 404, description = "There is no such environment"),
        (status = 409, description = "This edge does not run it"),
        (status = 503, description = "It cannot be recorded, or the app backs off")))]
pub async fn sleep(State(admin): State<Admin>, Path(named): Path<Named>) -> Answer<Done> {
    let environment = named.ours(&admin)?;
    let slept = admin.commands.sleeper.sleep(&environment, SleepFor::Command).await;
    let Slept { stopped, frozen } = slept.map_err(Problem::unavailable)?;
    let some = |what: &str, n: usize| match n {
        1 => format!("{what} 1 allocation"),
        n => format!("{what} {n} allocations"),
    };
    let snapshot = admin.node.snapshots.load();
    let wake = snapshot.environment(&environment).and_then(|view| view.operation.as_ref());
    let wake = wake.filter(|o| o.state.in_progress());
    let done = match (stopped, frozen, wake) {
        (0, 0, Some(wake)) => format!(
            "it is being woken ({}, {}), and was not put to sleep: ask again once that is over",
            wake.id,
            wake.state.name()
        ),
        (0, 0, None) => "it was asleep".into(),
        (n, 0, _) => some("stopped", n),
        (0, n, _) => some("froze", n),
        (s, f, _) => format!("{} and {}", some("froze", f), some("stopped", s)),
    };
    Ok(Json(Done { done, operation: None }))
}

/// Wakes an environment now; answers when the wake is recorded.
#[utoipa::path(post, path = "/v1/environments/{app}/{name}/wake", tag = "commands",
    params(Named),
    responses(
        (status = 200, description = "What it came to", body = Done),
        (status = 404, description = "There is no such environment"),
        (status = 409, description = "This edge does not run it, or it has no process"),
        (status = 503, description = "It cannot be recorded, or the app backs off")))]
pub async fn wake(State(admin): State<Admin>, Path(named): Path<Named>) -> Answer<Done> {
    let environment = named.ours(&admin)?;
    if admin.node.view(&environment).is_some_and(|view| view.contract.is_static) {
        let why =
            format!("{environment} has no process: its static files are answered without one");
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    match admin.commands.wakes.wake(&environment).await {
        Woke::Operation { id, created } => {
            let done = if created { "wake started" } else { "joined the wake that is going on" };
            Ok(Json(Done { done: done.into(), operation: Some(id.to_string()) }))
        }
        Woke::Ready => Ok(Json(Done { done: "it is hot".into(), operation: None })),
        Woke::BackingOff => Err(Problem::unavailable(
            "its last start failed and it backs off; `vango-edge ops` says why and how often",
        )),
        Woke::Unavailable => Err(Problem::unavailable("the wake could not be recorded")),
    }
}
