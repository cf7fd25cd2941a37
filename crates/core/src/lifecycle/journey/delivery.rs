//! A provider's delivery on its way: refused before anything is read, verified before anything
//! wakes, held within the provider's own patience, and never acknowledged for an app that has not
//! accepted it. Part of [`Journey`], as `on_record` is.

use std::time::Duration;

use http::Method;
use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::contract::{Duplicate, Posture, RouteClass, Webhook, WhenCold};
use crate::id::Environment;
use crate::lifecycle::answer::Answer;
use crate::lifecycle::idempotency::{Claim, Delivered};
use crate::lifecycle::reply::{Forwarded, Problem, Reply};
use crate::lifecycle::trace::{EventVerdict, Outcome, StepKind};
use crate::lifecycle::webhook::{self, Refusal, Signed};

use super::on_record::{About, Delivery, in_progress};
use super::{Command, Examined, Go, Journey, Placement, State};

/// Pause asked of a provider whose delivery was put off: the app is being woken.
const DEFERRED_PAUSE: Duration = Duration::from_secs(5);

impl Delivery {
    pub(super) fn read(
        webhook: &Webhook,
        method: &Method,
        headers: &HeaderMap,
        secret: bool,
        now: Wall,
    ) -> Self {
        match Signed::parse(webhook, headers, now) {
            _ if !secret => Self::NoSecret,
            _ if !webhook::delivers_by(webhook, method) => Self::Refused(Refusal::Method),
            Ok(signed) => Self::Signed(Box::new(signed)),
            Err(why) => Self::Refused(why),
        }
    }
}

/// A name under which deliveries are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMetric {
    /// Not believed.
    Refused(Refusal),
    /// A provider that never redelivers was not given a 2xx.
    Lost,
}

impl Journey {
    /// The contract of a delivery; `None` for a safe request on a webhook's route, which is none.
    pub(super) fn webhook(&self) -> Option<&Webhook> {
        if self.posture != Posture::Webhook {
            return None;
        }
        match &self.route()?.class {
            RouteClass::Webhook(webhook) => Some(webhook),
            _ => None,
        }
    }

    fn delivery(&self) -> Option<&Delivery> {
        match &self.on_record.as_ref()?.about {
            About::Delivery(delivery) => Some(delivery),
            About::Action(_) | About::Form(_) => None,
        }
    }

    /// Whose secret, and under which name, a delivery is checked with; `None` for anything else.
    pub fn secret_wanted(&self) -> Option<(&Environment, &str)> {
        Some((&self.view.environment, &self.webhook()?.secret))
    }

    /// The event's id, once the delivery is verified.
    pub fn event_id(&self) -> Option<&str> {
        match self.delivery()? {
            Delivery::Verified { event, .. } => Some(event),
            _ => None,
        }
    }

    /// A handshake, or a delivery of an event that was accepted before, which the contract wants passed
    /// on. It is sent without a record of its own: the event's record stays as it is.
    pub fn passes_unrecorded(&self) -> bool {
        matches!(
            self.delivery(),
            Some(Delivery::Verified { duplicate: true, .. } | Delivery::Handshake)
        )
    }

