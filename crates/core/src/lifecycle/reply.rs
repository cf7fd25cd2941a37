//! The edge's own answers: which condition, which status, which headers, and which of three things
//! is true of the request: **not forwarded**, **forwarded with unknown outcome**, **answered by the
//! app**. Problem details are RFC 9457, `Proxy-Status` RFC 9209.

use std::time::Duration;

use crate::contract::Unrouted;
use crate::id::OperationId;

use super::facts::BadRequest;

/// Base of every problem's `type`; each has a page in the project's `docs/problems`.
pub const PROBLEM_BASE: &str = "https://vango-edge.dev/problems/";

/// A condition the edge answers for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Problem {
    /// 404: the host has no owner, or no route of the contract takes the path.
    NoRoute,
    /// 400: no single host can be read from the request.
    BadHost,
    /// 400: no single path can be read from the request.
    BadPath,
    /// 400: the head cannot be read at all.
    MalformedRequest,
    /// 501: a method that no app gets. 405: one that an address of the edge's own does not answer.
    MethodRefused,
    /// 200: OPTIONS that may not be passed on.
    MaxForwards,
    /// 421: the host is not one of the connection's certificate.
    #[strum(serialize = "misdirected-request")]
    Misdirected,
    /// 414: the target is too long.
    TargetTooLong,
    /// 413: the body is longer than the route takes.
    ContentTooLarge,
    /// 431: the header fields are too many or too long.
    #[strum(serialize = "header-fields-too-large")]
    HeadTooLarge,
    /// 408: the body came too slowly.
    RequestTimeout,
    /// 308: the app is served over HTTPS only.
    HttpsRequired,
    /// 503: the wake is going on, but the request's budget is spent.
    WakeTimeout,
    /// 503: as many requests wait as may.
    HoldQueueFull,
    /// 503: the last start failed; no new one before the back-off ends.
    WakeFailed,
    /// 503: the node runs as many processes as it may.
    NodeFull,
    /// 503: every allocation was at its concurrency for the whole budget.
    #[strum(serialize = "app-saturated")]
    Saturated,
    /// 503: nothing was sent, because nothing could be connected to or decided.
    NotForwarded,
    /// 503: unsafe, and the app is asleep; the wake was started.
    AppCold,
    /// 400: the contract requires a key.
    IdempotencyKeyMissing,
    /// 400: the key is not one.
    IdempotencyKeyInvalid,
    /// 400: the contract says whose key it is, and the request does not.
    PrincipalMissing,
    /// 422: the key belongs to another request.
    IdempotencyKeyReused,
    /// 409: the first request with this key is at work.
    RequestInProgress,
    /// 409: carried out before, and the response is not stored.
    ResponseNotReplayable,
    /// 503: the record of keys that the contract needs cannot be had.
    LedgerUnavailable,
    /// 503: the webhook's signature cannot be verified.
    VerifierUnavailable,
    /// 403: the webhook's signature is not believed.
    WebhookSignatureInvalid,
    /// 503: verified, and no safe delivery in the provider's time.
    WakeDeferred,
    /// 502: the app answered what a provider must not get.
    WebhookRefused,
    /// 502: the app closed the connection after the request was sent.
    UpstreamClosed,
    /// 504: the app was silent after the request was sent.
    UpstreamTimeout,
    /// 502 or 504: as the two above, for an unsafe request. 409: for a repeat of such a one.
    OutcomeUnknown,
    /// 503: the edge is stopping.
    ShuttingDown,
    /// 404: a fingerprinted file that no kept artifact has.
    AssetNotFound,
    /// 503: the artifact is missing or damaged; nothing else is served in its place.
    ArtifactUnavailable,
    /// 503, or what the contract says: nothing is ready, and the request is none that wakes the app.
    Asleep,
    /// 403: a page of another host opens a live socket.
    OriginRefused,
    /// 400: what asks for a live socket is no whole handshake.
    UpgradeInvalid,
    /// 401: the preview is behind a token.
    PreviewAccess,
    /// 429: too many wrong tokens.
    TooManyAttempts,
    /// 429: the client of a trusted proxy has as many requests under way as one address may.
    TooManyRequests,
}

