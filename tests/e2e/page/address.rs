//! The address at which a page asks how its app stands.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Answer, Artifact, Edge, Gate, eventually};

pub const ADDRESS: &str = "/.well-known/vango-edge/state";

fn standing(edge: &Edge) -> Value {
    let answer = edge.get(ADDRESS);
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let told = answer.json();
    let keys: Vec<_> = told.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["retry_after", "state"], "nothing else is said");
    told
}

#[test]
fn an_app_s_state_is_told_and_nothing_wakes_for_it() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    for _ in 0..3 {
        assert_eq!(standing(&edge), json!({ "state": "asleep", "retry_after": 1 }));
    }
    assert_eq!((edge.ops().len(), edge.processes()), (0, vec![]), "nothing wakes");
    let mut first = edge.hold("GET", "/dashboard", &[], 1);
    eventually("it starts", || standing(&edge)["state"] == "starting");
    assert!(standing(&edge)["retry_after"].as_u64().unwrap() >= 1);
    gate.open();
    assert_eq!(first.answer().unwrap().status, 200);
    assert_eq!(standing(&edge), json!({ "state": "ready", "retry_after": 0 }));
    let kept = edge.list(&["traces"]);
    assert!(kept.iter().all(|t| t["path"] != ADDRESS), "{kept:?}");
    assert!(edge.metric("vango_edge_state_requests_total") >= 6);
    let url = format!("http://studylab.localhost{ADDRESS}");
    let explained = edge.json(&["explain", "GET", &url]);
    assert_eq!(explained["outcome"], "told", "{explained}");
    edge.assert_sleeps_without_a_trace();
    assert_eq!(standing(&edge)["state"], "asleep");
}

#[test]
fn a_back_off_is_told_with_what_is_left_of_it_and_no_cause() {
    let edge = Edge::start_with("[runner.backoff]\nfirst = \"40s\"\nmax = \"40s\"\n");
    let broken = edge.state().join("broken");
    fs::write(&broken, "").unwrap();
    edge.deploy(&Artifact::new().env("STUDYLAB_FAIL_FILE", broken.to_str().unwrap()));
    edge.get("/dashboard").retryable("wake-failed");
    let told = standing(&edge);
    assert_eq!(told["state"], "failed");
    let left = told["retry_after"].as_u64().unwrap();
    assert!((20..=40).contains(&left), "{left}");
}

#[test]
fn everything_below_the_address_is_the_edge_s_own_whatever_an_app_says() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    for path in ["/.well-known/vango-edge/", "/.well-known/vango-edge/other"] {
        edge.get(path).problem(404, "no-route");
    }
    // One resource, however it is spelled.
    for path in ["/.well-known/vango-edge/%73tate", "/a/../.well-known/vango-edge/./state?x"] {
        assert_eq!(edge.get(path).json()["state"], "ready", "{path}");
    }
    assert_eq!(edge.ask("HEAD", ADDRESS, &[], "").status, 200);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = edge.ask(method, ADDRESS, &[], "");
        refused.problem(405, "method-refused");
        assert_eq!(refused.header("allow"), Some("GET, HEAD"));
    }
    // The rest of /.well-known is the app's.
    assert_eq!(edge.get("/.well-known/other").header("proxy-status"), None);
    let unowned = [("Host", "other.localhost")];
    edge.ask("GET", ADDRESS, &unowned, "").problem(404, "no-route");
    // A contract that wants a route there never gets one.
    let route = "[[route]]\npath = \"/.well-known/vango-edge/*\"\n[[route]]\npath = \"/actions/*\"";
    let bad = Artifact::new().replace("[[route]]\npath = \"/actions/*\"", route);
    let said = edge.refused(&["check", "--artifact", bad.write().to_str().unwrap()]);
    assert!(said.contains("route[") && said.contains("the edge answers itself"), "{said}");
}

#[test]
fn a_preview_behind_a_token_tells_it_only_to_who_shows_the_token() {
    const TOKEN: &str = "a-token-that-is-long-enough-for-previews";
    let edge = Edge::start();
    fs::write(edge.apps().join("token"), TOKEN).unwrap();
    let app = fs::read_to_string(edge.apps().join("studylab.toml")).unwrap();
    let access = format!("{app}\npreview_access = {{ token = {{ file = \"token\" }} }}\n");
    fs::write(edge.apps().join("studylab.toml"), access).unwrap();
    edge.json(&["reload"]);
    crate::promotion::deploy_preview(&edge, &Artifact::new(), "pr-7");
    let host = crate::promotion::host("pr-7");
    let ask = |more: &[(&str, &str)]| -> Answer {
        edge.ask("GET", ADDRESS, &[&[("Host", host.as_str())], more].concat(), "")
    };
    ask(&[]).problem(401, "preview-access");
    assert_eq!(ask(&[("Vango-Edge-Preview-Token", TOKEN)]).json()["state"], "asleep");
}

const ORIGIN: &str = "https://app.example";

/// What a contract names may read every answer of the edge's own for its host: also those that no contract has
/// a part in.
#[test]
fn scripts_that_the_contract_names_may_read_it_and_whatever_else_the_edge_says() {
    let edge = Edge::start();
    let cors = format!("[errors]\ncors_origins = [{ORIGIN:?}]\n[assets]");
    edge.deploy(&Artifact::new().replace("[assets]", &cors));
    let from = |method: &str, path: &str| edge.ask(method, path, &[("Origin", ORIGIN)], "");
    for (answer, status) in [
        (from("GET", ADDRESS), 200),
        (from("POST", ADDRESS), 405),
        (from("GET", "/.well-known/vango-edge/x"), 404),
        (from("TRACE", "/dashboard"), 501),
        (from("GET", "/internal/sessions/x"), 404),
        (from("GET", "/internal%2fsessions/x"), 400),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN), "{status}");
        assert_eq!(answer.header("vary"), Some("origin"), "{status}");
    }
    let other = edge.ask("GET", ADDRESS, &[("Origin", "https://evil.example")], "");
    assert_eq!(other.header("access-control-allow-origin"), None);
}
