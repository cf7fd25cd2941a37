//! What there is: a store, one edge with its snapshot and queues, processes, and requests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vango_edge::clock::{Clock, Entropy, ManualClock, Mono, SeededEntropy};
use vango_edge::control::plan;
use vango_edge::id::{AllocationId, DeploymentId, Digest, Environment, Host, OperationId};
use vango_edge::lifecycle::trace::Step;
use vango_edge::snapshot::{Change, Publisher, SnapshotReader};
use vango_edge::store::record::{Deployment, Operation, Record, Retired, RouteOwner, key};
use vango_edge::wake::hold::{HoldLimits, HoldQueues};

use crate::edge::{Request, State};
use crate::plane::{Ask, Executor, Process, Sleeper};
use crate::store::{Store, Txn};

/// Contracts by digest: they differ in routes, budgets and bounds, so that a promotion changes
/// what a request in the middle of its journey is allowed to do.
const CONTRACTS: [&str; 3] = [
    r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
drain_timeout = "2s"
[wake]
budget = "6s"
max_held = 6
[sleep]
after = "3s"
[scale]
concurrency = 2
max = 2
[[route]]
path = "/actions/plain"
class = "action"
idempotency = "none"
[[route]]
path = "/actions/*"
class = "action"
idempotency = "app"
[[route]]
path = "/*"
class = "page"
"#,
    r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
drain_timeout = "1s"
[wake]
budget = "2s"
max_held = 3
[sleep]
after = "2s"
[scale]
concurrency = 1
max = 2
[[route]]
path = "/*"
class = "page"
"#,
    r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
[wake]
budget = "10s"
max_held = 8
[sleep]
after = "never"
[scale]
concurrency = 3
max = 2
[[route]]
path = "/vango/live"
class = "live"
[[route]]
path = "/actions/*"
class = "action"
idempotency = "none"
[[route]]
path = "/dashboard"
class = "action"
idempotency = "app"
[[route]]
path = "/*"
class = "page"
"#,
];

pub const HOSTS: [&str; 3] = ["a.localhost", "b.localhost", "c.localhost"];

fn environments() -> [Environment; 2] {
    ["studylab".parse().unwrap(), "studylab/pr-1".parse().unwrap()]
}

fn digest(n: usize) -> Digest {
    Digest::from_bytes([n as u8 + 1; 32])
}

/// What all runs came to.
#[derive(Debug, Default)]
pub struct Story {
    pub events: u64,
    pub endings: BTreeMap<&'static str, u64>,
    pub happenings: BTreeMap<&'static str, u64>,
    /// Of every step of every request, as text.
    pub steps_hash: u64,
}

impl Story {
    pub fn add(&mut self, other: Story) {
        self.events += other.events;
        for (name, n) in other.endings {
            *self.endings.entry(name).or_default() += n;
        }
        for (name, n) in other.happenings {
            *self.happenings.entry(name).or_default() += n;
        }
    }
}

/// Chooses what happens; apart from the entropy that the edge itself draws on, so that a change of
/// the one does not shift the other.
pub struct Dice(SeededEntropy);

impl Dice {
    pub fn below(&self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }
    /// True once in `n` times.
    pub fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

pub struct Sim {
    pub seed: u64,
    pub step: u64,
    verbose: bool,
    last: VecDeque<String>,
    pub story: Story,
    hasher: DefaultHasher,
    pub dice: Dice,

    pub clock: Arc<ManualClock>,
    pub entropy: Arc<SeededEntropy>,
    pub environments: [Environment; 2],
    pub store: Store,
    /// Operations as the store has them, read once for each revision.
    operations: BTreeMap<Environment, (Operation, u64)>,
    /// Up to which revision the registry has been checked.
    pub checked: u64,
    publisher: Publisher,
    pub published: u64,
    pub snapshots: SnapshotReader,
    pub queues: Arc<HoldQueues>,
    wake_again: Arc<Mutex<Vec<Environment>>>,

    pub requests: Vec<Request>,
    /// Requests that have not ended.
    pub open: BTreeSet<usize>,
    pub asking: BTreeMap<Environment, Ask>,
    pub executors: BTreeMap<u32, Executor>,
    /// Environments that each of two nodes executes for.
    pub executing: [BTreeSet<Environment>; 2],
    pub processes: BTreeMap<AllocationId, Process>,
    pub exits: Vec<(Environment, AllocationId)>,
    pub sleepers: BTreeMap<Environment, Sleeper>,
    pub up_since: BTreeMap<AllocationId, Mono>,

