//! The immutable views a request reads. Only [`super::compile()`] makes them.
//!
//! The one thing in them that moves is [`Load`] and [`EnvCounters`]: counters that belong to an
//! allocation or an environment and are shared by every snapshot that shows it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::assets::{AssetIndex, Folder};
use crate::clock::Mono;
use crate::contract::{Assets, Contract};
use crate::id::{AllocationId, Digest, Environment, Epoch, Generation, Host, OperationId};
use crate::record::{AllocationState, Failure, OwnerSeen, WakePhases, WakeState};

use super::shards::Shards;

/// Everything a request may read, as of one revision of the store.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) revision: u64,
    pub(super) hosts: Shards<Host, Arc<EnvView>>,
    pub(super) environments: Shards<Environment, Arc<EnvView>>,
}

impl Snapshot {
    /// The store's revision it was compiled at.
    pub fn revision(&self) -> u64 {
        self.revision
    }
    /// Who answers for `host`, a lower-case name without port.
    pub fn host(&self, host: &str) -> Option<&Arc<EnvView>> {
        self.hosts.get(host)
    }
    /// One environment.
    pub fn environment(&self, environment: &Environment) -> Option<&Arc<EnvView>> {
        self.environments.get(environment)
    }
    /// All environments, in no order.
    pub fn environments(&self) -> impl Iterator<Item = &Arc<EnvView>> {
        self.environments.iter().map(|(_, v)| v)
    }
    /// How many hosts are routed.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }
}

impl std::borrow::Borrow<str> for Host {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// One environment, as of one snapshot.
#[derive(Debug)]
pub struct EnvView {
    pub environment: Environment,
    /// Who owns its routes.
    pub owner: OwnerSeen,
    /// Hosts routed to it.
    pub hosts: Vec<Host>,
    /// The owner's artifact's contract.
    pub contract: Arc<Contract>,
    /// The schema under which the owner's artifact writes its sessions' state.
    pub schema: Option<Digest>,
    /// Ready allocations of the owner's epoch and digest: the only ones that get new requests.
    pub ready: Vec<Arc<AllocationView>>,
    /// Every other recorded allocation, for people.
    pub others: Vec<Arc<AllocationView>>,
    /// Static files: the owner's artifact's first, then those of artifacts that owned it before,
    /// newest first; of one artifact the longest prefix first. Empty when the owner's contract has none.
    pub assets: Vec<Shelf>,
    /// The last wake of this environment.
    pub operation: Option<OperationView>,
    /// This edge does not run it: `ready` is the static pool of its upstreams, up or down by their health,
    /// and nothing here wakes, freezes or stops any.
    pub external: bool,
    /// Counters of the environment.
    pub counters: Arc<EnvCounters>,
    /// Answers given with the owner's deployment.
    pub tally: Arc<Tally>,
}

impl EnvView {
    /// Whether this edge does not run it, and none of its upstreams is up.
    pub fn is_down(&self) -> bool {
        self.external && self.ready.iter().all(|a| a.load.is_down())
    }

    /// An allocation under the owner's authority that is in memory and takes no requests, which a
    /// wake takes back instead of starting another: the newest.
    pub fn in_memory(&self) -> Option<&Arc<AllocationView>> {
        let found = self.others.iter().filter(|a| {
            matches!(a.state, AllocationState::Frozen | AllocationState::Draining)
                && self.has_authority(a.epoch, &a.digest)
        });
        found.max_by_key(|a| a.generation)
    }

    /// An allocation of it, in whatever state.
    pub fn allocation(&self, id: &AllocationId) -> Option<&Arc<AllocationView>> {
        self.ready.iter().chain(&self.others).find(|a| a.id == *id)
    }

    /// The contract of the artifact that an allocation runs; the owner's for one that is not known yet.
    pub fn contract_of(&self, id: &AllocationId) -> &Contract {
        self.allocation(id).map_or(&*self.contract, |a| &*a.contract)
    }

