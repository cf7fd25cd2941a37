//! A step as text: who, what and which truth in the seed's words where the seed has the step, and the
//! values it was taken on. Read after the request, never on its way.

use std::time::Duration;

use crate::lifecycle::classify::Posture;
use crate::lifecycle::place::Affinity;
use crate::lifecycle::retry::UpstreamFailure;
use crate::snapshot::EnvView;
use crate::store::record::{WakePhases, WakeState};

use super::live::{found_values, hydrate_values, store_values};
use super::{EventVerdict, HoldEnd, KeyVerdict, Step, StepKind};

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
    /// The person or program that deploys and promotes.
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
            Self::Start { phases, .. } if phases.thaw_us.is_some() => (
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
            Self::Run { .. } | Self::UpstreamFailed(_) | Self::BrokeOff(_) => (
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
            Self::NoOwner(host) => {
                ("none".into(), format!("no environment owns {host} and this path"))
            }
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
            Self::BrokeOff(failure) => (
                match failure {
                    UpstreamFailure::Closed => "closed the connection within its answer",
                    UpstreamFailure::Silent => "fell silent within its answer",
                }
                .into(),
                "the client got a part of it and a cut connection".into(),
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

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
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
