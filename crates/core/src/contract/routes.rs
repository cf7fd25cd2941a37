//! `[[route]]` and `[defaults]` of a contract, with every error at once.

use std::time::Duration;

use http::Method;

use crate::document::{DAY, MS, Table, secs};

use super::methods;
use super::route::{
    Action, Cold, Duplicate, Encoding, EventId, Fingerprint, GenericHmac, Handshake, Idempotency,
    KeySource, Live, PathPattern, Provider, Resume, Route, RouteClass, SessionSource, SocketEnd,
    Source, Webhook, WhenCold,
};

/// What a contract says of all of its routes that do not say otherwise.
#[derive(Default)]
struct Defaults {
    cold: Cold,
    timeout: Option<Duration>,
    safe_methods: Vec<Method>,
}

fn defaults(top: &Table<'_>) -> Defaults {
    let Some(t) = top.opt_table("defaults") else { return Defaults::default() };
    let defaults = Defaults {
        cold: t.word("cold", &COLDS, Cold::Refuse),
        timeout: timeout(&t),
        safe_methods: methods::safe_everywhere(&t),
    };
    t.finish();
    defaults
}

const COLDS: [(&str, Cold); 2] = [("refuse", Cold::Refuse), ("hold", Cold::Hold)];

/// Routes of one contract. A request looks through them in turn, and each start of the edge checks every pair.
const MOST_ROUTES: usize = 1000;

/// The `[[route]]` tables of `top` under its `[defaults]`, with `/*` as a page at the end if nothing catches
/// all.
pub fn routes(top: &Table<'_>) -> Vec<Route> {
    let defaults = defaults(top);
    let mut routes: Vec<Route> = Vec::new();
    let tables = top.tables("route");
    if tables.len() > MOST_ROUTES {
        let message = format!(
            "{} routes, and at most {MOST_ROUTES} are looked through for a request: let one pattern (`/a/*`) take \
             what goes by the same rules",
            tables.len()
        );
        top.error("route", message);
    }
    for t in tables.into_iter().take(MOST_ROUTES) {
        let Some(route) = route(&t, &defaults) else {
            t.finish();
            continue;
        };
        if let Some(covers) = covering(&routes, &route) {
            let message =
                format!("never reached: the route {covers} above takes it first; move it up");
            t.error("path", message);
        }
        if route.path.is_below(super::RESERVED) {
            let message =
                format!("never reached: below {} the edge answers itself", super::RESERVED);
            t.error("path", message);
        }
        t.finish();
        routes.push(route);
    }
    if let Ok(all) = PathPattern::parse("/*")
        && !routes.iter().any(|r| r.path == all && r.methods.is_none())
    {
        let Defaults { cold, timeout, safe_methods } = defaults;
        routes.push(Route { cold, timeout, safe_methods, ..Route::rest(all) });
    }
    routes
}

/// The last of those that leave nothing to `route`: one takes all of its paths and methods, or some
/// together do.
fn covering<'a>(routes: &'a [Route], route: &Route) -> Option<&'a Route> {
    let mut left = route.methods.clone();
    let before = routes.iter().filter(|r| r.path.covers(&route.path));
    for earlier in before {
        if earlier.methods.is_none() {
            return Some(earlier);
        }
        if let Some(left) = &mut left {
            left.retain(|m| !earlier.takes(m));
            if left.is_empty() {
                return Some(earlier);
            }
        }
    }
    None
}

fn route(t: &Table<'_>, defaults: &Defaults) -> Option<Route> {
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
    let methods = t.has("methods").then(|| named_methods(t));
    let timeout = timeout(t).or(defaults.timeout);
    let mut safe_methods = methods::list(t, "safe_methods");
    if let Some(class) = &class {
        check_methods(t, class, methods.as_deref(), &safe_methods);
    }
    safe_methods.extend(defaults.safe_methods.iter().cloned());
    let cold = class.as_ref().map(|class| cold(t, class, wakes, defaults.cold));
    Some(Route {
        path: path?,
        methods,
        class: class?,
        max_body,
        wakes,
        asleep_status,
        cold: cold?,
        safe_methods,
        timeout,
    })
}

