//! A store in a directory: closing, reopening, the lock, the format, damage, a disk that refuses.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vango_edge_core::clock::{Entropy, ManualClock, SeededEntropy};
use vango_edge_store::rocks::Rocks;
use vango_edge_store::{
    OpenError, Options, RocksStore, StateStore, Storage, StoreError, Txn, Write,
};

use super::process;
use crate::open;

const TTL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn reopening_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let store = open(dir.path(), &clock);
    let lease = store.lease_grant(TTL).await.unwrap();
    let kept = store.lease_grant(TTL).await.unwrap();
    store.txn(Txn::new().put("k", "1").put_leased("leased", "v", lease)).await.unwrap();
    store.txn(Txn::new().put_leased("kept", "v", kept)).await.unwrap();
    store.txn(Txn::new().put("k", "2").put("last", "v")).await.unwrap();
    let entries = store.list("", None, 10).await.unwrap().entries;
    // The last revision holds no key: it must not be given out again all the same.
    let last = store.txn(Txn::new().delete("last")).await.unwrap();
    clock.advance(TTL / 2);
    store.close().await.unwrap();

    let store = open(dir.path(), &clock);
    assert_eq!(store.revision().await, Ok(last));
    let again = store.list("", None, 10).await.unwrap();
    assert_eq!(again.revision, last);
    let without_last: Vec<_> = entries.into_iter().filter(|(key, _)| key != "last").collect();
    assert_eq!(again.entries, without_last);
    let refused = store.watch("", last).await.unwrap_err();
    assert_eq!(refused, StoreError::Compacted { oldest: last + 1 });
    let mut watch = store.watch("", last + 1).await.unwrap();

    // The full time again, not the half that was left.
    clock.advance(TTL * 3 / 4);
    store.poke().await.unwrap();
    store.lease_keep_alive(kept).await.unwrap();
    assert!(store.get("leased").await.unwrap().is_some());
    clock.advance(TTL / 2);
    store.poke().await.unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!((events.len(), events[0].revision), (1, last + 1));
    assert_eq!(events[0].key, "leased");
    let new = store.lease_grant(TTL).await.unwrap();
    assert!(new > kept && new > lease, "an id is given out once");

    // Ended leases stay ended.
    store.close().await.unwrap();
    let store = open(dir.path(), &clock);
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    store.lease_revoke(kept).await.unwrap();
    assert_eq!(store.get("kept").await, Ok(None));
}

#[tokio::test]
async fn a_directory_serves_one_opening_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let store = open(dir.path(), &clock);
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::Locked { .. }), "{text}");
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    store.close().await.unwrap();
    drop(open(dir.path(), &clock));
}

#[tokio::test]
async fn another_process_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let mut holder = process::start("store::disk::child_holds_the_store", dir.path());
    assert_eq!(holder.next_line().as_deref(), Some("open"));
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::Locked { .. }), "{text}");
    assert!(text.contains(&format!("pid {}", holder.id())), "{text}");
    // Killed, it leaves no lock behind.
    holder.kill();
    drop(open(dir.path(), &clock));
}

#[tokio::test]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test store_contract another_process_is_named"]
async fn child_holds_the_store() {
    let Some(dir) = process::dir() else { return };
    let _store = open(&dir, &Arc::new(ManualClock::new()));
    process::say("open");
    process::until_killed();
}

/// RocksDB's own tools take RocksDB's own lock.
#[tokio::test]
async fn rocksdbs_own_lock_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    open(dir.path(), &clock).close().await.unwrap();
    let mut holder = process::start("store::disk::child_holds_rocksdbs_lock", dir.path());
    assert_eq!(holder.next_line().as_deref(), Some("locked"));
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    holder.kill();
    drop(open(dir.path(), &clock));
}

#[test]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test store_contract rocksdbs_own_lock_is_told_apart"]
fn child_holds_rocksdbs_lock() {
    let Some(dir) = process::dir() else { return };
    let path = dir.join("db/LOCK");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&whole)).unwrap();
    process::say("locked");
    process::until_killed();
}

fn set_format(dir: &Path, format: &'static [u8]) {
    let storage = Rocks::open(dir).unwrap();
    let write = Write::Put(b"mformat".to_vec(), Bytes::from_static(format));
    storage.write(vec![write], true).unwrap();
    storage.close();
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    open(dir.path(), &clock).close().await.unwrap();
    set_format(dir.path(), &[0, 0, 0, 2]);
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    assert!(matches!(refused, OpenError::NewerFormat { found: 2, known: 1 }), "{refused}");
    set_format(dir.path(), b"what");
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    assert!(matches!(refused, OpenError::NewerFormat { .. }), "{refused}");
    set_format(dir.path(), b"damaged");
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Corrupt(_)), "{refused}");
    set_format(dir.path(), &[0, 0, 0, 1]);
    drop(open(dir.path(), &clock));
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new());
    let store = open(dir.path(), &clock);
    store.txn(Txn::new().put("k", "v").synced()).await.unwrap();
    store.close().await.unwrap();
    let db = dir.path().join("db");
    let manifest = std::fs::read_dir(&db)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("MANIFEST"))
        .unwrap();
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes.iter_mut().skip(4).take(32).for_each(|byte| *byte ^= 0xff);
    std::fs::write(&manifest, bytes).unwrap();
    let refused = RocksStore::open(dir.path(), clock.clone(), Options::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
}

