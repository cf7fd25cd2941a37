//! What is asked for, found and recorded.

use std::sync::Arc;
use std::time::Duration;

use crate::config::App;
use crate::crash;
use crate::id::{AppName, DeploymentId, Digest, EnvName, Environment, OperationId};
use crate::store::record::{
    Deployment, Evidence, OwnerSeen, Promotion, PromotionKind, PromotionState, Record, RecordError,
    key,
};
use crate::store::{StoreError, Txn};

use super::super::Control;
use super::super::read::ReadError;
use super::judge;

/// What is to own the routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// What this preview runs.
    Preview(EnvName),
    /// This artifact.
    Digest(Digest),
    /// What owned them before.
    Previous,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The operator has no such app, or it takes no deployments.
    #[error("this edge deploys no app {0}; `vango-edge routes` lists those that are deployed")]
    UnknownApp(AppName),
    /// There is no such preview.
    #[error("{0} has no preview {1}: `vango-edge deploy DIR --preview {1}` makes one")]
    NoPreview(AppName, EnvName),
    /// No deployment has the artifact.
    #[error(
        "no deployment of {0} has the artifact {1}: only what was deployed, and validated as that \
         digest, can be promoted; a rebuild is a new deployment"
    )]
    NoSuchArtifact(AppName, Digest),
    /// Nothing else owned the routes.
    #[error("{0} has no earlier artifact to roll back to")]
    NoPrevious(Environment),
    /// It owns the routes already.
    #[error("{0} serves {1} already")]
    Serves(Environment, Digest),
    /// Another one goes on.
    #[error("{id} moves {environment} to sha256:{} already ({state}); wait for it", digest.short())]
    Busy {
        /// Which.
        id: OperationId,
        /// Whose routes.
        environment: Environment,
        /// To what.
        digest: Digest,
        /// Where it is.
        state: &'static str,
    },
    /// Another promotion was quicker.
    #[error(
        "another promotion came first at the same moment; look at `vango-edge ops`, then decide again"
    )]
    Raced,
    /// The store could not be read or changed.
    #[error("{0}")]
    Store(StoreError),
    /// A record could not be read.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// The owners could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

impl From<StoreError> for PromoteError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict { .. } => Self::Raced,
            e => Self::Store(e),
        }
    }
}

