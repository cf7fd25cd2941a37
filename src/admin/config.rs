//! The configuration in force, and reading it again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::ReloadState;

use super::Admin;
use super::problem::Problem;
use super::records::Answer;

/// The configuration in force, and the last attempt to read it again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigRow {
    /// The file it was read from.
    pub file: String,
    /// 1 for the one the process started with; one more with each reload that was applied.
    pub revision: u64,
    /// When it came into force.
    pub loaded: String,
    /// Keys whose value in the file waits for a restart.
    pub needs_restart: Vec<String>,
    /// The last attempt to reload; none since the start.
    pub last_attempt: Option<ReloadAttempt>,
}

/// An attempt to reload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReloadAttempt {
    /// When it was read; RFC 3339, UTC.
    pub at: String,
    /// `applied` or `rejected`.
    pub outcome: String,
    /// Keys that changed with it.
    pub changed: Vec<String>,
    /// Why it was rejected, each with file, line and column.
    pub errors: Vec<String>,
}

impl ConfigRow {
    fn of(state: &ReloadState) -> Self {
        let last_attempt = state.last.as_ref().map(|attempt| ReloadAttempt {
            at: attempt.at.to_string(),
            outcome: attempt.outcome().into(),
            changed: attempt.changed.clone(),
            errors: attempt.errors.clone(),
        });
        Self {
            file: state.file.display().to_string(),
            revision: state.revision,
            loaded: state.loaded.to_string(),
            needs_restart: state.needs_restart.clone(),
            last_attempt,
        }
    }
}

/// The configuration in force, and what came of the last attempt to reload it.
#[utoipa::path(get, path = "/v1/config", tag = "views",
    responses((status = 200, description = "Where it stands", body = ConfigRow)))]
pub async fn config(State(admin): State<Admin>) -> Json<ConfigRow> {
    Json(ConfigRow::of(&admin.reloader.state()))
}

/// Reads the configuration again, as SIGHUP does; what is wrong with it changes nothing.
#[utoipa::path(post, path = "/v1/config/reload", tag = "commands",
    responses(
        (status = 200, description = "It is in force", body = ConfigRow),
        (status = 422, description = "It was rejected; everything that is wrong with it")))]
pub async fn reload(State(admin): State<Admin>) -> Answer<ConfigRow> {
    let state = admin.reloader.reload().await;
    match state.last.as_ref().filter(|attempt| !attempt.errors.is_empty()) {
        None => Ok(Json(ConfigRow::of(&state))),
        Some(attempt) => {
            let detail = format!(
                "the configuration was not reloaded; what ran goes on\n{}",
                attempt.errors.join("\n")
            );
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
        }
    }
}
