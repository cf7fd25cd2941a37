//! The audit: evidence of unsafe requests, bounded by age and count, beside the ledger's records.
//!
//! Most evidence is written soon after its request, many in one transaction, and never makes a
//! request wait; when more comes than can be written, what does not fit is counted and dropped.
//! Evidence that an answer depends on is written before it ([`Audit::before_answer`]).
//!
//! Rows of requests of which nothing was forwarded are kept apart from the others, under a bound of their
//! own (a quarter of all rows), so that no number of refusals takes away the row of a request that an app
//! got. One client leaves [`MOST_REFUSED_OF_ONE`] of them a minute, all clients together
//! [`MOST_REFUSED`]; the rest is counted. What is too much goes in the transaction that adds to it, so that
//! the bounds hold at every moment.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::clock::{Clock, Mono, Wall};
use crate::config::AuditLimits;
use crate::record::Record;
use crate::record::ledger::{AuditEvidence, key};
use crate::store::{Pages, StateStore, StoreError, Txn};

/// Evidence that waits to be written.
const QUEUE: usize = 8192;
/// Rows in one transaction, which takes as many away, and a few more: [`crate::store::TXN_OPS`] in all.
const AT_ONCE: usize = 60;
/// How long an answer waits for its evidence.
const DEADLINE: Duration = Duration::from_secs(2);
/// Rows of one client's requests that were not forwarded, in one [`MINUTE`].
pub const MOST_REFUSED_OF_ONE: u32 = 20;
/// The same of all clients together.
pub const MOST_REFUSED: u32 = 400;
const MINUTE: Duration = Duration::from_secs(60);
/// How often what was kept long enough is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const PAGE: usize = 1000;

/// Which evidence is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub app: Option<String>,
    /// This route's, as the contract has it.
    pub route: Option<String>,
    /// This key's, by its hash.
    pub key_hash: Option<String>,
    pub event: Option<String>,
    /// Not before this.
    pub since: Wall,
}

impl Wanted {
    fn takes(&self, e: &AuditEvidence) -> bool {
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
    queue: mpsc::Sender<AuditEvidence>,
    queued: Mutex<Option<mpsc::Receiver<AuditEvidence>>>,
    number: AtomicU64,
    dropped: AtomicU64,
    /// Rows of refusals that were not kept, since their client or all clients had enough in that minute.
    not_kept: AtomicU64,
    /// Taken into the queue, and neither written nor dropped yet.
    unwritten: watch::Sender<usize>,
    refused: Mutex<Refused>,
    /// Rows of what was forwarded, and of what was not.
    shelves: tokio::sync::Mutex<[AuditShelf; 2]>,
}

/// Refusals of this minute; as many entries as rows at most.
#[derive(Default)]
struct Refused {
    since: Mono,
    all: u32,
    /// By client; `None` are those of which no address is known.
    of: HashMap<Option<IpAddr>, u32>,
}

impl Refused {
    fn fits(&mut self, client: Option<IpAddr>, now: Mono) -> bool {
        if now.since(self.since) >= MINUTE {
            *self = Self { since: now, ..Self::default() };
        }
        if self.all >= MOST_REFUSED {
            return false;
        }
        let of_this = self.of.entry(client).or_default();
        let fits = *of_this < MOST_REFUSED_OF_ONE;
        *of_this += u32::from(fits);
        self.all += u32::from(fits);
        fits
    }
}

/// Rows of one kind.
struct AuditShelf {
    prefix: &'static str,
    most: u64,
    /// How many there are; `None` until they are counted, and after a write that may have failed.
    rows: Option<u64>,
    /// The keys of the oldest, as far as they were looked up.
    oldest: VecDeque<String>,
    /// The last one that was deleted. What was deleted before it is not looked through again.
    last_deleted: Option<String>,
}

impl AuditShelf {
    fn new(prefix: &'static str, most: u64) -> Self {
        Self { prefix, most, rows: None, oldest: VecDeque::new(), last_deleted: None }
    }

    async fn count(&mut self, store: &dyn StateStore) -> Result<u64, StoreError> {
        if let Some(rows) = self.rows {
            return Ok(rows);
        }
        let rows = super::count(store, self.prefix).await?;
        self.rows = Some(rows);
        Ok(rows)
    }

