//! How a request follows its record: when its body is read, when the ledger is asked, and what it
//! is answered when a record is in the way. The other half of [`Journey`]; what is particular to a
//! provider's delivery is in [`super::delivery`].
//!
//! Hot: the body is read, then the record is written as forwarded, then the request is sent. Cold:
//! the key is reserved with the body unread on the wire, the app is woken, and from there on it is
//! a hot request. A repeat is answered from the record without waking anything.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::contract::RouteClass;
use crate::snapshot::EnvView;
use crate::store::record::ledger::Subject;

use super::admit::{Journey, Next};
use super::classify::Posture;
use super::delivery::Delivery;
use super::facts::IdempotencyKey;
use super::idempotency::{self, Claim, Delivered, NoPrincipal, Seen, Verdict, judge, judge_event};
use super::place::Placement;
use super::print;
use super::reply::{Forwarded, PROBLEM_BASE, Problem, Reply};
use super::trace::{EventVerdict, KeyVerdict, Outcome, QueueBound, StepKind};

/// Pause asked of a client whose first request is still at work.
const IN_PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// What the ledger has to do with a request.
#[derive(Debug)]
pub(super) struct OnRecord {
    /// None while a delivery is not verified.
    pub(super) claim: Option<Claim>,
    pub(super) about: About,
    /// The body is read before anything is sent.
    whole: bool,
    body_read: bool,
    /// Between the parts of its body, where it has some.
    boundary: Option<String>,
    standing: Standing,
    /// The attempt that the ledger wrote.
    attempt: u32,
}

/// What a record is about.
#[derive(Debug)]
pub(super) enum About {
    /// A keyed action, or one that lacks its principal.
    Action(Option<NoPrincipal>),
    /// A provider's delivery.
    Delivery(Delivery),
}

#[derive(Debug)]
enum Standing {
    /// The ledger was not asked, or said that the key is free.
    Unasked,
    /// The key is this request's.
    Reserved,
    /// A record is in the way.
    Found(Box<Seen>),
}

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRefusal {
    /// It is longer than the route takes.
    TooLong,
    /// It did not come in time.
    TooSlow,
    /// Its chunks cannot be read.
    Malformed,
    /// The node keeps as many bytes of bodies as it may.
    NoRoom,
}

impl Journey {
    /// Reads from the head what the contract needs of it. `secret` says whether this edge has the
    /// secret that [`Journey::secret_wanted`] names. Without this call a request whose contract needs
    /// a principal or a signature is refused.
    pub fn read_head(&mut self, headers: &HeaderMap, secret: bool, now: Wall) {
        if self.posture != Posture::Safe {
            self.read_under = Some((Arc::clone(&self.view), self.route));
        }
        let Some(route) = self.view.contract.routes.get(self.route) else { return };
        let (claim, about, whole) = match (&route.class, self.posture, &self.facts.key) {
            (RouteClass::Action(action), Posture::EdgeIdempotent, IdempotencyKey::Present(key)) => {
                let environment = &self.view.environment;
                let path = route.path.to_string();
                let claim = Claim::action(environment, &path, action, &self.facts, key, headers);
                let (claim, missing) = match claim {
                    Ok(claim) => (Some(claim), None),
                    Err(missing) => (None, Some(missing)),
                };
                (claim, About::Action(missing), idempotency::reads_body(action))
            }
            (RouteClass::Webhook(webhook), Posture::Webhook, _) => {
                let delivery = Delivery::read(webhook, &self.facts.method, headers, secret, now);
                self.limit_hold(super::webhook::hold_limit(webhook));
                (None, About::Delivery(delivery), true)
            }
            _ => return,
        };
        self.record = Some(OnRecord {
            boundary: claim.as_ref().and_then(|_| print::boundary(headers)),
            claim,
            about,
            whole,
            body_read: !whole,
            standing: Standing::Unasked,
            attempt: 0,
        });
    }

    /// Whether the owner's contract now asks something of the head that was read, or not read, under
    /// another one: whose key it is, which provider signed it. The head is gone, and what was read of it
    /// stands for nothing under these rules.
    pub(super) fn reads_under_other_rules(
        &self,
        view: &Arc<EnvView>,
        route: usize,
        posture: Posture,
    ) -> bool {
        let rules = |view: &EnvView, at: usize| {
            view.contract.routes.get(at).map(|r| (r.path.to_string(), r.class.clone()))
        };
        let reads = matches!(posture, Posture::EdgeIdempotent | Posture::Webhook);
        self.read_under.as_ref().is_some_and(|(then, at)| {
            (reads || self.record.is_some())
                && !Arc::ptr_eq(then, view)
                && (view.environment != then.environment || rules(view, route) != rules(then, *at))
        })
    }

    /// What to ask the ledger for; `None` for a request of which it keeps no record, and for a
    /// delivery that is not verified.
    pub fn claim(&self) -> Option<&Claim> {
        self.record.as_ref()?.claim.as_ref()
    }

