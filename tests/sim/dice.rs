//! Chance and time of a run: everything that happens follows from its seed.

use std::time::Duration;

use tokio::time::Instant;
use vango_edge::clock::{Clock, Entropy, Mono, SeededEntropy, Wall};

/// Chooses what happens; apart from the entropy that the edge itself draws on, so that a change of
/// the one does not shift the other.
pub struct Dice(SeededEntropy);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }
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
    /// Below one of `scales` milliseconds, each as likely.
    pub fn ms(&self, scales: &[usize]) -> Duration {
        let scale = *self.pick(scales);
        Duration::from_millis(self.below(scale.max(1)) as u64)
    }
}

/// The runtime's own time, which stands still while anything can be done and then jumps to what is due
/// next.
pub struct SimClock {
    origin: Instant,
}

impl SimClock {
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Mono {
        Mono(1_000_000_000_000) + self.origin.elapsed()
    }
    fn wall(&self) -> Wall {
        Wall(1_700_000_000_000 + self.origin.elapsed().as_millis() as u64)
    }
}
