//! What is kept of unsafe requests: the ledger's records, their resolution, and the audit.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Wall;
use crate::id::Environment;
use crate::ledger::{Row, Wanted};
use crate::lifecycle::idempotency::Resolution;
use crate::record::ledger::{Attempted, AuditEvidence, Subject, key};

use super::Admin;
use super::access::By;
use super::page::{Asked, Page, PageQuery, Rows};
use super::problem::Problem;
use super::records::Answer;

/// A record of the ledger.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LedgerRow {
    /// Its name: `app/environment/hash`.
    pub at: String,
    /// `action` or `event`.
    pub subject: String,
    /// The environment that was asked.
    pub environment: String,
    /// The route's path, as the contract has it.
    pub route: String,
    /// Hash of the key, or of the event's id.
    pub key_hash: String,
    /// The provider's event id.
    pub event: Option<String>,
    /// Times it was given to the app.
    pub attempt: u32,
    /// reserved, forwarded, completed, completed_unreplayable, unknown, released or refused.
    pub state: String,
    /// The app's status.
    pub status: Option<u16>,
    /// The wake it waited for.
    pub operation: Option<String>,
    /// Who said what became of it, if not the app's own answer.
    pub resolved: Option<String>,
    /// When it was first seen.
    pub created: String,
    /// When it last changed.
    pub changed: String,
    /// When it goes.
    pub expires: String,
}

fn row(at: String, r: Attempted) -> LedgerRow {
    LedgerRow {
        at,
        subject: match r.subject {
            Subject::Action => "action".into(),
            Subject::Event => "event".into(),
        },
        environment: r.environment.to_string(),
        route: r.route,
        key_hash: r.key_hash,
        event: r.event,
        attempt: r.attempt,
        state: r.state.name().into(),
        status: r.status,
        operation: r.operation.map(|o| o.to_string()),
        resolved: r.resolved,
        created: r.created.to_string(),
        changed: r.changed.to_string(),
        expires: r.expires.to_string(),
    }
}

/// Which records.
#[derive(Debug, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LedgerFilter {
    /// Only this app's.
    pub app: Option<String>,
    /// Only those in this state.
    pub state: Option<String>,
    /// Only those of this key, by its hash.
    pub key_hash: Option<String>,
    /// Only those of this event.
    pub event: Option<String>,
}

/// Records of keyed actions and provider events, by their names.
#[utoipa::path(get, path = "/v1/ledger", tag = "views", params(PageQuery, LedgerFilter),
    responses(
        (status = 200, description = "A page of records", body = [LedgerRow]),
        (status = 503, description = "The ledger cannot be read")))]
pub async fn ledger(
    State(admin): State<Admin>,
    asked: Asked,
    Query(filter): Query<LedgerFilter>,
) -> Rows<LedgerRow> {
    let prefix = filter.app.as_ref().map_or_else(String::new, |app| format!("{app}/"));
    listed(&admin, &prefix, &asked, [&filter.state, &filter.key_hash, &filter.event]).await
}

/// A page of the records below `prefix` with this state, key's hash and event, where they are given.
pub(super) async fn listed(
    admin: &Admin,
    prefix: &str,
    asked: &Asked,
    [state, key_hash, event]: [&Option<String>; 3],
) -> Rows<LedgerRow> {
    let limit = asked.limit()?;
    // A record that has gone since is still a place to go on from.
    let after = asked.after().map(|at| listed_at(prefix, at)).transpose()?;
    let is = |wanted: &Option<String>, found: Option<&str>| {
        wanted.as_deref().is_none_or(|w| found == Some(w))
    };
    let wanted = |r: &Attempted| {
        is(state, Some(r.state.name()))
            && is(key_hash, Some(&r.key_hash))
            && is(event, r.event.as_deref())
    };
    let listed = admin.ledger.list(prefix, after.as_deref(), limit, wanted).await;
    let (rows, more) = listed.map_err(Problem::unavailable)?;
    let rows = rows.into_iter().map(|Row { at, record }| row(at, record)).collect();
    Ok(Page::read(rows, more, |r| &r.at, asked))
}

