//! Records → snapshot: pure, and the sole constructor of every view.
//!
//! [`Records`] is the store's content as far as routing needs it, fed with watch events. It says
//! which environments an event touches; [`compile`] makes those anew and shares the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use http::{HeaderName, HeaderValue};

use crate::assets::AssetIndex;
use crate::clock::{Mono, SeededEntropy, Wall};
use crate::contract::{self, Contract};
use crate::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, Generation, Host};
use crate::record::{
    Allocation, AllocationState, Deployment, Operation, OwnerSeen, Record, RecordError, RouteOwner,
    WakeState, key,
};

use super::model::{
    AllocationView, EnvCounters, EnvView, ExternalApp, Load, OperationView, Shelf, Snapshot, Tally,
    value,
};

/// One change of one key, as a watch reports it: its new value, or `None` when it was deleted.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub key: &'a str,
    /// Its value now.
    pub value: Option<&'a [u8]>,
}

#[derive(Debug, Default)]
struct EnvRecords {
    owners: BTreeMap<String, RouteOwner>,
    deployments: BTreeMap<DeploymentId, Deployed>,
    allocations: BTreeMap<AllocationId, Allocation>,
    operation: Option<(Operation, Mono)>,
}

impl EnvRecords {
    fn is_empty(&self) -> bool {
        self.owners.is_empty()
            && self.deployments.is_empty()
            && self.allocations.is_empty()
            && self.operation.is_none()
    }

    fn names_index(&self, index: &Digest) -> bool {
        self.deployments.values().any(|d| d.assets == Some(*index))
    }
}

/// What routing needs of a deployment.
#[derive(Debug)]
struct Deployed {
    digest: Digest,
    contract: Arc<Contract>,
    schema: Option<Digest>,
    assets: Option<Digest>,
    replaced: Option<Wall>,
}

/// The routing records of the store.
#[derive(Debug, Default)]
pub struct Records {
    environments: BTreeMap<Environment, EnvRecords>,
    /// Asset indexes that deployments name, by digest. The shell reads them from the artifact store.
    indexes: HashMap<Digest, Arc<AssetIndex>>,
    /// Which environment a host's owner key belongs to, so that a move or delete finds it.
    owner_keys: BTreeMap<String, Environment>,
    /// Apps that this edge does not run; from the configuration, not from the store.
    externals: BTreeMap<Environment, ExternalApp>,
}

/// Longest back-off that is believed, whatever a record says.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

impl Records {
    /// Takes one change in, seen at `now`; the environments it touches are added to `touched`.
    ///
    /// # Errors
    /// [`RecordError`] when a value is damaged or of a newer format; nothing is taken in then.
    pub fn apply(
        &mut self,
        change: Change<'_>,
        now: Mono,
        touched: &mut BTreeSet<Environment>,
    ) -> Result<(), RecordError> {
        let Change { key: name, value } = change;
        if name.starts_with(key::OWNERS) {
            self.apply_owner(name, value, touched)
        } else if let Some(rest) = name.strip_prefix(key::ALLOCATIONS) {
            self.apply_allocation(rest, value, touched)
        } else if let Some(rest) = name.strip_prefix(key::OPERATIONS) {
            self.apply_operation(rest, value, now, touched)
        } else if let Some(rest) = name.strip_prefix(key::DEPLOYMENTS) {
            self.apply_deployment(rest, value, touched)
        } else {
            Ok(())
        }
    }

    fn apply_owner(
        &mut self,
        name: &str,
        value: Option<&[u8]>,
        touched: &mut BTreeSet<Environment>,
    ) -> Result<(), RecordError> {
        let owner = value.map(RouteOwner::decode).transpose()?;
        if let Some(before) = self.owner_keys.get(name) {
            let same = owner.as_ref().is_some_and(|o| o.environment == *before);
            if !same && let Some(env) = self.environments.get_mut(before) {
                env.owners.remove(name);
                let before = before.clone();
                self.forget_if_empty(&before);
                touched.insert(before);
            }
        }
        match owner {
            Some(owner) => {
                touched.insert(owner.environment.clone());
                self.owner_keys.insert(name.to_owned(), owner.environment.clone());
                let env = self.environments.entry(owner.environment.clone()).or_default();
                env.owners.insert(name.to_owned(), owner);
            }
            None => {
                self.owner_keys.remove(name);
            }
        }
        Ok(())
    }

