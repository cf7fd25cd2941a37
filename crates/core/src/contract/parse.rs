//! From `vango-edge.toml` to a [`Contract`], with every error at once.

use std::path::Path;
use std::sync::Arc;

use crate::document::{self, Checked, DAY, MS, Table, secs};

use super::beside;
use super::route::RuntimePath;
use super::routes::routes;
use super::{
    Assets, Contract, LivePolicy, Process, Protocol, Ready, Release, Scale, SessionStore, Sleep,
    SleepMode, State, Wake,
};
use super::{expand, headers};

/// Reads a contract; `file` is named in errors.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(file: &Path, text: &str) -> Checked<Contract> {
    parse_or(file, text, &[])
}

/// The same with a command for one that has none.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_or(file: &Path, text: &str, command: &[String]) -> Checked<Contract> {
    match document::read(file, text, |top| contract(top, command)) {
        (Some(contract), errors) if errors.is_empty() => Ok(contract),
        (_, errors) => Err(errors),
    }
}

fn contract(top: &Table<'_>, command: &[String]) -> Option<Contract> {
    let app = top.table("app");
    let name = app.required("name").and_then(|n| app.parse("name", &n));
    app.finish();
    let is_static = !top.has("process") && top.has("assets") && command.is_empty();
    let process = if is_static { no_process(top) } else { process(top, command) };
    let release = top.opt_table("release").map(release);
    let wake = wake(top);
    let sleep = sleep(top);
    let scale = scale(top);
    let state = top.opt_table("state").map(state);
    let routes = routes(top);
    let cron = beside::cron(top);
    let assets = assets(top, is_static);
    let readers = headers::errors(top);
    expand::check_commands(top, &process, release.as_ref(), &cron);
    let app = name?;
    Some(Contract {
        app,
        process,
        release,
        wake,
        sleep,
        scale,
        state,
        routes,
        cron,
        assets,
        readers,
        is_static,
    })
}

/// What is there for a process has nothing to be about.
fn no_process(top: &Table<'_>) -> Process {
    for key in ["defaults", "release", "wake", "sleep", "scale", "state", "route", "cron"] {
        if top.has(key) {
            let why = "there is no [process] that this could be about: add one, or take this out; the static \
                       files are all that is answered";
            top.error(key, why);
        }
    }
    Process::none()
}

fn process(top: &Table<'_>, command: &[String]) -> Process {
    let t = top.table("process");
    let own = t.texts("command");
    let command = if t.has("command") { own } else { command.to_vec() };
    if command.first().is_none_or(String::is_empty) {
        let expected = "expected a program and its arguments: command = [\"./app\"]; or a Procfile \
                        beside this file with a line `web: …`";
        let workers =
            "; a worker runs beside a process that takes requests, which a site of files has not";
        let workers = if t.has("worker") { workers } else { "" };
        t.error("command", format!("{expected}{workers}"));
    }
    let path: Vec<_> = t.texts("path").iter().filter_map(|text| within(&t, "path", text)).collect();
    for dir in path.iter().filter(|dir| dir.contains(':')) {
        t.error("path", format!("{dir:?}: a colon parts the directories of PATH; rename it"));
    }
    let secrets = t.texts("secrets");
    let env = expand::env(&t);
    if let Some(table) = t.opt_table("env") {
        env.iter().for_each(|(name, value)| expand::check_value(&table, name, value, &secrets));
    }
    let scratch = t.word("writable", &[("none", false), ("scratch", true)], false);
    let protocol = t.word("protocol", &Protocol::NAMES, Protocol::Http1);
    let ready = ready(&t.table("ready"), t.has("ready"), protocol);
    let stop_timeout = t.duration("stop_timeout", MS..=secs(600), secs(10));
    let workers = beside::workers(&t);
    let drain_timeout = t.duration("drain_timeout", MS..=DAY, secs(30));
    t.finish();
    Process {
        command,
        path,
        protocol,
        env,
        secrets,
        scratch,
        // What is wrong with it was said.
        ready: ready.unwrap_or(Ready::Tcp),
        stop_timeout,
        drain_timeout,
        workers,
    }
}

