//! What the core costs: lookups, facts, a hot decision, the affinity token, and the publishing of one
//! change.
//! `scripts/bench/code core`; targets are in ARCHITECTURE.md.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use vango_edge::clock::{Entropy, Mono, SeededEntropy, Wall};
use vango_edge::id::{
    AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, RequestId,
};
use vango_edge::lifecycle::affinity::{Given, SessionName, Token};
use vango_edge::lifecycle::enter::classify;
use vango_edge::lifecycle::facts::Facts;
use vango_edge::lifecycle::journey::{Command, Event, Go, Journey, Look};
use vango_edge::record::{Allocation, AllocationState, Deployment, Record, RouteOwner, key};
use vango_edge::session::{KeyRing, Tokens};
use vango_edge::snapshot::{Change, Publisher};

const NOW: Mono = Mono(1_000_000_000_000);

const CONTRACT: &str = r#"
[app]
name = "bench"
[process]
command = ["./bench"]
[scale]
concurrency = 1000000
[[route]]
path = "/vango/live"
class = "live"
[[route]]
path = "/actions/*"
class = "action"
idempotency = "app"
[[route]]
path = "/webhooks/*"
class = "webhook"
provider = "stripe"
secret = "SECRET"
[[route]]
path = "/*"
class = "page"
"#;

fn digest() -> Digest {
    Digest::from_bytes([1; 32])
}

fn host(n: usize) -> String {
    format!("app-{n}.tenant-{}.example", n % 97)
}

fn allocation(
    environment: &Environment,
    entropy: &dyn Entropy,
    epoch: u64,
) -> (String, Allocation) {
    let record = Allocation {
        id: AllocationId::random(entropy),
        environment: environment.clone(),
        generation: Generation(1),
        epoch: Epoch(epoch),
        digest: digest(),
        state: AllocationState::Ready,
        address: Some("127.0.0.1:4000".parse().unwrap()),
        process: None,
        operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        created: Wall(0),
        ready: Some(Wall(0)),
    };
    (key::allocation(environment, &record.id), record)
}

/// `environments` with `hosts` each, all owned, each with one ready allocation: published from
/// records, as the store would deliver them.
fn routed(environments: usize, hosts: usize) -> Publisher {
    let entropy = SeededEntropy::new(1);
    let mut publisher = Publisher::new();
    for first in (0..environments).step_by(1000) {
        let mut records: Vec<(String, bytes::Bytes)> = Vec::new();
        for e in first..(first + 1000).min(environments) {
            let environment: Environment = format!("app-{e}").parse().unwrap();
            let deployment = Deployment {
                id: DeploymentId::random(&entropy),
                environment: environment.clone(),
                digest: digest(),
                contract: CONTRACT.into(),
                created: Wall(0),
                files: 1,
                bytes: 1,
                assets: None,
                replaced: None,
                promoted_from: None,
                schema: None,
            };
            records.push((key::deployment(&environment, &deployment.id), deployment.encode()));
            for h in 0..hosts {
                let owner = RouteOwner {
                    host: host(e * hosts + h).parse().unwrap(),
                    path: "/".into(),
                    environment: environment.clone(),
                    deployment: deployment.id.clone(),
                    digest: digest(),
                    epoch: Epoch(1),
                };
                records.push((key::owner(&owner.host, "/"), owner.encode()));
            }
            let (at, record) = allocation(&environment, &entropy, 1);
            records.push((at, record.encode()));
        }
        let changes = records.iter().map(|(key, value)| Change { key, value: Some(value) });
        publisher.publish(changes, 1 + first as u64, NOW).1.unwrap();
    }
    publisher
}

fn lookups(c: &mut Criterion) {
    let publisher = routed(10_000, 100);
    let snapshots = publisher.reader();
    assert_eq!(snapshots.load().hosts(), 1_000_000);
    let entropy = SeededEntropy::new(2);
    let mut group = c.benchmark_group("host among 1M");
    // More keys than any cache holds lines for, in an order no prefetcher knows.
    let cold: Vec<String> =
        (0..1 << 18).map(|_| host(entropy.next_u64() as usize % 1_000_000)).collect();
    let hot: Vec<String> = cold[..16].to_vec();
    for (name, keys) in [("cold", &cold), ("hot", &hot)] {
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 1) % keys.len();
                let snapshot = snapshots.load();
                snapshot.host(black_box(&keys[at])).map(Arc::as_ptr)
            });
        });
    }
    group.finish();
}

