//! A finished request as spans: one of the kind SERVER for the request, and below it one for each
//! step, from the step before to its own moment. Pure: the same record, the same spans.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions for HTTP servers (1.37); what they
//! have no name for is below `vango_edge.`. As in the console: no query, no header, no body.
//!
//! A request that brought a valid `traceparent` is in its client's trace; any other begins one whose
//! id is the request's. The SERVER span's id is the second half of the request's id, which is what the
//! app is told as its parent where the edge begins the trace.

use crate::lifecycle::trace::{Outcome, StepKind};
use crate::telemetry::{TraceRecord, micros};

use super::message::{ERROR, INTERNAL, KeyValue, SERVER, Span, Status, int, text};

/// The conventions that the attributes follow.
pub const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Characters of a text that a client chose, at most.
const LONGEST: usize = 1024;

/// Methods that have a name in the conventions; any other is `_OTHER`.
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Adds the spans of `record` to `out`.
pub fn add(record: &TraceRecord, out: &mut Vec<Span>) {
    let end = record.at.0.saturating_mul(1_000_000);
    let start = end.saturating_sub(nanos(record.total));
    let own = record.trace.request.span();
    let (trace, parent) = match &record.trace.parent {
        Some(parent) => (parent.trace.to_be_bytes(), parent.span.to_be_bytes().to_vec()),
        None => (record.trace.request.as_u128().to_be_bytes(), Vec::new()),
    };
    let trace = trace.to_vec();
    out.push(Span {
        trace_id: trace.clone(),
        span_id: own.to_be_bytes().to_vec(),
        parent_span_id: parent,
        name: name(record),
        kind: SERVER,
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes: attributes(record),
        status: status(record),
        ..Span::default()
    });
    let mut from = start;
    for (n, step) in record.trace.steps.iter().enumerate() {
        let said = step.text();
        let to = start.saturating_add(nanos(step.at)).clamp(from, end.max(from));
        let mut about = vec![
            text("vango_edge.step.actor", said.actor),
            text("vango_edge.step.truth", said.truth),
            text("vango_edge.step.value", cut(&said.value)),
        ];
        if !said.detail.is_empty() {
            about.push(text("vango_edge.step.detail", cut(&said.detail)));
        }
        out.push(Span {
            trace_id: trace.clone(),
            span_id: below(own, n as u64).to_be_bytes().to_vec(),
            parent_span_id: own.to_be_bytes().to_vec(),
            name: said.action,
            kind: INTERNAL,
            start_time_unix_nano: from,
            end_time_unix_nano: to,
            attributes: about,
            ..Span::default()
        });
        from = to;
    }
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// The id of step `n` below the span `own`: never 0, and another for each (SplitMix64's finalizer is
/// a bijection).
fn below(own: u64, n: u64) -> u64 {
    let mut z = own.wrapping_add((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

/// `{method} {http.route}`, where the route was asked for; the method alone otherwise.
fn name(record: &TraceRecord) -> String {
    let method = known_method(record).unwrap_or("HTTP");
    route(record).map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
}

fn known_method(record: &TraceRecord) -> Option<&'static str> {
    METHODS.into_iter().find(|m| *m == record.method.as_str())
}

/// The route's path, as the contract has it.
fn route(record: &TraceRecord) -> Option<String> {
    record.trace.steps.iter().find_map(|s| match &s.kind {
        StepKind::Classify(_, view, route) => {
            view.contract.routes.get(*route).map(|r| r.path.to_string())
        }
        _ => None,
    })
}

fn attributes(record: &TraceRecord) -> Vec<KeyValue> {
    let mut out = Vec::with_capacity(18);
    match known_method(record) {
        Some(method) => out.push(text("http.request.method", method)),
        None => {
            out.push(text("http.request.method", "_OTHER"));
            let original = cut(record.method.as_str());
            out.push(text("http.request.method_original", original));
        }
    }
    out.extend(record.trace.client.map(|c| text("client.address", c.to_string())));
    let known = [("server.address", &record.host), ("url.path", &record.path)];
    out.extend(known.iter().filter(|(_, v)| !v.is_empty()).map(|(key, v)| text(key, cut(v))));
    out.extend(route(record).map(|route| text("http.route", route)));
    out.extend(record.status.map(|status| int("http.response.status_code", status.into())));
    out.extend(error(record).map(|kind| text("error.type", kind)));
    out.push(text("vango_edge.request", record.trace.request.to_string()));
    out.push(text("vango_edge.class", record.class));
    out.push(text("vango_edge.outcome", record.trace.outcome.name()));
    out.push(text("vango_edge.risk", record.trace.risk().name()));
    out.push(text("vango_edge.decision", record.trace.decision()));
    let environment = record.environment.as_ref();
    out.extend(environment.map(|e| text("vango_edge.environment", e.to_string())));
    if let Some(owner) = record.owner() {
        out.push(int("vango_edge.epoch", owner.epoch.0));
        out.push(text("vango_edge.artifact", owner.digest.to_string()));
    }
    out.extend(record.allocation().map(|id| text("vango_edge.allocation", id.to_string())));
    let operation = record.operation.as_ref();
    out.extend(operation.map(|id| text("vango_edge.operation", id.to_string())));
    if !record.held.is_zero() {
        out.push(int("vango_edge.held_us", micros(record.held)));
    }
    out
}

/// What went wrong, as `error.type` has it: the problem's name, or the status of an app that failed.
/// A client's own mistake (4xx) is no error of a server span.
fn error(record: &TraceRecord) -> Option<String> {
    match (record.trace.outcome, record.status) {
        (outcome @ (Outcome::ClientLeft | Outcome::CutOff), _) => Some(outcome.name().into()),
        (Outcome::Refused(problem), Some(500..)) => Some(problem.name().into()),
        (_, Some(status @ 500..)) => Some(status.to_string()),
        _ => None,
    }
}

fn status(record: &TraceRecord) -> Option<Status> {
    let failed = record.status.is_some_and(|s| s >= 500);
    failed.then(|| Status { message: error(record).unwrap_or_default(), code: ERROR })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;
    use crate::clock::{Mono, SeededEntropy, Wall};
    use crate::id::RequestId;
    use crate::lifecycle::fields::TraceParent;
    use crate::lifecycle::reply::Problem;
    use crate::lifecycle::trace::Trace;
    use crate::telemetry::otlp::message::Value;

    fn record(method: &str, status: u16, outcome: Outcome) -> TraceRecord {
        let id = RequestId::random(&SeededEntropy::new(7));
        let mut trace = Trace::new(id, Mono(0));
        trace.push(Mono(2_000_000), StepKind::NoOwner("a.example".into()));
        trace.push(Mono(3_000_000), StepKind::NoAllocation);
        trace.outcome = outcome;
        TraceRecord {
            method: method.parse().unwrap(),
            host: "a.example".into(),
            path: format!("/{}", "x".repeat(2000)),
            class: "page",
            environment: Some("a".parse().unwrap()),
            status: Some(status),
            operation: None,
            held: Duration::ZERO,
            total: Duration::from_millis(5),
            at: Wall(1000),
            trace,
        }
    }

    fn spans(record: &TraceRecord) -> Vec<Span> {
        let mut out = Vec::new();
        add(record, &mut out);
        out
    }

    fn texts(span: &Span) -> BTreeMap<&str, String> {
        let value = |a: &KeyValue| match a.value.as_ref().and_then(|v| v.value.as_ref()).unwrap() {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(n) => n.to_string(),
            other => panic!("{other:?}"),
        };
        span.attributes.iter().map(|a| (a.key.as_str(), value(a))).collect()
    }

    #[test]
    fn a_request_is_one_server_span_and_each_step_one_below_it() {
        let record = record("GET", 200, Outcome::Hot);
        let all = spans(&record);
        let [server, first, second] = &all[..] else { panic!("{all:?}") };
        assert_eq!(server.trace_id, record.trace.request.as_u128().to_be_bytes());
        assert_eq!((server.name.as_str(), server.kind), ("GET", SERVER));
        assert_eq!(server.parent_span_id, [0; 0]);
        let ms = |n: u64| n * 1_000_000;
        let times = |s: &Span| (s.start_time_unix_nano, s.end_time_unix_nano);
        assert_eq!(times(server), (ms(995), ms(1000)));
        assert_eq!((times(first), times(second)), ((ms(995), ms(997)), (ms(997), ms(998))));
        for step in [first, second] {
            assert_eq!((&step.trace_id, step.kind), (&server.trace_id, INTERNAL));
            assert_eq!(step.parent_span_id, server.span_id);
        }
        assert_eq!(first.name, "Load route owner and current epoch.");
        assert_eq!(texts(first)["vango_edge.step.truth"], "RouteOwner");
        let ids: BTreeSet<_> = all.iter().map(|s| s.span_id.clone()).collect();
        assert!(ids.len() == 3 && ids.iter().all(|id| id.len() == 8 && *id != [0; 8]));
        let about = texts(server);
        assert_eq!(about["http.request.method"], "GET");
        assert_eq!(about["http.response.status_code"], "200");
        assert_eq!((&*about["server.address"], about["url.path"].len()), ("a.example", LONGEST));
        assert_eq!(about["vango_edge.environment"], "a/production");
        assert!(server.status.is_none() && !about.contains_key("error.type"));
    }

    #[test]
    fn a_client_s_trace_is_gone_on_with() {
        let mut record = record("GET", 200, Outcome::Hot);
        record.trace.parent =
            TraceParent::parse(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let all = spans(&record);
        let id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
        assert!(all.iter().all(|s| s.trace_id == id));
        assert_eq!(all[0].parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    }

    #[test]
    fn failures_are_named_by_their_problem_and_a_strange_method_by_the_conventions() {
        let refused = &spans(&record("GET", 503, Outcome::Refused(Problem::WakeFailed)))[0];
        assert_eq!(texts(refused)["error.type"], "wake-failed");
        assert_eq!(refused.status.as_ref().map(|s| s.code), Some(ERROR));
        let failed = &spans(&record("GET", 500, Outcome::Hot))[0];
        assert_eq!(texts(failed)["error.type"], "500");
        let wrong = &spans(&record("GET", 404, Outcome::Refused(Problem::NoRoute)))[0];
        assert!(wrong.status.is_none() && !texts(wrong).contains_key("error.type"));
        let strange = &spans(&record("BREW", 405, Outcome::Hot))[0];
        assert_eq!(strange.name, "HTTP");
        assert_eq!(texts(strange)["http.request.method"], "_OTHER");
        assert_eq!(texts(strange)["http.request.method_original"], "BREW");
    }
}
