//! Deployments: from an uploaded artifact to what owns an environment's hosts, or to why it is refused.
//!
//! The first one of an app owns the app's hosts; a later one takes them over as a promotion does, unless the
//! operator gave the app a promotion policy: then it is stored, and production moves by `promote`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLockReadGuard;
use vango_edge_core::control::promotion;

use crate::artifact::{ArtifactError, ArtifactSource, Decoded};
use crate::assets::AssetIndex;
use crate::config::{self, App, Config, Diagnostic};
use crate::contract::{self, Contract};
use crate::id::{AppName, DeploymentId, Digest, EnvName, Environment, Epoch, Host};
use crate::node::{Node, ReadError};
use crate::record::{Deployment, OwnerSeen, Promotion, PromotionState, Record, key};
use crate::store::Txn;
use crate::wake::Starts;

use super::collector::Collector;
use super::counts::Counts;
use super::owners::{Owners, TakeError};
use super::promotions::{PromoteError, Promotions};
use super::routing::Routing;

/// How long a command that deploys waits for the move to its artifact.
const MOVING: Duration = Duration::from_secs(300);

/// Largest schema file that is read.
const MAX_SCHEMA: u64 = 1024 * 1024;

/// Makes deployments.
pub struct Deployments {
    pub node: Node,
    pub artifacts: Arc<dyn ArtifactSource>,
    /// Lays trees out.
    pub starts: Arc<Starts>,
    pub owners: Arc<Owners>,
    pub routing: Arc<Routing>,
    pub counts: Arc<Counts>,
    /// Move what serves.
    pub promotions: Arc<Promotions>,
    /// Waits until deployments are recorded.
    pub collector: Arc<Collector>,
}

impl Deployments {
    /// Makes a deployment of the uploaded artifact `digest`, for production or for `preview`. What serves
    /// moves as a promotion does, so that no request fails for it: production always, so that what does not
    /// start changes nothing, and a preview that is awake; one that sleeps takes its hosts at once.
    ///
    /// # Errors
    /// [`DeployError`]; nothing is half done: owners and deployment are one transaction.
    pub async fn deploy(
        &self,
        digest: Digest,
        preview: Option<&EnvName>,
    ) -> Result<Deployed, DeployError> {
        // Nothing of it is collected until it is recorded.
        let paused = self.collector.paused().await;
        let (deployment, contract) = self.verified(digest, preview).await?;
        let environment = deployment.environment.clone();
        // A reload waits: owners follow the configuration that is in force when they are written.
        let one = self.owners.change().await;
        let app = self.app(environment.app())?;
        let hosts = self.hosts_for(&app, &environment)?;
        let beyond = config::reload::beyond(&environment, &contract, &self.node.config.load());
        if !beyond.is_empty() {
            return Err(DeployError::Beyond(beyond.join("\n")));
        }
        let seen = self.owners.seen(&environment, &hosts).await?;
        let owner = seen.owner();
        if let Some(from) = &owner {
            if preview.is_none() && from.digest == digest {
                return self.unchanged(&environment, from, hosts).await;
            }
            let is_awake = || self.node.view(&environment).is_some_and(|v| !v.ready.is_empty());
            let moves = if preview.is_some() { is_awake() } else { !app.gated };
            if moves {
                drop(one);
                return self.move_to(deployment, owner, hosts.clone(), paused).await;
            }
        }
        if contract.release.is_some() && (owner.is_none() || preview.is_some()) {
            // What is to be run before it serves is run by what moves owners, once.
            drop(one);
            return self.move_to(deployment, owner, hosts.clone(), paused).await;
        }
        let at = key::deployment(&environment, &deployment.id);
        let mut txn = Txn::new().absent(&at).put(&at, deployment.encode());
        let mut epoch = None;
        if owner.is_none() || preview.is_some() {
            if let Some(before) = owner {
                txn = txn.and(self.owners.replaced(&environment, &before.deployment).await?);
            }
            let (under, take) = seen.take(&deployment)?;
            txn = txn.and(take);
            epoch = Some(under);
        }
        // What was counted for the deployment that is replaced is still known to be its.
        self.counts.flush().await;
        let revision = self.node.commit(txn.synced()).await?;
        self.note(&deployment).await;
        self.routing.shown(revision).await;
        let stored = epoch.is_none();
        Ok(Deployed {
            deployment: deployment.id,
            environment,
            digest,
            epoch,
            effect: if stored { Effect::Stored } else { Effect::Owns },
            next: if stored { self.to_production(&app, digest).await? } else { Vec::new() },
            hosts: if stored { Vec::new() } else { hosts },
        })
    }

