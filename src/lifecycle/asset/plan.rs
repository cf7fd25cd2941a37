//! The whole answer to a request for an asset, as values: status, headers and which bytes. The shell
//! only moves the bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::assets::{Asset, Coding, Representation};
use crate::id::Digest;

use super::conditions::{self, Allowed};
use super::negotiate;
use super::range::{self, Asked};

/// `Cache-Control` of a name that changes with its content: a year, and `immutable` (RFC 8246).
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// The same where not everybody may see it.
const FOR_EVER_PRIVATE: HeaderValue =
    HeaderValue::from_static("private, max-age=31536000, immutable");
/// Of a plain name: kept, but asked for again each time (RFC 9111 §5.2.2.4).
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// 200, 206, 304, 406, 412 or 416.
    pub status: u16,
    /// Every header that depends on the asset, `Content-Length` included.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What follows the head.
    pub body: Body,
    /// The representation it is about; `None` when none was acceptable.
    pub representation: Option<Source>,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Their digest, all of them together.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// How they are encoded.
    pub coding: Option<Coding>,
}

/// What follows the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// These bytes of the representation.
    Part(Range<u64>),
    /// `multipart/byteranges` (RFC 9110 §14.6): before each part its own head, after the last the end.
    Parts {
        /// Heads and ranges.
        parts: Vec<(Bytes, Range<u64>)>,
        /// The closing delimiter.
        end: Bytes,
    },
}

/// The answer for `asset`, asked for with `headers`. `head`: by HEAD. `private`: it is behind an
/// access token. `fields` are those that the contract adds.
pub fn plan(
    asset: &Arc<Asset>,
    headers: &HeaderMap,
    head: bool,
    private: bool,
    fields: Vec<(HeaderName, HeaderValue)>,
) -> Plan {
    let Some(chosen) = negotiate::choose(asset, headers) else {
        let headers = vec![
            (header::VARY, HeaderValue::from_static("accept-encoding")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (header::CONTENT_LENGTH, HeaderValue::from(0u64)),
        ];
        return Plan { status: 406, headers, body: Body::None, representation: None };
    };
    let source = Source { digest: chosen.digest, size: chosen.size, coding: chosen.coding };
    let etag = chosen.etag.to_str().unwrap_or_default();
    let mut out = common(asset, chosen, private);
    out.extend(fields);
    let mut answer = Answer { out, asset, chosen };
    let (status, body) = match conditions::evaluate(headers, etag) {
        Allowed::NotModified => (304, Body::None),
        Allowed::Failed => (412, answer.empty()),
        // Range is defined for GET only (§14.2).
        Allowed::Perform { range } => match asked(headers, range && !head, chosen.size) {
            Asked::Whole => (200, answer.whole()),
            Asked::Unsatisfiable => (416, answer.unsatisfiable()),
            Asked::Parts(parts) => match <[Range<u64>; 1]>::try_from(parts) {
                Ok([one]) => (206, answer.part(one)),
                Err(parts) => (206, answer.parts(parts)),
            },
        },
    };
    let body = if head { Body::None } else { body };
    Plan { status, headers: answer.out, body, representation: Some(source) }
}

fn asked(headers: &HeaderMap, counts: bool, size: u64) -> Asked {
    let mut fields = headers.get_all(header::RANGE).iter();
    match (fields.next(), fields.next()) {
        (Some(one), None) if counts => {
            one.to_str().map_or(Asked::Whole, |field| range::read(field, size))
        }
        _ => Asked::Whole,
    }
}

/// What 200, 206 and 304 have alike (§15.4.5).
fn common(asset: &Asset, chosen: &Representation, private: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut out = Vec::with_capacity(12);
    let cache = match (asset.fingerprinted, private) {
        (true, false) => FOR_EVER,
        (true, true) => FOR_EVER_PRIVATE,
        (false, _) => REVALIDATE,
    };
    out.push((header::CACHE_CONTROL, cache));
    out.push((header::ETAG, chosen.etag.clone()));
    if !asset.encoded.is_empty() {
        out.push((header::VARY, HeaderValue::from_static("accept-encoding")));
    }
    out
}

struct Answer<'a> {
    out: Vec<(HeaderName, HeaderValue)>,
    asset: &'a Asset,
    chosen: &'a Representation,
}

impl Answer<'_> {
    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.out.push((name, value));
    }

    fn length(&mut self, bytes: u64) {
        self.set(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }

    fn empty(&mut self) -> Body {
        self.length(0);
        Body::None
    }

    /// What describes the representation, however much of it is sent.
    fn describe(&mut self) {
        self.set(REPR_DIGEST, self.chosen.repr_digest.clone());
        self.set(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        self.set(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(coding) = self.chosen.coding {
            self.set(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
    }

    fn whole(&mut self) -> Body {
        self.set(header::CONTENT_TYPE, self.asset.media_type.clone());
        self.describe();
        self.length(self.chosen.size);
        if self.chosen.size == 0 { Body::None } else { Body::Part(0..self.chosen.size) }
    }

    fn unsatisfiable(&mut self) -> Body {
        self.set(header::CONTENT_RANGE, visible(format!("bytes */{}", self.chosen.size)));
        self.empty()
    }

    fn part(&mut self, part: Range<u64>) -> Body {
        self.set(header::CONTENT_TYPE, self.asset.media_type.clone());
        self.describe();
        self.set(header::CONTENT_RANGE, visible(content_range(&part, self.chosen.size)));
        self.length(part.end - part.start);
        Body::Part(part)
    }

    fn parts(&mut self, parts: Vec<Range<u64>>) -> Body {
        // A delimiter made of the content's own digest cannot stand in the content.
        let boundary = format!("vango-{}", &self.chosen.digest.hex()[..40]);
        let media_type = self.asset.media_type.to_str().unwrap_or("application/octet-stream");
        let head = |part: &Range<u64>| {
            Bytes::from(format!(
                "\r\n--{boundary}\r\ncontent-type: {media_type}\r\ncontent-range: {}\r\n\r\n",
                content_range(part, self.chosen.size)
            ))
        };
        let parts: Vec<_> = parts.into_iter().map(|p| (head(&p), p)).collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let length = |n: usize| n as u64;
        let total = parts.iter().map(|(h, p)| length(h.len()) + p.end - p.start).sum::<u64>()
            + length(end.len());
        let kind = visible(format!("multipart/byteranges; boundary={boundary}"));
        self.set(header::CONTENT_TYPE, kind);
        self.describe();
        self.length(total);
        Body::Parts { parts, end }
    }
}

fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end - 1)
}

fn visible(text: String) -> HeaderValue {
    let value = HeaderValue::try_from(text);
    assert!(value.is_ok(), "numbers and hex are visible ASCII");
    value.unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
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
    }
}
