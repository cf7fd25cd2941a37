//! Trace 5: `POST /webhooks/stripe`, every line of its tables.

use std::time::Duration;

use vango_edge::clock::Wall;
use vango_edge::id::Epoch;
use vango_edge::lifecycle::idempotency::{self, AttemptOutcome, ExistingRecord, Holder};
use vango_edge::lifecycle::journey::{BodyRefusal, DeliveryMetric, Journey, Woke};
use vango_edge::lifecycle::reply::{Forwarded, Problem};
use vango_edge::lifecycle::trace::{HoldEnd, Outcome, Risk, UpstreamFailure};
use vango_edge::lifecycle::webhook::Refusal;
use vango_edge::record::ledger::Attempted;
use vango_edge::record::{AllocationState, WakeState};

use crate::given::{CONTRACT, Happens, Next, T0, World, lines, steps};
use crate::seed;

const PATH: &str = "/webhooks/stripe";
const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
const SECRET: &[u8] = b"whsec_test_secret";
const SIGNED: &str =
    "t=1700000000,v1=0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";

fn delivery(signature: &str) -> http::request::Builder {
    http::Request::builder()
        .method("POST")
        .header("content-length", BODY.len())
        .header("stripe-signature", signature)
}

fn created() -> Woke {
    Woke::Operation { id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(), created: true }
}

/// A delivery whose body was read and believed.
fn verified(world: &World, path: &str) -> Journey {
    let mut journey = world.begin(delivery(SIGNED), path);
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert_eq!(journey.body_read(BODY, &[SECRET], world.now), None);
    assert_eq!(journey.event_id(), Some("evt_1"));
    journey
}

fn record(world: &World, came: Option<AttemptOutcome>) -> Attempted {
    let journey = verified(world, PATH);
    let claim = journey.claim().unwrap();
    let holder = Holder { node: "n".into(), run: "1".into() };
    let reserved = idempotency::reserved(claim, &holder, None, Wall(1));
    let sent = idempotency::forwarded(&reserved, &claim.fingerprint, None, Wall(2));
    came.map_or(sent.clone(), |came| idempotency::ended(&sent, came, Wall(3)))
}

/// What a delivery that meets `record` comes to.
fn meets(world: &World, path: &str, record: Attempted, alive: bool) -> (Journey, Next) {
    let mut journey = verified(world, path);
    let seen = Box::new(ExistingRecord { record, alive });
    match world.decide(&mut journey) {
        Next::Reserve => journey.reserved(Some(seen), world.now),
        Next::Forward(_) => journey.found(seen, world.now),
        other => panic!("{other:?}"),
    }
    let next = world.decide(&mut journey);
    (journey, next)
}

#[test]
fn a_cold_delivery_is_verified_held_and_given_to_the_app_once() {
    let mut world = World::asleep();
    let mut journey = verified(&world, PATH);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    // Within the provider's own patience, which is shorter than the wake budget.
    assert_eq!(journey.deadline(), T0 + Duration::from_secs(9));
    world.operation(WakeState::Hot, 0);
    world.allocation('a', Epoch(1), 1, AllocationState::Ready);
    assert_eq!(journey.held(HoldEnd::Released, Some(&world.view()), world.now, 0), None);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.forwarding(1, world.now);
    journey.served(200, world.now);
    seed::assert_contains("Payment Webhook While Cold", &steps(&journey));
    let (risk, decision) = seed::verdict("Payment Webhook While Cold");
    assert_eq!((journey.trace.risk().name(), journey.trace.decision()), (&*risk, &*decision));
    assert_eq!(journey.trace.outcome, Outcome::Woken);
    assert_eq!(journey.delivery_metric(Some(200)), None);
}

#[test]
fn what_is_not_believed_by_its_head_is_refused_unread_and_wakes_nothing() {
    let stale = SIGNED.replace("t=1700000000", "t=1699999699");
    for (signature, why) in [
        ("", Refusal::Malformed),
        ("t=1700000000", Refusal::Missing),
        (stale.as_str(), Refusal::Stale),
    ] {
        for world in [World::asleep(), World::hot()] {
            let mut journey = world.begin(delivery(signature), PATH);
            let Next::Reply(reply) = world.decide(&mut journey) else { panic!("{signature}") };
            assert_eq!((reply.problem, reply.status), (Problem::WebhookSignatureInvalid, 403));
            assert_eq!((reply.forwarded, reply.retry_after), (Forwarded::No, None));
            assert_eq!(journey.delivery_metric(Some(403)), Some(DeliveryMetric::Refused(why)));
            assert_eq!(journey.trace.risk(), Risk::High);
        }
    }
    // Neither by another spelling of the path.
    let world = World::asleep();
    let mut journey = world.begin(delivery(""), "/x/../webhooks/%73tripe");
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!(reply.problem, Problem::WebhookSignatureInvalid);
}