    pub stopping: bool,
    /// Nothing fails and no new client comes any more.
    pub calm: bool,
    pub next_executor: u32,
    /// Starts of processes, by the operation and attempt they belong to.
    pub starts: BTreeSet<(OperationId, u32)>,
    /// Attempts that operations counted, and starts of generations.
    pub attempts: u64,
    pub epochs_seen: BTreeMap<Environment, u64>,
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} broke at step {}; its last events:", self.seed, self.step);
            for line in &self.last {
                eprintln!("{line}");
            }
            eprintln!(
                "replay: VANGO_EDGE_TEST_SEED={} cargo test --workspace --test sim thousands",
                self.seed
            );
        }
    }
}

impl Sim {
    fn new(seed: u64, verbose: bool) -> Self {
        let clock = Arc::new(ManualClock::new());
        let entropy = Arc::new(SeededEntropy::new(seed ^ 0xe17a_0917));
        let publisher = Publisher::new();
        let snapshots = publisher.reader();
        let wake_again: Arc<Mutex<Vec<Environment>>> = Arc::default();
        let queues = {
            let wake_again = Arc::clone(&wake_again);
            HoldQueues::new(
                HoldLimits { max_held: 10, max_held_bytes: 400 },
                snapshots.clone(),
                Arc::clone(&clock) as _,
                Arc::clone(&entropy) as _,
                Box::new(move |e| wake_again.lock().unwrap().push(e.clone())),
            )
        };
        Self {
            seed,
            step: 0,
            verbose,
            last: VecDeque::new(),
            story: Story::default(),
            hasher: DefaultHasher::new(),
            dice: Dice(SeededEntropy::new(seed)),
            clock,
            entropy,
            environments: environments(),
            store: Store::default(),
            operations: BTreeMap::new(),
            checked: 0,
            publisher,
            published: 0,
            snapshots,
            queues,
            wake_again,
            requests: Vec::new(),
            open: BTreeSet::new(),
            asking: BTreeMap::new(),
            executors: BTreeMap::new(),
            executing: Default::default(),
            processes: BTreeMap::new(),
            exits: Vec::new(),
            sleepers: BTreeMap::new(),
            up_since: BTreeMap::new(),
            stopping: false,
            calm: false,
            next_executor: 0,
            starts: BTreeSet::new(),
            attempts: 0,
            epochs_seen: BTreeMap::new(),
        }
    }

    /// One whole run: a random part, then calm until every request has ended.
    pub fn run(seed: u64, verbose: bool) -> Story {
        let mut sim = Self::new(seed, verbose);
        let [production, preview] = sim.environments.clone();
        sim.deploy(&production, 0, &HOSTS[..2]);
        sim.deploy(&preview, sim.dice.below(CONTRACTS.len()), &HOSTS[2..]);
        while sim.publish_next() {}
        let events = 150 + sim.dice.below(250);
        for _ in 0..events {
            sim.random_event();
            sim.check();
        }
        sim.calm_down();
        sim.check_the_end();
        let mut story = std::mem::take(&mut sim.story);
        story.events = sim.step;
        story.steps_hash = sim.hasher.finish();
        story
    }

    pub fn now(&self) -> Mono {
        self.clock.now()
    }

    /// Notes an event, for when a promise breaks.
    pub fn note(&mut self, text: impl FnOnce(&Self) -> String) {
        let line = format!("{:>4} {:>9.3}s {}", self.step, self.elapsed(), text(self));
        if self.verbose {
            eprintln!("{line}");
        }
        self.last.push_back(line);
        if self.last.len() > 60 {
            self.last.pop_front();
        }
    }

    fn elapsed(&self) -> f64 {
        self.now().since(Mono(1_000_000_000_000)).as_secs_f64()
    }

    pub fn happened(&mut self, what: &'static str) {
        *self.story.happenings.entry(what).or_default() += 1;
    }

    /// A promise is broken.
    pub fn broken(&self, what: impl AsRef<str>) -> ! {
        panic!("seed {} step {}: {}", self.seed, self.step, what.as_ref());
    }

    pub fn hash_steps(&mut self, n: usize) {
        for step in &self.requests[n].journey.trace.steps {
            let text = Step::text(step);
            format!("{text:?}").hash(&mut self.hasher);
        }
        self.requests[n].journey.trace.outcome.name().hash(&mut self.hasher);
    }

