//! Every command: its arguments, what it asks for, and how it is shown.
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod client;
mod deploy;
mod release;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::admin::types::{
    AllocationRow, DeploymentRow, Done, ExplainRequest, Explanation, OperationRow, RouteRow,
    TraceRow,
};
use crate::admin::{AuditRow, ConfigRow, LedgerRow, Resolve};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Diagnostic, Secret, SecretSource};
use crate::contract;
use crate::id::{AppName, EnvName, Environment};
use crate::lifecycle::idempotency::key_hash;

use client::Client;

/// The edge of a scale-to-zero platform: a reverse proxy that knows who owns a route, wakes what
/// sleeps once for any number of requests, and never replays what it must not.
///
/// `run` is the edge. Every other command reads files or talks to a running edge's admin API, which
/// --admin or VANGO_EDGE_ADMIN names.
#[derive(Debug, Parser)]
#[command(
    name = "vango-edge",
    version,
    propagate_version = true,
    after_long_help = "Exit codes: 0 done, 1 failed, 2 wrong usage.\n\n\
        Examples:\n  \
        vango-edge check -c conf/edge.toml --artifact app/\n  \
        vango-edge run -c conf/edge.toml\n  \
        vango-edge deploy app/\n  \
        vango-edge explain GET http://studylab.localhost/dashboard\n  \
        vango-edge traces --steps -n 1"
)]
struct Cli {
    /// Admin API of the edge to talk to
    #[arg(long, global = true, default_value = "http://127.0.0.1:9901", env = "VANGO_EDGE_ADMIN")]
    admin: String,
    /// File with the admin API's token; where there is none, the environment variable
    /// VANGO_EDGE_TOKEN is the token itself
    #[arg(long, global = true, value_name = "FILE", env = "VANGO_EDGE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the edge in the foreground
    #[command(
        after_long_help = "It prints one JSON line with the addresses it got, and logs to stderr. SIGHUP reads the configuration again; SIGTERM stops it in order.\n\nExample:\n  vango-edge run -c /etc/vango-edge/edge.toml"
    )]
    Run {
        /// The edge's configuration
        #[arg(short, long, default_value = "conf/edge.toml")]
        config: PathBuf,
    },
    /// Read the configuration again, as SIGHUP does; a file that is wrong changes nothing
    Reload,
    /// Say everything that is wrong with a configuration, and with an artifact's contract
    Check {
        /// The edge's configuration
        #[arg(short, long, default_value = "conf/edge.toml")]
        config: PathBuf,
        /// Also check the vango-edge.toml of this artifact directory
        #[arg(long)]
        artifact: Option<PathBuf>,
    },
    /// Pack a directory into an artifact, upload it and make a deployment
    #[command(
        after_long_help = "The same directory makes the same digest anywhere. What the edge has is not uploaded again.\n\nExample:\n  vango-edge deploy app/"
    )]
    Deploy {
        /// The directory; its vango-edge.toml is the contract
        dir: PathBuf,
        /// For the preview of this name instead of production
        #[arg(long)]
        preview: Option<EnvName>,
        /// Then promote it; the app's promotion policy counts
        #[arg(long, conflicts_with = "preview")]
        promote: bool,
    },
    /// Move production to the artifact of a preview, or to a digest, if its evidence satisfies the policy
    Promote {
        /// The app
        app: AppName,
        /// A preview's name, or sha256:…
        what: String,
    },
    /// Remove a preview: its hosts are nobody's, its allocations end
    Remove {
        /// app/preview
        environment: Environment,
    },
    /// Remove now what no owner, preview, promotion or rollback needs; the edge does it by itself too
    Collect,
    /// Move production back to the artifact that served before
    Rollback {
        /// The app
        app: AppName,
    },
    /// Show what is known of a preview's deployment; record checks of it
    Evidence {
        /// The app
        app: AppName,
        /// The preview, or production
        preview: EnvName,
        /// A check to record, as NAME=passed or NAME=failed; may be given again
        #[arg(long = "check")]
        checks: Vec<String>,
        /// What is to be said about the checks
        #[arg(long, default_value = "")]
        note: String,
        /// Print it as an in-toto Statement
        #[arg(long, conflicts_with_all = ["checks", "note"])]
        statement: bool,
    },
    /// Print the admin API's OpenAPI document
    Openapi,
    /// Print the completions of a shell
    #[command(after_long_help = "Example:\n  \
        vango-edge completions bash > /etc/bash_completion.d/vango-edge")]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one a command, in the format of man(7)
    #[command(after_long_help = "Example:\n  \
        vango-edge man /usr/local/share/man/man1 && man vango-edge-explain")]
    Man {
        /// The directory to write them to
        dir: PathBuf,
    },
    /// Whether the edge takes traffic: exit code 0 if it does
    Health,
    /// Who owns each host, under which epoch
    Routes {
        /// Only this app
        app: Option<String>,
    },
    /// Allocations in the registry
    Ps {
        /// Only this app
        app: Option<String>,
    },
    /// Wakes with their phases, and promotions, newest first
    Ops {
        /// Only this app
        app: Option<String>,
    },
    /// What was decided about unsafe requests, and what came of each, newest first
    Audit {
        /// Only this app
        app: Option<String>,
        /// Only this route, as the contract has it
        #[arg(long)]
        route: Option<String>,
        /// Only this Idempotency-Key; only its hash leaves this command
        #[arg(long)]
        key: Option<String>,
        /// Only this event, by its provider's id
        #[arg(long)]
        event: Option<String>,
        /// Not longer ago than this: 15m, 24h, 7d
        #[arg(long)]
        since: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 100)]
        limit: usize,
        /// One JSON object a line
        #[arg(long)]
        lines: bool,
    },
    /// Records of keys and events: what was sent, and what became of it
    Ledger {
        /// Only this app
        app: Option<String>,
        /// Only those in this state, such as unknown
        #[arg(long)]
        state: Option<String>,
        /// Only this Idempotency-Key; only its hash leaves this command
        #[arg(long)]
        key: Option<String>,
        /// Only this event, by its provider's id
        #[arg(long)]
        event: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 100)]
        limit: usize,
    },
    /// Say what became of an attempt whose outcome is unknown
    Resolve {
        /// The record, as `ledger` shows it
        record: String,
        /// Its attempt, as `ledger` shows it
        attempt: u32,
        /// carried-out: repeats are told so. not-carried-out: a repeat is sent to the app
        #[arg(value_parser = ["carried-out", "not-carried-out"])]
        outcome: String,
        /// Who says so and why; kept with the record
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Deployments, newest first
    Deployments {
        /// Only this app
        app: Option<String>,
    },
    /// Last lines an allocation wrote
    Logs {
        /// The allocation, as `ps` shows it
        allocation: String,
    },
    /// Put an environment to sleep now; one that is frozen is stopped
    #[command(
        after_long_help = "Requests in flight finish within the contract's process.stop_timeout. The next request wakes it.\n\nExample:\n  vango-edge sleep studylab"
    )]
    Sleep {
        /// app or app/environment
        environment: Environment,
    },
    /// Wake an environment now
    Wake {
        /// app or app/environment
        environment: Environment,
    },
    /// The steps a request would take now; sends and changes nothing
    #[command(
        after_long_help = "Examples:\n  vango-edge explain GET http://studylab.localhost/dashboard\n  vango-edge explain POST http://studylab.localhost/actions/save -H 'Idempotency-Key: a1'"
    )]
    Explain {
        /// GET, POST, …
        method: String,
        /// http://host/path
        url: String,
        /// A header of the request, as `Name: value`; may be given again
        #[arg(short = 'H', long = "header")]
        headers: Vec<String>,
    },
    /// The last requests and the steps they took, newest first
    #[command(
        after_long_help = "Examples:\n  vango-edge traces --steps -n 1\n  vango-edge traces --app studylab --follow\n  vango-edge traces --request 4bf92f3577b34da6a3ce929d0e0e4736"
    )]
    Traces {
        /// Only this app
        #[arg(long)]
        app: Option<String>,
        /// Only this class: page, action, webhook, live, asset
        #[arg(long)]
        class: Option<String>,
        /// Only this request, by the id in its X-Request-Id, with its steps
        #[arg(long)]
        request: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: usize,
        /// With the steps of each
        #[arg(long)]
        steps: bool,
        /// Go on printing new ones until interrupted
        #[arg(short, long)]
        follow: bool,
    },
}

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
            let deployed = deploy::deploy(&client, dir, preview.as_ref(), json)?;
            if *promote && deployed.epoch.is_none() {
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
            let mut rows: Vec<RouteRow> = client.get("/v1/routes?limit=1000")?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::routes)?;
        }
        Command::Ps { app } => {
            let mut rows: Vec<AllocationRow> = client.get("/v1/allocations?limit=1000")?;
            rows.retain(|r| of_app(app.as_ref(), &r.environment));
            show::list(json, &rows, show::allocations)?;
        }
        Command::Ops { app } => {
            let mut rows: Vec<OperationRow> = client.get("/v1/operations?limit=1000")?;
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
            let rows: Vec<AuditRow> = client.get(&query)?;
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
            let rows: Vec<LedgerRow> = client.get(&query)?;
            show::list(json, &rows, show::ledger)?;
        }
        Command::Resolve { record, attempt, outcome, note } => {
            let body = Resolve { attempt: *attempt, outcome: outcome.clone(), note: note.clone() };
            let row: LedgerRow = client.post(&format!("/v1/ledger/{record}/resolve"), &body)?;
            show::list(json, &[row], show::ledger)?;
        }
        Command::Deployments { app } => {
            let mut rows: Vec<DeploymentRow> = client.get("/v1/deployments?limit=1000")?;
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
            let mut query = format!("/v1/traces?limit={limit}");
            for (name, value) in [("app", app), ("class", class), ("request", request)] {
                if let Some(value) = value {
                    query.push_str(&format!("&{name}={value}"));
                }
            }
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
    let mut out = format!("{path}?limit={limit}");
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
    let mut errors = config::load(config).err().unwrap_or_default();
    if let Some(dir) = artifact {
        let file = dir.join("vango-edge.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => errors.extend(contract::parse(&file, &text).err().unwrap_or_default()),
            Err(e) => anyhow::bail!("{}: {e}", file.display()),
        }
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
