//! What the store holds: every record's versioned form, its key, and nothing else.
//!
//! A stored value is JSON `{"kind":…,"v":…,"body":…}`. A kind or version this build does not know is
//! an error, never a guess: an older edge must not rewrite what a newer one wrote.
//! Keys are the ones a fleet uses in etcd, so that the rules over them need no second form.
//! Wall times here are for people and for ages; no request's deadline is computed from them.

pub mod key;
pub mod ledger;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod allocation;
mod certificate;
mod cron;
mod owner;
mod promotion;
mod variables;
mod wake;

pub use allocation::{Allocation, AllocationState, Process, SessionRoute, Starts};
pub use certificate::{
    AcmeAccount, CertificateOrder, ChallengeKind, HostCertificate, HostChallenge, NoSuchExit,
    OrderEvent, OrderPace, OrderState, Private,
};
pub use cron::{CronEnd, CronRun, CronState};
pub use owner::{Deployment, Retired, RouteOwner, Used};
pub use promotion::{Evidence, NamedCheck, OwnerSeen, Promotion, PromotionKind, PromotionState};
pub use variables::{Turn, Values, ValuesOf, Variables};
pub use wake::{Executor, Failure, Operation, WakePhases, WakeState};

/// Why a stored value could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON of the expected form: damage, or another program's key.
    #[error("{kind}: cannot be read: {source}")]
    Malformed {
        /// The kind that was expected.
        kind: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Written by a build that knows more than this one.
    #[error(
        "expected {kind} version {known}, found {found_kind} version {found}: run a newer vango-edge"
    )]
    Unknown {
        /// The kind that was expected.
        kind: &'static str,
        /// The highest version this build reads.
        known: u32,
        found_kind: String,
        found: u32,
    },
}

/// A record with a kind and a version.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the kind in the stored form.
    const KIND: &'static str;
    /// Version that this build writes, and the highest it reads.
    const VERSION: u32 = 1;

    fn encode(&self) -> Bytes {
        #[derive(Serialize)]
        struct Out<'a, T> {
            kind: &'static str,
            v: u32,
            body: &'a T,
        }
        let out = Out { kind: Self::KIND, v: Self::VERSION, body: self };
        let text = serde_json::to_vec(&out);
        assert!(text.is_ok(), "records have string keys and finite numbers only");
        Bytes::from(text.unwrap_or_default())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`RecordError`] when the value is damaged, of another kind, or newer than this build.
    fn decode(value: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct In {
            kind: String,
            v: u32,
            body: serde_json::Value,
        }
        let malformed = |source| RecordError::Malformed { kind: Self::KIND, source };
        let head: In = serde_json::from_slice(value).map_err(malformed)?;
        if head.kind != Self::KIND || head.v > Self::VERSION {
            return Err(RecordError::Unknown {
                kind: Self::KIND,
                known: Self::VERSION,
                found_kind: head.kind,
                found: head.v,
            });
        }
        serde_json::from_value(head.body).map_err(malformed)
    }
}

#[cfg(test)]
mod tests {
    use crate::id::{Digest, Epoch};

    use super::*;

    fn owner() -> RouteOwner {
        RouteOwner {
            host: "studylab.localhost".parse().unwrap(),
            path: "/".into(),
            environment: "studylab".parse().unwrap(),
            deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            digest: Digest::from_bytes([1; 32]),
            epoch: Epoch(3),
        }
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(RouteOwner::decode(&owner().encode()).unwrap(), owner());
    }

    #[test]
    fn version_1_is_read_still() {
        let body = r#"{"kind":"operation","v":1,"body":{"id":"op-aaaaaaaaaaaaaaaa",
            "environment":"studylab","epoch":1,"digest":"sha256:"#
            .to_owned()
            + &"01".repeat(32)
            + r#"","deployment":"dp-aaaaaaaaaaaaaaaa","state":"hot","attempt":1,"requested":1,
            "changed":1,"phases":{"reserve_us":1,"artifact_us":2,"spawn_us":3,"ready_us":4},
            "allocation":null,"failure":null,"failures":0,"backoff_ms":0,"typical_ms":5}}"#;
        let read = Operation::decode(body.as_bytes()).unwrap();
        assert_eq!((read.phases.ready_us, read.phases.thaw_us), (Some(4), None));
    }

    #[test]
    fn another_kind_or_a_newer_version_is_refused() {
        assert!(matches!(Starts::decode(&owner().encode()), Err(RecordError::Unknown { .. })));
        let newer =
            String::from_utf8(owner().encode().to_vec()).unwrap().replace("\"v\":1", "\"v\":2");
        let err = RouteOwner::decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(err.contains("newer vango-edge"), "{err}");
        assert!(matches!(RouteOwner::decode(b"{}"), Err(RecordError::Malformed { .. })));
    }
}
