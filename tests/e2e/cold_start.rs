//! Traces 1 and 2 of the seed: a page while asleep, a page while hot, and what is said about them.

use serde_json::{Value, json};

use crate::support::{Artifact, Edge};

const PAGE: &str = "http://studylab.localhost/dashboard";

fn steps(trace: &Value) -> Vec<(&str, &str, &str)> {
    let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    let steps = trace["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|s| {
            assert!(!text(s, "value").is_empty(), "a step without the truth it stands on: {s}");
            let part = |key| s[key].as_str().unwrap();
            (part("actor"), part("action"), part("truth"))
        })
        .collect()
}

const LOAD: (&str, &str, &str) = ("Edge", "Load route owner and current epoch.", "RouteOwner");
const CLASSIFY: (&str, &str, &str) =
    ("Edge", "Classify request as safe/idempotent.", "Route policy");
const WAKE: (&str, &str, &str) = ("Edge", "Create or attach to wake operation.", "Operation table");
const START: (&str, &str, &str) =
    ("Runner", "Start allocation from immutable artifact.", "Artifact digest");
const HOLD: (&str, &str, &str) =
    ("Edge", "Hold within wake budget, then route when ready.", "Wake operation state");
const SELECT: (&str, &str, &str) = (
    "Edge",
    "Select ready allocation with session affinity if present.",
    "Regional runtime registry",
);
const RUN: (&str, &str, &str) =
    ("Allocation", "Run Vango route/render and return HTML or patches.", "Vango session loop");
const NO_MUTATION: (&str, &str, &str) = (
    "Control plane",
    "No mutation required; logs are observability only.",
    "Operation table unchanged",
);

#[test]
fn a_page_of_a_sleeping_app_is_held_and_answered_and_the_next_one_is_hot() {
    let edge = Edge::start();
    let deployed = edge.deploy(&Artifact::new());
    assert_eq!(
        (&deployed["epoch"], &deployed["hosts"]),
        (&json!(1), &json!(["studylab.localhost"]))
    );
    assert_eq!((edge.ops(), edge.ps()), (vec![], vec![]), "deploying starts nothing");
    assert_eq!(edge.processes(), [] as [u32; 0]);
    assert_eq!(edge.list(&["routes"])[0]["state"], "asleep");

    let first = edge.get("/dashboard");
    let second = edge.get("/dashboard");
    assert_eq!((first.status, second.status), (200, 200));
    assert_ne!(first.request_id(), second.request_id());

    let ops = edge.ops();
    assert_eq!(ops.len(), 1, "one wake: {ops:?}");
    let (operation, allocation) = (&ops[0]["id"], &ops[0]["allocation"]);
    assert_eq!((&ops[0]["kind"], &ops[0]["state"]), (&json!("wake"), &json!("hot")));
    for phase in ["reserve_us", "artifact_us", "spawn_us", "ready_us"] {
        assert!(ops[0]["phases"][phase].is_u64(), "{phase}: {}", ops[0]);
    }
    let ps = edge.ps();
    assert_eq!((ps.len(), &ps[0]["id"], &ps[0]["state"]), (1, allocation, &json!("ready")));
    for page in [&first, &second] {
        assert!(page.text().contains(allocation.as_str().unwrap()), "it says who rendered it");
    }

    let woken = edge.trace(first.request_id());
    assert_eq!((&woken["outcome"], &woken["operation"]), (&json!("woken"), operation));
    assert_eq!(woken["risk"], "medium risk");
    assert!(woken["held_us"].as_u64().unwrap() > 0);
    assert_eq!(steps(&woken), [LOAD, CLASSIFY, WAKE, START, HOLD, LOAD, SELECT, RUN]);
    let hot = edge.trace(second.request_id());
    assert_eq!((&hot["outcome"], &hot["held_us"]), (&json!("hot"), &json!(0)));
    assert_eq!((&hot["operation"], &hot["risk"]), (&Value::Null, &json!("low risk")));
    assert_eq!(steps(&hot), [LOAD, SELECT, RUN, NO_MUTATION]);
}

#[test]
fn an_explanation_says_what_would_happen_and_changes_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let cold = edge.json(&["explain", "GET", PAGE]);
    assert_eq!((&cold["outcome"], &cold["risk"]), (&json!("woken"), &json!("medium risk")));
    assert_eq!(steps(&cold), [LOAD, CLASSIFY, WAKE, START, HOLD, RUN]);
    assert_eq!(cold["steps"][2]["value"], "would be created");
    assert_eq!(
        cold["decision"],
        "Wake and hold within budget. Return clear retry/503 if readiness misses the budget."
    );
    let post = edge.json(&["explain", "POST", "http://studylab.localhost/actions/save"]);
    assert_eq!(post["risk"], "high risk");
    assert_eq!((edge.ops(), edge.ps()), (vec![], vec![]));
    assert_eq!(edge.processes(), [] as [u32; 0], "an explanation starts nothing");
    assert_eq!(edge.list(&["traces"]), [] as [Value; 0], "and is no request");

    assert_eq!(edge.get("/dashboard").status, 200);
    let (ops, ps) = (edge.ops(), edge.ps());
    let hot = edge.json(&["explain", "GET", PAGE]);
    assert_eq!((&hot["outcome"], &hot["risk"]), (&json!("hot"), &json!("low risk")));
    assert_eq!(steps(&hot), [LOAD, SELECT, RUN, NO_MUTATION]);
    let named = hot["steps"][1]["value"].as_str().unwrap();
    assert!(named.starts_with(ps[0]["id"].as_str().unwrap()), "{named}");
    assert_eq!(
        hot["decision"],
        "Serve directly. Allocation health selects target only inside route owner authority."
    );
    assert_eq!((edge.ops(), edge.ps()), (ops, ps), "nothing was reserved or counted");
    assert_eq!(edge.executions("/dashboard"), 1);
}

#[test]
fn a_wake_that_was_asked_for_by_name_serves_the_next_page_hot() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let woke = edge.json(&["wake", "studylab"]);
    edge.until_hot();
    let page = edge.get("/dashboard");
    assert_eq!((page.status, &edge.ops()[0]["id"]), (200, &woke["operation"]));
    assert_eq!(edge.trace(page.request_id())["outcome"], "hot");
    assert_eq!(edge.json(&["wake", "studylab"])["done"], "it is hot");
    assert_eq!(edge.ops().len(), 1);
}
