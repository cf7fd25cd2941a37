//! The audit: evidence of unsafe requests, bounded by age and count, beside the ledger's records.
//!
//! Most evidence is written soon after its request, many in one transaction, and never makes a
//! request wait; when more comes than can be written, what does not fit is counted and dropped.
//! Evidence that an answer depends on is written before it ([`Audit::before_answer`]).
//!
//! A flood of deliveries that are not believed leaves [`MOST_REFUSED`] rows a minute and a count.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::clock::{Clock, Mono, Wall};
use crate::store::record::Record;
use crate::store::record::ledger::{Evidence, key};
use crate::store::{StateStore, StoreError, TXN_OPS, Txn};

/// Evidence that waits to be written.
const QUEUE: usize = 8192;
/// Rows in one transaction.
const AT_ONCE: usize = 100;
/// How long an answer waits for its evidence.
const DEADLINE: Duration = Duration::from_secs(2);
/// Rows of refused deliveries in one [`MINUTE`], all routes together.
pub const MOST_REFUSED: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// How often what was kept long enough is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const PAGE: usize = 1000;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct AuditLimits {
    /// Rows.
    pub max_rows: u64,
    /// For how long.
    pub max_age: Duration,
}

/// Which evidence is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// This app's.
    pub app: Option<String>,
    /// This route's, as the contract has it.
    pub route: Option<String>,
    /// This key's, by its hash.
    pub key_hash: Option<String>,
    /// This event's.
    pub event: Option<String>,
    /// Not before this.
    pub since: Wall,
}

impl Wanted {
    fn takes(&self, e: &Evidence) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|w| found == Some(w))
        };
        is(&self.app, Some(e.environment.app().as_str()))
            && is(&self.route, Some(&e.route))
            && is(&self.key_hash, e.key_hash.as_deref())
            && is(&self.event, e.event.as_deref())
    }
}

/// The audit of one node.
pub struct Audit {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    limits: AuditLimits,
    queue: mpsc::Sender<Evidence>,
    queued: Mutex<Option<mpsc::Receiver<Evidence>>>,
    number: AtomicU64,
    dropped: AtomicU64,
    /// Taken into the queue, and neither written nor dropped yet.
    unwritten: watch::Sender<usize>,
    refused: Mutex<(Mono, u32)>,
}

impl Audit {
    /// The audit over `store`. `first` is larger than any number this node gave out before: random
    /// bits will do.
    pub fn new(
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        limits: AuditLimits,
        first: u64,
    ) -> Arc<Self> {
        let (queue, queued) = mpsc::channel(QUEUE);
        Arc::new(Self {
            store,
            clock,
            limits,
            queue,
            queued: Mutex::new(Some(queued)),
            number: AtomicU64::new(first),
            dropped: AtomicU64::new(0),
            unwritten: watch::Sender::new(0),
            refused: Mutex::default(),
        })
    }

