//! The record of what was decided: one list of steps for the console, for `explain`, and for the
//! golden tests. A step keeps the values it was decided on and becomes text only when it is read,
//! so that recording one on the hot path is a move of a few words.

use std::sync::Arc;
use std::time::Duration;

use crate::assets::Asset;
use crate::clock::Mono;
use crate::id::{Digest, Epoch, OperationId, RequestId};
use crate::snapshot::{AllocationView, EnvView};
use crate::store::record::{WakePhases, WakeState};

use super::asset::Source;
use super::classify::Posture;
use super::facts::{BadRequest, Facts};
use super::place::Affinity;
use super::reply::{Problem, Reply};
use super::resume::{StoreStep, Verdict};
use super::retry::UpstreamFailure;

mod live;

pub use live::Found;
use live::{found_values, hydrate_values, store_values};

/// Who took a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// This process.
    Edge,
    /// Starts and ends allocations.
    Runner,
    /// The app, as started.
    Allocation,
    /// Changes shared truth.
    ControlPlane,
    /// The app's own state.
    App,
    /// Keeps the artifacts' bytes.
    ObjectStore,
    /// A service the app keeps state in.
    RuntimeService,
    /// Whoever deploys and promotes.
    User,
}

impl Actor {
    /// As the seed's traces name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "Edge",
            Self::Runner => "Runner",
            Self::Allocation => "Allocation",
            Self::ControlPlane => "Control plane",
            Self::App => "App",
            Self::ObjectStore => "Object store/CDN",
            Self::RuntimeService => "Runtime service",
            Self::User => "User",
        }
    }
}

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
    /// Nobody owns this host, or its contract has no route for the path.
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
        phases: WakePhases,
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
    /// Nobody knows what became of the first.
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

/// A step as text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct StepText {
    /// Microseconds from the request's start.
    pub at_us: u64,
    /// Who.
    pub actor: String,
    /// What, in the seed's words.
    pub action: String,
    /// Which truth it relied on, in the seed's words.
    pub truth: String,
    /// That truth's value.
    pub value: String,
    /// What else there is to know; may be empty.
    pub detail: String,
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

impl Step {
    /// The step as text.
    pub fn text(&self) -> StepText {
        let (actor, action, truth) = self.kind.sentence();
        let (value, detail) = self.kind.values();
        StepText {
            at_us: u64::try_from(self.at.as_micros()).unwrap_or(u64::MAX),
            actor: actor.name().into(),
            action: action.into(),
            truth: truth.into(),
            value,
            detail,
        }
    }
}

