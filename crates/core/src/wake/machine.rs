//! A wake operation as a state machine, without I/O. The states and their exits are documented at
//! [`WakeState`]; [`advance`] is the only transition function.

use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::id::{AllocationId, OperationId};
use crate::record::{
    Allocation, AllocationState, Failure, Operation, RouteOwner, WakePhases, WakeState,
};
use crate::snapshot::{EnvView, OperationView};

/// What happens to an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WakeEvent {
    /// An executor took it up, `reserve_us` after it was asked for.
    Claimed {
        reserve_us: u64,
    },
    /// The artifact is verified and laid out, and an allocation is planned.
    Planned {
        allocation: AllocationId,
        artifact_us: u64,
    },
    /// The process exists.
    Spawned {
        spawn_us: u64,
    },
    Ready {
        ready_us: u64,
    },
    /// An allocation that was still in memory takes requests again; nothing was started.
    Resumed {
        allocation: AllocationId,
        thaw_us: u64,
    },
    /// The node has no place for it, and no request waits for it any more. That says nothing of the app: no
    /// back-off, and no failure is counted.
    NoRoom {
        /// What is said of it.
        failure: Failure,
    },
    /// It cannot be started, or ended right after it was ready.
    Failed {
        failure: Failure,
        /// How long no new start is tried.
        backoff: Duration,
    },
}

/// An event that the state has no exit for: our own bug, or an executor that lost its claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation {id} is {} and takes no {event}", state.name())]
pub struct IllegalTransition {
    id: OperationId,
    state: WakeState,
    event: &'static str,
}

/// The operation after `event`.
///
/// # Errors
/// [`IllegalTransition`] when the state has no such exit; the operation is unchanged then.
pub fn advance(
    operation: &Operation,
    event: WakeEvent,
    now: Wall,
) -> Result<Operation, IllegalTransition> {
    let mut next = operation.clone();
    next.changed = now;
    match (operation.state, event) {
        // A lost executor's operation starts over under the next attempt.
        (s, WakeEvent::Claimed { reserve_us }) if s.in_progress() => {
            next.state = WakeState::Starting;
            next.attempt += 1;
            next.allocation = None;
            next.phases = WakePhases { reserve_us: Some(reserve_us), ..WakePhases::default() };
        }
        (WakeState::Starting, WakeEvent::Planned { allocation, artifact_us }) => {
            next.allocation = Some(allocation);
            next.phases.artifact_us = Some(artifact_us);
        }
        (WakeState::Starting, WakeEvent::Spawned { spawn_us }) if next.allocation.is_some() => {
            next.state = WakeState::ReadinessWait;
            next.phases.spawn_us = Some(spawn_us);
        }
        (WakeState::ReadinessWait, WakeEvent::Ready { ready_us }) => {
            next.state = WakeState::Hot;
            next.phases.ready_us = Some(ready_us);
            next.typical_ms = moving_average(operation.typical_ms, next.phases.total());
            // Failures in a row are forgotten once an allocation has stayed ready for [`PROVED`].
        }
        (WakeState::Starting, WakeEvent::Resumed { allocation, thaw_us })
            if next.allocation.is_none() =>
        {
            next.state = WakeState::Hot;
            next.allocation = Some(allocation);
            next.phases.thaw_us = Some(thaw_us);
            // What is typical stays: the next wake may be a start again.
        }
        (s, WakeEvent::NoRoom { failure }) if s.in_progress() => {
            next.state = WakeState::Failed;
            next.failure = Some(failure);
            next.backoff_ms = 0;
        }
        // `hot` fails only when its allocation ends right after it was ready.
        (s, WakeEvent::Failed { failure, backoff }) if s != WakeState::Failed => {
            next.state = WakeState::Failed;
            next.failure = Some(failure);
            next.failures = operation.failures.saturating_add(1);
            next.backoff_ms = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
        }
        (state, event) => {
            let event = match event {
                WakeEvent::Claimed { .. } => "claim",
                WakeEvent::Planned { .. } => "plan",
                WakeEvent::Spawned { .. } => "spawn",
                WakeEvent::Ready { .. } => "readiness",
                WakeEvent::Resumed { .. } => "resumption",
                WakeEvent::NoRoom { .. } => "want of a place",
                WakeEvent::Failed { .. } => "failure",
            };
            return Err(IllegalTransition { id: operation.id.clone(), state, event });
        }
    }
    Ok(next)
}