fn head() -> (http::request::Parts, &'static str) {
    let request = http::Request::builder()
        .method("GET")
        .header("host", "app-7.tenant-7.example")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101")
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        .header("accept-language", "en-US,en;q=0.5")
        .header("accept-encoding", "gzip, deflate, br, zstd")
        .header("cookie", "vango_session=3f1c9a2b7d; theme=dark")
        .header("sec-fetch-mode", "navigate")
        .header("connection", "keep-alive");
    (request.body(()).unwrap().into_parts().0, "/dashboard?tab=notes")
}

fn requests(c: &mut Criterion) {
    let (parts, target) = head();
    let id = RequestId::random(&SeededEntropy::new(3));
    c.bench_function("facts of a browser's GET", |b| {
        b.iter(|| Facts::parse(black_box(&parts), target.as_bytes(), id, NOW).unwrap());
    });

    let publisher = routed(1_000, 100);
    let snapshots = publisher.reader();
    let facts = Facts::parse(&parts, target.as_bytes(), id, NOW).unwrap();
    let hot = |facts: Facts, pick: u64| {
        let snapshot = snapshots.load();
        let classified = classify(&snapshot, &facts).unwrap();
        let mut journey = Journey::begin(facts, classified);
        let view = snapshot.host(&journey.facts().host).cloned();
        assert_eq!(journey.next_command(), Command::Look);
        let look = Look { view, pick, reserves: true };
        assert_eq!(journey.on(Event::Look(look), NOW), Command::Go(Go::Connect));
        journey
    };
    let mut pick = 0;
    c.bench_function("classify and decide a hot GET, among 100k", |b| {
        b.iter_batched(
            || facts.clone(),
            |facts| {
                pick += 1;
                hot(facts, pick)
            },
            BatchSize::SmallInput,
        );
    });
    c.bench_function("the same to the end of the request", |b| {
        b.iter_batched(
            || facts.clone(),
            |facts| {
                pick += 1;
                let mut journey = hot(facts, pick);
                journey.on(Event::Connected, NOW);
                journey.on(Event::Answered { status: 200 }, NOW);
                journey.over(Some(200), None, NOW);
                journey.trace.outcome
            },
            BatchSize::SmallInput,
        );
    });
}

/// What a browser's request pays for coming back: the cookie found, the token opened and read.
fn tokens(c: &mut Criterion) {
    let ring = KeyRing::of(&[[7; 32], [8; 32]]);
    let tokens = Tokens::new(ring, Duration::from_secs(86_400), Arc::new(SeededEntropy::new(5)));
    let environment: Environment = "app-7".parse().unwrap();
    let named = environment.to_string();
    let token = Token {
        environment: &named,
        allocation: "al-aaaaaaaaaaaaaaaa",
        generation: Generation(1),
        digest: digest(),
        schema: Some(digest()),
        given: Given::Socket(Some(SessionName(7))),
        expires: Wall(1_000_000),
    };
    let host = "app-7.tenant-7.example";
    let sealed = tokens.seal(&token, host).unwrap();
    let mut forged = sealed.clone().into_bytes();
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    let read = |value: &str| {
        let cookie = format!("vango_session=3f1c9a2b7d; theme=dark; vango_edge={value}");
        let (mut parts, _) = head();
        parts.headers.insert("cookie", cookie.parse().unwrap());
        parts.headers
    };
    for (name, headers, known) in [
        ("a browser's token", read(&sealed), true),
        ("a forged token", read(&forged), false),
        ("a browser without a token", head().0.headers, false),
    ] {
        let read = || tokens.read(black_box(&headers), host, false, &environment, Wall(0));
        assert_eq!(read().is_some(), known);
        c.bench_function(name, |b| b.iter(read));
    }
    c.bench_function("seal a socket's token", |b| b.iter(|| tokens.seal(black_box(&token), host)));
}

fn publishing(c: &mut Criterion) {
    let mut publisher = routed(100_000, 1);
    let entropy = SeededEntropy::new(4);
    let mut revision = 200_000;
    c.bench_function("publish one change in 100k routes", |b| {
        b.iter(|| {
            let n = entropy.next_u64() as usize % 100_000;
            let environment: Environment = format!("app-{n}").parse().unwrap();
            let (at, mut record) = allocation(&environment, &entropy, 1);
            record.state = AllocationState::Starting;
            let value = record.encode();
            revision += 1;
            let change = Change { key: &at, value: Some(&value) };
            publisher.publish([change], revision, NOW).1.unwrap();
        });
    });
}

criterion_group! {
    name = core;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50);
    targets = lookups, requests, tokens, publishing
}
criterion_main!(core);
