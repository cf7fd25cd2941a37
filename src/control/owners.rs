//! Route owners: who answers a host, changed one at a time. [`vango_edge_core::control::hosts`] decides
//! which records change.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

use vango_edge_core::control::allocations::SleepFor;
use vango_edge_core::control::hosts::{AtRevision, HostChange, reconcile, take_hosts};

use crate::config::Config;
use crate::id::{AppName, DeploymentId, Environment, Epoch, Host};
use crate::node::{Found, Node, ReadError, as_read, at_revision};
use crate::record::{Deployment, OwnerSeen, Record, Retired, RouteOwner, key};
use crate::store::{TXN_OPS, Txn};

use super::routing::Routing;
use super::sleeper::Sleeper;

/// Tries when the owners change meanwhile.
const TRIES: u32 = 5;

/// Why hosts cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Another environment owns a host.
    #[error("{0} is owned by {1}")]
    Taken(Host, Environment),
    /// The owners could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Gives hosts to environments, and takes them off.
pub struct Owners {
    node: Node,
    routing: Arc<Routing>,
    sleeper: Arc<Sleeper>,
    /// Held while owners are changed: by a deployment, a promotion, a removal or a reload.
    changing: Mutex<()>,
}

/// The right to change owners, one at a time; only [`Owners::change`] gives it.
pub struct Changing<'a> {
    _guard: MutexGuard<'a, ()>,
}

/// The hosts that an environment is to own, as the store has them.
pub struct HostsSeen<'a> {
    hosts: &'a [Host],
    seen: BTreeMap<Host, AtRevision<RouteOwner>>,
    retired: Retired,
}

impl HostsSeen<'_> {
    /// The one with the highest epoch among their owners.
    pub fn owner(&self) -> Option<OwnerSeen> {
        let owners = self.seen.values().flatten().map(|(o, _)| o);
        owners.max_by_key(|o| o.epoch).map(owner_seen)
    }

    /// The epoch under which `deployment` owns them once the transaction is committed.
    ///
    /// # Errors
    /// [`TakeError::Taken`].
    pub fn take(&self, deployment: &Deployment) -> Result<(Epoch, Txn), TakeError> {
        let owners = take_hosts(deployment, self.hosts, &self.seen, &self.retired)
            .map_err(|(host, owner)| TakeError::Taken(host, owner))?;
        let epoch = owners.first().map_or(Epoch(1), |(o, _)| o.epoch);
        Ok((epoch, owners.iter().fold(Txn::new(), put)))
    }
}

/// An owner, as a promotion remembers it.
pub(super) fn owner_seen(o: &RouteOwner) -> OwnerSeen {
    OwnerSeen { deployment: o.deployment.clone(), digest: o.digest, epoch: o.epoch }
}

impl Owners {
    /// What loses its last host is put to sleep by `sleeper`, once `routing` shows it.
    pub fn new(node: Node, routing: Arc<Routing>, sleeper: Arc<Sleeper>) -> Arc<Self> {
        Arc::new(Self { node, routing, sleeper, changing: Mutex::default() })
    }

