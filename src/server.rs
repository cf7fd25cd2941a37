//! The composition root: the only place that names adapters, and the only one that knows in which
//! order things start and stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::admin::access::Access;
use crate::admin::{self, Admin};
use crate::config::{AccessLogPath, Config};
use crate::control::{self, Commands};
use crate::node::Node;
use crate::proxy::Issued;
use crate::snapshot::Publisher;
use crate::systemd::{self, Handed};
use crate::telemetry::{self, AccessTarget, Follower, Telemetry, otlp};
use crate::wake::TakenOver;

mod compose;
mod ground;
mod listen;
mod secrets;
mod settings;
mod state;
mod stop;

use compose::{Edge, Woken, compose};
use ground::{Given, Ground};
use listen::{bind, from_here, operators, print_addresses};
use settings::pools;
use state::StateDir;
use stop::{StopSignals, drain, leave};

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
    let (requests, runtime) = (serving.handle().clone(), control.handle().clone());
    let outcome = control.block_on(run_on(file, config, handed, requests, runtime));
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

async fn run_on(
    file: PathBuf,
    config: Config,
    handed: Handed,
    requests: Handle,
    runtime: Handle,
) -> Result<()> {
    raise_descriptor_limit();
    // Signals first: one that comes while starting is not lost.
    let (mut stop, mut hangup) = (StopSignals::new()?, signal(SignalKind::hangup())?);
    let issued = Arc::<Issued>::default();
    // Then the sockets: a second edge fails here, before it touches any state.
    let (listeners, secure) = {
        let _on = requests.enter();
        bind(&config, handed, &issued)?
    };
    let access = Arc::new(ArcSwap::from_pointee(Access::new(&config.admin)?));
    let admin_listener = tokio::net::TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("admin.listen {}", config.admin.listen))?;
    let admin = from_here(admin_listener.local_addr()?);
    let state = StateDir::prepare(&config.state.dir)?;
    let (given, secure) = (access.clone(), &secure[..]);
    let (config, state) = (&config, &state);
    let given = Given { file, config, state, access: given, admin, secure, issued, runtime };
    let (edge, publisher) = compose(given).await?;
    let access_log = access_log(config, &edge.ground.telemetry)?;
    let exporter = exporter(config, &edge)?;

    take_over(&edge, state).await?;
    follow(&edge, publisher, config).await?;
    let loops = spawn_loops(&edge);
    print_addresses(&listeners, &admin_listener)?;
    for listener in listeners {
        let serving = Arc::clone(&edge.serving);
        requests.spawn(async move { serving.accept(listener).await });
    }
    let (stop_admin, stopped) = tokio::sync::oneshot::channel::<()>();
    let bounds = operators(&edge.parts.rules);
    let admin = tokio::spawn(admin::serve(admin_listener, operated(&edge), bounds, async {
        // Dropped or told: both mean to stop.
        let _ = stopped.await;
    }));
    edge.ready.store(true, Ordering::Release);
    log::info!("serving");
    systemd::ready();

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

/// What an earlier process left: adopted, ended or let go of before anything is routed.
async fn take_over(edge: &Edge, state: &StateDir) -> Result<()> {
    let Woken { wakes, inheritance, .. } = &edge.woken;
    let released = wakes.executor.let_go_of_claims().await?;
    match &state.copy_of {
        None => {
            let TakenOver { adopted, ended } = inheritance.take_over().await?;
            if adopted + ended + released > 0 {
                log::info!(
                    "of an earlier process: {adopted} allocations adopted, {ended} ended, \
                     {released} operations claimable again"
                );
            }
        }
        Some(original) => {
            let forgotten = inheritance.forget_copied().await?;
            log::warn!(
                "state.dir {} is a copy of {}, made since this machine started: the {forgotten} \
                 allocations in it belong to the original and are left alone",
                state.path.display(),
                original.display()
            );
        }
    }
    state.keep_identity()?;
    let found = edge.ground.ledger.recover().await.context("the ledger could not be read")?;
    if found.released + found.unknown > 0 {
        // What was released is at peace: nothing was sent.
        let level = if found.unknown > 0 { log::Level::Warn } else { log::Level::Info };
        log::log!(
            level,
            "ledger: an earlier process left {} reservations (released: nothing was sent) and {} \
             requests that were sent (unknown: `vango-edge ledger` lists them)",
            found.released,
            found.unknown
        );
    }
    Ok(())
}