#[test]
fn a_signature_that_does_not_match_is_refused_before_anything_wakes() {
    for world in [World::asleep(), World::hot()] {
        for (body, secrets) in
            [(&b"{}"[..], &[SECRET][..]), (BODY, &[&b"another"[..]][..]), (BODY, &[][..])]
        {
            let mut journey = world.begin(delivery(SIGNED), PATH);
            assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
            let reply = journey.body_read(body, secrets, world.now).unwrap();
            assert_eq!((reply.problem, reply.status), (Problem::WebhookSignatureInvalid, 403));
            assert_eq!(
                journey.delivery_metric(Some(403)),
                Some(DeliveryMetric::Refused(Refusal::Wrong))
            );
            assert!(journey.claim().is_none() && journey.event_id().is_none());
        }
        // Rotation: any of the list.
        let mut journey = world.begin(delivery(SIGNED), PATH);
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
        assert_eq!(journey.body_read(BODY, &[b"another", SECRET], world.now), None);
    }
}

#[test]
fn without_a_secret_it_is_put_off_and_without_room_refused() {
    let world = World::hot();
    let (parts, ()) = delivery(SIGNED).body(()).unwrap().into_parts();
    let mut journey = world.begin(delivery(SIGNED), PATH);
    journey.read_head(&parts.headers, false, crate::given::WALL);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::VerifierUnavailable, 503));
    assert_eq!(reply.retry_after, Some(60));
    let long = http::Request::builder()
        .method("POST")
        .header("content-length", 1024 * 1024 + 1)
        .header("stripe-signature", SIGNED);
    let mut journey = world.begin(long, PATH);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::ContentTooLarge, 413));
}

#[test]
fn an_event_that_was_accepted_is_answered_without_a_wake_or_passed_on_with_a_header() {
    for world in [World::asleep(), World::hot()] {
        let accepted = record(&world, Some(AttemptOutcome::Whole { status: 200 }));
        let (journey, next) = meets(&world, PATH, accepted.clone(), false);
        assert!(matches!(next, Next::Acknowledge), "{next:?}");
        assert_eq!(journey.trace.outcome, Outcome::Duplicate);
        assert!(!lines(&journey).iter().any(|l| l.contains("| Wake operation |")));
        let (journey, next) = meets(&world, "/webhooks/again", accepted, false);
        assert!(journey.passes_unrecorded());
        assert_eq!(journey.webhook_verdict(), Some("duplicate"));
        assert!(matches!(next, Next::Forward(_) | Next::Wake { hold: true }), "{next:?}");
    }
}

const HANDSHAKES: &str = r#"
[app]
name = "studylab"
[process]
command = ["./studylab"]
[[route]]
path = "/slack"
class = "webhook"
provider = "slack"
secret = "S"
[[route]]
path = "/zoom"
class = "webhook"
provider = "generic-hmac"
secret = "S"
hmac = { header = "X-Signature", handshake = "json:/event=endpoint.url_validation", event = "json:/id" }
"#;

