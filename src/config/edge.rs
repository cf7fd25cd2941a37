//! `edge.toml`: each of its keys with its meaning, its bounds, its default, and what a reload does with it
//! ([`super::reload`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use vango_edge_core::control::certificates::is_orderable;
use vango_edge_core::wake::machine::BackoffPolicy;

use crate::document::Table;
use crate::id::{AppName, Host};
use crate::lifecycle::page::Branding;
use crate::record::ChallengeKind;

use super::App;
use super::acme::{Acme, acme};
use super::client::{self, ClientConfig, TlsListener, hsts, networks, tls};
use super::keys::{
    DAY, Differences, Keys, MS, flag, fraction, keys, number, secs, size, table, time, word,
};
use super::secret::{SecretSource, source};

keys! {
    #[derive(Debug, Clone, PartialEq)]
    pub struct Config in "", checked by together {
        /// Where clients connect.
        each server: Server = table(),
        /// Who issues certificates; `None`: they are in files.
        now acme: Option<Acme> = acme(),
        /// Where operators do.
        each admin: Admin = table(),
        /// Where state is kept.
        each state: StateDir = table(),
        /// How browsers come back to their allocation.
        each affinity: Affinity = table(),
        /// What the edge holds and carries at most.
        each limits: Limits = table(),
        /// How the edge's own pages look.
        each pages: Branding = table(),
        /// Static files.
        each assets: AssetsConfig = table(),
        /// What is kept of keyed requests.
        restart ledger: LedgerLimits = table(),
        /// What is kept of decisions.
        restart audit: AuditLimits = table(),
        /// How processes are run.
        each runner: RunnerConfig = table(),
        /// What is logged.
        each log: LogConfig = table(),
        /// What is traced.
        each trace: TraceConfig = table(),
        /// Where traces are sent.
        restart telemetry: TelemetryConfig = table(),
        /// What is written of each request.
        restart access_log: AccessLogConfig = table(),
        /// Apps by name.
        apps apps: BTreeMap<AppName, App> = of_their_own_files(),
    }
}

impl Config {
    /// What an operator should know although it is no error, at `now` in seconds since 1970.
    pub fn warnings(&self, now: u64) -> impl Iterator<Item = String> {
        let all = self.server.tls.iter().flat_map(|l| &l.certificates);
        let files = all.filter_map(move |c| c.warning(now)).map(|w| format!("server.tls: {w}"));
        files.chain(self.acme_warnings())
    }
}

impl Config {
    /// Hosts that want a certificate of the authority, whether one is ordered for them or not: exact names of
    /// apps' productions that no certificate file covers.
    fn acme_hosts(&self) -> impl Iterator<Item = &Host> {
        let apps = self.apps.values().filter(|app| app.acme && self.acme.is_some());
        apps.flat_map(|app| &app.hosts).filter(|host| !self.has_file_for(host))
    }

    /// Hosts for which certificates are ordered.
    pub fn ordered_hosts(&self) -> impl Iterator<Item = &Host> {
        self.acme_hosts().filter(|host| is_orderable(host))
    }

    /// Whether every listener has a certificate file for `host`.
    fn has_file_for(&self, host: &Host) -> bool {
        let tls = &self.server.tls;
        let has = |host: &Host| {
            tls.iter().all(|l| l.certificates.iter().any(|c| c.covers(host.as_str())))
        };
        !tls.is_empty() && has(host)
    }

