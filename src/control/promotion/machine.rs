//! A promotion as a state machine, without I/O. The states and their exits are documented at
//! [`PromotionState`]; [`advance`] is the only transition function.

use crate::clock::Wall;
use crate::id::{AllocationId, Epoch, OperationId};
use crate::store::record::{Failure, Promotion, PromotionState};

/// What happens to a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromotionEvent {
    /// An executor took it up.
    Claimed,
    /// The evidence satisfies the policy, or none is asked.
    PolicyMet {
        /// What was verified, as an in-toto statement.
        statement: Option<String>,
    },
    /// The owner has moved.
    Moved {
        /// Under this epoch.
        epoch: Epoch,
        /// To an artifact that this allocation runs.
        allocation: AllocationId,
    },
    /// An allocation of the new epoch answers.
    Proved,
    /// It cannot become healthy; what served before serves.
    WentBack(Failure),
    /// It is refused, or another promotion was first.
    Refused(Failure),
}

/// An event that the state has no exit for: our own bug, or an executor that lost its claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("promotion {id} is {} and takes no {event}", state.name())]
pub struct IllegalTransition {
    id: OperationId,
    state: PromotionState,
    event: &'static str,
}

/// The promotion after `event`.
///
/// # Errors
/// [`IllegalTransition`] when the state has no such exit.
pub fn advance(
    promotion: &Promotion,
    event: PromotionEvent,
    now: Wall,
) -> Result<Promotion, IllegalTransition> {
    use PromotionState as S;
    let mut next = promotion.clone();
    next.changed = now;
    match (promotion.state, event) {
        (s, PromotionEvent::Claimed) if s.in_progress() => {
            next.attempt += 1;
            if s == S::Requested {
                next.state = S::PolicyCheck;
            }
        }
        (S::PolicyCheck, PromotionEvent::PolicyMet { statement }) => {
            next.state = S::RouteCas;
            next.statement = statement;
        }
        (S::RouteCas, PromotionEvent::Moved { epoch, allocation }) => {
            next.state = S::EdgePropagating;
            next.epoch = Some(epoch);
            next.allocation = Some(allocation);
        }
        (S::EdgePropagating, PromotionEvent::Proved) => next.state = S::Healthy,
        (S::RouteCas | S::EdgePropagating, PromotionEvent::WentBack(failure)) => {
            next.state = S::RolledBack;
            next.failure = Some(failure);
        }
        (s, PromotionEvent::Refused(failure)) if s.in_progress() && s != S::Requested => {
            next.state = S::Failed;
            next.failure = Some(failure);
        }
        (state, event) => {
            let event = match event {
                PromotionEvent::Claimed => "claim",
                PromotionEvent::PolicyMet { .. } => "verdict",
                PromotionEvent::Moved { .. } => "move",
                PromotionEvent::Proved => "proof",
                PromotionEvent::WentBack(_) => "way back",
                PromotionEvent::Refused(_) => "refusal",
            };
            return Err(IllegalTransition { id: promotion.id.clone(), state, event });
        }
    }
    Ok(next)
}

#[cfg(test)]
pub(super) fn sample() -> Promotion {
    use crate::id::Digest;
    use crate::store::record::PromotionKind;
    Promotion {
        id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: "studylab".parse().unwrap(),
        kind: PromotionKind::Promote,
        source_environment: "studylab/pr-7".parse().unwrap(),
        source: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
        deployment: "dp-bbbbbbbbbbbbbbbb".parse().unwrap(),
        digest: Digest::from_bytes([7; 32]),
        from: None,
        state: PromotionState::Requested,
        attempt: 0,
        requested: Wall(1),
        changed: Wall(1),
        allocation: None,
        epoch: None,
        failure: None,
        statement: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure { safe: "x".into(), detail: "x".into(), artifact: false }
    }
    fn events() -> Vec<PromotionEvent> {
        let allocation = "al-aaaaaaaaaaaaaaaa".parse().unwrap();
        vec![
            PromotionEvent::Claimed,
            PromotionEvent::PolicyMet { statement: None },
            PromotionEvent::Moved { epoch: Epoch(2), allocation },
            PromotionEvent::Proved,
            PromotionEvent::WentBack(failure()),
            PromotionEvent::Refused(failure()),
        ]
    }

    #[test]
    fn a_promotion_goes_through_its_states() {
        let mut p = sample();
        let states = ["policy_check", "route_cas", "edge_propagating", "healthy"];
        for (event, state) in events().into_iter().zip(states) {
            p = advance(&p, event, Wall(2)).unwrap();
            assert_eq!(p.state.name(), state);
        }
        assert_eq!((p.attempt, p.epoch), (1, Some(Epoch(2))));
    }

    /// Every state against every event: exactly the documented exits.
    #[test]
    fn there_are_no_other_ways() {
        use PromotionState as S;
        let all = [
            (S::Requested, vec![S::PolicyCheck]),
            (S::PolicyCheck, vec![S::PolicyCheck, S::RouteCas, S::Failed]),
            (S::RouteCas, vec![S::RouteCas, S::EdgePropagating, S::RolledBack, S::Failed]),
            (S::EdgePropagating, vec![S::EdgePropagating, S::Healthy, S::RolledBack, S::Failed]),
            (S::Healthy, vec![]),
            (S::RolledBack, vec![]),
            (S::Failed, vec![]),
        ];
        for (state, exits) in all {
            let p = Promotion { state, ..sample() };
            let found: Vec<_> = events()
                .into_iter()
                .filter_map(|e| advance(&p, e, Wall(2)).ok().map(|p| p.state))
                .collect();
            assert_eq!(found, exits, "{state:?}");
        }
    }

    #[test]
    fn a_lost_executor_leaves_the_state_for_the_next() {
        let p = Promotion { state: PromotionState::RouteCas, attempt: 1, ..sample() };
        let p = advance(&p, PromotionEvent::Claimed, Wall(2)).unwrap();
        assert_eq!((p.state, p.attempt), (PromotionState::RouteCas, 2));
    }
}
