//! Where a body ends, and how long it is.

use std::time::Duration;

use super::*;
use crate::support::pass;

/// A body in DATA frames whose last one is empty, as curl and Go send an upload of unknown length.
fn in_frames(stream: u32, pieces: &[&str]) -> Vec<u8> {
    let data = pieces.iter().map(|p| frame(DATA, 0, stream, p)).collect::<Vec<_>>().concat();
    [data, frame(DATA, END_STREAM, stream, [])].concat()
}

#[test]
fn an_upload_over_http2_has_one_end_whatever_its_frames() {
    let wire = Wire::start();
    let mut stream = 1;
    let mut peer = wire.peer();
    for method in ["POST", "GET", "DELETE"] {
        for way in WAYS {
            if (way == "/hook" && method != "POST") || (method == "GET" && way != "/page") {
                continue;
            }
            for pieces in [&["hello"][..], &["hel", "", "lo"], &[]] {
                let body = pieces.concat();
                let head = wire.fields(method, way, &body, &[]);
                peer.send(frame(HEADERS, END_HEADERS, stream, head));
                peer.send(in_frames(stream, pieces));
                assert_eq!(peer.end_of(stream), End::Answered(200), "{method} {way} {pieces:?}");
                let seen = wire.app.one();
                assert!(seen.head.starts_with(method), "{method} {way} {pieces:?}: {seen:?}");
                assert_eq!(seen.content(), body, "{method} {way}: {seen:?}");
                stream += 2;
                // What another client sends next on a pooled connection is read as it is.
                assert_eq!(wire.edge.get("/page").status, 200);
                assert!(wire.app.one().head.starts_with("GET /page "), "{method} {way} {pieces:?}");
            }
        }
    }
}

#[test]
fn a_body_over_http2_needs_no_length_and_has_the_routes_bound() {
    let wire = Wire::start();
    let mut peer = wire.peer();
    let long = "x".repeat(2000);
    let head = wire.fields("POST", "/head", &long, &[]);
    peer.send(frame(HEADERS, END_HEADERS, 1, head));
    peer.send(in_frames(1, &[&long]));
    // 413 is none that HPACK has an index for.
    assert_eq!(peer.end_of(1), End::Answered(0));
    let rows = wire.edge.list(&["ledger"]);
    assert!(rows.iter().all(|r| r["state"] != "completed"), "{rows:?}");
}

#[test]
fn a_body_that_drips_over_http2_is_cut_off_on_every_way_that_does_not_read_it_whole() {
    let wire =
        Wire::start_with("[limits.client]\nrate_grace = \"300ms\"\nmin_body_rate = \"1KiB\"\n");
    for (cuts, way) in ["/page", "/none", "/app", "/head"].into_iter().enumerate() {
        let mut peer = wire.peer();
        peer.send(frame(HEADERS, END_HEADERS, 1, wire.fields("POST", way, "", &[])));
        // A tenth of the rate: each byte is in time, and all of them together are not.
        let mut sent = 0;
        while peer.send(frame(DATA, 0, 1, b"a")) {
            pass(Duration::from_millis(10));
            sent += 1;
            assert!(sent < 1000, "{way}: nothing ends it");
        }
        let metric = "vango_edge_cutoffs_total{limit=\"body-rate\"}";
        assert_eq!(wire.edge.metric(metric), cuts as u64 + 1, "{way}");
    }
}

#[test]
fn a_length_that_is_said_twice_reaches_the_app_once() {
    let wire = Wire::start();
    for way in WAYS {
        for said in ["Content-Length: 3, 3\r\n", "Content-Length: 3\r\nContent-Length: 3\r\n"] {
            let seen = wire.posted(way, said, "abc");
            assert_eq!(seen.all("content-length"), ["3"], "{way}");
            assert_eq!((seen.body.as_str(), seen.has("transfer-encoding")), ("abc", false));
        }
    }
    // A bound counts it as what it is.
    let long = wire.post("/head", "Content-Length: 2000, 2000\r\n", &"x".repeat(2000)).unwrap();
    long.problem(413, "content-too-large");
    assert_eq!(wire.app.take().len(), 0);
}

#[test]
fn chunks_that_two_servers_could_read_differently_are_refused() {
    let wire = Wire::start();
    let good = wire.posted(
        "/page",
        "Transfer-Encoding: chunked\r\n",
        "5;a=\"b\tc\"\r\nhello\r\n0\r\n\r\n",
    );
    assert_eq!(good.content(), "hello");
    for way in WAYS {
        for body in [
            "5;\nhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5;a\0\r\nhello\r\n0\r\n\r\n",
            "\r\n\r\n",
            ";a\r\n\r\n",
            "5\nhello\n0\n\n",
        ] {
            let answer = wire.post(way, "Transfer-Encoding: chunked\r\n", body);
            let answer = answer.unwrap_or_else(|| panic!("{way} {body:?} is not answered"));
            assert_eq!(answer.status, 400, "{way} {body:?}: {}", answer.text());
            assert!(answer.json()["type"].as_str().unwrap().ends_with("/malformed-request"));
            assert_eq!(answer.header("connection"), Some("close"));
        }
        // None of them reached the app as a whole request.
        assert_eq!(wire.app.take().len(), 0, "{way}");
    }
}

#[test]
fn a_coding_that_the_edge_does_not_undo_is_refused() {
    let wire = Wire::start();
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked"] {
        let said = format!("Transfer-Encoding: {coding}\r\n");
        let answer = wire.post("/page", &said, "5\r\nhello\r\n0\r\n\r\n").unwrap();
        answer.problem(400, "malformed-request");
    }
    assert_eq!(wire.app.take().len(), 0);
}
