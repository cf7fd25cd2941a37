//! The ledger over a store that remembers, over one that fails, and what was recorded of it over RocksDB
//! and `kill -9`, before a checker of linearizability.

mod ledger {
    pub mod history;
    pub mod kill;
}
#[path = "../crates/store/tests/store/process.rs"]
#[expect(dead_code, reason = "the store's tests use all of it")]
mod process;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use vango_edge::clock::{ManualClock, Wall};
use vango_edge::ledger::{
    Audit, AuditLimits, Ledger, LedgerError, LedgerLimits, Reservation, Sending, Taken, Wanted,
};
use vango_edge::lifecycle::idempotency::{
    AttemptOutcome, Claim, Holder, RequestFingerprint, Resolution, key_hash,
};
use vango_edge::record::ledger::{
    AttemptState, AuditEvidence, StoredHead, StoredResponse, Subject, key,
};
use vango_edge::store::memory::Memory;
use vango_edge::store::{
    Engine, Entry, LeaseId, MemoryStore, Options, Page, Range, Scan, StateStore, Storage,
    StorageError, StoreError, Txn, Watch, Write,
};

struct World {
    store: Arc<dyn StateStore>,
    clock: Arc<ManualClock>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let store = MemoryStore::new(Arc::clone(&clock) as _, Options::default()).unwrap();
        Self { store: Arc::new(store), clock }
    }

    /// A process of the node; another `run` is what a restart makes.
    fn ledger(&self, run: &str) -> Arc<Ledger> {
        self.ledger_of(run, 1000)
    }

    fn audit(&self) -> Arc<Audit> {
        let limits = AuditLimits { max_rows: 100, max_age: Duration::from_secs(3600) };
        Audit::new(Arc::clone(&self.store), Arc::clone(&self.clock) as _, limits, 1)
    }

    fn ledger_of(&self, run: &str, max_records: u64) -> Arc<Ledger> {
        let holder = Holder { node: "node-1".into(), run: run.into() };
        let limits = LedgerLimits { max_records, max_response: 65_536 };
        let runtime = tokio::runtime::Handle::current();
        Ledger::new(Arc::clone(&self.store), Arc::clone(&self.clock) as _, holder, limits, runtime)
    }
}

fn claim(name: &str, body: &str, request: &str) -> Claim {
    let environment = "studylab".parse().unwrap();
    Claim {
        subject: Subject::Action,
        at: key::subject(&environment, name),
        environment,
        route: "/actions/*".into(),
        key_hash: key_hash(name),
        event: None,
        fingerprint: RequestFingerprint { head: "h".into(), body: Some(body.into()) },
        retention_ms: 60_000,
        request: request.into(),
    }
}

