//! What makes two requests with one key the same. A client that sends a form again writes it anew: a
//! browser's `FormData` chooses another boundary each time, and the same type may be spelled otherwise.
//! So types are compared as types (RFC 9110 §8.3.1), and the parts of a multipart body as parts (RFC
//! 2046 §5.1): a boundary is how a body is written, and no part of what it says.
//!
//! What has no single reading is compared byte for byte: that can only tell two requests apart.

use http::header::{self, HeaderMap, HeaderValue};

use super::facts::Facts;
use super::idempotency::hash;

/// Longest boundary (RFC 2046 §5.1.1).
const BOUNDARY_BYTES: usize = 70;

/// What makes two requests the same: hashes of the head and, where the contract says so, of the
/// body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Print {
    /// Method, authority, path and query, content type and encoding.
    pub head: String,
    /// The same and the body; none while it is unread, and never with `fingerprint = "head"`.
    pub body: Option<String>,
}

impl Print {
    /// Of a request's head.
    pub fn of_head(facts: &Facts, headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let media = media_type(headers);
        let content_type =
            media.as_ref().map_or(value(header::CONTENT_TYPE), |m| m.text.as_bytes());
        let encoding = value(header::CONTENT_ENCODING).trim_ascii().to_ascii_lowercase();
        let head = hash(
            "head",
            [
                facts.method.as_str().as_bytes(),
                facts.host.as_bytes(),
                facts.normal_target().as_bytes(),
                content_type,
                &encoding,
            ],
        );
        Self { head, body: None }
    }

    /// With the body, whose parts are separated by `boundary` if it has any.
    pub fn with_body(&self, body: &[u8], boundary: Option<&str>) -> Self {
        let head = self.head.as_bytes();
        let whole = match boundary.and_then(|b| parts(body, b)) {
            Some(Parts { all, closed }) => {
                let closed: &[u8] = if closed { b"closed" } else { b"open" };
                hash("parts", [head, closed].into_iter().chain(all))
            }
            None => hash("body", [head, body]),
        };
        Self { head: self.head.clone(), body: Some(whole) }
    }
}

/// What separates the parts of a multipart body; `None` for any other, and where its head does not say
/// it once.
pub fn boundary(headers: &HeaderMap) -> Option<String> {
    media_type(headers)?.boundary
}

/// A media type as all spellings of it are.
struct MediaType {
    /// Without the boundary.
    text: String,
    boundary: Option<String>,
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let mut said = headers.get_all(header::CONTENT_TYPE).iter();
    let value = said.next().filter(|_| said.next().is_none())?.to_str().ok()?;
    let (name, mut rest) = value.split_at(value.find(';').unwrap_or(value.len()));
    let mut text = name.trim().to_ascii_lowercase();
    let (major, minor) = text.split_once('/')?;
    if !(is_token(major) && is_token(minor)) {
        return None;
    }
    let multipart = major == "multipart";
    let mut parameters = Vec::new();
    while let Some(after) = rest.strip_prefix(';') {
        let (parameter, more) = parameter(after.trim_start())?;
        parameters.extend(parameter);
        rest = more.trim_start();
    }
    parameters.sort_unstable();
    let twice = parameters.windows(2).any(|pair| pair[0].0 == pair[1].0);
    if twice || !rest.is_empty() {
        return None;
    }
    let mut boundary = None;
    for (name, value) in parameters {
        if multipart && name == "boundary" && (1..=BOUNDARY_BYTES).contains(&value.len()) {
            boundary = Some(value);
        } else if is_token(&value) {
            text += &format!("; {name}={value}");
        } else {
            text += &format!("; {name}={value:?}");
        }
    }
    Some(MediaType { text, boundary })
}

type Parameter = Option<(String, String)>;

/// The parameter that `text` begins with, if it is not empty, and what follows it.
fn parameter(text: &str) -> Option<(Parameter, &str)> {
    if text.is_empty() || text.starts_with(';') {
        return Some((None, text));
    }
    let (name, rest) = text.split_once('=')?;
    let name = name.to_ascii_lowercase();
    let (value, rest) = match rest.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None => {
            let (value, rest) = rest.split_at(rest.find(';').unwrap_or(rest.len()));
            (value.trim_end().to_owned(), rest)
        }
    };
    // Names of charsets have no case (RFC 9110 §8.3.2).
    let value = if name == "charset" { value.to_ascii_lowercase() } else { value };
    is_token(&name).then_some((Some((name, value)), rest))
}

/// A quoted string's value, and what follows its end (RFC 9110 §5.6.4).
fn unquoted(text: &str) -> Option<(String, &str)> {
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

fn is_token(text: &str) -> bool {
    let is = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is)
}

/// A multipart body, cut at its delimiters: what is before the first, the parts, and what is behind the
/// last.
struct Parts<'a> {
    all: Vec<&'a [u8]>,
    /// The last delimiter says that it is.
    closed: bool,
}