    fn apply_allocation(
        &mut self,
        rest: &str,
        value: Option<&[u8]>,
        touched: &mut BTreeSet<Environment>,
    ) -> Result<(), RecordError> {
        let allocation = value.map(Allocation::decode).transpose()?;
        let Some((environment, id)) = split_child::<AllocationId>(rest) else { return Ok(()) };
        let env = self.environments.entry(environment.clone()).or_default();
        match allocation {
            Some(a) => env.allocations.insert(id, a),
            None => env.allocations.remove(&id),
        };
        self.forget_if_empty(&environment);
        touched.insert(environment);
        Ok(())
    }

    fn apply_operation(
        &mut self,
        rest: &str,
        value: Option<&[u8]>,
        now: Mono,
        touched: &mut BTreeSet<Environment>,
    ) -> Result<(), RecordError> {
        let operation = value.map(Operation::decode).transpose()?;
        let Ok(environment) = rest.parse::<Environment>() else { return Ok(()) };
        let env = self.environments.entry(environment.clone()).or_default();
        env.operation = operation.map(|o| (o, now));
        self.forget_if_empty(&environment);
        touched.insert(environment);
        Ok(())
    }

    fn apply_deployment(
        &mut self,
        rest: &str,
        value: Option<&[u8]>,
        touched: &mut BTreeSet<Environment>,
    ) -> Result<(), RecordError> {
        let deployment = value.map(Deployment::decode).transpose()?;
        let Some((environment, id)) = split_child::<DeploymentId>(rest) else { return Ok(()) };
        let env = self.environments.entry(environment.clone()).or_default();
        match deployment {
            Some(d) => {
                // Verified when the deployment was made; a contract this build cannot read any
                // more leaves the environment out, and its hosts answer no-route.
                if let Ok(contract) = contract::parse(Path::new("vango-edge.toml"), &d.contract) {
                    let known = Deployed {
                        digest: d.digest,
                        schema: contract.state.as_ref().and_then(|s| s.schema).or(d.schema),
                        contract: Arc::new(contract),
                        assets: d.assets,
                        replaced: d.replaced,
                    };
                    env.deployments.insert(id, known);
                }
            }
            None => {
                let gone = env.deployments.remove(&id).and_then(|d| d.assets);
                if let Some(index) = gone
                    && !self.environments.values().any(|e| e.names_index(&index))
                {
                    self.indexes.remove(&index);
                }
            }
        }
        self.forget_if_empty(&environment);
        touched.insert(environment);
        Ok(())
    }

    /// Without it every preview that ever was would keep an entry until the next full listing.
    fn forget_if_empty(&mut self, environment: &Environment) {
        if self.environments.get(environment).is_some_and(EnvRecords::is_empty) {
            self.environments.remove(environment);
        }
    }

    /// Indexes that deployments among `changes` name and that were not supplied.
    pub fn lacking<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) -> Vec<Digest> {
        let deployments =
            changes.into_iter().filter(|c| c.key.starts_with(key::DEPLOYMENTS)).filter_map(|c| {
                // One that cannot be read is an error when it is applied.
                Deployment::decode(c.value?).ok()?.assets
            });
        let mut lacking: Vec<_> =
            deployments.filter(|digest| !self.indexes.contains_key(digest)).collect();
        lacking.sort_unstable();
        lacking.dedup();
        lacking
    }

    /// Takes an index in.
    pub fn supply(&mut self, digest: Digest, index: Arc<AssetIndex>) {
        self.indexes.insert(digest, index);
    }

    /// Forgets every record. Indexes are kept: their names say what is in them.
    pub fn forget_all(&mut self) {
        let indexes = std::mem::take(&mut self.indexes);
        let externals = std::mem::take(&mut self.externals);
        *self = Self { indexes, externals, ..Self::default() };
    }

    /// Replaces the apps that this edge does not run. What they claim, no record of the store has: the
    /// environments that own such a host are touched as well.
    pub fn set_externals(&mut self, apps: &[ExternalApp], touched: &mut BTreeSet<Environment>) {
        let next: BTreeMap<_, _> =
            apps.iter().map(|a| (a.environment.clone(), a.clone())).collect();
        let claims: BTreeSet<&Host> =
            self.externals.values().chain(next.values()).flat_map(|a| &a.hosts).collect();
        for (environment, records) in &self.environments {
            if records.owners.values().any(|o| claims.contains(&o.host)) {
                touched.insert(environment.clone());
            }
        }
        touched.extend(self.externals.keys().chain(next.keys()).cloned());
        self.externals = next;
    }

    /// Whether an app of the configuration that this edge does not run has `host`, and it is not
    /// `environment`'s own.
    fn claimed(&self, environment: &Environment, host: &Host) -> bool {
        self.externals.values().any(|a| a.environment != *environment && a.hosts.contains(host))
    }

    /// Every environment there is a record of.
    pub fn environments(&self) -> impl Iterator<Item = &Environment> {
        self.environments.keys()
    }
}

