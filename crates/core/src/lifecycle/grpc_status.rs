//! How an answer of the edge's own is told to a call of gRPC's.
//!
//! A gRPC client reads `grpc-status` and takes what has none for a fault of some proxy, by its HTTP status
//! alone: of a 502 it makes UNAVAILABLE, which retry policies send again by themselves. That is right only
//! where nothing was sent. So the edge answers HTTP 200 with a status of gRPC's own, in a response that has a
//! head and nothing else ("Trailers-Only"): UNAVAILABLE where it did not forward the call, and never
//! UNAVAILABLE where its outcome is not known.

use std::fmt::Write as _;

use super::grpc::{Code, Dialect};
use super::reply::{Forwarded, Problem, Reply};

impl Code {
    /// What a call is told for `reply`. By gRPC's table for HTTP's statuses
    /// (`doc/http-grpc-status-mapping.md`), closer where gRPC has the closer word; and by what became of the
    /// call, which comes first: [`Self::Unavailable`] is for what was not forwarded.
    pub fn of(reply: &Reply) -> Self {
        use Problem as P;
        match reply.problem {
            P::ContentTooLarge | P::TooManyAttempts => Self::ResourceExhausted,
            P::ResponseNotReplayable => Self::AlreadyExists,
            // "May be returned even if the operation has completed successfully."
            _ if reply.forwarded != Forwarded::No && reply.status == 504 => Self::DeadlineExceeded,
            _ if reply.forwarded != Forwarded::No => Self::Unknown,
            P::NoRoute | P::AssetNotFound | P::MethodRefused => Self::Unimplemented,
            P::PreviewAccess => Self::Unauthenticated,
            P::WebhookSignatureInvalid | P::OriginRefused => Self::PermissionDenied,
            P::IdempotencyKeyMissing
            | P::IdempotencyKeyInvalid
            | P::PrincipalMissing
            | P::IdempotencyKeyReused => Self::InvalidArgument,
            P::RequestInProgress => Self::Aborted,
            P::HttpsRequired | P::MaxForwards => Self::FailedPrecondition,
            // A health check may be told 200 of a sleeping app; a call was not carried out.
            P::Asleep => Self::Unavailable,
            _ => match reply.status {
                401 => Self::Unauthenticated,
                403 => Self::PermissionDenied,
                404 => Self::Unimplemented,
                429 | 502..=504 => Self::Unavailable,
                _ => Self::Internal,
            },
        }
    }
}

/// The fields by which `reply` is told to a call, besides those of [`Reply::headers`].
pub fn fields(reply: &Reply, dialect: Dialect) -> Vec<(&'static str, String)> {
    let code = Code::of(reply);
    let message = format!("{}: {}", reply.problem.name(), reply.detail);
    let mut out = vec![
        ("content-type", dialect.content_type().to_owned()),
        ("grpc-status", (code as u8).to_string()),
        ("grpc-message", percent_encoded(&message)),
    ];
    // gRFC A6: when to send it again, or with a negative number: not by itself.
    let pushback = match (reply.forwarded, reply.retry_after) {
        (Forwarded::No, Some(seconds)) => Some(format!("{}", seconds * 1000)),
        (Forwarded::No, None) => None,
        _ => Some("-1".to_owned()),
    };
    out.extend(pushback.map(|p| ("grpc-retry-pushback-ms", p)));
    out
}

/// The trailers of an answer that began and that the app broke off, `silent` or not: without them its client
/// sees a stream that was reset, and calls that its own cancellation.
pub fn broken_off(silent: bool) -> [(&'static str, &'static str); 3] {
    let (code, message) = if silent {
        ("4", "upstream-timeout: The app was silent in the middle of its answer.")
    } else {
        ("2", "upstream-closed: The app broke its answer off.")
    };
    [("grpc-status", code), ("grpc-message", message), ("grpc-retry-pushback-ms", "-1")]
}

/// As `grpc-message` has it: printable ASCII but for `%`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        match b {
            b' '..=b'~' if b != b'%' => out.push(char::from(b)),
            // Into a string: it cannot fail.
            _ => drop(write!(out, "%{b:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// UNAVAILABLE is what clients send again by themselves.
    #[test]
    fn what_may_have_been_carried_out_is_never_unavailable() {
        for problem in Problem::ALL {
            for status in [200, 400, 401, 403, 404, 409, 429, 500, 502, 503, 504] {
                let reply = Reply::refused(*problem, status, "x");
                for forwarded in [Forwarded::OutcomeUnknown, Forwarded::Answered] {
                    let reply = Reply { forwarded, ..reply.clone() };
                    assert_ne!(Code::of(&reply), Code::Unavailable, "{problem:?} {status}");
                    let told = fields(&reply, Dialect::Grpc);
                    assert!(told.contains(&("grpc-retry-pushback-ms", "-1".into())));
                }
            }
        }
    }

    #[test]
    fn refusals_have_the_codes_that_grpc_has_for_them() {
        let of = |problem, status| Code::of(&Reply::refused(problem, status, "x"));
        assert_eq!(of(Problem::AppCold, 503), Code::Unavailable);
        assert_eq!(of(Problem::WakeTimeout, 503), Code::Unavailable);
        assert_eq!(of(Problem::TooManyRequests, 429), Code::Unavailable);
        assert_eq!(of(Problem::Asleep, 200), Code::Unavailable);
        assert_eq!(of(Problem::PreviewAccess, 401), Code::Unauthenticated);
        assert_eq!(of(Problem::NoRoute, 404), Code::Unimplemented);
        assert_eq!(of(Problem::ContentTooLarge, 413), Code::ResourceExhausted);
        assert_eq!(of(Problem::BadPath, 400), Code::Internal);
        assert_eq!(of(Problem::RequestInProgress, 409), Code::Aborted);
        let silent = Reply {
            forwarded: Forwarded::OutcomeUnknown,
            ..Reply::refused(Problem::OutcomeUnknown, 504, "x")
        };
        assert_eq!(Code::of(&silent), Code::DeadlineExceeded);
    }

    #[test]
    fn a_refusal_says_when_to_come_again_and_what_it_is() {
        let reply = Reply::refused(Problem::AppCold, 503, "100 % \"cold\" – é\n")
            .retry_after(Duration::from_millis(1200));
        let told = fields(&reply, Dialect::Web);
        let of = |name| told.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
        assert_eq!(of("content-type"), Some("application/grpc-web+proto"));
        assert_eq!(of("grpc-status"), Some("14"));
        assert_eq!(of("grpc-retry-pushback-ms"), Some("2000"));
        let message = "app-cold: 100 %25 \"cold\" %E2%80%93 %C3%A9%0A";
        assert_eq!(of("grpc-message"), Some(message));
    }
}
