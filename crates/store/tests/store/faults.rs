//! Storages that fail in the ways disks do, under the engine's rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use vango_edge_core::clock::ManualClock;
use vango_edge_store::memory::Memory;
use vango_edge_store::{
    Engine, EventKind, Options, QUEUE_UNITS, Range, Scan, StateStore, Storage, StorageError,
    StoreError, TXN_BYTES, Txn, Write,
};

/// What happens to the next writes.
#[derive(Debug, Default)]
struct Plan {
    failing: AtomicBool,
    /// So many writes succeed before failing begins.
    good: AtomicUsize,
    /// A failed write turns out to have landed once the storage recovers.
    landing: AtomicBool,
    panicking: AtomicBool,
    /// Writes wait while it is true.
    stuck: Mutex<bool>,
    unstuck: Condvar,
    /// A write has begun to wait.
    waiting: tokio::sync::Notify,
}

impl Plan {
    fn set_stuck(&self, stuck: bool) {
        *self.stuck.lock().unwrap() = stuck;
        self.unstuck.notify_all();
    }
}

struct Faulty {
    memory: Memory,
    plan: Arc<Plan>,
    landed: Mutex<Vec<Write>>,
}

impl Storage for Faulty {
    const BLOCKING: bool = true;
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.memory.get(key)
    }
    fn scan(&self, range: &Range, beside: &[u8]) -> Result<Scan, StorageError> {
        self.memory.scan(range, beside)
    }
    fn write(&self, batch: Vec<Write>, sync: bool) -> Result<(), StorageError> {
        let stuck = self.plan.stuck.lock().unwrap();
        if *stuck {
            self.plan.waiting.notify_one();
        }
        drop(self.plan.unstuck.wait_while(stuck, |stuck| *stuck).unwrap());
        assert!(!self.plan.panicking.load(Ordering::SeqCst), "the plan says panic");
        let more = |good: usize| good.checked_sub(1);
        let good = self.plan.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok();
        if self.plan.failing.load(Ordering::SeqCst) && !good {
            if self.plan.landing.load(Ordering::SeqCst) {
                self.landed.lock().unwrap().extend(batch);
            }
            return Err(StorageError::Io("no space left on device".into()));
        }
        self.memory.write(batch, sync)
    }
    fn recover(&self) -> Result<(), StorageError> {
        if self.plan.failing.load(Ordering::SeqCst) {
            return Err(StorageError::Io("still no space".into()));
        }
        self.memory.write(std::mem::take(&mut self.landed.lock().unwrap()), true)
    }
    fn close(&self) {
        self.memory.close();
    }
}

fn start() -> (Arc<Engine<Faulty>>, Arc<Plan>, Arc<ManualClock>) {
    let (plan, clock) = (Arc::new(Plan::default()), Arc::new(ManualClock::new()));
    let faulty =
        Faulty { memory: Memory::new(), plan: plan.clone(), landed: Mutex::new(Vec::new()) };
    let store = Engine::start(faulty, clock.clone(), Options::default()).unwrap();
    (Arc::new(store), plan, clock)
}

fn unavailable<T>(answer: &Result<T, StoreError>) -> bool {
    let refused =
        |e: &StoreError| matches!(e, StoreError::Unavailable(_) | StoreError::NotWritable(_));
    matches!(answer, Err(e) if refused(e) && e.retryable())
}

#[tokio::test]
async fn a_failed_write_changes_nothing_and_later_ones_go_on() {
    let (store, plan, clock) = start();
    let lease = store.lease_grant(Duration::from_secs(3)).await.unwrap();
    let other = store.lease_grant(Duration::from_secs(30)).await.unwrap();
    let before = store.txn(Txn::new().put_leased("leased", "v", lease)).await.unwrap();
    let mut watch = store.watch("", before + 1).await.unwrap();
    plan.failing.store(true, Ordering::SeqCst);
    assert!(unavailable(&store.txn(Txn::new().put("k", "v")).await));
    // A conflict would rest on a state that nothing vouches for. That this one changes nothing is known.
    let refused = store.txn(Txn::new().absent("leased")).await;
    assert!(matches!(&refused, Err(e @ StoreError::NotWritable(_)) if e.applied_nothing()));
    assert!(unavailable(&store.lease_grant(Duration::from_secs(3)).await));
    assert!(unavailable(&store.lease_revoke(other).await));
    store.lease_keep_alive(other).await.unwrap();
    assert_eq!(store.revision().await, Ok(before));
    assert_eq!(store.get("k").await, Ok(None));
    // Overdue and not yet removed: over all the same.
    clock.advance(Duration::from_secs(6));
    store.poke().await.unwrap();
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    assert!(store.get("leased").await.unwrap().is_some());

    plan.failing.store(false, Ordering::SeqCst);
    assert!(unavailable(&store.txn(Txn::new().put("k", "v")).await), "not before its next try");
    clock.advance(Duration::from_secs(6));
    store.poke().await.unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!((events[0].revision, events[0].key.as_str()), (before + 1, "leased"));
    assert_eq!(events[0].kind, EventKind::Delete);
    assert_eq!(store.txn(Txn::new().absent("k").put("k", "v")).await, Ok(before + 2));
    assert_eq!(watch.next().await.unwrap()[0].key, "k");
    store.lease_keep_alive(other).await.unwrap();
}

