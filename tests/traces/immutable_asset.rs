//! Trace 6: `GET /assets/app.css`. The app is asleep, and stays so.

use std::sync::Arc;

use vango_edge::assets::{AssetIndex, Coding, Encoded, Entry};
use vango_edge::clock::Wall;
use vango_edge::id::{Digest, Epoch};
use vango_edge::lifecycle::asset::{Action, Body, Plan, Visit};
use vango_edge::lifecycle::reply::Problem;
use vango_edge::lifecycle::trace::{Outcome, Step};

use crate::given::{CONTRACT, Next, World, digest, explain};
use crate::seed;

const TITLE: &str = "Immutable Asset Request";

fn contract(prefix: &str) -> String {
    format!("{CONTRACT}\n[assets]\ndir = \"public\"\nprefix = \"{prefix}\"\n")
}

fn entry(path: &str, n: u8) -> Entry {
    let encoded = |coding, n, size| Encoded { coding, digest: digest(n), size, given: false };
    Entry {
        path: path.into(),
        media_type: "text/css; charset=utf-8".into(),
        fingerprinted: vango_edge::assets::looks_fingerprinted(path),
        coding: None,
        digest: digest(n),
        size: 100,
        encodings: vec![encoded(Coding::Br, n + 1, 40), encoded(Coding::Gzip, n + 2, 50)],
    }
}

impl World {
    /// Deploys artifact `n` with these static files.
    fn deploy_files(&mut self, n: u8, epoch: Epoch, prefix: &str, files: Vec<Entry>) -> Digest {
        let index = AssetIndex::read(&AssetIndex::write("public", prefix, files)).unwrap();
        let at = digest(200 + n);
        self.publisher.supply(at, Arc::new(index));
        self.deploy_with(n, epoch, &contract(prefix), Some(at));
        at
    }

    fn visit(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Visit> {
        let mut request = http::Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let facts = self.facts(request, path);
        let mut map = http::HeaderMap::new();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        Visit::begin(facts, &self.view(), &map, false, self.now).ok()
    }
}

fn asleep() -> World {
    let mut world = World::asleep();
    let files = vec![entry("app.css", 10), entry("mark.0de621e9.svg", 20), entry("a b/ä.css", 30)];
    world.deploy_files(1, Epoch(1), "/assets/", files);
    world
}

fn plan(visit: &Visit) -> &Plan {
    match &visit.action {
        Action::Serve(plan) => plan,
        Action::Reply(reply) => panic!("{reply:?}"),
    }
}

fn served(visit: &Visit) -> Option<Digest> {
    plan(visit).representation.map(|s| s.digest)
}

fn problem(visit: &Visit) -> (Problem, u16) {
    match &visit.action {
        Action::Reply(reply) => (reply.problem, reply.status),
        Action::Serve(plan) => panic!("{plan:?}"),
    }
}

#[test]
fn an_asset_is_served_without_the_app() {
    let world = asleep();
    let mut visit = world.visit("GET", "/assets/app.css", &[("accept-encoding", "br")]).unwrap();
    assert_eq!((plan(&visit).status, &plan(&visit).body), (200, &Body::Part(0..40)));
    visit.served(world.now);

    let taken: Vec<_> = visit.trace.steps.iter().map(Step::text).collect();
    let lines: Vec<_> = taken
        .iter()
        .map(|s| format!("{} | {} | {} | {}", s.actor, s.truth, s.value, s.detail))
        .collect();
    assert_eq!(
        lines,
        [
            "Edge | Artifact asset manifest | sha256:0a0a0a0a0a0a | artifact 010101010101, revalidated",
            "Object store/CDN | Artifact store | sha256:0b0b0b0b0b0b | br, status 200",
            "Allocation | No session state | nothing woken, nothing held | ",
        ]
    );
    let taken: Vec<_> = taken.into_iter().map(|s| (s.actor, s.action, s.truth)).collect();
    assert_eq!(taken, seed::trace(TITLE), "step for step as the seed has it");
    assert_eq!(visit.trace.outcome, Outcome::Asset);
    assert_eq!(
        (visit.trace.risk().name().into(), visit.trace.decision().into()),
        seed::verdict(TITLE)
    );
    assert!(world.view().counters.idle(world.now).is_none(), "an asset is no activity");
}

#[test]
fn explaining_it_says_the_same() {
    let world = asleep();
    let get = || http::Request::builder().method("GET");
    let snapshot = world.publisher.reader().load().clone();
    let trace = explain(
        &snapshot,
        world.facts(get(), "/assets/app.css"),
        &http::HeaderMap::new(),
        world.now,
        vango_edge::clock::Wall(0),
    );
    let taken: Vec<_> =
        trace.steps.iter().map(Step::text).map(|s| (s.actor, s.action, s.truth)).collect();
    assert_eq!(taken, seed::trace(TITLE));
    let headers =
        http::HeaderMap::from_iter([(http::header::ACCEPT_ENCODING, "gzip".parse().unwrap())]);
    let facts = world.facts(get(), "/assets/app.css");
    let trace = explain(&snapshot, facts, &headers, world.now, vango_edge::clock::Wall(0));
    assert!(trace.steps[1].text().detail.starts_with("gzip"));
}

#[test]
fn only_a_fingerprinted_name_is_immutable() {
    let world = asleep();
    for (path, expected) in [
        ("/assets/app.css", "no-cache"),
        ("/assets/mark.0de621e9.svg", "public, max-age=31536000, immutable"),
    ] {
        let visit = world.visit("GET", path, &[]).unwrap();
        let cache = plan(&visit).headers.iter().find(|(n, _)| n == "cache-control").unwrap();
        assert_eq!(cache.1, expected, "{path}");
        assert!(plan(&visit).headers.iter().all(|(n, _)| n != "set-cookie"));
    }
}

#[test]
fn what_is_not_in_the_index_goes_by_its_route() {
    let world = asleep();
    for path in [
        "/",
        "/dashboard",
        "/assets",
        "/assets/",
        "/assets/other.css",
        "/assets/app.css/",
        "/assets/app.css/x",
        "/assets//app.css",
        "/Assets/app.css",
        "/assets/APP.css",
        "/asset/app.css",
        "/other/mark.0de621e9.svg",
    ] {
        assert!(world.visit("GET", path, &[]).is_none(), "{path}");
    }
    // Another method than GET and HEAD is the app's.
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert!(world.visit(method, "/assets/app.css", &[]).is_none(), "{method}");
    }
    // Such a page wakes the app as any other.
    let mut journey = world.begin(http::Request::builder(), "/assets/other.css");
    assert!(matches!(world.decide(&mut journey), Next::Wake { hold: true }));
}