/// Returns once routing shows what is stored, which upstreams are up, and the hosts of `config`.
async fn follow(edge: &Edge, publisher: Publisher, config: &Config) -> Result<()> {
    let (followed, listed) = tokio::sync::oneshot::channel();
    let routing = Arc::clone(&edge.routing);
    let apps = edge.externals.clone();
    tokio::spawn(async move { routing.follow(publisher, apps, followed).await });
    let (shown, showing) = tokio::sync::oneshot::channel();
    let certificates = Arc::clone(&edge.certificates);
    tokio::spawn(async move { certificates.follow(shown).await });
    listed.await.context("the store could not be read")?;
    // What was issued before is served from the first handshake on.
    showing.await.context("the store could not be read")?;
    // No request comes before it is known which upstreams are up.
    let looked_at = pools(config);
    edge.parts.pools.first_look(&looked_at).await;
    edge.parts.pools.watch(looked_at);
    edge.reloader.settle().await.map_err(|errors| anyhow::anyhow!(errors.join("\n")))
}

/// What operators see and command.
fn operated(edge: &Edge) -> Admin {
    let Ground { node, telemetry, artifacts, outputs, ledger, audit, credentials, .. } =
        edge.ground.clone();
    Admin {
        node,
        telemetry,
        artifacts,
        commands: edge.commands.clone(),
        queues: edge.woken.queues.clone(),
        outputs,
        ledger,
        audit,
        sessions: edge.parts.sessions.clone(),
        policies: edge.parts.policies.clone(),
        guesses: Arc::default(),
        reloader: edge.reloader.clone(),
        ready: edge.ready.clone(),
        access: edge.parts.access.clone(),
        credentials,
        certificates: edge.certificates.clone(),
        orders: edge.orders.clone(),
        streams: Arc::new(tokio::sync::Semaphore::new(admin::MOST_STREAMS)),
        batches: Arc::new(tokio::sync::Semaphore::new(admin::MOST_BATCHES)),
    }
}

fn exporter(config: &Config, edge: &Edge) -> Result<Option<Follower>> {
    let Some(base) = config.telemetry.otlp.clone() else { return Ok(None) };
    let Node { name, clock, entropy, .. } = edge.ground.node.clone();
    let target = otlp::Target { base, sample: config.telemetry.sample, node: name.to_string() };
    otlp::start(target, Arc::clone(&edge.ground.telemetry), clock, entropy)
        .map(Some)
        .context("telemetry.otlp")
}

fn access_log(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Option<Follower>> {
    let target = match &config.access_log.path {
        AccessLogPath::Off => return Ok(None),
        AccessLogPath::Stderr => AccessTarget::Stderr,
        AccessLogPath::File(path) => AccessTarget::File(path.clone()),
    };
    telemetry::start_access_log(target, config.access_log.sample, Arc::clone(telemetry))
        .map(Some)
        .with_context(|| format!("access_log.path {:?}", config.access_log.path))
}

/// Starts what runs beside requests; returns what must not go on while the edge takes its leave.
fn spawn_loops(edge: &Edge) -> [JoinHandle<()>; 11] {
    let Ground { ledger, audit, node, outputs, .. } = &edge.ground;
    tokio::spawn(edge.woken.exits.clone().follow());
    tokio::spawn(outputs.clone().sweep());
    let to_expire = ledger.clone();
    tokio::spawn(async move { to_expire.expire().await });
    let to_write = audit.clone();
    tokio::spawn(async move { to_write.write().await });
    let to_trim = audit.clone();
    tokio::spawn(async move { to_trim.trim().await });
    let Commands {
        sleeper,
        promotions,
        collector,
        counts,
        previews,
        workers,
        schedules,
        decisions,
        ..
    } = &*edge.commands;
    [
        tokio::spawn(sleeper.clone().run()),
        tokio::spawn(control::trim(node.clone())),
        tokio::spawn(promotions.clone().run()),
        tokio::spawn(collector.clone().run()),
        tokio::spawn(edge.retirer.clone().run()),
        tokio::spawn(counts.clone().run()),
        tokio::spawn(previews.clone().run()),
        tokio::spawn(workers.clone().run()),
        tokio::spawn(schedules.clone().run()),
        tokio::spawn(decisions.clone().run()),
        tokio::spawn(edge.orders.clone().run()),
    ]
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
