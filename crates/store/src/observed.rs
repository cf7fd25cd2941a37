//! A store whose calls are timed. It changes nothing of what the store behind it does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use vango_edge_core::clock::Clock;

use super::{Entry, LeaseId, Page, StateStore, StoreError, Txn, Watch};

/// A call that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`StateStore::get`]
    Get,
    /// [`StateStore::list`]
    List,
    /// [`StateStore::txn`]
    Txn,
}

impl Call {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Get, Self::List, Self::Txn];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Txn => "txn",
        }
    }
}

/// Told how long a call took, and whether it was answered. A conflict is an answer.
pub trait StoreObserver: Send + Sync {
    /// A call ended.
    fn took(&self, call: Call, took: Duration, answered: bool);
}

/// The store, with an observer.
pub struct Observed {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn StoreObserver>,
}

impl Observed {
    /// `store`, whose calls are told to `observer`.
    pub fn new(
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn StoreObserver>,
    ) -> Self {
        Self { store, clock, observer }
    }

    async fn timed<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let began = self.clock.now();
        let outcome = work.await;
        let answered = matches!(
            outcome,
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::LeaseGone { .. })
        );
        self.observer.took(call, self.clock.now().since(began), answered);
        outcome
    }
}

#[async_trait]
impl StateStore for Observed {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.timed(Call::Get, self.store.get(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.timed(Call::List, self.store.list(prefix, after, limit)).await
    }

    async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
        self.timed(Call::Txn, self.store.txn(txn)).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(lease).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }
}
