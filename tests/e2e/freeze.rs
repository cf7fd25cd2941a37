//! Sleeping in memory: what is frozen wakes without a start, and leaves when it was kept long enough.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Artifact, Connection, Edge, eventually};

fn freezing() -> Artifact {
    Artifact::new().set("sleep", "mode", "\"freeze\"")
}

fn freeze(edge: &Edge) {
    assert_eq!(edge.json(&["sleep", "studylab"])["done"], "froze 1 allocation");
    assert_eq!(edge.ps()[0]["state"], "frozen");
    assert_eq!(edge.list(&["routes"])[0]["state"], "frozen");
}

/// Clock ticks of processor time that a process has had (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_frozen_app_is_thawed_by_the_next_request_and_nothing_is_started() {
    let edge = Edge::start();
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    let hot = edge.ps();
    for round in 1..=3 {
        freeze(&edge);
        let page = edge.get("/dashboard");
        assert_eq!(page.status, 200, "{}", page.text());
        let thawed = edge.ps();
        for key in ["id", "generation", "pid", "address", "state"] {
            assert_eq!(hot[0][key], thawed[0][key], "{key}");
        }
        let trace = edge.trace(page.request_id());
        assert_eq!(trace["outcome"], "woken");
        let ops = edge.ops();
        assert_eq!((ops.len(), &ops[0]["state"]), (round + 1, &json!("hot")));
        let phases = &ops[0]["phases"];
        assert!(phases["thaw_us"].is_u64() && phases["spawn_us"].is_null(), "{phases}");
        assert_eq!(trace["operation"], ops[0]["id"]);
    }
    assert_eq!((edge.executions("start"), edge.executions("/dashboard")), (1, 4));
}

#[test]
fn what_is_frozen_gets_no_processor_time() {
    let edge = Edge::start();
    let busy = "(while :; do :; done) & exec ./studylab";
    edge.deploy(&freezing().set("process", "command", &format!("[\"sh\", \"-c\", {busy:?}]")));
    assert_eq!(edge.get("/dashboard").status, 200);
    freeze(&edge);
    let all = || edge.processes().iter().map(|pid| ticks((*pid).into())).sum::<u64>();
    let (before, mut looks) = (all(), 0);
    eventually("half a second of looks", || {
        looks += 1;
        assert_eq!(all(), before);
        looks == 50
    });
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("it runs again", || all() > before);
    freeze(&edge);
    edge.assert_sleeps_without_a_trace();
}

/// The state of a process (proc_pid_stat(5), field 3).
fn state_of(pid: u64) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
}

#[test]
fn where_there_is_no_control_group_a_signal_stops_it() {
    let mut edge = Edge::start_without_control_groups();
    assert!(edge.log().contains("no control group"), "{}", edge.log());
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    let hot = edge.ps();
    let pid = hot[0]["pid"].as_u64().unwrap();
    for _ in 0..3 {
        freeze(&edge);
        assert_eq!(state_of(pid), 'T');
        let (before, mut looks) = (ticks(pid), 0);
        eventually("some looks", || {
            looks += 1;
            assert_eq!(ticks(pid), before);
            looks == 10
        });
        assert_eq!(edge.get("/dashboard").status, 200);
        assert_ne!(state_of(pid), 'T');
        assert_eq!((&edge.ps()[0]["id"], &edge.ps()[0]["pid"]), (&hot[0]["id"], &hot[0]["pid"]));
    }
    // The next edge adopts it as it is, and so does one that would use a group of its own.
    for groups in [false, true] {
        freeze(&edge);
        edge.kill();
        if groups {
            edge.show_control_groups();
        }
        edge.start_again();
        assert_eq!((&edge.ps()[0]["state"], state_of(pid)), (&json!("frozen"), 'T'));
        assert_eq!(edge.get("/dashboard").status, 200);
    }
    assert_eq!((edge.executions("start"), edge.ps()[0]["pid"].as_u64()), (1, Some(pid)));
    freeze(&edge);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_second_sleep_stops_what_is_frozen() {
    let edge = Edge::start();
    edge.deploy(&freezing().env("STUDYLAB_SETSID", "1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    freeze(&edge);
    assert_eq!(edge.json(&["sleep", "studylab"])["done"], "stopped 1 allocation");
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]));
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
}

