//! What the app said arrives as it came: at once, in full, or visibly cut.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::support::{PATIENCE, eventually, pass};
use crate::tls::{h2_connection, request, runtime};

use super::{App, head, read_head, rest, told, trace};

const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst";

#[test]
fn the_head_and_what_came_of_the_body_go_out_while_the_app_pauses() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let app = App::start(move |app, head| {
        app.write_all(PART).unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        app.write_all(b"secnd").unwrap();
        let _ = head;
        rest(app);
    });
    let edge = app.edge();
    for ask in [
        head("GET /page HTTP/1.1", ""),
        head(
            "GET /live HTTP/1.1",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        head("POST /app/a HTTP/1.1", "Content-Length: 0\r\n"),
    ] {
        let mut client = TcpStream::connect(edge.listen).unwrap();
        client.write_all(ask.as_bytes()).unwrap();
        let seen = read_head(&mut client);
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        let mut first = [0; 5];
        client.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        // Only now, so that nothing else can have sent it.
        go_on.send(()).unwrap();
        client.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"secnd");
    }
}

#[test]
fn an_answer_that_breaks_off_is_cut_for_the_client_and_on_record() {
    let app = App::start(|app, head| {
        app.write_all(PART).unwrap();
        if head.contains("later") {
            pass(Duration::from_millis(100));
        }
        if head.contains("silent") {
            rest(app);
        }
    });
    let edge = app.edge_with("[limits]\nresponse_timeout = \"500ms\"\n");
    for path in ["/now", "/later", "/silent", "/app/now", "/app/later"] {
        let method = if path.starts_with("/app") { "POST" } else { "GET" };
        let all = told(&edge, &head(&format!("{method} {path} HTTP/1.1"), "Content-Length: 0\r\n"));
        assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("\r\n\r\nfirst"), "{path}: {all}");
        let trace = trace(&edge, path);
        assert_eq!(
            (&trace["status"], &trace["outcome"]),
            (&json!(200), &json!("cut-off")),
            "{path}"
        );
    }
    // What is recorded is whole, or none.
    for path in ["/head/now", "/body/later"] {
        let all = told(
            &edge,
            &head(&format!("POST {path} HTTP/1.1"), "Connection: close\r\nContent-Length: 0\r\n"),
        );
        assert!(
            all.starts_with("HTTP/1.1 502") && all.contains("outcome-unknown"),
            "{path}: {all}"
        );
    }
}

#[test]
fn an_answer_before_the_body_is_over_is_the_answer() {
    let app = App::start(|app, _| {
        // Closes with the body unread: a reset is on its way behind the answer.
        let _ = app.write_all(
            b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo much",
        );
        pass(Duration::from_millis(20));
    });
    let edge = app.edge();
    for path in ["/head/early", "/app/early", "/early"] {
        let mut client = TcpStream::connect(edge.listen).unwrap();
        let length = if path.starts_with("/head") { 20 << 20 } else { 1 << 20 };
        let more = format!("Content-Length: {length}\r\n");
        client.write_all(head(&format!("POST {path} HTTP/1.1"), &more).as_bytes()).unwrap();
        // As clients do that send all of it before they read.
        client.write_all(&vec![b'x'; length]).unwrap_or_else(|e| panic!("{path}: {e}"));
        let all = rest(&mut client);
        assert!(all.starts_with("HTTP/1.1 413") && all.ends_with("too much"), "{path}: {all}");
    }
}

#[test]
fn a_refused_upload_is_answered_whatever_of_it_still_comes() {
    let app = App::says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let edge = app.edge();
    let length = 20 << 20;
    let body = vec![b'x'; length];
    for (line, more, status) in [
        ("POST /app/no HTTP/1.1", String::new(), 413),
        ("POST /body/no HTTP/1.1", String::new(), 413),
        ("POST /no HTTP/1.1", String::new(), 413),
        ("POST /app/%00 HTTP/1.1", String::new(), 400),
    ] {
        let mut client = TcpStream::connect(edge.listen).unwrap();
        let more = format!("Content-Length: {length}\r\n{more}");
        client.write_all(head(line, &more).as_bytes()).unwrap();
        client.write_all(&body).unwrap_or_else(|e| panic!("{line}: {e}"));
        let all = rest(&mut client);
        assert!(all.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {all}");
    }
    assert_eq!(app.heads(), [""; 0]);
}

#[test]
fn a_client_that_never_stops_sending_is_cut_off_after_its_answer() {
    let app = App::says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let edge = app.edge();
    let mut client = TcpStream::connect(edge.listen).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    let more = "Content-Length: 100000000000\r\n";
    client.write_all(head("POST /app/no HTTP/1.1", more).as_bytes()).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while client.write_all(&chunk).is_ok() {
        sent += 1;
        assert!(sent < 200, "nothing ends it");
    }
    eventually("it is gone", || edge.metric("vango_edge_client_connections") == 0);
}

#[test]
fn http2_answers_before_the_body_was_read_and_takes_the_rest_of_it() {
    let app = App::says(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno");
    let (edge, dir) = app.edge_with_tls("");
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        for (path, status) in [("/head/early", 422), ("/body/no", 413)] {
            let mut post = request("POST", path);
            for (name, value) in
                [("idempotency-key", "k"), ("cookie", "who=ada"), ("content-length", "3000000")]
            {
                post.headers_mut().insert(name, value.parse().unwrap());
            }
            let (answer, mut body) =
                send.clone().ready().await.unwrap().send_request(post, false).unwrap();
            let mut left = 3_000_000;
            let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), status, "{path}");
            // A client that goes on sending is not reset under its answer.
            while left > 0 {
                body.reserve_capacity(left);
                let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
                let room = tokio::time::timeout(PATIENCE, room).await.unwrap();
                let room = room.unwrap_or_else(|| panic!("{path}: reset")).unwrap();
                left -= room;
                body.send_data(vec![b'x'; room].into(), left == 0).unwrap();
            }
        }
    });
}

#[test]
fn a_quiet_event_stream_ends_for_the_app_when_its_client_leaves() {
    let gone = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::clone(&gone);
    let app = App::start(move |app, head| {
        app.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
            .unwrap();
        rest(app);
        ended.lock().unwrap().push(head.split(' ').nth(1).unwrap().to_owned());
    });
    let edge = app.edge();
    for path in ["/page", "/app/a", "/head/a", "/body/a"] {
        let method = if path == "/page" { "GET" } else { "POST" };
        let mut client = TcpStream::connect(edge.listen).unwrap();
        client
            .write_all(
                head(&format!("{method} {path} HTTP/1.1"), "Content-Length: 0\r\n").as_bytes(),
            )
            .unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 200"), "{path}");
        let mut event = [0; 9];
        client.read_exact(&mut event).unwrap();
        drop(client);
        eventually(path, || gone.lock().unwrap().iter().any(|p| p == path));
    }
}
