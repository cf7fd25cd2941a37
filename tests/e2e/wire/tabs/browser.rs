//! A browser whose page comes back by the rules of Vango's own client.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::live::browser::Browser;
use crate::live::redeploy;
use crate::support::{Edge, eventually, pass};

use super::vango;

/// A tab at the app's page, whose address stays when the edge is started again.
fn tab(edge: &Edge) -> Browser {
    let mut browser =
        Browser::open_with(&format!("http://studylab.localhost:{}/", edge.listen.port()), &[]);
    browser.until("state", "connected");
    click(&mut browser, 1);
    browser
}

fn click(browser: &mut Browser, count: u64) {
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", &count.to_string());
}

fn keep_the_port(edge: &Edge) {
    let listen = format!("listen = [\"{}\"]", edge.listen);
    edge.reconfigure("listen = [\"127.0.0.1:0\"]", &listen);
}

#[test]
fn a_tab_counts_on_after_a_crash_a_promotion_and_a_lost_edge() {
    let mut edge = Edge::start_with("[runner]\non_exit = \"keep\"\n");
    keep_the_port(&edge);
    let (app, _sessions) = vango();
    let app = app.set("process", "drain_timeout", "\"1s\"");
    edge.deploy(&app);
    let mut browser = tab(&edge);
    browser.until("told", "fresh: no-session");

    let pid = edge.until_hot()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    browser.until("told", "hydrate: store-and-schema");
    browser.until("state", "connected");
    click(&mut browser, 2);

    let before = browser.evaluate("document.getElementById('allocation').textContent");
    redeploy(&edge, &app.env("VERSION", "2"), "pr-2");
    browser.until("losses", "2");
    browser.until("state", "connected");
    assert_ne!(before, browser.evaluate("document.getElementById('allocation').textContent"));
    click(&mut browser, 3);

    // SIGTERM, and the next edge takes the app over.
    assert!(edge.stop().success(), "{}", edge.log());
    edge.start_again();
    browser.until("losses", "3");
    browser.until("told", "resume: original-allocation");
    browser.until("state", "connected");
    click(&mut browser, 4);

    edge.kill();
    edge.start_again();
    browser.until("losses", "4");
    browser.until("told", "resume: original-allocation");
    browser.until("state", "connected");
    click(&mut browser, 5);
    let ends = browser.evaluate("document.getElementById('ends').textContent");
    assert!(!ends.as_str().unwrap().contains("clean"), "{ends}");
    assert!(ends.as_str().unwrap().starts_with("1006; "), "{ends}");
    // Neither is kept.
    edge.json(&["sleep", "studylab/pr-2"]);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_tab_lets_its_app_sleep_and_counts_on_after_a_click() {
    for (mode, live, told) in [
        ("stop", "traffic", "hydrate: store-and-schema"),
        ("freeze", "traffic", "resume: original-allocation"),
        ("stop", "pins", "hydrate: store-and-schema"),
        ("freeze", "pins", "resume: original-allocation"),
    ] {
        let edge = Edge::start();
        let (app, _sessions) = vango();
        let app = app.set("sleep", "mode", &format!("{mode:?}"));
        let app = app.set("sleep", "live", &format!("{live:?}"));
        edge.deploy(&app.set("sleep", "after", "\"1s\""));
        let mut browser = tab(&edge);
        if live == "pins" {
            pass(Duration::from_secs(2));
            assert_eq!(edge.ps()[0]["state"], "ready", "an open tab keeps it awake");
            edge.json(&["sleep", "studylab"]);
        }
        eventually("it sleeps", || edge.ps().iter().all(|a| a["state"] == "frozen"));
        // Longer than the client's first pauses together.
        pass(Duration::from_secs(4));
        assert!(edge.ps().iter().all(|a| a["state"] == "frozen"), "the tab has not woken it");
        assert_eq!(edge.ops().len(), 1, "{mode} {live}");
        // The click that wakes is lost, as any that meets a lost connection; the next counts.
        browser.evaluate("document.getElementById('inc').click()");
        browser.until("losses", "1");
        browser.until("state", "connected");
        browser.until("told", told);
        browser.until("attempts", "2");
        click(&mut browser, 2);
    }
}
