//! What becomes of allocations that no request decides about: which fall asleep and how far what drains
//! has come, what stays frozen, which are ended because their epoch is over, and what an earlier process
//! of this node left.

use std::time::Duration;

use crate::clock::Mono;
use crate::contract::{LivePolicy, Process};
use crate::id::{AllocationId, Environment, Epoch};
use crate::record::{Allocation, AllocationState, RouteOwner};
use crate::snapshot::{AllocationView, EnvView};

/// Whether an environment is to be put to sleep: something is ready, nothing is in flight or
/// waiting, and nothing came for its contract's time. `up_since` is when this process first saw it
/// ready, for one that no request has reached.
pub fn is_idle(view: &EnvView, up_since: Mono, now: Mono) -> bool {
    let Some(after) = view.contract.sleep.after else { return false };
    let quiet = view.counters.idle(now).unwrap_or(Duration::MAX).min(now.since(up_since));
    !view.ready.is_empty()
        && view.contract.scale.min == 0
        && quiet >= after
        && view.counters.waiting() == 0
        && view.ready.iter().all(|a| a.load.in_flight() == 0)
        && (view.contract.sleep.live == LivePolicy::Traffic
            || view.ready.iter().all(|a| a.load.sockets() == 0))
}

/// Whether an environment is to be woken although no request asks: its contract keeps some up, and nothing
/// is ready. (A back-off is minded where the wake is made.)
pub fn wants_one_started(view: &EnvView) -> bool {
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
    pub id: AllocationId,
    /// The environment that the allocation belongs to.
    pub environment: Environment,
    /// When this process saw it frozen first.
    pub since: Mono,
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

/// For sockets that were told to end at the drain limit to have ended.
const GOODBYE: Duration = Duration::from_secs(1);

/// Whether an allocation's epoch is over, so that it is to be ended: it could serve, and never will
/// again. One of a later epoch is being started for an owner that is about to move. One that is stopping is ended
/// by what stops it, unless that lost the store's answer and ended nothing.
pub fn is_over(allocation: &AllocationView, owner: Epoch) -> bool {
    use AllocationState::{Draining, Ready, Stopping};
    matches!(allocation.state, Ready | Draining | Stopping) && allocation.epoch < owner
}

/// The next step of an allocation whose epoch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retiring {
    /// Look again shortly.
    Wait,
    /// Seal it if nothing is in flight still, and end it.
    End,
    /// Seal it whatever is in flight, and end it: its time is over.
    Cut,
}

/// Decides on an allocation that has drained for `waited`. Requests in flight and live sockets have the
/// contract's `process.drain_timeout`; it ends when neither keeps it.
pub fn retire(in_flight: u32, sockets: u32, waited: Duration, process: &Process) -> Retiring {
    if in_flight == 0 && sockets == 0 {
        return Retiring::End;
    }
    let requests = in_flight > 0 && waited < process.drain_timeout;
    let live = sockets > 0 && waited < process.drain_timeout + GOODBYE;
    if requests || live { Retiring::Wait } else { Retiring::Cut }
}

/// What is to become of an allocation that an earlier process of this node recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    /// Take it over, if the runner proves that it runs and is ready.
    Adopt,
    /// End what is left of it and take it off the registry; for this reason.
    End(&'static str),
}

/// Decides on the record and on the environment's newest owner.
pub fn inherited(allocation: &Allocation, owner: Option<&RouteOwner>) -> Inherited {
    let Some(owner) = owner else { return Inherited::End("its routes have no owner any more") };
    match allocation.state {
        AllocationState::Planned | AllocationState::Starting => {
            // Its operation is claimable, and starts over under the next attempt.
            Inherited::End("its start was cut short")
        }
        AllocationState::Draining | AllocationState::Stopping => {
            Inherited::End("it was being put to sleep")
        }
        _ if allocation.epoch != owner.epoch => Inherited::End("its epoch is not the owner's"),
        _ if allocation.digest != owner.digest => {
            Inherited::End("it runs another artifact than the owner's")
        }
        _ if allocation.process.is_none() || allocation.address.is_none() => {
            Inherited::End("its record names no process")
        }
        AllocationState::Ready | AllocationState::Frozen => Inherited::Adopt,
    }
}

#[cfg(test)]
mod tests;
