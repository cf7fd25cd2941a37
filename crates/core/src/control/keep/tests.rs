//! Deployments, previews and history that are old enough.

use super::*;
use crate::id::Digest;
use crate::record::key;

const DAY: u64 = 24 * 3600 * 1000;

fn deployment(name: char, environment: &str, created: u64, replaced: Option<u64>) -> Deployment {
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
        let mut names: Vec<_> = gone.iter().map(|d| char::from(d.digest.as_bytes()[0])).collect();
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

const AGE: Duration = Duration::from_secs(14 * 24 * 3600);
const MINUTE: u64 = 60 * 1_000_000_000;

fn mark(served: u64, open: bool) -> Mark {
    Mark { deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(), served, open }
}
fn at(minute: u64) -> (Mono, Wall) {
    (Mono(minute * MINUTE), Wall(minute * 60_000))
}
fn look(before: Option<PreviewUse>, mark: Mark, minute: u64) -> PreviewUse {
    let (now, wall) = at(minute);
    PreviewUse::after(before, mark, now, wall)
}

#[test]
fn what_is_used_is_never_quiet_and_its_use_is_written_once_an_hour() {
    let mut seen = look(None, mark(0, false), 1);
    assert_eq!(seen.to_write(AGE, at(1).0), None, "that it is there is no use");
    let mut written = Vec::new();
    for minute in 2..200 {
        seen = look(Some(seen), mark(minute, false), minute);
        written.extend(seen.to_write(AGE, at(minute).0));
        assert!(!seen.is_quiet(AGE, at(minute).0));
    }
    assert_eq!(written, [at(2).1, at(62).1, at(122).1, at(182).1]);
    // The last use is written too before it counts as quiet.
    let end = 199 + 59;
    for minute in 200..=end {
        seen = look(Some(seen), mark(199, false), minute);
        written.extend(seen.to_write(AGE, at(minute).0));
    }
    assert_eq!(written[4..], [at(199).1]);
    assert!(!seen.is_quiet(AGE, at(end).0));
    assert!(seen.is_quiet(AGE, at(end + 1).0));
    // Something open is use, however quiet.
    seen = look(Some(seen), mark(199, true), end + 1);
    seen = look(Some(seen), mark(199, true), end + 61);
    assert!(!seen.is_quiet(AGE, at(end + 61).0));
}

#[test]
fn a_use_that_could_not_be_written_is_written_later() {
    let mut seen = look(None, mark(0, false), 1);
    seen = look(Some(seen), mark(1, false), 2);
    let used = seen.to_write(AGE, at(2).0).unwrap();
    seen.not_written(used);
    assert_eq!(seen.to_write(AGE, at(3).0), Some(used));
    assert_eq!(seen.to_write(AGE, at(4).0), None);
}

#[test]
fn age_counts_from_the_last_deploy_or_use_and_a_clock_that_goes_back_removes_nothing() {
    let day = |d: u64| Wall(d * 24 * 3_600_000);
    for (created, used, now, over) in [
        (1, None, 14, false),
        (1, None, 15, true),
        (1, Some(9), 22, false),
        (1, Some(9), 23, true),
        (9, Some(1), 22, false),
        (9, Some(1), 23, true),
        (20, None, 1, false),
    ] {
        let found = is_over_age(day(created), used.map(day), AGE, day(now));
        assert_eq!(found, over, "{created} {used:?} {now}");
    }
}

#[test]
fn a_process_that_has_just_begun_removes_nothing() {
    let seen = look(None, mark(0, false), 1);
    assert!(!seen.is_quiet(AGE, at(60).0));
    assert!(seen.is_quiet(AGE, at(61).0));
    assert!(seen.is_quiet(Duration::from_secs(60), at(2).0), "an age below an hour is enough");
}

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
