//! Live sockets that are open: which allocation has them, how many there are, and how they are told to end.
//!
//! [`frames`] follows what passes, [`pump`] carries it, [`Admission`] paces those that come back, and
//! [`Sockets`] knows all of them. Nothing here is on a page's way, and nothing here decides whose a
//! socket is: it is handed over, accepted, by the proxy.
//!
//! A client's leg may stay without its app's: it rests, until its user does something in it, its app is
//! up again, or the edge stops. `proxy::live` decides that; here it is a seat without an allocation.
//!
//! Deliberately absent: compression, and any change of what the two sides say to each other. The
//! edge adds one thing, where the contract has it, a close frame of its own between two frames, when a
//! socket ends in a way the client is to answer by coming back.

mod admission;
pub mod frames;
pub mod pump;

pub use admission::{Admission, AdmissionLimits, Admitted, NotAdmitted};

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::clock::{Clock, Entropy, Mono};
use crate::id::{AllocationId, Environment};
use crate::lifecycle::affinity::SessionName;

/// Ends of many sockets are spread over this much each, so that they do not come back together.
const SPREAD_EACH: Duration = Duration::from_micros(500);
/// Longest time over which ends are spread.
const SPREAD_MOST: Duration = Duration::from_secs(2);
/// How long a newer socket of a session waits for the older one's leg to close.
const REPLACED_WITHIN: Duration = Duration::from_millis(500);

/// What a socket is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// End at that time, so that the client comes back.
    EndAt(Mono),
    /// End now: the app sleeps, and nothing that the socket carried kept it awake. The client is to
    /// come back when its user does something; one that stays, rests until then.
    Asleep,
    /// End now, for good: a newer socket of the same session is here.
    Replaced,
}

/// How a socket ended; a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The client left.
    Client,
    /// The app closed it.
    App,
    /// The app's leg broke without goodbye.
    AppLost,
    /// Nothing passed for the idle time.
    Idle,
    /// Its allocation drained, or the edge stopped.
    Drained,
    /// Its app fell asleep under it.
    Asleep,
    /// A newer socket of its session came.
    Replaced,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 7] = [
        Self::Client,
        Self::App,
        Self::AppLost,
        Self::Idle,
        Self::Drained,
        Self::Asleep,
        Self::Replaced,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::AppLost => "app-lost",
            Self::Idle => "idle",
            Self::Drained => "drained",
            Self::Asleep => "asleep",
            Self::Replaced => "replaced",
        }
    }
}

#[derive(Debug)]
struct Entry {
    environment: Environment,
    /// `None` for a client that rests.
    allocation: Option<AllocationId>,
    tab: Mutex<Option<SessionName>>,
    /// Its client stays when the app falls asleep.
    stays: bool,
    /// Where in the time over which ends are spread its own is; drawn once, so that being told again
    /// moves nothing: of many draws the earliest would count, and all would end together after all.
    lot: f64,
    order: Mutex<Option<Order>>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sockets: HashMap<u64, Arc<Entry>>,
    by_allocation: HashMap<AllocationId, HashSet<u64>>,
    by_tab: HashMap<(Environment, SessionName), u64>,
    /// Clients' legs whose app sleeps.
    resting: HashMap<Environment, HashSet<u64>>,
}

impl Table {
    fn entries(&self, numbers: Option<&HashSet<u64>>) -> Vec<Arc<Entry>> {
        let numbers = numbers.into_iter().flatten();
        numbers.filter_map(|n| self.sockets.get(n).cloned()).collect()
    }
}

/// Takes `number` out of the set at `key`, and the set with its last one.
fn take_out<K: std::hash::Hash + Eq>(sets: &mut HashMap<K, HashSet<u64>>, key: &K, number: u64) {
    if let Some(numbers) = sets.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            sets.remove(key);
        }
    }
}

/// Every open live socket of the node.
pub struct Sockets {
    table: Mutex<Table>,
    /// Told each time a socket is gone.
    gone: watch::Sender<()>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sockets({})", self.open())
    }
}

/// A socket's place in the table; it leaves when dropped.
#[derive(Debug)]
pub struct Seat {
    number: u64,
    entry: Arc<Entry>,
    sockets: Arc<Sockets>,
}

impl Seat {
    /// Waits to be told something else than was `heard` before. Cancel safe.
    pub async fn told(&self, heard: Option<Order>) -> Order {
        loop {
            let told = self.entry.told.notified();
            let order = *lock(&self.entry.order);
            if let Some(order) = order.filter(|_| order != heard) {
                return order;
            }
            told.await;
        }
    }