    /// What an operator should know of `[acme]` although it is no error.
    fn acme_warnings(&self) -> Vec<String> {
        let Some(acme) = &self.acme else { return Vec::new() };
        let mut out = Vec::new();
        let has = |mut all: Box<dyn Iterator<Item = SocketAddr> + '_>, port| {
            all.any(|a| a.port() == port)
        };
        let (key, port, there) = match acme.challenge {
            ChallengeKind::Http => {
                ("server.listen", 80, has(Box::new(self.server.listen.iter().copied()), 80))
            }
            ChallengeKind::TlsAlpn => {
                let secure = self.server.tls.iter().map(|l| l.listen);
                ("server.tls", 443, has(Box::new(secure), 443))
            }
        };
        if !there {
            out.push(format!(
                "acme: for {} the authority connects to port {port} of each host, where no {key} is: \
                 something has to pass those connections on",
                acme.challenge.name()
            ));
        }
        for host in self.acme_hosts().filter(|host| !is_orderable(host)) {
            out.push(format!(
                "acme: no certificate is ordered for {host}, which is no name that an authority could \
                 look at; `acme = false` in its app's file says so"
            ));
        }
        out
    }
}

fn together(config: &Config, top: &Table<'_>) {
    followed(config, top);
    certificate_sources(config, top);
}

/// Certificates come from files or from an authority, and an authority's are for HTTPS.
fn certificate_sources(config: &Config, top: &Table<'_>) {
    if config.acme.is_some() && config.server.tls.is_empty() {
        let why = "it orders certificates, and no [[server.tls]] shows them: \
                   [[server.tls]] with listen = \"0.0.0.0:443\" does";
        top.table("acme").error_here(why);
    }
    if config.acme.is_none() {
        for t in top.table("server").tables("tls") {
            if t.tables("certificates").is_empty() {
                let how = "expected certificates = [{ cert = \"cert.pem\", key = \"key.pem\" }], or an \
                           [acme] table, which orders them";
                t.error("certificates", how);
            }
        }
    }
}

/// What follows the ring of traces has nothing to follow where none are kept.
fn followed(config: &Config, top: &Table<'_>) {
    let no_ring = "it follows the traces that are kept, and trace.ring = 0 keeps none";
    if config.trace.ring > 0 {
        return;
    }
    if config.access_log.path != AccessLogPath::Off {
        top.table("access_log").error("path", no_ring);
    }
    if config.telemetry.otlp.is_some() {
        top.table("telemetry").error("otlp", no_ring);
    }
}

/// Where they are is said by `apps.dir`.
fn of_their_own_files(_: &Table<'_>, _: &'static str) -> BTreeMap<AppName, App> {
    BTreeMap::new()
}

keys! {
    /// `[server]`
    #[derive(Debug, Clone, PartialEq)]
    pub struct Server in "server.", checked by redirects_somewhere {
        /// Plain HTTP.
        restart listen: Vec<SocketAddr> = addresses(),
        /// Threads that serve requests.
        restart threads: usize = number(1..=1024, cores()),
        /// How long requests in flight and held ones may take to finish when the edge stops.
        now grace: Duration = time(Duration::ZERO..=secs(3600), secs(30)),
        /// How long it is not ready, and goes on accepting, before it stops.
        now unready_for: Duration = time(Duration::ZERO..=secs(600), Duration::ZERO),
        /// Whether plain listeners take HTTP/2 too, by prior knowledge.
        now h2c: bool = flag(),
        /// HTTPS.
        listeners tls: Vec<TlsListener> = tls(),
        /// Whether plain HTTP is sent on to HTTPS.
        now redirect_http: bool = flag(),
        /// Who says with a PROXY header for whom it connects.
        now proxy_protocol_from: Vec<ipnet::IpNet> = networks(),
        /// Whose `X-Forwarded-*` and `Forwarded` count.
        now trusted_proxies: Arc<[ipnet::IpNet]> = networks(),
        /// `Strict-Transport-Security: max-age` where a trusted proxy serves HTTPS; `None` sends none.
        now hsts: Option<Duration> = hsts(),
    }
}

impl Server {
    /// Whether requests may come over HTTPS: here, or to a proxy that says so.
    pub fn sees_https(&self) -> bool {
        let told = !self.trusted_proxies.is_empty() || !self.proxy_protocol_from.is_empty();
        told || !self.tls.is_empty()
    }
}

