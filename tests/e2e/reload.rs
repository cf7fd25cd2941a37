//! SIGHUP: what changes, what does not, and that nothing is lost to it.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Artifact, Connection, Edge, Gate, UPGRADE, descriptors_of, eventually, memory_of,
};

/// Rewrites the app's file with these hosts, and `more` after them.
fn write_app(edge: &Edge, hosts: &[&str], more: &str) {
    let text = format!("app = \"studylab\"\nhosts = {hosts:?}\n{more}");
    fs::write(edge.apps().join("studylab.toml"), text).unwrap();
}

fn status_of(edge: &Edge, host: &str) -> u16 {
    edge.ask("GET", "/debug/echo", &[("Host", host)], "").status
}

/// What `GET /v1/config` says.
fn config(edge: &Edge) -> Value {
    edge.admin("GET", "/v1/config").json()
}

/// SIGHUP, and the end of what it asked for.
fn hang_up(edge: &Edge) -> Value {
    let attempts = || {
        let of = |outcome| {
            edge.metric(&format!("vango_edge_config_reloads_total{{outcome=\"{outcome}\"}}"))
        };
        of("applied") + of("rejected")
    };
    let before = attempts();
    edge.hang_up();
    eventually("the configuration is read again", || attempts() > before);
    config(edge)
}

#[test]
fn hosts_come_and_go_and_the_app_stays_up() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let hot = edge.until_hot();
    write_app(&edge, &["studylab.localhost", "alias.test"], "");
    assert_eq!(status_of(&edge, "alias.test"), 404, "nothing is read before it is asked for");
    let said = hang_up(&edge);
    assert_eq!(said["last_attempt"]["outcome"], "applied", "{said}");
    assert_eq!(said["last_attempt"]["changed"], json!(["apps.studylab"]));
    assert_eq!(said["revision"], 2);
    eventually("the new host is served", || status_of(&edge, "alias.test") == 200);
    assert_eq!(edge.until_hot()["id"], hot["id"], "by the allocation that was there");
    let epochs = |edge: &Edge| -> Vec<u64> {
        edge.list(&["routes"]).iter().map(|r| r["epoch"].as_u64().unwrap()).collect()
    };
    assert_eq!(epochs(&edge), [1, 1]);

    write_app(&edge, &["alias.test"], "");
    assert_eq!(hang_up(&edge)["last_attempt"]["outcome"], "applied");
    eventually("the old host has no owner", || status_of(&edge, "studylab.localhost") == 404);
    assert_eq!(status_of(&edge, "alias.test"), 200);
    // The app's file goes, and comes back: it serves what it served.
    fs::remove_file(edge.apps().join("studylab.toml")).unwrap();
    hang_up(&edge);
    eventually("no host is left", || status_of(&edge, "alias.test") == 404);
    eventually("nothing runs that nothing reaches", || edge.processes().is_empty());
    write_app(&edge, &["studylab.localhost"], "");
    hang_up(&edge);
    eventually("it is back", || status_of(&edge, "studylab.localhost") == 200);
    assert!(epochs(&edge).iter().all(|e| *e >= 1));
}

#[test]
fn hosts_that_changed_while_no_edge_ran_count_at_the_start() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert!(edge.stop().success());
    write_app(&edge, &["other.test"], "");
    edge.start_again();
    eventually("the new host is served", || status_of(&edge, "other.test") == 200);
    assert_eq!(status_of(&edge, "studylab.localhost"), 404);
}

#[test]
fn a_host_that_another_app_takes_over_moves_to_a_later_epoch() {
    let edge = Edge::start();
    fs::write(edge.apps().join("second.toml"), "app = \"second\"\nhosts = [\"second.test\"]\n")
        .unwrap();
    hang_up(&edge);
    edge.deploy(&Artifact::new());
    edge.deploy(&Artifact::new().replace("name = \"studylab\"", "name = \"second\""));
    write_app(&edge, &["left.test"], "");
    fs::write(
        edge.apps().join("second.toml"),
        "app = \"second\"\nhosts = [\"second.test\", \"studylab.localhost\"]\n",
    )
    .unwrap();
    let said = hang_up(&edge);
    assert_eq!(said["last_attempt"]["changed"], json!(["apps.second", "apps.studylab"]));
    eventually("the routes have moved", || {
        let routes = edge.list(&["routes"]);
        routes.len() == 3
            && routes.iter().all(|r| match r["host"].as_str().unwrap() {
                "left.test" => r["environment"] == "studylab/production",
                "second.test" => r["environment"] == "second/production" && r["epoch"] == 2,
                _ => r["environment"] == "second/production" && r["epoch"] == 2,
            })
    });
    assert_eq!(edge.get("/debug/echo").json()["environment"], "second/production");
}

