//! The record of what was decided: one list of steps for the console, for `explain`, and for the
//! golden tests. A step keeps the values it was decided on and becomes text only when it is read,
//! so that recording one on the hot path is a move of a few words.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::assets::Asset;
use crate::clock::Mono;
use crate::contract::Posture;
use crate::id::{AllocationId, Digest, Epoch, OperationId, RequestId};
use crate::record::{WakePhases, WakeState};
use crate::snapshot::{AllocationView, EnvView};

use super::affinity::{Affinity, Prior};
use super::asset::plan::Source;
use super::facts::BadRequest;
use super::fields::TraceParent;
use super::reply::{Problem, Reply};
use super::resume::{Original, StoreStep, Verdict};
use super::standing::Standing;

mod text;
mod values;

pub use text::{Actor, StepText};

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum HoldEnd {
    /// A place was given.
    Released,
    /// Something changed that has to be decided on.
    Recheck,
    /// The deadline passed.
    DeadlinePassed,
    /// The client left; nothing is forwarded.
    ClientLeft,
    /// No room to wait.
    QueueFull(QueueBound),
    /// The edge stops.
    ShuttingDown,
}

impl HoldEnd {
    /// For programs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How an upstream failed after the request was sent, in whole or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum UpstreamFailure {
    /// The connection ended before a whole response head.
    Closed,
    /// Nothing came within the response timeout.
    Silent,
}

impl UpstreamFailure {
    /// For programs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Which bound keeps a request from waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueBound {
    /// `wake.max_held` of the contract.
    Environment,
    /// `limits.max_held` of the node.
    Node,
    /// `limits.max_held_bytes` of the node.
    Bytes,
    /// `limits.max_buffered_bytes` of the node.
    Bodies,
    /// Seven eighths of `limits.client.max_connections` of the node.
    Connections,
}

impl QueueBound {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "the environment's wake.max_held",
            Self::Node => "the node's limits.max_held",
            Self::Bytes => "the node's limits.max_held_bytes",
            Self::Bodies => "the node's limits.max_buffered_bytes",
            Self::Connections => "seven eighths of the node's limits.client.max_connections",
        }
    }
}

