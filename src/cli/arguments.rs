//! The commands and their arguments, as clap reads them. What `--help` and the manual say beyond one
//! line each is in [`super::help`].

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::id::{AppName, EnvName, Environment};

use super::help;

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
    after_long_help = help::OVERVIEW
)]
pub struct Cli {
    /// Admin API of the edge to talk to
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
    #[command(after_long_help = help::RUN)]
    Run {
        /// The edge's configuration
        #[arg(short, long, default_value = "conf/edge.toml")]
        config: PathBuf,
    },
    /// Read the configuration again, as SIGHUP does; a file that is wrong changes nothing
    #[command(after_long_help = help::RELOAD)]
    Reload,
    /// Say everything that is wrong with a configuration, and with an artifact's contract
    #[command(after_long_help = help::CHECK)]
    Check {
        /// The edge's configuration
        #[arg(short, long, default_value = "conf/edge.toml")]
        config: PathBuf,
        /// Also check this artifact directory, as `deploy` and its first start would
        #[arg(long)]
        artifact: Option<PathBuf>,
    },
    /// Pack a directory into an artifact, upload it and make a deployment
    #[command(after_long_help = help::DEPLOY)]
    Deploy {
        /// The directory; its vango-edge.toml is the contract
        dir: PathBuf,
        /// For the preview of this name instead of production
        #[arg(long)]
        preview: Option<EnvName>,
        /// Where the app has a promotion policy: then promote it; the policy counts
        #[arg(long, conflicts_with = "preview")]
        promote: bool,
    },
    /// Move production to the artifact of a preview, or to a digest, if its evidence satisfies the policy
    #[command(after_long_help = help::PROMOTE)]
    Promote {
        /// The app
        app: AppName,
        /// A preview's name, or sha256:…
        what: String,
    },
    /// Remove a preview: its hosts have no owner any more, its allocations end
    #[command(after_long_help = help::REMOVE)]
    Remove {
        /// app/preview
        environment: Environment,
    },
    /// Remove now what no owner, preview, promotion or rollback needs; the edge does it by itself too
    #[command(after_long_help = help::COLLECT)]
    Collect,
    /// Move production back to the artifact that served before
    #[command(after_long_help = help::ROLLBACK)]
    Rollback {
        /// The app
        app: AppName,
    },
    /// Show what is known of a preview's deployment; record checks of it
    #[command(after_long_help = help::EVIDENCE)]
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
    #[command(after_long_help = help::OPENAPI)]
    Openapi,
    /// Print the completions of a shell
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one a command, in the format of man(7)
    #[command(after_long_help = help::MAN)]
    Man {
        /// The directory to write them to
        dir: PathBuf,
    },
    /// Whether the edge takes traffic: exit code 0 if it does
    #[command(after_long_help = help::HEALTH)]
    Health,
    /// Who owns each host, under which epoch
    #[command(after_long_help = help::ROUTES)]
    Routes {
        /// Only this app
        app: Option<String>,
    },
    /// Allocations in the registry
    #[command(after_long_help = help::PS)]
    Ps {
        /// Only this app
        app: Option<String>,
    },
    /// Wakes with their phases, and promotions, newest first
    #[command(after_long_help = help::OPS)]
    Ops {
        /// Only this app
        app: Option<String>,
    },
    /// What was decided about unsafe requests, and what came of each, newest first
    #[command(after_long_help = help::AUDIT)]
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
    #[command(after_long_help = help::LEDGER)]
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
    #[command(after_long_help = help::RESOLVE)]
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
    #[command(after_long_help = help::DEPLOYMENTS)]
    Deployments {
        /// Only this app
        app: Option<String>,
    },
    /// Last lines an allocation wrote
    #[command(after_long_help = help::LOGS)]
    Logs {
        /// The allocation, as `ps` shows it
        allocation: String,
    },
    /// Put an environment to sleep now; one that is frozen is stopped
    #[command(after_long_help = help::SLEEP)]
    Sleep {
        /// app or app/environment
        environment: Environment,
    },
    /// Wake an environment now
    #[command(after_long_help = help::WAKE)]
    Wake {
        /// app or app/environment
        environment: Environment,
    },
    /// The steps a request would take now; sends and changes nothing
    #[command(after_long_help = help::EXPLAIN)]
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
    #[command(after_long_help = help::TRACES)]
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