fn release(t: Table<'_>) -> Release {
    let command = t.texts("command");
    if command.first().is_none_or(String::is_empty) {
        t.error(
            "command",
            "expected a program and its arguments: command = [\"./app\", \"migrate\"]",
        );
    }
    let timeout = t.duration("timeout", secs(1)..=secs(3600), secs(600));
    t.finish();
    Release { command, timeout }
}

fn ready(t: &Table<'_>, there: bool, protocol: Protocol) -> Option<Ready> {
    let path = t.text("path");
    let tcp = t.boolean("tcp");
    let notify = t.boolean("notify");
    let named = [t.has("path"), t.has("tcp"), t.has("notify")];
    // `finish` takes the table; a copy of its keys is all that is needed after.
    let expected = "expected one of { path = \"/readyz\" }, { tcp = true } or { notify = true }";
    match (named, path, tcp, notify) {
        ([true, false, false], Some(path), ..) if path.starts_with('/') => {
            Some(Ready::Http { path, protocol })
        }
        ([true, false, false], Some(path), ..) => {
            t.error("path", format!("expected a path that begins with /, found {path:?}"));
            None
        }
        ([false, true, false], _, Some(true), _) => Some(Ready::Tcp),
        ([false, false, true], _, _, Some(true)) => Some(Ready::Notify),
        _ if !there => Some(Ready::Tcp),
        _ => {
            t.error_here(expected);
            None
        }
    }
}

fn wake(top: &Table<'_>) -> Wake {
    let t = top.table("wake");
    let wake = Wake {
        budget: t.duration("budget", MS..=secs(600), secs(10)),
        max_held: t.integer("max_held", 1..=1_000_000).unwrap_or(10_000) as usize,
        start_timeout: t.duration("start_timeout", MS..=secs(3600), secs(60)),
        ignore_agents: ignore_agents(&t),
    };
    t.finish();
    wake
}

fn sleep(top: &Table<'_>) -> Sleep {
    let t = top.table("sleep");
    let modes = [("stop", SleepMode::Stop), ("freeze", SleepMode::Freeze)];
    let policies = [("pins", LivePolicy::Pins), ("traffic", LivePolicy::Traffic)];
    let sleep = Sleep {
        after: t.duration_or_never("after", 100 * MS..=30 * DAY, secs(300)),
        mode: t.word("mode", &modes, SleepMode::Stop),
        freeze_for: t.duration("freeze_for", secs(1)..=30 * DAY, secs(3600)),
        live: t.word("live", &policies, LivePolicy::Pins),
    };
    t.finish();
    sleep
}

fn scale(top: &Table<'_>) -> Scale {
    let t = top.table("scale");
    let scale = Scale {
        min: t.integer("min", 0..=1000).unwrap_or(0) as u32,
        max: t.integer("max", 1..=1000).unwrap_or(1) as u32,
        concurrency: t.integer("concurrency", 1..=1_000_000).unwrap_or(200) as u32,
    };
    if scale.min > scale.max {
        t.error("min", format!("expected at most max, which is {}", scale.max));
    }
    t.finish();
    scale
}

/// A relative path that stays in the artifact.
fn inside(t: &Table<'_>, key: &'static str) -> Option<String> {
    within(t, key, &t.text(key)?)
}

fn within(t: &Table<'_>, key: &'static str, path: &str) -> Option<String> {
    let leaves = path.is_empty()
        || path.starts_with('/')
        || path.split('/').any(|s| s == ".." || s == "." || s.contains('\0'));
    if leaves {
        t.error(key, format!("expected a relative path inside the artifact, found {path:?}"));
        return None;
    }
    Some(path.trim_end_matches('/').to_owned())
}

fn state(t: Table<'_>) -> State {
    let schema = t.parsed("schema");
    let schema_file = inside(&t, "schema_file");
    if t.has("schema") && t.has("schema_file") {
        t.error("schema_file", "expected schema or schema_file, found both");
    }
    let accepts = t.all_parsed("accepts");
    let store = t.opt_table("store").and_then(session_store);
    t.finish();
    State { schema, schema_file, accepts, store }
}

