//! The hold queue on its own, over a world made of records.

#[path = "traces/given.rs"]
#[expect(dead_code, reason = "the golden tests use the rest")]
mod given;

use std::sync::Arc;
use std::time::Duration;

use given::World;
use vango_edge::clock::{ManualClock, SeededEntropy};
use vango_edge::id::Epoch;
use vango_edge::lifecycle::place::Wish;
use vango_edge::store::record::{AllocationState, WakeState};
use vango_edge::wake::hold::{HoldLimits, HoldQueues, Release, Ticket};

fn queues(world: &World) -> Arc<HoldQueues> {
    let limits = HoldLimits { max_held: 1000, max_held_bytes: 1 << 20 };
    let reader = world.publisher.reader();
    let (clock, entropy) = (Arc::new(ManualClock::new()), Arc::new(SeededEntropy::new(1)));
    HoldQueues::new(limits, reader, clock, entropy, Box::new(|_| {}))
}

fn enter(world: &World, queues: &Arc<HoldQueues>) -> Ticket {
    queues.enter(&world.view(), 10, Wish::default(), Vec::new(), true, true).unwrap()
}

/// Empty queues are forgotten. Who was given a place out of one, and drops its ticket after the next
/// queue has begun, leaves everybody in that one alone.
#[tokio::test]
async fn a_ticket_of_a_queue_that_is_gone_leaves_nobody_elses_place() {
    let mut world = World::asleep();
    world.operation(WakeState::ReadinessWait, 0);
    let queues = queues(&world);
    let mut first = enter(&world, &queues);
    let left = enter(&world, &queues);
    drop(left);
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    queues.pump(&world.view().environment);
    let Release::Granted(grant) = first.released().await else { panic!("a place") };
    // A waiter comes and goes: the queue is empty, and forgotten.
    world.gone('a');
    drop(enter(&world, &queues));
    let mut second = enter(&world, &queues);
    drop(first);
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    queues.pump(&world.view().environment);
    let told = tokio::time::timeout(Duration::from_secs(5), second.released()).await.unwrap();
    assert!(matches!(told, Release::Granted(_)), "{told:?}");
    drop(grant);
    drop(second);
    assert_eq!((queues.held(), queues.held_bytes()), (0, 0));
}