fn addresses(t: &Table<'_>, key: &'static str) -> Vec<SocketAddr> {
    let texts = t.texts(key);
    if !t.has(key) {
        return vec![SocketAddr::from(([127, 0, 0, 1], 8080))];
    }
    if texts.is_empty() {
        t.error(key, "expected at least one address");
    }
    let mut all: Vec<SocketAddr> = Vec::new();
    for a in texts.iter().filter_map(|text| client::address(t, key, text, "127.0.0.1:8080")) {
        if all.contains(&a) && a.port() != 0 {
            t.error(key, format!("{a} is there twice"));
        } else {
            all.push(a);
        }
    }
    all
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn redirects_somewhere(server: &Server, t: &Table<'_>) {
    if server.redirect_http && !server.sees_https() {
        let nowhere = "neither a [[server.tls]] nor a proxy of trusted_proxies or \
                       proxy_protocol_from serves HTTPS";
        t.error("redirect_http", nowhere);
    }
}

keys! {
    /// `[admin]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Admin in "admin.", checked by guarded {
        /// A loopback address, or any with at least one token.
        restart listen: SocketAddr = address(SocketAddr::from(([127, 0, 0, 1], 9901))),
        /// Who may use it; empty: every process that reaches the loopback address.
        now tokens: Vec<AdminToken> = tokens(),
        /// Names of the listener besides addresses and `localhost`, lower case, without port.
        now hosts: Vec<String> = hosts(),
    }
}

/// One of `admin.tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminToken {
    pub role: Role,
    /// As the audit names it; where it has none, by its source.
    pub name: Option<String>,
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

fn address(t: &Table<'_>, key: &'static str, default: SocketAddr) -> SocketAddr {
    t.parsed(key).unwrap_or(default)
}

fn tokens(t: &Table<'_>, key: &'static str) -> Vec<AdminToken> {
    let roles = [("read", Role::Read), ("operate", Role::Operate)];
    let token = |token: Table<'_>| {
        if !token.has("role") {
            token.error_here("expected role = \"read\" or role = \"operate\"");
        }
        let role = token.word("role", &roles, Role::Read);
        let name = token.text("name");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.as_ref().is_some_and(|n| n.is_empty() || n.len() > 64 || !n.chars().all(plain)) {
            token.error("name", "expected up to 64 letters, digits and -_.@");
        }
        let source = source(&token);
        token.finish();
        source.map(|source| AdminToken { role, name, source })
    };
    t.tables(key).into_iter().filter_map(token).collect()
}

fn hosts(t: &Table<'_>, key: &'static str) -> Vec<String> {
    t.all_parsed::<Host>(key).iter().map(ToString::to_string).collect()
}

fn guarded(admin: &Admin, t: &Table<'_>) {
    let ip = admin.listen.ip();
    if !ip.is_loopback() && !t.has("tokens") {
        t.error(
            "listen",
            format!(
                "{ip} can be reached from other machines: that needs admin.tokens, or use a loopback \
                 address and a tunnel"
            ),
        );
    }
}

keys! {
    /// `[state]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct StateDir in "state." {
        /// Store, artifacts, processes' files. One edge at a time.
        restart dir: PathBuf = directory("/var/lib/vango-edge"),
    }
}

fn directory(t: &Table<'_>, key: &'static str, default: &str) -> PathBuf {
    let dir = t.text(key).unwrap_or_else(|| default.into());
    if dir.is_empty() {
        t.error(key, "expected a directory");
    }
    t.beside(dir)
}

keys! {
    /// `[affinity]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Affinity in "affinity." {
        /// Keys that seal the token; the first is the current one. None: the edge's own, which it keeps
        /// in its state directory.
        now keys: Vec<SecretSource> = sources(),
        /// How long a token lasts.
        restart lasts: Duration = time(secs(60)..=30 * DAY, DAY),
    }
}

/// Most keys that open affinity tokens.
const MOST_KEYS: usize = 8;

