//! The store as a node reaches it: the real engine over memory, each call taking its time, with answers
//! that are lost, outages, and nodes that are gone in the middle of a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, sleep_until};
use vango_edge::store::{
    Entry, Event, EventSource, LeaseId, MemoryStore, Page, StateStore, StoreError, Txn, Watch,
};

use crate::world::Sim;

/// A node's process, until it crashes: from then on nothing that it does goes on.
#[derive(Default)]
pub struct Life {
    over: AtomicBool,
    /// It crashes with this many writes from now; 0 where it does not.
    writes: AtomicU32,
    /// The last one is done.
    done: AtomicBool,
}

impl Life {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Its `n`th write from now is its last, `done` or not.
    pub fn ends_with_write(&self, n: u32, done: bool) {
        self.done.store(done, Ordering::Relaxed);
        self.writes.store(n, Ordering::Relaxed);
    }

    /// Whether the write that comes is its last, and then whether it is done.
    fn last_write(&self) -> Option<bool> {
        let one_less = |n: u32| n.checked_sub(1);
        let left = self.writes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        (left == Ok(1)).then(|| self.done.load(Ordering::Relaxed))
    }

    /// Returns if it goes on.
    pub async fn goes_on(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }
}

/// How one node reaches the store.
pub struct Reach {
    sim: Arc<Sim>,
    inner: Arc<MemoryStore>,
    /// Its node's: none of its calls goes on after it.
    life: Arc<Life>,
    /// What it changes is checked: it is shared truth, and not the ledger.
    truth: bool,
}

impl Reach {
    pub fn new(sim: Arc<Sim>, inner: Arc<MemoryStore>, life: Arc<Life>, truth: bool) -> Arc<Self> {
        Arc::new(Self { sim, inner, life, truth })
    }

    /// On its way to the store.
    async fn go(&self, scales: &[usize]) -> Result<(), StoreError> {
        self.life.goes_on().await;
        let takes = self.sim.dice.ms(scales);
        if takes.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(takes).await;
        }
        self.life.goes_on().await;
        if self.sim.store_is_away() {
            return Err(match self.sim.dice.below(3) {
                0 => StoreError::Busy,
                1 => StoreError::NotWritable("the disk is away".into()),
                _ => StoreError::Unavailable("the disk is away".into()),
            });
        }
        Ok(())
    }

    async fn crash(&self, when: &'static str) {
        self.sim.note(|| format!("a node crashes {when}"));
        self.sim.happened("a node crashed at a write");
        self.life.end();
        self.life.goes_on().await;
    }

    /// On its way back, where an answer may be lost.
    async fn back<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let takes = self.sim.dice.ms(&[1, 1, 3]);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        self.life.goes_on().await;
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
        let last = self.life.last_write();
        if last == Some(false) {
            self.crash("before a write").await;
        }
        self.sim.about_to_change(&txn).await;
        let answer = unconstrained(self.inner.txn(txn.clone())).await;
        self.sim.changed(&txn, &answer);
        if last == Some(true) {
            self.crash("after a write").await;
        }
        self.back(answer).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
        self.go(READ).await?;
        let inner = self.inner.watch(prefix, from).await?;
        let source =
            Late { sim: Arc::clone(&self.sim), inner, next: None, life: Arc::clone(&self.life) };
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
    life: Arc<Life>,
}

#[async_trait]
impl EventSource for Late {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        self.life.goes_on().await;
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
