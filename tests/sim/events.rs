//! What happens besides requests: deployments, promotions, sleep, moves of hosts, processes that die,
//! leases and nodes that are lost, a store that is away, and the edge's own end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::sleep;
use vango_edge::clock::Clock;
use vango_edge::control::Candidate;
use vango_edge::control::allocations::SleepFor;
use vango_edge::id::{AllocationId, AppName, DeploymentId, Environment, Generation, OperationId};
use vango_edge::record::{Allocation, AllocationState, Deployment, Record, key};
use vango_edge::store::{StateStore, Txn};

use crate::edge::{Edge, Peer};
use crate::world::{CONTRACTS, Sim, digest};

pub fn production() -> Environment {
    "studylab".parse().unwrap()
}
pub fn other() -> Environment {
    "other".parse().unwrap()
}
pub fn preview() -> Environment {
    "studylab/pr-1".parse().unwrap()
}

/// All that may have an owner.
pub fn environments() -> &'static [Environment; 3] {
    static ALL: OnceLock<[Environment; 3]> = OnceLock::new();
    ALL.get_or_init(|| [production(), other(), preview()])
}

/// What makes things happen.
pub struct Events {
    sim: Arc<Sim>,
    edge: Arc<Edge>,
    peers: Vec<Peer>,
}

impl Events {
    pub fn new(sim: &Arc<Sim>, edge: &Arc<Edge>) -> Self {
        Self { sim: Arc::clone(sim), edge: Arc::clone(edge), peers: Vec::new() }
    }

    /// One of them.
    pub async fn next(&mut self) {
        let (sim, edge) = (Arc::clone(&self.sim), Arc::clone(&self.edge));
        let dice = &sim.dice;
        let environment = dice.pick(environments()).clone();
        match dice.below(24) {
            0..=1 => {
                tokio::spawn(deploy(sim.clone(), edge, environment, dice.below(CONTRACTS.len())));
            }
            2..=4 => {
                let wanted = match dice.below(3) {
                    0 => Candidate::Preview("pr-1".parse().unwrap()),
                    1 => Candidate::Previous,
                    _ => Candidate::Digest(digest(dice.below(CONTRACTS.len()))),
                };
                tokio::spawn(promote(sim.clone(), edge, environment.app().clone(), wanted));
            }
            5..=7 => {
                tokio::spawn(put_to_sleep(sim.clone(), edge, environment));
            }
            8 => edge.wakes.wake_detached(&environment),
            9..=10 => {
                tokio::spawn(move_host(sim.clone(), edge));
            }
            11 => {
                tokio::spawn(remove_or_restore(sim.clone(), edge));
            }
            12..=13 => self.kill_any(),
            14..=16 => self.lose_lease(&environment).await,
            17..=19 => self.peer(&environment),
            20..=21 => sim.store_goes_away(dice.ms(&[50, 300, 3_000])),
            _ => self.scale_out(&environment).await,
        }
    }

    fn kill_any(&self) {
        let alive = self.sim.machine.alive();
        if !alive.is_empty() {
            let (id, _) = self.sim.dice.pick(&alive);
            self.sim.machine.end(&self.sim, id);
        }
    }

    /// A lease ends: its executor is paused.
    async fn lose_lease(&self, environment: &Environment) {
        // It is more often in the middle of something then.
        self.edge.wakes.wake_detached(environment);
        sleep(self.sim.dice.ms(&[10, 60, 300])).await;
        let at = key::executor(environment);
        let entry = self.sim.engine.get(&at).now_or_never();
        let lease = entry.and_then(Result::ok).flatten().and_then(|e| e.lease);
        if let Some(lease) = lease {
            self.sim.note(|| format!("the executor's lease of {environment} ends"));
            let _ = self.sim.engine.lease_revoke(lease).await;
        }
    }

    /// Another node takes up what it finds, and may crash over it.
    fn peer(&mut self, environment: &Environment) {
        if self.peers.len() < 3 && self.sim.dice.one_in(2) {
            let n = self.peers.len() as u32;
            self.peers.push(Peer::start(&self.sim, n));
        }
        if self.peers.is_empty() {
            return;
        }
        let (sim, at) = (Arc::clone(&self.sim), self.sim.dice.below(self.peers.len()));
        let peer = self.peers[at].clone();
        let (edge, environment) = (Arc::clone(&self.edge), environment.clone());
        tokio::spawn(async move {
            edge.wakes.wake_detached(&environment);
            for _ in 0..sim.dice.below(30) {
                peer.wakes.executor.consider_if_open(&environment);
                sleep(sim.dice.ms(&[2, 5, 30])).await;
            }
            if sim.dice.one_in(3) && !sim.is_calm() {
                sim.happened("a node crashed");
                sim.note(|| format!("peer {at} crashes"));
                peer.crash();
            }
        });
    }