#[test]
fn a_fingerprinted_name_that_is_in_no_artifact_is_404_and_wakes_nothing() {
    let world = asleep();
    for path in
        ["/assets/mark.deadbeef.svg", "/assets/index-DiwrgTda.js", "/assets/a/../app.0123abcd.css"]
    {
        let visit = world.visit("GET", path, &[("accept", "text/html")]).unwrap();
        assert_eq!(problem(&visit), (Problem::AssetNotFound, 404), "{path}");
        assert_eq!(visit.trace.outcome, Outcome::Refused(Problem::AssetNotFound));
    }
    // Under the prefix / it could be a page.
    let mut world = World::asleep();
    world.deploy_files(1, Epoch(1), "/", vec![entry("app.css", 10)]);
    assert!(world.visit("GET", "/orders/inv-2024ABCD.pdf", &[]).is_none());
    assert_eq!(served(&world.visit("GET", "/app.css", &[]).unwrap()), Some(digest(10)));
}

/// No spelling of a path reaches anything but an entry of the index.
#[test]
fn traversal_corpus() {
    let world = asleep();
    for (path, found) in [
        ("/assets/%61pp.css", Some(10)),
        ("/assets/./app.css", Some(10)),
        ("/assets/x/../app.css", Some(10)),
        ("/assets/%2e%2e/assets/app.css", Some(10)),
        ("/x/..%2fassets/app.css", None),
        ("/assets/a%20b/%C3%A4.css", Some(30)),
        ("/assets/a%20b/%c3%a4.css", Some(30)),
        ("/assets/a%20b%2F%C3%A4.css", None),
        ("/assets/a%2520b/%25C3%25A4.css", None),
        ("/assets/..%2f..%2fetc/passwd", None),
        ("/assets/%2e%2e%2fvango-edge.toml", None),
        ("/assets/../vango-edge.toml", None),
        ("/assets/../studylab", None),
        ("/assets/.%2e/studylab", None),
        ("/assets/....//....//etc/passwd", None),
        ("/assets/..;/studylab", None),
        ("/assets/app.css%2e", None),
        ("/assets/app.css;x=1", None),
        ("/assets/%FFapp.css", None),
        ("/assets/app%E2%80%AEcss", None),
        ("//assets/app.css", None),
    ] {
        let visit = world.visit("GET", path, &[]);
        assert_eq!(visit.as_ref().and_then(served), found.map(digest), "{path}");
    }
    // These have no reading at all: 400 before anything looks at them.
    for path in
        ["/assets/../../etc/passwd", "/assets/app.css%00", "/assets\\..\\x", "/assets/%5c.."]
    {
        let (parts, ()) =
            http::Request::builder().header("host", "a").body(()).unwrap().into_parts();
        let id = vango_edge::id::RequestId::random(&vango_edge::clock::SeededEntropy::new(1));
        let read =
            vango_edge::lifecycle::facts::Facts::parse(&parts, path.as_bytes(), id, world.now);
        assert!(read.is_err(), "{path}");
    }
}

