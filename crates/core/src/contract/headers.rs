//! Header fields that a contract adds: to its static files, by the pattern of their names, and to the
//! edge's own answers, so that a script of another origin may read them.

use http::{HeaderName, HeaderValue};

use crate::document::Table;

/// `[[assets.header]]` tables of one contract, and patterns of one list, at most; each is looked at for each
/// file that is sent.
const MOST_RULES: usize = 64;
/// Bytes of one value, at most.
const MOST_VALUE: usize = 4096;

/// Fields that describe what is sent, that the edge sets itself, or that belong to a connection.
const NOT_YOURS: [&str; 26] = [
    "accept-ranges",
    "age",
    "alt-svc",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "keep-alive",
    "last-modified",
    "location",
    "proxy-connection",
    "repr-digest",
    "set-cookie",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "x-content-type-options",
    "x-request-id",
];

/// Fields for files whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRule {
    /// Which: any of these.
    pub files: Vec<NamePattern>,
    pub set: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderRule {
    /// Whether it is about the file `name`, below the assets' prefix.
    pub fn covers(&self, name: &str) -> bool {
        self.files.iter().any(|p| p.matches(name))
    }
}

/// A file's name with `*` in it, each of which stands for any characters, `/` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether `name` matches. Takes as many steps as the name has characters, for each `*`.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // The leftmost place of each part leaves most for those after it.
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// The patterns of files' names in `t`.
pub(super) fn patterns(t: &Table<'_>, key: &'static str) -> Vec<NamePattern> {
    let patterns: Vec<_> = t.texts(key).into_iter().map(NamePattern).collect();
    if patterns.len() > MOST_RULES {
        t.error(key, format!("expected at most {MOST_RULES} patterns, found {}", patterns.len()));
    }
    for NamePattern(name) in &patterns {
        if name.is_empty() || name.starts_with('/') {
            t.error(key, format!("expected a name below the prefix, found {name:?}"));
        }
    }
    patterns
}

/// The `[[assets.header]]` tables.
pub(super) fn asset_headers(assets: &Table<'_>) -> Vec<HeaderRule> {
    let tables = assets.tables("header");
    if tables.len() > MOST_RULES {
        let found = tables.len();
        assets.error("header", format!("expected at most {MOST_RULES} tables, found {found}"));
    }
    let rule = |t: Table<'_>| {
        let files = patterns(&t, "files");
        if files.is_empty() {
            t.error("files", "expected names below the prefix, such as [\"*.wasm\", \"fonts/*\"]");
        }
        let set = match t.opt_table("set") {
            Some(set) => fields(&set),
            None => {
                t.error_here("`set` is missing: add set = { \"Name\" = \"value\" }");
                Vec::new()
            }
        };
        t.finish();
        HeaderRule { files, set }
    };
    tables.into_iter().map(rule).collect()
}

fn fields(set: &Table<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let entries = set.entries("a header's value, a string");
    let field = |(name, value): (String, String)| {
        let (Ok(field), Ok(content)) = (name.parse::<HeaderName>(), HeaderValue::try_from(&value))
        else {
            set.error(&name, format!("not a header's name and value: {value:?}"));
            return None;
        };
        let lower = field.as_str();
        if NOT_YOURS.contains(&lower) || lower.starts_with("vango-edge-") {
            set.error(&name, "the edge sets this one, or it is of no use for a file; take it out");
        } else if value.is_empty() || value.len() > MOST_VALUE {
            set.error(&name, format!("expected 1 to {MOST_VALUE} bytes, found {}", value.len()));
        }
        Some((field, content))
    };
    entries.into_iter().filter_map(field).collect()
}

/// Whose scripts may read the edge's own answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readers {
    /// Origins as browsers send them, or `*` alone.
    origins: Vec<String>,
}

/// What an answer's status and body say is not all that a script needs of it.
const EXPOSED: &str = "Retry-After, X-Request-Id, Vango-Edge-Operation, Link";

/// `[errors]` of `top`.
pub fn errors(top: &Table<'_>) -> Readers {
    let t = top.table("errors");
    let origins = t.texts("cors_origins");
    for origin in &origins {
        if origin == "*" && origins.len() > 1 {
            t.error("cors_origins", "\"*\" stands alone: it is every origin");
        } else if origin != "*" && !is_origin(origin) {
            let expected = "expected an origin as browsers send it, such as \"https://app.example\": \
                            lower case, no path, no / at the end, no port that is the scheme's own";
            t.error("cors_origins", format!("{expected}; found {origin:?}"));
        }
    }
    t.finish();
    Readers { origins }
}