    /// What the artifact `digest` would be deployed as, and its contract.
    async fn verified(
        &self,
        digest: Digest,
        preview: Option<&EnvName>,
    ) -> Result<(Deployment, Contract), DeployError> {
        let verified = Arc::clone(&self.artifacts).verified(&digest, self.decoded()).await?;
        let contract = contract::parse(Path::new("vango-edge.toml"), &verified.contract)
            .map_err(DeployError::Contract)?;
        self.app(&contract.app)?;
        check_assets(&contract, verified.assets.as_ref().map(|(_, index)| &**index))?;
        // Unpacked now, so that the first wake need not, and the deploying client is told of a full disk.
        let tree = self.starts.tree(&digest).await?;
        // A power cut must not take what a recorded deployment names.
        self.artifacts.flush().await?;
        let schema = schema_of(&contract, &tree.root)?;
        let environment = match preview {
            None => Environment::production(contract.app.clone()),
            Some(name) => Environment::new(contract.app.clone(), name.clone()),
        };
        if preview.is_some() && environment.is_production() {
            return Err(DeployError::NotAPreview);
        }
        let deployment = Deployment {
            id: DeploymentId::random(&*self.node.entropy),
            environment,
            digest,
            contract: verified.contract,
            created: self.node.clock.wall(),
            files: verified.files,
            bytes: verified.bytes,
            assets: verified.assets.as_ref().map(|(digest, _)| *digest),
            replaced: None,
            promoted_from: None,
            schema,
        };
        Ok((deployment, contract))
    }

    /// The encodings of files that were checked when what is served now was deployed.
    fn decoded(&self) -> Decoded {
        let snapshot = self.node.snapshots.load();
        let shelves = snapshot.environments().flat_map(|view| &view.assets);
        let indexes = shelves.filter_map(|shelf| shelf.index.as_ref());
        let files = indexes.flat_map(|index| index.assets());
        let pairs = files.flat_map(|a| a.encoded.iter().map(|e| (a.identity.digest, e.digest)));
        pairs.collect()
    }

