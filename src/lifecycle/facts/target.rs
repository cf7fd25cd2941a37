//! The target of a request: which bytes make one, where it begins, and its normal form (RFC 3986 §6.2.2).

use http::Method;

use super::BadRequest;

/// Bytes of a target at most: more, and the crate `http` makes no URI of it.
pub const LONGEST_TARGET: usize = 65_534;

/// Bytes of a path that are kept of a request, in traces and logs.
const MOST_OF_PATH: usize = 1024;
/// The same of a method's name; those that are registered have 17 at most.
const MOST_OF_METHOD: usize = 32;

/// A target that has no one reading, as a trace shows it: its path, and of that the begin.
pub fn shown(target: &[u8]) -> String {
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    String::from_utf8_lossy(&path[..path.len().min(MOST_OF_PATH)]).into_owned()
}

/// `path` as far as it is kept: a client may send as much as `limits.client.header_bytes` has.
pub fn kept_path(path: String) -> String {
    if path.len() > MOST_OF_PATH { shown(path.as_bytes()) } else { path }
}

/// The name of `method` as far as it is kept.
pub fn kept_method(method: &Method) -> &str {
    let name = method.as_str();
    // A name is a token, which is ASCII (RFC 9110 §5.6.2).
    name.get(..MOST_OF_METHOD).unwrap_or(name)
}

/// Refuses what is no target (RFC 9112 §3.2): its client has not made one of what it was given, and every
/// repair is a guess.
pub(super) fn check(target: &[u8]) -> Result<(), BadRequest> {
    if target.len() > LONGEST_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    let broken = target.iter().any(|b| matches!(b, 0..=b' ' | b'#' | 0x7f));
    if broken { Err(BadRequest::Malformed) } else { Ok(()) }
}

/// The target without the scheme and authority of absolute-form, which a server must accept (RFC 9112
/// §3.2.2); the authority has been compared with Host.
pub(super) fn origin_form(target: &[u8]) -> &[u8] {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    });
    let Some(rest) = rest else { return target };
    match rest.iter().position(|b| matches!(b, b'/' | b'?')) {
        Some(at) if rest[at] == b'/' => &rest[at..],
        // `http://host?a` has the empty path, which is `/` (RFC 9110 §4.2.3): rare enough to refuse.
        Some(_) => target,
        None => b"/",
    }
}

pub(super) fn split_target(target: &[u8]) -> Result<(&[u8], Option<String>), BadRequest> {
    let (path, query) = match target.iter().position(|b| *b == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    };
    let query = query.map(|q| {
        let clean = q.iter().all(|b| b.is_ascii() && !b.is_ascii_control() && *b != b' ');
        clean.then(|| String::from_utf8_lossy(q).into_owned()).ok_or(BadRequest::Path)
    });
    Ok((path, query.transpose()?))
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// The normalised path, or `None` where there is no safe one. `*` (RFC 9110 §9.3.7) stays.
pub(super) fn normalise(path: &[u8]) -> Option<String> {
    if path == b"*" {
        return Some("*".into());
    }
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'%' | b'\\' | b'#');
    if path.first() == Some(&b'/') && path.iter().all(plain) && !path.windows(2).any(|w| w == b"/.")
    {
        return String::from_utf8(path.to_vec()).ok();
    }
    let decoded = decode_unreserved(path)?;
    if !decoded.starts_with('/') {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = decoded[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {
                if last {
                    kept.push("");
                }
            }
            ".." => {
                kept.pop()?;
                if last {
                    kept.push("");
                }
            }
            s => kept.push(s),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

fn decode_unreserved(path: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.iter().copied();
    while let Some(b) = rest.next() {
        match b {
            b'%' => {
                let hex = [rest.next()?, rest.next()?];
                let text = std::str::from_utf8(&hex).ok()?;
                if !hex.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                match u8::from_str_radix(text, 16).ok()? {
                    0..=0x1f | 0x7f | b'\\' => return None,
                    b if is_unreserved(b) => out.push(char::from(b)),
                    // Upper case, so that one resource has one name (RFC 3986 §6.2.2.1).
                    b => out.push_str(&format!("%{b:02X}")),
                }
            }
            b'\\' | b'#' => return None,
            b if b.is_ascii_graphic() => out.push(char::from(b)),
            _ => return None,
        }
    }
    Some(out)
}
