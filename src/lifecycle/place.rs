//! Which ready allocation takes a request: the session's own if it is still ready, otherwise the
//! less loaded of two picked at random (Mitzenmacher, "The Power of Two Choices", 2001). Health and
//! load choose **among** the owner's allocations; nothing here can reach outside them.

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

/// Whether there is a place.
#[derive(Debug)]
pub enum Choice {
    /// Here.
    Place(Placement),
    /// Every ready allocation is at its concurrency.
    Full,
    /// Ready allocations exist, but all of them refused this request's connection.
    Refused,
    /// Nothing is ready.
    Cold,
}

/// Chooses, and takes the place if `reserve`. `pick` is 64 random bits.
pub fn choose(
    view: &EnvView,
    wanted: Option<&AllocationId>,
    excluded: &[AllocationId],
    pick: u64,
    reserve: bool,
) -> Choice {
    let allowed = |a: &&Arc<AllocationView>| !excluded.contains(&a.id);
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
    let own = wanted.and_then(|id| view.ready.iter().filter(allowed).find(|a| a.id == *id));
    if let Some(placed) = own.and_then(|a| take(a, Affinity::Kept)) {
        return placed;
    }
    let affinity = if wanted.is_some() { Affinity::Lost } else { Affinity::None };
    let n = view.ready.len();
    if n == 0 {
        return Choice::Cold;
    }
    let (a, b) = two_of(n, pick);
    let (a, b) = (&view.ready[a], &view.ready[b]);
    let (first, second) = if b.load.in_flight() < a.load.in_flight() { (b, a) } else { (a, b) };
    // The two picked, then every other: a free place anywhere is taken before anyone waits.
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
