//! Hosts that are taken by a deployment, and hosts that the operator gives and takes.

use super::*;
use crate::clock::Wall;
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
    let changes = reconcile(&wanted(&[("a", &["a.test", "b.test"])]), &owners, &Retired::default());
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].put, [(owner("a", "b.test", 3), None)]);
    assert!(changes[0].delete.is_empty() && !changes[0].ends_allocations);
}

#[test]
fn a_host_that_leaves_is_remembered_and_comes_back_later_to_another() {
    let owners =
        [(owner("a", "a.test", 9), 1), (owner("a", "x.test", 9), 2), (owner("b", "b.test", 1), 3)];
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

fn deployment(app: &str) -> Deployment {
    Deployment {
        id: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: app.parse().unwrap(),
        digest: Digest::from_bytes([1; 32]),
        contract: String::new(),
        created: Wall(0),
        files: 0,
        bytes: 0,
        assets: None,
        replaced: None,
        promoted_from: None,
        schema: None,
    }
}

#[test]
fn hosts_are_taken_under_one_epoch_that_only_grows() {
    let d = deployment("studylab");
    let mut seen = BTreeMap::new();
    let first = take_hosts(&d, &[host("a"), host("b")], &seen, &Retired::default()).unwrap();
    assert!(first.iter().all(|(o, revision)| o.epoch == Epoch(1) && revision.is_none()));
    let mut owner = first[0].0.clone();
    owner.epoch = Epoch(7);
    seen.insert(host("a"), Some((owner, 42)));
    let again = take_hosts(&d, &[host("a"), host("b")], &seen, &Retired::default()).unwrap();
    assert_eq!(again[0].1, Some(42));
    assert!(again.iter().all(|(o, _)| o.epoch == Epoch(8)));
}

#[test]
fn another_apps_host_is_not_taken() {
    let other =
        take_hosts(&deployment("other"), &[host("a")], &BTreeMap::new(), &Retired::default())
            .unwrap();
    let seen = BTreeMap::from([(host("a"), Some((other[0].0.clone(), 1)))]);
    let refused =
        take_hosts(&deployment("studylab"), &[host("a")], &seen, &Retired::default()).unwrap_err();
    assert_eq!(refused.0, host("a"));
}
