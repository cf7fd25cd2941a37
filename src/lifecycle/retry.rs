//! What may happen after an upstream failed. Two facts decide: was anything sent, and is the
//! request safe? Nothing here ever lets an unsafe request be sent twice.

use std::time::Duration;

use super::reply::{Forwarded, Problem, Reply};

/// Attempts one request may make, the first included, while nothing of it has been sent.
pub const MAX_ATTEMPTS: u32 = 4;

/// How an upstream failed after the request was sent, in whole or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamFailure {
    /// The connection ended before a whole response head.
    Closed,
    /// Nothing came within the response timeout.
    Silent,
}

/// Whether a request on a **reused** connection that broke before any response byte may be sent
/// again. RFC 9110 §9.2.2: only where the method is idempotent; here: only where it is safe, once.
pub fn may_resend(safe: bool, reused: bool, attempts: u32) -> bool {
    safe && reused && attempts < 2
}

/// The answer after the request was sent and no response came.
pub fn after_send(safe: bool, failure: UpstreamFailure) -> Reply {
    let (status, problem, what) = match failure {
        UpstreamFailure::Closed => (502, Problem::UpstreamClosed, "closed the connection"),
        UpstreamFailure::Silent => (504, Problem::UpstreamTimeout, "did not answer in time"),
    };
    if safe {
        return Reply {
            forwarded: Forwarded::OutcomeUnknown,
            ..Reply::refused(problem, status, format!("The app {what}."))
        };
    }
    let detail = format!(
        "The request was sent and the app {what}. It may have been carried out: look before you \
         send it again."
    );
    Reply {
        forwarded: Forwarded::OutcomeUnknown,
        ..Reply::refused(Problem::OutcomeUnknown, status, detail)
    }
}

/// The answer when nothing could be connected to.
pub fn not_forwarded() -> Reply {
    Reply::refused(
        Problem::NotForwarded,
        503,
        "No connection to the app could be made; nothing was sent.",
    )
    .retry_after(Duration::from_secs(1))
}

/// The answer to a request that waited while its route came to be kept by other rules, under which its
/// head was not read.
pub fn rules_changed() -> Reply {
    Reply::refused(
        Problem::NotForwarded,
        503,
        "While this request waited, the rules of its route changed: a deployment, or another owner. \
         Nothing was sent to the app. Send it again: it is then read by the rules that count now.",
    )
    .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsafe_request_is_never_sent_again() {
        for reused in [false, true] {
            for attempts in 0..5 {
                assert!(!may_resend(false, reused, attempts));
            }
        }
        assert!(may_resend(true, true, 1));
        assert!(!may_resend(true, true, 2) && !may_resend(true, false, 1));
    }

    #[test]
    fn an_unsafe_failure_is_an_unknown_outcome_without_retry_after() {
        for failure in [UpstreamFailure::Closed, UpstreamFailure::Silent] {
            let reply = after_send(false, failure);
            assert_eq!(reply.problem, Problem::OutcomeUnknown);
            assert_eq!(reply.forwarded, Forwarded::OutcomeUnknown);
            assert_eq!(reply.retry_after, None);
        }
        assert_eq!(after_send(true, UpstreamFailure::Silent).status, 504);
    }
}