    /// What the app is told of a delivery, in `Vango-Edge-Webhook-Verdict`.
    pub fn webhook_verdict(&self) -> Option<&'static str> {
        match self.delivery()? {
            Delivery::Verified { duplicate: false, .. } => Some("verified"),
            Delivery::Verified { duplicate: true, .. } => Some("duplicate"),
            Delivery::Handshake => Some("handshake"),
            _ => None,
        }
    }

    /// Refuses what cannot be believed by its head alone, before a byte of the body is read.
    pub(super) fn check_signature(&mut self, now: Mono) -> Option<Reply> {
        let refusal = match self.delivery() {
            Some(Delivery::Signed(_) | Delivery::Verified { .. } | Delivery::Handshake) => {
                return None;
            }
            Some(Delivery::Refused(why)) => *why,
            Some(Delivery::NoSecret) | None => {
                self.trace.push(now, StepKind::VerifySignature("no secret loaded"));
                let detail = "This edge has no secret to verify this provider's signatures with; \
                              nothing was sent to the app.";
                let reply = Reply::refused(Problem::VerifierUnavailable, 503, detail);
                return Some(reply.retry_after(Duration::from_secs(60)));
            }
        };
        Some(self.not_believed(refusal, now))
    }

    pub(super) fn not_believed(&mut self, why: Refusal, now: Mono) -> Reply {
        self.trace.push(now, StepKind::VerifySignature(why.name()));
        let detail = match why {
            Refusal::Missing => {
                "The signature header is not there, or has no signature of a kind \
                                 that is checked."
            }
            Refusal::Repeated => "A signature header is there twice.",
            Refusal::Malformed => "A signature header cannot be read.",
            Refusal::Stale => "The signature's timestamp is too far from this edge's time.",
            Refusal::Wrong => "The signature does not match.",
            Refusal::Method => "This provider does not deliver by this method.",
            Refusal::Unread => "The body was not read to its end.",
        };
        Reply::refused(Problem::WebhookSignatureInvalid, 403, detail)
    }

    /// Checks the signature over the body.
    pub(super) fn verify(&self, body: &[u8], secrets: &[&[u8]]) -> Examined {
        let (Some(webhook), Some(Delivery::Signed(signed))) = (self.webhook(), self.delivery())
        else {
            return Examined::Nothing;
        };
        match signed.verify(webhook, body, secrets) {
            Ok(event) if webhook::is_handshake(webhook, body) => Examined::Handshake(event),
            Ok(event) => Examined::Event(event),
            Err(why) => Examined::Wrong(why),
        }
    }

    /// The signature is right; from here on the delivery has an event, or is a handshake.
    pub(super) fn verified(&mut self, event: String, handshake: bool, now: Mono) {
        let Some((webhook, route)) = self.webhook().zip(self.route()) else { return };
        let claim = Claim::event(
            &self.view.environment,
            &route.path.to_string(),
            webhook.provider.name(),
            &event,
            webhook::provider_rules(webhook).remember,
            self.facts.id.to_string(),
        );
        if let Some(record) = &mut self.on_record {
            record.claim = Some(claim);
            record.about = About::Delivery(match handshake {
                true => Delivery::Handshake,
                false => Delivery::Verified { event, duplicate: false },
            });
        }
        let found = if handshake { "verified, a handshake" } else { "verified" };
        self.trace.push(now, StepKind::VerifySignature(found));
    }

    /// What an event's record asks for.
    pub(super) fn follow_event(
        &mut self,
        seen: Delivered,
        granted: Option<Placement>,
        now: Mono,
    ) -> Result<Option<Placement>, Command> {
        if seen == Delivered::InProgress {
            self.trace.push(now, StepKind::CheckEvent(EventVerdict::InProgress));
            self.evidence("not delivered: another delivery of the event is at work", now);
            let detail = "Another delivery of this event is at work; this one was not sent to the \
                          app. Deliver again.";
            return Err(self.answer_with(in_progress(detail), now));
        }
        if self.passes_unrecorded() {
            return Ok(granted);
        }
        self.trace.push(now, StepKind::CheckEvent(EventVerdict::Accepted));
        match self.webhook().map(|w| w.duplicate) {
            Some(Duplicate::Forward) => {
                if let Some(record) = &mut self.on_record
                    && let About::Delivery(Delivery::Verified { duplicate, .. }) = &mut record.about
                {
                    *duplicate = true;
                }
                Ok(granted)
            }
            _ => {
                self.evidence("duplicate: answered from the record", now);
                self.trace.outcome = Outcome::Duplicate;
                self.state = State::Told(Box::new(Answer::Acknowledge));
                Err(Command::Go(Go::Tell))
            }
        }
    }

    /// Whether a delivery waits for an app that is asleep; else it is put off.
    pub(super) fn delivery_waits(&self) -> bool {
        self.webhook().is_some_and(|w| w.when_cold == WhenCold::Hold)
    }

    /// The answer to a verified delivery whose app is asleep and is not woken for it.
    pub(super) fn blocked_delivery(&mut self, now: Mono) -> Option<Command> {
        if self.webhook()?.when_cold != WhenCold::Block {
            return None;
        }
        let reply = self.deferred("blocked: the app is asleep and is not woken for it", now);
        Some(self.answer_with(reply, now))
    }

    /// 503 for a verified delivery that cannot be given to the app in time.
    pub(super) fn deferred(&mut self, what: &'static str, now: Mono) -> Reply {
        self.evidence(what, now);
        let redelivers = self.webhook().is_none_or(|w| webhook::provider_rules(w).redelivers);
        let detail = match redelivers {
            true => {
                "The delivery is verified and was not sent to the app: there was no safe way to it \
                 in time. Nothing is kept to be sent later: deliver again."
            }
            false => {
                "The delivery is verified and was not sent to the app: there was no safe way to it \
                 in time. Nothing is kept to be sent later; this provider does not deliver again by \
                 itself, so it is lost unless it is redelivered by hand."
            }
        };
        Reply::refused(Problem::WakeDeferred, 503, detail).retry_after(DEFERRED_PAUSE)
    }

    pub(super) fn is_delivery(&self) -> bool {
        self.delivery().is_some()
    }

    /// Whether it is a delivery that the ledger wrote as forwarded.
    pub(super) fn is_recorded_delivery(&self) -> bool {
        self.is_delivery() && self.ledger_attempt() > 0
    }

    /// Notes what an operator will find on record.
    pub(super) fn evidence(&mut self, what: &'static str, now: Mono) {
        self.reason = Some(what);
        let operation = self.operation().cloned();
        self.trace.push(now, StepKind::Evidence { operation, what });
    }

    /// The answer to give instead of one that a provider must never get: a redirect, which some
    /// follow with the event in hand, and 410, which ends the endpoint.
    pub(super) fn withheld(&mut self, status: u16, now: Mono) -> Option<Reply> {
        if !self.is_delivery() || !(status == 410 || (300..400).contains(&status)) {
            return None;
        }
        self.trace.push(now, StepKind::ProcessOnce { status: Some(status) });
        let detail = format!(
            "The app answered {status}, which a provider takes for more than a refusal; it is told \
             502 instead. The event counts as not accepted."
        );
        Some(Reply {
            forwarded: Forwarded::Answered,
            ..Reply::refused(Problem::WebhookRefused, 502, detail)
        })
    }

    /// What is lost with this answer, where the provider never delivers by itself again.
    pub(super) fn loss(&self, status: Option<u16>) -> Option<&'static str> {
        match self.delivery_metric(status)? {
            DeliveryMetric::Lost => Some("lost unless redelivered by hand"),
            DeliveryMetric::Refused(Refusal::Unread)
                if !webhook::provider_rules(self.webhook()?).redelivers =>
            {
                Some("not verified; if the provider sent it, lost unless redelivered by hand")
            }
            DeliveryMetric::Refused(_) => None,
        }
    }

    /// How this delivery is counted besides its outcome, given the status that was sent.
    pub fn delivery_metric(&self, status: Option<u16>) -> Option<DeliveryMetric> {
        let webhook = self.webhook()?;
        match self.delivery()? {
            Delivery::Refused(why) => Some(DeliveryMetric::Refused(*why)),
            // Its body was to be read, and then its signature checked.
            Delivery::Signed(_) => match self.trace.outcome {
                Outcome::Refused(Problem::WebhookSignatureInvalid) => {
                    Some(DeliveryMetric::Refused(Refusal::Wrong))
                }
                Outcome::Refused(
                    Problem::ContentTooLarge | Problem::RequestTimeout | Problem::HoldQueueFull,
                ) => Some(DeliveryMetric::Refused(Refusal::Unread)),
                _ => None,
            },
            Delivery::Verified { .. } => {
                let taken = status.is_some_and(|s| (200..300).contains(&s));
                (!taken && !webhook::provider_rules(webhook).redelivers)
                    .then_some(DeliveryMetric::Lost)
            }
            _ => None,
        }
    }
}
