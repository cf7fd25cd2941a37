//! Removes previews that are not used any more ([`super::plan::previews`] decides), as `vango-edge remove`
//! does. Never one whose artifact is being promoted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Wall;
use crate::id::Environment;
use crate::snapshot::EnvView;
use crate::store::record::{Deployment, Record, Used, key};
use crate::store::{StoreError, Txn};

use super::Control;
use super::plan::previews::{self, Mark, Seen};
use super::read::ReadError;
use super::remove::RemoveError;

/// How often previews are looked at; more often where an app's age is short: ten times in it.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is asked whether it is time to; a reload may have changed it.
const ASK_EVERY: Duration = Duration::from_millis(250);

impl Control {
    /// Removes previews that are over their age, for as long as the process runs.
    pub async fn remove_old_previews(self: &Arc<Self>) {
        let mut seen = HashMap::new();
        let mut looked = self.clock.now();
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let shortest = self.config.load().apps.values().filter_map(|a| a.preview_age).min();
            let every = shortest.map_or(LOOK_EVERY, |age| LOOK_EVERY.min(age / 10));
            if self.clock.now().since(looked) >= every {
                looked = self.clock.now();
                self.look_at_previews(&mut seen).await;
            }
        }
    }

    /// Looks at each preview once.
    async fn look_at_previews(self: &Arc<Self>, seen: &mut HashMap<Environment, Seen>) {
        let snapshot = Arc::clone(&self.snapshots.load());
        let mut before = std::mem::take(seen);
        for view in snapshot.environments().filter(|v| !v.environment.is_production()) {
            let Some(age) = self.preview_age(&view.environment) else { continue };
            let (now, wall) = (self.clock.now(), self.clock.wall());
            let known = before.remove(&view.environment);
            let mut known = Seen::after(known, Mark::of(view), now, wall);
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
        self.config.load().apps.get(environment.app())?.preview_age
    }

    async fn write_used(&self, view: &EnvView, at: Wall) -> Result<(), StoreError> {
        let Some(host) = view.hosts.first() else { return Ok(()) };
        // One that was removed meanwhile leaves nothing behind.
        let txn = Txn::new().exists(key::owner(host, "/"));
        let txn = txn.put(key::used(&view.environment), Used { at }.encode());
        match self.store.txn(txn).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn remove_if_old(
        self: &Arc<Self>,
        view: &EnvView,
        age: Duration,
    ) -> Result<(), RemoveError> {
        let (environment, deployment) = (&view.environment, &view.owner.deployment);
        let Some(entry) = self.store.get(&key::deployment(environment, deployment)).await? else {
            return Ok(());
        };
        let created = Deployment::decode(&entry.value).map_err(ReadError::from)?.created;
        let used = self.store.get(&key::used(environment)).await?;
        let used = used.map(|e| Used::decode(&e.value)).transpose().map_err(ReadError::from)?;
        let used = used.map(|u| u.at);
        if !previews::is_over_age(created, used, age, self.clock.wall()) {
            return Ok(());
        }
        let last = used.map_or(created, |u| u.max(created));
        let why = format!("nothing was deployed to it and nothing asked for it since {last}");
        match self.remove(environment, Some(deployment), &why).await {
            // The next look finds out.
            Err(RemoveError::Busy(_) | RemoveError::Raced | RemoveError::None(_)) => Ok(()),
            other => other,
        }
    }
}