/// How often a promotion that goes on is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Control {
    /// Records that `app`'s production is to move to `wanted`, and sees to it that it is carried out.
    ///
    /// # Errors
    /// [`PromoteError`]; nothing was changed then. Whether the evidence is enough is decided later, by
    /// who carries it out.
    pub async fn promote(
        self: &Arc<Self>,
        app: &AppName,
        wanted: &Wanted,
    ) -> Result<Promotion, PromoteError> {
        // What was counted until now counts where one deployment is preferred to another.
        self.flush_evidence().await;
        // What it finds is not collected until it is recorded that it is needed.
        let _collecting = self.collecting.read().await;
        let config = self.config.load().clone();
        let known = config.apps.get(app).filter(|a| a.upstreams.is_none());
        let known = known.ok_or_else(|| PromoteError::UnknownApp(app.clone()))?;
        let environment = Environment::production(app.clone());
        let from = self.owner_seen(&environment).await?;
        let all = self.deployments_of(app).await?;
        let (source, kind) = self.find(known, &environment, wanted, &all, from.as_ref()).await?;
        if from.as_ref().is_some_and(|f| f.digest == source.digest) {
            return Err(PromoteError::Serves(environment, source.digest));
        }
        // Its own deployment of the artifact, if there is one; otherwise one is made of it.
        let own = all.iter().find(|d| d.environment == environment && d.digest == source.digest);
        let deployment = match own {
            Some(own) => own.clone(),
            None => Deployment {
                id: DeploymentId::random(&*self.entropy),
                environment: environment.clone(),
                created: self.clock.wall(),
                replaced: None,
                promoted_from: Some(source.id.clone()),
                ..source.clone()
            },
        };
        self.record_promotion(kind, &source, deployment, from).await
    }

    /// Records that a preview that is awake is to move to `deployment`, which is not recorded yet.
    pub(in crate::control) async fn redeploy(
        self: &Arc<Self>,
        deployment: Deployment,
        from: OwnerSeen,
    ) -> Result<Promotion, PromoteError> {
        let source = deployment.clone();
        self.record_promotion(PromotionKind::Redeploy, &source, deployment, Some(from)).await
    }

    async fn record_promotion(
        self: &Arc<Self>,
        kind: PromotionKind,
        source: &Deployment,
        deployment: Deployment,
        from: Option<OwnerSeen>,
    ) -> Result<Promotion, PromoteError> {
        let environment = deployment.environment.clone();
        let at = key::promotion(&environment);
        let stored = self.store.get(&at).await?;
        let current = stored.as_ref().map(|e| Promotion::decode(&e.value)).transpose()?;
        if let Some(p) = current.filter(|p| p.state.in_progress()) {
            let state = p.state.name();
            return Err(PromoteError::Busy { id: p.id, environment, digest: p.digest, state });
        }
        let now = self.clock.wall();
        let promotion = Promotion {
            id: OperationId::random(&*self.entropy),
            environment: environment.clone(),
            kind,
            source_environment: source.environment.clone(),
            source: source.id.clone(),
            deployment: deployment.id.clone(),
            digest: deployment.digest,
            from,
            state: PromotionState::Requested,
            attempt: 0,
            requested: now,
            changed: now,
            allocation: None,
            epoch: None,
            failure: None,
            statement: None,
        };
        let txn = match &stored {
            Some(e) => Txn::new().unchanged(&at, e.mod_revision),
            None => Txn::new().absent(&at),
        };
        let txn = txn
            .put(&at, promotion.encode())
            .put(key::deployment(&environment, &deployment.id), deployment.encode());
        crash::before("promotion", promotion.state.name());
        self.store.txn(txn.synced()).await?;
        crash::after("promotion", promotion.state.name());
        log::info!(
            "{environment}: {} to {} requested ({})",
            kind.name(),
            promotion.digest,
            promotion.id
        );
        self.consider_promotion(&environment);
        Ok(promotion)
    }

    /// The deployment that is meant, and why.
    async fn find(
        &self,
        app: &App,
        environment: &Environment,
        wanted: &Wanted,
        all: &[Deployment],
        from: Option<&OwnerSeen>,
    ) -> Result<(Deployment, PromotionKind), PromoteError> {
        match wanted {
            Wanted::Preview(name) => {
                let preview = Environment::new(app.name.clone(), name.clone());
                let owner = self.owner_seen(&preview).await?;
                let no_preview = || PromoteError::NoPreview(app.name.clone(), name.clone());
                let owner = owner.filter(|_| preview != *environment).ok_or_else(no_preview)?;
                let found = all.iter().find(|d| d.id == owner.deployment);
                found.cloned().map(|d| (d, PromotionKind::Promote)).ok_or_else(no_preview)
            }
            Wanted::Digest(digest) => {
                let mut found: Vec<_> = all.iter().filter(|d| d.digest == *digest).collect();
                found.sort_by_key(|d| std::cmp::Reverse(d.created));
                let mut best: Option<(usize, &Deployment)> = None;
                for deployment in found {
                    // It served production before: going back to it is rolling back.
                    if deployment.environment == *environment && deployment.replaced.is_some() {
                        return Ok((deployment.clone(), PromotionKind::Rollback));
                    }
                    let evidence = self.evidence_of(deployment).await?;
                    let missing = judge::missing(&app.promotion, evidence.as_ref()).len();
                    if best.is_none_or(|(least, _)| missing < least) {
                        best = Some((missing, deployment));
                    }
                }
                let none = || PromoteError::NoSuchArtifact(app.name.clone(), *digest);
                best.map(|(_, d)| (d.clone(), PromotionKind::Promote)).ok_or_else(none)
            }
            Wanted::Previous => {
                let own: Vec<_> =
                    all.iter().filter(|d| d.environment == *environment).cloned().collect();
                let current = from.map(|f| (&f.deployment, &f.digest));
                let found = judge::previous(&own, current).cloned();
                found
                    .map(|d| (d, PromotionKind::Rollback))
                    .ok_or_else(|| PromoteError::NoPrevious(environment.clone()))
            }
        }
    }

    /// The environment's owner, as the store has it now.
    pub(in crate::control) async fn owner_seen(
        &self,
        environment: &Environment,
    ) -> Result<Option<OwnerSeen>, PromoteError> {
        let owners = self.owners_of(environment).await?;
        let newest = owners.into_iter().map(|(o, _)| o).max_by_key(|o| o.epoch);
        Ok(newest.map(|o| OwnerSeen { deployment: o.deployment, digest: o.digest, epoch: o.epoch }))
    }

    /// Every deployment of every environment of `app`.
    pub(in crate::control) async fn deployments_of(
        &self,
        app: &AppName,
    ) -> Result<Vec<Deployment>, PromoteError> {
        let mut out = Vec::new();
        for (_, entry) in self.listed(&key::deployments_of(app)).await? {
            out.push(Deployment::decode(&entry.value)?);
        }
        Ok(out)
    }

    /// What is known of a deployment.
    pub(in crate::control) async fn evidence_of(
        &self,
        deployment: &Deployment,
    ) -> Result<Option<Evidence>, PromoteError> {
        let at = key::evidence(&deployment.environment, &deployment.id);
        let entry = self.store.get(&at).await?;
        Ok(entry.map(|e| Evidence::decode(&e.value)).transpose()?)
    }

    /// Waits until promotion `id` of `environment` is over, at most `limit`; then as it is.
    ///
    /// # Errors
    /// [`PromoteError`] when the store cannot be read.
    pub async fn promoted(
        &self,
        environment: &Environment,
        id: &OperationId,
        limit: Duration,
    ) -> Result<Option<Promotion>, PromoteError> {
        let started = self.clock.now();
        loop {
            let entry = self.store.get(&key::promotion(environment)).await?;
            let now = entry.map(|e| Promotion::decode(&e.value)).transpose()?;
            match now.filter(|p| p.id == *id) {
                Some(p) if p.state.in_progress() => {
                    if self.clock.now().since(started) >= limit {
                        return Ok(Some(p));
                    }
                }
                // Over; or a later one took its place, and it is in the history.
                over => return Ok(over),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
