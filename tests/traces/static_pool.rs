//! An app that this edge does not run: the same lifecycle over a static pool.

use std::sync::Arc;
use std::time::Duration;

use vango_edge::clock::SeededEntropy;
use vango_edge::contract::{Contract, Protocol};
use vango_edge::id::{Epoch, RequestId};
use vango_edge::lifecycle::enter::classify;
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::journey::Journey;
use vango_edge::lifecycle::reply::{Forwarded, Problem};
use vango_edge::lifecycle::trace::Outcome;
use vango_edge::snapshot::{EnvView, ExternalApp};

use crate::given::{CONTRACT, Happens, Next, World, explain, lines};

const ADDRESSES: [&str; 2] = ["127.0.0.1:3000", "127.0.0.1:3001"];

fn app(addresses: &[&str], hosts: &[&str], checked: bool) -> ExternalApp {
    let parsed = vango_edge::contract::parse(std::path::Path::new("x"), CONTRACT).unwrap();
    let name = "legacy".parse().unwrap();
    ExternalApp {
        environment: "legacy".parse().unwrap(),
        hosts: hosts.iter().map(|h| h.parse().unwrap()).collect(),
        contract: Arc::new(Contract::external(
            name,
            Protocol::Http1,
            parsed.routes,
            2,
            addresses.len() as u32,
        )),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        checked,
    }
}

fn world(checked: bool) -> World {
    let mut world = World::hot();
    world.publisher.externals(&[app(&ADDRESSES, &["legacy.localhost"], checked)], world.now);
    world
}

fn view(world: &World) -> Arc<EnvView> {
    Arc::clone(world.publisher.reader().load().host("legacy.localhost").unwrap())
}

fn facts(world: &World, request: http::request::Builder, path: &str) -> Facts {
    let (parts, ()) = request.header("host", "legacy.localhost").body(()).unwrap().into_parts();
    let id = RequestId::random(&SeededEntropy::new(1));
    Facts::parse(&parts, path.as_bytes(), id, world.now).unwrap()
}

fn begin(world: &World, method: &str, path: &str) -> Journey {
    let facts = facts(world, http::Request::builder().method(method), path);
    let classified = classify(&world.publisher.reader().load(), &facts).unwrap();
    Journey::begin(facts, classified)
}

fn decide(world: &World, journey: &mut Journey) -> Next {
    journey.decide(Some(&view(world)), world.now, 0)
}

#[test]
fn a_page_is_served_from_the_pool() {
    let world = world(false);
    let mut journey = begin(&world, "GET", "/dashboard");
    let Next::Forward(placed) = decide(&world, &mut journey) else { panic!("forward") };
    journey.served(200, world.now);
    let (id, address) = (&placed.allocation.id, placed.allocation.address.unwrap());
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | legacy/production epoch 1 | static pool, 2 of 2 up".to_owned(),
            format!("Edge | Regional runtime registry | {id} static pool {address} | no session"),
            "Allocation | Vango session loop | status 200 | ".to_owned(),
            "Control plane | Operation table unchanged | epoch 1 | ".to_owned(),
        ]
    );
    assert!(placed.allocation.headers.iter().all(|(name, _)| name != "vango-edge-artifact"));
}

#[test]
fn what_was_not_looked_at_yet_or_is_down_gets_nothing() {
    let world = world(true);
    let mut journey = begin(&world, "GET", "/dashboard");
    let Next::Reply(reply) = decide(&world, &mut journey) else { panic!("answer") };
    assert_eq!((reply.status, reply.problem), (503, Problem::NotForwarded));
    assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, Some(1)));
    assert_eq!(journey.trace.outcome, Outcome::Refused(Problem::NotForwarded));

    view(&world).ready[1].load.set_down(false);
    for pick in 0..16 {
        let mut journey = begin(&world, "POST", "/actions/plain");
        match journey.decide(Some(&view(&world)), world.now, pick) {
            Next::Forward(placed) => {
                assert_eq!(placed.allocation.address.unwrap().to_string(), ADDRESSES[1]);
            }
            next => panic!("{next:?}"),
        }
    }
}

