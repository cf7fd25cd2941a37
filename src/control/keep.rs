//! Which deployments are still needed. Pure.
//!
//! Needed is what owns its routes, what a promotion that goes on stands on, what was replaced (or made
//! and never used) less than the retention ago, and the newest few of each environment whatever their
//! age, so that there is something to go back to. Ages are by the wall clock: one that goes back keeps
//! things for longer, never shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Wall;
use crate::id::{DeploymentId, Environment};
use crate::store::record::Deployment;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;

    const DAY: u64 = 24 * 3600 * 1000;

    fn deployment(
        name: char,
        environment: &str,
        created: u64,
        replaced: Option<u64>,
    ) -> Deployment {
        Deployment {
            id: format!("dp-{}", name.to_string().repeat(16)).parse().unwrap(),
            environment: environment.parse().unwrap(),
            digest: Digest::from_bytes([name as u8; 32]),
            contract: String::new(),
            created: Wall(created * DAY),
            files: 0,
            bytes: 0,
            assets: None,
            replaced: replaced.map(|d| Wall(d * DAY)),
            promoted_from: None,
            schema: None,
        }
    }

    #[test]
    fn only_what_is_old_unused_and_not_among_the_newest_goes() {
        let all = [
            deployment('a', "studylab", 1, Some(2)),
            deployment('b', "studylab", 2, Some(3)),
            deployment('c', "studylab", 3, Some(30)),
            deployment('d', "studylab", 30, None),
            deployment('e', "studylab", 4, None),
            deployment('f', "studylab/pr-7", 1, Some(2)),
        ];
        let used = |names: &str| names.chars().map(|n| deployment(n, "x", 0, None).id).collect();
        let gone = |used: &BTreeSet<_>, newest, days, now| -> String {
            let rules = Rules { retention: Duration::from_millis(days * DAY), newest };
            let gone = removable(&all, used, rules, Wall(now * DAY));
            let mut names: Vec<_> =
                gone.iter().map(|d| char::from(d.digest.as_bytes()[0])).collect();
            names.sort_unstable();
            names.into_iter().collect()
        };
        let owner = used("d");
        assert_eq!(gone(&owner, 0, 7, 31), "abef", "c was replaced a day ago");
        assert_eq!(gone(&owner, 2, 7, 31), "ab", "c and e are the newest, f is the only one");
        assert_eq!(gone(&owner, 0, 7, 40), "abcef");
        assert_eq!(gone(&used("dab"), 0, 7, 31), "ef", "a promotion stands on a and b");
        assert_eq!(gone(&owner, 0, 7, 0), "", "the clock went back");
    }
}
