//! The operator's configuration: `edge.toml` and one file an app. What is read here is checked
//! whole; nothing later can find it wrong.
//!
//! Every key is documented with its default in `conf/`.

mod client;
mod load;
mod preview;
pub mod reload;
mod running;
mod secret;
mod values;

pub use crate::document::{Checked, Diagnostic};
pub use client::{ClientLimits, TlsListener};
pub use load::load;
pub use running::Running;
pub use secret::{Secret, SecretError, SecretSource, read_secret};
pub use values::SecretValues;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::Contract;
use crate::id::{AppName, EnvName, Environment, Host};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub server: Server,
    /// Where operators do.
    pub admin: Admin,
    /// Where state is kept.
    pub state: StateDir,
    /// Apps by name.
    pub apps: BTreeMap<AppName, App>,
    /// How browsers come back to their allocation.
    pub affinity: Affinity,
    /// Bounds.
    pub limits: Limits,
    /// Static files.
    pub assets: AssetsConfig,
    /// What is kept of keyed requests.
    pub ledger: LedgerConfig,
    /// What is kept of decisions.
    pub audit: AuditConfig,
    /// How processes are run.
    pub runner: RunnerConfig,
    /// What is logged.
    pub log: LogConfig,
    /// What is traced.
    pub trace: TraceConfig,
    /// Where traces are sent.
    pub telemetry: TelemetryConfig,
    /// What is written of each request.
    pub access_log: AccessLogConfig,
}

impl Config {
    /// What an operator should know although it is no error, at `now` in seconds since 1970.
    pub fn warnings(&self, now: u64) -> impl Iterator<Item = String> {
        let all = self.server.tls.iter().flat_map(|l| &l.certificates);
        all.filter_map(move |c| c.warning(now)).map(|w| format!("server.tls: {w}"))
    }
}

/// `[server]`
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Plain HTTP.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve requests.
    pub threads: usize,
    /// How long requests in flight and held ones may take to finish when the edge stops.
    pub grace: Duration,
    /// How long it is not ready, and goes on accepting, before it stops.
    pub unready_for: Duration,
    /// HTTPS.
    pub tls: Vec<TlsListener>,
    /// Whether plain HTTP is sent on to HTTPS.
    pub redirect_http: bool,
    /// Who says with a PROXY header for whom it connects.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Whose `X-Forwarded-*` and `Forwarded` count.
    pub trusted_proxies: Arc<[ipnet::IpNet]>,
    /// `Strict-Transport-Security: max-age` where a trusted proxy serves HTTPS; `None` sends none.
    pub hsts: Option<Duration>,
}

impl Server {
    /// Whether requests may come over HTTPS: here, or to a proxy that says so.
    pub fn sees_https(&self) -> bool {
        let told = !self.trusted_proxies.is_empty() || !self.proxy_protocol_from.is_empty();
        told || !self.tls.is_empty()
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// A loopback address, or any with at least one token.
    pub listen: SocketAddr,
    /// Who may use it; empty: every process that reaches the loopback address.
    pub tokens: Vec<AdminToken>,
    /// Names of the listener besides addresses and `localhost`, lower case, without port.
    pub hosts: Vec<String>,
}

/// One of `admin.tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminToken {
    /// What it allows.
    pub role: Role,
    /// Where it is.
    pub source: SecretSource,
}

/// What a token of the admin API allows; the greater allows all that the lesser does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To look and to explain.
    Read,
    /// To change what runs.
    Operate,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    /// Store, artifacts, processes' files. One edge at a time.
    pub dir: PathBuf,
}

/// `[affinity]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// Keys that seal the token; the first is the current one. None: the edge's own, which it keeps
    /// in its state directory.
    pub keys: Vec<SecretSource>,
    /// How long a token lasts.
    pub lasts: Duration,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests held on the node.
    pub max_held: usize,
    /// Header bytes of the requests held on the node.
    pub max_held_bytes: u64,
    /// To connect to an allocation.
    pub connect_timeout: Duration,
    /// For each read of a response.
    pub response_timeout: Duration,
    /// Requests on one client connection before it is closed.
    pub keepalive_requests: u32,
    /// A pooled connection to an allocation is closed after so long unused.
    pub idle_keepalive: Duration,
    /// Live sockets open on the node.
    pub sockets: usize,
    /// A live socket on which nothing passes for this long is closed.
    pub socket_idle: Duration,
    /// Bytes of bodies that the edge reads whole, on the node.
    pub max_buffered_bytes: u64,
    /// How long such a body may take.
    pub body_timeout: Duration,
    /// What a client may take.
    pub client: ClientLimits,
}

/// `[ledger]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerConfig {
    /// Records of keys and events.
    pub max_records: u64,
    /// Largest response that is kept for repeats, head and body.
    pub max_response: u64,
}

