//! How answers are printed: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::admin::types::{
    AllocationRow, DeploymentRow, Explanation, OperationRow, RouteRow, TraceRow,
};
use crate::admin::{AuditRow, LedgerRow};
use crate::admin::{CertificateRow, ConfigRow, CronRow};
use crate::lifecycle::trace::StepText;
use crate::record::Failure;

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

/// Prints `value` as JSON for programs, or as `words` has it for people.
pub fn either<T: Serialize + ?Sized>(
    as_json: bool,
    value: &T,
    words: impl FnOnce(&T) -> String,
) -> Result<()> {
    if as_json { json(value) } else { text(&words(value)) }
}

/// `1 error`, `2 errors`.
pub fn count(n: impl TryInto<u64>, what: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Prints JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// What a reload came to.
pub fn config(row: &ConfigRow) -> String {
    let changed = row.last_attempt.iter().flat_map(|a| &a.changed);
    let mut out = format!("{}: revision {} is in force\n", row.file, row.revision);
    for key in changed {
        out.push_str(&format!("changed: {key}\n"));
    }
    for key in &row.needs_restart {
        out.push_str(&format!("needs a restart: {key}\n"));
    }
    out
}

/// A column of a table: its head, and its cell in each row.
type Column<T> = (&'static str, fn(&T) -> String);

/// Columns as wide as their widest cell.
fn table<T>(rows: &[T], columns: &[Column<T>]) -> String {
    let head = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|(_, cell)| cell(row)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns.len()).filter_map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        out.push_str(padded.collect::<String>().trim_end());
        out.push('\n');
    }
    out
}

fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".into(), ToString::to_string)
}

fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

/// Routed hosts.
pub fn routes(rows: &[RouteRow]) -> String {
    table(
        rows,
        &[
            ("HOST", |r| r.host.clone()),
            ("ENVIRONMENT", |r| r.environment.clone()),
            ("EPOCH", |r| r.epoch.to_string()),
            ("ARTIFACT", |r| short(&r.digest)),
            ("STATE", |r| r.state.clone()),
        ],
    )
}

/// Names with their certificates.
pub fn certificates(rows: &[CertificateRow]) -> String {
    table(
        rows,
        &[
            ("NAME", |r| r.name.clone()),
            ("SOURCE", |r| r.source.clone()),
            ("EXPIRES", |r| or_dash(&r.expires)),
            ("ORDER", |r| or_dash(&r.order)),
            ("NEXT", |r| or_dash(&r.next)),
            ("FILE OR ERROR", |r| or_dash(&r.error.as_ref().or(r.file.as_ref()))),
        ],
    )
}

/// Allocations.
pub fn allocations(rows: &[AllocationRow]) -> String {
    table(
        rows,
        &[
            ("ALLOCATION", |r| r.id.clone()),
            ("ENVIRONMENT", |r| r.environment.clone()),
            ("PROCESS", |r| r.process.clone()),
            ("GENERATION", |r| r.generation.to_string()),
            ("EPOCH", |r| r.epoch.to_string()),
            ("ARTIFACT", |r| short(&r.digest)),
            ("STATE", |r| r.state.clone()),
            ("PID", |r| or_dash(&r.pid)),
            ("ADDRESS", |r| or_dash(&r.address)),
            ("IN FLIGHT", |r| r.in_flight.to_string()),
            ("SOCKETS", |r| r.sockets.to_string()),
            ("SERVED", |r| r.total.to_string()),
        ],
    )
}

/// What schedules start.
pub fn cron(rows: &[CronRow]) -> String {
    table(
        rows,
        &[
            ("ENVIRONMENT", |r| r.environment.clone()),
            ("NAME", |r| r.name.clone()),
            ("SCHEDULE", |r| r.schedule.clone()),
            ("TASK", |r| r.task.clone()),
            ("NEXT", |r| or_dash(&r.next)),
            ("LAST", |r| or_dash(&r.last.as_ref().map(|last| last.started.clone()))),
            ("", |r| match &r.last {
                Some(last) => last.how.clone().unwrap_or_else(|| "running".into()),
                None => String::new(),
            }),
        ],
    )
}

