//! What an unsafe request is asked for, how it follows its record, and what is kept of it: which key it
//! needs, when its body is read, when the ledger is asked, what it is answered when a record is in the
//! way, and what an operator finds later. Part of [`Journey`]; what is particular to a provider's delivery
//! is in [`super::delivery`].
//!
//! Hot: the body is read, then the record is written as forwarded, then the request is sent. Cold:
//! the key is reserved with the body unread on the wire, the app is woken, and from there on it is
//! a hot request. A repeat is answered from the record without waking anything.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::contract::{Action, KeySource, Posture, Route, RouteClass};
use crate::lifecycle::answer::Answer;
use crate::lifecycle::facts::kept_method;
use crate::lifecycle::fields::IdempotencyKey;
use crate::lifecycle::forms;
use crate::lifecycle::idempotency::{
    self, Claim, Delivered, ExistingRecord, NoPrincipal, Repeat, Unkeyed, judge, judge_event,
    key_hash,
};
use crate::lifecycle::reply::{Forwarded, PROBLEM_BASE, Problem, Reply};
use crate::lifecycle::trace::{EventVerdict, KeyVerdict, Outcome, QueueBound, StepKind};
use crate::lifecycle::webhook::{self, Refusal, Signed};
use crate::record::ledger::{AuditEvidence, StoredResponse, Subject};
use crate::snapshot::EnvView;

use super::keyed::{Form, asks_for_key};
use super::{
    Ask, BodyRefusal, Command, Examined, Go, Journey, LedgerFailed, Placement, Recorded, State,
};

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
    pub(super) boundary: Option<String>,
    standing: Standing,
    /// The attempt that the ledger wrote.
    attempt: u32,
}

/// What a record is about.
#[derive(Debug)]
pub(super) enum About {
    /// A keyed action, or one that lacks its principal.
    Action(Option<NoPrincipal>),
    /// One whose key is in a field of its form.
    Form(Box<Form>),
    /// A provider's delivery.
    Delivery(Delivery),
}

/// What was read of a delivery's head.
#[derive(Debug)]
pub(super) enum Delivery {
    /// This edge has no secret to check it with.
    NoSecret,
    /// Its signature was refused.
    Refused(Refusal),
    /// To be checked once the body is there.
    Signed(Box<Signed>),
    /// Its signature is right. `duplicate` is one that was accepted before, and is passed on all the same.
    Verified { event: String, duplicate: bool },
    /// Its signature is right, and it is no event: the app answers it each time.
    Handshake,
}

#[derive(Debug)]
pub(super) enum Standing {
    /// The ledger was not asked, or said that the key is free.
    Unasked,
    /// The key is this request's.
    Reserved,
    /// A record is in the way.
    Found(Box<ExistingRecord>),
}

impl Journey {
    /// Reads from the head what the contract needs of it. `secret` says whether this edge has the
    /// secret that [`Journey::secret_wanted`] names. Without this call a request whose contract needs
    /// a principal or a signature is refused.
    pub fn read_head(&mut self, headers: &HeaderMap, secret: bool, now: Wall) {
        if self.posture != Posture::Safe {
            self.read_under = Some((Arc::clone(&self.view), self.route));
        }
        let view = Arc::clone(&self.view);
        let Some(route) = view.contract.routes.get(self.route) else { return };
        let (claim, about, whole) = match &route.class {
            RouteClass::Webhook(webhook) if self.posture == Posture::Webhook => {
                let delivery = Delivery::read(webhook, &self.facts.method, headers, secret, now);
                self.limit_hold(webhook::hold_limit(webhook));
                (None, About::Delivery(delivery), true)
            }
            _ => {
                let Some(action) = asks_for_key(route, self.posture) else { return };
                self.find_key(action, headers);
                match self.read_keyed(route, action, headers) {
                    Some(read) => read,
                    None => return,
                }
            }
        };
        self.on_record = Some(OnRecord {
            boundary: forms::boundary(headers),
            claim,
            about,
            whole,
            body_read: !whole,
            standing: Standing::Unasked,
            attempt: 0,
        });
    }