    /// Rows that were not written because too many came at once, or the store did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        // What is in them is whole at every moment.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps evidence soon, without making anybody wait.
    pub fn soon(&self, evidence: Evidence) {
        // Counted first: the writer may be done with it before this goes on.
        self.unwritten.send_modify(|n| *n += 1);
        if self.queue.try_send(evidence).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.unwritten.send_modify(|n| *n -= 1);
        }
    }

    /// Returns once all that was given to [`Audit::soon`] so far is written, or after `within`; says
    /// how many rows are left.
    pub async fn written(&self, within: Duration) -> usize {
        let mut unwritten = self.unwritten.subscribe();
        let _ = tokio::time::timeout(within, unwritten.wait_for(|n| *n == 0)).await;
        *self.unwritten.borrow()
    }

    /// The same for a delivery that was not believed: a flood leaves a few rows a minute.
    pub fn refused(&self, evidence: Evidence) {
        let now = self.clock.now();
        let few = {
            let mut seen = Self::lock(&self.refused);
            if now.since(seen.0) >= MINUTE {
                *seen = (now, 0);
            }
            seen.1 += 1;
            seen.1 <= MOST_REFUSED
        };
        if few {
            self.soon(evidence);
        }
    }

    /// Keeps evidence that an answer depends on; returns once it is kept. It survives `kill -9`.
    ///
    /// # Errors
    /// [`StoreError`] when it is not, or nobody knows.
    pub async fn before_answer(&self, evidence: &Evidence) -> Result<(), StoreError> {
        let txn = Txn::new().put(self.key(evidence.at), evidence.encode());
        match tokio::time::timeout(DEADLINE, self.store.txn(txn)).await {
            Ok(answer) => answer.map(|_| ()),
            Err(_) => Err(StoreError::Busy),
        }
    }

    /// `txn`, which keeps evidence too: whole, or neither. Its store is the ledger's.
    pub(super) fn with(&self, txn: Txn, evidence: &Evidence) -> Txn {
        txn.put(self.key(evidence.at), evidence.encode())
    }

    fn key(&self, at: Wall) -> String {
        key::evidence(at, self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes what is queued, for as long as the process runs. Called once.
    pub async fn write(&self) {
        let Some(mut queued) = Self::lock(&self.queued).take() else { return };
        let mut some = Vec::with_capacity(AT_ONCE);
        while queued.recv_many(&mut some, AT_ONCE).await > 0 {
            let n = some.len();
            let txn = some.drain(..).fold(Txn::new(), |txn, e| txn.put(self.key(e.at), e.encode()));
            if let Err(e) = self.store.txn(txn).await {
                self.dropped.fetch_add(n as u64, Ordering::Relaxed);
                log::warn!("audit: {n} rows were not kept: {e}");
            }
            self.unwritten.send_modify(|left| *left -= n);
        }
    }

    /// The newest rows that are wanted, newest first, at most `most`, each with its place; of those
    /// that are older than the place `before`, where one is given. Whether older ones follow.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read. A row that this build cannot read is left out.
    pub async fn list(
        &self,
        wanted: &Wanted,
        before: Option<&str>,
        most: usize,
    ) -> Result<(Vec<(String, Evidence)>, bool), StoreError> {
        let end = before.map(|place| format!("{}{place}", key::EVIDENCE));
        let mut found: VecDeque<(String, Evidence)> = VecDeque::new();
        let mut more = false;
        let mut after = Some(key::evidence_from(wanted.since));
        loop {
            let page = self.store.list(key::EVIDENCE, after.as_deref(), PAGE).await?;
            let older = |at: &str| end.as_deref().is_none_or(|end| at < end);
            for (at, entry) in page.entries.iter().take_while(|(at, _)| older(at)) {
                let Ok(evidence) = Evidence::decode(&entry.value) else { continue };
                if !wanted.takes(&evidence) {
                    continue;
                }
                let place = at.strip_prefix(key::EVIDENCE).unwrap_or(at).to_owned();
                found.push_back((place, evidence));
                if found.len() > most {
                    found.pop_front();
                    more = true;
                }
            }
            let last = page.entries.last().map(|(k, _)| k.clone());
            if !page.more || last.as_deref().is_some_and(|last| !older(last)) {
                return Ok((found.into_iter().rev().collect(), more));
            }
            after = last.or(after);
        }
    }

    /// Takes away what was kept long enough, for as long as the process runs.
    pub async fn trim(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(e) = self.trim_now().await {
                log::warn!("audit: old rows were not taken away: {e}");
            }
        }
    }

    /// Takes away what is too old or too much now; says how many.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or written.
    pub async fn trim_now(&self) -> Result<usize, StoreError> {
        let age = u64::try_from(self.limits.max_age.as_millis()).unwrap_or(u64::MAX);
        let oldest = key::evidence_from(Wall(self.clock.wall().0.saturating_sub(age)));
        let (mut keys, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.store.list(key::EVIDENCE, after.as_deref(), PAGE).await?;
            keys.extend(page.entries.into_iter().map(|(key, _)| key));
            after = keys.last().cloned();
            if !page.more {
                break;
            }
        }
        let too_old = keys.partition_point(|k| *k < oldest);
        let most = usize::try_from(self.limits.max_rows).unwrap_or(usize::MAX);
        let gone = too_old.max(keys.len().saturating_sub(most));
        for some in keys[..gone].chunks(TXN_OPS) {
            self.store.txn(some.iter().fold(Txn::new(), |txn, key| txn.delete(key))).await?;
        }
        Ok(gone)
    }
}
