//! Trace 1: `GET /dashboard` while the app is hot.

use std::time::Duration;

use vango_edge::id::Epoch;
use vango_edge::lifecycle::reply::Problem;
use vango_edge::lifecycle::trace::{HoldEnd, Outcome, Risk};
use vango_edge::record::AllocationState;

use crate::given::{Happens, Next, World, al, explain, lines, prior, steps};
use crate::seed;

const TITLE: &str = "GET Page While Hot";

fn get() -> http::request::Builder {
    http::Request::builder().method("GET")
}

#[test]
fn a_hot_page_is_served_directly() {
    let world = World::hot();
    let mut journey = world.begin(get(), "/dashboard");

    let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
    journey.served(200, world.now);

    assert_eq!(placed.allocation.id, al('a'));
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Regional runtime registry | al-aaaaaaaaaaaaaaaa generation 1 | no session",
            "Allocation | Vango session loop | status 200 | ",
            "Control plane | Operation table unchanged | epoch 1 | ",
        ]
    );
    let taken: Vec<_> = steps(&journey).into_iter().map(|s| (s.actor, s.action, s.truth)).collect();
    assert_eq!(taken, seed::trace(TITLE), "step for step as the seed has it");
    let named: Vec<_> = steps(&journey).into_iter().map(|s| (s.kind, s.values)).collect();
    let named = serde_json::to_value(named).unwrap();
    let artifact = vango_edge::id::Digest::from_bytes([1; 32]).to_string();
    let (owner, at) = ("studylab/production", "al-aaaaaaaaaaaaaaaa");
    assert_eq!(
        named,
        serde_json::json!([
            ["load-owner", {"environment": owner, "epoch": 1, "artifact": artifact, "ready": 1}],
            ["select", {"allocation": at, "generation": 1, "address": "127.0.0.1:4000"}],
            ["run", {"status": 200}],
            ["no-mutation", {"epoch": 1}],
        ]),
        "what programs read of it"
    );
    assert_eq!(journey.trace.outcome, Outcome::Hot);
    assert_eq!(
        (journey.trace.risk().name().into(), journey.trace.decision().into()),
        seed::verdict(TITLE)
    );
}

#[test]
fn explaining_it_says_the_same_and_takes_no_place() {
    let world = World::hot();
    let trace = explain(
        &world.publisher.reader().load(),
        world.facts(get(), "/dashboard"),
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    let taken: Vec<_> =
        trace.steps.iter().map(|s| s.text()).map(|s| (s.actor, s.action, s.truth)).collect();
    assert_eq!(taken, seed::trace(TITLE));
    assert_eq!(trace.risk(), Risk::Low);
    assert_eq!(world.view().ready[0].load.in_flight(), 0);
    assert_eq!(world.view().ready[0].load.total(), 0);
}

#[test]
fn the_session_keeps_its_allocation_and_is_placed_again_when_that_is_gone() {
    let mut world = World::hot();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    for _ in 0..20 {
        let mut facts = world.facts(get(), "/dashboard");
        facts.affinity = Some(prior('b'));
        let classified =
            vango_edge::lifecycle::enter::classify(&world.publisher.reader().load(), &facts)
                .unwrap();
        let mut journey = vango_edge::lifecycle::journey::Journey::begin(facts, classified);
        let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
        assert_eq!(placed.allocation.id, al('b'));
        assert!(lines(&journey)[1].ends_with("the session's own"));
    }
    world.gone('b');
    let mut facts = world.facts(get(), "/dashboard");
    facts.affinity = Some(prior('b'));
    let classified =
        vango_edge::lifecycle::enter::classify(&world.publisher.reader().load(), &facts).unwrap();
    let mut journey = vango_edge::lifecycle::journey::Journey::begin(facts, classified);
    let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
    assert_eq!(placed.allocation.id, al('a'));
    assert!(lines(&journey)[1].ends_with("gone; placed again"));
}

#[test]
fn nothing_outside_the_owners_epoch_digest_or_state_gets_a_request() {
    for (epoch, digest, state) in [
        (Epoch(2), 1, AllocationState::Ready),
        (Epoch(1), 2, AllocationState::Ready),
        (Epoch(1), 1, AllocationState::Draining),
        (Epoch(1), 1, AllocationState::Starting),
        (Epoch(1), 1, AllocationState::Planned),
    ] {
        let mut world = World::asleep();
        world.allocation('a', epoch, digest, state);
        let mut journey = world.begin(get(), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }), "{state:?}");
    }
}

#[test]
fn after_a_promotion_only_the_new_epoch_is_used_and_an_older_owner_never_comes_back() {
    let mut world = World::hot();
    world.deploy(2, Epoch(2));
    let mut journey = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    world.deploy(1, Epoch(1));
    assert_eq!(world.view().owner.epoch, Epoch(2));
}

#[test]
fn over_the_concurrency_requests_are_held_and_released_in_order() {
    let world = World::hot();
    let mut placed = Vec::new();
    for _ in 0..2 {
        let mut journey = world.begin(get(), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
        placed.push(journey);
    }
    let mut third = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut third), Next::Hold));
    // One waits: a newcomer does not overtake it, even when a place is free.
    world.view().counters.set_waiting(1);
    placed.pop();
    let mut fourth = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut fourth), Next::Hold));
    // The one that waited may.
    assert_eq!(third.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut third), Next::Forward(_)));
}

#[test]
fn a_refused_connection_is_tried_elsewhere_and_then_answered() {
    let mut world = World::hot();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    let mut journey = world.begin(get(), "/dashboard");
    let Next::Forward(first) = world.decide(&mut journey) else { panic!("forward") };
    assert!(journey.connect_failed(world.now).is_none());
    let Next::Forward(second) = world.decide(&mut journey) else { panic!("forward") };
    assert_ne!(first.allocation.id, second.allocation.id);
    assert!(journey.connect_failed(world.now).is_none());
    // Both refused: it waits for the registry to change, within its deadline.
    assert!(matches!(world.decide(&mut journey), Next::Hold));
    world.after(Duration::from_secs(11));
    let end = HoldEnd::DeadlinePassed;
    let reply = journey.held(end, Some(&world.view()), world.now, 0).unwrap();
    assert_eq!((reply.problem, reply.status), (Problem::NotForwarded, 503));
    assert!(reply.retry_after.is_some());
}

#[test]
fn an_unknown_host_has_no_owner() {
    let world = World::hot();
    let request = http::Request::builder().header("host", "evil.localhost").body(()).unwrap();
    let id = vango_edge::id::RequestId::random(&vango_edge::clock::SeededEntropy::new(1));
    let facts =
        vango_edge::lifecycle::facts::Facts::parse(&request.into_parts().0, b"/", id, world.now)
            .unwrap();
    let trace = explain(
        &world.publisher.reader().load(),
        facts,
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    assert_eq!(trace.outcome, Outcome::Refused(Problem::NoRoute));
    let text = trace.steps[0].text();
    assert_eq!((text.truth.as_str(), text.value.as_str()), ("RouteOwner", "none"));
    assert!(trace.decision().starts_with("Refuse"));
}
