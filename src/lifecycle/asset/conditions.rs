//! Preconditions, in the order of RFC 9110 §13.2.2. An asset has an entity tag and no modification
//! date, so that `If-Modified-Since` and `If-Unmodified-Since` are ignored, as §13.1.3 and §13.1.4
//! ask where there is no date.

use http::header::{self, HeaderMap, HeaderName};

/// What the preconditions allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
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

/// Evaluates them for a GET or HEAD of the representation with the strong entity tag `etag`.
pub fn evaluate(headers: &HeaderMap, etag: &str) -> Allowed {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