/// As in nginx's `limit_except`, GET has HEAD with it: a client may ask for the head of what it may get.
fn named_methods(t: &Table<'_>) -> Vec<Method> {
    if t.texts("methods").is_empty() {
        t.error("methods", "expected at least one; a route without this key takes all methods");
    }
    let mut named = methods::list(t, "methods");
    if named.contains(&Method::GET) && !named.contains(&Method::HEAD) {
        named.push(Method::HEAD);
    }
    named
}

/// A webhook's deliveries are to take its route, and be believed for nothing but their signature.
fn check_methods(t: &Table<'_>, class: &RouteClass, named: Option<&[Method]>, safe: &[Method]) {
    let RouteClass::Webhook(webhook) = class else { return };
    let delivers = |m: &Method| {
        *m == Method::POST || (webhook.provider == Provider::GenericHmac && *m == Method::PUT)
    };
    if named.is_some_and(|named| !named.iter().any(delivers)) {
        t.error("methods", "a delivery is a POST, and would not take this route: add \"POST\"");
    }
    for method in safe.iter().filter(|m| delivers(m)) {
        let message =
            format!("deliveries come by {method}, and their signature would not be checked");
        t.error("safe_methods", message);
    }
}

fn timeout(t: &Table<'_>) -> Option<Duration> {
    t.has("timeout").then(|| t.duration("timeout", MS..=DAY, secs(60)))
}

fn cold(t: &Table<'_>, class: &RouteClass, wakes: bool, default: Cold) -> Cold {
    if !t.has("cold") {
        return default;
    }
    let cold = t.word("cold", &COLDS, default);
    match class {
        RouteClass::Webhook(_) => {
            t.error("cold", "a webhook has `when_cold`: it says what its provider is told");
        }
        RouteClass::Action(a) if a.idempotency != Idempotency::None && cold == Cold::Refuse => t.error(
            "cold",
            "an action with a key waits for its app, since its key keeps it from being carried out twice: \
             take this out",
        ),
        _ if cold == Cold::Hold && !wakes => {
            t.error("cold", "nothing waits for an app that it does not wake: take out wakes = false");
        }
        _ => {}
    }
    cold
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
    let key = t.text("key").map_or(KeySource::Usual, |text| {
        if idempotency == Idempotency::None {
            t.error("key", "it counts only with idempotency = \"app\" or \"edge\"");
        }
        key_source(&text).unwrap_or_else(|| {
            let expected = "expected \"field:NAME\", \"query:NAME\" or \"header:NAME\"";
            t.error("key", format!("{expected}, found {text:?}"));
            KeySource::Usual
        })
    });
    let fingerprint = t.word("fingerprint", &fingerprints, Fingerprint::Body);
    if fingerprint == Fingerprint::Head && matches!(key, KeySource::Field(_)) {
        t.error(
            "fingerprint",
            "\"head\" passes the body on as it comes, and the key is in it: take \"body\", or a key \
             in \"query:NAME\"",
        );
    }
    Action {
        idempotency,
        key,
        principal,
        fingerprint,
        retention: t.duration("retention", secs(60)..=90 * DAY, DAY),
    }
}

/// Bytes of a field's name at most.
const LONGEST_NAME: usize = 100;

fn key_source(text: &str) -> Option<KeySource> {
    let (place, name) = text.split_once(':')?;
    // A quote or a backslash is written in more than one way in a multipart form.
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
    if name.is_empty() || name.len() > LONGEST_NAME || !plain {
        return None;
    }
    match place {
        "field" => Some(KeySource::Field(name.into())),
        "query" => Some(KeySource::Query(name.into())),
        "header" => {
            let name = name.parse::<http::HeaderName>().ok()?;
            match name.as_str() {
                "idempotency-key" => Some(KeySource::Usual),
                // The edge takes it off.
                other if other.starts_with("vango-edge-") => None,
                other => Some(KeySource::Header(other.into())),
            }
        }
        _ => None,
    }
}

fn webhook(t: &Table<'_>) -> Option<Webhook> {
    let providers: Vec<_> = Provider::ALL.iter().map(|p| (p.name(), *p)).collect();
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

#[cfg(test)]
mod tests;
