//! What the store holds: every record's versioned form, its key, and nothing else.
//!
//! A stored value is JSON `{"kind":…,"v":…,"body":…}`. A kind or version this build does not know is
//! an error, never a guess: an older edge must not rewrite what a newer one wrote.
//! Keys are the ones a fleet uses in etcd, so that the rules over them need no second form.
//! Wall times here are for people; nothing in the edge computes a deadline from them.

pub mod ledger;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{
    AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, Host, OperationId,
};

mod session;

pub use session::SessionRoute;

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
        /// The kind found.
        found_kind: String,
        /// The version found.
        found: u32,
    },
}

/// A record with a kind and a version.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the kind in the stored form.
    const KIND: &'static str;
    /// Version that this build writes, and the highest it reads.
    const VERSION: u32 = 1;

    /// The stored form.
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

/// Who owns a host and path prefix, and under which epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteOwner {
    /// The host.
    pub host: Host,
    /// The path prefix; `/` is the only one given out today.
    pub path: String,
    /// The environment that answers.
    pub environment: Environment,
    /// Its current deployment.
    pub deployment: DeploymentId,
    /// The deployment's artifact.
    pub digest: Digest,
    /// Only grows; see [`Epoch`].
    pub epoch: Epoch,
}
impl Record for RouteOwner {
    const KIND: &'static str = "route-owner";
}

/// An artifact that was given to an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its id.
    pub id: DeploymentId,
    /// The environment it was made for.
    pub environment: Environment,
    /// The artifact: an OCI manifest digest.
    pub digest: Digest,
    /// Text of the artifact's `vango-edge.toml`, as verified when the deployment was made.
    pub contract: String,
    /// When it was made.
    pub created: Wall,
    /// Files in the artifact.
    pub files: u64,
    /// Bytes in those files.
    pub bytes: u64,
    /// The index of its static files, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<Digest>,
    /// When another deployment took the environment's routes over; `None` for the one that owns them
    /// and for one that never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Wall>,
    /// The deployment that was promoted to this one: the same artifact in another environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<DeploymentId>,
    /// The hash in the artifact's `state.schema_file`, where its contract names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Digest>,
}
impl Record for Deployment {
    const KIND: &'static str = "deployment";
}

/// The life of an allocation: `planned → starting → ready → draining → stopping`, then it leaves the
/// registry; or `draining → frozen`, and from there back to `ready` by a wake, or to `stopping`.
/// `draining` may go back to `ready`: when work came after all, or when a wake finds it still there.
/// `stopping` is the point of no return. A failed allocation leaves the registry; the operation's
/// record keeps the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllocationState {
    /// Written before anything is spawned, so that a crash leaves no process without a record.
    Planned,
    /// The process exists; not ready.
    Starting,
    /// Takes requests.
    Ready,
    /// Takes no new requests; in-flight ones finish.
    Draining,
    /// Is in memory and has no processor time.
    Frozen,
    /// Is being ended.
    Stopping,
}

impl AllocationState {
    /// The word shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Frozen => "frozen",
            Self::Stopping => "stopping",
        }
    }

    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Planned, Self::Starting, Self::Ready, Self::Draining, Self::Frozen, Self::Stopping];
}

/// The process of an allocation: enough to be sure, after a restart, that a pid is still it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id, which is also its process group.
    pub pid: u32,
    /// Clock ticks from boot to the process's start (`/proc/PID/stat`, field 22; proc(5)).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` at the time.
    pub boot_id: String,
    /// Its cgroup v2 directory, where one was made.
    pub cgroup: Option<std::path::PathBuf>,
}

/// One started (or starting) copy of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Its id.
    pub id: AllocationId,
    /// Whose it is.
    pub environment: Environment,
    /// Which start of the environment this was.
    pub generation: Generation,
    /// The owner's epoch under which it was started; it serves under no other.
    pub epoch: Epoch,
    /// What it runs.
    pub digest: Digest,
    /// Where it is in its life.
    pub state: AllocationState,
    /// Where it listens, once spawned.
    pub address: Option<SocketAddr>,
    /// Its process, once spawned.
    pub process: Option<Process>,
    /// The last wake that made it ready: the one that started it, or that thawed it.
    pub operation: OperationId,
    /// When it was planned.
    pub created: Wall,
    /// When it became ready.
    pub ready: Option<Wall>,
}
impl Record for Allocation {
    const KIND: &'static str = "allocation";
    /// 2 added the states `frozen` and `stopping`.
    const VERSION: u32 = 2;
}

