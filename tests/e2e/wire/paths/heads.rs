//! Request lines that are none, methods and hosts that are not for the app.

use super::{HOST, Recorder};
use crate::http2::peer::{End, Peer, fields, head, integer, literal};
use crate::support::{Artifact, Edge};
use crate::tls::{client_config, edge_with};

#[test]
fn a_target_with_a_space_or_a_fragment_is_refused_and_not_mended() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    for line in [
        "GET /pa th HTTP/1.1",
        "GET /path  HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /a\u{7f}b HTTP/1.1",
        "GET /a\u{1}b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a?b#c HTTP/1.1",
        "GET # HTTP/1.1",
        "POST /actions/plain/x y HTTP/1.1",
        "GET http://rec.localhost/a#b HTTP/1.1",
    ] {
        let mut connection = edge.connect();
        connection.send(format!("{line}\r\nHost: rec.localhost\r\n\r\n"));
        connection.answer().unwrap().problem(400, "malformed-request");
        assert!(connection.ends_here(), "{line}");
    }
    // Bytes that no URI has and browsers send, as they are.
    let sent = "/a|b'()[]?c|d^`{}[]";
    assert_eq!(edge.ask("GET", sent, &[HOST], "").status, 200);
    assert_eq!(app.target(), sent);
}

#[test]
fn a_target_beyond_the_bound_is_told_so() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    for length in [65_535, 65_536, 70_000, 200_000] {
        let mut connection = edge.connect();
        connection.send_head("GET", &format!("/{}", "a".repeat(length - 1)), &[HOST]);
        assert_eq!(connection.answer().unwrap().status, 414, "{length}");
    }
    // A line that never ends is one as well; fields that are too long are another thing.
    let mut endless = edge.connect();
    endless.send(format!("GET /{}", "a".repeat(70_000)));
    assert_eq!(endless.answer().unwrap().status, 414);
    let mut long = edge.connect();
    long.send_head("GET", "/", &[HOST, ("X-Long", &"a".repeat(70_000))]);
    assert_eq!(long.answer().unwrap().status, 431);
    let sent = format!("/{}", "a".repeat(60_000));
    assert_eq!(edge.ask("GET", &sent, &[HOST], "").status, 200);
    assert_eq!(app.target(), sent);
    // Where the operator's bound is lower, that one counts.
    edge.reconfigure("[server]\n", "[limits.client]\nheader_bytes = \"8KiB\"\n[server]\n");
    edge.json(&["reload"]);
    let answer = edge.ask("GET", &format!("/{}", "a".repeat(9_000)), &[HOST], "");
    assert_eq!(answer.status, 414);
    assert_eq!(app.take(), [] as [String; 0]);
}

/// Fields of a request without its path.
fn without_path() -> Vec<u8> {
    fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "studylab.localhost")])
}

/// The fields of a request for `path`, which is in no table, nor comes into one.
fn to(path: impl AsRef<[u8]>) -> Vec<u8> {
    [without_path(), vec![0x04], literal(path)].concat()
}

#[test]
fn over_http2_what_is_no_target_is_refused_and_not_cut_off() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let mut peer = Peer::without_table(&edge, &client_config(&dir, "one", &[b"h2"]));
    let mut stream = 1;
    for sent in [
        &b"/debug/echo#b"[..],
        b"/debug/echo?b#c",
        b"#",
        b"/#",
        b"/debug/e cho",
        b"/debug/echo ",
        b"/debug/echo\t",
        b"/debug/echo?\x01",
        b"/debug/echo\x7f",
        b"/debug/echo\0",
        b"/debug/echo\r\nX: y",
        b"/debug/echo\xff",
        b"/debug/echo?a=\xff",
        b"/debug/<echo>",
        b"debug/echo",
        b"https://studylab.localhost/debug/echo",
    ] {
        peer.send(head(stream, &to(sent)));
        let (status, body) = peer.answer_of(stream);
        let what = String::from_utf8_lossy(sent);
        assert!(status == 400 && body.contains("/malformed-request"), "{what:?}: {status} {body}");
        stream += 2;
    }
    assert_eq!(edge.ops().len(), 0, "nothing is woken for it");
    let shown: Vec<_> = edge.list(&["traces"]).iter().map(|t| t["path"].clone()).collect();
    assert!(shown.contains(&"/debug/echo#b".into()), "{shown:?}");
    // Bytes that no URI has and browsers send, as they are.
    peer.send(head(stream, &to("/debug/echo?c|d^`{}[]")));
    let (status, body) = peer.answer_of(stream);
    assert!(status == 200 && body.contains("c|d^`{}[]"), "{status} {body}");
}