fn response(body: &str) -> StoredResponse {
    let head = StoredHead { status: 200, headers: vec![], trailers: vec![] };
    StoredResponse { head, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn held<T>(taken: Result<Taken<T>, LedgerError>) -> T {
    match taken.unwrap() {
        Taken::Held(held) => held,
        Taken::Found(seen) => panic!("in the way: {seen:?}"),
    }
}

async fn send(ledger: &Arc<Ledger>, claim: &Claim) -> Sending {
    held(ledger.forward(None, claim, true, None).await)
}

async fn state(ledger: &Ledger, claim: &Claim) -> Option<(AttemptState, bool)> {
    ledger.get(&claim.at).await.unwrap().map(|s| (s.record.state, s.alive))
}

/// Waits until what goes on without its caller has ended.
async fn settled(ledger: &Ledger) {
    let end = async {
        while ledger.at_work() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), end).await.unwrap();
}

#[tokio::test]
async fn the_first_wins_and_a_repeat_meets_its_record() {
    let (world, c) = (World::new(), claim("a", "b", "r1"));
    let ledger = world.ledger("1");
    let sending = send(&ledger, &c).await;
    assert_eq!(sending.attempt(), 1);
    let again = claim("a", "b", "r2");
    let Taken::Found(seen) = ledger.forward(None, &again, true, None).await.unwrap() else {
        panic!("sent twice")
    };
    assert_eq!((seen.record.state, seen.alive), (AttemptState::Forwarded, true));
    sending.ended(AttemptOutcome::Whole { status: 200 }, Some(response("x"))).await;
    let Taken::Found(seen) = ledger.reserve(&again, true).await.unwrap() else { panic!("twice") };
    assert_eq!((seen.record.state, seen.alive), (AttemptState::Completed, false));
    assert_eq!(ledger.response(&c.at).await.unwrap(), Some(response("x")));
    assert_eq!(ledger.at_work(), 0);
}

#[tokio::test]
async fn a_thousand_at_once_and_one_is_sent() {
    let world = World::new();
    let ledger = world.ledger("1");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..1000 {
        let ledger = Arc::clone(&ledger);
        tasks.spawn(async move {
            let c = claim("a", "b", &format!("r{i}"));
            match ledger.forward(None, &c, true, None).await.unwrap() {
                Taken::Held(sending) => {
                    tokio::task::yield_now().await;
                    sending.ended(AttemptOutcome::Whole { status: 200 }, None).await;
                    true
                }
                Taken::Found(_) => false,
            }
        });
    }
    let mut won = 0;
    while let Some(one) = tasks.join_next().await {
        won += u32::from(one.unwrap());
    }
    assert_eq!((won, ledger.records()), (1, 1));
}

#[tokio::test]
async fn a_holder_that_lets_go_before_sending_leaves_nothing_and_after_it_unknown() {
    let (world, c) = (World::new(), claim("a", "b", "r1"));
    let ledger = world.ledger("1");
    let reservation: Reservation = held(ledger.reserve(&c, true).await);
    assert_eq!(state(&ledger, &c).await, Some((AttemptState::Reserved, true)));
    drop(reservation);
    settled(&ledger).await;
    assert_eq!((state(&ledger, &c).await, ledger.records()), (None, 0));
    // The key is whole: nothing of it was sent.
    let reservation = held(ledger.reserve(&c, true).await);
    let sending = held(ledger.forward(Some(reservation), &c, true, None).await);
    assert_eq!(sending.attempt(), 1);
    drop(sending);
    settled(&ledger).await;
    assert_eq!(state(&ledger, &c).await, Some((AttemptState::Unknown, false)));
    // Written as forwarded, and then not sent after all: nothing is left either.
    let d = claim("d", "b", "r3");
    send(&ledger, &d).await.unsent();
    settled(&ledger).await;
    assert_eq!(state(&ledger, &d).await, None);
}

#[tokio::test]
async fn a_restart_releases_what_was_not_sent_and_knows_nothing_of_what_was() {
    let world = World::new();
    let before = world.ledger("1");
    let (a, b, c) = (claim("a", "x", "r1"), claim("b", "x", "r2"), claim("c", "x", "r3"));
    let reserved = held(before.reserve(&a, true).await);
    let sent = send(&before, &b).await;
    send(&before, &c).await.ended(AttemptOutcome::Whole { status: 200 }, Some(response("x"))).await;
    // As kill -9 leaves it: nothing is let go of.
    std::mem::forget((reserved, sent));
    let after = world.ledger("2");
    let found = after.recover().await.unwrap();
    assert_eq!((found.released, found.unknown), (1, 1));
    assert_eq!(state(&after, &a).await, None);
    assert_eq!(state(&after, &b).await, Some((AttemptState::Unknown, false)));
    assert_eq!(state(&after, &c).await, Some((AttemptState::Completed, false)));
    assert_eq!(after.records(), 2);
    let again = claim("b", "x", "r4");
    assert!(matches!(after.forward(None, &again, true, None).await.unwrap(), Taken::Found(_)));
    assert_eq!(after.recover().await.unwrap().unknown, 0);
    let open = world.store.list(key::OPEN, None, 10).await.unwrap();
    assert!(open.entries.is_empty(), "{open:?}");
}

#[tokio::test]
async fn a_dead_processs_record_is_judged_before_it_is_recovered_too() {
    let world = World::new();
    let before = world.ledger("1");
    let (a, b) = (claim("a", "x", "r1"), claim("b", "x", "r2"));
    std::mem::forget((held(before.reserve(&a, true).await), send(&before, &b).await));
    let after = world.ledger("2");
    // Reserved: free. Forwarded: unknown, never free.
    assert_eq!(send(&after, &claim("a", "x", "r3")).await.attempt(), 1);
    let Taken::Found(seen) = after.forward(None, &claim("b", "x", "r4"), true, None).await.unwrap()
    else {
        panic!("sent twice")
    };
    assert!(!seen.alive);
}

#[tokio::test]
async fn only_an_operator_or_the_app_makes_a_key_free_again() {
    let (world, c) = (World::new(), claim("a", "b", "r1"));
    let ledger = world.ledger("1");
    drop(send(&ledger, &c).await);
    settled(&ledger).await;
    let (no, audit) = (Resolution::NotCarriedOut, world.audit());
    assert_eq!(ledger.resolve(&audit, &c.at, 2, no, "operator").await.unwrap(), None);
    let resolved = ledger.resolve(&audit, &c.at, 1, no, "operator: looked").await.unwrap().unwrap();
    assert_eq!(resolved.state, AttemptState::Released);
    let (kept, _) = audit.list(&Wanted::default(), None, 10).await.unwrap();
    assert_eq!((kept.len(), kept[0].1.why.as_str()), (1, "by operator: looked"));
    assert_eq!(ledger.resolve(&audit, &c.at, 1, no, "operator").await.unwrap(), None);
    let again = send(&ledger, &claim("a", "b", "r2")).await;
    assert_eq!(again.attempt(), 2);
    again.ended(AttemptOutcome::Whole { status: 200 }, None).await;
    assert_eq!(ledger.resolve(&audit, &c.at, 2, no, "operator").await.unwrap(), None);
    assert_eq!(ledger.records(), 1);
}

#[tokio::test]
async fn retention_ends_a_record_and_nothing_else_does() {
    let (world, c) = (World::new(), claim("a", "b", "r1"));
    let ledger = world.ledger("1");
    send(&ledger, &c).await.ended(AttemptOutcome::Whole { status: 200 }, Some(response("x"))).await;
    let at_work = send(&ledger, &claim("w", "b", "r2")).await;
    world.clock.advance(Duration::from_millis(60_000));
    assert_eq!(ledger.expire_due().await.unwrap(), 0);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(ledger.expire_due().await.unwrap(), 1);
    assert_eq!((state(&ledger, &c).await, ledger.records()), (None, 1));
    assert_eq!(ledger.response(&c.at).await.unwrap(), None);
    // One that is at work outlives its time until it has ended.
    at_work.ended(AttemptOutcome::Whole { status: 200 }, Some(response("y"))).await;
    assert_eq!(ledger.expire_due().await.unwrap(), 1);
    assert!(world.store.list("", None, 10).await.unwrap().entries.is_empty());
}

/// Its client is told, with the answer, that it is kept for the whole time.
#[tokio::test]
async fn a_record_that_is_taken_again_is_kept_as_long_as_a_new_one() {
    let (world, c) = (World::new(), claim("a", "b", "r1"));
    let (ledger, audit) = (world.ledger("1"), world.audit());
    drop(send(&ledger, &c).await);
    settled(&ledger).await;
    let no = Resolution::NotCarriedOut;
    assert!(ledger.resolve(&audit, &c.at, 1, no, "operator").await.unwrap().is_some());
    world.clock.advance(Duration::from_millis(59_000));
    let again = send(&ledger, &claim("a", "b", "r2")).await;
    again.ended(AttemptOutcome::Whole { status: 200 }, Some(response("x"))).await;
    world.clock.advance(Duration::from_millis(60_000));
    assert_eq!((ledger.expire_due().await.unwrap(), ledger.records()), (0, 1));
    assert_eq!(state(&ledger, &c).await, Some((AttemptState::Completed, false)));
    world.clock.advance(Duration::from_millis(1));
    assert_eq!((ledger.expire_due().await.unwrap(), ledger.records()), (1, 0));
    assert!(world.store.list(key::EXPIRIES, None, 10).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_full_ledger_refuses_new_keys_and_answers_for_old_ones() {
    let world = World::new();
    let ledger = world.ledger_of("1", 1);
    send(&ledger, &claim("a", "b", "r1"))
        .await
        .ended(AttemptOutcome::Whole { status: 200 }, None)
        .await;
    let full = ledger.forward(None, &claim("new", "b", "r2"), true, None).await;
    assert!(matches!(full, Err(LedgerError::Full(1))));
    let old = ledger.forward(None, &claim("a", "b", "r3"), true, None).await.unwrap();
    assert!(matches!(old, Taken::Found(_)));
    assert_eq!(ledger.at_work(), 0);
}

#[tokio::test]
async fn a_ledger_that_takes_no_writes_refuses_new_keys_and_answers_for_old_ones() {
    let mut world = World::new();
    let disk = Arc::new(Gated { store: Arc::clone(&world.store), gate: Semaphore::new(100) });
    world.store = Arc::clone(&disk) as _;
    let ledger = world.ledger("1");
    send(&ledger, &claim("a", "b", "r1"))
        .await
        .ended(AttemptOutcome::Whole { status: 200 }, None)
        .await;
    disk.gate.close();
    let old = ledger.forward(None, &claim("a", "b", "r2"), true, None).await.unwrap();
    assert!(matches!(old, Taken::Found(_)));
    let new = ledger.forward(None, &claim("new", "b", "r3"), true, None).await;
    assert!(matches!(new, Err(LedgerError::Store(StoreError::NotWritable(_)))));
    assert_eq!(ledger.at_work(), 0);
}

#[tokio::test]
async fn a_request_that_meets_a_free_record_that_another_is_taking_is_told_so() {
    let mut world = World::new();
    let slow = Arc::new(Gated { store: Arc::clone(&world.store), gate: Semaphore::new(100) });
    world.store = Arc::clone(&slow) as _;
    let (ledger, c) = (world.ledger("1"), claim("a", "b", "r1"));
    drop(send(&ledger, &c).await);
    settled(&ledger).await;
    let audit = world.audit();
    ledger.resolve(&audit, &c.at, 1, Resolution::NotCarriedOut, "x").await.unwrap().unwrap();
    // The next transaction does not end: the record says released still.
    slow.gate.forget_permits(100);
    let (taking, next) = (Arc::clone(&ledger), claim("a", "b", "r2"));
    let taking = tokio::spawn(async move { held(taking.forward(None, &next, true, None).await) });
    while ledger.at_work() == 0 {
        tokio::task::yield_now().await;
    }
    let third = claim("a", "b", "r3");
    let Taken::Found(seen) = ledger.forward(None, &third, true, None).await.unwrap() else {
        panic!("sent twice")
    };
    assert_eq!((seen.record.state, seen.alive), (AttemptState::Reserved, true));
    slow.gate.add_permits(100);
    assert_eq!(taking.await.unwrap().attempt(), 2);
}

/// A store whose transactions wait for the gate.
struct Gated {
    store: Arc<dyn StateStore>,
    /// Closed, it takes no writes.
    gate: Semaphore,
}

#[async_trait]
impl StateStore for Gated {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, p: &str, a: Option<&str>, n: usize) -> Result<Page, StoreError> {
        self.store.list(p, a, n).await
    }
    async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
        let full = |_| StoreError::NotWritable("no space left".to_owned());
        let _passed = self.gate.acquire().await.map_err(full)?;
        self.store.txn(txn).await
    }
    async fn watch(&self, p: &str, from: u64) -> Result<Watch, StoreError> {
        self.store.watch(p, from).await
    }
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(lease).await
    }
    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }
}