/// `operation`, as it was asked for, once an executor has taken `allocation` back without anything
/// having been recorded in between.
///
/// # Errors
/// [`IllegalTransition`] when it is claimed already, or over.
pub fn taken_back(
    operation: &Operation,
    allocation: &AllocationId,
    reserve_us: u64,
    thaw_us: u64,
    now: Wall,
) -> Result<Operation, IllegalTransition> {
    let claimed = advance(operation, WakeEvent::Claimed { reserve_us }, now)?;
    let event = WakeEvent::Resumed { allocation: allocation.clone(), thaw_us };
    advance(&claimed, event, now)
}

/// Three parts of what was known to one part of what was seen; milliseconds, at least 1.
fn moving_average(before: u64, seen: Duration) -> u64 {
    let seen = u64::try_from(seen.as_millis()).unwrap_or(u64::MAX).max(1);
    if before == 0 { seen } else { (before.saturating_mul(3).saturating_add(seen)) / 4 }
}

/// What to do when a wake is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensure {
    /// One is in progress: join it.
    Attach(OperationId),
    /// Make this one.
    Create(Box<Operation>),
    /// The last one failed and its back-off runs, or this process has not seen it fail yet.
    BackingOff,
    /// An allocation of the owner's epoch is ready.
    Ready,
    /// The host is another environment's by now, which this node's snapshot has yet to show: there
    /// is nothing to start for this one under that owner.
    Moved,
}

/// An allocation that stayed ready this long has proved that it starts well: the failures before
/// it no longer count.
pub const PROVED: Duration = Duration::from_secs(10);

/// Decides on the stored `current` operation and `owner`, and on `view`, the environment as this
/// node's snapshot shows it. `id` is used if an operation is made.
pub fn ensure(
    current: Option<&Operation>,
    owner: &RouteOwner,
    view: &EnvView,
    id: OperationId,
    now: Mono,
    wall: Wall,
) -> Ensure {
    if owner.environment != view.environment {
        return Ensure::Moved;
    }
    if let Some(o) = current.filter(|o| o.epoch == owner.epoch) {
        if o.state.in_progress() {
            return Ensure::Attach(o.id.clone());
        }
        let seen: Option<&OperationView> = view.operation.as_ref().filter(|v| v.id == o.id);
        match (o.state, seen) {
            // Its back-off is over.
            (WakeState::Failed, Some(v))
                if v.state == WakeState::Failed && v.backoff_until.is_none_or(|t| now >= t) => {}
            // Its back-off runs. Or it failed, and this node's snapshot has yet to show it: the back-off
            // has just begun.
            (WakeState::Failed, _) => return Ensure::BackingOff,
            // It became hot, and this node's snapshot has yet to show that.
            (WakeState::Hot, None) => return Ensure::Ready,
            (WakeState::Hot, Some(v)) if v.state != WakeState::Hot => return Ensure::Ready,
            _ => {}
        }
    }
    if !view.ready.is_empty() && view.owner.epoch == owner.epoch {
        return Ensure::Ready;
    }
    let same_artifact = current.filter(|o| o.digest == owner.digest);
    let failures = same_artifact.map_or(0, |o| match o.state {
        // It was hot and ended later on: `Failed` would say so if that was right away.
        WakeState::Hot => 0,
        _ => o.failures,
    });
    Ensure::Create(Box::new(Operation {
        id,
        environment: owner.environment.clone(),
        epoch: owner.epoch,
        digest: owner.digest,
        deployment: owner.deployment.clone(),
        state: WakeState::WakeRequested,
        attempt: 0,
        requested: wall,
        changed: wall,
        phases: WakePhases::default(),
        allocation: None,
        failure: None,
        failures,
        backoff_ms: 0,
        typical_ms: same_artifact.map_or(0, |o| o.typical_ms),
    }))
}

/// Which of an environment's `allocations` the operation takes back instead of starting another: the
/// newest under its authority that is frozen, or still only draining.
pub fn resumable<'a>(
    operation: &Operation,
    allocations: impl IntoIterator<Item = &'a Allocation>,
) -> Option<&'a Allocation> {
    let fit = allocations.into_iter().filter(|a| {
        matches!(a.state, AllocationState::Frozen | AllocationState::Draining)
            && a.epoch == operation.epoch
            && a.digest == operation.digest
    });
    fit.max_by_key(|a| a.generation)
}

