//! Who owns which host, after the operator changed an app's hosts: decided without touching any
//! record.
//!
//! Invariants: a host's epoch never goes back, and two owners of one host never have the same one.
//! An environment keeps its epoch where that allows it, so that its allocations go on serving;
//! otherwise all its hosts move to a later one together.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AppName, Environment, Epoch, Host};
use crate::store::record::{Retired, RouteOwner};

use super::Replacing;

/// What changes for one environment, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostChange {
    /// Which.
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
        // Revision 0 exists nowhere: what another environment finds here it leaves alone.
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
mod tests {
    use super::*;
    use crate::id::Digest;

    fn host(s: &str) -> Host {
        s.parse().unwrap()
    }
    fn owner(app: &str, h: &str, epoch: u64) -> RouteOwner {
        RouteOwner {
            host: host(h),
            path: "/".into(),
            environment: app.parse().unwrap(),
            deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            digest: Digest::from_bytes([1; 32]),
            epoch: Epoch(epoch),
        }
    }
    fn wanted(apps: &[(&str, &[&str])]) -> BTreeMap<AppName, Vec<Host>> {
        let hosts = |hosts: &[&str]| hosts.iter().map(|h| host(h)).collect();
        apps.iter().map(|(a, h)| (a.parse().unwrap(), hosts(h))).collect()
    }
    /// Applies the changes, as the store would.
    fn apply(
        owners: &[(RouteOwner, u64)],
        retired: &Retired,
        changes: &[HostChange],
    ) -> (Vec<(RouteOwner, u64)>, Retired) {
        let mut all: BTreeMap<Host, (RouteOwner, u64)> =
            owners.iter().map(|o| (o.0.host.clone(), o.clone())).collect();
        let mut retired = retired.clone();
        for (n, change) in changes.iter().enumerate() {
            for (o, replaces) in &change.put {
                assert_eq!(all.get(&o.host).map(|(_, r)| *r), *replaces, "{}", o.host);
                all.insert(o.host.clone(), (o.clone(), 1000 + n as u64));
            }
            for (o, revision) in &change.delete {
                assert_eq!(all.remove(&o.host).unwrap().1, *revision);
            }
            if let Some(r) = &change.retired {
                retired = r.clone();
            }
        }
        (all.into_values().collect(), retired)
    }

    #[test]
    fn nothing_changes_when_nothing_differs() {
        let owners = [(owner("a", "a.test", 3), 1)];
        let none = Retired::default();
        assert_eq!(reconcile(&wanted(&[("a", &["a.test"])]), &owners, &none), []);
        // Never deployed: nothing to own.
        let more = wanted(&[("a", &["a.test"]), ("b", &["b.test"])]);
        assert_eq!(reconcile(&more, &owners, &none), []);
    }

    #[test]
    fn a_new_host_joins_under_the_epoch_its_allocations_serve() {
        let owners = [(owner("a", "a.test", 3), 1)];
        let changes =
            reconcile(&wanted(&[("a", &["a.test", "b.test"])]), &owners, &Retired::default());
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].put, [(owner("a", "b.test", 3), None)]);
        assert!(changes[0].delete.is_empty() && !changes[0].ends_allocations);
    }

    #[test]
    fn a_host_that_leaves_is_remembered_and_comes_back_later_to_another() {
        let owners = [
            (owner("a", "a.test", 9), 1),
            (owner("a", "x.test", 9), 2),
            (owner("b", "b.test", 1), 3),
        ];
        let less = wanted(&[("a", &["a.test"]), ("b", &["b.test"])]);
        let changes = reconcile(&less, &owners, &Retired::default());
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].delete, [(owner("a", "x.test", 9), 2)]);
        let (owners, retired) = apply(&owners, &Retired::default(), &changes);
        assert_eq!(retired.last_epoch(&host("x.test")), Epoch(9));
        // Its own app takes it back without a new epoch.
        let back = wanted(&[("a", &["a.test", "x.test"]), ("b", &["b.test"])]);
        let changes = reconcile(&back, &owners, &retired);
        assert_eq!(changes[0].put, [(owner("a", "x.test", 9), None)]);
        // Another one only under a later epoch, with all its hosts.
        let other = wanted(&[("a", &["a.test"]), ("b", &["b.test", "x.test"])]);
        let changes = reconcile(&other, &owners, &retired);
        assert_eq!(
            changes[0].put,
            [(owner("b", "b.test", 10), Some(3)), (owner("b", "x.test", 10), None)]
        );
        assert_eq!(changes[0].retired, Some(Retired::default()));
        assert!(changes[0].ends_allocations);
    }

    #[test]
    fn a_host_moves_in_one_transaction_and_never_to_an_older_epoch() {
        let owners = [(owner("a", "a.test", 5), 1), (owner("a", "x.test", 5), 2)];
        let owners = [owners[0].clone(), owners[1].clone(), (owner("b", "b.test", 5), 3)];
        let moved = wanted(&[("a", &["a.test"]), ("b", &["b.test", "x.test"])]);
        let changes = reconcile(&moved, &owners, &Retired::default());
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(
            changes[0].put,
            [(owner("b", "b.test", 6), Some(3)), (owner("b", "x.test", 6), Some(2))]
        );
        let (owners, retired) = apply(&owners, &Retired::default(), &changes);
        assert_eq!(reconcile(&moved, &owners, &retired), []);
    }

    #[test]
    fn two_apps_can_swap_their_hosts() {
        let owners = [(owner("a", "a.test", 5), 1), (owner("b", "b.test", 2), 2)];
        let swapped = wanted(&[("a", &["b.test"]), ("b", &["a.test"])]);
        let changes = reconcile(&swapped, &owners, &Retired::default());
        let (owners, retired) = apply(&owners, &Retired::default(), &changes);
        assert_eq!(
            owners.iter().map(|(o, _)| o.clone()).collect::<Vec<_>>(),
            [owner("b", "a.test", 6), owner("a", "b.test", 5),]
        );
        assert_eq!(reconcile(&swapped, &owners, &retired), []);
    }

    #[test]
    fn an_app_that_leaves_and_returns_serves_what_it_served() {
        let owners = [(owner("a", "a.test", 4), 1), (owner("a/pr-1", "p.test", 2), 2)];
        let changes = reconcile(&wanted(&[]), &owners, &Retired::default());
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|c| c.ends_allocations && c.put.is_empty()));
        let (left, retired) = apply(&owners, &Retired::default(), &changes);
        assert!(left.is_empty());
        let changes = reconcile(&wanted(&[("a", &["new.test"])]), &left, &retired);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].put, [(owner("a", "new.test", 4), None)]);
    }

    #[test]
    fn what_is_forgotten_still_bounds_the_epoch() {
        let mut retired = Retired::default();
        for n in 0..=Retired::MOST as u64 {
            retired.add(owner("a", &format!("h{n}.test"), 10 + n));
        }
        assert_eq!((retired.hosts.len(), retired.floor), (Retired::MOST, Epoch(10)));
        let owners = [(owner("b", "b.test", 3), 1)];
        let changes = reconcile(
            &wanted(&[("a", &["h1.test"]), ("b", &["b.test", "h0.test"])]),
            &owners,
            &retired,
        );
        let b = changes.iter().find(|c| c.environment.app().as_str() == "b").unwrap();
        assert!(b.put.iter().all(|(o, _)| o.epoch == Epoch(11)), "{b:?}");
    }
}