/// `[audit]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditConfig {
    /// Rows of evidence.
    pub max_rows: u64,
    /// How long a row is kept.
    pub max_age: Duration,
}

/// `[assets]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssetsConfig {
    /// Bytes of static files kept in memory.
    pub memory: u64,
    /// How long what a deployment replaced is kept.
    pub retention: Duration,
    /// Deployments of each environment that are kept whatever their age.
    pub keep_deployments: usize,
}

/// `[runner]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerConfig {
    /// Starts at the same time.
    pub parallel_starts: usize,
    /// Processes at the same time.
    pub max_processes: usize,
    /// Bytes kept of one allocation's output.
    pub log_bytes: u64,
    /// Pause after failed starts.
    pub backoff: Backoff,
    /// What becomes of allocations when the edge stops in order.
    pub on_exit: OnExit,
    /// Bytes that frozen allocations may hold together.
    pub frozen_memory: u64,
}

/// What becomes of allocations when the edge stops in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They are stopped.
    Stop,
    /// They run on, and the next edge over the same state adopts them.
    Keep,
}

/// `[runner.backoff]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure; doubles with each.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

/// `[log]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important level that is written.
    pub level: log::LevelFilter,
}

/// `[trace]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceConfig {
    /// Requests whose steps are kept.
    pub ring: usize,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// The collector's address, without `/v1/traces`; none: nothing is sent.
    pub otlp: Option<String>,
    /// Share of plainly served requests that are sent, from 0 to 1; all others always are.
    pub sample: f64,
}

/// `[access_log]`
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogConfig {
    /// Where the lines go.
    pub path: AccessLogPath,
    /// Share of plainly served requests that get a line, from 0 to 1; all others always do.
    pub sample: f64,
}

/// `access_log.path`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogPath {
    /// Nowhere.
    Off,
    /// Standard error.
    Stderr,
    /// A file.
    File(PathBuf),
}

/// One file of `apps.dir`.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// Hosts of its production.
    pub hosts: Vec<Host>,
    /// Hosts of its previews.
    pub preview_hosts: Vec<HostPattern>,
    /// Secrets of its production; a list rotates, the first is the current one.
    pub secrets: BTreeMap<String, Vec<SecretSource>>,
    /// Secrets of its previews; they never see production's.
    pub preview_secrets: BTreeMap<String, Vec<SecretSource>>,
    /// Allocations at most, whatever its contract says.
    pub max_allocations: u32,
    /// Previews say `X-Robots-Tag: noindex`.
    pub preview_noindex: bool,
    /// Tokens that open its previews; none leaves them open to all. A list rotates.
    pub preview_access: Vec<SecretSource>,
    /// A preview for which nothing came for so long is removed; `None` keeps them.
    pub preview_age: Option<Duration>,
    /// What a promotion needs.
    pub promotion: Promotion,
    /// The app's file says so itself: production moves by a promotion only, and a deployment is stored.
    pub gated: bool,
    /// Where it runs, if this edge does not run it.
    pub upstreams: Option<Upstreams>,
}

/// A host with `{preview}` as one label or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// Before `{preview}`.
    pub before: String,
    /// After it.
    pub after: String,
}

impl App {
    /// The hosts that `environment` is to own: none for a preview whose name makes no host.
    pub fn hosts_of(&self, environment: &Environment) -> Vec<Host> {
        if environment.is_production() {
            return self.hosts.clone();
        }
        self.preview_hosts.iter().filter_map(|p| p.host(environment.name())).collect()
    }
}

impl HostPattern {
    /// The host of the preview `name`; `None` when it would be none (RFC 1035 §2.3.4).
    pub fn host(&self, name: &EnvName) -> Option<Host> {
        format!("{}{name}{}", self.before, self.after).parse().ok()
    }
}

/// `promotion`
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    /// Requests the preview must have answered.
    pub min_requests: u64,
    /// Errors among them at most, from 0 to 1.
    pub max_error_rate: f64,
    /// Named checks that must have passed.
    pub checks: Vec<String>,
}

/// An app that this edge does not run.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstreams {
    /// Where; none twice.
    pub addresses: Vec<SocketAddr>,
    /// Its routes and bounds.
    pub contract: Arc<Contract>,
    /// How it is found out which of them are up; `None`: each is, until it refuses a connection.
    pub health: Option<Health>,
}

/// `[health]` of an app that this edge does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is checked.
    pub check: HealthCheck,
    /// From one check to the next.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Failed checks in a row that make one down.
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it up again.
    pub healthy_after: u32,
}

/// What a health check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Connects.
    Tcp,
    /// `GET path` with `host` as its `Host` is answered 200.
    Http {
        /// The path.
        path: String,
        /// The host.
        host: String,
    },
}
