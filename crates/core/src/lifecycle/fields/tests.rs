//! Fields of one connection, cookies, `traceparent` and trailers.

use super::*;

fn left(fields: &[(&'static str, &str)]) -> Vec<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, value.parse().unwrap());
    }
    strip_hop_by_hop(&mut headers);
    let mut left: Vec<_> = headers.keys().map(ToString::to_string).collect();
    left.sort_unstable();
    left
}

#[test]
fn what_belongs_to_one_connection_is_not_passed_on() {
    let kept = left(&[
        ("connection", "close, X-Secret, Cookie, x-secret,, X-Forwarded-For"),
        ("connection", "\"x-quoted\", x y, x-other"),
        ("x-secret", "1"),
        ("x-secret", "2"),
        ("x-other", "1"),
        ("x-quoted", "1"),
        ("x-forwarded-for", "203.0.113.1"),
        ("cookie", "a=1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("http2-settings", "AAMAAABk"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
        ("upgrade", "h2c"),
        ("transfer-encoding", "chunked"),
        ("content-type", "text/plain"),
    ]);
    assert_eq!(kept, ["content-type", "cookie", "x-quoted"]);
}

#[test]
fn what_says_whose_it_is_and_how_it_is_read_cannot_be_named_away() {
    for name in NOT_NOMINATED.iter().filter(|n| **n != header::TRANSFER_ENCODING) {
        assert_eq!(left(&[("connection", name.as_str()), (as_static(name), "1")]), [name.as_str()]);
    }
}

fn as_static(name: &HeaderName) -> &'static str {
    Box::leak(name.to_string().into_boxed_str())
}

#[test]
fn names_are_counted_so_that_they_can_be_bounded() {
    let mut headers = HeaderMap::new();
    assert_eq!(count_nominated(&headers), 0);
    headers.append("connection", "a, b".parse().unwrap());
    headers.append("connection", "c".parse().unwrap());
    assert_eq!(count_nominated(&headers), 3);
}

#[test]
fn the_first_of_a_name_is_found_in_text_and_all_of_them_in_bytes() {
    let mut headers = HeaderMap::new();
    headers.append(header::COOKIE, HeaderValue::from_bytes(b"sid=\xe4; a=2").unwrap());
    headers.append(header::COOKIE, "a=1; xsid=no".parse().unwrap());
    headers.append(header::COOKIE, "sid=\"s-1\" ;sid=s-2; =; sid".parse().unwrap());
    assert_eq!(first_cookie(&headers, "sid"), Some("\"s-1\""));
    assert_eq!(first_cookie(&headers, "a"), Some("1"));
    assert_eq!(first_cookie(&headers, "si"), None);
    assert!(cookies(&headers, "sid").eq([&b"\xe4"[..], b"\"s-1\"", b"s-2"]));
}

#[test]
fn a_traceparent_is_valid_or_none() {
    let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let read = TraceParent::parse(good).unwrap();
    assert_eq!(format!("{:032x}", read.trace), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(read.span, 0xb7ad_6b71_6920_3331);
    for bad in [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "",
    ] {
        assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
    }
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let all = fields.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap()));
    let mut map = HeaderMap::new();
    all.for_each(|(name, value)| {
        map.append(name, value);
    });
    map
}

fn of(version: Version, fields: &[(&'static str, &'static str)]) -> Trailers {
    let (mut head, ()) = http::Request::new(()).into_parts();
    (head.version, head.headers) = (version, map(fields));
    Trailers::of(&head)
}

#[test]
fn clients_that_take_them_are_known() {
    let said = |version, fields: &[_]| {
        let trailers = of(version, fields);
        (trailers.asked, trailers.taken)
    };
    for te in ["trailers", "Trailers", "deflate;q=0.5, trailers", " , trailers,"] {
        assert_eq!(said(Version::HTTP_11, &[("te", te)]), (true, true), "{te}");
        assert_eq!(said(Version::HTTP_10, &[("te", te)]), (false, false), "{te}");
    }
    for te in ["", "deflate", "trailer", "trailers;q=0"] {
        assert_eq!(said(Version::HTTP_11, &[("te", te)]), (false, false), "{te}");
    }
    let lines = [("te", "deflate"), ("te", "trailers")];
    assert_eq!(said(Version::HTTP_11, &lines), (true, true));
    assert_eq!(said(Version::HTTP_2, &[]), (false, true));
    assert_eq!(said(Version::HTTP_2, &lines), (true, true));
}

const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");

#[test]
fn what_is_announced_is_what_may_come() {
    let announced = |version, fields: &[_]| {
        let line = of(version, &[]).announced(Version::HTTP_11, &map(fields));
        line.map(|l| l.to_str().unwrap().to_owned())
    };
    let both = [CHUNKED, ("trailer", "X-Sum, Set-Cookie,x-hop"), ("trailer", "ETag, a b")];
    assert_eq!(announced(Version::HTTP_2, &both).unwrap(), "x-sum, x-hop, etag");
    assert_eq!(announced(Version::HTTP_11, &both), None);
    let named = [&both[..], &[("connection", "close, X-Hop")]].concat();
    assert_eq!(announced(Version::HTTP_2, &named).unwrap(), "x-sum, etag");
    let named = [&both[..], &[("connection", "trailer")]].concat();
    assert_eq!(announced(Version::HTTP_2, &named), None);
    assert_eq!(announced(Version::HTTP_2, &both[1..]), None, "no place for them");
    let of_http2 = of(Version::HTTP_2, &[]).announced(Version::HTTP_2, &map(&both[1..]));
    assert_eq!(of_http2.unwrap(), "x-sum, x-hop, etag", "HTTP/2 has a place for them always");
    assert_eq!(announced(Version::HTTP_2, &[CHUNKED, ("trailer", "Host")]), None);
    assert_eq!(announced(Version::HTTP_2, &[CHUNKED]), None);
}

#[test]
fn what_belongs_in_a_head_or_to_the_apps_connection_does_not_pass() {
    let kept = ["content-digest", "etag", "grpc-status", "server-timing", "x-sum"];
    let all = [
        "content-length",
        "content-type",
        "content-encoding",
        "content-range",
        "if-match",
        "te",
        "trailer",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "vango-edge-epoch",
        "x-hop",
    ];
    let mut map = HeaderMap::new();
    for name in
        OF_THE_HEAD.into_iter().chain(all.into_iter().chain(kept).map(HeaderName::from_static))
    {
        map.append(name, HeaderValue::from_static("1"));
    }
    let (mut to_http2, mut to_http11) = (of(Version::HTTP_2, &[]), of(Version::HTTP_11, &[]));
    let answer = HeaderMap::from_iter([
        (header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        (header::CONNECTION, HeaderValue::from_static("keep-alive, x-hop")),
    ]);
    to_http2.announced(Version::HTTP_11, &answer);
    to_http11.announced(Version::HTTP_11, &answer);
    let mut left = map.clone();
    to_http2.clean(&mut left);
    let mut left: Vec<_> = left.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, kept);
    to_http11.clean(&mut map);
    assert!(map.is_empty());
}
