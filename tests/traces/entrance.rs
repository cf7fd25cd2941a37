//! Who answers a request, before it is any app's: the order of `lifecycle::enter`.

use std::sync::Arc;
use std::time::Duration;

use vango_edge::clock::Wall;
use vango_edge::lifecycle::access::{Guess, HEADER, PreviewPolicy};
use vango_edge::lifecycle::answer::Answer;
use vango_edge::lifecycle::enter::{Arrival, Entered, HttpsRedirect, Policies, enter};
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::origin::Origin;
use vango_edge::lifecycle::reply::{Problem, Reply};
use vango_edge::lifecycle::validation::Validations;

use crate::given::{PREVIEW, World};

const PRODUCTION: &str = "studylab.localhost";

/// HTTPS is on port 8443, and previews are behind a token.
fn policies() -> Policies {
    let policy = PreviewPolicy { tokens: vec![b"right".to_vec()], noindex: true };
    let previews = [("studylab".parse().unwrap(), policy)].into();
    Policies { redirect: HttpsRedirect::ToPort(8443), previews, ..Policies::default() }
}

struct Ask<'a> {
    method: &'a str,
    host: &'a str,
    target: &'a str,
    secure: bool,
    token: Option<&'a str>,
    accept: &'a str,
    refused: Option<Reply>,
    locked: Option<Duration>,
}

fn ask<'a>(host: &'a str, target: &'a str, secure: bool, token: Option<&'a str>) -> Ask<'a> {
    let (accept, refused, locked) = ("*/*", None, None);
    Ask { method: "GET", host, target, secure, token, accept, refused, locked }
}

fn entered(ask: Ask<'_>) -> Entered {
    let mut world = World::asleep();
    world.deploy_preview();
    let mut request = http::Request::builder().method(ask.method).header("host", ask.host);
    request = request.header("accept", ask.accept);
    if let Some(token) = ask.token {
        request = request.header(HEADER, token);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let id = vango_edge::id::RequestId::random(&vango_edge::clock::SeededEntropy::new(1));
    let mut facts = Facts::parse(&parts, ask.target.as_bytes(), id, world.now).unwrap();
    let client = std::net::Ipv4Addr::new(192, 0, 2, 1).into();
    facts.origin = Some(Arc::new(Origin::new(client, ask.secure)));
    let (headers, refused) = (&parts.headers, ask.refused);
    let arrival = Arrival {
        facts,
        headers,
        refused,
        locked: &|_| ask.locked,
        validations: &Validations::default(),
    };
    let snapshot = world.publisher.reader().load().clone();
    enter(arrival, &snapshot, &policies(), world.now, Wall(0))
}

/// The edge's answer and the steps to it.
fn told(ask: Ask<'_>) -> (Reply, Vec<String>, Option<Guess>) {
    let Entered::Edge(answered) = entered(ask) else { panic!("the edge answers") };
    let steps = answered.trace.steps.iter().map(|s| s.text().action).collect();
    let Answer::Reply(reply) = answered.answer else { panic!("no welcome") };
    (reply, steps, answered.guess)
}

#[test]
fn plain_http_is_sent_on_before_a_token_is_looked_at() {
    for token in [None, Some("wrong"), Some("right")] {
        let (reply, _, guess) = told(ask(PREVIEW, "/a?vango_preview=right", false, token));
        assert_eq!((reply.problem, guess), (Problem::HttpsRequired, None), "{token:?}");
        let location = format!("https://{PREVIEW}:8443/a?vango_preview=right");
        assert_eq!(reply.location, Some(location), "it is shown again there");
    }
    let (reply, _, guess) = told(ask(PREVIEW, "/a", true, Some("wrong")));
    assert_eq!((reply.problem, guess), (Problem::PreviewAccess, Some(Guess::Token)));
    let (reply, _, guess) = told(ask(PREVIEW, "/a", true, None));
    assert_eq!((reply.problem, guess), (Problem::PreviewAccess, None));
}

#[test]
fn a_providers_delivery_is_not_sent_on_and_its_token_goes_no_further() {
    let delivery = |host, target| Ask { method: "POST", ..ask(host, target, false, None) };
    let Entered::Route { showed_token: false, .. } =
        entered(delivery(PRODUCTION, "/webhooks/stripe"))
    else {
        panic!("it goes on")
    };
    let (reply, ..) = told(delivery(PREVIEW, "/webhooks/stripe"));
    assert_eq!(reply.problem, Problem::PreviewAccess);
    let Entered::Route { facts, showed_token: true, .. } =
        entered(delivery(PREVIEW, "/webhooks/stripe?a=1&vango_preview=right"))
    else {
        panic!("it goes on")
    };
    assert_eq!(facts.query.as_deref(), Some("a=1"));
    // A browser follows, and its cookie is for HTTPS then.
    let page = ask(PREVIEW, "/webhooks/stripe?vango_preview=right", false, None);
    let page = Ask { accept: "text/html", ..page };
    assert_eq!(told(page).0.problem, Problem::HttpsRequired);
}

#[test]
fn nothing_that_a_locked_client_shows_is_looked_at() {
    for token in [None, Some("wrong"), Some("right")] {
        let locked = Some(Duration::from_secs(9));
        let (reply, _, guess) = told(Ask { locked, ..ask(PREVIEW, "/a", true, token) });
        assert_eq!((reply.problem, guess), (Problem::TooManyAttempts, None), "{token:?}");
        let other = Ask { locked, ..ask(PRODUCTION, "/a", true, token) };
        assert!(matches!(entered(other), Entered::Route { .. }), "it has no token");
    }
}

#[test]
fn what_the_edge_answers_on_any_host_comes_first() {
    let trace = Ask { method: "TRACE", ..ask(PREVIEW, "/", false, None) };
    assert_eq!(told(trace).0.problem, Problem::MethodRefused);
    for host in [PRODUCTION, PREVIEW, "evil.localhost"] {
        let refused = Some(Reply::misdirected(host));
        let (reply, steps, _) = told(Ask { refused, ..ask(host, "/", false, None) });
        assert_eq!((reply.problem, steps.len()), (Problem::Misdirected, 1), "{host}");
    }
    assert_eq!(told(ask("evil.localhost", "/", false, None)).0.problem, Problem::NoRoute);
}