    /// The attempt that the ledger wrote before this request was sent; 0 before that.
    pub fn attempt(&self) -> u32 {
        self.record.as_ref().map_or(0, |r| r.attempt)
    }

    /// What the app's own record of this request's key is about, where the contract leaves it to the
    /// app: environment, route and a hash of the key.
    pub fn app_subject(&self) -> Option<String> {
        let (Posture::AppIdempotent, IdempotencyKey::Present(key)) =
            (self.posture, &self.facts.key)
        else {
            return None;
        };
        let hash = idempotency::key_hash(key);
        Some(format!("{}/{}/{hash}", self.view.environment, self.route))
    }

    /// Whether the edge reads the whole body before it sends anything.
    pub fn reads_whole_body(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.whole)
    }

    /// Whether the edge has read the whole body already.
    pub fn body_is_read(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.whole && r.body_read)
    }

    /// 400 where the contract names a principal and the request has none.
    pub(super) fn no_principal(&self) -> Option<Reply> {
        let wanted = match &self.record {
            Some(OnRecord { about: About::Action(Some(missing)), .. }) => &missing.wanted,
            Some(_) => return None,
            None => "a principal",
        };
        let detail = format!(
            "Keys of this route belong to the person that {wanted} names, once and not empty; this \
             request has none, and two people's equal keys must stay apart."
        );
        Some(Reply::refused(Problem::PrincipalMissing, 400, detail))
    }

    /// What the record asks to be done before a placement; `Ok` when it may be placed.
    pub(super) fn follow_record(
        &mut self,
        granted: Option<Placement>,
        now: Mono,
    ) -> Result<Option<Placement>, Next> {
        let Some(record) = self.record.as_ref().filter(|_| !self.explaining) else {
            return Ok(granted);
        };
        let limit = self.whole_body_limit();
        if matches!(record.about, About::Delivery(_)) && !record.body_read {
            // Nothing is decided about a delivery before its signature was checked.
            return Err(Next::ReadBody { limit, granted });
        }
        if let (Standing::Found(seen), Some(claim)) = (&record.standing, &record.claim) {
            match claim.subject {
                Subject::Action => {
                    match judge(&seen.record, &claim.print, record.whole, seen.alive) {
                        Verdict::NeedsBody => return Err(Next::ReadBody { limit, granted }),
                        Verdict::Free => {}
                        other => return Err(self.answer_verdict(other, now)),
                    }
                }
                Subject::Event => match judge_event(&seen.record, seen.alive) {
                    Delivered::Free => {}
                    other => return self.follow_event(other, granted, now),
                },
            }
        }
        let hot = granted.is_some() || !self.view.ready.is_empty();
        if hot && !record.body_read {
            return Err(Next::ReadBody { limit, granted });
        }
        Ok(granted)
    }

    /// Whether the key is to be taken before the app is woken.
    pub(super) fn wants_reservation(&self) -> bool {
        !self.explaining
            && !self.passes_unrecorded()
            && self.record.as_ref().is_some_and(|r| !matches!(r.standing, Standing::Reserved))
    }

    fn answer_verdict(&mut self, verdict: Verdict, now: Mono) -> Next {
        let page = |p: Problem| format!("See {PROBLEM_BASE}{}.", p.name());
        let (step, reply) = match verdict {
            Verdict::Reused => {
                let detail = "This Idempotency-Key was first sent with another request: another \
                              method, target, content type or body. Nothing was sent to the app. \
                              Use a new key for a new action.";
                (KeyVerdict::Reused, Reply::refused(Problem::IdempotencyKeyReused, 422, detail))
            }
            Verdict::InProgress => {
                let detail = "The first request with this Idempotency-Key is still at work. This \
                              copy of it was not sent to the app; ask again for its result.";
                (KeyVerdict::InProgress, in_progress(detail))
            }
            Verdict::Unknown => {
                let detail = format!(
                    "The first request with this Idempotency-Key was sent to the app, and no whole \
                     answer came. It may have been carried out, and the edge does not send it \
                     again. {}",
                    page(Problem::OutcomeUnknown)
                );
                let reply = Reply {
                    forwarded: Forwarded::OutcomeUnknown,
                    ..Reply::refused(Problem::OutcomeUnknown, 409, detail)
                };
                (KeyVerdict::Unknown, reply)
            }
            Verdict::NotReplayable => (KeyVerdict::NotReplayable, self.not_replayable()),
            Verdict::Replay => {
                self.trace.push(now, StepKind::CheckKey(KeyVerdict::Completed));
                return Next::Replay;
            }
            Verdict::Free | Verdict::NeedsBody => {
                debug_assert!(false, "these two ask for something else than an answer");
                return Next::Reply(self.ledger_failed(now));
            }
        };
        self.trace.push(now, StepKind::CheckKey(step));
        self.answer(now, reply)
    }

    fn not_replayable(&self) -> Reply {
        let status = match self.record.as_ref().map(|r| &r.standing) {
            Some(Standing::Found(seen)) => seen.record.status,
            _ => None,
        };
        let with = status.map_or_else(String::new, |s| format!(" with status {s}"));
        let detail = format!(
            "The first request with this Idempotency-Key was carried out and answered{with}; its \
             response was too large or streamed, and is not kept. It is not sent again."
        );
        Reply {
            forwarded: Forwarded::Answered,
            ..Reply::refused(Problem::ResponseNotReplayable, 409, detail)
        }
    }

    /// Reports the body that [`Next::ReadBody`] asked for, and the secrets that
    /// [`Journey::secret_wanted`] names. `Some` is the answer to give.
    pub fn body_read(&mut self, body: &[u8], secrets: &[&[u8]], now: Mono) -> Option<Reply> {
        let record = self.record.as_mut()?;
        record.body_read = true;
        match &record.about {
            About::Action(_) => {
                if let Some(claim) = &mut record.claim {
                    claim.print = claim.print.with_body(body, record.boundary.as_deref());
                }
                None
            }
            About::Delivery(_) => self.verify(body, secrets, now),
        }
    }

    /// Reports that the body could not be read; the answer to give.
    pub fn body_refused(&mut self, why: BodyRefusal, now: Mono) -> Reply {
        let reply = match why {
            BodyRefusal::TooLong => Reply::content_too_large(self.whole_body_limit()),
            BodyRefusal::TooSlow => {
                let detail = "The body did not come in time; nothing was sent to the app.";
                Reply::refused(Problem::RequestTimeout, 408, detail)
            }
            BodyRefusal::Malformed => Reply::body_malformed(),
            BodyRefusal::NoRoom => {
                let bound = QueueBound::Bodies.name();
                let detail = format!("The edge keeps as many bytes of bodies as it may ({bound}).");
                Reply::refused(Problem::HoldQueueFull, 503, detail)
                    .retry_after(Duration::from_secs(1))
            }
        };
        self.trace.answered(now, &reply);
        reply
    }

    /// Reports what came of [`Next::Reserve`]: the record in the way, or none when the key is this
    /// request's now.
    pub fn reserved(&mut self, seen: Option<Box<Seen>>, now: Mono) {
        let Some(record) = &mut self.record else { return };
        let event = matches!(record.about, About::Delivery(_));
        record.standing = match seen {
            Some(seen) => Standing::Found(seen),
            None => {
                self.trace.push(
                    now,
                    match event {
                        true => StepKind::CheckEvent(EventVerdict::Reserved),
                        false => StepKind::CheckKey(KeyVerdict::Reserved),
                    },
                );
                Standing::Reserved
            }
        };
    }

    /// Reports that a record was in the way when the request was about to be sent: nothing was, and
    /// its place is given back.
    pub fn found(&mut self, seen: Box<Seen>, now: Mono) {
        self.attempts = self.attempts.saturating_sub(1);
        self.reserved(Some(seen), now);
    }

    /// Reports that the ledger has written this attempt as forwarded: it is about to be sent.
    pub fn forwarding(&mut self, attempt: u32, now: Mono) {
        let Some(record) = &mut self.record else { return };
        record.attempt = attempt;
        match record.about {
            About::Action(_) => {
                self.trace.push(now, StepKind::CheckKey(KeyVerdict::Forwarded(attempt)));
            }
            About::Delivery(_) => {
                self.trace.push(now, StepKind::CheckEvent(EventVerdict::Forwarded(attempt)));
                self.evidence("delivered to the app", now);
            }
        }
    }

    /// Reports that the ledger gave no answer; the answer to give instead.
    pub fn ledger_failed(&mut self, now: Mono) -> Reply {
        self.trace.push(now, StepKind::CheckKey(KeyVerdict::LedgerUnavailable));
        let detail = "The record that keeps this from being carried out twice cannot be had just \
                      now; nothing was sent to the app.";
        let reply = Reply::refused(Problem::LedgerUnavailable, 503, detail)
            .retry_after(Duration::from_secs(1))
            .operation(self.operation().cloned());
        self.trace.answered(now, &reply);
        reply
    }

    /// Reports that the stored response was sent.
    pub fn replayed(&mut self) {
        self.trace.outcome = Outcome::Replayed;
    }

    /// Reports that the stored response is not there after all; the answer to give.
    pub fn replay_missing(&mut self, now: Mono) -> Reply {
        let reply = self.not_replayable();
        self.trace.answered(now, &reply);
        reply
    }
}

pub(super) fn in_progress(detail: &str) -> Reply {
    Reply::refused(Problem::RequestInProgress, 409, detail).retry_after(IN_PROGRESS_PAUSE)
}
