//! What everything else stands on: stores, records, the runner, and where what happens is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use crate::admin::access::Access;
use crate::admin::credential::Credentials;
use crate::artifact::Artifacts;
use crate::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use crate::config::{Config, Running};
use crate::ledger::{Audit, Ledger};
use crate::lifecycle::idempotency::Holder;
use crate::node::Node;
use crate::output::{Dropped, Outputs};
use crate::proxy::Issued;
use crate::runner::{ProcessRunner, Runner};
use crate::session::{HttpStore, KeyRing, RedisStore, SessionRoutes, Sessions, Stores, Tokens};
use crate::snapshot::Publisher;
use crate::store::observed::Observed;
use crate::store::{RocksStore, StateStore};
use crate::telemetry::{Metrics, Ring, Telemetry};

use super::listen::Secure;
use super::secrets::OperatorSecrets;
use super::settings::tell_expiry;
use super::state::StateDir;

/// What the edge is made from.
pub(super) struct Given<'a> {
    /// Where `config` was read from.
    pub(super) file: PathBuf,
    pub(super) config: &'a Config,
    pub(super) state: &'a StateDir,
    pub(super) access: Arc<ArcSwap<Access>>,
    /// Where an app finds the admin API.
    pub(super) admin: SocketAddr,
    pub(super) secure: &'a [Secure],
    /// What listeners show besides their files.
    pub(super) issued: Arc<Issued>,
    /// Where everything runs that is no request.
    pub(super) runtime: Handle,
}

/// What everything else stands on.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) node: Node,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) artifacts: Arc<Artifacts>,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) outputs: Arc<Outputs>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) audit: Arc<Audit>,
    pub(super) credentials: Arc<Credentials>,
    /// Closed last but one.
    pub(super) ledger_store: Arc<RocksStore>,
    /// Closed last.
    pub(super) store: Arc<RocksStore>,
}

/// Opens the stores, and makes what stands on them.
pub(super) async fn ground(given: &Given<'_>, publisher: &Publisher) -> Result<Ground> {
    let Given { config, state, .. } = given;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let (store, ledger_store) = state.open(config, &clock).await?;
    let dir = &state.path;
    let artifacts = Arc::new(Artifacts::local(&dir.join("artifacts"), &dir.join("trees"))?);
    if state.copy_of.is_some() {
        state.forget_processes()?;
    }
    let telemetry =
        Arc::new(Telemetry { metrics: Metrics::new()?, ring: Ring::new(config.trace.ring) });
    let told = Arc::clone(&telemetry);
    let told = Box::new(move |why: Dropped, lines| {
        told.metrics.log_dropped.with_label_values(&[why.name()]).inc_by(lines);
    });
    let outputs = state.outputs(config, &clock, told)?;
    let runner = state.runner_options(config, &clock, Arc::clone(&outputs));
    let runner = Arc::new(ProcessRunner::new(runner)?);
    runner.readiness_over_https(config.server.sees_https());
    let snapshots = publisher.reader();
    tell_expiry(config, &telemetry, &*clock);
    let observed = |store: &Arc<RocksStore>| -> Arc<dyn StateStore> {
        Arc::new(Observed::new(store.clone(), clock.clone(), telemetry.clone()))
    };
    let node = Node {
        name: state.node_name()?.into(),
        config: Arc::new(Running::from_pointee((*config).clone())),
        store: observed(&store),
        snapshots,
        clock: clock.clone(),
        entropy,
        runtime: given.runtime.clone(),
    };
    let (ledger, audit) = ledger(given, &node, observed(&ledger_store));
    let credentials = Arc::new(Credentials::load(dir, &*node.entropy)?);
    Ok(Ground {
        node,
        telemetry,
        artifacts,
        runner,
        outputs,
        ledger,
        audit,
        credentials,
        ledger_store,
        store,
    })
}

fn ledger(given: &Given<'_>, node: &Node, store: Arc<dyn StateStore>) -> (Arc<Ledger>, Arc<Audit>) {
    let config = given.config;
    let first = node.entropy.next_u64() >> 1;
    let audit = Audit::new(store.clone(), node.clock.clone(), config.audit, first);
    let run = format!("{:016x}", node.entropy.next_u64());
    let holder = Holder { node: node.name.to_string(), run };
    let runtime = given.runtime.clone();
    (Ledger::new(store, node.clock.clone(), holder, config.ledger, runtime), audit)
}

pub(super) fn sessions(
    given: &Given<'_>,
    node: &Node,
    secrets: Arc<OperatorSecrets>,
) -> Result<Arc<Sessions>> {
    let Given { config, runtime, .. } = given;
    let Node { store, clock, entropy, .. } = node;
    let affinity = &config.affinity;
    let ring = KeyRing::load(&affinity.keys, &config.state.dir, &**clock, &**entropy)?;
    let routes = SessionRoutes::new(Arc::clone(store), Arc::clone(clock));
    runtime.spawn(Arc::clone(&routes).write());
    let redis = Box::new(RedisStore::new(secrets));
    Ok(Arc::new(Sessions {
        tokens: Tokens::new(ring, affinity.lasts, Arc::clone(entropy)),
        routes,
        stores: Stores::new(redis, Box::new(HttpStore), Arc::clone(clock)),
    }))
}