/// Where a wake operation is. Exits of each state:
/// `wake_requested → starting | failed`, `starting → readiness_wait | failed`,
/// `readiness_wait → hot | failed`, and `starting → hot` when an allocation that is still in memory
/// is taken back; an executor that is lost takes any of the first three back to
/// `wake_requested` with the next attempt. `hot` and `failed` are terminal: a later wake is a new
/// operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WakeState {
    /// Recorded; nobody may have taken it up yet.
    WakeRequested,
    /// The artifact is being verified and its process spawned.
    Starting,
    /// The process exists; its readiness is being waited for.
    ReadinessWait,
    /// Terminal: the allocation is ready.
    Hot,
    /// Terminal: the reason says why.
    Failed,
}

impl WakeState {
    /// Neither hot nor failed.
    pub fn in_progress(self) -> bool {
        !matches!(self, Self::Hot | Self::Failed)
    }
    /// The platform's own word.
    pub fn name(self) -> &'static str {
        match self {
            Self::WakeRequested => "wake_requested",
            Self::Starting => "starting",
            Self::ReadinessWait => "readiness_wait",
            Self::Hot => "hot",
            Self::Failed => "failed",
        }
    }
}

/// How long each phase of a wake took, in microseconds on the executor's monotonic clock.
/// A phase not reached is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WakePhases {
    /// From the request to an executor's claim.
    pub reserve_us: Option<u64>,
    /// Verifying the artifact and laying out its tree.
    pub artifact_us: Option<u64>,
    /// Spawning the process.
    pub spawn_us: Option<u64>,
    /// From the spawn to readiness.
    pub ready_us: Option<u64>,
    /// Taking back an allocation that was still in memory, instead of all but the first.
    #[serde(default)]
    pub thaw_us: Option<u64>,
}

impl WakePhases {
    /// All phases together.
    pub fn total(&self) -> Duration {
        let all = [self.reserve_us, self.artifact_us, self.spawn_us, self.ready_us, self.thaw_us];
        Duration::from_micros(all.iter().flatten().sum())
    }
}

/// Why a wake failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    /// What a client may be told.
    pub safe: String,
    /// What an operator needs; may name paths, never secrets.
    pub detail: String,
    /// The artifact is missing or damaged: what is told is that, and not that the app failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub artifact: bool,
}

/// One wake of one environment. Stored under the environment's key, so that there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Public id.
    pub id: OperationId,
    /// What is woken.
    pub environment: Environment,
    /// The owner's epoch it was decided under.
    pub epoch: Epoch,
    /// The owner's artifact at that epoch.
    pub digest: Digest,
    /// The owner's deployment at that epoch.
    pub deployment: DeploymentId,
    /// Where it is.
    pub state: WakeState,
    /// Who executes it, counted; 0 until it is claimed.
    pub attempt: u32,
    /// When it was asked for.
    pub requested: Wall,
    /// When it last changed.
    pub changed: Wall,
    /// How long its phases took.
    pub phases: WakePhases,
    /// The allocation it plans, starts or started.
    pub allocation: Option<AllocationId>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Failures in a row of this environment under this digest, this one included.
    pub failures: u32,
    /// After a failure: how long no new start is tried, in milliseconds from the failure.
    pub backoff_ms: u64,
    /// What a wake of this digest takes, in milliseconds: moving average over those seen; 0 unknown.
    pub typical_ms: u64,
}
impl Record for Operation {
    const KIND: &'static str = "operation";
    /// 2 added the phase `thaw_us`.
    const VERSION: u32 = 2;
}

/// Who executes an environment's operation now. Held under a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executor {
    /// The node.
    pub node: String,
    /// The operation.
    pub operation: OperationId,
    /// The attempt it claimed.
    pub attempt: u32,
}
impl Record for Executor {
    const KIND: &'static str = "executor";
}

/// Where a promotion is. Exits of each state: `requested → policy_check`,
/// `policy_check → route_cas | failed`, `route_cas → edge_propagating | rolled_back | failed`,
/// `edge_propagating → healthy | rolled_back | failed`. The last three are terminal. An executor that
/// is lost leaves the state as it is, for the next one to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromotionState {
    /// Recorded; nobody may have taken it up yet.
    Requested,
    /// The evidence is being judged.
    PolicyCheck,
    /// An allocation of the next epoch is being started; the owner moves once it is ready.
    RouteCas,
    /// The owner has moved; the edges are taking it up.
    EdgePropagating,
    /// Terminal: an allocation of the new epoch answers.
    Healthy,
    /// Terminal: it could not become healthy; what served before serves.
    RolledBack,
    /// Terminal: refused, or overtaken; nothing was changed.
    Failed,
}