/// `app/env/id` → its two parts.
fn split_child<T: std::str::FromStr>(rest: &str) -> Option<(Environment, T)> {
    let (environment, id) = rest.rsplit_once('/')?;
    Some((environment.parse().ok()?, id.parse().ok()?))
}

/// The snapshot at `revision`: `previous` with the `touched` environments made anew from `records`.
///
/// An owner's epoch never goes back: an environment whose records show a lower epoch than
/// `previous` did keeps its previous view.
pub fn compile(
    previous: &Snapshot,
    records: &Records,
    touched: &BTreeSet<Environment>,
    revision: u64,
) -> Snapshot {
    let mut next = previous.clone();
    next.revision = revision;
    for environment in touched {
        let before = previous.environment(environment);
        let recorded = records.environments.get(environment);
        let view = match records.externals.get(environment) {
            Some(app) => {
                let owners = recorded.into_iter().flat_map(|r| r.owners.values());
                let epoch = owners.map(|o| o.epoch).chain(before.map(|b| b.owner.epoch)).max();
                Some(external_view(app, epoch, before))
            }
            None => recorded.and_then(|r| view(environment, r, records, before)),
        };
        if let (Some(before), Some(view)) = (before, &view)
            && view.owner.epoch < before.owner.epoch
        {
            continue;
        }
        // Hosts that left; one that moved to another environment is that one's to set.
        for host in before.iter().flat_map(|b| &b.hosts) {
            let kept = view.as_ref().is_some_and(|v| v.hosts.contains(host));
            let ours = next.hosts.get(host).is_some_and(|v| v.environment == *environment);
            if !kept && ours {
                next.hosts.remove(host);
            }
        }
        match view {
            Some(view) => {
                let view = Arc::new(view);
                for host in &view.hosts {
                    next.hosts.insert(host.clone(), Arc::clone(&view));
                }
                next.environments.insert(environment.clone(), view);
            }
            None => next.environments.remove(environment),
        }
    }
    next
}

fn view(
    environment: &Environment,
    records: &EnvRecords,
    all: &Records,
    before: Option<&Arc<EnvView>>,
) -> Option<EnvView> {
    let newest = records.owners.values().max_by_key(|o| o.epoch)?;
    let owner = OwnerSeen {
        epoch: newest.epoch,
        deployment: newest.deployment.clone(),
        digest: newest.digest,
    };
    let deployed = records.deployments.get(&owner.deployment)?;
    if deployed.digest != owner.digest {
        return None;
    }
    let contract = &deployed.contract;
    let contract_of = |digest: Digest| {
        let mut kept = std::iter::once(deployed).chain(records.deployments.values());
        &kept.find(|d| d.digest == digest).unwrap_or(deployed).contract
    };
    let hosts: Vec<Host> = records
        .owners
        .values()
        .filter(|o| o.epoch == owner.epoch && !all.claimed(environment, &o.host))
        .map(|o| o.host.clone())
        .collect();
    let counters =
        before.map_or_else(|| Arc::new(EnvCounters::default()), |b| Arc::clone(&b.counters));
    let same = before.filter(|b| b.owner.deployment == owner.deployment);
    let tally = same.map_or_else(|| Arc::new(Tally::default()), |b| Arc::clone(&b.tally));
    let (ready, others) = records
        .allocations
        .values()
        .map(|a| Arc::new(allocation_view(a, contract_of(a.digest), before)))
        .partition(|a| {
            a.state == AllocationState::Ready
                && a.epoch == owner.epoch
                && a.digest == owner.digest
                && a.address.is_some()
        });
    Some(EnvView {
        environment: environment.clone(),
        assets: shelves(records, deployed, &all.indexes),
        operation: records.operation.as_ref().map(|(o, seen)| operation_view(o, *seen)),
        owner,
        hosts,
        contract: Arc::clone(contract),
        schema: deployed.schema,
        ready,
        others,
        external: false,
        counters,
        tally,
    })
}

