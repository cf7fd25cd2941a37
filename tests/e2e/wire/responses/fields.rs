//! Fields of an app's answer: what is for the client, as the app said it, and the edge's marks.

use std::io::Write;

use crate::tls::{ask, client_config};

use super::{App, head, told};

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines().find_map(|l| {
        let (n, value) = l.split_once(": ")?;
        n.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// Every way on which an app's answer goes to a client.
const WAYS: [&str; 4] =
    ["GET /a HTTP/1.1", "POST /app/a HTTP/1.1", "POST /head/a HTTP/1.1", "POST /body/a HTTP/1.1"];
const CLOSE: &str = "Connection: close\r\nContent-Length: 0\r\n";
const SOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn what_belongs_to_the_apps_connection_stays_there_and_its_date_goes_on() {
    let app = App::says(
        b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close, X-Hop, Cache-Control\r\n\
          Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nX-Hop: 1\r\nUpgrade: h2c\r\n\
          Cache-Control: private\r\nX-Folded: one\r\n  two\r\nContent-Length: 2\r\n\r\nok",
    );
    let edge = app.edge();
    for line in WAYS.into_iter().chain(["GET /live HTTP/1.1"]) {
        let more = if line.contains("live") { SOCKET } else { CLOSE };
        let all = told(&edge, &head(line, more));
        assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("\r\n\r\nok"), "{line}: {all}");
        for gone in ["keep-alive", "proxy-connection", "x-hop", "upgrade"] {
            assert_eq!(field(&all, gone), None, "{line}: {all}");
        }
        assert_eq!(field(&all, "date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"), "{line}");
        assert_eq!(field(&all, "cache-control"), Some("private"), "{line}");
        let folded = field(&all, "x-folded").unwrap_or_default();
        assert_eq!(folded.split_whitespace().collect::<Vec<_>>(), ["one", "two"], "{line}: {all}");
        assert!(field(&all, "x-request-id").is_some(), "{line}");
    }
}

#[test]
fn a_date_is_added_where_there_is_none() {
    let app = App::says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let edge = app.edge();
    for line in WAYS {
        assert!(field(&told(&edge, &head(line, CLOSE)), "date").is_some(), "{line}");
    }
}

#[test]
fn a_101_that_nothing_asked_for_is_refused() {
    let app = App::says(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nnot http",
    );
    let edge = app.edge();
    for line in WAYS {
        let all = told(&edge, &head(line, CLOSE));
        assert!(all.starts_with("HTTP/1.1 502") && !all.contains("not http"), "{line}: {all}");
    }
}

#[test]
fn a_204_has_no_length_and_what_the_app_sends_behind_it_reaches_no_other_request() {
    let app = App::start(|app, head| {
        if head.contains("204") {
            app.write_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n").unwrap();
            crate::support::pass(std::time::Duration::from_millis(50));
            let _ = app.write_all(b"stray");
            super::rest(app);
        } else {
            app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let edge = app.edge();
    for line in [
        "GET /204 HTTP/1.1",
        "POST /app/204 HTTP/1.1",
        "POST /head/204 HTTP/1.1",
        "POST /body/204 HTTP/1.1",
    ] {
        let all = told(&edge, &head(line, CLOSE));
        assert!(all.starts_with("HTTP/1.1 204") && all.ends_with("\r\n\r\n"), "{line}: {all}");
        assert_eq!(
            (field(&all, "content-length"), field(&all, "transfer-encoding")),
            (None, None),
            "{line}"
        );
        let next = told(&edge, &head("GET /next HTTP/1.1", CLOSE));
        assert!(next.starts_with("HTTP/1.1 200") && next.ends_with("ok"), "{line}: {next}");
    }
}

#[test]
fn an_app_that_refuses_a_socket_says_how() {
    let app = App::start(|app, head| {
        let says: &[u8] = match head {
            h if h.contains("/live?426") => {
                b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nv13"
            }
            h if h.contains("/live?204") => b"HTTP/1.1 204 No Content\r\n\r\n",
            h if h.contains("/live?304") => b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            _ => b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        };
        app.write_all(says).unwrap();
    });
    let (edge, dir) = app.edge_with_tls("hsts = \"180d\"\n");
    let config = client_config(&dir, "one", &[b"http/1.1"]);
    for status in ["426", "204", "304", "403"] {
        let asked = head(&format!("GET /live?{status} HTTP/1.1"), SOCKET);
        let all = told(&edge, &asked);
        let secure = ask(edge.tls.unwrap(), &config, "studylab.localhost", b"", &asked).unwrap();
        assert!(field(&secure, "strict-transport-security").is_some(), "{secure}");
        assert!(all.starts_with(&format!("HTTP/1.1 {status}")), "{all}");
        match status {
            "426" => {
                assert_eq!(field(&all, "upgrade"), Some("websocket"), "{all}");
                assert!(field(&all, "connection").unwrap().contains("upgrade"), "{all}");
                assert!(all.ends_with("\r\n\r\nv13"), "{all}");
            }
            "403" => assert!(all.ends_with("2\r\nno\r\n0\r\n\r\n"), "{all}"),
            _ => {
                assert_eq!(field(&all, "transfer-encoding"), None, "{all}");
                assert!(all.ends_with("\r\n\r\n"), "{all}");
            }
        }
    }
}
