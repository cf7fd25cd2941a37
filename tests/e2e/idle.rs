//! The edge of idleness: requests timed for the moment at which an app falls asleep by itself. None is
//! refused for it, whatever sleeping is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use vango_edge::clock::{Entropy, SeededEntropy};

use crate::support::{Artifact, Edge};

/// Apps that fall asleep and are woken beside each other.
const APPS: usize = 8;

/// Requests for each way of sleeping; `VANGO_EDGE_TEST_IDLE_REQUESTS` sets it, as
/// `scripts/test-idle` does.
fn requests() -> usize {
    std::env::var("VANGO_EDGE_TEST_IDLE_REQUESTS").map_or(1000, |n| n.parse().unwrap())
}

/// Sends each request between 20 ms before and 130 ms after the app may fall asleep at the earliest:
/// the edge looks every 20 ms, and takes some more to drain, stop and forget it.
fn at_the_edge_of_idleness(mode: &str) {
    let seed = std::env::var("VANGO_EDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let names: Vec<String> = (0..APPS).map(|n| format!("idle{n}")).collect();
    let edge = Edge::start_with_apps("[log]\nlevel = \"warn\"\n", &names);
    for name in &names {
        let artifact = Artifact::new()
            .replace("name = \"studylab\"", &format!("name = {name:?}"))
            .set("sleep", "after", "\"100ms\"")
            .set("sleep", "mode", &format!("{mode:?}"));
        edge.deploy(&artifact);
    }
    let (woken, hot) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (n, name) in names.iter().enumerate() {
            let (edge, woken, hot) = (&edge, &woken, &hot);
            scope.spawn(move || {
                let host = format!("{name}.localhost");
                let entropy = SeededEntropy::new(seed + n as u64);
                for request in 0..requests() / APPS {
                    let answer = edge.ask("GET", "/debug/echo", &[("Host", &host)], "");
                    let shown = String::from_utf8_lossy(&answer.body);
                    assert_eq!(answer.status, 200, "{name}, request {request}: {shown}");
                    if request % 16 == 0 {
                        let outcome = edge.trace(answer.request_id())["outcome"].clone();
                        let count = if outcome == json!("hot") { hot } else { woken };
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                    crate::support::pass(Duration::from_millis(80 + entropy.next_u64() % 150));
                }
            });
        }
    });
    let (woken, hot) = (woken.into_inner(), hot.into_inner());
    println!("{mode}: of {} traces {woken} woken or held, {hot} hot", woken + hot);
    // Otherwise the requests were not at the edge.
    assert!(woken > 0 && hot > 0, "{woken} woken, {hot} hot");
}

#[test]
fn a_request_as_an_app_is_stopped_is_served() {
    at_the_edge_of_idleness("stop");
}

#[test]
fn a_request_as_an_app_is_frozen_is_served() {
    at_the_edge_of_idleness("freeze");
}