/// A store that commits a transaction and then says that it cannot tell.
struct Mute {
    store: Arc<dyn StateStore>,
    mute: AtomicBool,
}

#[async_trait]
impl StateStore for Mute {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, p: &str, a: Option<&str>, n: usize) -> Result<Page, StoreError> {
        self.store.list(p, a, n).await
    }
    async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
        let answer = self.store.txn(txn).await;
        if self.mute.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Unavailable("said nothing".into()));
        }
        answer
    }
    async fn watch(&self, p: &str, from: u64) -> Result<Watch, StoreError> {
        self.store.watch(p, from).await
    }
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(lease).await
    }
    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }
}

#[tokio::test]
async fn a_store_that_cannot_tell_sends_nothing_and_leaves_nothing() {
    let mut world = World::new();
    let mute = Arc::new(Mute { store: Arc::clone(&world.store), mute: AtomicBool::new(true) });
    world.store = Arc::clone(&mute) as _;
    let ledger = world.ledger("1");
    let c = claim("a", "b", "r1");
    assert!(ledger.forward(None, &c, true, None).await.is_err());
    settled(&ledger).await;
    assert_eq!(state(&ledger, &c).await, None, "committed all the same, and taken back");
    // The same with a reservation in between, and for what came of it.
    let reservation = held(ledger.reserve(&c, true).await);
    mute.mute.store(true, Ordering::SeqCst);
    assert!(ledger.forward(Some(reservation), &c, true, None).await.is_err());
    settled(&ledger).await;
    assert_eq!(state(&ledger, &c).await, None);
    let sending = send(&ledger, &c).await;
    mute.mute.store(true, Ordering::SeqCst);
    sending.ended(AttemptOutcome::Whole { status: 200 }, Some(response("x"))).await;
    settled(&ledger).await;
    assert_eq!(state(&ledger, &c).await, Some((AttemptState::Completed, false)));
}

