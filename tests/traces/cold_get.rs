//! Trace 2: `GET /dashboard` while the app is asleep.

use std::time::Duration;

use vango_edge::id::Epoch;
use vango_edge::lifecycle::journey::{Ask, Command, Event, Go, Journey, Look, Woke};
use vango_edge::lifecycle::reply::{Forwarded, Problem};
use vango_edge::lifecycle::trace::{HoldEnd, Outcome, QueueBound, Risk};
use vango_edge::record::{AllocationState, WakeState};

use crate::given::{Happens, Next, WALL, World, al, explain, lines, steps};
use crate::seed;

const TITLE: &str = "GET Page While Sleeping";

fn get() -> http::request::Builder {
    http::Request::builder().method("GET")
}

fn created() -> Woke {
    Woke::Operation { id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(), created: true }
}

/// A journey that waits for its wake.
fn held(world: &World) -> Journey {
    let mut journey = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    journey
}

#[test]
fn a_sleeping_page_is_woken_held_and_served() {
    let mut world = World::asleep();
    let mut journey = held(&world);

    world.after(Duration::from_micros(22_200));
    world.operation(WakeState::Hot, 0);
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
    world.after(Duration::from_millis(1));
    journey.served(200, world.now);

    assert_eq!(placed.allocation.id, al('a'));
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Route policy | /* (page) | safe",
            "Edge | Operation table | op-aaaaaaaaaaaaaaaa | created",
            "Runner | Artifact digest | sha256:010101010101 | al-aaaaaaaaaaaaaaaa: hot, artifact \
             0.2 ms, spawn 0.9 ms, ready 21.0 ms",
            "Edge | Wake operation state | hot | released after 22.2 ms",
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Regional runtime registry | al-aaaaaaaaaaaaaaaa generation 1 | no session",
            "Allocation | Vango session loop | status 200 | ",
        ]
    );
    seed::assert_contains(TITLE, &steps(&journey));
    assert_eq!(journey.trace.outcome, Outcome::Woken);
    assert_eq!(
        (journey.trace.risk().name().into(), journey.trace.decision().into()),
        seed::verdict(TITLE)
    );
}

#[test]
fn explaining_it_says_the_seeds_steps_and_wakes_nothing() {
    let world = World::asleep();
    let trace = explain(
        &world.publisher.reader().load(),
        world.facts(get(), "/dashboard"),
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    let taken: Vec<_> = trace.steps.iter().map(|s| s.text()).collect();
    seed::assert_contains(TITLE, &taken);
    assert_eq!((trace.outcome, trace.risk()), (Outcome::Woken, Risk::Medium));
    assert!(taken.iter().any(|s| s.value == "would be created"));
}

#[test]
fn a_wake_that_is_going_on_is_joined_without_asking_for_another() {
    for state in [WakeState::WakeRequested, WakeState::Starting, WakeState::ReadinessWait] {
        let mut world = World::asleep();
        world.operation(state, 0);
        let mut journey = world.begin(get(), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Hold), "{state:?}");
        assert!(lines(&journey)[2].ends_with("op-aaaaaaaaaaaaaaaa | attached"));
    }
}

#[test]
fn a_missed_budget_is_answered_with_the_operation_while_the_wake_goes_on() {
    let mut world = World::asleep();
    let mut journey = held(&world);
    world.after(Duration::from_secs(10));
    world.operation(WakeState::ReadinessWait, 0);
    let end = HoldEnd::DeadlinePassed;
    let reply = journey.held(end, Some(&world.view()), world.now, 3).unwrap();
    assert_eq!((reply.problem, reply.status), (Problem::WakeTimeout, 503));
    assert_eq!(reply.forwarded, Forwarded::No);
    assert_eq!(reply.operation.unwrap().as_str(), "op-aaaaaaaaaaaaaaaa");
    assert!(reply.retry_after.is_some_and(|s| s >= 1));
    assert_eq!(journey.trace.outcome, Outcome::Refused(Problem::WakeTimeout));
}

#[test]
fn a_flapping_start_does_not_move_the_deadline() {
    let mut world = World::asleep();
    let mut journey = held(&world);
    let deadline = journey.deadline();
    for _ in 0..9 {
        world.after(Duration::from_secs(1));
        world.operation(WakeState::Starting, 0);
        assert_eq!(journey.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
        assert!(matches!(world.decide(&mut journey), Next::Hold));
        assert_eq!(journey.deadline(), deadline);
    }
    world.after(Duration::from_secs(1));
    assert_eq!(journey.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!(reply.problem, Problem::WakeTimeout);
}

#[test]
fn a_failed_start_is_told_to_those_who_wait_and_at_once_to_those_who_come() {
    let mut world = World::asleep();
    let mut waiting = held(&world);
    world.after(Duration::from_millis(50));
    world.operation(WakeState::Failed, 1);
    assert_eq!(waiting.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
    let mut newcomer = world.begin(get(), "/dashboard");
    for journey in [&mut waiting, &mut newcomer] {
        let Next::Reply(reply) = world.decide(journey) else { panic!("answered") };
        assert_eq!((reply.problem, reply.status), (Problem::WakeFailed, 503));
        assert_eq!(reply.retry_after, Some(4));
        assert!(reply.detail.contains("it exited before it was ready"));
        assert!(!reply.detail.contains("exit code 3"), "the operator's detail is not told");
    }
    // The back-off is over: the next one tries again.
    world.after(Duration::from_secs(4));
    let mut later = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut later), Next::Wake { hold: true }));
}

#[test]
fn an_operation_of_another_epoch_says_nothing() {
    let mut world = World::asleep();
    world.operation(WakeState::Failed, 1);
    world.deploy(2, Epoch(2));
    let mut journey = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
}

#[test]
fn a_full_queue_is_answered_and_names_its_bound() {
    for bound in
        [QueueBound::Environment, QueueBound::Node, QueueBound::Bytes, QueueBound::Connections]
    {
        let world = World::asleep();
        let mut journey = world.begin(get(), "/dashboard");
        assert_eq!(journey.next_command(), Command::Look);
        let look = Look { view: Some(world.view()), pick: 0, reserves: true };
        let enter = journey.on(Event::Look(look), world.now);
        assert_eq!(enter, Command::Do(Ask::Enter { wakes: true }));
        let end = HoldEnd::QueueFull(bound);
        let reply = journey.held(end, Some(&world.view()), world.now, 0).unwrap();
        assert_eq!((reply.problem, reply.status), (Problem::HoldQueueFull, 503));
        assert!(reply.detail.contains(bound.name()) && reply.retry_after.is_some());
    }
}

#[test]
fn a_client_that_left_is_never_forwarded() {
    let world = World::asleep();
    let mut journey = held(&world);
    assert_eq!(journey.held(HoldEnd::ClientLeft, Some(&world.view()), world.now, 0), None);
    assert!(journey.is_gone());
    assert_eq!(journey.next_command(), Command::Go(Go::Stop));
    assert_eq!(journey.trace.outcome, Outcome::ClientLeft);
    assert!(lines(&journey).last().unwrap().contains("not forwarded"));
}

#[test]
fn a_grant_outside_the_owners_authority_is_not_used() {
    let mut world = World::hot();
    let mut journey = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.on(Event::Connected, world.now);
    let granted = journey.take_placement();
    assert!(granted.is_some());
    world.view().counters.set_waiting(1);
    let mut other = world.begin(get(), "/dashboard");
    assert!(matches!(world.decide(&mut other), Next::Hold));
    // Promoted while the grant was on its way.
    world.deploy(2, Epoch(2));
    let look = Look { view: Some(world.view()), pick: 0, reserves: true };
    other.on(Event::Held { end: HoldEnd::Released, granted, look }, world.now);
    assert!(matches!(world.decide(&mut other), Next::Wake { hold: true }));
}

/// The methods of IANA's registry that are safe, on every class of route: no key, no signature, held
/// when cold, and the same steps as a page's.
#[test]
fn what_is_safe_by_its_method_is_safe_on_every_class() {
    let paths = ["/dashboard", "/vango/live", "/actions/plain", "/actions/edge", "/actions/save"]
        .into_iter()
        .chain(["/webhooks/stripe", "/webhooks/lost", "/webhooks/defer", "/webhooks/block"]);
    for path in paths {
        for method in ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH", "QUERY"] {
            let world = World::asleep();
            let mut journey = world.begin(http::Request::builder().method(method), path);
            let next = world.decide(&mut journey);
            assert!(matches!(next, Next::Wake { hold: true }), "{method} {path}: {next:?}");
            assert_eq!(journey.secret_wanted(), None, "{method} {path} is no delivery");
            assert!(!journey.reads_whole_body() && journey.claim().is_none());
            assert_eq!(journey.evidence_of(Some(200), world.now, WALL), None);
            assert_eq!(journey.delivery_metric(Some(503)), None);
        }
    }
}

#[test]
fn what_an_app_may_read_as_another_method_is_not_safe() {
    for field in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        // To PHP and other CGI-like servers these are the first one.
        "x.http.method.override",
        "x-http-method.override",
        "x~http*method!override",
    ] {
        let asks = || http::Request::builder().header(field, "POST");
        let world = World::hot();
        for (path, problem) in [
            ("/webhooks/stripe", Problem::WebhookSignatureInvalid),
            ("/actions/edge", Problem::IdempotencyKeyMissing),
            ("/actions/save", Problem::IdempotencyKeyMissing),
        ] {
            let mut journey = world.begin(asks(), path);
            let Next::Reply(reply) = world.decide(&mut journey) else { panic!("{path}") };
            assert_eq!(reply.problem, problem, "{field} {path}");
        }
        let world = World::asleep();
        let mut journey = world.begin(asks(), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }), "{field}");
    }
    let world = World::asleep();
    for method in ["TRACE", "get", "FROBNICATE"] {
        let mut journey = world.begin(http::Request::builder().method(method), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }), "{method}");
    }
}
