//! Going to sleep, and waking again.

use serde_json::json;

use crate::support::{Artifact, Edge, Gate, eventually};

#[test]
fn what_is_put_to_sleep_is_gone_and_the_next_request_wakes_the_next_generation() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let page = edge.get("/dashboard");
    let first = edge.ps();
    assert_eq!((page.status, &first[0]["generation"]), (200, &json!(1)));
    assert_eq!(edge.processes(), [u32::try_from(first[0]["pid"].as_u64().unwrap()).unwrap()]);
    assert_eq!(edge.json(&["sleep", "studylab"])["done"], "stopped 1 allocation");
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]));
    assert_eq!(edge.json(&["sleep", "studylab"])["done"], "it was asleep");
    assert_eq!(edge.list(&["routes"])[0]["state"], "asleep");

    let page = edge.get("/dashboard");
    let second = edge.ps();
    assert_eq!((page.status, &second[0]["generation"]), (200, &json!(2)));
    assert_ne!(first[0]["id"], second[0]["id"]);
    assert_eq!(edge.trace(page.request_id())["outcome"], "woken");
    assert_eq!(edge.ops().len(), 2);
    assert_eq!((edge.executions("/dashboard"), edge.executions("start")), (2, 2));
}

#[test]
fn what_an_app_left_in_another_session_is_gone_with_it() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_SETSID", "1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("the app has left a stray process", || edge.processes().len() == 2);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn an_app_that_ignores_sigterm_is_ended_all_the_same() {
    let edge = Edge::start();
    let stays = Artifact::new().env("STUDYLAB_IGNORE_TERM", "1");
    edge.deploy(&stays.set("process", "stop_timeout", "\"200ms\""));
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn an_idle_app_goes_to_sleep_by_itself() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().set("sleep", "after", "\"1s\""));
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("it sleeps", || edge.ps().is_empty());
    assert_eq!(edge.processes(), [] as [u32; 0]);
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
}

#[test]
fn a_request_in_flight_is_finished_before_its_app_sleeps() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut slow = edge.connect();
    slow.send_head("GET", "/debug/slow?ms=1000", &[]);
    eventually("it is in flight", || edge.ps().first().is_some_and(|r| r["in_flight"] == 1));
    edge.assert_sleeps_without_a_trace();
    assert_eq!(slow.answer().unwrap().status, 200);
}

#[test]
fn a_request_that_comes_while_the_app_falls_asleep_takes_it_back() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut slow = edge.connect();
    slow.send_head("GET", "/debug/slow?ms=1000", &[]);
    eventually("it is in flight", || edge.ps().first().is_some_and(|r| r["in_flight"] == 1));
    std::thread::scope(|scope| {
        scope.spawn(|| edge.json(&["sleep", "studylab"]));
        eventually("it drains", || edge.ps().iter().any(|a| a["state"] == "draining"));
        assert_eq!(edge.get("/dashboard").status, 200);
    });
    assert_eq!(slow.answer().unwrap().status, 200);
    let ps = edge.ps();
    assert_eq!((ps.len(), &ps[0]["generation"], &ps[0]["state"]), (1, &json!(1), &json!("ready")));
    assert_eq!((edge.ops().len(), edge.executions("start")), (2, 1), "a wake without a start");
}

#[test]
fn a_wake_is_not_put_to_sleep_under_those_who_wait_for_it() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut page = edge.hold("GET", "/dashboard", &[], 1);
    let done = edge.json(&["sleep", "studylab"])["done"].to_string();
    assert!(done.contains("it is being woken (op-") && done.contains("not put to sleep"), "{done}");
    gate.open();
    assert_eq!(page.answer().unwrap().status, 200);
    assert_eq!(edge.executions("start"), 1);
}

#[test]
fn requests_around_the_moment_of_sleep_are_served_and_never_refused() {
    const ROUNDS: u64 = 20;
    const CLIENTS: u64 = 4;
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            scope.spawn(|| edge.json(&["sleep", "studylab"]));
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    scope.spawn(|| {
                        // On one connection, so that each comes as soon as the last is answered.
                        let mut client = edge.connect();
                        (0..20).for_each(|n| {
                            client.send_head("GET", "/dashboard", &[]);
                            let answer = client.answer().unwrap();
                            let shown = String::from_utf8_lossy(&answer.body);
                            assert_eq!(answer.status, 200, "round {round}, {n}: {shown}");
                        });
                    })
                })
                .collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
    }
    assert_eq!(edge.executions("/dashboard"), ROUNDS * CLIENTS * 20, "each was forwarded once");
    let ops = edge.ops();
    assert!(ops.iter().all(|o| o["state"] == "hot"), "{ops:?}");
    assert!(ops.len() > 1, "it was asleep at least once");
    assert_eq!(edge.processes().len(), 1);
}
