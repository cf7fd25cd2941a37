//! Which certificate each name has. Nothing of a key is in any of it.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::certificates::{Row, rows};

use super::Admin;
use super::page::{Asked, Page, PageQuery, Rows};

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
