//! Changes of shared truth that no request waits for: following the store, deployments, promotions,
//! evidence, reloads, sleep, exits, what an earlier process left, and what has been kept long enough.
//!
//! [`plan`] is pure: which records change. The other files perform.

mod age;
mod check;
mod collect;
mod deploy;
mod evidence;
mod follow;
mod hosts;
mod inherit;
mod keep;
pub mod plan;
pub mod promotion;
mod read;
mod reload;
mod remove;
mod retire;
mod sleep;
mod trim;

pub use check::check;
pub use collect::{CollectError, Collected};
pub use deploy::{DeployError, Deployed, Effect};
pub use evidence::{Counting, EvidenceError, MAX_CHECKS};
pub use follow::{Externals, Shown};
pub use inherit::TakenOver;
pub use reload::{Attempt, Commit, Prepare, ReloadState, Reloader};
pub use remove::RemoveError;
pub use sleep::Slept;

use std::sync::Arc;

use crate::artifact::Artifacts;
use crate::clock::{Clock, Entropy};
use crate::config::Running;
use crate::id::{AllocationId, Environment};
use crate::snapshot::SnapshotReader;
use crate::sockets::Sockets;
use crate::store::StateStore;
use crate::store::record::ledger::Evidence as Decision;
use crate::telemetry::Telemetry;
use crate::wake::hold::HoldQueues;
use crate::wake::worker::Worker;

/// What the control plane works with.
pub struct Control {
    /// Shared truth.
    pub store: Arc<dyn StateStore>,
    /// Performs wakes.
    pub worker: Arc<Worker>,
    /// Live sockets that are open.
    pub sockets: Arc<Sockets>,
    /// Those who wait.
    pub queues: Arc<HoldQueues>,
    /// Artifacts.
    pub artifacts: Arc<Artifacts>,
    /// What routing sees.
    pub snapshots: SnapshotReader,
    /// The operator's configuration.
    pub config: Arc<Running>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// Takes down what was decided about an environment as a whole.
    pub decided: Box<dyn Fn(Decision) + Send + Sync>,
    /// What routing shows, for commands that wait for it.
    pub shown: tokio::sync::watch::Sender<Shown>,
    /// Held while owners are made to follow the configuration, by a deployment or a reload.
    pub changing_owners: tokio::sync::Mutex<()>,
    /// Read by what makes deployments, written by what collects those that nothing refers to.
    pub collecting: tokio::sync::RwLock<()>,
    /// Environments whose promotion this process executes now.
    pub promoting: std::sync::Mutex<std::collections::HashSet<Environment>>,
    /// Allocations that are being ended because their epoch is over.
    pub retiring: std::sync::Mutex<std::collections::HashSet<AllocationId>>,
    /// Deployments whose answers are counted.
    pub counting: std::sync::Mutex<Counting>,
    /// Environments that are being put to sleep now.
    pub sleeping: std::sync::Mutex<std::collections::HashSet<Environment>>,
}
