//! Everything that runs, made in the order in which one needs the other. Nothing is started here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use arc_swap::ArcSwap;

use crate::artifact::AssetBytes;
use crate::certificates::{OrderWork, Orders, Shown};
use crate::config::SecretValues;
use crate::control::{
    Collector, Commands, Counts, Decisions, Deployments, EnvVars, Externals, OneOffs, Owners,
    Previews, PromotionWork, Promotions, Reloader, Retirer, Routing, Schedules, Sleeper, Workers,
};
use crate::id::Environment;
use crate::lifecycle::validation::Validations;
use crate::node::Node;
use crate::proxy::{
    self, Attempts, BodyBudget, EdgeProxy, Exchanges, Gate, Places, Pools, Serving, UPGRADES,
};
use crate::session::Sessions;
use crate::snapshot::Publisher;
use crate::sockets::{Admission, Sockets};
use crate::wake::hold::HoldQueues;
use crate::wake::{Allocations, Executor, Exits, Inheritance, Starts, WakeWork, Wakes};

use super::ground::{Given, Ground, ground, sessions};
use super::secrets::{OperatorSecrets, ProcessSecrets, VerifyingSecrets};
use super::settings::{
    Parts, accept_rules, external_apps, hold_limits, max_connections, policies, prepare,
    proxy_limits,
};

pub(super) struct Edge {
    pub(super) ground: Ground,
    pub(super) woken: Woken,
    pub(super) routing: Arc<Routing>,
    pub(super) retirer: Arc<Retirer>,
    pub(super) commands: Arc<Commands>,
    pub(super) parts: Parts,
    pub(super) reloader: Arc<Reloader>,
    pub(super) serving: Arc<Serving>,
    pub(super) exchanges: Arc<Exchanges>,
    pub(super) ready: Arc<AtomicBool>,
    pub(super) externals: Externals,
    pub(super) certificates: Arc<Shown>,
    pub(super) orders: Arc<Orders>,
}

/// What wakes, and what waits for it.
pub(super) struct Woken {
    pub(super) allocations: Arc<Allocations>,
    pub(super) starts: Arc<Starts>,
    pub(super) wakes: Arc<Wakes>,
    pub(super) exits: Arc<Exits>,
    pub(super) inheritance: Inheritance,
    pub(super) queues: Arc<HoldQueues>,
    pub(super) sockets: Arc<Sockets>,
}

/// Makes everything that runs.
pub(super) async fn compose(given: Given<'_>) -> Result<(Edge, Publisher)> {
    let publisher = Publisher::new();
    let ground = ground(&given, &publisher).await?;
    let operator = Arc::new(OperatorSecrets(ground.node.config.clone()));
    let sessions = sessions(&given, &ground.node, operator.clone())?;
    let woken = woken(&given, &ground, operator);
    let Ground { node, artifacts, telemetry, .. } = &ground;
    let Woken { allocations, starts, wakes, queues, sockets, .. } = &woken;
    let n = || node.clone();

    let routing =
        Routing::new(n(), artifacts.clone(), wakes.clone(), queues.clone(), sockets.clone());
    let runner = || ground.runner.clone();
    let workers = Workers::new(n(), starts.clone(), runner(), given.config.runner.backoff);
    let sleeper = Sleeper::new(
        n(),
        allocations.clone(),
        queues.clone(),
        sockets.clone(),
        wakes.clone(),
        workers.clone(),
    );
    let retirer = Retirer::new(n(), allocations.clone(), sockets.clone());
    let owners = Owners::new(n(), routing.clone(), sleeper.clone());
    let counts = Counts::new(n());
    let collector = Collector::new(n(), artifacts.clone());
    let most = given.config.runner.max_commands;
    let one_offs = OneOffs::new(n(), starts.clone(), runner(), most);
    let work = PromotionWork::new(
        n(),
        counts.clone(),
        owners.clone(),
        starts.clone(),
        allocations.clone(),
        wakes.clone(),
        one_offs.clone(),
    );
    let executor = Executor::new(n(), work);
    let promotions = Promotions::new(n(), counts.clone(), collector.clone(), executor);
    let deployments = Arc::new(Deployments {
        node: n(),
        artifacts: artifacts.clone(),
        starts: starts.clone(),
        owners: owners.clone(),
        routing: routing.clone(),
        counts: counts.clone(),
        promotions: promotions.clone(),
        collector: collector.clone(),
    });
    let audit = ground.audit.clone();
    let decisions = Decisions::new(
        n(),
        Box::new(move |place, row| {
            let audit = audit.clone();
            Box::pin(async move { audit.once(&place, &row).await })
        }),
    );
    let previews = Previews::new(
        n(),
        counts.clone(),
        owners.clone(),
        sleeper.clone(),
        routing.clone(),
        decisions.clone(),
    );

    let audit = ground.audit.clone();
    let schedules = Schedules::new(
        n(),
        starts.clone(),
        runner(),
        wakes.clone(),
        // What became of each run goes to the audit.
        Box::new(move |row| audit.soon(row)),
    );

    let (parts, externals) = parts(&given, &ground, &woken, sessions)?;
    let exchanges = Arc::new(Exchanges::default());
    let certificates = Shown::new(n(), given.issued.clone());
    let work = OrderWork::new(n(), certificates.clone(), telemetry.clone());
    let executor = Executor::new(n(), work);
    let orders = Orders::new(n(), certificates.clone(), executor, telemetry.clone());
    let validations = certificates.validations().clone();
    let serving = serving(&given, &ground, &woken, &parts, exchanges.clone(), validations);
    let reloader = Reloader::new(
        given.file,
        n(),
        owners,
        routing.clone(),
        telemetry.clone(),
        prepare(parts.clone()),
        externals.clone(),
    );
    let env_vars = EnvVars::new(n(), promotions.clone(), decisions.clone());
    let (wakes, ready) = (wakes.clone(), Arc::new(AtomicBool::new(false)));
    let commands = Arc::new(Commands {
        wakes,
        sleeper,
        deployments,
        promotions,
        counts,
        previews,
        workers,
        schedules,
        collector,
        one_offs,
        env_vars,
        decisions,
    });
    let edge = Edge {
        ground,
        woken,
        routing,
        retirer,
        commands,
        parts,
        reloader,
        serving,
        exchanges,
        ready,
        externals,
        certificates,
        orders,
    };
    Ok((edge, publisher))
}

