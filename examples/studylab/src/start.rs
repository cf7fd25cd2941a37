//! From a process to a ready server, and back.
//!
//! The port is opened first and the database beside it: a request that comes in between waits in
//! the listen queue for the millisecond that the database takes, instead of being refused or told
//! to come again. Nothing is accepted before the app is ready, unless `STUDYLAB_READY_DELAY` asks
//! for it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::app::{App, Stop, router};
use crate::assets::Assets;
use crate::database::DatabaseError;
use crate::identity::Identity;
use crate::live::Sessions;
use crate::process;
use crate::reconcile;
use crate::sessions::{self, SessionStore};
use crate::store::Store;
use crate::switches::Switches;

/// Connections that the kernel keeps for us while we are busy accepting others.
const BACKLOG: u32 = 4096;
/// From SIGTERM to the end of the last request: a second less than the contract's stop timeout, so
/// that the counts are written too.
const FINISH_WITHIN: Duration = Duration::from_secs(9);
const WORKERS: usize = 4;

/// Why the process gave up.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No runtime, no signals, no thread.
    #[error("cannot run: {0}")]
    System(#[from] io::Error),
    /// A switch says so.
    #[error("refusing to start: {0}")]
    Asked(String),
    /// The product database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The port is taken or forbidden.
    #[error("cannot listen on {0}: {1}")]
    Port(SocketAddr, io::Error),
}

impl Failure {
    /// 1 system, 3 asked for, 4 database, 5 port (2 is for wrong switches).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::System(_) => 1,
            Self::Asked(_) => 3,
            Self::Database(_) => 4,
            Self::Port(..) => 5,
        }
    }
}

type Opened = oneshot::Receiver<Result<(), DatabaseError>>;

/// Runs until SIGTERM or SIGINT.
pub fn run(switches: Switches) -> Result<(), Failure> {
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let done = runtime.block_on(live_and_stop(switches, began));
    // Requests that outlasted the deadline are not waited for again.
    runtime.shutdown_background();
    done
}

async fn live_and_stop(switches: Switches, began: Instant) -> Result<(), Failure> {
    let stop = stop_signal(switches.ignore_term)?;
    let identity = Identity::from_env();
    let start_key =
        identity.allocation.clone().unwrap_or_else(|| format!("pid-{}", std::process::id()));
    let (store, opened) = Store::open(switches.db.clone(), start_key)?;
    if switches.setsid {
        process::spawn_stray()?;
    }
    let mut stopping = stop.clone();
    let (listener, opened) = tokio::select! {
        up = open_port(&switches, opened) => up?,
        () = stopping.asked() => return Ok(()),
    };
    tokio::spawn(reconcile::forever(store.clone(), switches.reconcile));
    let durable = SessionStore::new(switches.session_store.as_deref(), &store)
        .map_err(|e| Failure::Asked(format!("STUDYLAB_SESSION_STORE: {e}")))?;
    let app = Arc::new(App {
        durable,
        schema: sessions::own_schema(),
        sessions: Sessions::default(),
        assets: Assets::load("public".as_ref()),
        renders: AtomicU64::new(0),
        ready: OnceLock::new(),
        switches,
        identity,
        store,
        began,
        stop,
    });
    tokio::select! {
        served = serve(Arc::clone(&app), listener, opened) => served?,
        () = too_late(app.stop.clone()) => {
            eprintln!("studylab: requests are still open, stopping anyway");
        }
    }
    if let Err(err) = app.store.flush().await {
        eprintln!("studylab: the last counts are lost: {err}");
    }
    Ok(())
}

/// Everything before the port is open, with the switches that keep it from opening.
async fn open_port(switches: &Switches, opened: Opened) -> Result<(TcpListener, Opened), Failure> {
    let refused = match &switches.fail_file {
        _ if switches.fail_start => Some("STUDYLAB_FAIL_START=1".to_owned()),
        Some(file) if file.exists() => Some(format!("{} exists", file.display())),
        _ => None,
    };
    if let Some(why) = refused {
        // The start is counted before it fails.
        database_open(opened).await?;
        return Err(Failure::Asked(why));
    }
    if switches.hang_start {
        eprintln!("studylab: STUDYLAB_HANG_START=1, never listening");
        std::future::pending::<()>().await;
    }
    if let Some(delay) = switches.start_delay {
        sleep(delay).await;
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, switches.port));
    let listener = listen(address).map_err(|err| Failure::Port(address, err))?;
    // One line for a caller that asked for port 0.
    println!("{{\"listening\":\"{}\"}}", listener.local_addr()?);
    Ok((listener, opened))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn database_open(opened: Opened) -> Result<(), Failure> {
    match opened.await {
        Ok(open) => Ok(open?),
        Err(_) => Err(io::Error::other("the database's thread is gone").into()),
    }
}

/// Serves until the stop signal, then until the last request and live socket are done.
async fn serve(app: Arc<App>, listener: TcpListener, opened: Opened) -> Result<(), Failure> {
    let mut opened = Some(opened);
    if app.switches.ready_delay.is_none()
        && let Some(opened) = opened.take()
    {
        database_open(opened).await?;
        become_ready(&app);
    }
    let listener = listener.tap_io(|connection| {
        // Small answers must not wait for the acknowledgement of the one before; without it the
        // connection still works.
        let _ = connection.set_nodelay(true);
    });
    let mut asked_to_stop = app.stop.clone();
    let server = axum::serve(listener, router(Arc::clone(&app)))
        .with_graceful_shutdown(async move { asked_to_stop.asked().await });
    let server = tokio::spawn(server.into_future());
    let mut stop = app.stop.clone();
    tokio::select! {
        failed = after_the_port(&app, opened) => return failed,
        () = stop.asked() => {}
    }
    if let Ok(served) = server.await {
        served?;
    }
    app.sessions.all_gone().await;
    Ok(())
}

/// What is left to happen once requests are accepted. Returns only on a failure.
async fn after_the_port(app: &App, opened: Option<Opened>) -> Result<(), Failure> {
    if let Some(opened) = opened {
        sleep(app.switches.ready_delay.unwrap_or_default()).await;
        database_open(opened).await?;
        become_ready(app);
    }
    if let Some(socket) = &app.switches.notify {
        process::notify_ready(socket)?;
    }
    if let Some(delay) = app.switches.exit_after_ready {
        sleep(delay).await;
        eprintln!("studylab: STUDYLAB_EXIT_AFTER_READY is over");
        std::process::exit(1);
    }
    std::future::pending().await
}

fn become_ready(app: &App) {
    let first = app.ready.set(app.began.elapsed());
    debug_assert!(first.is_ok(), "ready twice");
}

/// Hears SIGTERM and SIGINT from now on.
fn stop_signal(ignore_term: bool) -> io::Result<Stop> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (asked, stop) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {
                    if ignore_term {
                        eprintln!("studylab: STUDYLAB_IGNORE_TERM=1, staying");
                        continue;
                    }
                }
                _ = interrupt.recv() => {}
            }
            asked.send_replace(true);
        }
    });
    Ok(Stop(stop))
}

async fn too_late(mut stop: Stop) {
    stop.asked().await;
    sleep(FINISH_WITHIN).await;
}
