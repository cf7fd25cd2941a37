//! How many connections there may be, on the whole and from one address, and which go first when
//! there are many.
//!
//! Once seven eighths of the places are taken, each new connection displaces the one that has been
//! open longest without having asked for anything. So a flood of connections displaces itself: a
//! client that asks soon has proved itself before it is the oldest, and one that has asked before is
//! never displaced. A connection is either proved or displaced, never both: nothing that was asked
//! is cut off by this.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use vango_edge_core::lifecycle::origin::customer;

/// Connections that are open. As many entries as connections, at most.
#[derive(Debug, Default)]
pub struct Places {
    open: AtomicUsize,
    most: AtomicUsize,
    /// Shares that are taken; none is 0.
    by_address: Mutex<HashMap<IpAddr, usize>>,
    /// Those that have asked for nothing yet, in the order in which they came. No more than are open.
    unproved: Mutex<BTreeMap<u64, Arc<Proof>>>,
    next: AtomicU64,
    closed: Notify,
}

/// Whether a connection has asked for something.
#[derive(Debug, Default)]
struct Proof {
    /// [`PROVED`] or [`DISPLACED`], whichever came first.
    state: AtomicU8,
    displaced: Notify,
}

const PROVED: u8 = 1;
const DISPLACED: u8 = 2;

impl Proof {
    fn becomes(&self, state: u8) -> bool {
        let swap = self.state.compare_exchange(0, state, Ordering::AcqRel, Ordering::Acquire);
        swap.is_ok() || swap == Err(state)
    }
}

/// A connection that has asked for nothing yet, for as long as this is kept.
#[derive(Debug)]
pub struct Unproved {
    places: Arc<Places>,
    number: u64,
    proof: Arc<Proof>,
}

impl Unproved {
    /// It asks for something: from here on it is never displaced. `false` when it just was; its
    /// connection is about to be closed, and nothing may be done for it.
    pub fn prove(&self) -> bool {
        self.proof.becomes(PROVED)
    }
}

impl Drop for Unproved {
    fn drop(&mut self) {
        lock(&self.places.unproved).remove(&self.number);
    }
}

/// Tells a connection that it is displaced.
#[derive(Debug)]
pub struct Displacement(Arc<Proof>);

impl Displacement {
    /// Returns once it is; never for one that was proved.
    pub async fn told(&self) {
        // The permit that `notify_one` leaves is for the only one who waits.
        self.0.displaced.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves a map that is whole: each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Places>,
    share: Option<Share>,
}

/// One of as many as an address may have: connections, and requests that trusted proxies pass on for it.
/// Given back when dropped.
#[derive(Debug)]
pub struct Share {
    admission: Arc<Places>,
    address: Option<IpAddr>,
}

impl Places {
    /// At most `most` connections from now on.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Takes a place, if there is one.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let most = self.most.load(Ordering::Relaxed);
        let below = |n: usize| (n < most).then_some(n + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).ok()?;
        Some(Place { admission: Arc::clone(self), share: None })
    }

