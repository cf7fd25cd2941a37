//! The edge, made of its own parts as `src/server/compose.rs` makes it; only the store's reach, the
//! runner, trees, secrets, time and chance are the simulation's. When a part changes, this file follows.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::runtime::Handle;
use vango_edge::artifact::{ArtifactError, Artifacts, Tree, TreeSource};
use vango_edge::config::{Config, Running, Secret, SecretSource, load, read_secret};
use vango_edge::contract::Contract;
use vango_edge::control::{Retirer, Routing, Sleeper, Workers};
use vango_edge::id::{AllocationId, Digest, Environment};
use vango_edge::ledger::{Audit, AuditLimits, Ledger, LedgerLimits};
use vango_edge::lifecycle::idempotency::Holder;
use vango_edge::node::Node;
use vango_edge::proxy::{
    Attempts, BodyBudget, Exchanges, Gate, Places, ProxyLimits, UPGRADES, WebhookSecrets,
};
use vango_edge::record::Operation;
use vango_edge::session::{
    DurableStore, KeyRing, Question, SessionRoutes, Sessions, StoreFailure, Stores, Tokens,
};
use vango_edge::sockets::{Admission, Sockets};
use vango_edge::telemetry::{Metrics, Ring, Telemetry};
use vango_edge::wake::hold::{HoldLimits, HoldQueues};
use vango_edge::wake::machine::BackoffPolicy;
use vango_edge::wake::{
    Allocations, Executor, Exits, Inheritance, Observer, Secrets, Starts, WakeWork, Wakes,
};

use crate::control::Control;
use crate::follower::Between;
use crate::machine::SimRunner;
use crate::store::{Life, Reach};
use crate::world::Sim;

/// Bounds of the hold queue of the node.
pub const HELD: HoldLimits = HoldLimits { max_held: 10, max_held_bytes: 1200 };

/// How long an app may be silent.
pub const RESPONSE: Duration = Duration::from_secs(2);

const BACKOFF: BackoffPolicy =
    BackoffPolicy { first: Duration::from_secs(1), max: Duration::from_secs(8) };

/// What providers' deliveries are signed with.
pub const WEBHOOK_SECRET: &str = "whsec_of_the_simulation";

/// The edge that has the clients.
pub struct Edge {
    pub gate: Gate,
    pub node: Node,
    pub queues: Arc<HoldQueues>,
    pub wakes: Arc<Wakes>,
    pub sleeper: Arc<Sleeper>,
    pub routing: Arc<Routing>,
    control: ArcSwap<Control>,
    pub inheritance: Inheritance,
    /// Told of apps that this edge does not run: none.
    _externals: tokio::sync::watch::Sender<Arc<Vec<vango_edge::snapshot::ExternalApp>>>,
}

/// Files that are the same in every run: a configuration, a secret, an empty artifact store.
pub struct Files {
    config: Config,
    secret: Secret,
    pub artifacts: Arc<Artifacts>,
    _dir: tempfile::TempDir,
}

const EDGE_TOML: &str = r#"
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[state]
dir = "state"
[apps]
dir = "apps"
"#;

pub fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write(
            "apps/studylab.toml",
            "app = \"studylab\"\nhosts = [\"a.localhost\", \"b.localhost\"]\n\
             preview_hosts = [\"{preview}.p.localhost\"]\n",
        );
        write("apps/other.toml", "app = \"other\"\nhosts = [\"c.localhost\"]\n");
        let config = load(&write("edge.toml", EDGE_TOML)).unwrap_or_else(|all| panic!("{all:?}"));
        let source = SecretSource::File(write("secret", WEBHOOK_SECRET));
        let at = |name: &str| dir.path().join(name);
        let artifacts = Arc::new(Artifacts::local(&at("artifacts"), &at("trees")).unwrap());
        Files { config, secret: read_secret(&source).unwrap(), artifacts, _dir: dir }
    })
}

struct Told(Arc<Sim>);

impl Observer for Told {
    fn finished(&self, operation: &Operation) {
        self.0.note(|| format!("{} is over: {}", operation.id, operation.state.name()));
    }
}

struct NoSecrets;

impl Secrets for NoSecrets {
    fn of(
        &self,
        _: &Environment,
        _: Option<&AllocationId>,
        _: &Contract,
    ) -> Result<Vec<(String, String)>, String> {
        Ok(Vec::new())
    }
}

struct Providers;

