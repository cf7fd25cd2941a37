//! Requests that wait for a place: bounded for each environment, for the node and in bytes; in order;
//! gone from the queue the moment their ticket is dropped.
//!
//! No wake-up is lost: a waiter is in the queue **before** it looks again, and the code that frees
//! a place or publishes a snapshot looks at the queue after. A place that was given to a waiter that
//! has left goes to the next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

use crate::clock::{Clock, Entropy};
use crate::id::{AllocationId, Environment};
use crate::lifecycle::journey::{Choice, Placement, Wish, choose};
use crate::lifecycle::trace::QueueBound;
use crate::snapshot::{EnvCounters, EnvView, SnapshotReader};

use vango_edge_core::wake::machine::{self, Waiters};

/// Bounds of the whole node.
#[derive(Debug, Clone, Copy)]
pub struct HoldLimits {
    /// Requests held at once.
    pub max_held: usize,
    /// Header bytes of the requests held at once.
    pub max_held_bytes: u64,
}

/// What a waiter is told.
#[derive(Debug)]
pub enum Release {
    /// A place was taken for it; if it never arrives, it goes to the next one.
    Granted(Placement),
    /// It must decide again.
    Recheck,
    /// The edge stops.
    ShuttingDown,
}

struct Waiter {
    release: oneshot::Sender<Release>,
    wish: Wish,
    excluded: Vec<AllocationId>,
    waits_cold: bool,
}

struct Queue {
    waiters: BTreeMap<u64, Waiter>,
    /// Where the newest snapshot counts them: another one when the environment had no owner for a
    /// while.
    counters: Arc<EnvCounters>,
}

type EnvQueue = Mutex<Queue>;

impl Queue {
    /// Tells some to decide again.
    fn tell(&mut self, whom: impl Fn(&Waiter) -> bool) {
        let told: Vec<u64> =
            self.waiters.iter().filter(|(_, w)| whom(w)).map(|(n, _)| *n).collect();
        for waiter in told.iter().filter_map(|n| self.waiters.remove(n)) {
            let _ = waiter.release.send(Release::Recheck);
        }
        self.count();
    }

    fn tell_all(&mut self, what: impl Fn() -> Release) {
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            // The waiter may have just left.
            let _ = waiter.release.send(what());
        }
        self.count();
    }

    fn count(&self) {
        self.counters.set_waiting(self.waiters.len());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves a queue that is whole: each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All hold queues of the node.
pub struct HoldQueues {
    me: Weak<Self>,
    max_held: AtomicUsize,
    max_held_bytes: AtomicU64,
    snapshots: SnapshotReader,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// In an order, so that a simulated edge stops in the same one each time.
    environments: Mutex<BTreeMap<Environment, Arc<EnvQueue>>>,
    held: AtomicUsize,
    held_bytes: AtomicU64,
    /// From here on no request is held any more.
    stopping: AtomicBool,
    /// The next waiter's number, unique over all queues: an emptied queue is removed, and a new one may take
    /// its place. With a count for each queue, an old ticket could remove a newer waiter.
    next: AtomicU64,
    /// Asked when waiters are left with nothing to wait for.
    wake_again: Box<dyn Fn(&Environment) + Send + Sync>,
}

impl std::fmt::Debug for HoldQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HoldQueues").field("held", &self.held()).finish_non_exhaustive()
    }
}

/// A waiter's place in its queue. Dropping it leaves the queue.
#[derive(Debug)]
pub struct Ticket {
    release: oneshot::Receiver<Release>,
    number: u64,
    bytes: u64,
    environment: Environment,
    queues: Arc<HoldQueues>,
}

impl Ticket {
    /// Waits to be told. The caller puts the deadline around it.
    pub async fn released(&mut self) -> Release {
        // The sender is dropped without a word only when the queues themselves go.
        (&mut self.release).await.unwrap_or(Release::ShuttingDown)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queues.leave(&self.environment, self.number, self.bytes);
    }
}