#[test]
fn over_http2_a_target_beyond_the_bound_is_told_so() {
    let (mut edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let config = client_config(&dir, "one", &[b"h2"]);
    let mut peer = Peer::without_table(&edge, &config);
    let mut stream = 1;
    let mut ask = |peer: &mut Peer, block: Vec<u8>| {
        stream += 2;
        peer.send(head(stream, &block));
        peer.answer_of(stream)
    };
    for length in [65_535, 65_536, 70_000, 98_304, 200_000, 262_144] {
        let long = "a".repeat(length - 1);
        let (status, body) = ask(&mut peer, to(format!("/{long}")));
        assert!(status == 414 && body.contains("/target-too-long"), "{length}: {status} {body}");
        // Wherever it stands among the fields, by its name, and in the Huffman code: eight times the
        // letter `a` is five bytes.
        let first = [vec![0x04], literal(format!("/{long}")), without_path()].concat();
        let named = [without_path(), vec![0], literal(":path"), literal(format!("/{long}"))];
        let mut code = integer(length / 8 * 5);
        code[0] |= 0x80;
        let code = [code, [0x18, 0xc6, 0x31, 0x8c, 0x63].repeat(length / 8)].concat();
        let coded = [without_path(), vec![0x04], code].concat();
        for block in [first, named.concat()] {
            assert_eq!(ask(&mut peer, block).0, 414, "{length}");
        }
        if length > 65_541 {
            assert_eq!(ask(&mut peer, coded).0, 414, "{length}");
        }
        // A list that is too large otherwise is another thing.
        let field = [vec![0], literal("x-long"), literal(&long)].concat();
        assert_eq!(ask(&mut peer, [to("/debug/echo"), field].concat()).0, 431, "{length}");
        assert_eq!(ask(&mut peer, to("/debug/echo")).0, 200, "the connection goes on");
    }
    let sent = format!("/debug/slow?ms=0&{}", "a".repeat(60_000));
    assert_eq!(ask(&mut peer, to(&sent)).0, 200);
    // What is far beyond it ends its connection, as lists of fields do: at once, since its length comes first.
    peer.send(&head(2001, &to("a".repeat(300_000)))[..9 + 16 * 1024]);
    assert_eq!(peer.end_of(2001), End::Connection(11));
    // Where the operator's bound is lower, that one counts: at once, and when HTTP/2 is offered with it.
    edge.reconfigure("[server]\n", "[limits.client]\nheader_bytes = \"8KiB\"\n[server]\n");
    edge.json(&["reload"]);
    drop(peer);
    for offered in [false, true] {
        if offered {
            assert!(edge.stop().success());
            edge.start_again();
        }
        let mut peer = Peer::without_table(&edge, &config);
        for length in [8_193, 9_000, 30_000] {
            let (status, body) = ask(&mut peer, to(format!("/{}", "a".repeat(length - 1))));
            assert!(status == 414 && body.contains("/target-too-long"), "{length}: {status}");
        }
        let field = [vec![0], literal("x-long"), literal("a".repeat(9_000))].concat();
        assert_eq!(ask(&mut peer, [to("/debug/echo"), field].concat()).0, 431);
        assert_eq!(ask(&mut peer, to("/debug/echo")).0, 200);
    }
}

#[test]
fn a_target_that_is_not_kept_leaves_the_table_as_its_sender_has_it() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let config = client_config(&dir, "one", &[b"h2"]);
    let indexed = |name: &str, value: &str| [vec![0x40], literal(name), literal(value)].concat();
    for whole in [false, true] {
        let mut peer = Peer::without_table(&edge, &config);
        let first = indexed("x-first", "one");
        peer.send(head(1, &[to("/debug/echo"), first].concat()));
        assert_eq!(peer.answer_of(1).0, 200);
        // To be indexed, and larger than the table: it empties it (RFC 7541 §4.4).
        let length = if whole { 65_536 } else { 100_000 };
        let long = [without_path(), vec![0x44], literal("a".repeat(length))].concat();
        peer.send(head(3, &[long, indexed("x-second", "two")].concat()));
        assert_eq!(peer.answer_of(3).0, 414);
        // The newest entry is there, and the one before it is not.
        peer.send(head(5, &[to("/debug/echo"), vec![0x80 | 62]].concat()));
        let (status, body) = peer.answer_of(5);
        assert!(status == 200 && body.contains("x-second"), "{status} {body}");
        peer.send(head(7, &[to("/debug/echo"), vec![0x80 | 63]].concat()));
        assert!(matches!(peer.end_of(7), End::Connection(1 | 9)));
    }
}

