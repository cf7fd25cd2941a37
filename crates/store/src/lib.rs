//! Shared truth: a revisioned key-value store with preconditions, watches and leases.
//!
//! The rules are etcd's, so that etcd can stand behind [`StateStore`] later: one counter of
//! revisions for the whole store; a transaction whose checks all hold applies all its operations at
//! one revision, else nothing; a watch delivers every revision, in order and without gaps, or says
//! that it cannot; a lease that is not kept alive takes its keys with it.
//! Whatever passes `tests/contract` is an adapter.
//!
//! Reading order: this page, [`Txn`], [`Watch`], then `engine` and `writer` (the rules, over any
//! [`Storage`]), then the two storages, [`memory`] and [`rocks`].
//!
//! Invariants:
//! - A revision is given out once, ever: not after a restart, not after the last key is deleted.
//!   Each committed revision has at least one event.
//! - An acknowledged transaction survives `kill -9`; with [`Durability::Synced`] a power cut too.
//! - One thread writes. It holds no lock that a reader waits for while the disk works.
//! - A write that failed changes nothing that a reader or a watcher can see, unless recovery finds
//!   that it reached the disk after all; then watchers are told to list again.
//!
//! Deliberately absent: reads at past revisions (lists are of now), ranges other than prefixes,
//! watches of single operations inside a revision, authentication, and networking.

mod batch;
mod engine;
mod error;
mod files;
mod history;
mod lease;
mod load;
mod storage;
mod txn;
mod watch;
mod writer;

pub mod memory;
pub mod observed;
pub mod rocks;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use engine::{Engine, Options};
pub use error::{OpenError, StoreError};
pub use memory::MemoryStore;
pub use rocks::RocksStore;
pub use storage::{Range, Row, Scan, Storage, StorageError, Write};
pub use txn::{Check, Durability, Op, Txn};
pub use watch::{Event, EventKind, EventSource, Watch};

/// Longest key and longest prefix, in bytes. A key has at least one byte.
pub const KEY_BYTES: usize = 1024;
/// Longest value, in bytes.
pub const VALUE_BYTES: usize = 1024 * 1024;
/// Most operations in a transaction, and most checks (etcd's `--max-txn-ops`).
pub const TXN_OPS: usize = 128;
/// Most bytes of keys and values in a transaction (etcd's `--max-request-bytes`).
pub const TXN_BYTES: usize = 1536 * 1024;
/// Most entries in a page, whatever limit was asked for.
pub const PAGE_ENTRIES: usize = 4096;
/// A page ends with the entry that takes its keys and values to this many bytes.
pub const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Shortest lease.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);
/// Longest lease.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most leases at a time.
pub const LEASES: usize = 65_536;
/// Most keys attached to one lease: its end is one revision.
pub const LEASE_KEYS: usize = 4096;
/// Writes that wait for the writer, in units of one call plus one per 4 KiB of keys and values.
pub const QUEUE_UNITS: u32 = 8192;
/// Reads at a time that may wait for a disk. More wait, up to [`QUEUE_DEADLINE`].
pub const READS: usize = 64;
/// How long a call waits for its place in a full queue before it is [`StoreError::Busy`].
pub const QUEUE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a call waits for the disk before it is [`StoreError::Unavailable`], outcome unknown.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Revisions kept for watches, unless [`Options`] says otherwise.
pub const WATCH_REVISIONS: usize = 16_384;
/// Bytes of keys and values kept for watches, unless [`Options`] says otherwise. The newest revision
/// is kept whatever its size.
pub const WATCH_BYTES: usize = 32 * 1024 * 1024;

/// A lease: a promise to come back within its time to live, held by keys that go when it is broken.
/// Never 0, never given out twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key's value, and where in the store's history it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub value: Bytes,
    /// The revision at which the key came into being; after a delete and a put, the later one.
    pub create_revision: u64,
    /// The revision of the last put.
    pub mod_revision: u64,
    /// The lease whose end deletes the key.
    pub lease: Option<LeaseId>,
}

/// Part of a list, all of it from one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Keys and entries, in the byte order of the keys.
    pub entries: Vec<(String, Entry)>,
    /// The revision the page shows. Pages of one list may show different ones: to follow a prefix,
    /// watch from the *first* page's revision plus one and apply events over what was listed.
    pub revision: u64,
    /// Whether more entries follow; the next page is `after` the last key of this one.
    pub more: bool,
}

/// Entries of one page of [`Pages`].
const PAGE: usize = 1000;

/// A whole list, page by page: of keys that begin with a prefix, and sort after one of them if that is
/// given. What is written meanwhile is in it if its key sorts after the last page's keys.
pub struct Pages<'a> {
    store: &'a dyn StateStore,
    prefix: &'a str,
    after: Option<String>,
    more: bool,
}

impl<'a> Pages<'a> {
    /// As [`StateStore::list`].
    pub fn new(store: &'a dyn StateStore, prefix: &'a str, after: Option<String>) -> Self {
        Self { store, prefix, after, more: true }
    }

    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// As [`StateStore::list`]; the same page is asked for by the next call.
    pub async fn next(&mut self) -> Result<Option<Page>, StoreError> {
        if !self.more {
            return Ok(None);
        }
        let page = self.store.list(self.prefix, self.after.as_deref(), PAGE).await?;
        self.more = page.more;
        self.after = page.entries.last().map(|(key, _)| key.clone()).or(self.after.take());
        Ok(Some(page))
    }
}

/// The store, as the rest of the edge sees it.
///
/// Calls may be dropped at any time; a dropped [`txn`](Self::txn) may still be committed.
/// Any call may answer [`StoreError::Closed`], [`StoreError::Busy`] or [`StoreError::Unavailable`], and one
/// that writes [`StoreError::NotWritable`];
/// sizes beyond the bounds of this module are [`StoreError::Invalid`].
#[async_trait]
pub trait StateStore: Send + Sync + 'static {
    /// The entry of `key` now: at least as new as any transaction answered before the call.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// The keys that begin with `prefix` (empty: all) and sort after `after`, at most `limit` of
    /// them (1 or more; [`PAGE_ENTRIES`] and [`PAGE_BYTES`] may end the page earlier).
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// Applies `txn` if all its checks hold, and returns the revision at which it is committed.
    ///
    /// A transaction that changes nothing (no operations, or only deletes of absent keys) takes no
    /// revision: the current one is returned. A put without lease takes its key off the lease it had.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first check that failed; [`StoreError::LeaseGone`] a put
    /// under a lease that ended. Nothing is applied then. After [`StoreError::Unavailable`] the
    /// outcome is unknown until the key is read again: values that carry an operation's id let a
    /// retry recognise its own win.
    async fn txn(&self, txn: Txn) -> Result<u64, StoreError>;

    /// The events of all keys that begin with `prefix`, from revision `from` on; 0 means from now.
    /// A revision that is not committed yet may be asked for.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the history no longer reaches back to `from`.
    async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError>;

    /// A new lease that ends `ttl` after now or after its last keep-alive.
    /// `ttl` is from [`LEASE_TTL_MIN`] to [`LEASE_TTL_MAX`], rounded up to whole seconds, as in etcd.
    ///
    /// A store that restarts gives every lease its full time again.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts the lease's time anew.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`]: it ended, and its keys are gone or going.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease and deletes its keys, in one revision (none if it has no keys).
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`]: it had ended before.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// The newest committed revision; 0 or more in an empty store.
    async fn revision(&self) -> Result<u64, StoreError>;
}
