//! Promotions as they are asked for: what is meant is found and recorded, and waited for.

use std::sync::Arc;
use std::time::Duration;

use vango_edge_core::control::promotion;

use crate::config::App;
use crate::crash;
use crate::id::{AppName, DeploymentId, Digest, EnvName, Environment, OperationId};
use crate::node::{Found, Node, ReadError, as_read, at_revision};
use crate::record::{Deployment, OwnerSeen, Promotion, PromotionKind, PromotionState, Record, key};
use crate::store::{StoreError, Txn};
use crate::wake::Executor;

use super::collector::Collector;
use super::counts::Counts;
use super::owners::owner_seen;
use super::promotion_work::PromotionWork;

/// How often promotions without an executor are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is to own the routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    /// What this preview runs.
    Preview(EnvName),
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
        /// The promotion that goes on.
        id: OperationId,
        /// The environment whose routes it moves.
        environment: Environment,
        digest: Digest,
        state: &'static str,
    },
    /// Another promotion was quicker.
    #[error(
        "another promotion came first at the same moment; look at `vango-edge ops`, then decide again"
    )]
    Raced,
    /// What is there could not be read or changed.
    #[error("{0}")]
    Read(ReadError),
}

impl From<ReadError> for PromoteError {
    fn from(e: ReadError) -> Self {
        if e.is_conflict() { Self::Raced } else { Self::Read(e) }
    }
}

/// A promotion that is to be recorded.
struct Asked {
    id: OperationId,
    kind: PromotionKind,
    source: Deployment,
    deployment: Deployment,
    /// When the deployment was read; `None` for a new one.
    read_at: Option<u64>,
    from: Option<OwnerSeen>,
    /// What is recorded with it.
    with: Txn,
}

/// How often a promotion that goes on is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Records promotions, and waits for them.
pub struct Promotions {
    node: Node,
    counts: Arc<Counts>,
    collector: Arc<Collector>,
    executor: Arc<Executor<PromotionWork>>,
}

impl Promotions {
    /// Which `executor` carries out; `collector` waits until they are recorded.
    pub fn new(
        node: Node,
        counts: Arc<Counts>,
        collector: Arc<Collector>,
        executor: Arc<Executor<PromotionWork>>,
    ) -> Arc<Self> {
        Arc::new(Self { node, counts, collector, executor })
    }

