//! Which records change, decided without touching any.

pub mod hosts;
pub mod inherit;
pub mod previews;
pub mod retire;
pub mod sleep;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Wall;
use crate::id::{Environment, Epoch, Host};
use crate::store::record::{Deployment, Retired, RouteOwner};

/// An owner's key and the revision it was read at; `None` when there is no such key.
pub type Seen<T> = Option<(T, u64)>;

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
    seen: &BTreeMap<Host, Seen<RouteOwner>>,
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

/// Why a wake budget cannot be kept under a timeout that encloses the wait; `None` when it can.
pub fn budget_error(
    environment: &Environment,
    budget: Duration,
    (key, enclosing): (&'static str, Duration),
) -> Option<String> {
    (enclosing < budget).then(|| {
        format!(
            "{key} is {enclosing:?}, shorter than the wake budget of {environment}, {budget:?}: a \
             held request would be cut before its app may be late; raise {key} or lower \
             wake.budget in the app's vango-edge.toml"
        )
    })
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
mod tests {
    use super::*;
    use crate::store::record::key;

    #[test]
    fn the_history_is_bounded_by_age_and_by_count() {
        let id = "op-aaaaaaaaaaaaaaaa".parse().unwrap();
        let at = |n: u64| key::history(Wall(n), &id);
        let day = 24 * 3600 * 1000;
        let keys: Vec<_> = (0..40).map(|n| at(n * day)).collect();
        assert_eq!(expired(&keys, key::history_from, Wall(39 * day)), 9);
        assert_eq!(expired(&keys, key::history_from, Wall(0)), 0);
        let many: Vec<_> = (0..10_005).map(at).collect();
        assert_eq!(expired(&many, key::history_from, Wall(20_000)), 5);
    }
    use crate::id::Digest;

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
    fn host(s: &str) -> Host {
        s.parse().unwrap()
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
        let refused = take_hosts(&deployment("studylab"), &[host("a")], &seen, &Retired::default())
            .unwrap_err();
        assert_eq!(refused.0, host("a"));
    }
}
