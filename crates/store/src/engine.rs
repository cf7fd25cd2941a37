//! The rules over any [`Storage`]: takes calls on async threads, hands writes to the writer, reads
//! from the storage.

use std::convert::Infallible;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use vango_edge_core::clock::Clock;

use super::history::History;
use super::storage::{self, Range, Storage, StorageError};
use super::txn::{validate_key, validate_prefix};
use super::writer::{AnswerTo, Call, Queued, Writer};
use super::{
    ANSWER_DEADLINE, Entry, LEASE_TTL_MAX, LEASE_TTL_MIN, LeaseId, OpenError, PAGE_BYTES,
    PAGE_ENTRIES, Page, QUEUE_DEADLINE, QUEUE_UNITS, READS, StateStore, StoreError, Txn,
    WATCH_BYTES, WATCH_REVISIONS, Watch, load,
};

/// Bytes of a transaction that take one more unit of the queue.
const UNIT_BYTES: usize = 4096;

/// What an operator or a test may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Revisions kept for watches; at least 1 is. Default [`WATCH_REVISIONS`].
    pub watch_revisions: usize,
    /// Bytes of keys and values kept for watches. Default [`WATCH_BYTES`].
    pub watch_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { watch_revisions: WATCH_REVISIONS, watch_bytes: WATCH_BYTES }
    }
}

/// How long dropping a store waits for its writer.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

/// A store over `S`.
///
/// Dropping it closes it too, and blocks the thread while it does, at most 5 s: a storage that is
/// still being closed while the process exits may abort. After [`close`](Self::close) a drop waits
/// for nothing.
pub struct Engine<S: Storage> {
    storage: Arc<S>,
    history: Arc<History>,
    /// None once dropping.
    calls: Option<mpsc::Sender<Queued>>,
    /// Disconnected once the writer has ended.
    writer: Mutex<mpsc::Receiver<Infallible>>,
    /// The writer itself, where no thread has it.
    inline: Option<Mutex<Option<Writer<S>>>>,
    /// Bounds what is queued in `calls`, by count and bytes.
    queue: Arc<Semaphore>,
    /// Bounds reads that may wait for a disk.
    reads: Arc<Semaphore>,
}

impl<S: Storage> Engine<S> {
    /// Reads what `storage` holds and starts the writer. Blocks while it reads the leases.
    ///
    /// # Errors
    /// [`OpenError`], but for `Locked`, which is the storage's own.
    pub fn start(storage: S, clock: Arc<dyn Clock>, options: Options) -> Result<Self, OpenError> {
        let (mut engine, writer) = Self::prepare(storage, clock, options)?;
        let (running, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                let _running = running;
                writer.run();
            })
            .map_err(|e| OpenError::Io(format!("store writer's thread: {e}")))?;
        engine.writer = Mutex::new(ended);
        Ok(engine)
    }

    /// The same without a thread: each call writes before it answers, and due leases end with the next
    /// call. For a program on one thread whose time is not the system's, as a simulation is: it would
    /// wait in vain for another thread. A storage that blocks blocks its callers.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn inline(storage: S, clock: Arc<dyn Clock>, options: Options) -> Result<Self, OpenError> {
        let (mut engine, writer) = Self::prepare(storage, clock, options)?;
        engine.inline = Some(Mutex::new(Some(writer)));
        Ok(engine)
    }

    fn prepare(
        storage: S,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Self, Writer<S>), OpenError> {
        load::check_format(&storage)?;
        let now = clock.now();
        let load::Loaded { revision, leases } = load::load(&storage, |_, ttl| now + ttl)?;
        let storage = Arc::new(storage);
        let history =
            Arc::new(History::new(revision, options.watch_revisions, options.watch_bytes));
        let (calls, queued) = mpsc::channel();
        let writer = Writer::new(storage.clone(), clock, history.clone(), queued, revision, leases);
        let engine = Self {
            storage,
            history,
            calls: Some(calls),
            // No thread runs yet.
            writer: Mutex::new(mpsc::channel().1),
            inline: None,
            queue: Arc::new(Semaphore::new(QUEUE_UNITS as usize)),
            reads: Arc::new(Semaphore::new(READS)),
        };
        Ok((engine, writer))
    }

    /// Answers what was called before, makes it durable, ends the watches and frees the storage.
    /// Calls afterwards are [`StoreError::Closed`], as is a second close.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.call(0, Call::Close).await
    }

    /// Makes the writer look at the clock now and end the leases that are due; returns when it has.
    /// Only a clock that jumps needs it: tests and the simulation.
    pub async fn poke(&self) -> Result<(), StoreError> {
        self.call(0, Call::Poke).await
    }

    /// Queues a call of `bytes` bytes and waits for its answer.
    async fn call<T>(
        &self,
        bytes: usize,
        call: impl FnOnce(AnswerTo<T>) -> Call,
    ) -> Result<T, StoreError> {
        let units =
            u32::try_from(1 + bytes / UNIT_BYTES).map_or(QUEUE_UNITS, |u| u.min(QUEUE_UNITS));
        let place = timeout(QUEUE_DEADLINE, self.queue.clone().acquire_many_owned(units))
            .await
            .map_err(|_| StoreError::Busy)?
            .map_err(|_| StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let queued = Queued { call: call(answer), place };
        let calls = self.calls.as_ref().ok_or(StoreError::Closed)?;
        calls.send(queued).map_err(|_| StoreError::Closed)?;
        if let Some(writer) = &self.inline {
            let mut writer = writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *writer = writer.take().and_then(Writer::serve_queued);
        }
        match timeout(ANSWER_DEADLINE, answered).await {
            Ok(answer) => answer.map_err(|_| StoreError::Closed)?,
            Err(_) => Err(StoreError::Unavailable(format!(
                "no answer from the disk within {ANSWER_DEADLINE:?}; the outcome is unknown"
            ))),
        }
    }

    /// Runs `read` where it may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if !S::BLOCKING {
            return Ok(read(&self.storage)?);
        }
        let place = timeout(QUEUE_DEADLINE, self.reads.clone().acquire_owned())
            .await
            .map_err(|_| StoreError::Busy)?
            .map_err(|_| StoreError::Closed)?;
        let storage = self.storage.clone();
        // The place is held by the thread, not by the caller: a caller that leaves frees no thread.
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            read(&storage)
        });
        match timeout(ANSWER_DEADLINE, reading).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(cut_off)) => Err(StoreError::Unavailable(format!("read: {cut_off}"))),
            Err(_) => Err(StoreError::Unavailable(format!(
                "no answer from the disk within {ANSWER_DEADLINE:?}"
            ))),
        }
    }
}

