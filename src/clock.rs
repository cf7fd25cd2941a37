//! The only place where the system's clocks and randomness are read. Everything else is given `now` or
//! asks one of the traits of [`vango_edge_core::clock`], so that a test or the simulation can be the
//! clock. `clippy.toml` bans the std calls everywhere else.

pub use vango_edge_core::clock::*;

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