#[test]
fn trace_reaches_no_app_and_options_goes_as_far_as_it_may() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    for path in ["/", "/actions/pay", "/actions/edge/x", "/hooks/stripe", "/live", "//hooks/stripe"]
    {
        for headers in [&[HOST][..], &[HOST, ("Max-Forwards", "0")], &[HOST, ("Max-Forwards", "9")]]
        {
            edge.ask("TRACE", path, headers, "").problem(501, "method-refused");
        }
        let last = edge.ask("OPTIONS", path, &[HOST, ("Max-Forwards", "0")], "");
        assert_eq!((last.status, last.text()), (200, "max-forwards\n"), "{path}");
    }
    edge.ask("TRACE", "/", &[("Host", "nobody.test")], "").problem(501, "method-refused");
    assert_eq!(app.take(), [] as [String; 0]);
    for (sent, got) in [("1", "0"), ("10", "9"), ("99999999999999", "4294967294"), ("x", "x")] {
        assert_eq!(edge.ask("OPTIONS", "/", &[HOST, ("Max-Forwards", sent)], "").status, 200);
        let heads = app.take();
        assert!(
            heads[0].to_ascii_lowercase().contains(&format!("max-forwards: {got}\r\n")),
            "{heads:?}"
        );
    }
    // It means nothing for other methods.
    assert_eq!(edge.ask("GET", "/", &[HOST, ("Max-Forwards", "0")], "").status, 200);
    assert_eq!(app.take().len(), 1);
}

#[test]
fn the_admin_api_is_asked_by_one_name_of_its_own() {
    let edge = Edge::start();
    let ask = |target: &str, hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|h| ("Host", *h)).collect();
        let mut connection = crate::support::Connection::open(edge.admin);
        connection.send_head("GET", target, &[&hosts[..], &[("Connection", "close")]].concat());
        connection.answer().unwrap().status
    };
    let port = edge.admin.port();
    for own in ["127.0.0.1", "localhost", "[::1]", &format!("[::1]:{port}"), "LOCALHOST:1"] {
        assert_eq!(ask("/v1/routes", &[own]), 200, "{own}");
    }
    for foreign in
        ["[::1]evil", "[::1]evil.test", "[::1]:80evil", "[::1", "a@127.0.0.1", "127.0.0.1:80:80"]
    {
        assert_eq!(ask("/v1/routes", &[foreign]), 403, "{foreign}");
    }
    assert_eq!(ask("/v1/routes", &["127.0.0.1", "evil.test"]), 400);
    assert_eq!(ask("/v1/routes", &["127.0.0.1", "127.0.0.1"]), 400);
    assert_eq!(ask("http://evil.test/v1/routes", &["127.0.0.1"]), 400);
}

#[test]
fn what_an_app_wrote_gives_a_terminal_no_commands() {
    let edge = Edge::start();
    let loud = "printf 'red \\033[31m bell \\007 title \\033]0;x\\007 back\\b\\r c1 \\302\\233 rtl \\342\\200\\256\\ttab ok\\n'; exec ./studylab";
    let command = format!("[\"sh\", \"-c\", {loud:?}]");
    edge.deploy(&Artifact::new().set("process", "command", &command));
    assert_eq!(edge.get("/debug/echo").status, 200);
    let id = edge.ps()[0]["id"].as_str().unwrap().to_owned();
    let output = edge.command(&["logs", &id]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("red \\u001b[31m bell \\u0007"), "{text}");
    assert!(text.contains("c1 \\u009b rtl \\u202e\ttab ok\n"), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')), "{text:?}");
}
