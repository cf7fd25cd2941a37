//! The ledger's rules, without the ledger: whose key it is, when two requests are the same, what a
//! record says about a repeat, and which record follows which. The tables are in the project's
//! ARCHITECTURE page; every line of them is a line of [`judge`] or of a transition here.
//!
//! The promise for contract `edge`: for one key, the app sees the mutation at most once from the
//! edge. It stands on two things only: a record is `forwarded` on disk before the first byte is
//! sent, and no state that may follow `forwarded` lets the same key be sent again, unless the app or an
//! operator has said that it was not carried out.
//!
//! Deliberately absent: any way back from `unknown` by time. Retention ends a record, nothing else.

use http::header::{self, HeaderMap};
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::contract::{Action, Fingerprint, Source};
use crate::id::{Environment, OperationId};
use crate::store::record::ledger::{AttemptState, Attempted, Evidence, Subject, key};

use super::facts::Facts;

pub use super::print::Print;

/// Largest body that is read whole where the route's contract has no `max_body`.
pub const DEFAULT_WHOLE_BODY: u64 = 1024 * 1024;

/// 64 hex digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Hash of parts that cannot run into each other: each is preceded by its length.
pub(super) fn hash<'a>(domain: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    for part in std::iter::once(domain.as_bytes()).chain(parts) {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    hex(&sha.finalize())
}

/// The hash under which an operator finds a key, from any client and on any route.
pub fn key_hash(key: &str) -> String {
    hash("key", [key.as_bytes()])[..32].to_owned()
}

/// What a request asks the ledger for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it is about.
    pub subject: Subject,
    /// Whose.
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
    pub print: Print,
    /// How long its record is kept, in milliseconds.
    pub retention_ms: u64,
    /// The request.
    pub request: String,
}

/// Why a request has no claim although its contract asks for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPrincipal {
    /// What the contract names, for people: `the cookie vango_session`.
    pub wanted: String,
}

impl Claim {
    /// Of a keyed action. Lookup is by route, principal and key; previews and production share
    /// nothing, since the environment is part of the record's place.
    ///
    /// # Errors
    /// [`NoPrincipal`] when the request lacks what the contract names.
    pub fn action(
        environment: &Environment,
        route: &str,
        action: &Action,
        facts: &Facts,
        key: &str,
        headers: &HeaderMap,
    ) -> Result<Self, NoPrincipal> {
        let principal = match &action.principal {
            Some(source) => principal(headers, source)
                .ok_or_else(|| NoPrincipal { wanted: describe(source) })?,
            // The contract's parser asks for one with `edge`.
            None => return Err(NoPrincipal { wanted: "a principal".into() }),
        };
        let place = hash("action", [route.as_bytes(), &principal, key.as_bytes()]);
        Ok(Self {
            subject: Subject::Action,
            environment: environment.clone(),
            route: route.to_owned(),
            at: key::subject(environment, &place),
            key_hash: key_hash(key),
            event: None,
            print: Print::of_head(facts, headers),
            retention_ms: u64::try_from(action.retention.as_millis()).unwrap_or(u64::MAX),
            request: facts.id.to_string(),
        })
    }
}

impl Claim {
    /// Of a provider's event: the same event on the same route is one, whatever its body says the
    /// second time.
    pub fn event(
        environment: &Environment,
        route: &str,
        provider: &str,
        event: &str,
        remember: std::time::Duration,
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
            print: Print { head: String::new(), body: None },
            retention_ms: u64::try_from(remember.as_millis()).unwrap_or(u64::MAX),
            request,
        }
    }
}

impl Claim {
    /// The record's name among its environment's, 64 hex digits: what the app is told, and by which
    /// it says what became of it.
    pub fn record(&self) -> &str {
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
            let all = headers.get_all(header::COOKIE).iter();
            let mut values = all
                .flat_map(|v| v.as_bytes().split(|b| *b == b';'))
                .filter_map(|p| p.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            let first = values.next()?;
            // A cookie set for two paths comes twice; with one value it still names one principal.
            (!first.is_empty() && values.all(|v| v == first)).then(|| first.to_vec())
        }
    }
}

/// What a record says about a request that has the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
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
    /// The stored response.
    Replay,
    /// 409: carried out, and the response is not stored.
    NotReplayable,
}

/// Judges a repeat of a keyed **action**. `alive` says whether the record's holder is at work now.
/// `whole` says that the contract's fingerprint takes the body in.
pub fn judge(record: &Attempted, print: &Print, whole: bool, alive: bool) -> Verdict {
    if record.head != print.head {
        return Verdict::Reused;
    }
    match (&record.body, &print.body) {
        (Some(first), Some(this)) if first != this => return Verdict::Reused,
        (Some(_), None) if whole => return Verdict::NeedsBody,
        _ => {}
    }
    match record.state {
        AttemptState::Reserved | AttemptState::Forwarded if alive => Verdict::InProgress,
        // Its holder is gone, and nothing was sent.
        AttemptState::Reserved | AttemptState::Released => Verdict::Free,
        AttemptState::Forwarded | AttemptState::Unknown => Verdict::Unknown,
        AttemptState::Completed => Verdict::Replay,
        // An action is never refused: any answer of the app's completes it.
        AttemptState::CompletedUnreplayable | AttemptState::Refused => Verdict::NotReplayable,
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

/// A record that stands in the way, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The record.
    pub record: Attempted,
    /// Its holder is at work now.
    pub alive: bool,
}

/// Who holds an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The node.
    pub node: String,
    /// Its process.
    pub run: String,
}