#[test]
fn an_idle_app_is_frozen_and_stopped_after_its_time() {
    let edge = Edge::start();
    edge.deploy(&freezing().set("sleep", "after", "\"1s\"").set("sleep", "freeze_for", "\"1s\""));
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("it is frozen", || edge.ps().iter().any(|a| a["state"] == "frozen"));
    eventually("it is stopped", || edge.ps().is_empty());
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn beyond_the_nodes_memory_nothing_stays_frozen() {
    let edge = Edge::start_with("[runner]\nfrozen_memory = \"64KiB\"\n");
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.json(&["sleep", "studylab"]);
    eventually("it is stopped", || edge.ps().is_empty());
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn connections_that_were_kept_to_a_frozen_app_are_not_used_again() {
    let edge = Edge::start();
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    let save = |key: &str| {
        let form =
            [("Content-Type", "application/x-www-form-urlencoded"), ("Idempotency-Key", key)];
        edge.ask("POST", "/actions/save", &form, "text=tea").status
    };
    for round in 0..20 {
        // An unsafe request: one that a stale connection lost would be a 502.
        assert_eq!(save(&format!("k-{round}")), 200);
        freeze(&edge);
        assert_eq!(save(&format!("f-{round}")), 200);
    }
    assert_eq!(edge.executions("/actions/save"), 40);
}

#[test]
fn kill_9_while_frozen_is_adopted_frozen() {
    let mut edge = Edge::start();
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    freeze(&edge);
    let before = edge.ps();
    edge.kill();
    edge.start_again();
    let after = edge.ps();
    assert_eq!((&after[0]["state"], &after[0]["pid"]), (&json!("frozen"), &before[0]["pid"]));
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!((edge.executions("start"), &edge.ps()[0]["id"]), (1, &before[0]["id"]));
}

#[test]
fn one_that_died_frozen_is_replaced() {
    let edge = Edge::start();
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    freeze(&edge);
    let pid = edge.ps()[0]["pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("its end is seen", || edge.ps().is_empty());
    eventually("another is woken", || edge.get("/dashboard").status == 200);
    assert_eq!(edge.ps()[0]["generation"], 2);
}

#[test]
fn three_hundred_wait_for_one_thaw() {
    let edge = Edge::start();
    edge.deploy(&freezing());
    assert_eq!(edge.get("/dashboard").status, 200);
    freeze(&edge);
    let mut all: Vec<Connection> = (0..300).map(|_| edge.connect()).collect();
    for one in &mut all {
        one.send_head("GET", "/dashboard", &[("Connection", "close")]);
    }
    for one in &mut all {
        let answer = one.answer().unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    }
    assert_eq!((edge.ops().len(), edge.executions("start")), (2, 1));
}

#[test]
fn what_does_not_wake_leaves_it_asleep_and_does_not_keep_it_up() {
    let edge = Edge::start();
    let probe = "[[route]]\npath = \"/healthz\"\nwakes = false\nasleep_status = 200\n\
                 [[route]]\npath = \"/vango/live\"";
    let artifact = Artifact::new().replace("[[route]]\npath = \"/vango/live\"", probe);
    let agents = "[\"kube-probe/\"]";
    edge.deploy(&artifact.set("sleep", "after", "\"1s\"").set("wake", "ignore_agents", agents));
    let answer = edge.get("/healthz");
    assert_eq!((answer.status, answer.text()), (200, "asleep\n"));
    let probe = [("User-Agent", "kube-probe/1.30")];
    edge.ask("GET", "/dashboard", &probe, "").retryable("asleep");
    assert_eq!((edge.ops(), edge.processes()), (vec![], vec![]));

    assert_eq!(edge.get("/dashboard").status, 200);
    let served = edge.get("/healthz");
    assert_eq!(served.status, 200);
    assert_ne!(served.text(), "asleep\n", "the app's own answer");
    // Asked all the time, and asleep all the same.
    eventually("it sleeps", || {
        edge.get("/healthz");
        edge.ask("GET", "/dashboard", &probe, "");
        edge.ps().is_empty()
    });
    assert_eq!(edge.ops().len(), 1, "{:?}", Value::from(edge.ops()));
}

#[test]
fn what_its_contract_keeps_up_is_up_without_a_request() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().set("scale", "min", "1"));
    let first = edge.until_hot();
    let pid = first["pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the next one is up", || {
        edge.ps().iter().any(|a| a["state"] == "ready" && a["generation"] == 2)
    });
}

#[test]
fn what_a_frozen_apps_workers_hold_counts_as_the_apps() {
    let worker = |bytes: u32| {
        let program = format!("$$| = 1; my $$held = 'x' x {bytes}; print \"up\\n\"; sleep 1000;");
        format!(
            "[[process.worker]]\nname = \"mailer\"\ncommand = [\"perl\", \"-e\", {program:?}]\n[wake]"
        )
    };
    let edge = Edge::start_with("[runner]\nfrozen_memory = \"96MiB\"\n");
    let frozen = |bytes| {
        edge.deploy(&freezing().replace("[wake]", &worker(bytes)));
        assert_eq!(edge.get("/dashboard").status, 200);
        let up = || edge.said(&["logs", "studylab", "--process", "mailer"]).matches("up").count();
        let before = up();
        eventually("its worker is up", || up() > before || up() > 1);
        edge.json(&["sleep", "studylab"]);
    };
    frozen(1);
    eventually("both are frozen", || {
        edge.ps().iter().filter(|p| p["state"] == "frozen").count() == 2
    });
    frozen(200_000_000);
    eventually("both are stopped", || edge.ps().is_empty() && edge.processes().is_empty());
    assert!(edge.log().contains("is not kept frozen longer"), "{}", edge.log());
}