/// A record's name, as a list of those below `prefix` has it.
fn listed_at(prefix: &str, at: &str) -> Result<String, Problem> {
    match at.split('/').collect::<Vec<_>>()[..] {
        [app, environment, hash] if at.starts_with(prefix) => named(app, environment, hash),
        _ => Err(Problem::bad("after: expected the `at` of a record of this list")),
    }
}

fn named(app: &str, environment: &str, hash: &str) -> Result<String, Problem> {
    place(&format!("{app}/{environment}").parse().map_err(Problem::bad)?, hash)
}

/// Where a record of `environment` is.
pub(super) fn place(environment: &Environment, hash: &str) -> Result<String, Problem> {
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::bad("expected 64 hex digits, as the ledger's list shows them"));
    }
    Ok(key::subject(environment, hash))
}

/// One record.
#[utoipa::path(get, path = "/v1/ledger/{app}/{environment}/{hash}", tag = "views",
    params(("app" = String, Path), ("environment" = String, Path), ("hash" = String, Path)),
    responses(
        (status = 200, description = "The record", body = LedgerRow),
        (status = 404, description = "There is none"),
        (status = 503, description = "The ledger cannot be read")))]
pub async fn one(
    State(admin): State<Admin>,
    Path((app, environment, hash)): Path<(String, String, String)>,
) -> Answer<LedgerRow> {
    let at = named(&app, &environment, &hash)?;
    match admin.ledger.get(&at).await.map_err(Problem::unavailable)? {
        Some(seen) => Ok(Json(row(at, seen.record))),
        None => Err(Problem::not_found("the ledger has no such record, or no longer")),
    }
}

/// What an operator, or the app, says about an unknown outcome.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Resolve {
    /// The attempt this is about, as the record shows it: another one is refused.
    pub attempt: u32,
    /// `carried-out` (repeats are told so) or `not-carried-out` (a repeat is sent).
    pub outcome: String,
    /// Who says so and why; kept with the record.
    #[serde(default)]
    pub note: String,
}

/// Says what became of an attempt whose outcome is unknown.
#[utoipa::path(post, path = "/v1/ledger/{app}/{environment}/{hash}/resolve", tag = "commands",
    params(("app" = String, Path), ("environment" = String, Path), ("hash" = String, Path)),
    request_body = Resolve,
    responses(
        (status = 200, description = "The record now", body = LedgerRow),
        (status = 400, description = "No such outcome"),
        (status = 409, description = "The record is not unknown, or is of another attempt"),
        (status = 503, description = "The ledger cannot be used")))]
pub async fn resolve(
    State(admin): State<Admin>,
    by: By,
    Path((app, environment, hash)): Path<(String, String, String)>,
    Json(request): Json<Resolve>,
) -> Answer<LedgerRow> {
    let at = named(&app, &environment, &hash)?;
    say(&admin, &at, &request, by.token().unwrap_or("operator")).await
}

/// Resolves a record by the word of `who`; on record and in the audit before it is answered.
pub(super) async fn say(
    admin: &Admin,
    at: &str,
    request: &Resolve,
    who: &str,
) -> Answer<LedgerRow> {
    let resolution = match request.outcome.as_str() {
        "carried-out" => Resolution::CarriedOut,
        "not-carried-out" => Resolution::NotCarriedOut,
        other => {
            let expected = "outcome: expected \"carried-out\" or \"not-carried-out\"";
            return Err(Problem::bad(format!("{expected}, found {other:?}")));
        }
    };
    let note: String = request.note.chars().take(200).collect();
    let who = if note.is_empty() { who.to_owned() } else { format!("{who}: {note}") };
    let resolved = admin.ledger.resolve(&admin.audit, at, request.attempt, resolution, &who).await;
    match resolved.map_err(Problem::unavailable)? {
        Some(record) => Ok(Json(row(at.to_owned(), record))),
        None => Err(Problem::new(
            StatusCode::CONFLICT,
            "the record is not there, its outcome is not unknown, or it is of another attempt",
        )),
    }
}

