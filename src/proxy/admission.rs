//! How many connections there may be, on the whole and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections that are open. As many entries as connections, at most.
#[derive(Debug, Default)]
pub struct Places {
    open: AtomicUsize,
    most: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    closed: Notify,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
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
        Some(Place { admission: Arc::clone(self), address: None })
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

    fn by_address(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Counts it for `address`, unless that has `most` already. Loopback addresses are not counted:
    /// what comes from there is this machine's own, or a proxy's on it.
    pub fn count_for(&mut self, address: IpAddr, most: usize) -> bool {
        if address.to_canonical().is_loopback() {
            return true;
        }
        let key = key(address);
        let mut all = self.admission.by_address();
        let open = all.entry(key).or_default();
        if *open >= most {
            if *open == 0 {
                all.remove(&key);
            }
            return false;
        }
        *open += 1;
        self.address = Some(key);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            let mut all = self.admission.by_address();
            if let Some(open) = all.get_mut(&address) {
                *open -= 1;
                if *open == 0 {
                    all.remove(&address);
                }
            }
        }
        if self.admission.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.admission.closed.notify_waiters();
        }
    }
}

/// Whom an address stands for: one IPv6 customer has at least a /64 (RFC 6177).
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
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
        assert_eq!((admission.open(), admission.by_address().len()), (0, 0));
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
}
