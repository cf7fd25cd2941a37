//! How long a peer has been waited for, and how much longer it may be: a rate that counts only the
//! time in which the edge really waited, so that a slow app is never held against its client.

use std::time::Duration;

use vango_edge_core::clock::Mono;

/// Waiting and what came of it, since the last [`Meter::start`].
#[derive(Debug, Default)]
pub struct Meter {
    bytes: u64,
    waited: Duration,
    since: Option<Mono>,
}

impl Meter {
    /// Begins anew.
    pub fn start(&mut self) {
        *self = Self::default();
    }

    /// It is waited for from `now` on, if it was not already.
    pub fn waiting(&mut self, now: Mono) {
        self.since.get_or_insert(now);
    }

    /// `bytes` moved.
    pub fn moved(&mut self, bytes: usize, now: Option<Mono>) {
        self.bytes += bytes as u64;
        if let (Some(since), Some(now)) = (self.since.take(), now) {
            self.waited += now.since(since);
        }
    }

    /// Bytes that moved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is waited for.
    pub fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// How long the present wait has taken.
    pub fn stalled(&self, now: Mono) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// How much longer it may be waited for at `rate` bytes a second, with `grace` for the start;
    /// `None` without a rate.
    pub fn left(&self, rate: u64, grace: Duration, now: Mono) -> Option<Duration> {
        let millis = self.bytes.saturating_mul(1000).checked_div(rate)?;
        let allowed = grace.saturating_add(Duration::from_millis(millis));
        Some(allowed.saturating_sub(self.waited + self.stalled(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }
    fn at(n: u64) -> Mono {
        Mono(0) + secs(n)
    }

    #[test]
    fn only_waiting_counts_and_bytes_buy_time() {
        let mut meter = Meter::default();
        assert_eq!(meter.left(0, secs(5), at(0)), None);
        assert_eq!(meter.left(100, secs(5), at(1000)), Some(secs(5)));
        meter.waiting(at(1000));
        meter.waiting(at(1001));
        assert_eq!((meter.stalled(at(1003)), meter.is_waiting()), (secs(3), true));
        assert_eq!(meter.left(100, secs(5), at(1003)), Some(secs(2)));
        meter.moved(200, Some(at(1004)));
        assert_eq!(meter.left(100, secs(5), at(9999)), Some(secs(3)));
        meter.waiting(at(9999));
        assert_eq!(meter.left(100, secs(5), at(10_100)), Some(secs(0)));
        meter.start();
        assert_eq!(meter.left(100, secs(5), at(10_100)), Some(secs(5)));
    }
}
