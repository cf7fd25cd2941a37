//! From an uploaded artifact to a deployment. The first one of an app owns the app's hosts; a later one
//! takes them over as a promotion does, unless the operator gave the app a promotion policy: then it is
//! stored, and production moves by `promote`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::ArtifactError;
use crate::assets::AssetIndex;
use crate::config::{self, App, Config, Diagnostic};
use crate::contract::{self, Contract};
use crate::id::{AppName, DeploymentId, Digest, EnvName, Environment, Epoch, Host};
use crate::store::record::{
    Deployment, OwnerSeen, Promotion, PromotionState, Record, RecordError, RouteOwner, key,
};
use crate::store::{StoreError, Txn};

use super::hosts::HostsError;
use super::promotion::{PromoteError, judge};
use super::read::ReadError;
use super::{Control, plan};

/// How long a command that deploys waits for the move to its artifact.
const MOVING: Duration = Duration::from_secs(300);

/// Why a deployment was refused. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The artifact is damaged, incomplete or hostile.
    #[error("{0}")]
    Artifact(#[from] ArtifactError),
    /// Its contract has errors.
    #[error("the artifact's vango-edge.toml has {} errors", .0.len())]
    Contract(Vec<Diagnostic>),
    /// Its static files are not those of its contract.
    #[error("the artifact's index of static files is not of its contract: {0}; deploy it again")]
    Assets(&'static str),
    /// A preview has another name than production.
    #[error("production is no preview: leave --preview out")]
    NotAPreview,
    /// The operator's configuration gives the preview no host.
    #[error(
        "{app} has no host for the preview {preview}: add `preview_hosts = [\"{{preview}}.preview.…\"]` \
         to conf/apps/{app}.toml, or choose a shorter name"
    )]
    NoPreviewHost {
        /// The app.
        app: AppName,
        /// The preview.
        preview: EnvName,
    },
    /// It did not come to run the artifact.
    #[error("{0} goes on with what it ran: {1}")]
    Moving(Environment, String),
    /// The operator has no such app.
    #[error(
        "this edge has no app {app}: add conf/apps/{app}.toml with `app = \"{app}\"` and its hosts; \
         it has {known}"
    )]
    UnknownApp {
        /// The contract's name.
        app: AppName,
        /// Those there are.
        known: String,
    },
    /// This edge does not run the app.
    #[error("{0} has upstreams, which this edge does not run: it takes no deployments")]
    Static(AppName),
    /// Its `state.schema_file` carries no hash.
    #[error("state.schema_file {file}: {why}")]
    Schema {
        /// The file, as the contract names it.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another app owns a host.
    #[error("{host} is owned by {owner}; take it off that app first")]
    HostTaken {
        /// The host.
        host: Host,
        /// Who owns it.
        owner: Environment,
    },
    /// A timeout of the edge ends a held request before its app's wake budget does.
    #[error("{0}")]
    Budget(String),
    /// Another transaction changed the owners meanwhile.
    #[error("the owners changed meanwhile; nothing was done, deploy again")]
    Raced,
    /// The store could not be read or changed.
    #[error("{0}")]
    Store(StoreError),
    /// A record could not be read.
    #[error("{0}")]
    Record(#[from] RecordError),
}

impl From<StoreError> for DeployError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict { .. } => Self::Raced,
            e => Self::Store(e),
        }
    }
}

impl From<HostsError> for DeployError {
    fn from(e: HostsError) -> Self {
        match e {
            HostsError::Store(e) => e.into(),
            HostsError::Record(e) => e.into(),
        }
    }
}

impl From<PromoteError> for DeployError {
    fn from(e: PromoteError) -> Self {
        match e {
            PromoteError::Store(e) => e.into(),
            PromoteError::Record(e) => e.into(),
            PromoteError::Read(ReadError::Store(e)) => e.into(),
            PromoteError::Read(ReadError::Record(e)) => e.into(),
            _ => Self::Raced,
        }
    }
}

/// What a deployment came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Deployed {
    /// Its id.
    #[schema(value_type = String)]
    pub deployment: DeploymentId,
    /// For which environment.
    #[schema(value_type = String)]
    pub environment: Environment,
    /// Its artifact.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The epoch under which it owns its hosts; `None` when another deployment owns them.
    #[schema(value_type = Option<u64>)]
    pub epoch: Option<Epoch>,
    /// The hosts it owns.
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<Host>,
    /// What that changed.
    pub effect: Effect,
    /// For `stored`: the commands that bring it to production, one a line, where `DIR` is the artifact's
    /// directory and `NAME` a preview's name of your choice. Lines that begin with `#` say what else is
    /// needed in between.
    pub next: Vec<String>,
}