#[test]
fn a_file_that_is_wrong_changes_nothing_and_says_why() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let good = fs::read_to_string(edge.config()).unwrap();
    fs::write(edge.config(), format!("{good}\n[limits]\nmax_hold = 1\n")).unwrap();
    write_app(&edge, &["studylab.localhost", "alias.test"], "");
    let said = hang_up(&edge);
    assert_eq!(
        (&said["revision"], &said["last_attempt"]["outcome"]),
        (&json!(1), &json!("rejected"))
    );
    let why = said["last_attempt"]["errors"][0].as_str().unwrap();
    assert!(why.contains("edge.toml:") && why.contains("max_held"), "{why}");
    assert!(edge.log().contains(why), "the log has it too");
    assert_eq!(edge.metric("vango_edge_config_last_reload_successful"), 0);
    assert_eq!(status_of(&edge, "alias.test"), 404, "its good part is not taken either");
    assert_eq!(edge.get("/debug/echo").status, 200);

    let asked = edge.command(&["reload"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("max_held"));

    fs::write(edge.config(), good).unwrap();
    assert_eq!(edge.json(&["reload"])["revision"], 2);
    assert_eq!(edge.metric("vango_edge_config_last_reload_successful"), 1);
    assert_eq!(edge.metric("vango_edge_config_reloads_total{outcome=\"rejected\"}"), 2);
    eventually("the host is there now", || status_of(&edge, "alias.test") == 200);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_takes_effect() {
    let edge = Edge::start_with("[log]\nlevel = \"error\"\n");
    let text = fs::read_to_string(edge.config()).unwrap();
    let text = text.replacen("listen = [\"127.0.0.1:0\"]", "listen = [\"127.0.0.1:1\"]", 1);
    let text = text.replace("dir = \"state\"", "dir = \"elsewhere\"");
    let text = text.replace("level = \"error\"", "level = \"info\"\n[trace]\nring = 2");
    fs::write(edge.config(), text).unwrap();
    let said = hang_up(&edge);
    assert_eq!(said["needs_restart"], json!(["server.listen", "state.dir"]));
    assert_eq!(said["last_attempt"]["changed"], json!(["log.level", "trace.ring"]));
    assert!(edge.log().contains("configuration reloaded, revision 2"), "{}", edge.log());
    for _ in 0..3 {
        assert_eq!(edge.get("/").status, 404);
    }
    eventually("two traces are kept", || edge.list(&["traces"]).len() == 2);
}

#[test]
fn a_budget_that_a_timeout_would_cut_is_refused_at_deploy_and_at_reload() {
    let edge = Edge::start();
    let long = Artifact::new().set("wake", "budget", "\"6m\"");
    let refused = edge.command(&["deploy", long.write().to_str().unwrap()]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("server.grace") && why.contains("360s"), "{why}");
    assert_eq!(edge.list(&["deployments"]).len(), 0);

    edge.deploy(&Artifact::new());
    let text = fs::read_to_string(edge.config()).unwrap();
    fs::write(edge.config(), text.replace("grace = \"300s\"", "grace = \"9s\"")).unwrap();
    eventually("routing knows the contract", || edge.list(&["routes"]).len() == 1);
    let said = hang_up(&edge);
    let why = said["last_attempt"]["errors"][0].as_str().unwrap();
    assert!(why.contains("server.grace is 9s") && why.contains("studylab/production"), "{why}");
}

#[test]
fn processes_get_new_secrets_from_their_next_start() {
    let edge = Edge::start();
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let start = format!("printenv SESSION_KEY >> {}; exec ./studylab", seen.display());
    let artifact = Artifact::new()
        .set("process", "command", &format!("[\"sh\", \"-c\", {start:?}]"))
        .set("process", "secrets", "[\"SESSION_KEY\"]");
    for name in ["first", "second"] {
        fs::write(dir.path().join(name), format!("{name}-value\n")).unwrap();
    }
    let from = |name: &str| {
        let file = dir.path().join(name);
        format!("secrets = {{ SESSION_KEY = {{ file = {:?} }} }}\n", file.display().to_string())
    };
    write_app(&edge, &["studylab.localhost"], &from("first"));
    hang_up(&edge);
    edge.deploy(&artifact);
    assert_eq!(edge.get("/debug/echo").status, 200);
    write_app(&edge, &["studylab.localhost"], &from("second"));
    hang_up(&edge);
    assert_eq!(edge.get("/debug/echo").status, 200);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "first-value\n", "what runs keeps its own");
    edge.assert_sleeps_without_a_trace();
    assert_eq!(edge.get("/debug/echo").status, 200);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "first-value\nsecond-value\n");
}

