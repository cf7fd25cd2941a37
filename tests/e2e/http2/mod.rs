//! HTTP/2 as RFC 9113 has it, written out case by case: what must end the connection, what must end
//! a stream, and what must be served. Each case has a connection of its own to the real binary, over
//! TLS; a conforming request beside it is served afterwards. Then floods, each within bounds.
//!
//! Where an implementation has a choice by the RFC, all of its choices are listed. Where the edge
//! does something else, [`Case::known`] says what and why that does no harm; a case that comes to
//! conform fails until its note is removed.

mod cases;
pub mod peer;

use std::collections::BTreeMap;
use std::time::Duration;

use vango_edge::clock::{Clock, SystemClock};

use crate::support::{Artifact, Edge, Gate, eventually, memory_of};
use crate::tls::{client_config, edge_with};

use cases::{Case, code};
use peer::*;

/// Longer than any case takes on a busy machine, and shorter than an idle connection is left open.
const SOON: Duration = Duration::from_secs(20);

fn hot_edge() -> (Edge, tempfile::TempDir) {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    (edge, dir)
}

#[test]
fn every_case_ends_as_the_rfc_says() {
    let (edge, dir) = hot_edge();
    let config = client_config(&dir, "one", &[b"h2"]);
    let (mut wrong, clock) = (BTreeMap::new(), SystemClock::new());
    for case in cases::all() {
        let Case { section, what, ref send, watch, allowed, known } = case;
        let mut peer = if send.starts_with(b"PRI") || section == "3.4" {
            Peer::silent(&edge, &config)
        } else {
            Peer::open(&edge, &config)
        };
        let began = clock.now();
        // One that is closed in the middle of it has ended too.
        peer.send(send);
        let end = peer.end_of(watch);
        let fits = match known {
            Some((known, _)) => end == known && !allowed.contains(&end),
            None => allowed.contains(&end),
        };
        if !fits {
            wrong.insert(format!("{section} {what}"), format!("{end:?}, not {allowed:?}"));
        }
        if matches!(end, End::Connection(_)) {
            // §5.4.1: the connection is closed after it.
            while peer.next().is_some() {}
        } else if end != End::Closed {
            peer.send(get(2001));
            let next = peer.end_of(2001);
            if next != End::Answered(200) {
                wrong.insert(format!("{section} {what}, the next request"), format!("{next:?}"));
            }
        }
        let took = clock.now().since(began);
        if took > SOON {
            wrong.insert(format!("{section} {what}, its time"), format!("{end:?} after {took:?}"));
        }
    }
    let listed: Vec<_> = wrong.iter().map(|(what, end)| format!("{what}: {end}")).collect();
    assert!(wrong.is_empty(), "\n{}", listed.join("\n"));
    assert_eq!(edge.get("/debug/echo").status, 200);
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let (edge, dir) = hot_edge();
    let mut peer = Peer::open(&edge, &client_config(&dir, "one", &[b"h2"]));
    peer.send(frame(PING, 0, 0, b"\x01vango\x02\xff"));
    let pong = std::iter::from_fn(|| peer.next()).find(|f| f.kind == PING).unwrap();
    assert_eq!((pong.flags, &pong.payload[..]), (ACK, &b"\x01vango\x02\xff"[..]));
}

#[test]
fn streams_beyond_the_announced_number_are_refused() {
    let (edge, dir) = hot_edge();
    let mut peer = Peer::open(&edge, &client_config(&dir, "one", &[b"h2"]));
    for n in 0..100 {
        peer.send(post(2 * n + 1));
    }
    peer.send(get(201));
    // §5.1.2: REFUSED_STREAM says that it may be sent again.
    assert_eq!(peer.end_of(201), End::Stream(code::REFUSED_STREAM));
    peer.send(frame(DATA, END_STREAM, 1, b"x"));
    assert_eq!(peer.end_of(1), End::Answered(200));
    peer.send(get(203));
    assert_eq!(peer.end_of(203), End::Answered(200), "one has ended, so another is taken");
}

#[test]
fn what_is_sent_beyond_a_window_ends_it_and_is_not_kept() {
    let (edge, dir) = edge_with("");
    let gate = Gate::closed();
    edge.deploy(&Artifact::behind(&gate));
    let mut peer = Peer::open(&edge, &client_config(&dir, "one", &[b"h2"]));
    // Held, its body unread, so that no window grows.
    let head = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "studylab.localhost"),
        (":path", "/actions/save"),
        ("idempotency-key", "k"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    peer.send(frame(HEADERS, END_HEADERS, 1, fields(&head)));
    edge.until_held(1);
    for _ in 0..5 {
        peer.send(frame(DATA, 0, 1, [b'x'; 16 * 1024]));
    }
    let end = peer.end_of(1);
    let wanted = [End::Stream(code::FLOW_CONTROL), End::Connection(code::FLOW_CONTROL)];
    assert!(wanted.contains(&end), "{end:?}");
    gate.open();
}

