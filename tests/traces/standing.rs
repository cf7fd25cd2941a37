//! Ours: what a client is told that asks how its host's app stands.

use std::time::Duration;

use vango_edge::lifecycle::standing::{Standing, State};
use vango_edge::record::{AllocationState, WakeState};
use vango_edge::snapshot::EnvView;

use crate::given::World;

fn told(world: &World) -> (State, u64) {
    let Standing { state, retry_after } = Standing::of(&world.view(), world.now);
    (state, retry_after)
}

fn fill(view: &EnvView, of_ten: usize) {
    view.counters.set_waiting(view.contract.wake.max_held * of_ten / 10);
}

#[test]
fn an_app_is_asleep_then_starts_then_is_ready() {
    let mut world = World::asleep();
    assert_eq!(told(&world), (State::Asleep, 1));
    for state in [WakeState::WakeRequested, WakeState::Starting] {
        world.operation(state, 0);
        assert_eq!(told(&world), (State::Starting, 1), "{state:?}");
    }
    world.ready('a');
    assert_eq!(told(&world), (State::Ready, 0));
}

#[test]
fn a_failed_start_is_told_until_the_next_one_may_be_tried() {
    let mut world = World::asleep();
    world.operation(WakeState::Failed, 1);
    let until = world.view().operation.as_ref().unwrap().backoff_until.unwrap();
    let left = until.since(world.now);
    assert!(left > Duration::ZERO);
    let seconds = left.as_millis().div_ceil(1000) as u64;
    assert_eq!(told(&world), (State::Failed, seconds));
    world.after(left - Duration::from_millis(1));
    assert_eq!(told(&world), (State::Failed, 1), "never too early");
    world.after(Duration::from_millis(1));
    assert_eq!(told(&world), (State::Asleep, 1), "the next request tries it");
}

#[test]
fn the_fuller_the_queue_the_more_slowly_they_come() {
    let mut world = World::asleep();
    world.operation(WakeState::ReadinessWait, 0);
    for (of_ten, seconds) in [(0, 1), (5, 3), (10, 5), (20, 5)] {
        fill(&world.view(), of_ten);
        assert_eq!(told(&world), (State::Starting, seconds), "{of_ten}");
    }
    world.ready('a');
    for (of_ten, seconds) in [(0, 0), (1, 1), (10, 10), (20, 10)] {
        fill(&world.view(), of_ten);
        assert_eq!(told(&world), (State::Ready, seconds), "{of_ten}");
    }
}

#[test]
fn what_another_epoch_did_says_nothing() {
    let mut world = World::asleep();
    world.operation(WakeState::Failed, 1);
    world.deploy(2, vango_edge::id::Epoch(2));
    assert_eq!(told(&world), (State::Asleep, 1));
    // One that drains, or is frozen, takes no request: the next one takes it back.
    let mut world = World::hot();
    world.allocation('a', vango_edge::id::Epoch(1), 1, AllocationState::Frozen);
    assert_eq!(told(&world), (State::Asleep, 1));
}
