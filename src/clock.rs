//! The only source of time and randomness. Everything else is given `now` or asks one of these
//! traits, so that a test or the simulation can be the clock. `clippy.toml` bans the std calls
//! everywhere else.
//!
//! Deadlines are monotonic ([`Mono`]): a jump of the wall clock moves none of them. Wall time
//! ([`Wall`]) is for records people read, and for signatures and cookies that carry dates.

use std::fmt;
use std::ops::Add;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds on this process's monotonic clock, since an origin of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, d: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, by the system's clock. It may jump.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Wall(pub u64);

impl Wall {
    /// Time from `earlier` to `self`; zero if the clock went back between them.
    pub fn since(self, earlier: Wall) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Wall {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, millis) = (self.0 / 1000, self.0 % 1000);
        let (days, rest) = (secs / 86_400, secs % 86_400);
        // Civil date from days since the epoch (Howard Hinnant, "chrono-compatible low-level date
        // algorithms", civil_from_days).
        let z = days as i64 + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

/// Time, as the process sees it.
pub trait Clock: Send + Sync {
    /// Monotonic time: for every deadline and every measured duration.
    fn now(&self) -> Mono;
    /// Wall time: for records and dates only.
    fn wall(&self) -> Wall;
}

/// Randomness, as the process sees it.
pub trait Entropy: Send + Sync {
    /// 64 unpredictable bits.
    fn next_u64(&self) -> u64;
    /// Fills `out` with unpredictable bytes.
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// The system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is one hour before now, so that early deadlines can be
    /// computed backwards without reaching zero.
    #[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
    fn now(&self) -> Mono {
        let since = std::time::Instant::now().saturating_duration_since(self.origin);
        Mono(3_600_000_000_000) + since
    }

    #[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
    fn wall(&self) -> Wall {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The operating system's randomness, through a thread-local generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this module is where randomness is read")]
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}

/// A clock that stands still until it is told to move; for tests and the simulation.
#[derive(Debug, Default)]
pub struct ManualClock {
    mono: AtomicU64,
    wall: AtomicU64,
}

impl ManualClock {
    /// A clock at 1,000 s monotonic and 2023-11-14T22:13:20Z.
    pub fn new() -> Self {
        Self { mono: AtomicU64::new(1_000_000_000_000), wall: AtomicU64::new(1_700_000_000_000) }
    }
    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.mono.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
        self.wall.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
    /// Sets the wall clock, as an administrator or NTP would; the monotonic one stays.
    pub fn jump_wall(&self, to: Wall) {
        self.wall.store(to.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Mono {
        Mono(self.mono.load(Ordering::SeqCst))
    }
    fn wall(&self) -> Wall {
        Wall(self.wall.load(Ordering::SeqCst))
    }
}

/// Repeatable randomness from a seed (SplitMix64); for tests and the simulation, never for secrets.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<u64>);

impl SeededEntropy {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_as_rfc_3339() {
        assert_eq!(Wall(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Wall(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Wall(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn a_wall_jump_moves_no_deadline() {
        let c = ManualClock::new();
        let deadline = c.now() + Duration::from_secs(1);
        c.jump_wall(Wall(0));
        assert!(c.now() < deadline);
        c.advance(Duration::from_secs(2));
        assert!(c.now() > deadline);
    }
}
