//! How sockets end: one side with the other, by idleness, by a newer one, by the edge's stop.

use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::json;
use tungstenite::Message;

use crate::support::{Artifact, Edge, UPGRADE, eventually};

use super::{Socket, echo, open, raw};

const BY_QUERY: &str = "session = [\"query:sid\"]";

#[test]
fn a_client_that_is_gone_takes_its_leg_to_the_app_with_it_at_once() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let (socket, _) = Socket::greeted(&edge, "/vango/live", &[]);
    let (other, _) = Socket::greeted(&edge, "/vango/live", &[]);
    assert_eq!(edge.ps()[0]["sockets"], 2);
    drop(socket);
    eventually("one is left", || edge.ps()[0]["sockets"] == 1);
    assert_eq!(edge.metric("vango_edge_socket_ends_total{cause=\"client\"}"), 1);
    drop(other);
    eventually("none is left", || edge.ps()[0]["sockets"] == 0);
    assert_eq!(edge.metric("vango_edge_sockets "), 0);
}

#[test]
fn a_newer_socket_of_a_tab_ends_the_older_one_and_two_tabs_of_a_browser_stay() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let (older, _) = Socket::greeted(&edge, "/vango/live?sid=tab-1", &[]);
    let (mut newer, hello) = Socket::greeted(&edge, "/vango/live?sid=tab-1", &[]);
    assert_eq!(older.closed(), Some(1000), "not to come back for this one");
    assert_eq!(hello["state"], "memory");
    assert_eq!(newer.add(), 1);
    let cookie = [("Cookie", "vango_session=browser-1")];
    let (mut one, _) = Socket::greeted(&edge, "/vango/live", &cookie);
    let (mut two, _) = Socket::greeted(&edge, "/vango/live", &cookie);
    assert_eq!((one.add(), two.json()["count"].as_u64()), (1, Some(1)), "both see it");
    assert_eq!(edge.ps()[0]["sockets"], 3);
}

#[test]
fn silence_ends_a_socket_and_any_byte_keeps_it() {
    let edge = Edge::start_with("[limits]\nsocket_idle = \"400ms\"\n");
    edge.deploy(&Artifact::new());
    let (mut busy, _) = Socket::greeted(&edge, "/vango/live", &[]);
    let (idle, _) = Socket::greeted(&edge, "/vango/live", &[]);
    let closing = std::thread::spawn(move || idle.closed());
    // As long as the other is open, this one says something far more often than it must.
    while !closing.is_finished() {
        busy.send(Message::Ping("still here".into()));
        assert!(matches!(busy.read(), Message::Pong(_)));
    }
    assert_eq!(closing.join().unwrap(), Some(1001));
    assert_eq!(busy.add(), 1);
}

#[test]
fn traffic_keeps_an_app_awake_and_pings_do_not_where_the_contract_says_so() {
    let edge = Edge::start();
    let artifact =
        echo(BY_QUERY).set("sleep", "after", "\"1s\"").set("sleep", "live", "\"traffic\"");
    edge.deploy(&artifact);
    let mut socket = raw(edge.listen, "/vango/live", "");
    let first = edge.until_hot()["id"].clone();
    // The echo sends each ping back, as it would answer one; both ways they do not count.
    let ping = [0x89, 0x81, 0, 0, 0, 0, b'p'];
    let mut pings = 0;
    let end = loop {
        let mut back = [0; 7];
        if socket.write_all(&ping).is_err() || socket.read_exact(&mut back).is_err() {
            panic!("it ended without a word after {pings} pings");
        }
        if back != ping {
            break back;
        }
        pings += 1;
    };
    assert!(pings > 1);
    assert_eq!((end[0], &end[2..4]), (0x88, &1013u16.to_be_bytes()[..]));
    // One that comes back before the app is down takes it back; after that it wakes it, as a page does.
    eventually("it is down", || edge.ps().is_empty());
    let _again = open(edge.listen, "/vango/live", &[]).expect("a 101");
    assert_ne!(edge.until_hot()["id"], first);
    assert_eq!(edge.metric("vango_edge_socket_ends_total{cause=\"asleep\"}"), 1);
}

