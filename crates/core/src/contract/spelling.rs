//! Other spellings of a path. Servers and frameworks differ in what they take for the same path: some
//! fold case, merge slashes, decode `%2f`, drop `;parameters`, a trailing slash, an extension or the
//! script before it. A request whose path is a page's for the edge and a webhook's for its app would walk
//! around the signature, so guards are looked for under **every** such reading (as Envoy does since
//! CVE-2021-29492), and what only might be guarded is refused. Nothing here makes a route match.
//!
//! A reading is *loose* when it has undone all of that at once. Path and pattern are both read so: what
//! any app takes for equal is equal here. Only what takes segments away (`..`, and what a cut at a
//! parameter or a script's name hides) needs more than one reading.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// Escapes within escapes that are undone; no server decodes so often.
const ROUNDS: usize = 8;
/// Readings of one path that are told apart. With more, all of them are assumed.
const MOST: usize = 8;

/// A path under its loosest readings.
#[derive(Debug, PartialEq, Eq)]
pub struct Loose<'a> {
    /// Lower case, without a trailing slash, parameters, or what escapes hide; the root is empty.
    text: Cow<'a, str>,
    /// Where a script's name ends: what is behind it is a path of its own (`/index.php/a`).
    begins: Vec<usize>,
    /// Where a parameter, or an encoded `?`, `#` or zero byte was, where a script's name ends (what is behind it
    /// may be but given to the script: PATH_INFO of RFC 3875 §4.1.5), and where the name of a directory's index
    /// begins: servers end the path there.
    ends: Vec<usize>,
    /// It has `..`, or more readings than are told apart: any of its segments may count or not.
    tangled: bool,
}

impl<'a> Loose<'a> {
    /// The readings of `sent`. Borrows, and allocates nothing, where there is but one.
    pub fn of(sent: &'a str) -> Self {
        let bytes = sent.as_bytes();
        let plain = |b: &u8| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'_' | b'.')
        };
        // A dot within a segment is only that, but in a script's name.
        let special = |w: &[u8]| {
            matches!(w, b"//" | b"/." | b"./") || matches!(w, b".ph" | b".cg" | b".fc" | b".pl")
        };
        if bytes.first() == Some(&b'/')
            && bytes.last() != Some(&b'.')
            && bytes.iter().all(plain)
            && !bytes.windows(2).chain(bytes.windows(3)).any(special)
            && !sent.contains("/index")
        {
            let text = Cow::Borrowed(sent.strip_suffix('/').unwrap_or(sent));
            return Self { text, begins: Vec::new(), ends: Vec::new(), tangled: false };
        }
        Self::unfolded(sent)
    }

    fn unfolded(sent: &str) -> Self {
        let mut loose =
            Self { text: Cow::default(), begins: Vec::new(), ends: Vec::new(), tangled: false };
        let mut text = String::with_capacity(sent.len());
        for segment in folded(&decoded(sent)).split(['/', '\\']) {
            let (name, cut) = match segment.find([';', '?', '#', '\0']) {
                Some(at) => (&segment[..at], true),
                None => (segment, false),
            };
            // Windows, and what is made for it, drops these.
            let trimmed = name.trim_start();
            let trimmed = trimmed.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
            if !matches!(name, "" | ".") {
                if trimmed
                    .strip_prefix("index")
                    .is_some_and(|rest| rest.is_empty() || is_extension(rest))
                {
                    loose.ends.push(text.len());
                }
                text.push('/');
                // All dots and spaces: `..`, or what is taken for it.
                loose.tangled |= trimmed.is_empty();
                text.push_str(if trimmed.is_empty() { name } else { trimmed });
            }
            if cut {
                loose.ends.push(text.len());
            }
            if [".php", ".cgi", ".fcgi", ".pl"].iter().any(|script| trimmed.ends_with(script)) {
                loose.begins.push(text.len());
                loose.ends.push(text.len());
            }
        }
        loose.tangled |= loose.begins.len().max(loose.ends.len()) > MOST;
        Self { text: Cow::Owned(text), ..loose }
    }

    /// Each reading, where they can be told apart.
    fn readings(&self) -> impl Iterator<Item = &str> {
        let ends = || std::iter::once(self.text.len()).chain(self.ends.iter().copied());
        std::iter::once(0)
            .chain(self.begins.iter().copied())
            .flat_map(move |begin| ends().filter_map(move |end| self.text.get(begin..end)))
    }

    /// Whether under one of its readings one of `patterns` that is guarded takes it: the first that
    /// matches does, and one that names a single path takes that in any case.
    pub fn meets<'p>(
        &self,
        patterns: impl Iterator<Item = (&'p LoosePattern, bool)> + Clone,
    ) -> bool {
        if self.tangled {
            return patterns
                .clone()
                .any(|(pattern, guarded)| guarded && pattern.is_within(&self.text));
        }
        self.readings().any(|path| {
            let mut matching = patterns.clone().filter(|(pattern, _)| pattern.matches(path));
            let Some((_, guarded)) = matching.next() else { return false };
            guarded || matching.any(|(pattern, guarded)| guarded && pattern.kind == Kind::Exact)
        })
    }
}

