//! What the app sees of a request, by its own account (`/debug/echo`), and who is no app of this
//! edge's.

use serde_json::Value;

use crate::support::{Artifact, Edge};

/// The values that the app saw under `name`.
fn seen<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().unwrap().iter();
    headers.filter(|h| h[0] == name).map(|h| h[1].as_str().unwrap()).collect()
}

#[test]
fn only_the_edge_sets_what_only_the_edge_may_set() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let forged = [
        ("Vango-Edge-Epoch", "99"),
        ("Vango-Edge-Allocation", "al-forged"),
        ("Vango-Edge-Anything", "forged"),
        ("vango_edge_epoch", "99"),
        ("X_Forwarded_For", "203.0.113.1"),
        ("X-Forwarded-For", "203.0.113.1"),
        ("X-Forwarded-For", "203.0.113.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Real-Ip", "203.0.113.1"),
        ("Forwarded", "for=203.0.113.1"),
        ("X-Request-Id", "forged"),
        ("Traceparent", "forged"),
        ("X-Custom", "kept"),
    ];
    // Asleep and hot alike.
    for _ in 0..2 {
        let answer = edge.ask("GET", "/debug/echo", &forged, "");
        assert_eq!(answer.status, 200);
        let echo = answer.json();
        let all = echo["headers"].to_string();
        for forgery in ["203.0.113", "forged", "evil.example", "_"] {
            assert!(!all.contains(forgery), "{forgery}: {all}");
        }
        assert_eq!(seen(&echo, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen(&echo, "x-forwarded-proto"), ["http"]);
        assert_eq!(seen(&echo, "x-forwarded-host"), ["studylab.localhost"]);
        assert_eq!(seen(&echo, "host"), ["studylab.localhost"]);
        assert_eq!(seen(&echo, "x-request-id"), [answer.request_id()]);
        assert_eq!(seen(&echo, "x-custom"), ["kept"]);
        assert_eq!(seen(&echo, "forwarded"), [] as [&str; 0]);
        assert_eq!(seen(&echo, "traceparent").len(), 1);
        let ps = edge.ps();
        assert_eq!(seen(&echo, "vango-edge-epoch"), ["1"]);
        assert_eq!(seen(&echo, "vango-edge-allocation"), [ps[0]["id"].as_str().unwrap()]);
        let routes = edge.list(&["routes"]);
        let environment = routes[0]["environment"].as_str().unwrap();
        assert_eq!(seen(&echo, "vango-edge-environment"), [environment]);
        let ours = echo["headers"].as_array().unwrap();
        let ours = ours.iter().filter(|h| h[0].as_str().unwrap().starts_with("vango-edge-"));
        assert!(ours.map(|h| h[0].as_str().unwrap()).all(|h| h != "vango-edge-anything"));
    }
}

#[test]
fn a_path_without_a_safe_reading_is_refused() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    for hostile in ["/../debug/echo", "/%2e%2e/debug/echo", "/debug%5cecho", "/%zz", "/a%00"] {
        let answer = edge.get(hostile);
        answer.problem(400, "bad-path");
        assert_eq!(edge.trace(answer.request_id())["path"], hostile, "what was sent");
    }
    // Never decoded: this is another path than /debug/echo.
    assert_eq!(edge.get("/debug%2fecho").status, 404);
}

#[test]
fn a_host_without_an_owner_is_told_so_and_wakes_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    for host in ["other.localhost", "pr-7.preview.studylab.localhost", "127.0.0.1"] {
        let json = [("Host", host)];
        edge.ask("GET", "/dashboard", &json, "").problem(404, "no-route");
        let html = [("Host", host), ("Accept", "text/html,application/xhtml+xml")];
        let page = edge.ask("GET", "/dashboard", &html, "");
        assert_eq!(page.status, 404);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.text().starts_with("<!doctype html>"));
        assert!(page.header("x-request-id").is_some() && page.header("proxy-status").is_some());
    }
    let mut two_hosts = edge.connect();
    two_hosts.send_head(
        "GET",
        "/dashboard",
        &[("Host", "studylab.localhost"), ("Host", "other.localhost")],
    );
    // Pingora refuses this one before the edge sees it.
    assert_eq!(two_hosts.answer().unwrap().status, 400);
    let mut no_host = edge.connect();
    no_host.send("GET /dashboard HTTP/1.1\r\n\r\n");
    no_host.answer().unwrap().problem(400, "bad-host");
    let other = edge.ask("GET", "/dashboard", &[("Host", "STUDYLAB.localhost.:8080")], "");
    assert_eq!(other.status, 200, "the same host, written otherwise");
    assert_eq!(edge.ops().len(), 1);
}

#[test]
fn one_connection_carries_many_requests_and_survives_the_edges_own_answers() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let mut connection = edge.connect();
    for _ in 0..3 {
        connection.send_head("GET", "/debug/echo", &[]);
        assert_eq!(connection.answer().unwrap().status, 200);
        connection.send_head("GET", "/dashboard", &[("Host", "other.localhost")]);
        connection.answer().unwrap().problem(404, "no-route");
    }
    let mut pipelined = edge.connect();
    pipelined.send_head("GET", "/debug/echo?n=1", &[]);
    pipelined.send_head("GET", "/debug/echo?n=2", &[]);
    for n in ["n=1", "n=2"] {
        assert_eq!(pipelined.answer().unwrap().json()["query"], n);
    }
}
