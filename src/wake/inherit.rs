//! What outlives a process of the edge: taken over by the next one at its start, kept or ended at
//! its stop.
//!
//! The state directory's lock proves that the earlier process is gone. So its claims are let go of
//! at once, whatever their leases say, and what it recorded is either adopted or ended before the
//! first request is taken: never two processes for one, and no process without a record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use vango_edge_core::control::allocations::{Inherited, inherited};

use crate::id::Environment;
use crate::node::{Found, Node};
use crate::record::{Allocation, AllocationState, RouteOwner, key};
use crate::runner::{AdoptSpec, Runner};
use crate::store::StoreError;

use super::allocations::Allocations;
use super::starts::Starts;

/// Allocations looked at or ended at the same time.
const AT_ONCE: usize = 32;

/// From SIGTERM to SIGKILL for what cannot be adopted.
const UNFIT: Duration = Duration::from_secs(2);

/// How long an adopted process may take to prove that it is ready: it was, a moment ago.
const ADOPTION: Duration = Duration::from_secs(3);

/// Longest time an allocation gets to end when the edge does, whatever its contract says.
const AT_STOP: Duration = Duration::from_secs(30);

/// What was found of an earlier process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TakenOver {
    /// Allocations that go on under this process.
    pub adopted: usize,
    /// Allocations that were ended.
    pub ended: usize,
}

/// Hands allocations on from one process of the edge to the next.
pub struct Inheritance {
    node: Node,
    runner: Arc<dyn Runner>,
    starts: Arc<Starts>,
    allocations: Arc<Allocations>,
}

impl Inheritance {
    /// Of what `runner` runs.
    pub fn new(
        node: Node,
        runner: Arc<dyn Runner>,
        starts: Arc<Starts>,
        allocations: Arc<Allocations>,
    ) -> Self {
        Self { node, runner, starts, allocations }
    }

    /// Takes over what an earlier process of this node left. Called before anything is routed.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn take_over(&self) -> Result<TakenOver, StoreError> {
        let mut taken = TakenOver::default();
        let owners = &self.newest_owners().await?;
        let found = self.all().await?;
        let known: BTreeSet<_> = found.iter().map(|f| f.record.id.clone()).collect();
        let one_by_one = stream::iter(found).map(|found| async move {
            let owner = owners.get(&found.record.environment);
            self.inherit(found, owner).await
        });
        let mut done = one_by_one.buffer_unordered(AT_ONCE);
        while let Some(adopted) = done.next().await {
            match adopted? {
                true => taken.adopted += 1,
                false => taken.ended += 1,
            }
        }
        // Files without a record: its deletion came before the files', or the store is another.
        // Each may take its time to end, and nothing is served before the last one has.
        let mut unknown = self.runner.leftovers();
        unknown.retain(|id| !known.contains(id));
        let ending = stream::iter(unknown).for_each_concurrent(AT_ONCE, |id| async move {
            if let Err(e) = self.runner.end_leftover(None, &id, UNFIT).await {
                log::error!("what is left of {id} could not be ended: {e}");
            }
        });
        ending.await;
        Ok(taken)
    }

    /// Called instead in a copy of another edge's state: what is recorded runs under that edge, and only
    /// its records are taken away here. Returns how many.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn forget_copied(&self) -> Result<usize, StoreError> {
        let found = self.all().await?;
        for one in &found {
            self.node.store.txn(one.unchanged().delete(&one.at)).await?;
        }
        Ok(found.len())
    }

    /// Whether it was adopted; if not, it is ended.
    async fn inherit(
        &self,
        found: Found<Allocation>,
        owner: Option<&RouteOwner>,
    ) -> Result<bool, StoreError> {
        let record = &found.record;
        let why = match (inherited(record, owner), owner) {
            (Inherited::Adopt, Some(owner)) => match self.adopt(record, owner).await {
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
        // If it changed meanwhile, its end was seen, and the record is gone already.
        self.allocations.end(record, UNFIT, found.unchanged()).await?;
        Ok(false)
    }

    /// Takes over the running allocation of a record that an earlier process of this node wrote;
    /// `owner` is the environment's.
    ///
    /// # Errors
    /// Why not, for the log. It may run still.
    async fn adopt(&self, left: &Allocation, owner: &RouteOwner) -> Result<(), String> {
        let (Some(address), Some(process)) = (left.address, &left.process) else {
            return Err("its record names no process".into());
        };
        let contract = self.starts.contract(&left.environment, &owner.deployment).await;
        let contract = contract.map_err(|e| e.to_string())?;
        let spec = AdoptSpec {
            allocation: left.id.clone(),
            environment: left.environment.clone(),
            generation: left.generation,
            process: process.clone(),
            address,
            ready: (left.state != AllocationState::Frozen).then_some(contract.process.ready),
            host: owner.host.to_string(),
            within: ADOPTION,
        };
        self.runner.adopt(spec).await.map_err(|e| e.to_string())?;
        if left.state == AllocationState::Frozen {
            // The earlier process may have died between a thaw and its record.
            self.runner.freeze(&left.id).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Each environment's newest owner.
    async fn newest_owners(&self) -> Result<BTreeMap<Environment, RouteOwner>, StoreError> {
        let mut newest: BTreeMap<Environment, RouteOwner> = BTreeMap::new();
        for Found { record: owner, .. } in self.node.readable::<RouteOwner>(key::OWNERS).await? {
            let known = newest.get(&owner.environment);
            if known.is_none_or(|k| k.epoch < owner.epoch) {
                newest.insert(owner.environment.clone(), owner);
            }
        }
        Ok(newest)
    }

    async fn all(&self) -> Result<Vec<Found<Allocation>>, StoreError> {
        self.node.readable(key::ALLOCATIONS).await
    }

    /// At the end of this process: with `keep`, what takes requests or is frozen stays for the next
    /// one to adopt; everything else is ended and taken off the registry. Returns how many were kept and
    /// how many ended. Nothing starts any more.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or changed.
    pub async fn leave(&self, keep: bool) -> Result<(usize, usize), StoreError> {
        self.runner.close().await;
        let (kept, rest): (Vec<_>, Vec<_>) = self.all().await?.into_iter().partition(|f| {
            keep && matches!(f.record.state, AllocationState::Ready | AllocationState::Frozen)
        });
        let ended = rest.len();
        let one_by_one = stream::iter(rest).map(|found| async move {
            let grace = self.node.stop_timeout(&found.record).min(AT_STOP);
            self.allocations.end(&found.record, grace, found.unchanged()).await
        });
        let mut done = one_by_one.buffer_unordered(AT_ONCE);
        while let Some(outcome) = done.next().await {
            outcome?;
        }
        Ok((kept.len(), ended))
    }
}