/// What a deployment changed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It owns the environment's hosts. Nothing was started.
    Owns,
    /// An allocation of it was made ready, then it took the hosts over from what served before.
    Moved,
    /// The environment serves this very artifact already; no deployment was made.
    Unchanged,
    /// Another deployment owns the hosts: the app has a promotion policy.
    Stored,
}

/// An artifact without an index is one that another tool made: its app answers for its static files.
fn check_assets(contract: &Contract, index: Option<&AssetIndex>) -> Result<(), DeployError> {
    match (&contract.assets, index) {
        (_, None) => Ok(()),
        (None, Some(_)) => Err(DeployError::Assets("the contract has no [assets]")),
        (Some(a), Some(index)) if a.dir == index.dir() && a.prefix == index.prefix() => Ok(()),
        _ => Err(DeployError::Assets("[assets] has another dir or prefix")),
    }
}

impl Control {
    /// Makes a deployment of the uploaded artifact `digest`, for production or for `preview`. What serves
    /// moves as a promotion does, so that no request fails for it: production always, so that what does not
    /// start changes nothing, and a preview that is awake; one that sleeps takes its hosts at once.
    ///
    /// # Errors
    /// [`DeployError`]; nothing is half done: owners and deployment are one transaction.
    pub async fn deploy(
        self: &Arc<Self>,
        digest: Digest,
        preview: Option<&EnvName>,
    ) -> Result<Deployed, DeployError> {
        // Nothing of it is collected until it is recorded.
        let _collecting = self.collecting.read().await;
        let verified = self.artifacts.verify(&digest).await?;
        let contract = contract::parse(Path::new("vango-edge.toml"), &verified.contract)
            .map_err(DeployError::Contract)?;
        self.app(&contract.app)?;
        check_assets(&contract, verified.assets.as_ref().map(|(_, index)| &**index))?;
        // Unpacked now, so that the first wake need not, and a full disk is told to who deploys.
        let tree = self.worker.tree(&digest).await?;
        let schema = schema_of(&contract, &tree)?;
        let environment = match preview {
            None => Environment::production(contract.app.clone()),
            Some(name) => Environment::new(contract.app.clone(), name.clone()),
        };
        if preview.is_some() && environment.is_production() {
            return Err(DeployError::NotAPreview);
        }
        // A reload waits: owners follow the configuration that is in force when they are written.
        let _owners = self.changing_owners.lock().await;
        let app = self.app(&contract.app)?;
        let hosts = self.hosts_for(&app, &environment)?;
        let enclosing = config::reload::enclosing(&self.config.load().server);
        if let Some(e) = plan::budget_error(&environment, contract.wake.budget, enclosing) {
            return Err(DeployError::Budget(e));
        }
        let retired = self.retired().await?.0;
        let deployment = Deployment {
            id: DeploymentId::random(&*self.entropy),
            environment: environment.clone(),
            digest,
            contract: verified.contract,
            created: self.clock.wall(),
            files: verified.files,
            bytes: verified.bytes,
            assets: verified.assets.as_ref().map(|(digest, _)| *digest),
            replaced: None,
            promoted_from: None,
            schema,
        };
        let mut seen = BTreeMap::new();
        let mut owner: Option<OwnerSeen> = None;
        for host in &hosts {
            let entry = self.store.get(&key::owner(host, "/")).await?;
            let found = entry
                .map(|e| RouteOwner::decode(&e.value).map(|o| (o, e.mod_revision)))
                .transpose()?;
            if let Some((o, _)) = found.as_ref().filter(|(o, _)| o.environment == environment)
                && owner.as_ref().is_none_or(|known| known.epoch < o.epoch)
            {
                let (deployment, digest) = (o.deployment.clone(), o.digest);
                owner = Some(OwnerSeen { deployment, digest, epoch: o.epoch });
            }
            if let Some((o, _)) = found.as_ref().filter(|(o, _)| o.environment != environment) {
                let (host, owner) = (host.clone(), o.environment.clone());
                return Err(DeployError::HostTaken { host, owner });
            }
            seen.insert(host.clone(), found);
        }
        if let Some(from) = &owner {
            if preview.is_none() && from.digest == digest {
                return self.unchanged(&environment, from, hosts).await;
            }
            let moves = if preview.is_some() { self.is_awake(&environment) } else { !app.gated };
            if moves {
                drop(_owners);
                return self.deploy_moving(deployment, from.clone(), hosts).await;
            }
        }
        let at = key::deployment(&environment, &deployment.id);
        let mut txn = Txn::new().absent(&at).put(&at, deployment.encode());
        let mut epoch = None;
        if owner.is_none() || preview.is_some() {
            if let Some(before) = owner {
                txn = self.replaced(txn, &environment, &before.deployment).await?;
            }
            let owners = plan::take_hosts(&deployment, &hosts, &seen, &retired)
                .map_err(|(host, owner)| DeployError::HostTaken { host, owner })?;
            for (owner, replaces) in owners {
                let at = key::owner(&owner.host, &owner.path);
                epoch = Some(owner.epoch);
                txn = match replaces {
                    Some(revision) => txn.unchanged(&at, revision),
                    None => txn.absent(&at),
                };
                txn = txn.put(&at, owner.encode());
            }
        }
        // What was counted for the deployment that is replaced is still known to be its.
        self.flush_evidence().await;
        let revision = self.store.txn(txn.synced()).await?;
        self.note(&deployment).await;
        self.shown(revision).await;
        let stored = epoch.is_none();
        Ok(Deployed {
            deployment: deployment.id,
            environment,
            digest,
            hosts: if stored { Vec::new() } else { hosts },
            epoch,
            effect: if stored { Effect::Stored } else { Effect::Owns },
            next: if stored { self.to_production(&app, digest).await? } else { Vec::new() },
        })
    }

