//! Trailers of an app's answer: whole for the clients that take them, none and no word of them for the
//! others, and never a part of another message.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::support::Connection;
use crate::tls::{h2_connection, request, runtime};
use crate::wire::recorder::Recorder;
use crate::wire::requests::{WAYS, Wire};

use super::{App, head, read_head, told, trace};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum, Set-Cookie\r\nTransfer-Encoding: chunked\r\n\
      Connection: keep-alive, X-Hop\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a=b\r\nX-Hop: 1\r\n\
      Content-Length: 50\r\nTransfer-Encoding: chunked\r\nx-sum: 2\r\n\r\n";

/// Whether the answer goes by a record, which keeps none.
fn is_recorded(way: &str) -> bool {
    matches!(way, "/body" | "/head" | "/hook")
}

#[test]
fn trailers_go_to_clients_that_take_them_and_others_hear_of_none() {
    let wire = Wire::before(Recorder::says(ANSWER), "");
    for way in WAYS {
        for (te, takes) in [
            ("TE: trailers\r\nConnection: close, TE\r\n", true),
            ("TE: deflate, Trailers\r\nConnection: close\r\n", true),
            ("TE: deflate\r\nConnection: close, TE\r\n", false),
            ("Connection: close\r\n", false),
        ] {
            let answer = wire.post(way, &format!("{te}Content-Length: 0\r\n"), "").unwrap();
            let (seen, passed) = (wire.app.one(), takes && !is_recorded(way));
            let told = vec!["trailers"; passed.into()];
            assert_eq!((seen.all("te"), answer.status), (told, 200), "{way} {te}");
            assert_eq!(seen.all("connection"), vec!["te"; passed.into()], "{way} {te}");
            assert_eq!(answer.header("trailer"), passed.then_some("x-sum"), "{way} {te}");
            let body = match (passed, is_recorded(way)) {
                (true, _) => "2\r\nok\r\n0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n",
                (false, false) => "2\r\nok\r\n0\r\n\r\n",
                (false, true) => "ok",
            };
            assert_eq!(answer.text(), body, "{way} {te}");
        }
    }
    // HTTP/1.0 has no place for them.
    let mut client = wire.edge.connect();
    client.send("GET /page HTTP/1.0\r\nHost: studylab.localhost\r\nTE: trailers\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.header("trailer"), answer.text()), (None, "ok"));
    assert!(!wire.app.one().has("te"));
}

#[test]
fn an_answer_out_of_its_record_announces_no_trailers() {
    let wire = Wire::before(Recorder::says(ANSWER), "");
    for way in ["/body", "/head"] {
        for replayed in [None, Some("true")] {
            let more = [("cookie", "who=ada"), ("idempotency-key", way), ("te", "trailers")];
            let answer = wire.edge.ask("POST", way, &more, "");
            assert_eq!(answer.header("idempotent-replayed"), replayed, "{way}");
            assert_eq!((answer.header("trailer"), answer.text()), (None, "ok"), "{way}");
        }
        wire.app.one();
    }
}

#[test]
fn a_client_of_http2_takes_trailers() {
    let wire = Wire::before(Recorder::says(ANSWER), "");
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&wire.edge, &wire.dir).await;
        for way in WAYS {
            for te in [None, Some("trailers")] {
                let mut post = request("POST", way);
                let needs = wire.needs(way, "");
                let te_field = te.map(|te| ("te", te.to_owned()));
                for (name, value) in needs.into_iter().chain(te_field) {
                    post.headers_mut().insert(name, value.parse().unwrap());
                }
                let mut send = send.clone().ready().await.unwrap();
                let (answer, _) = send.send_request(post, true).unwrap();
                let (head, mut body) = answer.await.unwrap().into_parts();
                let mut all = Vec::new();
                while let Some(piece) = body.data().await {
                    all.extend_from_slice(&piece.unwrap());
                }
                let (seen, passed) = (wire.app.one(), !is_recorded(way));
                assert_eq!((head.status.as_u16(), &all[..]), (200, &b"ok"[..]), "{way}");
                let told = te.filter(|_| passed);
                assert_eq!(seen.all("te"), Vec::from_iter(told), "{way} {te:?}");
                let announced = head.headers.get("trailer").map(|n| n.to_str().unwrap());
                assert_eq!(announced, passed.then_some("x-sum"), "{way}");
                let trailers = body.trailers().await.unwrap();
                let trailers = trailers.map(|t| {
                    let all = t.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()));
                    all.collect::<Vec<_>>()
                });
                let both = vec!["x-sum: 1".to_owned(), "x-sum: 2".to_owned()];
                assert_eq!(trailers, passed.then_some(both), "{way}");
            }
        }
    });
}

