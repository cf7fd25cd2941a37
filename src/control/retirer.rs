//! Ends allocations whose epoch is over: the owner has moved on, so that they get no new request.
//! Requests in flight finish within the contract's `process.drain_timeout`; live sockets stay as long, and
//! are told then to come back, apart from each other.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vango_edge_core::control::allocations::{self as plan, Retiring};

use crate::clock::Mono;
use crate::id::{AllocationId, Environment};
use crate::node::{Node, ReadError};
use crate::record::{Allocation, AllocationState, key};
use crate::sockets::Sockets;
use crate::wake::Allocations;

/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Pause between two looks at what drains.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Pause between two rounds in which the sockets of what drains are told when they end.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// Ends what is over.
pub struct Retirer {
    node: Node,
    allocations: Arc<Allocations>,
    sockets: Arc<Sockets>,
    /// Allocations that are being ended.
    retiring: Mutex<HashSet<AllocationId>>,
}

impl Retirer {
    /// Live sockets of what ends are told so through `sockets`.
    pub fn new(node: Node, allocations: Arc<Allocations>, sockets: Arc<Sockets>) -> Arc<Self> {
        Arc::new(Self { node, allocations, sockets, retiring: Mutex::default() })
    }

    /// Ends what is over, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let snapshot = Arc::clone(&self.node.snapshots.load());
            for view in snapshot.environments() {
                for a in view.others.iter().filter(|a| plan::is_over(a, view.owner.epoch)) {
                    self.retire_detached(&view.environment, &a.id);
                }
            }
        }
    }

    fn retire_detached(self: &Arc<Self>, environment: &Environment, id: &AllocationId) {
        let mut retiring = self.retiring.lock().unwrap_or_else(PoisonError::into_inner);
        if !retiring.insert(id.clone()) {
            return;
        }
        drop(retiring);
        let (retirer, environment, id) = (Arc::clone(self), environment.clone(), id.clone());
        tokio::spawn(async move {
            match retirer.retire_one(&environment, &id).await {
                Ok(true) => log::info!("{environment}: {id} ended, its epoch is over"),
                Ok(false) => {}
                Err(e) => log::warn!("{environment}: {id} was not ended: {e}"),
            }
            let mut retiring = retirer.retiring.lock().unwrap_or_else(PoisonError::into_inner);
            retiring.remove(&id);
        });
    }

    async fn retire_one(
        &self,
        environment: &Environment,
        id: &AllocationId,
    ) -> Result<bool, ReadError> {
        let at = key::allocation(environment, id);
        let Some(mut found) = self.node.read::<Allocation>(&at).await? else { return Ok(false) };
        if found.record.state == AllocationState::Ready {
            match self.allocations.change(found, AllocationState::Draining).await? {
                Some(draining) => found = draining,
                // It ended, or another one is at it.
                None => return Ok(false),
            }
        }
        self.emptied(environment, id).await;
        let grace = self.node.stop_timeout(&found.record);
        Ok(self.allocations.end(&found.record, grace, found.unchanged()).await?)
    }

    /// Waits until nothing is open in it, or the limits are over; it gets nothing more then. Its live
    /// sockets are told to end, apart from each other, at the drain limit.
    async fn emptied(&self, environment: &Environment, id: &AllocationId) {
        let started = self.node.clock.now();
        let mut told: Option<Mono> = None;
        loop {
            // Not routed: no request can be on it.
            let Some(allocation) = self.node.allocation(environment, id) else { return };
            // Its own contract, not that of the artifact that owns the routes now.
            let (load, process) = (&allocation.load, &allocation.contract.process);
            let now = self.node.clock.now();
            let (in_flight, sockets) = (load.in_flight(), load.sockets());
            if sockets > 0 && told.is_none_or(|at| now.since(at) >= TELL_AGAIN) {
                // One that was being accepted meanwhile is told in the next round.
                self.sockets.drain(id, started + process.drain_timeout);
                told = Some(now);
            }
            match plan::retire(in_flight, sockets, now.since(started), process) {
                // A request that was decided on an older snapshot may have been quicker.
                Retiring::End if load.seal() => return,
                Retiring::Cut => {
                    load.seal_anyway();
                    return;
                }
                Retiring::End | Retiring::Wait => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}
