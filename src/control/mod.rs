//! Changes of shared truth that no request waits for: following the store, deployments, reloads,
//! sleep, exits, what an earlier process left, and what has been kept long enough.
//!
//! [`plan`] is pure: which records change. The other files perform.

mod deploy;
mod follow;
mod hosts;
mod inherit;
pub mod plan;
mod reload;
mod sleep;
mod trim;

pub use deploy::{DeployError, Deployed};
pub use inherit::TakenOver;
pub use reload::{Attempt, Commit, Prepare, ReloadState, Reloader};
pub use sleep::Slept;

use std::sync::Arc;

use crate::artifact::Artifacts;
use crate::clock::{Clock, Entropy};
use crate::config::Running;
use crate::id::Environment;
use crate::snapshot::SnapshotReader;
use crate::sockets::Sockets;
use crate::store::StateStore;
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
    /// Held while owners are made to follow the configuration, by a deployment or a reload.
    pub changing_owners: tokio::sync::Mutex<()>,
    /// Environments that are being put to sleep now.
    pub sleeping: std::sync::Mutex<std::collections::HashSet<Environment>>,
}