/// One step, with the values it stands on.
#[derive(Debug, Clone, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum StepKind {
    /// The head has no one reading.
    Unreadable(BadRequest),
    /// This host has no owner, or its contract has no route for the path.
    NoOwner(String),
    /// The owner was read from the snapshot.
    LoadOwner(Arc<EnvView>),
    /// The method and route were read as a posture.
    Classify(Posture, Arc<EnvView>, usize),
    /// The key was checked against the route's contract.
    CheckKey(KeyVerdict),
    /// The webhook's signature policy was checked.
    VerifySignature(&'static str),
    /// The event's record was asked.
    CheckEvent(EventVerdict),
    /// What an operator will find on record about a delivery.
    Evidence {
        /// The wake it waits or waited for.
        operation: Option<OperationId>,
        what: &'static str,
    },
    /// The app was given the delivery.
    ProcessOnce {
        /// Its status; `None` when only explaining.
        status: Option<u16>,
    },
    /// A wake was made, or one that exists was joined.
    Wake {
        /// The operation; `None` when only explaining, or when none could be made.
        operation: Option<OperationId>,
        /// This request made it.
        created: bool,
        /// The request is safe; an unsafe one waits with its body unread, or not at all.
        safe: bool,
    },
    /// The runner started (or would start) the allocation.
    Start {
        view: Arc<EnvView>,
        /// How far it came; `None` when only explaining.
        state: Option<WakeState>,
        /// Its phases so far.
        phases: Box<WakePhases>,
    },
    /// The request waited.
    Hold {
        /// For how long.
        held: Duration,
        /// How it ended; `None` when only explaining.
        end: Option<HoldEnd>,
        /// The operation's state then.
        state: Option<WakeState>,
    },
    /// A live socket's session was looked for.
    FindSession(Box<Found>),
    /// The app's durable session store was asked, or need not be.
    CheckStore(StoreStep),
    /// What the app is told about the session.
    Hydrate {
        /// `None` when only explaining, and the store would have to be asked.
        verdict: Option<Verdict>,
        /// The schema it was written under, and the target's.
        schemas: Box<(Option<Digest>, Option<Digest>)>,
    },
    /// The app accepted the socket: it stays there.
    Pin(Arc<AllocationView>),
    /// An allocation was chosen.
    Select(Arc<AllocationView>, Affinity),
    /// A connection could not be made; nothing was sent.
    ConnectFailed(Arc<AllocationView>),
    /// It was sent, and the app's server said that it did nothing with it.
    Unprocessed(Arc<AllocationView>),
    /// The app answered, or would.
    Run {
        /// Its status; `None` when only explaining.
        status: Option<u16>,
    },
    /// A preview answered, or would.
    RunPreview {
        /// The preview, with the artifact that it runs.
        view: Arc<EnvView>,
        /// Its status; `None` when only explaining.
        status: Option<u16>,
    },
    /// What came of it counts as evidence on the deployment.
    AttachEvidence {
        view: Arc<EnvView>,
        /// Whether it counts as an error; `None` when it says nothing of the artifact.
        error: Option<bool>,
    },
    /// What a promotion would reuse.
    PromoteLater(Arc<EnvView>),
    /// The app was sent the request and gave no response.
    UpstreamFailed(UpstreamFailure),
    /// Its answer began and broke off.
    BrokeOff(UpstreamFailure),
    /// The app has the key, and joins repeats of it.
    AttachRetry,
    /// Nothing in the control plane was changed for this request.
    NoMutation(Epoch),
    /// The path was looked up in the artifact's index.
    FindAsset {
        /// What it found; `None` for a file that is gone, or an index that cannot be read.
        asset: Option<Arc<Asset>>,
        /// The artifact that has it.
        artifact: Digest,
    },
    /// Bytes of the artifact were sent.
    ServeAsset {
        /// The status; `None` when only explaining.
        status: Option<u16>,
        /// Which bytes; `None` when none were acceptable.
        source: Option<Source>,
    },
    /// Nothing was needed of the app.
    NoAllocation,
    /// The preview's token was checked.
    CheckAccess(Arc<EnvView>, &'static str),
    /// The client was told how the app stands.
    TellStanding(Standing),
    /// Something happened that cannot happen in the request's state: an error of the edge's own.
    LostItsWay,
    /// The edge answered, with this status; and what of the contract leads to another answer.
    Answer(Problem, u16, Option<Box<str>>),
}

// A ring of traces keeps thousands of steps, and each request frees those of one long before it.
const _: () = assert!(size_of::<StepKind>() <= 64);

/// What was found about a provider's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventVerdict {
    /// Taken in the ledger; nothing is sent.
    Reserved,
    /// The record says that it is sent, under this attempt; it is about to be.
    Forwarded(u32),
    /// Another delivery of it is at work.
    InProgress,
    /// The app accepted it before.
    Accepted,
}

/// What was found about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyVerdict {
    /// The contract asks for none.
    NotAsked,
    /// Present and well-formed.
    Present,
    /// Required and absent.
    Missing,
    /// Required and not a key.
    Invalid,
    /// In two places, and they differ.
    Several,
    /// Only explained: the form is not there, and its key is in it.
    InForm,
    /// The contract says whose key it is, and the request does not.
    NoPrincipal,
    /// Taken in the ledger; nothing is sent.
    Reserved,
    /// The record says that it is sent, under this attempt; it is about to be.
    Forwarded(u32),
    /// Its record is of another request.
    Reused,
    /// The first request with it is at work.
    InProgress,
    /// What became of the first is not known.
    Unknown,
    /// The first was answered, and the answer is stored.
    Completed,
    /// The first was answered, and the answer is not stored.
    NotReplayable,
    /// The edge's own ledger is required and cannot be had.
    LedgerUnavailable,
}

