//! Trace 4 under contract `edge`: every line of the table of records, cold and hot.

use std::time::Duration;

use vango_edge::clock::Wall;
use vango_edge::id::Epoch;
use vango_edge::lifecycle::idempotency::{self, AttemptOutcome, ExistingRecord, Holder};
use vango_edge::lifecycle::journey::{BodyRefusal, Command, Event, Examined, Go, Journey, Woke};
use vango_edge::lifecycle::reply::{Forwarded, Problem, Reply};
use vango_edge::lifecycle::trace::{HoldEnd, Outcome, Risk, UpstreamFailure};
use vango_edge::record::ledger::{AttemptState, Attempted, StoredHead, StoredResponse};
use vango_edge::record::{AllocationState, WakeState};

use crate::given::{CONTRACT, Happens, Next, World, lines, steps};
use crate::seed;

const PATH: &str = "/actions/edge";

fn keyed() -> http::request::Builder {
    http::Request::builder()
        .method("POST")
        .header("content-length", "5")
        .header("idempotency-key", "\"k1\"")
        .header("cookie", "theme=dark; vango_session=ada")
}

fn holder() -> Holder {
    Holder { node: "node-1".into(), run: "1".into() }
}

/// The record that a first request with `body` left in `state`.
fn first(world: &World, body: &[u8], state: AttemptState) -> Attempted {
    let journey = world.begin(keyed(), PATH);
    let Examined::Action(Some(claim)) = journey.examine(body, &[]) else { panic!("a claim") };
    let reserved = idempotency::reserved(&claim, &holder(), None, Wall(1));
    let sent = idempotency::forwarded(&reserved, &claim.fingerprint, None, Wall(2));
    let record = match state {
        AttemptState::Reserved => reserved,
        AttemptState::Completed => {
            idempotency::ended(&sent, AttemptOutcome::Whole { status: 201 }, Wall(3))
        }
        AttemptState::CompletedUnreplayable => {
            idempotency::ended(&sent, AttemptOutcome::NotStored { status: 201 }, Wall(3))
        }
        AttemptState::Unknown => idempotency::ended(&sent, AttemptOutcome::Nothing, Wall(3)),
        _ => sent,
    };
    Attempted { state, ..record }
}

/// A repeat with `body` that meets `record`, hot or cold; what it comes to.
fn repeat(world: &World, body: &[u8], record: Attempted, alive: bool) -> (Journey, Next) {
    let mut journey = world.begin(keyed(), PATH);
    let mut next = world.decide(&mut journey);
    for _ in 0..8 {
        match next {
            Next::ReadBody { .. } => assert_eq!(journey.body_read(body, &[], world.now), None),
            Next::Reserve => {
                journey.reserved(
                    Some(Box::new(ExistingRecord { record: record.clone(), alive })),
                    world.now,
                );
            }
            Next::Forward(_) => {
                journey
                    .found(Box::new(ExistingRecord { record: record.clone(), alive }), world.now);
            }
            end => return (journey, end),
        }
        next = world.decide(&mut journey);
    }
    panic!("no end")
}

fn answered(world: &World, body: &[u8], state: AttemptState, alive: bool) -> Reply {
    match repeat(world, body, first(world, b"hello", state), alive) {
        (_, Next::Reply(reply)) => reply,
        (_, other) => panic!("{state:?}: answered, not {other:?}"),
    }
}