/// A live socket, as far as its 101.
fn live(edge: &Edge) -> Connection {
    let mut socket = edge.connect();
    socket.send_head("GET", "/vango/live", &UPGRADE);
    assert_eq!(socket.answer().unwrap().status, 101);
    socket
}

#[test]
fn held_requests_and_sockets_outlive_reloads_and_limits_count_at_once() {
    let (edge, gate) = (Edge::start_with("[limits]\nmax_held = 1\n"), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut held = edge.hold("GET", "/debug/echo", &[], 1);
    edge.get("/dashboard").retryable("hold-queue-full");
    let text = fs::read_to_string(edge.config()).unwrap();
    fs::write(edge.config(), text.replace("max_held = 1", "max_held = 2")).unwrap();
    assert_eq!(hang_up(&edge)["last_attempt"]["changed"], json!(["limits.max_held"]));
    let mut second = edge.hold("GET", "/debug/echo?second", &[], 2);
    gate.open();
    assert_eq!(held.answer().unwrap().status, 200);
    assert_eq!(second.answer().unwrap().status, 200);

    let mut socket = live(&edge);
    hang_up(&edge);
    // A ping with an empty payload, masked with zeros; its pong is what is awaited.
    socket.send([0x89, 0x80, 0, 0, 0, 0]);
    socket.read_until([0x8a, 0x00]);
}

/// `VANGO_EDGE_TEST_RELOADS` sets how many; `scripts/test-reload` asks for 1,000.
fn reload_count() -> u64 {
    std::env::var("VANGO_EDGE_TEST_RELOADS").map_or(200, |n| n.parse().unwrap())
}

#[test]
fn reloads_under_load_lose_no_request_and_leave_nothing_behind() {
    let reloads = reload_count();
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (edge, stop, asked) = (&edge, &stop, &asked);
            scope.spawn(move || {
                let mut connection = edge.connect();
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Some on connections of their own, so that accepting is part of it.
                    if sent % 50 == 49 {
                        connection = edge.connect();
                    }
                    connection.send_head("GET", &format!("/debug/echo?{n}"), &[]);
                    assert_eq!(connection.answer().expect("an answer").status, 200);
                    sent += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = StopOnDrop(&stop);
        let mut after_warm_up = (0, 0);
        for n in 1..=reloads {
            let hosts: &[&str] = if n % 2 == 0 {
                &["studylab.localhost"]
            } else {
                &["studylab.localhost", "alias.test"]
            };
            write_app(&edge, hosts, &format!("max_allocations = {}\n", 1 + n % 7));
            let said = hang_up(&edge);
            assert_eq!(said["revision"], n + 1, "{said}");
            if n == reloads / 4 {
                after_warm_up = (memory_of(edge.pid()), descriptors_of(edge.pid()));
            }
        }
        drop(started);
        let (memory, descriptors) = (memory_of(edge.pid()), descriptors_of(edge.pid()));
        let grown = memory.saturating_sub(after_warm_up.0);
        let (before, kib) = (after_warm_up, |bytes: u64| bytes / 1024);
        println!(
            "memory {} KiB after {} reloads, {} KiB after {reloads}; descriptors {} and {descriptors}",
            kib(before.0),
            reloads / 4,
            kib(memory),
            before.1
        );
        assert!(grown < 16 << 20, "{grown} bytes more after {} reloads", reloads * 3 / 4);
        assert!(descriptors <= after_warm_up.1 + 16, "{descriptors} of {}", after_warm_up.1);
    });
    let asked = asked.into_inner();
    assert!(asked > reloads, "{asked} requests meanwhile");
    assert_eq!(edge.executions("start"), 1, "one process served them all");
    assert_eq!(edge.metric("vango_edge_config_reloads_total{outcome=\"rejected\"}"), 0);
    println!("{reloads} reloads, {asked} requests, all answered 200");
}

/// Ends the load whatever happens to the test's own part.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_endless_stream_of_signals_is_answered_one_after_another() {
    let edge = Edge::start();
    for _ in 0..500 {
        edge.hang_up();
    }
    // Signals that come while one is at work are one more: the last one counts, whatever came of
    // the others.
    write_app(&edge, &["last.test"], "");
    edge.deploy(&Artifact::new());
    hang_up(&edge);
    eventually("the last state is in force", || status_of(&edge, "last.test") == 200);
    assert!(edge.connect().is_silent(Duration::from_millis(50)));
}
