//! Which certificates are to be ordered from an authority, and when. Pure.
//!
//! A host has its certificate ordered when it has none, or the one that it has came from another authority, or
//! two thirds of its life are over. What failed waits longer each time; what one host waits for, no other does,
//! and all hosts together begin so many orders an hour at most: those whose orders failed less often first, and of
//! these those without a certificate. An operator may ask for an order before its time ([`asked`]).
//!
//! Times are by the wall clock, which may jump. Forward, certificates seem to have run out: they are ordered anew
//! within the hourly bound, and not again before a third of their life has passed by the same clock. Back, a
//! failure that lies in the future keeps nothing waiting.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::id::Host;
use crate::record::{CertificateOrder, HostCertificate, OrderPace, OrderState};

/// What [`Rules::orders_per_hour`] counts in.
pub const HOUR: Duration = Duration::from_secs(3600);
/// Longest pause that an authority's `Retry-After` makes.
pub const TOLD_MOST: Duration = Duration::from_secs(24 * 3600);

/// How far an authority's clock may be ahead of this machine's before its certificates seem to begin in the future.
const APART_MOST: Duration = Duration::from_secs(300);

/// How long a host waits after its orders failed: `first`, then four times as long each time, up to `max`. With
/// the defaults four orders fail in the first hour, one less than Let's Encrypt lets fail of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    pub first: Duration,
    pub max: Duration,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules<'r> {
    /// The authority's directory: what another one issued is replaced.
    pub directory: &'r str,
    /// A certificate is renewed so long before it runs out, but not before a third of its life is over; `None`:
    /// a third of its life before.
    pub renew_before: Option<Duration>,
    pub retry: Retry,
    pub orders_per_hour: usize,
}

/// What is known of a host.
#[derive(Debug, Clone, Copy)]
pub struct Known<'k> {
    pub host: &'k Host,
    pub certificate: Option<&'k HostCertificate>,
    /// Its newest order.
    pub order: Option<&'k CertificateOrder>,
}

/// When a host's next order is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// One is under way.
    UnderWay,
    Now,
    At(Wall),
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Orders to begin, the most urgent first.
    pub order: Vec<Host>,
    /// Orders that are due and wait for the hour's bound.
    pub held_back: usize,
    /// When something is due next, as far as is known now.
    pub next: Option<Wall>,
}

/// Whether a public name is in `host`, so that an authority can look at it: no address, not this machine, and
/// more than one label. What else it does not issue for, it says itself.
pub fn is_orderable(host: &Host) -> bool {
    let name = host.as_str();
    let last = name.rsplit('.').next().unwrap_or_default();
    name.contains('.')
        && !name.contains('_')
        && last != "localhost"
        && !last.bytes().all(|b| b.is_ascii_digit())
        && !name.starts_with('[')
}

/// Says when the host's next order is to begin.
pub fn due(known: &Known<'_>, rules: &Rules<'_>, now: Wall) -> Due {
    let same = known.order.filter(|o| o.directory == rules.directory);
    if known.order.is_some_and(|o| o.state.in_progress()) {
        return Due::UnderWay;
    }
    let needed = needed(known, rules, now);
    let may = same.map_or(Wall(0), |o| may_again(o, &rules.retry, now));
    let at = needed.max(may);
    if at <= now { Due::Now } else { Due::At(at) }
}

/// When a certificate is wanted; 0 for at once.
fn needed(known: &Known<'_>, rules: &Rules<'_>, now: Wall) -> Wall {
    let Some(c) = known.certificate.filter(|c| c.directory == rules.directory) else {
        return Wall(0);
    };
    let life = c.not_after.since(c.not_before);
    let before = rules.renew_before.unwrap_or(life / 3).min(life * 2 / 3);
    // Certificates that were issued together are renewed apart.
    let before = before + (before / 10).mul_f64(share(c.host.as_str()));
    let at = Wall(c.not_after.0.saturating_sub(ms(before)));
    // A clock that is far ahead sees every new certificate run out: no order follows another at once.
    let earliest = if c.issued <= now { plus(c.issued, life / 3) } else { Wall(0) };
    at.max(earliest)
}

/// When an order may follow one that is over.
fn may_again(over: &CertificateOrder, retry: &Retry, now: Wall) -> Wall {
    // The clock went back: what is to come says nothing.
    if over.state != OrderState::Failed || over.changed > now {
        return Wall(0);
    }
    let doubled = 2 * over.failures.saturating_sub(1).min(15);
    let pause = retry.first.saturating_mul(1 << doubled).min(retry.max);
    let apart = (pause / 4).mul_f64(share(over.host.as_str()));
    let told = over.told_to_wait.unwrap_or_default().min(TOLD_MOST);
    plus(over.changed, (pause + apart).max(told))
}

