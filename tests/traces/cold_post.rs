//! Trace 4: `POST /actions/save`, under each contract. What a key's record answers is in
//! `keyed_post.rs`.

use vango_edge::lifecycle::facts::ErrorForm;
use vango_edge::lifecycle::journey::{BodyRefusal, Command, Event, Go, Woke};
use vango_edge::lifecycle::page::Brand;
use vango_edge::lifecycle::reply::{Forwarded, Problem};
use vango_edge::lifecycle::trace::{HoldEnd, Outcome, Risk, UpstreamFailure};
use vango_edge::record::{AllocationState, WakeState};

use crate::given::{CONTRACT, Happens, Next, WALL, World, explain, steps};
use crate::seed;

fn post() -> http::request::Builder {
    http::Request::builder().method("POST").header("content-length", "5")
}
fn keyed() -> http::request::Builder {
    post().header("idempotency-key", "\"k1\"")
}
fn created() -> Woke {
    Woke::Operation { id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(), created: true }
}

#[test]
fn without_idempotency_a_cold_action_is_refused_and_the_app_woken() {
    for path in ["/actions/plain", "/dashboard"] {
        let world = World::asleep();
        let mut journey = world.begin(keyed(), path);
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }));
        let reply = journey.woke(&created(), world.now).unwrap();
        assert_eq!((reply.problem, reply.status), (Problem::AppCold, 503));
        assert_eq!(reply.forwarded, Forwarded::No);
        assert!(reply.retry_after.is_some() && reply.operation.is_some());
        assert_eq!(journey.trace.risk(), Risk::High);
    }
}

/// The same contract, with pages and /actions/plain held.
fn holds() -> String {
    let plain = "idempotency = \"none\"\n";
    let page = "path = \"/*\"\nclass = \"page\"\n";
    assert!(CONTRACT.contains(plain) && CONTRACT.contains(page));
    let hold = |line: &str| format!("{line}cold = \"hold\"\n");
    CONTRACT.replace(plain, &hold(plain)).replace(page, &hold(page))
}

#[test]
fn a_refusal_names_the_line_that_would_have_it_wait() {
    for (path, route) in
        [("/actions/plain", "/actions/plain"), ("/dashboard", "/* or under [defaults]")]
    {
        let world = World::asleep();
        let mut journey = world.begin(post(), path);
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }));
        let reply = journey.woke(&created(), world.now).unwrap();
        let line = format!("cold = \"hold\" under the [[route]] {route} in vango-edge.toml");
        assert!(reply.hint.as_ref().is_some_and(|h| h.starts_with(&line)), "{:?}", reply.hint);
        let (_, json) = reply.body(ErrorForm::Problem, journey.facts().id, Brand::plain());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json["detail"].as_str().unwrap().contains(&line), "{json}");
        let (_, page) = reply.body(ErrorForm::FormPage, journey.facts().id, Brand::plain());
        assert!(!page.contains("vango-edge.toml"), "what a person can do nothing about: {page}");
        let answer = steps(&journey).pop().unwrap();
        assert!(answer.detail.contains(&line) && answer.values["hint"] == *reply.hint.unwrap());

        let facts = world.facts(post(), path);
        let reader = world.publisher.reader();
        let headers = http::HeaderMap::new();
        let explained = explain(&reader.load(), facts, &headers, world.now, WALL);
        let answer = explained.steps.last().unwrap().text();
        assert!(answer.detail.contains(&line), "{answer:?}");
    }
}

#[test]
fn what_the_contract_holds_waits_with_its_body_unread_and_is_sent_once() {
    for path in ["/actions/plain", "/dashboard"] {
        let mut world = World::asleep_with(&holds());
        let mut journey = world.begin(post(), path);
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }), "{path}");
        assert_eq!(journey.woke(&created(), world.now), None);
        assert!(journey.waits_cold() && !journey.reads_whole_body());
        world.operation(WakeState::Hot, 0);
        world.ready('a');
        assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
        assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
        // It was sent, or a part of it was: nothing sends it again.
        assert!(!journey.may_resend(true) && !journey.may_resend(false));
        let reply = journey.upstream_failed(UpstreamFailure::Closed, world.now);
        assert_eq!((reply.problem, reply.status), (Problem::OutcomeUnknown, 502));
        assert_eq!(journey.next_command(), Command::Go(Go::Tell));
    }
    let mut world = World::asleep_with(&holds());
    let mut journey = world.begin(post(), "/actions/plain");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    world.ready('a');
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.served(200, world.now);
    assert_eq!(journey.trace.outcome, Outcome::Woken);
    assert_eq!(steps(&journey)[1].detail, "unsafe, sent once: cold = \"hold\"");
    assert!(journey.trace.decision().contains("send it once, and never again"));
}

