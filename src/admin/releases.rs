//! Evidence and promotions.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::control::promotion;
use crate::control::{
    Candidate, CollectError, Collected, EvidenceError, PromoteError, RemoveError,
};
use crate::id::{AppName, Environment};
use crate::record::{Evidence, Promotion, WakePhases, key};

use super::Admin;
use super::access::By;
use super::problem::Problem;
use super::records::{Answer, Named, digest, records};
use super::types::{
    CheckRow, Done, EvidenceRequest, EvidenceRow, OperationRow, PromoteRequest, PromotionRow,
};

/// How long an answer waits for a promotion to end; then it says how far it is.
const WAIT: Duration = Duration::from_secs(30);

impl From<EvidenceError> for Problem {
    fn from(e: EvidenceError) -> Self {
        match e {
            EvidenceError::NoEnvironment(_) => Self::not_found(e.to_string()),
            EvidenceError::Invalid(_) => Self::bad(e),
            EvidenceError::Read(_) => Self::unavailable(e),
        }
    }
}

impl From<PromoteError> for Problem {
    fn from(e: PromoteError) -> Self {
        let status = match &e {
            PromoteError::UnknownApp(_)
            | PromoteError::NoPreview(..)
            | PromoteError::NoSuchArtifact(..)
            | PromoteError::NoPrevious(_) => StatusCode::NOT_FOUND,
            PromoteError::Serves(..) | PromoteError::Busy { .. } | PromoteError::Raced => {
                StatusCode::CONFLICT
            }
            PromoteError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, e.to_string())
    }
}

async fn evidence_row(
    admin: &Admin,
    environment: &Environment,
    found: Option<Evidence>,
) -> Answer<EvidenceRow> {
    let (deployment, digest) = admin.commands.counts.owned(environment).await?;
    let config = admin.node.config.load();
    let policy = config.apps.get(environment.app()).map(|a| &a.promotion);
    let missing = policy.map_or_else(Vec::new, |p| promotion::missing(p, found.as_ref()));
    let check = |(name, c): (&String, &crate::record::NamedCheck)| CheckRow {
        name: name.clone(),
        passed: c.passed,
        note: c.note.clone(),
        at: c.at.to_string(),
    };
    Ok(Json(EvidenceRow {
        environment: environment.to_string(),
        deployment: deployment.to_string(),
        digest: digest.to_string(),
        requests: found.as_ref().map_or(0, |e| e.requests),
        errors: found.as_ref().map_or(0, |e| e.errors),
        checks: found.iter().flat_map(|e| &e.checks).map(check).collect(),
        satisfied: missing.is_empty(),
        missing,
    }))
}

/// What is known of the deployment that an environment runs, and whether it may be promoted.
#[utoipa::path(get, path = "/v1/environments/{app}/{name}/evidence", tag = "views",
    params(Named),
    responses(
        (status = 200, description = "The evidence", body = EvidenceRow),
        (status = 404, description = "There is no such environment"),
        (status = 503, description = "The store cannot be read")))]
pub async fn evidence(State(admin): State<Admin>, Path(named): Path<Named>) -> Answer<EvidenceRow> {
    let environment = named.known(&admin)?;
    admin.commands.counts.flush().await;
    let found = admin.commands.counts.evidence(&environment).await?;
    evidence_row(&admin, &environment, found).await
}

/// Records named checks of the deployment that an environment runs.
#[utoipa::path(post, path = "/v1/environments/{app}/{name}/evidence", tag = "commands",
    request_body = EvidenceRequest,
    params(Named),
    responses(
        (status = 200, description = "The evidence", body = EvidenceRow),
        (status = 400, description = "A name or the note is too long, or there are too many checks"),
        (status = 404, description = "There is no such environment"),
        (status = 503, description = "The store cannot be used")))]
pub async fn record_evidence(
    State(admin): State<Admin>,
    Path(named): Path<Named>,
    Json(request): Json<EvidenceRequest>,
) -> Answer<EvidenceRow> {
    let environment = named.known(&admin)?;
    let checks: Vec<_> = request.checks.into_iter().map(|c| (c.name, c.passed)).collect();
    let found = admin.commands.counts.record_checks(&environment, &checks, &request.note).await?;
    evidence_row(&admin, &environment, Some(found)).await
}

