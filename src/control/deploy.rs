//! From an uploaded artifact to a deployment. The first one of an app owns the app's hosts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::artifact::ArtifactError;
use crate::assets::AssetIndex;
use crate::config::{self, App, Diagnostic};
use crate::contract::{self, Contract};
use crate::id::{AppName, DeploymentId, Digest, Environment, Epoch, Host};
use crate::store::record::{Deployment, Record, RecordError, RouteOwner, key};
use crate::store::{StoreError, Txn};

use super::hosts::HostsError;
use super::{Control, plan};

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
    /// Somebody else runs the app.
    #[error("{0} has upstreams that somebody else runs; it takes no deployments")]
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
    /// Somebody else changed the owners meanwhile.
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
    /// Makes a deployment of the uploaded artifact `digest`.
    ///
    /// # Errors
    /// [`DeployError`]; nothing is half done: owners and deployment are one transaction.
    pub async fn deploy(&self, digest: Digest) -> Result<Deployed, DeployError> {
        let verified = self.artifacts.verify(&digest).await?;
        let contract = contract::parse(Path::new("vango-edge.toml"), &verified.contract)
            .map_err(DeployError::Contract)?;
        self.app(&contract.app)?;
        check_assets(&contract, verified.assets.as_ref().map(|(_, index)| &**index))?;
        // Unpacked now, so that the first wake need not, and a full disk is told to who deploys.
        let tree = self.artifacts.tree(&digest).await?;
        let schema = schema_of(&contract, &tree).await?;
        let environment = Environment::production(contract.app.clone());
        // A reload waits: owners follow the configuration that is in force when they are written.
        let _owners = self.changing_owners.lock().await;
        let app = self.app(&contract.app)?;
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
        let mut owned = false;
        for host in &app.hosts {
            let entry = self.store.get(&key::owner(host, "/")).await?;
            let owner = entry
                .map(|e| RouteOwner::decode(&e.value).map(|o| (o, e.mod_revision)))
                .transpose()?;
            owned |= owner.as_ref().is_some_and(|(o, _)| o.environment == environment);
            seen.insert(host.clone(), owner);
        }
        let at = key::deployment(&environment, &deployment.id);
        let mut txn = Txn::new().absent(&at).put(&at, deployment.encode());
        let mut epoch = None;
        if !owned {
            let owners = plan::take_hosts(&deployment, &app.hosts, &seen, &retired)
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
        self.store.txn(txn.synced()).await?;
        let at = deployment.created.to_string();
        let notes = BTreeMap::from([
            ("org.opencontainers.image.ref.name".to_owned(), environment.to_string()),
            ("org.opencontainers.image.created".to_owned(), at),
        ]);
        if let Err(e) = self.artifacts.note(&digest, notes).await {
            // The index is for other tools; nothing here reads it.
            log::warn!("index.json of the artifact store was not written: {e}");
        }
        Ok(Deployed {
            deployment: deployment.id,
            environment,
            digest,
            hosts: if epoch.is_some() { app.hosts.clone() } else { Vec::new() },
            epoch,
        })
    }

    fn app(&self, name: &AppName) -> Result<App, DeployError> {
        let config = self.config.load();
        let Some(app) = config.apps.get(name) else {
            let known: Vec<_> = config.apps.keys().map(ToString::to_string).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(DeployError::UnknownApp { app: name.clone(), known });
        };
        if app.upstreams.is_some() {
            return Err(DeployError::Static(name.clone()));
        }
        Ok(app.clone())
    }
}

/// Largest schema file that is read.
const MAX_SCHEMA: u64 = 1024 * 1024;

/// The hash in the artifact's `state.schema_file`, where the contract names one: Vango's
/// `vango_state_schema.json` has it under `schemaHash`.
async fn schema_of(contract: &Contract, tree: &Path) -> Result<Option<Digest>, DeployError> {
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
    let size = tokio::fs::metadata(&path).await.map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_SCHEMA {
        return Err(wrong(format!("larger than {MAX_SCHEMA} bytes")));
    }
    let text = tokio::fs::read(&path).await.map_err(|e| wrong(e.to_string()))?;
    let schema: Schema = serde_json::from_slice(&text)
        .map_err(|e| wrong(format!("expected an object with \"schemaHash\": \"sha256:…\": {e}")))?;
    Ok(Some(schema.hash))
}
