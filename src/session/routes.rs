//! Session routing records, off every request's way: an accepted socket leaves its record among those to
//! be written, where it is found from then on, and one task writes them, a transaction for many. A record
//! that finds no room there is left out: the browser's token says the same.
//!
//! Bounded by age ([`AGE`]) and by count ([`MOST`], exceeded by a quarter between two looks).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::{Clock, Wall};
use crate::id::Environment;
use crate::lifecycle::affinity::{KnownBy, Prior, SessionName};
use crate::lifecycle::resume::Lookup;
use crate::record::{Record, SessionRoute, key};
use crate::store::{StateStore, StoreError, TXN_OPS, Txn};

use super::stores::patience;

/// How long a record is kept after its socket was accepted.
pub const AGE: Duration = Duration::from_secs(24 * 3600);
/// Records that are kept.
pub const MOST: usize = 100_000;
/// Records that wait to be written.
const QUEUE: usize = 8192;
/// How long a reconnect waits for its record.
const READ_WITHIN: Duration = Duration::from_millis(250);
/// How often records are looked through for old ones.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Entries asked for at a time.
const PAGE: usize = 1000;

/// Writes and reads routing records.
pub struct SessionRoutes {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    /// Not written yet, by key: a tab that is back before its record is on disk is known all the same.
    waiting: Mutex<HashMap<String, SessionRoute>>,
    /// There is something to be written.
    noted: Notify,
    left_out: AtomicU64,
}

impl SessionRoutes {
    /// Records in `store`. Nothing is written before [`Self::write`] runs.
    pub fn new(store: Arc<dyn StateStore>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (waiting, noted, left_out) = Default::default();
        Arc::new(Self { store, clock, waiting, noted, left_out })
    }

    /// Notes where a session's socket was accepted. Never waits.
    pub fn note(&self, environment: &Environment, name: SessionName, route: SessionRoute) {
        let at = key::session(environment, &name);
        let mut waiting = self.waiting();
        if waiting.len() >= QUEUE && !waiting.contains_key(&at) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.insert(at, route);
        drop(waiting);
        self.noted.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, SessionRoute>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that found no room among those to be written.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Where the session was.
    pub async fn find(&self, environment: &Environment, name: SessionName) -> Lookup {
        let at = key::session(environment, &name);
        let waits = self.waiting().get(&at).cloned();
        if let Some(route) = waits {
            return self.found(route);
        }
        match patience(READ_WITHIN, self.store.get(&at)).await {
            Ok(Ok(Some(entry))) => match SessionRoute::decode(&entry.value) {
                Ok(route) => self.found(route),
                Err(e) => {
                    log::warn!("{at}: {e}");
                    Lookup::Unavailable
                }
            },
            Ok(Ok(None)) => Lookup::Absent,
            Ok(Err(_)) | Err(_) => Lookup::Unavailable,
        }
    }

    fn found(&self, route: SessionRoute) -> Lookup {
        // Not deleted yet, but over.
        if self.clock.wall().since(route.at) >= AGE {
            return Lookup::Absent;
        }
        Lookup::Found(Prior {
            allocation: route.allocation,
            generation: route.generation,
            schema: route.schema,
            known_by: KnownBy::Record,
        })
    }

    /// Writes what waits and takes off what is old, for as long as the process runs.
    pub async fn write(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut since_look = 0;
        loop {
            let looks = tokio::select! {
                _ = look.tick() => true,
                () = self.noted.notified() => false,
            };
            if looks || since_look > MOST / 4 {
                since_look = 0;
                if let Err(e) = self.trim().await {
                    log::warn!("old session records were not taken off: {e}");
                }
            }
            since_look += self.write_some().await;
        }
    }

    /// Writes as much as one transaction takes. What is left rings again.
    async fn write_some(&self) -> usize {
        let some: Vec<_> = {
            let waiting = self.waiting();
            if waiting.len() > TXN_OPS {
                self.noted.notify_one();
            }
            waiting.iter().take(TXN_OPS).map(|(at, r)| (at.clone(), r.clone())).collect()
        };
        if some.is_empty() {
            return 0;
        }
        let txn = some.iter().fold(Txn::new(), |t, (at, r)| t.put(at, r.encode()));
        if let Err(e) = self.store.txn(txn).await {
            self.left_out.fetch_add(some.len() as u64, Ordering::Relaxed);
            log::warn!("{} session records were not written: {e}", some.len());
        }
        let mut waiting = self.waiting();
        for (at, written) in &some {
            // One that was noted again meanwhile waits on.
            if waiting.get(at) == Some(written) {
                waiting.remove(at);
            } else {
                self.noted.notify_one();
            }
        }
        some.len()
    }

    async fn trim(&self) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(key::SESSIONS, after.as_deref(), PAGE).await?;
            after = page.entries.last().map(|(k, _)| k.clone());
            rows.extend(page.entries.into_iter().map(|(k, e)| {
                // One that cannot be read is as old as can be.
                let at = SessionRoute::decode(&e.value).map_or(Wall(0), |r| r.at);
                (at, k)
            }));
            if !page.more {
                break;
            }
        }
        rows.sort_unstable();
        let over = expired(&rows, self.clock.wall());
        for some in rows[..over].chunks(TXN_OPS) {
            let txn = some.iter().fold(Txn::new(), |txn, (_, key)| txn.delete(key));
            self.store.txn(txn).await?;
        }
        Ok(())
    }
}