#[test]
fn a_hot_first_request_is_read_recorded_and_sent() {
    let world = World::hot();
    let mut journey = world.begin(keyed(), PATH);
    let Next::ReadBody { limit } = world.decide(&mut journey) else {
        panic!("the body belongs to the fingerprint")
    };
    assert_eq!(limit, 1024 * 1024);
    assert_eq!(journey.body_read(b"hello", &[], world.now), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    // The shell has written the record when it says so.
    journey.forwarding(1, world.now);
    journey.served(200, world.now);
    assert_eq!(journey.trace.outcome, Outcome::Hot);
    assert_eq!(journey.trace.risk(), Risk::High);
    let taken = lines(&journey);
    let recorded = taken.iter().position(|l| l.contains("| forwarded | on disk before")).unwrap();
    let ran = taken.iter().position(|l| l.contains("status 200")).unwrap();
    assert!(recorded < ran, "{taken:#?}");
}

#[test]
fn a_cold_first_request_reserves_and_waits_with_its_body_unread() {
    let mut world = World::asleep();
    let mut journey = world.begin(keyed(), PATH);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    let woke = Woke::Operation { id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(), created: true };
    assert_eq!(journey.woke(&woke, world.now), None);
    assert!(!journey.body_is_read());
    world.operation(WakeState::Hot, 0);
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert_eq!(journey.body_read(b"hello", &[], world.now), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.forwarding(1, world.now);
    journey.served(200, world.now);
    seed::assert_contains("POST Action While Cold", &steps(&journey));
    let (risk, decision) = seed::verdict("POST Action While Cold");
    assert_eq!((journey.trace.risk().name(), journey.trace.decision()), (&*risk, &*decision));
}

#[test]
fn every_record_has_its_answer_cold_and_hot() {
    use AttemptState as S;
    for world in [World::hot(), World::asleep()] {
        for state in [S::Reserved, S::Forwarded] {
            let reply = answered(&world, b"hello", state, true);
            assert_eq!((reply.problem, reply.status), (Problem::RequestInProgress, 409));
            assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, Some(1)));
        }
        for (state, alive) in [(S::Unknown, false), (S::Forwarded, false)] {
            let reply = answered(&world, b"hello", state, alive);
            assert_eq!((reply.problem, reply.status), (Problem::OutcomeUnknown, 409));
            assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::OutcomeUnknown, None));
            let headers = reply.headers("edge");
            assert!(headers.contains(&("proxy-status", "edge; error=http_request_denied".into())));
        }
        let reply = answered(&world, b"hello", S::CompletedUnreplayable, false);
        assert_eq!((reply.problem, reply.status), (Problem::ResponseNotReplayable, 409));
        assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::Answered, None));
        assert!(reply.detail.contains("status 201"), "{}", reply.detail);

        let record = first(&world, b"hello", S::Completed);
        let (mut journey, next) = repeat(&world, b"hello", record, false);
        assert!(matches!(next, Next::Replay));
        let head = StoredHead { status: 201, headers: Vec::new(), trailers: Vec::new() };
        let stored = StoredResponse { head, body: bytes::Bytes::new() };
        assert_eq!(journey.on(Event::Stored(Ok(Some(stored))), world.now), Command::Go(Go::Tell));
        assert_eq!(journey.trace.outcome, Outcome::Replayed);
        assert!(!lines(&journey).iter().any(|l| l.contains("Wake operation")), "nothing wakes");
    }
}

#[test]
fn another_payload_under_the_key_is_422_whatever_became_of_the_first() {
    use AttemptState as S;
    let all = [S::Forwarded, S::Completed, S::CompletedUnreplayable, S::Unknown, S::Released];
    for world in [World::hot(), World::asleep()] {
        for state in all {
            for alive in [false, true] {
                let reply = answered(&world, b"HELLO", state, alive);
                assert_eq!((reply.problem, reply.status), (Problem::IdempotencyKeyReused, 422));
                assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, None));
                assert!(reply.headers("edge").iter().any(|(n, _)| *n == "link"));
            }
        }
    }
    // Another target is another payload, and needs no body to be told.
    let world = World::asleep();
    let record = first(&world, b"hello", S::Completed);
    let mut journey = world.begin(keyed(), "/actions/edge?to=bob");
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(Some(Box::new(ExistingRecord { record, alive: false })), world.now);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!(reply.problem, Problem::IdempotencyKeyReused);
}

#[test]
fn quoted_and_bare_keys_are_one_and_everything_else_keeps_keys_apart() {
    let world = World::hot();
    let at = |b: http::request::Builder| world.begin(b, PATH).claim().unwrap().at.clone();
    let with = |key: &str, session: &str| {
        http::Request::builder()
            .method("POST")
            .header("idempotency-key", key)
            .header("cookie", format!("vango_session={session}"))
    };
    assert_eq!(at(with("\"k1\"", "ada")), at(with("k1", "ada")));
    assert_ne!(at(with("k1", "ada")), at(with("k2", "ada")));
    assert_ne!(at(with("k1", "ada")), at(with("k1", "bob")));
    // Neither key nor principal can be read from where the record is.
    let place = at(with("secret-key", "secret-session"));
    assert!(!place.contains("secret") && place.starts_with("studylab/production/"));
}

#[test]
fn without_the_contracts_principal_it_is_refused_cold_and_hot() {
    for world in [World::asleep(), World::hot()] {
        for cookie in ["theme=dark", "vango_session=", "vango_session=a; vango_session=b"] {
            let builder = http::Request::builder()
                .method("POST")
                .header("idempotency-key", "k1")
                .header("cookie", cookie);
            let mut journey = world.begin(builder, PATH);
            let Next::Reply(reply) = world.decide(&mut journey) else { panic!("{cookie}") };
            assert_eq!((reply.problem, reply.status), (Problem::PrincipalMissing, 400));
            assert_eq!(reply.forwarded, Forwarded::No);
        }
    }
}

