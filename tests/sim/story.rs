//! What came of runs: how requests ended, what happened, and the last events of a run that broke.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Once;

/// What all runs came to.
#[derive(Debug, Default)]
pub struct Story {
    pub events: u64,
    pub endings: BTreeMap<&'static str, u64>,
    pub happenings: BTreeMap<&'static str, u64>,
    /// Of every event of the run and every step of every request, as text.
    pub hash: u64,
}

impl Story {
    pub fn add(&mut self, other: Story) {
        self.events += other.events;
        for (name, n) in other.endings {
            *self.endings.entry(name).or_default() += n;
        }
        for (name, n) in other.happenings {
            *self.happenings.entry(name).or_default() += n;
        }
    }
}

/// Events kept for when a promise breaks.
const KEPT: usize = 80;

/// Takes events down.
pub struct Diary {
    seed: u64,
    verbose: bool,
    last: VecDeque<String>,
    hasher: DefaultHasher,
    pub story: Story,
}

impl Diary {
    pub fn new(seed: u64, verbose: bool) -> Self {
        let (last, hasher, story) = Default::default();
        Self { seed, verbose, last, hasher, story }
    }

    pub fn note(&mut self, line: String) {
        if self.verbose {
            eprintln!("{line}");
        }
        line.hash(&mut self.hasher);
        self.story.events += 1;
        self.last.push_back(line);
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    pub fn close(&mut self) -> Story {
        self.story.hash = self.hasher.finish();
        std::mem::take(&mut self.story)
    }

    /// The run is over because of `why`.
    pub fn broken(&self, why: &str) -> ! {
        eprintln!("seed {} broke; its last events:", self.seed);
        for line in &self.last {
            eprintln!("{line}");
        }
        panic!(
            "seed {}: {why}\nreplay: VANGO_EDGE_TEST_SEED={} cargo test --workspace --test sim thousands",
            self.seed, self.seed
        );
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From here on a panic is remembered by its thread, also one in a task, which the runtime would swallow.
pub fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|p| p.get_or_insert_with(|| info.to_string()).len());
            before(info);
        }));
    });
}

/// Whether something panicked on this thread.
pub fn panicked() -> bool {
    PANIC.with_borrow(Option::is_some)
}

/// What panicked on this thread first.
pub fn take_panic() -> Option<String> {
    PANIC.take()
}