/// Says which orders are to begin now, of hosts that all want a certificate.
pub fn plan<'k>(
    all: impl IntoIterator<Item = Known<'k>>,
    pace: &OrderPace,
    rules: &Rules<'_>,
    now: Wall,
) -> Plan {
    let mut next: Option<Wall> = None;
    let mut sooner = |at: Wall| next = Some(next.map_or(at, |n: Wall| n.min(at)));
    let mut due_now = Vec::new();
    for known in all {
        match due(&known, rules, now) {
            Due::UnderWay => {}
            Due::At(at) => sooner(at),
            Due::Now => {
                let good_until = known.certificate.map_or(Wall(0), |c| c.not_after);
                let failures = known.order.map_or(0, |o| o.failures);
                // Hosts that no authority can reach would otherwise take every hour's orders, and a
                // certificate that is to be renewed would run out behind them.
                due_now.push((failures, good_until.max(now), known.host));
            }
        }
    }
    due_now.sort();
    let begun = recent(pace, now);
    let room = rules.orders_per_hour.saturating_sub(begun.len());
    let held_back = due_now.len().saturating_sub(room);
    if held_back > 0
        && let Some(oldest) = begun.iter().min()
    {
        sooner(plus(*oldest, HOUR));
    }
    let order = due_now.into_iter().take(room).map(|(_, _, host)| host.clone()).collect();
    Plan { order, held_back, next }
}

/// What is counted once another order has begun; `None` where the hour has as many as it may.
pub fn begin(pace: &OrderPace, rules: &Rules<'_>, now: Wall) -> Option<OrderPace> {
    let mut begun = recent(pace, now);
    if begun.len() >= rules.orders_per_hour {
        return None;
    }
    begun.push(now);
    Some(OrderPace { begun })
}

/// What an operator's wish for an order comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// One is under way, and is the wanted one.
    Joins,
    /// It begins; what is counted then.
    Begins(OrderPace),
    /// It does not begin before that time.
    Waits(NotNow, Wall),
}

/// Why an order does not begin although an operator asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// The certificate is good, and its renewal is not due.
    NotDue,
    /// The last order failed less than [`Retry::first`] ago.
    JustFailed,
    /// The authority said to wait.
    Told,
    /// The hour has as many orders as it may.
    HourIsFull,
}

/// Says whether an order begins now because an operator asks for it. The pause after failures counts no more, what
/// protects the authority does; `force` orders although the certificate is good.
pub fn asked(
    known: &Known<'_>,
    pace: &OrderPace,
    rules: &Rules<'_>,
    force: bool,
    now: Wall,
) -> Asked {
    if known.order.is_some_and(|o| o.state.in_progress()) {
        return Asked::Joins;
    }
    let failed = known.order.filter(|o| {
        o.directory == rules.directory && o.state == OrderState::Failed && o.changed <= now
    });
    if let Some(failed) = failed {
        let told = failed.told_to_wait.unwrap_or_default().min(TOLD_MOST);
        let waits = [(NotNow::Told, told), (NotNow::JustFailed, rules.retry.first)];
        for (why, pause) in waits {
            let until = plus(failed.changed, pause);
            if until > now {
                return Asked::Waits(why, until);
            }
        }
    }
    let needed = needed(known, rules, now);
    if needed > now && !force {
        return Asked::Waits(NotNow::NotDue, needed);
    }
    match begin(pace, rules, now) {
        Some(next) => Asked::Begins(next),
        None => {
            let oldest = recent(pace, now).into_iter().min().unwrap_or(now);
            Asked::Waits(NotNow::HourIsFull, plus(oldest, HOUR))
        }
    }
}

/// Why what was issued, good from and until these times, does not take the place of what its host has now; `None`
/// where it does. A clock that is wrong keeps no host without one: what has none, or one that is over, takes any.
pub fn unfit(
    before: Option<&HostCertificate>,
    from: Wall,
    until: Wall,
    now: Wall,
) -> Option<String> {
    if until <= from {
        return Some(format!("what was issued is good for no time: from {from} until {until}"));
    }
    let is_good = |from: Wall, until: Wall| from <= plus(now, APART_MOST) && now < until;
    let has_good = before.is_some_and(|b| is_good(b.not_before, b.not_after));
    (has_good && !is_good(from, until)).then(|| {
        format!(
            "what was issued is good from {from} until {until}, and it is {now} by this machine's clock: the \
             certificate from before is served on"
        )
    })
}

/// Those of the last hour. One that lies further ahead is of a clock that went back.
fn recent(pace: &OrderPace, now: Wall) -> Vec<Wall> {
    let is_recent = |at: &&Wall| now.since(**at) < HOUR && at.since(now) < HOUR;
    pace.begun.iter().filter(is_recent).copied().collect()
}

/// A share of 1 that a name always has.
fn share(name: &str) -> f64 {
    let hash = Sha256::digest(name);
    f64::from(u16::from_le_bytes([hash[0], hash[1]])) / f64::from(u16::MAX)
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn plus(at: Wall, d: Duration) -> Wall {
    Wall(at.0.saturating_add(ms(d)))
}

#[cfg(test)]
mod tests;
