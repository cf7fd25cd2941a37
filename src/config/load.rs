//! Reads `edge.toml` and every app's file, with every error of all of them at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::contract::{self, Contract, Protocol};
use crate::document::{self, Checked, Diagnostic, Table};
use crate::id::{AppName, Host};

use super::keys::{DAY, Keys, MS, number, secs};
use super::pages;
use super::secret::{self, SecretSource};
use super::{App, Config, Health, HostPattern, Promotion, Upstreams, reload};

/// Largest configuration file that is read.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Reads `edge_toml` and the apps it names. Relative paths are relative to the file they stand in.
///
/// # Errors
/// Everything that is wrong, in all files.
pub fn load(edge_toml: &Path) -> Checked<Config> {
    let mut found = Vec::new();
    let text = read(edge_toml, &mut found);
    let Some(text) = text else { return Err(found) };
    let all = |top: &Table<'_>| (Config::read(top), apps_dir(top));
    let ((config, apps_dir), errors) = document::read(edge_toml, &text, all);
    found.extend(errors);
    let longest = reload::longest_silence(&config.limits);
    let apps = apps_dir.map(|dir| apps(&dir, longest, &mut found)).unwrap_or_default();
    if found.is_empty() { Ok(Config { apps, ..config }) } else { Err(found) }
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

fn apps_dir(top: &Table<'_>) -> Option<PathBuf> {
    let t = top.table("apps");
    let dir = t.beside(t.text("dir").unwrap_or_else(|| "apps".into()));
    if t.has("dir") && !dir.is_dir() {
        t.error("dir", format!("{} is not a directory", dir.display()));
    }
    t.finish();
    dir.is_dir().then_some(dir)
}

fn apps(
    dir: &Path,
    longest: (&'static str, Duration),
    found: &mut Vec<Diagnostic>,
) -> BTreeMap<AppName, App> {
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
        let ((), errors) = document::read(&file, &text, |top| {
            let Some(app) = app(top) else { return };
            for host in &app.hosts {
                if let Some(other) = claimed.insert(host.clone(), file.clone()) {
                    top.error("hosts", format!("{host} is claimed in {} too", other.display()));
                }
            }
            let routes = app.upstreams.as_ref().map_or(&[][..], |u| &u.contract.routes);
            for why in contract::timeout_errors(routes, longest) {
                top.error("route", why);
            }
            if apps.contains_key(&app.name) {
                top.error("app", format!("there is another file for the app {}", app.name));
            }
            apps.insert(app.name.clone(), app);
        });
        found.extend(errors);
    }
    apps
}

fn app(top: &Table<'_>) -> Option<App> {
    let name = top.required("app").and_then(|n| top.parse("app", &n));
    let hosts: Vec<Host> = top.all_parsed("hosts");
    if top.texts("hosts").is_empty() {
        top.error("hosts", "expected at least one host: hosts = [\"app.example\"]");
    }
    let preview_hosts = preview_hosts(top);
    let preview_secrets = secret::secrets(top, "preview_secrets");
    let secrets = secret::secrets(top, "secrets");
    let max_allocations = number(top, "max_allocations", 1..=1000, 4);
    let preview_noindex = top.boolean("preview_noindex").unwrap_or(true);
    let preview_access = preview_access(top);
    let preview_age = top.duration_or_never("preview_age", secs(1)..=3650 * DAY, 14 * DAY);
    let promotion = promotion(top);
    let pages = pages::of_app(top);
    let acme = top.boolean("acme").unwrap_or(true);
    let Some(name) = name else {
        // Read all the same, so that what is wrong is the name alone.
        top.texts("upstreams");
        top.integer("concurrency", 1..=1_000_000);
        top.text("protocol");
        top.opt_table("health");
        top.tables("route");
        top.opt_table("defaults");
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
        pages,
        acme,
        upstreams,
    })
}

