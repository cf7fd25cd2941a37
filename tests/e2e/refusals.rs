//! What is answered instead of a page, and how the app comes back by itself.

use std::fs;

use serde_json::json;

use crate::support::{Artifact, Edge, Gate, eventually, eventually_some};

/// Long enough that what a test does "at once" is within it, short enough to be waited for.
const BACKOFF: &str = "[runner.backoff]\nfirst = \"3s\"\nmax = \"3s\"\n";
/// For tests that only want the next start.
const SHORT_BACKOFF: &str = "[runner.backoff]\nfirst = \"100ms\"\nmax = \"100ms\"\n";

fn until_served(edge: &Edge) {
    eventually("the app is served again", || edge.get("/dashboard").status == 200);
}

#[test]
fn a_missed_budget_is_said_and_the_wake_goes_on() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate).set("wake", "budget", "\"300ms\""));
    let late = edge.get("/dashboard");
    late.retryable("wake-timeout");
    let operation = late.operation();
    let trace = edge.trace(late.request_id());
    assert_eq!(
        (&trace["outcome"], &trace["operation"]),
        (&json!("wake-timeout"), &json!(operation))
    );
    let page = edge.ask("GET", "/dashboard", &[("Accept", "text/html,*/*;q=0.8")], "");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!((page.status, page.header("cache-control")), (503, Some("no-store")));
    assert!(page.text().contains("http-equiv=\"refresh\""), "a browser comes back by itself");
    assert!(page.text().contains("not forwarded") && page.text().contains(&operation));

    gate.open();
    edge.until_hot();
    assert_eq!(edge.get("/dashboard").status, 200);
    let ops = edge.ops();
    assert_eq!((ops.len(), &ops[0]["id"]), (1, &json!(operation)), "the same wake: {ops:?}");
    assert_eq!((edge.executions("/dashboard"), edge.executions("start")), (1, 1));
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_full_hold_queue_sheds_the_next_request_and_keeps_those_who_wait() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate).set("wake", "max_held", "1"));
    let mut first = edge.hold("GET", "/dashboard", &[], 1);
    eventually("its wake is under way", || edge.list(&["routes"])[0]["state"] != "asleep");
    let second = edge.get("/dashboard");
    let details = second.retryable("hold-queue-full");
    assert!(details["detail"].as_str().unwrap().contains("wake.max_held"));
    assert_eq!(second.operation(), edge.ops()[0]["id"].as_str().unwrap());
    assert_eq!(edge.held(), 1);
    gate.open();
    assert_eq!(first.answer().unwrap().status, 200);
    assert_eq!(edge.executions("/dashboard"), 1);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn the_nodes_own_bound_sheds_too() {
    let (edge, gate) = (Edge::start_with("[limits]\nmax_held = 1\n"), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut first = edge.hold("GET", "/dashboard", &[], 1);
    let details = edge.get("/dashboard").retryable("hold-queue-full");
    assert!(details["detail"].as_str().unwrap().contains("limits.max_held"));
    gate.open();
    assert_eq!(first.answer().unwrap().status, 200);
}

#[test]
fn a_start_that_fails_is_said_backs_off_and_heals_by_itself() {
    let edge = Edge::start_with(BACKOFF);
    let broken = edge.state().join("broken");
    fs::write(&broken, "").unwrap();
    edge.deploy(&Artifact::new().env("STUDYLAB_FAIL_FILE", broken.to_str().unwrap()));
    let failed = edge.get("/dashboard");
    let details = failed.retryable("wake-failed");
    let said = details["detail"].as_str().unwrap();
    assert!(said.contains("the app ended before it was ready"), "{said}");
    let operation = failed.operation();
    let ops = edge.ops();
    let why = ops[0]["failure"]["detail"].as_str().unwrap();
    assert!(why.contains("exit code 3"), "the operator is told more: {why}");
    assert!(why.contains("`vango-edge logs studylab/production --allocation al-"), "{why}");
    assert_eq!((ops.len(), &ops[0]["id"]), (1, &json!(operation)));
    assert_eq!((&ops[0]["state"], &ops[0]["failures"]), (&json!("failed"), &json!(1)));

    let at_once = edge.get("/dashboard");
    at_once.retryable("wake-failed");
    assert_eq!(at_once.operation(), operation);
    assert_eq!(edge.trace(at_once.request_id())["held_us"], 0, "in back-off nothing is held");
    assert_eq!(edge.ops().len(), 1, "and nothing is started");
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]));

    fs::remove_file(&broken).unwrap();
    until_served(&edge);
    assert_eq!(edge.ops().len(), 2);
    assert_eq!(edge.executions("start"), 2, "one that failed and one that did not");
    edge.assert_sleeps_without_a_trace();
    let log = edge.log();
    assert_eq!(log.matches("exit code 3").count(), 1, "a failed start is logged once:\n{log}");
}

