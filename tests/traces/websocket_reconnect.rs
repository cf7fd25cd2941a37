//! Trace 3: `GET /vango/live`, a live socket that comes back.

use std::time::Duration;

use vango_edge::clock::Wall;
use vango_edge::id::{Digest, Epoch};
use vango_edge::lifecycle::affinity::{FoundIn, Given, KnownBy, Prior, SessionId, session_id};
use vango_edge::lifecycle::enter::classify;
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::journey::{Journey, Woke};
use vango_edge::lifecycle::reply::Problem;
use vango_edge::lifecycle::resume::{Lookup, StoreAnswer, Verdict, Why};
use vango_edge::lifecycle::trace::{HoldEnd, Outcome};
use vango_edge::record::{AllocationState, WakeState};

use crate::given::{Happens, Next, World, explain, lines, prior, steps};
use crate::seed;

const TITLE: &str = "WebSocket Reconnect";
const OURS: u8 = 7;
const EARLIER: u8 = 6;
const FOREIGN: u8 = 5;

fn hash(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

/// A contract that promises everything, less what a test takes out.
fn contract(resume: &str, state: &str) -> String {
    format!(
        r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
[scale]
concurrency = 2
{state}
[[route]]
path = "/vango/live"
class = "live"
session = ["cookie:vango_session", "query:sid"]
resume = "{resume}"
"#
    )
}

fn state() -> String {
    format!(
        "[state]\nschema = \"{}\"\naccepts = [\"{}\"]\nstore = {{ kind = \"http\", path = \
         \"/internal/sessions/{{id}}\" }}",
        hash(OURS),
        hash(EARLIER)
    )
}

fn world(contract: &str) -> World {
    let mut world = World::asleep();
    world.deploy_with(1, Epoch(1), contract, None);
    world
}

fn promised() -> World {
    world(&contract("cross-allocation", &state()))
}

fn upgrade(world: &World) -> Facts {
    let request = http::Request::builder()
        .method("GET")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket");
    world.facts(request, "/vango/live?sid=s-1")
}

fn session() -> Option<SessionId> {
    SessionId::new("s-1", FoundIn::Query)
}

/// A token of allocation `c` that was given with a socket of that session.
fn token(c: char, of: Option<SessionId>) -> Prior {
    let given = Given::Socket(of.as_ref().map(SessionId::name));
    Prior { known_by: KnownBy::Token { expires: Wall(u64::MAX), given }, ..prior(c) }
}

/// A reconnect that carries a session id, and a token of the session's own at allocation `at`.
fn reconnect(world: &World, at: Option<char>, schema: Option<u8>) -> Facts {
    let mut facts = upgrade(world);
    facts.session = session();
    facts.affinity = at.map(|c| Prior { schema: schema.map(hash), ..token(c, session()) });
    facts
}

fn begin(world: &World, facts: Facts) -> Journey {
    let classified = classify(&world.publisher.reader().load(), &facts).unwrap();
    Journey::begin(facts, classified)
}

/// Drives a journey to its placement, with `store` as the durable store's answer.
fn place(world: &World, journey: &mut Journey, store: StoreAnswer) -> char {
    let mut next = world.decide(journey);
    if let Next::AskStore = next {
        journey.store_answered(store, world.now);
        next = world.decide(journey);
    }
    let Next::Forward(placed) = next else { panic!("forward") };
    journey.served(101, world.now);
    placed.allocation.id.as_str().chars().last().unwrap()
}

fn assert_seed(journey: &Journey) {
    seed::assert_contains(TITLE, &steps(journey));
    assert_eq!(
        (journey.trace.risk().name().into(), journey.trace.decision().into()),
        seed::verdict(TITLE)
    );
}

#[test]
fn the_original_allocation_takes_the_session_back() {
    let mut world = promised();
    for c in ['a', 'b', 'c'] {
        world.allocation(c, Epoch(1), 1, AllocationState::Ready);
    }
    let mut journey = begin(&world, reconnect(&world, Some('b'), Some(OURS)));
    assert_eq!(place(&world, &mut journey, StoreAnswer::NotAsked), 'b');
    assert_eq!(
        lines(&journey),
        [
            "Edge | RouteOwner | studylab/production epoch 1 | artifact 010101010101",
            "Edge | Session routing record | al-bbbbbbbbbbbbbbbb generation 1 (token) | ready",
            "Edge | Regional runtime registry | al-bbbbbbbbbbbbbbbb generation 1 | the session's \
             own",
            "Runtime service | Session store | not asked | the original allocation takes it",
            "Allocation | Vango state schema | resume | original-allocation; schema 070707070707 \
             on 070707070707",
            "Edge | Allocation affinity | al-bbbbbbbbbbbbbbbb generation 1 | until either end \
             closes it",
        ]
    );
    assert_seed(&journey);
    assert_eq!(journey.verdict(), Some(Verdict::Resume));
    assert_eq!(journey.trace.outcome, Outcome::Hot);
}

#[test]
fn another_allocation_hydrates_on_proof() {
    for schema in [OURS, EARLIER] {
        let mut world = promised();
        world.allocation('b', Epoch(1), 1, AllocationState::Ready);
        let mut journey = begin(&world, reconnect(&world, Some('a'), Some(schema)));
        assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b');
        assert_eq!(
            lines(&journey)[1..5],
            [
                "Edge | Session routing record | al-aaaaaaaaaaaaaaaa generation 1 (token) | gone"
                    .to_owned(),
                "Edge | Regional runtime registry | al-bbbbbbbbbbbbbbbb generation 1 | the \
                 session's own is gone; placed again"
                    .to_owned(),
                "Runtime service | Session store | present | ".to_owned(),
                format!(
                    "Allocation | Vango state schema | hydrate | store-and-schema; schema {} on \
                     070707070707",
                    hash(schema).short()
                ),
            ]
        );
        assert_seed(&journey);
        assert_eq!(journey.verdict(), Some(Verdict::Hydrate));
    }
}

#[test]
fn anything_unproven_is_fresh_with_its_reason() {
    let cross = |state: &str| world(&contract("cross-allocation", state));
    let no_store = format!("[state]\nschema = \"{}\"", hash(OURS));
    let no_schema = "[state]\nstore = { kind = \"redis\", secret = \"S\", key = \"v:{id}\" }";
    let same = world(&contract("same-allocation", &state()));
    let there = StoreAnswer::Present;
    let cases = [
        (promised(), None, Some(OURS), there, Why::NotRecorded),
        (same, Some('a'), Some(OURS), there, Why::NotPromised),
        (cross(&no_store), Some('a'), Some(OURS), there, Why::NoStore),
        (cross(""), Some('a'), Some(OURS), there, Why::NoStore),
        (promised(), Some('a'), Some(OURS), StoreAnswer::Absent, Why::NotInStore),
        (promised(), Some('a'), Some(OURS), StoreAnswer::Unavailable, Why::StoreUnavailable),
        (promised(), Some('a'), None, there, Why::SchemaUnknown),
        (cross(no_schema), Some('a'), Some(OURS), there, Why::SchemaUnknown),
        (promised(), Some('a'), Some(FOREIGN), there, Why::SchemaNotAccepted),
    ];
    for (mut world, token, schema, store, why) in cases {
        world.allocation('b', Epoch(1), 1, AllocationState::Ready);
        let mut journey = begin(&world, reconnect(&world, token, schema));
        assert_eq!(place(&world, &mut journey, store), 'b', "{why:?}");
        assert_eq!(journey.verdict(), Some(Verdict::Fresh(why)));
        assert_seed(&journey);
        let told = format!("fresh | {}", Verdict::Fresh(why).reason());
        assert!(lines(&journey)[4].contains(&told), "{:?}", lines(&journey));
    }
}

#[test]
fn without_a_session_id_the_store_cannot_be_asked_and_without_anything_there_is_no_session() {
    let mut world = promised();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    let mut facts = upgrade(&world);
    facts.affinity = Some(token('a', None));
    let mut journey = begin(&world, facts);
    place(&world, &mut journey, StoreAnswer::Present);
    assert_eq!(journey.verdict(), Some(Verdict::Fresh(Why::NoSessionId)));
    let mut journey = begin(&world, upgrade(&world));
    place(&world, &mut journey, StoreAnswer::Present);
    assert_eq!(journey.verdict(), Some(Verdict::Fresh(Why::NoSession)));
    assert!(lines(&journey)[1].ends_with("none | no token and no session id"));
    assert_seed(&journey);
}

#[test]
fn a_new_session_goes_to_its_page_and_is_told_that_it_is_new() {
    let mut world = promised();
    for c in ['a', 'b', 'c'] {
        world.allocation(c, Epoch(1), 1, AllocationState::Ready);
    }
    let page = || Prior { schema: Some(hash(OURS)), ..prior('b') };
    let another = || token('b', SessionId::new("s-2", FoundIn::Query));
    let no_id = "none | no session id; its browser is on al-bbbbbbbbbbbbbbbb";
    let no_record =
        "none | a session id, and no record of it; its browser is on al-bbbbbbbbbbbbbbbb";
    for (id, token, why, found) in [
        (None, page(), Why::NoSession, no_id),
        (session(), page(), Why::NotRecorded, no_record),
        // Another tab's session was there: it says nothing of this one's.
        (session(), another(), Why::NotRecorded, no_record),
        (None, another(), Why::NoSession, no_id),
    ] {
        let mut facts = upgrade(&world);
        (facts.session, facts.affinity) = (id, Some(token));
        let mut journey = begin(&world, facts);
        journey.recorded(Lookup::Absent);
        assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b', "one tab, one place");
        assert_eq!(journey.verdict(), Some(Verdict::Fresh(why)));
        let told = format!("fresh | {}", Verdict::Fresh(why).reason());
        let lines = lines(&journey);
        assert!(lines[1].ends_with(found) && lines[4].contains(&told), "{lines:?}");
        assert_eq!(
            lines[3],
            "Runtime service | Session store | not asked | no session to look for"
        );
        assert_seed(&journey);
    }
}

#[test]
fn the_sessions_record_counts_more_than_the_browsers_token() {
    // A page was placed on `b` after the redeploy and got a token of it; the socket's session was
    // on `a`. That `b` is ready proves nothing about the session.
    let mut world = promised();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    let mut journey = begin(&world, reconnect(&world, Some('b'), Some(OURS)));
    let record = Prior { schema: Some(hash(FOREIGN)), known_by: KnownBy::Record, ..prior('a') };
    journey.recorded(Lookup::Found(record));
    assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b');
    assert_eq!(journey.verdict(), Some(Verdict::Fresh(Why::SchemaNotAccepted)));
    assert!(lines(&journey)[1].contains("al-aaaaaaaaaaaaaaaa generation 1 (record)"));

    // The record cannot be read: the token is better than nothing.
    let mut journey = begin(&world, reconnect(&world, Some('b'), Some(OURS)));
    journey.recorded(Lookup::Unavailable);
    assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b');
    assert_eq!(journey.verdict(), Some(Verdict::Resume));
    assert!(lines(&journey)[1].ends_with("ready; the record could not be read"));
}

#[test]
fn a_sleeping_environment_is_woken_for_a_reconnect_within_the_budget() {
    let mut world = promised();
    let mut journey = begin(&world, reconnect(&world, Some('a'), Some(OURS)));
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    let id = "op-aaaaaaaaaaaaaaaa".parse().unwrap();
    assert_eq!(journey.woke(&Woke::Operation { id, created: true }, world.now), None);
    world.after(Duration::from_millis(22));
    world.operation(WakeState::Hot, 0);
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b');
    assert_eq!(journey.verdict(), Some(Verdict::Hydrate));
    assert_eq!(journey.trace.outcome, Outcome::Woken);
    assert_seed(&journey);

    let world = promised();
    let mut journey = begin(&world, reconnect(&world, Some('a'), Some(OURS)));
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&Woke::BackingOff, world.now), None);
    let end = HoldEnd::DeadlinePassed;
    let late = world.now + Duration::from_secs(10);
    let reply = journey.held(end, Some(&world.view()), late, 0).unwrap();
    assert_eq!(reply.problem, Problem::WakeTimeout);
}