    /// Waits until no other change is at work. What is read under it and written under it is of one
    /// configuration: a reload waits.
    pub async fn change(&self) -> Changing<'_> {
        Changing { _guard: self.changing.lock().await }
    }

    /// The owners of `hosts`, as they are now, for `environment` to take them.
    ///
    /// # Errors
    /// [`TakeError`].
    pub async fn seen<'h>(
        &self,
        environment: &Environment,
        hosts: &'h [Host],
    ) -> Result<HostsSeen<'h>, TakeError> {
        let retired = self.retired().await?.map(|f| f.record).unwrap_or_default();
        let mut seen = BTreeMap::new();
        for host in hosts {
            let found = self.node.read::<RouteOwner>(&key::owner(host, "/")).await?;
            let owner = found.as_ref().map(|f| &f.record.environment);
            if let Some(owner) = owner.filter(|o| *o != environment) {
                return Err(TakeError::Taken(host.clone(), owner.clone()));
            }
            seen.insert(host.clone(), found.map(|f| (f.record, f.revision)));
        }
        Ok(HostsSeen { hosts, seen, retired })
    }

    /// The deployment that another one replaces says since when.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn replaced(
        &self,
        environment: &Environment,
        before: &DeploymentId,
    ) -> Result<Txn, ReadError> {
        let at = key::deployment(environment, before);
        let Some(found) = self.node.read::<Deployment>(&at).await? else { return Ok(Txn::new()) };
        let (txn, replaced) = (found.unchanged(), Some(self.node.clock.wall()));
        Ok(txn.put(&at, Deployment { replaced, ..found.record }.encode()))
    }

    /// Takes every host off `owners`, and remembers them, so that no later owner of a host begins at an
    /// epoch that was there before.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn give_up(&self, owners: Vec<Found<RouteOwner>>) -> Result<Txn, ReadError> {
        let retired_before = self.retired().await?;
        let mut txn = as_read(Txn::new(), key::RETIRED, retired_before.as_ref());
        let mut retired = retired_before.map(|f| f.record).unwrap_or_default();
        for owner in owners {
            txn = txn.and(owner.unchanged().delete(&owner.at));
            retired.add(owner.record);
        }
        Ok(txn.put(key::RETIRED, retired.encode()))
    }

    /// Hosts without an owner.
    async fn retired(&self) -> Result<Option<Found<Retired>>, ReadError> {
        self.node.read(key::RETIRED).await
    }

    /// Gives each deployed app the hosts that `config` says, and takes the others off.
    ///
    /// # Errors
    /// [`ReadError`]. Each transaction is whole; an attempt that is repeated does what is left.
    pub async fn follow(
        self: &Arc<Self>,
        config: &Config,
        _one: &Changing<'_>,
    ) -> Result<(), ReadError> {
        let wanted: BTreeMap<AppName, Vec<Host>> = config
            .apps
            .values()
            .filter(|a| a.upstreams.is_none())
            .map(|a| (a.name.clone(), a.hosts.clone()))
            .collect();
        let mut tries = 0;
        loop {
            match self.follow_once(&wanted).await {
                Err(e) if e.is_conflict() && tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    async fn follow_once(
        self: &Arc<Self>,
        wanted: &BTreeMap<AppName, Vec<Host>>,
    ) -> Result<(), ReadError> {
        let owners = self.node.all::<RouteOwner>(key::OWNERS).await?;
        let owners: Vec<_> = owners.into_iter().map(|f| (f.record, f.revision)).collect();
        let before = self.retired().await?;
        let mut retired_at = before.as_ref().map(|f| f.revision);
        let retired = before.map(|f| f.record).unwrap_or_default();
        let mut changes = reconcile(wanted, &owners, &retired).into_iter().peekable();
        // One transaction for all, unless they are too many for one.
        while changes.peek().is_some() {
            let (mut txn, mut retired_to_write, mut done) = (Txn::new(), None, Vec::new());
            let fits = |txn: &Txn, c: &HostChange| {
                txn.ops.is_empty() || txn.ops.len() + c.put.len() + c.delete.len() < TXN_OPS
            };
            while let Some(change) = changes.next_if(|c| fits(&txn, c)) {
                txn = with(txn, &change);
                retired_to_write = change.retired.clone().or(retired_to_write);
                done.push(change);
            }
            if let Some(retired) = &retired_to_write {
                txn = at_revision(txn, key::RETIRED, retired_at);
                txn = txn.put(key::RETIRED, retired.encode());
            }
            let revision = self.node.store.txn(txn.synced()).await?;
            if retired_to_write.is_some() {
                retired_at = Some(revision);
            }
            // What ends an environment's allocations looks at routing: none of them is chosen meanwhile.
            self.routing.shown(revision).await;
            for change in done {
                self.followed(&change);
            }
        }
        Ok(())
    }

    fn followed(&self, change: &HostChange) {
        for (owner, _) in &change.put {
            log::info!("{} owns {} under epoch {}", owner.environment, owner.host, owner.epoch);
        }
        for (owner, _) in &change.delete {
            log::info!("{} owns {} no longer", owner.environment, owner.host);
        }
        if change.ends_allocations && change.put.is_empty() {
            // Nothing reaches them any more, and no other task looks at them.
            self.sleeper.sleep_detached(&change.environment, SleepFor::Command);
        }
        // What served under an earlier epoch is ended by [`super::retirer`].
    }
}

fn with(txn: Txn, change: &HostChange) -> Txn {
    let txn = change.put.iter().fold(txn, put);
    change.delete.iter().fold(txn, |txn, (owner, revision)| {
        let at = key::owner(&owner.host, &owner.path);
        txn.unchanged(&at, *revision).delete(&at)
    })
}

/// Writes an owner in place of the one that was read.
fn put(txn: Txn, (owner, replaces): &(RouteOwner, Option<u64>)) -> Txn {
    let at = key::owner(&owner.host, &owner.path);
    at_revision(txn, &at, *replaces).put(&at, owner.encode())
}
