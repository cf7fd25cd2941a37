//! The ledger's rules, without the ledger: whose key it is, when two requests are the same, what a
//! record says about a repeat, and which record follows which: see [`judge`], [`judge_event`] and the
//! transitions from [`reserved`] on.
//!
//! The promise for contract `edge`: for one key, the app sees the mutation at most once from the
//! edge. It stands on two things only: a record is `forwarded` on disk before the first byte is
//! sent, and no state that may follow `forwarded` lets the same key be sent again, unless the app or an
//! operator has said that it was not carried out.
//!
//! Deliberately absent: any way back from `unknown` by time. Retention ends a record, nothing else.
//!
//! A client that sends a form again writes it anew: a browser's `FormData` chooses another boundary each
//! time, and the same type may be spelled otherwise. So types are compared as types (RFC 9110 §8.3.1), and
//! the parts of a multipart body as parts (RFC 2046 §5.1). What has no single reading is compared byte for
//! byte: that can only tell two requests apart.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::contract::{Action, Fingerprint, Source};
use crate::id::{Environment, OperationId};
use crate::record::ledger::{AttemptState, Attempted, AuditEvidence, Subject, key};

use super::facts::Facts;
use super::fields;
use super::forms::{Parts, media_type, parts};

/// Largest body that is read whole where the route's contract has no `max_body`.
pub const DEFAULT_WHOLE_BODY: u64 = 1024 * 1024;

/// The hash under which an operator finds a key, from any client and on any route.
pub fn key_hash(key: &str) -> String {
    hash("key", [key.as_bytes()])[..32].to_owned()
}

/// What a request asks the ledger for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it is about.
    pub subject: Subject,
    /// The environment that is asked.
    pub environment: Environment,
    /// The route's path.
    pub route: String,
    /// Where its record is: see [`key::subject`].
    pub at: String,
    /// Hash of the key alone.
    pub key_hash: String,
    /// The provider's event id.
    pub event: Option<String>,
    /// What makes it the same as another.
    pub fingerprint: RequestFingerprint,
    /// How long its record is kept, in milliseconds.
    pub retention_ms: u64,
    pub request: String,
}

/// Why a request has no claim although its contract asks for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPrincipal {
    /// What the contract names, for people: `the cookie vango_session`.
    pub wanted: String,
}

/// A keyed action without its key.
#[derive(Debug, Clone)]
pub struct Unkeyed {
    environment: Environment,
    route: String,
    principal: Vec<u8>,
    fingerprint: RequestFingerprint,
    retention_ms: u64,
    request: String,
}

impl Unkeyed {
    /// What the head says of it.
    ///
    /// # Errors
    /// [`NoPrincipal`] when the request lacks what the contract names.
    pub fn of(
        environment: &Environment,
        route: &str,
        action: &Action,
        facts: &Facts,
        headers: &HeaderMap,
    ) -> Result<Self, NoPrincipal> {
        let principal = match &action.principal {
            Some(source) => principal(headers, source)
                .ok_or_else(|| NoPrincipal { wanted: describe(source) })?,
            // The contract's parser asks for one with `edge`.
            None => return Err(NoPrincipal { wanted: "a principal".into() }),
        };
        Ok(Self {
            environment: environment.clone(),
            route: route.to_owned(),
            principal,
            fingerprint: RequestFingerprint::of_head(facts, headers),
            retention_ms: u64::try_from(action.retention.as_millis()).unwrap_or(u64::MAX),
            request: facts.id.to_string(),
        })
    }

    /// What the ledger is asked for. Lookup is by route, principal and key; previews and production share
    /// nothing, since the environment is part of the record's place.
    pub fn keyed(&self, key: &str) -> Claim {
        let place = hash("action", [self.route.as_bytes(), &self.principal, key.as_bytes()]);
        Claim {
            subject: Subject::Action,
            environment: self.environment.clone(),
            route: self.route.clone(),
            at: key::subject(&self.environment, &place),
            key_hash: key_hash(key),
            event: None,
            fingerprint: self.fingerprint.clone(),
            retention_ms: self.retention_ms,
            request: self.request.clone(),
        }
    }
}

impl Claim {
    /// With the body in its fingerprint, whose parts are separated by `boundary` if it has any.
    pub fn with_body(self, body: &[u8], boundary: Option<&str>) -> Self {
        let fingerprint = self.fingerprint.with_body(body, boundary);
        Self { fingerprint, ..self }
    }

    /// Of a provider's event: the same event on the same route is one, whatever its body says the
    /// second time.
    pub fn event(
        environment: &Environment,
        route: &str,
        provider: &str,
        event: &str,
        remember: Duration,
        request: String,
    ) -> Self {
        let place = hash("event", [route.as_bytes(), provider.as_bytes(), event.as_bytes()]);
        Self {
            subject: Subject::Event,
            environment: environment.clone(),
            route: route.to_owned(),
            at: key::subject(environment, &place),
            key_hash: key_hash(event),
            event: Some(event.to_owned()),
            fingerprint: RequestFingerprint { head: String::new(), body: None },
            retention_ms: u64::try_from(remember.as_millis()).unwrap_or(u64::MAX),
            request,
        }
    }

