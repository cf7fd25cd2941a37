//! Time and randomness as the core knows them: values, and the traits by which the edge, a test or the
//! simulation gives them. The system's own are in the edge's `clock` module; nothing here reads one.
//!
//! Deadlines are monotonic ([`Mono`]): a jump of the wall clock moves none of them. Wall time
//! ([`Wall`]) is for records people read, and for signatures and cookies that carry dates.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

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
        // The crate formats none of a later year.
        let since = Duration::from_millis(self.0.min(LAST_OF_9999));
        fmt::Display::fmt(&humantime::format_rfc3339_millis(UNIX_EPOCH + since), f)
    }
}

impl FromStr for Wall {
    type Err = String;

    /// RFC 3339 in UTC, with or without a part of a second: what [`Wall`] is shown as, or less of it.
    fn from_str(text: &str) -> Result<Self, String> {
        let at = humantime::parse_rfc3339(text).map_err(|e| e.to_string())?;
        let since = at.duration_since(UNIX_EPOCH).map_err(|_| "it is before 1970".to_owned())?;
        Ok(Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// 9999-12-31T23:59:59.999Z: RFC 3339 has four digits for a year.
const LAST_OF_9999: u64 = 253_402_300_799_999;

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
        assert_eq!(Wall(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!("2023-11-14T22:13:20.123Z".parse(), Ok(Wall(1_700_000_000_123)));
        assert_eq!("2023-11-14T22:13:20Z".parse(), Ok(Wall(1_700_000_000_000)));
        for bad in ["", "2023-11-14", "2023-11-14T22:13:20", "1969-12-31T23:59:59Z", "10m"] {
            assert!(bad.parse::<Wall>().is_err(), "{bad}");
        }
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
