//! Trace 7: `GET` of a preview's URL, beside a production that is hot.

use vango_edge::id::Epoch;
use vango_edge::lifecycle::enter::classify;
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::journey::Journey;
use vango_edge::lifecycle::reply::Problem;
use vango_edge::lifecycle::trace::Outcome;
use vango_edge::record::{Allocation, AllocationState, Record, key};

use crate::given::{Happens, Next, PREVIEW, World, al, digest, dp, explain, lines, preview, steps};
use crate::seed;

const TITLE: &str = "Preview Deploy Request";

/// Production runs artifact 1 in allocation `a`; the preview runs artifact 2, in allocation `p` if it is
/// awake.
fn world(awake: bool) -> World {
    let mut world = World::hot();
    world.deploy_preview();
    if awake {
        world.allocation('p', Epoch(1), 2, AllocationState::Ready);
        let of_production = key::allocation(&crate::given::environment(), &al('p'));
        let entry = world.view().others.iter().find(|a| a.id == al('p')).unwrap().clone();
        assert_eq!(entry.digest, digest(2), "the artifact alone gives no authority");
        world.put(&of_production, None);
        let record = Allocation {
            id: al('p'),
            environment: preview(),
            generation: vango_edge::id::Generation(1),
            epoch: Epoch(1),
            digest: digest(2),
            state: AllocationState::Ready,
            address: Some("127.0.0.1:4001".parse().unwrap()),
            process: None,
            operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            created: vango_edge::clock::Wall(0),
            ready: Some(vango_edge::clock::Wall(0)),
        };
        world.put(&key::allocation(&preview(), &al('p')), Some(&record.encode()));
    }
    world
}

fn facts(world: &World, host: &str) -> Facts {
    let (parts, ()) = http::Request::builder().header("host", host).body(()).unwrap().into_parts();
    let id = vango_edge::id::RequestId::random(&vango_edge::clock::SeededEntropy::new(1));
    Facts::parse(&parts, b"/dashboard", id, world.now).unwrap()
}

fn decide(world: &World, host: &str) -> (Journey, Next) {
    let snapshot = world.publisher.reader().load().clone();
    let classified = classify(&snapshot, &facts(world, host)).unwrap();
    let mut journey = Journey::begin(facts(world, host), classified);
    let next = journey.decide(snapshot.host(host), world.now, 0);
    (journey, next)
}

#[test]
fn a_preview_is_served_by_its_own_artifact_and_leaves_evidence() {
    let world = world(true);
    let (mut journey, next) = decide(&world, PREVIEW);
    let Next::Forward(placed) = next else { panic!("forward") };
    assert_eq!((placed.allocation.id.clone(), placed.allocation.digest), (al('p'), digest(2)));
    journey.served(200, world.now);
    assert_eq!(
        lines(&journey),
        [
            "Edge | Preview RouteOwner | studylab/pr-7 epoch 1 | artifact 020202020202",
            "Edge | Regional runtime registry | al-pppppppppppppppp generation 1 | no session",
            "Allocation | Artifact digest | sha256:020202020202 | status 200",
            "Control plane | Deployment record | dp-hhhhhhhhhhhhhhhh | counts as an answer",
            "User | Deployment/artifact identity | sha256:020202020202 | ",
        ]
    );
    seed::assert_contains(TITLE, &steps(&journey));
    assert_eq!(
        (journey.trace.risk().name().into(), journey.trace.decision().into()),
        seed::verdict(TITLE)
    );
    assert_eq!(journey.trace.outcome.evidence(Some(200)), Some(false));
}