/// A disk whose power can be cut, and whose syncs can fail: what was written since the last sync is gone
/// then, and what failed to be synced may be there all the same.
#[derive(Clone, Default)]
struct Disk(Arc<OnDisk>);

#[derive(Default)]
struct OnDisk {
    seen: Memory,
    durable: Memory,
    unsynced: Mutex<Vec<Write>>,
    syncs: AtomicU64,
    failing: AtomicBool,
    /// Reads that found it failing.
    looks: AtomicU64,
    failed: Mutex<Vec<Write>>,
}

impl Disk {
    /// The store after a power cut.
    fn cut(&self) -> Arc<dyn StateStore> {
        let found = Memory::new();
        let range = |prefix| Range {
            from: vec![prefix],
            prefix: vec![prefix],
            limit: 9999,
            bytes: 1 << 30,
        };
        for prefix in *b"klam" {
            let rows = self.0.durable.scan(&range(prefix), b"m").unwrap().rows;
            found.write(rows.into_iter().map(|(k, v)| Write::Put(k, v)).collect(), true).unwrap();
        }
        Arc::new(Engine::start(found, Arc::new(ManualClock::new()), Options::default()).unwrap())
    }

    fn start(&self, clock: &Arc<ManualClock>) -> Arc<Engine<Disk>> {
        let clock = Arc::clone(clock) as _;
        Arc::new(Engine::start(self.clone(), clock, Options::default()).unwrap())
    }
}

