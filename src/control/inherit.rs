//! What outlives a process of the edge: taken over by the next one at its start, kept or ended at
//! its stop.
//!
//! The state directory's lock proves that the earlier process is gone. So its claims are let go of
//! at once, whatever their leases say, and what it recorded is either adopted or ended before the
//! first request is taken: never two processes for one, and no process without a record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use crate::id::Environment;
use crate::store::record::{Allocation, AllocationState, Executor, Record, RouteOwner, key};
use crate::store::{StoreError, Txn};

use super::Control;
use super::plan::inherit::{self, Inherited};

/// Allocations looked at or ended at the same time.
const AT_ONCE: usize = 32;

/// Entries asked for at a time.
const PAGE: usize = 1000;

/// From SIGTERM to SIGKILL for what cannot be adopted.
const UNFIT: Duration = Duration::from_secs(2);

/// Longest time an allocation gets to end when the edge does, whatever its contract says.
const AT_STOP: Duration = Duration::from_secs(30);

/// What was found of an earlier process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TakenOver {
    /// Allocations that go on under this process.
    pub adopted: usize,
    /// Allocations that were ended.
    pub ended: usize,
    /// Operations that lost their executor, and are claimable.
    pub released: usize,
}

/// An allocation's record: its key, itself, and the revision it was read at.
type Found = (String, Allocation, u64);

impl Control {
    /// Takes over what an earlier process of this node left. Called before anything is routed.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn take_over(self: &Arc<Self>) -> Result<TakenOver, StoreError> {
        let mut taken =
            TakenOver { released: self.let_go_of_claims().await?, ..Default::default() };
        let owners = self.newest_owners().await?;
        let found = self.allocations().await?;
        let known: BTreeSet<_> = found.iter().map(|(_, a, _)| a.id.clone()).collect();
        let one_by_one = stream::iter(found).map(|found| {
            let (control, owner) = (Arc::clone(self), owners.get(&found.1.environment).cloned());
            async move { control.inherit(found, owner).await }
        });
        let mut done = one_by_one.buffer_unordered(AT_ONCE);
        while let Some(adopted) = done.next().await {
            match adopted? {
                true => taken.adopted += 1,
                false => taken.ended += 1,
            }
        }
        // Files without a record: its deletion came before the files', or the store is another.
        for id in self.worker.runner.leftovers() {
            if !known.contains(&id)
                && let Err(e) = self.worker.runner.end_leftover(None, &id, UNFIT).await
            {
                log::error!("what is left of {id} could not be ended: {e}");
            }
        }
        Ok(taken)
    }

    /// Called instead in a copy of another edge's state: what is recorded runs under that edge, and only
    /// its records are taken away here. Returns how many.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn forget_copied(&self) -> Result<usize, StoreError> {
        self.let_go_of_claims().await?;
        let found = self.allocations().await?;
        for (at, _, revision) in &found {
            self.store.txn(Txn::new().unchanged(at, *revision).delete(at)).await?;
        }
        Ok(found.len())
    }

    /// Whether it was adopted; if not, it is ended.
    async fn inherit(
        &self,
        (at, record, revision): Found,
        owner: Option<RouteOwner>,
    ) -> Result<bool, StoreError> {
        let why = match (inherit::inherited(&record, owner.as_ref()), &owner) {
            (Inherited::Adopt, Some(owner)) => match self.worker.adopt(&record, owner).await {
                Ok(()) => {
                    log::info!("{}: adopted {}", record.environment, record.id);
                    return Ok(true);
                }
                Err(why) => why,
            },
            (Inherited::End(why), _) => why.to_owned(),
            (Inherited::Adopt, None) => "its routes have no owner any more".to_owned(),
        };
        log::info!("{}: ended {}: {why}", record.environment, record.id);
        self.end_and_forget((at, record, revision), UNFIT).await?;
        Ok(false)
    }

    /// Ended first: a crash in between leaves a record of nothing, not a process without a record.
    async fn end_and_forget(
        &self,
        (at, record, revision): Found,
        grace: Duration,
    ) -> Result<(), StoreError> {
        self.worker.end_recorded(&record, grace).await;
        match self.store.txn(Txn::new().unchanged(&at, revision).delete(&at)).await {
            // Its end was seen, and the record is gone already.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn let_go_of_claims(&self) -> Result<usize, StoreError> {
        let mut released = 0;
        let page = self.store.list(key::EXECUTORS, None, PAGE).await?;
        for (at, entry) in page.entries {
            if Executor::decode(&entry.value).is_ok_and(|e| e.node == self.worker.node) {
                self.store.txn(Txn::new().unchanged(&at, entry.mod_revision).delete(&at)).await?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Each environment's newest owner.
    async fn newest_owners(&self) -> Result<BTreeMap<Environment, RouteOwner>, StoreError> {
        let mut newest: BTreeMap<Environment, RouteOwner> = BTreeMap::new();
        for (at, value, _) in self.all(key::OWNERS).await? {
            match RouteOwner::decode(&value) {
                Ok(owner) => {
                    let known = newest.get(&owner.environment);
                    if known.is_none_or(|k| k.epoch < owner.epoch) {
                        newest.insert(owner.environment.clone(), owner);
                    }
                }
                Err(e) => log::error!("{at}: {e}"),
            }
        }
        Ok(newest)
    }

    async fn allocations(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for (at, value, revision) in self.all(key::ALLOCATIONS).await? {
            match Allocation::decode(&value) {
                Ok(record) => found.push((at, record, revision)),
                Err(e) => log::error!("{at}: {e}"),
            }
        }
        Ok(found)
    }

    async fn all(&self, prefix: &str) -> Result<Vec<(String, bytes::Bytes, u64)>, StoreError> {
        let mut out = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(prefix, after.as_deref(), PAGE).await?;
            after = page.entries.last().map(|(k, _)| k.clone());
            out.extend(page.entries.into_iter().map(|(k, e)| (k, e.value, e.mod_revision)));
            if !page.more {
                return Ok(out);
            }
        }
    }

    /// At the end of this process: with `keep`, what takes requests or is frozen stays for the next
    /// one to adopt; everything else is ended and taken off the registry. Returns how many were kept and
    /// how many ended. Nothing starts any more.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn leave(self: &Arc<Self>, keep: bool) -> Result<(usize, usize), StoreError> {
        self.worker.runner.close().await;
        let (kept, rest): (Vec<_>, Vec<_>) =
            self.allocations().await?.into_iter().partition(|(_, a, _)| {
                keep && matches!(a.state, AllocationState::Ready | AllocationState::Frozen)
            });
        let ended = rest.len();
        let one_by_one = stream::iter(rest).map(|found| {
            let control = Arc::clone(self);
            async move {
                let grace = control.stop_timeout(&found.1.environment).min(AT_STOP);
                control.end_and_forget(found, grace).await
            }
        });
        let mut done = one_by_one.buffer_unordered(AT_ONCE);
        while let Some(outcome) = done.next().await {
            outcome?;
        }
        Ok((kept.len(), ended))
    }
}
