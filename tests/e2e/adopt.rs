//! What outlives an edge that was killed, or that was told to leave its apps running: the next one
//! takes it over, if it is proved to be what was recorded.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Artifact, Edge, Gate, eventually};

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn kill_9_while_hot_loses_nothing_and_the_next_edge_serves_from_the_same_process() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_SETSID", "1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("the app has left a stray process", || edge.processes().len() == 2);
    let (before, processes) = (edge.ps(), edge.processes());
    edge.kill();
    edge.start_again();
    assert_eq!(edge.get("/dashboard").status, 200);
    let after = edge.ps();
    for key in ["id", "generation", "pid", "address", "state"] {
        assert_eq!(before[0][key], after[0][key], "{key}");
    }
    assert_eq!(edge.processes(), processes);
    assert_eq!((edge.ops().len(), edge.executions("start")), (1, 1), "nothing was started");
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn an_adopted_app_that_dies_is_noticed_and_the_next_request_wakes_another() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.kill();
    edge.start_again();
    let adopted = edge.until_hot();
    signal(adopted["pid"].as_u64().unwrap().try_into().unwrap(), Signal::SIGKILL);
    eventually("its end is seen", || edge.ps().is_empty());
    // So soon after it was ready that its wake counts as failed: the next one is after a pause.
    eventually("another is woken", || edge.get("/dashboard").status == 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
}

#[test]
fn what_an_adopted_app_prints_is_read_on() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    let speaks = format!(
        "exec 3>&1; (while [ -e {0} ]; do sleep 0.05; done; echo after the restart >&3; sleep 60) & \
         exec ./studylab",
        gate.path().display()
    );
    edge.deploy(&Artifact::new().set(
        "process",
        "command",
        &format!("[\"sh\", \"-c\", {speaks:?}]"),
    ));
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.kill();
    edge.start_again();
    let id = edge.until_hot()["id"].as_str().unwrap().to_owned();
    gate.open();
    eventually("its output is in the log", || {
        let log = edge.command(&["logs", &id]);
        String::from_utf8_lossy(&log.stdout).contains("after the restart")
    });
}

#[test]
fn an_app_that_no_longer_answers_is_ended_and_not_adopted() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let pid = edge.processes()[0];
    edge.kill();
    signal(pid, Signal::SIGSTOP);
    edge.start_again();
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]), "{}", edge.log());
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
}

#[test]
fn a_process_that_died_with_the_edge_is_taken_off_the_registry() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let pid = edge.processes()[0];
    edge.kill();
    signal(pid, Signal::SIGKILL);
    edge.start_again();
    assert_eq!(edge.ps(), [] as [Value; 0]);
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn told_to_keep_its_apps_an_edge_leaves_them_running_for_the_next_one() {
    let mut edge = Edge::start_with("[runner]\non_exit = \"keep\"\n");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    for round in 0..3 {
        let (before, processes) = (edge.ps(), edge.processes());
        assert!(edge.stop().success(), "{}", edge.log());
        assert_eq!(edge.processes(), processes, "round {round}");
        edge.start_again();
        assert_eq!(edge.ps()[0]["pid"], before[0]["pid"]);
        assert_eq!(edge.get("/dashboard").status, 200);
    }
    assert_eq!((edge.executions("start"), &edge.ps()[0]["generation"]), (1, &json!(1)));
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn keeping_leaves_nothing_that_is_only_starting() {
    let gate = Gate::closed();
    let mut edge = Edge::start_with("[runner]\non_exit = \"keep\"\n");
    edge.deploy(&Artifact::behind(&gate));
    drop(edge.hold("GET", "/dashboard", &[], 1));
    eventually("the start is under way", || edge.ops()[0]["state"] == "readiness_wait");
    edge.until_held(0);
    assert!(edge.stop().success(), "{}", edge.log());
    assert_eq!(edge.processes(), [] as [u32; 0]);
}