#[test]
fn a_draining_allocation_and_one_of_an_earlier_epoch_take_no_new_socket() {
    for (epoch, digest, state, told) in [
        (Epoch(1), 1, AllocationState::Draining, "draining"),
        (Epoch(2), 2, AllocationState::Ready, "of an earlier epoch"),
    ] {
        let mut world = promised();
        world.allocation('a', epoch, digest, state);
        world.allocation('b', Epoch(1), 1, AllocationState::Ready);
        let mut journey = begin(&world, reconnect(&world, Some('a'), Some(OURS)));
        assert_eq!(place(&world, &mut journey, StoreAnswer::Present), 'b');
        assert_eq!(journey.verdict(), Some(Verdict::Hydrate));
        assert!(lines(&journey)[1].ends_with(told), "{:?}", lines(&journey));
    }
}

#[test]
fn another_start_under_the_same_name_is_not_the_original() {
    let mut world = promised();
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    let mut facts = reconnect(&world, Some('a'), Some(OURS));
    if let Some(prior) = &mut facts.affinity {
        prior.generation = prior.generation.next();
    }
    let mut journey = begin(&world, facts);
    place(&world, &mut journey, StoreAnswer::Absent);
    assert_eq!(journey.verdict(), Some(Verdict::Fresh(Why::NotInStore)));
}