    /// Counts `new` rows in, and takes out the keys of as many of the oldest as are too many then.
    async fn make_room(
        &mut self,
        store: &dyn StateStore,
        new: u64,
    ) -> Result<Vec<String>, StoreError> {
        let rows = self.count(store).await? + new;
        // A few more than came, for a bound that was lowered.
        let over = rows.saturating_sub(self.most).min(new + 4);
        let over = usize::try_from(over).unwrap_or(usize::MAX);
        while self.oldest.len() < over {
            let last = self.oldest.back().cloned();
            // If the clock was set back, new rows sort before the last deleted one: look from the start once
            // more.
            let again = last.is_none() && self.last_deleted.is_some();
            let from = last.or_else(|| self.last_deleted.take());
            let page = store.list(self.prefix, from.as_deref(), PAGE).await?;
            if page.entries.is_empty() && !again {
                break;
            }
            self.oldest.extend(page.entries.into_iter().map(|(key, _)| key));
        }
        let gone: Vec<String> = self.oldest.drain(..over.min(self.oldest.len())).collect();
        if let Some(last) = gone.last() {
            self.last_deleted = Some(last.clone());
        }
        self.rows = Some(rows - gone.len() as u64);
        Ok(gone)
    }
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
            not_kept: AtomicU64::new(0),
            unwritten: watch::Sender::new(0),
            refused: Mutex::default(),
            shelves: tokio::sync::Mutex::new([
                AuditShelf::new(key::EVIDENCE, limits.max_rows - limits.max_rows / 4),
                AuditShelf::new(key::REFUSALS, limits.max_rows / 4),
            ]),
        })
    }

    /// Rows of refusals that were not kept, since their client or all clients had enough in that minute.
    pub fn not_kept(&self) -> u64 {
        self.not_kept.load(Ordering::Relaxed)
    }

    /// Rows that were not written because too many came at once, or the store did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        // What is in them is whole at every moment.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps evidence soon; the caller does not wait.
    pub fn soon(&self, evidence: AuditEvidence) {
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

    /// The same for a request of which nothing was forwarded: a flood leaves a few rows a minute.
    /// `client` is the address that stands for its client.
    pub fn refused(&self, evidence: AuditEvidence, client: Option<IpAddr>) {
        if Self::lock(&self.refused).fits(client, self.clock.now()) {
            self.soon(evidence);
        } else {
            self.not_kept.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps evidence that an answer depends on; returns once it is kept. It survives `kill -9`.
    ///
    /// # Errors
    /// [`StoreError`] when it is not, or when that is not known.
    pub async fn before_answer(&self, evidence: &AuditEvidence) -> Result<(), StoreError> {
        let kept = async {
            let txn = self.with(Txn::new(), evidence).await?;
            self.commit(txn).await
        };
        tokio::time::timeout(DEADLINE, kept).await.unwrap_or(Err(StoreError::Busy))
    }

    /// Keeps evidence of an environment at `place`, which is its own; again is once. Returns once it is kept.
    ///
    /// # Errors
    /// [`StoreError`] when it is not, or when that is not known.
    pub async fn once(&self, place: &str, evidence: &AuditEvidence) -> Result<(), StoreError> {
        let kept = self.keep_once(format!("{}{place}", key::EVIDENCE), evidence);
        tokio::time::timeout(DEADLINE, kept).await.unwrap_or(Err(StoreError::Busy))
    }

    async fn keep_once(&self, at: String, evidence: &AuditEvidence) -> Result<(), StoreError> {
        if self.store.get(&at).await?.is_some() {
            return Ok(());
        }
        let room = {
            let shelf = &mut self.shelves.lock().await[0];
            if shelf.most == 0 {
                return Ok(());
            }
            shelf.make_room(&*self.store, 1).await?
        };
        let txn = room.into_iter().fold(Txn::new(), Txn::delete).put(at, evidence.encode());
        self.commit(txn).await
    }

    /// `txn`, which keeps evidence too: whole, or neither. Its store is the ledger's.
    pub(super) async fn with(&self, txn: Txn, evidence: &AuditEvidence) -> Result<Txn, StoreError> {
        self.adding(txn, std::slice::from_ref(evidence)).await
    }

    /// `txn`, which adds these rows, and takes away as many old ones as are too many then. At most
    /// [`AT_ONCE`] rows.
    async fn adding(&self, mut txn: Txn, rows: &[AuditEvidence]) -> Result<Txn, StoreError> {
        let mut shelves = self.shelves.lock().await;
        for (shelf, refusals) in shelves.iter_mut().zip([false, true]) {
            let new: Vec<&AuditEvidence> =
                rows.iter().filter(|e| e.is_refusal() == refusals).collect();
            if new.is_empty() || shelf.most == 0 {
                continue;
            }
            let gone = shelf.make_room(&*self.store, new.len() as u64).await?;
            txn = gone.into_iter().fold(txn, Txn::delete);
            for evidence in new {
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                let at = key::evidence(shelf.prefix, evidence.at, number);
                txn = txn.put(at, evidence.encode());
            }
        }
        Ok(txn)
    }

    async fn commit(&self, txn: Txn) -> Result<(), StoreError> {
        let answer = self.store.txn(txn).await;
        if answer.is_err() {
            // What of it is there is known when it is counted again.
            for shelf in self.shelves.lock().await.iter_mut() {
                (shelf.rows, shelf.last_deleted) = (None, None);
                shelf.oldest.clear();
            }
        }
        answer.map(|_| ())
    }

    /// Writes what is queued, for as long as the process runs. Called once.
    pub async fn write(&self) {
        let Some(mut queued) = Self::lock(&self.queued).take() else { return };
        let mut some = Vec::with_capacity(AT_ONCE);
        while queued.recv_many(&mut some, AT_ONCE).await > 0 {
            let kept = async { self.commit(self.adding(Txn::new(), &some).await?).await };
            if let Err(e) = kept.await {
                self.dropped.fetch_add(some.len() as u64, Ordering::Relaxed);
                log::warn!("audit: {} rows were not kept: {e}", some.len());
            }
            self.unwritten.send_modify(|left| *left -= some.len());
            some.clear();
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
    ) -> Result<(Vec<(String, AuditEvidence)>, bool), StoreError> {
        let (mut found, mut more) = self.list_of(key::EVIDENCE, wanted, before, most).await?;
        let (refusals, more_refusals) = self.list_of(key::REFUSALS, wanted, before, most).await?;
        found.extend(refusals);
        found.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        more |= more_refusals || found.len() > most;
        found.truncate(most);
        Ok((found, more))
    }

    async fn list_of(
        &self,
        prefix: &str,
        wanted: &Wanted,
        before: Option<&str>,
        most: usize,
    ) -> Result<(Vec<(String, AuditEvidence)>, bool), StoreError> {
        let end = before.map(|place| format!("{prefix}{place}"));
        let mut found: VecDeque<(String, AuditEvidence)> = VecDeque::new();
        let mut more = false;
        let older = |at: &str| end.as_deref().is_none_or(|end| at < end);
        let since = key::evidence_from(prefix, wanted.since);
        let mut pages = Pages::new(&*self.store, prefix, Some(since));
        while let Some(page) = pages.next().await? {
            for (at, entry) in page.entries.iter().take_while(|(at, _)| older(at)) {
                let Ok(evidence) = AuditEvidence::decode(&entry.value) else { continue };
                if !wanted.takes(&evidence) {
                    continue;
                }
                let place = at.strip_prefix(prefix).unwrap_or(at).to_owned();
                found.push_back((place, evidence));
                if found.len() > most {
                    found.pop_front();
                    more = true;
                }
            }
            if page.entries.last().is_some_and(|(last, _)| !older(last)) {
                break;
            }
        }
        Ok((found.into(), more))
    }

    /// Takes away what was kept long enough, for as long as the process runs.
    pub async fn trim(&self) {
        let mut told = 0;
        loop {
            // At the start too: it counts what is there, so that no answer waits for that.
            if let Err(e) = self.trim_now().await {
                log::warn!("audit: old rows were not taken away: {e}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let not_kept = self.not_kept();
            if not_kept > told {
                // Anyone on the internet can cause it.
                log::info!(
                    "audit: {} requests that were not forwarded left no row: more than \
                     {MOST_REFUSED_OF_ONE} of one client or {MOST_REFUSED} of all in a minute",
                    not_kept - told
                );
                told = not_kept;
            }
        }
    }

    /// Takes away what is too old now; says how many. What is too much by a bound that was lowered goes
    /// too.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or written.
    pub async fn trim_now(&self) -> Result<usize, StoreError> {
        let age = u64::try_from(self.limits.max_age.as_millis()).unwrap_or(u64::MAX);
        let until = Wall(self.clock.wall().0.saturating_sub(age));
        let mut gone = 0;
        for kind in 0..2 {
            loop {
                let mut shelves = self.shelves.lock().await;
                let shelf = &mut shelves[kind];
                let oldest = key::evidence_from(shelf.prefix, until);
                let page = self.store.list(shelf.prefix, None, AT_ONCE).await?;
                let too_many = shelf.count(&*self.store).await?.saturating_sub(shelf.most);
                let old = page.entries.iter().zip(0..);
                let keys: Vec<String> = old
                    .take_while(|((key, _), n)| *key < oldest || *n < too_many)
                    .map(|((key, _), _)| key.clone())
                    .collect();
                if keys.is_empty() {
                    break;
                }
                shelf.oldest.clear();
                shelf.rows = shelf.rows.map(|rows| rows.saturating_sub(keys.len() as u64));
                drop(shelves);
                gone += keys.len();
                self.commit(keys.into_iter().fold(Txn::new(), Txn::delete)).await?;
            }
        }
        Ok(gone)
    }
}
