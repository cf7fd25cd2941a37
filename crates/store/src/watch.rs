//! What a watch delivers. Where the events come from is the adapter's [`EventSource`].

use async_trait::async_trait;

use super::{Entry, StoreError};

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision at which it was committed.
    pub revision: u64,
    pub key: String,
    /// What happened to it.
    pub kind: EventKind,
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// It has this entry now.
    Put(Entry),
    /// It was deleted, by a transaction or because its lease ended.
    Delete,
}

/// Where a watch gets its events from: one per adapter.
#[async_trait]
pub trait EventSource: Send {
    /// As [`Watch::next`]. Must be safe to drop before it is ready: no event may be lost by that.
    async fn next(&mut self) -> Result<Vec<Event>, StoreError>;
}

/// A subscription to a prefix, gap-free and in order.
///
/// It keeps no buffer of its own: it reads the store's history at its own pace, and when the history
/// it still needs has been dropped, it ends with [`StoreError::Compacted`].
pub struct Watch(Box<dyn EventSource>);

impl Watch {
    /// A watch that reads from `source`.
    pub fn new(source: impl EventSource + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next revision that touched the prefix: all its events there, in the order of the
    /// transaction's operations, never none. Waits without a deadline; dropping the wait loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the watch fell behind, [`StoreError::Closed`] once the store is
    /// closed and all events before that were delivered. Both are final.
    pub async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        self.0.next().await
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
