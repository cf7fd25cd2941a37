//! Wrong tokens, counted by client, so that guessing has an end.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::clock::Mono;
use crate::lifecycle::origin::customer;

/// Wrong tokens of one client before it has to wait.
const ATTEMPTS: u32 = 10;
/// How long one wrong token counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Clients that are counted at once. Beyond it the one that was counted first is forgotten: a client
/// with so many addresses has ten guesses from each of them anyway.
const CLIENTS: usize = 16_384;

/// Wrong tokens by client: an IPv4 address, or an IPv6 /64.
#[derive(Default)]
pub struct WrongTokens(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    by_client: HashMap<IpAddr, Count, RandomState>,
    /// In the order in which they were counted first.
    first: VecDeque<(IpAddr, Mono)>,
    hash: RandomState,
}

struct Count {
    wrong: u32,
    since: Mono,
    /// Of the wrong cookie that it showed last.
    cookie: u64,
}

impl WrongTokens {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic while it was held leaves counts that are too low at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long `from` has to wait before it may try again; `None` when it may.
    pub fn wait(&self, from: IpAddr, now: Mono) -> Option<Duration> {
        let counts = self.counts();
        let count = counts.by_client.get(&customer(from))?;
        let over = now.since(count.since);
        (count.wrong >= ATTEMPTS && over < WINDOW).then(|| WINDOW - over)
    }

    /// Counts a wrong token, or a wrong `cookie`. The same cookie again is no other guess: a browser
    /// whose token was rotated sends it with every request.
    pub fn count(&self, from: IpAddr, cookie: Option<&str>, now: Mono) {
        let mut counts = self.counts();
        let from = customer(from);
        let cookie = cookie.map(|c| counts.hash.hash_one(c));
        counts.forget(now);
        if let Some(count) = counts.by_client.get_mut(&from) {
            if cookie != Some(count.cookie) {
                count.wrong = count.wrong.saturating_add(1);
                count.cookie = cookie.unwrap_or(count.cookie);
            }
            return;
        }
        let count = Count { wrong: 1, since: now, cookie: cookie.unwrap_or_default() };
        counts.by_client.insert(from, count);
        counts.first.push_back((from, now));
    }
}

impl Counts {
    /// Makes room for one more: what is over goes, and the oldest when there are too many.
    fn forget(&mut self, now: Mono) {
        while let Some((from, since)) = self.first.front()
            && (now.since(*since) >= WINDOW || self.first.len() >= CLIENTS)
        {
            self.by_client.remove(from);
            self.first.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
    const START: Mono = Mono(10_000_000_000);

    #[test]
    fn wrong_tokens_are_counted_by_client_and_forgotten() {
        let attempts = WrongTokens::default();
        let a = ip("2001:db8::1");
        for _ in 0..ATTEMPTS {
            assert_eq!(attempts.wait(a, START), None);
            attempts.count(a, None, START);
        }
        let later = START + Duration::from_secs(10);
        assert_eq!(attempts.wait(a, later), Some(Duration::from_secs(50)));
        assert!(attempts.wait(ip("2001:db8::ffff:2"), START).is_some(), "of the same /64");
        assert!(attempts.wait(ip("2001:db8:0:1::1"), START).is_none(), "of another");
        assert_eq!(attempts.wait(a, START + WINDOW), None);
        attempts.count(a, None, START + WINDOW);
        assert_eq!(attempts.wait(a, START + WINDOW), None, "one attempt only");
    }

    #[test]
    fn a_cookie_that_is_sent_again_is_one_guess_and_another_is_another() {
        let attempts = WrongTokens::default();
        for _ in 0..1000 {
            attempts.count(ip("192.0.2.1"), Some("1700000000.ab"), START);
        }
        assert_eq!(attempts.wait(ip("192.0.2.1"), START), None);
        for n in 0..ATTEMPTS {
            attempts.count(ip("192.0.2.1"), Some(&n.to_string()), START);
        }
        assert!(attempts.wait(ip("192.0.2.1"), START).is_some());
    }

    #[test]
    fn no_client_is_locked_by_others_and_what_is_kept_is_bounded() {
        let attempts = WrongTokens::default();
        for n in 0..200_000_u32 {
            let from = IpAddr::V4((0x0a00_0000 + n / 9).into());
            assert_eq!(attempts.wait(from, START), None, "{from}");
            attempts.count(from, None, START);
        }
        let counts = attempts.counts();
        assert!(counts.by_client.len() <= CLIENTS && counts.first.len() <= CLIENTS);
    }
}
