//! Removes what nothing refers to: deployments first, then blobs and trees that no deployment and no running
//! allocation names.
//!
//! Safe to kill anywhere: what is needed is found anew each time, what is removed has no name left, and
//! removing it twice is removing it once. Nothing is removed while a deployment or promotion is being
//! recorded, nor while what is needed cannot be read in full. The history of operations is trimmed by age.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard};

use vango_edge_core::control::keep::{self, Rules};

use crate::artifact::{ArtifactError, Artifacts};
use crate::clock::Wall;
use crate::crash;
use crate::id::DeploymentId;
use crate::node::{Found, Node, ReadError};
use crate::record::{Allocation, Deployment, Promotion, Retired, RouteOwner, key};
use crate::store::{StoreError, TXN_OPS, Txn};

/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A blob that was uploaded or asked for less than this ago may belong to a deployment that is being
/// made.
const UPLOADING: Duration = Duration::from_secs(3600);

/// Deployments removed in one transaction.
const AT_ONCE: usize = 32;

/// What was removed because nothing refers to it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[schema(as = CollectedRow)]
pub struct Collected {
    /// Deployments.
    pub deployments: usize,
    /// Blobs of artifacts.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Unpacked trees.
    pub trees: usize,
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// What is needed could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// An artifact that is needed is not whole, so that it is not known what belongs to it.
    #[error("nothing was collected: {0}; deploy that artifact again")]
    Artifact(#[from] ArtifactError),
}

/// Removes what nothing refers to.
pub struct Collector {
    node: Node,
    artifacts: Arc<Artifacts>,
    /// Read by what records that something is needed, written while what is not is removed.
    collecting: RwLock<()>,
}

impl Collector {
    /// From `artifacts` and the store.
    pub fn new(node: Node, artifacts: Arc<Artifacts>) -> Arc<Self> {
        Arc::new(Self { node, artifacts, collecting: RwLock::default() })
    }

    /// Nothing is collected for as long as this is held.
    pub async fn paused(&self) -> RwLockReadGuard<'_, ()> {
        self.collecting.read().await
    }

    /// Collects for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.collect().await {
                Ok(done) if done == Collected::default() => {}
                Ok(done) => log::info!(
                    "collected {} deployments, {} blobs of {} bytes and {} trees",
                    done.deployments,
                    done.blobs,
                    done.bytes,
                    done.trees
                ),
                Err(e) => log::warn!("{e}"),
            }
        }
    }

    /// Removes what nothing refers to now.
    ///
    /// # Errors
    /// [`CollectError`]; what was removed until then was not needed.
    pub async fn collect(&self) -> Result<Collected, CollectError> {
        let _alone = self.collecting.write().await;
        let mut done =
            Collected { deployments: self.forget_deployments().await?, ..Collected::default() };
        // Marked: everything that what is left needs.
        let (mut blobs, mut artifacts) = (BTreeSet::new(), BTreeSet::new());
        for deployment in self.node.all::<Deployment>(key::DEPLOYMENTS).await? {
            artifacts.insert(deployment.record.digest);
        }
        let mut trees = artifacts.clone();
        for allocation in self.node.all::<Allocation>(key::ALLOCATIONS).await? {
            trees.insert(allocation.record.digest);
        }
        for digest in &artifacts {
            match self.artifacts.parts(digest).await {
                Ok(parts) => blobs.extend(parts),
                // It is gone as a whole: there is nothing of it to keep.
                Err(ArtifactError::Missing(missing)) if missing == *digest => {}
                Err(e) => return Err(e.into()),
            }
        }
        crash::after("collect", "marked");
        // Swept.
        let now = self.node.clock.wall();
        let uploading = UPLOADING.min(self.node.config.load().assets.retention);
        let swept = self.artifacts.sweep(&blobs, &trees, uploading, now).await?;
        (done.blobs, done.bytes, done.trees) = swept;
        Ok(done)
    }

    async fn forget_deployments(&self) -> Result<usize, ReadError> {
        let all = self.node.all::<Deployment>(key::DEPLOYMENTS).await?;
        let all: Vec<_> = all.into_iter().map(|f| f.record).collect();
        let mut used: BTreeSet<DeploymentId> = BTreeSet::new();
        for owner in self.node.all::<RouteOwner>(key::OWNERS).await? {
            used.insert(owner.record.deployment);
        }
        // A host that lost its owner for now may get it back.
        if let Some(Found { record: retired, .. }) = self.node.read::<Retired>(key::RETIRED).await?
        {
            let production = |o: &RouteOwner| o.environment.is_production();
            used.extend(retired.hosts.into_values().filter(production).map(|o| o.deployment));
        }
        for Found { record: p, .. } in self.node.all::<Promotion>(key::PROMOTIONS).await? {
            if p.state.in_progress() {
                used.extend([p.source, p.deployment]);
                used.extend(p.from.map(|f| f.deployment));
            }
        }
        let config = self.node.config.load();
        let rules =
            Rules { retention: config.assets.retention, newest: config.assets.keep_deployments };
        drop(config);
        let gone = keep::removable(&all, &used, rules, self.node.clock.wall());
        for some in gone.chunks(AT_ONCE) {
            let txn = some.iter().fold(Txn::new(), |txn, d| {
                txn.delete(key::deployment(&d.environment, &d.id))
                    .delete(key::evidence(&d.environment, &d.id))
            });
            self.node.store.txn(txn).await?;
            crash::after("collect", "deployments");
        }
        Ok(gone.len())
    }
}

/// Trims the history of operations for as long as the process runs.
pub async fn trim(node: Node) {
    loop {
        match trim_history(&node).await {
            Ok(0) => {}
            Ok(n) => log::info!("{n} old operations were taken off the history"),
            Err(e) => log::warn!("the history of operations was not trimmed: {e}"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn trim_history(node: &Node) -> Result<usize, StoreError> {
    let operations = trim_log(node, key::HISTORY, key::history_from).await?;
    let promotions = trim_log(node, key::PROMOTED, key::promoted_from).await?;
    Ok(operations + promotions + trim_log(node, key::ORDERED, key::ordered_from).await?)
}

async fn trim_log(node: &Node, log: &str, from: fn(Wall) -> String) -> Result<usize, StoreError> {
    let keys: Vec<_> = node.listed(log).await?.into_iter().map(|(key, _)| key).collect();
    let expired = &keys[..keep::expired(&keys, from, node.clock.wall())];
    for some in expired.chunks(TXN_OPS) {
        node.store.txn(some.iter().fold(Txn::new(), |txn, key| txn.delete(key))).await?;
    }
    Ok(expired.len())
}
