//! `certificates`: which each host has, and one that is ordered now.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::admin::{CertificateRow, RenewRequest};
use crate::id::Host;

use super::client::Client;
use super::{EVERY_ROW, PAGE, show};

/// How often an order that goes on is asked about, and how many times: longer than an edge carries one out.
const AGAIN: Duration = Duration::from_millis(500);
const ASKED_MOST: usize = 600;

/// What is done with certificates.
#[derive(Debug, Subcommand)]
pub enum CertificatesCommand {
    /// Order a host's certificate now, and wait until that is over
    ///
    /// For a host whose order failed, once the reason is mended: it need not wait for its next try. An order that is
    /// under way is joined. A certificate that is good and not due stays, unless --force is given. What the authority
    /// said to wait, acme.retry.first and acme.orders_per_hour count all the same: authorities lock out who asks too
    /// often. Where no certificate was issued it says why and exits with 1.
    ///
    /// Examples:
    ///   vango-edge certificates renew app.example
    ///   vango-edge certificates renew app.example --force
    #[command(verbatim_doc_comment)]
    Renew {
        /// The host
        host: Host,
        /// Although its certificate is good and not due
        #[arg(long)]
        force: bool,
    },
}

/// Lists certificates, or orders one.
///
/// # Errors
/// Why none is ordered.
pub fn run(client: &Client, command: Option<CertificatesCommand>, json: bool) -> Result<ExitCode> {
    let Some(CertificatesCommand::Renew { host, force }) = command else {
        show::either(json, &all(client)?[..], show::certificates)?;
        return Ok(ExitCode::SUCCESS);
    };
    let path = format!("/v1/certificates/{host}/renew");
    let mut row: CertificateRow = client.post(&path, &RenewRequest { force })?;
    for _ in 0..ASKED_MOST {
        if !goes_on(&row) {
            break;
        }
        std::thread::sleep(AGAIN);
        let mut all = all(client)?.into_iter();
        row = all.find(|r| r.name == row.name).with_context(|| format!("{host} is gone"))?;
    }
    show::either(json, &row, said)?;
    let issued = row.order.as_deref() == Some("issued");
    Ok(if issued { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn all(client: &Client) -> Result<Vec<CertificateRow>> {
    client.rows(&format!("/v1/certificates?limit={PAGE}"), EVERY_ROW)
}

fn goes_on(row: &CertificateRow) -> bool {
    row.order.as_deref().is_some_and(|order| !matches!(order, "issued" | "failed"))
}

fn said(row: &CertificateRow) -> String {
    let at = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".into());
    match (row.order.as_deref(), &row.error) {
        (Some("issued"), _) => format!("{}: issued, good until {}\n", row.name, at(&row.expires)),
        (Some("failed"), Some(why)) => {
            format!("{}: failed: {why}\nThe next try is due at {}\n", row.name, at(&row.next))
        }
        (state, _) => format!("{}: {}\n", row.name, state.unwrap_or("no order")),
    }
}
