//! Every command: its arguments, what it asks for, and how it is shown.
//! Exit codes: 0 done, 1 failed, 2 wrong usage; of `exec` those of its command.

mod arguments;
mod certificates;
mod client;
mod deploy;
mod env;
mod exec;
mod init;
mod logs;
mod release;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::types::{
    AllocationRow, DeploymentRow, Done, ExplainRequest, Explanation, OperationRow, RouteRow,
    TraceRow,
};
use crate::admin::{
    AuditFilter, AuditRow, ConfigRow, CronRow, LedgerFilter, LedgerRow, Resolve, TraceFilter,
};
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
    match dispatch(cli) {
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

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let client = Client::new(&cli.admin, token(cli.token_file)?);
    let json = cli.json;
    match cli.command {
        Command::Run { config } => return run(config),
        Command::Init { dir, config, name } => {
            init::init(&dir, config.as_deref(), name.as_ref(), json)?;
        }
        Command::Check { config, dir, artifact } => {
            return check(config, dir.or(artifact).as_deref(), json);
        }
        Command::Reload => {
            let row: ConfigRow = client.post("/v1/config/reload", &())?;
            show::either(json, &row, show::config)?;
        }
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vango-edge", &mut out);
            show::text(&String::from_utf8_lossy(&out))?;
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)?,
        Command::Deploy { dir, preview, promote } => {
            let deployed = deploy::deploy(&client, &dir, preview.as_ref(), promote, json)?;
            if promote && deployed.effect == Effect::Stored {
                let wanted = release::wanted(&deployed.digest.to_string())?;
                release::promote(&client, deployed.environment.app(), &wanted, json)?;
            }
        }
        Command::Promote { app, what } => {
            release::promote(&client, &app, &release::wanted(&what)?, json)?;
        }
        Command::Remove { environment } => {
            let done: Done = client.delete(&format!("/v1/environments/{environment}"))?;
            show::either(json, &done, |done| format!("{environment}: {}\n", done.done))?;
        }
        Command::Collect => release::collect(&client, json)?,
        Command::Rollback { app } => release::rollback(&client, &app, json)?,
        Command::Evidence { app, preview, statement: true, .. } => {
            let text = client.text(&format!("/v1/environments/{app}/{preview}/statement"))?;
            show::text(&format!("{text}\n"))?;
        }
        Command::Evidence { app, preview, checks, note, .. } => {
            release::evidence(&client, &app, &preview, &checks, note, json)?;
        }
        Command::Openapi => show::json(&crate::admin::document())?,
        Command::Health => show::text(&client.text("/readyz")?)?,
        Command::Routes { app } => {
            let of: fn(&RouteRow) -> &str = |r| &r.environment;
            list(&client, "routes", app, of, json, show::routes)?;
        }
        Command::Certificates { command } => return certificates::run(&client, command, json),
        Command::Ps { app } => {
            let of: fn(&AllocationRow) -> &str = |r| &r.environment;
            list(&client, "allocations", app, of, json, show::allocations)?;
        }
        Command::Cron { app } => {
            let of: fn(&CronRow) -> &str = |r| &r.environment;
            list(&client, "cron", app, of, json, show::cron)?;
        }
        Command::Ops { app } => {
            let of: fn(&OperationRow) -> &str = |r| &r.environment;
            list(&client, "operations", app, of, json, show::operations)?;
        }
        Command::Deployments { app } => {
            let of: fn(&DeploymentRow) -> &str = |r| &r.environment;
            list(&client, "deployments", app, of, json, show::deployments)?;
        }
        Command::Audit { app, route, key, event, since, limit, lines } => {
            let since_ms = since.as_deref().map(since_ms).transpose()?;
            let key_hash = key.as_deref().map(key_hash);
            let filter = AuditFilter { app, route, key_hash, event, since_ms };
            let rows: Vec<AuditRow> = client.rows(&query("audit", limit, &filter)?, limit)?;
            match lines {
                true => show::lines(&rows)?,
                false => show::either(json, &rows[..], show::audit)?,
            }
        }
        Command::Ledger { app, state, key, event, limit } => {
            let key_hash = key.as_deref().map(key_hash);
            let filter = LedgerFilter { app, state, key_hash, event };
            let rows: Vec<LedgerRow> = client.rows(&query("ledger", limit, &filter)?, limit)?;
            show::either(json, &rows[..], show::ledger)?;
        }
        Command::Resolve { record, attempt, outcome, note } => {
            let body = Resolve { attempt, outcome, note };
            let row: LedgerRow = client.post(&format!("/v1/ledger/{record}/resolve"), &body)?;
            show::either(json, &[row][..], show::ledger)?;
        }
        Command::Logs(logs) => logs::logs(&client, &logs, json)?,
        Command::Env { command } => env::run(&client, command, json)?,
        Command::Exec { environment, no_stdin, timeout, command } => {
            let timeout = timeout.as_deref();
            return Ok(exec::run(&client, &environment, command, !no_stdin, timeout));
        }
        Command::Sleep { environment } => command(&client, &environment, "sleep", json)?,
        Command::Wake { environment } => command(&client, &environment, "wake", json)?,
        Command::Explain { method, url, headers } => explain(&client, method, url, headers, json)?,
        Command::Traces { app, class, request, limit, steps, follow } => {
            let steps = steps || request.is_some();
            let filter = TraceFilter { app, class, request, ..TraceFilter::default() };
            traces(&client, &query("traces", limit, &filter)?, steps, follow, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The token, never as an argument: those can be seen by every user of the machine.
fn token(file: Option<PathBuf>) -> Result<Option<Secret>> {
    let source = match file {
        Some(path) => SecretSource::File(path),
        None if std::env::var_os("VANGO_EDGE_TOKEN").is_some() => {
            SecretSource::Env("VANGO_EDGE_TOKEN".into())
        }
        None => return Ok(None),
    };
    Ok(Some(config::read_secret(&source)?))
}

/// The address of a list's first page.
fn query(list: &str, limit: usize, filter: &impl Serialize) -> Result<String> {
    let filter = serde_urlencoded::to_string(filter)?;
    Ok(format!("/v1/{list}?limit={}&{filter}", limit.min(PAGE)))
}

/// Prints a whole list, or what is in it of one app.
fn list<T: Serialize + DeserializeOwned>(
    client: &Client,
    name: &str,
    app: Option<String>,
    environment: fn(&T) -> &str,
    json: bool,
    table: impl FnOnce(&[T]) -> String,
) -> Result<()> {
    let mut rows: Vec<T> = client.rows(&format!("/v1/{name}?limit={PAGE}"), EVERY_ROW)?;
    if let Some(app) = app {
        rows.retain(|r| environment(r).split('/').next() == Some(&app));
    }
    show::either(json, &rows[..], table)
}

/// The moment that is `ago` before now, in milliseconds since 1970.
fn since_ms(ago: &str) -> Result<u64> {
    let Some(ago) = crate::document::duration(ago) else {
        anyhow::bail!("--since {ago}: expected a time such as 15m, 24h or 7d");
    };
    let ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Ok(SystemClock::new().wall().0.saturating_sub(ms))
}

fn run(path: PathBuf) -> Result<ExitCode> {
    let config = match config::load(&path) {
        Ok(config) => config,
        Err(errors) => {
            print_diagnostics(&errors, false)?;
            return Ok(ExitCode::FAILURE);
        }
    };
    crate::telemetry::start_log(config.log.level);
    crate::server::run(path, config)?;
    Ok(ExitCode::SUCCESS)
}

fn check(config: Option<PathBuf>, artifact: Option<&Path>, json: bool) -> Result<ExitCode> {
    let default = Path::new("conf/edge.toml");
    let alone = config.is_none() && artifact.is_some() && !default.exists();
    let loaded = match alone {
        true => Ok(None),
        false => config::load(config.as_deref().unwrap_or(default)).map(Some),
    };
    let known = loaded.as_ref().ok().and_then(Option::as_ref);
    let now = SystemClock::new().wall().0 / 1000;
    for warning in known.into_iter().flat_map(|config| config.warnings(now)) {
        eprintln!("warning: {warning}");
    }
    let mut errors = loaded.as_ref().err().cloned().unwrap_or_default();
    if let Some(dir) = artifact {
        let (found, noticed) = crate::control::check(dir, known)?;
        errors.extend(found);
        for what in noticed {
            eprintln!("{}", show::escaped(&what));
        }
    }
    if alone {
        eprintln!(
            "note: there is no {} here, and none was named with -c: what the operator has to have for it \
             was not looked at",
            default.display()
        );
    }
    print_diagnostics(&errors, json)?;
    if !errors.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if !json {
        show::text("ok\n")?;
    }
    Ok(ExitCode::SUCCESS)
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
        eprintln!("{}", show::count(errors.len(), "error"));
    }
    Ok(())
}

fn command(client: &Client, environment: &Environment, verb: &str, json: bool) -> Result<()> {
    let done: Done = client.post(&format!("/v1/environments/{environment}/{verb}"), &())?;
    show::either(json, &done, |done| {
        let operation = done.operation.as_ref().map_or_else(String::new, |o| format!(" ({o})"));
        format!("{environment}: {}{operation}\n", done.done)
    })
}

fn explain(
    client: &Client,
    method: String,
    url: String,
    headers: Vec<String>,
    json: bool,
) -> Result<()> {
    let headers = headers
        .iter()
        .map(|h| match h.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => anyhow::bail!("-H {h:?}: expected `Name: value`"),
        })
        .collect::<Result<_>>()?;
    let request = ExplainRequest { method, url, headers };
    let found: Explanation = client.post("/v1/explain", &request)?;
    show::either(json, &found, show::explanation)
}

fn traces(client: &Client, query: &str, steps: bool, follow: bool, json: bool) -> Result<()> {
    let mut seen = std::collections::VecDeque::new();
    loop {
        let mut rows: Vec<TraceRow> = client.get(query)?;
        if !follow {
            return show::either(json, &rows[..], |rows| show::traces(rows, steps));
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
            show::either(json, &rows[..], |rows| show::traces(rows, steps))?;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        fn look(command: &clap::Command, above: &str, wrong: &mut Vec<String>) {
            let name = format!("{above}{}", command.get_name());
            if command.get_about().is_none() {
                wrong.push(command.get_name().to_owned());
            }
            let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
            let example = format!("  {name}");
            if command.get_name() != "vango-edge" && !long.contains(&example) {
                wrong.push(format!("{}: no example", command.get_name()));
            }
            if long.lines().any(|l| l.chars().count() > 110) {
                wrong.push(format!("{}: a line is too long for a terminal", command.get_name()));
            }
            for argument in command.get_arguments().filter(|a| a.get_help().is_none()) {
                wrong.push(format!("{} {}", command.get_name(), argument.get_id()));
            }
            command.get_subcommands().for_each(|c| look(c, &format!("{name} "), wrong));
        }
        let command = Cli::command();
        command.clone().debug_assert();
        let mut wrong = Vec::new();
        look(&command, "", &mut wrong);
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
