//! Where the app said nothing, the edge says nothing: the connection ends.

use std::io::{Read, Write};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::live::{UPGRADE, raw, redeploy};
use crate::support::{Edge, eventually};

use super::{LIVE, Tab, vango};

/// Nothing, and then the end of the connection.
const CUT: [u8; 0] = [];

fn kill_app(edge: &Edge) {
    let pid = edge.until_hot()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn a_new_tab_is_known_by_the_session_that_its_app_named() {
    let edge = Edge::start();
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let mut tab = Tab::open(&edge, "");
    assert_eq!((tab.add(), tab.told.as_str()), (1, "fresh: no-session"));
    // It has lost its connection, the app has not.
    let sid = tab.sid.clone();
    drop(tab);
    let again = Tab::back(&edge, &sid);
    assert_eq!((again.told.as_str(), again.count), ("resume: original-allocation", 1));
    assert_eq!(again.sid, sid);
    // A session that the app does not know gets another name, under which it is known from then on.
    let unknown = Tab::open(&edge, "0123456789abcdef0123456789abcdef");
    assert_eq!(unknown.told, "fresh: not-recorded");
    let named = unknown.sid.clone();
    drop(unknown);
    assert_eq!(Tab::back(&edge, &named).told, "resume: original-allocation");
}

#[test]
fn a_crash_a_promotion_and_the_edges_stop_cut_and_the_tab_counts_on() {
    let mut edge = Edge::start();
    let (app, _sessions) = vango();
    let app = app.set("process", "drain_timeout", "\"1s\"");
    edge.deploy(&app);
    let mut tab = Tab::open(&edge, "");
    let sid = tab.sid.clone();
    assert_eq!(tab.add(), 1);
    kill_app(&edge);
    assert_eq!(tab.rest(), CUT, "a crash");

    let mut tab = Tab::back(&edge, &sid);
    assert_eq!((tab.add(), tab.told.as_str()), (2, "hydrate: store-and-schema"));
    assert_eq!(tab.sid, sid);
    let before = tab.allocation.clone();
    redeploy(&edge, &app.env("VERSION", "2"), "pr-2");
    assert_eq!(tab.rest(), CUT, "a promotion's drain: the app's own goodbye comes after it");
    let mut tab = Tab::back(&edge, &sid);
    assert_eq!((tab.add(), tab.told.as_str()), (3, "hydrate: store-and-schema"));
    assert_ne!(tab.allocation, before);

    assert!(edge.stop().success());
    assert_eq!(tab.rest(), CUT, "the edge's stop");
    edge.start_again();
    let mut tab = Tab::back(&edge, &sid);
    assert_eq!((tab.add(), tab.told.as_str()), (4, "hydrate: store-and-schema"));
}

#[test]
fn the_apps_own_goodbye_passes_and_idleness_cuts() {
    let edge = Edge::start_with("[limits]\nsocket_idle = \"1s\"\n");
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let mut idle = Tab::open(&edge, "");
    assert_eq!(idle.rest(), CUT);
    let mut tab = Tab::open(&edge, "");
    let pid = edge.until_hot()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(tab.rest(), [0x88, 2, 0x03, 0xe8], "what the app said");
}

#[test]
fn a_route_says_otherwise() {
    let edge = Edge::start();
    let (app, _sessions) = vango();
    let hello = "session = [\"vango-hello\"]";
    edge.deploy(&app.replace(hello, &format!("{hello}\nsocket_end = \"close\"")));
    let mut tab = Tab::open(&edge, "");
    assert_eq!(tab.add(), 1);
    kill_app(&edge);
    assert_eq!(tab.rest()[..4], [0x88, 11, 0x03, 0xf4], "1012");
    drop(edge);

    let edge = Edge::start();
    edge.deploy(&crate::live::echo("session = [\"query:sid\"]\nsocket_end = \"cut\""));
    let mut socket = raw(edge.listen, "/vango/live?sid=s-1", "");
    socket.write_all(b"\x82\x80\0\0\0\0").unwrap();
    socket.read_exact(&mut [0; 6]).unwrap();
    kill_app(&edge);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert_eq!(rest, CUT);
}

#[test]
fn one_that_is_turned_away_after_its_hello_is_cut_after_a_pause() {
    let edge = Edge::start_with("[limits]\nsockets = 1\n");
    let (app, _sessions) = vango();
    edge.deploy(&app);
    let _one = Tab::open(&edge, "");
    let mut two = raw(edge.listen, LIVE, "");
    two.write_all(&Tab::hello("")).unwrap();
    two.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    assert!(two.read(&mut [0]).is_err(), "not at once: it would come back each second");
    two.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let mut rest = Vec::new();
    let _ = two.read_to_end(&mut rest);
    assert_eq!(rest, CUT);
    // Refused before it was accepted, as ever.
    let mut foreign = edge.connect();
    foreign.send(format!(
        "GET {LIVE} HTTP/1.1\r\nHost: studylab.localhost\r\n{UPGRADE}Origin: http://evil.example\r\n\r\n"
    ));
    assert_eq!(foreign.answer().unwrap().status, 403);
}

#[test]
fn an_app_that_somebody_else_runs_is_the_same() {
    let (app, sessions) = vango();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let run = || {
        let child = std::process::Command::new("python3")
            .arg(app.path().join("vango.py"))
            .env("PORT", address.port().to_string())
            .env("SESSIONS", sessions.path())
            .env("VANGO_EDGE_ALLOCATION", "theirs")
            .spawn()
            .unwrap();
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        child
    };
    let mut child = run();
    let file = format!(
        "app = \"pool\"\nhosts = [\"studylab.localhost\"]\nupstreams = [\"{address}\"]\n[[route]]\npath = \
         {LIVE:?}\nclass = \"live\"\nsession = [\"vango-hello\"]\n"
    );
    let edge = Edge::start_with_app("studylab", &file);
    let mut tab = Tab::open(&edge, "");
    let sid = tab.sid.clone();
    assert_eq!(tab.add(), 1);
    drop(tab);
    let mut tab = Tab::back(&edge, &sid);
    assert_eq!((tab.add(), tab.told.as_str()), (2, "resume: original-allocation"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(tab.rest(), CUT);
    let mut child = run();
    let back = Tab::back(&edge, &sid);
    // Its upstream is the same for the edge; that its state is gone, the app says by a new name.
    assert_eq!((back.told.as_str(), back.count), ("resume: original-allocation", 0));
    assert_ne!(back.sid, sid);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_herd_loses_no_session_to_a_store_that_answers_one_after_the_other() {
    const TABS: usize = 300;
    let edge = Edge::start();
    let (app, _sessions) = vango();
    // 1.5 s for all of them, three times what one question has.
    edge.deploy(&app.env("STORE_TAKES", "0.005"));
    let mut tabs: Vec<_> = (0..TABS).map(|_| Tab::open(&edge, "")).collect();
    for tab in &mut tabs {
        assert_eq!(tab.add(), 1);
    }
    kill_app(&edge);
    std::thread::scope(|scope| {
        for mut tab in tabs {
            let edge = &edge;
            scope.spawn(move || {
                assert_eq!(tab.rest(), CUT);
                let mut tab = Tab::back(edge, &tab.sid);
                assert_eq!((tab.add(), tab.told.as_str()), (2, "hydrate: store-and-schema"));
            });
        }
    });
    assert_eq!(edge.metric("vango_edge_wakes_total{state=\"hot\"}"), 2, "one wake for all");
}
