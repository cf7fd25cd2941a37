//! Request lines that are none, methods and hosts that are not for the app.

use super::{HOST, Recorder};
use crate::support::{Artifact, Edge};

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