#[test]
fn a_port_that_is_open_too_early_gets_no_request() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_READY_DELAY", "1s"));
    let page = edge.get("/dashboard");
    assert_eq!(page.status, 200, "no client sees the app's own 503: {}", page.text());
    let waited = edge.ops()[0]["phases"]["ready_us"].as_u64().unwrap();
    assert!(waited >= 900_000, "ready after {waited} µs, while the app says no for a second");
    assert_eq!(edge.executions("/dashboard"), 1);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn an_app_that_never_becomes_ready_is_ended_and_said() {
    let edge = Edge::start_with(BACKOFF);
    let hangs = Artifact::new().env("STUDYLAB_HANG_START", "1");
    edge.deploy(&hangs.set("wake", "start_timeout", "\"500ms\""));
    let failed = edge.get("/dashboard");
    failed.retryable("wake-failed");
    let ops = edge.ops();
    assert_eq!((&ops[0]["id"], &ops[0]["state"]), (&json!(failed.operation()), &json!("failed")));
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]), "nothing is left behind");
}

#[test]
fn an_app_that_ends_right_after_readiness_backs_off_and_the_edge_says_so() {
    let edge = Edge::start_with(BACKOFF);
    edge.deploy(&Artifact::new().env("STUDYLAB_EXIT_AFTER_READY", "1ms"));
    // The first may be served in the moment of readiness, or be sent to a process that dies.
    let failed = eventually_some("a start is counted as failed", || {
        let answer = edge.get("/dashboard");
        answer.text().contains("wake-failed").then_some(answer)
    });
    failed.retryable("wake-failed");
    eventually("nothing of it is left", || edge.ps().is_empty() && edge.processes().is_empty());
    let ops = edge.ops();
    assert!(ops.iter().any(|o| o["state"] == "failed"), "{ops:?}");
}

#[test]
fn a_damaged_artifact_is_never_started_and_deploying_again_repairs_it() {
    let edge = Edge::start_with(SHORT_BACKOFF);
    let artifact = Artifact::new();
    let deployed = edge.deploy(&artifact);
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.assert_sleeps_without_a_trace();

    let digest = deployed["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let blobs = fs::read_dir(edge.state().join("artifacts/blobs/sha256")).unwrap().flatten();
    let layer = blobs.max_by_key(|b| b.metadata().unwrap().len()).unwrap().path();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes).unwrap();
    assert_eq!(edge.get("/dashboard").status, 200, "an intact tree needs no blob");
    edge.assert_sleeps_without_a_trace();

    let tree = edge.state().join("trees").join(digest);
    fs::rename(&tree, tree.with_extension("lost")).unwrap();
    let failed = edge.get("/dashboard");
    let details = failed.retryable("artifact-unavailable");
    assert!(details["detail"].as_str().unwrap().contains("the artifact is damaged"), "{details}");
    assert!(!failed.text().contains("sha256"), "the client is told no more than that");
    let why = edge.ops()[0]["failure"]["detail"].as_str().unwrap().to_owned();
    assert!(why.contains("deploy the artifact again"), "the operator is told what to do: {why}");
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]));

    assert_eq!(edge.deploy(&artifact)["digest"], deployed["digest"]);
    until_served(&edge);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_secret_that_is_not_configured_fails_the_start_by_name() {
    let edge = Edge::start_with(BACKOFF);
    edge.deploy(&Artifact::new().set("process", "secrets", "[\"SESSION_KEY\"]"));
    let details = edge.get("/dashboard").retryable("wake-failed");
    assert!(details["detail"].as_str().unwrap().contains("a secret is not configured"));
    let why = edge.ops()[0]["failure"]["detail"].as_str().unwrap().to_owned();
    assert!(why.contains("SESSION_KEY"), "{why}");
    assert_eq!(edge.processes(), [] as [u32; 0]);
}