#[test]
fn what_waited_and_was_not_sent_says_so() {
    let waiting = |world: &World| {
        let mut journey = world.begin(post(), "/dashboard");
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
        assert_eq!(journey.woke(&created(), world.now), None);
        journey
    };
    let mut world = World::asleep_with(&holds());
    let mut late = waiting(&world);
    world.after(std::time::Duration::from_secs(10));
    let view = world.view();
    let reply = late.held(HoldEnd::DeadlinePassed, Some(&view), world.now, 0).unwrap();
    assert_eq!((reply.problem, reply.forwarded), (Problem::WakeTimeout, Forwarded::No));

    let mut world = World::asleep_with(&holds());
    let mut failed = waiting(&world);
    world.operation(WakeState::Failed, 1);
    assert_eq!(failed.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
    let Next::Reply(reply) = world.decide(&mut failed) else { panic!("answered") };
    assert_eq!((reply.problem, reply.forwarded), (Problem::WakeFailed, Forwarded::No));

    // Another owner's contract, which does not hold it.
    let mut world = World::asleep_with(&holds());
    let mut moved = waiting(&world);
    world.deploy_with(2, vango_edge::id::Epoch(2), CONTRACT, None);
    assert_eq!(moved.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut moved), Next::Wake { hold: false }));
    let reply = moved.woke(&created(), world.now).unwrap();
    assert_eq!((reply.problem, reply.forwarded), (Problem::AppCold, Forwarded::No));
}

#[test]
fn a_keyed_action_waits_and_is_forwarded_once() {
    let mut world = World::asleep();
    let mut journey = world.begin(keyed(), "/actions/save");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    world.operation(WakeState::Hot, 0);
    world.allocation('a', vango_edge::id::Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.served(200, world.now);
    seed::assert_contains("POST Action While Cold", &steps(&journey));
    let (risk, decision) = seed::verdict("POST Action While Cold");
    assert_eq!((journey.trace.risk().name(), journey.trace.decision()), (&*risk, &*decision));
}

#[test]
fn a_path_that_an_app_may_take_for_a_guarded_one_goes_by_no_route() {
    let world = World::asleep();
    let explained = |request, path| {
        let facts = world.facts(request, path);
        let reader = world.publisher.reader();
        explain(
            &reader.load(),
            facts,
            &http::HeaderMap::new(),
            world.now,
            vango_edge::clock::Wall(0),
        )
    };
    for path in ["//actions/save", "/Actions/save", "/actions%2fsave", "/x/..;/webhooks/stripe"] {
        let trace = explained(keyed(), path);
        let steps: Vec<_> = trace.steps.iter().map(|s| s.text()).collect();
        assert_eq!(trace.outcome, Outcome::Refused(Problem::BadPath), "{path}");
        assert_eq!(
            (steps[0].truth.as_str(), steps[0].value.as_str()),
            ("Request head", "no one reading")
        );
        assert_eq!((steps[1].value.as_str(), steps.len()), ("bad-path", 2));
        assert!(trace.decision().starts_with("Refuse"));
        // Safe ones are guarded by nothing.
        let safe = explained(http::Request::builder(), path);
        assert_eq!(safe.outcome, Outcome::Woken, "{path}");
    }
}

/// A request that waits is read again under each contract: another may guard what this one does not.
#[test]
fn a_path_that_becomes_a_guarded_ones_spelling_while_it_waits_is_refused() {
    let mut world = World::asleep();
    let mut journey = world.begin(keyed(), "/Later/save");
    let epoch = vango_edge::id::Epoch(2);
    world.deploy_with(2, epoch, &CONTRACT.replace("/actions/*", "/later/*"), None);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("a reply") };
    assert_eq!((reply.problem, reply.status), (Problem::BadPath, 400));
}

/// Its head was read for the app's rules: it names no principal and no signature for the new ones.
#[test]
fn an_action_whose_route_gets_other_rules_while_it_waits_is_told_to_come_again() {
    let edge = "idempotency = \"edge\"\nprincipal = \"cookie:vango_session\"";
    let webhook = "provider = \"stripe\"\nsecret = \"STRIPE_WEBHOOK_SECRET\"";
    for (class, rules, told) in [
        ("action", edge, true),
        ("webhook", webhook, true),
        ("action", "idempotency = \"none\"", false),
        ("action", "idempotency = \"app\"", false),
    ] {
        let mut world = World::asleep();
        let mut journey = world.begin(keyed().header("cookie", "vango_session=a"), "/actions/save");
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
        assert_eq!(journey.woke(&created(), world.now), None);
        let before = "path = \"/actions/*\"\nclass = \"action\"\nidempotency = \"app\"";
        let after = format!("path = \"/actions/*\"\nclass = \"{class}\"\n{rules}");
        assert!(CONTRACT.contains(before));
        let epoch = vango_edge::id::Epoch(2);
        world.deploy_with(2, epoch, &CONTRACT.replace(before, &after), None);
        world.allocation('b', epoch, 2, AllocationState::Ready);
        assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
        let next = world.decide(&mut journey);
        if !told {
            assert!(matches!(next, Next::Forward(_)), "{rules}");
            continue;
        }
        let Next::Reply(reply) = next else { panic!("{rules}: answered") };
        assert_eq!((reply.problem, reply.status), (Problem::NotForwarded, 503), "{rules}");
        assert_eq!(reply.forwarded, Forwarded::No);
        assert!(reply.retry_after.is_some() && reply.detail.contains("rules"), "{}", reply.detail);
    }
}

