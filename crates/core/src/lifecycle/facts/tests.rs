//! Heads of requests: hosts, paths, keys, and what follows a head.

use super::*;
use crate::clock::SeededEntropy;

fn parse(build: http::request::Builder, target: &str) -> Result<Facts, BadRequest> {
    let (parts, ()) = build.body(()).unwrap().into_parts();
    Facts::parse(&parts, target.as_bytes(), RequestId::random(&SeededEntropy::new(1)), Mono(0))
}
fn get() -> http::request::Builder {
    http::Request::builder().header("host", "Study.localhost:8080")
}

#[test]
fn host_is_read_from_one_place_or_refused() {
    assert_eq!(parse(get(), "/").unwrap().host, "study.localhost");
    let none = http::Request::builder();
    assert_eq!(parse(none, "/").unwrap_err(), BadRequest::HostMissing);
    let two = get().header("host", "b");
    assert_eq!(parse(two, "/").unwrap_err(), BadRequest::HostRepeated);
    for h in ["a:b", "a@b", "a b", "", "a:99999", "[::1", "a/b"] {
        let bad = http::Request::builder().header("host", h);
        assert_eq!(parse(bad, "/").unwrap_err(), BadRequest::HostInvalid, "{h:?}");
    }
    let absolute = get().uri("http://other.localhost/");
    assert_eq!(parse(absolute, "/").unwrap_err(), BadRequest::HostMismatch);
    let h2 = http::Request::builder().version(Version::HTTP_2).uri("https://a.example/x");
    assert_eq!(parse(h2, "/x").unwrap().host, "a.example");
    let dot = http::Request::builder().header("host", "a.example.");
    assert_eq!(parse(dot, "/").unwrap().host, "a.example");
}

#[test]
fn another_coding_than_chunked_is_refused() {
    let coded = |codings: &[&str]| {
        let add = |b: http::request::Builder, c: &&str| b.header("transfer-encoding", *c);
        parse(codings.iter().fold(get(), add), "/").map(|f| f.body)
    };
    assert_eq!(coded(&["Chunked"]), Ok(true));
    for refused in ["gzip, chunked", "chunked, chunked", ", chunked", ""] {
        assert_eq!(coded(&[refused]), Err(BadRequest::Malformed), "{refused:?}");
    }
    assert_eq!(coded(&["chunked", "chunked"]), Err(BadRequest::Malformed));
}

#[test]
fn a_path_has_one_reading() {
    for (sent, read) in [
        ("/dashboard", "/dashboard"),
        ("/%64ashboard", "/dashboard"),
        ("/a/../webhooks/stripe", "/webhooks/stripe"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/./b/.", "/a/b/"),
        ("/a%2fb", "/a%2Fb"),
        ("//a//b", "//a//b"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/..", "/"),
        ("*", "*"),
    ] {
        let facts = parse(get(), sent).unwrap();
        assert_eq!((facts.path.as_str(), facts.sent()), (read, sent), "{sent}");
    }
    for sent in ["/..", "/a/../../b", "/a\\b", "/%5c", "/%00", "/%zz", "/%4", "a", "", "/é"] {
        assert_eq!(parse(get(), sent).unwrap_err(), BadRequest::Path, "{sent:?}");
    }
    for sent in ["/a b", "/a#b", "/a?b#c", "/a\tb", "/a\x7f"] {
        assert_eq!(parse(get(), sent).unwrap_err(), BadRequest::Malformed, "{sent:?}");
    }
    let long = |n| parse(get(), &"/".repeat(n)).map(|_| ());
    assert_eq!(long(LONGEST_TARGET), Ok(()));
    assert_eq!(long(LONGEST_TARGET + 1), Err(BadRequest::TargetTooLong));
    for (sent, read) in
        [("http://study.localhost/a?b", "/a?b"), ("HTTP://Study.localhost:8080", "/")]
    {
        let facts = parse(get().uri("http://study.localhost:8080/a"), sent).unwrap();
        assert_eq!(facts.target(), read, "{sent}");
    }
    let facts = parse(get(), "/a/%2e?x=%2e&y").unwrap();
    assert_eq!(
        (facts.target().as_str(), facts.normal_target().as_str()),
        ("/a/%2e?x=%2e&y", "/a/?x=%2e&y")
    );
}

#[test]
fn keys_quoted_and_bare_are_equal_and_odd_ones_invalid() {
    let key = |v: &str| parse(get().header("idempotency-key", v), "/").unwrap().key;
    assert_eq!(key("\"abc\""), IdempotencyKey::Present("abc".into()));
    assert_eq!(key("abc"), IdempotencyKey::Present("abc".into()));
    assert_eq!(key(r#""a\"b""#), IdempotencyKey::Invalid);
    for bad in ["", "\"", "\"\"", "\"a", "a\"b", &"k".repeat(256)] {
        assert_eq!(key(bad), IdempotencyKey::Invalid, "{bad:?}");
    }
    let two = get().header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(parse(two, "/").unwrap().key, IdempotencyKey::Invalid);
}

#[test]
fn what_follows_the_head_is_known() {
    let f = parse(get().method("POST").header("content-length", "3"), "/").unwrap();
    assert!(f.body && !f.websocket);
    let ws = get().header("connection", "keep-alive, Upgrade").header("upgrade", "WebSocket");
    assert!(parse(ws, "/").unwrap().websocket);
    let ws = || get().header("connection", "upgrade").header("upgrade", "websocket");
    assert!(!parse(ws().version(Version::HTTP_10), "/").unwrap().websocket);
    assert!(!parse(ws().header("content-length", "1"), "/").unwrap().websocket);
    assert!(!parse(get().header("upgrade", "websocket"), "/").unwrap().websocket);
    let twice = get().header("content-length", "3, 3").header("content-length", "3");
    assert_eq!(parse(twice, "/").unwrap().content_length, Some(3));
}

#[test]
fn lines_of_cookies_are_one_field_and_connection_names_no_more_than_may_be() {
    let check = |build: http::request::Builder, most| {
        let (parts, ()) = build.body(()).unwrap().into_parts();
        check_head(&parts.headers, 1, 1000, most)
    };
    let cookies = (0..9).fold(get(), |g, n| g.header("cookie", format!("c{n}=1")));
    assert_eq!(check(cookies, 2), Ok(()));
    let named = || get().header("connection", "a, b, c");
    assert_eq!(check(named(), 3), Ok(()));
    assert_eq!(check(named(), 2), Err(BadRequest::HeadTooLarge));
    let nav = get().header("accept", "text/html,*/*;q=0.8");
    assert_eq!(parse(nav, "/").unwrap().error_form, ErrorForm::Page);
    assert_eq!(parse(get().header("accept", "*/*"), "/").unwrap().error_form, ErrorForm::Problem);
}
