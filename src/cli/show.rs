//! How answers are printed: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::admin::ConfigRow;
use crate::admin::types::{
    AllocationRow, DeploymentRow, Explanation, OperationRow, RouteRow, TraceRow,
};
use crate::admin::{AuditRow, LedgerRow};
use crate::lifecycle::trace::StepText;

/// Prints text. What an app or a client wrote may be in it: a terminal would take it for commands, so
/// control characters, and those that turn the direction of writing, are shown by their numbers. JSON
/// has the same notation.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(escaped(text).as_bytes())?;
    out.flush()?;
    Ok(())
}

pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_command) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_command(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// Prints JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// What a reload came to.
pub fn config(row: &ConfigRow) -> Result<()> {
    let changed = row.last_attempt.iter().flat_map(|a| &a.changed);
    let mut out = format!("{}: revision {} is in force\n", row.file, row.revision);
    for key in changed {
        out.push_str(&format!("changed: {key}\n"));
    }
    for key in &row.needs_restart {
        out.push_str(&format!("needs a restart: {key}\n"));
    }
    text(&out)
}

/// Prints rows either way.
pub fn list<T: Serialize>(as_json: bool, rows: &[T], table: impl Fn(&[T]) -> String) -> Result<()> {
    if as_json { json(&rows) } else { text(&table(rows)) }
}

/// Columns as wide as their widest cell.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, width) in cells.zip(&widths) {
            out.push_str(&format!("{cell:width$}  "));
        }
        format!("{}\n", out.trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

/// Routed hosts.
pub fn routes(rows: &[RouteRow]) -> String {
    let cells = |r: &RouteRow| {
        vec![
            r.host.clone(),
            r.environment.clone(),
            r.epoch.to_string(),
            short(&r.digest),
            r.state.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["HOST", "ENVIRONMENT", "EPOCH", "ARTIFACT", "STATE"], &rows)
}

/// Allocations.
pub fn allocations(rows: &[AllocationRow]) -> String {
    let cells = |r: &AllocationRow| {
        vec![
            r.id.clone(),
            r.environment.clone(),
            r.generation.to_string(),
            r.epoch.to_string(),
            short(&r.digest),
            r.state.clone(),
            r.pid.map_or_else(|| "-".into(), |p| p.to_string()),
            r.address.clone().unwrap_or_else(|| "-".into()),
            r.in_flight.to_string(),
            r.sockets.to_string(),
            r.total.to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head = [
        "ALLOCATION",
        "ENVIRONMENT",
        "GENERATION",
        "EPOCH",
        "ARTIFACT",
        "STATE",
        "PID",
        "ADDRESS",
        "IN FLIGHT",
        "SOCKETS",
        "SERVED",
    ];
    table(&head, &rows)
}

/// Operations.
pub fn operations(rows: &[OperationRow]) -> String {
    let phase = |us: Option<u64>| us.map_or_else(|| "-".into(), ms);
    let cells = |r: &OperationRow| {
        let why = r.failure.as_ref().map_or_else(String::new, |f| f.detail.clone());
        vec![
            r.id.clone(),
            r.kind.clone(),
            r.environment.clone(),
            r.state.clone(),
            r.requested.clone(),
            phase(r.phases.reserve_us),
            phase(r.phases.artifact_us),
            phase(r.phases.spawn_us),
            phase(r.phases.ready_us),
            phase(r.phases.thaw_us),
            r.allocation.clone().unwrap_or_else(|| "-".into()),
            why,
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head = [
        "OPERATION",
        "KIND",
        "ENVIRONMENT",
        "STATE",
        "REQUESTED",
        "RESERVE",
        "ARTIFACT",
        "START",
        "READY",
        "THAW",
        "ALLOCATION",
        "REASON",
    ];
    table(&head, &rows)
}

/// One JSON object a line.
pub fn lines<T: Serialize>(rows: &[T]) -> Result<()> {
    let mut out = String::new();
    for row in rows {
        out.push_str(&serde_json::to_string(row)?);
        out.push('\n');
    }
    text(&out)
}

/// Records of the ledger.
pub fn ledger(rows: &[LedgerRow]) -> String {
    let cells = |r: &LedgerRow| {
        vec![
            r.changed.clone(),
            r.route.clone(),
            r.event.clone().unwrap_or_else(|| r.key_hash.clone()),
            r.attempt.to_string(),
            r.state.clone(),
            r.status.map_or_else(|| "-".into(), |s| s.to_string()),
            r.resolved.clone().unwrap_or_else(|| "-".into()),
            r.at.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head =
        ["CHANGED", "ROUTE", "KEY OR EVENT", "ATTEMPT", "STATE", "STATUS", "RESOLVED", "RECORD"];
    table(&head, &rows)
}

/// Evidence.
pub fn audit(rows: &[AuditRow]) -> String {
    let cells = |r: &AuditRow| {
        vec![
            r.at.clone(),
            r.request.clone(),
            format!("{} {}", r.method, r.route),
            r.event.clone().or(r.key_hash.clone()).unwrap_or_else(|| "-".into()),
            r.attempt.to_string(),
            r.decision.clone(),
            r.forwarded.clone(),
            r.status.map_or_else(|| "-".into(), |s| s.to_string()),
            r.why.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head = [
        "AT",
        "REQUEST",
        "ROUTE",
        "KEY OR EVENT",
        "ATTEMPT",
        "DECISION",
        "FORWARDED",
        "STATUS",
        "WHY",
    ];
    table(&head, &rows)
}

/// Deployments.
pub fn deployments(rows: &[DeploymentRow]) -> String {
    let cells = |r: &DeploymentRow| {
        vec![
            r.id.clone(),
            r.environment.clone(),
            short(&r.digest),
            r.created.clone(),
            r.files.to_string(),
            r.bytes.to_string(),
            if r.current { "current".into() } else { String::new() },
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["DEPLOYMENT", "ENVIRONMENT", "ARTIFACT", "CREATED", "FILES", "BYTES", ""], &rows)
}

/// Traces, with their steps if asked for.
pub fn traces(rows: &[TraceRow], steps: bool) -> String {
    if steps {
        return rows.iter().fold(String::new(), |mut out, r| {
            out.push_str(&trace_with_steps(r));
            out.push('\n');
            out
        });
    }
    let cells = |r: &TraceRow| {
        vec![
            r.at.clone(),
            r.request.clone(),
            r.method.clone(),
            format!("{}{}", r.host, r.path),
            r.class.clone(),
            r.outcome.clone(),
            r.status.map_or_else(|| "-".into(), |s| s.to_string()),
            ms(r.total_us),
            ms(r.held_us),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head = ["AT", "REQUEST", "METHOD", "URL", "CLASS", "OUTCOME", "STATUS", "TOTAL", "HELD"];
    table(&head, &rows)
}

fn trace_with_steps(r: &TraceRow) -> String {
    let status = r.status.map_or_else(|| "-".into(), |s| s.to_string());
    let mut out = format!(
        "{} {}{}  {} ({})  {status}  {}\n{}  request {}",
        r.method,
        r.host,
        r.path,
        r.outcome,
        r.risk,
        ms(r.total_us),
        r.at,
        r.request
    );
    if let Some(operation) = &r.operation {
        out.push_str(&format!("  operation {operation}"));
    }
    out.push('\n');
    out.push_str(&steps(&r.steps));
    out.push_str(&format!("  Decision: {}\n", r.decision));
    out
}

fn steps(steps: &[StepText]) -> String {
    let mut out = String::new();
    for s in steps {
        let detail = if s.detail.is_empty() { String::new() } else { format!(" ({})", s.detail) };
        out.push_str(&format!(
            "  {:>10}  {:<16}  {}\n{:32}{}: {}{detail}\n",
            ms(s.at_us),
            s.actor,
            s.action,
            "",
            s.truth,
            s.value,
        ));
    }
    out
}

/// An explanation.
pub fn explanation(found: &Explanation) -> Result<()> {
    let mut out = format!("{} ({})\n", found.outcome, found.risk);
    for s in &found.steps {
        let detail = if s.detail.is_empty() { String::new() } else { format!(" ({})", s.detail) };
        out.push_str(&format!(
            "  {:<16}  {}\n{:20}{}: {}{detail}\n",
            s.actor, s.action, "", s.truth, s.value
        ));
    }
    out.push_str(&format!("  Decision: {}\n", found.decision));
    text(&out)
}
