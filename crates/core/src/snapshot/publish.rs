//! The one writer of the current snapshot, and the handle by which everything else reads it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::assets::AssetIndex;
use crate::clock::Mono;
use crate::id::{Digest, Environment};
use crate::record::RecordError;

use super::compile::{Change, Records, compile};
use super::model::{ExternalApp, Snapshot};

#[derive(Debug, Default)]
struct Current {
    snapshot: ArcSwap<Snapshot>,
    published_at: AtomicU64,
}

/// Reads the current snapshot; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SnapshotReader {
    current: Arc<Current>,
}

impl SnapshotReader {
    /// The current snapshot, pinned for as long as the guard lives. No lock.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.snapshot.load()
    }
    /// How long ago the store was last known to be followed.
    pub fn age(&self, now: Mono) -> Duration {
        now.since(Mono(self.current.published_at.load(Ordering::Relaxed)))
    }
}

/// Owns the records and publishes what they compile to. There is one.
#[derive(Debug, Default)]
pub struct Publisher {
    records: Records,
    reader: SnapshotReader,
}

impl Publisher {
    /// With an empty snapshot at revision 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle that readers share.
    pub fn reader(&self) -> SnapshotReader {
        self.reader.clone()
    }

    /// Asset indexes that `changes` name and that are not here: to be given to [`Self::supply`]
    /// before the changes are published. One that cannot be had is left out.
    pub fn lacking<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) -> Vec<Digest> {
        self.records.lacking(changes)
    }

    /// Takes an asset index in; it counts from the next publish on.
    pub fn supply(&mut self, digest: Digest, index: Arc<AssetIndex>) {
        self.records.supply(digest, index);
    }

    /// Replaces the apps that this edge does not run, and publishes them; returns the environments that
    /// this touched.
    pub fn externals(&mut self, apps: &[ExternalApp], now: Mono) -> BTreeSet<Environment> {
        let mut touched = BTreeSet::new();
        self.records.set_externals(apps, &mut touched);
        let revision = self.reader.load().revision();
        self.swap(&touched, revision, now);
        touched
    }

    /// Takes changes in and publishes them as `revision`; returns the environments they touched.
    ///
    /// # Errors
    /// [`RecordError`] for a value this build cannot read; the others are published all the same,
    /// so that one damaged record does not stop every route.
    pub fn publish<'a>(
        &mut self,
        changes: impl IntoIterator<Item = Change<'a>>,
        revision: u64,
        now: Mono,
    ) -> (BTreeSet<Environment>, Result<(), RecordError>) {
        let mut touched = BTreeSet::new();
        let mut outcome = Ok(());
        for change in changes {
            if let Err(e) = self.records.apply(change, now, &mut touched) {
                outcome = Err(e);
            }
        }
        self.swap(&touched, revision, now);
        (touched, outcome)
    }

    /// Starts over from a full listing, after a watch could not go on. What the listing lacks is
    /// gone from the next snapshot.
    pub fn rebuild<'a>(
        &mut self,
        listing: impl IntoIterator<Item = Change<'a>>,
        revision: u64,
        now: Mono,
    ) -> (BTreeSet<Environment>, Result<(), RecordError>) {
        let mut touched: BTreeSet<_> = self.records.environments().cloned().collect();
        self.records.forget_all();
        let mut outcome = Ok(());
        for change in listing {
            if let Err(e) = self.records.apply(change, now, &mut touched) {
                outcome = Err(e);
            }
        }
        self.swap(&touched, revision, now);
        (touched, outcome)
    }

    fn swap(&mut self, touched: &BTreeSet<Environment>, revision: u64, now: Mono) {
        let next = compile(&self.reader.load(), &self.records, touched, revision);
        self.reader.current.snapshot.store(Arc::new(next));
        self.followed(now);
    }

    /// Notes that the store is being followed at `now`, whether anything changed or not.
    pub fn followed(&self, now: Mono) {
        self.reader.current.published_at.store(now.0, Ordering::Relaxed);
    }
}