    /// The environment serves this artifact. What follows the store is told of its deployment again, so
    /// that parts of it that were damaged and were just uploaded are read.
    async fn unchanged(
        &self,
        environment: &Environment,
        owner: &OwnerSeen,
        hosts: Vec<Host>,
    ) -> Result<Deployed, DeployError> {
        if let Some(entry) = self.store.get(&key::promotion(environment)).await? {
            let p = Promotion::decode(&entry.value)?;
            if p.state.in_progress() {
                let why = format!("{} moves it to {} just now; wait for it", p.id, p.digest);
                return Err(DeployError::Moving(environment.clone(), why));
            }
        }
        let at = key::deployment(environment, &owner.deployment);
        if let Some(entry) = self.store.get(&at).await? {
            let txn = Txn::new().unchanged(&at, entry.mod_revision);
            let revision = self.store.txn(txn.put(&at, entry.value.to_vec())).await?;
            self.shown(revision).await;
        }
        Ok(Deployed {
            deployment: owner.deployment.clone(),
            environment: environment.clone(),
            digest: owner.digest,
            epoch: Some(owner.epoch),
            hosts,
            effect: Effect::Unchanged,
            next: Vec::new(),
        })
    }

    /// The commands by which `digest` comes to production of an app with a promotion policy.
    async fn to_production(&self, app: &App, digest: Digest) -> Result<Vec<String>, DeployError> {
        let name = &app.name;
        for one in self.deployments_of(name).await?.iter().filter(|d| d.digest == digest) {
            let evidence = self.evidence_of(one).await?;
            if judge::missing(&app.promotion, evidence.as_ref()).is_empty() {
                return Ok(vec![format!("vango-edge promote {name} {digest}")]);
            }
        }
        let mut next = Vec::new();
        if app.preview_hosts.is_empty() {
            next.push(format!(
                "# add `preview_hosts = [\"{{preview}}.preview.…\"]` to conf/apps/{name}.toml, then: \
                 vango-edge reload"
            ));
        }
        next.push("vango-edge deploy DIR --preview NAME".into());
        let asked = app.promotion.min_requests;
        if asked > 0 {
            let host = app.preview_hosts.first().map(|p| format!("{}NAME{}", p.before, p.after));
            let at = host.map_or_else(String::new, |host| format!(" at {host}"));
            next.push(format!(
                "# let it answer {asked} requests{at}; errors among them at most: {}",
                app.promotion.max_error_rate
            ));
        }
        if !app.promotion.checks.is_empty() {
            let checks: Vec<_> =
                app.promotion.checks.iter().map(|c| format!("--check {c}=passed")).collect();
            next.push(format!("vango-edge evidence {name} NAME {}", checks.join(" ")));
        }
        next.push(format!("vango-edge promote {name} NAME"));
        Ok(next)
    }

