//! Wake operations: what is being woken, how far it came, and who executes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, OperationId};

use super::Record;

/// Where a wake operation is. Exits of each state:
/// `wake_requested → starting | failed`, `starting → readiness_wait | failed`,
/// `readiness_wait → hot | failed`, and `starting → hot` when an allocation that is still in memory
/// is taken back. A new claim, after an executor was lost, leads from any of the first three to `starting`
/// with the next attempt. `hot → failed` only where the allocation ends before it has proved itself. A
/// later wake is a new operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum WakeState {
    /// Recorded; maybe no executor has taken it up yet.
    WakeRequested,
    /// The artifact is being verified and its process spawned.
    Starting,
    /// The process exists; its readiness is being waited for.
    ReadinessWait,
    /// The allocation is ready.
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
        self.into()
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

impl Failure {
    /// A failure that says nothing of the artifact.
    pub fn new(safe: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { safe: safe.into(), detail: detail.into(), artifact: false }
    }
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
    /// How many times it was claimed; 0 before the first.
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
    pub node: String,
    pub operation: OperationId,
    /// The attempt it claimed.
    pub attempt: u32,
}
impl Record for Executor {
    const KIND: &'static str = "executor";
}