/// What came of an attempt that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// The app answered with `status`, and the response is stored.
    Whole {
        /// The app's.
        status: u16,
    },
    /// The app answered with `status`, and the response is too large or streamed.
    NotStored {
        /// The app's.
        status: u16,
    },
    /// No whole answer came.
    Nothing,
}

/// The record after a claim took its place and nothing was sent. `before` is one that is free.
pub fn reserved(
    claim: &Claim,
    holder: &Holder,
    before: Option<&Attempted>,
    now: Wall,
) -> Attempted {
    Attempted {
        subject: claim.subject,
        environment: claim.environment.clone(),
        route: claim.route.clone(),
        key_hash: claim.key_hash.clone(),
        event: claim.event.clone(),
        head: claim.print.head.clone(),
        body: claim.print.body.clone(),
        attempt: before.map_or(0, |b| b.attempt),
        state: AttemptState::Reserved,
        claim: claim.request.clone(),
        node: holder.node.clone(),
        run: holder.run.clone(),
        operation: None,
        created: before.map_or(now, |b| b.created),
        changed: now,
        expires: before.map_or(Wall(now.0.saturating_add(claim.retention_ms)), |b| b.expires),
        status: before.and_then(|b| b.status),
        resolved: None,
    }
}

/// The record that stands on disk before the first byte is sent.
pub fn forwarded(
    reserved: &Attempted,
    print: &Print,
    operation: Option<OperationId>,
    now: Wall,
) -> Attempted {
    Attempted {
        body: print.body.clone().or_else(|| reserved.body.clone()),
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
pub fn ended(forwarded: &Attempted, came: Came, now: Wall) -> Attempted {
    let accepted = |status: u16| (200..300).contains(&status);
    let (state, status) = match (forwarded.subject, came) {
        (Subject::Event, Came::Whole { status } | Came::NotStored { status }) => {
            let state =
                if accepted(status) { AttemptState::Completed } else { AttemptState::Refused };
            (state, Some(status))
        }
        (Subject::Action, Came::Whole { status }) => (AttemptState::Completed, Some(status)),
        (Subject::Action, Came::NotStored { status }) => {
            (AttemptState::CompletedUnreplayable, Some(status))
        }
        (_, Came::Nothing) => (AttemptState::Unknown, None),
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
pub fn evidence_of(resolved: &Attempted) -> Evidence {
    let (decision, forwarded) = match resolved.state {
        AttemptState::Released => ("resolved-not-carried-out", "forwarded, not carried out"),
        _ => ("resolved-carried-out", "forwarded, carried out"),
    };
    Evidence {
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
        AttemptState::Forwarded => Some(ended(record, Came::Nothing, now)),
        _ => Some(record.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(body: Option<&str>) -> Claim {
        Claim {
            subject: Subject::Action,
            environment: "studylab".parse().unwrap(),
            route: "/actions/*".into(),
            at: "studylab/production/aa".into(),
            key_hash: key_hash("k1"),
            event: None,
            print: Print { head: "h".into(), body: body.map(str::to_owned) },
            retention_ms: 1000,
            request: "r1".into(),
        }
    }
    fn holder() -> Holder {
        Holder { node: "n".into(), run: "1".into() }
    }
    fn at(state: AttemptState) -> Attempted {
        let claim = claim(Some("b"));
        let r = reserved(&claim, &holder(), None, Wall(5));
        Attempted { state, ..forwarded(&r, &claim.print, None, Wall(6)) }
    }

    #[test]
    fn every_state_has_its_answer() {
        use AttemptState as S;
        let same = Print { head: "h".into(), body: Some("b".into()) };
        for (state, alive, verdict) in [
            (S::Reserved, true, Verdict::InProgress),
            (S::Reserved, false, Verdict::Free),
            (S::Forwarded, true, Verdict::InProgress),
            (S::Forwarded, false, Verdict::Unknown),
            (S::Unknown, false, Verdict::Unknown),
            (S::Unknown, true, Verdict::Unknown),
            (S::Completed, false, Verdict::Replay),
            (S::CompletedUnreplayable, false, Verdict::NotReplayable),
            (S::Released, false, Verdict::Free),
        ] {
            assert_eq!(judge(&at(state), &same, true, alive), verdict, "{state:?} {alive}");
            let head = Print { head: "other".into(), body: None };
            assert_eq!(judge(&at(state), &head, true, alive), Verdict::Reused);
            let body = Print { head: "h".into(), body: Some("other".into()) };
            assert_eq!(judge(&at(state), &body, true, alive), Verdict::Reused);
            let unread = Print { head: "h".into(), body: None };
            assert_eq!(judge(&at(state), &unread, true, alive), Verdict::NeedsBody);
            assert_ne!(judge(&at(state), &unread, false, alive), Verdict::NeedsBody);
        }
    }

    #[test]
    fn nothing_that_was_sent_is_free_again_by_itself() {
        // Every way from forwarded, but for a resolution: never free.
        let sent = at(AttemptState::Forwarded);
        let print = Print { head: "h".into(), body: Some("b".into()) };
        for came in [Came::Whole { status: 500 }, Came::NotStored { status: 200 }, Came::Nothing] {
            let next = ended(&sent, came, Wall(9));
            assert_ne!(judge(&next, &print, true, false), Verdict::Free, "{came:?}");
            assert_ne!(judge(&next, &print, true, true), Verdict::Free, "{came:?}");
        }
        let next = recovered(&sent, Wall(9)).unwrap();
        assert_eq!(judge(&next, &print, true, false), Verdict::Unknown);
        // A reservation that was never sent leaves nothing.
        let r = reserved(&claim(None), &holder(), None, Wall(5));
        assert_eq!((recovered(&r, Wall(9)), released(&r, Wall(9))), (None, None));
    }

    #[test]
    fn only_the_attempt_in_question_is_resolved_and_only_from_unknown() {
        let unknown = at(AttemptState::Unknown);
        let yes = resolved(&unknown, 1, Resolution::CarriedOut, "operator", Wall(9)).unwrap();
        assert_eq!(yes.state, AttemptState::CompletedUnreplayable);
        let no = resolved(&unknown, 1, Resolution::NotCarriedOut, "operator", Wall(9)).unwrap();
        let (kept, why) = (evidence_of(&yes), evidence_of(&no).why);
        assert_eq!((kept.decision.as_str(), kept.attempt), ("resolved-carried-out", 1));
        assert_eq!(evidence_of(&no).decision, "resolved-not-carried-out");
        assert_eq!((why.as_str(), kept.at), ("by operator", Wall(9)));
        let again = reserved(&claim(Some("b")), &holder(), Some(&no), Wall(10));
        let again = forwarded(&again, &claim(Some("b")).print, None, Wall(11));
        assert_eq!((again.attempt, again.created, again.expires), (2, Wall(5), Wall(1005)));
        assert_eq!(resolved(&unknown, 2, Resolution::CarriedOut, "x", Wall(9)), None);
        for state in [AttemptState::Forwarded, AttemptState::Completed, AttemptState::Released] {
            assert_eq!(resolved(&at(state), 1, Resolution::NotCarriedOut, "x", Wall(9)), None);
        }
    }

    #[test]
    fn an_event_is_done_only_after_the_apps_2xx() {
        let mut sent = at(AttemptState::Forwarded);
        sent.subject = Subject::Event;
        let after = |came| judge_event(&ended(&sent, came, Wall(9)), false);
        assert_eq!(after(Came::Whole { status: 204 }), Delivered::Accepted);
        assert_eq!(after(Came::NotStored { status: 200 }), Delivered::Accepted);
        for status in [199, 300, 302, 404, 409, 410, 500, 503] {
            assert_eq!(after(Came::Whole { status }), Delivered::Free, "{status}");
        }
        assert_eq!(after(Came::Nothing), Delivered::Free);
        assert_eq!(judge_event(&sent, true), Delivered::InProgress);
    }

    #[test]
    fn a_principal_is_one_value_or_none() {
        let of = |cookies: &[&str], name: &str| {
            let mut headers = HeaderMap::new();
            for c in cookies {
                headers.append(header::COOKIE, c.parse().unwrap());
            }
            principal(&headers, &Source::Cookie(name.into()))
        };
        assert_eq!(of(&["a=1; sid=x y"], "sid"), Some(b"x y".to_vec()));
        assert_eq!(of(&["sid=1; sid=1"], "sid"), Some(b"1".to_vec()));
        assert_eq!(of(&["sid=1", "sid=2"], "sid"), None);
        assert_eq!(of(&["sid="], "sid"), None);
        assert_eq!(of(&["xsid=1; sid2=1"], "sid"), None);
        let mut headers = HeaderMap::new();
        headers.append("x-user", "u".parse().unwrap());
        let source = Source::Header("x-user".into());
        assert_eq!(principal(&headers, &source), Some(b"u".to_vec()));
        headers.append("x-user", "u".parse().unwrap());
        assert_eq!(principal(&headers, &source), None);
    }

    #[test]
    fn hashes_keep_their_parts_apart() {
        let a = hash("x", [&b"ab"[..], b"c"]);
        assert_ne!(a, hash("x", [&b"a"[..], b"bc"]));
        assert_ne!(a, hash("y", [&b"ab"[..], b"c"]));
        assert_eq!(key_hash("k").len(), 32);
    }
}