    /// What a wake of its artifact takes; zero when none was seen.
    pub fn typical_wake(&self) -> Duration {
        Duration::from_millis(self.operation.as_ref().map_or(0, |o| o.typical_ms))
    }

    /// Whether what was started under `epoch` from `digest` may serve for the owner.
    pub fn has_authority(&self, epoch: Epoch, digest: &Digest) -> bool {
        epoch == self.owner.epoch && *digest == self.owner.digest
    }
}

/// An app that this edge does not run, as the operator's configuration has it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalApp {
    /// Its production; it has no other environment.
    pub environment: Environment,
    pub hosts: Vec<Host>,
    /// Its routes and bounds; nothing in it starts or stops anything.
    pub contract: Arc<Contract>,
    /// Where it listens: never empty, none twice.
    pub addresses: Vec<SocketAddr>,
    /// Whether health checks say which of them are up. One that was not looked at yet is down then;
    /// without, each is up for good.
    pub checked: bool,
}

/// The static files of one directory of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf {
    pub artifact: Digest,
    /// What its contract says of them.
    pub assets: Arc<Assets>,
    /// Those of all of its directories; `None` when the artifact's index cannot be had.
    pub index: Option<Arc<AssetIndex>>,
    /// Which of the index's folders these are.
    pub at: usize,
}

impl Shelf {
    /// Which files; `None` when that cannot be had.
    pub fn folder(&self) -> Option<&Folder> {
        self.index.as_ref()?.folders().get(self.at)
    }
}

/// A wake operation, as of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationView {
    pub id: OperationId,
    /// The epoch it was decided under.
    pub epoch: Epoch,
    pub state: WakeState,
    /// The allocation it starts or started.
    pub allocation: Option<AllocationId>,
    /// Phases so far.
    pub phases: WakePhases,
    pub failure: Option<Failure>,
    /// Failures in a row.
    pub failures: u32,
    /// No new start before this; set when a failure was seen.
    pub backoff_until: Option<Mono>,
    /// What a wake of this artifact takes, in milliseconds: a moving average; 0 when none was seen.
    pub typical_ms: u64,
}

/// One allocation, as of one snapshot.
#[derive(Debug)]
pub struct AllocationView {
    pub id: AllocationId,
    /// Which start of the environment it is.
    pub generation: Generation,
    /// The epoch it serves under.
    pub epoch: Epoch,
    pub digest: Digest,
    /// Its artifact's contract; the owner's where no deployment of that artifact is kept.
    pub contract: Arc<Contract>,
    /// Where it is in its life.
    pub state: AllocationState,
    /// Where it listens. `None` until spawned.
    pub address: Option<SocketAddr>,
    /// Process id, for people.
    pub pid: Option<u32>,
    /// Requests in flight it takes before the next is preferred or held. At least 1.
    pub concurrency: u32,
    /// Keeps its pooled connections apart from every other allocation's, before and after it on the
    /// same port, and from those of before it was frozen, which the app may close as it thaws.
    pub pool_key: u64,
    /// The `vango-edge-*` headers its requests carry: environment, epoch, allocation, and the artifact
    /// where there is one. Made once, so that a request only copies them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// It is an upstream, which this edge does not run.
    pub external: bool,
    /// Its counters.
    pub load: Arc<Load>,
}

/// Set in the count of requests in flight while no place is given out.
const SEALED: u32 = 1 << 31;

/// Counters of one allocation, shared by every snapshot that shows it.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    down: AtomicBool,
    total: AtomicU64,
    sockets: AtomicU32,
}