    /// What the ledger has to do with a keyed action; nothing where only the app keeps the record of its key,
    /// and the head has it.
    fn read_keyed(
        &self,
        route: &Route,
        action: &Action,
        headers: &HeaderMap,
    ) -> Option<(Option<Claim>, About, bool)> {
        let recorded = self.posture == Posture::EdgeIdempotent;
        let unkeyed = recorded.then(|| {
            let (environment, path) = (&self.view.environment, route.path.to_string());
            Unkeyed::of(environment, &path, action, &self.facts, headers)
        });
        let (unkeyed, missing) = match unkeyed {
            Some(Err(missing)) => (None, Some(missing)),
            Some(Ok(unkeyed)) => (Some(unkeyed), None),
            None => (None, None),
        };
        let whole = idempotency::reads_body(action);
        match (&action.key, &self.facts.key) {
            _ if missing.is_some() => Some((None, About::Action(missing), whole)),
            (KeySource::Field(field), _) => {
                Some((None, About::Form(Box::new(self.form(field, headers, unkeyed))), true))
            }
            (_, IdempotencyKey::Present(key)) => {
                Some((Some(unkeyed?.keyed(key)), About::Action(None), whole))
            }
            _ => None,
        }
    }

    /// What the contract asks of an unsafe request, cold and hot alike.
    pub(super) fn check_contract(&mut self, now: Mono) -> Option<Reply> {
        if self.posture == Posture::Safe {
            return None;
        }
        self.show_posture(now);
        match self.posture {
            Posture::Webhook => self.check_signature(now),
            _ => self.check_key(now),
        }
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
        let elsewhere =
            |view: &EnvView, at: usize| match view.contract.routes.get(at).map(|r| &r.class) {
                Some(RouteClass::Action(action)) => action.key != KeySource::Usual,
                _ => false,
            };
        let reads = matches!(posture, Posture::EdgeIdempotent | Posture::Webhook)
            || elsewhere(view, route)
            || self.read_under.as_ref().is_some_and(|(then, at)| elsewhere(then, *at));
        self.read_under.as_ref().is_some_and(|(then, at)| {
            (reads || self.on_record.is_some())
                && !Arc::ptr_eq(then, view)
                && (view.environment != then.environment || rules(view, route) != rules(then, *at))
        })
    }

    /// What to ask the ledger for; `None` for a request of which it keeps no record, and for a
    /// delivery that is not verified.
    pub fn claim(&self) -> Option<&Claim> {
        self.on_record.as_ref()?.claim.as_ref()
    }

    /// The attempt that the ledger wrote before this request was sent; 0 before that.
    pub fn ledger_attempt(&self) -> u32 {
        self.on_record.as_ref().map_or(0, |r| r.attempt)
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
        self.on_record.as_ref().is_some_and(|r| r.whole)
    }

    /// Whether the edge has read the whole body already.
    pub fn body_is_read(&self) -> bool {
        self.on_record.as_ref().is_some_and(|r| r.whole && r.body_read)
    }

    /// Whether it is sent apart from the client's connection: its body was read already, or what comes of it
    /// is recorded whether its client waits or not.
    pub fn is_sent_apart(&self) -> bool {
        self.claim().is_some() || self.reads_whole_body()
    }

