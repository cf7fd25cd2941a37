//! Reads the configuration again: validate, compare, make shared truth follow, swap. One attempt at
//! a time. A file that is wrong changes nothing; why is in the log, in the state that operators
//! read, and in a metric.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::clock::Wall;
use crate::config::{self, Config, reload};
use crate::id::Environment;
use crate::node::{Node, ReadError};
use crate::telemetry::Telemetry;

use super::owners::Owners;
use super::routing::{Externals, Routing};

/// Brings a configuration into the running parts; made by [`Prepare`], and cannot fail any more.
pub type Commit = Box<dyn FnOnce() + Send>;

/// Builds whatever a configuration needs besides itself (certificates), and says what is wrong with
/// it.
pub type Prepare = Box<dyn Fn(&Config) -> Result<Commit, Vec<String>> + Send + Sync>;

/// An attempt to reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it was tried.
    pub at: Wall,
    /// Keys that changed.
    pub changed: Vec<String>,
    /// Why it was rejected; empty when it was not.
    pub errors: Vec<String>,
}

impl Attempt {
    /// As people and metrics name it.
    pub fn outcome(&self) -> &'static str {
        if self.errors.is_empty() { "applied" } else { "rejected" }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadState {
    /// Where the configuration is read from.
    pub file: PathBuf,
    /// 1 at the start; one more with each attempt that was applied.
    pub revision: u64,
    /// When the configuration in force was applied.
    pub loaded: Wall,
    /// Keys whose value in the file waits for a restart.
    pub needs_restart: Vec<String>,
    /// The last attempt, if there was one.
    pub last: Option<Attempt>,
}

/// The one writer of the running configuration.
pub struct Reloader {
    node: Node,
    owners: Arc<Owners>,
    routing: Arc<Routing>,
    telemetry: Arc<Telemetry>,
    prepare: Prepare,
    state: ArcSwap<ReloadState>,
    externals: Externals,
    /// Held by the attempt that is being made.
    attempting: tokio::sync::Mutex<()>,
}

impl Reloader {
    /// For the configuration that `node` started with, read from `file`.
    pub fn new(
        file: PathBuf,
        node: Node,
        owners: Arc<Owners>,
        routing: Arc<Routing>,
        telemetry: Arc<Telemetry>,
        prepare: Prepare,
        externals: Externals,
    ) -> Arc<Self> {
        let loaded = node.clock.wall();
        telemetry.metrics.reloaded(Some(loaded));
        let state =
            ReloadState { file, revision: 1, loaded, needs_restart: Vec::new(), last: None };
        Arc::new(Self {
            node,
            owners,
            routing,
            telemetry,
            prepare,
            state: ArcSwap::from_pointee(state),
            externals,
            attempting: tokio::sync::Mutex::default(),
        })
    }

    /// What is in force, and what came of the last attempt.
    pub fn state(&self) -> Arc<ReloadState> {
        self.state.load_full()
    }

    /// Gives deployed apps the hosts of the configuration that the process started with, which may
    /// have changed while none ran.
    ///
    /// # Errors
    /// What contracts ask for and the configuration cannot keep, or what the store said.
    pub async fn settle(&self) -> Result<(), Vec<String>> {
        let _alone = self.attempting.lock().await;
        let one = self.owners.change().await;
        let config = self.node.config.load().clone();
        let errors = bound_errors(&self.node, &config);
        if !errors.is_empty() {
            return Err(errors);
        }
        self.owners.follow(&config, &one).await.map_err(unmoved)
    }

    /// Reads the configuration again and, if nothing is wrong with it, puts it in force.
    pub async fn reload(&self) -> Arc<ReloadState> {
        let _alone = self.attempting.lock().await;
        let before = self.state();
        let tried = self.attempt(&before).await;
        let at = self.node.clock.wall();
        let applied = tried.is_ok();
        let next = match tried {
            Ok((changed, needs_restart)) => {
                let attempt = Attempt { at, changed, errors: Vec::new() };
                log::info!(
                    "configuration reloaded, revision {}: {}",
                    before.revision + 1,
                    if attempt.changed.is_empty() {
                        "nothing changed".to_owned()
                    } else {
                        attempt.changed.join(", ")
                    }
                );
                for key in &needs_restart {
                    log::warn!("{key} keeps its value until the edge is restarted");
                }
                ReloadState {
                    file: before.file.clone(),
                    revision: before.revision + 1,
                    loaded: at,
                    needs_restart,
                    last: Some(attempt),
                }
            }
            Err(errors) => {
                log::error!("the configuration was not reloaded; what ran goes on");
                for error in &errors {
                    log::error!("{error}");
                }
                let attempt = Attempt { at, changed: Vec::new(), errors };
                ReloadState { last: Some(attempt), ..(*before).clone() }
            }
        };
        self.state.store(Arc::new(next));
        // Counted once it can be read: a test or script that waits for the count reads the state next.
        self.telemetry.metrics.reloaded(applied.then_some(at));
        self.state()
    }

    /// Keys that changed, and those that need a restart.
    async fn attempt(
        &self,
        before: &ReloadState,
    ) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
        let file = before.file.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&file)).await;
        let file = match read {
            Ok(Ok(config)) => config,
            Ok(Err(errors)) => return Err(errors.iter().map(ToString::to_string).collect()),
            Err(e) => return Err(vec![format!("the files could not be read: {e}")]),
        };
        let planned = reload::plan(&self.node.config.load(), file);
        let commit = (self.prepare)(&planned.effective)?;
        let errors = bound_errors(&self.node, &planned.effective);
        if !errors.is_empty() {
            return Err(errors);
        }
        // Shared truth first: what it refuses leaves this node as it was.
        let one = self.owners.change().await;
        self.owners.follow(&planned.effective, &one).await.map_err(unmoved)?;
        commit();
        self.node.config.store(Arc::new(planned.effective));
        self.routing.shown_externals(&self.externals).await;
        Ok((planned.changed, planned.restart))
    }
}

fn unmoved(e: ReadError) -> Vec<String> {
    vec![format!("hosts could not be moved: {e}")]
}

/// What contracts of deployed apps ask for and `config` cannot keep.
fn bound_errors(node: &Node, config: &Config) -> Vec<String> {
    let snapshot = node.snapshots.load();
    // Those of the files were looked at when they were read.
    let deployed = snapshot.environments().filter(|v| !v.external);
    let mut all: Vec<(&Environment, _)> = deployed.map(|v| (&v.environment, &v.contract)).collect();
    all.sort_by_key(|(environment, _)| *environment);
    all.into_iter().flat_map(|(e, contract)| reload::beyond(e, contract, config)).collect()
}