impl StepKind {
    /// Actor, action and truth, in the seed's words where the seed has the step.
    fn sentence(&self) -> (Actor, &'static str, &'static str) {
        match self {
            Self::Unreadable(_) => {
                (Actor::Edge, "Read the request's host and path.", "Request head")
            }
            Self::LoadOwner(v) if !v.environment.is_production() => (
                Actor::Edge,
                "Route to preview environment owner, not production owner.",
                "Preview RouteOwner",
            ),
            Self::LoadOwner(_) | Self::NoOwner(_) => {
                (Actor::Edge, "Load route owner and current epoch.", "RouteOwner")
            }
            Self::Classify(Posture::Safe, ..) => {
                (Actor::Edge, "Classify request as safe/idempotent.", "Route policy")
            }
            Self::Classify(..) => {
                (Actor::Edge, "Classify request as unsafe to blindly replay.", "Route class policy")
            }
            Self::CheckKey(_) => (
                Actor::Edge,
                "Check idempotency key and route contract.",
                "Idempotency store binding",
            ),
            Self::VerifySignature(_) => {
                (Actor::Edge, "Verify route class and signature policy.", "Webhook route contract")
            }
            Self::CheckEvent(_) => {
                (Actor::Edge, "Check idempotency posture before wake/retry.", "Idempotency store")
            }
            Self::Evidence { .. } => (
                Actor::ControlPlane,
                "Record wake/blocked evidence for user and support.",
                "Operation/audit",
            ),
            Self::ProcessOnce { .. } => (
                Actor::App,
                "Process once when a safe delivery path exists.",
                "Product DB plus provider event id",
            ),
            Self::Wake { safe: true, .. } => {
                (Actor::Edge, "Create or attach to wake operation.", "Operation table")
            }
            Self::Wake { safe: false, .. } => (
                Actor::ControlPlane,
                "Wake if policy allows but do not buffer arbitrary body forever.",
                "Wake operation",
            ),
            Self::Start { phases: WakePhases { thaw_us: Some(_), .. }, .. } => (
                Actor::Runner,
                "Take back the allocation that is still in memory.",
                "Regional runtime registry",
            ),
            Self::Start { .. } => {
                (Actor::Runner, "Start allocation from immutable artifact.", "Artifact digest")
            }
            Self::Hold { state: Some(_), .. } => (
                Actor::Edge,
                "Hold within wake budget, then route when ready.",
                "Wake operation state",
            ),
            Self::Hold { state: None, .. } => (
                Actor::Edge,
                "Hold until an allocation has a free place.",
                "Regional runtime registry",
            ),
            Self::FindSession(_) => (
                Actor::Edge,
                "Find prior session affinity if resumable cookie/session id exists.",
                "Session routing record",
            ),
            Self::CheckStore(_) => (
                Actor::RuntimeService,
                "Check durable session store if cross-allocation resume is promised.",
                "Session store",
            ),
            Self::Hydrate { .. } => (
                Actor::Allocation,
                "Hydrate declared state or start fresh session.",
                "Vango state schema",
            ),
            Self::Pin(_) => {
                (Actor::Edge, "Keep live socket pinned after accept.", "Allocation affinity")
            }
            Self::Select(..) => (
                Actor::Edge,
                "Select ready allocation with session affinity if present.",
                "Regional runtime registry",
            ),
            Self::ConnectFailed(_) => (
                Actor::Edge,
                "Connect refused; nothing was sent. Choose again.",
                "Regional runtime registry",
            ),
            Self::Run { .. } | Self::UpstreamFailed(_) => (
                Actor::Allocation,
                "Run Vango route/render and return HTML or patches.",
                "Vango session loop",
            ),
            Self::RunPreview { .. } => {
                (Actor::Allocation, "Run exact preview artifact.", "Artifact digest")
            }
            Self::AttachEvidence { .. } => (
                Actor::ControlPlane,
                "Attach validation evidence to deployment.",
                "Deployment record",
            ),
            Self::PromoteLater(_) => (
                Actor::User,
                "Promotion later reuses this artifact unless rebuilt explicitly.",
                "Deployment/artifact identity",
            ),
            Self::AttachRetry => (
                Actor::App,
                "Attach retry to original mutation only with idempotency.",
                "App/product DB",
            ),
            Self::NoMutation(_) => (
                Actor::ControlPlane,
                "No mutation required; logs are observability only.",
                "Operation table unchanged",
            ),
            Self::FindAsset { .. } => {
                (Actor::Edge, "Recognize immutable asset path/digest.", "Artifact asset manifest")
            }
            Self::ServeAsset { .. } => {
                (Actor::ObjectStore, "Serve bytes without app compute.", "Artifact store")
            }
            Self::CheckAccess(..) => {
                (Actor::Edge, "Check the preview's access token.", "Operator configuration")
            }
            Self::NoAllocation => {
                (Actor::Allocation, "No app allocation needed.", "No session state")
            }
            Self::Answer(..) => (Actor::Edge, "Answer for the app.", "Route policy"),
        }
    }