    /// The environment serves this artifact. What follows the store is told of its deployment again, so
    /// that parts of it that were damaged and were just uploaded are read.
    async fn unchanged(
        &self,
        environment: &Environment,
        owner: &OwnerSeen,
        hosts: Vec<Host>,
    ) -> Result<Deployed, DeployError> {
        let promotion = self.node.read::<Promotion>(&key::promotion(environment)).await?;
        if let Some(p) = promotion.map(|f| f.record).filter(|p| p.state.in_progress()) {
            let why = format!("{} moves it to {} just now; wait for it", p.id, p.digest);
            return Err(DeployError::Moving(environment.clone(), why));
        }
        let at = key::deployment(environment, &owner.deployment);
        if let Some(found) = self.node.read::<Deployment>(&at).await? {
            let txn = found.unchanged().put(&at, found.record.encode());
            let revision = self.node.commit(txn).await?;
            self.routing.shown(revision).await;
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
        let all = self.node.all::<Deployment>(&key::deployments_of(name)).await?;
        for one in all.iter().map(|f| &f.record).filter(|d| d.digest == digest) {
            let evidence = self.counts.of(one).await?;
            if promotion::missing(&app.promotion, evidence.as_ref()).is_empty() {
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
    async fn move_to(
        &self,
        deployment: Deployment,
        from: Option<OwnerSeen>,
        hosts: Vec<Host>,
        paused: RwLockReadGuard<'_, ()>,
    ) -> Result<Deployed, DeployError> {
        let (id, environment) = (deployment.id.clone(), deployment.environment.clone());
        let digest = deployment.digest;
        self.note(&deployment).await;
        let failed = |e: PromoteError| DeployError::Moving(environment.clone(), e.to_string());
        let moving = self.promotions.redeploy(deployment, from).await.map_err(failed)?;
        // The promotion on record keeps its deployments. Held during the wait, a collection would queue behind this
        // move, and every command that pauses collections behind that one.
        drop(paused);
        let over = self.promotions.wait(&moving, MOVING).await.map_err(failed)?;
        match over {
            Some(p) if p.state == PromotionState::Healthy || p.state.in_progress() => {
                let over = !p.state.in_progress();
                let effect = if over { Effect::Moved } else { Effect::Moving };
                let (epoch, next) = (p.epoch.filter(|_| over), Vec::new());
                Ok(Deployed { deployment: id, environment, digest, epoch, hosts, effect, next })
            }
            Some(p) => {
                let why = p.failure.map_or("no reason".to_owned(), |f| f.detail);
                let why = format!("{} is {}: {why}", p.id, p.state.name());
                Err(DeployError::Moving(environment, why))
            }
            None => Err(DeployError::Raced),
        }
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
            let config = self.node.config.load();
            for host in &hosts {
                if let Some(owner) = config.apps.values().find(|a| a.hosts.contains(host)) {
                    let owner = Environment::production(owner.name.clone());
                    return Err(DeployError::HostTaken { host: host.clone(), owner });
                }
            }
        }
        Ok(hosts)
    }

    fn app(&self, name: &AppName) -> Result<App, DeployError> {
        app_of(&self.node.config.load(), name).cloned()
    }
}

/// Why a deployment was refused. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The artifact is damaged, incomplete or hostile.
    #[error("{0}")]
    Artifact(#[from] ArtifactError),
    /// Its contract has errors.
    #[error("the artifact's vango-edge.toml has {} error{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
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
        /// The environment that owns it.
        owner: Environment,
    },
    /// Its contract asks for what this node does not give.
    #[error("{0}")]
    Beyond(String),
    /// Another transaction changed the owners meanwhile.
    #[error("the owners changed meanwhile; nothing was done, deploy again")]
    Raced,
    /// What is there could not be read or changed.
    #[error("{0}")]
    Read(ReadError),
}

impl From<ReadError> for DeployError {
    fn from(e: ReadError) -> Self {
        if e.is_conflict() { Self::Raced } else { Self::Read(e) }
    }
}

impl From<TakeError> for DeployError {
    fn from(e: TakeError) -> Self {
        match e {
            TakeError::Taken(host, owner) => Self::HostTaken { host, owner },
            TakeError::Read(e) => e.into(),
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
    /// That takes longer than five minutes, as with a long release command, and goes on: the environment's
    /// `promotion` says how it ends.
    Moving,
    /// The environment serves this very artifact already; no deployment was made.
    Unchanged,
    /// Another deployment owns the hosts: the app has a promotion policy.
    Stored,
}

/// An artifact without an index is one that another tool made: its app answers for its static files.
pub(super) fn check_assets(
    contract: &Contract,
    index: Option<&AssetIndex>,
) -> Result<(), DeployError> {
    let Some(index) = index else { return Ok(()) };
    let said = contract.assets.iter().map(|a| (&*a.dir, &*a.prefix));
    let made = index.folders().iter().map(|f| (f.dir(), f.prefix()));
    match (contract.assets.is_empty(), said.eq(made)) {
        (_, true) => Ok(()),
        (true, false) => Err(DeployError::Assets("the contract has no [assets]")),
        (false, false) => Err(DeployError::Assets("[assets] has another dir or prefix")),
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
