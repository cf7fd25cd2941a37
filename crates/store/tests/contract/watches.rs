//! Watches: gap-free, in order, or a clear refusal.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Harness, brief, next, soon};
use vango_edge_core::clock::{Entropy, SeededEntropy};
use vango_edge_store::{Event, EventKind, StateStore, StoreError, Txn};

const WRITERS: u64 = 6;

/// Writers that put, replace and delete a few keys of their own, `each` transactions.
fn writers(store: &Arc<dyn StateStore>, seed: u64, each: usize) -> tokio::task::JoinSet<Vec<u64>> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let entropy = SeededEntropy::new(seed + writer);
            let mut revisions = Vec::new();
            for n in 0..each {
                let dice = entropy.next_u64();
                let key = format!("w{}/{}", writer % 2, writer * 10 + dice % 5);
                let side = format!("side/{writer}");
                let txn = match dice >> 8 & 7 {
                    0 => Txn::new().delete(&key).put(side, n.to_string()),
                    1 => Txn::new().put(&key, n.to_string()).put(side, n.to_string()).synced(),
                    _ => Txn::new().put(&key, n.to_string()),
                };
                revisions.push(store.txn(txn).await.expect("txn"));
            }
            revisions
        });
    }
    tasks
}

/// A watch of everything sees each revision once; a watch of a prefix sees just its part of that.
pub async fn a_watch_has_no_gaps_under_writers(h: Harness) {
    // Less than is kept: none of the watches may be left behind.
    let each = (h.watch_revisions / WRITERS as usize).saturating_sub(1).min(200);
    assert!(each > 3, "watch_revisions is too small");
    let from = h.store.revision().await.expect("revision") + 1;
    let mut all = h.store.watch("", from).await.expect("watch");
    let mut part = h.store.watch("w1/", from).await.expect("watch");
    let mut revisions = soon("writers", writers(&h.store, 11, each).join_all()).await.concat();
    revisions.sort_unstable();
    let last = *revisions.last().expect("some");
    assert_eq!(revisions, (from..=last).collect::<Vec<_>>(), "each transaction has its revision");

    let mut expected_part: Vec<Vec<Event>> = Vec::new();
    for revision in from..=last {
        let events = next(&mut all).await;
        assert!(events.iter().all(|event| event.revision == revision), "{revision}: {events:?}");
        let mine: Vec<Event> =
            events.iter().filter(|event| event.key.starts_with("w1/")).cloned().collect();
        if !mine.is_empty() {
            expected_part.push(mine);
        }
    }
    for expected in expected_part {
        assert_eq!(next(&mut part).await, expected);
    }
    // From the middle, after the fact.
    let middle = from + (last - from) / 2;
    let mut late = h.store.watch("", middle).await.expect("watch");
    for revision in middle..=last {
        assert_eq!(next(&mut late).await[0].revision, revision);
    }
}

/// Small pages during writes, then events from the first page's revision on, make a true copy.
pub async fn a_list_and_a_watch_follow_a_prefix(h: Harness) {
    let each = (h.watch_revisions / WRITERS as usize).saturating_sub(2).min(100);
    let writing = writers(&h.store, 23, each);
    let mut copy = BTreeMap::new();
    let (mut first, mut after) = (None, None::<String>);
    loop {
        let page = h.store.list("w", after.as_deref(), 3).await.expect("list");
        first.get_or_insert(page.revision);
        after = page.entries.last().map(|(key, _)| key.clone());
        copy.extend(page.entries);
        if !page.more {
            break;
        }
    }
    let mut watch = h.store.watch("w", first.expect("a page") + 1).await.expect("watch");
    soon("writers", writing.join_all()).await;
    h.store.txn(Txn::new().put("w-end", "v")).await.expect("end");
    loop {
        let mut end = false;
        for event in next(&mut watch).await {
            end |= event.key == "w-end";
            match event.kind {
                EventKind::Put(entry) => copy.insert(event.key, entry),
                EventKind::Delete => copy.remove(&event.key),
            };
        }
        if end {
            break;
        }
    }
    let truth = h.store.list("w", None, 1000).await.expect("list");
    assert!(!truth.more);
    assert_eq!(copy.into_iter().collect::<Vec<_>>(), truth.entries);
}