    /// The record's name among its environment's, 64 hex digits: what the app is told, and by which
    /// it says what became of it.
    pub fn record_name(&self) -> &str {
        self.at.rsplit('/').next().unwrap_or_default()
    }
}

/// Whether a contract's fingerprint takes the body in.
pub fn reads_body(action: &Action) -> bool {
    action.fingerprint == Fingerprint::Body
}

fn describe(source: &Source) -> String {
    match source {
        Source::Cookie(name) => format!("the cookie {name}"),
        Source::Header(name) => format!("the header {name}"),
    }
}

/// The principal's name as the request has it; never empty. Two different values under one name are
/// no name.
fn principal(headers: &HeaderMap, source: &Source) -> Option<Vec<u8>> {
    match source {
        Source::Header(name) => {
            let mut values = headers.get_all(name).iter();
            let first = values.next()?.as_bytes();
            (values.next().is_none() && !first.is_empty()).then(|| first.to_vec())
        }
        Source::Cookie(name) => {
            let mut values = fields::cookies(headers, name);
            let first = values.next()?;
            // A cookie set for two paths comes twice; with one value it still names one principal.
            (!first.is_empty() && values.all(|v| v == first)).then(|| first.to_vec())
        }
    }
}

/// What a record says about a repeat: another request with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It may be sent: nothing was, or the app or an operator said that it was not carried out.
    Free,
    /// The body has to be read before anything can be said.
    NeedsBody,
    /// 422: another payload.
    Reused,
    /// 409: the first is at work.
    InProgress,
    /// 409: what became of it is not known.
    Unknown,
    Replay,
    /// 409: carried out, and the response is not stored.
    NotReplayable,
}

/// Judges a repeat of a keyed **action**. `alive` says whether the record's holder is at work now.
/// `whole` says that the contract's fingerprint takes the body in.
pub fn judge(
    record: &Attempted,
    fingerprint: &RequestFingerprint,
    whole: bool,
    alive: bool,
) -> Repeat {
    if record.head != fingerprint.head {
        return Repeat::Reused;
    }
    match (&record.body, &fingerprint.body) {
        (Some(first), Some(this)) if first != this => return Repeat::Reused,
        (Some(_), None) if whole => return Repeat::NeedsBody,
        _ => {}
    }
    match record.state {
        AttemptState::Reserved | AttemptState::Forwarded if alive => Repeat::InProgress,
        // Its holder is gone, and nothing was sent.
        AttemptState::Reserved | AttemptState::Released => Repeat::Free,
        AttemptState::Forwarded | AttemptState::Unknown => Repeat::Unknown,
        AttemptState::Completed => Repeat::Replay,
        // An action is never refused: any answer of the app's completes it.
        AttemptState::CompletedUnreplayable | AttemptState::Refused => Repeat::NotReplayable,
    }
}

/// What a record says about another delivery of the same **event**.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It may be given to the app: it never was, or the app did not accept it, or that is not known (the
    /// provider delivers at least once; the app tells repeats by the event's id).
    Free,
    /// Another delivery of it is at work.
    InProgress,
    /// The app accepted it.
    Accepted,
}

/// Judges another delivery of a provider's event.
pub fn judge_event(record: &Attempted, alive: bool) -> Delivered {
    match record.state {
        AttemptState::Reserved | AttemptState::Forwarded if alive => Delivered::InProgress,
        AttemptState::Completed | AttemptState::CompletedUnreplayable => Delivered::Accepted,
        AttemptState::Reserved
        | AttemptState::Forwarded
        | AttemptState::Unknown
        | AttemptState::Released
        | AttemptState::Refused => Delivered::Free,
    }
}

/// The record that a key or an event has already, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingRecord {
    pub record: Attempted,
    /// Its holder is at work now.
    pub alive: bool,
}

/// Who holds an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub node: String,
    pub run: String,
}

/// What came of an attempt that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The app answered with `status`, and the response is stored.
    Whole { status: u16 },
    /// The app answered with `status`, and the response is too large or streamed.
    NotStored { status: u16 },
    /// No whole answer came.
    Nothing,
}

/// The record after a claim took its place and nothing was sent. `before` is one that is free; it is kept as
/// long from now on as a new one, since its client is told that it is.
pub fn reserved(
    claim: &Claim,
    holder: &Holder,
    before: Option<&Attempted>,
    now: Wall,
) -> Attempted {
    let kept = Wall(now.0.saturating_add(claim.retention_ms));
    Attempted {
        subject: claim.subject,
        environment: claim.environment.clone(),
        route: claim.route.clone(),
        key_hash: claim.key_hash.clone(),
        event: claim.event.clone(),
        head: claim.fingerprint.head.clone(),
        body: claim.fingerprint.body.clone(),
        attempt: before.map_or(0, |b| b.attempt),
        state: AttemptState::Reserved,
        claim: claim.request.clone(),
        node: holder.node.clone(),
        run: holder.run.clone(),
        operation: None,
        created: before.map_or(now, |b| b.created),
        changed: now,
        expires: before.map_or(kept, |b| kept.max(b.expires)),
        status: before.and_then(|b| b.status),
        resolved: None,
    }
}

