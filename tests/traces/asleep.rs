//! Requests that their contract declares not worth a wake: health checks, crawlers.

use vango_edge::lifecycle::facts::ErrorForm;
use vango_edge::lifecycle::journey::Journey;
use vango_edge::lifecycle::page::Brand;
use vango_edge::lifecycle::reply::{Forwarded, Problem, Reply};
use vango_edge::lifecycle::trace::Outcome;
use vango_edge::record::WakeState;

use crate::given::{Next, World, explain, lines};

fn contract() -> String {
    let routes = "[[route]]\npath = \"/healthz\"\nwakes = false\nasleep_status = 200\n\
                  [[route]]\npath = \"/status\"\nwakes = false\n[[route]]\npath = \"/*\"";
    crate::given::CONTRACT
        .replace("[[route]]\npath = \"/*\"", routes)
        .replace("budget = \"10s\"", "budget = \"10s\"\nignore_agents = [\"GoogleBot\"]")
}

fn asleep() -> World {
    World::asleep_with(&contract())
}

fn get(agent: &str) -> http::request::Builder {
    http::Request::builder().method("GET").header("user-agent", agent)
}

fn answered(world: &World, agent: &str, path: &str) -> (Journey, Reply) {
    let mut journey = world.begin(get(agent), path);
    assert!(!journey.may_wake());
    match world.decide(&mut journey) {
        Next::Reply(reply) => (journey, reply),
        next => panic!("{next:?}"),
    }
}

#[test]
fn a_request_that_does_not_wake_is_answered_at_once() {
    let (journey, reply) = answered(&asleep(), "curl/8", "/status");
    assert_eq!((reply.status, reply.problem, reply.retry_after), (503, Problem::Asleep, Some(1)));
    assert_eq!(reply.forwarded, Forwarded::No);
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Route policy | /status (page) | safe",
            "Edge | Route policy | asleep | status 503",
        ]
    );
    assert_eq!(journey.trace.outcome, Outcome::Refused(Problem::Asleep));
    assert!(journey.trace.decision().starts_with("Leave asleep"));
}

#[test]
fn a_health_check_is_told_what_its_contract_says() {
    let (_, reply) = answered(&asleep(), "kube-probe/1.30", "/healthz");
    assert_eq!((reply.status, reply.retry_after), (200, None));
    let id = vango_edge::id::RequestId::random(&vango_edge::clock::SeededEntropy::new(1));
    let (kind, body) = reply.body(ErrorForm::Problem, id, Brand::plain());
    assert_eq!((kind, body.as_str()), ("text/plain; charset=utf-8", "asleep\n"));
    assert!(reply.headers("vango-edge").iter().all(|(name, _)| *name != "proxy-status"));
}

#[test]
fn a_declared_client_wakes_nothing_by_any_route_and_joins_no_wake() {
    let mut world = asleep();
    let bot = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";
    assert_eq!(answered(&world, bot, "/dashboard").1.problem, Problem::Asleep);
    world.operation(WakeState::ReadinessWait, 0);
    assert_eq!(answered(&world, bot, "/dashboard").1.problem, Problem::Asleep);
    let mut other = world.begin(get("Mozilla/5.0"), "/dashboard");
    assert!(other.may_wake() && matches!(world.decide(&mut other), Next::Hold));
}

#[test]
fn when_it_is_up_they_are_served_and_never_held() {
    let mut world = asleep();
    world.ready('a');
    let mut served: Vec<_> = Vec::new();
    for _ in 0..2 {
        let mut journey = world.begin(get("curl/8"), "/status");
        assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
        served.push(journey);
    }
    let (_, reply) = answered(&world, "curl/8", "/status");
    assert_eq!((reply.status, reply.problem), (503, Problem::Saturated));
}

#[test]
fn explain_says_so_too() {
    let world = asleep();
    let facts = world.facts(get("curl/8"), "/status");
    let trace = explain(
        &world.publisher.reader().load(),
        facts,
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    assert_eq!(trace.outcome, Outcome::Refused(Problem::Asleep));
}