    /// Moves an environment to its next artifact, and waits for it.
    async fn deploy_moving(
        self: &Arc<Self>,
        deployment: Deployment,
        from: OwnerSeen,
        hosts: Vec<Host>,
    ) -> Result<Deployed, DeployError> {
        let (id, environment) = (deployment.id.clone(), deployment.environment.clone());
        let digest = deployment.digest;
        self.note(&deployment).await;
        let failed = |e: PromoteError| DeployError::Moving(environment.clone(), e.to_string());
        let moving = self.redeploy(deployment, from).await.map_err(failed)?;
        let over = self.promoted(&environment, &moving.id, MOVING).await.map_err(failed)?;
        match over {
            Some(p) if p.state == PromotionState::Healthy => {
                let (epoch, effect) = (p.epoch, Effect::Moved);
                let next = Vec::new();
                Ok(Deployed { deployment: id, environment, digest, epoch, hosts, effect, next })
            }
            Some(p) if p.state.in_progress() => {
                let why = format!(
                    "the move to {digest} takes longer than {MOVING:?} and goes on; `vango-edge ops` \
                     says how it ends ({})",
                    p.id
                );
                Err(DeployError::Moving(environment, why))
            }
            Some(p) => {
                let why = p.failure.map_or("no reason".to_owned(), |f| f.detail);
                let why = format!("{} is {}: {why}", p.id, p.state.name());
                Err(DeployError::Moving(environment, why))
            }
            None => Err(DeployError::Raced),
        }
    }

    /// The deployment that another one replaces says since when.
    async fn replaced(
        &self,
        txn: Txn,
        environment: &Environment,
        before: &DeploymentId,
    ) -> Result<Txn, DeployError> {
        let at = key::deployment(environment, before);
        let Some(entry) = self.store.get(&at).await? else { return Ok(txn) };
        let record = Deployment::decode(&entry.value)?;
        let replaced = Deployment { replaced: Some(self.clock.wall()), ..record };
        Ok(txn.unchanged(&at, entry.mod_revision).put(&at, replaced.encode()))
    }

    fn is_awake(&self, environment: &Environment) -> bool {
        self.snapshots.load().environment(environment).is_some_and(|v| !v.ready.is_empty())
    }

    async fn note(&self, deployment: &Deployment) {
        let notes = BTreeMap::from([
            ("org.opencontainers.image.ref.name".to_owned(), deployment.environment.to_string()),
            ("org.opencontainers.image.created".to_owned(), deployment.created.to_string()),
        ]);
        if let Err(e) = self.artifacts.note(&deployment.digest, notes).await {
            // The index is for other tools; nothing here reads it.
            log::warn!("index.json of the artifact store was not written: {e}");
        }
    }

    /// The hosts that `environment` is to own.
    fn hosts_for(&self, app: &App, environment: &Environment) -> Result<Vec<Host>, DeployError> {
        let hosts = app.hosts_of(environment);
        if hosts.is_empty() {
            return Err(DeployError::NoPreviewHost {
                app: app.name.clone(),
                preview: environment.name().clone(),
            });
        }
        if !environment.is_production() {
            // Another app may name it in its configuration, and not be deployed yet.
            let config = self.config.load();
            let named = |host: &&Host| config.apps.values().any(|a| a.hosts.contains(host));
            if let Some(host) = hosts.iter().find(named) {
                let owner = config.apps.values().find(|a| a.hosts.contains(host));
                let owner = owner.map_or_else(|| environment.app().clone(), |a| a.name.clone());
                let owner = Environment::production(owner);
                return Err(DeployError::HostTaken { host: host.clone(), owner });
            }
        }
        Ok(hosts)
    }

    fn app(&self, name: &AppName) -> Result<App, DeployError> {
        app_of(&self.config.load(), name).cloned()
    }
}

/// The app that takes deployments of this name.
pub(super) fn app_of<'c>(config: &'c Config, name: &AppName) -> Result<&'c App, DeployError> {
    let Some(app) = config.apps.get(name) else {
        let known: Vec<_> = config.apps.keys().map(ToString::to_string).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(DeployError::UnknownApp { app: name.clone(), known });
    };
    if app.upstreams.is_some() {
        return Err(DeployError::Static(name.clone()));
    }
    Ok(app)
}

/// Largest schema file that is read.
const MAX_SCHEMA: u64 = 1024 * 1024;

/// The hash in the artifact's `state.schema_file`, where the contract names one: Vango's
/// `vango_state_schema.json` has it under `schemaHash`. Blocks for reading at most a mebibyte.
pub(super) fn schema_of(contract: &Contract, tree: &Path) -> Result<Option<Digest>, DeployError> {
    let Some(file) = contract.state.as_ref().and_then(|s| s.schema_file.clone()) else {
        return Ok(None);
    };
    #[derive(serde::Deserialize)]
    struct Schema {
        #[serde(rename = "schemaHash")]
        hash: Digest,
    }
    let wrong = |why: String| DeployError::Schema { file: file.clone(), why };
    let path = tree.join(&file);
    let size = std::fs::metadata(&path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_SCHEMA {
        return Err(wrong(format!("larger than {MAX_SCHEMA} bytes")));
    }
    let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    let schema: Schema = serde_json::from_slice(&text)
        .map_err(|e| wrong(format!("expected an object with \"schemaHash\": \"sha256:…\": {e}")))?;
    Ok(Some(schema.hash))
}
