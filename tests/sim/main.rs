//! A seeded simulation of the edge: its real driver, gate, hold queues, wakes, executors, promotions, sleeper,
//! ledger and store, on one thread, over a clock that jumps from one due thing to the next. What is not the
//! edge's is made up: the store's delays and losses, processes, clients, and the app behind a connection.
//! Whenever something happened, the promises of ARCHITECTURE.md are checked.
//!
//! The store's engine is the real one without its thread (`Engine::inline`), so that two runs of one
//! seed take the same steps. What another thread would do in the middle of a decision, `follower` does.
//!
//! `VANGO_EDGE_TEST_SEEDS=3000` runs more; `VANGO_EDGE_TEST_SEED=4711` replays one, with its events on
//! stderr.
//!
//! Read `world` (what there is), `edge` (how the edge is made), `events` and `client` (what may happen),
//! `control` (what deploys and promotes, and crashes over it), `app`, `machine`, `command`, `store` and `follower`
//! (what the edge stands on), `truth`, `moves` and `promises` (what is checked). `stories` are single runs that once
//! broke a promise.

mod app;
mod client;
mod command;
mod control;
mod dice;
mod edge;
mod events;
mod follower;
mod machine;
mod moves;
mod promises;
mod run;
mod store;
mod stories;
mod story;
mod truth;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use story::Story;

/// How each run must be able to end, or the simulation no longer exercises it.
const ENDINGS: [&str; 20] = [
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
    "replayed",
    "duplicate",
    "webhook-signature-invalid",
    "request-in-progress",
];

/// What must have happened somewhere, for the same reason.
const HAPPENINGS: [&str; 47] = [
    "a wake was made by a request",
    "a wake was joined",
    "a wake was asked for again by those who wait",
    "a start failed",
    "a start timed out",
    "an executor was lost",
    "a node crashed",
    "a wake failed after all",
    "an allocation ended soon after it was ready",
    "an exit was seen before its readiness was recorded",
    "an allocation ended after it had proved itself",
    "an idle environment went to sleep",
    "an environment was put to sleep under load",
    "a frozen allocation was taken back",
    "a draining allocation was taken back",
    "the owner moved to another digest",
    "the owner moved under the same digest",
    "a promotion moved the owner",
    "a promotion went back",
    "a host moved to another environment",
    "a preview was served",
    "a preview was removed",
    "a snapshot was replaced in the middle of a decision",
    "a connection failed",
    "a place was granted and not taken up",
    "a safe request was sent again on a broken reused connection",
    "an ask lost its transaction",
    "an answer of the store was lost",
    "a second allocation was ready",
    "the client left while its place was on its way",
    "the edge stopped in the middle",
    "a deployment took its hosts at once",
    "a deployment moved the owner",
    "a deployment was refused",
    "an artifact that serves was deployed again",
    "the control room was lost",
    "a node crashed at a write",
    "a promotion's executor lost its lease",
    "a release command ran",
    "a release command failed",
    "a release command took too long",
    "a release command could not be run",
    "a release command was lost",
    "a release command outlived its edge",
    "a promotion was refused for its release command",
    "a deployment was cut short by a crash",
    "a last request to each host was served",
];

/// Runs with neither variable set; more than needed for all of the above, and under half a minute in a debug build.
const SEEDS: u64 = 160;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

/// Seconds that one run may take before it counts as stuck: a lock that is taken twice would wait for ever.
const STUCK: u32 = 60;

/// Runs `seeds` on every processor and adds up what happened. The first that breaks ends all.
fn run_all(seeds: u64) -> Story {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let at: Vec<_> = (0..threads).map(|_| AtomicU64::new(u64::MAX)).collect();
    let mut total = Story::default();
    std::thread::scope(|scope| {
        let (next, over) = (&next, &over);
        // Each run has a sender, and drops it when it ends, in whatever way.
        let (running, ended) = mpsc::channel::<()>();
        let run = |at| {
            let running = running.clone();
            scope.spawn(move || {
                let _running = running;
                run_some(seeds, next, over, at)
            })
        };
        let runs: Vec<_> = at.iter().map(run).collect();
        drop(running);
        watch(&at, &ended);
        for run in runs {
            match run.join() {
                Ok(story) => total.add(story),
                Err(broken) => std::panic::resume_unwind(broken),
            }
        }
    });
    total
}

/// Runs the next seed, and the next, and says `at` which.
fn run_some(seeds: u64, next: &AtomicU64, over: &AtomicBool, at: &AtomicU64) -> Story {
    let mut story = Story::default();
    while !over.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            break;
        }
        at.store(seed, Ordering::Relaxed);
        let ran = run::run(seed, false);
        at.store(u64::MAX, Ordering::Relaxed);
        match ran {
            Ok(ran) => story.add(ran),
            Err(why) => {
                over.store(true, Ordering::Relaxed);
                panic!("{why}");
            }
        }
    }
    story
}

/// Returns once all runs have `ended`; ends the process where one is stuck.
fn watch(at: &[AtomicU64], ended: &mpsc::Receiver<()>) {
    let mut seen = vec![(u64::MAX, 0); at.len()];
    while ended.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        for (at, (seed, looks)) in at.iter().zip(&mut seen) {
            let now = at.load(Ordering::Relaxed);
            *looks = if now == *seed { *looks + 1 } else { 0 };
            *seed = now;
            if now != u64::MAX && *looks > 10 * STUCK {
                // Past what the test harness keeps of a test's output: it goes with the process.
                let why = format!("seed {now}: it is stuck\nreplay: VANGO_EDGE_TEST_SEED={now}\n");
                let _ = std::io::stderr().write_all(why.as_bytes());
                std::process::abort();
            }
        }
    }
}

fn table(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(name, n)| format!("  {n:>9}  {name}\n")).collect()
}

#[test]
fn thousands_of_interleavings_keep_every_promise() {
    if let Some(seed) = number("VANGO_EDGE_TEST_SEED") {
        let story = run::run(seed, true).unwrap_or_else(|why| panic!("{why}"));
        println!("seed {seed}: {} events\n{}", story.events, table(&story.endings));
        return;
    }
    let seeds = number("VANGO_EDGE_TEST_SEEDS").unwrap_or(SEEDS);
    let story = run_all(seeds);
    println!(
        "{seeds} seeds, {} events, {} requests, {} kinds of ending:\n{}{} kinds of happening:\n{}",
        story.events,
        story.endings.values().sum::<u64>(),
        story.endings.len(),
        table(&story.endings),
        story.happenings.len(),
        table(&story.happenings),
    );
    if seeds < SEEDS {
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
    let hash = |seed| run::run(seed, false).unwrap_or_else(|why| panic!("{why}")).hash;
    for seed in 0..6 {
        let first = hash(seed);
        assert_eq!(first, hash(seed), "seed {seed}");
        assert_ne!(first, hash(seed + 1_000_000), "seed {seed}");
    }
}