    /// How long to wait before the client is told that its allocation is gone: nothing for one
    /// socket, more for one of many, so that they do not come back together.
    pub fn apart(&self) -> Duration {
        let many = self.entry.allocation.as_ref().map_or(0, |a| self.sockets.of(a));
        self.sockets.within(spread(many))
    }

    /// The environment that the socket belongs to.
    pub fn environment(&self) -> &Environment {
        &self.entry.environment
    }

    /// The app has given the tab this session: a newer socket of it ends this one.
    pub fn rename(&self, tab: SessionName) {
        let mut table = self.sockets.table();
        let mut mine = lock(&self.entry.tab);
        self.leave_tab(&mut table, *mine);
        *mine = Some(tab);
        table.by_tab.insert((self.entry.environment.clone(), tab), self.number);
    }

    fn leave_tab(&self, table: &mut Table, tab: Option<SessionName>) {
        let Some(tab) = tab else { return };
        let at = (self.entry.environment.clone(), tab);
        if table.by_tab.get(&at) == Some(&self.number) {
            table.by_tab.remove(&at);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.sockets.table();
        table.sockets.remove(&self.number);
        match &self.entry.allocation {
            Some(allocation) => take_out(&mut table.by_allocation, allocation, self.number),
            None => take_out(&mut table.resting, &self.entry.environment, self.number),
        }
        let tab = *lock(&self.entry.tab);
        self.leave_tab(&mut table, tab);
        drop(table);
        self.sockets.gone.send_replace(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Over how long the ends of `many` sockets are spread.
fn spread(many: usize) -> Duration {
    let many = u32::try_from(many.saturating_sub(1)).unwrap_or(u32::MAX);
    SPREAD_EACH.saturating_mul(many).min(SPREAD_MOST)
}

impl Sockets {
    /// None are open.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        let (table, gone) = Default::default();
        Arc::new(Self { table, gone, clock, entropy })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Sockets open now.
    pub fn open(&self) -> usize {
        self.table().sockets.len()
    }

    fn of(&self, allocation: &AllocationId) -> usize {
        self.table().by_allocation.get(allocation).map_or(0, HashSet::len)
    }

    fn within(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.entropy.next_u64() % most.saturating_add(1))
    }

    /// Takes a socket in. `tab` is its session where each tab has its own; `stays`: its client rests
    /// when the app falls asleep, and does not end.
    pub fn seat(
        self: &Arc<Self>,
        environment: &Environment,
        allocation: &AllocationId,
        tab: Option<SessionName>,
        stays: bool,
    ) -> Seat {
        self.enter(environment, Some(allocation), tab, stays, false)
    }

    /// Takes a client's leg in that has no app: of one that sleeps, or of one whose tab has a newer
    /// socket.
    pub fn rest(self: &Arc<Self>, environment: &Environment, asleep: bool) -> Seat {
        self.enter(environment, None, None, true, asleep)
    }

    fn enter(
        self: &Arc<Self>,
        environment: &Environment,
        allocation: Option<&AllocationId>,
        tab: Option<SessionName>,
        stays: bool,
        asleep: bool,
    ) -> Seat {
        let entry = Arc::new(Entry {
            environment: environment.clone(),
            allocation: allocation.cloned(),
            tab: Mutex::new(tab),
            stays,
            lot: self.entropy.next_u64() as f64 / u64::MAX as f64,
            order: Mutex::new(None),
            told: Notify::new(),
        });
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.sockets.insert(number, Arc::clone(&entry));
        if let Some(allocation) = allocation {
            table.by_allocation.entry(allocation.clone()).or_default().insert(number);
        }
        if asleep {
            table.resting.entry(environment.clone()).or_default().insert(number);
        }
        if let Some(tab) = tab {
            table.by_tab.insert((environment.clone(), tab), number);
        }
        drop(table);
        Seat { number, entry, sockets: Arc::clone(self) }
    }

    /// Ends an older socket of the session, and returns when its leg to the app is closed, or after
    /// half a second.
    pub async fn replace(&self, environment: &Environment, tab: SessionName) {
        let at = (environment.clone(), tab);
        let older = {
            let table = self.table();
            let number = table.by_tab.get(&at).copied();
            number.and_then(|n| Some((n, table.sockets.get(&n)?.clone())))
        };
        let Some((number, entry)) = older else { return };
        tell(&entry, Order::Replaced);
        let mut gone = self.gone.subscribe();
        let left = async {
            while self.table().sockets.contains_key(&number) {
                let _ = gone.changed().await;
            }
        };
        let _ = tokio::time::timeout(REPLACED_WITHIN, left).await;
    }

    /// The allocation drains: its sockets stay, and end spread over the time just before `limit`.
    pub fn drain(&self, allocation: &AllocationId, limit: Mono) {
        self.end(&self.entries_of(allocation), limit);
    }

    /// The app falls asleep under the sockets of `allocation`: those whose clients stay are told so at
    /// once, the others end `by` then, and at once without it.
    pub fn asleep(&self, allocation: &AllocationId, by: Option<Mono>) {
        let (stay, end): (Vec<_>, Vec<_>) =
            self.entries_of(allocation).into_iter().partition(|e| e.stays || by.is_none());
        for entry in stay {
            tell(&entry, Order::Asleep);
        }
        if let Some(by) = by {
            self.end(&end, by);
        }
    }

    /// The app is up again: the clients that rest end, apart from each other, and come back to it.
    pub fn awake(&self, environment: &Environment) {
        let resting = {
            let table = self.table();
            table.entries(table.resting.get(environment))
        };
        if !resting.is_empty() {
            self.end(&resting, self.clock.now() + spread(resting.len()));
        }
    }

    fn entries_of(&self, allocation: &AllocationId) -> Vec<Arc<Entry>> {
        let table = self.table();
        table.entries(table.by_allocation.get(allocation))
    }

    /// The edge stops: all end, spread, within `grace` from now; returns when they have, or after
    /// it.
    pub async fn drain_all(&self, grace: Duration) {
        let mut gone = self.gone.subscribe();
        let all_gone = async {
            loop {
                // Again each time: one that was being accepted may have come since.
                let entries: Vec<_> = self.table().sockets.values().cloned().collect();
                if entries.is_empty() {
                    return;
                }
                let spread = spread(entries.len()).min(grace / 2);
                self.end(&entries, self.clock.now() + spread);
                let _ = tokio::time::timeout(Duration::from_secs(1), gone.changed()).await;
            }
        };
        let _ = tokio::time::timeout(grace, all_gone).await;
    }

    fn end(&self, entries: &[Arc<Entry>], limit: Mono) {
        let now = self.clock.now();
        let spread = spread(entries.len()).min(limit.since(now));
        for entry in entries {
            let before = spread.mul_f64(entry.lot);
            let at = Mono(limit.0.saturating_sub(before.as_nanos() as u64));
            tell(entry, Order::EndAt(at.max(now)));
        }
    }
}

/// An earlier end is kept: orders only come closer.
fn tell(entry: &Entry, order: Order) {
    let mut told = lock(&entry.order);
    let keep = match (*told, order) {
        (Some(Order::Replaced), _) => true,
        (Some(Order::EndAt(before)), Order::EndAt(at)) => before <= at,
        (Some(Order::Asleep), Order::EndAt(_) | Order::Asleep) => true,
        _ => false,
    };
    if !keep {
        *told = Some(order);
        entry.told.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SeededEntropy};

    fn sockets() -> (Arc<ManualClock>, Arc<Sockets>) {
        let clock = Arc::new(ManualClock::new());
        (clock.clone(), Sockets::new(clock, Arc::new(SeededEntropy::new(1))))
    }
    fn al(c: char) -> AllocationId {
        format!("al-{}", c.to_string().repeat(16)).parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_socket_of_a_tab_ends_the_older_one_first() {
        let (_, sockets) = sockets();
        let environment: Environment = "studylab".parse().unwrap();
        let tab = SessionName(7);
        let older = sockets.seat(&environment, &al('a'), Some(tab), false);
        let other = sockets.seat(&environment, &al('a'), Some(SessionName(8)), false);
        let told = async move {
            assert_eq!(older.told(None).await, Order::Replaced);
            drop(older);
        };
        let began = tokio::time::Instant::now();
        tokio::join!(sockets.replace(&environment, tab), told);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(sockets.open(), 1);
        let newer = sockets.seat(&environment, &al('b'), Some(tab), false);
        // One that does not go is not waited for longer than that.
        sockets.replace(&environment, tab).await;
        assert_eq!(began.elapsed(), REPLACED_WITHIN);
        drop((newer, other));
        assert_eq!(sockets.open(), 0);
        assert!(sockets.table().by_tab.is_empty() && sockets.table().by_allocation.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_its_own_before_the_limit_and_apart() {
        let (clock, sockets) = sockets();
        let environment: Environment = "studylab".parse().unwrap();
        let seats: Vec<_> =
            (0..1000).map(|_| sockets.seat(&environment, &al('a'), None, false)).collect();
        let other = sockets.seat(&environment, &al('b'), None, false);
        let limit = clock.now() + Duration::from_secs(10);
        // However often they are told.
        for _ in 0..50 {
            sockets.drain(&al('a'), limit);
        }
        let mut ends = HashSet::new();
        let mut early = 0;
        for seat in &seats {
            let Order::EndAt(at) = seat.told(None).await else { panic!("an end") };
            assert!(at <= limit && limit.since(at) <= Duration::from_millis(500));
            early += usize::from(limit.since(at) > Duration::from_millis(250));
            ends.insert(at);
        }
        assert!(ends.len() > 900, "apart from each other");
        assert!((400..600).contains(&early), "evenly: {early}");
        assert!(tokio::time::timeout(Duration::from_secs(60), other.told(None)).await.is_err());
        // An end that is asked for later than one that stands moves nothing.
        sockets.drain(&al('a'), limit + Duration::from_secs(5));
        let Order::EndAt(at) = seats[0].told(None).await else { panic!("an end") };
        assert!(at <= limit);
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_falls_asleep_ends_its_own_at_once() {
        let (clock, sockets) = sockets();
        let environment: Environment = "studylab".parse().unwrap();
        let (one, other) = (
            sockets.seat(&environment, &al('a'), None, false),
            sockets.seat(&environment, &al('b'), None, false),
        );
        sockets.drain(&al('a'), clock.now() + Duration::from_secs(10));
        sockets.asleep(&al('a'), None);
        assert_eq!(one.told(None).await, Order::Asleep);
        sockets.drain(&al('a'), clock.now());
        assert_eq!(one.told(None).await, Order::Asleep, "the first word counts");
        assert!(tokio::time::timeout(Duration::from_secs(60), other.told(None)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stays_rests_until_its_app_is_up_and_then_ends_apart_from_others() {
        let (clock, sockets) = sockets();
        let environment: Environment = "studylab".parse().unwrap();
        let stays = sockets.seat(&environment, &al('a'), None, true);
        let goes = sockets.seat(&environment, &al('a'), None, false);
        let by = clock.now() + Duration::from_secs(9);
        // An operator's word leaves time to those that end.
        sockets.asleep(&al('a'), Some(by));
        assert_eq!(stays.told(None).await, Order::Asleep);
        assert_eq!(goes.told(None).await, Order::EndAt(by));
        drop((stays, goes));
        let resting: Vec<_> = (0..1001).map(|_| sockets.rest(&environment, true)).collect();
        let replaced = sockets.rest(&environment, false);
        sockets.awake(&environment);
        let mut ends = HashSet::new();
        for seat in &resting {
            let Order::EndAt(at) = seat.told(None).await else { panic!("an end") };
            assert!(at <= clock.now() + Duration::from_millis(500));
            ends.insert(at);
        }
        assert!(ends.len() > 900, "apart from each other");
        let quiet = tokio::time::timeout(Duration::from_secs(60), replaced.told(None)).await;
        assert!(quiet.is_err(), "its app was up all the time");
        drop((resting, replaced));
        assert!(sockets.open() == 0 && sockets.table().resting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tab_that_its_app_gave_a_session_is_replaced_under_that_name() {
        let (_, sockets) = sockets();
        let environment: Environment = "studylab".parse().unwrap();
        let seat = sockets.seat(&environment, &al('a'), Some(SessionName(1)), true);
        seat.rename(SessionName(2));
        sockets.replace(&environment, SessionName(1)).await;
        assert!(tokio::time::timeout(Duration::from_secs(60), seat.told(None)).await.is_err());
        let replacing = tokio::time::timeout(
            Duration::from_millis(1),
            sockets.replace(&environment, SessionName(2)),
        );
        let _ = replacing.await;
        assert_eq!(seat.told(None).await, Order::Replaced);
        drop(seat);
        assert!(sockets.table().by_tab.is_empty());
    }

    #[test]
    fn one_socket_does_not_wait_and_thousands_wait_two_seconds_at_most() {
        assert_eq!(spread(1), Duration::ZERO);
        assert_eq!(spread(1001), Duration::from_millis(500));
        assert_eq!(spread(1_000_000), SPREAD_MOST);
    }
}
