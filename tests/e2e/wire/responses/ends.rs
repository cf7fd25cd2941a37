//! A client that has said all it will say is answered; one that is gone is not worked for.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use crate::keyed::keyed;
use crate::live::redeploy;
use crate::support::{Artifact, Edge, Gate, PATIENCE, eventually, pass};

use super::{App, head, rest, told_half_closed, trace};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_client_that_shut_its_sending_side_down_is_answered() {
    let app = App::start(|app, head| {
        if head.contains("slow") {
            pass(Duration::from_millis(700));
        }
        app.write_all(OK).unwrap();
    });
    let edge = app.edge();
    for path in ["/fast", "/slow", "/app/fast", "/app/slow", "/head/slow", "/body/slow"] {
        let method = if path.matches('/').count() > 1 { "POST" } else { "GET" };
        for version in ["1.1", "1.0"] {
            let asked = head(&format!("{method} {path} HTTP/{version}"), "Content-Length: 0\r\n");
            let all = told_half_closed(&edge, &asked);
            // A client that waits is asked whether it is still there, by a 100, over HTTP/1.1.
            let answer = all.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&all);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{path}: {all}");
            assert!(version == "1.1" || answer.len() == all.len(), "{all}");
        }
    }
}

#[test]
fn a_client_that_is_gone_is_noticed_while_its_app_is_silent() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let app = App::start(move |app, _| {
        rest(app);
        tell.lock().unwrap().send(()).unwrap();
    });
    let edge = app.edge();
    let mut client = TcpStream::connect(edge.listen).unwrap();
    client.write_all(head("GET /gone HTTP/1.1", "").as_bytes()).unwrap();
    eventually("the app has it", || !app.heads().is_empty());
    drop(client);
    told.recv_timeout(PATIENCE).expect("the app's connection ends too");
    assert_eq!(trace(&edge, "/gone")["outcome"], "client-left");
}

#[test]
fn held_and_half_closed_is_answered_and_held_and_gone_is_not_forwarded() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate));
    let waits = |bytes: &str, held| {
        let mut client = TcpStream::connect(edge.listen).unwrap();
        client.write_all(bytes.as_bytes()).unwrap();
        edge.until_held(held);
        client.shutdown(Shutdown::Write).unwrap();
        client
    };
    let post = |key: &str, version: &str| {
        let mut head = format!("POST /actions/save HTTP/{version}\r\nHost: studylab.localhost\r\n");
        for (name, value) in keyed(key, &[("Content-Length", "8")]) {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\ntext=tea"
    };
    let get = "GET /dashboard HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n";
    let mut page = waits(get, 1);
    let mut action = waits(&post("stays", "1.1"), 2);
    let mut old_page = waits(&get.replace("1.1", "1.0"), 3);
    // A client of HTTP/1.0 cannot be asked: what is unsafe is not done for one that may have gone.
    let mut old_action = waits(&post("old", "1.0"), 4);
    let gone = [waits(get, 5), waits(&post("gone", "1.1"), 6)];
    drop(gone);
    edge.until_held(4);
    gate.open();
    for (client, which) in
        [(&mut page, "page"), (&mut action, "action"), (&mut old_page, "old page")]
    {
        let all = rest(client);
        let answer = all.rsplit("HTTP/1.1 ").next().unwrap();
        assert!(answer.starts_with("200"), "{which}: {all}");
    }
    assert_eq!(rest(&mut old_action), "");
    assert_eq!((edge.executions("/dashboard"), edge.executions("/actions/save")), (2, 1));
}

#[test]
fn what_is_in_flight_has_the_drain_timeout_when_another_artifact_takes_over() {
    let edge = Edge::start();
    let contract = |version: &str| {
        let artifact = Artifact::new().env("VERSION", version);
        artifact.set("process", "stop_timeout", "\"100ms\"")
    };
    edge.deploy(&contract("1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut in_flight = edge.connect();
    in_flight.send_head("GET", "/debug/slow?ms=4000", &[]);
    eventually("it is in the app", || edge.ps().iter().any(|a| a["in_flight"] == 1));
    redeploy(&edge, &contract("2"), "pr-7");
    assert_eq!(edge.get("/dashboard").status, 200, "the new one serves");
    assert_eq!(in_flight.answer().expect("an answer of the old one").status, 200);
}
