//! The hold queue on its own, over a world made of records.

#[path = "traces/given.rs"]
#[expect(dead_code, reason = "the golden tests use the rest")]
mod given;

use std::sync::Arc;
use std::time::Duration;

use given::World;
use vango_edge::clock::{ManualClock, SeededEntropy};
use vango_edge::id::Epoch;
use vango_edge::lifecycle::journey::{Choice, Placement, Wish, choose};
use vango_edge::record::{AllocationState, WakeState, key};
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

/// Takes the place of allocation `a` as a request that is at once placed does.
fn take(world: &World) -> Placement {
    match choose(&world.view(), &Wish::default(), &[], 0, true) {
        Choice::Place(placement) => placement,
        other => panic!("{other:?}"),
    }
}

async fn granted(ticket: &mut Ticket) -> Placement {
    match tokio::time::timeout(Duration::from_secs(5), ticket.released()).await.unwrap() {
        Release::Granted(placement) => placement,
        other => panic!("{other:?}"),
    }
}

/// Both places are taken. Without the look that giving back one takes, those who wait would wait on.
#[tokio::test]
async fn a_place_that_is_given_back_goes_to_the_first_who_waits_and_one_that_never_arrives_to_the_next()
 {
    let world = World::hot();
    let queues = queues(&world);
    let (taken, _other) = (take(&world), take(&world));
    let (first, mut second) = (enter(&world, &queues), enter(&world, &queues));
    drop(taken);
    assert_eq!(world.view().counters.waiting(), 1, "the first has it on its way");
    // It leaves before it hears of it.
    drop(first);
    let placement = granted(&mut second).await;
    assert_eq!((world.view().counters.waiting(), world.view().ready[0].load.in_flight()), (0, 2));
    let mut third = enter(&world, &queues);
    drop(placement);
    granted(&mut third).await;
}

/// The counters are others then.
#[tokio::test]
async fn a_place_of_an_environment_that_had_no_owner_for_a_while_is_given_on_too() {
    let mut world = World::hot();
    let queues = queues(&world);
    let (_one, _other) = (take(&world), take(&world));
    let mut waits = enter(&world, &queues);
    let (environment, before) = (world.view().environment.clone(), world.view());
    let host = "studylab.localhost".parse().unwrap();
    world.put(&key::owner(&host, "/"), None);
    world.deploy(1, Epoch(2));
    world.allocation('b', Epoch(2), 1, AllocationState::Ready);
    assert!(!Arc::ptr_eq(&before.counters, &world.view().counters));
    queues.pump(&environment);
    let placement = granted(&mut waits).await;
    let _another = take(&world);
    let mut next = enter(&world, &queues);
    drop(placement);
    granted(&mut next).await;
}