fn sources(t: &Table<'_>, key: &'static str) -> Vec<SecretSource> {
    let mut keys = Vec::new();
    for key in t.tables(key) {
        keys.extend(source(&key));
        key.finish();
    }
    if keys.len() > MOST_KEYS {
        t.error(key, format!("expected at most {MOST_KEYS}, found {}", keys.len()));
    }
    keys
}

keys! {
    /// `[limits]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Limits in "limits." {
        /// Requests held on the node.
        now max_held: usize = number(1..=10_000_000, 50_000),
        /// Header bytes of the requests held on the node.
        now max_held_bytes: u64 = size(1024..=1 << 40, 256 << 20),
        /// To connect to an allocation.
        now connect_timeout: Duration = time(MS..=secs(60), secs(1)),
        /// For each read of a response, where the route says nothing.
        now response_timeout: Duration = time(MS..=secs(3600), secs(60)),
        /// The longest that a route may say instead.
        now max_route_timeout: Duration = time(MS..=DAY, secs(3600)),
        /// Requests on one client connection before it is closed.
        now keepalive_requests: u32 = number(1..=1_000_000, 1000),
        /// A pooled connection to an allocation is closed after so long unused.
        now idle_keepalive: Duration = time(MS..=secs(3600), secs(60)),
        /// Live sockets open on the node.
        now sockets: usize = number(0..=10_000_000, 50_000),
        /// A live socket on which nothing passes for this long is closed.
        now socket_idle: Duration = time(MS..=DAY, secs(120)),
        /// Bytes of bodies that the edge reads whole, on the node.
        now max_buffered_bytes: u64 = size(1 << 20..=1 << 40, 256 << 20),
        /// How long such a body may take.
        now body_timeout: Duration = time(MS..=secs(3600), secs(30)),
        /// What a client may take.
        whole client: ClientConfig = table(),
    }
}

keys! {
    /// `[assets]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AssetsConfig in "assets." {
        /// Bytes of static files kept in memory.
        restart memory: u64 = size(0..=1 << 40, 64 << 20),
        /// How long what a deployment replaced is kept.
        now retention: Duration = time(MS..=3650 * DAY, 7 * DAY),
        /// Deployments of each environment that are kept whatever their age.
        now keep_deployments: usize = number(1..=10_000, 5),
    }
}

keys! {
    /// `[ledger]`: what the ledger keeps at most.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LedgerLimits in "ledger." {
        /// Records of keys and events; the next new key is refused.
        restart max_records: u64 = number(1..=1_000_000_000, 1_000_000),
        /// Largest response that is kept for repeats, head and body, in bytes.
        restart max_response: usize = size(0..=768 << 10, 64 << 10),
    }
}

keys! {
    /// `[audit]`: what the audit keeps at most.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AuditLimits in "audit." {
        /// Rows of evidence.
        restart max_rows: u64 = number(1..=100_000_000, 100_000),
        /// How long a row is kept.
        restart max_age: Duration = time(secs(1)..=3650 * DAY, 30 * DAY),
    }
}

keys! {
    /// `[runner]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RunnerConfig in "runner." {
        /// Pause after failed starts.
        restart backoff: BackoffPolicy = table(),
        /// Starts at the same time.
        restart parallel_starts: usize = number(1..=10_000, (2 * cores()).max(2)),
        /// Processes at the same time.
        restart max_processes: usize = number(1..=100_000, 256),
        /// One-off commands at the same time, besides those.
        restart max_commands: usize = number(0..=10_000, 16),
        /// Bytes kept of what each environment's processes print.
        restart log_bytes: u64 = size(64 << 10..=1 << 40, 8 << 20),
        /// Bytes kept of what all print.
        restart log_total: u64 = size(1 << 20..=1 << 50, 1 << 30),
        /// How long it is kept.
        restart log_age: Duration = time(secs(60)..=3650 * DAY, 30 * DAY),
        /// Bytes a second that are kept of each environment.
        restart log_rate: u64 = size(1024..=1 << 30, 1 << 20),
        /// Bytes that one process may write beside its code (`writable = "scratch"`).
        restart scratch_bytes: u64 = size(4096..=1 << 40, 1 << 30),
        /// Bytes that frozen allocations may hold together.
        now frozen_memory: u64 = size(0..=1 << 50, 1 << 30),
        /// What becomes of allocations when the edge stops in order.
        now on_exit: OnExit =
            word(&[("stop", OnExit::Stop), ("keep", OnExit::Keep)], OnExit::Stop),
    }
}

