//! Held requests: who leaves is not forwarded, what is unsafe is not held without a contract, and
//! bodies stay on the wire.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Artifact, Connection, Edge, Gate, eventually};

fn save(key: &str, text: &str) -> Vec<(String, String)> {
    vec![
        ("Content-Type".into(), "application/x-www-form-urlencoded".into()),
        ("Content-Length".into(), text.len().to_string()),
        ("Idempotency-Key".into(), key.into()),
    ]
}

fn hold_save(edge: &Edge, key: &str, held: u64) -> Connection {
    let headers = save(key, "text=tea");
    let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    edge.hold("POST", "/actions/save", &headers, held)
}

#[test]
fn a_held_client_that_leaves_is_never_forwarded_and_the_wake_goes_on() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let page = edge.hold("GET", "/dashboard", &[], 1);
    let reset = edge.hold("GET", "/dashboard", &[], 2);
    let mut unread = hold_save(&edge, "unread", 3);
    unread.send("text=tea");
    let half_sent = hold_save(&edge, "half-sent", 4);
    let reset_unread = hold_save(&edge, "reset", 5);
    let mut stays = edge.hold("GET", "/debug/echo", &[], 6);

    drop(page);
    reset.reset();
    drop(unread);
    drop(half_sent);
    reset_unread.reset();
    edge.until_held(1);
    eventually("the wake goes on without them", || {
        edge.ops().first().is_some_and(|r| r["state"] == "readiness_wait")
    });
    let ops = edge.ops();
    assert_eq!(ops.len(), 1);

    gate.open();
    assert_eq!(stays.answer().unwrap().status, 200);
    assert_eq!(edge.executions("/dashboard"), 0);
    assert_eq!(edge.executions("/actions/save"), 0);
    assert_eq!(edge.executions("start"), 1);
    let gone = edge.list(&["traces"]);
    let gone: Vec<_> = gone.iter().filter(|t| t["outcome"] == "client-left").collect();
    assert_eq!(gone.len(), 5);
    assert!(gone.iter().all(|t| t["status"].is_null() && t["operation"] == ops[0]["id"]));
}

#[test]
fn a_client_that_leaves_in_the_moment_its_place_comes_free_is_not_forwarded() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().set("scale", "concurrency", "1"));
    assert_eq!(edge.get("/debug/echo").status, 200);
    let in_flight = |n: u64| edge.ps().first().is_some_and(|r| r["in_flight"] == n);
    for round in 1..=5 {
        // A client has its answer a moment before its place is free. A request that still had one would be taken for
        // the next line's, and the page that leaves could get the place of the app before it.
        eventually("nothing is in the app", || in_flight(0));
        // In the app until the rest of its body comes: the test decides when its place is free.
        let mut in_the_app = edge.connect();
        in_the_app.send_head("POST", "/debug/echo", &[("Content-Length", "1")]);
        eventually("it is in the app", || in_flight(1));
        let leaves_page = edge.hold("GET", "/dashboard", &[], 1);
        let mut leaves_action = hold_save(&edge, &format!("k-{round}"), 2);
        leaves_action.send("text=tea");
        let mut next = edge.hold("GET", "/debug/echo?next", &[], 3);
        drop((leaves_page, leaves_action));
        in_the_app.send("x");
        assert_eq!(in_the_app.answer().unwrap().status, 200);
        assert_eq!(next.answer().unwrap().status, 200, "its place goes to the next one");
        edge.until_held(0);
    }
    assert_eq!((edge.executions("/dashboard"), edge.executions("/actions/save")), (0, 0));
    // Not even its head, which the app reports nowhere.
    let traces = edge.list(&["traces", "-n", "1000"]);
    let left: Vec<_> = traces.iter().filter(|t| t["outcome"] == "client-left").collect();
    let last = |t: &&Value| t["steps"].as_array().unwrap().last().unwrap()["detail"].to_string();
    assert_eq!(left.len(), 10);
    assert!(left.iter().map(last).all(|d| d.contains("not forwarded")), "{left:#?}");
}

#[test]
fn a_pipelined_request_is_not_taken_for_a_client_that_left() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut client = edge.connect();
    client.send_head("GET", "/debug/echo?n=1", &[]);
    client.send_head("GET", "/debug/echo?n=2", &[]);
    edge.until_held(1);
    // Comes while the first is held.
    client.send_head("GET", "/debug/echo?n=3", &[]);
    gate.open();
    for n in ["n=1", "n=2", "n=3"] {
        assert_eq!(client.answer().expect("an answer to each, in order").json()["query"], n);
    }
}

