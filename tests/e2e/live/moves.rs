//! Live sockets at a promotion: they stay where they are, for as long as the contract says, and come
//! back to what serves then.

use std::time::Duration;

use serde_json::Value;
use vango_edge::clock::{Clock, SystemClock};

use crate::promotion::{deploy_preview, visit};
use crate::support::{Artifact, Edge, eventually, pass};

use super::Socket;

/// Their ends are spread over half a millisecond each.
const SOCKETS: u32 = 300;
const DRAIN: Duration = Duration::from_secs(4);

#[test]
fn they_stay_until_the_drain_limit_and_are_told_apart_to_come_back() {
    let edge = Edge::start();
    let contract = |name: &str, drain: Duration| {
        let artifact = Artifact::new().env("VERSION", name);
        let artifact = artifact.set("process", "stop_timeout", "\"100ms\"");
        artifact.set("process", "drain_timeout", &format!("\"{}ms\"", drain.as_millis()))
    };
    edge.deploy(&contract("1", DRAIN));
    // The contract of what is replaced counts, not this one.
    deploy_preview(&edge, &contract("2", Duration::from_millis(100)), "pr-7");
    visit(&edge, "pr-7", 1);
    let path = |n: u32| format!("/vango/live?sid=tab-{n}");
    let mut sockets: Vec<_> =
        (0..SOCKETS).map(|n| Socket::greeted(&edge, &path(n), &[]).0).collect();
    let of_production = |a: &Value| a["environment"] == "studylab/production";
    let old = edge.ps().into_iter().find(of_production).unwrap()["id"].clone();

    let clock = SystemClock::new();
    let asked = clock.now();
    edge.json(&["promote", "studylab", "pr-7"]);
    // What is new goes to the new artifact at once.
    let page = edge.get("/dashboard");
    assert_eq!((page.status, &edge.trace(page.request_id())["outcome"]), (200, &"hot".into()));
    let (mut newer, _) = Socket::greeted(&edge, "/vango/live?sid=newer", &[]);
    // Far longer than requests in flight may take, they are as they were.
    pass((DRAIN / 2).saturating_sub(clock.now().since(asked)));
    let drained = edge.ps().into_iter().find(|a| a["id"] == old).expect("it is there still");
    assert_eq!(drained["sockets"], SOCKETS);
    assert!(sockets.iter_mut().all(|socket| socket.add() > 0));
    let ends: Vec<_> = std::thread::scope(|scope| {
        let clock = &clock;
        let closing: Vec<_> = sockets
            .into_iter()
            .map(|socket| scope.spawn(move || (socket.closed(), clock.now().since(asked))))
            .collect();
        closing.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ends.iter().all(|(code, _)| *code == Some(1012)), "{ends:?}");
    let first = ends.iter().map(|(_, at)| *at).min().unwrap();
    let last = ends.iter().map(|(_, at)| *at).max().unwrap();
    println!(
        "{SOCKETS} sockets, told between {first:?} and {last:?} after the promotion was asked for"
    );
    let spread = Duration::from_micros(500) * (SOCKETS - 1);
    assert!(first >= DRAIN - spread, "not before the limit: {first:?}");
    assert!(last - first >= spread / 2, "not all at once: {first:?} to {last:?}");
    let (mut back, _) = Socket::back(&edge, &path(0), &[]);
    assert!(back.add() > 0 && newer.add() > 0, "the newer one never ended");
    eventually("the old one is gone", || edge.ps().iter().all(|a| a["id"] != old));
    assert_eq!(edge.metric("vango_edge_socket_ends_total{cause=\"drained\"}"), u64::from(SOCKETS));
}