    /// A second ready allocation of the owner, as a scaler or another node would add it.
    async fn scale_out(&self, environment: &Environment) {
        let sim = &self.sim;
        let Ok(Some(owner)) = self.edge.node.newest_owner(environment).await else { return };
        let record = Allocation {
            id: AllocationId::random(&*sim.entropy),
            environment: environment.clone(),
            generation: Generation(1_000 + sim.clock.now().0 / 1_000_000),
            epoch: owner.epoch,
            digest: owner.digest,
            state: AllocationState::Ready,
            address: Some("127.0.0.1:4001".parse().unwrap()),
            process: None,
            operation: OperationId::random(&*sim.entropy),
            created: sim.clock.wall(),
            ready: Some(sim.clock.wall()),
        };
        sim.add(&record.id);
        sim.machine.add(&record);
        sim.happened("a second allocation was ready");
        let at = key::allocation(environment, &record.id);
        let txn = Txn::new().absent(&at).put(&at, record.encode());
        let written = self.edge.node.store.txn(txn).await;
        if written.is_err_and(|e| e.applied_nothing()) {
            sim.machine.end(sim, &record.id);
        }
    }
}

/// Makes a deployment of digest `n`, which owns the environment's hosts from then on: the transaction of
/// `control::Deployments`, without the artifact that it verifies.
pub async fn deploy(sim: Arc<Sim>, edge: Arc<Edge>, environment: Environment, n: usize) -> bool {
    let contract = CONTRACTS[n].replace("APP", environment.app().as_str());
    let deployment = Deployment {
        id: DeploymentId::random(&*sim.entropy),
        environment: environment.clone(),
        digest: digest(n),
        contract,
        created: sim.clock.wall(),
        files: 1,
        bytes: 1,
        assets: None,
        replaced: None,
        promoted_from: None,
        schema: None,
    };
    let _one = edge.owners.change().await;
    let config = edge.node.config.load().clone();
    let hosts = config.apps.get(environment.app()).map(|a| a.hosts_of(&environment));
    let hosts = hosts.unwrap_or_default();
    let Ok(seen) = edge.owners.seen(&environment, &hosts).await else { return false };
    let before = seen.owner();
    let Ok((_, take)) = seen.take(&deployment) else { return false };
    let at = key::deployment(&environment, &deployment.id);
    let mut txn = Txn::new().absent(&at).put(&at, deployment.encode()).and(take);
    if let Some(before) = &before {
        let Ok(replaced) = edge.owners.replaced(&environment, &before.deployment).await else {
            return false;
        };
        txn = txn.and(replaced);
    }
    sim.note(|| format!("{environment} is deployed with digest {n}"));
    let Ok(revision) = edge.node.store.txn(txn.synced()).await else { return false };
    match before {
        Some(b) if b.digest == digest(n) => {
            sim.happened("the owner moved under the same digest");
        }
        Some(_) => sim.happened("the owner moved to another digest"),
        None => {}
    }
    edge.routing.shown(revision).await;
    true
}

async fn promote(sim: Arc<Sim>, edge: Arc<Edge>, app: AppName, wanted: Candidate) {
    let outcome = edge.promotions.promote(&app, &wanted).await;
    sim.note(|| match &outcome {
        Ok(p) => format!("promotion {} of {app} to {wanted:?}", p.id),
        Err(e) => format!("no promotion of {app}: {e}"),
    });
}

async fn put_to_sleep(sim: Arc<Sim>, edge: Arc<Edge>, environment: Environment) {
    let busy = edge.node.view(&environment).is_some_and(|v| {
        v.counters.waiting() > 0 || v.ready.iter().any(|a| a.load.in_flight() > 0)
    });
    if busy {
        sim.happened("an environment was put to sleep under load");
    }
    sim.note(|| format!("{environment} is told to sleep"));
    *sim.truth().commanded.entry(environment.clone()).or_default() += 1;
    let _ = edge.sleeper.sleep(&environment, SleepFor::Command).await;
    let mut truth = sim.truth();
    if let Some(n) = truth.commanded.get_mut(&environment) {
        *n -= 1;
        if *n == 0 {
            truth.commanded.remove(&environment);
        }
    }
}

/// The operator gives a host to the other app, and reloads.
async fn move_host(sim: Arc<Sim>, edge: Arc<Edge>) {
    let one = edge.owners.change().await;
    let mut config = (**edge.node.config.load()).clone();
    let (from, to) = (production().app().clone(), other().app().clone());
    let host = "b.localhost".parse().unwrap();
    let (from, to) = match config.apps[&from].hosts.contains(&host) {
        true => (from, to),
        false => (to, from),
    };
    config.apps.get_mut(&from).unwrap().hosts.retain(|h| *h != host);
    config.apps.get_mut(&to).unwrap().hosts.push(host.clone());
    sim.note(|| format!("{host} moves to {to}"));
    edge.node.config.store(Arc::new(config.clone()));
    for _ in 0..10 {
        if edge.owners.follow(&config, &one).await.is_ok() {
            return sim.happened("a host moved to another environment");
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The preview is removed, or deployed again where it was.
async fn remove_or_restore(sim: Arc<Sim>, edge: Arc<Edge>) {
    if edge.previews.remove(&preview(), "an operator").await.is_ok() {
        sim.happened("a preview was removed");
    } else {
        let n = sim.dice.below(CONTRACTS.len());
        deploy(sim, edge, preview(), n).await;
    }
}
