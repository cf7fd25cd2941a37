//! The composition root: the only place that names adapters, and the only one that knows in which
//! order things start and stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;

use crate::admin::access::Access;
use crate::admin::credential::Credentials;
use crate::admin::{self, Admin};
use crate::artifact::{Artifacts, AssetBytes};
use crate::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use crate::config::{AccessLogPath, Config, Running, SecretValues};
use crate::control::{Control, Externals, Reloader, TakenOver};
use crate::id::Environment;
use crate::ledger::{Audit, AuditLimits, Ledger, LedgerLimits};
use crate::lifecycle::enter::Policies;
use crate::lifecycle::idempotency::Holder;
use crate::proxy::{
    AcceptRules, Attempts, EdgeProxy, Exchanges, Gate, H2Limits, Places, Pools, ProxyParts, Room,
    Serving,
};
use crate::runner::{ProcessRunner, Runner};
use crate::session::{HttpStore, KeyRing, RedisStore, SessionRoutes, Sessions, Stores, Tokens};
use crate::snapshot::Publisher;
use crate::sockets::Sockets;
use crate::store::observed::Observed;
use crate::store::{RocksStore, StateStore};
use crate::systemd::{self, Handed};
use crate::telemetry::{AccessLog, AccessTarget, Metrics, Ring, Telemetry, otlp};
use crate::wake::hold::HoldQueues;
use crate::wake::machine::BackoffPolicy;
use crate::wake::worker::Worker;

mod listen;
mod secrets;
mod settings;
mod state;
mod stop;

use listen::{Secure, bind, from_here, operators, print_addresses};
use secrets::{OperatorSecrets, ProcessSecrets, VerifyingSecrets};
use settings::{
    Parts, accept_rules, external_apps, hold_limits, max_connections, policies, pools, prepare,
    proxy_limits, tell_expiry,
};
use state::StateDir;
use stop::{Signals, drain, leave};

/// Runs the edge in the foreground until it is told to stop. `file` is where `config` was read from
/// and is read from again.
///
/// # Errors
/// What kept it from starting, or from stopping cleanly.
pub fn run(file: PathBuf, config: Config) -> Result<()> {
    // No other user of this machine may read logs, artifacts and records.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let handed = Handed::take();
    // Requests on one runtime, everything else on another: a wake or a scrape never takes a
    // thread that a request needs.
    let serving = runtime("edge", config.server.threads, LOOKS_AFTER)?;
    let control = runtime("control", 2, 61)?;
    let outcome =
        control.block_on(run_on(file, config, handed, serving.handle().clone(), &control));
    serving.shutdown_timeout(Duration::from_secs(1));
    control.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Tasks that a thread runs before it looks whether sockets are ready, however many there are to run
/// (Tokio's own default is 61). A wave of new or of ending connections is as many tasks, of some 30 µs
/// each, and what is hot meanwhile waits for a look on each of its ways.
const LOOKS_AFTER: u32 = 16;

fn runtime(name: &str, threads: usize, looks_after: u32) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .worker_threads(threads.max(1))
        .event_interval(looks_after)
        .enable_all()
        .build()
        .with_context(|| format!("the {name} runtime could not be started"))
}

/// What is running.
struct Edge {
    control: Arc<Control>,
    runner: Arc<dyn Runner>,
    serving: Arc<Serving>,
    reloader: Arc<Reloader>,
    ledger: Arc<Ledger>,
    audit: Arc<Audit>,
    credentials: Arc<Credentials>,
    sessions: Arc<Sessions>,
    exchanges: Arc<Exchanges>,
    rules: Arc<ArcSwap<AcceptRules>>,
    policies: Arc<ArcSwap<Policies>>,
    ready: Arc<AtomicBool>,
    pools: Arc<Pools>,
    externals: Externals,
    /// Closed last but one.
    ledger_store: Arc<RocksStore>,
    /// Closed last.
    store: Arc<RocksStore>,
}