impl PromotionState {
    /// Not terminal.
    pub fn in_progress(self) -> bool {
        !matches!(self, Self::Healthy | Self::RolledBack | Self::Failed)
    }
    /// The platform's own word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::PolicyCheck => "policy_check",
            Self::RouteCas => "route_cas",
            Self::EdgePropagating => "edge_propagating",
            Self::Healthy => "healthy",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }
}

/// Why an owner is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromotionKind {
    /// To an artifact that was validated; the policy counts.
    Promote,
    /// To one that owned the routes before.
    Rollback,
    /// A preview that is awake gets its next artifact.
    Redeploy,
}

impl PromotionKind {
    /// The word shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Rollback => "rollback",
            Self::Redeploy => "redeploy",
        }
    }
}

/// An owner, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSeen {
    /// Its deployment.
    pub deployment: DeploymentId,
    /// The deployment's artifact.
    pub digest: Digest,
    /// Its epoch.
    pub epoch: Epoch,
}

/// One move of an environment's owner to another artifact. Stored under the environment's key, so that
/// there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// Public id.
    pub id: OperationId,
    /// Whose routes.
    pub environment: Environment,
    /// Why.
    pub kind: PromotionKind,
    /// The environment of the deployment whose evidence counts.
    pub source_environment: Environment,
    /// That deployment.
    pub source: DeploymentId,
    /// The deployment that is to own the routes, of `environment`.
    pub deployment: DeploymentId,
    /// Its artifact, the same as the source's.
    pub digest: Digest,
    /// The owner that it was decided on; `None` when nobody owned the routes.
    pub from: Option<OwnerSeen>,
    /// Where it is.
    pub state: PromotionState,
    /// Who executes it, counted; 0 until it is claimed.
    pub attempt: u32,
    /// When it was asked for.
    pub requested: Wall,
    /// When it last changed.
    pub changed: Wall,
    /// The allocation that is to prove it.
    pub allocation: Option<AllocationId>,
    /// The epoch under which the owner moved.
    pub epoch: Option<Epoch>,
    /// Why it failed or was rolled back.
    pub failure: Option<Failure>,
    /// The in-toto statement of what was verified, once it was.
    pub statement: Option<String>,
}
impl Record for Promotion {
    const KIND: &'static str = "promotion";
}

/// A named check of a deployment, made by somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCheck {
    /// Whether it passed.
    pub passed: bool,
    /// What was said about it.
    pub note: String,
    /// When it was recorded.
    pub at: Wall,
}

/// What is known of a deployment's behaviour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// In which environment it served.
    pub environment: Environment,
    /// Its artifact.
    pub digest: Digest,
    /// Requests that were answered with it.
    pub requests: u64,
    /// Those among them that were answered 5xx.
    pub errors: u64,
    /// Named checks; the last word of each counts.
    pub checks: std::collections::BTreeMap<String, NamedCheck>,
    /// When it last changed.
    pub changed: Wall,
}
impl Record for Evidence {
    const KIND: &'static str = "evidence";
}

/// How often an environment has been started. Outlives its allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    /// The last generation given out.
    pub generation: Generation,
}
impl Record for Starts {
    const KIND: &'static str = "starts";
}

/// Hosts that were taken off their environments, with the owner each had last: so that whoever owns
/// one next does so under a later epoch, and an environment that gets its hosts back serves what it
/// served. At most [`Retired::MOST`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retired {
    /// The last owner of each.
    pub hosts: BTreeMap<Host, RouteOwner>,
    /// No host that is forgotten here had an epoch above this one.
    pub floor: Epoch,
}
impl Record for Retired {
    const KIND: &'static str = "retired";
}

impl Retired {
    /// Hosts remembered one by one; the one with the lowest epoch is forgotten first.
    pub const MOST: usize = 512;

    /// Remembers the last owner of a host.
    pub fn add(&mut self, owner: RouteOwner) {
        self.hosts.insert(owner.host.clone(), owner);
        while self.hosts.len() > Self::MOST
            && let Some(oldest) = self.hosts.values().min_by_key(|o| o.epoch).cloned()
        {
            self.floor = self.floor.max(oldest.epoch);
            self.hosts.remove(&oldest.host);
        }
    }

