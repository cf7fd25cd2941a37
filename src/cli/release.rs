//! `promote`, `rollback`, `evidence`: what a preview is for.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::admin::types::{
    CheckRequest, EvidenceRequest, EvidenceRow, PromoteRequest, PromotionRow,
};
use crate::control::Collected;
use crate::id::{AppName, Digest, EnvName};

use super::client::Client;
use super::show;

/// How often a promotion that goes on is asked about.
const AGAIN: Duration = Duration::from_millis(500);

/// What `promote` is given: a preview's name or a digest.
pub fn wanted(text: &str) -> Result<PromoteRequest> {
    if text.parse::<Digest>().is_ok() {
        return Ok(PromoteRequest { preview: None, digest: Some(text.to_owned()) });
    }
    match text.parse::<EnvName>() {
        Ok(name) => Ok(PromoteRequest { preview: Some(name.to_string()), digest: None }),
        Err(_) => bail!("{text:?}: expected a preview's name or sha256: and 64 hex digits"),
    }
}

/// Promotes, and waits until it is over.
///
/// # Errors
/// Why it was refused, or why it went back.
pub fn promote(client: &Client, app: &AppName, wanted: &PromoteRequest, json: bool) -> Result<()> {
    finish(client, client.post(&format!("/v1/apps/{app}/promote"), wanted)?, json)
}

/// Goes back to the artifact before, and waits until it is over.
///
/// # Errors
/// Why it was refused, or why it did not happen.
pub fn rollback(client: &Client, app: &AppName, json: bool) -> Result<()> {
    finish(client, client.post(&format!("/v1/apps/{app}/rollback"), &())?, json)
}

/// Waits until a promotion is over, and says what it came to.
///
/// # Errors
/// Why it was refused, or why it did not happen.
pub fn finish(client: &Client, row: PromotionRow, json: bool) -> Result<()> {
    let row = ended(client, row)?;
    show::either(json, &row, |row| {
        let epoch = row.epoch.map_or_else(String::new, |e| format!(" under epoch {e}"));
        format!("{} serves {}{epoch}: {}\n", row.environment, row.digest, row.state)
    })
}

/// A promotion once it is over.
///
/// # Errors
/// Why it was refused, or why it did not happen.
pub fn ended(client: &Client, mut row: PromotionRow) -> Result<PromotionRow> {
    // Bounded by the edge: a promotion ends by itself.
    while row.in_progress {
        std::thread::sleep(AGAIN);
        let path = format!("/v1/environments/{}/promotion", row.environment);
        let now: PromotionRow = client.get(&path)?;
        if now.id != row.id {
            bail!("{}: another promotion followed; `vango-edge ops` lists both", row.id);
        }
        row = now;
    }
    if row.state != "healthy" {
        bail!("{} {} is {}: {}", row.kind, row.id, row.state, row.reason.unwrap_or_default());
    }
    Ok(row)
}

/// Records checks, if there are any, and shows what is known.
///
/// # Errors
/// What was wrong with a check, or that there is no such preview.
pub fn evidence(
    client: &Client,
    app: &AppName,
    preview: &EnvName,
    checks: &[String],
    note: String,
    json: bool,
) -> Result<()> {
    let path = format!("/v1/environments/{app}/{preview}/evidence");
    let row: EvidenceRow = if checks.is_empty() {
        client.get(&path)?
    } else {
        let checks = checks.iter().map(|c| check(c)).collect::<Result<_>>()?;
        client.post(&path, &EvidenceRequest { checks, note })?
    };
    show::either(json, &row, known)
}

fn known(row: &EvidenceRow) -> String {
    let mut out = format!(
        "{} {} {}\n{}, {}\n",
        row.environment,
        row.deployment,
        row.digest,
        show::count(row.requests, "request"),
        show::count(row.errors, "error")
    );
    for check in &row.checks {
        let passed = if check.passed { "passed" } else { "failed" };
        out.push_str(&format!("{}: {passed}  {}  {}\n", check.name, check.at, check.note));
    }
    match row.missing.is_empty() {
        true => out.push_str("it may be promoted\n"),
        false => out.push_str(&format!("it may not be promoted: {}\n", row.missing.join("; "))),
    }
    out
}

/// Removes what nothing refers to, and says what that was.
///
/// # Errors
/// Why nothing was removed.
pub fn collect(client: &Client, json: bool) -> Result<()> {
    let done: Collected = client.post("/v1/collect", &())?;
    show::either(json, &done, |Collected { deployments, blobs, bytes, trees }| {
        let (deployments, blobs) =
            (show::count(*deployments, "deployment"), show::count(*blobs, "blob"));
        let (bytes, trees) = (show::count(*bytes, "byte"), show::count(*trees, "tree"));
        format!("{deployments}, {blobs} of {bytes}, {trees}\n")
    })
}

fn check(text: &str) -> Result<CheckRequest> {
    let passed = match text.split_once('=') {
        Some((_, "passed")) => true,
        Some((_, "failed")) => false,
        _ => bail!("--check {text:?}: expected NAME=passed or NAME=failed"),
    };
    let name = text.rsplit_once('=').map_or(text, |(name, _)| name).to_owned();
    Ok(CheckRequest { name, passed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_and_a_digest_are_told_apart() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(wanted(&digest).unwrap().digest, Some(digest));
        assert_eq!(wanted("pr-7").unwrap().preview.as_deref(), Some("pr-7"));
        assert!(wanted("sha256:abc").is_err() && wanted("PR_7").is_err());
        assert!(check("smoke=passed").unwrap().passed && !check("smoke=failed").unwrap().passed);
        for bad in ["smoke", "smoke=", "smoke=ok", "=passed x"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