    /// Takes up promotions that no executor has, for as long as the process runs. The first look lets
    /// go of what an earlier process of this node had claimed.
    pub async fn run(self: Arc<Self>) {
        let mut first = true;
        loop {
            match self.look(first).await {
                Ok(()) => first = false,
                Err(e) => log::warn!("promotions cannot be looked for: {e}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, first: bool) -> Result<(), StoreError> {
        if first {
            self.executor.let_go_of_claims().await?;
        }
        for Found { record: p, .. } in self.node.readable::<Promotion>(key::PROMOTIONS).await? {
            if p.state.in_progress() {
                self.executor.consider(&p.environment);
            }
        }
        Ok(())
    }

    /// Records that `app`'s production is to move to `wanted`, and sees to it that it is carried out.
    ///
    /// # Errors
    /// [`PromoteError`]; nothing was changed then. Whether the evidence is enough is decided later, by
    /// the executor.
    pub async fn promote(
        &self,
        app: &AppName,
        wanted: &Candidate,
    ) -> Result<Promotion, PromoteError> {
        // What was counted until now counts where one deployment is preferred to another.
        self.counts.flush().await;
        // What it finds is not collected until it is recorded that it is needed.
        let _paused = self.collector.paused().await;
        let config = self.node.config.load().clone();
        let known = config.apps.get(app).filter(|a| a.upstreams.is_none());
        let known = known.ok_or_else(|| PromoteError::UnknownApp(app.clone()))?;
        let environment = Environment::production(app.clone());
        let from = self.node.newest_owner(&environment).await?.as_ref().map(owner_seen);
        let found = self.node.all::<Deployment>(&key::deployments_of(app)).await?;
        let all: Vec<_> = found.iter().map(|f| f.record.clone()).collect();
        let (source, kind) = self.find(known, &environment, wanted, &all, from.as_ref()).await?;
        if from.as_ref().is_some_and(|f| f.digest == source.digest) {
            return Err(PromoteError::Serves(environment, source.digest));
        }
        // Its own deployment of the artifact, if there is one; otherwise one is made of it.
        let own = promotion::own(&all, &environment, &source).cloned();
        let read_at = own.as_ref().and_then(|own| found.iter().find(|f| f.record.id == own.id));
        let read_at = read_at.map(|f| f.revision);
        let deployment = match own {
            Some(own) => own,
            None => Deployment {
                id: DeploymentId::random(&*self.node.entropy),
                environment: environment.clone(),
                created: self.node.clock.wall(),
                replaced: None,
                promoted_from: Some(source.id.clone()),
                ..source.clone()
            },
        };
        self.record(Asked { read_at, ..self.asked(kind, source, deployment, from) }).await
    }

    /// Records that an environment is to move to `deployment`, which is not recorded yet.
    pub(super) async fn redeploy(
        &self,
        deployment: Deployment,
        from: Option<OwnerSeen>,
    ) -> Result<Promotion, PromoteError> {
        let source = deployment.clone();
        self.record(self.asked(PromotionKind::Redeploy, source, deployment, from)).await
    }

    /// Records that an environment is to be given other variables, and with them its next epoch; `None` where
    /// it has no owner.
    pub(super) async fn configure(
        &self,
        environment: &Environment,
        with: impl FnOnce(&OperationId) -> Txn,
    ) -> Result<Option<Promotion>, PromoteError> {
        let _paused = self.collector.paused().await;
        let Some(owner) = self.node.newest_owner(environment).await? else { return Ok(None) };
        let at = key::deployment(environment, &owner.deployment);
        let Some(found) = self.node.read::<Deployment>(&at).await? else { return Ok(None) };
        let (source, read_at) = (found.record.clone(), Some(found.revision));
        let from = Some(owner_seen(&owner));
        let asked = self.asked(PromotionKind::Configure, source, found.record, from);
        let with = with(&asked.id);
        self.record(Asked { read_at, with, ..asked }).await.map(Some)
    }

    fn asked(
        &self,
        kind: PromotionKind,
        source: Deployment,
        deployment: Deployment,
        from: Option<OwnerSeen>,
    ) -> Asked {
        let id = OperationId::random(&*self.node.entropy);
        Asked { id, kind, source, deployment, read_at: None, from, with: Txn::new() }
    }

    /// Records it, with the deployment that it moves to.
    async fn record(&self, asked: Asked) -> Result<Promotion, PromoteError> {
        let Asked { id, kind, source, deployment, read_at, from, with } = asked;
        let environment = deployment.environment.clone();
        let at = key::promotion(&environment);
        let stored = self.node.read::<Promotion>(&at).await?;
        let txn = as_read(Txn::new(), &at, stored.as_ref());
        if let Some(p) = stored.map(|f| f.record).filter(|p| p.state.in_progress()) {
            let state = p.state.name();
            return Err(PromoteError::Busy { id: p.id, environment, digest: p.digest, state });
        }
        let now = self.node.clock.wall();
        let promotion = Promotion {
            id,
            environment: environment.clone(),
            kind,
            source_environment: source.environment,
            source: source.id,
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
        let deployment_at = key::deployment(&environment, &deployment.id);
        // It may have been replaced since it was read, and says so then.
        let txn = at_revision(txn, &deployment_at, read_at)
            .put(&at, promotion.encode())
            .put(&deployment_at, deployment.encode())
            .and(with);
        crash::before("promotion", promotion.state.name());
        self.node.commit(txn.synced()).await?;
        crash::after("promotion", promotion.state.name());
        log::info!(
            "{environment}: {} to {} requested ({})",
            kind.name(),
            promotion.digest,
            promotion.id
        );
        self.executor.consider(&environment);
        Ok(promotion)
    }

    /// The deployment that is meant, and why.
    async fn find(
        &self,
        app: &App,
        environment: &Environment,
        wanted: &Candidate,
        all: &[Deployment],
        from: Option<&OwnerSeen>,
    ) -> Result<(Deployment, PromotionKind), PromoteError> {
        match wanted {
            Candidate::Preview(name) => {
                let preview = Environment::new(app.name.clone(), name.clone());
                let owner = self.node.newest_owner(&preview).await?;
                let no_preview = || PromoteError::NoPreview(app.name.clone(), name.clone());
                let owner = owner.filter(|_| preview != *environment).ok_or_else(no_preview)?;
                let found = all.iter().find(|d| d.id == owner.deployment);
                found.cloned().map(|d| (d, PromotionKind::Promote)).ok_or_else(no_preview)
            }
            Candidate::Digest(digest) => {
                let mut found: Vec<_> = all.iter().filter(|d| d.digest == *digest).collect();
                found.sort_by_key(|d| std::cmp::Reverse(d.created));
                let mut best: Option<(usize, &Deployment)> = None;
                for deployment in found {
                    // It served production before: going back to it is rolling back.
                    if deployment.environment == *environment && deployment.replaced.is_some() {
                        return Ok((deployment.clone(), PromotionKind::Rollback));
                    }
                    let evidence = self.counts.of(deployment).await?;
                    let missing = promotion::missing(&app.promotion, evidence.as_ref()).len();
                    if best.is_none_or(|(least, _)| missing < least) {
                        best = Some((missing, deployment));
                    }
                }
                let none = || PromoteError::NoSuchArtifact(app.name.clone(), *digest);
                best.map(|(_, d)| (d.clone(), PromotionKind::Promote)).ok_or_else(none)
            }
            Candidate::Previous => {
                let own: Vec<_> =
                    all.iter().filter(|d| d.environment == *environment).cloned().collect();
                let current = from.map(|f| (&f.deployment, &f.digest));
                let found = promotion::previous(&own, current).cloned();
                found
                    .map(|d| (d, PromotionKind::Rollback))
                    .ok_or_else(|| PromoteError::NoPrevious(environment.clone()))
            }
        }
    }

    /// Waits until the promotion that `begun` recorded is over, at most `limit`; then as it is. `None` for one that
    /// is not there any more.
    ///
    /// # Errors
    /// [`PromoteError`] when the store cannot be read.
    pub async fn wait(
        &self,
        begun: &Promotion,
        limit: Duration,
    ) -> Result<Option<Promotion>, PromoteError> {
        let started = self.node.clock.now();
        loop {
            let now = self.node.read::<Promotion>(&key::promotion(&begun.environment)).await?;
            match now.map(|f| f.record).filter(|p| p.id == begun.id) {
                Some(p) if p.state.in_progress() => {
                    if self.node.clock.now().since(started) >= limit {
                        return Ok(Some(p));
                    }
                }
                Some(over) => return Ok(Some(over)),
                // It is over, and a later one took its place between two looks.
                None => {
                    let at = key::promoted(begun.requested, &begun.id);
                    return Ok(self.node.read::<Promotion>(&at).await?.map(|f| f.record));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