async fn run_on(
    file: PathBuf,
    config: Config,
    handed: Handed,
    requests: tokio::runtime::Handle,
    runtime: &tokio::runtime::Runtime,
) -> Result<()> {
    raise_descriptor_limit();
    // Signals first: one that comes while starting is not lost.
    let signals = Signals::new()?;
    // Then the sockets: a second edge fails here, before it touches any state.
    let (listeners, secure) = {
        let _on = requests.enter();
        bind(&config, handed)?
    };
    let access = Arc::new(ArcSwap::from_pointee(Access::new(&config.admin)?));
    let admin_listener = tokio::net::TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("admin.listen {}", config.admin.listen))?;

    let at = from_here(admin_listener.local_addr()?);
    let state = StateDir::prepare(&config.state.dir)?;
    let (edge, publisher) = compose(file, &config, &state, &access, at, &secure, runtime).await?;
    let access_log = access_log(&config, &edge.control.telemetry)?;
    let exporter = exporter(&config, &edge)?;
    let taken = match &state.copy_of {
        None => edge.control.take_over().await?,
        Some(original) => {
            let forgotten = edge.control.forget_copied().await?;
            log::warn!(
                "state.dir {} is a copy of {}, made since this machine started: the {forgotten} \
                 allocations in it belong to the original and are left alone",
                state.path.display(),
                original.display()
            );
            TakenOver::default()
        }
    };
    state.keep_identity()?;
    if taken != TakenOver::default() {
        let TakenOver { adopted, ended, released } = taken;
        log::info!(
            "of an earlier process: {adopted} allocations adopted, {ended} ended, {released} \
             operations claimable again"
        );
    }
    let found = edge.ledger.recover().await.context("the ledger could not be read")?;
    if found.released + found.unknown > 0 {
        log::warn!(
            "ledger: an earlier process left {} reservations (released: nothing was sent) and {} \
             requests that were sent (unknown: `vango-edge ledger` lists them)",
            found.released,
            found.unknown
        );
    }
    let (followed, listed) = tokio::sync::oneshot::channel();
    let control = Arc::clone(&edge.control);
    let apps = edge.externals.clone();
    tokio::spawn(async move { control.follow(publisher, apps, followed).await });
    listed.await.context("the store could not be read")?;
    // No request comes before it is known which upstreams are up.
    let looked_at = pools(&config);
    edge.pools.first_look(&looked_at).await;
    edge.pools.watch(looked_at);
    edge.reloader.settle().await.map_err(|errors| anyhow::anyhow!(errors.join("\n")))?;
    let loops = spawn_loops(&edge);

    print_addresses(&listeners, &admin_listener)?;
    for listener in listeners {
        let serving = Arc::clone(&edge.serving);
        requests.spawn(async move { serving.accept(listener).await });
    }
    let (stop_admin, stopped) = tokio::sync::oneshot::channel::<()>();
    let admin = Admin {
        control: Arc::clone(&edge.control),
        runner: Arc::clone(&edge.runner),
        ledger: Arc::clone(&edge.ledger),
        audit: Arc::clone(&edge.audit),
        sessions: Arc::clone(&edge.sessions),
        policies: Arc::clone(&edge.policies),
        guesses: Arc::default(),
        reloader: Arc::clone(&edge.reloader),
        ready: Arc::clone(&edge.ready),
        access,
        credentials: Arc::clone(&edge.credentials),
        streams: Arc::new(tokio::sync::Semaphore::new(admin::MOST_STREAMS)),
    };
    let bounds = operators(&edge.rules);
    let admin = tokio::spawn(admin::serve(admin_listener, admin, bounds, async {
        // Dropped or told: both mean to stop.
        let _ = stopped.await;
    }));
    edge.ready.store(true, Ordering::Release);
    log::info!("serving");
    systemd::ready();

    let Signals { mut stop, mut hangup } = signals;
    let reloader = Arc::clone(&edge.reloader);
    // One after another: signals that come while one is at work are one more.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            systemd::reloading();
            reloader.reload().await;
            systemd::ready();
        }
    });
    stop.told().await;
    drain(&edge, &mut stop).await;
    for task in loops {
        task.abort();
    }
    leave(&edge).await;
    drop(stop_admin);
    let _ = tokio::time::timeout(Duration::from_secs(2), admin).await;
    // Last: it writes what is left.
    drop(access_log);
    drop(exporter);
    Ok(())
}

fn exporter(config: &Config, edge: &Edge) -> Result<Option<otlp::Exporter>> {
    let Some(base) = config.telemetry.otlp.clone() else { return Ok(None) };
    let control = &edge.control;
    let node = control.worker.node.clone();
    let target = otlp::Target { base, sample: config.telemetry.sample, node };
    let (clock, entropy) = (Arc::clone(&control.clock), Arc::clone(&control.entropy));
    otlp::Exporter::start(target, Arc::clone(&control.telemetry), clock, entropy)
        .map(Some)
        .context("telemetry.otlp")
}

