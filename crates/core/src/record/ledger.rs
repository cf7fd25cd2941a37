//! Records of the ledger: which keyed action or provider event was given to an app, and what came
//! of it. Keys are here only as hashes; a principal not even as one of its own.
//!
//! | key | value |
//! |---|---|
//! | `i/<environment>/<hash>` | [`Attempted`] |
//! | `ib/<environment>/<hash>` | the stored response: [`StoredHead`] as one JSON line, then the body |
//! | `io/<environment>/<hash>` | empty: the record is open, which a restart has to look at |
//! | `ie/<expiry>/<environment>/<hash>` | empty: when the record goes |
//! | `au/<time>/<number>` | [`AuditEvidence`] |
//! | `ar/<time>/<number>` | [`AuditEvidence`] of a request of which nothing was forwarded |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{Environment, OperationId};

use super::{Record, RecordError};

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An action under its sender's key.
    Action,
    /// A provider's event.
    Event,
}

/// Where an attempt is. Exits of each state:
/// `reserved → forwarded | (gone)`, `forwarded → completed | completed_unreplayable | unknown |
/// refused`, `unknown → completed | completed_unreplayable | released`,
/// `released | refused → reserved | forwarded` under the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Durable, and nothing was sent. A crash, a failed wake or a client that leaves releases it.
    Reserved,
    /// Durable before the first byte was sent to the app.
    Forwarded,
    /// The app answered, and its whole response is stored (for an event: it answered 2xx).
    Completed,
    /// The app answered, and its response is not stored: too large, streamed, or not known here.
    CompletedUnreplayable,
    /// Sent, and no whole answer came: the app died, was silent, or the edge stopped.
    Unknown,
    /// An operator or the app has said that it was not carried out. It may be sent again.
    Released,
    /// An event that the app answered with something else than 2xx. The provider's next delivery is
    /// sent.
    Refused,
}

impl AttemptState {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        self.into()
    }
    /// A request with it is at work, or was when the edge died.
    pub fn open(self) -> bool {
        matches!(self, Self::Reserved | Self::Forwarded)
    }
}

/// One key of one principal on one route, or one event of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempted {
    /// What it is about.
    pub subject: Subject,
    /// The environment that was asked.
    pub environment: Environment,
    /// The route's path, as the contract has it.
    pub route: String,
    /// Hash of the key alone, by which an operator finds it; see `lifecycle::idempotency`.
    pub key_hash: String,
    /// The provider's event id. Not a secret.
    pub event: Option<String>,
    /// Hash of method, target and content headers.
    pub head: String,
    /// Hash of the same and the body, once it was read.
    pub body: Option<String>,
    /// Times it was given to the app, the one under way included. Only grows.
    pub attempt: u32,
    /// Where the last attempt is.
    pub state: AttemptState,
    /// The request that holds it, so that a retried transaction knows its own win.
    pub claim: String,
    /// The node that holds it.
    pub node: String,
    /// That node's process; another one means that the holder is gone.
    pub run: String,
    /// The wake it waited for.
    pub operation: Option<OperationId>,
    /// When it was first seen.
    pub created: Wall,
    /// When it last changed.
    pub changed: Wall,
    pub expires: Wall,
    /// The app's status.
    pub status: Option<u16>,
    /// Who said what became of it, if not the app's own answer: `operator` or `app` and its
    /// allocation, and a note.
    pub resolved: Option<String>,
}
impl Record for Attempted {
    const KIND: &'static str = "attempt";
}

/// The head of a stored response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHead {
    pub status: u16,
    /// Name and value of each header, without Set-Cookie and hop-by-hop ones. A value is bytes; here
    /// each is the character of the same number (ISO 8859-1), so that JSON can have it.
    pub headers: Vec<(String, String)>,
    /// The same of what came behind the body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<(String, String)>,
}
impl Record for StoredHead {
    const KIND: &'static str = "response";
}

impl StoredHead {
    /// A header's value as it is kept.
    pub fn text(value: &[u8]) -> String {
        value.iter().map(|b| char::from(*b)).collect()
    }
    /// A header's value as it was.
    pub fn bytes(text: &str) -> Vec<u8> {
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
    }
}

/// A whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// Its head.
    pub head: StoredHead,
    pub body: Bytes,
}

impl StoredResponse {
    /// The stored form: the head as one line of JSON, then the body as it is.
    pub fn encode(&self) -> Bytes {
        let head = self.head.encode();
        let mut out = Vec::with_capacity(head.len() + 1 + self.body.len());
        out.extend_from_slice(&head);
        out.push(b'\n');
        out.extend_from_slice(&self.body);
        out.into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`RecordError`], as for any record.
    pub fn decode(value: &Bytes) -> Result<Self, RecordError> {
        // JSON has no line break of its own in this form.
        let end = value.iter().position(|b| *b == b'\n').unwrap_or(value.len());
        let head = StoredHead::decode(&value[..end])?;
        Ok(Self { head, body: value.slice((end + 1).min(value.len())..) })
    }
}