#[test]
fn what_the_client_of_a_held_request_may_send_ahead_counts_with_its_head() {
    let (edge, dir) = edge_with("[limits]\nmax_held_bytes = \"130KiB\"\n");
    let gate = Gate::closed();
    edge.deploy(&Artifact::behind(&gate));
    let mut peer = Peer::without_table(&edge, &client_config(&dir, "one", &[b"h2"]));
    let mut stream = 1_u32;
    let mut save = |peer: &mut Peer, more: &[(&str, &str)]| {
        let key = format!("k{stream}");
        let head = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "studylab.localhost"),
            (":path", "/actions/save"),
            ("idempotency-key", &*key),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        peer.send(frame(HEADERS, END_HEADERS, stream, [fields(&head), fields(more)].concat()));
        stream += 2;
        stream - 2
    };
    // A whole window each: of how long it is, the first says nothing, and the second that it is longer.
    save(&mut peer, &[]);
    edge.until_held(1);
    save(&mut peer, &[("content-length", "1000000")]);
    edge.until_held(2);
    let refused = save(&mut peer, &[]);
    let (status, why) = peer.answer_of(refused);
    assert!(status == 503 && why.contains("max_held_bytes"), "{status} {why}");
    // One that is shorter has less in memory, and over HTTP/1.1 the body is not the edge's.
    let short = save(&mut peer, &[("content-length", "8")]);
    edge.until_held(3);
    let length = [("Idempotency-Key", "k"), ("Content-Length", "1000000")];
    let unread = edge.hold("POST", "/actions/save", &length, 4);
    drop(unread);
    edge.until_held(3);
    gate.open();
    peer.send(frame(DATA, END_STREAM, short, b"text=tea"));
    assert_eq!(peer.answer_of(short).0, 200);
    edge.until_held(0);
}

/// Sends `what` again and again, up to `most` bytes, and reads nothing.
fn flood(edge: &Edge, dir: &tempfile::TempDir, first: &[u8], what: &[u8], most: usize) -> usize {
    let mut peer = Peer::open(edge, &client_config(dir, "one", &[b"h2"]));
    peer.send(first);
    let burst = what.repeat((16 * 1024 / what.len()).max(1));
    let mut sent = 0;
    while sent < most && peer.send(&burst) {
        sent += burst.len();
    }
    sent
}

#[test]
fn floods_of_frames_are_bounded_in_memory_and_time() {
    // So that an attacker who no longer reads is cut off within the test.
    let soon = "[limits.client]\nwrite_timeout = \"2s\"\nheader_timeout = \"2s\"\n";
    let (edge, dir) = edge_with(soon);
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let open_headers = frame(HEADERS, END_STREAM, 1, request("GET", &[]));
    let setting = [0, 4, 0, 1, 0, 0];
    // A path as long as may be skipped, of which one byte comes at a time.
    let skipped = [vec![0x04], integer(250_000)].concat();
    let skipped = frame(HEADERS, END_STREAM, 1, skipped);
    let floods: [(&str, Vec<u8>, Vec<u8>, usize); 8] = [
        // More than sockets' buffers take while the edge is busy.
        ("CONTINUATION", open_headers.clone(), frame(CONTINUATION, 0, 1, [0; 0]), 64 << 20),
        (
            "long CONTINUATION",
            open_headers,
            frame(CONTINUATION, 0, 1, fields(&[("a", "b")])),
            64 << 20,
        ),
        ("CONTINUATION of a path", skipped, frame(CONTINUATION, 0, 1, b"a"), 64 << 20),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, setting), 4 << 20),
        ("PING", vec![], frame(PING, 0, 0, [7; 8]), 4 << 20),
        ("empty DATA", post(1), frame(DATA, 0, 1, []), 4 << 20),
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1]), 4 << 20),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1]), 4 << 20),
    ];
    for (name, first, what, most) in floods {
        let before = memory_of(edge.pid());
        let sent = flood(&edge, &dir, &first, &what, most);
        let grown = memory_of(edge.pid()).saturating_sub(before);
        println!("{name}: {sent} bytes taken, {} KiB more", grown / 1024);
        assert!(grown < 24 << 20, "{name}: {grown} bytes more");
        if name.contains("CONTINUATION") {
            // CVE-2024-27316: a head has a bound, whatever it is cut into.
            assert!(sent < most, "{name} goes on without an end");
        }
        assert_eq!(edge.get("/debug/echo").status, 200, "beside {name}");
    }
    eventually("all of them are gone", || edge.metric("vango_edge_client_connections") == 0);
}
