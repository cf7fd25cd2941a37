//! A stream that an app begins before it has read the whole request: the rest of both arrives.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::support::{Edge, PATIENCE, eventually, eventually_some};
use crate::tls::{h2_connection, request, runtime};

use super::{App, head, read_head, rest};

/// More than is kept of an answer.
const LARGE: usize = 80_000;

/// What it sends before it reads the body: a large part of an answer, or an event.
fn begin(head: &str) -> Vec<u8> {
    if head.contains("/large") {
        let length = LARGE + 10;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        [head.into_bytes(), vec![b'x'; LARGE]].concat()
    } else {
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n".to_vec()
    }
}

/// How much of a body that is begun.
fn begun(path: &str) -> usize {
    if path.contains("/large") { LARGE } else { b"data: x\n\n".len() }
}

/// An app that begins to answer, reads the body, and answers with that. What it read of each body is kept
/// as it came.
fn app() -> (App, Arc<Mutex<Vec<String>>>) {
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let read = Arc::clone(&bodies);
    let app = App::start(move |app, head| {
        app.write_all(&begin(head)).unwrap();
        let (mut body, mut byte) = (Vec::new(), [0]);
        let is_whole = |body: &[u8]| {
            let chunked = head.to_ascii_lowercase().contains("transfer-encoding");
            if chunked { body.ends_with(b"0\r\n\r\n") } else { body.len() == 10 }
        };
        while !is_whole(&body) && app.read(&mut byte).is_ok_and(|n| n > 0) {
            body.push(byte[0]);
        }
        read.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
        if is_whole(&body) {
            app.write_all(b"firstsecnd").unwrap();
        }
    });
    (app, bodies)
}

/// The client's side of one that has begun: what is sent first, and the answer's begin is read.
fn begin_over_http1(edge: &Edge, path: &str, framing: &str, first: &str) -> TcpStream {
    let mut client = TcpStream::connect(edge.listen).unwrap();
    let ask =
        head(&format!("POST {path} HTTP/1.1"), &format!("{framing}\r\nConnection: close\r\n"));
    client.write_all(format!("{ask}{first}").as_bytes()).unwrap();
    let told = read_head(&mut client);
    assert!(told.starts_with("HTTP/1.1 200"), "{path} {framing}: {told}");
    let (mut read, mut chunk) = (0, vec![0; LARGE]);
    while read < begun(path) {
        read += client.read(&mut chunk).unwrap();
    }
    client
}

#[test]
fn a_stream_that_begins_before_the_upload_is_over_goes_on_to_its_end() {
    let (app, bodies) = app();
    let (edge, dir) = app.edge_with_tls("");
    for way in ["/page", "/app", "/head"] {
        for kind in ["/large", "/events"] {
            for (framing, first, second) in [
                ("Content-Length: 10", "first", "secnd"),
                ("Transfer-Encoding: chunked", "5\r\nfirst\r\n", "5\r\nsecnd\r\n0\r\n\r\n"),
            ] {
                let path = format!("{way}{kind}/{}", framing.len());
                let mut client = begin_over_http1(&edge, &path, framing, first);
                client.write_all(second.as_bytes()).unwrap();
                let all = rest(&mut client);
                assert!(all.contains("firstsecnd"), "{path}: {all}");
                assert!(kind == "/large" || all.ends_with("0\r\n\r\n"), "{path}: {all}");
                let body = bodies.lock().unwrap().pop().unwrap();
                assert!(body.contains("first") && body.contains("secnd"), "{path}: {body}");
            }
        }
    }
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        for path in ["/page/large", "/head/large", "/page/events", "/head/events"] {
            let mut post = request("POST", path);
            for (name, value) in [("idempotency-key", path), ("cookie", "who=ada")] {
                post.headers_mut().insert(name, value.parse().unwrap());
            }
            let (answer, mut body) =
                send.clone().ready().await.unwrap().send_request(post, false).unwrap();
            body.send_data("first".into(), false).unwrap();
            let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
            let (mut answer, mut all, mut half) = (answer.into_body(), Vec::new(), true);
            while let Some(piece) =
                tokio::time::timeout(PATIENCE, answer.data()).await.unwrap_or_else(|_| {
                    panic!("{path}: {} bytes came", all.len());
                })
            {
                let piece = piece.unwrap_or_else(|e| panic!("{path}: {e}"));
                answer.flow_control().release_capacity(piece.len()).unwrap();
                all.extend_from_slice(&piece);
                if half && all.len() == begun(path) {
                    half = false;
                    body.send_data("secnd".into(), true).unwrap();
                }
            }
            assert!(all.ends_with(b"firstsecnd"), "{path}: {} bytes", all.len());
        }
    });
}

#[test]
fn an_upload_that_breaks_off_beside_a_stream_has_no_end_for_the_app() {
    let (app, bodies) = app();
    let limits = "[limits.client]\nrate_grace = \"300ms\"\nmin_body_rate = \"1KiB\"\n";
    let (edge, dir) = app.edge_with_tls(limits);
    let seen = || eventually_some("what the app read", || bodies.lock().unwrap().pop());
    for kind in ["/large", "/events"] {
        let begin = |end: &str| {
            let path = format!("/head{kind}/{end}");
            begin_over_http1(&edge, &path, "Transfer-Encoding: chunked", "5\r\nfirst\r\n")
        };
        drop(begin("left"));
        let read = seen();
        assert!(read.contains("first") && !read.ends_with("0\r\n\r\n"), "left: {read:?}");

        let mut client = begin("broken");
        client.write_all(b"no size\r\n").unwrap();
        let told = rest(&mut client);
        assert!(!told.contains("firstsecnd") && !told.ends_with("0\r\n\r\n"), "{told}");
        let read = seen();
        assert!(read.contains("first") && !read.ends_with("0\r\n\r\n"), "broken: {read:?}");

        // A stream on its side gives a client no longer time for its own.
        let mut client = begin("slow");
        let told = rest(&mut client);
        assert!(!told.contains("firstsecnd") && !told.ends_with("0\r\n\r\n"), "{told}");
        let read = seen();
        assert!(read.contains("first") && !read.ends_with("0\r\n\r\n"), "slow: {read:?}");
    }
    let cuts = || edge.metric("vango_edge_cutoffs_total{limit=\"body-rate\"}");
    assert_eq!(cuts(), 2);
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        let mut post = request("POST", "/head/events/h2");
        for (name, value) in [("idempotency-key", "h2"), ("cookie", "who=ada")] {
            post.headers_mut().insert(name, value.parse().unwrap());
        }
        let (answer, mut body) =
            send.clone().ready().await.unwrap().send_request(post, false).unwrap();
        body.send_data("first".into(), false).unwrap();
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        let mut answer = answer.into_body();
        while let Some(Ok(_)) = tokio::time::timeout(PATIENCE, answer.data()).await.unwrap() {}
    });
    assert_eq!(cuts(), 3);
    let read = seen();
    assert!(read.contains("first") && !read.ends_with("0\r\n\r\n"), "h2: {read:?}");
    eventually("the places are free", || edge.metric("vango_edge_client_connections") == 0);
}
