//! What happens besides requests: deployments, promotions, sleep, moves of hosts, processes that die,
//! leases and nodes that are lost, a store that is away, and the edge's own end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use vango_edge::clock::Clock;
use vango_edge::control::allocations::SleepFor;
use vango_edge::control::{Candidate, Effect};
use vango_edge::id::{AllocationId, AppName, Environment, Generation, OperationId};
use vango_edge::record::{Allocation, AllocationState, Record, key};
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
        match dice.below(30) {
            0..=1 => {
                tokio::spawn(deploy(sim.clone(), edge, environment, dice.below(CONTRACTS.len())));
            }
            2..=4 => {
                let wanted = match dice.below(3) {
                    0 => Candidate::Preview("pr-1".parse().unwrap()),
                    1 => Candidate::Previous,
                    _ => Candidate::Digest(digest(environment.app(), dice.below(CONTRACTS.len()))),
                };
                tokio::spawn(promote(sim.clone(), edge, environment.app().clone(), wanted));
            }
            5..=7 => {
                tokio::spawn(put_to_sleep(sim.clone(), edge, environment));
            }
            8 => {
                // Two nodes are asked at once.
                if self.peers.is_empty() {
                    self.peers.push(Peer::start(&sim, 0));
                }
                edge.wakes.wake_detached(&environment);
                self.peers[0].wakes.wake_detached(&environment);
            }
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
            22..=23 => self.scale_out(&environment).await,
            24..=25 => self.lose_control(),
            26 => self.lose_promoter(&environment).await,
            _ => {
                // More often than not in the middle of a deployment.
                tokio::spawn(deploy(sim.clone(), edge, environment, dice.below(CONTRACTS.len())));
                if dice.one_in(2) {
                    self.lose_control();
                }
            }
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

    /// The same for a promotion's.
    async fn lose_promoter(&self, environment: &Environment) {
        let (sim, edge) = (Arc::clone(&self.sim), Arc::clone(&self.edge));
        let n = sim.dice.below(CONTRACTS.len());
        tokio::spawn(deploy(sim.clone(), edge, environment.clone(), n));
        sleep(sim.dice.ms(&[100, 300, 1_000])).await;
        let listed = sim.engine.list(key::PROMOTERS, None, 10).now_or_never();
        let listed = listed.and_then(Result::ok).map(|page| page.entries);
        for (at, entry) in listed.into_iter().flatten() {
            let Some(lease) = entry.lease else { continue };
            sim.note(|| format!("the lease of {at} ends"));
            sim.happened("a promotion's executor lost its lease");
            let _ = sim.engine.lease_revoke(lease).await;
        }
    }

    /// The control room crashes, at one of its next writes or when its time has come, and begins again.
    fn lose_control(&self) {
        let (sim, edge) = (Arc::clone(&self.sim), Arc::clone(&self.edge));
        if sim.is_losing_control(true) {
            return;
        }
        tokio::spawn(async move {
            let life = Arc::clone(&edge.control().life);
            life.ends_with_write(1 + sim.dice.below(12) as u32, sim.dice.one_in(2));
            let at = Instant::now() + sim.dice.ms(&[20, 300, 3_000]);
            while !life.is_over() && Instant::now() < at {
                sleep(Duration::from_millis(5)).await;
            }
            if !life.is_over() {
                sim.note(|| "the control room crashes".into());
                life.end();
            }
            sim.happened("the control room was lost");
            if edge.control().deploying.load(Ordering::Relaxed) > 0 {
                sim.happened("a deployment was cut short by a crash");
            }
            sleep(sim.dice.ms(&[1, 100, 1_000])).await;
            edge.restart_control(&sim).await;
            sim.note(|| "the control room is there again".into());
            sim.is_losing_control(false);
        });
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

/// Deploys artifact `n` of the environment's app. Whether it came to own or to serve.
pub async fn deploy(sim: Arc<Sim>, edge: Arc<Edge>, environment: Environment, n: usize) -> bool {
    let digest = digest(environment.app(), n);
    let preview = (!environment.is_production()).then(|| environment.name().clone());
    sim.note(|| format!("{environment} is to be deployed with artifact {n}"));
    sim.truth().moves.upload(&digest);
    let control = edge.control();
    let open = control.deploying.clone();
    open.fetch_add(1, Ordering::Relaxed);
    let told = control.deployments.deploy(digest, preview.as_ref()).await;
    open.fetch_sub(1, Ordering::Relaxed);
    match told {
        Ok(told) => {
            sim.happened(match told.effect {
                Effect::Owns => "a deployment took its hosts at once",
                Effect::Moved => "a deployment moved the owner",
                Effect::Unchanged => "an artifact that serves was deployed again",
                Effect::Moving | Effect::Stored => "a deployment goes on",
            });
            sim.check_deployed(&told);
            true
        }
        Err(e) => {
            sim.happened("a deployment was refused");
            sim.note(|| format!("{environment} is not deployed: {e}"));
            false
        }
    }
}

async fn promote(sim: Arc<Sim>, edge: Arc<Edge>, app: AppName, wanted: Candidate) {
    let outcome = edge.control().promotions.promote(&app, &wanted).await;
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
    let control = edge.control();
    let one = control.owners.change().await;
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
        if control.owners.follow(&config, &one).await.is_ok() {
            return sim.happened("a host moved to another environment");
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The preview is removed, or deployed again where it was.
async fn remove_or_restore(sim: Arc<Sim>, edge: Arc<Edge>) {
    if edge.control().previews.remove(&preview(), "an operator").await.is_ok() {
        sim.happened("a preview was removed");
    } else {
        let n = sim.dice.below(CONTRACTS.len());
        deploy(sim, edge, preview(), n).await;
    }
}
