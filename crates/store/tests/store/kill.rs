//! `kill -9` of a process that writes: what it was told is committed is there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use vango_edge_core::clock::{Entropy, ManualClock, SeededEntropy};
use vango_edge_store::{RocksStore, StateStore, Txn};

use super::process;
use crate::open;

const ROUNDS: u64 = 10;
const TASKS: usize = 8;

/// Each round kills after a seeded number of acknowledgements, over the same directory.
/// `VANGO_EDGE_TEST_SEED` replays.
#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let seed = std::env::var("VANGO_EDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let entropy = SeededEntropy::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut reopened_at = 0;
    for round in 0..ROUNDS {
        let mut writer = process::start("store::kill::child_writes", dir.path());
        let kill_after = 1 + entropy.next_u64() % 3000;
        let mut told = 0;
        while let Some(line) = writer.next_line() {
            let (revision, id) = line.split_once(' ').unwrap();
            let revision = revision.parse().unwrap();
            assert!(revision > reopened_at, "round {round}: revision {revision} given out again");
            let twice = acknowledged.insert(revision, id.to_owned());
            assert_eq!(twice, None, "revision {revision} was given out twice");
            told += 1;
            if told == kill_after {
                // What it wrote before it died is still read from the pipe.
                writer.kill();
            }
        }
        assert!(told >= kill_after, "round {round}: the writer ended by itself after {told}");
        let store = open(dir.path(), &clock);
        reopened_at = assert_complete(&store, &acknowledged, round).await;
        store.close().await.unwrap();
    }
    println!("{} acknowledged revisions in {ROUNDS} rounds", acknowledged.len());
}

/// All acknowledged records are there, at their revisions, and no transaction is there by half.
async fn assert_complete(
    store: &RocksStore,
    acknowledged: &BTreeMap<u64, String>,
    round: u64,
) -> u64 {
    let mut halves = [BTreeMap::new(), BTreeMap::new()];
    for (half, prefix) in halves.iter_mut().zip(["a/", "b/"]) {
        let mut after: Option<String> = None;
        loop {
            let page = store.list(prefix, after.as_deref(), 1000).await.unwrap();
            after = page.entries.last().map(|(key, _)| key.clone());
            half.extend(page.entries.into_iter().map(|(k, e)| (e.mod_revision, k[2..].to_owned())));
            if !page.more {
                break;
            }
        }
    }
    assert_eq!(halves[0], halves[1], "round {round}: half a transaction");
    for (revision, id) in acknowledged {
        assert_eq!(halves[0].get(revision), Some(id), "round {round}: lost");
    }
    let revision = store.revision().await.unwrap();
    assert_eq!(halves[0].last_key_value().map(|(newest, _)| *newest), Some(revision));
    revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test store_contract what_was_acknowledged_survives_kill_9"]
async fn child_writes() {
    let Some(dir) = process::dir() else { return };
    let store = Arc::new(open(&dir, &Arc::new(ManualClock::new())));
    let base = store.revision().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            // Bounded, in case it is not killed.
            for n in 0..100_000 {
                let id = format!("{base}-{task}-{n}");
                let value = "v".repeat(n % 700);
                let mut txn = Txn::new().put(format!("a/{id}"), value.clone());
                txn = txn.put(format!("b/{id}"), value);
                if n % 16 == 0 {
                    txn = txn.synced();
                }
                let revision = store.txn(txn).await.unwrap();
                process::say(&format!("{revision} {id}"));
            }
        });
    }
    tasks.join_all().await;
}
