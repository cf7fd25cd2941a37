//! A step as text: who, what and which truth in the seed's words where the seed has the step, and the
//! values it was taken on. Read after the request, never on its way. Session ids are in none of them: a
//! client that has one may act as the session.

use std::time::Duration;

use crate::contract::{Cold, Posture};
use crate::id::Digest;
use crate::lifecycle::affinity::Affinity;
use crate::lifecycle::reply::Problem;
use crate::lifecycle::resume::{StoreAnswer, StoreStep, Verdict};
use crate::record::{WakePhases, WakeState};
use crate::snapshot::EnvView;

use super::{
    EventVerdict, Found, HoldEnd, KeyVerdict, Outcome, Risk, Step, StepKind, Trace, UpstreamFailure,
};

/// Who took a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Actor {
    /// This process.
    Edge,
    /// Starts and ends allocations.
    Runner,
    /// The app, as started.
    Allocation,
    /// Changes shared truth.
    #[strum(serialize = "Control plane")]
    ControlPlane,
    /// The app's own state.
    App,
    /// Keeps the artifacts' bytes.
    #[strum(serialize = "Object store/CDN")]
    ObjectStore,
    /// A service the app keeps state in.
    #[strum(serialize = "Runtime service")]
    RuntimeService,
    /// The person or program that deploys and promotes.
    User,
}

impl Actor {
    /// As the seed's traces name it.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A step as text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct StepText {
    /// Microseconds from the request's start.
    pub at_us: u64,
    /// The step's name for programs, such as `load-owner`.
    pub kind: String,
    /// The values that it was taken on, by name; which ones depends on the kind.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// Who took it, as the seed names them.
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
        let (value, detail) = self.kind.shown_values();
        StepText {
            at_us: u64::try_from(self.at.as_micros()).unwrap_or(u64::MAX),
            kind: self.kind.kind().into(),
            values: self.kind.named_values(),
            actor: actor.name().into(),
            action: action.into(),
            truth: truth.into(),
            value,
            detail,
        }
    }
}

impl StepKind {
    /// The step's name for programs; stable.
    pub fn kind(&self) -> &'static str {
        self.into()
    }

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
            Self::Unprocessed(_) => (
                Actor::Allocation,
                "Leave the request unprocessed. It may be sent again.",
                "App's server",
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
            Self::TellStanding(_) => {
                (Actor::Edge, "Say how the app stands.", "Runtime registry and operation table")
            }
            Self::LostItsWay => {
                (Actor::Edge, "Stop: this cannot happen to the request.", "Its state")
            }
            Self::Answer(..) => (Actor::Edge, "Answer for the app.", "Route policy"),
        }
    }

    /// The truth's value, and a detail.
    fn shown_values(&self) -> (String, String) {
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
                let held = *posture == Posture::Unsafe && route.cold == Cold::Hold;
                let detail =
                    if held { "unsafe, sent once: cold = \"hold\"" } else { posture.name() };
                (format!("{route} ({})", route.class.name()), detail.into())
            }
            Self::CheckKey(v) => (
                v.name().into(),
                match v {
                    KeyVerdict::Reserved => "on disk; nothing is sent".into(),
                    KeyVerdict::Forwarded(n) => sent_after(*n),
                    _ => String::new(),
                },
            ),
            Self::VerifySignature(verdict) => ((*verdict).into(), String::new()),
            Self::CheckEvent(v) => (
                v.name().into(),
                match v {
                    EventVerdict::Reserved => "on disk; nothing is sent".into(),
                    EventVerdict::Forwarded(n) => sent_after(*n),
                    EventVerdict::InProgress | EventVerdict::Accepted => String::new(),
                },
            ),
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
            Self::Unprocessed(a) => (a.id.to_string(), "nothing was done with it".into()),
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
            Self::TellStanding(told) => {
                (told.state.name().into(), "nothing woken, nothing held".into())
            }
            Self::LostItsWay => {
                ("lost".into(), "an error of the edge's own; please report it".into())
            }
            Self::NoAllocation => ("nothing woken, nothing held".into(), String::new()),
            Self::CheckAccess(v, found) => (v.environment.to_string(), (*found).into()),
            Self::Answer(problem, status, None) => {
                (problem.name().into(), format!("status {status}"))
            }
            Self::Answer(problem, status, Some(hint)) => {
                (problem.name().into(), format!("status {status}; {hint}"))
            }
        }
    }
}