fn parts<'a>(body: &'a [u8], boundary: &str) -> Option<Parts<'a>> {
    let (mut all, mut from, mut line) = (Vec::new(), 0, 0);
    loop {
        if let Some((end, closed)) = delimiter(&body[line..], boundary.as_bytes()) {
            // The line's end before a delimiter belongs to it.
            all.push(&body[from..line.saturating_sub(2).max(from)]);
            from = line + end;
            if closed {
                all.push(&body[from..]);
                return Some(Parts { all, closed });
            }
            line = from;
            continue;
        }
        match body[line..].windows(2).position(|w| w == b"\r\n") {
            Some(at) => line += at + 2,
            None => break,
        }
    }
    // Without a delimiter it has no parts.
    (!all.is_empty()).then(|| {
        all.push(&body[from..]);
        Parts { all, closed: false }
    })
}

/// Where the delimiter ends that the line begins with, and whether it is the last.
fn delimiter(line: &[u8], boundary: &[u8]) -> Option<(usize, bool)> {
    let rest = line.strip_prefix(b"--")?.strip_prefix(boundary)?;
    let (rest, closed) = match rest.strip_prefix(b"--") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let after = &rest[padding..];
    let end = line.len() - after.len();
    match after {
        [b'\r', b'\n', ..] => Some((end + 2, closed)),
        [] if closed => Some((end, closed)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(value: &str) -> Option<(String, Option<String>)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        media_type(&headers).map(|m| (m.text, m.boundary))
    }

    #[test]
    fn a_type_is_one_however_it_is_spelled() {
        for same in [
            "application/json; charset=utf-8",
            "Application/JSON;charset=UTF-8",
            "application/json ; Charset=\"utf-8\"",
            " application/json;; charset=utf-8 ;",
        ] {
            let one = ("application/json; charset=utf-8".to_owned(), None);
            assert_eq!(media(same), Some(one), "{same}");
        }
        assert_eq!(media("text/plain").unwrap().0, "text/plain", "as it was before");
        assert_eq!(media("a/b; y=1; x=\"q; r\"").unwrap().0, "a/b; x=\"q; r\"; y=1");
        assert_ne!(media("a/b; x=1"), media("a/b; x=2"));
        assert_ne!(media("a/b; x=A"), media("a/b; x=a"), "only charsets have no case");
        for none in ["", "text", "text/", "a/b; x", "a/b; x=\"", "a/b; x=1; X=2", "a/b; x=\"1\"y"] {
            assert_eq!(media(none), None, "{none}");
        }
    }

    #[test]
    fn a_boundary_is_no_part_of_the_type() {
        let form = "multipart/form-data".to_owned();
        for said in ["multipart/form-data; boundary=b1", "Multipart/Form-Data;Boundary=\"b1\""] {
            assert_eq!(media(said), Some((form.clone(), Some("b1".into()))), "{said}");
        }
        assert_eq!(media("text/plain; boundary=b1").unwrap().1, None);
        assert_eq!(media("multipart/form-data; boundary=a; boundary=b"), None);
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        assert_eq!(media(&long), Some((long, None)));
    }

    fn print(body: &str, boundary: &str) -> Option<String> {
        let head = Print { head: "h".into(), body: None };
        head.with_body(body.as_bytes(), Some(boundary)).body
    }

    fn form(boundary: &str, parts: &[&str]) -> String {
        let parts = parts.iter().map(|p| format!("--{boundary}\r\n{p}\r\n"));
        format!("{}--{boundary}--\r\n", parts.collect::<String>())
    }

    #[test]
    fn a_form_that_is_written_anew_is_the_same_and_another_is_not() {
        let parts =
            ["Content-Disposition: form-data; name=\"a\"\r\n\r\n1", "X: y\r\n\r\n\r\n--\r\n"];
        let one = print(&form("b1", &parts), "b1");
        assert_eq!(one, print(&form("----WebKitFormBoundaryX", &parts), "----WebKitFormBoundaryX"));
        let padded = form("b1", &parts).replace("--b1\r\n", "--b1 \t\r\n");
        assert_eq!(one, print(&padded, "b1"));
        let mut others = vec![
            print(&form("b1", &parts[..1]), "b1"),
            print(&form("b1", &[parts[1], parts[0]]), "b1"),
            print(&form("b1", &[&parts.concat()]), "b1"),
            print(&form("b1", &parts).replace("--b1--\r\n", ""), "b1"),
            print(&format!("{}more", form("b1", &parts)), "b1"),
            print(&format!("before\r\n{}", form("b1", &parts)), "b1"),
            print(&form("b1", &parts), "b2"),
            print(&form("b2", &parts), "b1"),
            // A longer word is no delimiter.
            print(&form("b1x", &parts), "b1"),
            print("", "b1"),
            one,
        ];
        others.sort();
        let count = others.len();
        others.dedup();
        assert_eq!(others.len(), count);
    }

    #[test]
    fn what_has_no_parts_is_compared_as_before() {
        let head = Print { head: "h".into(), body: None };
        let plain = head.with_body(b"x=1", None);
        assert_eq!(plain, head.with_body(b"x=1", Some("b")));
        assert_eq!(plain.body, Some(hash("body", [&b"h"[..], b"x=1"])));
    }
}