impl Storage for Disk {
    const BLOCKING: bool = false;
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if self.0.failing.load(Ordering::SeqCst) {
            self.0.looks.fetch_add(1, Ordering::SeqCst);
        }
        self.0.seen.get(key)
    }
    fn scan(&self, range: &Range, beside: &[u8]) -> Result<Scan, StorageError> {
        self.0.seen.scan(range, beside)
    }
    fn write(&self, batch: Vec<Write>, sync: bool) -> Result<(), StorageError> {
        if self.0.failing.load(Ordering::SeqCst) {
            self.0.failed.lock().unwrap().extend(batch);
            return Err(StorageError::Io("fdatasync: input/output error".into()));
        }
        let mut unsynced = self.0.unsynced.lock().unwrap();
        unsynced.extend(batch.clone());
        if sync {
            self.0.syncs.fetch_add(1, Ordering::SeqCst);
            self.0.durable.write(std::mem::take(&mut unsynced), true)?;
        }
        self.0.seen.write(batch, sync)
    }
    fn recover(&self) -> Result<(), StorageError> {
        match self.0.failing.load(Ordering::SeqCst) {
            true => Err(StorageError::Io("still failing".into())),
            false => self.write(std::mem::take(&mut self.0.failed.lock().unwrap()), true),
        }
    }
    fn close(&self) {}
}

#[tokio::test]
async fn what_a_client_was_told_is_known_after_a_power_cut() {
    let (mut world, disk) = (World::new(), Disk::default());
    world.store = disk.start(&world.clock);
    let ledger = world.ledger("1");
    let (done, large, open) = (claim("d", "b", "1"), claim("l", "b", "2"), claim("o", "b", "3"));
    let whole = AttemptOutcome::Whole { status: 201 };
    send(&ledger, &done).await.ended(whole, Some(response("x"))).await;
    send(&ledger, &large).await.ended(AttemptOutcome::NotStored { status: 200 }, None).await;
    // A record that says forwarded is taken back durably: after the cut it would be unknown.
    let unsent = claim("u", "b", "4");
    send(&ledger, &unsent).await.unsent();
    settled(&ledger).await;
    let _open = send(&ledger, &open).await;
    world.store = disk.cut();
    let after = world.ledger("2");
    after.recover().await.unwrap();
    assert_eq!(state(&after, &done).await, Some((AttemptState::Completed, false)));
    assert_eq!(after.response(&done.at).await.unwrap(), Some(response("x")));
    let unreplayable = Some((AttemptState::CompletedUnreplayable, false));
    assert_eq!(state(&after, &large).await, unreplayable);
    assert_eq!(state(&after, &unsent).await, None);
    assert_eq!(state(&after, &open).await, Some((AttemptState::Unknown, false)));
}