fn signed(path: &str, body: &str) -> http::request::Builder {
    use hmac::Mac as _;
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(SECRET).unwrap();
    let slack = path == "/slack";
    mac.update(if slack { format!("v0:1700000000:{body}") } else { body.into() }.as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let request = http::Request::builder().method("POST").header("content-length", body.len());
    match slack {
        true => request
            .header("x-slack-signature", format!("v0={hex}"))
            .header("x-slack-request-timestamp", "1700000000"),
        false => request.header("x-signature", hex),
    }
}

/// Its answer is the app's to give, each time: it has no record, and none is looked for.
#[test]
fn a_handshake_is_no_event() {
    let slack = r#"{"token":"x","challenge":"3eZbrw1a","type":"url_verification"}"#;
    let zoom = r#"{"payload":{"plainToken":"q"},"event":"endpoint.url_validation","id":"1"}"#;
    for (path, body) in [("/slack", slack), ("/zoom", zoom)] {
        let mut hot = World::asleep_with(HANDSHAKES);
        hot.ready('a');
        for world in [hot, World::asleep_with(HANDSHAKES)] {
            let mut journey = world.begin(signed(path, body), path);
            assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
            assert_eq!(journey.body_read(body.as_bytes(), &[SECRET], world.now), None);
            let next = world.decide(&mut journey);
            assert!(matches!(next, Next::Forward(_) | Next::Wake { hold: true }), "{next:?}");
            assert_eq!((journey.webhook_verdict(), journey.event_id()), (Some("handshake"), None));
            assert_eq!(journey.delivery_metric(Some(500)), None);
            assert!(lines(&journey).iter().any(|l| l.contains("verified, a handshake")));
        }
    }
    // Unsigned it is nothing, and what only mentions it is an event.
    let world = World::asleep_with(HANDSHAKES);
    let mut journey = world.begin(signed("/slack", "other"), "/slack");
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert!(journey.body_read(slack.as_bytes(), &[SECRET], world.now).is_some());
    let event = r#"{"type":"event_callback","event":{"type":"url_verification"},"event_id":"E"}"#;
    let mut journey = world.begin(signed("/slack", event), "/slack");
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    assert_eq!(journey.body_read(event.as_bytes(), &[SECRET], world.now), None);
    assert_eq!((journey.webhook_verdict(), journey.event_id()), (Some("verified"), Some("E")));
}

#[test]
fn a_method_that_the_provider_does_not_use_is_not_the_providers() {
    let world = World::hot();
    for method in ["PUT", "PATCH", "DELETE", "FROBNICATE"] {
        let mut journey = world.begin(delivery(SIGNED).method(method), PATH);
        let Next::Reply(reply) = world.decide(&mut journey) else { panic!("{method}") };
        assert_eq!((reply.problem, reply.status), (Problem::WebhookSignatureInvalid, 403));
        assert_eq!(
            journey.delivery_metric(Some(403)),
            Some(DeliveryMetric::Refused(Refusal::Method))
        );
    }
    let world = World::asleep_with(HANDSHAKES);
    let mut journey = world.begin(signed("/zoom", "{}").method("PUT"), "/zoom");
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
}

/// As much as the provider may send, unless the route says another bound; what is not read is counted,
/// and on record as what may be lost.
#[test]
fn a_body_may_be_as_long_as_the_providers_own_bound() {
    const MB25: u64 = 25 << 20;
    let world = World::asleep();
    let sized = |length: u64| {
        let signature = format!("sha256={}", "0".repeat(64));
        let request = http::Request::builder().method("POST").header("content-length", length);
        request.header("x-hub-signature-256", signature)
    };
    let mut journey = world.begin(sized(MB25), "/webhooks/lost");
    let next = world.decide(&mut journey);
    assert!(matches!(next, Next::ReadBody { limit: MB25, .. }), "{next:?}");
    let mut journey = world.begin(sized(MB25 + 1), "/webhooks/lost");
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::ContentTooLarge, 413));
    let evidence = |journey: &Journey| {
        assert_eq!(
            journey.delivery_metric(Some(413)),
            Some(DeliveryMetric::Refused(Refusal::Unread))
        );
        journey.evidence_of(Some(413), world.now, Wall(1)).unwrap().why
    };
    let why = evidence(&journey);
    assert!(why.contains("lost unless redelivered by hand"), "{why}");
    for why in [BodyRefusal::TooLong, BodyRefusal::TooSlow, BodyRefusal::NoRoom] {
        let mut journey = world.begin(delivery(SIGNED), PATH);
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
        journey.body_refused(why, world.now);
        assert!(!evidence(&journey).contains("lost"), "Stripe delivers again");
    }
}

#[test]
fn an_event_that_was_not_accepted_goes_to_the_app_again() {
    let world = World::hot();
    for came in [
        AttemptOutcome::Whole { status: 500 },
        AttemptOutcome::Whole { status: 404 },
        AttemptOutcome::Nothing,
    ] {
        let (_, next) = meets(&world, PATH, record(&world, Some(came)), false);
        assert!(matches!(next, Next::Forward(_)), "{came:?}: {next:?}");
    }
    // One that a dead process was delivering: the provider delivers again, and the app tells.
    let (_, next) = meets(&world, PATH, record(&world, None), false);
    assert!(matches!(next, Next::Forward(_)));
    // One that is being delivered now is not delivered beside it.
    let (_, next) = meets(&world, PATH, record(&world, None), true);
    let Next::Reply(reply) = next else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::RequestInProgress, 409));
}

#[test]
fn when_cold_it_is_held_deferred_or_blocked_as_the_contract_says() {
    let world = World::asleep();
    let mut journey = verified(&world, "/webhooks/defer");
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }));
    let reply = journey.woke(&created(), world.now).unwrap();
    assert_eq!((reply.problem, reply.status), (Problem::WakeDeferred, 503));
    assert!(reply.retry_after.is_some() && reply.operation.is_some());
    assert!(
        lines(&journey).iter().any(|l| l.contains("Operation/audit") && l.contains("deferred"))
    );

    let mut journey = verified(&world, "/webhooks/block");
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::WakeDeferred, 503));
    assert!(lines(&journey).iter().any(|l| l.contains("Operation/audit") && l.contains("blocked")));
    assert!(!lines(&journey).iter().any(|l| l.contains("| Wake operation |")));
}