#[tokio::test]
async fn a_failed_write_that_landed_is_owned_up_to() {
    let (store, plan, clock) = start();
    let before = store.txn(Txn::new().put("k", "1")).await.unwrap();
    let mut watch = store.watch("", before + 1).await.unwrap();
    plan.failing.store(true, Ordering::SeqCst);
    plan.landing.store(true, Ordering::SeqCst);
    assert!(unavailable(&store.txn(Txn::new().put("k", "2")).await));
    assert_eq!(&store.get("k").await.unwrap().unwrap().value[..], b"1");
    plan.failing.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(6));
    store.poke().await.unwrap();
    assert_eq!(store.revision().await, Ok(before + 1));
    let entry = store.get("k").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.mod_revision), (&b"2"[..], before + 1));
    assert_eq!(watch.next().await, Err(StoreError::Compacted { oldest: before + 2 }));
    let stale = Txn::new().unchanged("k", before).put("k", "3");
    assert_eq!(store.txn(stale).await, Err(StoreError::Conflict { key: "k".into() }));
    let next = Txn::new().unchanged("k", before + 1).put("k", "3");
    assert_eq!(store.txn(next).await, Ok(before + 2));
}

/// Callers that never pause must not keep the writer from recovering or from ending leases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_callers_starve_neither_recovery_nor_leases() {
    let (store, plan, clock) = start();
    let lease = store.lease_grant(Duration::from_secs(5)).await.unwrap();
    store.txn(Txn::new().put_leased("leased", "v", lease)).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    plan.failing.store(true, Ordering::SeqCst);
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (store, done) = (store.clone(), done.clone());
        callers.spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let _ = store.txn(Txn::new().absent("leased")).await;
                store.poke().await.unwrap();
            }
        });
    }
    assert!(unavailable(&store.txn(Txn::new().put("k", "v")).await));
    plan.failing.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(6));
    let ended = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    assert_eq!(ended.expect("in time").unwrap()[0].key, "leased");
    done.store(true, Ordering::SeqCst);
    callers.join_all().await;
}

/// Of many transactions in one batch that fails, all are refused: those that succeeded, and those
/// whose conflict rested on one that had not failed yet.
#[tokio::test]
async fn a_failed_batch_fails_all_its_transactions() {
    let (store, plan, clock) = start();
    plan.set_stuck(true);
    let first = tokio::spawn({
        let store = store.clone();
        async move { store.txn(Txn::new().put("first", "v")).await }
    });
    plan.waiting.notified().await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let store = store.clone();
        racers.spawn(async move { store.txn(Txn::new().absent("k").put("k", "v")).await });
    }
    // Runs them up to their waits.
    tokio::task::yield_now().await;
    plan.good.store(1, Ordering::SeqCst);
    plan.failing.store(true, Ordering::SeqCst);
    plan.set_stuck(false);
    assert_eq!(first.await.unwrap(), Ok(1));
    assert!(racers.join_all().await.iter().all(unavailable));
    plan.failing.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(6));
    assert_eq!(store.txn(Txn::new().absent("k").put("k", "v")).await, Ok(2));
}

/// Time is paused: waits that would be seconds are over once nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_busy_and_a_stuck_disk_has_a_deadline() {
    let (store, plan, _clock) = start();
    plan.set_stuck(true);
    let mut waiting = tokio::task::JoinSet::new();
    let most = QUEUE_UNITS as usize * 4096 / TXN_BYTES + 1;
    for n in 0..most {
        let store = store.clone();
        let half = Bytes::from(vec![0; TXN_BYTES / 2 - 64]);
        waiting.spawn(async move {
            let txn = Txn::new().put(format!("a{n}"), half.clone()).put(format!("b{n}"), half);
            store.txn(txn).await
        });
    }
    let answers = waiting.join_all().await;
    assert!(answers.iter().all(|a| unavailable(a) || *a == Err(StoreError::Busy)), "{answers:?}");
    assert!(answers.contains(&Err(StoreError::Busy)));
    // Those that did not wait to the end hold their places until they are written.
    let txn = Txn::new().put("c", vec![0; TXN_BYTES / 2]);
    let refused = store.txn(txn).await.unwrap_err();
    assert_eq!((refused.retryable(), refused), (true, StoreError::Busy));
    assert_eq!(store.get("a0").await, Ok(None));
    plan.set_stuck(false);
}

#[tokio::test]
async fn a_writer_that_panics_closes_the_store() {
    let (store, plan, _clock) = start();
    let mut watch = store.watch("", 0).await.unwrap();
    plan.panicking.store(true, Ordering::SeqCst);
    assert_eq!(store.txn(Txn::new().put("k", "v")).await, Err(StoreError::Closed));
    assert_eq!(watch.next().await, Err(StoreError::Closed));
    assert_eq!(store.txn(Txn::new().put("k", "v")).await, Err(StoreError::Closed));
    assert_eq!(store.get("k").await, Err(StoreError::Closed));
}

#[tokio::test]
async fn closing_answers_what_came_before_and_ends_watches() {
    let (store, _plan, _clock) = start();
    let mut watch = store.watch("", 1).await.unwrap();
    assert_eq!(store.txn(Txn::new().put("k", "v")).await, Ok(1));
    store.close().await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].key, "k");
    assert_eq!(watch.next().await, Err(StoreError::Closed));
    assert_eq!(store.txn(Txn::new().put("k", "v")).await, Err(StoreError::Closed));
    assert_eq!(store.get("k").await, Err(StoreError::Closed));
    assert_eq!(store.list("", None, 1).await, Err(StoreError::Closed));
    assert_eq!(store.revision().await, Err(StoreError::Closed));
    assert!(matches!(store.watch("", 0).await, Err(StoreError::Closed)));
    assert_eq!(store.close().await, Err(StoreError::Closed));
}
