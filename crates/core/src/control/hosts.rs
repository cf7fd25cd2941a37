//! Who owns which host, after a deployment and after the operator changed an app's hosts: decided without
//! touching any record.
//!
//! Invariants: a host's epoch never goes back, and two owners of one host never have the same one.
//! An environment keeps its epoch where that allows it, so that its allocations go on serving;
//! otherwise all its hosts move to a later one together.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AppName, Environment, Epoch, Host};
use crate::record::{Deployment, Retired, RouteOwner};

/// A record and the revision it was read at; `None` when there is none.
pub type AtRevision<T> = Option<(T, u64)>;

/// A record to write, and the revision it replaces; `None` when there must be none yet.
pub type Replacing<T> = (T, Option<u64>);

/// The owners to write so that `deployment` owns `hosts`, each with the revision it replaces.
///
/// Every host gets the same epoch: one more than the highest that any of them had, `retired` ones
/// included, so that no host's epoch goes back.
///
/// # Errors
/// The first host that another app's environment owns.
pub fn take_hosts(
    deployment: &Deployment,
    hosts: &[Host],
    seen: &BTreeMap<Host, AtRevision<RouteOwner>>,
    retired: &Retired,
) -> Result<Vec<Replacing<RouteOwner>>, (Host, Environment)> {
    let owners = hosts.iter().map(|h| (h, seen.get(h).and_then(Option::as_ref)));
    for (host, owner) in owners.clone() {
        if let Some((o, _)) = owner
            && o.environment.app() != deployment.environment.app()
        {
            return Err((host.clone(), o.environment.clone()));
        }
    }
    let highest = owners
        .clone()
        .map(|(h, o)| o.map_or_else(|| retired.last_epoch(h), |(o, _)| o.epoch))
        .max();
    let epoch = highest.unwrap_or(Epoch(0)).next();
    Ok(owners
        .map(|(host, owner)| {
            let record = RouteOwner {
                host: host.clone(),
                path: "/".into(),
                environment: deployment.environment.clone(),
                deployment: deployment.id.clone(),
                digest: deployment.digest,
                epoch,
            };
            (record, owner.map(|(_, revision)| *revision))
        })
        .collect())
}

/// What changes for one environment, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostChange {
    pub environment: Environment,
    /// Owners to write, each with the revision it replaces.
    pub put: Vec<Replacing<RouteOwner>>,
    /// Owners to remove, each with the revision it was read at.
    pub delete: Vec<(RouteOwner, u64)>,
    /// What is remembered of hosts without an owner, when that changes.
    pub retired: Option<Retired>,
    /// Its allocations get no request any more: it has no host afterwards, or a later epoch.
    pub ends_allocations: bool,
}

/// The transactions after which each app's production has the hosts it is `wanted` to have, one for
/// each environment that changes. An app that is not in `wanted` loses the hosts of all its
/// environments. An app that was never deployed owns nothing, so nothing changes for it.
pub fn reconcile(
    wanted: &BTreeMap<AppName, Vec<Host>>,
    owners: &[(RouteOwner, u64)],
    retired: &Retired,
) -> Vec<HostChange> {
    let mut by_host: BTreeMap<Host, (RouteOwner, u64)> =
        owners.iter().map(|(o, r)| (o.host.clone(), (o.clone(), *r))).collect();
    let known: BTreeSet<Environment> = owners
        .iter()
        .map(|(o, _)| o)
        .chain(retired.hosts.values())
        .map(|o| o.environment.clone())
        .collect();
    let newest: BTreeMap<&Environment, &RouteOwner> = known
        .iter()
        .filter_map(|e| {
            let all = owners.iter().map(|(o, _)| o).chain(retired.hosts.values());
            Some((e, all.filter(|o| o.environment == *e).max_by_key(|o| o.epoch)?))
        })
        .collect();
    let deployed: BTreeSet<&AppName> = known.iter().map(Environment::app).collect();
    let taken: BTreeSet<&Host> =
        wanted.iter().filter(|(app, _)| deployed.contains(app)).flat_map(|(_, h)| h).collect();
    let mut left = retired.clone();
    let mut changes = Vec::new();
    for (environment, newest) in newest {
        let production = *environment == Environment::production(environment.app().clone());
        let hosts = match wanted.get(environment.app()) {
            Some(hosts) if production => hosts.as_slice(),
            // A preview's hosts are not listed; they go only when the whole app does.
            Some(_) => continue,
            None => &[],
        };
        if let Some(change) = change(newest, hosts, &taken, &mut by_host, &mut left) {
            changes.push(change);
        }
    }
    changes
}

fn change(
    newest: &RouteOwner,
    hosts: &[Host],
    taken: &BTreeSet<&Host>,
    by_host: &mut BTreeMap<Host, (RouteOwner, u64)>,
    retired: &mut Retired,
) -> Option<HostChange> {
    let environment = &newest.environment;
    let mine = |o: &RouteOwner| o.environment == *environment;
    let served =
        |host: &Host| by_host.get(host).is_some_and(|(o, _)| mine(o) && o.epoch == newest.epoch);
    let missing: Vec<&Host> = hosts.iter().filter(|h| !served(h)).collect();
    // The epoch it has will do, unless another environment had a host under it or a later one.
    let epoch = missing
        .iter()
        .filter_map(|host| at_least(host, environment, by_host, retired))
        .fold(newest.epoch, Epoch::max);
    let put: Vec<&Host> = if epoch > newest.epoch { hosts.iter().collect() } else { missing };
    let put: Vec<Replacing<RouteOwner>> = put
        .into_iter()
        .map(|host| {
            let owner = RouteOwner { host: host.clone(), epoch, ..newest.clone() };
            (owner, by_host.get(host).map(|(_, revision)| *revision))
        })
        .collect();
    let before = retired.clone();
    for (owner, _) in &put {
        retired.hosts.remove(&owner.host);
        // Marks the host as given out in this run. Revision 0 is a placeholder: nothing is written against it.
        by_host.insert(owner.host.clone(), (owner.clone(), 0));
    }
    let gone = |(o, _): &&(RouteOwner, u64)| mine(o) && !hosts.contains(&o.host);
    let delete: Vec<_> =
        by_host.values().filter(gone).filter(|(o, _)| !taken.contains(&o.host)).cloned().collect();
    for (owner, _) in &delete {
        by_host.remove(&owner.host);
        retired.add(owner.clone());
    }
    let change = HostChange {
        environment: environment.clone(),
        ends_allocations: hosts.is_empty() || epoch > newest.epoch,
        retired: (*retired != before).then(|| retired.clone()),
        put,
        delete,
    };
    (!change.put.is_empty() || !change.delete.is_empty()).then_some(change)
}

/// The lowest epoch under which `environment` may own `host`; `None` when any will do.
fn at_least(
    host: &Host,
    environment: &Environment,
    by_host: &BTreeMap<Host, (RouteOwner, u64)>,
    retired: &Retired,
) -> Option<Epoch> {
    let last: Option<&RouteOwner> = by_host.get(host).map(|(o, _)| o).or(retired.hosts.get(host));
    match last {
        Some(last) if last.environment == *environment => Some(last.epoch),
        Some(last) => Some(last.epoch.next()),
        None if retired.floor > Epoch(0) => Some(retired.floor.next()),
        None => None,
    }
}

#[cfg(test)]
mod tests;