#[test]
fn a_required_key_is_required_cold_and_hot() {
    for world in [World::asleep(), World::hot()] {
        for path in ["/actions/save", "/actions/edge"] {
            let mut journey = world.begin(post(), path);
            let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
            assert_eq!((reply.problem, reply.status), (Problem::IdempotencyKeyMissing, 400));
            let mut journey = world.begin(post().header("idempotency-key", "\""), path);
            let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
            assert_eq!((reply.problem, reply.status), (Problem::IdempotencyKeyInvalid, 400));
        }
    }
}

#[test]
fn once_it_was_sent_its_outcome_is_unknown_and_nobody_sends_it_again() {
    let world = World::hot();
    for (failure, status) in [(UpstreamFailure::Closed, 502), (UpstreamFailure::Silent, 504)] {
        for path in ["/actions/plain", "/dashboard", "/actions/save"] {
            let mut journey = world.begin(keyed(), path);
            let Next::Forward(_placed) = world.decide(&mut journey) else { panic!("forward") };
            assert!(!journey.may_resend(true) && !journey.may_resend(false));
            let reply = journey.upstream_failed(failure, world.now);
            assert_eq!((reply.problem, reply.status), (Problem::OutcomeUnknown, status));
            assert_eq!(reply.forwarded, Forwarded::OutcomeUnknown);
            assert_eq!(reply.retry_after, None);
            assert_eq!(journey.trace.outcome, Outcome::Refused(Problem::OutcomeUnknown));

            let mut journey = world.begin(keyed(), path);
            assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
            assert_eq!(journey.on(Event::Connected, world.now), Command::Go(Go::Send));
            assert_eq!(
                journey.next_command(),
                Command::Go(Go::Stop),
                "whatever its carrier believes"
            );
        }
    }
}

#[test]
fn a_connection_that_was_refused_sent_nothing_and_any_method_may_go_elsewhere() {
    let mut world = World::hot();
    world.allocation('b', vango_edge::id::Epoch(1), 1, AllocationState::Ready);
    let mut journey = world.begin(post(), "/actions/plain");
    let Next::Forward(first) = world.decide(&mut journey) else { panic!("forward") };
    assert!(journey.connect_failed(world.now).is_none());
    let Next::Forward(second) = world.decide(&mut journey) else { panic!("forward") };
    assert_ne!(first.allocation.id, second.allocation.id);
}

#[test]
fn a_body_too_long_wakes_nothing_and_one_byte_less_does() {
    let sized = |n: u32| http::Request::builder().method("POST").header("content-length", n);
    let world = World::asleep();
    let mut journey = world.begin(sized(1025), "/actions/plain");
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::ContentTooLarge, 413));
    assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, None));
    let mut journey = world.begin(sized(1024), "/actions/plain");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }));
}

#[test]
fn a_body_that_grows_too_long_is_cut_off_and_its_outcome_unknown() {
    let world = World::hot();
    let mut journey = world.begin(post(), "/actions/plain");
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    assert_eq!(journey.max_body(), Some(1024));
    journey.on(Event::Connected, world.now);
    let reply = journey.body_refused(BodyRefusal::TooLong, world.now);
    assert_eq!(
        (reply.problem, reply.forwarded),
        (Problem::ContentTooLarge, Forwarded::OutcomeUnknown)
    );
}

#[test]
fn a_request_is_judged_by_the_contract_it_would_be_forwarded_under() {
    let mut world = World::asleep();
    let mut safe = world.begin(http::Request::builder().method("GET"), "/dashboard");
    let mut keyed = world.begin(keyed(), "/actions/save");
    for journey in [&mut safe, &mut keyed] {
        assert!(matches!(world.decide(journey), Next::Wake { hold: true }));
        assert_eq!(journey.woke(&created(), world.now), None);
    }
    // Promoted while they wait, to an artifact that gives neither path any idempotency, and with
    // fewer routes.
    let contract = "[app]\nname = \"studylab\"\n[process]\ncommand = [\"./studylab\"]\n\
                    [[route]]\npath = \"/*\"\nclass = \"action\"\nidempotency = \"none\"\n";
    world.deploy_with(2, vango_edge::id::Epoch(2), contract, None);
    for (journey, holds) in [(&mut safe, true), (&mut keyed, false)] {
        assert_eq!(journey.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
        let next = world.decide(journey);
        assert!(matches!(next, Next::Wake { hold } if hold == holds), "{next:?}");
    }
    // What is safe by its method is that under any contract.
    let reply = keyed.woke(&created(), world.now).unwrap();
    assert_eq!((reply.problem, reply.forwarded), (Problem::AppCold, Forwarded::No));
    assert!(!steps(&keyed).is_empty());
}