impl EventVerdict {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Forwarded(_) => "forwarded",
            Self::InProgress => "another delivery is at work",
            Self::Accepted => "accepted before",
        }
    }
}

impl KeyVerdict {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAsked => "contract none",
            Self::Present => "key present",
            Self::Missing => "key missing",
            Self::Invalid => "key invalid",
            Self::Several => "two keys",
            Self::InForm => "would be looked for in the form",
            Self::NoPrincipal => "no principal",
            Self::LedgerUnavailable => "ledger unavailable",
            Self::Reserved => "reserved",
            Self::Forwarded(_) => "forwarded",
            Self::Reused => "another request's key",
            Self::InProgress => "in progress",
            Self::Unknown => "outcome unknown",
            Self::Completed => "completed",
            Self::NotReplayable => "completed, response not stored",
        }
    }
}

/// What is known of a live socket's session before it is placed.
#[derive(Debug, Clone)]
pub struct Found {
    pub prior: Option<Prior>,
    /// What became of that allocation.
    pub original: Option<Original>,
    /// Where its browser is, by the edge's token.
    pub browser_on: Option<AllocationId>,
    /// The request carries the app's own session id.
    pub has_id: bool,
    /// The routing record could not be read.
    pub record_unavailable: bool,
}

/// A step and when it was taken.
#[derive(Debug, Clone)]
pub struct Step {
    /// Time from the request's start.
    pub at: Duration,
    pub kind: StepKind,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Outcome {
    /// Not yet.
    Open,
    /// Answered by the app at once.
    Hot,
    /// Answered by the app after it was woken.
    Woken,
    /// Answered by the app after waiting for a place.
    Held,
    /// Answered from the artifact, without the app.
    Asset,
    /// Sent on to the same address with the cookie that opens the preview.
    Welcomed,
    /// Told how its host's app stands, by the edge.
    Told,
    /// An authority that looks whether the host is ours was shown that it is.
    Validated,
    /// Answered with the stored response of an earlier request with the same key.
    Replayed,
    /// A delivery of an event that was accepted before, answered 200 from its record.
    Duplicate,
    /// Answered by the edge.
    Refused(Problem),
    /// The client left first; what was sent, if anything, is in the steps.
    ClientLeft,
    /// The app's answer, or a static file, began and broke off: the client got a part of it and a cut
    /// connection.
    CutOff,
}

impl Outcome {
    /// Every way a request can end, for metrics.
    pub fn all() -> impl Iterator<Item = Self> {
        [
            Self::Open,
            Self::Hot,
            Self::Woken,
            Self::Held,
            Self::ClientLeft,
            Self::Asset,
            Self::Welcomed,
            Self::Replayed,
            Self::Duplicate,
            Self::CutOff,
            Self::Told,
            Self::Validated,
        ]
        .into_iter()
        .chain(Problem::ALL.iter().copied().map(Self::Refused))
    }

    /// Its place in [`Self::all`].
    pub fn index(self) -> usize {
        match self {
            Self::Open => 0,
            Self::Hot => 1,
            Self::Woken => 2,
            Self::Held => 3,
            Self::ClientLeft => 4,
            Self::Asset => 5,
            Self::Welcomed => 6,
            Self::Replayed => 7,
            Self::Duplicate => 8,
            Self::CutOff => 9,
            Self::Told => 10,
            Self::Validated => 11,
            Self::Refused(p) => 12 + p as usize,
        }
    }

