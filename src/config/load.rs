//! Reads `edge.toml` and every app's file, with every error of all of them at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use crate::contract::{self, Contract};
use crate::document::{Checked, Diagnostic, Errors, Table};
use crate::id::{AppName, Host};

use super::secret::SecretSource;
use super::{
    AccessLogConfig, AccessLogPath, Admin, AdminToken, Affinity, App, AssetsConfig, AuditConfig,
    Backoff, Config, Health, HealthCheck, LedgerConfig, Limits, LogConfig, OnExit, Promotion, Role,
    RunnerConfig, Server, StateDir, TelemetryConfig, TraceConfig, Upstreams,
};
use super::{client, preview};

const MS: Duration = Duration::from_millis(1);
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const DAY: u64 = 86_400;
/// Most keys that open affinity tokens.
const MOST_KEYS: usize = 8;

/// Largest configuration file that is read.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Reads `edge_toml` and the apps it names. Relative paths are relative to the file they stand in.
///
/// # Errors
/// Everything that is wrong, in all files.
pub fn load(edge_toml: &Path) -> Checked<Config> {
    let mut found = Vec::new();
    let text = read(edge_toml, &mut found);
    let base = edge_toml.parent().unwrap_or(Path::new("")).to_owned();
    let (node, apps_dir) = match &text {
        Some(text) => {
            let errors = Errors::new(edge_toml, text);
            let document = errors.parse();
            let top = Table::top(&errors, &document);
            let node = node(&top, &base);
            let apps_dir = apps_dir(&top, &base);
            top.finish();
            found.extend(errors.take());
            (Some(node), apps_dir)
        }
        None => (None, None),
    };
    let apps = apps_dir.map(|dir| apps(&dir, &mut found)).unwrap_or_default();
    match node {
        Some(node) if found.is_empty() => Ok(Config { apps, ..node }),
        _ => Err(found),
    }
}

fn whole_file(file: &Path, message: String) -> Diagnostic {
    Diagnostic { file: file.to_owned(), line: 1, column: 1, key: String::new(), message }
}

