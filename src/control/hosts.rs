//! Makes the store's owners follow the hosts in the configuration; [`super::plan::hosts`] decides
//! how.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Config;
use crate::id::{AppName, Environment, Host};
use crate::store::record::{Record, RecordError, Retired, RouteOwner, key};
use crate::store::{StoreError, TXN_OPS, Txn};

use super::plan::hosts::{HostChange, reconcile};
use super::plan::sleep::SleepFor;
use super::{Control, plan};

/// Tries when the owners change meanwhile.
const TRIES: u32 = 5;
/// Entries asked for at a time.
const PAGE: usize = 1000;

/// Why owners could not follow.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The store could not be read or changed.
    #[error("hosts could not be moved: {0}")]
    Store(#[from] StoreError),
    /// An owner could not be read.
    #[error("hosts could not be moved: {0}")]
    Record(#[from] RecordError),
}

impl Control {
    /// Gives each deployed app the hosts that `config` says, and takes the others off. The caller
    /// holds `changing_owners`.
    ///
    /// # Errors
    /// [`HostsError`]. Each transaction is whole; an attempt that is repeated does what is left.
    pub async fn follow_hosts(self: &Arc<Self>, config: &Config) -> Result<(), HostsError> {
        let wanted: BTreeMap<AppName, Vec<Host>> = config
            .apps
            .values()
            .filter(|a| a.upstreams.is_none())
            .map(|a| (a.name.clone(), a.hosts.clone()))
            .collect();
        let mut tries = 0;
        loop {
            match self.follow_hosts_once(&wanted).await {
                Err(HostsError::Store(StoreError::Conflict { .. })) if tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    async fn follow_hosts_once(
        self: &Arc<Self>,
        wanted: &BTreeMap<AppName, Vec<Host>>,
    ) -> Result<(), HostsError> {
        let owners = self.owners().await?;
        let (retired, retired_at) = self.retired().await?;
        let mut changes = reconcile(wanted, &owners, &retired).into_iter().peekable();
        let mut retired_at = retired_at;
        // One transaction for all, unless they are too many for one.
        while changes.peek().is_some() {
            let (mut txn, mut retired, mut done) = (Txn::new(), None, Vec::new());
            let fits = |txn: &Txn, c: &HostChange| {
                txn.ops.is_empty() || txn.ops.len() + c.put.len() + c.delete.len() < TXN_OPS
            };
            while let Some(change) = changes.next_if(|c| fits(&txn, c)) {
                txn = with(txn, &change);
                retired = change.retired.clone().or(retired);
                done.push(change);
            }
            if let Some(retired) = &retired {
                txn = match retired_at {
                    Some(revision) => txn.unchanged(key::RETIRED, revision),
                    None => txn.absent(key::RETIRED),
                };
                txn = txn.put(key::RETIRED, retired.encode());
            }
            let revision = self.store.txn(txn.synced()).await?;
            if retired.is_some() {
                retired_at = Some(revision);
            }
            // What ends an environment's allocations looks at routing: none of them is chosen meanwhile.
            self.shown(revision).await;
            for change in done {
                self.hosts_followed(&change);
            }
        }
        Ok(())
    }

    fn hosts_followed(self: &Arc<Self>, change: &HostChange) {
        for (owner, _) in &change.put {
            log::info!("{} owns {} under epoch {}", owner.environment, owner.host, owner.epoch);
        }
        for (owner, _) in &change.delete {
            log::info!("{} owns {} no longer", owner.environment, owner.host);
        }
        if change.ends_allocations && change.put.is_empty() {
            let (control, environment) = (Arc::clone(self), change.environment.clone());
            tokio::spawn(async move { control.end_unrouted(&environment).await });
        }
        // What served under an earlier epoch is ended by [`super::retire`].
    }

    /// Ends the allocations of an environment that nothing reaches any more: no other task looks at
    /// them.
    async fn end_unrouted(&self, environment: &Environment) {
        if let Err(e) = self.sleep(environment, SleepFor::Command).await {
            log::warn!("{environment} has no host any more and was not stopped: {e}");
        }
    }

    async fn owners(&self) -> Result<Vec<(RouteOwner, u64)>, HostsError> {
        let mut owners = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(key::OWNERS, after.as_deref(), PAGE).await?;
            for (_, entry) in &page.entries {
                owners.push((RouteOwner::decode(&entry.value)?, entry.mod_revision));
            }
            after = page.entries.last().map(|(k, _)| k.clone());
            if !page.more {
                return Ok(owners);
            }
        }
    }

    /// Hosts without an owner, and the revision of their record.
    pub(super) async fn retired(&self) -> Result<(Retired, Option<u64>), HostsError> {
        match self.store.get(key::RETIRED).await? {
            Some(entry) => Ok((Retired::decode(&entry.value)?, Some(entry.mod_revision))),
            None => Ok((Retired::default(), None)),
        }
    }

    /// Wake budgets of deployed apps that `config` cannot keep.
    pub fn budget_errors(&self, config: &Config) -> Vec<String> {
        let enclosing = crate::config::reload::enclosing(&config.server);
        let snapshot = self.snapshots.load();
        let mut all: Vec<(&Environment, _)> =
            snapshot.environments().map(|v| (&v.environment, v.contract.wake.budget)).collect();
        all.sort();
        all.into_iter().filter_map(|(e, b)| plan::budget_error(e, b, enclosing)).collect()
    }
}

fn with(mut txn: Txn, change: &HostChange) -> Txn {
    for (owner, replaces) in &change.put {
        let at = key::owner(&owner.host, &owner.path);
        txn = match replaces {
            Some(revision) => txn.unchanged(&at, *revision),
            None => txn.absent(&at),
        };
        txn = txn.put(&at, owner.encode());
    }
    for (owner, revision) in &change.delete {
        let at = key::owner(&owner.host, &owner.path);
        txn = txn.unchanged(&at, *revision).delete(&at);
    }
    txn
}