/// How many of `rows`, oldest first, have been kept long enough.
fn expired(rows: &[(Wall, String)], now: Wall) -> usize {
    let too_old = rows.partition_point(|(at, _)| now.since(*at) >= AGE);
    too_old.max(rows.len().saturating_sub(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::id::{Digest, Generation};
    use crate::store::{MemoryStore, Options};

    fn route(clock: &dyn Clock) -> SessionRoute {
        SessionRoute {
            allocation: "al-aaaaaaaaaaaaaaaa".parse().unwrap(),
            generation: Generation(2),
            digest: Digest::from_bytes([1; 32]),
            schema: Some(Digest::from_bytes([2; 32])),
            at: clock.wall(),
        }
    }

    #[tokio::test]
    async fn a_record_is_written_found_and_taken_off_by_age() {
        let clock = Arc::new(ManualClock::new());
        let store = MemoryStore::new(clock.clone(), Options::default()).unwrap();
        let routes = SessionRoutes::new(Arc::new(store), clock.clone());
        let environment: Environment = "studylab".parse().unwrap();
        for n in 0..300 {
            routes.note(&environment, SessionName(n), route(&*clock));
        }
        routes.note(&environment, SessionName(0), route(&*clock));
        let found = async || routes.find(&environment, SessionName(299)).await;
        let Lookup::Found(prior) = found().await else { panic!("before it is written") };
        assert_eq!((prior.generation, prior.known_by), (Generation(2), KnownBy::Record));
        let writing = tokio::spawn(Arc::clone(&routes).write());
        let written = async {
            while !routes.waiting().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), written).await.unwrap();
        assert_eq!(found().await, Lookup::Found(prior));
        assert_eq!(routes.find(&environment, SessionName(400)).await, Lookup::Absent);
        clock.advance(AGE);
        assert_eq!(routes.find(&environment, SessionName(1)).await, Lookup::Absent);
        routes.trim().await.unwrap();
        let left = routes.store.list(key::SESSIONS, None, 1000).await.unwrap();
        assert!(left.entries.is_empty());
        writing.abort();
    }

    #[test]
    fn a_full_queue_leaves_out_and_counts() {
        let clock = Arc::new(ManualClock::new());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _in = runtime.enter();
        let store = MemoryStore::new(clock.clone(), Options::default()).unwrap();
        let routes = SessionRoutes::new(Arc::new(store), clock.clone());
        let environment: Environment = "studylab".parse().unwrap();
        for n in 0..=QUEUE as u128 {
            routes.note(&environment, SessionName(n), route(&*clock));
        }
        assert_eq!(routes.left_out(), 1);
    }

    #[test]
    fn records_are_bounded_by_age_and_by_count() {
        let age = AGE.as_millis() as u64;
        let rows: Vec<_> = (0..10).map(|n| (Wall(n * age), n.to_string())).collect();
        assert_eq!(expired(&rows, Wall(5 * age)), 5);
        let many: Vec<_> = (0..MOST + 7).map(|n| (Wall(0), n.to_string())).collect();
        assert_eq!(expired(&many, Wall(1)), 7);
    }
}
