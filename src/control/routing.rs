//! Follows the store: list, then watch; publishes each revision and tells those it concerns.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::Artifacts;
use crate::id::Environment;
use crate::node::Node;
use crate::record::{RecordError, key};
use crate::snapshot::{Change, ExternalApp, Publisher};
use crate::sockets::Sockets;
use crate::store::{EventKind, StoreError};
use crate::wake::Wakes;
use crate::wake::hold::HoldQueues;

/// Pause before the store is listed again after it could not be followed.
const AGAIN: Duration = Duration::from_millis(500);

/// How long routing waits for one asset index.
const INDEX_DEADLINE: Duration = Duration::from_secs(5);

/// How long a command waits for this node's routing to show what it did. Longer than an index may take; after
/// that it is answered all the same, and routing shows it once the store can be followed again.
const SHOWN_WITHIN: Duration = Duration::from_secs(8);

/// Apps that this edge does not run, as the configuration in force has them.
pub type Externals = tokio::sync::watch::Receiver<Arc<Vec<ExternalApp>>>;

/// What this node's routing shows.
#[derive(Debug, Default)]
struct Shown {
    /// Up to which revision of the store.
    revision: u64,
    /// Which apps that this edge does not run.
    externals: Option<Arc<Vec<ExternalApp>>>,
}

/// Follows shared truth, and shows it.
pub struct Routing {
    node: Node,
    artifacts: Arc<Artifacts>,
    sockets: Arc<Sockets>,
    queues: Arc<HoldQueues>,
    wakes: Arc<Wakes>,
    /// For commands that wait for it.
    shown: tokio::sync::watch::Sender<Shown>,
}

impl Routing {
    /// What it publishes concerns `sockets`, `queues` and `wakes`.
    pub fn new(
        node: Node,
        artifacts: Arc<Artifacts>,
        wakes: Arc<Wakes>,
        queues: Arc<HoldQueues>,
        sockets: Arc<Sockets>,
    ) -> Arc<Self> {
        let shown = tokio::sync::watch::Sender::default();
        Arc::new(Self { node, artifacts, sockets, queues, wakes, shown })
    }

    /// Waits until routing shows the store's `revision`, so that the client of a command finds what it did.
    pub async fn shown(&self, revision: u64) {
        self.shows(|shown| shown.revision >= revision).await;
    }

    /// The same, for the apps that this edge does not run, as they are now.
    pub async fn shown_externals(&self, externals: &Externals) {
        let now = Arc::clone(&externals.borrow());
        self.shows(|s| s.externals.as_ref().is_some_and(|e| Arc::ptr_eq(e, &now))).await;
    }

    async fn shows(&self, what: impl FnMut(&Shown) -> bool) {
        let mut shown = self.shown.subscribe();
        let _ = tokio::time::timeout(SHOWN_WITHIN, shown.wait_for(what)).await;
    }