/// What was decided about one unsafe request, and what came of it: what an operator finds later.
/// Keys are here only as hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvidence {
    /// When the request ended, or was about to be answered.
    pub at: Wall,
    pub request: String,
    /// The environment that was asked.
    pub environment: Environment,
    /// The route's path, as the contract has it.
    pub route: String,
    /// The route's class.
    pub class: String,
    /// Its method; `-` for a resolution.
    pub method: String,
    /// How it ended: an outcome's name; for a resolution `resolved-carried-out` or
    /// `resolved-not-carried-out`.
    pub decision: String,
    /// `not forwarded`, `forwarded, outcome unknown` or `answered by the app`; for a resolution
    /// `forwarded, carried out` or `forwarded, not carried out`.
    pub forwarded: String,
    /// Why, in words; may be empty.
    pub why: String,
    /// The status that was sent, if any.
    pub status: Option<u16>,
    /// Hash of its key, or of its event's id.
    pub key_hash: Option<String>,
    /// The provider's event id.
    pub event: Option<String>,
    /// The attempt of its key or event; 0 where none was sent.
    pub attempt: u32,
    /// The wake it waited for.
    pub operation: Option<OperationId>,
    /// Microseconds it was held.
    pub held_us: u64,
    /// Microseconds from its head to here.
    pub total_us: u64,
}
impl Record for AuditEvidence {
    const KIND: &'static str = "evidence";
}

impl AuditEvidence {
    /// Whether it is of a request of which nothing was forwarded. A client can make any number of these.
    pub fn is_refusal(&self) -> bool {
        self.forwarded == "not forwarded" && self.class != "environment"
    }

    /// What was decided about an environment as a whole, with no request behind it.
    pub fn of_environment(environment: &Environment, at: Wall, decision: &str, why: &str) -> Self {
        let none = || "-".to_owned();
        Self {
            at,
            request: none(),
            environment: environment.clone(),
            route: none(),
            class: "environment".into(),
            method: none(),
            decision: decision.into(),
            forwarded: "not forwarded".into(),
            why: format!("{environment}: {why}"),
            status: None,
            key_hash: None,
            event: None,
            attempt: 0,
            operation: None,
            held_us: 0,
            total_us: 0,
        }
    }
}

/// Keys.
pub mod key {
    use super::Environment;
    use crate::clock::Wall;

    /// Prefix of all attempts.
    pub const ATTEMPTS: &str = "i/";
    /// Prefix of all stored responses.
    pub const RESPONSES: &str = "ib/";
    /// Prefix of all open attempts.
    pub const OPEN: &str = "io/";
    /// Prefix of all expiries, earliest first.
    pub const EXPIRIES: &str = "ie/";

    /// Prefix of evidence, oldest first.
    pub const EVIDENCE: &str = "au/";
    /// Prefix of evidence of what was not forwarded.
    pub const REFUSALS: &str = "ar/";

    /// Evidence from `at` with one of these prefixes; `number` keeps what came in one millisecond apart,
    /// in order.
    pub fn evidence(prefix: &str, at: Wall, number: u64) -> String {
        format!("{}{number:016x}", evidence_from(prefix, at))
    }
    /// Evidence from `at` or later has keys that sort at or after this.
    pub fn evidence_from(prefix: &str, at: Wall) -> String {
        format!("{prefix}{:016x}/", at.0)
    }

    /// What the keys of one record have in common: `<environment>/<hash>`.
    pub fn subject(environment: &Environment, hash: &str) -> String {
        format!("{environment}/{hash}")
    }
    /// The attempt of a subject.
    pub fn attempt(subject: &str) -> String {
        format!("{ATTEMPTS}{subject}")
    }
    /// The stored response of a subject.
    pub fn response(subject: &str) -> String {
        format!("{RESPONSES}{subject}")
    }
    /// The open mark of a subject.
    pub fn open(subject: &str) -> String {
        format!("{OPEN}{subject}")
    }
    /// The expiry of a subject.
    pub fn expiry(at: Wall, subject: &str) -> String {
        format!("{}{subject}", expiry_from(at))
    }
    /// Subjects that expire at `at` or later have expiries that sort at or after this.
    pub fn expiry_from(at: Wall) -> String {
        format!("{EXPIRIES}{:016x}/", at.0)
    }
    /// The subject of an expiry's key.
    pub fn expiring(key: &str) -> Option<&str> {
        key.strip_prefix(EXPIRIES)?.split_once('/').map(|(_, subject)| subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_response_reads_back_whatever_its_body_is() {
        for body in [&b""[..], b"\n", b"a\nb\0\xff", b"{\"kind\":1}"] {
            let stored = StoredResponse {
                head: StoredHead {
                    status: 201,
                    headers: vec![("x-odd".into(), StoredHead::text(b"\xe9\""))],
                    trailers: vec![("grpc-status".into(), "0".into())],
                },
                body: Bytes::copy_from_slice(body),
            };
            let read = StoredResponse::decode(&stored.encode()).unwrap();
            assert_eq!(read, stored);
            assert_eq!(StoredHead::bytes(&read.head.headers[0].1), b"\xe9\"");
        }
        assert!(StoredResponse::decode(&Bytes::from_static(b"x")).is_err());
        // One from before trailers were kept.
        let before = StoredHead { status: 200, headers: vec![], trailers: vec![] }.encode();
        assert!(!String::from_utf8_lossy(&before).contains("trailers"));
        assert!(StoredHead::decode(&before).unwrap().trailers.is_empty());
    }

    #[test]
    fn an_expiry_names_its_subject_and_sorts_by_time() {
        let a = key::expiry(Wall(255), "studylab/production/ab");
        assert_eq!(key::expiring(&a), Some("studylab/production/ab"));
        assert!(a < key::expiry_from(Wall(256)));
    }
}