    /// Displaces the one that has been open longest without having asked for anything, if there is
    /// one and places are scarce.
    pub fn make_room(&self) -> bool {
        if !self.is_crowded() {
            return false;
        }
        let mut unproved = lock(&self.unproved);
        while let Some((_, proof)) = unproved.pop_first() {
            if proof.becomes(DISPLACED) {
                proof.displaced.notify_one();
                return true;
            }
        }
        false
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether seven eighths of the places are taken: the rest is for what need not wait.
    pub fn is_crowded(&self) -> bool {
        self.open() >= self.most.load(Ordering::Relaxed).div_ceil(8) * 7
    }

    /// Returns once no connection is open.
    pub async fn until_empty(&self) {
        loop {
            let closed = self.closed.notified();
            tokio::pin!(closed);
            // Armed before the count is read, so that no close is missed.
            closed.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// A share for `address`; none where it has `most` already. Loopback addresses are not counted: what
    /// comes from there is this machine's own, or a proxy's on it.
    pub fn share(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Share> {
        let admission = Arc::clone(self);
        if address.to_canonical().is_loopback() {
            return Some(Share { admission, address: None });
        }
        let key = customer(address);
        let mut all = lock(&self.by_address);
        let open = all.get(&key).copied().unwrap_or(0);
        if open >= most {
            return None;
        }
        all.insert(key, open + 1);
        drop(all);
        Some(Share { admission, address: Some(key) })
    }
}

impl Place {
    /// Counts its connection among those that have asked for nothing yet.
    pub fn unproved(&self) -> (Unproved, Displacement) {
        let (places, proof) = (Arc::clone(&self.admission), Arc::<Proof>::default());
        let number = places.next.fetch_add(1, Ordering::Relaxed);
        lock(&places.unproved).insert(number, Arc::clone(&proof));
        let displacement = Displacement(Arc::clone(&proof));
        (Unproved { places, number, proof }, displacement)
    }

    /// Counts it for `address`, unless that has `most` already.
    pub fn count_for(&mut self, address: IpAddr, most: usize) -> bool {
        self.share = self.admission.share(address, most);
        self.share.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.share.take());
        if self.admission.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.admission.closed.notify_waiters();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut all = lock(&self.admission.by_address);
        if let Some(open) = all.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                all.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = Arc::new(Places::default());
        assert!(admission.take().is_none(), "none before it is told how many");
        admission.set_most(2);
        let (a, b) = (admission.take(), admission.take());
        assert!(a.is_some() && b.is_some() && admission.take().is_none());
        drop(a);
        assert!(admission.take().is_some());
        drop(b);
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn an_address_has_its_share_and_a_slash_64_is_one() {
        let admission = Arc::new(Places::default());
        admission.set_most(100);
        let take = |address: &str| {
            let mut place = admission.take().unwrap();
            place.count_for(ip(address), 2).then_some(place)
        };
        let kept = [take("192.0.2.1"), take("::ffff:192.0.2.1")];
        assert!(kept.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none());
        let kept6 = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(kept6.iter().all(Option::is_some));
        assert!(take("2001:db8::ffff:1").is_none());
        assert!(take("2001:db8:0:1::1").is_some());
        assert!(take("127.0.0.1").is_some() && take("::1").is_some());
        drop(kept);
        assert!(take("192.0.2.1").is_some());
        drop(kept6);
        let shares = [admission.share(ip("192.0.2.1"), 2), admission.share(ip("192.0.2.1"), 2)];
        assert!(
            shares.iter().all(Option::is_some) && take("192.0.2.1").is_none(),
            "requests and connections alike"
        );
        assert!(admission.share(ip("::1"), 0).is_some());
        drop(shares);
        assert_eq!((admission.open(), lock(&admission.by_address).len()), (0, 0));
    }

    #[test]
    fn the_last_eighth_is_for_what_need_not_wait() {
        let admission = Arc::new(Places::default());
        admission.set_most(16);
        let mut kept: Vec<_> = (0..13).map(|_| admission.take().unwrap()).collect();
        assert!(!admission.is_crowded());
        kept.push(admission.take().unwrap());
        assert!(admission.is_crowded());
    }

    #[tokio::test]
    async fn who_has_asked_for_nothing_goes_first_and_never_who_has() {
        let places = Arc::new(Places::default());
        places.set_most(8);
        let all: Vec<_> = (0..6).map(|_| places.take().unwrap()).collect();
        let waiting: Vec<_> = all.iter().map(Place::unproved).collect();
        assert!(!places.make_room(), "there is room");
        let seventh = places.take().unwrap();
        assert!(waiting[0].0.prove());
        assert!(places.make_room());
        waiting[1].1.told().await;
        assert!(!waiting[1].0.prove(), "it was displaced");
        assert!(waiting[0].0.prove() && waiting[2].0.prove());
        drop(waiting);
        assert!(!places.make_room(), "no connection is left that may be");
        assert!(lock(&places.unproved).is_empty());
        drop((all, seventh));
    }
}
