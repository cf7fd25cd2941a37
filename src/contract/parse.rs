//! From `vango-edge.toml` to a [`Contract`], with every error at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::document::{Checked, Errors, Table};

use super::headers;
use super::route::{
    Action, Duplicate, Encoding, EventId, Fingerprint, GenericHmac, Handshake, Idempotency, Live,
    PathPattern, Provider, Resume, Route, RouteClass, RuntimePath, SessionSource, SocketEnd,
    Source, Webhook, WhenCold,
};
use super::{
    Assets, Contract, LivePolicy, Process, Ready, Scale, SessionStore, Sleep, SleepMode, State,
    Wake,
};

const MS: Duration = Duration::from_millis(1);
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
const DAY: u64 = 86_400;

/// Reads a contract; `file` is named in errors.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(file: &Path, text: &str) -> Checked<Contract> {
    let errors = Errors::new(file, text);
    let document = errors.parse();
    let top = Table::top(&errors, &document);
    let contract = contract(&top);
    top.finish();
    let found = errors.take();
    match contract {
        Some(contract) if found.is_empty() => Ok(contract),
        _ => Err(found),
    }
}

fn contract(top: &Table<'_>) -> Option<Contract> {
    let app = top.table("app");
    let name = app.required("name").and_then(|n| app.parse("name", &n));
    app.finish();
    let process = process(top);
    let wake = wake(top);
    let sleep = sleep(top);
    let scale = scale(top);
    let state = top.opt_table("state").map(state);
    let routes = routes(top);
    let assets = top.opt_table("assets").and_then(assets);
    let readers = headers::errors(top);
    let process = process?;
    Some(Contract { app: name?, process, wake, sleep, scale, state, routes, assets, readers })
}

fn process(top: &Table<'_>) -> Option<Process> {
    let t = top.table("process");
    let command = t.texts("command");
    if command.first().is_none_or(String::is_empty) {
        t.error("command", "expected a program and its arguments: command = [\"./app\"]");
    }
    let mut env = BTreeMap::new();
    if let Some(table) = t.opt_table("env") {
        for (name, value) in table.entries("a string; secrets come from the operator by name") {
            let reserved = name == "PORT"
                || name == "HOST"
                || name == "NOTIFY_SOCKET"
                || name.starts_with("VANGO_EDGE_");
            if reserved {
                table.error(&name, "the edge sets this one; take it out");
            } else if name.is_empty() || name.contains(['=', '\0']) {
                table.error(&name, "not a name of an environment variable");
            }
            env.insert(name, value);
        }
    }
    let secrets = t.texts("secrets");
    let ready = ready(&t.table("ready"), t.has("ready"));
    let stop_timeout = t.duration("stop_timeout", MS..=secs(600), secs(10));
    let drain_timeout = t.duration("drain_timeout", MS..=secs(DAY), secs(30));
    t.finish();
    Some(Process { command, env, secrets, ready: ready?, stop_timeout, drain_timeout })
}

