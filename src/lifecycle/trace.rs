//! The record of what was decided: one list of steps for the console, for `explain`, and for the
//! golden tests. A step keeps the values it was decided on and becomes text only when it is read,
//! so that recording one on the hot path is a move of a few words.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::assets::Asset;
use crate::clock::Mono;
use crate::id::{Digest, Epoch, OperationId, RequestId};
use crate::snapshot::{AllocationView, EnvView};
use crate::store::record::{WakePhases, WakeState};

use super::asset::Source;
use super::classify::Posture;
use super::facts::BadRequest;
use super::parent::TraceParent;
use super::place::Affinity;
use super::reply::{Problem, Reply};
use super::resume::{StoreStep, Verdict};
use super::retry::UpstreamFailure;

mod live;
mod outcome;
mod text;

pub use live::Found;
pub use outcome::Outcome;
pub use text::{Actor, StepText};

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Which bound of the hold queue was reached.
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
}

impl QueueBound {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "the environment's wake.max_held",
            Self::Node => "the node's limits.max_held",
            Self::Bytes => "the node's limits.max_held_bytes",
            Self::Bodies => "the node's limits.max_buffered_bytes",
        }
    }
}

/// One step, with the values it stands on.
#[derive(Debug, Clone)]
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
        /// What was decided.
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
        /// Whose artifact.
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
        /// The preview.
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
    /// The edge answered.
    Answer(Problem, u16),
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

/// A step and when it was taken.
#[derive(Debug, Clone)]
pub struct Step {
    /// Time from the request's start.
    pub at: Duration,
    /// What was done.
    pub kind: StepKind,
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
    /// The request.
    pub request: RequestId,
    /// When it began.
    pub started: Mono,
    /// Its steps, oldest first.
    pub steps: Vec<Step>,
    /// How it ended.
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
        self.push(now, StepKind::Answer(reply.problem, reply.status));
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

    /// The decision, in the seed's words where the seed has it.
    pub fn decision(&self) -> &'static str {
        match self.outcome {
            Outcome::Refused(Problem::NoRoute) => {
                return "Refuse: no route owner has authority over this request.";
            }
            Outcome::Refused(Problem::BadHost | Problem::BadPath | Problem::MalformedRequest) => {
                return "Refuse: a request with two readings is how one is smuggled.";
            }
            Outcome::Refused(Problem::TargetTooLong | Problem::HeadTooLarge) => {
                return "Refuse: the head is beyond its bounds.";
            }
            Outcome::Refused(Problem::MethodRefused | Problem::MaxForwards) => {
                return "Answer at the edge: this request goes to no app.";
            }
            Outcome::Refused(Problem::HttpsRequired) => {
                return "Answer at the edge: this app is served over HTTPS.";
            }
            Outcome::Refused(Problem::Misdirected) => {
                return "Refuse: the connection was opened for another host.";
            }
            Outcome::Refused(Problem::TooManyRequests) => {
                return "Refuse: one client has its share of what the edge can carry.";
            }
            Outcome::Asset => {
                return "Serve from edge/object storage. Do not wake the app.";
            }
            Outcome::Welcomed
            | Outcome::Refused(Problem::PreviewAccess | Problem::TooManyAttempts) => {
                return "Let a client see the preview only with its token.";
            }
            Outcome::Refused(Problem::AssetNotFound) => {
                return "Refuse: the file is in no artifact. Do not wake the app for it.";
            }
            Outcome::Refused(Problem::ArtifactUnavailable) => {
                return "Refuse: nothing is served in place of an artifact that cannot be had.";
            }
            Outcome::Refused(Problem::Asleep) => {
                return "Leave asleep: the contract says that this request is not worth a wake.";
            }
            _ => {}
        }
        let woke = self.steps.iter().any(|s| matches!(s.kind, StepKind::Wake { .. }));
        let live = self.steps.iter().any(|s| matches!(s.kind, StepKind::FindSession(_)));
        let preview = self.steps.iter().any(|s| matches!(s.kind, StepKind::RunPreview { .. }));
        match self.risk() {
            Risk::High
                if self.steps.iter().any(|s| matches!(s.kind, StepKind::VerifySignature(_))) =>
            {
                "Never turn a provider webhook into an invisible replay buffer."
            }
            Risk::High => {
                "Do not silently replay. Require explicit idempotency or return controlled \
                 retryable failure."
            }
            Risk::Medium if live => {
                "Prefer original allocation. Hydrate only if durable store and schema compatibility \
                 prove it."
            }
            Risk::Medium if preview => {
                "Preview is meaningful only if production can promote the exact validated artifact."
            }
            Risk::Medium if woke => {
                "Wake and hold within budget. Return clear retry/503 if readiness misses the budget."
            }
            _ => {
                "Serve directly. Allocation health selects target only inside route owner authority."
            }
        }
    }
}