impl<S: Storage> Drop for Engine<S> {
    fn drop(&mut self) {
        // Without a thread, this is its end.
        self.inline.take();
        // Its end of the queue being closed is what the writer ends by.
        self.calls.take();
        let writer = self.writer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(RecvTimeoutError::Timeout) = writer.recv_timeout(DROP_DEADLINE) {
            log::error!("store: its writer still waits for the disk after {DROP_DEADLINE:?}");
        }
    }
}

#[async_trait]
impl<S: Storage> StateStore for Engine<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        validate_key(key)?;
        let stored = storage::entry_key(key);
        self.read(move |storage| {
            let value = storage.get(&stored)?;
            value.map(|value| storage::decode_entry(&stored, &value)).transpose()
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        validate_prefix(prefix)?;
        after.map_or(Ok(()), validate_prefix)?;
        if limit == 0 {
            return Err(StoreError::Invalid("a page of 0 entries".into()));
        }
        let prefix = storage::entry_key(prefix);
        let mut from = prefix.clone();
        if let Some(after) = after {
            // The least key above `after`.
            let next = [&storage::entry_key(after), &[0][..]].concat();
            from = from.max(next);
        }
        let range = Range { from, prefix, limit: limit.min(PAGE_ENTRIES), bytes: PAGE_BYTES };
        self.read(move |storage| {
            let scan = storage.scan(&range, storage::REVISION_KEY)?;
            let revision = scan
                .beside
                .map_or(Ok(0), |stored| storage::decode_u64(storage::REVISION_KEY, &stored))?;
            let entries = scan.rows.iter().map(|(stored, value)| {
                Ok((storage::decode_entry_key(stored)?, storage::decode_entry(stored, value)?))
            });
            let entries = entries.collect::<Result<_, StorageError>>()?;
            Ok(Page { entries, revision, more: scan.more })
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
        let bytes = txn.validate()?;
        self.call(bytes, |answer| Call::Txn(txn, answer)).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
        validate_prefix(prefix)?;
        self.history.follow(prefix, from).map(Watch::new)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if !(LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl) {
            return Err(StoreError::Invalid(format!(
                "lease of {ttl:?}; expected {LEASE_TTL_MIN:?} to {LEASE_TTL_MAX:?}"
            )));
        }
        let whole = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        self.call(0, |answer| Call::Grant(whole, answer)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(0, |answer| Call::KeepAlive(lease, answer)).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(0, |answer| Call::Revoke(lease, answer)).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.history.newest().ok_or(StoreError::Closed)
    }
}
