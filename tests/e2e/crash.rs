//! The edge's own end, in order and not: what it leaves, and what the next one finds.

use std::process::Command;

use vango_edge::clock::{Entropy, SeededEntropy};

use crate::support::{Artifact, Edge, Gate, binary, eventually};

#[test]
fn kill_9_in_the_middle_of_a_wake_forwards_nothing_and_starts_nothing_twice() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut page = edge.hold("GET", "/dashboard", &[], 1);
    eventually("the start is under way", || {
        edge.ops().first().is_some_and(|r| r["state"] == "readiness_wait")
    });
    let orphans = edge.processes();
    let operation = edge.ops()[0]["id"].clone();
    edge.kill();
    assert!(page.answer().is_none(), "who was held sees the connection close, and no answer");
    edge.start_again();
    eventually("the orphan is gone", || edge.processes().iter().all(|pid| !orphans.contains(pid)));
    gate.open();
    let page = edge.get("/dashboard");
    assert_eq!(page.status, 200, "{}", page.text());
    assert_eq!(edge.executions("/dashboard"), 1);
    assert_eq!(edge.executions("start"), 1, "the first one never got as far as the app");
    let ps = edge.ps();
    assert_eq!((ps.len(), edge.processes().len()), (1, 1));
    let ops = edge.ops();
    assert_eq!((ops.len(), &ops[0]["id"]), (1, &operation), "it took up the wake it found");
    assert_eq!(ops[0]["attempt"], 2);
}

/// `VANGO_EDGE_TEST_SEED` replays.
#[test]
fn kill_9_at_any_moment_of_a_wake_leaves_nothing_that_the_next_edge_does_not_adopt_or_end() {
    const ROUNDS: u64 = 8;
    let seed = std::env::var("VANGO_EDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let entropy = SeededEntropy::new(seed);
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    for _ in 0..ROUNDS {
        let mut page = edge.connect();
        page.send_head("GET", "/dashboard", &[("Connection", "close")]);
        // A time that passes without being waited for: a question takes about a millisecond.
        for _ in 0..entropy.next_u64() % 150 {
            edge.held();
        }
        edge.kill();
        drop(page);
        edge.start_again();
        // A wake that lost its executor may be starting the next one already.
        eventually("every process is on record", || {
            let on_record: Vec<u64> = edge.ps().iter().filter_map(|a| a["pid"].as_u64()).collect();
            let running = edge.processes();
            on_record.len() <= 1 && running.iter().all(|pid| on_record.contains(&(*pid).into()))
        });
    }
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!((edge.ps().len(), edge.processes().len()), (1, 1));
    assert!(edge.executions("/dashboard") <= ROUNDS + 1, "no page was rendered twice");
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn sigterm_leaves_no_process_and_no_lock() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_SETSID", "1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    assert!(edge.stop().success(), "{}", edge.log());
    assert_eq!(edge.processes(), [] as [u32; 0]);
    edge.start_again();
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
    assert!(edge.stop().success());
}

#[test]
fn sigterm_answers_those_whose_wake_takes_too_long_and_leaves_nothing_of_it() {
    let (mut edge, gate) = (Edge::start_with_server("grace = \"2s\""), Gate::closed());
    edge.deploy(&Artifact::behind(&gate).set("wake", "budget", "\"2s\""));
    let mut page = edge.hold("GET", "/dashboard", &[], 1);
    assert!(edge.stop().success(), "{}", edge.log());
    page.answer().expect("an answer, not a closed connection").retryable("wake-timeout");
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn a_second_sigterm_tells_those_who_wait_at_once() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut page = edge.hold("GET", "/dashboard", &[], 1);
    edge.terminate();
    eventually("it stops", || edge.admin_status("/readyz") == 503);
    assert!(edge.stop().success(), "{}", edge.log());
    page.answer().expect("an answer, not a closed connection").retryable("shutting-down");
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn sigterm_lets_what_is_in_flight_finish() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut slow = edge.connect();
    slow.send_head("GET", "/debug/slow?ms=1000", &[]);
    eventually("it is in flight", || edge.ps().first().is_some_and(|r| r["in_flight"] == 1));
    assert!(edge.stop().success());
    assert_eq!(slow.answer().unwrap().status, 200);
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn a_second_edge_on_the_same_state_is_refused_and_disturbs_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let second = Command::new(binary()).args(["run", "-c"]).arg(edge.config()).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(second.stdout.is_empty(), "it never said that it listens");
    let last = error.lines().last().unwrap();
    assert!(last.contains("store") && last.contains("another process"), "{error}");
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.executions("start"), 1);
}

#[test]
fn edges_on_one_machine_do_not_disturb_each_other() {
    let one = Edge::start();
    let mut other = one.start_beside();
    one.deploy(&Artifact::new());
    other.deploy(&Artifact::new());
    assert_eq!(other.get("/dashboard").status, 200);
    assert_eq!(one.processes(), [] as [u32; 0]);
    // It takes with it what both use and nothing is in, such as the control groups' directory.
    assert!(other.stop().success());
    assert_eq!(one.get("/dashboard").status, 200);
    other.start_again();
    assert!(other.stop().success());
    assert_eq!(one.executions("start"), 1, "it ended nothing of the first one's");
}
