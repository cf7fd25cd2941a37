//! Header fields that the edge reads or takes off on the way of every message: those of one connection,
//! cookies, `traceparent`, `Idempotency-Key`, and the trailers of an app's answer. One reading each, for
//! requests and responses, whatever carries them.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Version, request};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A field's name as servers spell it that are like CGI (RFC 3875 §4.1.18): they make one name of all that
/// differ only in what is neither letter nor digit. To PHP `X.HTTP.Method.Override` is
/// `X-HTTP-Method-Override`.
pub fn folded(name: &HeaderName) -> Cow<'_, str> {
    let text = name.as_str();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if text.bytes().all(is_plain) {
        return text.into();
    }
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Fields that belong to one connection and end with it (RFC 9110 §7.6.1), whatever `Connection` says.
/// `Transfer-Encoding` is not among them: it frames the body, and goes where the body is framed anew
/// ([`strip_hop_by_hop`]).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    // Where trailers pass, [`Trailers`] announces them anew.
    header::TRAILER,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Fields that `Connection` cannot name away: they say whose message it is and how its body is read,
/// and without them the edge and the app would read two requests.
const NOT_NOMINATED: [HeaderName; 13] = [
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
    IDEMPOTENCY_KEY,
    HeaderName::from_static("traceparent"),
];

/// The options in a message's `Connection`.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines
        .flat_map(|v| v.as_bytes().split(|b| *b == b','))
        .filter_map(|token| std::str::from_utf8(token.trim_ascii()).ok())
}

/// The names in `headers` that end with the connection: the fixed ones, and those that its `Connection`
/// nominates.
pub fn hop_by_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    // Over what is there, which is little: a lookup, with its hash, takes a hundred instructions.
    let mut all: Vec<_> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    if all.contains(&header::CONNECTION) {
        let named = tokens(headers)
            // `close` and `keep-alive` name no field that is there: the usual case.
            .filter(|token| headers.contains_key(*token))
            .filter_map(|token| token.parse().ok())
            .filter(|name| !NOT_NOMINATED.contains(name));
        all.extend(named);
    }
    all
}

/// The fields that a message's `Connection` nominates, whether it is there already or may come as a trailer.
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let options = |token: &&str| {
        token.eq_ignore_ascii_case("close") || token.eq_ignore_ascii_case("keep-alive")
    };
    tokens(headers).filter(|t| !options(t)).filter_map(|t| t.parse().ok()).collect()
}

/// Whether a field of this name belongs to one connection whatever `Connection` says.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Takes them off a message whose body is framed anew.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in hop_by_hop(headers) {
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

/// How many options a message's `Connection` has, at most: a bound on what [`hop_by_hop`] costs.
pub fn count_nominated(headers: &HeaderMap) -> usize {
    let all = headers.get_all(header::CONNECTION).iter();
    all.map(|v| v.as_bytes().iter().filter(|b| **b == b',').count() + 1).sum()
}

/// The values of each cookie with this name, in the order sent: the most specific first (RFC 6265 §5.4).
///
/// The crate `cookie` reads text only and drops what it cannot read: a principal may be any bytes, and two
/// values under one name must be seen.
pub fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(move |line| cookies_of_line(line, name))
}

/// The first of them, in a field that is text throughout. Quotes around it are a part of it.
pub fn first_cookie<'a>(headers: &'a HeaderMap, name: &'a str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter(|line| line.to_str().is_ok());
    let value = lines.flat_map(|line| cookies_of_line(line, name)).next()?;
    std::str::from_utf8(value).ok()
}

fn cookies_of_line<'a>(line: &'a HeaderValue, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = line.as_bytes().split(|b| *b == b';');
    pairs.filter_map(|p| p.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Cookies that came in several fields, as one: HTTP/2 lets a client split them, and what leaves
/// HTTP/2 must join them again (RFC 9113 §8.2.3). Servers read the first line only, or join them
/// with a comma.
pub fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    if more_lines(headers, header::COOKIE) == 0 {
        return None;
    }
    let lines = headers.get_all(header::COOKIE);
    let lines: Vec<&[u8]> = lines.iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&lines.join(&b"; "[..])).ok()
}

/// What a valid `traceparent` says: the client's trace, to which the request belongs (W3C Trace Context
/// level 1, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not 0.
    pub trace: u128,
    /// The span that the request was sent from; not 0.
    pub span: u64,
}

impl TraceParent {
    /// Reads a header's value: version 00, ids that are not 0, lower-case hex. Anything else is none,
    /// and the trace begins here.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let lower = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let dashes = value.len() == 55 && [2, 35, 52].iter().all(|at| value[*at] == b'-');
        if !dashes || !value.starts_with(b"00") {
            return None;
        }
        let hex = |from: usize, to: usize| {
            let digits = &value[from..to];
            let digits = digits.iter().all(lower).then(|| std::str::from_utf8(digits).ok())??;
            u128::from_str_radix(digits, 16).ok()
        };
        hex(53, 55)?;
        let (trace, span) = (hex(3, 35)?, u64::try_from(hex(36, 52)?).ok()?);
        (trace != 0 && span != 0).then_some(Self { trace, span })
    }
}

