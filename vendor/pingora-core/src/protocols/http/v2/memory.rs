// vango-edge: this file is not Pingora's.
//! What HTTP/2 connections may hold in memory for their clients, on the whole.
//!
//! Windows: a stream's window bounds what its client may send ahead, and with a round trip of 100 ms it
//! bounds the upload to ten windows a second. So a connection's windows double while its uploads wait for
//! the network and gain by it, out of a budget that all connections share.
//!
//! Answers: a client that takes nothing keeps what was read for it. Streams that wait for their clients are
//! counted, and while they hold more than all may, each waits for a second only.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Bytes of an answer that a stream holds at most while its client takes nothing: what is being written,
/// what waits behind it, and what the connection to the app reads into.
pub const STREAM_BYTES: usize = 64 * 1024;
/// Bytes that are read from an app at a time for such a stream, which holds three times as much. More would
/// be faster: a client on the same machine takes one download two thirds as fast as with 64 KiB and four
/// ahead, in a debug build.
pub const READ_BYTES: usize = 20 * 1024;
/// A stream that waits for its client is looked at so often.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Largest window of a stream; a connection's is twice as large. With 100 ms there and back it is 40 MB/s.
const MOST_WINDOW: u32 = 4 << 20;
/// A window that was filled and drained in less time is not what holds the client up.
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// What all connections share.
#[derive(Debug)]
pub struct H2Memory {
    most: usize,
    rate: u64,
    windows: AtomicUsize,
    waiting: AtomicUsize,
}

impl H2Memory {
    /// At most `most` bytes each way; answers are taken with at least `rate` bytes a second, 0 for none.
    pub fn new(most: usize, rate: u64) -> Arc<Self> {
        Arc::new(Self { most, rate, windows: AtomicUsize::new(0), waiting: AtomicUsize::new(0) })
    }

    /// How long `bytes` may take beyond a wait of `grace`.
    pub(crate) fn longest(&self, grace: Duration, bytes: usize) -> Duration {
        let seconds = (bytes as u64).checked_div(self.rate);
        seconds.map_or(Duration::MAX, |s| grace.saturating_add(Duration::from_secs(s)))
    }

    fn take(&self, bytes: usize) -> bool {
        let within = |n: usize| n.checked_add(bytes).filter(|n| *n <= self.most);
        self.windows.fetch_update(Ordering::AcqRel, Ordering::Acquire, within).is_ok()
    }

    /// Whether streams that wait for their clients hold more than all may.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Acquire).saturating_mul(STREAM_BYTES) > self.most
    }

    /// A stream waits for its client until the guard is dropped.
    pub(crate) fn waits(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(Arc::clone(self))
    }
}

/// See [`H2Memory::waits`].
pub(crate) struct Waiting(Arc<H2Memory>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The windows of one connection.
pub(crate) struct Windows {
    memory: Arc<H2Memory>,
    state: Mutex<State>,
    grown: Notify,
}

struct State {
    /// A stream's.
    window: u32,
    /// Of the budget.
    taken: usize,
    /// Drained since `since`.
    drained: usize,
    since: Option<Instant>,
    /// Whether the reader had to wait for any of it.
    waited: bool,
    /// Bytes a second with the window before this one.
    before: u64,
}

impl Windows {
    pub(crate) fn new(memory: Arc<H2Memory>, window: u32) -> Arc<Self> {
        let (taken, drained, since, waited, before) = (0, 0, None, false, 0);
        let state = Mutex::new(State { window, taken, drained, since, waited, before });
        Arc::new(Self { memory, state, grown: Notify::new() })
    }

    /// A reader took `bytes` of a body; `waited` when they were not there at once.
    pub(crate) fn drained(&self, bytes: usize, waited: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.window < MOST_WINDOW && state.took(bytes, waited, Instant::now()) {
            let more = (state.window as usize).saturating_mul(2);
            if self.memory.take(more) {
                state.window = state.window.saturating_mul(2).min(MOST_WINDOW);
                state.taken += more;
                self.grown.notify_one();
            }
        }
    }

    /// The windows of a stream and of the connection, once they have grown.
    pub(crate) async fn grown(&self) -> (u32, u32) {
        self.grown.notified().await;
        let window = self.state.lock().unwrap_or_else(PoisonError::into_inner).window;
        (window, window.saturating_mul(2))
    }
}

impl State {
    /// Whether a larger window would help: a whole one was drained, the network was waited for, and the
    /// last growth made it faster by a quarter at least.
    fn took(&mut self, bytes: usize, waited: bool, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.drained += bytes;
        self.waited |= waited;
        if self.drained < self.window as usize {
            return false;
        }
        let took = now.saturating_duration_since(since);
        let rate = self.drained as u64 * 1000 / (took.as_millis() as u64).max(1);
        let helps = self.waited && took >= ROUND_TRIP && rate * 4 >= self.before * 5;
        (self.drained, self.since, self.waited) = (0, Some(now), false);
        if helps {
            self.before = rate;
        }
        helps
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.memory.windows.fetch_sub(state.taken, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(memory: &Arc<H2Memory>) -> Arc<Windows> {
        Windows::new(Arc::clone(memory), 64 * 1024)
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let memory = H2Memory::new(300_000, 240);
        assert_eq!(memory.longest(Duration::from_secs(30), 2400), Duration::from_secs(40));
        assert!(memory.take(131_072) && memory.take(131_072) && !memory.take(131_072));
        memory.windows.store(0, Ordering::Release);
        let one = windows(&memory);
        one.state.lock().unwrap().taken = 131_072;
        memory.windows.store(131_072, Ordering::Release);
        drop(one);
        assert_eq!(memory.windows.load(Ordering::Acquire), 0);
    }

    #[test]
    fn it_grows_while_that_helps() {
        let memory = H2Memory::new(1 << 30, 0);
        assert_eq!(memory.longest(LOOK, 1), Duration::MAX);
        let windows = windows(&memory);
        let mut state = windows.state.lock().unwrap();
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        assert!(!state.took(0, false, start));
        // A window each 100 ms, then two: the network's.
        assert!(state.took(64 * 1024, true, ms(100)));
        state.window *= 2;
        assert!(state.took(128 * 1024, true, ms(200)));
        // The same rate as before: it is not the window.
        assert!(!state.took(128 * 1024, true, ms(300)));
        // The app is what is slow, or nothing is.
        assert!(!state.took(1 << 20, false, ms(400)));
        assert!(!state.took(1 << 20, true, ms(401)));
    }
}
