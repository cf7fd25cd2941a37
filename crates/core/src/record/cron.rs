//! What is on record of schedules.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::clock::Wall;
use crate::id::{Digest, Environment, Epoch};

/// One entry of an environment's schedule: up to when it is settled, and its last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronState {
    pub environment: Environment,
    pub name: String,
    /// No time up to this one is run any more.
    pub settled: Wall,
    pub last: Option<CronRun>,
}
impl Record for CronState {
    const KIND: &'static str = "cron";
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronRun {
    /// The time of the schedule that it is for.
    pub due: Wall,
    pub started: Wall,
    /// Under which epoch, from which artifact.
    pub epoch: Epoch,
    pub digest: Digest,
    /// How it ended; none while it goes on.
    pub ended: Option<CronEnd>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronEnd {
    pub at: Wall,
    /// It did what it is for: exit code 0, or a 2xx.
    pub ok: bool,
    /// `exit code 1`, `status 500`, or why it did not run.
    pub how: String,
}
