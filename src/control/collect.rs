//! Removes what nothing refers to: deployments first, then blobs and trees that no deployment and no running
//! allocation names.
//!
//! Safe to kill anywhere: what is needed is found anew each time, what is removed has no name left, and
//! removing it twice is removing it once. Nothing is removed while a deployment or promotion is being
//! recorded, nor while what is needed cannot be read in full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::ArtifactError;
use crate::crash;
use crate::id::DeploymentId;
use crate::store::record::{Allocation, Deployment, Promotion, Record, RouteOwner, key};
use crate::store::{StoreError, Txn};

use super::Control;
use super::keep::{self, Rules};
use super::read::ReadError;

/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A blob that was uploaded or asked for less than this ago may belong to a deployment that is being
/// made.
const UPLOADING: Duration = Duration::from_secs(3600);

/// Deployments removed in one transaction.
const AT_ONCE: usize = 32;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

impl From<StoreError> for CollectError {
    fn from(e: StoreError) -> Self {
        Self::Read(e.into())
    }
}

impl Control {
    /// Collects for as long as the process runs.
    pub async fn collect_forever(self: &Arc<Self>) {
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
        for deployment in self.all_deployments().await? {
            artifacts.insert(deployment.digest);
        }
        let mut trees = artifacts.clone();
        for (_, entry) in self.listed(key::ALLOCATIONS).await? {
            trees.insert(Allocation::decode(&entry.value).map_err(ReadError::from)?.digest);
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
        let now = self.clock.wall();
        let uploading = UPLOADING.min(self.config.load().assets.retention);
        let swept = self.artifacts.sweep(&blobs, &trees, uploading, now).await?;
        (done.blobs, done.bytes, done.trees) = swept;
        Ok(done)
    }

    async fn all_deployments(&self) -> Result<Vec<Deployment>, ReadError> {
        let listed = self.listed(key::DEPLOYMENTS).await?;
        let decoded = listed.iter().map(|(_, entry)| Deployment::decode(&entry.value));
        Ok(decoded.collect::<Result<_, _>>()?)
    }

    async fn forget_deployments(&self) -> Result<usize, ReadError> {
        let all = self.all_deployments().await?;
        let mut used: BTreeSet<DeploymentId> = BTreeSet::new();
        for (_, entry) in self.listed(key::OWNERS).await? {
            used.insert(RouteOwner::decode(&entry.value)?.deployment);
        }
        // A host that lost its owner for now may get it back.
        if let Some(entry) = self.store.get(key::RETIRED).await? {
            let retired = crate::store::record::Retired::decode(&entry.value)?;
            let production = |o: &RouteOwner| o.environment.is_production();
            used.extend(retired.hosts.into_values().filter(production).map(|o| o.deployment));
        }
        for (_, entry) in self.listed(key::PROMOTIONS).await? {
            let p = Promotion::decode(&entry.value)?;
            if p.state.in_progress() {
                used.extend([p.source, p.deployment]);
                used.extend(p.from.map(|f| f.deployment));
            }
        }
        let config = self.config.load();
        let rules =
            Rules { retention: config.assets.retention, newest: config.assets.keep_deployments };
        drop(config);
        let gone = keep::removable(&all, &used, rules, self.clock.wall());
        for some in gone.chunks(AT_ONCE) {
            let txn = some.iter().fold(Txn::new(), |txn, d| {
                txn.delete(key::deployment(&d.environment, &d.id))
                    .delete(key::evidence(&d.environment, &d.id))
            });
            self.store.txn(txn).await?;
            crash::after("collect", "deployments");
        }
        Ok(gone.len())
    }
}
