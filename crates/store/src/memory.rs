//! A store in memory: for tests, the simulation, and an edge that may forget. Passes the same
//! contract as the others; [`Durability`](super::Durability) is accepted and means nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use vango_edge_core::clock::Clock;

use super::storage::{Range, Scan, Storage, StorageError, Write};
use super::{Engine, OpenError, Options};

/// A store in memory.
pub type MemoryStore = Engine<Memory>;

impl MemoryStore {
    /// An empty store.
    ///
    /// # Errors
    /// [`OpenError::Io`] if the writer's thread cannot be started.
    pub fn new(clock: Arc<dyn Clock>, options: Options) -> Result<Self, OpenError> {
        Self::start(Memory::new(), clock, options)
    }
}

/// An ordered map behind a lock, which is held for no longer than one read or one batch.
#[derive(Debug)]
pub struct Memory {
    /// None once closed.
    rows: RwLock<Option<BTreeMap<Vec<u8>, Bytes>>>,
}

impl Memory {
    /// An empty one.
    pub fn new() -> Self {
        Self { rows: RwLock::new(Some(BTreeMap::new())) }
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&BTreeMap<Vec<u8>, Bytes>) -> T,
    ) -> Result<T, StorageError> {
        let rows = self.rows.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        rows.as_ref().map(read).ok_or(StorageError::Closed)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Storage for Memory {
    const BLOCKING: bool = false;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.read(|rows| rows.get(key).cloned())
    }

    fn scan(&self, range: &Range, beside: &[u8]) -> Result<Scan, StorageError> {
        self.read(|rows| {
            let from = Bound::Included(range.from.as_slice());
            let mut following = rows
                .range::<[u8], _>((from, Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(&range.prefix));
            let mut found = Vec::new();
            let mut bytes = 0;
            while found.len() < range.limit && bytes < range.bytes {
                let Some((key, value)) = following.next() else { break };
                bytes += key.len() + value.len();
                found.push((key.clone(), value.clone()));
            }
            let more = following.next().is_some();
            Scan { rows: found, more, beside: rows.get(beside).cloned() }
        })
    }

    fn write(&self, batch: Vec<Write>, _sync: bool) -> Result<(), StorageError> {
        let mut rows = self.rows.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let rows = rows.as_mut().ok_or(StorageError::Closed)?;
        for write in batch {
            match write {
                Write::Put(key, value) => {
                    rows.insert(key, value);
                }
                Write::Delete(key) => {
                    rows.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn recover(&self) -> Result<(), StorageError> {
        self.read(|_| ())
    }

    fn close(&self) {
        self.rows.write().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }
}