    /// The truth's value, and a detail.
    fn values(&self) -> (String, String) {
        match self {
            Self::Unreadable(why) => ("no one reading".into(), why.to_string()),
            Self::NoOwner(host) => ("none".into(), format!("nobody owns {host} and this path")),
            Self::LoadOwner(v) => (
                format!("{} epoch {}", v.environment, v.owner.epoch),
                if v.external {
                    let up = v.ready.iter().filter(|a| !a.load.is_down()).count();
                    format!("static pool, {up} of {} up", v.ready.len())
                } else {
                    format!("artifact {}", v.owner.digest.short())
                },
            ),
            Self::Classify(posture, v, route) => {
                let route = &v.contract.routes[*route];
                let posture = match posture {
                    Posture::Safe => "safe",
                    Posture::Unsafe => "unsafe, no idempotency",
                    Posture::AppIdempotent => "unsafe, idempotent by the app",
                    Posture::EdgeIdempotent => "unsafe, idempotent by the edge",
                    Posture::Webhook => "webhook",
                };
                (format!("{} ({})", route.path, route.class.name()), posture.into())
            }
            Self::CheckKey(v) => (
                match v {
                    KeyVerdict::NotAsked => "contract none",
                    KeyVerdict::Present => "key present",
                    KeyVerdict::Missing => "key missing",
                    KeyVerdict::Invalid => "key invalid",
                    KeyVerdict::NoPrincipal => "no principal",
                    KeyVerdict::LedgerUnavailable => "ledger unavailable",
                    KeyVerdict::Reserved => "reserved",
                    KeyVerdict::Forwarded(_) => "forwarded",
                    KeyVerdict::Reused => "another request's key",
                    KeyVerdict::InProgress => "in progress",
                    KeyVerdict::Unknown => "outcome unknown",
                    KeyVerdict::Completed => "completed",
                    KeyVerdict::NotReplayable => "completed, response not stored",
                }
                .into(),
                match v {
                    KeyVerdict::Reserved => "on disk; nothing is sent".into(),
                    KeyVerdict::Forwarded(n) => {
                        format!("on disk before the first byte; attempt {n}")
                    }
                    _ => String::new(),
                },
            ),
            Self::VerifySignature(verdict) => ((*verdict).into(), String::new()),
            Self::CheckEvent(v) => match v {
                EventVerdict::Reserved => ("reserved".into(), "on disk; nothing is sent".into()),
                EventVerdict::Forwarded(n) => {
                    ("forwarded".into(), format!("on disk before the first byte; attempt {n}"))
                }
                EventVerdict::InProgress => ("another delivery is at work".into(), String::new()),
                EventVerdict::Accepted => ("accepted before".into(), String::new()),
            },
            Self::Evidence { operation, what } => (
                operation.as_ref().map_or_else(|| "no operation".into(), ToString::to_string),
                (*what).into(),
            ),
            Self::ProcessOnce { status } => (
                status.map_or_else(|| "would be asked".into(), |s| format!("status {s}")),
                String::new(),
            ),
            Self::Wake { operation, created, .. } => (
                operation.as_ref().map_or_else(|| "would be created".into(), ToString::to_string),
                match (operation, created) {
                    (None, _) => String::new(),
                    (_, true) => "created".into(),
                    (_, false) => "attached".into(),
                },
            ),
            Self::Start { view, state, phases } => start_values(view, *state, phases),
            Self::Hold { held, end, state } => hold_values(*held, *end, *state),
            Self::FindSession(found) => found_values(found),
            Self::CheckStore(step) => {
                let (value, detail) = store_values(*step);
                (value.into(), detail.into())
            }
            Self::Hydrate { verdict, schemas } => hydrate_values(*verdict, **schemas),
            Self::Pin(a) => (
                format!("{} generation {}", a.id, a.generation),
                "until either end closes it".into(),
            ),
            Self::Select(a, affinity) => (
                match a.address.filter(|_| a.external) {
                    Some(address) => format!("{} static pool {address}", a.id),
                    None => format!("{} generation {}", a.id, a.generation),
                },
                match affinity {
                    Affinity::None => "no session".into(),
                    Affinity::Kept => "the session's own".into(),
                    Affinity::Lost => "the session's own is gone; placed again".into(),
                },
            ),
            Self::ConnectFailed(a) => (a.id.to_string(), "excluded for this request".into()),
            Self::Run { status } => (
                status.map_or_else(|| "would be asked".into(), |s| format!("status {s}")),
                String::new(),
            ),
            Self::UpstreamFailed(failure) => (
                match failure {
                    UpstreamFailure::Closed => "closed the connection",
                    UpstreamFailure::Silent => "silent until the deadline",
                }
                .into(),
                "sent; outcome unknown".into(),
            ),
            Self::RunPreview { view, status } => (
                format!("sha256:{}", view.owner.digest.short()),
                status.map_or_else(|| "would be asked".into(), |s| format!("status {s}")),
            ),
            Self::AttachEvidence { view, error } => (
                view.owner.deployment.to_string(),
                match error {
                    Some(true) => "counts as an error",
                    Some(false) => "counts as an answer",
                    None => "says nothing of the artifact",
                }
                .into(),
            ),
            Self::PromoteLater(view) => {
                (format!("sha256:{}", view.owner.digest.short()), String::new())
            }
            Self::AttachRetry => ("key passed to the app".into(), String::new()),
            Self::NoMutation(epoch) => (format!("epoch {epoch}"), String::new()),
            Self::FindAsset { asset, artifact } => (
                asset.as_ref().map_or_else(
                    || "none".into(),
                    |a| format!("sha256:{}", a.identity.digest.short()),
                ),
                match asset.as_ref().map(|a| a.fingerprinted) {
                    Some(true) => format!("artifact {}, immutable", artifact.short()),
                    Some(false) => format!("artifact {}, revalidated", artifact.short()),
                    None => format!("artifact {}", artifact.short()),
                },
            ),
            Self::ServeAsset { status, source } => (
                source.map_or_else(|| "none".into(), |s| format!("sha256:{}", s.digest.short())),
                format!(
                    "{}, {}",
                    source.and_then(|s| s.coding).map_or("as it is", |c| c.name()),
                    status.map_or_else(|| "would be sent".into(), |s| format!("status {s}")),
                ),
            ),
            Self::NoAllocation => ("nothing woken, nothing held".into(), String::new()),
            Self::CheckAccess(v, found) => (v.environment.to_string(), (*found).into()),
            Self::Answer(problem, status) => (problem.name().into(), format!("status {status}")),
        }
    }
}