#[test]
fn an_action_whose_app_dies_over_it_has_an_unknown_outcome_and_is_not_sent_again() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut headers = save("k-1", "text=tea");
    headers.push(("Studylab-Fault".into(), "exit-after".into()));
    let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut action = edge.connect();
    action.send_head("POST", "/actions/save", &headers);
    action.send("text=tea");
    let answer = action.answer().expect("an honest answer");
    assert_eq!((answer.status, answer.header("retry-after")), (502, None));
    let details = answer.json();
    assert_eq!(details["type"], "https://vango-edge.dev/problems/outcome-unknown");
    assert_eq!(details["forwarded"], "forwarded, outcome unknown");
    // The app comes back by itself, and says how often it was asked.
    eventually("it is served again", || edge.get("/dashboard").status == 200);
    assert_eq!(edge.executions("/actions/save"), 1);
}

#[test]
fn a_wake_outlives_the_only_request_that_asked_for_it() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    drop(edge.hold("GET", "/dashboard", &[], 1));
    edge.until_held(0);
    gate.open();
    let hot = edge.until_hot();
    assert_eq!((edge.executions("/dashboard"), edge.executions("start")), (0, 1));
    assert_eq!(hot["id"], edge.ops()[0]["allocation"]);
}

#[test]
fn a_keyed_action_waits_for_a_sleeping_app_and_is_executed_once() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    // Nothing of the body is sent before it is asked for by being read.
    let mut action = hold_save(&edge, "k-1", 1);
    gate.open();
    edge.until_hot();
    action.send("text=tea");
    let answer = action.answer().unwrap();
    assert_eq!((answer.status, &answer.json()["text"]), (200, &json!("tea")), "{}", answer.text());
    let seen = edge.get("/debug/executions?route=/actions/save&key=k-1").json();
    assert_eq!(seen["executions"][0]["count"], 1);
    assert_eq!(seen["effects"]["notes"], 1);
    let trace = edge.trace(answer.request_id());
    assert_eq!((&trace["outcome"], &trace["class"]), (&json!("woken"), &json!("action")));
    assert_eq!(trace["risk"], "high risk");
}

#[test]
fn a_client_that_waits_for_100_continue_sends_its_body_only_to_the_app() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let headers = save("k-1", "text=tea");
    let mut headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    headers.push(("Expect", "100-continue"));
    let mut action = edge.hold("POST", "/actions/save", &headers, 1);
    assert!(action.is_silent(Duration::from_millis(300)), "a held request's body is not asked for");
    gate.open();
    assert_eq!(action.answer().unwrap().status, 100);
    action.send("text=tea");
    assert_eq!(action.answer().unwrap().status, 200);
    assert_eq!(edge.executions("/actions/save"), 1);
}

#[test]
fn an_unsafe_action_without_a_contract_is_refused_while_cold_and_the_wake_is_started() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    let contract = ("idempotency = \"app\"", "idempotency = \"none\"");
    edge.deploy(&Artifact::behind(&gate).replace(contract.0, contract.1));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let act = || edge.ask("POST", "/actions/save", &form, "text=tea");
    let (first, second) = (act(), act());
    first.retryable("app-cold");
    second.retryable("app-cold");
    let ops = edge.ops();
    assert_eq!((ops.len(), &ops[0]["id"]), (1, &json!(first.operation())), "it is being woken");
    assert_eq!(second.operation(), first.operation());
    gate.open();
    edge.until_hot();
    assert_eq!(edge.executions("/actions/save"), 0, "nothing was sent");
    let hot = act();
    assert_eq!(hot.status, 200, "{}", hot.text());
    assert_eq!(edge.executions("/actions/save"), 1);
    let trace = edge.trace(first.request_id());
    assert_eq!((&trace["outcome"], &trace["status"]), (&json!("app-cold"), &json!(503)));
}

#[test]
fn an_action_without_the_key_its_contract_asks_for_is_refused_before_anything_wakes() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let long = "k".repeat(256);
    let missing = edge.ask("POST", "/actions/save", &[], "text=tea");
    missing.problem(400, "idempotency-key-missing");
    for wrong in ["", "\"", long.as_str()] {
        let answer = edge.ask("POST", "/actions/save", &[("Idempotency-Key", wrong)], "text=tea");
        answer.problem(400, "idempotency-key-invalid");
        assert!(answer.header("link").unwrap().contains("rel=\"describedby\""));
        assert_eq!(answer.header("retry-after"), None);
    }
    assert_eq!((edge.ops(), edge.processes()), (vec![], vec![]));
}

#[test]
fn a_webhook_that_cannot_be_verified_wakes_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let event = r#"{"id":"evt_1","object":"event"}"#;
    let signed = [("Stripe-Signature", "t=1700000000,v1=00")];
    edge.ask("POST", "/webhooks/stripe", &signed, event).retryable("verifier-unavailable");
    assert_eq!((edge.ops(), edge.processes()), (vec![], vec![]));
}
