//! What every owner of shared truth on this node stands on, and how records are read. It has no lock and
//! changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::{Clock, Entropy};
use crate::config::Running;
use crate::id::{AllocationId, Environment, Host};
use crate::record::{Allocation, Record, RecordError, RouteOwner, key};
use crate::snapshot::{AllocationView, EnvView, SnapshotReader};
use crate::store::{Entry, Pages, StateStore, StoreError, Txn};

/// From SIGTERM to SIGKILL for what routing does not know any more.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Node {
    /// Its name in executor records.
    pub name: Arc<str>,
    /// The operator's configuration.
    pub config: Arc<Running>,
    pub store: Arc<dyn StateStore>,
    pub snapshots: SnapshotReader,
    /// Deadlines by its monotonic time, records by its wall time.
    pub clock: Arc<dyn Clock>,
    /// For ids and jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Where detached work runs: never inside the request that asked for it.
    pub runtime: Handle,
}

/// Why something could not be read, or changed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store could not be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A record could not be read.
    #[error("{0}")]
    Record(#[from] RecordError),
}

impl ReadError {
    /// Another transaction changed what this one stood on; nothing was done.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Store(StoreError::Conflict { .. }))
    }
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub struct Found<T> {
    /// The key it is stored under.
    pub at: String,
    pub record: T,
    /// The revision of its last put.
    pub revision: u64,
    /// The revision of its first.
    pub created: u64,
}

impl<T: Record> Found<T> {
    /// Reads the entry of `at`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(at: String, entry: &Entry) -> Result<Self, RecordError> {
        let record = T::decode(&entry.value)?;
        Ok(Self { at, record, revision: entry.mod_revision, created: entry.create_revision })
    }

    /// A transaction that holds only while the record is as it was read.
    pub fn unchanged(&self) -> Txn {
        Txn::new().unchanged(&self.at, self.revision)
    }
}

/// `txn` on the condition that `at` is as it was read; `None`: that there is nothing.
pub fn as_read<T>(txn: Txn, at: &str, read: Option<&Found<T>>) -> Txn {
    at_revision(txn, at, read.map(|found| found.revision))
}

/// The same, where only the revision is known.
pub fn at_revision(txn: Txn, at: &str, revision: Option<u64>) -> Txn {
    match revision {
        Some(revision) => txn.unchanged(at, revision),
        None => txn.absent(at),
    }
}

#[cfg(test)]
impl Node {
    /// One that knows no app, over `store`.
    pub(crate) fn over(store: Arc<dyn StateStore>, clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("edge.toml");
        std::fs::create_dir(dir.path().join("apps")).unwrap();
        std::fs::write(&file, "[state]\ndir = \"/s\"\n").unwrap();
        Self {
            name: "node-a".into(),
            config: Arc::new(Running::from_pointee(crate::config::load(&file).unwrap())),
            store,
            snapshots: crate::snapshot::Publisher::new().reader(),
            clock,
            entropy: Arc::new(crate::clock::SeededEntropy::new(1)),
            runtime: Handle::current(),
        }
    }
}

impl Node {
    /// The record at `at` now.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read<T: Record>(&self, at: &str) -> Result<Option<Found<T>>, ReadError> {
        let Some(entry) = self.store.get(at).await? else { return Ok(None) };
        Ok(Some(Found::decode(at.to_owned(), &entry)?))
    }

    /// Applies `txn`; the revision at which it is committed.
    ///
    /// # Errors
    /// [`ReadError`]; whether it was a conflict says [`ReadError::is_conflict`].
    pub async fn commit(&self, txn: Txn) -> Result<u64, ReadError> {
        Ok(self.store.txn(txn).await?)
    }

    /// The same; `None` where its conditions do not hold, and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn commit_if(&self, txn: Txn) -> Result<Option<u64>, StoreError> {
        match self.store.txn(txn).await {
            Ok(revision) => Ok(Some(revision)),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Everything under `prefix`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn listed(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
        self.last(prefix, usize::MAX).await
    }

    /// The last `most` entries under `prefix`. No more than a page besides is in memory.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn last(&self, prefix: &str, most: usize) -> Result<Vec<(String, Entry)>, StoreError> {
        let mut last = Vec::new();
        let mut pages = Pages::new(&*self.store, prefix, None);
        while let Some(page) = pages.next().await? {
            last.extend(page.entries);
            last.drain(..last.len().saturating_sub(most));
        }
        Ok(last)
    }

    /// Every record under `prefix`; one that cannot be read is an error.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn all<T: Record>(&self, prefix: &str) -> Result<Vec<Found<T>>, ReadError> {
        self.last_records(prefix, usize::MAX).await
    }

    /// The last `most` records under `prefix`; one of them that cannot be read is an error.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn last_records<T: Record>(
        &self,
        prefix: &str,
        most: usize,
    ) -> Result<Vec<Found<T>>, ReadError> {
        let listed = self.last(prefix, most).await?;
        let decoded = listed.into_iter().map(|(at, entry)| Found::decode(at, &entry));
        Ok(decoded.collect::<Result<_, _>>()?)
    }

    /// Every record under `prefix` that can be read; the log names the others.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn readable<T: Record>(&self, prefix: &str) -> Result<Vec<Found<T>>, StoreError> {
        let listed = self.listed(prefix).await?;
        let decoded = listed.into_iter().filter_map(|(at, entry)| {
            let name = at.clone();
            Found::decode(at, &entry).inspect_err(|e| log::error!("{name}: {e}")).ok()
        });
        Ok(decoded.collect())
    }

    /// The environment as routing sees it now.
    pub fn view(&self, environment: &Environment) -> Option<Arc<EnvView>> {
        self.snapshots.load().environment(environment).cloned()
    }

    /// An allocation, while routing knows it.
    pub fn allocation(
        &self,
        environment: &Environment,
        id: &AllocationId,
    ) -> Option<Arc<AllocationView>> {
        self.view(environment)?.allocation(id).cloned()
    }

    /// From SIGTERM to SIGKILL, by the contract of the artifact that it runs.
    pub fn stop_timeout(&self, a: &Allocation) -> Duration {
        let view = self.view(&a.environment);
        view.map_or(STOP_TIMEOUT, |v| v.contract_of(&a.id).process.stop_timeout)
    }

    /// The owners of the environment's hosts: of those that routing knows and of those that the
    /// configuration names.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn owners_of(
        &self,
        environment: &Environment,
    ) -> Result<Vec<Found<RouteOwner>>, ReadError> {
        let mut hosts: BTreeSet<Host> = BTreeSet::new();
        if let Some(view) = self.view(environment) {
            hosts.extend(view.hosts.iter().cloned());
        }
        if let Some(app) = self.config.load().apps.get(environment.app()) {
            hosts.extend(app.hosts_of(environment));
        }
        let mut out = Vec::new();
        for host in hosts {
            let owner = self.read::<RouteOwner>(&key::owner(&host, "/")).await?;
            out.extend(owner.filter(|o| o.record.environment == *environment));
        }
        Ok(out)
    }

    /// Of these owners the one with the highest epoch.
    pub async fn newest_owner(
        &self,
        environment: &Environment,
    ) -> Result<Option<RouteOwner>, ReadError> {
        let owners = self.owners_of(environment).await?;
        Ok(owners.into_iter().map(|o| o.record).max_by_key(|o| o.epoch))
    }
}
