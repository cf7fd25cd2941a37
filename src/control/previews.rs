//! Previews are taken away: by a command, or for their age ([`vango_edge_core::control::keep`] decides).
//! The hosts have no owner any more, the allocations end, the artifact is kept as long as any that was
//! replaced. Never one whose artifact is being promoted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use vango_edge_core::control::allocations::SleepFor;
use vango_edge_core::control::keep::{self, Mark, PreviewUse};

use crate::clock::Wall;
use crate::id::{DeploymentId, Environment, OperationId};
use crate::node::{Node, ReadError, as_read};
use crate::record::{Deployment, Promotion, Record, Used, key};
use crate::snapshot::EnvView;
use crate::store::{StoreError, Txn};

use super::counts::Counts;
use super::decisions::Decisions;
use super::owners::Owners;
use super::routing::Routing;
use super::sleeper::Sleeper;

/// How often previews are looked at; more often where an app's age is short: ten times in it.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is asked whether it is time to; a reload may have changed it.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Why a preview was not removed. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Production goes only with its app's configuration.
    #[error("{0} is no preview: production goes when its app's file under conf/apps does")]
    Production(Environment),
    /// There is no such preview.
    #[error("there is no preview {0}; `vango-edge routes` lists them")]
    None(Environment),
    /// It moves to another artifact, or its own is being promoted.
    #[error("{0} moves it to another artifact or promotes its own; wait for it")]
    Busy(OperationId),
    /// Another transaction changed its owner meanwhile.
    #[error("its owner changed meanwhile; nothing was done, try again")]
    Raced,
    /// What is there could not be read or changed.
    #[error("{0}")]
    Read(ReadError),
}

impl From<ReadError> for RemoveError {
    fn from(e: ReadError) -> Self {
        if e.is_conflict() { Self::Raced } else { Self::Read(e) }
    }
}

pub struct Previews {
    node: Node,
    counts: Arc<Counts>,
    owners: Arc<Owners>,
    sleeper: Arc<Sleeper>,
    routing: Arc<Routing>,
    decisions: Arc<Decisions>,
}

impl Previews {
    /// Each removal is on record with what `decisions` have of it.
    pub fn new(
        node: Node,
        counts: Arc<Counts>,
        owners: Arc<Owners>,
        sleeper: Arc<Sleeper>,
        routing: Arc<Routing>,
        decisions: Arc<Decisions>,
    ) -> Arc<Self> {
        Arc::new(Self { node, counts, owners, sleeper, routing, decisions })
    }

