//! What becomes of allocations that an earlier process of this node recorded.

use crate::store::record::{Allocation, AllocationState, RouteOwner};

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
mod tests {
    use super::*;
    use crate::clock::Wall;
    use crate::id::{Digest, Epoch};

    fn allocation(state: AllocationState) -> Allocation {
        Allocation {
            id: "al-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: "studylab".parse().unwrap(),
            generation: crate::id::Generation(3),
            epoch: Epoch(1),
            digest: Digest::from_bytes([1; 32]),
            state,
            address: Some("127.0.0.1:4000".parse().unwrap()),
            process: Some(crate::store::record::Process {
                pid: 1,
                start_time: 1,
                boot_id: "b".into(),
                cgroup: None,
            }),
            operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            created: Wall(0),
            ready: Some(Wall(0)),
        }
    }

    #[test]
    fn only_what_is_ready_under_the_owners_authority_is_adopted() {
        let owner = RouteOwner {
            host: "a".parse().unwrap(),
            path: "/".into(),
            environment: "studylab".parse().unwrap(),
            deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            digest: Digest::from_bytes([1; 32]),
            epoch: Epoch(1),
        };
        let of = |a: &Allocation| inherited(a, Some(&owner));
        let ready = allocation(AllocationState::Ready);
        assert_eq!(of(&ready), Inherited::Adopt);
        assert_eq!(of(&allocation(AllocationState::Frozen)), Inherited::Adopt);
        let ends = |a: &Allocation| matches!(of(a), Inherited::End(_));
        for state in [
            AllocationState::Planned,
            AllocationState::Starting,
            AllocationState::Draining,
            AllocationState::Stopping,
        ] {
            assert!(ends(&allocation(state)), "{state:?}");
        }
        assert!(ends(&Allocation { epoch: Epoch(2), ..ready.clone() }));
        assert!(ends(&Allocation { digest: Digest::from_bytes([2; 32]), ..ready.clone() }));
        assert!(ends(&Allocation { process: None, ..ready.clone() }));
        assert!(matches!(inherited(&ready, None), Inherited::End(_)));
    }
}
