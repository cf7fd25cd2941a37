//! Every store adapter against the one contract suite, and what only a store on disk can be asked:
//! reopening, `kill -9`, a locked directory, a disk that refuses writes.

#[macro_use]
mod contract;

mod store {
    pub mod damage;
    pub mod disk;
    pub mod faults;
    pub mod kill;
    pub mod process;
}

use std::path::Path;
use std::sync::Arc;

use contract::Harness;
use vango_edge_core::clock::ManualClock;
use vango_edge_store::memory::Memory;
use vango_edge_store::{Engine, MemoryStore, Options, RocksStore, StateStore, Storage};

/// Small, so that watches fall behind quickly.
const OPTIONS: Options = Options { watch_revisions: 300, watch_bytes: 1024 * 1024 * 1024 };

fn harness<S: Storage>(
    store: Engine<S>,
    clock: Arc<ManualClock>,
    keep: impl Send + Sync + 'static,
) -> Harness {
    let store = Arc::new(store);
    let poked = store.clone();
    Harness {
        store: store as Arc<dyn StateStore>,
        advance: Box::new(move |by| {
            clock.advance(by);
            let store = poked.clone();
            Box::pin(async move { store.poke().await.expect("poke") })
        }),
        watch_revisions: OPTIONS.watch_revisions,
        _keep: Box::new(keep),
    }
}

fn open(dir: &Path, clock: &Arc<ManualClock>) -> RocksStore {
    RocksStore::open(dir, clock.clone(), OPTIONS).expect("open")
}

mod memory {
    use super::*;

    async fn empty() -> Harness {
        let clock = Arc::new(ManualClock::new());
        harness(MemoryStore::new(clock.clone(), OPTIONS).expect("thread"), clock, ())
    }

    store_contract!(empty());
}

/// Without a thread: each caller writes.
mod inline {
    use super::*;

    async fn empty() -> Harness {
        let clock = Arc::new(ManualClock::new());
        harness(Engine::inline(Memory::new(), clock.clone(), OPTIONS).expect("memory"), clock, ())
    }

    store_contract!(empty());
}

mod rocks {
    use super::*;

    async fn empty() -> Harness {
        let clock = Arc::new(ManualClock::new());
        let dir = tempfile::tempdir().expect("directory");
        harness(open(dir.path(), &clock), clock, dir)
    }

    store_contract!(empty());
}