impl Trace {
    /// The decision, in the seed's words where the seed has it.
    pub fn decision(&self) -> &'static str {
        let has = |is: fn(&StepKind) -> bool| self.steps.iter().any(|step| is(&step.kind));
        if let Some(decision) = decision_by_outcome(self.outcome) {
            return decision;
        }
        match self.risk() {
            Risk::High if has(|kind| matches!(kind, StepKind::VerifySignature(_))) => {
                "Never turn a provider webhook into an invisible replay buffer."
            }
            Risk::High if self.outcome == Outcome::Woken && has(is_held_once) => {
                "Wait with the body unread; send it once, and never again."
            }
            Risk::High => {
                "Do not silently replay. Require explicit idempotency or return controlled \
                 retryable failure."
            }
            Risk::Medium if has(|kind| matches!(kind, StepKind::FindSession(_))) => {
                "Prefer original allocation. Hydrate only if durable store and schema compatibility \
                 prove it."
            }
            Risk::Medium if has(|kind| matches!(kind, StepKind::RunPreview { .. })) => {
                "Preview is meaningful only if production can promote the exact validated artifact."
            }
            Risk::Medium if has(|kind| matches!(kind, StepKind::Wake { .. })) => {
                "Wake and hold within budget. Return clear retry/503 if readiness misses the budget."
            }
            _ => {
                "Serve directly. Allocation health selects target only inside route owner authority."
            }
        }
    }
}

/// Of an unsafe request without a key, which waits for its app where the contract says so.
fn is_held_once(kind: &StepKind) -> bool {
    matches!(kind, StepKind::Classify(Posture::Unsafe, ..))
}

/// The decision where the outcome alone says it.
fn decision_by_outcome(outcome: Outcome) -> Option<&'static str> {
    let problem = match outcome {
        Outcome::Asset => return Some("Serve from edge/object storage. Do not wake the app."),
        Outcome::Told => return Some("Answer at the edge. Do not wake the app for a question."),
        Outcome::Validated => return Some("Answer at the edge: an authority looks at this host."),
        Outcome::Welcomed => Problem::PreviewAccess,
        Outcome::Refused(problem) => problem,
        _ => return None,
    };
    Some(match problem {
        Problem::NoRoute => "Refuse: no route owner has authority over this request.",
        Problem::BadHost | Problem::BadPath | Problem::MalformedRequest => {
            "Refuse: a request with two readings is how one is smuggled."
        }
        Problem::TargetTooLong | Problem::HeadTooLarge => "Refuse: the head is beyond its bounds.",
        Problem::MethodRefused | Problem::MaxForwards => {
            "Answer at the edge: this request goes to no app."
        }
        Problem::HttpsRequired => "Answer at the edge: this app is served over HTTPS.",
        Problem::Misdirected => "Refuse: the connection was opened for another host.",
        Problem::TooManyRequests => "Refuse: one client has its share of what the edge can carry.",
        Problem::PreviewAccess | Problem::TooManyAttempts => {
            "Let a client see the preview only with its token."
        }
        Problem::AssetNotFound => "Refuse: the file is in no artifact. Do not wake the app for it.",
        Problem::ArtifactUnavailable => {
            "Refuse: nothing is served in place of an artifact that cannot be had."
        }
        Problem::Asleep => "Leave asleep: the contract says that this request is not worth a wake.",
        _ => return None,
    })
}

fn sent_after(attempt: u32) -> String {
    format!("on disk before the first byte; attempt {attempt}")
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

fn found_values(found: &Found) -> (String, String) {
    let value = match &found.prior {
        Some(p) => format!("{} generation {} ({})", p.allocation, p.generation, p.known_by.name()),
        None => "none".into(),
    };
    let detail = match (found.original, found.has_id, &found.browser_on) {
        (Some(original), ..) => original.name().to_owned(),
        (None, true, None) => "a session id, and no record of it".into(),
        (None, false, None) => "no token and no session id".into(),
        (None, true, Some(at)) => {
            format!("a session id, and no record of it; its browser is on {at}")
        }
        (None, false, Some(at)) => format!("no session id; its browser is on {at}"),
    };
    let unread = if found.record_unavailable { "; the record could not be read" } else { "" };
    (value, format!("{detail}{unread}"))
}

pub(super) fn store_values(step: StoreStep) -> (&'static str, &'static str) {
    match step {
        StoreStep::Original => ("not asked", "the original allocation takes it"),
        StoreStep::NoSession => ("not asked", "no session to look for"),
        StoreStep::NotPromised => ("not asked", "cross-allocation resume is not promised"),
        StoreStep::NoStore => ("not asked", "the contract declares none"),
        StoreStep::Asked(StoreAnswer::NotAsked) => ("would be asked", ""),
        StoreStep::Asked(StoreAnswer::Present) => ("present", ""),
        StoreStep::Asked(StoreAnswer::Absent) => ("absent", ""),
        StoreStep::Asked(StoreAnswer::Unavailable) => ("unavailable", "no answer in time"),
    }
}

fn hydrate_values(
    verdict: Option<Verdict>,
    (written, target): (Option<Digest>, Option<Digest>),
) -> (String, String) {
    let Some(verdict) = verdict else {
        return ("would be decided".into(), "by the store's answer and the schemas".into());
    };
    let short = |d: Option<Digest>| d.map_or_else(|| "none".into(), |d| d.short());
    let schemas = match (written, target) {
        (None, None) => String::new(),
        _ => format!("; schema {} on {}", short(written), short(target)),
    };
    (verdict.name().into(), format!("{}{schemas}", verdict.reason()))
}