fn read(file: &Path, found: &mut Vec<Diagnostic>) -> Option<String> {
    let size = std::fs::metadata(file).map(|m| m.len());
    let text = match size {
        Ok(n) if n > MAX_FILE => {
            found.push(whole_file(file, format!("larger than {MAX_FILE} bytes")));
            return None;
        }
        Ok(_) => std::fs::read_to_string(file),
        Err(e) => Err(e),
    };
    text.map_err(|e| found.push(whole_file(file, format!("cannot be read: {e}")))).ok()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn node(top: &Table<'_>, base: &Path) -> Config {
    let trace = trace(top);
    Config {
        server: server(top, base),
        admin: admin(top, base),
        state: state(top, base),
        apps: BTreeMap::new(),
        affinity: affinity(top, base),
        limits: limits(top),
        assets: assets(top),
        ledger: ledger(top),
        audit: audit(top),
        runner: runner(top),
        log: log_level(top),
        trace,
        telemetry: telemetry(top, trace),
        access_log: access_log(top, base, trace),
    }
}

fn server(top: &Table<'_>, base: &Path) -> Server {
    let t = top.table("server");
    let mut listen: Vec<SocketAddr> = Vec::new();
    for text in t.texts("listen") {
        match text.parse::<SocketAddr>() {
            Ok(a) if listen.contains(&a) && a.port() != 0 => {
                t.error("listen", format!("{a} is there twice"));
            }
            Ok(a) => listen.push(a),
            Err(_) => t.error(
                "listen",
                format!("expected an address and port such as \"127.0.0.1:8080\", found {text:?}"),
            ),
        }
    }
    if !t.has("listen") {
        listen.push(SocketAddr::from(([127, 0, 0, 1], 8080)));
    } else if t.texts("listen").is_empty() {
        t.error("listen", "expected at least one address");
    }
    let server = Server {
        listen,
        threads: t.integer("threads", 1..=1024).map_or_else(cores, |n| n as usize),
        grace: t.duration("grace", Duration::ZERO..=secs(3600), secs(30)),
        unready_for: t.duration("unready_for", Duration::ZERO..=secs(600), Duration::ZERO),
        tls: client::tls(&t, base),
        redirect_http: t.boolean("redirect_http").unwrap_or(false),
        proxy_protocol_from: client::networks(&t, "proxy_protocol_from"),
        trusted_proxies: client::networks(&t, "trusted_proxies").into(),
        hsts: client::hsts(&t),
    };
    if server.redirect_http && !server.sees_https() {
        let nowhere = "neither a [[server.tls]] nor a proxy of trusted_proxies or \
                       proxy_protocol_from serves HTTPS";
        t.error("redirect_http", nowhere);
    }
    t.finish();
    server
}

fn admin(top: &Table<'_>, base: &Path) -> Admin {
    let t = top.table("admin");
    let default = SocketAddr::from(([127, 0, 0, 1], 9901));
    let listen = t.parsed::<SocketAddr>("listen").unwrap_or(default);
    let roles = [("read", Role::Read), ("operate", Role::Operate)];
    let mut tokens = Vec::new();
    for token in t.tables("tokens") {
        if !token.has("role") {
            token.error_here("expected role = \"read\" or role = \"operate\"");
        }
        let role = token.word("role", &roles, Role::Read);
        let source = source(&token, base);
        tokens.extend(source.map(|source| AdminToken { role, source }));
        token.finish();
    }
    if !listen.ip().is_loopback() && !t.has("tokens") {
        t.error(
            "listen",
            format!(
                "{} can be reached from other machines: that needs admin.tokens, or use a loopback \
                 address and a tunnel",
                listen.ip()
            ),
        );
    }
    let hosts = t.all_parsed::<Host>("hosts").iter().map(ToString::to_string).collect();
    t.finish();
    Admin { listen, tokens, hosts }
}

fn state(top: &Table<'_>, base: &Path) -> StateDir {
    let t = top.table("state");
    let dir = t.text("dir").unwrap_or_else(|| "/var/lib/vango-edge".into());
    if dir.is_empty() {
        t.error("dir", "expected a directory");
    }
    t.finish();
    StateDir { dir: base.join(dir) }
}

fn affinity(top: &Table<'_>, base: &Path) -> Affinity {
    let t = top.table("affinity");
    let mut keys = Vec::new();
    for key in t.tables("keys") {
        keys.extend(source(&key, base));
        key.finish();
    }
    if keys.len() > MOST_KEYS {
        t.error("keys", format!("expected at most {MOST_KEYS}, found {}", keys.len()));
    }
    let affinity =
        Affinity { keys, lasts: t.duration("lasts", secs(60)..=secs(30 * DAY), secs(DAY)) };
    t.finish();
    affinity
}

fn limits(top: &Table<'_>) -> Limits {
    let t = top.table("limits");
    let limits = Limits {
        max_held: t.integer("max_held", 1..=10_000_000).unwrap_or(50_000) as usize,
        max_held_bytes: t.size("max_held_bytes", 1024..=1 << 40).unwrap_or(256 << 20),
        connect_timeout: t.duration("connect_timeout", MS..=secs(60), secs(1)),
        response_timeout: t.duration("response_timeout", MS..=secs(3600), secs(60)),
        keepalive_requests: t.integer("keepalive_requests", 1..=1_000_000).unwrap_or(1000) as u32,
        idle_keepalive: t.duration("idle_keepalive", MS..=secs(3600), secs(60)),
        sockets: t.integer("sockets", 0..=10_000_000).unwrap_or(50_000) as usize,
        socket_idle: t.duration("socket_idle", MS..=secs(86_400), secs(120)),
        max_buffered_bytes: t.size("max_buffered_bytes", 1 << 20..=1 << 40).unwrap_or(256 << 20),
        body_timeout: t.duration("body_timeout", MS..=secs(3600), secs(30)),
        client: client::limits(&t),
    };
    t.finish();
    limits
}

fn assets(top: &Table<'_>) -> AssetsConfig {
    let t = top.table("assets");
    let day = Duration::from_secs(24 * 3600);
    let assets = AssetsConfig {
        memory: t.size("memory", 0..=1 << 40).unwrap_or(64 << 20),
        retention: t.duration("retention", MS..=day * 3650, day * 7),
        keep_deployments: t.integer("keep_deployments", 1..=10_000).unwrap_or(5) as usize,
    };
    t.finish();
    assets
}

fn audit(top: &Table<'_>) -> AuditConfig {
    let t = top.table("audit");
    let age = MS * 1000..=secs(3650 * 86_400);
    let audit = AuditConfig {
        max_rows: t.integer("max_rows", 1..=100_000_000).unwrap_or(100_000),
        max_age: t.duration("max_age", age, secs(30 * 86_400)),
    };
    t.finish();
    audit
}

fn ledger(top: &Table<'_>) -> LedgerConfig {
    let t = top.table("ledger");
    let ledger = LedgerConfig {
        max_records: t.integer("max_records", 1..=1_000_000_000).unwrap_or(1_000_000),
        max_response: t.size("max_response", 0..=768 << 10).unwrap_or(64 << 10),
    };
    t.finish();
    ledger
}

fn runner(top: &Table<'_>) -> RunnerConfig {
    let t = top.table("runner");
    let b = t.table("backoff");
    let backoff = Backoff {
        first: b.duration("first", MS..=secs(600), secs(1)),
        max: b.duration("max", MS..=secs(600), secs(60)),
    };
    if backoff.first > backoff.max {
        b.error("first", format!("expected at most max, which is {:?}", backoff.max));
    }
    b.finish();
    let parallel = t.integer("parallel_starts", 1..=10_000);
    let runner = RunnerConfig {
        parallel_starts: parallel.map_or_else(|| (2 * cores()).max(2), |n| n as usize),
        max_processes: t.integer("max_processes", 1..=100_000).unwrap_or(256) as usize,
        log_bytes: t.size("log_bytes", 4096..=1 << 40).unwrap_or(1 << 20),
        backoff,
        frozen_memory: t.size("frozen_memory", 0..=1 << 50).unwrap_or(1 << 30),
        on_exit: t.word("on_exit", &[("stop", OnExit::Stop), ("keep", OnExit::Keep)], OnExit::Stop),
    };
    t.finish();
    runner
}

fn log_level(top: &Table<'_>) -> LogConfig {
    use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    let t = top.table("log");
    let words = [
        ("off", Off),
        ("error", Error),
        ("warn", Warn),
        ("info", Info),
        ("debug", Debug),
        ("trace", Trace),
    ];
    let level = t.word("level", &words, Info);
    t.finish();
    LogConfig { level }
}

/// What follows the ring of traces has nothing to follow where none are kept.
const NO_RING: &str = "it follows the traces that are kept, and trace.ring = 0 keeps none";

fn access_log(top: &Table<'_>, base: &Path, trace: TraceConfig) -> AccessLogConfig {
    let t = top.table("access_log");
    let path = match t.text("path").as_deref() {
        None | Some("off") => AccessLogPath::Off,
        Some("stderr") => AccessLogPath::Stderr,
        Some("") => {
            t.error("path", "expected a file, \"stderr\" or \"off\"");
            AccessLogPath::Off
        }
        Some(file) => AccessLogPath::File(base.join(file)),
    };
    if trace.ring == 0 && path != AccessLogPath::Off {
        t.error("path", NO_RING);
    }
    let sample = t.fraction("sample").unwrap_or(1.0);
    t.finish();
    AccessLogConfig { path, sample }
}

fn trace(top: &Table<'_>) -> TraceConfig {
    let t = top.table("trace");
    let ring = t.integer("ring", 0..=1_000_000).unwrap_or(4096) as usize;
    t.finish();
    TraceConfig { ring }
}

fn telemetry(top: &Table<'_>, trace: TraceConfig) -> TelemetryConfig {
    let t = top.table("telemetry");
    let otlp =
        t.text("otlp").filter(|word| word != "off").and_then(|address| match collector(&address) {
            Ok(address) => Some(address),
            Err(why) => {
                t.error("otlp", why);
                None
            }
        });
    if trace.ring == 0 && otlp.is_some() {
        t.error("otlp", NO_RING);
    }
    let sample = t.fraction("sample").unwrap_or(1.0);
    t.finish();
    TelemetryConfig { otlp, sample }
}

/// The address of a collector: where `/v1/traces` is below.
fn collector(address: &str) -> Result<String, String> {
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

fn apps_dir(top: &Table<'_>, base: &Path) -> Option<PathBuf> {
    let t = top.table("apps");
    let dir = base.join(t.text("dir").unwrap_or_else(|| "apps".into()));
    if t.has("dir") && !dir.is_dir() {
        t.error("dir", format!("{} is not a directory", dir.display()));
    }
    t.finish();
    dir.is_dir().then_some(dir)
}

fn apps(dir: &Path, found: &mut Vec<Diagnostic>) -> BTreeMap<AppName, App> {
    let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
        Err(e) => {
            found.push(whole_file(dir, format!("cannot be read: {e}")));
            return BTreeMap::new();
        }
    };
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files.sort();
    let mut apps: BTreeMap<AppName, App> = BTreeMap::new();
    let mut claimed: BTreeMap<Host, PathBuf> = BTreeMap::new();
    for file in files {
        let Some(text) = read(&file, found) else { continue };
        let errors = Errors::new(&file, &text);
        let document = errors.parse();
        let top = Table::top(&errors, &document);
        if let Some(app) = app(&top, dir) {
            for host in &app.hosts {
                if let Some(other) = claimed.insert(host.clone(), file.clone()) {
                    top.error("hosts", format!("{host} is claimed in {} too", other.display()));
                }
            }
            if apps.contains_key(&app.name) {
                top.error("app", format!("there is another file for the app {}", app.name));
            }
            apps.insert(app.name.clone(), app);
        }
        top.finish();
        found.extend(errors.take());
    }
    apps
}

fn app(top: &Table<'_>, base: &Path) -> Option<App> {
    let name = top.required("app").and_then(|n| top.parse("app", &n));
    let hosts: Vec<Host> = top.all_parsed("hosts");
    if top.texts("hosts").is_empty() {
        top.error("hosts", "expected at least one host: hosts = [\"app.example\"]");
    }
    let preview_hosts = preview::hosts(top);
    let preview_secrets = secrets(top, "preview_secrets", base);
    let secrets = secrets(top, "secrets", base);
    let max_allocations = top.integer("max_allocations", 1..=1000).unwrap_or(4) as u32;
    let preview_noindex = top.boolean("preview_noindex").unwrap_or(true);
    let preview_access = preview::access(top, base);
    let preview_age =
        top.duration_or_never("preview_age", secs(1)..=secs(3650 * DAY), secs(14 * DAY));
    let promotion = promotion(top);
    let Some(name) = name else {
        // Read all the same, so that what is wrong is the name alone.
        top.texts("upstreams");
        top.integer("concurrency", 1..=1_000_000);
        top.opt_table("health");
        top.tables("route");
        top.opt_table("errors");
        return None;
    };
    let upstreams = upstreams(top, &name, &hosts);
    Some(App {
        name,
        hosts,
        preview_hosts,
        secrets,
        preview_secrets,
        max_allocations,
        preview_noindex,
        preview_access,
        preview_age,
        promotion,
        gated: top.has("promotion"),
        upstreams,
    })
}

fn promotion(top: &Table<'_>) -> Promotion {
    let t = top.table("promotion");
    let promotion = Promotion {
        min_requests: t.integer("min_requests", 0..=u64::MAX >> 1).unwrap_or(1),
        max_error_rate: t.fraction("max_error_rate").unwrap_or(0.0),
        checks: t.texts("checks"),
    };
    t.finish();
    promotion
}

pub(super) fn secrets(
    top: &Table<'_>,
    key: &'static str,
    base: &Path,
) -> BTreeMap<String, Vec<SecretSource>> {
    let Some(t) = top.opt_table(key) else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    for (name, span, value) in t.raw_entries() {
        let sources: Vec<_> = match value.get_ref() {
            DeValue::Table(table) => vec![source(&t.child(name, table, span), base)],
            DeValue::Array(items) if !items.is_empty() => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::Table(table) => source(&t.child(name, table, item.span()), base),
                    _ => not_a_source(&t, name),
                })
                .collect(),
            _ => vec![not_a_source(&t, name)],
        };
        out.insert(name.to_owned(), sources.into_iter().flatten().collect());
    }
    out
}