    /// Moves both clocks.
    pub fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
    }

    /// Makes a deployment of digest `n` for `environment`, owning `hosts` and what it owns already.
    pub fn deploy(&mut self, environment: &Environment, n: usize, hosts: &[&str]) {
        let deployment = Deployment {
            id: DeploymentId::random(&*self.entropy),
            environment: environment.clone(),
            digest: digest(n),
            contract: CONTRACTS[n].into(),
            created: self.clock.wall(),
            files: 1,
            bytes: 1,
            assets: None,
            replaced: None,
            promoted_from: None,
            schema: None,
        };
        let at = key::deployment(environment, &deployment.id);
        let txn = Txn::new().absent(&at).put(&at, deployment.encode());
        self.own(&deployment, hosts, txn);
    }

    /// Which digest `environment`'s owner has, as [`Self::deploy`] counts them.
    pub fn digest_of(&self, environment: &Environment) -> Option<usize> {
        let owner = self.owners(environment).into_iter().next()?;
        (0..CONTRACTS.len()).find(|n| digest(*n) == owner.digest)
    }

    pub fn contracts() -> usize {
        CONTRACTS.len()
    }

    /// The owner records of `environment`, as the store has them.
    pub fn owners(&self, environment: &Environment) -> Vec<RouteOwner> {
        let all = self.store.list(key::OWNERS).map(|(_, e)| RouteOwner::decode(&e.value).unwrap());
        all.filter(|o| o.environment == *environment).collect()
    }

    fn own(&mut self, deployment: &Deployment, hosts: &[&str], mut txn: Txn) {
        let mut all: BTreeSet<Host> = hosts.iter().map(|h| h.parse().unwrap()).collect();
        all.extend(self.owners(&deployment.environment).into_iter().map(|o| o.host));
        let hosts: Vec<Host> = all.into_iter().collect();
        let seen = hosts
            .iter()
            .map(|h| {
                let entry = self.store.get(&key::owner(h, "/"));
                let owner = entry.map(|e| (RouteOwner::decode(&e.value).unwrap(), e.mod_revision));
                (h.clone(), owner)
            })
            .collect();
        let owners = plan::take_hosts(deployment, &hosts, &seen, &Retired::default()).unwrap();
        for (owner, replaces) in owners {
            let at = key::owner(&owner.host, &owner.path);
            txn = txn.replaces(&at, replaces).put(&at, owner.encode());
        }
        self.commit(txn).unwrap_or_else(|_| self.broken("an owner changed in between"));
    }

    /// A transaction, with what is promised of every one.
    pub fn commit(&mut self, txn: Txn) -> Result<u64, crate::store::Conflict> {
        if !self.store.holds(&txn) {
            return Err(crate::store::Conflict);
        }
        let mut operations = Vec::new();
        for (key, value) in txn.changes() {
            self.check_change(key, value.as_deref());
            if let (Some(environment), Some(value)) = (key.strip_prefix(key::OPERATIONS), value) {
                operations.push((environment.parse().unwrap(), Operation::decode(value).unwrap()));
            }
        }
        let revision = self.store.txn(txn)?;
        for (environment, operation) in operations {
            self.operations.insert(environment, (operation, revision));
        }
        Ok(revision)
    }

    /// Publishes the next revision, and tells those it concerns, as `src/control/follow.rs` does.
    pub fn publish_next(&mut self) -> bool {
        let Some(changes) = self.store.after(self.published).cloned() else { return false };
        self.published += 1;
        let events = changes.iter().map(|(key, v)| Change { key, value: v.as_deref() });
        let (touched, read) = self.publisher.publish(events, self.published, self.clock.now());
        read.unwrap();
        self.check_epochs();
        for environment in &touched {
            self.consider(environment);
            self.pump(environment);
        }
        for (key, value) in &changes {
            if value.is_none()
                && let Some(environment) = key.strip_prefix(key::EXECUTORS)
            {
                self.consider(&environment.parse().unwrap());
            }
        }
        true
    }

    pub fn pump(&mut self, environment: &Environment) {
        self.queues.pump(environment);
        self.ask_again();
    }

    /// Performs what the queues asked for: at once, as the worker takes it.
    pub fn ask_again(&mut self) {
        let asked: Vec<_> = std::mem::take(&mut *self.wake_again.lock().unwrap());
        for environment in asked {
            self.ask(&environment);
        }
    }

    pub fn stored_operation(&self, environment: &Environment) -> Option<(Operation, u64)> {
        self.operations.get(environment).cloned()
    }

    /// Whether the environment's operation is in progress, as the store has it.
    pub fn in_progress(&self, environment: &Environment) -> bool {
        self.operations.get(environment).is_some_and(|(o, _)| o.state.in_progress())
    }

    pub fn state(&self, n: usize) -> &State {
        &self.requests[n].state
    }
}