/// Operations.
pub fn operations(rows: &[OperationRow]) -> String {
    table(
        rows,
        &[
            ("OPERATION", |r| r.id.clone()),
            ("KIND", |r| r.kind.clone()),
            ("ENVIRONMENT", |r| r.environment.clone()),
            ("STATE", |r| r.state.clone()),
            ("REQUESTED", |r| r.requested.clone()),
            ("RESERVE", |r| or_dash(&r.phases.reserve_us.map(ms))),
            ("ARTIFACT", |r| or_dash(&r.phases.artifact_us.map(ms))),
            ("START", |r| or_dash(&r.phases.spawn_us.map(ms))),
            ("READY", |r| or_dash(&r.phases.ready_us.map(ms))),
            ("THAW", |r| or_dash(&r.phases.thaw_us.map(ms))),
            ("ALLOCATION", |r| or_dash(&r.allocation)),
            ("REASON", |r| reason(r.failure.as_ref())),
        ],
    )
}

/// Its first line: what a release command printed follows in the JSON.
fn reason(failure: Option<&Failure>) -> String {
    let detail = failure.map_or("", |f| &f.detail);
    detail.lines().next().unwrap_or_default().to_owned()
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
    table(
        rows,
        &[
            ("CHANGED", |r| r.changed.clone()),
            ("ROUTE", |r| r.route.clone()),
            ("KEY OR EVENT", |r| r.event.clone().unwrap_or_else(|| r.key_hash.clone())),
            ("ATTEMPT", |r| r.attempt.to_string()),
            ("STATE", |r| r.state.clone()),
            ("STATUS", |r| or_dash(&r.status)),
            ("RESOLVED", |r| or_dash(&r.resolved)),
            ("RECORD", |r| r.at.clone()),
        ],
    )
}

/// Evidence.
pub fn audit(rows: &[AuditRow]) -> String {
    table(
        rows,
        &[
            ("AT", |r| r.at.clone()),
            ("REQUEST", |r| r.request.clone()),
            ("ROUTE", |r| format!("{} {}", r.method, r.route)),
            ("KEY OR EVENT", |r| or_dash(&r.event.as_ref().or(r.key_hash.as_ref()))),
            ("ATTEMPT", |r| r.attempt.to_string()),
            ("DECISION", |r| r.decision.clone()),
            ("FORWARDED", |r| r.forwarded.clone()),
            ("STATUS", |r| or_dash(&r.status)),
            ("WHY", |r| r.why.clone()),
        ],
    )
}

/// Deployments.
pub fn deployments(rows: &[DeploymentRow]) -> String {
    table(
        rows,
        &[
            ("DEPLOYMENT", |r| r.id.clone()),
            ("ENVIRONMENT", |r| r.environment.clone()),
            ("ARTIFACT", |r| short(&r.digest)),
            ("CREATED", |r| r.created.clone()),
            ("FILES", |r| r.files.to_string()),
            ("BYTES", |r| r.bytes.to_string()),
            ("", |r| if r.current { "current".into() } else { String::new() }),
        ],
    )
}

/// Traces, with their steps if asked for.
pub fn traces(rows: &[TraceRow], steps: bool) -> String {
    if steps {
        return rows.iter().map(|r| format!("{}\n", trace_with_steps(r))).collect();
    }
    table(
        rows,
        &[
            ("AT", |r| r.at.clone()),
            ("REQUEST", |r| r.request.clone()),
            ("METHOD", |r| r.method.clone()),
            ("URL", |r| format!("{}{}", r.host, r.path)),
            ("CLASS", |r| r.class.clone()),
            ("OUTCOME", |r| r.outcome.clone()),
            ("STATUS", |r| or_dash(&r.status)),
            ("TOTAL", |r| ms(r.total_us)),
            ("HELD", |r| ms(r.held_us)),
        ],
    )
}

fn trace_with_steps(r: &TraceRow) -> String {
    let status = or_dash(&r.status);
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
    for s in &r.steps {
        out.push_str(&format!("  {:>10}{}", ms(s.at_us), step(s, 32)));
    }
    out.push_str(&format!("  Decision: {}\n", r.decision));
    out
}

/// A step in two lines; the second begins at the column `indent`.
fn step(s: &StepText, indent: usize) -> String {
    let detail = if s.detail.is_empty() { String::new() } else { format!(" ({})", s.detail) };
    format!("  {:<16}  {}\n{:indent$}{}: {}{detail}\n", s.actor, s.action, "", s.truth, s.value)
}

/// An explanation.
pub fn explanation(found: &Explanation) -> String {
    let steps: String = found.steps.iter().map(|s| step(s, 20)).collect();
    let Explanation { outcome, risk, decision, .. } = found;
    format!("{outcome} ({risk})\n{steps}  Decision: {decision}\n")
}
