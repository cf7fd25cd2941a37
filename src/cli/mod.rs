//! Every command: its arguments, what it asks for, and how it is shown.
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod arguments;
mod client;
mod deploy;
mod help;
mod release;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use crate::admin::types::{
    AllocationRow, DeploymentRow, Done, ExplainRequest, Explanation, OperationRow, RouteRow,
    TraceRow,
};
use crate::admin::{AuditRow, ConfigRow, LedgerRow, Resolve};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Diagnostic, Secret, SecretSource};
use crate::control::Effect;
use crate::id::Environment;
use crate::lifecycle::idempotency::key_hash;

use arguments::{Cli, Command};
use client::Client;

/// Rows that are asked for at a time: as many as the API gives.
const PAGE: usize = 1000;
/// A list that is asked for without a number: no edge keeps more rows of any.
const EVERY_ROW: usize = 1_000_000;

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        // `vango-edge ps | head` is not an error.
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vango-edge: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let client = Client::new(&cli.admin, token(cli.token_file.as_deref())?);
    let json = cli.json;
    match &cli.command {
        Command::Run { config } => return run(config),
        Command::Check { config, artifact } => return check(config, artifact.as_deref(), json),
        Command::Reload => reload(&client, json)?,
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "vango-edge", &mut out);
            show::text(&String::from_utf8_lossy(&out))?;
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)?,
        Command::Deploy { dir, preview, promote } => {
            let deployed = deploy::deploy(&client, dir, preview.as_ref(), *promote, json)?;
            if *promote && deployed.effect == Effect::Stored {
                let wanted = release::wanted(&deployed.digest.to_string())?;
                release::promote(&client, deployed.environment.app(), &wanted, json)?;
            }
        }
        Command::Promote { app, what } => {
            release::promote(&client, app, &release::wanted(what)?, json)?;
        }
        Command::Remove { environment } => {
            let done: Done = client.delete(&format!("/v1/environments/{environment}"))?;
            if json {
                show::json(&done)?;
            } else {
                show::text(&format!("{environment}: {}\n", done.done))?;
            }
        }
        Command::Collect => release::collect(&client, json)?,
        Command::Rollback { app } => release::rollback(&client, app, json)?,
        Command::Evidence { app, preview, statement: true, .. } => {
            let text = client.text(&format!("/v1/environments/{app}/{preview}/statement"))?;
            show::text(&format!("{text}\n"))?;
        }
        Command::Evidence { app, preview, checks, note, .. } => {
            release::evidence(&client, app, preview, checks, note, json)?;
        }
        Command::Openapi => show::json(&crate::admin::document())?,
        Command::Health => show::text(&client.text("/readyz")?)?,
        Command::Routes { app } => {
            let mut rows: Vec<RouteRow> = client.rows("/v1/routes?limit=1000", EVERY_ROW)?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::routes)?;
        }
        Command::Ps { app } => {
            let mut rows: Vec<AllocationRow> =
                client.rows("/v1/allocations?limit=1000", EVERY_ROW)?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::allocations)?;
        }
        Command::Ops { app } => {
            let mut rows: Vec<OperationRow> =
                client.rows("/v1/operations?limit=1000", EVERY_ROW)?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::operations)?;
        }
        Command::Audit { app, route, key, event, since, limit, lines } => {
            let since = since.as_deref().map(since_ms).transpose()?;
            let hash = key.as_deref().map(key_hash);
            let query = query(
                "/v1/audit",
                *limit,
                &[
                    ("app", app.as_deref()),
                    ("route", route.as_deref()),
                    ("key_hash", hash.as_deref()),
                    ("event", event.as_deref()),
                    ("since_ms", since.as_deref()),
                ],
            );
            let rows: Vec<AuditRow> = client.rows(&query, *limit)?;
            match lines {
                true => show::lines(&rows)?,
                false => show::list(json, &rows, show::audit)?,
            }
        }
        Command::Ledger { app, state, key, event, limit } => {
            let hash = key.as_deref().map(key_hash);
            let query = query(
                "/v1/ledger",
                *limit,
                &[
                    ("app", app.as_deref()),
                    ("state", state.as_deref()),
                    ("key_hash", hash.as_deref()),
                    ("event", event.as_deref()),
                ],
            );
            let rows: Vec<LedgerRow> = client.rows(&query, *limit)?;
            show::list(json, &rows, show::ledger)?;
        }
        Command::Resolve { record, attempt, outcome, note } => {
            let body = Resolve { attempt: *attempt, outcome: outcome.clone(), note: note.clone() };
            let row: LedgerRow = client.post(&format!("/v1/ledger/{record}/resolve"), &body)?;
            show::list(json, &[row], show::ledger)?;
        }
        Command::Deployments { app } => {
            let mut rows: Vec<DeploymentRow> =
                client.rows("/v1/deployments?limit=1000", EVERY_ROW)?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::deployments)?;
        }
        Command::Logs { allocation } => {
            show::text(&client.text(&format!("/v1/allocations/{allocation}/log"))?)?;
        }
        Command::Sleep { environment } => command(&client, environment, "sleep", json)?,
        Command::Wake { environment } => command(&client, environment, "wake", json)?,
        Command::Explain { method, url, headers } => explain(&client, method, url, headers, json)?,
        Command::Traces { app, class, request, limit, steps, follow } => {
            let query = query(
                "/v1/traces",
                *limit,
                &[
                    ("app", app.as_deref()),
                    ("class", class.as_deref()),
                    ("request", request.as_deref()),
                ],
            );
            let steps = *steps || request.is_some();
            traces(&client, &query, steps, *follow, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The token, never as an argument: those can be seen by every user of the machine.
fn token(file: Option<&Path>) -> Result<Option<Secret>> {
    let source = match file {
        Some(path) => SecretSource::File(path.to_owned()),
        None if std::env::var_os("VANGO_EDGE_TOKEN").is_some() => {
            SecretSource::Env("VANGO_EDGE_TOKEN".into())
        }
        None => return Ok(None),
    };
    Ok(Some(config::read_secret(&source)?))
}

/// `path` with what is asked for, as a query.
fn query(path: &str, limit: usize, asked: &[(&str, Option<&str>)]) -> String {
    let mut out = format!("{path}?limit={}", limit.min(PAGE));
    for (name, value) in asked {
        let Some(value) = value else { continue };
        out.push_str(&format!("&{name}="));
        for b in value.bytes() {
            match b {
                b if b.is_ascii_alphanumeric() || b"-._~/*".contains(&b) => out.push(b.into()),
                b => out.push_str(&format!("%{b:02X}")),
            }
        }
    }
    out
}

/// The moment that is `ago` before now, in milliseconds since 1970.
fn since_ms(ago: &str) -> Result<String> {
    let wrong = || anyhow::anyhow!("--since {ago}: expected a time such as 15m, 24h or 7d");
    let at = ago.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = ago[..at].parse().map_err(|_| wrong())?;
    let unit = match &ago[at..] {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let now = SystemClock::new().wall().0;
    Ok(now.saturating_sub(number.saturating_mul(unit)).to_string())
}

fn of_app(app: Option<&String>, environment: &str) -> bool {
    app.is_none_or(|app| environment.split('/').next() == Some(app.as_str()))
}

fn run(path: &Path) -> Result<ExitCode> {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            print_diagnostics(&errors, false)?;
            return Ok(ExitCode::FAILURE);
        }
    };
    crate::telemetry::start_log(config.log.level);
    crate::server::run(path.to_owned(), config)?;
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Path, artifact: Option<&Path>, json: bool) -> Result<ExitCode> {
    let loaded = config::load(config);
    let now = SystemClock::new().wall().0 / 1000;
    for warning in loaded.iter().flat_map(|config| config.warnings(now)) {
        eprintln!("warning: {warning}");
    }
    let mut errors = loaded.as_ref().err().cloned().unwrap_or_default();
    if let Some(dir) = artifact {
        errors.extend(crate::control::check(dir, loaded.as_ref().ok())?);
    }
    print_diagnostics(&errors, json)?;
    if errors.is_empty() {
        if !json {
            show::text("ok\n")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn print_diagnostics(errors: &[Diagnostic], json: bool) -> Result<()> {
    if json {
        let rows: Vec<_> = errors
            .iter()
            .map(|d| {
                serde_json::json!({
                    "file": d.file.display().to_string(),
                    "line": d.line,
                    "column": d.column,
                    "key": d.key,
                    "message": d.message,
                })
            })
            .collect();
        return show::json(&rows);
    }
    for error in errors {
        eprintln!("{error}");
    }
    if !errors.is_empty() {
        eprintln!("{} errors", errors.len());
    }
    Ok(())
}

fn reload(client: &Client, json: bool) -> Result<()> {
    let row: ConfigRow = client.post("/v1/config/reload", &())?;
    if json { show::json(&row) } else { show::config(&row) }
}

fn command(client: &Client, environment: &Environment, verb: &str, json: bool) -> Result<()> {
    let done: Done = client.post(&format!("/v1/environments/{environment}/{verb}"), &())?;
    if json {
        return show::json(&done);
    }
    let operation = done.operation.map_or_else(String::new, |o| format!(" ({o})"));
    show::text(&format!("{environment}: {}{operation}\n", done.done))
}

fn explain(client: &Client, method: &str, url: &str, headers: &[String], json: bool) -> Result<()> {
    let headers = headers
        .iter()
        .map(|h| match h.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => anyhow::bail!("-H {h:?}: expected `Name: value`"),
        })
        .collect::<Result<_>>()?;
    let request = ExplainRequest { method: method.to_owned(), url: url.to_owned(), headers };
    let found: Explanation = client.post("/v1/explain", &request)?;
    if json { show::json(&found) } else { show::explanation(&found) }
}

fn traces(client: &Client, query: &str, steps: bool, follow: bool, json: bool) -> Result<()> {
    let mut seen = std::collections::VecDeque::new();
    loop {
        let mut rows: Vec<TraceRow> = client.get(query)?;
        if !follow {
            return show::list(json, &rows, |rows| show::traces(rows, steps));
        }
        // Oldest first, and only those not printed yet; the ring is bounded, and so is this.
        rows.reverse();
        rows.retain(|r| !seen.contains(&r.request));
        for row in &rows {
            seen.push_back(row.request.clone());
        }
        while seen.len() > 4096 {
            seen.pop_front();
        }
        if !rows.is_empty() {
            show::list(json, &rows, |rows| show::traces(rows, steps))?;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        fn look(command: &clap::Command, wrong: &mut Vec<String>) {
            if command.get_about().is_none() {
                wrong.push(command.get_name().to_owned());
            }
            let long = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("  vango-edge {}", command.get_name());
            if command.get_name() != "vango-edge" && !long.contains(&example) {
                wrong.push(format!("{}: no example", command.get_name()));
            }
            if long.lines().any(|l| l.chars().count() > 110) {
                wrong.push(format!("{}: a line is too long for a terminal", command.get_name()));
            }
            for argument in command.get_arguments().filter(|a| a.get_help().is_none()) {
                wrong.push(format!("{} {}", command.get_name(), argument.get_id()));
            }
            command.get_subcommands().for_each(|c| look(c, wrong));
        }
        let command = Cli::command();
        command.clone().debug_assert();
        let mut wrong = Vec::new();
        look(&command, &mut wrong);
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
