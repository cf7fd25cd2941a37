//! What is known of a deployment: outcomes counted by routing, and checks recorded by others.
//!
//! Counts are added up in memory and written down every [`FLUSH_EVERY`], those with an error among them
//! every [`FLUSH_ERRORS_EVERY`], and always before a promotion reads them, before anything else shows
//! them, and when the edge stops in order. So `kill -9` loses the good answers of the last seconds and
//! the errors of the last moment: a deployment may look less tried than it was, and hardly better. It is
//! never counted twice: what is written at once is a batch, whose number stays in the record. A batch whose
//! write had no clear outcome is written again under the same number, before anything else is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::id::{DeploymentId, Digest, Environment};
use crate::node::{Node, ReadError};
use crate::record::{Deployment, Evidence, NamedCheck, Record, key};
use crate::snapshot::Tally;
use crate::store::{StoreError, Txn};

/// How often counts are written down.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// How often those are that have an error among them.
const FLUSH_ERRORS_EVERY: Duration = Duration::from_millis(500);

/// Named checks of one deployment, at most.
pub const MAX_CHECKS: usize = 64;
/// Characters of a check's name, at most.
pub const MAX_NAME: usize = 100;
/// Characters of a note, at most.
pub const MAX_NOTE: usize = 2000;

/// Tries when the record is changed meanwhile.
const TRIES: u32 = 10;

/// Batches that a record remembers. One node writes its batches one after another; between a write of it and
/// its repetition, others may have written as many.
const BATCHES: usize = 16;

/// A deployment whose answers are counted.
#[derive(Debug, Clone)]
struct Counted {
    environment: Environment,
    digest: Digest,
    tally: Arc<Tally>,
    /// What was taken from the tally and is not known to be written.
    batch: Option<Batch>,
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    number: u64,
    requests: u64,
    errors: u64,
}

/// Why evidence could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The environment's routes have no owner.
    #[error("there is no environment {0}; `vango-edge routes` lists them")]
    NoEnvironment(Environment),
    /// A name or a note is too long, or there are too many checks.
    #[error("{0}")]
    Invalid(String),
    /// It could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

/// Counts what previews answer, and keeps what is known of deployments.
pub struct Counts {
    node: Node,
    /// Deployments whose answers are counted.
    counting: Mutex<BTreeMap<DeploymentId, Counted>>,
    /// One flush at a time: batches of a deployment are written one after another.
    flushing: tokio::sync::Mutex<()>,
}

impl Counts {
    pub fn new(node: Node) -> Arc<Self> {
        Arc::new(Self { node, counting: Mutex::default(), flushing: Default::default() })
    }

