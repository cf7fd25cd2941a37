//! Trailers of an app's answer (RFC 9110 §6.5): whether its client takes them, which of them are for
//! it, and what is announced.
//!
//! Those of requests are dropped, with their announcement: nothing says whether an app's server takes
//! them, and there are servers that make header fields of them (CVE-2025-12642), or the next request
//! (CVE-2025-59822).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Version, request};

use super::hop;

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

fn is_of_the_head(name: &HeaderName) -> bool {
    let text = name.as_str();
    // A digest is known once the body is over (RFC 9530 §2).
    (text.starts_with("content-") && text != "content-digest")
        || text.starts_with("if-")
        || text.starts_with("vango-edge-")
        || OF_THE_HEAD.contains(name)
        || hop::is_one(name)
}

/// What becomes of the trailers of one request's answer.
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

    /// By the head of the answer: what is announced to the client.
    pub fn announced(&mut self, headers: &HeaderMap) -> Option<HeaderValue> {
        // A body that is not chunked has no place for them.
        if !self.taken || !headers.contains_key(header::TRANSFER_ENCODING) {
            return None;
        }
        self.named = hop::nominated(headers);
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let line = of(version, &[]).announced(&map(fields));
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
        to_http2.announced(&answer);
        to_http11.announced(&answer);
        let mut left = map.clone();
        to_http2.clean(&mut left);
        let mut left: Vec<_> = left.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, kept);
        to_http11.clean(&mut map);
        assert!(map.is_empty());
    }
}