    /// 400 where the contract names a principal and the request has none.
    pub(super) fn no_principal(&self) -> Option<Reply> {
        let wanted = match &self.on_record {
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
    ) -> Result<Option<Placement>, Command> {
        let Some(record) = &self.on_record else { return Ok(granted) };
        if matches!(record.about, About::Delivery(_) | About::Form(_)) && !record.body_read {
            // Nothing is decided about a delivery before its signature was checked, and about a form before
            // its key is known.
            return Err(self.read_body(granted, now));
        }
        if let (Standing::Found(seen), Some(claim)) = (&record.standing, &record.claim) {
            match claim.subject {
                Subject::Action => {
                    match judge(&seen.record, &claim.fingerprint, record.whole, seen.alive) {
                        Repeat::NeedsBody => return Err(self.read_body(granted, now)),
                        Repeat::Free => {}
                        other => return Err(self.answer_repeat(other, now)),
                    }
                }
                Subject::Event => match judge_event(&seen.record, seen.alive) {
                    Delivered::Free => {}
                    other => return self.follow_event(other, granted, now),
                },
            }
        }
        let hot = granted.is_some() || !self.view.ready.is_empty();
        if hot && self.on_record.as_ref().is_some_and(|r| !r.body_read) {
            return Err(self.read_body(granted, now));
        }
        Ok(granted)
    }

    fn read_body(&mut self, granted: Option<Placement>, now: Mono) -> Command {
        self.state = State::ReadingBody { granted, since: now };
        Command::Do(Ask::ReadBody { limit: self.whole_body_limit() })
    }

    /// Whether the key is to be taken before the app is woken.
    pub(super) fn wants_reservation(&self) -> bool {
        !self.passes_unrecorded()
            && self.claim().is_some()
            && self.on_record.as_ref().is_some_and(|r| !matches!(r.standing, Standing::Reserved))
    }

    fn answer_repeat(&mut self, repeat: Repeat, now: Mono) -> Command {
        let page = |p: Problem| format!("See {PROBLEM_BASE}{}.", p.name());
        let (step, reply) = match repeat {
            Repeat::Reused => {
                let detail = "This Idempotency-Key was first sent with another request: another \
                              method, target, content type or body. Nothing was sent to the app. \
                              Use a new key for a new action.";
                (KeyVerdict::Reused, Reply::refused(Problem::IdempotencyKeyReused, 422, detail))
            }
            Repeat::InProgress => {
                let detail = "The first request with this Idempotency-Key is still at work. This \
                              copy of it was not sent to the app; ask again for its result.";
                (KeyVerdict::InProgress, in_progress(detail))
            }
            Repeat::Unknown => {
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
            Repeat::NotReplayable => (KeyVerdict::NotReplayable, self.not_replayable()),
            Repeat::Replay => {
                self.trace.push(now, StepKind::CheckKey(KeyVerdict::Completed));
                self.state = State::Replaying;
                return Command::Do(Ask::ReadStored);
            }
            Repeat::Free | Repeat::NeedsBody => {
                debug_assert!(false, "these two ask for something else than an answer");
                return self.ledger_failed(now);
            }
        };
        self.trace.push(now, StepKind::CheckKey(step));
        self.answer_with(reply, now)
    }

    fn not_replayable(&self) -> Reply {
        let status = match self.on_record.as_ref().map(|r| &r.standing) {
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

    /// What the body says, with the secrets that [`Self::secret_wanted`] names; to be reported with
    /// [`Event::Body`](super::Event::Body).
    pub fn examine(&self, body: &[u8], secrets: &[&[u8]]) -> Examined {
        match &self.on_record {
            Some(OnRecord { about: About::Action(_), claim, boundary, .. }) => {
                Examined::Action(claim.clone().map(|c| c.with_body(body, boundary.as_deref())))
            }
            Some(OnRecord { about: About::Form(form), .. }) => self.examine_form(form, body),
            Some(OnRecord { about: About::Delivery(_), .. }) => self.verify(body, secrets),
            None => Examined::Nothing,
        }
    }

    pub(super) fn body_read(
        &mut self,
        examined: Examined,
        granted: Option<Placement>,
        now: Mono,
    ) -> Command {
        if let Some(record) = &mut self.on_record {
            record.body_read = true;
        }
        match examined {
            Examined::Action(claim) => {
                if let Some(record) = &mut self.on_record {
                    record.claim = claim;
                }
            }
            Examined::Form(key, claim) => {
                self.facts.key = key;
                if let Some(record) = &mut self.on_record {
                    record.claim = claim;
                }
                if let Some(reply) = self.check_key(now) {
                    return self.tell(reply, now);
                }
            }
            Examined::Event(event) => self.verified(event, false, now),
            Examined::Handshake(event) => self.verified(event, true, now),
            Examined::Wrong(why) => {
                let reply = self.not_believed(why, now);
                return self.tell(reply, now);
            }
            Examined::Nothing => {}
        }
        self.look(false, granted)
    }

    /// Only explained: its body is not there, and what it would be checked against is not asked.
    pub(super) fn body_unread(&mut self, granted: Option<Placement>, now: Mono) -> Command {
        if self.is_delivery() {
            self.trace.push(now, StepKind::VerifySignature("would be verified"));
        } else if let Some(OnRecord { about: About::Form(_), .. }) = &self.on_record {
            self.trace.push(now, StepKind::CheckKey(KeyVerdict::InForm));
        }
        if let Some(record) = &mut self.on_record {
            record.body_read = true;
        }
        self.look(false, granted)
    }

    /// The key is this request's, or would be where it is only explained.
    pub(super) fn has_key(&mut self) -> Command {
        if let Some(record) = &mut self.on_record {
            record.standing = Standing::Reserved;
        }
        self.look(false, None)
    }

    pub(super) fn body_refused(&mut self, why: BodyRefusal, now: Mono) -> Command {
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
        self.tell(reply, now)
    }

    /// The ledger was asked for the key.
    pub(super) fn reserved(
        &mut self,
        found: Result<Option<Box<ExistingRecord>>, LedgerFailed>,
        now: Mono,
    ) -> Command {
        match found {
            Ok(Some(seen)) => self.found(seen),
            Ok(None) => {
                let step = if self.is_delivery() {
                    StepKind::CheckEvent(EventVerdict::Reserved)
                } else {
                    StepKind::CheckKey(KeyVerdict::Reserved)
                };
                self.trace.push(now, step);
                self.has_key()
            }
            Err(LedgerFailed) => self.ledger_failed(now),
        }
    }

    /// A record is in the way.
    fn found(&mut self, seen: Box<ExistingRecord>) -> Command {
        if let Some(record) = &mut self.on_record {
            record.standing = Standing::Found(seen);
        }
        self.look(false, None)
    }

    /// The ledger was to write that the request is about to be sent to `placed`.
    pub(super) fn recorded(
        &mut self,
        recorded: Result<Recorded, LedgerFailed>,
        placed: Placement,
        now: Mono,
    ) -> Command {
        let attempt = match recorded {
            Ok(Recorded::Attempt(attempt)) => attempt,
            Ok(Recorded::InTheWay(seen)) => {
                // Nothing was sent.
                self.placements_tried = self.placements_tried.saturating_sub(1);
                return self.found(seen);
            }
            Err(LedgerFailed) => return self.ledger_failed(now),
        };
        if let Some(record) = &mut self.on_record {
            record.attempt = attempt;
        }
        let step = if self.is_delivery() {
            StepKind::CheckEvent(EventVerdict::Forwarded(attempt))
        } else {
            StepKind::CheckKey(KeyVerdict::Forwarded(attempt))
        };
        self.trace.push(now, step);
        self.state = State::Sent(Some(placed));
        Command::Go(Go::Send)
    }

    fn ledger_failed(&mut self, now: Mono) -> Command {
        self.trace.push(now, StepKind::CheckKey(KeyVerdict::LedgerUnavailable));
        let detail = "The record that keeps this from being carried out twice cannot be had just \
                      now; nothing was sent to the app.";
        let reply = Reply::refused(Problem::LedgerUnavailable, 503, detail)
            .retry_after(Duration::from_secs(1));
        self.answer_with(reply, now)
    }

    /// The stored response was read.
    pub(super) fn stored(
        &mut self,
        stored: Result<Option<StoredResponse>, LedgerFailed>,
        now: Mono,
    ) -> Command {
        match stored {
            Ok(Some(stored)) => {
                self.trace.outcome = Outcome::Replayed;
                self.state = State::Told(Box::new(Answer::Stored(stored)));
                Command::Go(Go::Tell)
            }
            // It is not there after all.
            Ok(None) => {
                let reply = self.not_replayable();
                self.tell(reply, now)
            }
            Err(LedgerFailed) => self.ledger_failed(now),
        }
    }

    /// The evidence of this request; none for a safe one. `status` is what was sent or is about to be.
    pub fn evidence_of(&self, status: Option<u16>, now: Mono, wall: Wall) -> Option<AuditEvidence> {
        if self.posture() == Posture::Safe {
            return None;
        }
        let (route, reply) = (self.route()?, self.reply());
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let key = match (self.event_id(), &self.facts.key) {
            (Some(event), _) => Some(event),
            (None, IdempotencyKey::Present(key)) => Some(key.as_str()),
            _ => None,
        };
        let mut why = match (self.reason, reply) {
            (Some(what), _) => what.to_owned(),
            (None, Some(reply)) => reply.problem.title().to_owned(),
            (None, None) if self.trace.outcome == Outcome::CutOff => "the answer broke off".into(),
            (None, None) => String::new(),
        };
        if let Some(loss) = self.loss(status) {
            why.push_str("; ");
            why.push_str(loss);
        }
        Some(AuditEvidence {
            at: wall,
            request: self.facts.id.to_string(),
            environment: self.view.environment.clone(),
            route: route.path.to_string(),
            class: route.class.name().to_owned(),
            method: kept_method(&self.facts.method).to_owned(),
            decision: self.trace.outcome.name().to_owned(),
            forwarded: self.forwarded_text(reply, status).to_owned(),
            why,
            status,
            key_hash: key.map(key_hash),
            event: self.event_id().map(str::to_owned),
            attempt: self.ledger_attempt(),
            operation: self.operation().cloned(),
            held_us: us(self.held_for()),
            total_us: us(now.since(self.facts.received)),
        })
    }

    /// Which of three is true of this request.
    fn forwarded_text(&self, reply: Option<&Reply>, status: Option<u16>) -> &'static str {
        match (reply, self.trace.outcome) {
            (Some(reply), _) => reply.forwarded.text(),
            (None, Outcome::Replayed | Outcome::Duplicate) => "answered by the app",
            (None, _) if status.is_some() => "answered by the app",
            // The client left. What was placed may have been sent.
            (None, _) if self.placements_tried() > 0 => "forwarded, outcome unknown",
            (None, _) => "not forwarded",
        }
    }
}

pub(super) fn in_progress(detail: &str) -> Reply {
    Reply::refused(Problem::RequestInProgress, 409, detail).retry_after(IN_PROGRESS_PAUSE)
}
