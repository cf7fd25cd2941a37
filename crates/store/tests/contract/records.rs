//! Keys, transactions, pages and bounds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Harness, soon};
use vango_edge_core::clock::{Entropy, SeededEntropy};
use vango_edge_store::{
    Entry, KEY_BYTES, Op, PAGE_BYTES, PAGE_ENTRIES, StateStore, StoreError, TXN_BYTES, TXN_OPS,
    Txn, VALUE_BYTES,
};

async fn put(store: &dyn StateStore, key: &str, value: &str) -> u64 {
    store.txn(Txn::new().put(key, value.to_owned())).await.expect("put")
}

async fn entry(store: &dyn StateStore, key: &str) -> Entry {
    store.get(key).await.expect("get").unwrap_or_else(|| panic!("{key} is not there"))
}

fn conflict<T>(key: &str) -> Result<T, StoreError> {
    Err(StoreError::Conflict { key: key.into() })
}

/// create_revision stays, mod_revision moves, the store's revision grows by one a transaction.
pub async fn an_entry_tells_its_revisions(h: Harness) {
    let store = &*h.store;
    assert_eq!(store.get("k").await, Ok(None));
    let before = store.revision().await.expect("revision");
    let first = put(store, "k", "1").await;
    assert_eq!(first, before + 1);
    let created = entry(store, "k").await;
    assert_eq!((&created.value[..], created.lease), (&b"1"[..], None));
    assert_eq!((created.create_revision, created.mod_revision), (first, first));
    let second = put(store, "k", "").await;
    let changed = entry(store, "k").await;
    assert!(changed.value.is_empty());
    assert_eq!((changed.create_revision, changed.mod_revision), (first, second));
    assert_eq!(store.revision().await, Ok(second));
}

/// A delete and a put make a new key; the delete itself takes a revision.
pub async fn a_deleted_key_starts_anew(h: Harness) {
    let store = &*h.store;
    let first = put(store, "k", "1").await;
    let gone = store.txn(Txn::new().delete("k").synced()).await.expect("delete");
    assert_eq!(gone, first + 1);
    assert_eq!(store.get("k").await, Ok(None));
    let again = put(store, "k", "2").await;
    assert_eq!(entry(store, "k").await.create_revision, again);
}

/// `absent`.
pub async fn absent_holds_for_absent_keys_only(h: Harness) {
    let store = &*h.store;
    let create = || Txn::new().absent("k").put("k", "v");
    store.txn(create()).await.expect("absent");
    assert_eq!(store.txn(create()).await, conflict("k"));
    store.txn(Txn::new().delete("k")).await.expect("delete");
    store.txn(create()).await.expect("absent again");
}

/// `exists`.
pub async fn exists_holds_for_present_keys_only(h: Harness) {
    let store = &*h.store;
    let replace = || Txn::new().exists("k").put("k", "v");
    assert_eq!(store.txn(replace()).await, conflict("k"));
    put(store, "k", "1").await;
    store.txn(replace()).await.expect("exists");
}

/// `unchanged`, also against the same value put again, a delete, and a key of the past.
pub async fn unchanged_holds_for_the_revision_seen(h: Harness) {
    let store = &*h.store;
    assert_eq!(store.txn(Txn::new().unchanged("k", 0).put("k", "v")).await, conflict("k"));
    let seen = put(store, "k", "same").await;
    let next =
        store.txn(Txn::new().unchanged("k", seen).put("k", "same")).await.expect("unchanged");
    assert_eq!(store.txn(Txn::new().unchanged("k", seen).put("k", "x")).await, conflict("k"));
    store.txn(Txn::new().delete("k")).await.expect("delete");
    assert_eq!(store.txn(Txn::new().unchanged("k", next).put("k", "x")).await, conflict("k"));
    put(store, "k", "same").await;
    assert_eq!(store.txn(Txn::new().unchanged("k", next).delete("k")).await, conflict("k"));
}

/// A transaction may only ask.
pub async fn checks_without_operations_decide(h: Harness) {
    let store = &*h.store;
    let at = put(store, "k", "v").await;
    assert_eq!(store.txn(Txn::new().unchanged("k", at).absent("other").synced()).await, Ok(at));
    assert_eq!(store.txn(Txn::new().exists("k").absent("k")).await, conflict("k"));
}

/// The first failed check is named; no operation, revision or event is left behind.
pub async fn a_conflict_applies_nothing_and_names_the_key(h: Harness) {
    let store = &*h.store;
    let before = put(store, "there", "1").await;
    let mut watch = store.watch("", before + 1).await.expect("watch");
    let txn = Txn::new().exists("there").absent("there").exists("missing");
    let txn = txn.put("a", "1").delete("there").put("b", "2");
    assert_eq!(store.txn(txn).await, conflict("there"));
    assert_eq!(store.get("a").await, Ok(None));
    assert_eq!(&entry(store, "there").await.value[..], b"1");
    assert_eq!(store.revision().await, Ok(before));
    let after = put(store, "last", "1").await;
    assert_eq!(after, before + 1);
    assert_eq!(super::brief(&super::next(&mut watch).await), ["+last"]);
}

