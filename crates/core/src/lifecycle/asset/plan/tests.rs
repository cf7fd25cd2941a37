//! Every encoding, precondition and range against what is answered.

#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is meant")]

use super::super::sample;
use super::*;

fn ask(asset: &Asset, head: bool, headers: &[(&str, &str)]) -> Plan {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, value.parse().unwrap());
    }
    plan(&Arc::new(asset.clone()), &map, head, false, Vec::new())
}
fn text<'p>(plan: &'p Plan, name: &str) -> Option<&'p str> {
    let mut found = plan.headers.iter().filter(|(n, _)| n.as_str() == name);
    let value = found.next().map(|(_, v)| v.to_str().unwrap());
    assert!(found.next().is_none(), "{name} is there twice");
    value
}

#[test]
fn a_whole_answer_says_everything_of_what_is_sent() {
    let asset = sample::asset();
    let plain = ask(&asset, false, &[]);
    assert_eq!((plain.status, &plain.body), (200, &Body::Part(0..100)));
    assert_eq!(text(&plain, "content-length"), Some("100"));
    assert_eq!(text(&plain, "content-type"), Some("text/css; charset=utf-8"));
    assert_eq!(text(&plain, "cache-control"), Some("no-cache"));
    assert_eq!(text(&plain, "vary"), Some("accept-encoding"));
    assert_eq!(text(&plain, "content-encoding"), None);
    let br = ask(&asset, false, &[("accept-encoding", "br")]);
    assert_eq!((br.status, &br.body), (200, &Body::Part(0..40)));
    assert_eq!(text(&br, "content-encoding"), Some("br"));
    assert_ne!(text(&br, "etag"), text(&plain, "etag"), "an entity tag for each encoding");
    assert_ne!(text(&br, "repr-digest"), text(&plain, "repr-digest"));
    assert!(!text(&br, "etag").unwrap().starts_with("W/"));
    let head = ask(&asset, true, &[("accept-encoding", "br"), ("range", "bytes=0-1")]);
    assert_eq!((head.status, &head.body, &head.headers), (200, &Body::None, &br.headers));
}

