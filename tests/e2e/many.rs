//! Many apps woken at the same moment: starts are bounded, each app is started once, everyone is
//! answered, and an app that is up does not notice.
//!
//! `VANGO_EDGE_TEST_APPS` sets how many; 1,000 take two minutes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vango_edge::clock::{Clock, SystemClock};

use crate::support::{Connection, Edge, binary};

const STARTS: usize = 4;

fn apps() -> usize {
    std::env::var("VANGO_EDGE_TEST_APPS").map_or(100, |n| n.parse().unwrap())
}

/// Deploys the smallest app there is, as `name`.
fn deploy(edge: &Edge, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let app = binary().with_file_name("static-1k");
    assert!(app.is_file(), "build the whole workspace, as in `cargo test --workspace`");
    let start = format!("exec {}", app.display());
    let contract = format!(
        "[app]\nname = {name:?}\n[process]\ncommand = [\"sh\", \"-c\", {start:?}]\n\
         ready = {{ path = \"/\" }}\n[wake]\nbudget = \"2m\"\n"
    );
    fs::write(dir.path().join("vango-edge.toml"), contract).unwrap();
    edge.json(&["deploy", dir.path().to_str().unwrap()]);
}

fn ask(connection: &mut Connection, name: &str) {
    connection.send_head("GET", "/", &[("Host", &format!("{name}.localhost"))]);
}

#[test]
fn a_thousand_apps_woken_at_once_are_each_started_once_and_harm_nobody() {
    let names: Vec<String> = (0..apps()).map(|n| format!("many{n}")).collect();
    let all = [&names[..], &["hot".to_owned()]].concat();
    let node = format!("[runner]\nparallel_starts = {STARTS}\nmax_processes = 2000\n");
    let edge = Edge::alone_with_apps(&format!("{node}[log]\nlevel = \"warn\"\n"), &all);
    std::thread::scope(|scope| {
        for part in all.chunks(all.len().div_ceil(4)) {
            scope.spawn(|| part.iter().for_each(|name| deploy(&edge, name)));
        }
    });
    let mut hot = edge.connect();
    ask(&mut hot, "hot");
    assert_eq!(hot.answer().unwrap().status, 200);

    let (clock, over) = (SystemClock::new(), AtomicBool::new(false));
    let (mut took, mut most, mut statuses) = (Vec::new(), 0, BTreeMap::new());
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut took = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = clock.now();
                ask(&mut hot, "hot");
                let answer = hot.answer().unwrap();
                assert_eq!(answer.status, 200);
                took.push(clock.now().since(began));
                if answer.header("connection") == Some("close") {
                    // It has had as many requests as one connection may.
                    hot = edge.connect();
                }
                crate::support::pass(Duration::from_millis(1));
            }
            took
        });
        let starting = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                let ps = edge.ps();
                let now =
                    |a: &&serde_json::Value| a["state"] == "starting" || a["state"] == "planned";
                most = most.max(ps.iter().filter(now).count());
            }
            most
        });
        let mut connections: Vec<_> = names.iter().map(|_| edge.connect()).collect();
        for (connection, name) in connections.iter_mut().zip(&names) {
            ask(connection, name);
        }
        for connection in &mut connections {
            let answer = connection.answer().expect("an answer");
            if answer.status != 200 {
                answer.retryable("wake-timeout");
            }
            *statuses.entry(answer.status).or_insert(0) += 1;
        }
        over.store(true, Ordering::Relaxed);
        took = beside.join().unwrap();
        most = starting.join().unwrap();
    });
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!(
        "{} wakes at once: {statuses:?}, {most} starting at most; a hot app beside them, {} requests: \
         p50 {:?}, p99 {:?}, most {:?}",
        names.len(),
        took.len(),
        at(50),
        at(99),
        at(100)
    );
    assert_eq!(statuses.get(&200), Some(&names.len()), "{statuses:?}");
    assert!(most <= STARTS, "{most} starts at the same time");
    // A busy machine is no failure; being kept from its turn until all are up is.
    assert!(at(99) < Duration::from_secs(1), "{:?}", at(99));
    let ps = edge.ps();
    // As many as a page has.
    assert_eq!(ps.len(), all.len().min(1000));
    assert!(ps.iter().all(|a| a["generation"] == 1), "each was started once");
    assert!(edge.ops().iter().all(|o| o["state"] == "hot" && o["attempt"] == 1));
    // So that stopping the edge has no more to wait for than in other tests.
    std::thread::scope(|scope| {
        for part in all.chunks(all.len().div_ceil(4)) {
            scope.spawn(|| part.iter().for_each(|name| drop(edge.json(&["sleep", name]))));
        }
    });
}