    /// Writes counts down for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut all = self.node.clock.now();
        loop {
            tokio::time::sleep(FLUSH_ERRORS_EVERY).await;
            if self.node.clock.now().since(all) >= FLUSH_EVERY {
                all = self.node.clock.now();
                self.flush().await;
            } else {
                self.flush_those(true).await;
            }
        }
    }

    /// Writes down what was counted since the last time. What cannot be written is kept for the next time.
    pub async fn flush(&self) {
        self.flush_those(false).await;
    }

    async fn flush_those(&self, with_errors: bool) {
        let _one = self.flushing.lock().await;
        for deployment in self.due(with_errors) {
            // What an earlier flush could not write, then what was counted since.
            for _ in 0..2 {
                let Some((counted, batch)) = self.next_batch(&deployment) else { break };
                if let Err(e) = self.write(&deployment, &counted, batch).await {
                    log::warn!("{}: evidence was not written: {e}", counted.environment);
                    break;
                }
                if let Some(written) = self.counting().get_mut(&deployment) {
                    written.batch = None;
                }
            }
        }
    }

    fn counting(&self) -> MutexGuard<'_, BTreeMap<DeploymentId, Counted>> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the deployments that routing counts for, and those it counted for since the last flush, those
    /// with something to write, or with an error among it.
    fn due(&self, with_errors: bool) -> Vec<DeploymentId> {
        let mut known = self.counting();
        let snapshot = self.node.snapshots.load();
        // What this edge does not run has no deployment.
        for view in snapshot.environments().filter(|v| !v.external) {
            known.entry(view.owner.deployment.clone()).or_insert_with(|| Counted {
                environment: view.environment.clone(),
                digest: view.owner.digest,
                tally: Arc::clone(&view.tally),
                batch: None,
            });
        }
        drop(snapshot);
        let is_empty = |c: &Counted| c.tally.is_empty() && c.batch.is_none();
        // No request counts into it any more, and nothing is left in it.
        known.retain(|_, c| Arc::strong_count(&c.tally) > 1 || !is_empty(c));
        let has_errors =
            |c: &Counted| c.tally.has_errors() || c.batch.is_some_and(|b| b.errors > 0);
        let due =
            known.iter().filter(|(_, c)| if with_errors { has_errors(c) } else { !is_empty(c) });
        due.map(|(d, _)| d.clone()).collect()
    }

    /// What is to be written next for `deployment`.
    fn next_batch(&self, deployment: &DeploymentId) -> Option<(Counted, Batch)> {
        let mut known = self.counting();
        let counted = known.get_mut(deployment)?;
        if counted.batch.is_none() {
            let (requests, errors) = counted.tally.take();
            let number = self.node.entropy.next_u64();
            counted.batch = (requests > 0).then_some(Batch { number, requests, errors });
        }
        Some((counted.clone(), counted.batch?))
    }

    async fn write(
        &self,
        deployment: &DeploymentId,
        counted: &Counted,
        batch: Batch,
    ) -> Result<(), ReadError> {
        let Counted { environment, digest, .. } = counted;
        let add = |e: &mut Evidence| {
            if e.batches.contains(&batch.number) {
                return;
            }
            e.requests += batch.requests;
            e.errors += batch.errors;
            if e.batches.len() >= BATCHES {
                e.batches.remove(0);
            }
            e.batches.push(batch.number);
        };
        match self.change(environment, deployment, *digest, add).await {
            Err(e) if e.is_conflict() => {
                let at = key::deployment(environment, deployment);
                // One that was collected has no evidence any more.
                if self.node.store.get(&at).await?.is_none() { Ok(()) } else { Err(e) }
            }
            other => other.map(drop),
        }
    }

    /// Records checks of what `environment` runs now; the last word on each name counts.
    ///
    /// # Errors
    /// [`EvidenceError`]; nothing was recorded then.
    pub async fn record_checks(
        &self,
        environment: &Environment,
        checks: &[(String, bool)],
        note: &str,
    ) -> Result<Evidence, EvidenceError> {
        let named = |name: &str| !name.is_empty() && name.chars().count() <= MAX_NAME;
        if !checks.iter().all(|(name, _)| named(name)) {
            let why = format!("a check's name has 1 to {MAX_NAME} characters");
            return Err(EvidenceError::Invalid(why));
        }
        if note.chars().count() > MAX_NOTE {
            return Err(EvidenceError::Invalid(format!(
                "a note has at most {MAX_NOTE} characters"
            )));
        }
        self.flush().await;
        let (deployment, digest) = self.owned(environment).await?;
        let now = self.node.clock.wall();
        let record = |e: &mut Evidence| {
            for (name, passed) in checks {
                let check = NamedCheck { passed: *passed, note: note.to_owned(), at: now };
                e.checks.insert(name.clone(), check);
            }
        };
        let known = self.evidence(environment).await?;
        let names = known.iter().flat_map(|e| e.checks.keys()).chain(checks.iter().map(|(n, _)| n));
        if names.collect::<std::collections::BTreeSet<_>>().len() > MAX_CHECKS {
            let why = format!("a deployment has at most {MAX_CHECKS} named checks");
            return Err(EvidenceError::Invalid(why));
        }
        Ok(self.change(environment, &deployment, digest, record).await?)
    }

    /// What is known of what `environment` runs now, counts since the last flush included.
    ///
    /// # Errors
    /// [`EvidenceError`] when there is no such environment, or it cannot be read.
    pub async fn evidence(
        &self,
        environment: &Environment,
    ) -> Result<Option<Evidence>, EvidenceError> {
        let (deployment, _) = self.owned(environment).await?;
        let at = key::evidence(environment, &deployment);
        Ok(self.node.read::<Evidence>(&at).await?.map(|f| f.record))
    }

    /// What is known of a deployment.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn of(&self, deployment: &Deployment) -> Result<Option<Evidence>, ReadError> {
        let at = key::evidence(&deployment.environment, &deployment.id);
        Ok(self.node.read::<Evidence>(&at).await?.map(|f| f.record))
    }

    /// The deployment that owns the environment's routes, and its artifact.
    pub async fn owned(
        &self,
        environment: &Environment,
    ) -> Result<(DeploymentId, Digest), EvidenceError> {
        let newest = self.node.newest_owner(environment).await?;
        let newest = newest.ok_or_else(|| EvidenceError::NoEnvironment(environment.clone()))?;
        Ok((newest.deployment, newest.digest))
    }

    async fn change(
        &self,
        environment: &Environment,
        deployment: &DeploymentId,
        digest: Digest,
        mut change: impl FnMut(&mut Evidence),
    ) -> Result<Evidence, ReadError> {
        let at = key::evidence(environment, deployment);
        let mut tries = 0;
        loop {
            let stored = self.node.read::<Evidence>(&at).await?;
            let txn = match &stored {
                Some(found) => found.unchanged(),
                // A deployment that was collected leaves no evidence behind.
                None => Txn::new().absent(&at).exists(key::deployment(environment, deployment)),
            };
            let mut evidence = stored.map_or_else(
                || Evidence {
                    deployment: deployment.clone(),
                    environment: environment.clone(),
                    digest,
                    requests: 0,
                    errors: 0,
                    batches: Vec::new(),
                    checks: Default::default(),
                    changed: self.node.clock.wall(),
                },
                |found| found.record,
            );
            change(&mut evidence);
            evidence.changed = self.node.clock.wall();
            tries += 1;
            let written = evidence.encode();
            match self.node.store.txn(txn.put(&at, written.clone())).await {
                Ok(_) => return Ok(evidence),
                Err(StoreError::Conflict { .. }) if tries < TRIES => {}
                // It may have been written all the same.
                Err(e) => match self.node.store.get(&at).await {
                    Ok(Some(entry)) if entry.value == written => return Ok(evidence),
                    _ => return Err(e.into()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::{Entry, LeaseId, MemoryStore, Options, Page, StateStore, Watch};

    /// Commits, and loses the answers of so many transactions and of so many reads after them.
    struct Lossy {
        inner: MemoryStore,
        writes: AtomicU32,
        reads: AtomicU32,
    }

    fn one_less(n: &AtomicU32) -> bool {
        n.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }

    fn lost<T>() -> Result<T, StoreError> {
        Err(StoreError::Unavailable("no answer from the disk".into()))
    }

    #[async_trait]
    impl StateStore for Lossy {
        async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
            if self.writes.load(Ordering::SeqCst) == 0 && one_less(&self.reads) {
                return lost();
            }
            self.inner.get(key).await
        }
        async fn list(&self, p: &str, after: Option<&str>, n: usize) -> Result<Page, StoreError> {
            self.inner.list(p, after, n).await
        }
        async fn txn(&self, txn: Txn) -> Result<u64, StoreError> {
            let answer = self.inner.txn(txn).await;
            if one_less(&self.writes) { lost() } else { answer }
        }
        async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
            self.inner.watch(prefix, from).await
        }
        async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
            self.inner.lease_grant(ttl).await
        }
        async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
            self.inner.lease_keep_alive(lease).await
        }
        async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
            self.inner.lease_revoke(lease).await
        }
        async fn revision(&self) -> Result<u64, StoreError> {
            self.inner.revision().await
        }
    }

    #[tokio::test]
    async fn what_was_written_without_an_answer_is_not_counted_again() {
        let clock = Arc::new(ManualClock::new());
        let inner = MemoryStore::new(clock.clone(), Options::default()).unwrap();
        let (writes, reads) = (AtomicU32::new(0), AtomicU32::new(0));
        let store = Arc::new(Lossy { inner, writes, reads });
        let counts = Counts::new(Node::over(store.clone(), clock));
        let environment: Environment = "studylab/pr-7".parse().unwrap();
        let deployment: DeploymentId = "dp-aaaaaaaaaaaaaaaa".parse().unwrap();
        store.txn(Txn::new().put(key::deployment(&environment, &deployment), "{}")).await.unwrap();
        let tally = Arc::new(Tally::default());
        let (digest, tally_too) = (Digest::from_bytes([7; 32]), Arc::clone(&tally));
        let counted =
            Counted { environment: environment.clone(), digest, tally: tally_too, batch: None };
        counts.counting().insert(deployment.clone(), counted);
        for n in 1..40 {
            tally.count(false);
            tally.count(true);
            // Neither the write's answer arrives nor the look after it.
            store.writes.store(1, Ordering::SeqCst);
            store.reads.store(1, Ordering::SeqCst);
            counts.flush().await;
            tally.count(false);
            counts.flush().await;
            let at = key::evidence(&environment, &deployment);
            let evidence = counts.node.read::<Evidence>(&at).await.unwrap().unwrap().record;
            assert_eq!((evidence.requests, evidence.errors), (3 * n, n));
            assert!(evidence.batches.len() <= BATCHES);
        }
        // One that is collected leaves nothing that is tried again and again.
        let gone = Txn::new().delete(key::deployment(&environment, &deployment));
        store.txn(gone.delete(key::evidence(&environment, &deployment))).await.unwrap();
        tally.count(true);
        drop(tally);
        counts.flush().await;
        counts.flush().await;
        assert!(counts.counting().is_empty());
    }
}