#[test]
fn who_refuses_a_connection_is_passed_over_for_any_method_and_all_refusing_is_said_at_once() {
    let world = world(false);
    let mut journey = begin(&world, "POST", "/actions/plain");
    let Next::Forward(first) = decide(&world, &mut journey) else { panic!("forward") };
    assert_eq!(journey.connect_failed(world.now), None);
    let Next::Forward(second) = decide(&world, &mut journey) else { panic!("forward") };
    assert_ne!(first.allocation.id, second.allocation.id);
    assert_eq!(journey.connect_failed(world.now), None);
    let Next::Reply(reply) = decide(&world, &mut journey) else { panic!("answer") };
    assert_eq!((reply.problem, reply.forwarded), (Problem::NotForwarded, Forwarded::No));
}

#[test]
fn the_action_rules_are_the_contracts() {
    let world = world(false);
    let mut journey = begin(&world, "POST", "/actions/save");
    let Next::Reply(reply) = decide(&world, &mut journey) else { panic!("answer") };
    assert_eq!(reply.problem, Problem::IdempotencyKeyMissing);
}

#[test]
fn a_full_pool_holds_and_one_that_is_down_at_the_deadline_says_so() {
    let mut world = world(false);
    let mut placed = Vec::new();
    for _ in 0..4 {
        let mut journey = begin(&world, "GET", "/x");
        assert!(matches!(decide(&world, &mut journey), Next::Forward(_)));
        placed.push(journey);
    }
    let mut journey = begin(&world, "GET", "/x");
    assert!(matches!(decide(&world, &mut journey), Next::Hold));
    view(&world).ready.iter().for_each(|a| a.load.set_down(true));
    world.after(Duration::from_secs(11));
    let end = vango_edge::lifecycle::trace::HoldEnd::DeadlinePassed;
    let reply = journey.held(end, Some(&view(&world)), world.now, 0).unwrap();
    assert_eq!(reply.problem, Problem::NotForwarded);
}

#[test]
fn a_reload_keeps_the_counters_of_what_stays() {
    let mut world = world(true);
    let before = view(&world);
    before.ready.iter().for_each(|a| a.load.set_down(false));
    let app = app(&["127.0.0.1:3001", "127.0.0.1:3002"], &["legacy.localhost"], true);
    world.publisher.externals(&[app], world.now);
    let after = view(&world);
    assert_eq!(before.ready[1].id, after.ready[0].id);
    assert!(Arc::ptr_eq(&before.ready[1].load, &after.ready[0].load));
    assert!(!after.ready[0].load.is_down() && after.ready[1].load.is_down());
    world.publisher.externals(&[], world.now);
    assert!(world.publisher.reader().load().host("legacy.localhost").is_none());
}

#[test]
fn a_host_that_the_configuration_gives_to_such_an_app_is_taken_and_given_back() {
    let mut world = world(false);
    let both = app(&ADDRESSES, &["legacy.localhost", "studylab.localhost"], false);
    world.publisher.externals(&[both], world.now);
    assert!(world.view().external);
    // A record that still says otherwise changes nothing.
    world.deploy(2, Epoch(2));
    assert!(world.view().external);
    world.publisher.externals(&[], world.now);
    assert!(!world.view().external);
    assert_eq!(world.view().owner.epoch, Epoch(2));
}

#[test]
fn explain_names_the_pool() {
    let world = world(false);
    let facts = facts(&world, http::Request::builder().method("GET"), "/x");
    let trace = explain(
        &world.publisher.reader().load(),
        facts,
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    assert_eq!(trace.outcome, Outcome::Hot);
    assert!(trace.steps.iter().any(|s| s.text().value.contains("static pool 127.0.0.1:300")));
}
