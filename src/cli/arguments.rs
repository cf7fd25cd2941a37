//! The commands and their arguments, as clap reads them. Of each command `-h` prints the first line, and
//! `--help` and the manual page all: what it really does, what it prints, what can go wrong, and an example.
//! A test holds every command to that.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::id::{AppName, EnvName, Environment};

use super::certificates::CertificatesCommand;
use super::env::EnvCommand;

/// What `vango-edge --help` says after the commands.
const OVERVIEW: &str = "\
Environment:
  VANGO_EDGE_ADMIN       the admin API, instead of --admin
  VANGO_EDGE_TOKEN       its token, where it wants one
  VANGO_EDGE_TOKEN_FILE  a file with it, instead of --token-file
  VANGO_EDGE_LOG         the log's level, instead of log.level; per module as env_logger has it

Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  wrong usage

Examples:
  vango-edge init app/
  vango-edge check -c conf/edge.toml app/
  vango-edge run -c conf/edge.toml
  vango-edge deploy app/
  vango-edge explain GET http://studylab.localhost/dashboard
  vango-edge traces --steps -n 1";

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
    verbatim_doc_comment,
    after_long_help = OVERVIEW
)]
pub struct Cli {
    /// Admin API of the edge to talk to: HOST:PORT or an http:// address
    #[arg(long, global = true, default_value = "http://127.0.0.1:9901", env = "VANGO_EDGE_ADMIN")]
    pub admin: String,
    /// File with the admin API's token; where there is none, the environment variable
    /// VANGO_EDGE_TOKEN is the token itself
    #[arg(long, global = true, value_name = "FILE", env = "VANGO_EDGE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the edge in the foreground
    ///
    /// It prints one JSON line with the addresses it got, and logs to stderr. One process at a time owns
    /// state.dir; a second one says so and exits with 1.
    ///
    /// Signals:
    ///   SIGHUP            reads the configuration again; what is wrong with it changes nothing
    ///   SIGTERM, SIGINT   /readyz says 503, listeners close, what is in flight and held finishes within
    ///                     server.grace; a second one cuts that short
    ///
    /// Example:
    ///   vango-edge run -c /etc/vango-edge/edge.toml
    #[command(verbatim_doc_comment)]
    Run {
        /// The edge's configuration
        #[arg(short, long, default_value = "conf/edge.toml")]
        config: PathBuf,
    },
    /// Read the configuration again, as SIGHUP does; a file that is wrong changes nothing
    ///
    /// It answers once the files are in force, or says with file, line and column why they are not; then
    /// everything stays as it was. Keys that need a restart are named.
    ///
    /// Example:
    ///   vango-edge reload
    #[command(verbatim_doc_comment)]
    Reload,
    /// Say everything that is wrong with a configuration, and with an artifact's contract
    ///
    /// It reads the files as `run` would, with the apps' files below apps.dir, and starts nothing. With a directory
    /// it says what `deploy` would refuse and what the first start would fail for: links that lead out, a program
    /// that is not there or not executable, a missing folder of static files, an app or a secret that the operator
    /// does not have (values in the environment are not looked at); and what `deploy` would leave out. Without a
    /// configuration the directory is checked for itself. Every error is said at once, as
    /// FILE:LINE:COLUMN: KEY: WHY; with --json each is an object. It exits with 0 only where there is none.
    ///
    /// Examples:
    ///   vango-edge check -c conf/edge.toml
    ///   vango-edge check -c conf/edge.toml app/
    ///   vango-edge check app/
    #[command(verbatim_doc_comment)]
    Check {
        /// The edge's configuration [default: conf/edge.toml; with DIR it may be missing there]
        #[arg(short, long)]
        config: Option<PathBuf>,
        /// Also check this artifact directory, as `deploy` and its first start would
        dir: Option<PathBuf>,
        /// The same, by name
        #[arg(long, conflicts_with = "dir", value_name = "DIR")]
        artifact: Option<PathBuf>,
    },
    /// Look at a folder with an app and write the contract that deploys it
    ///
    /// It knows apps in Node (Next, Nuxt, SvelteKit, a script `start`), Python (Django, FastAPI, Flask, Streamlit),
    /// Go, Vango, Rust, Ruby and PHP, a Procfile, a Dockerfile's CMD and sites of static files by their files, and
    /// writes a vango-edge.toml with comments. It says what the folder was taken for and which commands come next:
    /// what installs packages into the folder, builds, deploys. Beside the edge's configuration it writes the
    /// app's file for the operator; a configuration that -c names and that is not there is made as well. It runs
    /// nothing, and writes over nothing that is there.
    ///
    /// Examples:
    ///   vango-edge init app/
    ///   vango-edge init app/ -c edge/edge.toml
    #[command(verbatim_doc_comment)]
    Init {
        /// The folder
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The edge's configuration, made if it is not there [default: conf/edge.toml, if it is there]
        #[arg(short, long)]
        config: Option<PathBuf>,
        /// The app's name, instead of one made of the folder's
        #[arg(long)]
        name: Option<AppName>,
    },
    /// Pack a directory into an artifact, upload it and make a deployment
    ///
    /// The same directory makes the same digest anywhere; symbolic links between its files are kept. What a
    /// .vango-edgeignore names stays behind; without one, what .gitignore names and an app does not run from
    /// (installed packages and what a build made are kept), and it is said. What the edge has is not uploaded
    /// again. The first deployment of an app owns its hosts at once, and sleeps until asked for. A later one takes
    /// them over: a process of it is made ready first, then it serves, then what served before drains; where it
    /// does not become ready nothing changes, and the command exits with 1. What is served already changes
    /// nothing. If the app's file has `promotion`, production moves only by `promote`: the deployment is stored,
    /// and the commands that come next are printed; --promote asks for it at once. A preview's deployment needs
    /// preview_hosts in the app's file.
    ///
    /// Examples:
    ///   vango-edge deploy app/
    ///   vango-edge deploy app/ --preview pr-7
    #[command(verbatim_doc_comment)]
    Deploy {
        /// The directory; its vango-edge.toml is the contract, or the line `web` of its Procfile
        dir: PathBuf,
        /// For the preview of this name instead of production
        #[arg(long)]
        preview: Option<EnvName>,
        /// Where the app has a promotion policy: then promote it; the policy counts
        #[arg(long, conflicts_with = "preview")]
        promote: bool,
    },
    /// Move production to the artifact of a preview, or to a digest, if its evidence satisfies the policy
    ///
    /// Production gets exactly that artifact, under a new epoch: an allocation of it is made ready first, then
    /// the owner moves, then what served before drains, for at most process.drain_timeout. It waits until
    /// the move is over. The app's promotion policy (`promotion` in its file) is asked of the evidence; where it is
    /// not satisfied, or the new allocation does not become ready, production stays where it is, and the command
    /// exits with 1.
    ///
    /// Examples:
    ///   vango-edge promote studylab pr-7
    ///   vango-edge promote studylab sha256:b97c0abf0c69…
    #[command(verbatim_doc_comment)]
    Promote {
        /// The app
        app: AppName,
        /// A preview's name, or sha256:…
        what: String,
    },
    /// Remove a preview: its hosts have no owner any more, its allocations end
    ///
    /// Its deployments go when nothing needs their artifacts; production cannot be removed.
    ///
    /// Example:
    ///   vango-edge remove studylab/pr-7
    #[command(verbatim_doc_comment)]
    Remove {
        /// app/preview
        environment: Environment,
    },
    /// Remove now what no owner, preview, promotion or rollback needs; the edge does it by itself too
    ///
    /// It prints what was removed: deployments, blobs of artifacts, unpacked trees. What assets.retention and
    /// assets.keep_deployments keep stays.
    ///
    /// Example:
    ///   vango-edge collect
    #[command(verbatim_doc_comment)]
    Collect,
    /// Move production back to the artifact that served before
    ///
    /// As `promote`, to the artifact that owned the routes before, under a new epoch; no evidence is asked for.
    /// Twice in a row goes there and back again.
    ///
    /// Example:
    ///   vango-edge rollback studylab
    #[command(verbatim_doc_comment)]
    Rollback {
        /// The app
        app: AppName,
    },
    /// Show what is known of a preview's deployment; record checks of it
    ///
    /// Requests and errors are counted by the edge; checks are named by what runs them, and the last word on each
    /// name counts. It says whether the app's policy is satisfied, and what it misses.
    ///
    /// Examples:
    ///   vango-edge evidence studylab pr-7
    ///   vango-edge evidence studylab pr-7 --check smoke=passed --note 'run 4711'
    ///   vango-edge evidence studylab production --statement
    #[command(verbatim_doc_comment)]
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
    ///
    /// OpenAPI 3.1, made from the code that serves it; no edge has to run.
    ///
    /// Example:
    ///   vango-edge openapi > openapi.json
    #[command(verbatim_doc_comment)]
    Openapi,
    /// Print the completions of a shell
    ///
    /// Examples:
    ///   vango-edge completions bash > /etc/bash_completion.d/vango-edge
    ///   vango-edge completions zsh > /usr/local/share/zsh/site-functions/_vango-edge
    #[command(verbatim_doc_comment)]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one a command, in the format of man(7)
    ///
    /// Example:
    ///   vango-edge man /usr/local/share/man/man1 && man vango-edge-explain
    #[command(verbatim_doc_comment)]
    Man {
        /// The directory to write them to
        dir: PathBuf,
    },
    /// Whether the edge takes traffic: exit code 0 if it does
    ///
    /// It asks /readyz, which needs no token: for a supervisor or a container's health check. While the edge
    /// starts or drains it exits with 1.
    ///
    /// Example:
    ///   vango-edge health
    #[command(verbatim_doc_comment)]
    Health,
    /// Who owns each host, under which epoch
    ///
    /// Columns: the host; whose it is; the owner's epoch, which only grows; its deployment and artifact; its state:
    /// hot, asleep, frozen, failed, or that of the wake that goes on; up or down for an app with upstreams.
    ///
    /// Example:
    ///   vango-edge routes studylab
    #[command(verbatim_doc_comment)]
    Routes {
        /// Only this app
        app: Option<String>,
    },
    /// Which certificate each host has, until when, and when the next one is ordered
    ///
    /// Columns: the name; where its certificate comes from: a file, ACME, or none; until when it is good; the state
    /// of its newest order: requested, ordered, validating, finalizing, issued or failed; when the next order is due;
    /// the file, or why the order failed. With [acme] one is ordered for each host of an app that no file covers.
    ///
    /// Examples:
    ///   vango-edge certificates
    ///   vango-edge certificates renew app.example
    #[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
    Certificates {
        #[command(subcommand)]
        command: Option<CertificatesCommand>,
    },
    /// Allocations in the registry, and the workers beside them
    ///
    /// Columns: the allocation; whose it is; its process (web, or a worker's name); which start (generation), under
    /// which epoch, of which artifact; its state; its address and process; requests in flight, open live sockets,
    /// requests so far.
    ///
    /// Example:
    ///   vango-edge ps studylab
    #[command(verbatim_doc_comment)]
    Ps {
        /// Only this app
        app: Option<String>,
    },
    /// What schedules start, with the next and the last run of each
    ///
    /// Columns: whose it is; its name, expression and time zone in the contract ([[cron]]); the command or the
    /// request; when it runs next; when it ran last and how that ended. `audit` has every run, `logs --process NAME`
    /// what a command printed.
    ///
    /// Example:
    ///   vango-edge cron studylab
    #[command(verbatim_doc_comment)]
    Cron {
        /// Only this app
        app: Option<String>,
    },
    /// Wakes with their phases, and promotions, newest first
    ///
    /// Of each wake: how long it took to find an executor (reserve), to have the artifact (artifact), until the
    /// process ran (start) and until it was ready (ready), and why it failed. Of each promotion: how far it is.
    ///
    /// Example:
    ///   vango-edge ops studylab
    #[command(verbatim_doc_comment)]
    Ops {
        /// Only this app
        app: Option<String>,
    },
    /// What was decided about unsafe requests, and what came of each, newest first
    ///
    /// Each unsafe request leaves a row: what was decided, whether it was forwarded, why, under which key or event.
    /// More than 1000 rows are read page by page. Of deliveries that are not believed a flood leaves a few
    /// rows a minute; the metrics have the count.
    ///
    /// Examples:
    ///   vango-edge audit studylab --since 24h
    ///   vango-edge audit --event evt_1PqV… --lines
    ///   vango-edge audit studylab --key a1
    #[command(verbatim_doc_comment)]
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
    ///
    /// States: reserved (nothing was sent), forwarded (it is with the app), completed (the answer is kept),
    /// completed_unreplayable (it was answered, the answer is not kept), refused (an event's app said no: the next
    /// delivery is sent), released (it may be sent again), unknown (sent, and never answered: see `resolve`).
    ///
    /// Examples:
    ///   vango-edge ledger --state unknown
    ///   vango-edge ledger studylab --key a1
    #[command(verbatim_doc_comment)]
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
    ///
    /// Look into the app's own records first. The edge sends nothing now:
    ///   carried-out      a repeat of an action is answered 409 response-not-replayable, a repeated event 200;
    ///                    the app is not asked
    ///   not-carried-out  the next repeat is given to the app, as the next attempt; if it was carried out after
    ///                    all, it is then carried out twice
    /// What is said is kept with the record and cannot be taken back. Another attempt than the one that the record
    /// shows is refused.
    ///
    /// Example:
    ///   vango-edge resolve studylab/production/3a4f… 1 carried-out --note 'ada: the note is there'
    #[command(verbatim_doc_comment)]
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
    ///
    /// Columns: the deployment; for which environment; its artifact; when it was made; its files and bytes;
    /// whether it owns the environment's hosts.
    ///
    /// Example:
    ///   vango-edge deployments studylab
    #[command(verbatim_doc_comment)]
    Deployments {
        /// Only this app
        app: Option<String>,
    },
    /// What apps print, over restarts and failed starts
    ///
    /// Of an app (all of its environments), one of its environments, or an allocation: the last lines that are kept,
    /// oldest first, each with its time, allocation, process (web, or the name of a worker, of a cron entry, …) and
    /// stream. The stream `edge` is the edge's own word: that a process was started, why a start failed, how one
    /// ended, how many lines were dropped. The node keeps runner.log_bytes of each environment for runner.log_age.
    /// A line that ends in … goes on in the next. --follow goes on until interrupted, also over a restart of the
    /// edge. --json prints one object a line.
    ///
    /// Examples:
    ///   vango-edge logs studylab -f
    ///   vango-edge logs studylab/pr-7 --since 10m --json
    ///   vango-edge logs studylab --allocation al-4sz3kfbtlfb75zso
    #[command(verbatim_doc_comment)]
    Logs(super::logs::Logs),
    /// What is set in the environment of an app's processes, beside its artifact
    ///
    /// For what differs from node to node and is no secret of the operator's files. Production and each preview have
    /// their own. A change makes no artifact: a process with it is made ready under the next epoch, then it serves,
    /// then what served before drains; where it does not become ready nothing changes. What an operator sets counts
    /// over the contract's process.env, the app's secrets over both; PORT, HOST, NOTIFY_SOCKET and VANGO_EDGE_* are
    /// the edge's. `rollback` keeps it.
    ///
    /// Example:
    ///   vango-edge env set studylab LOG=debug
    #[command(verbatim_doc_comment)]
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Run a command once beside an app: a migration, a console's script, a new user
    ///
    /// It runs on the edge's node, in the artifact that the environment serves, with the app's environment, secrets,
    /// HOME, TMPDIR and limits, and without a port; it wakes nothing and keeps nothing awake. It reads what this
    /// command reads, and prints to its stdout and stderr; there is no terminal. Ctrl-C ends it: SIGTERM, and after
    /// the contract's process.stop_timeout SIGKILL, for everything that it started. That it ran is in the audit.
    ///
    /// Exit codes: the command's own; 128 and a signal's number where one ended it; 124 where --timeout did; 125
    /// where it could not be run, or how it ended is not known; 2 wrong usage, as everywhere.
    ///
    /// Examples:
    ///   vango-edge exec studylab -- python3 manage.py migrate
    ///   vango-edge exec studylab/pr-7 --timeout 5m -- ./studylab seed < fixtures.json
    #[command(verbatim_doc_comment)]
    Exec {
        /// app or app/environment
        environment: Environment,
        /// Give it nothing to read: for loops of a shell that read themselves
        #[arg(short, long)]
        no_stdin: bool,
        /// How long it may take, at most 24h; 1h if it is not said
        #[arg(long)]
        timeout: Option<String>,
        /// Program and arguments; a program with a / is in the artifact, another on the app's PATH
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Put an environment to sleep now; one that is frozen is stopped
    ///
    /// Requests in flight finish within the contract's process.drain_timeout; live sockets are closed with 1012
    /// "reconnect", or rest where their route cuts (socket_end), until their users send something. Then the
    /// process is stopped, or frozen where the contract says so. The owner and its epoch
    /// stay, and the next request wakes it.
    ///
    /// Example:
    ///   vango-edge sleep studylab
    #[command(verbatim_doc_comment)]
    Sleep {
        /// app or app/environment
        environment: Environment,
    },
    /// Wake an environment now
    ///
    /// It begins a wake or joins the one that goes on, and does not wait for its end: `ops` shows it. Where a start
    /// failed a moment ago, it says for how long no new one is tried.
    ///
    /// Example:
    ///   vango-edge wake studylab/pr-7
    #[command(verbatim_doc_comment)]
    Wake {
        /// app or app/environment
        environment: Environment,
    },
    /// The steps a request would take now; sends and changes nothing
    ///
    /// The steps are found by the same decisions that serve a request, on what is true now. A key's or an event's
    /// record, and a session's, are not read.
    ///
    /// Examples:
    ///   vango-edge explain GET http://studylab.localhost/dashboard
    ///   vango-edge explain POST http://studylab.localhost/actions/save -H 'Idempotency-Key: a1'
    #[command(verbatim_doc_comment)]
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
    ///
    /// The edge keeps the last trace.ring requests in memory. Times in front of steps count from the request's
    /// start.
    ///
    /// Examples:
    ///   vango-edge traces --steps -n 1
    ///   vango-edge traces --app studylab --follow
    ///   vango-edge traces --request 4bf92f3577b34da6a3ce929d0e0e4736
    #[command(verbatim_doc_comment)]
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