/// Files of this process may not grow beyond `bytes`: the write fails, as on a full disk.
fn limit_files(bytes: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes.min(hard), hard).unwrap();
}

#[test]
fn a_disk_that_refuses_writes_harms_no_read_and_heals() {
    for child in ["child_meets_a_full_disk", "child_meets_a_disk_too_full_to_open"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = process::start(&format!("store::disk::{child}"), dir.path());
        let mut said = Vec::new();
        while let Some(line) = child.next_line() {
            said.push(line);
        }
        println!("{said:#?}");
        assert_eq!(said.last().map(String::as_str), Some("done"), "{said:#?}");
    }
}

/// Puts records until one is refused; their number.
async fn fill(store: &RocksStore) -> usize {
    let entropy = SeededEntropy::new(1);
    for n in 0..100_000 {
        let mut value = vec![0; 4096];
        entropy.fill(&mut value);
        match store.txn(Txn::new().put(format!("k/{n:06}"), value)).await {
            Ok(_) => {}
            Err(StoreError::Unavailable(said)) => {
                process::say(&format!("refused: {said}"));
                return n;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the limit did not hold")
}

/// Everything acknowledged is there, what was refused is not, and no event tells of it.
async fn assert_intact(store: &RocksStore, records: usize, revision: u64) {
    assert_eq!(store.revision().await, Ok(revision));
    for n in 0..records {
        assert!(store.get(&format!("k/{n:06}")).await.unwrap().is_some(), "{n}");
    }
    assert_eq!(store.get(&format!("k/{records:06}")).await, Ok(None));
}

async fn fill_then_heal(store: RocksStore, clock: &ManualClock, dir: &Path, limit: u64) {
    let lease = store.lease_grant(TTL).await.unwrap();
    let before = store.txn(Txn::new().put_leased("leased", "v", lease)).await.unwrap();
    limit_files(limit);
    let records = fill(&store).await;
    let full = before + records as u64;
    let mut watch = store.watch("", full + 1).await.unwrap();
    assert_intact(&store, records, full).await;
    // Tried again and again, refused again and again, readable all the time.
    for _ in 0..4 {
        clock.advance(Duration::from_secs(2));
        let refused = store.txn(Txn::new().put("no", "v")).await;
        assert!(matches!(refused, Err(StoreError::NotWritable(_))), "{refused:?}");
        process::say(&format!("{refused:?}"));
        store.lease_keep_alive(lease).await.unwrap();
        assert_intact(&store, records, full).await;
    }
    limit_files(u64::MAX);
    clock.advance(Duration::from_secs(6));
    assert_eq!(store.txn(Txn::new().put("yes", "v").synced()).await, Ok(full + 1));
    assert_eq!(watch.next().await.unwrap()[0].key, "yes");
    assert_intact(&store, records, full + 1).await;
    store.close().await.unwrap();
    let store = RocksStore::open(dir, Arc::new(ManualClock::new()), Options::default()).unwrap();
    assert_intact(&store, records, full + 1).await;
    process::say("done");
}

fn ignore_sigxfsz() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler runs; the write then fails with EFBIG.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
}

#[tokio::test]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test store_contract a_disk_that_refuses_writes_harms_no_read_and_heals"]
async fn child_meets_a_full_disk() {
    let Some(dir) = process::dir() else { return };
    let clock = Arc::new(ManualClock::new());
    ignore_sigxfsz();
    let store = RocksStore::open(&dir, clock.clone(), Options::default()).unwrap();
    fill_then_heal(store, &clock, &dir, 256 * 1024).await;
}

/// There is room for the probe, not for what opening the database writes: it is opened for reading.
#[tokio::test]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test store_contract a_disk_that_refuses_writes_harms_no_read_and_heals"]
async fn child_meets_a_disk_too_full_to_open() {
    let Some(dir) = process::dir() else { return };
    let clock = Arc::new(ManualClock::new());
    ignore_sigxfsz();
    let store = RocksStore::open(&dir, clock.clone(), Options::default()).unwrap();
    let mut value = vec![0; 1024 * 1024];
    SeededEntropy::new(2).fill(&mut value);
    for n in 0..3 {
        store.txn(Txn::new().put(format!("ballast/{n}"), value.clone())).await.unwrap();
    }
    fill_then_heal(store, &clock, &dir, 5 * 1024 * 1024 / 2).await;
}
