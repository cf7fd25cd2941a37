//! Which certificate each name has. Nothing of a key is in any of it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::certificates::{RenewError, Row, rows};
use crate::id::{Environment, Host};
use crate::record::ledger::AuditEvidence;

use super::Admin;
use super::page::{Asked, Page, PageQuery, Rows};
use super::problem::Problem;
use super::records::Answer;

/// How long a command waits for its order to be over.
const WAIT: Duration = Duration::from_secs(30);

/// A name and its certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateRow {
    /// A host, or a wildcard of a file.
    pub name: String,
    /// `file`, `acme`, or `none`: nothing is ordered for it either.
    pub source: String,
    /// The file.
    pub file: Option<String>,
    /// Until when it is good; RFC 3339, UTC. None: there is no certificate.
    pub expires: Option<String>,
    /// The state of its newest order: `requested`, `ordered`, `validating`, `finalizing`, `issued` or `failed`.
    pub order: Option<String>,
    /// Why it has none, or why that order failed.
    pub error: Option<String>,
    /// When the next order is due.
    pub next: Option<String>,
}

impl From<Row> for CertificateRow {
    fn from(row: Row) -> Self {
        Self {
            name: row.name,
            source: row.source.name().into(),
            file: row.file,
            expires: row.expires.map(|at| at.to_string()),
            order: row.order.map(Into::into),
            error: row.error,
            next: row.next.map(|at| at.to_string()),
        }
    }
}

/// Certificates by name: where each comes from, until when it is good, and when the next one is ordered.
#[utoipa::path(get, path = "/v1/certificates", tag = "views", params(PageQuery),
    responses((status = 200, description = "A page of names", body = Vec<CertificateRow>)))]
pub async fn certificates(State(admin): State<Admin>, asked: Asked) -> Rows<CertificateRow> {
    let all = rows(&admin.node.config.load(), &admin.certificates, admin.node.clock.wall());
    let page = Page::cut(all, |row| row.name.clone(), &asked)?;
    Ok(page.map(CertificateRow::from))
}

/// An order that an operator asks for.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Also where the host has a good certificate that is not due.
    #[serde(default)]
    pub force: bool,
}

impl From<RenewError> for Problem {
    fn from(e: RenewError) -> Self {
        match e {
            RenewError::NoAuthority | RenewError::NotOrdered(_) => Self::not_found(e.to_string()),
            RenewError::Waits(..) => Self::new(StatusCode::CONFLICT, e.to_string()),
            RenewError::Raced(_) | RenewError::Read(_) => Self::unavailable(e),
        }
    }
}

/// Orders a certificate for a host now, without the pause that failures make. One order at a time for a host: one
/// that is under way is joined. What the authority said to wait, acme.retry.first and acme.orders_per_hour count all the
/// same. Answers when the order is over, or after half a minute: the row says which.
#[utoipa::path(post, path = "/v1/certificates/{name}/renew", tag = "commands", request_body = RenewRequest,
    params(("name" = String, Path, description = "The host")),
    responses(
        (status = 200, description = "How it went, or how far it is", body = CertificateRow),
        (status = 404, description = "No certificate is ordered for it"),
        (status = 409, description = "It is not due, or has to wait; the detail says until when"),
        (status = 503, description = "The store cannot be used")))]
pub async fn renew(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Json(request): Json<RenewRequest>,
) -> Answer<CertificateRow> {
    let host: Host = name.parse().map_err(Problem::bad)?;
    let order = admin.orders.renew(&host, request.force).await?;
    let config = admin.node.config.load_full();
    if let Some(app) = config.apps.values().find(|app| app.hosts.contains(&host)) {
        let environment = Environment::production(app.name.clone());
        let how = if request.force { " although it is not due" } else { "" };
        let why = format!("an operator had a certificate ordered for {host}{how} ({})", order.id);
        let now = admin.node.clock.wall();
        let row = AuditEvidence::of_environment(&environment, now, "certificate", &why);
        admin.audit.before_answer(&row).await.map_err(Problem::unavailable)?;
    }
    admin.orders.over(&order, WAIT).await;
    let all = rows(&admin.node.config.load(), &admin.certificates, admin.node.clock.wall());
    let row = all.into_iter().find(|row| row.name == host.as_str());
    let row = row.ok_or_else(|| Problem::not_found(format!("{host} is no host any more")))?;
    Ok(Json(CertificateRow::from(row)))
}