impl Problem {
    /// Every problem, for documentation and metrics.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Last part of its `type`, and its label in metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// One line for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::NoRoute => "No app answers for this host and path",
            Self::BadHost => "The request names no single host",
            Self::BadPath => "The request's path has no safe reading",
            Self::MalformedRequest => "The request's head cannot be read",
            Self::MethodRefused => "No app gets requests of this method",
            Self::MaxForwards => "The request may pass no further than this edge",
            Self::Misdirected => "This host is not one of the connection's certificate",
            Self::TargetTooLong => "The request target is too long",
            Self::ContentTooLarge => "The body is longer than this route takes",
            Self::HeadTooLarge => "The header fields are too many or too long",
            Self::HttpsRequired => "This app is served over HTTPS",
            Self::WakeTimeout => "The app is still starting",
            Self::HoldQueueFull => "Too many requests are waiting for this app",
            Self::WakeFailed => "The app could not be started",
            Self::NodeFull => "This node has no place for the app",
            Self::Saturated => "The app is busy",
            Self::NotForwarded => "The app could not be reached; nothing was sent to it",
            Self::AppCold => "The app was asleep; nothing was sent to it",
            Self::IdempotencyKeyMissing => "This route requires an Idempotency-Key",
            Self::IdempotencyKeyInvalid => "The Idempotency-Key is not valid",
            Self::PrincipalMissing => "This route asks whose key it is",
            Self::IdempotencyKeyReused => "This key belongs to another request",
            Self::RequestInProgress => "The first request with this key is still at work",
            Self::ResponseNotReplayable => "This was carried out; its response is not kept",
            Self::RequestTimeout => "The body did not come in time",
            Self::LedgerUnavailable => {
                "The record of idempotency keys cannot be had; nothing was sent"
            }
            Self::VerifierUnavailable => "The signature cannot be verified; nothing was sent",
            Self::WebhookSignatureInvalid => "The signature is not valid",
            Self::WakeDeferred => "The delivery was put off; nothing was sent",
            Self::WebhookRefused => "The app did not accept the delivery",
            Self::UpstreamClosed => "The app closed the connection before it answered",
            Self::UpstreamTimeout => "The app did not answer in time",
            Self::OutcomeUnknown => "The app may or may not have carried this out",
            Self::ShuttingDown => "This edge is stopping; nothing was sent",
            Self::OriginRefused => "A page of another host may not open this socket",
            Self::UpgradeInvalid => "The request asks for a socket in a way that is not valid",
            Self::AssetNotFound => "There is no such file",
            Self::ArtifactUnavailable => "The artifact cannot be had",
            Self::Asleep => "The app is asleep; nothing was sent to it",
            Self::PreviewAccess => "This preview is behind a token",
            Self::TooManyAttempts => "Too many wrong tokens",
            Self::TooManyRequests => "This client has too many requests under way",
        }
    }

    /// The error type of RFC 9209 §2.3, where one fits.
    fn proxy_status(self, status: u16) -> &'static str {
        match self {
            Self::NoRoute | Self::AssetNotFound => "destination_not_found",
            Self::BadHost
            | Self::BadPath
            | Self::MalformedRequest
            | Self::UpgradeInvalid
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::RequestTimeout => "http_request_error",
            Self::OriginRefused
            | Self::HttpsRequired
            | Self::IdempotencyKeyMissing
            | Self::IdempotencyKeyInvalid
            | Self::PrincipalMissing
            | Self::IdempotencyKeyReused
            | Self::RequestInProgress
            | Self::ResponseNotReplayable
            | Self::WebhookSignatureInvalid
            | Self::PreviewAccess
            | Self::TooManyAttempts
            | Self::MethodRefused
            | Self::MaxForwards
            | Self::Misdirected
            | Self::ContentTooLarge => "http_request_denied",
            Self::WebhookRefused => "http_response_incomplete",
            Self::OutcomeUnknown if status == 409 => "http_request_denied",
            Self::WakeTimeout
            | Self::WakeFailed
            | Self::AppCold
            | Self::LedgerUnavailable
            | Self::VerifierUnavailable
            | Self::ArtifactUnavailable
            | Self::WakeDeferred
            | Self::ShuttingDown
            | Self::Asleep => "destination_unavailable",
            Self::HoldQueueFull | Self::NodeFull | Self::Saturated | Self::TooManyRequests => {
                "connection_limit_reached"
            }
            Self::NotForwarded => "connection_refused",
            Self::UpstreamClosed => "connection_terminated",
            Self::UpstreamTimeout => "http_response_timeout",
            Self::OutcomeUnknown if status == 504 => "http_response_timeout",
            Self::OutcomeUnknown => "connection_terminated",
        }
    }
}

