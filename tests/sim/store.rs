//! The store as a node reaches it: the real engine over memory, each call taking its time, with answers
//! that are lost, outages, and nodes that are gone in the middle of a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, sleep_until};
use vango_edge::store::{
    Entry, Event, EventSource, LeaseId, MemoryStore, Page, StateStore, StoreError, Txn, Watch,
};

use crate::world::Sim;

/// How one node reaches the store.
pub struct Reach {
    sim: Arc<Sim>,
    inner: Arc<MemoryStore>,
    /// Its node is gone: none of its calls goes on.
    gone: Arc<AtomicBool>,
    /// What it changes is checked: it is shared truth, and not the ledger.
    truth: bool,
}

impl Reach {
    pub fn new(
        sim: Arc<Sim>,
        inner: Arc<MemoryStore>,
        gone: Arc<AtomicBool>,
        truth: bool,
    ) -> Arc<Self> {
        Arc::new(Self { sim, inner, gone, truth })
    }

    async fn there(&self) {
        if self.gone.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// On its way to the store.
    async fn go(&self, scales: &[usize]) -> Result<(), StoreError> {
        self.there().await;
        let takes = self.sim.dice.ms(scales);
        if takes.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(takes).await;
        }
        self.there().await;
        if self.sim.store_is_away() {
            return Err(match self.sim.dice.below(3) {
                0 => StoreError::Busy,
                1 => StoreError::NotWritable("the disk is away".into()),
                _ => StoreError::Unavailable("the disk is away".into()),
            });
        }
        Ok(())
    }

    /// On its way back, where an answer may be lost.
    async fn back<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let takes = self.sim.dice.ms(&[1, 1, 3]);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        self.there().await;
        if answer.is_ok() && !self.sim.is_calm() && self.sim.dice.one_in(80) {
            self.sim.happened("an answer of the store was lost");
            self.sim.note(|| "the store's answer is lost".into());
            return Err(StoreError::Unavailable("no answer from the disk".into()));
        }
        answer
    }
}

const READ: &[usize] = &[1, 1, 3];
const WRITE: &[usize] = &[1, 3, 6, 30];

#[async_trait]
impl StateStore for Reach {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.go(READ).await?;
        unconstrained(self.inner.get(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.go(READ).await?;
        unconstrained(self.inner.list(prefix, after, limit)).await
    }

    async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
        self.go(WRITE).await?;
        if !self.truth {
            let answer = unconstrained(self.inner.txn(txn)).await;
            return self.back(answer).await;
        }
        self.sim.about_to_change(&txn).await;
        let answer = unconstrained(self.inner.txn(txn.clone())).await;
        self.sim.changed(&txn, &answer);
        self.back(answer).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
        self.go(READ).await?;
        let inner = self.inner.watch(prefix, from).await?;
        let source =
            Late { sim: Arc::clone(&self.sim), inner, next: None, gone: Arc::clone(&self.gone) };
        Ok(Watch::new(source))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.go(WRITE).await?;
        unconstrained(self.inner.lease_grant(ttl)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.go(READ).await?;
        unconstrained(self.inner.lease_keep_alive(lease)).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.go(WRITE).await?;
        unconstrained(self.inner.lease_revoke(lease)).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.go(READ).await?;
        unconstrained(self.inner.revision()).await
    }
}

/// Events that come a while after they happened, unless the node that follows them is in a hurry.
struct Late {
    sim: Arc<Sim>,
    inner: Watch,
    /// What came, and when it is given out.
    next: Option<(Vec<Event>, Instant)>,
    gone: Arc<AtomicBool>,
}

#[async_trait]
impl EventSource for Late {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        if self.gone.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.next.is_none() {
            let events = unconstrained(self.inner.next()).await?;
            let lag = self.sim.dice.ms(&[1, 1, 4, 4, 40]);
            self.next = Some((events, Instant::now() + lag));
        }
        if let Some((_, at)) = &self.next {
            let mut due = std::pin::pin!(sleep_until(*at));
            std::future::poll_fn(|cx| match due.as_mut().poll(cx) {
                Poll::Pending if self.sim.follower.is_in_a_hurry() => Poll::Ready(()),
                polled => polled,
            })
            .await;
        }
        Ok(self.next.take().map(|(events, _)| events).unwrap_or_default())
    }
}
