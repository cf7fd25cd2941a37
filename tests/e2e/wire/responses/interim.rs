//! 1xx: an answer proper is owed after it, and it passes over each version that has it.

use std::future::poll_fn;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::support::pass;
use crate::tls::{h2_connection, request, runtime};

use super::{App, head, read_head, rest, told, trace};

/// What an app does after its 1xx, and what the client is owed then.
const AFTER: [(&str, u16); 4] = [("dies", 502), ("half", 502), ("garbage", 502), ("silent", 504)];

fn fails_after_1xx(app: &mut TcpStream, head: &str) {
    let path = head.split(' ').nth(1).unwrap();
    let interim = path.rsplit('-').next().unwrap();
    app.write_all(format!("HTTP/1.1 {interim} Wait\r\nX-A: 1\r\n\r\n").as_bytes()).unwrap();
    pass(Duration::from_millis(50));
    let more: &[u8] = match path {
        p if p.contains("half") => b"HTTP/1.1 200 OK\r\nContent-Le",
        p if p.contains("garbage") => b"\x00\x01 what?\r\n\r\n",
        _ => b"",
    };
    app.write_all(more).unwrap();
    if path.contains("silent") {
        rest(app);
    }
}

#[test]
fn an_app_that_fails_after_a_1xx_is_answered_for_and_the_trace_says_so() {
    let app = App::start(fails_after_1xx);
    let edge = app.edge_with("[limits]\nresponse_timeout = \"700ms\"\n");
    for class in ["", "/app", "/head", "/body"] {
        for (what, status) in AFTER {
            for interim in [100, 102, 103] {
                let path = format!("{class}/{what}-{interim}");
                let method = if class.is_empty() { "GET" } else { "POST" };
                let more = "Connection: close\r\nContent-Length: 0\r\n";
                let all = told(&edge, &head(&format!("{method} {path} HTTP/1.1"), more));
                let last = all.rsplit("HTTP/1.1 ").next().unwrap();
                assert!(last.starts_with(&status.to_string()), "{path}: {all}");
                assert!(last.contains("problem+json"), "{path}: {all}");
                let trace = trace(&edge, &path);
                assert_eq!(trace["status"], status, "{path}");
                let outcome = match (class, status) {
                    ("", 504) => "upstream-timeout",
                    ("", _) => "upstream-closed",
                    _ => "outcome-unknown",
                };
                assert_eq!(trace["outcome"], outcome, "{path}");
            }
        }
    }
}

#[test]
fn a_body_that_grows_too_long_after_a_100_is_answered_413() {
    let app = App::start(|app, _| {
        let _ = app.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        rest(app);
    });
    let edge = app.edge();
    let mut client = TcpStream::connect(edge.listen).unwrap();
    let more = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
    client.write_all(head("POST /app/long HTTP/1.1", more).as_bytes()).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 100"));
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    for _ in 0..40 {
        client.write_all(&chunk).unwrap();
    }
    let all = rest(&mut client);
    assert!(all.starts_with("HTTP/1.1 413") && all.contains("content-too-large"), "{all}");
    let trace = trace(&edge, "/app/long");
    assert_eq!((&trace["status"], &trace["outcome"]), (&json!(413), &json!("content-too-large")));
}

/// Answers 103, reads a body of 8 bytes, and answers what it was.
fn hints(app: &mut TcpStream, head: &str) {
    app.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").unwrap();
    let mut body = [0; 8];
    if head.starts_with("POST") {
        std::io::Read::read_exact(app, &mut body).unwrap();
    }
    app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n").unwrap();
    app.write_all(&body).unwrap();
}

#[test]
fn a_client_of_http2_is_invited_and_hinted() {
    let app = App::start(|app, head| {
        if head.to_lowercase().contains("expect: 100-continue") {
            app.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        }
        hints(app, head);
    });
    let (edge, dir) = app.edge_with_tls("");
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        // A page and an app's action get the app's own 100; with a record the edge says it, with the body
        // read first or on its way.
        for (path, hinted) in
            [("/page", true), ("/app/a", true), ("/head/a", true), ("/body/a", true)]
        {
            let mut post = request("POST", path);
            for (name, value) in [
                ("expect", "100-continue"),
                ("idempotency-key", "k"),
                ("cookie", "who=ada"),
                ("content-length", "8"),
            ] {
                post.headers_mut().insert(name, value.parse().unwrap());
            }
            let (mut answer, mut body) =
                send.clone().ready().await.unwrap().send_request(post, false).unwrap();
            let next = poll_fn(|cx| answer.poll_informational(cx));
            let invited = tokio::time::timeout(crate::support::PATIENCE, next).await.unwrap();
            assert_eq!(invited.unwrap().unwrap().status(), 100, "{path}");
            body.send_data("text=tea".into(), true).unwrap();
            if hinted {
                let hint = poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
                assert_eq!(
                    (hint.status().as_u16(), &hint.headers()["link"]),
                    (103, &"</a.css>".parse::<http::HeaderValue>().unwrap()),
                    "{path}"
                );
            }
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
        }
    });
}

#[test]
fn http10_gets_no_1xx_and_no_chunks() {
    let app = App::start(|app, head| {
        app.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").unwrap();
        let how = if head.contains("/chunked") {
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n, w\r\n0\r\n\r\n"
        } else {
            "Connection: close\r\n\r\nhello, w"
        };
        app.write_all(format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{how}").as_bytes())
            .unwrap();
    });
    let edge = app.edge();
    for path in ["/chunked", "/close", "/app/chunked", "/head/chunked", "/body/close"] {
        let method = if path.matches('/').count() > 1 { "POST" } else { "GET" };
        for more in ["", "Connection: keep-alive\r\n"] {
            let more = format!("Content-Length: 0\r\nX: {}\r\n{more}", more.len());
            let asked = head(&format!("{method} {path}?{} HTTP/1.0", more.len()), &more);
            // With a length the connection may go on; the client ends it.
            let all = super::told_half_closed(&edge, &asked);
            let (head, body) = all.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{path}: {all}");
            assert!(!head.to_lowercase().contains("transfer-encoding"), "{path}: {all}");
            assert_eq!(body, "hello, w", "{path}: {all}");
        }
    }
}