impl Load {
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst) & !SEALED
    }
    /// Whether health checks found that it does not answer: it is chosen for nothing then.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }
    /// What health checks found.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }
    /// Requests placed since it was first seen.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
    /// Live sockets that are open. They take no place: an open tab that does nothing must not keep a
    /// request from being served.
    pub fn sockets(&self) -> u32 {
        self.sockets.load(Ordering::Acquire)
    }
    /// Counts a live socket.
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.sockets.fetch_add(1, Ordering::AcqRel);
        Pin { load: Arc::clone(self) }
    }
    /// Takes a place if fewer than `limit` are taken and it is not sealed.
    pub fn reserve(self: &Arc<Self>, limit: u32) -> Option<Slot> {
        let limit = limit.min(SEALED);
        self.in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < limit).then_some(n + 1))
            .ok()?;
        self.total.fetch_add(1, Ordering::Relaxed);
        Some(Slot { load: Arc::clone(self) })
    }
}

/// Sealing: what is about to be frozen or stopped must get no request that was decided on an
/// older snapshot. The count and the seal are one word, so that "nothing is in flight" and "nothing
/// can be" are decided at once.
impl Load {
    /// Gives out no place from here on, if none is taken; whether it is so.
    pub fn seal(&self) -> bool {
        let idle = self.in_flight.compare_exchange(0, SEALED, Ordering::AcqRel, Ordering::Acquire);
        matches!(idle, Ok(_) | Err(SEALED))
    }
    /// Gives out no place from here on; those that are taken stay.
    pub fn seal_anyway(&self) {
        self.in_flight.fetch_or(SEALED, Ordering::AcqRel);
    }
    /// Gives out places again.
    pub fn unseal(&self) {
        self.in_flight.fetch_and(!SEALED, Ordering::AcqRel);
    }
}

/// A live socket's count; taken off when dropped.
#[derive(Debug)]
pub struct Pin {
    load: Arc<Load>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let before = self.load.sockets.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a pin is taken off once");
    }
}

/// A place in an allocation's concurrency; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    load: Arc<Load>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // In one order with the count of those who wait, which is read next.
        let before = self.load.in_flight.fetch_sub(1, Ordering::SeqCst) & !SEALED;
        assert!(before > 0, "a slot is given back once");
    }
}

/// Answers given with one deployment since they were last written down: what is known of it is
/// evidence for its promotion.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl Tally {
    /// Counts one answer.
    pub fn count(&self, error: bool) {
        if error {
            // Before the request: a reader never sees more answers and fewer errors than there were.
            self.errors.fetch_add(1, Ordering::AcqRel);
        }
        self.requests.fetch_add(1, Ordering::AcqRel);
    }
    /// Takes what was counted: requests, and the errors among them.
    pub fn take(&self) -> (u64, u64) {
        let requests = self.requests.swap(0, Ordering::AcqRel);
        (requests, self.errors.swap(0, Ordering::AcqRel))
    }
    /// Whether an error is counted.
    pub fn has_errors(&self) -> bool {
        self.errors.load(Ordering::Acquire) > 0
    }
    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0
    }
}

/// What counts for one environment, shared by every snapshot that shows it: counters, and whom to tell when
/// a place becomes free.
#[derive(Default)]
pub struct EnvCounters {
    waiting: AtomicUsize,
    /// The hold queue's look at those who wait; set by the first of them.
    look_at_waiters: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Starts that wait for a place among the node's processes.
    without_room: AtomicU32,
    last_request: AtomicU64,
    /// Requests by class and outcome; made with the first request, since most environments sleep.
    served: OnceLock<Box<[[AtomicU64; MAX_OUTCOMES]; MAX_CLASSES]>>,
}

/// Classes that are counted apart.
pub const MAX_CLASSES: usize = 5;
/// Outcomes that are counted apart.
pub const MAX_OUTCOMES: usize = 64;