/// It passes without the preview's token: any client may send one.
#[test]
fn a_preflight_is_no_evidence() {
    let world = world(true);
    let preflight = http::Request::builder()
        .method("OPTIONS")
        .header("host", PREVIEW)
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST");
    let (parts, ()) = preflight.body(()).unwrap().into_parts();
    let asked = Facts::parse(&parts, b"/dashboard", facts(&world, PREVIEW).id, world.now).unwrap();
    assert!(asked.is_preflight());
    let snapshot = world.publisher.reader().load().clone();
    let mut journey = Journey::begin(asked.clone(), classify(&snapshot, &asked).unwrap());
    assert!(matches!(journey.decide(snapshot.host(PREVIEW), world.now, 0), Next::Forward(_)));
    journey.served(500, world.now);
    assert_eq!(journey.preview_evidence(Some(500)), None);
    let said = lines(&journey).into_iter().find(|l| l.contains("Deployment record"));
    assert!(said.unwrap().ends_with("says nothing of the artifact"));
}

#[test]
fn explaining_it_says_the_same_asleep_and_awake() {
    for awake in [true, false] {
        let world = world(awake);
        let trace = explain(
            &world.publisher.reader().load(),
            facts(&world, PREVIEW),
            &http::HeaderMap::new(),
            world.now,
            vango_edge::clock::Wall(0),
        );
        let taken: Vec<_> = trace.steps.iter().map(|s| s.text()).collect();
        seed::assert_contains(TITLE, &taken);
        assert_eq!(trace.decision(), seed::verdict(TITLE).1);
    }
}

#[test]
fn neither_ever_gets_the_others_requests() {
    let hot = world(true);
    let (_, next) = decide(&hot, "studylab.localhost");
    let Next::Forward(placed) = next else { panic!("forward") };
    assert_eq!(placed.allocation.digest, digest(1));
    // Asleep, the preview is woken; production's ready allocation is none of its business.
    let (_, next) = decide(&world(false), PREVIEW);
    assert!(matches!(next, Next::Wake { hold: true }));
    // And the names next to it have no owner.
    let snapshot = hot.publisher.reader().load().clone();
    for host in ["pr-8.preview.studylab.localhost", "preview.studylab.localhost", "pr-7.preview"] {
        assert!(classify(&snapshot, &facts(&hot, host)).is_err(), "{host}");
    }
}

#[test]
fn what_says_nothing_of_the_artifact_is_no_evidence() {
    for (outcome, status, expected) in [
        (Outcome::Hot, Some(200), Some(false)),
        (Outcome::Woken, Some(404), Some(false)),
        (Outcome::Held, Some(500), Some(true)),
        (Outcome::Refused(Problem::WakeFailed), Some(503), Some(true)),
        (Outcome::Refused(Problem::OutcomeUnknown), Some(502), Some(true)),
        (Outcome::Refused(Problem::ArtifactUnavailable), Some(503), Some(true)),
        (Outcome::Refused(Problem::HoldQueueFull), Some(503), None),
        (Outcome::Refused(Problem::ShuttingDown), Some(503), None),
        (Outcome::Refused(Problem::PreviewAccess), Some(401), None),
        (Outcome::Asset, Some(200), None),
        (Outcome::ClientLeft, None, None),
        (Outcome::Hot, None, None),
    ] {
        assert_eq!(outcome.evidence(status), expected, "{outcome:?}");
    }
}

#[test]
fn a_missing_artifact_is_said_and_nothing_else_is_served() {
    let mut world = world(false);
    let operation = vango_edge::record::Operation {
        id: "op-bbbbbbbbbbbbbbbb".parse().unwrap(),
        environment: preview(),
        epoch: Epoch(1),
        digest: digest(2),
        deployment: dp(7),
        state: vango_edge::record::WakeState::Failed,
        attempt: 1,
        requested: vango_edge::clock::Wall(0),
        changed: vango_edge::clock::Wall(0),
        phases: Default::default(),
        allocation: None,
        failure: Some(vango_edge::record::Failure {
            safe: "the artifact is missing".into(),
            detail: "no blob".into(),
            artifact: true,
        }),
        failures: 1,
        backoff_ms: 4_000,
        typical_ms: 0,
    };
    world.put(&key::operation(&preview()), Some(&operation.encode()));
    let (_, next) = decide(&world, PREVIEW);
    let Next::Reply(reply) = next else { panic!("answered") };
    assert_eq!((reply.problem, reply.status), (Problem::ArtifactUnavailable, 503));
    assert!(reply.retry_after.is_some());
}