fn access_log(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Option<AccessLog>> {
    let target = match &config.access_log.path {
        AccessLogPath::Off => return Ok(None),
        AccessLogPath::Stderr => AccessTarget::Stderr,
        AccessLogPath::File(path) => AccessTarget::File(path.clone()),
    };
    AccessLog::start(target, config.access_log.sample, Arc::clone(telemetry))
        .map(Some)
        .with_context(|| format!("access_log.path {:?}", config.access_log.path))
}

async fn compose(
    file: PathBuf,
    config: &Config,
    state: &StateDir,
    access: &Arc<ArcSwap<Access>>,
    admin: SocketAddr,
    secure: &[Secure],
    runtime: &tokio::runtime::Runtime,
) -> Result<(Edge, Publisher)> {
    let running = Running::new(config.clone());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let (on_disk, ledger_on_disk) = state.open(config, &clock).await?;
    let dir = &state.path;
    let artifacts = Arc::new(Artifacts::local(&dir.join("artifacts"), &dir.join("trees"))?);
    let files = Arc::new(AssetBytes::new(Arc::clone(&artifacts), config.assets.memory));
    if state.copy_of.is_some() {
        state.forget_processes()?;
    }
    let runner: Arc<dyn Runner> =
        Arc::new(ProcessRunner::new(state.runner_options(config, &clock))?);

    let publisher = Publisher::new();
    let snapshots = publisher.reader();
    let telemetry = Arc::new(Telemetry {
        metrics: Metrics::new(snapshots.clone())?,
        ring: Ring::new(config.trace.ring),
    });
    tell_expiry(config, &telemetry, &*clock);
    let store: Arc<dyn StateStore> = Arc::new(Observed::new(
        Arc::clone(&on_disk) as _,
        Arc::clone(&clock),
        Arc::clone(&telemetry) as _,
    ));
    let secrets = Arc::new(OperatorSecrets(Arc::clone(&running)));
    let credentials = Arc::new(Credentials::load(dir, &*entropy)?);
    let process_secrets = ProcessSecrets {
        operator: Arc::clone(&secrets),
        credentials: Arc::clone(&credentials),
        admin,
    };
    let node = state.node_name()?;
    let ledger_store: Arc<dyn StateStore> = Arc::new(Observed::new(
        Arc::clone(&ledger_on_disk) as _,
        Arc::clone(&clock),
        Arc::clone(&telemetry) as _,
    ));
    let limits = AuditLimits { max_rows: config.audit.max_rows, max_age: config.audit.max_age };
    let audit =
        Audit::new(Arc::clone(&ledger_store), Arc::clone(&clock), limits, entropy.next_u64() >> 1);
    let ledger = Ledger::new(
        ledger_store,
        Arc::clone(&clock),
        Holder { node: node.clone(), run: format!("{:016x}", entropy.next_u64()) },
        LedgerLimits {
            max_records: config.ledger.max_records,
            max_response: usize::try_from(config.ledger.max_response).unwrap_or(usize::MAX),
        },
        runtime.handle().clone(),
    );
    let worker = Arc::new(Worker {
        node,
        store: Arc::clone(&store),
        runner: Arc::clone(&runner),
        artifacts: Arc::clone(&artifacts),
        snapshots: snapshots.clone(),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        secrets: Arc::new(process_secrets),
        backoff: BackoffPolicy {
            first: config.runner.backoff.first,
            max: config.runner.backoff.max,
        },
        starts: tokio::sync::Semaphore::new(config.runner.parallel_starts),
        observer: Arc::clone(&telemetry) as _,
        runtime: runtime.handle().clone(),
        executing: std::sync::Mutex::default(),
        doubted: std::sync::Mutex::default(),
        asking: std::sync::Mutex::default(),
    });
    let queues = {
        let worker = Arc::clone(&worker);
        let wake_again = Box::new(move |e: &Environment| worker.wake_detached(e));
        let (clock, entropy) = (Arc::clone(&clock), Arc::clone(&entropy));
        HoldQueues::new(hold_limits(config), snapshots.clone(), clock, entropy, wake_again)
    };
    let sessions = sessions(config, &store, &clock, &entropy, secrets, runtime)?;
    let sockets = Sockets::new(Arc::clone(&clock), Arc::clone(&entropy));
    let control = Arc::new(Control {
        store,
        sockets: Arc::clone(&sockets),
        worker: Arc::clone(&worker),
        queues: Arc::clone(&queues),
        artifacts,
        snapshots: snapshots.clone(),
        config: running,
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        telemetry: Arc::clone(&telemetry),
        decided: {
            let audit = Arc::clone(&audit);
            Box::new(move |row| audit.soon(row))
        },
        shown: tokio::sync::watch::Sender::default(),
        changing_owners: tokio::sync::Mutex::default(),
        collecting: tokio::sync::RwLock::default(),
        promoting: std::sync::Mutex::default(),
        retiring: std::sync::Mutex::default(),
        counting: std::sync::Mutex::default(),
        sleeping: std::sync::Mutex::default(),
    });
    let limits = Arc::new(ArcSwap::from_pointee(proxy_limits(config)));
    let rules = Arc::new(ArcSwap::from_pointee(accept_rules(config)));
    let admission = Arc::new(Places::default());
    admission.set_most(max_connections(config));
    let policies = Arc::new(ArcSwap::from_pointee(policies(config, secure)?));
    let exchanges = Arc::new(Exchanges::default());
    let room = Room::new(config.limits.max_buffered_bytes);
    let verifying = SecretValues::read(config);
    let (tell_externals, externals) = tokio::sync::watch::channel(Arc::new(external_apps(config)));
    let pools = Arc::new(Pools::new(snapshots.clone(), runtime.handle().clone()));
    runner.readiness_over_https(config.server.sees_https());
    let prepare = prepare(Parts {
        secrets: Arc::clone(&verifying),
        policies: Arc::clone(&policies),
        externals: Arc::new(tell_externals),
        pools: Arc::clone(&pools),
        queues: Arc::clone(&queues),
        limits: Arc::clone(&limits),
        room: Arc::clone(&room),
        telemetry: Arc::clone(&telemetry),
        access: Arc::clone(access),
        sessions: Arc::clone(&sessions),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        rules: Arc::clone(&rules),
        admission: Arc::clone(&admission),
        secure: secure.to_vec(),
        runner: Arc::clone(&runner),
    });
    let gate = Gate {
        secrets: Arc::new(VerifyingSecrets(verifying)),
        ledger: Arc::clone(&ledger),
        audit: Arc::clone(&audit),
        room,
        exchanges: Arc::clone(&exchanges),
        attempts: Attempts::default(),
        limits: Arc::clone(&limits),
        snapshots,
        queues,
        worker,
        clock,
        entropy,
        sessions: Arc::clone(&sessions),
        admission,
    };
    let proxy = EdgeProxy::new(ProxyParts {
        gate,
        sockets,
        files,
        policies: Arc::clone(&policies),
        telemetry,
        limits,
    });
    let client = &config.limits.client;
    let h2 = H2Limits {
        streams: client.h2_streams,
        window: client.h2_window,
        memory: client.h2_memory,
        min_rate: client.min_response_rate,
        header_bytes: u32::try_from(client.header_bytes).unwrap_or(u32::MAX),
        idle: client.idle,
    };
    let serving = Serving::new(proxy, config.server.threads, h2, Arc::clone(&rules));
    let edge = Edge {
        reloader: Arc::new(Reloader::new(file, Arc::clone(&control), prepare, externals.clone())),
        control,
        runner,
        serving: Arc::new(serving),
        ledger,
        audit,
        credentials,
        sessions,
        exchanges,
        rules,
        policies,
        ready: Arc::new(AtomicBool::new(false)),
        pools,
        externals,
        ledger_store: ledger_on_disk,
        store: on_disk,
    };
    Ok((edge, publisher))
}

fn sessions(
    config: &Config,
    store: &Arc<dyn StateStore>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    secrets: Arc<OperatorSecrets>,
    runtime: &tokio::runtime::Runtime,
) -> Result<Arc<Sessions>> {
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

/// Starts what runs beside requests; returns what must not go on while the edge takes its leave.
fn spawn_loops(edge: &Edge) -> [tokio::task::JoinHandle<()>; 7] {
    if let Some(exits) = edge.runner.exits() {
        let control = Arc::clone(&edge.control);
        tokio::spawn(async move { control.take_exits(exits).await });
    }
    let control = Arc::clone(&edge.control);
    let idle = tokio::spawn(async move { control.put_idle_to_sleep().await });
    let control = Arc::clone(&edge.control);
    let trim = tokio::spawn(async move { control.trim().await });
    let ledger = Arc::clone(&edge.ledger);
    tokio::spawn(async move { ledger.expire().await });
    let audit = Arc::clone(&edge.audit);
    tokio::spawn(async move { audit.write().await });
    let audit = Arc::clone(&edge.audit);
    tokio::spawn(async move { audit.trim().await });
    let control = Arc::clone(&edge.control);
    let promotions = tokio::spawn(async move { control.carry_promotions().await });
    let control = Arc::clone(&edge.control);
    let collect = tokio::spawn(async move { control.collect_forever().await });
    let control = Arc::clone(&edge.control);
    let retire = tokio::spawn(async move { control.retire().await });
    let control = Arc::clone(&edge.control);
    let evidence = tokio::spawn(async move { control.count_evidence().await });
    let control = Arc::clone(&edge.control);
    let previews = tokio::spawn(async move { control.remove_old_previews().await });
    [idle, trim, promotions, collect, retire, evidence, previews]
}

/// Ten thousand held requests are ten thousand descriptors.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        log::warn!("the limit of open files stays as it is: {e}");
    }
}
