//! What there is: shared truth, the machine, requests that are under way, and what was promised to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use vango_edge::clock::{Clock, SeededEntropy};
use vango_edge::id::{AllocationId, AppName, Digest};
use vango_edge::snapshot::{Publisher, SnapshotReader};
use vango_edge::store::memory::Memory;
use vango_edge::store::{Engine, MemoryStore, Options};

use crate::app::App;
use crate::dice::{Dice, SimClock};
use crate::follower::Follower;
use crate::machine::Machine;
use crate::promises::Row;
use crate::story::{Diary, Story};
use crate::truth::Truth;

/// Contracts by digest: they differ in routes, budgets and bounds, so that a promotion changes
/// what a request in the middle of its journey is allowed to do, and some have a release command.
pub const CONTRACTS: [&str; 4] = [
    r#"
[app]
name = "APP"
[process]
command = ["./app"]
drain_timeout = "2s"
[wake]
budget = "6s"
max_held = 6
start_timeout = "3s"
[sleep]
after = "3s"
mode = "freeze"
freeze_for = "6s"
[scale]
concurrency = 2
[[route]]
path = "/actions/plain"
class = "action"
idempotency = "none"
[[route]]
path = "/actions/keyed"
class = "action"
idempotency = "edge"
principal = "cookie:session"
[[route]]
path = "/actions/*"
class = "action"
idempotency = "app"
[[route]]
path = "/webhooks/*"
class = "webhook"
provider = "stripe"
secret = "STRIPE"
[[route]]
path = "/*"
class = "page"
"#,
    r#"
[app]
name = "APP"
[process]
command = ["./app"]
drain_timeout = "1s"
[release]
command = ["./migrate"]
timeout = "2s"
[wake]
budget = "2s"
max_held = 3
start_timeout = "3s"
[sleep]
after = "2s"
[scale]
concurrency = 1
[[route]]
path = "/actions/keyed"
class = "action"
idempotency = "edge"
principal = "cookie:session"
[[route]]
path = "/*"
class = "page"
cold = "hold"
"#,
    r#"
[app]
name = "APP"
[process]
command = ["./app"]
[wake]
budget = "10s"
max_held = 8
start_timeout = "3s"
[sleep]
after = "never"
[scale]
concurrency = 3
[[route]]
path = "/live"
class = "live"
[[route]]
path = "/actions/plain"
class = "action"
idempotency = "none"
[[route]]
path = "/actions/keyed"
class = "action"
idempotency = "edge"
principal = "cookie:session"
[[route]]
path = "/dashboard"
class = "action"
idempotency = "app"
[[route]]
path = "/webhooks/*"
class = "webhook"
provider = "stripe"
secret = "STRIPE"
when_cold = "defer"
[[route]]
path = "/*"
class = "page"
"#,
    r#"
[app]
name = "APP"
[process]
command = ["./app"]
drain_timeout = "1s"
[release]
command = ["./migrate"]
timeout = "1s"
[wake]
budget = "5s"
max_held = 5
start_timeout = "3s"
[sleep]
after = "1s"
mode = "freeze"
freeze_for = "3s"
[scale]
concurrency = 1
[[route]]
path = "/actions/plain"
class = "action"
idempotency = "none"
[[route]]
path = "/actions/keyed"
class = "action"
idempotency = "edge"
principal = "cookie:session"
[[route]]
path = "/webhooks/*"
class = "webhook"
provider = "stripe"
secret = "STRIPE"
[[route]]
path = "/*"
class = "page"
"#,
];

/// Apps that are deployed.
const APPS: [&str; 2] = ["studylab", "other"];

/// The artifact of `app` with contract `n`.
pub fn digest(app: &AppName, n: usize) -> Digest {
    let mut bytes = [n as u8 + 1; 32];
    bytes[0] = APPS.iter().position(|a| *a == app.as_str()).unwrap() as u8;
    Digest::from_bytes(bytes)
}

/// The contract of an artifact.
pub fn contract(digest: &Digest) -> String {
    let bytes = digest.as_bytes();
    CONTRACTS[bytes[1] as usize - 1].replace("APP", APPS[bytes[0] as usize])
}

/// Whether an artifact has a release command.
pub fn has_release(digest: &Digest) -> bool {
    contract(digest).contains("[release]")
}