/// What a loose pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One path, with any extension: `/a` is also `/a.json`, as in Rails.
    Exact,
    /// A path and everything below it.
    Below,
    /// Everything that begins with its text.
    Begins,
}

/// A pattern, read as loosely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoosePattern {
    text: String,
    kind: Kind,
}

impl LoosePattern {
    /// One path.
    pub fn exact(path: &str) -> Self {
        Self { text: Loose::of(path).text.into_owned(), kind: Kind::Exact }
    }

    /// A path and everything below it.
    pub fn below(path: &str) -> Self {
        Self { kind: Kind::Below, ..Self::exact(path) }
    }

    /// Everything that begins with `path`, which may end within a segment.
    pub fn begins(path: &str) -> Self {
        let mut text = Loose::of(path).text.into_owned();
        if path.ends_with('/') {
            text.push('/');
        }
        Self { text, kind: Kind::Begins }
    }

    fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.text.as_str()) else { return false };
        match self.kind {
            Kind::Exact => rest.is_empty() || is_extension(rest),
            Kind::Below => rest.is_empty() || rest.starts_with('/'),
            Kind::Begins => true,
        }
    }

    /// Whether its segments are among those of `path`, in their order: what is between them may be
    /// taken away.
    fn is_within(&self, path: &str) -> bool {
        let mut left = path.split('/').skip(1);
        let mut wanted = self.text.split('/').skip(1).peekable();
        while let Some(segment) = wanted.next() {
            let last = wanted.peek().is_none();
            let is_it = |found: &str| match (found.strip_prefix(segment), self.kind) {
                (Some(rest), Kind::Exact) if last => rest.is_empty() || is_extension(rest),
                (Some(_), Kind::Begins) if last => true,
                (rest, _) => rest == Some(""),
            };
            if !left.any(is_it) {
                return false;
            }
        }
        true
    }
}

fn is_extension(rest: &str) -> bool {
    rest.strip_prefix('.')
        .is_some_and(|e| e.len() <= 8 && e.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// `path` with its escapes undone, those that come of it too.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..ROUNDS {
        let before = bytes.len();
        bytes = percent_decode(&bytes).collect();
        if bytes.len() == before {
            break;
        }
    }
    characters(&bytes).into()
}

/// Bytes as characters, as the most lenient decoder of UTF-8 reads them: `c0 af` is `/` too, and what is
/// none is left out.
fn characters(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&lead) = bytes.get(at) {
        let (more, bits) = match lead {
            0..=0x7f => (0, lead),
            0xc0..=0xdf => (1, lead & 0x1f),
            0xe0..=0xef => (2, lead & 0x0f),
            0xf0..=0xf7 => (3, lead & 0x07),
            _ => (0, u8::MAX),
        };
        let tail = bytes.get(at + 1..at + 1 + more).unwrap_or_default();
        let whole = tail.len() == more && tail.iter().all(|b| b & 0xc0 == 0x80);
        if !whole || bits == u8::MAX {
            at += 1;
            continue;
        }
        let code = tail.iter().fold(u32::from(bits), |code, b| code << 6 | u32::from(b & 0x3f));
        out.extend(char::from_u32(code));
        at += 1 + more;
    }
    out
}