/// How failures space out the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

/// `first` doubled for each failure before this one, at most `max`, then up to a quarter less by
/// `pick` (64 random bits), so that environments that failed together do not start together.
pub fn backoff(policy: BackoffPolicy, failures_before: u32, pick: u64) -> Duration {
    let full = policy
        .first
        .saturating_mul(1u32.checked_shl(failures_before.min(30)).unwrap_or(u32::MAX))
        .min(policy.max);
    let quarter = u64::try_from(full.as_millis() / 4).unwrap_or(u64::MAX);
    full - Duration::from_millis(if quarter == 0 { 0 } else { pick % quarter })
}

/// The same for one that ran and did not listen on its port any more soon after it was ready: the first time
/// it is replaced at once.
pub fn deaf_backoff(policy: BackoffPolicy, failures_before: u32, pick: u64) -> Duration {
    failures_before.checked_sub(1).map_or(Duration::ZERO, |n| backoff(policy, n, pick))
}

/// What those who wait are to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiters {
    /// Give out the free places, in order.
    Place,
    /// Wait on.
    Keep,
    /// All decide again: there is nothing to wait for.
    Recheck,
    /// One of them must ask for a wake again: the one they waited for is over and left nothing ready.
    Wake,
}

/// Decides for the waiters of one environment.
pub fn waiters(view: Option<&EnvView>, now: Mono) -> Waiters {
    let Some(view) = view else { return Waiters::Recheck };
    if !view.ready.is_empty() {
        return Waiters::Place;
    }
    match view.operation.as_ref().filter(|o| o.epoch == view.owner.epoch) {
        Some(o) if o.state.in_progress() => Waiters::Keep,
        Some(o) if o.state == WakeState::Failed => match o.backoff_until {
            Some(until) if now < until => Waiters::Recheck,
            _ => Waiters::Wake,
        },
        _ => Waiters::Wake,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, Epoch};

    fn operation() -> Operation {
        Operation {
            id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: "studylab".parse().unwrap(),
            epoch: Epoch(1),
            digest: Digest::from_bytes([7; 32]),
            deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            state: WakeState::WakeRequested,
            attempt: 0,
            requested: Wall(1),
            changed: Wall(1),
            phases: WakePhases::default(),
            allocation: None,
            failure: None,
            failures: 0,
            backoff_ms: 0,
            typical_ms: 0,
        }
    }
    fn al() -> AllocationId {
        "al-aaaaaaaaaaaaaaaa".parse().unwrap()
    }
    fn failed() -> WakeEvent {
        let failure = Failure { safe: "x".into(), detail: "x".into(), artifact: false };
        WakeEvent::Failed { failure, backoff: Duration::from_secs(1) }
    }

    #[test]
    fn a_wake_goes_through_its_states() {
        let mut o = operation();
        for (event, state) in [
            (WakeEvent::Claimed { reserve_us: 10 }, WakeState::Starting),
            (WakeEvent::Planned { allocation: al(), artifact_us: 20 }, WakeState::Starting),
            (WakeEvent::Spawned { spawn_us: 30 }, WakeState::ReadinessWait),
            (WakeEvent::Ready { ready_us: 5_000 }, WakeState::Hot),
        ] {
            o = advance(&o, event, Wall(2)).unwrap();
            assert_eq!(o.state, state);
        }
        assert_eq!((o.attempt, o.typical_ms), (1, 5));
        assert_eq!(o.phases.total(), Duration::from_micros(5_060));
    }

    #[test]
    fn what_is_in_memory_is_taken_back_without_a_start() {
        let claimed = advance(
            &Operation { typical_ms: 900, ..operation() },
            WakeEvent::Claimed { reserve_us: 10 },
            Wall(2),
        );
        let claimed = claimed.unwrap();
        let event = WakeEvent::Resumed { allocation: al(), thaw_us: 300 };
        let hot = advance(&claimed, event.clone(), Wall(3)).unwrap();
        assert_eq!((hot.state, hot.allocation.clone()), (WakeState::Hot, Some(al())));
        assert_eq!(hot.phases.total(), Duration::from_micros(310));
        assert_eq!(hot.typical_ms, 900, "a start takes as long as before");
        let planned = WakeEvent::Planned { allocation: al(), artifact_us: 1 };
        let planned = advance(&claimed, planned, Wall(3)).unwrap();
        for state in [operation(), planned, hot.clone()] {
            assert!(advance(&state, event.clone(), Wall(4)).is_err());
        }
        let asked = Operation { typical_ms: 900, ..operation() };
        let at_once = taken_back(&asked, &al(), 10, 300, Wall(3)).unwrap();
        assert_eq!(at_once, hot, "in one record what it is in three");
        assert!(taken_back(&hot, &al(), 10, 300, Wall(3)).is_err());
    }

    #[test]
    fn only_what_is_under_the_operations_authority_is_taken_back() {
        let of = |generation: u64, state, epoch, digest| Allocation {
            id: al(),
            environment: "studylab".parse().unwrap(),
            generation: crate::id::Generation(generation),
            epoch: Epoch(epoch),
            digest: Digest::from_bytes([digest; 32]),
            state,
            address: None,
            process: None,
            operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            created: Wall(0),
            ready: None,
        };
        let all = [
            of(1, AllocationState::Frozen, 1, 7),
            of(2, AllocationState::Draining, 1, 7),
            of(3, AllocationState::Frozen, 2, 7),
            of(4, AllocationState::Frozen, 1, 8),
            of(5, AllocationState::Stopping, 1, 7),
            of(6, AllocationState::Ready, 1, 7),
            of(7, AllocationState::Starting, 1, 7),
        ];
        assert_eq!(resumable(&operation(), &all).map(|a| a.generation.0), Some(2));
        assert_eq!(resumable(&operation(), &all[2..]), None);
    }

    #[test]
    fn a_full_node_is_no_failure_of_the_app() {
        let before = Operation { failures: 3, ..operation() };
        let claimed = advance(&before, WakeEvent::Claimed { reserve_us: 0 }, Wall(2)).unwrap();
        let failure = Failure { safe: "full".into(), detail: "full".into(), artifact: false };
        let over = advance(&claimed, WakeEvent::NoRoom { failure }, Wall(3)).unwrap();
        assert_eq!((over.state, over.failures, over.backoff_ms), (WakeState::Failed, 3, 0));
    }

    #[test]
    fn an_app_that_stops_listening_is_replaced_at_once_and_backs_off_if_that_goes_on() {
        let policy = BackoffPolicy { first: Duration::from_secs(1), max: Duration::from_secs(60) };
        assert_eq!(deaf_backoff(policy, 0, 0), Duration::ZERO);
        assert_eq!(deaf_backoff(policy, 1, 0), Duration::from_secs(1));
        assert_eq!(deaf_backoff(policy, 2, 0), Duration::from_secs(2));
    }

    #[test]
    fn there_are_no_other_ways() {
        let claimed = advance(&operation(), WakeEvent::Claimed { reserve_us: 0 }, Wall(2)).unwrap();
        assert!(advance(&operation(), WakeEvent::Ready { ready_us: 0 }, Wall(2)).is_err());
        assert!(advance(&claimed, WakeEvent::Spawned { spawn_us: 0 }, Wall(2)).is_err());
        let over = advance(&claimed, failed(), Wall(2)).unwrap();
        assert!(advance(&over, failed(), Wall(3)).is_err());
        assert!(advance(&over, WakeEvent::Claimed { reserve_us: 0 }, Wall(3)).is_err());
    }

    #[test]
    fn a_lost_executor_starts_over_under_the_next_attempt() {
        let mut o = operation();
        o = advance(&o, WakeEvent::Claimed { reserve_us: 0 }, Wall(2)).unwrap();
        o = advance(&o, WakeEvent::Planned { allocation: al(), artifact_us: 0 }, Wall(2)).unwrap();
        o = advance(&o, WakeEvent::Claimed { reserve_us: 0 }, Wall(3)).unwrap();
        assert_eq!((o.attempt, o.allocation, o.state), (2, None, WakeState::Starting));
    }

    #[test]
    fn back_off_doubles_to_its_bound() {
        let policy = BackoffPolicy { first: Duration::from_secs(1), max: Duration::from_secs(60) };
        for (failures, most) in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (40, 60), (u32::MAX, 60)]
        {
            for pick in [0, 1, 77, u64::MAX] {
                let b = backoff(policy, failures, pick);
                assert!(b <= Duration::from_secs(most), "{failures} {b:?}");
                assert!(b >= Duration::from_millis(most * 750), "{failures} {b:?}");
            }
        }
    }
}