    /// Whether an answer with `status` says something of the artifact that gave it, and if so, whether
    /// that it failed. What the edge refused for other reasons, and a client that left, say nothing.
    pub fn evidence(self, status: Option<u16>) -> Option<bool> {
        let status = status?;
        match self {
            Self::Hot | Self::Woken | Self::Held => Some(status >= 500),
            Self::CutOff => Some(true),
            Self::Refused(
                Problem::WakeFailed
                | Problem::WakeTimeout
                | Problem::UpstreamClosed
                | Problem::UpstreamTimeout
                | Problem::OutcomeUnknown
                | Problem::ArtifactUnavailable,
            ) => Some(true),
            _ => None,
        }
    }

    /// Its name in metrics and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused(problem) => problem.name(),
            other => other.into(),
        }
    }
}

/// How much is at stake if the edge decides wrongly, as the seed rates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Risk {
    /// Served directly.
    Low,
    /// A wake is involved.
    Medium,
    /// A mutation is involved.
    High,
}

impl Risk {
    /// As the seed writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low risk",
            Self::Medium => "medium risk",
            Self::High => "high risk",
        }
    }
}

/// The steps of one request.
#[derive(Debug, Clone)]
pub struct Trace {
    pub request: RequestId,
    pub started: Mono,
    /// Its steps, oldest first.
    pub steps: Vec<Step>,
    pub outcome: Outcome,
    /// Whose trace it belongs to, where its client says so.
    pub parent: Option<TraceParent>,
    /// Its client's address, where that is known.
    pub client: Option<IpAddr>,
    dropped: u32,
}

/// More steps than this are counted, not kept: a request that is rechecked often stays small.
const MAX_STEPS: usize = 32;

impl Trace {
    /// An empty one.
    pub fn new(request: RequestId, started: Mono) -> Self {
        Self {
            request,
            started,
            steps: Vec::with_capacity(4),
            outcome: Outcome::Open,
            parent: None,
            client: None,
            dropped: 0,
        }
    }

    /// The whole trace of a request whose head has no one reading, and its answer.
    pub fn unreadable(
        request: RequestId,
        received: Mono,
        why: BadRequest,
        now: Mono,
    ) -> (Self, Reply) {
        let mut trace = Self::new(request, received);
        let reply = Reply::bad_request(why);
        trace.push(now, StepKind::Unreadable(why));
        trace.answered(now, &reply);
        (trace, reply)
    }

    /// Records a step taken at `now`.
    pub fn push(&mut self, now: Mono, kind: StepKind) {
        if self.steps.len() < MAX_STEPS {
            self.steps.push(Step { at: now.since(self.started), kind });
        } else {
            self.dropped += 1;
        }
    }

    /// Records the edge's own answer.
    pub fn answered(&mut self, now: Mono, reply: &Reply) {
        let hint = reply.hint.as_deref().map(Into::into);
        self.push(now, StepKind::Answer(reply.problem, reply.status, hint));
        self.outcome = Outcome::Refused(reply.problem);
    }

    /// Steps that were not kept.
    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    /// What is at stake, by the steps taken.
    pub fn risk(&self) -> Risk {
        let mut risk = Risk::Low;
        for step in &self.steps {
            match step.kind {
                StepKind::Classify(Posture::Safe, ..)
                | StepKind::Wake { .. }
                | StepKind::FindSession(_)
                | StepKind::RunPreview { .. } => {
                    risk = Risk::Medium;
                }
                StepKind::Classify(..) | StepKind::VerifySignature(_) => return Risk::High,
                _ => {}
            }
        }
        risk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_place() {
        for (i, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), i, "{}", outcome.name());
        }
        assert!(Outcome::all().count() <= crate::snapshot::MAX_OUTCOMES);
    }

    #[test]
    fn an_answer_that_broke_off_is_an_error_whatever_its_status() {
        assert_eq!(Outcome::CutOff.evidence(Some(200)), Some(true));
        assert_eq!(Outcome::Refused(Problem::UpstreamClosed).evidence(Some(502)), Some(true));
        assert_eq!(Outcome::Hot.evidence(Some(200)), Some(false));
        assert_eq!(Outcome::ClientLeft.evidence(Some(200)), None);
    }
}
