//! Media types and forms, as far as the edge reads bodies: a type as all spellings of it are (RFC 9110 §8.3.1),
//! and the parts of a multipart body (RFC 2046 §5.1).

use http::header::{self, HeaderMap, HeaderValue};

use super::fields::unquoted;

/// Longest boundary (RFC 2046 §5.1.1).
const BOUNDARY_BYTES: usize = 70;

/// How a form is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormType {
    /// `application/x-www-form-urlencoded` (URL Standard §5.1).
    Urlencoded,
    /// `multipart/form-data` (RFC 7578), with its boundary.
    Multipart(String),
}

impl FormType {
    /// By a request's head; none for what is no form, or is compressed.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let plain = |v: &HeaderValue| v.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
        if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
            return None;
        }
        let media = media_type(headers)?;
        match (media.text.split(';').next(), media.boundary) {
            (Some("application/x-www-form-urlencoded"), _) => Some(Self::Urlencoded),
            (Some("multipart/form-data"), Some(boundary)) => Some(Self::Multipart(boundary)),
            _ => None,
        }
    }
}

/// The values of the field `name`, in their order, without files; one at a time, since a body can be made of
/// nothing else and all of them would take many times its room.
pub fn values<'a>(
    form: &'a FormType,
    body: &'a [u8],
    name: &'a str,
) -> Box<dyn Iterator<Item = String> + 'a> {
    match form {
        FormType::Urlencoded => {
            let pairs = form_urlencoded::parse(body);
            Box::new(pairs.filter(move |(n, _)| n == name).map(|(_, value)| value.into_owned()))
        }
        FormType::Multipart(boundary) => {
            // The first is what is before the parts.
            let parts = Cuts::of(body, boundary).skip(1);
            Box::new(parts.filter_map(move |part| value(part, name)))
        }
    }
}

/// The value of a part of a form that is the field `name` (RFC 7578 §4.2).
fn value(part: &[u8], name: &str) -> Option<String> {
    let end = part.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&part[..end]).ok()?;
    let mut said = head.split("\r\n").filter_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.trim().eq_ignore_ascii_case("content-disposition").then_some(value.trim())
    });
    let disposition = said.next().filter(|_| said.next().is_none())?;
    let (kind, mut rest) = disposition.split_at(disposition.find(';')?);
    if !kind.trim_end().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let mut named = false;
    while let Some(after) = rest.strip_prefix(';') {
        let (parameter, more) = parameter(after.trim_start())?;
        rest = more.trim_start();
        match parameter {
            Some((of, _)) if of.starts_with("filename") => return None,
            Some((of, value)) if of == "name" => named = value == name,
            _ => {}
        }
    }
    named.then(|| String::from_utf8_lossy(&part[end + 4..]).into_owned())
}

/// What separates the parts of a multipart body; `None` for any other, and where its head does not say
/// it once.
pub fn boundary(headers: &HeaderMap) -> Option<String> {
    media_type(headers)?.boundary
}

/// A media type as all spellings of it are.
pub(super) struct MediaType {
    /// Without the boundary.
    pub(super) text: String,
    pub(super) boundary: Option<String>,
}

pub(super) fn media_type(headers: &HeaderMap) -> Option<MediaType> {
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

fn is_token(text: &str) -> bool {
    let is = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is)
}

/// A multipart body, cut at its delimiters: what is before the first, the parts, and what is behind the
/// last.
pub(super) struct Parts<'a> {
    pub(super) all: Vec<&'a [u8]>,
    /// The last delimiter says that it is.
    pub(super) closed: bool,
}

pub(super) fn parts<'a>(body: &'a [u8], boundary: &'a str) -> Option<Parts<'a>> {
    let mut cuts = Cuts::of(body, boundary);
    let mut all: Vec<_> = cuts.by_ref().collect();
    // Without a delimiter it has no parts.
    (!all.is_empty()).then(|| {
        all.push(&body[cuts.from..]);
        Parts { all, closed: cuts.closed }
    })
}

/// What each delimiter of a multipart body ends, what is before the first part included.
struct Cuts<'a> {
    body: &'a [u8],
    boundary: &'a [u8],
    /// Behind the last delimiter that was found.
    from: usize,
    /// Where the line begins that is looked at next.
    line: usize,
    /// The last delimiter says that it is.
    closed: bool,
}