#[test]
fn the_store_is_asked_once_even_when_the_target_refuses_the_connection() {
    let mut world = promised();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    world.allocation('c', Epoch(1), 1, AllocationState::Ready);
    let mut journey = begin(&world, reconnect(&world, Some('a'), Some(OURS)));
    assert!(matches!(world.decide(&mut journey), Next::AskStore));
    journey.store_answered(StoreAnswer::Present, world.now);
    let Next::Forward(first) = world.decide(&mut journey) else { panic!("forward") };
    assert_eq!(journey.connect_failed(world.now), None);
    let Next::Forward(second) = world.decide(&mut journey) else { panic!("not asked again") };
    assert_ne!(first.allocation.id, second.allocation.id);
    assert_eq!(journey.verdict(), Some(Verdict::Hydrate));
}

#[test]
fn edges_agree_where_a_session_goes_and_a_loaded_one_is_passed_over() {
    let world = || {
        let mut world = promised();
        for c in "abcde".chars() {
            world.allocation(c, Epoch(1), 1, AllocationState::Ready);
        }
        world
    };
    let (one, other) = (world(), world());
    let mut counts = std::collections::BTreeMap::<char, usize>::new();
    for n in 0..200 {
        let to = |world: &World, pick| {
            let mut facts = upgrade(world);
            facts.session = SessionId::new(&format!("s-{n}"), FoundIn::Query);
            let mut journey = begin(world, facts);
            let Next::Forward(placed) = journey.decide(Some(&world.view()), world.now, pick) else {
                panic!("forward")
            };
            placed.allocation.id.as_str().chars().last().unwrap()
        };
        let first = to(&one, 1);
        assert_eq!(first, to(&other, 99), "whatever the dice say");
        *counts.entry(first).or_default() += 1;
    }
    assert!(counts.len() == 5 && counts.values().all(|n| (20..=60).contains(n)), "{counts:?}");

    let mut facts = upgrade(&one);
    facts.session = SessionId::new("s-1", FoundIn::Query);
    let mut holds_a_place = begin(&one, facts.clone());
    let Next::Forward(first) = one.decide(&mut holds_a_place) else { panic!("forward") };
    let mut journey = begin(&one, facts);
    let Next::Forward(second) = one.decide(&mut journey) else { panic!("forward") };
    assert_ne!(first.allocation.id, second.allocation.id, "above its share");
}