#[test]
fn when_the_ledger_is_away_it_fails_closed_and_says_so() {
    for world in [World::asleep(), World::hot()] {
        let mut journey = world.begin(keyed(), PATH);
        let reply = match world.decide(&mut journey) {
            Next::Reserve => journey.ledger_failed(|f| Event::Reserved(Err(f)), world.now),
            Next::ReadBody { .. } => {
                assert_eq!(journey.body_read(b"hello", &[], world.now), None);
                assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
                assert_eq!(journey.on(Event::Connected, world.now), Command::Go(Go::Record));
                journey.ledger_failed(|f| Event::Recorded(Err(f)), world.now)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((reply.problem, reply.status), (Problem::LedgerUnavailable, 503));
        assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, Some(1)));
    }
}

#[test]
fn a_body_that_cannot_be_read_is_refused_before_anything_is_sent() {
    let world = World::hot();
    for (why, problem, status) in [
        (BodyRefusal::TooLong, Problem::ContentTooLarge, 413),
        (BodyRefusal::TooSlow, Problem::RequestTimeout, 408),
        (BodyRefusal::NoRoom, Problem::HoldQueueFull, 503),
    ] {
        let mut journey = world.begin(keyed(), PATH);
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
        let reply = journey.body_refused(why, world.now);
        assert_eq!((reply.problem, reply.status), (problem, status));
        assert_eq!(reply.forwarded, Forwarded::No);
    }
    // One byte more than is read whole, said in the head: nothing is read, nothing wakes.
    let long = |n: u64| {
        let builder = http::Request::builder().method("POST").header("content-length", n);
        builder.header("idempotency-key", "k1").header("cookie", "vango_session=ada")
    };
    let world = World::asleep();
    let mut journey = world.begin(long(1024 * 1024 + 1), PATH);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!(reply.problem, Problem::ContentTooLarge);
    let mut journey = world.begin(long(1024 * 1024), PATH);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
}

#[test]
fn after_it_was_sent_a_failure_is_an_unknown_outcome() {
    let world = World::hot();
    let mut journey = world.begin(keyed(), PATH);
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert_eq!(journey.body_read(b"hello", &[], world.now), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.forwarding(1, world.now);
    let reply = journey.upstream_failed(UpstreamFailure::Closed, world.now);
    assert_eq!((reply.problem, reply.status), (Problem::OutcomeUnknown, 502));
    assert!(!journey.may_resend(true) && !journey.may_resend(false));
}

#[test]
fn what_an_operator_released_is_sent_again() {
    let world = World::asleep();
    let record = first(&world, b"hello", AttemptState::Released);
    let mut journey = world.begin(keyed(), PATH);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(Some(Box::new(ExistingRecord { record, alive: false })), world.now);
    // The first one's body is known: this one's has to be, before it can be the same.
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert_eq!(journey.body_read(b"hello", &[], world.now), None);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
}

/// The route's key in a field of its form.
fn by_field() -> String {
    let edge = "path = \"/actions/edge\"\nclass = \"action\"\n";
    let app = "path = \"/actions/*\"\nclass = \"action\"\n";
    assert!(CONTRACT.contains(edge) && CONTRACT.contains(app));
    let field = |lines: &str| format!("{lines}key = \"field:k\"\n");
    CONTRACT.replace(edge, &field(edge)).replace(app, &field(app))
}

fn a_form() -> http::request::Builder {
    http::Request::builder()
        .method("POST")
        .header("content-length", "5")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", "vango_session=ada")
}

#[test]
fn a_key_in_a_form_is_read_before_anything_is_decided_cold_and_hot() {
    let mut hot = World::asleep_with(&by_field());
    hot.ready('a');
    for (world, cold) in [(World::asleep_with(&by_field()), true), (hot, false)] {
        for path in ["/actions/edge", "/actions/save"] {
            let begin = || {
                let mut journey = world.begin(a_form(), path);
                assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }), "{path}");
                journey
            };
            for (body, problem) in [
                (&b"a=1"[..], Problem::IdempotencyKeyMissing),
                (b"k=", Problem::IdempotencyKeyInvalid),
                (b"k=1&k=2", Problem::IdempotencyKeyInvalid),
            ] {
                let reply = begin().body_read(body, &[], world.now).unwrap();
                assert_eq!((reply.problem, reply.status), (problem, 400), "{path}");
                assert_eq!(reply.forwarded, Forwarded::No);
            }
            let mut journey = begin();
            assert_eq!(journey.body_read(b"k=1&a=2", &[], world.now), None);
            let next = world.decide(&mut journey);
            match (path, cold) {
                ("/actions/edge", true) => assert!(matches!(next, Next::Reserve), "{next:?}"),
                (_, true) => assert!(matches!(next, Next::Wake { hold: true }), "{next:?}"),
                (_, false) => assert!(matches!(next, Next::Forward(_)), "{next:?}"),
            }
            assert_eq!(journey.claim().is_some(), path == "/actions/edge");
            assert!(journey.is_sent_apart() && journey.body_is_read());
        }
    }
}