/// Scheme, host and port as Fetch serialises them (RFC 6454 §6.2). `null` is the origin of no site.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let usual = match scheme {
        "http" => "80",
        "https" => "443",
        _ => "",
    };
    let name = |s: &str, more: &[u8]| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
        !s.is_empty() && s.bytes().all(fits)
    };
    let port_fits = |p: &str| p != usual && !p.starts_with('0') && p.parse::<u16>().is_ok();
    name(scheme, b"+-.") && name(host, b"-._[]:") && port.is_none_or(port_fits)
}

impl Readers {
    /// The fields that an answer of the edge's own gets for a request of this `Origin`. Such an answer
    /// says nothing of a user, so that it may be read by a request with credentials too.
    pub fn fields(&self, origin: Option<&HeaderValue>) -> Vec<(HeaderName, HeaderValue)> {
        use http::header::{
            ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, VARY,
        };
        let exposed = (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        if self.origins.is_empty() {
            return Vec::new();
        }
        if self.origins == ["*"] {
            let all = (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            return vec![all, exposed];
        }
        let vary = (VARY, HeaderValue::from_static("origin"));
        match origin.filter(|o| self.origins.iter().any(|known| known.as_bytes() == o.as_bytes())) {
            Some(origin) => vec![
                (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
                (ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
                exposed,
                vary,
            ],
            None => vec![vary],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_what_it_says() {
        let p = |pattern: &str, name: &str| NamePattern(pattern.into()).matches(name);
        for (pattern, yes, no) in [
            ("*", &["", "a", "a/b.js"][..], &[][..]),
            ("*.wasm", &["a.wasm", "b/c.wasm", ".wasm"], &["a.wasm.br", "wasm", "a.WASM"]),
            ("fonts/*", &["fonts/a.woff2", "fonts/"], &["fonts", "a/fonts/b"]),
            ("a*b*c", &["abc", "aXbXc", "abbc", "a/b/c"], &["ab", "ac", "abcd", "cba"]),
            ("*a*a", &["aa", "baXa"], &["a", "ab"]),
            ("sw.js", &["sw.js"], &["a/sw.js", "sw.jsx", "sw"]),
        ] {
            assert!(yes.iter().all(|n| p(pattern, n)), "{pattern}: {yes:?}");
            assert!(!no.iter().any(|n| p(pattern, n)), "{pattern}: {no:?}");
        }
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        for yes in [
            "https://app.example",
            "http://localhost:3000",
            "https://app.example:8443",
            "https://[::1]:8443",
            "http://[::1]",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnop",
        ] {
            assert!(is_origin(yes), "{yes}");
        }
        for no in [
            "",
            "null",
            "app.example",
            "https://",
            "https://app.example/",
            "https://App.example",
            "https://app.example:443",
            "http://app.example:80",
            "https://app.example:",
            "https://app.example:0",
            "https://app.example:99999",
            "https://*.example",
            "https://a b",
            "https://a@b",
        ] {
            assert!(!is_origin(no), "{no}");
        }
    }

    #[test]
    fn only_the_origins_that_are_named_may_read() {
        let of = |origins: &[&str], origin: Option<&'static str>| {
            let readers = Readers { origins: origins.iter().map(|o| (*o).to_owned()).collect() };
            let fields = readers.fields(origin.map(HeaderValue::from_static).as_ref());
            let text = |(n, v): (HeaderName, HeaderValue)| format!("{n}: {}", v.to_str().unwrap());
            fields.into_iter().map(text).collect::<Vec<_>>()
        };
        assert!(of(&[], Some("https://a.example")).is_empty());
        for origin in [None, Some("https://b.example"), Some("null"), Some("https://a.example/")] {
            assert_eq!(of(&["https://a.example"], origin), ["vary: origin"], "{origin:?}");
        }
        let exposed = format!("access-control-expose-headers: {EXPOSED}");
        assert_eq!(
            of(&["https://c.example", "https://a.example"], Some("https://a.example")),
            [
                "access-control-allow-origin: https://a.example",
                "access-control-allow-credentials: true",
                &exposed,
                "vary: origin",
            ]
        );
        assert_eq!(of(&["*"], None), ["access-control-allow-origin: *", &exposed]);
    }
}
