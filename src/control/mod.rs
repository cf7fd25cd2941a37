//! Changes of shared truth that no request waits for. Each of these owns one thing and its locks:
//! [`Routing`] what is shown, [`Owners`] who answers a host, [`Deployments`] what was deployed,
//! [`Promotions`] what is to move, [`Counts`] what previews answered, [`Previews`] when they go,
//! [`OneOffs`] and [`Workers`] what runs beside allocations, [`Schedules`] what is started by the time,
//! [`EnvVars`] what an operator sets for an environment, [`Decisions`] what of it is to be in the audit,
//! [`Collector`] what nothing refers to, [`Sleeper`] which environments fall asleep and how, [`Retirer`]
//! what is over, [`Reloader`] the configuration in force.
//!
//! [`vango_edge_core::control`] decides. These files perform.

mod check;
mod collector;
mod counts;
mod decisions;
mod deployments;
mod env_vars;
mod one_offs;
mod owners;
mod previews;
mod promotion_work;
mod promotions;
mod reload;
mod retirer;
mod routing;
mod schedules;
mod sleeper;
mod workers;

pub use vango_edge_core::control::{allocations, promotion};

pub use crate::runner::PATH as APP_PATH;
pub use check::check;
pub use collector::{CollectError, Collected, Collector, trim};
pub use counts::{Counts, EvidenceError};
pub use decisions::{Decisions, Keep};
pub use deployments::{DeployError, Deployed, Deployments, Effect};
pub use env_vars::{EnvVars, EnvVarsChange, EnvVarsError};
pub use one_offs::{
    Command, ExecError, Execution, LIMITS, NoInput, OneOffs, did_all, without_secrets,
};
pub use owners::Owners;
pub use previews::{Previews, RemoveError};
pub use promotion_work::PromotionWork;
pub use promotions::{Candidate, PromoteError, Promotions};
pub use reload::{Attempt, Commit, Prepare, ReloadState, Reloader};
pub use retirer::Retirer;
pub use routing::{Externals, Routing};
pub use schedules::{CronView, Decided, Schedules};
pub use sleeper::{Sleeper, Slept};
pub use workers::{WorkerState, Workers};

use std::sync::Arc;

use crate::wake::Wakes;

/// What carries out operators' commands.
pub struct Commands {
    pub wakes: Arc<Wakes>,
    pub sleeper: Arc<Sleeper>,
    pub deployments: Arc<Deployments>,
    /// Moves owners.
    pub promotions: Arc<Promotions>,
    /// Knows what previews answered.
    pub counts: Arc<Counts>,
    pub previews: Arc<Previews>,
    /// What runs beside allocations.
    pub workers: Arc<Workers>,
    /// What is started by the time.
    pub schedules: Arc<Schedules>,
    /// Removes what nothing refers to.
    pub collector: Arc<Collector>,
    pub one_offs: Arc<OneOffs>,
    pub env_vars: Arc<EnvVars>,
    /// What goes to the audit.
    pub decisions: Arc<Decisions>,
}