/// As many operations as are allowed: one revision, one delivery, in their order.
pub async fn all_operations_share_one_revision(h: Harness) {
    let store = &*h.store;
    put(store, "k/000", "old").await;
    let mut txn = Txn::new().delete("k/000");
    // Against the order of the keys.
    for n in (1..TXN_OPS).rev() {
        txn = txn.put(format!("k/{n:03}"), "v");
    }
    let keys: Vec<String> = txn.ops.iter().map(|op| op.key().to_owned()).collect();
    let at = store.txn(txn).await.expect("txn");
    let page = store.list("k/", None, TXN_OPS).await.expect("list");
    assert_eq!((page.entries.len(), page.more, page.revision), (TXN_OPS - 1, false, at));
    assert!(page.entries.iter().all(|(_, e)| e.mod_revision == at && e.create_revision == at));
    let mut watch = store.watch("k/", at).await.expect("watch");
    let events = super::next(&mut watch).await;
    assert!(events.iter().all(|event| event.revision == at));
    assert_eq!(events.into_iter().map(|event| event.key).collect::<Vec<_>>(), keys);
}

/// No operations, or deletes of what is not there.
pub async fn what_changes_nothing_takes_no_revision(h: Harness) {
    let store = &*h.store;
    let before = put(store, "k", "v").await;
    assert_eq!(store.txn(Txn::new()).await, Ok(before));
    assert_eq!(store.txn(Txn::new().delete("missing").delete("also")).await, Ok(before));
    assert_eq!(store.revision().await, Ok(before));
    assert_eq!(store.txn(Txn::new().delete("missing").delete("k")).await, Ok(before + 1));
}

/// Create if absent, raced: one winner each round, and all losers then read the winner's value.
pub async fn one_of_64_racers_creates(h: Harness) {
    for round in 0..20 {
        let key = format!("race/{round}");
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..64_u32 {
            let (store, key) = (h.store.clone(), key.clone());
            racers.spawn(async move {
                let mut txn = Txn::new().absent(&key).put(&key, racer.to_string());
                if racer % 2 == 0 {
                    txn = txn.synced();
                }
                let won = match store.txn(txn).await {
                    Ok(at) => Some((racer, at)),
                    Err(StoreError::Conflict { .. }) => None,
                    Err(other) => panic!("racer {racer}: {other}"),
                };
                (won, entry(&*store, &key).await)
            });
        }
        let done = soon("racers", racers.join_all()).await;
        let winners: Vec<(u32, u64)> = done.iter().filter_map(|(won, _)| *won).collect();
        let [(winner, at)] = winners[..] else { panic!("round {round}: winners {winners:?}") };
        for (_, seen) in &done {
            assert_eq!(seen.value, winner.to_string(), "round {round}");
            assert_eq!((seen.create_revision, seen.mod_revision), (at, at), "round {round}");
        }
    }
}

