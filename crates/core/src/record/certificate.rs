//! Certificates that an authority issued by ACME (RFC 8555), the orders for them, and the account they are
//! ordered under.
//!
//! Private keys stand in these records and nowhere else; [`Private`] keeps them out of logs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{Host, OperationId};

use super::Record;

/// Text that only its owner may see: stored as it is, printed as `…`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Private(String);

impl Private {
    pub fn new(text: String) -> Self {
        Self(text)
    }
    /// The text, for what signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private(…)")
    }
}

/// The account at one authority. Its key is on record before it is shown to the authority, so that a process
/// that is killed meanwhile is followed by one that asks for the same account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// The authority's directory.
    pub directory: String,
    /// PKCS#8, as base64url.
    pub key: Private,
    /// The account's URL, once the authority has answered.
    pub id: Option<String>,
    /// The contacts that the authority was told.
    pub contact: Vec<String>,
}
impl Record for AcmeAccount {
    const KIND: &'static str = "acme-account";
}

/// A certificate of one host, with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCertificate {
    pub host: Host,
    /// The directory of the authority that issued it.
    pub directory: String,
    /// The chain in PEM form, the host's own first.
    pub chain: String,
    /// PKCS#8 in PEM form.
    pub key: Private,
    /// From when it is good, and until when, as it says itself.
    pub not_before: Wall,
    pub not_after: Wall,
    /// When it was issued, by this machine's clock.
    pub issued: Wall,
    /// The order that it came of.
    pub order: OperationId,
}
impl Record for HostCertificate {
    const KIND: &'static str = "certificate";
}

/// How a host is proved to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
#[serde(rename_all = "kebab-case")]
pub enum ChallengeKind {
    /// A file on port 80 (RFC 8555 §8.3).
    #[strum(serialize = "http-01")]
    #[serde(rename = "http-01")]
    Http,
    /// A certificate on port 443 (RFC 8737).
    #[strum(serialize = "tls-alpn-01")]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
}

impl ChallengeKind {
    /// As RFC 8555 and RFC 8737 name it.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What the authority is to be shown about a host. Public: it is gone with the lease of the order's executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChallenge {
    pub host: Host,
    pub kind: ChallengeKind,
    pub token: String,
    /// The token with the thumbprint of the account's key (RFC 8555 §8.1).
    pub authorization: String,
}
impl Record for HostChallenge {
    const KIND: &'static str = "acme-challenge";
}

/// Where an order is. Exits of each state: `requested → ordered | failed`,
/// `ordered → validating | finalizing | failed`, `validating → finalizing | failed`,
/// `finalizing → issued | failed`. The last two are terminal. An executor that is lost leaves the state as it
/// is, for the next one to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Recorded; the authority knows nothing of it yet.
    Requested,
    /// The authority has it, and its key is on record.
    Ordered,
    /// The challenge is shown; the authority may look.
    Validating,
    /// The host is proved; the certificate is asked for.
    Finalizing,
    /// Terminal: the certificate is on record.
    Issued,
    /// Terminal: no certificate; the next order waits for its time.
    Failed,
}

impl OrderState {
    /// Not terminal.
    pub fn in_progress(self) -> bool {
        !matches!(self, Self::Issued | Self::Failed)
    }
    /// The word shown to people.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An order of a certificate for one host. Stored under the host's key, so that there is one at a time, and
/// kept when it is over: it says when the next one may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateOrder {
    pub id: OperationId,
    pub host: Host,
    pub directory: String,
    pub challenge: ChallengeKind,
    pub state: OrderState,
    /// How many times it was claimed; 0 before the first.
    pub attempt: u32,
    pub requested: Wall,
    /// When it last changed.
    pub changed: Wall,
    /// Where the authority has it.
    pub url: Option<String>,
    /// The key of the certificate that is being ordered; gone once the order is over.
    pub key: Option<Private>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Orders of this host that failed in a row.
    pub failures: u32,
    /// How long the authority said to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_to_wait: Option<Duration>,
}
impl Record for CertificateOrder {
    const KIND: &'static str = "certificate-order";
}

/// What happens to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderEvent {
    /// An executor took it up.
    Claimed,
    /// The authority has it.
    Placed { url: String, key: Private },
    /// The challenge is shown everywhere.
    Shown,
    /// The authority believes that the host is ours.
    Proved,
    /// The certificate came.
    Issued,
    /// It came to nothing.
    Failed { why: String, told_to_wait: Option<Duration> },
}

/// A state has no exit for an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("order {id} of {host}: no way from {state} by {event}")]
pub struct NoSuchExit {
    id: OperationId,
    host: Host,
    state: &'static str,
    event: &'static str,
}

