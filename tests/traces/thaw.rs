//! A page of an app that sleeps frozen: a wake like any other, without a start.

use std::time::Duration;

use vango_edge::id::Epoch;
use vango_edge::lifecycle::journey::Woke;
use vango_edge::lifecycle::trace::{HoldEnd, Outcome};
use vango_edge::record::{AllocationState, WakePhases, WakeState};

use crate::given::{Happens, Next, World, al, explain, lines, steps};

fn get() -> http::request::Builder {
    http::Request::builder().method("GET")
}

fn frozen() -> World {
    let mut world = World::asleep();
    world.operation(WakeState::Hot, 0);
    world.allocation('a', Epoch(1), 1, AllocationState::Frozen);
    world
}

fn wake() -> Woke {
    Woke::Operation { id: "op-bbbbbbbbbbbbbbbb".parse().unwrap(), created: true }
}

#[test]
fn a_frozen_app_is_taken_back_and_serves() {
    let mut world = frozen();
    let mut journey = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&wake(), world.now), None);

    world.after(Duration::from_micros(900));
    let phases = WakePhases { reserve_us: Some(200), thaw_us: Some(300), ..Default::default() };
    world.operation_with(WakeState::Hot, 0, phases);
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
    journey.served(200, world.now);

    assert_eq!(placed.allocation.id, al('a'));
    assert_eq!(journey.trace.outcome, Outcome::Woken);
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Route policy | /* (page) | safe",
            "Edge | Operation table | op-bbbbbbbbbbbbbbbb | created",
            "Runner | Regional runtime registry | al-aaaaaaaaaaaaaaaa | hot, thaw 0.3 ms",
            "Edge | Wake operation state | hot | released after 0.9 ms",
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Regional runtime registry | al-aaaaaaaaaaaaaaaa generation 1 | no session",
            "Allocation | Vango session loop | status 200 | ",
        ]
    );
    assert_eq!(steps(&journey)[3].action, "Take back the allocation that is still in memory.");
}

#[test]
fn its_pooled_connections_of_before_are_not_used_again() {
    let mut world = frozen();
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    let before = world.view().ready[0].pool_key;
    world.allocation('a', Epoch(1), 1, AllocationState::Frozen);
    world.allocation_of('a', Epoch(1), 1, AllocationState::Ready, "op-bbbbbbbbbbbbbbbb");
    assert_ne!(world.view().ready[0].pool_key, before);
}

#[test]
fn explain_says_what_would_be_taken_back() {
    let world = frozen();
    let trace = explain(
        &world.publisher.reader().load(),
        world.facts(get(), "/x"),
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    let start = trace.steps.iter().map(|s| s.text()).find(|s| s.actor == "Runner").unwrap();
    assert_eq!(
        (start.value.as_str(), start.detail.as_str()),
        (al('a').as_str(), "would be taken back")
    );
}

#[test]
fn another_epochs_or_artifacts_allocation_is_not_taken_back() {
    let mut world = World::asleep();
    world.allocation('a', Epoch(2), 1, AllocationState::Frozen);
    world.allocation('b', Epoch(1), 2, AllocationState::Frozen);
    assert!(world.view().in_memory().is_none());
}