/// Fewest characters of a token: what 128 random bits need as base64 is 22, and ten guesses a minute
/// from each of many addresses find what is much shorter.
const SHORTEST_TOKEN: usize = 16;

/// Reads `preview_hosts`.
fn preview_hosts(top: &Table<'_>) -> Vec<HostPattern> {
    let all = top.texts("preview_hosts");
    let read = |text: &String| host_pattern(text).map_err(|e| top.error("preview_hosts", e)).ok();
    all.iter().filter_map(read).collect()
}

/// Reads `preview_access`. A token that cannot be read here may be there where the edge runs, which
/// does not start without it.
fn preview_access(top: &Table<'_>) -> Vec<SecretSource> {
    let mut named = secret::secrets(top, "preview_access");
    let token = named.remove("token").unwrap_or_default();
    if top.has("preview_access") && (token.is_empty() || !named.is_empty()) {
        top.error(
            "preview_access",
            "expected { token = { env = \"NAME\" } } or { token = { file = \"/path\" } }",
        );
    }
    for source in &token {
        let short = |t: &str| t.chars().count() < SHORTEST_TOKEN;
        if secret::read_secret(source).is_ok_and(|secret| short(secret.expose())) {
            let why = format!(
                "the token in {source} has fewer than {SHORTEST_TOKEN} characters and could be guessed; \
                 `openssl rand -base64 32` makes a good one"
            );
            top.error("preview_access", why);
        }
    }
    token
}

fn host_pattern(text: &str) -> Result<HostPattern, String> {
    let wrong = || {
        format!(
            "expected a host with {{preview}} in it once, such as \
             \"{{preview}}.preview.app.example\", found {text:?}"
        )
    };
    let (before, after) = text.split_once("{preview}").ok_or_else(wrong)?;
    let example = format!("{before}x{after}");
    if after.contains("{preview}") || example.parse::<Host>().is_err() {
        return Err(wrong());
    }
    Ok(HostPattern { before: before.to_owned(), after: after.to_owned() })
}

fn promotion(top: &Table<'_>) -> Promotion {
    let t = top.table("promotion");
    let promotion = Promotion {
        min_requests: number(&t, "min_requests", 0..=u64::MAX >> 1, 1),
        max_error_rate: t.fraction("max_error_rate").unwrap_or(0.0),
        checks: t.texts("checks"),
    };
    t.finish();
    promotion
}

fn upstreams(top: &Table<'_>, name: &AppName, hosts: &[Host]) -> Option<Upstreams> {
    if !top.has("upstreams") {
        for key in ["health", "concurrency", "errors"] {
            if top.has(key) {
                top.error(key, "it counts only for an app with upstreams");
            }
        }
        if top.has("protocol") {
            let elsewhere = "it stands here only for an app with upstreams; for one that is deployed it is \
                             process.protocol in its vango-edge.toml";
            top.error("protocol", elsewhere);
        }
        for key in ["route", "defaults"].into_iter().filter(|key| top.has(key)) {
            top.error(
                key,
                "routes stand here only for an app with upstreams; for one that is \
                 deployed they stand in its vango-edge.toml",
            );
        }
        top.tables("route");
        top.opt_table("defaults");
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
    let concurrency = number(top, "concurrency", 1..=1_000_000, 1000);
    let protocol = top.word("protocol", &Protocol::NAMES, Protocol::Http1);
    let health = health(top.table("health"), hosts);
    let routes = contract::routes(top);
    let mut contract =
        Contract::external(name.clone(), protocol, routes, concurrency, addresses.len() as u32);
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
        request: (kind == 1).then_some((path, host)),
        interval: t.duration("interval", 100 * MS..=secs(600), secs(5)),
        timeout: t.duration("timeout", 10 * MS..=secs(60), secs(1)),
        unhealthy_after: number(&t, "unhealthy_after", 1..=100, 2),
        healthy_after: number(&t, "healthy_after", 1..=100, 1),
    };
    t.finish();
    (kind != 2).then_some(health)
}