/// One run's world.
pub struct Sim {
    pub dice: Dice,
    pub clock: Arc<SimClock>,
    pub entropy: Arc<SeededEntropy>,
    /// Shared truth itself, for what looks at it from outside.
    pub engine: Arc<MemoryStore>,
    pub ledger_engine: Arc<MemoryStore>,
    pub machine: Machine,
    pub app: App,
    pub follower: Follower,
    pub snapshots: SnapshotReader,
    /// Taken by the one that follows the store.
    pub publisher: Mutex<Option<Publisher>>,
    rows: Mutex<BTreeMap<u64, Row>>,
    truth: Mutex<Truth>,
    diary: Mutex<Diary>,
    away_until: Mutex<Option<Instant>>,
    calm: AtomicBool,
    stopping: AtomicBool,
    losing_control: AtomicBool,
    next_request: AtomicU64,
    added: Mutex<Vec<AllocationId>>,
}

impl Sim {
    pub fn new(seed: u64, verbose: bool) -> Arc<Self> {
        let clock = Arc::new(SimClock::new());
        let engine = || {
            let options = Options { watch_revisions: 10_000, ..Options::default() };
            Arc::new(Engine::inline(Memory::new(), Arc::clone(&clock) as _, options).unwrap())
        };
        let publisher = Publisher::new();
        Arc::new(Self {
            dice: Dice::new(seed),
            entropy: Arc::new(SeededEntropy::new(seed ^ 0xe17a_0917)),
            engine: engine(),
            ledger_engine: engine(),
            machine: Machine::default(),
            app: App::default(),
            follower: Follower::default(),
            snapshots: publisher.reader(),
            publisher: Mutex::new(Some(publisher)),
            rows: Mutex::default(),
            truth: Mutex::default(),
            diary: Mutex::new(Diary::new(seed, verbose)),
            away_until: Mutex::default(),
            calm: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            losing_control: AtomicBool::new(false),
            next_request: AtomicU64::new(0),
            added: Mutex::default(),
            clock,
        })
    }

    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    pub fn rows(&self) -> MutexGuard<'_, BTreeMap<u64, Row>> {
        self.rows.lock().unwrap()
    }

    /// Changes what is known of a request.
    pub fn row<T>(&self, n: u64, f: impl FnOnce(&mut Row) -> T) -> T {
        f(self.rows().entry(n).or_default())
    }

    pub fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Nothing fails and no new client comes any more.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn calm_down(&self) {
        self.note(|| "calm".into());
        self.calm.store(true, Ordering::Relaxed);
        *self.away_until.lock().unwrap() = None;
    }

    /// The edge takes its leave.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.note(|| "the edge stops".into());
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The control room is about to be lost, or not any more. Returns whether it was.
    pub fn is_losing_control(&self, now: bool) -> bool {
        self.losing_control.swap(now, Ordering::Relaxed)
    }

    /// The store does not answer for a while.
    pub fn store_goes_away(&self, by: Duration) {
        self.note(|| format!("the store is away for {by:?}"));
        *self.away_until.lock().unwrap() = Some(Instant::now() + by);
    }

    pub fn store_is_away(&self) -> bool {
        self.away_until.lock().unwrap().is_some_and(|t| Instant::now() < t)
    }

    /// An allocation that no wake of this edge started.
    pub fn add(&self, id: &AllocationId) {
        self.added.lock().unwrap().push(id.clone());
    }

    pub fn is_added(&self, id: &AllocationId) -> bool {
        self.added.lock().unwrap().contains(id)
    }

    pub fn happened(&self, what: &'static str) {
        *self.diary().story.happenings.entry(what).or_default() += 1;
    }

    pub fn ended(&self, how: &'static str) {
        *self.diary().story.endings.entry(how).or_default() += 1;
    }

    fn diary(&self) -> MutexGuard<'_, Diary> {
        self.diary.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes an event.
    pub fn note(&self, text: impl FnOnce() -> String) {
        let at = self.clock.now().0 as f64 / 1e9 - 1_000.0;
        let line = format!("{at:>8.3}s {}", text());
        self.diary().note(line);
    }

    /// A promise is broken.
    pub fn broken(&self, what: impl AsRef<str>) -> ! {
        self.diary().broken(what.as_ref());
    }

    pub fn close(&self) -> Story {
        self.diary().close()
    }
}
