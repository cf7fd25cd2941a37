//! Takes a preview away: its hosts have no owner any more, its allocations end, its artifact is kept as long as
//! any that was replaced.

use std::sync::Arc;

use crate::id::{DeploymentId, Environment, OperationId};
use crate::store::record::ledger::Evidence as Decision;
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
    /// It moves to another artifact, or its own is being promoted.
    #[error("{0} moves it to another artifact or promotes its own; wait for it")]
    Busy(OperationId),
    /// Another transaction changed its owner meanwhile.
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
        self.remove(environment, None, "an operator asked for it").await
    }

    /// The same, if it still runs the deployment `only`. `why` is for the audit.
    pub(super) async fn remove(
        self: &Arc<Self>,
        environment: &Environment,
        only: Option<&DeploymentId>,
        why: &str,
    ) -> Result<(), RemoveError> {
        if environment.is_production() {
            return Err(RemoveError::Production(environment.clone()));
        }
        self.flush_evidence().await;
        let _owners = self.changing_owners.lock().await;
        let mut txn = self.not_promoting(Txn::new(), environment, environment).await?;
        let production = Environment::production(environment.app().clone());
        txn = self.not_promoting(txn, &production, environment).await?;
        txn = txn.delete(key::promotion(environment)).delete(key::used(environment));
        let owners = self.owners_of(environment).await?;
        let Some(newest) = owners.iter().map(|(o, _)| o).max_by_key(|o| o.epoch).cloned() else {
            return Err(RemoveError::None(environment.clone()));
        };
        if only.is_some_and(|only| *only != newest.deployment) {
            return Err(RemoveError::Raced);
        }
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
        let revision = self.store.txn(txn.synced()).await?;
        log::info!("{environment} was removed: {why}");
        let now = self.clock.wall();
        (self.decided)(Decision::of_environment(environment, now, "removed", why));
        let (control, environment) = (Arc::clone(self), environment.clone());
        tokio::spawn(async move {
            if let Err(e) = control.sleep(&environment, SleepFor::Command).await {
                log::warn!("{environment}: what ran of it was not ended: {e}");
            }
        });
        self.shown(revision).await;
        Ok(())
    }

    /// The transaction on the condition that no promotion of `moving` stands on `preview`, as none does
    /// now.
    async fn not_promoting(
        &self,
        txn: Txn,
        moving: &Environment,
        preview: &Environment,
    ) -> Result<Txn, RemoveError> {
        let at = key::promotion(moving);
        let Some(entry) = self.store.get(&at).await? else { return Ok(txn.absent(&at)) };
        let p = Promotion::decode(&entry.value).map_err(ReadError::from)?;
        let stands_on_it = p.environment == *preview || p.source_environment == *preview;
        if p.state.in_progress() && stands_on_it {
            return Err(RemoveError::Busy(p.id));
        }
        Ok(txn.unchanged(&at, entry.mod_revision))
    }
}