/// What becomes of allocations when the edge stops in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They are stopped.
    Stop,
    /// They run on, and the next edge over the same state adopts them.
    Keep,
}

keys! {
    for BackoffPolicy in "runner.backoff.", checked by grows {
        restart first = time(MS..=secs(600), secs(1)),
        restart max = time(MS..=secs(600), secs(60)),
    }
}

fn grows(backoff: &BackoffPolicy, t: &Table<'_>) {
    if backoff.first > backoff.max {
        t.error("first", format!("expected at most max, which is {:?}", backoff.max));
    }
}

keys! {
    /// `[log]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LogConfig in "log." {
        /// The least important level that is written.
        now level: LevelFilter = word(&LEVELS, LevelFilter::Info),
    }
}

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

keys! {
    /// `[trace]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TraceConfig in "trace." {
        /// Requests whose steps are kept.
        now ring: usize = number(0..=1_000_000, 4096),
    }
}

keys! {
    /// `[telemetry]`
    #[derive(Debug, Clone, PartialEq)]
    pub struct TelemetryConfig in "telemetry." {
        /// The collector's address, without `/v1/traces`; none: nothing is sent.
        restart otlp: Option<String> = collector(),
        /// Share of plainly served requests that are sent, from 0 to 1; all others always are.
        restart sample: f64 = fraction(1.0),
    }
}

fn collector(t: &Table<'_>, key: &'static str) -> Option<String> {
    let address = t.text(key).filter(|word| word != "off")?;
    base_of_collector(&address).map_err(|why| t.error(key, why)).ok()
}

/// The address of a collector: where `/v1/traces` is below.
fn base_of_collector(address: &str) -> Result<String, String> {
    let example = "expected \"off\" or an address such as \"http://127.0.0.1:4318\"";
    let uri: http::Uri = address.parse().map_err(|e| format!("{example}: {e}"))?;
    let authority = uri.authority().map_or("", |a| a.as_str());
    if uri.scheme_str() == Some("https") {
        return Err("no https: let a collector on this machine, or a proxy, send it on".into());
    }
    if uri.scheme_str() != Some("http") || authority.is_empty() || uri.query().is_some() {
        return Err(example.into());
    }
    // A secret does not stand in a file that is shown.
    if authority.contains('@') {
        return Err("no user or password here: let a collector on this machine add it".into());
    }
    let path = uri.path().trim_end_matches('/');
    if path.ends_with("/v1/traces") {
        return Err("without /v1/traces, which is added".into());
    }
    Ok(format!("http://{authority}{path}"))
}

keys! {
    /// `[access_log]`
    #[derive(Debug, Clone, PartialEq)]
    pub struct AccessLogConfig in "access_log." {
        /// Where the lines go.
        restart path: AccessLogPath = access_log_path(),
        /// Share of plainly served requests that get a line, from 0 to 1; all others always do.
        restart sample: f64 = fraction(1.0),
    }
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

fn access_log_path(t: &Table<'_>, key: &'static str) -> AccessLogPath {
    match t.text(key).as_deref() {
        None | Some("off") => AccessLogPath::Off,
        Some("stderr") => AccessLogPath::Stderr,
        Some("") => {
            t.error(key, "expected a file, \"stderr\" or \"off\"");
            AccessLogPath::Off
        }
        Some(file) => AccessLogPath::File(t.beside(file)),
    }
}
