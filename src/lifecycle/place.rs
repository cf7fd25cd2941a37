//! Which ready allocation takes a request: the session's own if it is still ready; otherwise, for a
//! session that has an id, the one that the ring gives it; otherwise the less loaded of two picked
//! at random (Mitzenmacher, "The Power of Two Choices", 2001). Health and load choose **among** the
//! owner's allocations; nothing here can reach outside them.
//!
//! The ring is rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads (Mirrokni,
//! Thorup, Zadimoghaddam, 2016): every edge gives a session the same allocation without asking
//! another, and one that has a quarter more than its share is passed over.

use std::sync::Arc;

use crate::id::AllocationId;
use crate::snapshot::{AllocationView, EnvView, Slot};

/// Where a request goes, with its place in the allocation's concurrency.
#[derive(Debug)]
pub struct Placement {
    /// The allocation.
    pub allocation: Arc<AllocationView>,
    /// Its place; given back when dropped. `None` when only explaining.
    pub slot: Option<Slot>,
    /// What became of the session's own allocation.
    pub affinity: Affinity,
}

/// What affinity meant for a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// The request named no allocation.
    None,
    /// Placed on the one it named.
    Kept,
    /// The one it named is gone or full; placed anew.
    Lost,
}

/// Where a request would like to go.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// To the session's own allocation.
    pub allocation: Option<AllocationId>,
    /// Without one that is ready: where on the ring its session stands.
    pub ring: Option<u64>,
}

/// Whether there is a place.
#[derive(Debug)]
pub enum Choice {
    /// Here.
    Place(Placement),
    /// Every ready allocation is at its concurrency.
    Full,
    /// Ready allocations exist, but all of them refused this request's connection, or are down.
    Refused,
    /// Nothing is ready.
    Cold,
}

/// Chooses, and takes the place if `reserve`. `pick` is 64 random bits.
pub fn choose(
    view: &EnvView,
    wish: &Wish,
    excluded: &[AllocationId],
    pick: u64,
    reserve: bool,
) -> Choice {
    let allowed = |a: &&Arc<AllocationView>| !excluded.contains(&a.id) && !a.load.is_down();
    let take = |a: &Arc<AllocationView>, affinity| {
        let slot = if reserve {
            Some(a.load.reserve(a.concurrency)?)
        } else if a.load.in_flight() < a.concurrency {
            None
        } else {
            return None;
        };
        Some(Choice::Place(Placement { allocation: Arc::clone(a), slot, affinity }))
    };
    let wanted = wish.allocation.as_ref();
    let own = wanted.and_then(|id| view.ready.iter().filter(allowed).find(|a| a.id == *id));
    if let Some(placed) = own.and_then(|a| take(a, Affinity::Kept)) {
        return placed;
    }
    let affinity = if wanted.is_some() { Affinity::Lost } else { Affinity::None };
    let n = view.ready.len();
    if n == 0 {
        return Choice::Cold;
    }
    let ringed = wish.ring.filter(|_| n > 1);
    let (first, second) = match ringed.and_then(|s| on_ring(&view.ready, allowed, s)) {
        Some(first) => (first, first),
        None => {
            let (a, b) = two_of(n, pick);
            let (a, b) = (&view.ready[a], &view.ready[b]);
            if b.load.in_flight() < a.load.in_flight() { (b, a) } else { (a, b) }
        }
    };
    // Those picked, then every other: a free place anywhere is taken before anyone waits.
    let candidates = [first, second].into_iter().chain(&view.ready).filter(allowed);
    let mut any = false;
    for candidate in candidates {
        any = true;
        if let Some(placed) = take(candidate, affinity) {
            return placed;
        }
    }
    if any { Choice::Full } else { Choice::Refused }
}

/// The allowed allocation with the highest weight for the session among those whose load is within a
/// quarter of the average, counting the request to be placed; the least loaded always is. Only those
/// that are allowed count: the sessions of one that died, and that was not taken off yet, spread over all
/// that are left. `None`: none is allowed.
fn on_ring<'v>(
    ready: &'v [Arc<AllocationView>],
    allowed: impl Fn(&&'v Arc<AllocationView>) -> bool,
    session: u64,
) -> Option<&'v Arc<AllocationView>> {
    let loads = || ready.iter().filter(&allowed).map(|a| u64::from(a.load.in_flight()));
    let (n, total) = loads().fold((0, 0), |(n, total), load| (n + 1, total + load));
    if n == 0 {
        return None;
    }
    let bound = ((total + 1) * 5).div_ceil(n * 4);
    let within = |a: &&Arc<AllocationView>| u64::from(a.load.in_flight()) < bound;
    let weight = |a: &&Arc<AllocationView>| mixed(session ^ mixed(hash_of(a.id.as_str())));
    ready.iter().filter(&allowed).filter(within).max_by_key(weight)
}

/// FNV-1a, 64 bits: the same in every build and on every node.
fn hash_of(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64: each bit of the input moves half of the output's.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Two different indices below `n`, or the same one when there is only one.
fn two_of(n: usize, pick: u64) -> (usize, usize) {
    let a = (pick & 0xffff_ffff) as usize % n;
    if n == 1 {
        return (0, 0);
    }
    let b = (pick >> 32) as usize % (n - 1);
    (a, if b >= a { b + 1 } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_picks_two_different_ones_of_all() {
        let mut seen = [[false; 4]; 4];
        for pick in 0..64u64 {
            let (a, b) = two_of(4, pick * 0x1_0000_0003);
            assert_ne!(a, b);
            seen[a][b] = true;
        }
        assert!(seen.iter().flatten().filter(|s| **s).count() > 8);
        assert_eq!(two_of(1, 12345), (0, 0));
    }
}
