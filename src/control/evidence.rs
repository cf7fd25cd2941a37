//! What is known of a deployment: outcomes counted by routing, and checks recorded by others.
//!
//! Counts are added up in memory and written down every [`FLUSH_EVERY`], those with an error among them
//! every [`FLUSH_ERRORS_EVERY`], and always before a promotion reads them, before anything else shows
//! them, and when the edge stops in order. So `kill -9` loses the good answers of the last seconds and
//! the errors of the last moment: a deployment may look less tried than it was, and hardly better. It is
//! never counted twice: a write whose outcome is not known is looked at before it is repeated.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::id::{DeploymentId, Digest, Environment};
use crate::snapshot::Tally;
use crate::store::record::{Evidence, NamedCheck, Record, key};
use crate::store::{StoreError, Txn};

use super::Control;
use super::read::ReadError;

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

/// A deployment whose answers are counted.
#[derive(Debug)]
pub struct Counted {
    environment: Environment,
    digest: Digest,
    tally: Arc<Tally>,
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

impl Control {
    /// Writes counts down for as long as the process runs.
    pub async fn count_evidence(self: &Arc<Self>) {
        let mut all = self.clock.now();
        loop {
            tokio::time::sleep(FLUSH_ERRORS_EVERY).await;
            if self.clock.now().since(all) >= FLUSH_EVERY {
                all = self.clock.now();
                self.flush_evidence().await;
            } else {
                self.flush_counted(Tally::has_errors).await;
            }
        }
    }

    /// Writes down what was counted since the last time. What cannot be written is counted again.
    pub async fn flush_evidence(&self) {
        self.flush_counted(|_| true).await;
    }

    async fn flush_counted(&self, wanted: fn(&Tally) -> bool) {
        for (deployment, counted) in self.counted() {
            if !wanted(&counted.tally) {
                continue;
            }
            let (requests, errors) = counted.tally.take();
            if requests == 0 {
                continue;
            }
            let add = |e: &mut Evidence| {
                e.requests += requests;
                e.errors += errors;
            };
            if let Err(e) =
                self.change_evidence(&counted.environment, &deployment, counted.digest, add).await
            {
                counted.tally.give_back(requests, errors);
                log::warn!("{}: evidence was not written: {e}", counted.environment);
            }
        }
    }

    /// Every deployment that routing counts for, and those it counted for since the last flush.
    fn counted(&self) -> Vec<(DeploymentId, Counted)> {
        let mut known = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshots.load();
        // What this edge does not run has no deployment.
        for view in snapshot.environments().filter(|v| !v.external) {
            known.entry(view.owner.deployment.clone()).or_insert_with(|| Counted {
                environment: view.environment.clone(),
                digest: view.owner.digest,
                tally: Arc::clone(&view.tally),
            });
        }
        drop(snapshot);
        // No request counts into it any more, and nothing is left in it.
        known.retain(|_, c| Arc::strong_count(&c.tally) > 1 || !c.tally.is_empty());
        let copy = |c: &Counted| Counted {
            environment: c.environment.clone(),
            digest: c.digest,
            tally: Arc::clone(&c.tally),
        };
        known
            .iter()
            .filter(|(_, c)| !c.tally.is_empty())
            .map(|(d, c)| (d.clone(), copy(c)))
            .collect()
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
        self.flush_evidence().await;
        let (deployment, digest) = self.owned(environment).await?;
        let now = self.clock.wall();
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
        Ok(self.change_evidence(environment, &deployment, digest, record).await?)
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
        let entry = self.store.get(&at).await.map_err(ReadError::from)?;
        Ok(entry.map(|e| Evidence::decode(&e.value)).transpose().map_err(ReadError::from)?)
    }

    /// The deployment that owns the environment's routes, and its artifact.
    pub async fn owned(
        &self,
        environment: &Environment,
    ) -> Result<(DeploymentId, Digest), EvidenceError> {
        let owners = self.owners_of(environment).await?;
        let newest = owners.into_iter().map(|(o, _)| o).max_by_key(|o| o.epoch);
        let newest = newest.ok_or_else(|| EvidenceError::NoEnvironment(environment.clone()))?;
        Ok((newest.deployment, newest.digest))
    }

    async fn change_evidence(
        &self,
        environment: &Environment,
        deployment: &DeploymentId,
        digest: Digest,
        mut change: impl FnMut(&mut Evidence),
    ) -> Result<Evidence, ReadError> {
        let at = key::evidence(environment, deployment);
        let mut tries = 0;
        loop {
            let stored = self.store.get(&at).await?;
            let mut evidence = match &stored {
                Some(entry) => Evidence::decode(&entry.value)?,
                None => Evidence {
                    deployment: deployment.clone(),
                    environment: environment.clone(),
                    digest,
                    requests: 0,
                    errors: 0,
                    checks: Default::default(),
                    changed: self.clock.wall(),
                },
            };
            change(&mut evidence);
            evidence.changed = self.clock.wall();
            let txn = match &stored {
                Some(entry) => Txn::new().unchanged(&at, entry.mod_revision),
                // A deployment that was collected leaves no evidence behind.
                None => Txn::new().absent(&at).exists(key::deployment(environment, deployment)),
            };
            tries += 1;
            let written = evidence.encode();
            match self.store.txn(txn.put(&at, written.clone())).await {
                Ok(_) => return Ok(evidence),
                Err(StoreError::Conflict { .. }) if tries < TRIES => {}
                // It may have been written all the same.
                Err(e) => match self.store.get(&at).await {
                    Ok(Some(entry)) if entry.value == written => return Ok(evidence),
                    _ => return Err(e.into()),
                },
            }
        }
    }
}

/// Deployments whose answers are counted.
pub type Counting = HashMap<DeploymentId, Counted>;
