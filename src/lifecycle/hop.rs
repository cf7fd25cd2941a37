//! Fields that belong to one connection and end with it (RFC 9110 §7.6.1): the fixed ones, and those
//! that a message's `Connection` names. One list for requests and responses, whatever carries them.
//!
//! `Transfer-Encoding` is not among [`fields`]: it frames the body, and goes where the body is framed
//! anew ([`strip`]).

use http::header::{self, HeaderMap, HeaderName};

const FIXED: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    // Where trailers pass, `trailers` announces them anew.
    header::TRAILER,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Fields that `Connection` cannot name away: they say whose message it is and how its body is read,
/// and without them the edge and the app would read two requests.
const KEPT: [HeaderName; 13] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::EXPECT,
    // Never for one connection only, and without them a cache keeps what it must not.
    header::CACHE_CONTROL,
    header::VARY,
    header::COOKIE,
    header::SET_COOKIE,
    header::AUTHORIZATION,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
];

/// What a message's `Connection` says.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines
        .flat_map(|v| v.as_bytes().split(|b| *b == b','))
        .filter_map(|token| std::str::from_utf8(token.trim_ascii()).ok())
}

/// The names in `headers` that are not passed on. A token that is no field's name names nothing.
pub fn fields(headers: &HeaderMap) -> Vec<HeaderName> {
    // Over what is there, which is little: a lookup, with its hash, takes a hundred instructions.
    let mut all: Vec<_> = headers.keys().filter(|name| is_one(name)).cloned().collect();
    if all.contains(&header::CONNECTION) {
        let named = tokens(headers)
            // `close` and `keep-alive` name no field that is there: the usual case.
            .filter(|token| headers.contains_key(*token))
            .filter_map(|token| token.parse().ok())
            .filter(|name| !KEPT.contains(name));
        all.extend(named);
    }
    all
}

/// What the message's `Connection` names, whether it is there already or may come as a trailer.
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let options = |token: &&str| {
        token.eq_ignore_ascii_case("close") || token.eq_ignore_ascii_case("keep-alive")
    };
    tokens(headers).filter(|t| !options(t)).filter_map(|t| t.parse().ok()).collect()
}

/// Whether a field of this name belongs to one connection whatever `Connection` says.
pub fn is_one(name: &HeaderName) -> bool {
    FIXED.contains(name)
}

/// Takes them off a message whose body is framed anew.
pub fn strip(headers: &mut HeaderMap) {
    for name in fields(headers) {
        headers.remove(name);
    }
    headers.remove(header::TRANSFER_ENCODING);
}

/// How many lines a field has beyond its first one.
pub fn more_lines(headers: &HeaderMap, name: HeaderName) -> usize {
    if headers.len() == headers.keys_len() {
        return 0;
    }
    headers.get_all(name).iter().skip(1).count()
}

/// How many names the message's `Connection` has, at most: a bound on what [`fields`] costs.
pub fn named(headers: &HeaderMap) -> usize {
    let all = headers.get_all(header::CONNECTION).iter();
    all.map(|v| v.as_bytes().iter().filter(|b| **b == b',').count() + 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(fields: &[(&'static str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        strip(&mut headers);
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
        for name in KEPT.iter().filter(|n| **n != header::TRANSFER_ENCODING) {
            assert_eq!(
                left(&[("connection", name.as_str()), (as_static(name), "1")]),
                [name.as_str()]
            );
        }
    }

    fn as_static(name: &HeaderName) -> &'static str {
        Box::leak(name.to_string().into_boxed_str())
    }

    #[test]
    fn names_are_counted_so_that_they_can_be_bounded() {
        let mut headers = HeaderMap::new();
        assert_eq!(named(&headers), 0);
        headers.append("connection", "a, b".parse().unwrap());
        headers.append("connection", "c".parse().unwrap());
        assert_eq!(named(&headers), 3);
    }
}
