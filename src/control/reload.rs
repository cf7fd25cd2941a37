//! Reads the configuration again: validate, compare, make shared truth follow, swap. One attempt at
//! a time. A file that is wrong changes nothing; why is in the log, in the state that operators
//! read, and in a metric.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::clock::Wall;
use crate::config::{self, Config, reload};

use super::{Control, Externals};

/// Brings a configuration into the running parts; made by [`Prepare`], and cannot fail any more.
pub type Commit = Box<dyn FnOnce() + Send>;

/// Builds whatever a configuration needs besides itself (certificates), and says what is wrong with
/// it.
pub type Prepare = Box<dyn Fn(&Config) -> Result<Commit, Vec<String>> + Send + Sync>;

/// An attempt to reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When.
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

/// What operators read.
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
    control: Arc<Control>,
    prepare: Prepare,
    state: ArcSwap<ReloadState>,
    externals: Externals,
    turn: tokio::sync::Mutex<()>,
}

impl Reloader {
    /// For the configuration that `control` started with, read from `file`.
    pub fn new(
        file: PathBuf,
        control: Arc<Control>,
        prepare: Prepare,
        externals: Externals,
    ) -> Self {
        let loaded = control.clock.wall();
        control.telemetry.metrics.reloads.applied(loaded);
        let state =
            ReloadState { file, revision: 1, loaded, needs_restart: Vec::new(), last: None };
        Self {
            control,
            prepare,
            state: ArcSwap::from_pointee(state),
            externals,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What is in force, and what came of the last attempt.
    pub fn state(&self) -> Arc<ReloadState> {
        self.state.load_full()
    }

    /// Gives deployed apps the hosts of the configuration that the process started with, which may
    /// have changed while none ran.
    ///
    /// # Errors
    /// Wake budgets that the configuration cannot keep, or what the store said.
    pub async fn settle(&self) -> Result<(), Vec<String>> {
        let _turn = self.turn.lock().await;
        let _owners = self.control.changing_owners.lock().await;
        let config = self.control.config.load().clone();
        let errors = self.control.budget_errors(&config);
        if !errors.is_empty() {
            return Err(errors);
        }
        self.control.follow_hosts(&config).await.map_err(|e| vec![e.to_string()])
    }

    /// Reads the configuration again and, if nothing is wrong with it, puts it in force.
    pub async fn reload(&self) -> Arc<ReloadState> {
        let _turn = self.turn.lock().await;
        let before = self.state();
        let tried = self.attempt(&before).await;
        let at = self.control.clock.wall();
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
        // Counted once it can be read: who waits for the count looks then.
        let metrics = &self.control.telemetry.metrics.reloads;
        if applied {
            metrics.applied(at);
        } else {
            metrics.rejected();
        }
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
        let planned = reload::plan(&self.control.config.load(), file);
        let commit = (self.prepare)(&planned.effective)?;
        let errors = self.control.budget_errors(&planned.effective);
        if !errors.is_empty() {
            return Err(errors);
        }
        // Shared truth first: what it refuses leaves this node as it was.
        let _owners = self.control.changing_owners.lock().await;
        self.control.follow_hosts(&planned.effective).await.map_err(|e| vec![e.to_string()])?;
        commit();
        self.control.config.replace(planned.effective);
        self.control.shown_externals(&self.externals).await;
        Ok((planned.changed, planned.restart))
    }
}