impl WebhookSecrets for Providers {
    fn of(&self, _: &Environment, _: &str) -> Vec<Secret> {
        vec![files().secret.clone()]
    }
}

/// Every artifact is there, unless it is damaged for once.
struct SimTrees(Arc<Sim>);

#[async_trait]
impl TreeSource for SimTrees {
    async fn tree(
        &self,
        digest: &Digest,
        _in_use: &(dyn Fn() -> bool + Sync),
    ) -> Result<Tree, ArtifactError> {
        let takes = self.0.dice.ms(&[1, 5, 30]);
        tokio::time::sleep(takes).await;
        if !self.0.is_calm() && self.0.dice.one_in(20) {
            return Err(ArtifactError::Missing(*digest));
        }
        Ok(Tree { root: Path::new("/nowhere").join(digest.hex()), wrote: None, used: None })
    }
}

struct NoStore;

#[async_trait]
impl DurableStore for NoStore {
    async fn has(&self, _: &Question<'_>) -> Result<bool, StoreFailure> {
        Ok(false)
    }
}

pub fn node(sim: &Arc<Sim>, name: &str, life: &Arc<Life>, config: Arc<Running>) -> Node {
    Node {
        name: name.into(),
        config,
        store: Reach::new(Arc::clone(sim), Arc::clone(&sim.engine), Arc::clone(life), true),
        snapshots: sim.snapshots.clone(),
        clock: Arc::clone(&sim.clock) as _,
        entropy: Arc::clone(&sim.entropy) as _,
        runtime: Handle::current(),
    }
}

/// Wakes of one node: its runner, and its executor.
pub struct Waker {
    pub runner: Arc<SimRunner>,
    pub allocations: Arc<Allocations>,
    pub starts: Arc<Starts>,
    pub wakes: Arc<Wakes>,
    pub exits: Arc<Exits>,
}

pub fn waker(sim: &Arc<Sim>, node: &Node, life: &Arc<Life>) -> Waker {
    let n = || node.clone();
    let runner = SimRunner::new(Arc::clone(sim), Arc::clone(life));
    let told = Arc::new(Told(Arc::clone(sim)));
    let allocations = Allocations::new(n(), runner.clone());
    let trees = Arc::new(SimTrees(Arc::clone(sim)));
    let starts = Starts::new(n(), runner.clone(), trees, Arc::new(NoSecrets), 4);
    let exits = Exits::new(n(), runner.clone(), allocations.clone(), BACKOFF);
    let work =
        WakeWork::new(n(), starts.clone(), allocations.clone(), exits.clone(), told, BACKOFF);
    let wakes = Wakes::new(Executor::new(n(), work));
    Waker { runner, allocations, starts, wakes, exits }
}

/// Another node over the same store, which takes up what it finds until it crashes.
#[derive(Clone)]
pub struct Peer {
    pub wakes: Arc<Wakes>,
    life: Arc<Life>,
}

impl Peer {
    pub fn start(sim: &Arc<Sim>, n: u32) -> Self {
        let life = Arc::<Life>::default();
        let config = Arc::new(Running::from_pointee(files().config.clone()));
        let node = node(sim, &format!("peer-{n}"), &life, config);
        let Waker { wakes, exits, .. } = waker(sim, &node, &life);
        tokio::spawn(exits.follow());
        Self { wakes, life }
    }

    /// It is gone, in the middle of whatever it does; its processes stay.
    pub fn crash(&self) {
        self.life.end();
    }
}

impl Edge {
    /// Who deploys and promotes now.
    pub fn control(&self) -> Arc<Control> {
        self.control.load_full()
    }

    /// The next one begins, with what the one before left.
    pub async fn restart_control(&self, sim: &Arc<Sim>) {
        let before = self.control();
        sim.machine.commands.end_leftovers(sim, &before.life);
        let next = Control::start(sim, &self.node, &self.routing, &self.sleeper).await;
        self.control.store(next);
    }