/// Fields that say how the message is read, whose it is or what may be done with it: before the body,
/// or not at all (RFC 9110 §6.5.1, RFC 7230 §4.1.2). Besides these, see [`is_of_the_head`].
const OF_THE_HEAD: [HeaderName; 20] = [
    header::HOST,
    header::TRANSFER_ENCODING,
    header::CACHE_CONTROL,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::AUTHORIZATION,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::AGE,
    header::DATE,
    header::EXPIRES,
    header::LOCATION,
    header::RETRY_AFTER,
    header::VARY,
    header::WARNING,
    header::STRICT_TRANSPORT_SECURITY,
    // The edge's own word.
    HeaderName::from_static("x-request-id"),
];

/// Whether a field of this name is for a head only, and never for trailers.
pub fn is_of_the_head(name: &HeaderName) -> bool {
    let text = name.as_str();
    // A digest is known once the body is over (RFC 9530 §2).
    (text.starts_with("content-") && text != "content-digest")
        || text.starts_with("if-")
        || text.starts_with("vango-edge-")
        || OF_THE_HEAD.contains(name)
        || is_hop_by_hop(name)
}

/// What becomes of the trailers of one request's answer (RFC 9110 §6.5): whether its client takes them,
/// which of them are for it, and what is announced.
///
/// Those of requests are dropped, with their announcement, but from HTTP/2 to an app that speaks HTTP/2, where
/// they are frames of their own: over HTTP/1.1 nothing says whether an app's server takes them, and there are
/// servers that make header fields of them (CVE-2025-12642), or the next request (CVE-2025-59822).
#[derive(Debug, Default)]
pub struct Trailers {
    /// The client has said that it takes them.
    pub asked: bool,
    /// Or its protocol has a place for them anyway.
    taken: bool,
    /// What the answer's `Connection` names, which goes for trailers too (RFC 9110 §7.6.1).
    named: Vec<HeaderName>,
}

impl Trailers {
    /// By a request's head as it came. `TE` without `Connection: TE` counts, as it does to Go: a client that
    /// reads chunks reads trailers.
    pub fn of(head: &request::Parts) -> Self {
        let http2 = head.version == Version::HTTP_2;
        let says = head.headers.get_all(header::TE).iter().any(|line| {
            let mut all = line.as_bytes().split(|b| *b == b',');
            all.any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
        let asked = says && (http2 || head.version == Version::HTTP_11);
        Self { asked, taken: asked || http2, named: Vec::new() }
    }

    /// By the head of the answer, of `version`: what is announced to the client.
    pub fn announced(&mut self, version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
        // Over HTTP/1.1 a body that is not chunked has no place for them.
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        if !self.taken || !(chunked || version == Version::HTTP_2) {
            return None;
        }
        self.named = nominated(headers);
        if self.named.contains(&header::TRAILER) {
            return None;
        }
        let lines = headers.get_all(header::TRAILER).iter();
        let names = lines.flat_map(|l| l.as_bytes().split(|b| *b == b','));
        let names = names.filter_map(|n| HeaderName::from_bytes(n.trim_ascii()).ok());
        let names: Vec<_> = names.filter(|n| self.passes(n)).collect();
        let line = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
        HeaderValue::try_from(line).ok().filter(|line| !line.is_empty())
    }

    /// Leaves of the answer's trailers what is for the client.
    pub fn clean(&self, trailers: &mut HeaderMap) {
        let gone: Vec<_> = trailers.keys().filter(|n| !self.passes(n)).cloned().collect();
        for name in gone {
            trailers.remove(name);
        }
    }

    fn passes(&self, name: &HeaderName) -> bool {
        self.taken && !is_of_the_head(name) && !self.named.contains(name)
    }
}

/// A request's key: what it carries under `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07), and
/// where else its contract has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyKey {
    /// None.
    Absent,
    /// More than one header, empty, over 255 characters, or not a string.
    Invalid,
    /// In two places, and they differ.
    Several,
    /// The key itself, without quotes: quoted and bare forms are equal.
    Present(String),
}

/// Bytes of a key at most.
const LONGEST_KEY: usize = 255;

/// A key that stands in a form, a query or another header, where no quotes are around it.
pub(super) fn key_of_text(text: String) -> IdempotencyKey {
    // What was no UTF-8: two such keys would look the same.
    let odd = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
    match (1..=LONGEST_KEY).contains(&text.len()) && !text.contains(odd) {
        true => IdempotencyKey::Present(text),
        false => IdempotencyKey::Invalid,
    }
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> IdempotencyKey {
    let mut sent = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(first) = sent.next() else { return IdempotencyKey::Absent };
    if sent.next().is_some() {
        return IdempotencyKey::Invalid;
    }
    let Ok(text) = first.to_str() else { return IdempotencyKey::Invalid };
    let text = text.trim();
    let key = match text.strip_prefix('"') {
        // A structured-field string (RFC 8941 §3.3.3), without parameters.
        Some(rest) => rest.strip_suffix('"').and_then(unescape),
        None => Some(text.to_owned()),
    };
    match key {
        Some(k) if (1..=LONGEST_KEY).contains(&k.len()) && !k.contains('"') => {
            IdempotencyKey::Present(k)
        }
        _ => IdempotencyKey::Invalid,
    }
}

fn unescape(inner: &str) -> Option<String> {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => out.push(c),
                _ => return None,
            },
            '"' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

/// The value of the quoted string that `text` continues, and what follows its end (RFC 9110 §5.6.4).
pub(super) fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests;
