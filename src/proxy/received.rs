//! A client's request as the edge and the app both read it, made once, where it enters: what was
//! said to this connection is taken off, cookies are one line, and a length is one number. Whatever
//! class its route has, its request goes on from here, so that no two ways can read it differently.
//!
//! What the edge **adds** is in [`super::headers`].

use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::v2::server::BadTarget;

use crate::lifecycle::facts::BadRequest;
use crate::lifecycle::hop;

/// The target of `head`, as it was sent.
///
/// # Errors
/// Over HTTP/2, for one of which the crate `http` has no URI: the path in `head` is a placeholder then. Over
/// HTTP/1.1 Pingora refuses these by itself ([`super::unread`]).
pub fn target(head: &RequestHeader) -> Result<&[u8], BadRequest> {
    match head.extensions.get::<BadTarget>() {
        None => Ok(head.raw_path()),
        Some(bad) if bad.too_long => Err(BadRequest::TargetTooLong),
        Some(_) => Err(BadRequest::Malformed),
    }
}

/// What was sent as the target of `head`, for a trace; nothing where it was too long to be kept.
pub fn sent(head: &RequestHeader) -> &[u8] {
    head.extensions.get::<BadTarget>().map_or_else(|| head.raw_path(), |bad| &bad.sent)
}

/// Makes `head` that.
///
/// `Upgrade` goes with the rest: Pingora would open a tunnel for whatever has one. A route for live
/// sockets makes its own ([`super::live`]).
pub fn settle(head: &mut RequestHeader) {
    for name in hop::fields(&head.headers) {
        head.remove_header(&name);
    }
    if let Some(cookies) = one_line(head) {
        let _ = head.insert_header(header::COOKIE, cookies);
    }
    if let Some(length) = one_length(head) {
        let _ = head.insert_header(header::CONTENT_LENGTH, length);
    }
}

/// Cookies that came in several fields, as one: HTTP/2 lets a client split them, and what leaves
/// HTTP/2 must join them again (RFC 9113 §8.2.3). Servers read the first line only, or join them
/// with a comma.
fn one_line(head: &RequestHeader) -> Option<HeaderValue> {
    if hop::more_lines(&head.headers, header::COOKIE) == 0 {
        return None;
    }
    let lines = head.headers.get_all(header::COOKIE);
    let lines: Vec<&[u8]> = lines.iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&lines.join(&b"; "[..])).ok()
}

/// A length that was said more than once (RFC 9110 §8.6). Pingora has refused those that differ.
fn one_length(head: &RequestHeader) -> Option<HeaderValue> {
    let mut lines = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let first = lines.next()?.as_bytes();
    let once = lines.next().is_none() && !first.contains(&b',');
    let length = first.split(|b| *b == b',').next()?.trim_ascii();
    (!once).then(|| HeaderValue::from_bytes(length).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        settle(&mut head);
        head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect()
    }

    #[test]
    fn cookies_are_one_line_and_a_length_is_one_number() {
        assert_eq!(settled(&[("Cookie", "a=1")]), ["cookie: a=1"]);
        let three = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
        assert_eq!(settled(&three), ["cookie: a=1; b=2; c=3; d=4"]);
        for said in [&[("content-length", "3")][..], &[("Content-Length", "3, 3")]] {
            assert_eq!(settled(said), ["content-length: 3"]);
        }
        let twice = [("content-length", "3"), ("content-length", "3")];
        assert_eq!(settled(&twice), ["content-length: 3"]);
    }

    #[test]
    fn what_was_said_to_this_connection_is_gone() {
        let left = settled(&[
            ("Connection", "upgrade, X-A"),
            ("Upgrade", "h2c"),
            ("X-A", "1"),
            ("transfer-encoding", "Chunked"),
        ]);
        assert_eq!(left, ["transfer-encoding: Chunked"]);
    }
}