    /// Makes it, and lets it run.
    pub async fn start(sim: &Arc<Sim>) -> Arc<Self> {
        let life = Arc::<Life>::default();
        let config = Arc::new(Running::from_pointee(files().config.clone()));
        let node = node(sim, "node-0", &life, config);
        let n = || node.clone();
        let woken = waker(sim, &node, &life);
        let Waker { runner, allocations, starts, wakes, exits } = woken;
        let queues = {
            let (wakes, sim) = (wakes.clone(), Arc::clone(sim));
            let again = Box::new(move |e: &Environment| {
                sim.happened("a wake was asked for again by those who wait");
                wakes.wake_detached(e);
            });
            HoldQueues::new(HELD, n().snapshots, n().clock, n().entropy, again)
        };
        let sockets = Sockets::new(n().clock, n().entropy);
        let artifacts = Arc::clone(&files().artifacts);
        let routing = Routing::new(n(), artifacts, wakes.clone(), queues.clone(), sockets.clone());
        let sleeper = Sleeper::new(
            n(),
            allocations.clone(),
            queues.clone(),
            sockets.clone(),
            wakes.clone(),
            Workers::new(n(), starts.clone(), runner.clone(), BACKOFF),
        );
        let retirer = Retirer::new(n(), allocations.clone(), sockets.clone());
        let telemetry =
            Arc::new(Telemetry { metrics: Metrics::new().unwrap(), ring: Ring::new(64) });
        let gate = gate(sim, &node, &queues, &wakes, &exits, sockets, telemetry);
        let inheritance = Inheritance::new(n(), runner.clone(), starts, allocations);

        tokio::spawn(exits.follow());
        let (ready, listed) = tokio::sync::oneshot::channel();
        let (externals, apps) = tokio::sync::watch::channel(Arc::default());
        let publisher = sim.publisher.lock().unwrap().take().unwrap();
        {
            let (sim, routing) = (Arc::clone(sim), routing.clone());
            let following = Box::pin(async move { routing.follow(publisher, apps, ready).await });
            tokio::spawn(async move { sim.follower.run(following).await });
        }
        listed.await.unwrap();
        tokio::spawn(sleeper.clone().run());
        tokio::spawn(retirer.run());
        let audit = gate.audit.clone();
        tokio::spawn(async move { audit.write().await });
        tokio::spawn(gate.sessions.routes.clone().write());
        let control = Control::start(sim, &node, &routing, &sleeper).await;
        Arc::new(Self {
            gate,
            node,
            queues,
            wakes,
            sleeper,
            control: ArcSwap::new(control),
            routing,
            inheritance,
            _externals: externals,
        })
    }
}

fn gate(
    sim: &Arc<Sim>,
    node: &Node,
    queues: &Arc<HoldQueues>,
    wakes: &Arc<Wakes>,
    exits: &Arc<Exits>,
    sockets: Arc<Sockets>,
    telemetry: Arc<Telemetry>,
) -> Gate {
    let life = Arc::<Life>::default();
    let store = Reach::new(Arc::clone(sim), Arc::clone(&sim.ledger_engine), life, false);
    let clock = || node.clock.clone();
    let limits = AuditLimits { max_rows: 10_000, max_age: Duration::from_secs(86_400) };
    let audit = Audit::new(store.clone(), clock(), limits, node.entropy.next_u64() >> 1);
    let holder = Holder { node: node.name.to_string(), run: "1".into() };
    let limits = LedgerLimits { max_records: 1_000, max_response: 4096 };
    let ledger = Ledger::new(store, clock(), holder, limits, Handle::current());
    let ring = KeyRing::of(&[[7; 32]]);
    let limits = ProxyLimits {
        connect_timeout: Duration::from_secs(1),
        response_timeout: RESPONSE,
        max_route_timeout: RESPONSE,
        idle_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(3),
        sockets: 100,
        socket_idle: Duration::from_secs(60),
    };
    let connections = Arc::new(Places::default());
    connections.set_most(1_000);
    Gate {
        secrets: Arc::new(Providers),
        ledger,
        audit,
        budget: BodyBudget::new(400),
        ahead: 0,
        exchanges: Arc::new(Exchanges::default()),
        attempts: Attempts::default(),
        limits: Arc::new(ArcSwap::from_pointee(limits)),
        snapshots: sim.snapshots.clone(),
        queues: queues.clone(),
        wakes: wakes.clone(),
        exits: exits.clone(),
        clock: Arc::new(Between(Arc::clone(sim))),
        entropy: Arc::new(Between(Arc::clone(sim))),
        sessions: Arc::new(Sessions {
            tokens: Tokens::new(ring, Duration::from_secs(3600), node.entropy.clone()),
            routes: SessionRoutes::new(node.store.clone(), clock()),
            stores: Stores::new(Box::new(NoStore), Box::new(NoStore), clock()),
        }),
        connections,
        sockets,
        upgrades: Admission::new(UPGRADES),
        telemetry,
    }
}