fn woken(given: &Given<'_>, ground: &Ground, operator: Arc<OperatorSecrets>) -> Woken {
    let config = given.config;
    let Ground { node, runner, telemetry, credentials, artifacts, .. } = ground;
    let n = || node.clone();
    let secrets = ProcessSecrets { operator, credentials: credentials.clone(), admin: given.admin };
    let backoff = config.runner.backoff;

    let allocations = Allocations::new(n(), runner.clone());
    let starts = Starts::new(
        n(),
        runner.clone(),
        artifacts.clone(),
        Arc::new(secrets),
        config.runner.parallel_starts,
    );
    let inheritance = Inheritance::new(n(), runner.clone(), starts.clone(), allocations.clone());
    let exits = Exits::new(n(), runner.clone(), allocations.clone(), backoff);
    let work = WakeWork::new(
        n(),
        starts.clone(),
        allocations.clone(),
        exits.clone(),
        telemetry.clone(),
        backoff,
    );
    let wakes = Wakes::new(Executor::new(n(), work));
    let queues = {
        let wakes = wakes.clone();
        let again = Box::new(move |e: &Environment| wakes.wake_detached(e));
        let Node { snapshots, clock, entropy, .. } = n();
        HoldQueues::new(hold_limits(config), snapshots, clock, entropy, again)
    };
    let sockets = Sockets::new(node.clock.clone(), node.entropy.clone());
    Woken { allocations, starts, wakes, exits, inheritance, queues, sockets }
}

/// What is told of a reload, and the apps that this edge does not run.
fn parts(
    given: &Given<'_>,
    ground: &Ground,
    woken: &Woken,
    sessions: Arc<Sessions>,
) -> Result<(Parts, Externals)> {
    let Given { config, secure, .. } = given;
    let node = &ground.node;
    let (tell, externals) = tokio::sync::watch::channel(Arc::new(external_apps(config)));
    let admission = Arc::new(Places::default());
    admission.set_most(max_connections(config));
    let parts = Parts {
        secrets: SecretValues::read(config),
        externals: Arc::new(tell),
        pools: Arc::new(Pools::new(node.snapshots.clone(), given.runtime.clone())),
        queues: woken.queues.clone(),
        limits: Arc::new(ArcSwap::from_pointee(proxy_limits(config))),
        budget: BodyBudget::new(config.limits.max_buffered_bytes),
        telemetry: ground.telemetry.clone(),
        access: given.access.clone(),
        sessions,
        clock: node.clock.clone(),
        entropy: node.entropy.clone(),
        rules: Arc::new(ArcSwap::from_pointee(accept_rules(config))),
        admission,
        secure: secure.to_vec(),
        runner: ground.runner.clone(),
        policies: Arc::new(ArcSwap::from_pointee(policies(config, secure)?)),
    };
    Ok((parts, externals))
}

fn serving(
    given: &Given<'_>,
    ground: &Ground,
    woken: &Woken,
    parts: &Parts,
    exchanges: Arc<Exchanges>,
    validations: Arc<ArcSwap<Validations>>,
) -> Arc<Serving> {
    let (config, node) = (given.config, &ground.node);
    let gate = Gate {
        secrets: Arc::new(VerifyingSecrets(parts.secrets.clone())),
        ledger: ground.ledger.clone(),
        audit: ground.audit.clone(),
        budget: parts.budget.clone(),
        ahead: config.limits.client.h2_window.into(),
        exchanges,
        attempts: Attempts::default(),
        limits: parts.limits.clone(),
        snapshots: node.snapshots.clone(),
        queues: woken.queues.clone(),
        wakes: woken.wakes.clone(),
        exits: woken.exits.clone(),
        clock: node.clock.clone(),
        entropy: node.entropy.clone(),
        sessions: parts.sessions.clone(),
        connections: parts.admission.clone(),
        sockets: woken.sockets.clone(),
        upgrades: Admission::new(UPGRADES),
        telemetry: ground.telemetry.clone(),
    };
    let files = AssetBytes::new(ground.artifacts.clone(), config.assets.memory);
    let proxy = EdgeProxy::new(gate, files, parts.policies.clone(), validations);
    let (threads, client) = (config.server.threads, &config.limits.client);
    Arc::new(proxy::serving(proxy, threads, client, parts.rules.clone()))
}