/// The owner's files, then those of the deployments that it replaced: a page that was opened before
/// a deploy still finds what it names, where the name says which content it is. How long those are kept is
/// for who removes deployments.
fn shelves(
    records: &EnvRecords,
    owner: &Deployed,
    indexes: &HashMap<Digest, Arc<AssetIndex>>,
) -> Vec<Shelf> {
    let mut before: Vec<&Deployed> =
        records.deployments.values().filter(|d| d.replaced.is_some()).collect();
    before.sort_by_key(|d| std::cmp::Reverse((d.replaced, d.digest)));
    let mut shelves: Vec<Shelf> = Vec::new();
    for deployed in std::iter::once(owner).chain(before) {
        let Some(index) = deployed.assets else { continue };
        if shelves.iter().any(|s| s.artifact == deployed.digest) {
            continue;
        }
        let mut folders: Vec<_> = deployed.contract.assets.iter().enumerate().collect();
        folders.sort_by_key(|(_, assets)| std::cmp::Reverse(assets.prefix.len()));
        shelves.extend(folders.into_iter().map(|(at, assets)| Shelf {
            artifact: deployed.digest,
            assets: Arc::clone(assets),
            index: indexes.get(&index).cloned(),
            at,
        }));
    }
    shelves
}

fn allocation_view(
    a: &Allocation,
    contract: &Arc<Contract>,
    before: Option<&Arc<EnvView>>,
) -> AllocationView {
    let known = before.and_then(|b| b.ready.iter().chain(&b.others).find(|v| v.id == a.id));
    AllocationView {
        id: a.id.clone(),
        generation: a.generation,
        epoch: a.epoch,
        digest: a.digest,
        state: a.state,
        address: a.address,
        pid: a.process.as_ref().map(|p| p.pid),
        concurrency: contract.scale.concurrency.max(1),
        contract: Arc::clone(contract),
        pool_key: FixedState::default().hash_one((&a.id, a.generation, &a.operation)),
        headers: headers(a),
        external: false,
        load: known.map_or_else(|| Arc::new(Load::default()), |v| Arc::clone(&v.load)),
    }
}

/// The headers that tell the app what it was reached as.
fn headers(a: &Allocation) -> Vec<(HeaderName, HeaderValue)> {
    vec![
        (HeaderName::from_static("vango-edge-environment"), value(a.environment.to_string())),
        (HeaderName::from_static("vango-edge-epoch"), value(a.epoch.to_string())),
        (HeaderName::from_static("vango-edge-allocation"), value(a.id.to_string())),
        (HeaderName::from_static("vango-edge-artifact"), value(a.digest.to_string())),
    ]
}

fn operation_view(o: &Operation, seen: Mono) -> OperationView {
    let backoff = Duration::from_millis(o.backoff_ms).min(MAX_BACKOFF);
    OperationView {
        id: o.id.clone(),
        epoch: o.epoch,
        state: o.state,
        allocation: o.allocation.clone(),
        phases: o.phases,
        failure: o.failure.clone(),
        failures: o.failures,
        backoff_until: (o.state == WakeState::Failed).then(|| seen + backoff),
        typical_ms: o.typical_ms,
    }
}

/// The view of an app that this edge does not run. Its upstreams look like ready allocations to everything
/// that chooses and forwards, so that one lifecycle serves both. Their ids come from their addresses: an
/// upstream that a reload keeps keeps its counters, its health and its pooled connections.
///
/// Its authority is the configuration's, which has no epochs of its own: it keeps
/// the highest that its hosts ever had, `epoch`, so that none goes back.
fn external_view(
    app: &ExternalApp,
    epoch: Option<Epoch>,
    before: Option<&Arc<EnvView>>,
) -> EnvView {
    let seed = FixedState::default().hash_one(&app.environment);
    let owner = OwnerSeen {
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
        counters: before
            .map_or_else(|| Arc::new(EnvCounters::default()), |b| Arc::clone(&b.counters)),
    }
}

fn upstream(
    app: &ExternalApp,
    address: SocketAddr,
    owner: &OwnerSeen,
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
        contract: Arc::clone(&app.contract),
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

#[cfg(test)]
mod tests;
