//! Requests with two readings. For each the corpus says what the edge may do, and what the app
//! really saw is compared: every answer of the app is one request, whole, as the edge understood it.
//!
//! RFC 9112 sections 2.2, 3.2, 5.2, 6.1, 6.3, 7.1; CVE-2026-2833 (premature upgrade) and
//! CVE-2026-2835 (HTTP/1.0 with Transfer-Encoding).

use std::time::Duration;

use serde_json::Value;

use crate::support::{Artifact, Connection, Edge};

/// What may come of a case.
enum Expected {
    /// 400, and the connection is closed: the app saw nothing.
    Refused,
    /// One request reaches the app, with this body; what was behind it in the same bytes is not one
    /// more.
    One(&'static str),
    /// Two requests reach the app, with these bodies, each as one that the edge has routed itself.
    Two(&'static str, &'static str),
    /// As [`Expected::Two`], or the connection ends after the first.
    OneOrTwo(&'static str, &'static str),
}
use Expected::{One, OneOrTwo, Refused, Two};

/// Bytes behind the ambiguous request: a second request if the first is read the other way.
const SMUGGLED: &str = "GET /debug/echo?smuggled HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n";

fn corpus() -> Vec<(&'static str, String, Expected)> {
    let post = |headers: &str, body: &str| {
        format!("POST /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\n{headers}\r\n{body}")
    };
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        (
            "a plain body, and a request behind it",
            post("Content-Length: 5\r\n", &format!("hello{SMUGGLED}")),
            Two("hello", ""),
        ),
        (
            "a chunked body, and a request behind it",
            post("Transfer-Encoding: chunked\r\n", &format!("{chunked}{SMUGGLED}")),
            OneOrTwo("hello", ""),
        ),
        (
            "CL.TE: Transfer-Encoding wins, and the connection ends",
            post(
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                &format!("{chunked}{SMUGGLED}"),
            ),
            One("hello"),
        ),
        (
            "TE.CL: the same in the other order",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                &format!("{chunked}{SMUGGLED}"),
            ),
            One("hello"),
        ),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), Refused),
        ("two lengths in one", post("Content-Length: 5, 6\r\n", "hello!"), Refused),
        (
            "the same length twice is one length",
            post("Content-Length: 5\r\nContent-Length: 5\r\n", &format!("hello{SMUGGLED}")),
            Two("hello", ""),
        ),
        ("a length with a sign", post("Content-Length: +5\r\n", "hello"), Refused),
        ("a length below zero", post("Content-Length: -5\r\n", "hello"), Refused),
        ("a length in hex", post("Content-Length: 0x5\r\n", "hello"), Refused),
        (
            "a length beyond counting",
            post("Content-Length: 99999999999999999999999\r\n", "hello"),
            Refused,
        ),
        ("a length with a space within", post("Content-Length: 5 5\r\n", "hello"), Refused),
        ("a coding that is not chunked", post("Transfer-Encoding: xchunked\r\n", "hello"), Refused),
        (
            "chunked that is not last",
            post("Transfer-Encoding: chunked, identity\r\n", chunked),
            Refused,
        ),
        (
            "chunked in two fields, the last another",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunked),
            Refused,
        ),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", chunked), Refused),
        ("a tab before the colon", post("Content-Length\t: 5\r\n", "hello"), Refused),
        (
            "a field that goes on in the next line",
            post("Transfer-Encoding:\r\n chunked\r\n", chunked),
            Refused,
        ),
        ("a field that goes on, another one", post("X-A: b\r\n c\r\n", ""), Refused),
        ("a field without a name", post(": chunked\r\nContent-Length: 5\r\n", "hello"), Refused),
        ("a zero byte in a value", post("X-A: b\0c\r\nContent-Length: 5\r\n", "hello"), Refused),
        (
            "a bare CR in a value",
            post("X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", "hello"),
            Refused,
        ),
        (
            "chunk sizes that are no hex",
            post("Transfer-Encoding: chunked\r\n", "g\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            "a chunk size beyond counting",
            post("Transfer-Encoding: chunked\r\n", "ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            "a chunk that is longer than it says",
            post("Transfer-Encoding: chunked\r\n", "3\r\nhello\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            "HTTP/1.0 with Transfer-Encoding",
            format!(
                "POST /debug/echo HTTP/1.0\r\nHost: studylab.localhost\r\n\
                     Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n{chunked}{SMUGGLED}"
            ),
            Refused,
        ),
        ("HTTP/1.1 without Host", "GET /debug/echo HTTP/1.1\r\n\r\n".into(), Refused),
        (
            "two Hosts",
            "GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\nHost: evil.test\r\n\r\n"
                .into(),
            Refused,
        ),
        (
            "Host and absolute form that differ",
            "GET http://evil.test/debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n".into(),
            Refused,
        ),
        (
            "absolute form that agrees",
            "GET http://studylab.localhost/debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n"
                .into(),
            One(""),
        ),
        (
            "Host with a user",
            "GET /debug/echo HTTP/1.1\r\nHost: evil.test@studylab.localhost\r\n\r\n".into(),
            Refused,
        ),
        (
            "Host with a path",
            "GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost/x\r\n\r\n".into(),
            Refused,
        ),
        (
            "a version that is not one",
            "GET /debug/echo HTTP/1.2.3\r\nHost: studylab.localhost\r\n\r\n".into(),
            Refused,
        ),
        (
            "a method with a brace",
            "GE{T /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n".into(),
            Refused,
        ),
        (
            "an upgrade that the app does not accept is not one: what follows is read as a request",
            format!(
                "GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n{SMUGGLED}"
            ),
            OneOrTwo("", ""),
        ),
    ]
}

/// Every answer on the connection, until it ends or stays silent.
fn answers(connection: &mut Connection) -> Vec<(u16, Option<Value>)> {
    let mut all = Vec::new();
    loop {
        // Whatever could come is within a turn of the app, which is hot.
        if connection.is_silent(Duration::from_millis(1500)) {
            return all;
        }
        let Some(answer) = connection.answer() else { return all };
        let json = serde_json::from_slice(&answer.body).ok();
        all.push((answer.status, json));
    }
}

#[test]
fn requests_with_two_readings_reach_the_app_with_one_or_not_at_all() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let cases: Vec<_> = corpus()
            .into_iter()
            .map(|(what, bytes, expected)| {
                let edge = &edge;
                scope.spawn(move || {
                    let mut connection = edge.connect();
                    connection.send(&bytes);
                    (what, judge(&answers(&mut connection), &expected))
                })
            })
            .collect();
        for case in cases {
            if let (what, Err(why)) = case.join().unwrap() {
                wrong.push(format!("{what}: {why}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(edge.get("/debug/echo").status, 200);
}

fn judge(answers: &[(u16, Option<Value>)], expected: &Expected) -> Result<(), String> {
    let statuses: Vec<u16> = answers.iter().map(|(s, _)| *s).collect();
    let seen: Vec<&Value> = answers
        .iter()
        .filter(|(status, _)| *status == 200)
        .filter_map(|(_, json)| json.as_ref())
        .collect();
    let bodies: Vec<_> = seen.iter().map(|s| s["body_start"].as_str().unwrap_or("?")).collect();
    let smuggled = seen.iter().any(|s| s["query"] == "smuggled");
    // What was behind the first is a request of its own: the edge gave it an id of its own.
    let ids: std::collections::BTreeSet<_> = seen
        .iter()
        .filter_map(|s| s["headers"].as_array()?.iter().find(|h| h[0] == "x-request-id"))
        .map(|h| h[1].to_string())
        .collect();
    if ids.len() != seen.len() {
        return Err(format!("not each request has an id of its own: {seen:?}"));
    }
    let fine = match expected {
        Refused => {
            seen.is_empty()
                && statuses.iter().all(|s| *s == 400 || *s == 502)
                && statuses.len() <= 1
        }
        One(body) => bodies == [*body] && !smuggled,
        Two(first, second) => bodies == [*first, *second] && smuggled,
        OneOrTwo(first, second) => {
            bodies == [*first] && !smuggled || bodies == [*first, *second] && smuggled
        }
    };
    if fine { Ok(()) } else { Err(format!("answers {statuses:?}, the app saw {seen:?}")) }
}

#[test]
fn a_head_that_cannot_be_read_is_answered_by_the_edge_itself() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let host = "Host: studylab.localhost\r\n";
    let heads = [
        format!("GET / HTTP/1.1\r\n{host}Host: other.test\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        format!("GET / HTTP/1.1\r\n{host}: nameless\r\n\r\n"),
        format!("CONNECT other.test:443 HTTP/1.1\r\n{host}\r\n"),
        "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(),
    ];
    let refused = "vango_edge_unrouted_requests_total{problem=\"malformed-request\"}";
    for (n, head) in heads.iter().enumerate() {
        // Alone, behind a request on the same connection, and in the same bytes as that.
        for before in [0, 1, 2] {
            let mut connection = edge.connect();
            let first = format!("GET /debug/echo HTTP/1.1\r\n{host}\r\n");
            if before == 1 {
                connection.send(&first);
                assert_eq!(connection.answer().unwrap().status, 200);
            }
            connection.send(if before == 2 { format!("{first}{head}") } else { head.clone() });
            if before == 2 {
                assert_eq!(connection.answer().unwrap().status, 200);
            }
            let answer = connection.answer().unwrap_or_else(|| panic!("{head:?} is not answered"));
            answer.problem(400, "malformed-request");
            assert_eq!(answer.header("server"), None);
            assert_eq!(answer.header("connection"), Some("close"));
            assert!(connection.answer().is_none(), "{head:?}: and it is closed");
            let trace = edge.trace(answer.request_id());
            assert_eq!((&trace["path"], &trace["status"]), (&"".into(), &400.into()));
            assert_eq!(edge.metric(refused), 3 * n as u64 + before + 1);
        }
    }
}

#[test]
fn the_app_gets_one_framing_and_none_of_the_clients_hop_by_hop_fields() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let mut connection = edge.connect();
    connection.send(
        "POST /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\nContent-Length: 4\r\n\
         Transfer-Encoding: chunked\r\nTE: trailers\r\nProxy-Connection: keep-alive\r\n\
         Keep-Alive: timeout=5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    let seen = connection.answer().unwrap().json();
    let names: Vec<_> =
        seen["headers"].as_array().unwrap().iter().map(|h| h[0].as_str().unwrap()).collect();
    assert!(!names.contains(&"content-length"), "{names:?}");
    assert_eq!(seen["body_start"], "hello");
    assert!(connection.answer().is_none(), "a request with both ends its connection");
}