fn start_values(view: &EnvView, state: Option<WakeState>, phases: &WakePhases) -> (String, String) {
    let allocation = view.operation.as_ref().and_then(|o| o.allocation.as_ref());
    if let Some(us) = phases.thaw_us {
        let found = view.in_memory().map(|a| &a.id).filter(|_| state.is_none()).or(allocation);
        let value = found.map_or_else(|| "gone".into(), ToString::to_string);
        let detail = match state {
            None => "would be taken back".into(),
            Some(state) => format!("{}, thaw {}", state.name(), ms(us)),
        };
        return (value, detail);
    }
    let value = format!("sha256:{}", view.owner.digest.short());
    let Some(state) = state else { return (value, "would be started".into()) };
    let mut detail = allocation.map_or_else(String::new, |a| format!("{a}: "));
    detail.push_str(state.name());
    let named =
        [("artifact", phases.artifact_us), ("spawn", phases.spawn_us), ("ready", phases.ready_us)];
    for (name, us) in named {
        if let Some(us) = us {
            detail.push_str(&format!(", {name} {}", ms(us)));
        }
    }
    (value, detail)
}

fn hold_values(held: Duration, end: Option<HoldEnd>, state: Option<WakeState>) -> (String, String) {
    let state = state.map_or("at concurrency", WakeState::name).to_owned();
    let held = ms(u64::try_from(held.as_micros()).unwrap_or(u64::MAX));
    let detail = match end {
        None => return (state, "would be held".into()),
        Some(HoldEnd::Released) => format!("released after {held}"),
        Some(HoldEnd::Recheck) => format!("decided again after {held}"),
        Some(HoldEnd::DeadlinePassed) => format!("budget spent after {held}"),
        Some(HoldEnd::ClientLeft) => format!("the client left after {held}; not forwarded"),
        Some(HoldEnd::QueueFull(bound)) => format!("not held: {} is reached", bound.name()),
        Some(HoldEnd::ShuttingDown) => format!("the edge stops after {held}"),
    };
    (state, detail)
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Answered with the stored response of an earlier request with the same key.
    Replayed,
    /// A delivery of an event that was accepted before, answered 200 from its record.
    Duplicate,
    /// Answered by the edge.
    Refused(Problem),
    /// The client left first; what was sent, if anything, is in the steps.
    ClientLeft,
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
        ]
        .into_iter()
        .chain(Problem::ALL.into_iter().map(Self::Refused))
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
            Self::Refused(p) => 9 + p as usize,
        }
    }

    /// Whether an answer with `status` says something of the artifact that gave it, and if so, whether
    /// that it failed. What the edge refused for other reasons, and a client that left, say nothing.
    pub fn evidence(self, status: Option<u16>) -> Option<bool> {
        let status = status?;
        match self {
            Self::Hot | Self::Woken | Self::Held => Some(status >= 500),
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
            Self::Open => "open",
            Self::Hot => "hot",
            Self::Woken => "woken",
            Self::Held => "held",
            Self::Asset => "asset",
            Self::Welcomed => "welcomed",
            Self::Replayed => "replayed",
            Self::Duplicate => "duplicate",
            Self::Refused(p) => p.name(),
            Self::ClientLeft => "client-left",
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
    /// The request.
    pub request: RequestId,
    /// When it began.
    pub started: Mono,
    /// Its steps, oldest first.
    pub steps: Vec<Step>,
    /// How it ended.
    pub outcome: Outcome,
    dropped: u32,
}

/// More steps than this are counted, not kept: a request that is rechecked often stays small.
const MAX_STEPS: usize = 32;

impl Trace {
    /// An empty one.
    pub fn new(request: RequestId, started: Mono) -> Self {
        let steps = Vec::with_capacity(4);
        Self { request, started, steps, outcome: Outcome::Open, dropped: 0 }
    }

    /// The whole trace of a request that nobody owns, and its answer.
    pub fn unowned(facts: &Facts, now: Mono) -> (Self, Reply) {
        let mut trace = Self::new(facts.id, facts.received);
        let reply = Reply::no_route(&facts.host);
        trace.push(now, StepKind::NoOwner(facts.host.clone()));
        trace.answered(now, &reply);
        (trace, reply)
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
            Outcome::Refused(Problem::BadHost | Problem::BadPath) => {
                return "Refuse: a request with two readings is how one is smuggled.";
            }
            Outcome::Asset => {
                return "Serve from edge/object storage. Do not wake the app.";
            }
            Outcome::Welcomed
            | Outcome::Refused(Problem::PreviewAccess | Problem::TooManyAttempts) => {
                return "Let nobody see a preview who has not shown its token.";
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
}