#[test]
fn where_the_contract_says_so_only_a_page_wakes_an_app_whose_tabs_come_back_at_once() {
    let edge = Edge::start();
    let live = "path = \"/vango/live\"\n";
    let artifact = Artifact::new()
        .set("sleep", "after", "\"2s\"")
        .set("sleep", "live", "\"traffic\"")
        .replace(live, &format!("{live}wakes = false\n"));
    edge.deploy(&artifact);
    assert_eq!(edge.get("/dashboard").status, 200);
    let path = "/vango/live?sid=s-1";
    let (mut socket, _) = Socket::greeted(&edge, path, &[]);
    let allocation = edge.until_hot()["id"].clone();
    // What it carries keeps the app awake, longer than without.
    let mut quiet = edge.connect();
    for count in 1..=3 {
        assert_eq!(socket.add(), count);
        assert!(quiet.is_silent(std::time::Duration::from_secs(1)));
    }
    assert_eq!(edge.until_hot()["id"], allocation);
    assert_eq!(socket.closed(), Some(1013));
    eventually("it sleeps", || edge.ps().is_empty());
    for _ in 0..20 {
        assert_eq!(open(edge.listen, path, &[]).err(), Some(503));
    }
    assert_eq!((edge.ps().len(), edge.ops().len()), (0, 1), "nothing was woken");
    assert_eq!(edge.get("/dashboard").status, 200);
    let (_socket, hello) = Socket::greeted(&edge, path, &[]);
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("hydrate"), &json!(3)));
}

#[test]
fn an_open_socket_keeps_an_app_awake_by_default() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().set("sleep", "after", "\"1s\""));
    let (mut socket, _) = Socket::greeted(&edge, "/vango/live", &[]);
    let (other, _) = Socket::greeted(&edge, "/vango/live", &[]);
    let allocation = edge.until_hot()["id"].clone();
    drop(other);
    // It would have slept by now: the edge looks twice a second.
    std::thread::scope(|s| {
        let waited = s.spawn(|| {
            let mut quiet = edge.connect();
            assert!(quiet.is_silent(std::time::Duration::from_millis(2500)));
        });
        waited.join().unwrap();
    });
    assert_eq!(edge.until_hot()["id"], allocation);
    assert_eq!(socket.add(), 1);
    drop(socket);
    eventually("it sleeps", || edge.ps().is_empty());
}

#[test]
fn a_drain_takes_no_new_socket_and_the_edges_stop_ends_all() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    let sockets: Vec<_> = (0..20).map(|_| Socket::greeted(&edge, "/vango/live", &[]).0).collect();
    assert!(edge.stop().success(), "{}", edge.log());
    for socket in sockets {
        assert_eq!(socket.closed(), Some(1012));
    }
}

#[test]
fn more_sockets_than_the_node_takes_are_told_to_come_later() {
    let edge = Edge::start_with("[limits]\nsockets = 2\n");
    edge.deploy(&Artifact::new());
    let _one = Socket::greeted(&edge, "/vango/live", &[]);
    let two = Socket::greeted(&edge, "/vango/live", &[]);
    let mut connection = edge.connect();
    connection.send_head("GET", "/vango/live", &UPGRADE);
    connection.answer().unwrap().retryable("app-saturated");
    assert_eq!(edge.get("/dashboard").status, 200, "pages are not behind them");
    drop(two);
    eventually("there is room again", || open(edge.listen, "/vango/live", &[]).is_ok());
}

#[test]
fn a_client_that_speaks_before_it_is_accepted_is_cut_off_and_smuggles_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let mut connection = edge.connect();
    connection.send(format!(
        "GET /vango/live HTTP/1.1\r\nHost: studylab.localhost\r\n{}\r\n\
         GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n",
        super::UPGRADE
    ));
    assert!(connection.answer().is_none_or(|a| a.status != 101));
    eventually("nothing is left of it", || edge.ps().iter().all(|a| a["sockets"] == 0));
    assert_eq!(edge.executions("/dashboard"), 0);
}

#[test]
fn an_app_that_ends_within_a_frame_ends_the_client_without_a_word() {
    let edge = Edge::start();
    edge.deploy(&echo(BY_QUERY));
    let mut socket = raw(edge.listen, "/vango/live", "");
    // Half of a frame comes back; then this side says that it sends no more, and the echo ends.
    let half = [0x82, 0x05, 1, 2];
    socket.write_all(&half).unwrap();
    let mut back = [0; 4];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(back, half);
    let pid = edge.ps()[0]["pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert_eq!(rest, [] as [u8; 0], "a close frame here would be read as the frame's payload");
    let _ = socket.shutdown(Shutdown::Both);
    eventually("counted", || edge.metric("vango_edge_socket_ends_total{cause=\"app-lost\"}") == 1);
    assert_eq!(json!(edge.metric("vango_edge_sockets ")), json!(0));
}