    /// Removes a preview, at the command of `by`.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove(&self, environment: &Environment, by: &str) -> Result<(), RemoveError> {
        self.remove_if(environment, None, &format!("{by} asked for it")).await
    }

    /// The same, if it still runs the deployment `only`. `why` is for the audit.
    async fn remove_if(
        &self,
        environment: &Environment,
        only: Option<&DeploymentId>,
        why: &str,
    ) -> Result<(), RemoveError> {
        if environment.is_production() {
            return Err(RemoveError::Production(environment.clone()));
        }
        self.counts.flush().await;
        let _one = self.owners.change().await;
        let production = Environment::production(environment.app().clone());
        let txn = self.not_promoting(environment, environment).await?;
        let txn = txn.and(self.not_promoting(&production, environment).await?);
        let txn = txn.delete(key::promotion(environment)).delete(key::used(environment));
        let txn = txn.delete(key::variables(environment));
        let owners = self.node.owners_of(environment).await?;
        let newest = owners.iter().map(|f| &f.record).max_by_key(|o| o.epoch);
        let Some(newest) = newest.map(|o| o.deployment.clone()) else {
            return Err(RemoveError::None(environment.clone()));
        };
        if only.is_some_and(|only| *only != newest) {
            return Err(RemoveError::Raced);
        }
        let txn = txn.and(self.owners.give_up(owners).await?);
        let txn = txn.and(self.owners.replaced(environment, &newest).await?);
        let txn = self.decisions.with(txn, environment, "removed", why);
        let revision = self.node.commit(txn.synced()).await?;
        log::info!("{environment} was removed: {why}");
        self.decisions.bring().await;
        self.sleeper.sleep_detached(environment, SleepFor::Command);
        self.routing.shown(revision).await;
        Ok(())
    }

    /// Holds while no promotion of `moving` stands on `preview`, as none does now.
    async fn not_promoting(
        &self,
        moving: &Environment,
        preview: &Environment,
    ) -> Result<Txn, RemoveError> {
        let at = key::promotion(moving);
        let found = self.node.read::<Promotion>(&at).await?;
        let txn = as_read(Txn::new(), &at, found.as_ref());
        let goes_on = found.map(|f| f.record).filter(|p| p.state.in_progress());
        match goes_on {
            Some(p) if p.environment == *preview || p.source_environment == *preview => {
                Err(RemoveError::Busy(p.id))
            }
            _ => Ok(txn),
        }
    }

    /// Removes previews that are over their age, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut seen = HashMap::new();
        let mut looked = self.node.clock.now();
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let shortest =
                self.node.config.load().apps.values().filter_map(|a| a.preview_age).min();
            let every = shortest.map_or(LOOK_EVERY, |age| LOOK_EVERY.min(age / 10));
            if self.node.clock.now().since(looked) >= every {
                looked = self.node.clock.now();
                self.look_at_previews(&mut seen).await;
            }
        }
    }

    /// Looks at each preview once.
    async fn look_at_previews(&self, seen: &mut HashMap<Environment, PreviewUse>) {
        let snapshot = Arc::clone(&self.node.snapshots.load());
        let mut before = std::mem::take(seen);
        for view in snapshot.environments().filter(|v| !v.environment.is_production()) {
            let Some(age) = self.preview_age(&view.environment) else { continue };
            let (now, wall) = (self.node.clock.now(), self.node.clock.wall());
            let known = before.remove(&view.environment);
            let mut known = PreviewUse::after(known, Mark::of(view), now, wall);
            if let Some(used) = known.to_write(age, now)
                && let Err(e) = self.write_used(view, used).await
            {
                log::warn!("{}: that it is used was not written down: {e}", view.environment);
                known.not_written(used);
            }
            if known.is_quiet(age, now)
                && let Err(e) = self.remove_if_old(view, age).await
            {
                log::warn!("{}: it is not removed for its age: {e}", view.environment);
            }
            seen.insert(view.environment.clone(), known);
        }
    }

    /// `None`: its app is not configured here, or its previews stay.
    fn preview_age(&self, environment: &Environment) -> Option<Duration> {
        self.node.config.load().apps.get(environment.app())?.preview_age
    }

    async fn write_used(&self, view: &EnvView, at: Wall) -> Result<(), StoreError> {
        let Some(host) = view.hosts.first() else { return Ok(()) };
        // One that was removed meanwhile leaves nothing behind.
        let txn = Txn::new().exists(key::owner(host, "/"));
        let txn = txn.put(key::used(&view.environment), Used { at }.encode());
        self.node.commit_if(txn).await.map(drop)
    }

    async fn remove_if_old(&self, view: &EnvView, age: Duration) -> Result<(), RemoveError> {
        let (environment, deployment) = (&view.environment, &view.owner.deployment);
        let at = key::deployment(environment, deployment);
        let Some(found) = self.node.read::<Deployment>(&at).await? else { return Ok(()) };
        let created = found.record.created;
        let used = self.node.read::<Used>(&key::used(environment)).await?.map(|f| f.record.at);
        if !keep::is_over_age(created, used, age, self.node.clock.wall()) {
            return Ok(());
        }
        let last = used.map_or(created, |u| u.max(created));
        let why = format!("nothing was deployed to it and nothing asked for it since {last}");
        match self.remove_if(environment, Some(deployment), &why).await {
            // The next look finds out.
            Err(RemoveError::Busy(_) | RemoveError::Raced | RemoveError::None(_)) => Ok(()),
            other => other,
        }
    }
}
