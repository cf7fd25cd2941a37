//! The whole answer to a request for an asset, as values: which encoding of it, what the preconditions
//! allow, which bytes, and the headers. The shell only moves the bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::assets::{Asset, Coding, Representation};
use crate::id::Digest;

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
    /// 200, 206, 304, 406, 412 or 416; 301, 404 and 405 where there is no such file; 204 to a preflight.
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
    pub size: u64,
    /// How they are encoded.
    pub coding: Option<Coding>,
}

/// What follows the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
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
    let Some(chosen) = choose_encoding(asset, headers) else {
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
    let (status, body) = match evaluate(headers, etag) {
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

/// The answer that there is no such file, with `asset` as its page: no condition and no range is about it.
pub fn not_found(
    asset: &Arc<Asset>,
    headers: &HeaderMap,
    head: bool,
    private: bool,
    fields: Vec<(HeaderName, HeaderValue)>,
) -> Plan {
    let mut only = HeaderMap::new();
    for accepted in headers.get_all(header::ACCEPT_ENCODING) {
        only.append(header::ACCEPT_ENCODING, accepted.clone());
    }
    let mut plan = plan(asset, &only, head, private, fields);
    if plan.status == 200 {
        plan.status = 404;
        let of_the_file = [header::ETAG, header::ACCEPT_RANGES, header::CACHE_CONTROL];
        plan.headers.retain(|(name, _)| !of_the_file.contains(name));
        plan.headers.push((header::CACHE_CONTROL, REVALIDATE));
    }
    plan
}

/// The answer for a directory that was asked for without the slash at its end. Asked for again each time: the
/// next deployment may have a file of that name.
pub fn moved(to: String, query: Option<&str>) -> Plan {
    let location = query.map_or_else(|| to.clone(), |query| format!("{to}?{query}"));
    let Ok(location) = HeaderValue::try_from(location) else { return bare(404, Vec::new()) };
    bare(301, vec![(header::LOCATION, location), (header::CACHE_CONTROL, REVALIDATE)])
}

/// The answer to a method that asks for no file, where there are files only (RFC 9110 §15.5.6).
pub fn method_not_allowed() -> Plan {
    bare(405, vec![(header::ALLOW, HeaderValue::from_static("GET, HEAD"))])
}

/// The answer to a preflight for a name of which the contract says `fields` (Fetch, "CORS-preflight fetch"). GET
/// and HEAD are allowed without a word; which of a request's own fields are, the contract says.
pub fn preflight(mut fields: Vec<(HeaderName, HeaderValue)>) -> Plan {
    fields.push((header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS")));
    // A 204 has no Content-Length (RFC 9110 §8.6).
    Plan { status: 204, headers: fields, body: Body::None, representation: None }
}

fn bare(status: u16, mut headers: Vec<(HeaderName, HeaderValue)>) -> Plan {
    headers.push((header::CONTENT_LENGTH, HeaderValue::from(0u64)));
    Plan { status, headers, body: Body::None, representation: None }
}

fn asked(headers: &HeaderMap, counts: bool, size: u64) -> Asked {
    let mut fields = headers.get_all(header::RANGE).iter();
    match (fields.next(), fields.next()) {
        (Some(one), None) if counts => {
            one.to_str().map_or(Asked::Whole, |field| read_range(field, size))
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

    /// Nothing of it, for this request alone: a shared cache would give what is kept for a year to every
    /// client, for a range or a condition that was this one's (RFC 9111 §3).
    fn empty(&mut self) -> Body {
        self.out.retain(|(name, _)| *name != header::CACHE_CONTROL);
        self.set(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
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

/// A quality, in thousandths (RFC 9110 §12.4.2).
type Quality = u16;

/// What `Accept-Encoding` says, over all its lines.
#[derive(Debug, Default)]
struct Accepted {
    /// The field is there.
    stated: bool,
    named: Vec<(String, Quality)>,
    others: Option<Quality>,
}

impl Accepted {
    fn read(headers: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        for line in headers.get_all(header::ACCEPT_ENCODING) {
            accepted.stated = true;
            let Ok(line) = line.to_str() else { continue };
            for element in line.split(',') {
                accepted.take(element);
            }
        }
        accepted
    }

    fn take(&mut self, element: &str) {
        let mut parts = element.split(';').map(str::trim);
        let Some(coding) = parts.next().filter(|c| !c.is_empty()) else { return };
        let mut quality = 1000;
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else { return };
            if name.trim().eq_ignore_ascii_case("q") {
                // Not a number: the element says nothing.
                let Some(q) = parse_quality(value.trim()) else { return };
                quality = q;
            }
        }
        if coding == "*" {
            self.others.get_or_insert(quality);
        } else {
            self.named.push((coding.to_ascii_lowercase(), quality));
        }
    }

    fn of(&self, coding: &str) -> Option<Quality> {
        let same = |name: &str| name == coding || (name == "x-gzip" && coding == "gzip");
        self.named.iter().find(|(name, _)| same(name)).map(|(_, q)| *q)
    }
}

/// 0 to 1 with at most three decimals.
fn parse_quality(text: &str) -> Option<Quality> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: Quality = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// The representation to send, of those that were encoded at deploy (RFC 9110 §12.5.3): the highest
/// quality, and among equals the fewest bytes. `None` when the request excludes all there are (406).
fn choose_encoding<'a>(asset: &'a Asset, headers: &HeaderMap) -> Option<&'a Representation> {
    let accepted = Accepted::read(headers);
    // What is stored encoded has no other form.
    if !accepted.stated || asset.identity.coding.is_some() {
        // Anything is acceptable; who says nothing may well decode nothing.
        return Some(&asset.identity);
    }
    let encoded = asset.encoded.iter().filter_map(|r| {
        let quality = accepted.of(r.coding?.name()).or(accepted.others)?;
        (quality > 0).then_some((quality, r))
    });
    // Unless it is excluded, the plain one is acceptable, after all that was asked for.
    let plain = match accepted.of("identity").or(accepted.others) {
        Some(0) => None,
        Some(quality) => Some((quality, &asset.identity)),
        None => Some((0, &asset.identity)),
    };
    let best = encoded.chain(plain).min_by_key(|(quality, r)| (1000 - quality, r.size));
    best.map(|(_, representation)| representation)
}

/// What the preconditions allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// Go on; whether `Range` counts.
    Perform {
        /// There is no `If-Range`, or it names exactly this representation.
        range: bool,
    },
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the preconditions, in the order of RFC 9110 §13.2.2, for a GET or HEAD of the representation
/// with the strong entity tag `etag`. An asset has no modification date, so that `If-Modified-Since` and
/// `If-Unmodified-Since` are ignored, as §13.1.3 and §13.1.4 ask where there is no date.
fn evaluate(headers: &HeaderMap, etag: &str) -> Allowed {
    // If-Match compares strongly (§13.1.1), If-None-Match weakly (§13.1.2).
    if headers.contains_key(header::IF_MATCH) && !any(headers, header::IF_MATCH, etag, false) {
        return Allowed::Failed;
    }
    if any(headers, header::IF_NONE_MATCH, etag, true) {
        return Allowed::NotModified;
    }
    // A date never matches: there is none to compare with (§13.1.5).
    let mut if_range = headers.get_all(header::IF_RANGE).iter();
    let range = match (if_range.next(), if_range.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes() == etag.as_bytes(),
        (Some(_), Some(_)) => false,
    };
    Allowed::Perform { range }
}

/// Whether one of the entity tags in `name` is `etag`, or `*` stands there.
fn any(headers: &HeaderMap, name: HeaderName, etag: &str, weak: bool) -> bool {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).any(|line| {
        let mut rest = line.trim();
        if rest == "*" {
            return true;
        }
        // A comma may stand inside an entity tag: they are read one by one.
        while !rest.is_empty() {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            let (is_weak, opaque) = match rest.strip_prefix("W/") {
                Some(opaque) => (true, opaque),
                None => (false, rest),
            };
            let Some(end) = opaque.strip_prefix('"').and_then(|o| o.find('"')) else {
                return false;
            };
            let (tag, tail) = opaque.split_at(end + 2);
            if tag == etag && (weak || !is_weak) {
                return true;
            }
            rest = tail;
        }
        false
    })
}

/// Ranges in one request, at most: more are a way to make much work with few bytes (§17.15).
const MOST_RANGES: usize = 16;

/// What a `Range` field asks of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    /// All of it.
    Whole,
    /// These parts, in this order, none of them empty.
    Parts(Vec<Range<u64>>),
    /// Nothing that it has.
    Unsatisfiable,
}

/// Reads `Range` for a representation of `size` bytes (RFC 9110 §14). A range request that makes no sense,
/// or that would cost more than the whole, is served whole; one that cannot be satisfied is answered 416.
fn read_range(field: &str, size: u64) -> Asked {
    let Some((unit, set)) = field.split_once('=') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Asked::Whole;
    }
    let mut parts = Vec::new();
    let mut asked = 0;
    for spec in set.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        asked += 1;
        if asked > MOST_RANGES {
            return Asked::Whole;
        }
        match read_one(spec, size) {
            None => return Asked::Whole,
            Some(range) if range.is_empty() => {}
            Some(range) => parts.push(range),
        }
    }
    if asked == 0 {
        return Asked::Whole;
    }
    if parts.is_empty() {
        return Asked::Unsatisfiable;
    }
    let bytes = parts.iter().fold(0u64, |sum, r| sum.saturating_add(r.end - r.start));
    if parts.len() > 1 && bytes > size { Asked::Whole } else { Asked::Parts(parts) }
}

/// One range; empty when the representation has nothing of it, `None` when it is not one.
fn read_one(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim_end(), last.trim_start());
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(size.saturating_sub(suffix)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        size
    } else {
        let last = number(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(size)
    };
    Some(if first >= size { 0..0 } else { first..end })
}

/// Digits only; more than fit mean "beyond any end".
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