/// Which of three is true of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// No byte of it reached the app, or the app's server said that it did nothing with it.
    No,
    /// It, or the first request with its key, was sent, and what became of it is not known.
    OutcomeUnknown,
    /// The first request with its key was answered by the app.
    Answered,
}

impl Forwarded {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::No => "not forwarded",
            Self::OutcomeUnknown => "forwarded, outcome unknown",
            Self::Answered => "answered by the app",
        }
    }
}

/// An answer of the edge's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub problem: Problem,
    /// HTTP status.
    pub status: u16,
    /// What the client can know and do; safe to show.
    pub detail: String,
    /// `Retry-After`, in whole seconds; at least 1 where present.
    pub retry_after: Option<u64>,
    /// What became of the request.
    pub forwarded: Forwarded,
    /// The operation it waited for.
    pub operation: Option<OperationId>,
    /// `Location`, of an answer that sends the client elsewhere.
    pub location: Option<String>,
    /// What of the app's contract leads to another answer: for its developer.
    pub hint: Option<String>,
}

impl Reply {
    /// The answer to a request that the edge itself lost its way with.
    pub(super) fn lost_its_way() -> Self {
        let detail = "The edge made an error of its own; whether the request reached the app is not \
                      known.";
        let reply = Self::refused(Problem::OutcomeUnknown, 500, detail);
        Self { forwarded: Forwarded::OutcomeUnknown, ..reply }
    }

    /// An answer to a request that was not forwarded.
    pub fn refused(problem: Problem, status: u16, detail: impl Into<String>) -> Self {
        Self {
            problem,
            status,
            detail: detail.into(),
            retry_after: None,
            forwarded: Forwarded::No,
            operation: None,
            location: None,
            hint: None,
        }
    }

    /// 308 to the same address over HTTPS (RFC 9110 §15.4.9: method and body are kept). `port` is
    /// where that is served, if it is not 443.
    pub fn https_required(host: &str, port: Option<u16>, target: &str) -> Self {
        let port = port.map_or_else(String::new, |p| format!(":{p}"));
        let target = if target.starts_with('/') { target } else { "/" };
        Self {
            location: Some(format!("https://{host}{port}{target}")),
            ..Self::refused(Problem::HttpsRequired, 308, "Ask for the same over HTTPS.")
        }
    }

    /// The answer when nothing could be connected to.
    pub(super) fn not_forwarded() -> Self {
        Self::refused(
            Problem::NotForwarded,
            503,
            "No connection to the app could be made; nothing was sent.",
        )
        .retry_after(Duration::from_secs(1))
    }

    /// The answer to a request that the app's server refused without a look at it.
    pub(super) fn unprocessed() -> Self {
        let detail = "The app's server did nothing with the request: it left before anything was sent, or said so \
                      by HTTP/2's REFUSED_STREAM or GOAWAY. Send it again.";
        Self::refused(Problem::NotForwarded, 503, detail).retry_after(Duration::from_secs(1))
    }

    /// The answer to a request that waited while its route came to be kept by other rules, under which its
    /// head was not read.
    pub(super) fn rules_changed() -> Self {
        Self::refused(
            Problem::NotForwarded,
            503,
            "While this request waited, the rules of its route changed: a deployment, or another owner. \
             Nothing was sent to the app. Send it again: it is then read by the rules that count now.",
        )
        .retry_after(Duration::from_secs(1))
    }

