//! Changes of shared truth that no request waits for: following the store, deployments, sleep,
//! exits, what an earlier process left, and what has been kept long enough.
//!
//! [`plan`] is pure: which records change. The other files perform.

mod deploy;
mod follow;
pub mod plan;
mod sleep;
mod trim;

pub use deploy::{DeployError, Deployed};

use std::sync::Arc;

use crate::artifact::Artifacts;
use crate::clock::{Clock, Entropy};
use crate::config::Config;
use crate::id::Environment;
use crate::snapshot::SnapshotReader;
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
    /// Those who wait.
    pub queues: Arc<HoldQueues>,
    /// Artifacts.
    pub artifacts: Arc<Artifacts>,
    /// What routing sees.
    pub snapshots: SnapshotReader,
    /// The operator's configuration.
    pub config: Arc<Config>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// Environments that are being put to sleep now.
    pub sleeping: std::sync::Mutex<std::collections::HashSet<Environment>>,
}
