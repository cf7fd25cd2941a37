//! SIGTERM under load: readiness goes first, and no client that was connected is turned away within the
//! limit.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{Artifact, Connection, Edge, Gate, eventually};

/// What one client saw.
#[derive(Default)]
struct Seen {
    served: AtomicUsize,
    wrong: AtomicUsize,
}

/// Asks until the listener is closed or `stop`; over one connection for as long as the edge keeps
/// it, or over a new one each time.
fn client(edge: &Edge, keepalive: bool, stop: &AtomicBool, seen: &Seen) {
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::Acquire) {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match TcpStream::connect(edge.listen) {
                Ok(stream) => Connection::over(stream),
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => return,
                Err(e) => panic!("{e}"),
            },
        };
        let close = [("Connection", if keepalive { "keep-alive" } else { "close" })];
        let Some(answer) = connection.ask("GET", "/dashboard", &close) else {
            seen.wrong.fetch_add(1, Ordering::AcqRel);
            continue;
        };
        let ok = answer.status == 200;
        if ok { &seen.served } else { &seen.wrong }.fetch_add(1, Ordering::AcqRel);
        if keepalive && answer.header("connection") != Some("close") {
            kept = Some(connection);
        }
    }
}

#[test]
fn under_load_no_client_that_was_connected_is_turned_away() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (edge, stop, seen) = (&edge, &stop, &seen);
            scope.spawn(move || client(edge, n % 2 == 0, stop, seen));
        }
        eventually("all are at it", || seen.served.load(Ordering::Acquire) > 500);
        edge.terminate();
        eventually("the listener is closed", || TcpStream::connect(edge.listen).is_err());
    });
    assert_eq!(seen.wrong.load(Ordering::Acquire), 0, "of {:?} served", seen.served);
    assert!(edge.ended().success(), "{}", edge.log());
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn who_is_held_is_served_by_the_wake_that_was_going_on() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let mut pages: Vec<_> = (1..=5).map(|n| edge.hold("GET", "/dashboard", &[], n)).collect();
    edge.terminate();
    eventually("the listener is closed", || TcpStream::connect(edge.listen).is_err());
    gate.open();
    for page in &mut pages {
        assert_eq!(page.answer().expect("an answer").status, 200);
    }
    assert!(edge.ended().success(), "{}", edge.log());
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn readiness_goes_before_the_listener() {
    let mut edge = Edge::start_with_server("unready_for = \"5m\"");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.admin_status("/readyz"), 200);
    edge.terminate();
    eventually("it is not ready", || edge.admin_status("/readyz") == 503);
    assert_eq!(edge.get("/dashboard").status, 200, "and serves on");
    // A second signal cuts the wait short.
    assert!(edge.stop().success(), "{}", edge.log());
}
