//! What operators set in environments' processes.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use crate::control::{EnvVarsChange, EnvVarsError};
use crate::id::Environment;
use crate::record::ledger::AuditEvidence;

use super::Admin;
use super::access::By;
use super::problem::Problem;
use super::records::{Answer, Named};
use super::releases::{over, promotion_row};
use super::types::PromotionRow;

/// Variables that are to change, all or none.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvRequest {
    /// Names and values.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names; one that is not set is left so.
    #[serde(default)]
    pub unset: BTreeSet<String>,
}

/// What a change of variables came to.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnvChanged {
    /// `unchanged`, `stored` for the first start, or `moves`.
    pub effect: String,
    /// For `moves`: the move to a process with them.
    pub promotion: Option<PromotionRow>,
}

/// A variable.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnvRow {
    /// Its name.
    pub name: String,
    /// Bytes of its value.
    pub bytes: usize,
}

impl From<EnvVarsError> for Problem {
    fn from(e: EnvVarsError) -> Self {
        match e {
            EnvVarsError::Invalid(_) => Self::bad(e),
            EnvVarsError::NoPreview(_) => Self::not_found(e.to_string()),
            EnvVarsError::Promote(e) => e.into(),
            EnvVarsError::Read(_) => Self::unavailable(e),
        }
    }
}

async fn read(
    admin: &Admin,
    environment: &Environment,
) -> Result<BTreeMap<String, String>, Problem> {
    admin.commands.env_vars.list(environment).await.map_err(Problem::unavailable)
}

/// On record before it is done: names, never values.
async fn audited(
    admin: &Admin,
    environment: &Environment,
    decision: &str,
    why: &str,
) -> Result<(), Problem> {
    let now = admin.node.clock.wall();
    let row = AuditEvidence::of_environment(environment, now, decision, why);
    admin.audit.before_answer(&row).await.map_err(Problem::unavailable)
}

/// The names of the variables that an operator set for an environment.
#[utoipa::path(get, path = "/v1/environments/{app}/{name}/env", tag = "views",
    params(Named),
    responses(
        (status = 200, description = "Names, without values", body = Vec<EnvRow>),
        (status = 503, description = "The store cannot be read")))]
pub async fn names(State(admin): State<Admin>, Path(named): Path<Named>) -> Answer<Vec<EnvRow>> {
    let all = read(&admin, &named.environment()?).await?;
    let row = |(name, value): (String, String)| EnvRow { name, bytes: value.len() };
    Ok(Json(all.into_iter().map(row).collect()))
}

/// The same with their values, for a token that may change them. That they were shown is in the audit.
#[utoipa::path(get, path = "/v1/environments/{app}/{name}/env/values", tag = "views",
    params(Named),
    responses(
        (status = 200, description = "Names and values", body = BTreeMap<String, String>),
        (status = 503, description = "The store cannot be read, or it cannot be recorded")))]
pub async fn values(
    State(admin): State<Admin>,
    by: By,
    Path(named): Path<Named>,
) -> Answer<BTreeMap<String, String>> {
    let environment = named.environment()?;
    let all = read(&admin, &environment).await?;
    audited(&admin, &environment, "env-shown", &format!("{by} looked at all values")).await?;
    Ok(Json(all))
}

/// Sets and unsets variables of an environment's processes. Where something serves, that is a promotion to the
/// very artifact that serves, under the next epoch: a process with the new values is made ready, then it serves.
/// What does not start with them leaves the old ones in force. Answers when it is over, or after half a minute.
#[utoipa::path(patch, path = "/v1/environments/{app}/{name}/env", tag = "commands",
    request_body = EnvRequest,
    params(Named),
    responses(
        (status = 200, description = "How it went, or how far it is", body = EnvChanged),
        (status = 400, description = "A name or a value cannot be one, or they are too large"),
        (status = 404, description = "There is no such app or preview"),
        (status = 409, description = "Its owner moves already"),
        (status = 503, description = "The store cannot be used")))]
pub async fn change(
    State(admin): State<Admin>,
    by: By,
    Path(named): Path<Named>,
    Json(request): Json<EnvRequest>,
) -> Answer<EnvChanged> {
    let environment = named.environment()?;
    let EnvRequest { set, unset } = request;
    let by = by.to_string();
    let changed = admin.commands.env_vars.change(&environment, &set, &unset, &by).await?;
    let (effect, promotion) = match changed {
        EnvVarsChange::None => ("unchanged", None),
        EnvVarsChange::Stored => ("stored", None),
        EnvVarsChange::Moves(p) => ("moves", Some(*p)),
    };
    let promotion = match promotion {
        Some(begun) => Some(promotion_row(&over(&admin, begun).await?)),
        None => None,
    };
    Ok(Json(EnvChanged { effect: effect.into(), promotion }))
}
