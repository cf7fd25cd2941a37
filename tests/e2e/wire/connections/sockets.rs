//! Listening sockets for both families: those that the service manager hands over, and the edge's own.

use std::net::TcpListener;
use std::process::Stdio;

use crate::support::{Connection, Edge};
use crate::systemd::Manager;

#[test]
fn a_socket_for_both_families_serves_an_ipv4_address() {
    // `ListenStream=443` is one for both.
    let socket = TcpListener::bind("[::]:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let manager = Manager::with(socket, &format!("\"0.0.0.0:{port}\""));
    let edge = manager.run();
    assert_eq!(manager.told(), "READY=1\n");
    let mut connection = Connection::open(([127, 0, 0, 1], port).into());
    let asked = [("Host", "nobody.test"), ("Connection", "close")];
    assert_eq!(connection.ask("GET", "/", &asked).unwrap().status, 404);
    drop(edge);
}

#[test]
fn a_socket_that_serves_no_key_is_named_with_the_key() {
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let manager = Manager::with(socket, &format!("\"[::]:{port}\""));
    let output =
        manager.command().stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    for part in
        [format!("server.listen [::]:{port}"), format!("0.0.0.0:{port}"), "ListenStream=".into()]
    {
        assert!(said.contains(&part), "{part}: {said}");
    }
}

#[test]
fn both_families_may_be_named_on_one_port() {
    let mut edge = Edge::start();
    assert!(edge.stop().success());
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let both = format!("listen = [\"0.0.0.0:{port}\", \"[::]:{port}\"]\ngrace");
    edge.reconfigure("listen = [\"127.0.0.1:0\"]\ngrace", &both);
    edge.start_again();
    for to in ["127.0.0.1", "[::1]"] {
        let mut connection = Connection::open(format!("{to}:{port}").parse().unwrap());
        let asked = [("Host", "nobody.test"), ("Connection", "close")];
        assert_eq!(connection.ask("GET", "/", &asked).unwrap().status, 404, "{to}");
    }
}
