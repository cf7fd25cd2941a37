//! A seeded simulation of the pure core: the real journeys, placement, wake machine, hold queues,
//! records and snapshots, driven by one thread that picks the next event at random. No I/O, no
//! real time. After every event the promises of ARCHITECTURE.md and TRACES.md are checked.
//!
//! `VANGO_EDGE_TEST_SEEDS=20000` runs more; `VANGO_EDGE_TEST_SEED=4711` replays one, with its
//! events on stderr.
//!
//! Read `world` (what there is), `events` (what may happen), `edge` (the shell of
//! `src/proxy/gate.rs`), `plane` (the transactions of `src/wake/worker.rs` and `src/control`), and
//! `promises` (what is checked).

mod edge;
mod events;
mod plane;
mod promises;
mod store;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use world::{Sim, Story};

/// How each run must be able to end, or the simulation no longer exercises it.
const ENDINGS: [&str; 16] = [
    "hot",
    "woken",
    "held",
    "client-left",
    "no-route",
    "wake-timeout",
    "wake-failed",
    "app-cold",
    "hold-queue-full",
    "app-saturated",
    "not-forwarded",
    "shutting-down",
    "idempotency-key-missing",
    "upstream-closed",
    "upstream-timeout",
    "outcome-unknown",
];

/// What must have happened somewhere, for the same reason.
const HAPPENINGS: [&str; 23] = [
    "a wake was made by a request",
    "a wake was joined",
    "a wake was asked for again by those who wait",
    "a start failed",
    "a start timed out",
    "an executor was lost",
    "an executor crashed",
    "an allocation ended right after it was ready",
    "an exit was seen before its readiness was recorded",
    "an allocation ended after it had proved itself",
    "an idle environment went to sleep",
    "an environment was put to sleep under load",
    "the owner moved to another digest",
    "the owner moved under the same digest",
    "a host moved to another environment",
    "a decision stood on a snapshot that was replaced meanwhile",
    "a connection failed",
    "a place was granted and not taken up",
    "a safe request was sent again on a broken reused connection",
    "an ask lost its transaction",
    "a second allocation was ready",
    "a wake was asked for a host that had moved",
    "the client left while its place was on its way",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

/// Runs `seeds` on every processor and adds up what happened.
fn run_all(seeds: std::ops::Range<u64>) -> Story {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let mut total = Story::default();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|t| {
                let seeds = seeds.clone();
                scope.spawn(move || {
                    let mut story = Story::default();
                    for seed in seeds.filter(|s| s % threads == t) {
                        story.add(Sim::run(seed, false));
                    }
                    story
                })
            })
            .collect();
        for run in runs {
            match run.join() {
                Ok(story) => total.add(story),
                Err(broken) => std::panic::resume_unwind(broken),
            }
        }
    });
    total
}

fn table(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(name, n)| format!("  {n:>9}  {name}\n")).collect()
}

#[test]
fn thousands_of_interleavings_keep_every_promise() {
    if let Some(seed) = number("VANGO_EDGE_TEST_SEED") {
        let story = Sim::run(seed, true);
        println!("seed {seed}: {} events\n{}", story.events, table(&story.endings));
        return;
    }
    let seeds = number("VANGO_EDGE_TEST_SEEDS").unwrap_or(3_000);
    let story = run_all(0..seeds);
    println!(
        "{seeds} seeds, {} events, {} requests, {} kinds of ending:\n{}{} kinds of happening:\n{}",
        story.events,
        story.endings.values().sum::<u64>(),
        story.endings.len(),
        table(&story.endings),
        story.happenings.len(),
        table(&story.happenings),
    );
    if seeds < 1_000 {
        return;
    }
    let missing: BTreeSet<_> = ENDINGS
        .iter()
        .filter(|n| !story.endings.contains_key(**n))
        .chain(HAPPENINGS.iter().filter(|n| !story.happenings.contains_key(**n)))
        .collect();
    assert!(missing.is_empty(), "never seen in {seeds} seeds: {missing:?}");
}

#[test]
fn the_same_seed_takes_the_same_steps() {
    for seed in 0..40 {
        let (first, second) = (Sim::run(seed, false), Sim::run(seed, false));
        assert_eq!(first.steps_hash, second.steps_hash, "seed {seed}");
        assert_ne!(first.steps_hash, Sim::run(seed + 1_000_000, false).steps_hash, "seed {seed}");
    }
}
