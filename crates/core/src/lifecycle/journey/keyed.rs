//! Which key a request has, and what it is answered without one. Where the contract has it in a form's field,
//! the body is read before anything is decided, as that of a webhook's delivery is. Part of [`Journey`].

use http::header::HeaderMap;

use crate::clock::Mono;
use crate::contract::{Action, KeySource, Posture, Route, RouteClass};
use crate::lifecycle::fields::{self, IdempotencyKey};
use crate::lifecycle::forms::{self, FormType};
use crate::lifecycle::idempotency::Unkeyed;
use crate::lifecycle::reply::{Problem, Reply};
use crate::lifecycle::trace::{KeyVerdict, StepKind};

use super::{Examined, Journey};

/// What is known of a form whose key is in a field, before its body is read.
#[derive(Debug)]
pub(super) struct Form {
    field: String,
    /// How it is written; none where it is no form, and has no fields.
    kind: Option<FormType>,
    /// What the ledger will be asked for; none where the app keeps the record of its keys, and where the
    /// request lacks its principal.
    unkeyed: Option<Unkeyed>,
}

/// A request's key, and where `source` may have it. `Idempotency-Key` counts everywhere; keys in two places
/// are the same one, or there is none.
fn merged(standard: &IdempotencyKey, others: impl IntoIterator<Item = String>) -> IdempotencyKey {
    let mut key = standard.clone();
    for other in others {
        key = match (key, fields::key_of_text(other)) {
            (IdempotencyKey::Absent, other) => other,
            (key, other) if key == other => key,
            (IdempotencyKey::Present(_), IdempotencyKey::Present(_)) => IdempotencyKey::Several,
            (IdempotencyKey::Several, _) => IdempotencyKey::Several,
            _ => IdempotencyKey::Invalid,
        };
        // What no other value changes: a body may have as many as it has room for.
        if matches!(key, IdempotencyKey::Several | IdempotencyKey::Invalid) {
            break;
        }
    }
    key
}

/// The action whose rules an unsafe request goes by, if they ask for a key.
pub(super) fn asks_for_key(route: &Route, posture: Posture) -> Option<&Action> {
    match &route.class {
        RouteClass::Action(action)
            if matches!(posture, Posture::AppIdempotent | Posture::EdgeIdempotent) =>
        {
            Some(action)
        }
        _ => None,
    }
}

impl Journey {
    /// Takes the key from where the contract has it, besides the usual header.
    pub(super) fn find_key(&mut self, action: &Action, headers: &HeaderMap) {
        self.facts.key = match &action.key {
            KeySource::Usual | KeySource::Field(_) => return,
            KeySource::Header(name) => {
                let sent = headers.get_all(name).iter();
                let sent = sent.map(|v| String::from_utf8_lossy(v.as_bytes()).trim().to_owned());
                merged(&self.facts.key, sent)
            }
            KeySource::Query(name) => {
                let query = self.facts.query.as_deref().unwrap_or_default();
                let values = forms::values(&FormType::Urlencoded, query.as_bytes(), name);
                merged(&self.facts.key, values)
            }
        };
    }

    /// Of a request whose key is in a field of its form.
    pub(super) fn form(&self, field: &str, headers: &HeaderMap, unkeyed: Option<Unkeyed>) -> Form {
        Form { field: field.to_owned(), kind: FormType::of(headers), unkeyed }
    }

    /// Its key is in its body, which is not read.
    fn awaits_key(&self) -> bool {
        let action = self.route().and_then(|r| asks_for_key(r, self.posture));
        action.is_some_and(|a| matches!(a.key, KeySource::Field(_)))
            && self.reads_whole_body()
            && !self.body_is_read()
    }

