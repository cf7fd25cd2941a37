//! kill -9 of the edge at any moment of a wake, a thaw, a hold, a deployment and a sleep: the store opens again,
//! what was acknowledged is there, no process is without a record, none runs twice for one, and the
//! next request is served.
//!
//! `VANGO_EDGE_TEST_KILLS` sets how often each, `VANGO_EDGE_TEST_SEED` replays; `scripts/test-kills`
//! runs them at length.

use std::time::Duration;

use serde_json::Value;
use vango_edge::clock::{Entropy, SeededEntropy};

use crate::support::{Artifact, Edge, Gate, eventually, spin};

fn rounds() -> u64 {
    std::env::var("VANGO_EDGE_TEST_KILLS").map_or(4, |n| n.parse().unwrap())
}

fn seed() -> u64 {
    let seed = std::env::var("VANGO_EDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    seed
}

/// A time below `most`, by the seed.
fn moment(entropy: &SeededEntropy, most: Duration) -> Duration {
    Duration::from_micros(entropy.next_u64() % u64::try_from(most.as_micros()).unwrap())
}

/// Starts the next edge and checks what every kill must leave.
fn check(edge: &mut Edge, round: u64) {
    serves_again(edge, round);
    has_one_process(edge, round);
}

fn serves_again(edge: &mut Edge, round: u64) {
    edge.start_again();
    let page = edge.get("/dashboard");
    assert_eq!(page.status, 200, "round {round}: {}\n{}", page.text(), edge.log());
}

const ENDED: [&str; 4] = ["hot", "failed", "healthy", "rolled_back"];

fn is_open(operation: &Value) -> bool {
    !ENDED.contains(&operation["state"].as_str().unwrap())
}

fn has_one_process(edge: &Edge, round: u64) {
    let ps = edge.ps();
    assert_eq!(ps.len(), 1, "round {round}: {}", Value::from(ps));
    let pid = ps[0]["pid"].as_u64().unwrap();
    let running: Vec<u64> = edge.processes().into_iter().map(u64::from).collect();
    assert_eq!(running, [pid], "round {round}: no process without a record, none twice");
    let ops = edge.ops();
    assert!(!ops.iter().any(is_open), "round {round}: {}", Value::from(ops));
}

#[test]
fn in_the_middle_of_a_wake() {
    let (entropy, mut edge) = (SeededEntropy::new(seed()), Edge::start());
    edge.deploy(&Artifact::new());
    for round in 0..rounds() {
        let mut page = edge.connect();
        page.send_head("GET", "/dashboard", &[("Connection", "close")]);
        spin(moment(&entropy, Duration::from_millis(60)));
        edge.kill();
        drop(page);
        check(&mut edge, round);
        edge.json(&["sleep", "studylab"]);
    }
    assert!(edge.executions("/dashboard") <= 2 * rounds(), "no page was rendered twice");
}

#[test]
fn in_the_middle_of_a_hold() {
    let (entropy, mut edge, gate) = (SeededEntropy::new(seed()), Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    for round in 0..rounds() {
        let mut held: Vec<_> = (1..=8).map(|n| edge.hold("GET", "/dashboard", &[], n)).collect();
        // Somewhere between being held and being released.
        if round % 2 == 0 {
            gate.open();
        }
        spin(moment(&entropy, Duration::from_millis(40)));
        edge.kill();
        for page in &mut held {
            let answer = page.answer();
            assert!(answer.is_none_or(|a| a.status == 200), "an answer of the app's, or none");
        }
        if round % 2 != 0 {
            gate.open();
        }
        check(&mut edge, round);
        edge.json(&["sleep", "studylab"]);
        gate.close();
    }
    gate.open();
    assert!(edge.executions("/dashboard") <= 9 * rounds());
}

#[test]
fn in_the_middle_of_a_deployment() {
    let (entropy, mut edge) = (SeededEntropy::new(seed()), Edge::start());
    let mut acknowledged = vec![edge.deploy(&Artifact::new())["deployment"].clone()];
    for round in 0..rounds() {
        let artifact = Artifact::new().env("ROUND", round.to_string());
        let dir = artifact.write().to_owned();
        let before = moment(&entropy, Duration::from_millis(2500));
        let output = std::thread::scope(|scope| {
            let deploying =
                scope.spawn(|| edge.command(&["deploy", dir.to_str().unwrap(), "--json"]));
            spin(before);
            edge.kill_only();
            deploying.join().unwrap()
        });
        edge.buried();
        if output.status.success() {
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            acknowledged.push(said["deployment"].clone());
        }
        serves_again(&mut edge, round);
        // A takeover that was begun goes on, and what served before it drains.
        eventually("the takeover has ended", || {
            !edge.ops().iter().any(is_open) && edge.ps().len() == 1
        });
        has_one_process(&edge, round);
        let known = edge.list(&["deployments"]);
        for id in &acknowledged {
            assert!(known.iter().any(|d| d["id"] == *id), "round {round}: {id} is gone");
        }
        // Exactly one owns the hosts.
        assert_eq!(known.iter().filter(|d| d["current"] == true).count(), 1);
    }
    println!("{} of {} deployments were acknowledged", acknowledged.len(), 1 + rounds());
}

fn in_the_middle_of_a_sleep(mode: &str) {
    let (entropy, mut edge) = (SeededEntropy::new(seed()), Edge::start());
    edge.deploy(&Artifact::new().set("sleep", "mode", &format!("{mode:?}")));
    for round in 0..rounds() {
        assert_eq!(edge.get("/dashboard").status, 200);
        let before = moment(&entropy, Duration::from_millis(40));
        std::thread::scope(|scope| {
            let sleeping = scope.spawn(|| edge.command(&["sleep", "studylab"]));
            // The command itself takes some milliseconds to get there.
            spin(before);
            edge.kill_only();
            sleeping.join().unwrap();
        });
        edge.buried();
        check(&mut edge, round);
    }
    edge.json(&["sleep", "studylab"]);
    edge.json(&["sleep", "studylab"]);
    eventually("nothing is left", || edge.processes().is_empty());
}

/// Of a wake that only thaws: whatever is killed when, the one process that was started serves on.
#[test]
fn in_the_middle_of_a_thaw() {
    let (entropy, mut edge) = (SeededEntropy::new(seed()), Edge::start());
    edge.deploy(&Artifact::new().set("sleep", "mode", "\"freeze\""));
    assert_eq!(edge.get("/dashboard").status, 200);
    let pid = edge.ps()[0]["pid"].clone();
    for round in 0..rounds() {
        assert_eq!(edge.json(&["sleep", "studylab"])["done"], "froze 1 allocation");
        let mut page = edge.connect();
        page.send_head("GET", "/dashboard", &[("Connection", "close")]);
        spin(moment(&entropy, Duration::from_millis(8)));
        edge.kill();
        drop(page);
        check(&mut edge, round);
        assert_eq!(edge.ps()[0]["pid"], pid, "round {round}: another was started");
    }
    assert_eq!(edge.executions("start"), 1);
    assert!(edge.executions("/dashboard") <= 1 + 2 * rounds(), "no page was rendered twice");
}

#[test]
fn in_the_middle_of_stopping() {
    in_the_middle_of_a_sleep("stop");
}

#[test]
fn in_the_middle_of_freezing() {
    in_the_middle_of_a_sleep("freeze");
}
