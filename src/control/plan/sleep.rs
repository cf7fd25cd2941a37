//! When an environment goes to sleep, how far what drains has come, and what stays frozen.

use std::time::Duration;

use crate::clock::Mono;
use crate::contract::LivePolicy;
use crate::id::{AllocationId, Environment};
use crate::snapshot::EnvView;

/// Whether an environment is to be put to sleep: something is ready, nothing is in flight or
/// waiting, and nothing came for its contract's time. `up_since` is when this process first saw it
/// ready, for one that no request has reached.
pub fn is_idle(view: &EnvView, up_since: Mono, now: Mono) -> bool {
    let Some(after) = view.contract.sleep.after else { return false };
    let quiet = view.live.idle(now).unwrap_or(Duration::MAX).min(now.since(up_since));
    !view.ready.is_empty()
        && view.contract.scale.min == 0
        && quiet >= after
        && view.live.waiting() == 0
        && view.ready.iter().all(|a| a.load.in_flight() == 0)
        && (view.contract.sleep.live == LivePolicy::Traffic
            || view.ready.iter().all(|a| a.load.sockets() == 0))
}

/// Whether an environment is to be woken although no request asks: its contract keeps some up, and nothing
/// is ready. (A back-off is minded where the wake is made.)
pub fn is_wanted(view: &EnvView) -> bool {
    view.contract.scale.min > 0 && view.ready.is_empty()
}

/// Why an environment is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepFor {
    /// Nothing came for its contract's time.
    Idleness,
    /// An operator asked.
    Command,
}

/// The next step of an allocation that drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Look again shortly.
    Wait,
    /// Seal it if nothing is in flight, and go on.
    Seal,
    /// Seal it whatever is in flight: its time is over.
    Cut,
    /// Let it take requests again: it is not idle after all.
    Resume,
}

/// Decides on an allocation that has drained for `waited` of at most `limit`. `routed`: the current
/// snapshot still shows it ready, so that it may be chosen at any time.
///
/// Idleness ends with the first request in flight: what came after idleness was found is served by
/// the same process, for as long as it takes. Only a command cuts anything off, after the limit.
pub fn drain(
    why: SleepFor,
    routed: bool,
    in_flight: u32,
    waited: Duration,
    limit: Duration,
) -> Drain {
    match why {
        SleepFor::Idleness if in_flight > 0 || waited >= limit => Drain::Resume,
        SleepFor::Command if waited >= limit => Drain::Cut,
        _ if !routed && in_flight == 0 => Drain::Seal,
        _ => Drain::Wait,
    }
}

/// Longest time between the end of the last live socket of what drains and the limit.
const BEFORE_LIMIT: Duration = Duration::from_millis(250);

/// When the last live socket of what has drained since `started` is told to come back: almost at the
/// limit, so that it is the edge that ends them and not the app, whose own goodbye at SIGTERM may be one
/// after which no client comes back. `None` for those of an idle app, which end at once, and whose
/// clients are to come back when their users do something.
pub fn sockets_end(why: SleepFor, started: Mono, limit: Duration) -> Option<Mono> {
    match why {
        SleepFor::Idleness => None,
        SleepFor::Command => Some(started + (limit - BEFORE_LIMIT.min(limit / 4))),
    }
}

/// A frozen allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenOne {
    /// Which.
    pub id: AllocationId,
    /// Whose.
    pub environment: Environment,
    /// When this process saw it frozen first.
    pub since: Mono,
    /// What it holds.
    pub bytes: u64,
    /// How long its contract keeps it.
    pub keep_for: Duration,
    /// It serves under the owner's authority: a wake would take it back.
    pub current: bool,
}

/// Which frozen allocations are to be stopped now: those kept long enough, those that no wake would
/// take back, and then the ones frozen longest, until the rest holds at most `cap` bytes.
pub fn kept_long_enough(frozen: &[FrozenOne], cap: u64, now: Mono) -> Vec<FrozenOne> {
    let over = |f: &&FrozenOne| !f.current || now.since(f.since) >= f.keep_for;
    let (mut out, mut rest): (Vec<_>, Vec<_>) = frozen.iter().partition(over);
    rest.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    let mut held: u64 = rest.iter().map(|f| f.bytes).sum();
    for f in rest {
        if held <= cap {
            break;
        }
        held -= f.bytes;
        out.push(f);
    }
    out.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_ends_with_work_and_a_command_with_its_limit() {
        use SleepFor::{Command, Idleness};
        let ms = Duration::from_millis;
        let limit = ms(100);
        for (why, routed, in_flight, waited, step) in [
            (Idleness, true, 0, 0, Drain::Wait),
            (Idleness, false, 0, 0, Drain::Seal),
            (Idleness, true, 1, 0, Drain::Resume),
            (Idleness, false, 1, 0, Drain::Resume),
            (Idleness, true, 0, 100, Drain::Resume),
            (Command, true, 3, 0, Drain::Wait),
            (Command, false, 3, 99, Drain::Wait),
            (Command, false, 0, 99, Drain::Seal),
            (Command, false, 3, 100, Drain::Cut),
            (Command, true, 0, 100, Drain::Cut),
        ] {
            assert_eq!(drain(why, routed, in_flight, ms(waited), limit), step, "{why:?} {waited}");
        }
    }

    #[test]
    fn live_sockets_end_before_the_limit_and_idle_ones_at_once() {
        let ms = Duration::from_millis;
        for (why, limit, end) in [
            (SleepFor::Command, 10_000, Some(9_750)),
            (SleepFor::Command, 100, Some(75)),
            (SleepFor::Command, 0, Some(0)),
            (SleepFor::Idleness, 10_000, None),
        ] {
            let end = end.map(|end| Mono(0) + ms(end));
            assert_eq!(sockets_end(why, Mono(0), ms(limit)), end);
        }
    }

    #[test]
    fn frozen_ones_go_by_age_then_oldest_first_until_the_rest_fits() {
        let of = |c: char, since: u64, bytes, current| FrozenOne {
            id: format!("al-{}", c.to_string().repeat(16)).parse().unwrap(),
            environment: "studylab".parse().unwrap(),
            since: Mono(since),
            bytes,
            keep_for: Duration::from_nanos(1000),
            current,
        };
        let all = [of('b', 20, 40, true), of('a', 10, 50, true), of('c', 30, 30, true)];
        let out = |frozen: &[FrozenOne], cap, now| -> String {
            let gone = kept_long_enough(frozen, cap, Mono(now));
            gone.iter().map(|f| f.id.as_str().chars().last().unwrap()).collect()
        };
        assert_eq!(out(&all, 120, 40), "");
        assert_eq!(out(&all, 119, 40), "a");
        assert_eq!(out(&all, 69, 40), "ab");
        assert_eq!(out(&all, 0, 40), "abc");
        assert_eq!(out(&all, 120, 1010), "a", "by age");
        assert_eq!(out(&[of('d', 1, 1, false)], 120, 2), "d", "no wake would take it back");
    }
}