/// Read, add one, put if unchanged, again on conflict: no increment is lost.
pub async fn counters_lose_no_increment(h: Harness) {
    const TASKS: usize = 8;
    const EACH: usize = 25;
    put(&*h.store, "n", "0").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = h.store.clone();
        tasks.spawn(async move {
            let mut left = EACH;
            while left > 0 {
                let seen = entry(&*store, "n").await;
                let n: usize = std::str::from_utf8(&seen.value)
                    .ok()
                    .and_then(|n| n.parse().ok())
                    .expect("a number");
                let add =
                    Txn::new().unchanged("n", seen.mod_revision).put("n", (n + 1).to_string());
                match store.txn(add).await {
                    Ok(_) => left -= 1,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    soon("increments", tasks.join_all()).await;
    assert_eq!(entry(&*h.store, "n").await.value, (TASKS * EACH).to_string());
}

/// Calls dropped before their answer neither block others nor leave half a transaction.
pub async fn callers_that_leave_harm_no_other(h: Harness) {
    for n in 0..200 {
        let (a, b) = (format!("a/{n}"), format!("b/{n}"));
        let call = h.store.txn(Txn::new().put(a, "v").put(b, "v"));
        // Polled once or not at all, then dropped.
        if n % 2 == 0 {
            let _ = tokio::time::timeout(std::time::Duration::ZERO, call).await;
        }
    }
    put(&*h.store, "after", "v").await;
    let names = |page: vango_edge_store::Page| -> Vec<String> {
        page.entries.into_iter().map(|(key, _)| key[2..].to_owned()).collect()
    };
    let a = names(h.store.list("a/", None, 1000).await.expect("list"));
    let b = names(h.store.list("b/", None, 1000).await.expect("list"));
    assert_eq!(a, b);
}

/// Every page size walks the same keys: random ones, of several prefixes and scripts.
pub async fn pages_hold_every_key_once_in_order(h: Harness) {
    let entropy = SeededEntropy::new(7);
    let mut keys = BTreeSet::new();
    for _ in 0..150 {
        let n = entropy.next_u64();
        let tail = ["", "/", "é", "\u{10ffff}", "\0", "z"][(n >> 8) as usize % 6];
        keys.insert(format!("p/{}{tail}", n % 100));
    }
    let others = ["p", "p.", "p0", "q/1", "o/9"];
    for key in keys.iter().map(String::as_str).chain(others) {
        put(&*h.store, key, key).await;
    }
    for limit in [1, 2, 7, keys.len() - 1, keys.len(), keys.len() + 1, usize::MAX] {
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = h.store.list("p/", after.as_deref(), limit).await.expect("list");
            assert!(page.entries.len() <= limit.min(PAGE_ENTRIES));
            assert!(
                !page.more || !page.entries.is_empty(),
                "a page with more after it has entries"
            );
            after = page.entries.last().map(|(key, _)| key.clone());
            seen.extend(page.entries.into_iter().map(|(key, entry)| {
                assert_eq!(entry.value, key);
                key
            }));
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, keys.iter().cloned().collect::<Vec<_>>(), "limit {limit}");
    }
    let all = h.store.list("", None, 1000).await.expect("list");
    assert_eq!(all.entries.len(), keys.len() + others.len());
    // `after` may lie outside the prefix, on either side, and need not exist.
    let before = h.store.list("p/", Some("a"), 1000).await.expect("list");
    assert_eq!(before.entries.len(), keys.len());
    let behind = h.store.list("p/", Some("z"), 1000).await.expect("list");
    assert!(behind.entries.is_empty() && !behind.more);
    assert!(matches!(h.store.list("p/", None, 0).await, Err(StoreError::Invalid(_))));
}

/// Long values end a page before its limit does.
pub async fn a_page_stays_within_its_bytes(h: Harness) {
    let value = "v".repeat(VALUE_BYTES);
    let keys = PAGE_BYTES / VALUE_BYTES + 2;
    for n in 0..keys {
        put(&*h.store, &format!("k{n}"), &value).await;
    }
    let page = h.store.list("k", None, 100).await.expect("list");
    assert!(page.more);
    assert!((1..=PAGE_BYTES / VALUE_BYTES).contains(&page.entries.len()));
    let last = page.entries.last().map(|(key, _)| key.clone());
    let rest = h.store.list("k", last.as_deref(), 100).await.expect("list");
    assert_eq!(page.entries.len() + rest.entries.len(), keys);
    assert!(!rest.more);
}

/// A prefix is a run of bytes; an empty one is everything.
pub async fn prefixes_are_not_folders(h: Harness) {
    for key in ["a", "a/", "a/b", "ab", "b"] {
        put(&*h.store, key, "v").await;
    }
    for (prefix, expected) in
        [("", 5), ("a", 4), ("a/", 2), ("a/b", 1), ("ab", 1), ("b", 1), ("c", 0)]
    {
        let page = h.store.list(prefix, None, 10).await.expect("list");
        assert_eq!(page.entries.len(), expected, "prefix {prefix:?}");
    }
}

/// What is exactly at a bound is taken, what is above is refused and applies nothing.
pub async fn bounds_are_kept(h: Harness) {
    let store: &Arc<dyn StateStore> = &h.store;
    let longest = "k".repeat(KEY_BYTES);
    put(&**store, &longest, "v").await;
    assert_eq!(&entry(&**store, &longest).await.value[..], b"v");
    put(&**store, "big", &"v".repeat(VALUE_BYTES)).await;
    assert_eq!(entry(&**store, "big").await.value.len(), VALUE_BYTES);
    let before = store.revision().await.expect("revision");

    let too_long = "k".repeat(KEY_BYTES + 1);
    let half = "v".repeat(TXN_BYTES / 2);
    let mut many_ops = Txn::new();
    let mut many_checks = Txn::new();
    for n in 0..=TXN_OPS {
        many_ops = many_ops.put(format!("k{n}"), "v");
        many_checks = many_checks.absent(format!("absent{n}"));
    }
    assert!(many_ops.ops.iter().all(|op| matches!(op, Op::Put { .. })));
    let refused = [
        ("empty key", Txn::new().put("", "v")),
        ("empty key in a check", Txn::new().absent("").put("x", "v")),
        ("long key", Txn::new().delete(&too_long)),
        ("long key in a check", Txn::new().exists(&too_long)),
        ("long value", Txn::new().put("x", "v".repeat(VALUE_BYTES + 1))),
        ("key twice", Txn::new().put("x", "1").delete("x")),
        ("operations", many_ops),
        ("checks", many_checks),
        ("bytes", Txn::new().put("x", half.clone()).put("y", half)),
    ];
    for (what, txn) in refused {
        let answer = store.txn(txn).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{what}: {answer:?}");
    }
    assert!(matches!(store.get("").await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.get(&too_long).await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.list(&too_long, None, 1).await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.watch(&too_long, 0).await, Err(StoreError::Invalid(_))));
    assert_eq!(store.revision().await, Ok(before));
}