/// Evidence of one unsafe request.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    /// Its place in the audit, after which an older page begins.
    pub place: String,
    /// When it ended, or was about to be answered.
    pub at: String,
    /// The request's id.
    pub request: String,
    /// The environment that was asked.
    pub environment: String,
    /// The route's path, as the contract has it.
    pub route: String,
    /// The route's class.
    pub class: String,
    /// Its method; `-` for a resolution.
    pub method: String,
    /// How it ended; for a resolution `resolved-carried-out` or `resolved-not-carried-out`.
    pub decision: String,
    /// `not forwarded`, `forwarded, outcome unknown` or `answered by the app`; for a resolution
    /// `forwarded, carried out` or `forwarded, not carried out`.
    pub forwarded: String,
    /// Why; for a resolution, by whom and their note.
    pub why: String,
    /// The status that was sent.
    pub status: Option<u16>,
    /// Hash of its key, or of its event's id.
    pub key_hash: Option<String>,
    /// The provider's event id.
    pub event: Option<String>,
    /// The attempt of its key or event; 0 where none was sent.
    pub attempt: u32,
    /// The wake it waited for.
    pub operation: Option<String>,
    /// Microseconds it was held.
    pub held_us: u64,
    /// Microseconds from its head to its end.
    pub total_us: u64,
}

/// Which evidence.
#[derive(Debug, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditFilter {
    /// Only this app's.
    pub app: Option<String>,
    /// Only this route's, as the contract has it.
    pub route: Option<String>,
    /// Only this key's, by its hash.
    pub key_hash: Option<String>,
    /// Only this event's.
    pub event: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// Evidence of unsafe requests, newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "views", params(PageQuery, AuditFilter),
    responses(
        (status = 200, description = "A page of evidence", body = [AuditRow]),
        (status = 503, description = "The audit cannot be read")))]
pub async fn audit(
    State(admin): State<Admin>,
    asked: Asked,
    Query(filter): Query<AuditFilter>,
) -> Rows<AuditRow> {
    let limit = asked.limit()?;
    let before = asked.after();
    if before.is_some_and(|place| !is_place(place)) {
        return Err(Problem::bad("after: expected the `place` of a row of the audit"));
    }
    let wanted = Wanted {
        app: filter.app,
        route: filter.route,
        key_hash: filter.key_hash,
        event: filter.event,
        since: Wall(filter.since_ms.unwrap_or(0)),
    };
    let listed = admin.audit.list(&wanted, before, limit).await;
    let (found, more) = listed.map_err(Problem::unavailable)?;
    let rows = found.into_iter().map(|(place, e)| audit_row(place, e)).collect();
    Ok(Page::read(rows, more, |r| &r.place, &asked))
}

/// Two numbers of 16 hex digits: a time, and what keeps those of one millisecond apart.
fn is_place(text: &str) -> bool {
    let hex = |n: &str| n.len() == 16 && n.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_once('/').is_some_and(|(at, number)| hex(at) && hex(number))
}

fn audit_row(place: String, e: AuditEvidence) -> AuditRow {
    AuditRow {
        place,
        at: e.at.to_string(),
        request: e.request,
        environment: e.environment.to_string(),
        route: e.route,
        class: e.class,
        method: e.method,
        decision: e.decision,
        forwarded: e.forwarded,
        why: e.why,
        status: e.status,
        key_hash: e.key_hash,
        event: e.event,
        attempt: e.attempt,
        operation: e.operation.map(|o| o.to_string()),
        held_us: e.held_us,
        total_us: e.total_us,
    }
}
