//! The state directory: who may read it, whether it is a copy of another's, and its two stores.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Entropy, SystemEntropy};
use crate::config::{self, Config};
use crate::output::{self, Outputs};
use crate::runner::{ProcessRunner, ProcessRunnerOptions, Runner};
use crate::store::{OpenError, Options, RocksStore, rocks};

/// From SIGTERM to SIGKILL for apps whose state is damaged.
const UNFIT: Duration = Duration::from_secs(2);

/// The directory, made private and not yet locked.
pub(super) struct StateDir {
    /// Absolute: apps run in a working directory of their own.
    pub(super) path: PathBuf,
    /// Where the original is, if this is a copy of a directory whose edge has run since this machine
    /// started. What is recorded in it runs, if at all, under the original.
    pub(super) copy_of: Option<PathBuf>,
    identity: Identity,
}

/// What tells a directory from a copy of it. Nothing that is recorded outlives the boot, so that a copy
/// on another machine, or one from before this boot, needs no telling.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    boot: String,
    device: u64,
    inode: u64,
    path: PathBuf,
}

const IDENTITY: &str = "identity";

impl Identity {
    /// What the directory says of itself; nothing if that is not what was written: whatever runs is taken
    /// for its own then, or is proved not to be.
    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(IDENTITY)).ok()?;
        let (json, sum) = text.split_once('\n')?;
        (sum == Self::sum(json)).then(|| serde_json::from_str(json).ok()).flatten()
    }

    fn write(&self, dir: &Path) -> std::io::Result<()> {
        let json = serde_json::to_string(self)?;
        let part = dir.join("identity.part");
        fs::write(&part, format!("{json}\n{}", Self::sum(&json)))?;
        fs::rename(part, dir.join(IDENTITY))
    }

    fn sum(json: &str) -> String {
        format!("{:08x}", crc32fast::hash(json.as_bytes()))
    }
}

