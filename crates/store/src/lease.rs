//! The leases and the keys attached to them, as the writer knows them. Pure: time is passed in.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use vango_edge_core::clock::Mono;

use super::LeaseId;

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Mono,
    keys: BTreeSet<String>,
}

/// All leases that have not been removed, by id and by deadline.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_id: HashMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Mono, LeaseId)>,
    /// The last id given out.
    last: u64,
}

impl Leases {
    /// No leases; the next id is the one after `last`.
    pub(super) fn new(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The id a new lease would get.
    pub(super) fn next_id(&self) -> LeaseId {
        LeaseId(self.last + 1)
    }

    /// Adds a lease, or replaces one without touching its keys.
    pub(super) fn grant(&mut self, id: LeaseId, ttl: Duration, deadline: Mono) {
        self.last = self.last.max(id.0);
        let keys = match self.by_id.remove(&id) {
            Some(old) => {
                self.by_deadline.remove(&(old.deadline, id));
                old.keys
            }
            None => BTreeSet::new(),
        };
        self.by_id.insert(id, Lease { ttl, deadline, keys });
        self.by_deadline.insert((deadline, id));
    }

    /// Whether keys may be attached: it exists and its time has not run out.
    pub(super) fn alive(&self, id: LeaseId, now: Mono) -> bool {
        self.by_id.get(&id).is_some_and(|lease| now < lease.deadline)
    }

    /// When it ends, if it exists.
    pub(super) fn deadline(&self, id: LeaseId) -> Option<Mono> {
        self.by_id.get(&id).map(|lease| lease.deadline)
    }

    /// Starts its time anew. False if it ended.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Mono) -> bool {
        if !self.alive(id, now) {
            return false;
        }
        if let Some(ttl) = self.by_id.get(&id).map(|lease| lease.ttl) {
            self.grant(id, ttl, now + ttl);
        }
        true
    }

    /// The keys attached to it, in order.
    pub(super) fn keys(&self, id: LeaseId) -> impl Iterator<Item = &str> {
        self.by_id.get(&id).into_iter().flat_map(|lease| lease.keys.iter().map(String::as_str))
    }

    pub(super) fn key_count(&self, id: LeaseId) -> usize {
        self.by_id.get(&id).map_or(0, |lease| lease.keys.len())
    }

    /// Attaches a key. A lease that is gone is ignored.
    pub(super) fn attach(&mut self, id: LeaseId, key: &str) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.to_owned());
        }
    }

    pub(super) fn detach(&mut self, id: LeaseId, key: &str) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub(super) fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.by_id.remove(&id) {
            self.by_deadline.remove(&(lease.deadline, id));
        }
    }

    /// When the next lease ends.
    pub(super) fn next_deadline(&self) -> Option<Mono> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// Leases whose time has run out, longest ago first, at most `most`.
    pub(super) fn due(&self, now: Mono, most: usize) -> Vec<LeaseId> {
        let ran_out = self.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now);
        ran_out.take(most).map(|&(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LeaseId = LeaseId(1);
    const TTL: Duration = Duration::from_secs(5);

    #[test]
    fn a_lease_ends_at_its_deadline_and_not_before() {
        let mut leases = Leases::new(0);
        let start = Mono(1_000);
        leases.grant(A, TTL, start + TTL);
        assert!(leases.due(start, 8).is_empty());
        assert!(leases.alive(A, Mono((start + TTL).0 - 1)));
        assert!(!leases.alive(A, start + TTL));
        assert_eq!(leases.due(start + TTL, 8), [A]);
        assert!(!leases.keep_alive(A, start + TTL), "too late is too late");
    }

    #[test]
    fn keeping_alive_moves_the_deadline_and_keeps_the_keys() {
        let mut leases = Leases::new(0);
        leases.grant(A, TTL, Mono(0) + TTL);
        leases.attach(A, "k");
        assert!(leases.keep_alive(A, Mono(1)));
        assert_eq!(leases.next_deadline(), Some(Mono(1) + TTL));
        assert_eq!(leases.keys(A).collect::<Vec<_>>(), ["k"]);
    }

    #[test]
    fn an_id_is_not_given_out_again() {
        let mut leases = Leases::new(7);
        assert_eq!(leases.next_id(), LeaseId(8));
        leases.grant(LeaseId(8), TTL, Mono(0));
        leases.remove(LeaseId(8));
        assert_eq!(leases.next_id(), LeaseId(9));
    }
}
