//! Previews that are not used go, and nothing else does.

use std::fs;
use std::time::Duration;

use vango_edge::clock::{Clock, Mono, SystemClock};

use crate::support::{Artifact, Edge, Gate, UPGRADE, eventually, eventually_some};

use super::promotion::{deploy_preview, host, promote, route, visit};

const AGE: Duration = Duration::from_secs(3);

fn with_age(edge: &Edge) {
    let app = edge.apps().join("studylab.toml");
    let text = fs::read_to_string(&app).unwrap();
    fs::write(&app, format!("{text}\npreview_age = \"{}s\"\n", AGE.as_secs())).unwrap();
    edge.json(&["reload"]);
}

fn is_there(edge: &Edge, preview: &str) -> bool {
    let name = format!("studylab/{preview}");
    edge.list(&["routes"]).iter().any(|r| r["environment"] == name.as_str())
}

/// Visits with `visit` until `over` says so; asserts that what is visited is there all the time.
fn use_until(
    clock: &SystemClock,
    end: Mono,
    mut visit: impl FnMut(),
    mut over: impl FnMut() -> bool,
) {
    while clock.now() < end || !over() {
        visit();
    }
}

#[test]
fn a_preview_that_is_not_used_goes_with_its_process_and_the_audit_says_so() {
    let clock = SystemClock::new();
    let mut edge = Edge::start();
    let production = edge.deploy(&Artifact::new());
    for name in ["quiet", "static", "socket"] {
        deploy_preview(&edge, &Artifact::new().env("VERSION", name), name);
    }
    visit(&edge, "quiet", 1);
    let address = host("socket");
    // A socket that says nothing is open, and that is use.
    let upgrade = [&[("Host", address.as_str())], &UPGRADE[..]].concat();
    let mut socket = edge.connect();
    socket.send_head("GET", "/vango/live?sid=s-1", &upgrade);
    assert_eq!(socket.answer().unwrap().status, 101);
    with_age(&edge);
    let began = clock.now();
    let asset = || {
        let page = edge.ask("GET", "/assets/app.css", &[("Host", &host("static"))], "");
        assert_eq!(page.status, 200, "a file of a preview is use of it");
    };
    // Each question takes about a millisecond: this is not a wait.
    use_until(&clock, began + AGE * 2, asset, || !is_there(&edge, "quiet"));
    let gone = edge.ask("GET", "/dashboard", &[("Host", &host("quiet"))], "");
    gone.problem(404, "no-route");
    eventually("its process ends", || {
        edge.ps().iter().all(|a| a["environment"] != "studylab/quiet")
    });
    assert!(is_there(&edge, "static") && is_there(&edge, "socket"));
    let row = eventually_some("the audit has it", || {
        edge.list(&["audit", "studylab"]).into_iter().find(|r| r["decision"] == "removed")
    });
    assert_eq!(row["environment"], "studylab/quiet");
    assert!(row["why"].as_str().unwrap().contains("nothing asked for it since"), "{row}");
    drop(socket);
    eventually("the others go when they are left alone", || {
        !is_there(&edge, "static") && !is_there(&edge, "socket")
    });
    assert_eq!(route(&edge)["digest"], production["digest"], "production has no age");
    // What went can come again, under a later epoch, and its age begins anew, over a restart too.
    let again = deploy_preview(&edge, &Artifact::new().env("VERSION", "quiet"), "quiet");
    assert!(again["epoch"].as_u64() > Some(1), "{again}");
    let began = clock.now();
    visit(&edge, "quiet", 1);
    edge.kill();
    edge.start_again();
    assert!(clock.now().since(began) >= AGE || is_there(&edge, "quiet"));
    eventually("it goes again", || !is_there(&edge, "quiet"));
}

#[test]
fn one_that_is_being_promoted_stays_until_that_is_over() {
    let clock = SystemClock::new();
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::new());
    deploy_preview(&edge, &Artifact::behind(&gate), "pr-7");
    gate.open();
    visit(&edge, "pr-7", 1);
    edge.json(&["sleep", "studylab/pr-7"]);
    gate.close();
    let mut promoting = promote(&edge, "pr-7");
    eventually("it waits for its start", || {
        edge.ops().iter().any(|o| o["kind"] == "promote" && o["state"] == "route_cas")
    });
    with_age(&edge);
    let began = clock.now();
    use_until(&clock, began + AGE * 2, || assert!(is_there(&edge, "pr-7")), || true);
    let refused = edge.command(&["remove", "studylab/pr-7"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("promotes its own"), "{said}");
    gate.open();
    assert!(promoting.wait().unwrap().success());
    eventually("it goes", || !is_there(&edge, "pr-7"));
    assert_eq!((edge.get("/dashboard").status, &route(&edge)["epoch"]), (200, &2.into()));
}