/// The record that stands on disk before the first byte is sent.
pub fn forwarded(
    reserved: &Attempted,
    fingerprint: &RequestFingerprint,
    operation: Option<OperationId>,
    now: Wall,
) -> Attempted {
    Attempted {
        body: fingerprint.body.clone().or_else(|| reserved.body.clone()),
        attempt: reserved.attempt.saturating_add(1),
        state: AttemptState::Forwarded,
        operation,
        changed: now,
        status: None,
        ..reserved.clone()
    }
}

/// The record after what was sent came to something. Also from `unknown`, for a late completion of
/// the same attempt.
pub fn ended(forwarded: &Attempted, came: AttemptOutcome, now: Wall) -> Attempted {
    let accepted = |status: u16| (200..300).contains(&status);
    let (state, status) = match (forwarded.subject, came) {
        (
            Subject::Event,
            AttemptOutcome::Whole { status } | AttemptOutcome::NotStored { status },
        ) => {
            let state =
                if accepted(status) { AttemptState::Completed } else { AttemptState::Refused };
            (state, Some(status))
        }
        (Subject::Action, AttemptOutcome::Whole { status }) => {
            (AttemptState::Completed, Some(status))
        }
        (Subject::Action, AttemptOutcome::NotStored { status }) => {
            (AttemptState::CompletedUnreplayable, Some(status))
        }
        (_, AttemptOutcome::Nothing) => (AttemptState::Unknown, None),
    };
    Attempted { state, status, changed: now, ..forwarded.clone() }
}

/// The record after a reservation was let go: none if nothing was ever sent.
pub fn released(reserved: &Attempted, now: Wall) -> Option<Attempted> {
    (reserved.attempt > 0).then(|| Attempted {
        // An event keeps being one that the app did not accept.
        state: match reserved.subject {
            Subject::Event => AttemptState::Refused,
            Subject::Action => AttemptState::Released,
        },
        changed: now,
        ..reserved.clone()
    })
}

/// What an operator, or the app, says about an unknown outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It was carried out: repeats are told so.
    CarriedOut,
    /// It was not: a repeat is sent, as the next attempt.
    NotCarriedOut,
}

/// The record after a resolution of the attempt `attempt` by `who`; none where the record is not
/// unknown, or is of another attempt.
pub fn resolved(
    record: &Attempted,
    attempt: u32,
    resolution: Resolution,
    who: &str,
    now: Wall,
) -> Option<Attempted> {
    if record.state != AttemptState::Unknown || record.attempt != attempt {
        return None;
    }
    let state = match (resolution, record.subject) {
        (Resolution::CarriedOut, Subject::Action) => AttemptState::CompletedUnreplayable,
        (Resolution::CarriedOut, Subject::Event) => AttemptState::Completed,
        (Resolution::NotCarriedOut, _) => AttemptState::Released,
    };
    Some(Attempted { state, resolved: Some(who.to_owned()), changed: now, ..record.clone() })
}

/// Evidence of a resolution; `resolved` is what [`resolved`] made.
pub fn evidence_of(resolved: &Attempted) -> AuditEvidence {
    let (decision, forwarded) = match resolved.state {
        AttemptState::Released => ("resolved-not-carried-out", "forwarded, not carried out"),
        _ => ("resolved-carried-out", "forwarded, carried out"),
    };
    AuditEvidence {
        at: resolved.changed,
        request: resolved.claim.clone(),
        environment: resolved.environment.clone(),
        route: resolved.route.clone(),
        class: match resolved.subject {
            Subject::Action => "action".into(),
            Subject::Event => "webhook".into(),
        },
        method: "-".into(),
        decision: decision.into(),
        forwarded: forwarded.into(),
        why: resolved.resolved.as_ref().map_or_else(String::new, |who| format!("by {who}")),
        status: None,
        key_hash: Some(resolved.key_hash.clone()),
        event: resolved.event.clone(),
        attempt: resolved.attempt,
        operation: resolved.operation.clone(),
        held_us: 0,
        total_us: 0,
    }
}

/// The record of a holder that is gone: what was only reserved is let go, what was forwarded is
/// unknown. `None` stands for a record that goes.
pub fn recovered(record: &Attempted, now: Wall) -> Option<Attempted> {
    match record.state {
        AttemptState::Reserved => released(record, now),
        AttemptState::Forwarded => Some(ended(record, AttemptOutcome::Nothing, now)),
        _ => Some(record.clone()),
    }
}

/// Hash of parts that cannot run into each other: each is preceded by its length.
fn hash<'a>(domain: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    for part in std::iter::once(domain.as_bytes()).chain(parts) {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    hex::encode(sha.finalize())
}

/// What makes two requests the same: hashes of the head and, where the contract says so, of the
/// body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFingerprint {
    /// Method, authority, path and query, content type and encoding.
    pub head: String,
    /// The same and the body; none while it is unread, and never with `fingerprint = "head"`.
    pub body: Option<String>,
}

impl RequestFingerprint {
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

#[cfg(test)]
mod tests;
