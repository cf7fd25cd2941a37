//! Fields: cookies in one line, and none that the client may not set.

use super::*;

#[test]
fn lines_of_cookies_are_one_line() {
    let wire = Wire::start();
    let mut peer = wire.peer();
    let (mut stream, body) = (1, "x=1");
    for way in WAYS {
        let more = [("cookie", "a=1"), ("x-between", "1"), ("cookie", "b=2; c=3")];
        peer.send(frame(HEADERS, END_HEADERS, stream, wire.fields("POST", way, body, &more)));
        peer.send(frame(DATA, END_STREAM, stream, body));
        assert_eq!(peer.end_of(stream), End::Answered(200), "{way}");
        let first = if matches!(way, "/body" | "/head") { "who=ada; " } else { "" };
        assert_eq!(wire.app.one().all("cookie"), [format!("{first}a=1; b=2; c=3")], "{way}");
        stream += 2;
        let seen = wire.posted(way, "Cookie: a=1\r\nCookie: b=2\r\nContent-Length: 0\r\n", "");
        assert_eq!(seen.all("cookie"), [format!("{first}a=1; b=2")], "{way} over HTTP/1.1");
    }
}

#[test]
fn lines_of_cookies_count_as_one_field() {
    let wire = Wire::start_with("[limits.client]\nheader_fields = 20\n");
    let mut peer = wire.peer();
    let cookies: Vec<_> = (0..40).map(|n| format!("c{n}=1")).collect();
    let more: Vec<_> = cookies.iter().map(|c| ("cookie", c.as_str())).collect();
    let head = wire.fields("GET", "/page", "", &more);
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head));
    assert_eq!(peer.end_of(1), End::Answered(200));
    assert_eq!(wire.app.one().all("cookie"), [cookies.join("; ")]);
    let more: Vec<_> = (0..30).map(|_| ("x-field", "1")).collect();
    let head = wire.fields("GET", "/page", "", &more);
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, head));
    assert_eq!(peer.end_of(3), End::Answered(0), "431");
    assert_eq!(wire.app.take().len(), 0);
}

#[test]
fn what_connection_names_is_taken_off_before_the_edges_own_is_added() {
    let wire = Wire::start();
    let ten = "a, b, c, d, e, f, g, h, X-Mine, X-Forwarded-For, ,X-Request-Id";
    for way in WAYS {
        for named in [
            "X-Forwarded-For, X-Mine",
            "close, X-Forwarded-Host, x-mine",
            "keep-alive, X-Mine, Vango-Edge-Epoch, Vango-Edge-Idempotency-Attempt",
            ten,
            "\"X-Forwarded-For\", X-Mine",
            "X-Mine, Host, Content-Length, Cookie, Idempotency-Key, Content-Type",
        ] {
            let more = format!(
                "Connection: {named}\r\nX-Mine: 1\r\nContent-Type: text/plain\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
                 Proxy-Authorization: Basic eA==\r\nHTTP2-Settings: AAMAAABk\r\n\
                 Content-Length: 3\r\n"
            );
            let seen = wire.posted(way, &more, "abc");
            for gone in [
                "x-mine",
                "keep-alive",
                "proxy-connection",
                "proxy-authorization",
                "http2-settings",
                "upgrade",
            ] {
                assert!(!seen.has(gone), "{way} {named}: {gone} in {}", seen.head);
            }
            // Said anew where what it asks for may come.
            let proxied = matches!(way, "/page" | "/none" | "/app");
            assert_eq!(seen.all("te"), vec!["trailers"; proxied.into()], "{way} {named}");
            assert_eq!(seen.all("connection"), vec!["te"; proxied.into()], "{way} {named}");
            assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{way} {named}");
            assert_eq!(seen.all("x-forwarded-host"), ["studylab.localhost"], "{way} {named}");
            assert_eq!(seen.all("host"), ["studylab.localhost"], "{way} {named}");
            assert_eq!(seen.all("x-request-id").len(), 1, "{way} {named}");
            assert_eq!(seen.all("content-type"), ["text/plain"], "{way} {named}");
            assert_eq!(seen.has("idempotency-key"), matches!(way, "/app" | "/body" | "/head"));
            assert_eq!(seen.body, "abc", "{way} {named}");
        }
    }
    // A bound on what it costs: names count against `header_fields`, 128 by default.
    let many = format!("Connection: {}\r\nContent-Length: 0\r\n", vec!["a"; 300].join(","));
    wire.post("/page", &many, "").unwrap().problem(431, "header-fields-too-large");
}

#[test]
fn names_that_a_server_folds_into_the_edges_own_do_not_reach_it() {
    let wire = Wire::start();
    let forged = [
        "Vango.Edge.Webhook.Verdict",
        "vango-edge.Webhook-Event",
        "VANGO~EDGE!EPOCH",
        "Vango_Edge_Epoch",
        "X.Forwarded.For",
        "X-Forwarded.Proto",
        "X.Request.Id",
        "X*Real*Ip",
        "Proxy",
    ];
    for way in WAYS {
        let more: String = forged.iter().map(|n| format!("{n}: forged\r\n")).collect();
        let seen = wire.posted(way, &format!("{more}X.Kept: 1\r\nContent-Length: 0\r\n"), "");
        assert!(!seen.head.contains("forged"), "{way}: {}", seen.head);
        assert_eq!(seen.all("x.kept"), ["1"], "{way}");
    }
}

#[test]
fn trailers_that_are_dropped_are_not_announced() {
    let wire = Wire::start();
    let body = "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    for way in WAYS {
        let seen = wire.posted(way, "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n", body);
        assert!(!seen.has("trailer") && !seen.body.contains("X-Sum"), "{way}: {seen:?}");
        assert_eq!(seen.content(), "hello", "{way}");
    }
    let (mut peer, mut stream) = (wire.peer(), 1);
    for way in WAYS {
        let head = wire.fields("POST", way, "hello", &[("trailer", "x-sum")]);
        peer.send(frame(HEADERS, END_HEADERS, stream, head));
        peer.send(frame(DATA, 0, stream, "hello"));
        let trailers = fields(&[("x-sum", "1")]);
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers));
        assert_eq!(peer.end_of(stream), End::Answered(200), "{way} over HTTP/2");
        let seen = wire.app.one();
        assert!(!seen.has("trailer") && !seen.body.contains("x-sum"), "{way}: {seen:?}");
        assert_eq!(seen.content(), "hello", "{way} over HTTP/2");
        stream += 2;
    }
}