#[test]
fn only_fingerprinted_names_are_immutable() {
    let asset = Asset { fingerprinted: true, encoded: vec![], ..sample::asset() };
    let answer = ask(&asset, false, &[("accept-encoding", "br")]);
    assert_eq!(text(&answer, "cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(text(&answer, "vary"), None, "nothing varies");
    let answer = plan(&Arc::new(asset), &HeaderMap::new(), false, true, Vec::new());
    assert_eq!(text(&answer, "cache-control"), Some("private, max-age=31536000, immutable"));
}

/// The bytes of `app.js.gz` are gzip, whatever is asked for: there is no other form of them.
#[test]
fn what_is_stored_encoded_is_sent_so() {
    let mut asset = Asset { encoded: vec![], ..sample::asset() };
    asset.identity.coding = Some(Coding::Gzip);
    for accept in [&[][..], &[("accept-encoding", "br")], &[("accept-encoding", "identity")]] {
        let answer = ask(&asset, false, accept);
        assert_eq!((answer.status, &answer.body), (200, &Body::Part(0..100)), "{accept:?}");
        assert_eq!(text(&answer, "content-encoding"), Some("gzip"));
        assert_eq!(text(&answer, "vary"), None);
    }
    let part = ask(&asset, false, &[("range", "bytes=0-9")]);
    assert_eq!((part.status, text(&part, "content-encoding")), (206, Some("gzip")));
}

#[test]
fn what_the_contract_adds_is_on_every_answer_about_the_file() {
    let added = || vec![("service-worker-allowed".parse().unwrap(), "/".parse().unwrap())];
    let asset = Arc::new(sample::asset());
    let etag = asset.identity.etag.to_str().unwrap().to_owned();
    for sent in [("accept", "*/*"), ("if-none-match", &*etag), ("range", "bytes=0-1")] {
        let mut map = HeaderMap::new();
        map.insert(sent.0.parse::<HeaderName>().unwrap(), sent.1.parse().unwrap());
        let answer = plan(&asset, &map, false, false, added());
        assert_eq!(text(&answer, "service-worker-allowed"), Some("/"), "{sent:?}");
    }
}

#[test]
fn a_304_has_the_headers_of_the_200_that_caches_need_and_no_body() {
    let asset = sample::asset();
    let whole = ask(&asset, false, &[("accept-encoding", "gzip")]);
    let etag = text(&whole, "etag").unwrap();
    let sent = [("accept-encoding", "gzip"), ("if-none-match", etag), ("range", "bytes=0-1")];
    let answer = ask(&asset, false, &sent);
    assert_eq!((answer.status, &answer.body), (304, &Body::None));
    for name in ["etag", "vary", "cache-control"] {
        assert_eq!(text(&answer, name), text(&whole, name), "{name}");
    }
    assert_eq!((text(&answer, "content-length"), text(&answer, "content-type")), (None, None));
    // The tag of another encoding is not this one's.
    assert_eq!(ask(&asset, false, &[("if-none-match", etag)]).status, 200);
}

#[test]
fn ranges_are_of_the_encoding_that_was_chosen() {
    let asset = sample::asset();
    let one = ask(&asset, false, &[("range", "bytes=-10")]);
    assert_eq!((one.status, &one.body), (206, &Body::Part(90..100)));
    assert_eq!(text(&one, "content-range"), Some("bytes 90-99/100"));
    assert_eq!(text(&one, "content-length"), Some("10"));
    let br = ask(&asset, false, &[("range", "bytes=10-"), ("accept-encoding", "br")]);
    assert_eq!(text(&br, "content-range"), Some("bytes 10-39/40"));
    let none = ask(&asset, false, &[("range", "bytes=100-")]);
    assert_eq!((none.status, &none.body), (416, &Body::None));
    assert_eq!(text(&none, "content-range"), Some("bytes */100"));
    assert_eq!(text(&none, "content-length"), Some("0"));
    assert_eq!(text(&none, "cache-control"), Some("no-store"));
    let two = [("range", "bytes=0-1"), ("range", "bytes=2-3")];
    assert_eq!(ask(&asset, false, &two).status, 200);
    let stale = ask(&asset, false, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]);
    assert_eq!(stale.status, 200);
    let etag = text(&one, "etag").unwrap();
    let fresh = ask(&asset, false, &[("range", "bytes=0-1"), ("if-range", etag)]);
    assert_eq!(fresh.status, 206);
}

#[test]
fn several_ranges_are_a_multipart_whose_length_is_right() {
    let answer = ask(&sample::asset(), false, &[("range", "bytes=0-1,-2")]);
    assert_eq!((answer.status, text(&answer, "content-range")), (206, None));
    let kind = text(&answer, "content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let Body::Parts { parts, end } = &answer.body else { panic!("several parts") };
    let mut all = Vec::new();
    for (head, part) in parts {
        all.extend_from_slice(head);
        all.resize(all.len() + (part.end - part.start) as usize, b'x');
    }
    all.extend_from_slice(end);
    assert_eq!(text(&answer, "content-length"), Some(all.len().to_string().as_str()));
    let all = String::from_utf8(all).unwrap();
    let expected = format!(
        "\r\n--{boundary}\r\ncontent-type: text/css; charset=utf-8\r\ncontent-range: bytes \
         0-1/100\r\n\r\nxx\r\n--{boundary}\r\ncontent-type: text/css; charset=utf-8\r\n\
         content-range: bytes 98-99/100\r\n\r\nxx\r\n--{boundary}--\r\n"
    );
    assert_eq!(all, expected);
}

#[test]
fn what_is_not_allowed_says_so() {
    let asset = sample::asset();
    let none = ask(&asset, false, &[("accept-encoding", "*;q=0")]);
    assert_eq!((none.status, text(&none, "vary")), (406, Some("accept-encoding")));
    let failed = ask(&asset, false, &[("if-match", "\"other\"")]);
    assert_eq!((failed.status, &failed.body), (412, &Body::None));
    assert_eq!(text(&failed, "cache-control"), Some("no-store"));
}

const ALL: Allowed = Allowed::Perform { range: true };
const NO_RANGE: Allowed = Allowed::Perform { range: false };

#[test]
fn every_condition() {
    for (sent, expected) in [
        (&[][..], ALL),
        (&[("if-none-match", "\"x\"")], Allowed::NotModified),
        (&[("if-none-match", "W/\"x\"")], Allowed::NotModified),
        (&[("if-none-match", "\"a\", \"x\"")], Allowed::NotModified),
        (&[("if-none-match", "\"a,b\",W/\"x\"")], Allowed::NotModified),
        (&[("if-none-match", "\"a\""), ("if-none-match", "\"x\"")], Allowed::NotModified),
        (&[("if-none-match", "*")], Allowed::NotModified),
        (&[("if-none-match", "\"X\"")], ALL),
        (&[("if-none-match", "x")], ALL),
        (&[("if-none-match", "\"x")], ALL),
        (&[("if-none-match", "\"\", garbage, \"x\"")], ALL),
        (&[("if-none-match", "")], ALL),
        (&[("if-match", "\"x\"")], ALL),
        (&[("if-match", "*")], ALL),
        (&[("if-match", "W/\"x\"")], Allowed::Failed),
        (&[("if-match", "\"y\"")], Allowed::Failed),
        (&[("if-match", "\"y\", \"x\"")], ALL),
        (&[("if-match", "\"y\""), ("if-none-match", "\"x\"")], Allowed::Failed),
        (&[("if-match", "\"x\""), ("if-none-match", "\"x\"")], Allowed::NotModified),
        (&[("if-modified-since", "Tue, 15 Nov 2033 08:12:31 GMT")], ALL),
        (&[("if-unmodified-since", "Tue, 15 Nov 1994 08:12:31 GMT")], ALL),
        (&[("if-range", "\"x\"")], ALL),
        (&[("if-range", "W/\"x\"")], NO_RANGE),
        (&[("if-range", "\"y\"")], NO_RANGE),
        (&[("if-range", "Tue, 15 Nov 1994 08:12:31 GMT")], NO_RANGE),
        (&[("if-range", "\"x\""), ("if-range", "\"x\"")], NO_RANGE),
        (&[("if-range", "\"y\""), ("if-none-match", "\"x\"")], Allowed::NotModified),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        assert_eq!(evaluate(&headers, "\"x\""), expected, "{sent:?}");
    }
}

fn chosen(accept: &[&str]) -> &'static str {
    let asset = sample::asset();
    let mut headers = HeaderMap::new();
    for line in accept {
        headers.append(header::ACCEPT_ENCODING, line.parse().unwrap());
    }
    match choose_encoding(&asset, &headers) {
        None => "406",
        Some(r) => r.coding.map_or("identity", |c| c.name()),
    }
}

/// Sizes in the sample: br 40, zstd 45, gzip 50, plain 100.
#[test]
fn every_encoding_against_every_quality() {
    for (accept, expected) in [
        (&[][..], "identity"),
        (&[""], "identity"),
        (&["gzip"], "gzip"),
        (&["x-gzip"], "gzip"),
        (&["GZIP"], "gzip"),
        (&["zstd"], "zstd"),
        (&["br"], "br"),
        (&["gzip, deflate, br, zstd"], "br"),
        (&["gzip", "br"], "br"),
        (&["gzip;q=1.0, br;q=0.9"], "gzip"),
        (&["gzip;q=0.5, zstd;q=0.501"], "zstd"),
        (&["br;q=0, gzip"], "gzip"),
        (&["br;q=0.000, zstd;q=0, gzip;q=0"], "identity"),
        (&["*"], "br"),
        (&["*;q=0"], "406"),
        (&["*;q=0, gzip"], "gzip"),
        (&["*;q=0, identity"], "identity"),
        (&["br;q=0, *"], "zstd"),
        (&["identity"], "identity"),
        (&["identity;q=0"], "406"),
        (&["identity;q=0, *"], "br"),
        (&["identity;q=0, zstd;q=0.1"], "zstd"),
        (&["identity;q=1, br;q=0.5"], "identity"),
        (&["identity;q=0.5, br;q=0.5"], "br"),
        (&["*;q=0.5, identity;q=0.9"], "identity"),
        (&["deflate"], "identity"),
        (&["deflate, identity;q=0"], "406"),
        (&["br;q=1.5, gzip"], "gzip"),
        (&["br;q=x, gzip;q=0.0001"], "identity"),
        (&["br ; q=0.3 , gzip ; q=0.2"], "br"),
        (&[",, ,br,"], "br"),
    ] {
        assert_eq!(chosen(accept), expected, "{accept:?}");
    }
}

/// The cases of RFC 9110 §14.1.2 and §14.2, and what is made of the rest.
#[test]
fn every_form_of_range() {
    let parts = |p: &[Range<u64>]| Asked::Parts(p.to_vec());
    for (field, expected) in [
        ("bytes=0-499", parts(&[0..500])),
        ("bytes=500-999", parts(&[500..1000])),
        ("bytes=-500", parts(&[9500..10_000])),
        ("bytes=9500-", parts(&[9500..10_000])),
        ("bytes=0-0,-1", parts(&[0..1, 9999..10_000])),
        ("bytes= 0-999, 4500-5499, -1000", parts(&[0..1000, 4500..5500, 9000..10_000])),
        ("bytes=500-600,601-999", parts(&[500..601, 601..1000])),
        ("bytes=500-700,601-999", parts(&[500..701, 601..1000])),
        ("BYTES=0-0", parts(&[0..1])),
        ("bytes=0-", parts(&[0..10_000])),
        ("bytes=0-99999", parts(&[0..10_000])),
        ("bytes=-99999", parts(&[0..10_000])),
        ("bytes=9999-9999", parts(&[9999..10_000])),
        ("bytes=10000-", Asked::Unsatisfiable),
        ("bytes=10000-10001", Asked::Unsatisfiable),
        ("bytes=-0", Asked::Unsatisfiable),
        ("bytes=10000-,20000-30000", Asked::Unsatisfiable),
        ("bytes=10000-,0-1", parts(&[0..2])),
        ("bytes=99999999999999999999999-", Asked::Unsatisfiable),
        ("bytes=0-99999999999999999999999", parts(&[0..10_000])),
        ("bytes=5-2", Asked::Whole),
        ("bytes=0-1,5-2", Asked::Whole),
        ("bytes=", Asked::Whole),
        ("bytes=,", Asked::Whole),
        ("bytes=a-b", Asked::Whole),
        ("bytes=1", Asked::Whole),
        ("bytes=-", Asked::Whole),
        ("bytes=--1", Asked::Whole),
        ("bytes=+1-2", Asked::Whole),
        ("bytes 0-1", Asked::Whole),
        ("items=0-1", Asked::Whole),
        ("bytes=0-9999,0-9999", Asked::Whole),
    ] {
        assert_eq!(read_range(field, 10_000), expected, "{field}");
    }
    let many = format!("bytes={}", vec!["0-0"; MOST_RANGES + 1].join(","));
    assert_eq!(read_range(&many, 10_000), Asked::Whole);
    assert_eq!(read_range("bytes=0-", 0), Asked::Unsatisfiable);
}