#[test]
fn an_old_page_finds_its_files_after_a_deploy_and_the_newest_wins() {
    let mut world = asleep();
    let old = digest(201);
    // A second deploy: app.css changed, the mark got another name.
    let files = vec![entry("app.css", 50), entry("mark.11223344.svg", 60)];
    world.deploy_files(2, Epoch(2), "/assets/", files);
    world.deployment(1, &contract("/assets/"), Some(old), Some(Wall(5)));
    for (path, expected) in [
        ("/assets/app.css", digest(50)),
        ("/assets/mark.11223344.svg", digest(60)),
        ("/assets/mark.0de621e9.svg", digest(20)),
    ] {
        assert_eq!(served(&world.visit("GET", path, &[]).unwrap()), Some(expected), "{path}");
    }
    // The next one keeps its files under another prefix. What is fingerprinted is found where it was; a
    // plain name, and one that nothing has, is the app's own route there.
    world.deploy_files(3, Epoch(3), "/static/", vec![entry("x.css", 70)]);
    world.deployment(2, &contract("/assets/"), Some(digest(202)), Some(Wall(9)));
    let mark = world.visit("GET", "/assets/mark.11223344.svg", &[]).unwrap();
    assert_eq!(served(&mark), Some(digest(60)));
    for path in ["/assets/app.css", "/assets/mark.deadbeef.svg"] {
        assert!(world.visit("GET", path, &[]).is_none(), "{path}");
    }
    assert_eq!(served(&world.visit("GET", "/static/x.css", &[]).unwrap()), Some(digest(70)));
    // A deployment that never owned the route gives nothing.
    world.deployment(4, &contract("/assets/"), Some(digest(202)), None);
    assert_eq!(served(&world.visit("GET", "/static/x.css", &[]).unwrap()), Some(digest(70)));
    // Their time is over: the names are gone, not the app's.
    for n in [1, 2] {
        let at =
            vango_edge::record::key::deployment(&crate::given::environment(), &crate::given::dp(n));
        world.put(&at, None);
    }
    assert!(world.visit("GET", "/assets/mark.0de621e9.svg", &[]).is_none());
}

#[test]
fn a_plain_file_that_a_deploy_took_out_is_gone_through_rollbacks_too() {
    let mut world = asleep();
    world.deploy_files(2, Epoch(2), "/assets/", vec![entry("new.css", 50)]);
    world.deployment(1, &contract("/assets/"), Some(digest(201)), Some(Wall(5)));
    assert!(world.visit("GET", "/assets/app.css", &[]).is_none(), "the app's own route answers");
    // Back to the first: what only the second had is gone in turn.
    let files = vec![entry("app.css", 10), entry("mark.0de621e9.svg", 20), entry("a b/ä.css", 30)];
    world.deploy_files(1, Epoch(3), "/assets/", files);
    world.deployment(2, &contract("/assets/"), Some(digest(202)), Some(Wall(6)));
    assert_eq!(served(&world.visit("GET", "/assets/app.css", &[]).unwrap()), Some(digest(10)));
    assert!(world.visit("GET", "/assets/new.css", &[]).is_none());
    // An owner without static files hides nothing but what is fingerprinted.
    world.deploy(3, Epoch(4));
    world.deployment(1, &contract("/assets/"), Some(digest(201)), Some(Wall(7)));
    assert!(world.visit("GET", "/assets/app.css", &[]).is_none());
    assert!(world.visit("GET", "/assets/mark.0de621e9.svg", &[]).is_some());
}

#[test]
fn the_contract_adds_fields_by_pattern_and_the_last_word_counts() {
    let mut world = World::asleep();
    let index =
        AssetIndex::write("public", "/assets/", vec![entry("w/sw.js", 10), entry("a.css", 20)]);
    world.publisher.supply(digest(201), Arc::new(AssetIndex::read(&index).unwrap()));
    let contract = contract("/assets/")
        + "[[assets.header]]\nfiles = [\"*\"]\nset = { X-A = \"1\", X-B = \"1\" }\n\
           [[assets.header]]\nfiles = [\"x\", \"*.js\"]\nset = { x-b = \"2\", Service-Worker-Allowed = \"/\" }\n";
    world.deploy_with(1, Epoch(1), &contract, Some(digest(201)));
    let of = |path: &str| {
        let visit = world.visit("GET", path, &[]).unwrap();
        let text = |n: &str| {
            let all = plan(&visit).headers.iter().filter(|(name, _)| name == n);
            all.map(|(_, v)| v.to_str().unwrap().to_owned()).collect::<Vec<_>>().join("+")
        };
        [text("x-a"), text("x-b"), text("service-worker-allowed")]
    };
    assert_eq!(of("/assets/w/sw.js"), ["1", "2", "/"]);
    assert_eq!(of("/assets/a.css"), ["1", "1", ""]);
}

#[test]
fn an_index_that_cannot_be_had_is_said_and_never_the_apps_business() {
    let mut world = World::asleep();
    world.deploy_with(1, Epoch(1), &contract("/assets/"), Some(digest(99)));
    let visit = world.visit("GET", "/assets/app.css", &[]).unwrap();
    assert_eq!(problem(&visit), (Problem::ArtifactUnavailable, 503));
    assert!(world.visit("GET", "/dashboard", &[]).is_none(), "the rest goes on");
}