/// The budget is the app's time, and its body took the client's.
#[test]
fn a_form_whose_body_took_longer_than_the_budget_wakes_its_app_and_waits_for_it() {
    let slow = |world: &mut World, path| {
        let mut journey = world.begin(a_form(), path);
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }), "{path}");
        world.after(Duration::from_secs(12));
        assert_eq!(journey.body_read(b"k=1", &[], world.now), None, "{path}");
        journey
    };
    for path in ["/actions/edge", "/actions/save"] {
        let mut world = World::asleep_with(&by_field());
        let mut journey = slow(&mut world, path);
        let mut next = world.decide(&mut journey);
        if path == "/actions/edge" {
            assert!(matches!(next, Next::Reserve), "{next:?}");
            journey.reserved(None, world.now);
            next = world.decide(&mut journey);
        }
        assert!(matches!(next, Next::Wake { hold: true }), "{path}: {next:?}");
        assert_eq!(journey.deadline(), world.now + Duration::from_secs(10), "{path}");

        // A full app: it waits for a place, and is told of a wait that it had.
        let mut world = World::asleep_with(&by_field());
        world.ready('a');
        let mut placed = [slow(&mut world, path), slow(&mut world, path)];
        for journey in &mut placed {
            assert!(matches!(world.decide(journey), Next::Forward(_)), "{path}");
        }
        let mut journey = slow(&mut world, path);
        assert!(matches!(world.decide(&mut journey), Next::Hold), "{path}");
    }
}

/// A client that says how long it waits is not waited for longer.
#[test]
fn a_body_that_took_its_time_moves_no_deadline_beyond_its_clients_patience() {
    let mut world = World::hot();
    let call = || keyed().header("content-type", "application/grpc").header("grpc-timeout", "15S");
    let mut journey = world.begin(call(), PATH);
    let began = world.now;
    assert_eq!(journey.deadline(), began + Duration::from_secs(10));
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    world.after(Duration::from_secs(12));
    assert_eq!(journey.body_read(b"hello", &[], world.now), None);
    assert_eq!(journey.deadline(), began + Duration::from_secs(15));
}

/// The same key, wherever it stands, is the same record.
#[test]
fn a_key_in_a_form_and_the_same_in_the_header_are_one() {
    let world = World::asleep_with(&by_field());
    let place = |request: http::request::Builder, body: &[u8]| {
        let mut journey = world.begin(request, "/actions/edge");
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
        assert_eq!(journey.body_read(body, &[], world.now), None);
        journey.claim().unwrap().at.clone()
    };
    let one = place(a_form(), b"k=1");
    assert_eq!(one, place(a_form().header("idempotency-key", "\"1\""), b"k=1"));
    assert_eq!(one, place(a_form().header("idempotency-key", "1"), b"a=2"));
    assert_ne!(one, place(a_form(), b"k=2"));
    let mut differ = world.begin(a_form().header("idempotency-key", "2"), "/actions/edge");
    assert!(matches!(world.decide(&mut differ), Next::ReadBody { .. }));
    let reply = differ.body_read(b"k=1", &[], world.now).unwrap();
    assert_eq!(reply.problem, Problem::IdempotencyKeyInvalid);
}

/// Its key was read by another contract's rules, or not read where this one has it.
#[test]
fn a_key_that_is_elsewhere_under_the_next_owner_is_told_to_come_again() {
    let app = "path = \"/actions/*\"\nclass = \"action\"\n";
    let query = CONTRACT.replace(app, &format!("{app}key = \"query:once\"\n"));
    for (before, after, path) in [
        (CONTRACT, &*query, "/actions/save"),
        (&query, CONTRACT, "/actions/save?once=1"),
        (CONTRACT, &*by_field(), "/actions/save"),
    ] {
        let mut world = World::asleep_with(before);
        let request =
            if path.contains("once") { a_form() } else { a_form().header("idempotency-key", "1") };
        let mut journey = world.begin(request, path);
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
        let created = Woke::Operation { id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(), created: true };
        assert_eq!(journey.woke(&created, world.now), None);
        world.deploy_with(2, vango_edge::id::Epoch(2), after, None);
        assert_eq!(journey.held(HoldEnd::Recheck, Some(&world.view()), world.now, 0), None);
        let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
        assert_eq!((reply.problem, reply.forwarded), (Problem::NotForwarded, Forwarded::No));
    }
}