    /// Follows the store for as long as the process runs. The last good snapshot serves meanwhile.
    /// `ready` is told after the first listing.
    pub async fn follow(
        &self,
        mut publisher: Publisher,
        mut externals: Externals,
        ready: tokio::sync::oneshot::Sender<()>,
    ) {
        let mut ready = Some(ready);
        let now = self.node.clock.now();
        let apps = externals.borrow_and_update().clone();
        publisher.externals(&apps, now);
        self.shown.send_modify(|s| s.externals = Some(apps));
        loop {
            match self.follow_from_listing(&mut publisher, &mut externals, &mut ready).await {
                Ok(()) | Err(StoreError::Closed) => return,
                Err(StoreError::Compacted { .. }) => {
                    log::info!("the watch fell behind; listing the store again");
                }
                Err(e) => {
                    log::warn!("the store cannot be followed: {e}; the last snapshot serves");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn follow_from_listing(
        &self,
        publisher: &mut Publisher,
        externals: &mut Externals,
        ready: &mut Option<tokio::sync::oneshot::Sender<()>>,
    ) -> Result<(), StoreError> {
        // Subscribed before it is listed: what changes while the pages are read comes again.
        let from = self.node.store.revision().await? + 1;
        let mut watch = self.node.store.watch("", from).await?;
        let mut listing = Vec::new();
        for prefix in [key::OWNERS, key::DEPLOYMENTS, key::ALLOCATIONS, key::OPERATIONS] {
            listing.extend(self.node.listed(prefix).await?);
        }
        let now = self.node.clock.now();
        let changes = listing.iter().map(|(key, entry)| Change { key, value: Some(&entry.value) });
        self.supply(publisher, changes.clone()).await;
        let (touched, read) = publisher.rebuild(changes, from - 1, now);
        self.published(touched, read.err());
        if let Some(ready) = ready.take() {
            // The receiver is gone only when startup was given up.
            let _ = ready.send(());
        }
        loop {
            let events = tokio::select! {
                events = tokio::time::timeout(Duration::from_secs(1), watch.next()) => events,
                changed = externals.changed() => {
                    if changed.is_err() {
                        // The sender of reloads is gone: the process ends.
                        return Ok(());
                    }
                    let apps = externals.borrow_and_update().clone();
                    self.published(publisher.externals(&apps, self.node.clock.now()), None);
                    self.shown.send_modify(|s| s.externals = Some(apps));
                    continue;
                }
            };
            let events = match events {
                Ok(events) => events?,
                Err(_) => {
                    publisher.followed(self.node.clock.now());
                    continue;
                }
            };
            // A batch is one revision ([`Watch::next`]).
            let Some(revision) = events.first().map(|e| e.revision) else { continue };
            let changes = events.iter().map(|e| Change {
                key: &e.key,
                value: match &e.kind {
                    EventKind::Put(entry) => Some(&entry.value[..]),
                    EventKind::Delete => None,
                },
            });
            self.supply(publisher, changes.clone()).await;
            let (touched, read) = publisher.publish(changes, revision, self.node.clock.now());
            self.published(touched, read.err());
            for event in &events {
                // An executor let go, or was lost: its operation may be claimable.
                if matches!(event.kind, EventKind::Delete)
                    && let Some(environment) = event.key.strip_prefix(key::EXECUTORS)
                    && let Ok(environment) = environment.parse()
                {
                    self.wakes.executor.consider_if_open(&environment);
                }
            }
        }
    }

    /// Reads the asset indexes that `changes` name from the artifact store. One that cannot be had is
    /// left out: routing answers for it that it is unavailable.
    async fn supply<'a>(
        &self,
        publisher: &mut Publisher,
        changes: impl IntoIterator<Item = Change<'a>>,
    ) {
        for digest in publisher.lacking(changes) {
            let read = self.artifacts.asset_index(&digest);
            match tokio::time::timeout(INDEX_DEADLINE, read).await {
                Ok(Ok(index)) => publisher.supply(digest, index),
                Ok(Err(e)) => log::error!("static files are unavailable: {e}"),
                Err(_) => {
                    log::error!("static files are unavailable: {digest} was not read in time")
                }
            }
        }
    }

    fn published(&self, touched: BTreeSet<Environment>, error: Option<RecordError>) {
        if let Some(e) = error {
            log::error!("a record was left out of routing: {e}");
        }
        let snapshot = Arc::clone(&self.node.snapshots.load());
        self.shown.send_modify(|s| s.revision = snapshot.revision());
        for environment in &touched {
            // What was being put to sleep and was taken back gives out places again, before those who
            // wait are looked at.
            let ready = snapshot.environment(environment).map_or(&[][..], |v| &v.ready[..]);
            for allocation in ready {
                allocation.load.unseal();
            }
            if !ready.is_empty() {
                self.sockets.awake(environment);
            }
            self.wakes.executor.consider_if_open(environment);
            self.queues.pump(environment);
        }
    }
}
