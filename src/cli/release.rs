//! `promote`, `rollback`, `evidence`: what a preview is for.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::admin::types::{
    CheckRequest, CollectedRow, EvidenceRequest, EvidenceRow, PromoteRequest, PromotionRow,
};
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

fn finish(client: &Client, mut row: PromotionRow, json: bool) -> Result<()> {
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
    if json {
        return show::json(&row);
    }
    let epoch = row.epoch.map_or_else(String::new, |e| format!(" under epoch {e}"));
    show::text(&format!("{} serves {}{epoch}: {}\n", row.environment, row.digest, row.state))
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
    note: &str,
    json: bool,
) -> Result<()> {
    let path = format!("/v1/environments/{app}/{preview}/evidence");
    let row: EvidenceRow = if checks.is_empty() {
        client.get(&path)?
    } else {
        let checks = checks.iter().map(|c| check(c)).collect::<Result<_>>()?;
        client.post(&path, &EvidenceRequest { checks, note: note.to_owned() })?
    };
    if json {
        return show::json(&row);
    }
    let mut out = format!(
        "{} {} {}\n{} requests, {} errors\n",
        row.environment, row.deployment, row.digest, row.requests, row.errors
    );
    for check in &row.checks {
        let passed = if check.passed { "passed" } else { "failed" };
        out.push_str(&format!("{}: {passed}  {}  {}\n", check.name, check.at, check.note));
    }
    match row.missing.is_empty() {
        true => out.push_str("it may be promoted\n"),
        false => out.push_str(&format!("it may not be promoted: {}\n", row.missing.join("; "))),
    }
    show::text(&out)
}

/// Removes what nothing refers to, and says what that was.
///
/// # Errors
/// Why nothing was removed.
pub fn collect(client: &Client, json: bool) -> Result<()> {
    let done: CollectedRow = client.post("/v1/collect", &())?;
    if json {
        return show::json(&done);
    }
    show::text(&format!(
        "{} deployments, {} blobs of {} bytes, {} trees\n",
        done.deployments, done.blobs, done.bytes, done.trees
    ))
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