    /// With `Retry-After`: `wait` rounded up to whole seconds, at least one.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.as_millis().div_ceil(1000).clamp(1, 86_400) as u64);
        self
    }

    /// With what of the contract leads to another answer.
    pub fn hint(mut self, hint: String) -> Self {
        self.hint = Some(hint);
        self
    }

    /// With the operation it waited for.
    pub fn operation(mut self, operation: Option<OperationId>) -> Self {
        self.operation = operation;
        self
    }

    /// 404 for a host or path without an owner; 400 for a path that may be meant for another route.
    pub fn unrouted(why: Unrouted, host: &str) -> Self {
        match why {
            Unrouted::NoRoute => {
                let detail = format!("Nothing is routed for {host} and this path.");
                Self::refused(Problem::NoRoute, 404, detail)
            }
            Unrouted::Spelling => Self::bad_request(BadRequest::Spelling),
            Unrouted::Method => Self::bad_request(BadRequest::Method),
        }
    }

    /// 421 for a host that the connection's certificate does not cover.
    pub fn misdirected(host: &str) -> Self {
        let detail = format!(
            "This connection was opened for another name, with a certificate that does not cover {host}. \
             Ask again on a connection of its own."
        );
        Self::refused(Problem::Misdirected, 421, detail)
    }

    /// 429 for the client of a trusted proxy that has `most` requests under way (RFC 6585 §4).
    pub fn too_many_requests(most: usize) -> Self {
        let detail = format!(
            "{most} requests of this client are under way, as many as one address may have. Wait for one of them."
        );
        Self::refused(Problem::TooManyRequests, 429, detail).retry_after(Duration::from_secs(1))
    }

    /// 503 for an artifact that is missing or damaged; `why` is safe to show.
    pub fn artifact_unavailable(why: &str) -> Self {
        let detail = format!(
            "What is to answer here cannot be had: {why}. Nothing else is served in its place; its \
             operator has to deploy it again."
        );
        Self::refused(Problem::ArtifactUnavailable, 503, detail)
            .retry_after(Duration::from_secs(30))
    }

    /// 413 for a body above `most` bytes.
    pub fn content_too_large(most: u64) -> Self {
        let detail = format!("This route takes bodies of at most {most} bytes.");
        Self::refused(Problem::ContentTooLarge, 413, detail)
    }

    /// 400 for a body that is none.
    pub fn body_malformed() -> Self {
        let detail = "The body's chunks cannot be read: each begins with its size in hex digits and \
                      ends with CR LF.";
        Self::refused(Problem::MalformedRequest, 400, detail)
    }

    /// 400 for a request that has no one reading.
    pub fn bad_request(why: BadRequest) -> Self {
        let (problem, status) = match why {
            BadRequest::Path | BadRequest::Spelling => (Problem::BadPath, 400),
            BadRequest::Malformed | BadRequest::Method => (Problem::MalformedRequest, 400),
            BadRequest::TargetTooLong => (Problem::TargetTooLong, 414),
            BadRequest::HeadTooLarge => (Problem::HeadTooLarge, 431),
            _ => (Problem::BadHost, 400),
        };
        Self::refused(problem, status, format!("{why}."))
    }

    /// Headers besides the common ones: name and value.
    pub fn headers(&self, node: &str) -> Vec<(&'static str, String)> {
        let mut out = vec![("cache-control", "no-store".to_owned())];
        if self.status >= 400 {
            let error = self.problem.proxy_status(self.status);
            out.push(("proxy-status", format!("{node}; error={error}")));
        }
        if let Some(seconds) = self.retry_after {
            out.push(("retry-after", seconds.to_string()));
        }
        if let Some(location) = &self.location {
            out.push(("location", location.clone()));
        }
        if let Some(id) = &self.operation {
            out.push(("vango-edge-operation", id.to_string()));
        }
        if self.status == 405 {
            // RFC 9110 §15.5.6. Only the edge's own address answers so.
            out.push(("allow", "GET, HEAD".to_owned()));
        }
        if self.problem == Problem::PreviewAccess {
            // RFC 9110 §11.6.1: a 401 names a scheme. This one is ours: the token is in a header.
            out.push(("www-authenticate", "Vango-Edge-Preview-Token".to_owned()));
        }
        if matches!(
            self.problem,
            Problem::IdempotencyKeyMissing
                | Problem::IdempotencyKeyInvalid
                | Problem::IdempotencyKeyReused
        ) {
            let page = format!("<{PROBLEM_BASE}{}>; rel=\"describedby\"", self.problem.name());
            out.push(("link", page));
        }
        out
    }
}
