//! The view of an app that this edge does not run. Pure; [`super::compile()`] asks for it.
//!
//! Its upstreams look like ready allocations to everything that chooses and forwards, so that one
//! lifecycle serves both. Their ids come from their addresses: an upstream that a reload keeps keeps
//! its counters, its health and its pooled connections.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;

use foldhash::quality::FixedState;
use http::HeaderName;

use crate::clock::SeededEntropy;
use crate::id::{AllocationId, DeploymentId, Digest, Epoch, Generation};
use crate::store::record::AllocationState;

use super::compile::value;
use super::model::{AllocationView, EnvView, ExternalApp, Live, Load, OwnerView, Tally};

/// The view of `app`. Its authority is the configuration's, which has no epochs of its own: it keeps
/// the highest that its hosts ever had, `epoch`, so that none goes back.
pub(super) fn view(
    app: &ExternalApp,
    epoch: Option<Epoch>,
    before: Option<&Arc<EnvView>>,
) -> EnvView {
    let seed = FixedState::default().hash_one(&app.environment);
    let owner = OwnerView {
        epoch: epoch.unwrap_or(Epoch(1)),
        deployment: DeploymentId::random(&SeededEntropy::new(seed)),
        digest: Digest::from_bytes([0; 32]),
    };
    let before = before.filter(|b| b.external);
    let ready = app.addresses.iter().map(|a| Arc::new(upstream(app, *a, &owner, before))).collect();
    EnvView {
        environment: app.environment.clone(),
        owner,
        hosts: app.hosts.clone(),
        contract: Arc::clone(&app.contract),
        schema: None,
        ready,
        others: Vec::new(),
        assets: Vec::new(),
        operation: None,
        external: true,
        tally: before.map_or_else(|| Arc::new(Tally::default()), |b| Arc::clone(&b.tally)),
        live: before.map_or_else(|| Arc::new(Live::default()), |b| Arc::clone(&b.live)),
    }
}

fn upstream(
    app: &ExternalApp,
    address: SocketAddr,
    owner: &OwnerView,
    before: Option<&Arc<EnvView>>,
) -> AllocationView {
    let seed = FixedState::default().hash_one((&app.environment, address));
    let id = AllocationId::random(&SeededEntropy::new(seed));
    let known = before.and_then(|b| b.ready.iter().find(|a| a.id == id));
    let load = known.map_or_else(
        || {
            let load = Load::default();
            // No health check has looked at it yet.
            load.set_down(app.checked);
            Arc::new(load)
        },
        |a| Arc::clone(&a.load),
    );
    if !app.checked {
        load.set_down(false);
    }
    AllocationView {
        generation: Generation(0),
        epoch: owner.epoch,
        digest: owner.digest,
        state: AllocationState::Ready,
        address: Some(address),
        pid: None,
        concurrency: app.contract.scale.concurrency.max(1),
        pool_key: seed,
        headers: vec![
            (HeaderName::from_static("vango-edge-environment"), value(app.environment.to_string())),
            (HeaderName::from_static("vango-edge-epoch"), value(owner.epoch.to_string())),
            (HeaderName::from_static("vango-edge-allocation"), value(id.to_string())),
        ],
        id,
        external: true,
        load,
    }
}