fn session_store(t: Table<'_>) -> Option<SessionStore> {
    let kind = t.required("kind");
    let store = match kind.as_deref() {
        Some("redis") => {
            let (secret, key) = (t.required("secret"), t.required("key"));
            if key.as_ref().is_some_and(|key| !key.contains("{id}")) {
                t.error("key", "expected {id} where the session's id belongs");
            }
            secret.zip(key).map(|(secret, key)| SessionStore::Redis { secret, key })
        }
        Some("http") => {
            let path = t.required("path").map(|text| RuntimePath::parse(&text));
            path.and_then(|p| p.map_err(|e| t.error("path", e)).ok())
                .map(|path| SessionStore::Http { path })
        }
        Some(other) => {
            t.error("kind", format!("expected \"redis\" or \"http\", found {other:?}"));
            return None;
        }
        None => return None,
    };
    t.finish();
    store
}

/// Directories of static files of one contract, at most; each is looked into for each request.
const MOST_FOLDERS: usize = 16;

fn assets(top: &Table<'_>, is_static: bool) -> Vec<Arc<Assets>> {
    let tables = top.one_or_more("assets");
    if tables.len() > MOST_FOLDERS {
        let found = tables.len();
        top.error("assets", format!("expected at most {MOST_FOLDERS} tables, found {found}"));
    }
    let mut all: Vec<Arc<Assets>> = Vec::new();
    for t in tables {
        let known: Vec<_> = all.iter().map(|a| a.prefix.clone()).collect();
        all.extend(folder(t, &known, is_static).map(Arc::new));
    }
    all
}

fn folder(t: Table<'_>, others: &[String], is_static: bool) -> Option<Assets> {
    let dir = match t.text("dir").as_deref() {
        Some(".") => Some(".".to_owned()),
        Some(_) => inside(&t, "dir"),
        None if t.has("dir") => None,
        None => t.required("dir"),
    };
    let usual = if is_static { "/" } else { "/assets/" };
    let prefix = t.text("prefix").unwrap_or_else(|| usual.into());
    if !(prefix.starts_with('/') && prefix.ends_with('/')) {
        t.error("prefix", format!("expected a path that begins and ends with /, found {prefix:?}"));
    }
    if others.contains(&prefix) {
        t.error("prefix", format!("another directory has the prefix {prefix} already"));
    }
    let manifest = inside(&t, "manifest");
    let known = ["br", "gz", "svgz", "zst"];
    let encoded_suffixes = match t.has("encoded_suffixes") {
        true => t.texts("encoded_suffixes"),
        false => known.map(str::to_owned).into(),
    };
    for suffix in encoded_suffixes.iter().filter(|s| !known.contains(&s.as_str())) {
        t.error("encoded_suffixes", format!("expected some of {known:?}, found {suffix:?}"));
    }
    let index = match t.text("index") {
        Some(name) if name.is_empty() || name.contains('/') || name.starts_with('.') => {
            t.error(
                "index",
                format!("expected a file's name such as \"index.html\", found {name:?}"),
            );
            None
        }
        None if is_static => Some("index.html".to_owned()),
        given => given,
    };
    let (fallback, not_found) = (inside(&t, "fallback"), inside(&t, "not_found"));
    let immutable = headers::patterns(&t, "immutable");
    let headers = headers::asset_headers(&t).into();
    t.finish();
    Some(Assets {
        dir: dir?,
        prefix,
        manifest,
        immutable,
        index,
        fallback,
        not_found,
        encoded_suffixes,
        headers,
    })
}

/// Shorter parts would match by accident.
const AGENT: std::ops::RangeInclusive<usize> = 3..=200;
/// Each is looked for in each request.
const AGENTS: usize = 64;

fn ignore_agents(t: &Table<'_>) -> Vec<String> {
    let agents = t.texts("ignore_agents");
    if agents.len() > AGENTS {
        t.error("ignore_agents", format!("expected at most {AGENTS}, found {}", agents.len()));
    }
    for agent in agents.iter().filter(|a| !AGENT.contains(&a.len()) || !a.is_ascii()) {
        let expected = "expected a part of a User-Agent, 3 to 200 ASCII characters";
        t.error("ignore_agents", format!("{expected}, found {agent:?}"));
    }
    agents.iter().map(|a| a.to_ascii_lowercase()).collect()
}