    /// Asks for the key that the contract asks for, cold and hot alike.
    pub(super) fn check_key(&mut self, now: Mono) -> Option<Reply> {
        let (verdict, reply) = match (self.posture, &self.facts.key) {
            (Posture::Unsafe | Posture::Safe | Posture::Webhook, _) => (KeyVerdict::NotAsked, None),
            (Posture::EdgeIdempotent, IdempotencyKey::Present(_)) => match self.no_principal() {
                Some(reply) => (KeyVerdict::NoPrincipal, Some(reply)),
                None => (KeyVerdict::Present, None),
            },
            // Whose key it is, its head says: a body that would be read for nothing is not.
            (Posture::EdgeIdempotent, _) if self.awaits_key() => match self.no_principal() {
                Some(reply) => (KeyVerdict::NoPrincipal, Some(reply)),
                None => return None,
            },
            (Posture::AppIdempotent, _) if self.awaits_key() => return None,
            (Posture::AppIdempotent, IdempotencyKey::Present(_)) => (KeyVerdict::Present, None),
            (_, IdempotencyKey::Absent) => (KeyVerdict::Missing, Some(self.missing_key())),
            (_, IdempotencyKey::Invalid) => (KeyVerdict::Invalid, Some(self.invalid_key())),
            (_, IdempotencyKey::Several) => {
                let detail = "The request has two keys that differ: send one, or the same in both \
                              places.";
                let reply = Reply::refused(Problem::IdempotencyKeyInvalid, 400, detail);
                (KeyVerdict::Several, Some(reply))
            }
        };
        self.trace.push(now, StepKind::CheckKey(verdict));
        reply
    }

    /// Where the contract has the key, for people.
    fn place_of_key(&self) -> String {
        let action = self.route().and_then(|r| asks_for_key(r, self.posture));
        match action.map(|a| &a.key) {
            None | Some(KeySource::Usual) => "an Idempotency-Key header".into(),
            Some(KeySource::Header(name)) => format!("a header {name} (or Idempotency-Key)"),
            Some(KeySource::Query(name)) => {
                format!("a query parameter {name} (or an Idempotency-Key header)")
            }
            Some(KeySource::Field(name)) => {
                format!("a form field {name} (or an Idempotency-Key header)")
            }
        }
    }

    fn missing_key(&self) -> Reply {
        let detail = format!(
            "Send {}: a string of 1 to 255 characters that is new for each action and the same for \
             each retry of it.",
            self.place_of_key()
        );
        Reply::refused(Problem::IdempotencyKeyMissing, 400, detail)
    }

    fn invalid_key(&self) -> Reply {
        let place = self.place_of_key();
        let detail = format!("The key must be one string of 1 to 255 characters, in {place}.");
        Reply::refused(Problem::IdempotencyKeyInvalid, 400, detail)
    }

    /// What a form's body says of its key.
    pub(super) fn examine_form(&self, form: &Form, body: &[u8]) -> Examined {
        let kinds = form.kind.iter();
        let values = kinds.flat_map(|kind| forms::values(kind, body, &form.field));
        let key = merged(&self.facts.key, values);
        let claim = match (&key, &form.unkeyed) {
            (IdempotencyKey::Present(key), Some(unkeyed)) => {
                let boundary = self.on_record.as_ref().and_then(|r| r.boundary.as_deref());
                Some(unkeyed.keyed(key).with_body(body, boundary))
            }
            _ => None,
        };
        Examined::Form(key, claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_two_places_is_one_or_none() {
        use IdempotencyKey::{Absent, Invalid, Present, Several};
        let key = |text: &str| Present(text.into());
        for (standard, others, found) in [
            (Absent, &[][..], Absent),
            (Absent, &["a"], key("a")),
            (key("a"), &[], key("a")),
            (key("a"), &["a", "a"], key("a")),
            (key("a"), &["b"], Several),
            (Absent, &["a", "b"], Several),
            (Absent, &["a", "b", "a"], Several),
            (key("a"), &[""], Invalid),
            (Invalid, &["a"], Invalid),
            (Absent, &["a\u{0}"], Invalid),
        ] {
            let texts = others.iter().map(|s| (*s).to_owned());
            assert_eq!(merged(&standard, texts), found, "{standard:?} {others:?}");
        }
        // None is looked at behind what decides.
        for (first, found) in [("b", Several), ("", Invalid)] {
            let more = std::iter::from_fn(|| panic!("{first:?} decides"));
            let texts = std::iter::once(first.to_owned()).chain(more);
            assert_eq!(merged(&key("a"), texts), found);
        }
    }
}