/// A sync that failed may have reached the disk: the store owns up to it when it recovers. What was never
/// sent is free again then, and not before, however long that takes; and a disk that takes nothing gathers
/// no tasks.
#[tokio::test]
async fn what_was_never_sent_is_free_again_after_a_sync_that_failed() {
    let (mut world, disk) = (World::new(), Disk::default());
    let store = disk.start(&world.clock);
    world.store = Arc::clone(&store) as _;
    let ledger = world.ledger("1");
    let (fresh, reserved) = (claim("a", "b", "r1"), claim("b", "b", "r2"));
    let reservation = held(ledger.reserve(&reserved, true).await);
    disk.0.failing.store(true, Ordering::SeqCst);
    assert!(ledger.forward(None, &fresh, true, None).await.is_err());
    assert!(ledger.forward(Some(reservation), &reserved, true, None).await.is_err());
    for n in 0..50 {
        let other = claim(&format!("other {n}"), "b", "r3");
        assert!(ledger.forward(None, &other, true, None).await.is_err());
    }
    assert_eq!(ledger.at_work(), 2, "those of which it is not known");
    // Nothing is seen of it, which says nothing.
    assert_eq!(state(&ledger, &fresh).await, None);
    // Both have tried again.
    let looks = || disk.0.looks.load(Ordering::SeqCst);
    let (before, again) = (looks(), async |least| {
        while looks() < least {
            tokio::task::yield_now().await;
        }
    });
    tokio::time::timeout(Duration::from_secs(60), again(before + 4)).await.unwrap();
    assert_eq!(ledger.at_work(), 2);
    disk.0.failing.store(false, Ordering::SeqCst);
    world.clock.advance(Duration::from_secs(6));
    store.poke().await.unwrap();
    settled(&ledger).await;
    for claim in [&fresh, &reserved] {
        assert_eq!(state(&ledger, claim).await, None);
        assert_eq!(send(&ledger, claim).await.attempt(), 1, "free, and sent for the first time");
    }
}

fn evidence(n: u64, forwarded: &str) -> AuditEvidence {
    let environment = "studylab".parse().unwrap();
    AuditEvidence {
        forwarded: forwarded.into(),
        request: n.to_string(),
        class: "action".into(),
        ..AuditEvidence::of_environment(&environment, Wall(1000 + n), "hot", "")
    }
}

/// At every moment: after each row, also with a clock that was set back, and after a restart.
#[tokio::test]
async fn the_audits_bounds_hold_at_every_moment_and_refusals_take_nothing_else_away() {
    let world = World::new();
    let rows = async |prefix| world.store.list(prefix, None, 1000).await.unwrap().entries.len();
    for start in 0..2 {
        let audit = world.audit();
        for n in 0..200 {
            let at = if n == 150 { 0 } else { start * 1000 + n };
            audit.before_answer(&evidence(at, "answered by the app")).await.unwrap();
            audit.before_answer(&evidence(at, "not forwarded")).await.unwrap();
            let (kept, refused) = (rows(key::EVIDENCE).await, rows(key::REFUSALS).await);
            assert!(kept <= 75 && refused <= 25, "{start}, {n}: {kept} and {refused}");
        }
        assert_eq!((rows(key::EVIDENCE).await, rows(key::REFUSALS).await), (75, 25));
    }
    let audit = world.audit();
    let newest = audit.list(&Wanted::default(), None, 2).await.unwrap().0;
    let newest: Vec<_> = newest.iter().map(|(_, e)| e.forwarded.as_str()).collect();
    assert_eq!(newest, ["not forwarded", "answered by the app"]);
    for n in 0..1000 {
        audit.before_answer(&evidence(3000 + n, "not forwarded")).await.unwrap();
    }
    assert_eq!(rows(key::EVIDENCE).await, 75);
    world.clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(audit.trim_now().await.unwrap(), 100);
    assert_eq!(rows("").await, 0);
}