/// Its body took all the time that its provider gives: there is none left to hold it, and the next delivery is
/// to find the app awake.
#[test]
fn a_delivery_that_came_slowly_wakes_the_app_that_it_cannot_wait_for() {
    let slow = |world: &mut World, path, seconds| {
        let mut journey = world.begin(delivery(SIGNED), path);
        assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
        world.after(Duration::from_secs(seconds));
        assert_eq!(journey.body_read(BODY, &[SECRET], world.now), None);
        assert!(matches!(world.decide(&mut journey), Next::Reserve), "{path}");
        journey.reserved(None, world.now);
        journey
    };
    for path in [PATH, "/webhooks/defer"] {
        let mut world = World::asleep();
        let mut journey = slow(&mut world, path, 9);
        assert_eq!(journey.deadline(), T0 + Duration::from_secs(9));
        assert!(matches!(world.decide(&mut journey), Next::Wake { hold: false }), "{path}");
        let reply = journey.woke(&created(), world.now).unwrap();
        assert_eq!((reply.problem, reply.status), (Problem::WakeDeferred, 503));
        assert!(reply.operation.is_some());
        assert!(lines(&journey).iter().any(|l| l.contains("| Wake operation |")), "{path}");
        // One that is under way is not asked for again.
        let mut world = World::asleep();
        let mut journey = slow(&mut world, path, 9);
        world.operation(WakeState::Starting, 0);
        let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
        assert_eq!(reply.problem, Problem::WakeDeferred);
    }
    // What the contract does not wake, it does not wake late.
    let mut world = World::asleep();
    let mut journey = slow(&mut world, "/webhooks/block", 9);
    let Next::Reply(reply) = world.decide(&mut journey) else { panic!("answered") };
    assert_eq!(reply.problem, Problem::WakeDeferred);
    assert!(!lines(&journey).iter().any(|l| l.contains("| Wake operation |")));
    // A budget that is shorter than the provider's patience begins when the body is there.
    let mut world = World::asleep_with(&CONTRACT.replace("\"10s\"", "\"3s\""));
    let mut journey = slow(&mut world, PATH, 4);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.deadline(), T0 + Duration::from_secs(7));
}

#[test]
fn a_hold_ends_in_the_providers_time_and_the_last_chance_is_counted() {
    let mut world = World::asleep();
    let mut journey = verified(&world, PATH);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    world.after(Duration::from_secs(9));
    let view = world.view();
    let reply = journey.held(HoldEnd::DeadlinePassed, Some(&view), world.now, 0).unwrap();
    assert_eq!((reply.problem, reply.status), (Problem::WakeDeferred, 503));
    assert_eq!(journey.delivery_metric(Some(503)), None);

    let github = || {
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        http::Request::builder()
            .method("POST")
            .header("x-hub-signature-256", signature)
            .header("x-github-delivery", "72d3162e")
    };
    let mut journey = world.begin(github(), "/webhooks/lost");
    assert!(matches!(world.decide(&mut journey), Next::ReadBody { .. }));
    let secret: &[u8] = b"It's a Secret to Everybody";
    assert_eq!(journey.body_read(b"Hello, World!", &[secret], world.now), None);
    assert!(matches!(world.decide(&mut journey), Next::Reserve));
    journey.reserved(None, world.now);
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
    assert_eq!(journey.woke(&created(), world.now), None);
    let reply = journey.held(HoldEnd::DeadlinePassed, Some(&view), world.now, 0).unwrap();
    assert!(reply.detail.contains("lost unless it is redelivered by hand"), "{}", reply.detail);
    assert_eq!(journey.delivery_metric(Some(503)), Some(DeliveryMetric::Lost));
    assert_eq!(journey.delivery_metric(Some(200)), None);
}

#[test]
fn no_provider_is_told_what_ends_its_endpoint() {
    let world = World::hot();
    for status in [301, 302, 307, 410] {
        let mut journey = verified(&world, PATH);
        assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
        journey.forwarding(1, world.now);
        let reply = journey.answers(status, world.now).unwrap();
        assert_eq!((reply.problem, reply.status), (Problem::WebhookRefused, 502));
        assert_eq!(reply.forwarded, Forwarded::Answered);
    }
    for status in [200, 204, 400, 404, 500] {
        let mut journey = verified(&world, PATH);
        assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
        journey.forwarding(1, world.now);
        assert_eq!(journey.answers(status, world.now), None);
    }
    let mut journey = verified(&world, PATH);
    assert!(matches!(world.decide(&mut journey), Next::Forward(_)));
    journey.forwarding(1, world.now);
    let reply = journey.upstream_failed(UpstreamFailure::Closed, world.now);
    assert_eq!((reply.problem, reply.status), (Problem::OutcomeUnknown, 502));
}