/// Says what is wrong without printing what was found: it may be the secret itself.
fn not_a_source(t: &Table<'_>, name: &str) -> Option<SecretSource> {
    t.error(
        name,
        "expected { env = \"NAME\" } or { file = \"/path\" }, or a list of them: secrets are never \
         written into this file",
    );
    None
}

fn source(t: &Table<'_>, base: &Path) -> Option<SecretSource> {
    let (env, file) = (t.text("env"), t.text("file"));
    match (env, file) {
        (Some(name), None) if !name.is_empty() => Some(SecretSource::Env(name)),
        (None, Some(path)) if !path.is_empty() => Some(SecretSource::File(base.join(path))),
        _ => {
            t.error_here("expected either env = \"NAME\" or file = \"/path\"");
            None
        }
    }
}

fn upstreams(top: &Table<'_>, name: &AppName, hosts: &[Host]) -> Option<Upstreams> {
    if !top.has("upstreams") {
        for key in ["health", "concurrency", "errors"] {
            if top.has(key) {
                top.error(key, "it counts only for an app with upstreams");
            }
        }
        if top.has("route") {
            top.error(
                "route",
                "routes stand here only for an app with upstreams; for one that is \
                                deployed they stand in its vango-edge.toml",
            );
            top.tables("route");
        }
        return None;
    }
    let addresses: Vec<SocketAddr> = top.all_parsed("upstreams");
    if top.texts("upstreams").is_empty() {
        top.error("upstreams", "expected at least one address: upstreams = [\"127.0.0.1:3000\"]");
    }
    if addresses.len() > MAX_UPSTREAMS {
        let found = addresses.len();
        top.error("upstreams", format!("expected at most {MAX_UPSTREAMS}, found {found}"));
    }
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            top.error("upstreams", format!("{address} is there twice"));
        } else if address.port() == 0 {
            top.error("upstreams", format!("{address} has no port"));
        }
    }
    let concurrency = top.integer("concurrency", 1..=1_000_000).unwrap_or(1000) as u32;
    let health = health(top.table("health"), hosts);
    let routes = contract::routes(top);
    let mut contract =
        Contract::external(name.clone(), routes, concurrency, addresses.len() as u32);
    contract.readers = contract::errors(top);
    Some(Upstreams { addresses, contract: Arc::new(contract), health })
}