/// The same as an in-toto Statement about the artifact; of production, the one that its promotion wrote.
#[utoipa::path(get, path = "/v1/environments/{app}/{name}/statement", tag = "views",
    params(Named),
    responses(
        (status = 200, description = "The statement", body = String,
            content_type = "application/vnd.in-toto+json"),
        (status = 404, description = "There is no such environment"),
        (status = 503, description = "The store cannot be read")))]
pub async fn statement(
    State(admin): State<Admin>,
    Path(named): Path<Named>,
) -> Result<Response, Problem> {
    let environment = named.known(&admin)?;
    admin.commands.counts.flush().await;
    let (deployment, digest) = admin.commands.counts.owned(&environment).await?;
    let kept: Vec<Promotion> = records(&admin, key::PROMOTED).await?;
    let written =
        kept.into_iter().rev().find(|p| p.deployment == deployment && p.statement.is_some());
    let text = match written.and_then(|p| p.statement) {
        Some(text) => text,
        None => {
            let found = admin.commands.counts.evidence(&environment).await?;
            let config = admin.node.config.load();
            let policy = config.apps.get(environment.app()).map(|a| a.promotion.clone());
            let policy = policy.ok_or_else(|| Problem::not_found("this edge has no such app"))?;
            let about = promotion::Subject {
                verifier: &admin.node.name,
                app: environment.app(),
                digest: &digest,
                promotion: None,
            };
            promotion::statement(&about, &policy, found.as_ref(), admin.node.clock.wall())
        }
    };
    let kind = [(header::CONTENT_TYPE, "application/vnd.in-toto+json")];
    Ok((kind, text).into_response())
}

pub(super) fn promotion_row(p: &Promotion) -> PromotionRow {
    PromotionRow {
        id: p.id.to_string(),
        kind: p.kind.name().into(),
        environment: p.environment.to_string(),
        digest: p.digest.to_string(),
        source: p.source_environment.to_string(),
        previous: p.from.as_ref().map(|f| f.digest.to_string()),
        state: p.state.name().into(),
        in_progress: p.state.in_progress(),
        epoch: p.epoch.map(|e| e.0),
        reason: p.failure.as_ref().map(|f| f.detail.clone()),
        requested: p.requested.to_string(),
        changed: p.changed.to_string(),
    }
}

/// Promotions as operations: those that go on and those that are kept.
pub(super) async fn promotion_rows(admin: &Admin) -> Result<Vec<OperationRow>, Problem> {
    let mut all: Vec<Promotion> = records(admin, key::PROMOTED).await?;
    let current: Vec<Promotion> = records(admin, key::PROMOTIONS).await?;
    all.extend(current.into_iter().filter(|p| p.state.in_progress()));
    let row = |p: Promotion| OperationRow {
        id: p.id.to_string(),
        kind: p.kind.name().into(),
        environment: p.environment.to_string(),
        state: p.state.name().into(),
        attempt: p.attempt,
        requested: p.requested.to_string(),
        phases: WakePhases::default(),
        allocation: p.allocation.map(|a| a.to_string()),
        failure: p.failure,
        failures: 0,
    };
    Ok(all.into_iter().map(row).collect())
}

async fn begin(admin: &Admin, app: &str, wanted: Candidate) -> Answer<PromotionRow> {
    let app: AppName = app.parse().map_err(Problem::bad)?;
    let begun = admin.commands.promotions.promote(&app, &wanted).await?;
    Ok(Json(promotion_row(&over(admin, begun).await?)))
}

/// How it went, or how far it is after half a minute.
pub(super) async fn over(admin: &Admin, begun: Promotion) -> Result<Promotion, Problem> {
    let over = admin.commands.promotions.wait(&begun, WAIT).await?;
    Ok(over.unwrap_or(begun))
}