#[tokio::test]
async fn refusals_are_bounded_by_client() {
    let audit = World::new().audit();
    for n in 0..1000_u64 {
        audit.refused(evidence(n, "not forwarded"), Some([10, 0, 0, 1].into()));
    }
    assert_eq!(audit.not_kept(), 980);
    // Another client has its own, and all of them together a bound.
    audit.refused(evidence(0, "not forwarded"), Some([10, 0, 0, 2].into()));
    assert_eq!(audit.not_kept(), 980);
    for n in 0..200_u8 {
        for _ in 0..10 {
            audit.refused(evidence(0, "not forwarded"), Some([10, 0, 1, n].into()));
        }
    }
    assert_eq!(audit.not_kept(), 980 + 2000 - (400 - 21));
}

#[tokio::test]
async fn pages_of_records_follow_each_other_also_over_one_that_is_gone() {
    let world = World::new();
    let ledger = world.ledger("1");
    for name in ["a", "b", "c", "d", "e"] {
        let sending = send(&ledger, &claim(name, "b", name)).await;
        sending.ended(AttemptOutcome::Whole { status: 200 }, None).await;
    }
    let all = |_: &_| true;
    let names = |rows: &[vango_edge::ledger::Row]| {
        rows.iter().map(|r| r.at.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (first, more) = ledger.list("studylab/", None, 2, all).await.unwrap();
    assert_eq!((names(&first), more), (vec!["a".into(), "b".into()], true));
    let at = first[1].at.clone();
    world.store.txn(Txn::new().delete(key::attempt(&at))).await.unwrap();
    let (then, more) = ledger.list("studylab/", Some(&at), 2, all).await.unwrap();
    assert_eq!((names(&then), more), (vec!["c".into(), "d".into()], true));
    let (last, more) = ledger.list("studylab/", Some(&then[1].at), 2, all).await.unwrap();
    assert_eq!((names(&last), more), (vec!["e".into()], false));
    // A page that ends with the list has nothing after it; what is not wanted does not count.
    let (whole, more) = ledger.list("", None, 4, all).await.unwrap();
    assert_eq!((whole.len(), more), (4, false));
    let (one, more) = ledger.list("", None, 1, |r| r.key_hash == key_hash("d")).await.unwrap();
    assert_eq!((names(&one), more), (vec!["d".into()], false));
}

#[tokio::test]
async fn pages_of_evidence_go_from_the_newest_to_the_oldest() {
    let world = World::new();
    let limits = AuditLimits { max_rows: 100, max_age: Duration::from_secs(3600) };
    let audit = Audit::new(Arc::clone(&world.store), Arc::clone(&world.clock) as _, limits, 7);
    for n in 0..5_u64 {
        let evidence = AuditEvidence {
            // Two in each millisecond.
            at: Wall(1000 + n / 2),
            request: n.to_string(),
            environment: if n == 2 { "other" } else { "studylab" }.parse().unwrap(),
            route: "/webhooks/stripe".into(),
            class: "webhook".into(),
            method: "POST".into(),
            decision: "hot".into(),
            forwarded: "answered by the app".into(),
            why: String::new(),
            status: Some(200),
            key_hash: None,
            event: None,
            attempt: 1,
            operation: None,
            held_us: 0,
            total_us: 1,
        };
        audit.before_answer(&evidence).await.unwrap();
    }
    let read = async |wanted: &Wanted, before: Option<String>, most| {
        let (rows, more) = audit.list(wanted, before.as_deref(), most).await.unwrap();
        let last = rows.last().map(|(place, _)| place.clone());
        (rows.into_iter().map(|(_, e)| e.request).collect::<Vec<_>>(), more, last)
    };
    let all = Wanted::default();
    let (first, more, last) = read(&all, None, 2).await;
    assert_eq!((first, more), (vec!["4".into(), "3".into()], true));
    let (then, more, last) = read(&all, last, 2).await;
    assert_eq!((then, more), (vec!["2".into(), "1".into()], true));
    let (end, more, _) = read(&all, last, 2).await;
    assert_eq!((end, more), (vec!["0".into()], false));
    let of_app = Wanted { app: Some("studylab".into()), since: Wall(1001), ..Wanted::default() };
    let (some, more, _) = read(&of_app, None, 2).await;
    assert_eq!((some, more), (vec!["4".into(), "3".into()], false));
}