#[test]
fn connections_are_used_again_behind_trailers() {
    let connections = Arc::new(AtomicUsize::new(0));
    let opened = Arc::clone(&connections);
    let app = App::start(move |app, first| {
        opened.fetch_add(1, Ordering::Relaxed);
        let mut head = first.to_owned();
        // Its path comes back behind the body, so that no two answers are alike.
        while let Some(path) = head.split(' ').nth(1) {
            let end = format!("0\r\nX-Path: {path}\r\nContent-Length: 9\r\n\r\n");
            app.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
                .and_then(|()| end.bytes().try_for_each(|byte| app.write_all(&[byte])))
                .unwrap();
            head = read_head(app);
        }
    });
    let edge = app.edge();
    let mut client = Connection::over(TcpStream::connect(edge.listen).unwrap());
    for n in 0..5 {
        let te = "TE: trailers\r\nConnection: TE\r\n";
        let taken = head(&format!("GET /taken/{n} HTTP/1.1"), te);
        let dropped = head(&format!("GET /dropped/{n} HTTP/1.1"), "");
        // Two at once.
        client.send(taken + &dropped);
        client.read_until("HTTP/1.1 200");
        client
            .read_until(format!("\r\n\r\n2\r\nok\r\n0\r\nx-path: /taken/{n}\r\n\r\nHTTP/1.1 200"));
        client.read_until("\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1, "the app's connection is used again");
}

#[test]
fn trailers_with_two_readings_end_the_answer_without_its_end() {
    let app = App::start(|app, head| {
        let section = match head.split(['/', ' ']).nth(2).unwrap() {
            "answer" => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n".to_owned(),
            "space" => "X Sum: 1\r\n".to_owned(),
            "colon" => "X-Sum : 1\r\n".to_owned(),
            "nameless" => ": 1\r\n".to_owned(),
            "valueless" => "X-Sum\r\n".to_owned(),
            "folded" => "X-Sum: 1\r\n more\r\n".to_owned(),
            "control" => "X-Sum: 1\x01\r\n".to_owned(),
            "line" => "X-Sum: 1\nX-B: 1\r\n".to_owned(),
            "many" => "X-Sum: 1\r\n".repeat(300),
            "long" => format!("X-Sum: {}\r\n", "a".repeat(70 << 10)),
            path => panic!("{path}"),
        };
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        let _ = app.write_all(format!("{start}{section}\r\n").as_bytes());
        super::rest(app);
    });
    let edge = app.edge();
    for bad in [
        "answer",
        "space",
        "colon",
        "nameless",
        "valueless",
        "folded",
        "control",
        "line",
        "many",
        "long",
    ] {
        for te in ["", "TE: trailers\r\nConnection: TE\r\n"] {
            let all = told(&edge, &head(&format!("GET /{bad} HTTP/1.1"), te));
            assert!(all.starts_with("HTTP/1.1 200"), "{bad}: {all}");
            assert!(all.ends_with("\r\n\r\n2\r\nok\r\n"), "{bad}: {all}");
        }
        assert_eq!(trace(&edge, &format!("/{bad}"))["outcome"], json!("cut-off"), "{bad}");
    }
}