/// Moves production to an artifact that was validated; answers when it is over, or after half a minute.
#[utoipa::path(post, path = "/v1/apps/{app}/promote", tag = "commands", request_body = PromoteRequest,
    params(("app" = String, Path, description = "The app")),
    responses(
        (status = 200, description = "How it went, or how far it is", body = PromotionRow),
        (status = 400, description = "Neither a preview nor a digest, or both"),
        (status = 404, description = "There is no such app, preview or artifact"),
        (status = 409, description = "It serves already, or another promotion goes on"),
        (status = 503, description = "The store cannot be used")))]
pub async fn promote(
    State(admin): State<Admin>,
    Path(app): Path<String>,
    Json(request): Json<PromoteRequest>,
) -> Answer<PromotionRow> {
    let wanted = match (request.preview, request.digest) {
        (Some(name), None) => Candidate::Preview(name.parse().map_err(Problem::bad)?),
        (None, Some(text)) => Candidate::Digest(digest(&text)?),
        _ => return Err(Problem::bad("say a preview or a digest")),
    };
    begin(&admin, &app, wanted).await
}

/// Moves production back to the artifact that served before; answers when it is over, or after half a
/// minute.
#[utoipa::path(post, path = "/v1/apps/{app}/rollback", tag = "commands",
    params(("app" = String, Path, description = "The app")),
    responses(
        (status = 200, description = "How it went, or how far it is", body = PromotionRow),
        (status = 404, description = "There is no such app, or nothing to go back to"),
        (status = 409, description = "Another promotion goes on"),
        (status = 503, description = "The store cannot be used")))]
pub async fn rollback(State(admin): State<Admin>, Path(app): Path<String>) -> Answer<PromotionRow> {
    begin(&admin, &app, Candidate::Previous).await
}

/// The last promotion of an environment.
#[utoipa::path(get, path = "/v1/environments/{app}/{name}/promotion", tag = "views",
    params(Named),
    responses(
        (status = 200, description = "How it went, or how far it is", body = PromotionRow),
        (status = 404, description = "There was none"),
        (status = 503, description = "The store cannot be read")))]
pub async fn promotion(
    State(admin): State<Admin>,
    Path(named): Path<Named>,
) -> Answer<PromotionRow> {
    let environment = named.environment()?;
    let found = admin.node.read::<Promotion>(&key::promotion(&environment)).await;
    match found.map_err(Problem::unavailable)? {
        Some(found) => Ok(Json(promotion_row(&found.record))),
        None => Err(Problem::not_found(format!("{environment} was never promoted"))),
    }
}

/// Removes a preview: its hosts have no owner any more, its allocations end.
#[utoipa::path(delete, path = "/v1/environments/{app}/{name}", tag = "commands",
    params(Named),
    responses(
        (status = 200, description = "It is removed", body = Done),
        (status = 400, description = "Production is no preview"),
        (status = 404, description = "There is no such preview"),
        (status = 409, description = "It moves to another artifact, or its owner changed meanwhile"),
        (status = 503, description = "The store cannot be used")))]
pub async fn remove(State(admin): State<Admin>, by: By, Path(named): Path<Named>) -> Answer<Done> {
    let environment = named.environment()?;
    admin.commands.previews.remove(&environment, &by.to_string()).await.map_err(|e| {
        let status = match &e {
            RemoveError::Production(_) => StatusCode::BAD_REQUEST,
            RemoveError::None(_) => StatusCode::NOT_FOUND,
            RemoveError::Busy(_) | RemoveError::Raced => StatusCode::CONFLICT,
            RemoveError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, e.to_string())
    })?;
    Ok(Json(Done { done: "it is removed".into(), operation: None }))
}

/// Removes now what nothing refers to, instead of in ten minutes at most: deployments, blobs, trees.
#[utoipa::path(post, path = "/v1/collect", tag = "commands",
    responses(
        (status = 200, description = "What was removed", body = Collected),
        (status = 409, description = "An artifact that is needed is not whole: nothing was removed"),
        (status = 503, description = "The store cannot be used")))]
pub async fn collect(State(admin): State<Admin>) -> Answer<Collected> {
    admin.commands.collector.collect().await.map(Json).map_err(|e| match e {
        CollectError::Artifact(_) => Problem::new(StatusCode::CONFLICT, e.to_string()),
        CollectError::Read(_) => Problem::unavailable(e),
    })
}
