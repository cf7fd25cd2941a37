//! Durable reservations beside RocksDB's own group commit, on this disk, and what a keyed request
//! and a delivery that is not believed cost.
//! `scripts/bench/code ledger`; one line each, at 1, 16 and 64 at a time: medians of rounds
//! that take turns, so that a noisy moment hits both alike. `TMPDIR` is the disk that is measured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use vango_edge::clock::{Clock, Entropy, SystemClock, SystemEntropy, Wall};
use vango_edge::contract::{Duplicate, Provider, Webhook, WhenCold};
use vango_edge::ledger::{Ledger, LedgerLimits, Taken};
use vango_edge::lifecycle::idempotency::{Claim, Holder, RequestFingerprint, key_hash};
use vango_edge::lifecycle::webhook::Signed;
use vango_edge::record::ledger::{Subject, key};
use vango_edge::store::{Options, RocksStore};

const FOR: Duration = Duration::from_secs(2);
const ROUNDS: usize = 7;

fn claim(n: u64) -> Claim {
    let environment = "studylab".parse().unwrap();
    let hash = format!("{:064x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    Claim {
        subject: Subject::Action,
        at: key::subject(&environment, &hash),
        environment,
        route: "/actions/*".into(),
        key_hash: key_hash(&hash),
        event: None,
        fingerprint: RequestFingerprint { head: "a".repeat(64), body: Some("b".repeat(64)) },
        retention_ms: 86_400_000,
        request: format!("{n:032x}"),
    }
}

/// Reservations a second through the ledger: each is on disk when it returns.
async fn through_the_ledger(dir: &Path, at_once: usize) -> f64 {
    let clock = Arc::new(SystemClock::new());
    let store = RocksStore::open(
        dir,
        Arc::clone(&clock) as _,
        Options { watch_revisions: 1, watch_bytes: 0 },
    )
    .unwrap();
    let holder = Holder { node: "n".into(), run: "1".into() };
    let limits = LedgerLimits { max_records: 1 << 40, max_response: 65_536 };
    let runtime = tokio::runtime::Handle::current();
    let ledger = Ledger::new(Arc::new(store), Arc::clone(&clock) as _, holder, limits, runtime);
    let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let began = clock.now();
    let tasks: Vec<_> = (0..at_once)
        .map(|_| {
            let (ledger, next, stop) = (Arc::clone(&ledger), Arc::clone(&next), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let claim = claim(next.fetch_add(1, Ordering::Relaxed));
                    match ledger.forward(None, &claim, true, None).await.unwrap() {
                        // What follows is not measured here: the process ends with these open.
                        Taken::Held(sending) => std::mem::forget(sending),
                        Taken::Found(_) => panic!("a new key is free"),
                    }
                    n += 1;
                }
                n
            })
        })
        .collect();
    tokio::time::sleep(FOR).await;
    stop.store(true, Ordering::Relaxed);
    let mut n = 0;
    for task in tasks {
        n += task.await.unwrap();
    }
    n as f64 / clock.now().since(began).as_secs_f64()
}

/// The same bytes as synced puts of RocksDB's own, each from a thread of its own.
fn raw(dir: &Path, at_once: usize) -> f64 {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let db = Arc::new(rocksdb::DB::open(&options, dir).unwrap());
    let clock = SystemClock::new();
    let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let began = clock.now();
    let threads: Vec<_> = (0..at_once)
        .map(|_| {
            let (db, next, stop) = (Arc::clone(&db), Arc::clone(&next), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut synced = rocksdb::WriteOptions::default();
                synced.set_sync(true);
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let claim = claim(next.fetch_add(1, Ordering::Relaxed));
                    let mut batch = rocksdb::WriteBatch::default();
                    // What the ledger writes: the record and two marks.
                    batch.put(key::attempt(&claim.at), [b'x'; 640]);
                    batch.put(key::open(&claim.at), b"");
                    batch.put(key::expiry(Wall(1), &claim.at), b"");
                    db.write_opt(batch, &synced).unwrap();
                    n += 1;
                }
                n
            })
        })
        .collect();
    std::thread::sleep(FOR);
    stop.store(true, Ordering::Relaxed);
    let n: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    n as f64 / clock.now().since(began).as_secs_f64()
}

/// Microseconds to refuse a delivery of `bytes` whose signature does not match.
fn refusal(bytes: usize) -> f64 {
    let webhook = Webhook {
        provider: Provider::Stripe,
        secret: "S".into(),
        when_cold: WhenCold::Hold,
        duplicate: Duplicate::Answer,
        generic: None,
    };
    let mut headers = HeaderMap::new();
    let header = format!("t=1700000000,v1={}", "0".repeat(64));
    headers.insert("stripe-signature", header.parse().unwrap());
    let body = vec![b'x'; bytes];
    let clock = SystemClock::new();
    let (began, mut n) = (clock.now(), 0u32);
    while clock.now().since(began) < Duration::from_secs(1) {
        let signed = Signed::parse(&webhook, &headers, Wall(1_700_000_000_000)).unwrap();
        assert!(signed.verify(&webhook, &body, &[b"whsec"]).is_err());
        n += 1;
    }
    clock.now().since(began).as_secs_f64() * 1e6 / f64::from(n)
}

/// Sorts them, too.
fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for at_once in [1, 16, 64] {
        let (mut raws, mut ledgers) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let name = SystemEntropy.next_u64();
            raws.push(raw(&dir.path().join(format!("raw-{name}")), at_once));
            let at = dir.path().join(format!("ledger-{name}"));
            ledgers.push(runtime.block_on(through_the_ledger(&at, at_once)));
        }
        let (raw, ours) = (median(&mut raws), median(&mut ledgers));
        let spread = |all: &[f64]| (all[0], all[all.len() - 1]);
        let ((raw_low, raw_high), (low, high)) = (spread(&raws), spread(&ledgers));
        println!(
            "{at_once:>3} at once: {ours:>6.0} reservations/s ({low:.0} to {high:.0}), RocksDB alone \
             {raw:>6.0} ({raw_low:.0} to {raw_high:.0}): {:.2}",
            ours / raw
        );
    }
    for bytes in [1024, 65_536, 1024 * 1024] {
        println!("refusing a delivery of {bytes:>7} bytes: {:>7.1} µs", refusal(bytes));
    }
}