#[test]
fn the_sessions_of_one_that_died_spread_over_all_survivors_before_it_is_taken_off() {
    let mut world = promised();
    for c in "abcde".chars() {
        world.allocation(c, Epoch(1), 1, AllocationState::Ready);
    }
    let mut counts = std::collections::BTreeMap::<char, usize>::new();
    for n in 0..400 {
        let mut facts = upgrade(&world);
        facts.session = SessionId::new(&format!("s-{n}"), FoundIn::Query);
        let own = token('c', facts.session.clone());
        facts.affinity = Some(Prior { schema: Some(hash(OURS)), ..own });
        let mut journey = begin(&world, facts);
        let Next::Forward(placed) = world.decide(&mut journey) else { panic!("forward") };
        assert_eq!(placed.allocation.id.as_str().chars().last(), Some('c'), "its own");
        assert_eq!(journey.connect_failed(world.now), None);
        *counts.entry(place(&world, &mut journey, StoreAnswer::Present)).or_default() += 1;
        assert_eq!(journey.verdict(), Some(Verdict::Hydrate));
    }
    assert!(counts.len() == 4 && counts.values().all(|n| (70..=130).contains(n)), "{counts:?}");
}

#[test]
fn a_session_id_is_read_where_the_route_says() {
    let mut world = promised();
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    let view = world.view();
    let headers =
        http::HeaderMap::from_iter([(http::header::COOKIE, "vango_session=c-1".parse().unwrap())]);
    let found = |headers, query| session_id(&view.contract, 0, headers, query);
    assert_eq!(found(&headers, Some("sid=q-1")).unwrap().expose(), "c-1", "the first source");
    let none = http::HeaderMap::new();
    assert_eq!(found(&none, Some("a=1&sid=q-1")).unwrap().expose(), "q-1");
    assert!(found(&none, Some("sid=a%2fb")).is_none());
    assert!(found(&none, None).is_none());
}

#[test]
fn the_path_of_the_runtime_service_is_nobody_elses() {
    let mut world = promised();
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    let facts = world.facts(http::Request::builder(), "/internal/sessions/s-1");
    assert!(classify(&world.publisher.reader().load(), &facts).is_err());
}

#[test]
fn explaining_asks_nobody_and_says_what_would_be_asked() {
    let mut world = promised();
    world.allocation('b', Epoch(1), 1, AllocationState::Ready);
    let facts = reconnect(&world, Some('a'), Some(OURS));
    let trace = explain(
        &world.publisher.reader().load(),
        facts,
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    let taken: Vec<_> = trace.steps.iter().map(|s| s.text()).collect();
    seed::assert_contains(TITLE, &taken);
    assert!(taken.iter().any(|s| s.truth == "Session store" && s.value == "would be asked"));
    assert_eq!(world.view().ready[0].load.total(), 0);
}
