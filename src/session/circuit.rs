//! A circuit: after failures in a row no caller is kept waiting for a service that does not answer,
//! and one caller at a time finds out whether it is back. Pure; the caller brings the time.

use std::time::Duration;

use crate::clock::Mono;

/// Failures in a row that open it.
const OPENS_AFTER: u32 = 3;
/// First time it stays open; it doubles with each probe that fails.
const FIRST: Duration = Duration::from_millis(500);
/// Longest time it stays open.
const MOST: Duration = Duration::from_secs(30);

/// Closed while it works; open until a time; then one probe decides.
#[derive(Debug, Default)]
pub struct Circuit {
    failures: u32,
    open_until: Option<Mono>,
    probing: bool,
}

impl Circuit {
    /// Whether a call may be made now. `true` obliges the caller to report how it went.
    pub fn admit(&mut self, now: Mono) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until || self.probing => false,
            Some(_) => {
                self.probing = true;
                true
            }
        }
    }

    /// A call was answered.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// A call failed.
    pub fn failed(&mut self, now: Mono) {
        self.failures = self.failures.saturating_add(1);
        self.probing = false;
        if self.failures >= OPENS_AFTER {
            let doubled = FIRST * 2u32.saturating_pow((self.failures - OPENS_AFTER).min(10));
            self.open_until = Some(now + doubled.min(MOST));
        }
    }

    /// A call was given up before it ended: neither an answer nor a failure.
    pub fn abandoned(&mut self) {
        self.probing = false;
    }

    /// Nothing is remembered.
    pub fn is_fresh(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(0) + Duration::from_millis(ms)
    }

    #[test]
    fn it_opens_probes_once_and_heals() {
        let mut c = Circuit::default();
        for _ in 0..3 {
            assert!(c.admit(at(0)));
            c.failed(at(0));
        }
        assert!(!c.admit(at(499)));
        assert!(c.admit(at(500)), "a probe");
        assert!(!c.admit(at(500)), "one at a time");
        c.failed(at(500));
        assert!(!c.admit(at(1_499)));
        assert!(c.admit(at(1_500)));
        c.answered();
        assert!(c.admit(at(1_500)) && c.is_fresh());
    }

    #[test]
    fn an_abandoned_probe_lets_the_next_one_probe() {
        let mut c = Circuit::default();
        for _ in 0..3 {
            c.failed(at(0));
        }
        assert!(c.admit(at(600)));
        c.abandoned();
        assert!(c.admit(at(600)));
    }

    #[test]
    fn it_never_stays_open_longer_than_the_most() {
        let mut c = Circuit::default();
        for _ in 0..100 {
            c.failed(at(0));
        }
        assert!(c.admit(at(30_000)));
    }
}
