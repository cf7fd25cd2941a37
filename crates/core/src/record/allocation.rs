//! Allocations: each start of an environment, the process that it became, and which session was accepted
//! on which.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::clock::Wall;
use crate::id::{AllocationId, Digest, Environment, Epoch, Generation, OperationId};

use super::Record;

/// The life of an allocation: `planned → starting → ready → draining → stopping`, then it leaves the
/// registry; or `draining → frozen`, and from there back to `ready` by a wake, or to `stopping`.
/// `draining` may go back to `ready`: when work came after all, or when a wake finds it still there.
/// `stopping` is the point of no return. A failed allocation leaves the registry; the operation's
/// record keeps the reason.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
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
        self.into()
    }

    /// All of them.
    pub const ALL: &[Self] = Self::VARIANTS;
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
    pub id: AllocationId,
    pub environment: Environment,
    /// Which start of the environment this was.
    pub generation: Generation,
    /// The owner's epoch under which it was started; it serves under no other.
    pub epoch: Epoch,
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

/// How often an environment has been started. Outlives its allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    /// The last generation given out.
    pub generation: Generation,
}
impl Record for Starts {
    const KIND: &'static str = "starts";
}

/// Where a live session's socket was last accepted. Its key carries a hash of the session's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRoute {
    /// On this allocation,
    pub allocation: AllocationId,
    /// which was this start of its environment
    pub generation: Generation,
    /// and ran this artifact,
    pub digest: Digest,
    /// which writes its sessions' state under this schema; `None` where it declares none.
    pub schema: Option<Digest>,
    /// When. Records go by it.
    pub at: Wall,
}
impl Record for SessionRoute {
    const KIND: &'static str = "session-route";
}
