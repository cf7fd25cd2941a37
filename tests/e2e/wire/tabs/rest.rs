//! Tabs whose app falls asleep under them, and tabs whose session has a newer one.

use std::time::Duration;

use crate::support::{Artifact, Edge, eventually};

use super::{Tab, vango};

fn sleeping_in(mode: &str) -> (Artifact, tempfile::TempDir) {
    let (app, sessions) = vango();
    let app = app.set("sleep", "mode", &format!("{mode:?}")).set("sleep", "live", "\"traffic\"");
    (app.set("sleep", "after", "\"1s\""), sessions)
}

fn asleep(edge: &Edge) -> bool {
    edge.ps().iter().all(|a| a["state"] == "frozen")
}

#[test]
fn a_tab_rests_while_its_app_sleeps_and_its_users_next_message_wakes_it() {
    for (mode, told) in
        [("stop", "hydrate: store-and-schema"), ("freeze", "resume: original-allocation")]
    {
        let edge = Edge::start();
        let (app, _sessions) = sleeping_in(mode);
        edge.deploy(&app);
        let mut tab = Tab::open(&edge, "");
        let sid = tab.sid.clone();
        assert_eq!(tab.add(), 1);
        eventually("it sleeps under its tab", || asleep(&edge));
        assert_eq!(edge.metric("vango_edge_socket_ends_total{cause=\"asleep\"}"), 1);
        let resting = || edge.metric("vango_edge_sockets_resting ");
        eventually("it is counted", || resting() == 1);
        assert_eq!(edge.metric("vango_edge_sockets "), 0);
        tab.ping();
        // As a browser answers a ping of the protocol's.
        tab.send(b"\x8a\x80\0\0\0\0");
        assert!(tab.is_quiet(Duration::from_millis(2500)), "it is neither cut nor spoken to");
        assert!(asleep(&edge), "and has woken nothing");
        assert_eq!(edge.ops().len(), 1);
        tab.click();
        assert_eq!(tab.rest(), [] as [u8; 0], "{mode}: cut");
        assert_eq!(resting(), 0);
        edge.until_hot();
        let mut tab = Tab::back(&edge, &sid);
        assert_eq!((tab.add(), tab.told.as_str()), (2, told), "{mode}");
        assert_eq!(edge.ops().len(), 2);
    }
}

#[test]
fn tabs_that_rest_are_cut_when_somebody_else_has_woken_their_app() {
    let edge = Edge::start();
    let (app, _sessions) = sleeping_in("stop");
    edge.deploy(&app);
    let mut tabs: Vec<_> = (0..20).map(|_| Tab::open(&edge, "")).collect();
    for tab in &mut tabs {
        assert_eq!(tab.add(), 1);
    }
    eventually("it sleeps under its tabs", || asleep(&edge));
    assert_eq!(edge.get("/").status, 200);
    for mut tab in tabs {
        assert_eq!(tab.rest(), [] as [u8; 0]);
        let mut tab = Tab::back(&edge, &tab.sid);
        assert_eq!((tab.add(), tab.told.as_str()), (2, "hydrate: store-and-schema"));
    }
    assert_eq!(edge.ops().len(), 2);
}

#[test]
fn an_operators_sleep_is_not_undone_by_open_tabs() {
    let mut edge = Edge::start();
    // With "pins", the default, only a command puts it to sleep.
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let mut tab = Tab::open(&edge, "");
    let sid = tab.sid.clone();
    assert_eq!(tab.add(), 1);
    edge.json(&["sleep", "studylab"]);
    assert!(tab.is_quiet(Duration::from_millis(1500)));
    assert_eq!((edge.ps().len(), edge.ops().len()), (0, 1));
    tab.click();
    assert_eq!(tab.rest(), [] as [u8; 0]);
    let mut tab = Tab::back(&edge, &sid);
    assert_eq!(tab.add(), 2);
    edge.json(&["sleep", "studylab"]);
    assert!(edge.stop().success(), "{}", edge.log());
    assert_eq!(tab.rest(), [] as [u8; 0], "the edge's stop ends what rests as well");
}

#[test]
fn a_client_that_rests_and_is_gone_or_says_goodbye_is_let_go() {
    let edge = Edge::start_with("[limits]\nsocket_idle = \"1s\"\n");
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let mut tab = Tab::open(&edge, "");
    let mut silent = Tab::open(&edge, "");
    edge.json(&["sleep", "studylab"]);
    tab.send(b"\x88\x82\0\0\0\0\x03\xe9");
    assert_eq!(tab.rest(), [0x88, 2, 0x03, 0xe8], "its goodbye is answered");
    assert_eq!(silent.rest(), [0x89, 0], "one that answers no ping is gone");
    assert_eq!(edge.ops().len(), 1);
}

#[test]
fn of_two_tabs_with_one_session_the_one_that_is_used_has_it() {
    let edge = Edge::start();
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let mut older = Tab::open(&edge, "");
    let sid = older.sid.clone();
    assert_eq!(older.add(), 1);
    // A browser that duplicates a tab copies its session storage.
    let mut newer = Tab::open(&edge, &sid);
    assert_eq!((newer.add(), newer.told.as_str()), (2, "resume: original-allocation"));
    assert_eq!(edge.metric("vango_edge_socket_ends_total{cause=\"replaced\"}"), 1);
    assert!(older.is_quiet(Duration::from_millis(1500)), "it does not take the session back");
    older.click();
    assert_eq!(older.rest(), [] as [u8; 0]);
    let mut older = Tab::open(&edge, &sid);
    assert_eq!(older.add(), 3);
    assert!(newer.is_quiet(Duration::from_millis(100)));
}
