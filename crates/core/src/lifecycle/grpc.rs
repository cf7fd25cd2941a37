//! What the edge knows of gRPC, which its clients speak over plain HTTP/2 requests
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): how a call is recognised, and how long
//! its client waits. How it is told an answer of the edge's own: [`super::grpc_status`].

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How a call says that it is one; its answer says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web, of browsers.
    Web,
    /// The same as base64.
    WebText,
}

impl Dialect {
    /// Of a request with these fields, if it is a call.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let kind = kind.split(';').next()?.trim().to_ascii_lowercase();
        // What the message is made of: +proto, +json or another.
        match kind.split('+').next()? {
            "application/grpc" => Some(Self::Grpc),
            "application/grpc-web" => Some(Self::Web),
            "application/grpc-web-text" => Some(Self::WebText),
            _ => None,
        }
    }

    /// The `Content-Type` of an answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Grpc => "application/grpc",
            Self::Web => "application/grpc-web+proto",
            Self::WebText => "application/grpc-web-text+proto",
        }
    }
}

/// Whether an answer with these fields, of its head or its trailers, says that the app failed at the call, as a
/// 5xx of HTTP does. A call's HTTP status is 200 whatever came of it.
///
/// UNKNOWN is what servers make of an exception that nothing catches, and DEADLINE_EXCEEDED their own 504. The
/// others blame the call, or are an answer to it: UNIMPLEMENTED is a name that the app does not have, a 404,
/// which tools that look for gRPC's reflection are told by every server without it; ABORTED a conflict;
/// RESOURCE_EXHAUSTED a client's limit.
pub fn is_app_failure(fields: &HeaderMap) -> bool {
    const UNKNOWN: u8 = Code::Unknown as u8;
    const DEADLINE_EXCEEDED: u8 = Code::DeadlineExceeded as u8;
    const INTERNAL: u8 = Code::Internal as u8;
    const UNAVAILABLE: u8 = Code::Unavailable as u8;
    // The edge itself never says it.
    const DATA_LOSS: u8 = 15;
    let status = fields.get(STATUS).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    matches!(status, Some(UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE | DATA_LOSS))
}

/// A status of gRPC (<https://grpc.io/docs/guides/status-codes/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// How long the client of a call waits, where it says so: at most eight digits and a unit. What cannot be
/// read says nothing; the app reads it too.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(TIMEOUT)?.as_bytes();
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// `left` as a call says it. In milliseconds as far as eight digits go.
pub fn timeout_text(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match left.as_millis() {
        0 => format!("{}u", left.as_micros().max(1)),
        ms if ms <= MOST => format!("{ms}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_call_is_known_by_its_content_type() {
        let of = |value: &str| Dialect::of(&headers("content-type", value));
        assert_eq!(of("application/grpc"), Some(Dialect::Grpc));
        assert_eq!(of("Application/gRPC+proto; charset=x"), Some(Dialect::Grpc));
        assert_eq!(of("application/grpc-web+proto"), Some(Dialect::Web));
        assert_eq!(of("application/grpc-web-text"), Some(Dialect::WebText));
        for other in ["application/grpcx", "application/json", "text/grpc", ""] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(Dialect::of(&HeaderMap::new()), None);
    }

    #[test]
    fn some_statuses_are_the_app_s_own_failure() {
        let failures: Vec<u8> = (0..=20)
            .filter(|code| is_app_failure(&headers("grpc-status", &code.to_string())))
            .collect();
        assert_eq!(failures, [2, 4, 13, 14, 15]);
        assert!(
            !is_app_failure(&HeaderMap::new()) && !is_app_failure(&headers("grpc-status", "x"))
        );
    }

    #[test]
    fn a_timeout_has_a_unit_and_at_most_eight_digits() {
        let of = |value: &str| timeout(&headers("grpc-timeout", value));
        assert_eq!(of("3S"), Some(Duration::from_secs(3)));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(of("2M"), Some(Duration::from_secs(120)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(
            (of("7u"), of("7n")),
            (Some(Duration::from_micros(7)), Some(Duration::from_nanos(7)))
        );
        for none in ["", "S", "3", "3s", "-3S", "+3S", "123456789S", "3.5S"] {
            assert_eq!(of(none), None, "{none}");
        }
        for (left, text) in
            [(0, "1u"), (1, "1m"), (99_999_999, "99999999m"), (100_000_000, "100000S")]
        {
            assert_eq!(timeout_text(Duration::from_millis(left)), text);
            assert!(of(text).is_some());
        }
    }
}