/// In one case, and with full-width and look-alike forms of what counts in a path as that.
fn folded(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let plain = text.chars().map(|c| match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{2044}' | '\u{2215}' => '/',
        '\u{2024}' => '.',
        c => c,
    });
    // Up and down: the long s has no other lower case, the Kelvin sign no other upper one.
    plain.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meets(guard: &LoosePattern, sent: &str) -> bool {
        let all = LoosePattern::below("/");
        Loose::of(sent).meets([(guard, true), (&all, false)].into_iter())
    }

    #[test]
    fn a_guarded_path_is_found_under_every_usual_reading() {
        let guard = LoosePattern::exact("/webhooks/stripe");
        for sent in [
            "/webhooks/stripe",
            "//webhooks/stripe",
            "/webhooks//stripe",
            "/webhooks%2fstripe",
            "/webhooks%252fstripe",
            "/webhooks%25252Fstripe",
            "/webhooks%5cstripe",
            "/webhooks/stripe/",
            "/webhooks/stripe//",
            "/webhooks/stripe;x",
            "/webhooks;a=b/stripe;jsessionid=1",
            "/webhooks/stripe;/x",
            "/Webhooks/STRIPE",
            "/%57ebhooks/stripe",
            "/x/..;/webhooks/stripe",
            "/x/%2e%2e/webhooks/stripe",
            "/x%2f..%2fwebhooks/stripe",
            "/x/%252e%252e/webhooks/stripe",
            "/webhooks/./stripe",
            "/webhooks/x/../stripe",
            "/webhooks/stripe/x/..",
            "/webhooks/stripe/..;/y",
            "/webhooks/stripe%3fx",
            "/webhooks/stripe%23x/y",
            "/webhooks/stripe%2500.png",
            "/webhooks/stripe%20",
            "/%20webhooks/stripe",
            "/x/..%20/webhooks/stripe",
            "/x/.../webhooks/stripe",
            "/webhooks/stripe.",
            "/webhooks/stripe.json",
            "/index.php/webhooks/stripe",
            "/webhooks/stripe.php/x",
            "/webhooks/stripe.php%2fx/y",
            "/webhooks/stripe/index.php",
            "/webhooks/stripe/index.php/x",
            "/webhooks/stripe/Index.HTML",
            "/webhooks/stripe/index",
            "/cgi-bin/app.cgi/webhooks/stripe;x/y",
            "/webhooks%c0%afstripe",
            "/webhooks%e0%80%afstripe",
            "/webhooks%ef%bc%8fstripe",
            "/web%c5%bfooks/stripe/../../webhooks/%c5%bftripe",
            "/webhook%c5%bf/stripe",
            "/web%ffhooks/stripe",
        ] {
            assert!(meets(&guard, sent), "{sent}");
        }
        for other in [
            "/",
            "/webhooks",
            "/webhooks/stripes",
            "/webhooks/stripe/x",
            "/a/webhooks/stripe",
            "/stripe/webhooks",
            "/webhooks/stripe.json/x",
            "/webhooks/stripe/indexes",
            "/webhooks/index.php",
            "/webhooks/stripe.a-b",
            "/x/../webhook",
            "/a;b/webhooks/stripe",
            "*",
        ] {
            assert!(!meets(&guard, other), "{other}");
        }
    }

    #[test]
    fn below_a_prefix_everything_is_guarded_and_so_is_its_index() {
        let guard = LoosePattern::below("/actions/");
        for sent in
            ["/actions", "/Actions/pay", "/actions%2fpay", "/actions/../x", "/x;/actions/a/.."]
        {
            assert!(meets(&guard, sent), "{sent}");
        }
        for other in ["/action", "/actionsx", "/x/actions/pay", "/x;/actions/a"] {
            assert!(!meets(&guard, other), "{other}");
        }
        let sessions = LoosePattern::begins("/internal/sessions/");
        for sent in
            ["/internal/sessions%2Fabc", "/Internal/sessions/a", "/x/..;/internal/sessions/a"]
        {
            assert!(meets(&sessions, sent), "{sent}");
        }
        assert!(
            !meets(&sessions, "/internal/sessions") && !meets(&sessions, "/internal/sessionsx")
        );
        assert!(meets(&LoosePattern::begins("/s/id-"), "/s/ID-1"));
    }

    #[test]
    fn the_first_match_counts_as_in_the_contract() {
        let (public, api) = (LoosePattern::below("/api/public/"), LoosePattern::below("/api/"));
        let meets = |sent| Loose::of(sent).meets([(&public, false), (&api, true)].into_iter());
        assert!(!meets("/api/public/a") && !meets("/API/public/a;v=1") && meets("/api/a"));
        // Cut at the parameter, and with `..` taken or not, it may be any of them.
        assert!(meets("/api;x/public/a") && meets("/api/public/../a"));
        let (one, other) = (LoosePattern::exact("/Pay"), LoosePattern::exact("/pay"));
        assert!(Loose::of("/PAY").meets([(&one, false), (&other, true)].into_iter()));
    }

    #[test]
    fn a_plain_path_is_not_copied_and_a_hostile_one_is_bounded() {
        for plain in ["/a/b-c/d_1", "/assets/app.0de621e9.css"] {
            assert!(matches!(Loose::of(plain).text, Cow::Borrowed(text) if text == plain));
        }
        assert!(matches!(Loose::of("/").text, Cow::Borrowed("")));
        assert!(meets(&LoosePattern::exact("/a"), &";/a".repeat(20_000)));
        let deep = format!("/%{}62", "25".repeat(20_000));
        assert!(Loose::of(&deep).text.len() < deep.len());
    }
}