impl std::fmt::Debug for EnvCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvCounters").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl EnvCounters {
    /// What is called when a place becomes free while requests wait. The first one counts.
    pub fn on_free_place(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.look_at_waiters.set(Box::new(look));
    }
    /// A place is free again.
    pub fn place_freed(&self) {
        if self.waiting() > 0
            && let Some(look) = self.look_at_waiters.get()
        {
            look();
        }
    }
    /// Requests held for it now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
    /// `n` requests are held. Only the hold queue calls this.
    pub fn set_waiting(&self, n: usize) {
        self.waiting.store(n, Ordering::SeqCst);
    }
    /// Whether a start that its requests wait for waits itself for a place among the node's processes.
    pub fn no_room(&self) -> bool {
        self.without_room.load(Ordering::Relaxed) > 0
    }
    /// A start waits for a place, until what this returns is dropped.
    pub fn waits_for_room(self: &Arc<Self>) -> WaitsForRoom {
        self.without_room.fetch_add(1, Ordering::Relaxed);
        WaitsForRoom(Arc::clone(self))
    }
    /// Remembers that a request came or ended.
    pub fn touch(&self, now: Mono) {
        self.last_request.store(now.0, Ordering::Relaxed);
    }
    /// How long ago the last request came or ended; `None` when none did.
    pub fn idle(&self, now: Mono) -> Option<Duration> {
        match self.last_request.load(Ordering::Relaxed) {
            0 => None,
            at => Some(now.since(Mono(at))),
        }
    }
    /// Counts one request. Indices beyond the bounds are not counted.
    pub fn count(&self, class: usize, outcome: usize) {
        let none = || std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)));
        let served = self.served.get_or_init(|| Box::new(none()));
        if let Some(n) = served.get(class).and_then(|c| c.get(outcome)) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Requests counted, all together.
    pub fn served(&self) -> u64 {
        let all = self.served.get().into_iter().flat_map(|s| s.iter().flatten());
        all.map(|n| n.load(Ordering::Relaxed)).sum()
    }
    /// Requests counted under `class` and `outcome`.
    pub fn counted(&self, class: usize, outcome: usize) -> u64 {
        self.served
            .get()
            .and_then(|s| s.get(class)?.get(outcome))
            .map_or(0, |n| n.load(Ordering::Relaxed))
    }
}

/// A start that waits for a place among the node's processes. However its wait ends, by a place, an error or
/// a task that is dropped, requests are not told of a full node any more.
#[derive(Debug)]
pub struct WaitsForRoom(Arc<EnvCounters>);

impl Drop for WaitsForRoom {
    fn drop(&mut self) {
        self.0.without_room.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A header's value made of an id.
pub(super) fn value(text: String) -> HeaderValue {
    let value = HeaderValue::try_from(text);
    assert!(value.is_ok(), "ids are visible ASCII");
    value.unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_allocation_gives_out_no_place_and_one_in_use_is_not_sealed() {
        let load = Arc::new(Load::default());
        let slot = load.reserve(2);
        assert!(!load.seal());
        drop(slot);
        assert!(load.seal() && load.seal() && load.reserve(u32::MAX).is_none());
        assert_eq!(load.in_flight(), 0);
        load.unseal();
        let slot = load.reserve(2);
        load.seal_anyway();
        assert!(load.reserve(2).is_none() && load.in_flight() == 1);
        drop(slot);
        assert!(load.in_flight() == 0 && load.reserve(2).is_none());
    }

    #[test]
    fn no_start_waits_for_room_once_none_does_however_it_ended() {
        let counters = Arc::new(EnvCounters::default());
        let (one, other) = (counters.waits_for_room(), counters.waits_for_room());
        drop(one);
        assert!(counters.no_room(), "the other one does");
        drop(other);
        assert!(!counters.no_room());
    }

    #[test]
    fn no_more_slots_than_the_limit_are_given_out() {
        let load = Arc::new(Load::default());
        let a = load.reserve(2);
        let b = load.reserve(2);
        assert!(a.is_some() && b.is_some() && load.reserve(2).is_none());
        drop(a);
        assert_eq!(load.in_flight(), 1);
        assert!(load.reserve(2).is_some());
        assert_eq!((load.in_flight(), load.total()), (1, 3));
    }
}