impl<'a> Cuts<'a> {
    fn of(body: &'a [u8], boundary: &'a str) -> Self {
        Self { body, boundary: boundary.as_bytes(), from: 0, line: 0, closed: false }
    }
}

impl<'a> Iterator for Cuts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.closed {
            let rest = &self.body[self.line..];
            if let Some((end, closed)) = delimiter(rest, self.boundary) {
                // The line's end before a delimiter belongs to it.
                let cut = &self.body[self.from..self.line.saturating_sub(2).max(self.from)];
                (self.from, self.line) = (self.line + end, self.line + end);
                self.closed = closed;
                return Some(cut);
            }
            self.line += rest.windows(2).position(|w| w == b"\r\n")? + 2;
        }
        None
    }
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

    fn kind(content_type: &str) -> Option<FormType> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        FormType::of(&headers)
    }

    #[test]
    fn a_form_is_known_by_its_type() {
        assert_eq!(kind("application/x-www-form-urlencoded"), Some(FormType::Urlencoded));
        let said = "Application/X-WWW-Form-Urlencoded; charset=UTF-8";
        assert_eq!(kind(said), Some(FormType::Urlencoded));
        let said = "multipart/form-data; boundary=\"b 1\"";
        assert_eq!(kind(said), Some(FormType::Multipart("b 1".into())));
        for other in ["multipart/mixed; boundary=b", "multipart/form-data", "text/plain", "form"] {
            assert_eq!(kind(other), None, "{other}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(FormType::of(&headers), None);
    }

    #[test]
    fn a_field_of_a_form_is_found_however_it_is_written() {
        let of = |body: &str, name| {
            values(&FormType::Urlencoded, body.as_bytes(), name).collect::<Vec<_>>()
        };
        assert_eq!(of("a=1&_key=x%20y+z&b=2", "_key"), ["x y z"]);
        assert_eq!(of("order%5Bkey%5D=1&order[key]=2", "order[key]"), ["1", "2"]);
        assert_eq!(of("_key", "_key"), [""]);
        assert_eq!(of("_keys=1&k=_key", "_key"), [] as [&str; 0]);
        assert_eq!(of("_key=%ff", "_key"), ["\u{fffd}"]);
    }

    #[test]
    fn a_field_of_a_multipart_form_is_a_part_that_is_no_file() {
        let form = FormType::Multipart("b".into());
        let field = |head: &str, value: &str| format!("--b\r\n{head}\r\n\r\n{value}\r\n");
        let of = |parts: &[String]| {
            let body = format!("{}--b--\r\n", parts.concat());
            values(&form, body.as_bytes(), "key").collect::<Vec<_>>()
        };
        let named = |head: &str| of(&[field(head, "v")]);
        assert_eq!(named("Content-Disposition: form-data; name=\"key\""), ["v"]);
        let more = "X: y\r\ncontent-disposition:form-data;name=key\r\nContent-Type: text/plain";
        assert_eq!(named(more), ["v"]);
        for other in [
            "Content-Disposition: form-data; name=\"key\"; filename=\"a\"",
            "Content-Disposition: form-data; name=\"keys\"",
            "Content-Disposition: attachment; name=\"key\"",
            "Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"key\"",
            "X-Key: form-data; name=\"key\"",
        ] {
            assert_eq!(named(other), [] as [&str; 0], "{other}");
        }
        let one = field("Content-Disposition: form-data; name=\"key\"", "a\r\nb");
        let other = field("Content-Disposition: form-data; name=\"text\"", "--b");
        assert_eq!(of(&[other, one.clone(), one]), ["a\r\nb", "a\r\nb"]);
        // What is before the first delimiter is no part, nor what no delimiter ends.
        let name = "Content-Disposition: form-data; name=\"key\"\r\n\r\nv";
        for body in
            [format!("{name}\r\n--b--"), format!("--b\r\n{name}"), name.into(), String::new()]
        {
            assert_eq!(values(&form, body.as_bytes(), "key").next(), None, "{body}");
        }
    }
}
