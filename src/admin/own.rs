//! What an app may ask and say of its own: the records of its keys and events, and what became of
//! those whose outcome only the app knows.
//!
//! Invariant: the environment comes from the credential and from nothing else, so that no request
//! can be about another app's records, or production's from a preview. The credential is good while
//! the allocation is on the registry, and needs no token of the operator's.

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use serde::Deserialize;

use crate::id::{AllocationId, Environment};
use crate::record::key;

use super::Admin;
use super::access::bearer;
use super::ledger::{LedgerRow, Resolve, listed, place, say};
use super::page::{Asked, PageQuery, Rows};
use super::problem::Problem;
use super::records::Answer;

/// The allocation that asks.
pub struct Own {
    environment: Environment,
    allocation: AllocationId,
}

impl FromRequestParts<Admin> for Own {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Problem> {
        let Some(credential) = bearer(&parts.headers) else {
            return Err(Problem::unauthorized(
                "an allocation's credential is required: `Authorization: Bearer` and what its \
                 process has in VANGO_EDGE_SELF_TOKEN",
            ));
        };
        let unknown = || {
            Problem::unauthorized(
                "this is not the credential of an allocation of this edge, or the allocation has \
                 ended",
            )
        };
        let (environment, allocation) = admin.credentials.open(credential).ok_or_else(unknown)?;
        let at = key::allocation(&environment, &allocation);
        match admin.node.store.get(&at).await.map_err(Problem::unavailable)? {
            Some(_) => Ok(Self { environment, allocation }),
            None => Err(unknown()),
        }
    }
}

/// Which of the environment's own records.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OwnFilter {
    /// Only those in this state.
    state: Option<String>,
    /// Only those of this key, by its hash.
    key_hash: Option<String>,
    /// Only those of this event.
    event: Option<String>,
}

/// For apps: records of the environment's own keyed actions and provider events.
#[utoipa::path(get, path = "/v1/self/ledger", tag = "apps", operation_id = "own_ledger",
    params(PageQuery, OwnFilter), security(("allocation" = [])),
    responses(
        (status = 200, description = "A page of records", body = [LedgerRow]),
        (status = 401, description = "No credential of an allocation that is up"),
        (status = 503, description = "The ledger cannot be read")))]
pub async fn ledger(
    State(admin): State<Admin>,
    own: Own,
    asked: Asked,
    Query(filter): Query<OwnFilter>,
) -> Rows<LedgerRow> {
    let prefix = format!("{}/", own.environment);
    let OwnFilter { state, key_hash, event } = filter;
    listed(&admin, &prefix, &asked, [&state, &key_hash, &event]).await
}

/// For apps: says what became of an attempt of the environment's own whose outcome is unknown.
#[utoipa::path(post, path = "/v1/self/ledger/{hash}/resolve", tag = "apps",
    operation_id = "own_resolve", security(("allocation" = [])),
    params(("hash" = String, Path, description = "As in Vango-Edge-Idempotency-Record")),
    request_body = Resolve,
    responses(
        (status = 200, description = "The record now", body = LedgerRow),
        (status = 400, description = "No such outcome"),
        (status = 401, description = "No credential of an allocation that is up"),
        (status = 409, description = "The record is not unknown, or is of another attempt"),
        (status = 503, description = "The ledger cannot be used")))]
pub async fn resolve(
    State(admin): State<Admin>,
    own: Own,
    Path(hash): Path<String>,
    Json(request): Json<Resolve>,
) -> Answer<LedgerRow> {
    let at = place(&own.environment, &hash)?;
    say(&admin, &at, &request, &format!("app {}", own.allocation)).await
}
