//! Takes a preview away: its hosts are nobody's, its allocations end, its artifact is kept as long as
//! any that was replaced.

use std::sync::Arc;

use crate::id::{Environment, OperationId};
use crate::store::record::{Deployment, Promotion, Record, key};
use crate::store::{StoreError, Txn};

use super::Control;
use super::hosts::HostsError;
use super::plan::sleep::SleepFor;
use super::read::ReadError;

/// Why a preview was not removed. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Production goes only with its app's configuration.
    #[error("{0} is no preview: production goes when its app's file under conf/apps does")]
    Production(Environment),
    /// There is no such preview.
    #[error("there is no preview {0}; `vango-edge routes` lists them")]
    None(Environment),
    /// It is moving to another artifact.
    #[error("{0} moves it to another artifact; wait for it")]
    Busy(OperationId),
    /// Somebody else changed its owner meanwhile.
    #[error("its owner changed meanwhile; nothing was done, try again")]
    Raced,
    /// What is there could not be read or changed.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// The hosts without an owner could not be read.
    #[error("{0}")]
    Hosts(#[from] HostsError),
}

impl From<StoreError> for RemoveError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict { .. } => Self::Raced,
            e => Self::Read(e.into()),
        }
    }
}

impl Control {
    /// Removes a preview.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove_preview(
        self: &Arc<Self>,
        environment: &Environment,
    ) -> Result<(), RemoveError> {
        if environment.is_production() {
            return Err(RemoveError::Production(environment.clone()));
        }
        self.flush_evidence().await;
        let _owners = self.changing_owners.lock().await;
        let at = key::promotion(environment);
        let moving = self.store.get(&at).await?;
        let mut txn = match &moving {
            Some(entry) => {
                let p = Promotion::decode(&entry.value).map_err(ReadError::from)?;
                if p.state.in_progress() {
                    return Err(RemoveError::Busy(p.id));
                }
                Txn::new().unchanged(&at, entry.mod_revision).delete(&at)
            }
            None => Txn::new().absent(&at),
        };
        let owners = self.owners_of(environment).await?;
        let Some(newest) = owners.iter().map(|(o, _)| o).max_by_key(|o| o.epoch).cloned() else {
            return Err(RemoveError::None(environment.clone()));
        };
        let (mut retired, retired_at) = self.retired().await?;
        for (owner, revision) in owners {
            let at = key::owner(&owner.host, &owner.path);
            txn = txn.unchanged(&at, revision).delete(&at);
            // So that no later owner of the host begins at an epoch that was there before.
            retired.add(owner);
        }
        txn = match retired_at {
            Some(revision) => txn.unchanged(key::RETIRED, revision),
            None => txn.absent(key::RETIRED),
        };
        txn = txn.put(key::RETIRED, retired.encode());
        let at = key::deployment(environment, &newest.deployment);
        if let Some(entry) = self.store.get(&at).await? {
            let last = Deployment::decode(&entry.value).map_err(ReadError::from)?;
            let replaced = Deployment { replaced: Some(self.clock.wall()), ..last };
            txn = txn.unchanged(&at, entry.mod_revision).put(&at, replaced.encode());
        }
        self.store.txn(txn.synced()).await?;
        log::info!("{environment} was removed");
        let (control, environment) = (Arc::clone(self), environment.clone());
        tokio::spawn(async move {
            if let Err(e) = control.sleep(&environment, SleepFor::Command).await {
                log::warn!("{environment}: what ran of it was not ended: {e}");
            }
        });
        Ok(())
    }
}
