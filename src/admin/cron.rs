//! What schedules start, and when next.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::contract::Task;
use crate::control::CronView;

use super::Admin;
use super::page::{Asked, Page, PageQuery, Rows};
use super::problem::Problem;

/// An entry of a schedule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CronRow {
    /// `app/environment/name`.
    pub id: String,
    /// `app/environment`.
    pub environment: String,
    /// Its name in the contract.
    pub name: String,
    /// The expression and its time zone.
    pub schedule: String,
    /// What it starts: a command, or a method and a path.
    pub task: String,
    /// When it runs next (RFC 3339).
    pub next: Option<String>,
    /// Its last run.
    pub last: Option<CronRunRow>,
}

/// A run of an entry.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CronRunRow {
    /// The time of the schedule that it is for.
    pub due: String,
    /// When it began.
    pub started: String,
    /// When it ended; absent while it goes on.
    pub ended: Option<String>,
    /// Whether it did what it is for: exit code 0, or a 2xx; absent while it goes on.
    pub ok: Option<bool>,
    /// How it ended.
    pub how: Option<String>,
}

fn row(view: CronView) -> CronRow {
    let CronView { environment, entry, next, last } = view;
    CronRow {
        id: format!("{environment}/{}", entry.name),
        environment: environment.to_string(),
        schedule: entry.schedule.to_string(),
        task: match &entry.task {
            Task::Command { command, .. } => command.join(" "),
            Task::Request { method, path } => format!("{method} {path}"),
        },
        name: entry.name,
        next: next.map(|next| next.to_string()),
        last: last.map(|run| CronRunRow {
            due: run.due.to_string(),
            started: run.started.to_string(),
            ended: run.ended.as_ref().map(|end| end.at.to_string()),
            ok: run.ended.as_ref().map(|end| end.ok),
            how: run.ended.map(|end| end.how),
        }),
    }
}

/// What schedules start, with the next and the last run of each, by environment.
#[utoipa::path(get, path = "/v1/cron", tag = "views", params(PageQuery),
    responses(
        (status = 200, description = "A page of entries", body = Vec<CronRow>),
        (status = 503, description = "The store cannot be read")))]
pub async fn cron(State(admin): State<Admin>, asked: Asked) -> Rows<CronRow> {
    let views = admin.commands.schedules.views().await.map_err(Problem::unavailable)?;
    Page::cut(views.into_iter().map(row), |row| row.id.clone(), &asked)
}
