//! How long what is not used is kept: deployments, previews, and finished operations. Pure.
//!
//! A deployment is needed that owns its routes, that a promotion in progress stands on, that was replaced
//! (or made and never used) less than the retention ago, and so are the newest few of each environment
//! whatever their age, so that there is something to go back to. Ages are by the wall clock: one that goes
//! back keeps things for longer, never shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::id::{DeploymentId, Environment};
use crate::record::Deployment;
use crate::snapshot::EnvView;

/// How long what is not used is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// At least so long after it was replaced or, if it never owned anything, made.
    pub retention: Duration,
    /// At least so many of each environment.
    pub newest: usize,
}

/// The deployments that nothing refers to. `used` are owners, and what promotions that go on stand on.
pub fn removable<'d>(
    all: &'d [Deployment],
    used: &BTreeSet<DeploymentId>,
    rules: Rules,
    now: Wall,
) -> Vec<&'d Deployment> {
    let mut by_environment: BTreeMap<&Environment, Vec<&Deployment>> = BTreeMap::new();
    for deployment in all.iter().filter(|d| !used.contains(&d.id)) {
        by_environment.entry(&deployment.environment).or_default().push(deployment);
    }
    let last_used = |d: &Deployment| d.replaced.unwrap_or(d.created);
    let mut out = Vec::new();
    for mut unused in by_environment.into_values() {
        unused.sort_by_key(|d| std::cmp::Reverse((last_used(d), d.id.clone())));
        let old = |d: &&Deployment| now.since(last_used(d)) >= rules.retention;
        out.extend(unused.into_iter().skip(rules.newest).filter(old));
    }
    out
}

/// This process has to have seen nothing of a preview for so long (or its age, if that is shorter) before
/// it is removed, whatever the wall clock says: one that jumps forward, and a node that was off for weeks,
/// remove nothing at once.
const SURE: Duration = Duration::from_secs(3600);
/// Uses are written down so often at most, or ten times in an age, if that is shorter.
const WRITE_EVERY: Duration = Duration::from_secs(3600);

/// What of a preview says that it is used. One is over its age when nothing was deployed to it, nothing asked
/// for it and nothing was open in it for as long as its app's `preview_age`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    deployment: DeploymentId,
    served: u64,
    open: bool,
}

impl Mark {
    /// As `view` shows it now.
    pub fn of(view: &EnvView) -> Self {
        let all = || view.ready.iter().chain(&view.others);
        let open =
            view.counters.waiting() > 0 || all().any(|a| a.load.in_flight() + a.load.sockets() > 0);
        Self { deployment: view.owner.deployment.clone(), served: view.counters.served(), open }
    }
}

/// What this process has seen of a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewUse {
    mark: Mark,
    /// Nothing came since.
    quiet_since: Mono,
    /// The last use that was seen, and is not written down.
    used: Option<Wall>,
    /// When a use was last written down.
    written: Option<Mono>,
}

impl PreviewUse {
    /// After another look. The first look says nothing of what was before.
    pub fn after(before: Option<Self>, mark: Mark, now: Mono, wall: Wall) -> Self {
        let Some(before) = before else {
            return Self { mark, quiet_since: now, used: None, written: None };
        };
        if mark == before.mark && !mark.open {
            return before;
        }
        Self { mark, quiet_since: now, used: Some(wall), written: before.written }
    }

    /// The use that is to be written down now; it counts as written from here on.
    pub fn to_write(&mut self, age: Duration, now: Mono) -> Option<Wall> {
        let every = WRITE_EVERY.min(age / 10);
        self.used?;
        if self.written.is_some_and(|at| now.since(at) < every) {
            return None;
        }
        self.written = Some(now);
        self.used.take()
    }

    /// It could not be written down: the next look tries again.
    pub fn not_written(&mut self, used: Wall) {
        self.written = None;
        self.used = self.used.or(Some(used));
    }

    /// Whether it has been quiet for long enough here to look at what is on record.
    pub fn is_quiet(&self, age: Duration, now: Mono) -> bool {
        self.used.is_none() && now.since(self.quiet_since) >= age.min(SURE)
    }
}

/// Whether a preview that is quiet is over `age`: made, and used as far as is on record, so long ago.
pub fn is_over_age(created: Wall, used: Option<Wall>, age: Duration, now: Wall) -> bool {
    now.since(used.map_or(created, |u| u.max(created))) >= age
}

/// Finished operations that are kept, at most.
pub const HISTORY: usize = 10_000;
/// How long a finished operation is kept.
pub const HISTORY_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How many of the history's `keys`, oldest first, have been kept long enough.
///
/// `from` is the key at which those of a time begin.
pub fn expired(keys: &[String], from: fn(Wall) -> String, now: Wall) -> usize {
    let oldest = from(Wall(now.0.saturating_sub(HISTORY_AGE.as_millis() as u64)));
    let too_old = keys.partition_point(|k| *k < oldest);
    too_old.max(keys.len().saturating_sub(HISTORY))
}

#[cfg(test)]
mod tests;
