//! Sleeping, freezing, retiring and inheriting.

use super::*;
use crate::clock::Wall;
use crate::contract::{Contract, Protocol};
use crate::id::Digest;

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

#[test]
fn requests_and_sockets_have_the_drain_timeout() {
    let external =
        Contract::external("studylab".parse().unwrap(), Protocol::Http1, Vec::new(), 1, 1);
    let ms = Duration::from_millis;
    let process = Process { stop_timeout: ms(100), drain_timeout: ms(5000), ..external.process };
    for (in_flight, sockets, waited, step) in [
        (0, 0, 0, Retiring::End),
        (1, 0, 100, Retiring::Wait),
        (1, 0, 4999, Retiring::Wait),
        (1, 0, 5000, Retiring::Cut),
        (0, 1, 100, Retiring::Wait),
        (1, 1, 5999, Retiring::Wait),
        (0, 1, 5999, Retiring::Wait),
        (0, 1, 6000, Retiring::Cut),
        (0, 0, 6000, Retiring::End),
    ] {
        let found = retire(in_flight, sockets, ms(waited), &process);
        assert_eq!(found, step, "{in_flight} {sockets} {waited}");
    }
}

fn allocation(state: AllocationState) -> Allocation {
    Allocation {
        id: "al-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: "studylab".parse().unwrap(),
        generation: crate::id::Generation(3),
        epoch: Epoch(1),
        digest: Digest::from_bytes([1; 32]),
        state,
        address: Some("127.0.0.1:4000".parse().unwrap()),
        process: Some(crate::record::Process {
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