impl StateDir {
    /// Makes it if need be, and takes it from everybody but its owner.
    pub(super) fn prepare(dir: &Path) -> Result<Self> {
        let in_dir = || format!("state.dir {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(in_dir)?;
        let path = dir.canonicalize().with_context(in_dir)?;
        let meta = fs::metadata(&path).with_context(in_dir)?;
        if meta.mode() & 0o077 != 0
            && let Err(e) = fs::set_permissions(&path, Permissions::from_mode(0o700))
        {
            log::warn!("{}: other users of this machine may enter it: {e}", path.display());
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("/proc")?;
        let identity = Identity {
            boot: boot.trim().to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            path: path.clone(),
        };
        let known = Identity::read(&path).filter(|k| k.boot == identity.boot);
        let copy_of = known
            .filter(|k| (k.device, k.inode) != (identity.device, identity.inode))
            .map(|k| k.path);
        Ok(Self { path, copy_of, identity })
    }

    /// Removes what belongs to the original's processes: their pipes and sockets, copied. Called with
    /// the store locked.
    pub(super) fn forget_processes(&self) -> Result<()> {
        let files = self.path.join("run/allocations");
        match fs::remove_dir_all(&files) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| files.display().to_string())
            }
            _ => Ok(()),
        }
    }

    /// From here on it is no copy, but a directory of its own.
    pub(super) fn keep_identity(&self) -> Result<()> {
        self.identity
            .write(&self.path)
            .with_context(|| self.path.join(IDENTITY).display().to_string())
    }

    /// Opens the store and the ledger. The store's lock is the node's lock: one process at a time owns
    /// this directory.
    ///
    /// # Errors
    /// What is damaged or in use. Where it is damaged, apps that an earlier process left running are
    /// ended: no edge watches over them, nor will before an operator has looked.
    pub(super) async fn open(
        &self,
        config: &Config,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Arc<RocksStore>, Arc<RocksStore>)> {
        let opened = self.open_both(clock).await;
        let error = opened.as_ref().err().and_then(|e| e.downcast_ref());
        let damaged = matches!(error, Some(OpenError::Damaged { .. } | OpenError::Corrupt(_)));
        if damaged && self.copy_of.is_none() {
            self.end_what_runs(config, clock).await;
        }
        opened
    }

    async fn open_both(
        &self,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Arc<RocksStore>, Arc<RocksStore>)> {
        let open = async |name: &str, options| {
            let (dir, clock) = (self.path.join(name), Arc::clone(clock));
            let opened =
                tokio::task::spawn_blocking(move || RocksStore::open(&dir, clock, options));
            anyhow::Ok(Arc::new(opened.await.context("opening it")??))
        };
        let store = open("store", Options::default()).await?;
        // A store of its own: no reservation waits for a wake's transaction, nor the other way round, and
        // the tasks that follow routing see none of its changes pass.
        let ledger = open("ledger", Options { watch_revisions: 1, watch_bytes: 0 }).await?;
        Ok((store, ledger))
    }

    async fn end_what_runs(&self, config: &Config, clock: &Arc<dyn Clock>) {
        // Another edge may have taken it meanwhile.
        let Ok(_lock) = rocks::lock(&self.path.join("store")) else { return };
        let runner = self.outputs(config, clock, Box::new(|_, _| ())).and_then(|outputs| {
            Ok(ProcessRunner::new(self.runner_options(config, clock, outputs))?)
        });
        let runner = match runner {
            Ok(runner) => runner,
            Err(e) => return log::error!("what runs could not be ended: {e:#}"),
        };
        for id in runner.leftovers() {
            match runner.end_leftover(None, &id, UNFIT).await {
                Ok(()) => {
                    log::warn!("ended {id}: no edge watches over it while the state is damaged")
                }
                Err(e) => log::error!("what is left of {id} could not be ended: {e}"),
            }
        }
    }

    /// What processes print, below it.
    pub(super) fn outputs(
        &self,
        config: &Config,
        clock: &Arc<dyn Clock>,
        told: output::Told,
    ) -> Result<Arc<Outputs>> {
        let dir = self.path.join("run/log");
        let config::RunnerConfig { log_bytes, log_total, log_age, log_rate, .. } = config.runner;
        let limits =
            output::Limits { each: log_bytes, total: log_total, age: log_age, rate: log_rate };
        Outputs::open(&dir, limits, Arc::clone(clock), told)
            .with_context(|| dir.display().to_string())
    }

    pub(super) fn runner_options(
        &self,
        config: &Config,
        clock: &Arc<dyn Clock>,
        outputs: Arc<Outputs>,
    ) -> ProcessRunnerOptions {
        ProcessRunnerOptions {
            run_dir: self.path.join("run"),
            outputs,
            clock: Arc::clone(clock),
            max_processes: config.runner.max_processes,
            scratch_bytes: config.runner.scratch_bytes,
        }
    }

    /// Names this node in records; made once and kept with its state.
    pub(super) fn node_name(&self) -> Result<String> {
        let path = self.path.join("node");
        if let Ok(name) = fs::read_to_string(&path)
            && !name.trim().is_empty()
        {
            return Ok(name.trim().to_owned());
        }
        let name = format!("node-{:016x}", SystemEntropy.next_u64());
        fs::write(&path, &name).with_context(|| path.display().to_string())?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_known_and_a_flipped_byte_makes_none() {
        let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        StateDir::prepare(original.path()).unwrap().keep_identity().unwrap();
        assert_eq!(StateDir::prepare(original.path()).unwrap().copy_of, None);
        fs::copy(original.path().join(IDENTITY), copy.path().join(IDENTITY)).unwrap();
        let found = StateDir::prepare(copy.path()).unwrap();
        assert_eq!(found.copy_of, Some(original.path().canonicalize().unwrap()));
        found.keep_identity().unwrap();
        assert_eq!(StateDir::prepare(copy.path()).unwrap().copy_of, None);
        let whole = fs::read(original.path().join(IDENTITY)).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(original.path().join(IDENTITY), flipped).unwrap();
            assert_eq!(StateDir::prepare(original.path()).unwrap().copy_of, None, "{at}");
        }
    }
}