/// Each is a series in the metrics, and is looked at by every choice.
const MAX_UPSTREAMS: usize = 100;

fn health(t: Table<'_>, hosts: &[Host]) -> Option<Health> {
    let kinds = [("tcp", 0), ("http", 1), ("none", 2)];
    let kind = t.word("check", &kinds, 0);
    let path = t.text("path");
    let host = t.text("host");
    for (key, there) in [("path", path.is_some()), ("host", host.is_some())] {
        if there && kind != 1 {
            t.error(key, "it counts only with check = \"http\"");
        }
    }
    let path = path.unwrap_or_else(|| "/".into());
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        t.error("path", format!("expected a path that begins with /, found {path:?}"));
    }
    let host = host.or_else(|| hosts.first().map(ToString::to_string)).unwrap_or_default();
    if !host.bytes().all(|b| b.is_ascii_graphic()) {
        t.error("host", format!("expected a host, found {host:?}"));
    }
    let health = Health {
        check: if kind == 1 { HealthCheck::Http { path, host } } else { HealthCheck::Tcp },
        interval: t.duration("interval", 100 * MS..=secs(600), secs(5)),
        timeout: t.duration("timeout", 10 * MS..=secs(60), secs(1)),
        unhealthy_after: t.integer("unhealthy_after", 1..=100).unwrap_or(2) as u32,
        healthy_after: t.integer("healthy_after", 1..=100).unwrap_or(1) as u32,
    };
    t.finish();
    (kind != 2).then_some(health)
}