impl HoldQueues {
    /// Empty queues. `wake_again` must not block and must not call back into the queues.
    pub fn new(
        limits: HoldLimits,
        snapshots: SnapshotReader,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        wake_again: Box<dyn Fn(&Environment) + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            max_held: AtomicUsize::new(limits.max_held),
            max_held_bytes: AtomicU64::new(limits.max_held_bytes),
            snapshots,
            clock,
            entropy,
            environments: Mutex::default(),
            held: AtomicUsize::new(0),
            held_bytes: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
            wake_again,
        })
    }

    /// Other bounds from now on. Requests that wait already go on waiting.
    pub fn set_limits(&self, limits: HoldLimits) {
        self.max_held.store(limits.max_held, Ordering::Relaxed);
        self.max_held_bytes.store(limits.max_held_bytes, Ordering::Relaxed);
    }

    /// Requests held now, on the whole node.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Their header bytes.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Joins the queue of `view`'s environment. With `asks`, the caller asks for a wake itself right
    /// after, so that the queue does not. Without `waits_cold` it waits for a place only, and is told
    /// to decide again once nothing is ready any more.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn enter(
        self: &Arc<Self>,
        view: &EnvView,
        bytes: u64,
        wish: Wish,
        excluded: Vec<AllocationId>,
        asks: bool,
        waits_cold: bool,
    ) -> Result<Ticket, QueueBound> {
        let below = |most: usize| move |n: usize| (n < most).then_some(n + 1);
        self.held
            .fetch_update(
                Ordering::AcqRel,
                Ordering::Acquire,
                below(self.max_held.load(Ordering::Relaxed)),
            )
            .map_err(|_| QueueBound::Node)?;
        let most = self.max_held_bytes.load(Ordering::Relaxed);
        let fits = |n: u64| n.checked_add(bytes).filter(|sum| *sum <= most);
        if self.held_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            self.held.fetch_sub(1, Ordering::AcqRel);
            return Err(QueueBound::Bytes);
        }
        let (release, told) = oneshot::channel();
        let queue = self.queue(view);
        let number = {
            let mut q = lock(&queue);
            if q.waiters.len() >= view.contract.wake.max_held {
                self.held.fetch_sub(1, Ordering::AcqRel);
                self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
                return Err(QueueBound::Environment);
            }
            // Taken under the queue's lock, so that numbers are in its order.
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            q.waiters.insert(number, Waiter { release, wish, excluded, waits_cold });
            q.count();
            number
        };
        let environment = view.environment.clone();
        let ticket = Ticket { release: told, number, bytes, environment, queues: Arc::clone(self) };
        // Only now look: what was freed or published before this line is seen, and what comes
        // after sees the waiter.
        self.look(&view.environment, !asks);
        Ok(ticket)
    }

    fn queue(&self, view: &EnvView) -> Arc<EnvQueue> {
        let mut all = lock(&self.environments);
        let counters = || Arc::clone(&view.counters);
        let new = || {
            self.follow(&view.counters, &view.environment);
            Arc::new(Mutex::new(Queue { waiters: BTreeMap::new(), counters: counters() }))
        };
        Arc::clone(all.entry(view.environment.clone()).or_insert_with(new))
    }

    /// Looks at the queue whenever a place becomes free that `counters` counts for.
    fn follow(&self, counters: &EnvCounters, environment: &Environment) {
        let (queues, environment) = (self.me.clone(), environment.clone());
        counters.on_free_place(move || {
            if let Some(queues) = queues.upgrade() {
                queues.pump(&environment);
            }
        });
    }

    fn leave(&self, environment: &Environment, number: u64, bytes: u64) {
        self.held.fetch_sub(1, Ordering::AcqRel);
        self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let mut all = lock(&self.environments);
        let Some(queue) = all.get(environment).cloned() else { return };
        let mut q = lock(&queue);
        q.waiters.remove(&number);
        q.count();
        if q.waiters.is_empty() && Arc::strong_count(&queue) == 2 {
            // The map's and ours: no waiter is entering. An idle environment keeps no queue.
            all.remove(environment);
        }
    }

    /// Looks at one environment's waiters on the newest snapshot: gives out free places in order,
    /// or tells them to decide again. Called after a place was freed and after a publish.
    pub fn pump(&self, environment: &Environment) {
        self.look(environment, true);
    }

    fn look(&self, environment: &Environment, may_wake: bool) {
        let Some(queue) = lock(&self.environments).get(environment).cloned() else { return };
        let snapshot = self.snapshots.load();
        let view = snapshot.environment(environment).map(Arc::as_ref);
        let mut q = lock(&queue);
        if q.waiters.is_empty() {
            return;
        }
        if let Some(view) = view.filter(|v| !Arc::ptr_eq(&v.counters, &q.counters)) {
            self.follow(&view.counters, environment);
            q.counters = Arc::clone(&view.counters);
        }
        if self.stopping.load(Ordering::SeqCst) {
            return q.tell_all(|| Release::ShuttingDown);
        }
        let waiters = machine::waiters(view, self.clock.now());
        if matches!(waiters, Waiters::Keep | Waiters::Wake) {
            q.tell(|w| !w.waits_cold);
            if q.waiters.is_empty() {
                return;
            }
        }
        match (waiters, view) {
            (Waiters::Place, Some(view)) => self.place(&mut q, view),
            (Waiters::Recheck, _) => q.tell_all(|| Release::Recheck),
            (Waiters::Wake, _) if may_wake => (self.wake_again)(environment),
            (Waiters::Wake | Waiters::Keep | Waiters::Place, _) => {}
        }
        q.count();
    }

    fn place(&self, q: &mut Queue, view: &EnvView) {
        let mut from = 0;
        // Ends: `from` grows, and the first full answer ends it, so that a freed place costs what
        // it frees and not what waits. Only what is full for one that excluded nothing is full for
        // all.
        while let Some((&number, waiter)) = q.waiters.range(from..).next() {
            from = number + 1;
            let pick = self.entropy.next_u64();
            match choose(view, &waiter.wish, &waiter.excluded, pick, true) {
                Choice::Place(placement) => {
                    let Some(waiter) = q.waiters.remove(&number) else {
                        placement.give_back_unseen();
                        continue;
                    };
                    if let Err(Release::Granted(returned)) =
                        waiter.release.send(Release::Granted(placement))
                    {
                        // It left between two lines. Its place is free again for the next one; a
                        // look at this queue would lock it again.
                        returned.give_back_unseen();
                    }
                }
                Choice::Full if waiter.excluded.is_empty() => return,
                // This one cannot go to what has a place; the next one may.
                Choice::Full | Choice::Refused | Choice::Cold => {}
            }
        }
    }

    /// Tells every waiter that the edge stops, and everyone who joins a queue from here on.
    pub fn shut_down(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let all: Vec<_> = lock(&self.environments).values().cloned().collect();
        for queue in all {
            lock(&queue).tell_all(|| Release::ShuttingDown);
        }
    }
}