    /// The epoch that a new owner of `host` has to be above.
    pub fn last_epoch(&self, host: &Host) -> Epoch {
        self.hosts.get(host).map_or(self.floor, |o| o.epoch)
    }
}

/// Keys, as FLEET names them.
pub mod key {
    use super::{AllocationId, DeploymentId, Environment, Host, OperationId, Wall};

    /// Prefix of all route owners.
    pub const OWNERS: &str = "r/";
    /// Prefix of all allocations.
    pub const ALLOCATIONS: &str = "a/";
    /// Prefix of all current operations.
    pub const OPERATIONS: &str = "op/";
    /// Prefix of all executors.
    pub const EXECUTORS: &str = "own/";
    /// Prefix of all deployments.
    pub const DEPLOYMENTS: &str = "d/";
    /// Hosts that nobody owns any more.
    pub const RETIRED: &str = "retired";
    /// Prefix of all sessions' routes.
    pub const SESSIONS: &str = "s/";
    /// Prefix of finished operations, oldest first.
    pub const HISTORY: &str = "oplog/";
    /// Prefix of all current promotions.
    pub const PROMOTIONS: &str = "pr/";
    /// Prefix of the executors of promotions.
    pub const PROMOTERS: &str = "prown/";
    /// Prefix of finished promotions, oldest first.
    pub const PROMOTED: &str = "prlog/";
    /// Prefix of all evidence.
    pub const EVIDENCE: &str = "ev/";

    /// The environment's promotion.
    pub fn promotion(environment: &Environment) -> String {
        format!("pr/{environment}")
    }
    /// The promotion's executor.
    pub fn promoter(environment: &Environment) -> String {
        format!("prown/{environment}")
    }
    /// A finished promotion; keys sort by the time it was requested.
    pub fn promoted(requested: Wall, id: &OperationId) -> String {
        format!("{}{id}", promoted_from(requested))
    }
    /// Promotions requested at `at` or later have keys that sort at or after this.
    pub fn promoted_from(at: Wall) -> String {
        format!("prlog/{:016x}/", at.0)
    }
    /// What is known of one deployment.
    pub fn evidence(environment: &Environment, id: &DeploymentId) -> String {
        format!("ev/{environment}/{id}")
    }
    /// All deployments of an environment.
    pub fn deployments(environment: &Environment) -> String {
        format!("d/{environment}/")
    }
    /// All deployments of an app.
    pub fn deployments_of(app: &crate::id::AppName) -> String {
        format!("d/{app}/")
    }

    /// Owner of `host` and `path`. Two hash digits first, so that a fleet can page by them.
    pub fn owner(host: &Host, path: &str) -> String {
        let hash = host
            .as_str()
            .bytes()
            .fold(0xcbf2_9ce4_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        format!("r/{:02x}/{host}{path}", hash as u8)
    }
    /// One allocation.
    pub fn allocation(environment: &Environment, id: &AllocationId) -> String {
        format!("a/{environment}/{id}")
    }
    /// All allocations of an environment.
    pub fn allocations(environment: &Environment) -> String {
        format!("a/{environment}/")
    }
    /// The environment's operation.
    pub fn operation(environment: &Environment) -> String {
        format!("op/{environment}")
    }
    /// The operation's executor.
    pub fn executor(environment: &Environment) -> String {
        format!("own/{environment}")
    }
    /// One deployment.
    pub fn deployment(environment: &Environment, id: &DeploymentId) -> String {
        format!("d/{environment}/{id}")
    }
    /// Where one session was; `name` stands for its id, which is in no key.
    pub fn session(environment: &Environment, name: &impl std::fmt::Display) -> String {
        format!("s/{environment}/{name}")
    }
    /// The environment's start counter.
    pub fn starts(environment: &Environment) -> String {
        format!("g/{environment}")
    }
    /// A finished operation; keys sort by the time it was requested.
    pub fn history(requested: Wall, id: &OperationId) -> String {
        format!("{}{id}", history_from(requested))
    }
    /// Operations requested at `at` or later have keys that sort at or after this.
    pub fn history_from(at: Wall) -> String {
        format!("oplog/{:016x}/", at.0)
    }
}

#[cfg(test)]
mod tests {
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