fn ready(t: &Table<'_>, there: bool) -> Option<Ready> {
    let path = t.text("path");
    let tcp = t.boolean("tcp");
    let notify = t.boolean("notify");
    let named = [t.has("path"), t.has("tcp"), t.has("notify")];
    // `finish` takes the table; a copy of its keys is all that is needed after.
    let expected = "expected one of { path = \"/readyz\" }, { tcp = true } or { notify = true }";
    match (named, path, tcp, notify) {
        ([true, false, false], Some(path), ..) if path.starts_with('/') => {
            Some(Ready::Http { path })
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
        after: t.duration_or_never("after", 100 * MS..=secs(30 * DAY), secs(300)),
        mode: t.word("mode", &modes, SleepMode::Stop),
        freeze_for: t.duration("freeze_for", secs(1)..=secs(30 * DAY), secs(3600)),
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
    let path = t.text(key)?;
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

fn assets(t: Table<'_>) -> Option<Assets> {
    let dir = if t.has("dir") { inside(&t, "dir") } else { t.required("dir") };
    let prefix = t.text("prefix").unwrap_or_else(|| "/assets/".into());
    if !(prefix.starts_with('/') && prefix.ends_with('/')) {
        t.error("prefix", format!("expected a path that begins and ends with /, found {prefix:?}"));
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
    let headers = headers::asset_headers(&t).into();
    t.finish();
    Some(Assets { dir: dir?, prefix, manifest, encoded_suffixes, headers })
}

/// The `[[route]]` tables of `top`, with `/*` as a page at the end if nothing catches all.
pub fn routes(top: &Table<'_>) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for t in top.tables("route") {
        let Some(route) = route(&t) else {
            t.finish();
            continue;
        };
        if let Some(covers) = routes.iter().find(|r| r.path.covers(&route.path)) {
            let message = format!(
                "never reached: the route {} above takes it first; move it up",
                covers.path
            );
            t.error("path", message);
        }
        t.finish();
        routes.push(route);
    }
    if let Ok(all) = PathPattern::parse("/*")
        && !routes.iter().any(|r| r.path == all)
    {
        routes.push(Route {
            path: all,
            class: RouteClass::Page,
            max_body: None,
            wakes: true,
            asleep_status: None,
        });
    }
    routes
}

fn route(t: &Table<'_>) -> Option<Route> {
    let path = t
        .required("path")
        .and_then(|text| PathPattern::parse(&text).map_err(|e| t.error("path", e)).ok());
    let class = t.text("class").unwrap_or_else(|| "page".into());
    let class = match class.as_str() {
        "page" => Some(RouteClass::Page),
        "action" => Some(RouteClass::Action(action(t))),
        "webhook" => webhook(t).map(RouteClass::Webhook),
        "live" => Some(RouteClass::Live(live(t))),
        other => {
            t.error(
                "class",
                format!("expected \"page\", \"action\", \"webhook\" or \"live\", found {other:?}"),
            );
            None
        }
    };
    let max_body = t.size("max_body", 0..=1 << 40);
    let wakes = t.boolean("wakes").unwrap_or(true);
    let asleep_status = asleep_status(t, wakes);
    Some(Route { path: path?, class: class?, max_body, wakes, asleep_status })
}

fn asleep_status(t: &Table<'_>, wakes: bool) -> Option<u16> {
    let status = t.integer("asleep_status", 200..=599)?;
    if wakes {
        t.error("asleep_status", "it counts only with wakes = false");
    }
    if matches!(status, 204 | 205 | 300..=399) {
        t.error("asleep_status", "expected a status with a body, from 200 to 299 or 400 to 599");
    }
    u16::try_from(status).ok()
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

fn action(t: &Table<'_>) -> Action {
    let kinds =
        [("none", Idempotency::None), ("app", Idempotency::App), ("edge", Idempotency::Edge)];
    let fingerprints = [("body", Fingerprint::Body), ("head", Fingerprint::Head)];
    let idempotency = t.word("idempotency", &kinds, Idempotency::None);
    let principal = t.text("principal").and_then(|text| {
        let source = match text.split_once(':') {
            Some(("cookie", name)) if !name.is_empty() => Some(Source::Cookie(name.into())),
            Some(("header", name)) if !name.is_empty() => Some(Source::Header(name.into())),
            _ => None,
        };
        if source.is_none() {
            let message = format!("expected \"cookie:NAME\" or \"header:NAME\", found {text:?}");
            t.error("principal", message);
        }
        source
    });
    if idempotency == Idempotency::Edge && !t.has("principal") {
        t.error(
            "idempotency",
            "\"edge\" needs a principal, so that two people's equal keys stay apart: add \
             principal = \"cookie:NAME\" or \"header:NAME\"",
        );
    }
    Action {
        idempotency,
        principal,
        fingerprint: t.word("fingerprint", &fingerprints, Fingerprint::Body),
        retention: t.duration("retention", secs(60)..=secs(90 * DAY), secs(DAY)),
    }
}

fn webhook(t: &Table<'_>) -> Option<Webhook> {
    let providers = [
        ("stripe", Provider::Stripe),
        ("standard-webhooks", Provider::StandardWebhooks),
        ("github", Provider::Github),
        ("shopify", Provider::Shopify),
        ("slack", Provider::Slack),
        ("generic-hmac", Provider::GenericHmac),
    ];
    let colds = [("hold", WhenCold::Hold), ("defer", WhenCold::Defer), ("block", WhenCold::Block)];
    let duplicates = [("answer", Duplicate::Answer), ("forward", Duplicate::Forward)];
    if !t.has("provider") {
        t.required("provider");
    }
    let provider = t.word("provider", &providers, Provider::Stripe);
    let secret = t.required("secret");
    let when_cold = t.word("when_cold", &colds, WhenCold::Hold);
    let duplicate = t.word("duplicate", &duplicates, Duplicate::Answer);
    let generic = match (provider, t.opt_table("hmac")) {
        (Provider::GenericHmac, Some(hmac)) => generic_hmac(hmac),
        (Provider::GenericHmac, None) => {
            t.error("provider", "\"generic-hmac\" needs hmac = { header = \"X-Signature\", … }");
            None
        }
        (_, Some(hmac)) => {
            hmac.error_here("only a provider = \"generic-hmac\" has this");
            None
        }
        (_, None) => None,
    };
    Some(Webhook { provider, secret: secret?, when_cold, duplicate, generic })
}

fn generic_hmac(t: Table<'_>) -> Option<GenericHmac> {
    let name = |key: &'static str, text: String| match text.parse::<http::HeaderName>() {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => {
            t.error(key, format!("expected a header's name, found {text:?}"));
            None
        }
    };
    let header = t.required("header").and_then(|text| name("header", text));
    let timestamp = t.text("timestamp").and_then(|text| name("timestamp", text));
    let encodings = [("hex", Encoding::Hex), ("base64", Encoding::Base64)];
    let signed = t.text("signed").unwrap_or_else(|| "{body}".into());
    if signed.matches("{body}").count() != 1 {
        t.error("signed", "expected {body} in it, once");
    }
    if signed.contains("{timestamp}") != t.has("timestamp") {
        t.error("signed", "expected {timestamp} in it exactly if timestamp names a header");
    }
    let event = match t.text("event") {
        None => EventId::Body,
        Some(text) => match text.split_once(':') {
            Some(("header", header)) => EventId::Header(name("event", header.to_owned())?),
            Some(("json", pointer)) if pointer.starts_with('/') => EventId::Json(pointer.into()),
            _ => {
                let expected = "expected \"header:NAME\" or \"json:/pointer\"";
                t.error("event", format!("{expected}, found {text:?}"));
                EventId::Body
            }
        },
    };
    let handshake = t.text("handshake").and_then(|text| {
        let rest = text.strip_prefix("json:").filter(|rest| rest.starts_with('/'));
        match rest.and_then(|rest| rest.split_once('=')) {
            Some((pointer, value)) if !value.is_empty() => {
                Some(Handshake { pointer: pointer.into(), value: value.into() })
            }
            _ => {
                t.error("handshake", format!("expected \"json:/pointer=value\", found {text:?}"));
                None
            }
        }
    });
    let rules = GenericHmac {
        header: header.unwrap_or_default(),
        prefix: t.text("prefix").unwrap_or_default(),
        encoding: t.word("encoding", &encodings, Encoding::Hex),
        signed,
        timestamp,
        tolerance: t.duration("tolerance", secs(1)..=secs(3600), secs(300)),
        event,
        handshake,
        deadline: t.duration("deadline", secs(1)..=secs(120), secs(10)),
    };
    t.finish();
    Some(rules)
}

fn live(t: &Table<'_>) -> Live {
    let session: Vec<_> = t
        .texts("session")
        .iter()
        .filter_map(|text| match text.split_once(':') {
            Some(("cookie", name)) if !name.is_empty() => Some(SessionSource::Cookie(name.into())),
            Some(("query", name)) if !name.is_empty() => Some(SessionSource::Query(name.into())),
            None if text == "vango-hello" => Some(SessionSource::VangoHello),
            _ => {
                let expected = "expected \"cookie:NAME\", \"query:NAME\" or \"vango-hello\"";
                t.error("session", format!("{expected}, found {text:?}"));
                None
            }
        })
        .collect();
    let resumes = [
        ("same-allocation", Resume::SameAllocation),
        ("cross-allocation", Resume::CrossAllocation),
    ];
    // Vango's client comes back after a loss only: a close frame would end its page.
    let end = match session.contains(&SessionSource::VangoHello) {
        true => SocketEnd::Cut,
        false => SocketEnd::Close,
    };
    let ends = [("close", SocketEnd::Close), ("cut", SocketEnd::Cut)];
    Live {
        session,
        resume: t.word("resume", &resumes, Resume::SameAllocation),
        end: t.word("socket_end", &ends, end),
    }
}