impl CertificateOrder {
    /// A new one, after `before` was over.
    pub fn new(
        id: OperationId,
        host: Host,
        directory: String,
        challenge: ChallengeKind,
        before: Option<&Self>,
        now: Wall,
    ) -> Self {
        Self {
            id,
            host,
            directory,
            challenge,
            state: OrderState::Requested,
            attempt: 0,
            requested: now,
            changed: now,
            url: None,
            key: None,
            failure: None,
            failures: before.map_or(0, |b| b.failures),
            told_to_wait: None,
        }
    }

    /// The order after `event`.
    ///
    /// # Errors
    /// [`NoSuchExit`]
    pub fn after(&self, event: OrderEvent, now: Wall) -> Result<Self, NoSuchExit> {
        use OrderState::{Failed, Finalizing, Issued, Ordered, Requested, Validating};
        let mut next = Self { changed: now, ..self.clone() };
        let name = match (self.state, event) {
            (state, OrderEvent::Claimed) if state.in_progress() => {
                next.attempt += 1;
                return Ok(next);
            }
            (Requested, OrderEvent::Placed { url, key }) => {
                (next.state, next.url, next.key) = (Ordered, Some(url), Some(key));
                return Ok(next);
            }
            (Ordered, OrderEvent::Shown) => {
                next.state = Validating;
                return Ok(next);
            }
            (Ordered | Validating, OrderEvent::Proved) => {
                next.state = Finalizing;
                return Ok(next);
            }
            (Finalizing, OrderEvent::Issued) => {
                (next.state, next.key, next.failures) = (Issued, None, 0);
                return Ok(next);
            }
            (state, OrderEvent::Failed { why, told_to_wait }) if state.in_progress() => {
                (next.state, next.key) = (Failed, None);
                (next.failure, next.told_to_wait) = (Some(why), told_to_wait);
                next.failures = next.failures.saturating_add(1);
                return Ok(next);
            }
            (_, OrderEvent::Claimed) => "claimed",
            (_, OrderEvent::Placed { .. }) => "placed",
            (_, OrderEvent::Shown) => "shown",
            (_, OrderEvent::Proved) => "proved",
            (_, OrderEvent::Issued) => "issued",
            (_, OrderEvent::Failed { .. }) => "failed",
        };
        let (id, host) = (self.id.clone(), self.host.clone());
        Err(NoSuchExit { id, host, state: self.state.name(), event: name })
    }
}

/// When orders were begun, for all nodes together: what an authority's rate limits count.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrderPace {
    pub begun: Vec<Wall>,
}
impl Record for OrderPace {
    const KIND: &'static str = "order-pace";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> CertificateOrder {
        let id = "op-aaaaaaaaaaaaaaaa".parse().unwrap();
        let (host, directory) = ("a.test".parse().unwrap(), "https://ca.test/dir".to_owned());
        CertificateOrder::new(id, host, directory, ChallengeKind::Http, None, Wall(1))
    }

    fn placed() -> OrderEvent {
        OrderEvent::Placed { url: "https://ca.test/1".into(), key: Private::new("geheim".into()) }
    }

    fn failed() -> OrderEvent {
        OrderEvent::Failed { why: "no".into(), told_to_wait: None }
    }

    #[test]
    fn an_order_goes_its_way_and_leaves_no_key() {
        let mut o = order();
        for event in [OrderEvent::Claimed, placed(), OrderEvent::Shown, OrderEvent::Proved] {
            o = o.after(event, Wall(2)).unwrap();
        }
        assert_eq!((o.state, o.attempt, o.changed), (OrderState::Finalizing, 1, Wall(2)));
        assert!(!format!("{o:?}").contains("geheim"));
        let lost = o.after(failed(), Wall(3)).unwrap();
        assert_eq!((lost.state, lost.failures, &lost.key), (OrderState::Failed, 1, &None));
        let issued = o.after(OrderEvent::Issued, Wall(3)).unwrap();
        assert_eq!((issued.state, issued.failures, &issued.key), (OrderState::Issued, 0, &None));
        for over in [lost, issued] {
            for event in [OrderEvent::Claimed, placed(), OrderEvent::Shown, failed()] {
                over.after(event, Wall(4)).unwrap_err();
            }
        }
    }

    #[test]
    fn failures_in_a_row_are_counted_over_orders() {
        let first = order().after(failed(), Wall(1)).unwrap();
        let again = CertificateOrder::new(
            first.id.clone(),
            first.host.clone(),
            first.directory.clone(),
            first.challenge,
            Some(&first),
            Wall(2),
        );
        assert_eq!(again.after(failed(), Wall(3)).unwrap().failures, 2);
    }
}