/// Past events come with the entries as they were, then new ones follow.
pub async fn a_watch_starts_in_the_past(h: Harness) {
    let first = h.store.txn(Txn::new().put("k", "1")).await.expect("put");
    h.store.txn(Txn::new().put("other", "x")).await.expect("put");
    h.store.txn(Txn::new().put("k", "2")).await.expect("put");
    h.store.txn(Txn::new().delete("k")).await.expect("delete");
    let mut watch = h.store.watch("k", first).await.expect("watch");
    for (revision, value) in [(first, "1"), (first + 2, "2")] {
        let events = next(&mut watch).await;
        let [Event { kind: EventKind::Put(entry), .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(entry.value, value);
        assert_eq!((entry.create_revision, entry.mod_revision), (first, revision));
    }
    assert_eq!(brief(&next(&mut watch).await), ["-k"]);
    h.store.txn(Txn::new().put("k", "3")).await.expect("put");
    assert_eq!(brief(&next(&mut watch).await), ["+k"]);
}

/// From 0 nothing of the past is delivered; a revision to come is waited for. A wait that is dropped
/// loses nothing.
pub async fn a_watch_starts_now_or_later(h: Harness) {
    let past = h.store.txn(Txn::new().put("k/past", "v")).await.expect("put");
    let mut now = h.store.watch("k/", 0).await.expect("watch");
    let mut later = h.store.watch("k/", past + 3).await.expect("watch");
    for watch in [&mut now, &mut later] {
        let early = tokio::time::timeout(std::time::Duration::ZERO, watch.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
    for key in ["k/1", "k/2", "k/3"] {
        h.store.txn(Txn::new().put(key, "v")).await.expect("put");
    }
    assert_eq!(brief(&next(&mut now).await), ["+k/1"]);
    assert_eq!(brief(&next(&mut now).await), ["+k/2"]);
    assert_eq!(next(&mut later).await[0].revision, past + 3);
}

/// Makes revisions until `of` is no longer kept.
async fn outgrow(h: &Harness) {
    for n in 0..=h.watch_revisions {
        h.store.txn(Txn::new().put("filler", n.to_string())).await.expect("put");
    }
}

/// History that is gone is refused; from `oldest` on, and from a list's revision, it works.
pub async fn a_watch_of_dropped_history_is_refused(h: Harness) {
    let first = h.store.txn(Txn::new().put("k", "v")).await.expect("put");
    outgrow(&h).await;
    let oldest = match h.store.watch("k", first).await {
        Err(StoreError::Compacted { oldest }) => oldest,
        other => panic!("{other:?}"),
    };
    assert!(oldest > first, "{oldest} > {first}");
    let mut kept = h.store.watch("", oldest).await.expect("watch from the oldest");
    assert_eq!(next(&mut kept).await[0].revision, oldest);
    let page = h.store.list("k", None, 10).await.expect("list");
    let mut watch = h.store.watch("k", page.revision + 1).await.expect("watch after a list");
    h.store.txn(Txn::new().delete("k")).await.expect("delete");
    assert_eq!(brief(&next(&mut watch).await), ["-k"]);
}

/// A watch that is not read does not stop the store, and is told that it missed something: even if
/// what it missed was not under its prefix, it cannot know.
pub async fn a_watch_that_falls_behind_is_told(h: Harness) {
    let mut slow = h.store.watch("", 0).await.expect("watch");
    outgrow(&h).await;
    h.store.txn(Txn::new().put("filler", "last")).await.expect("put");
    let told = soon("end of a slow watch", slow.next()).await;
    assert!(matches!(told, Err(StoreError::Compacted { .. })), "{told:?}");
    let again = soon("the same end", slow.next()).await;
    assert!(matches!(again, Err(StoreError::Compacted { .. })), "final: {again:?}");
}
