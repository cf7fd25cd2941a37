//! The admin listener's connections, under the bounds that clients' connections have: how many there
//! are, how long a head may take and how large it is, how long a connection may be idle. Without them
//! a client that reaches the port holds descriptors and memory for as long as it likes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use crate::lifecycle::facts::check_head;

use super::problem::Problem;

/// What each connection may take.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// From a connection's begin, or a later request's first byte, to the end of the head.
    pub timeout: Duration,
    /// Bytes of a head.
    pub bytes: usize,
    /// Header fields.
    pub fields: usize,
    /// Between requests.
    pub idle: Duration,
}

/// A connection's place; given back when dropped.
pub type Place = Box<dyn Send>;

/// What connections are taken under; asked for each of them, so that a reload counts.
pub struct Bounds {
    /// A place for one from this address, if there is one.
    pub admit: Box<dyn Fn(IpAddr) -> Option<Place> + Send + Sync>,
    /// What it may take.
    pub heads: Box<dyn Fn() -> HeadLimits + Send + Sync>,
}

/// Least room that the HTTP engine wants for a head.
const LEAST_BYTES: usize = 8192;

const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Retry-After: 1\r\nCache-Control: no-store\r\nContent-Length: 0\r\n\r\n";

/// Serves `router` until `stop` resolves, and then what each connection is at.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send,
) {
    let (tell, told) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => match (bounds.admit)(peer.ip()) {
                Some(place) => {
                    let service = TowerToHyperService::new(router.clone());
                    let (heads, told) = ((bounds.heads)(), told.clone());
                    open.spawn(async move {
                        connection(tcp, service, heads, told).await;
                        drop(place);
                    });
                }
                // As much as its empty buffer takes, which is all of it.
                None => drop(tcp.try_write(NO_PLACE)),
            },
            Err(e) => {
                // Out of descriptors: the connection stays queued until some are free.
                log::warn!("admin: accept: {e}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    drop(listener);
    tell.send_replace(true);
    while open.join_next().await.is_some() {}
}

async fn connection(
    tcp: TcpStream,
    service: TowerToHyperService<Router>,
    heads: HeadLimits,
    mut told: watch::Receiver<bool>,
) {
    let _ = tcp.set_nodelay(true);
    let phase = Phase::default();
    let (tcp, out) = tcp.into_split();
    let timed = Timed { tcp, phase: phase.clone(), within: heads.timeout, timer: None };
    let service = service_fn(|request: Request<Incoming>| {
        let busy = phase.busy();
        // The engine reads into a buffer that grows by more than one byte at a time: it stops a head
        // that never ends, and this one says where.
        let target = request.uri().path_and_query().map_or(0, |t| t.as_str().len());
        let fits = check_head(request.headers(), target, heads.bytes, heads.fields);
        let answer = fits.map(|()| service.call(request));
        async move {
            let answer = match answer {
                Ok(answer) => answer.await?,
                Err(why) => too_large(&why.to_string()),
            };
            // The body has the guard: with its end the connection is idle.
            let held = move |body: Body| {
                Body::new(body.map_err(move |e| {
                    let _ = &busy;
                    e
                }))
            };
            Ok::<_, Infallible>(answer.map(held))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Counts from the end of the answer before: the time between requests. A head that has begun
        // has less, by `Timed`.
        .header_read_timeout(heads.idle.max(heads.timeout))
        .max_headers(heads.fields)
        .max_buf_size(heads.bytes.max(LEAST_BYTES));
    let mut served =
        pin!(http.serve_connection(TokioIo::new(tokio::io::join(timed, out)), service));
    tokio::select! {
        _ = served.as_mut() => return,
        _ = told.wait_for(|told| *told) => served.as_mut().graceful_shutdown(),
    }
    // What it ends with is its client's matter.
    let _ = served.await;
}

fn too_large(why: &str) -> Response {
    Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why).into_response()
}

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

/// Where a connection is; a head is awaited first.
#[derive(Clone, Default)]
struct Phase(Arc<AtomicU8>);

impl Phase {
    /// A request is at work until the guard is dropped.
    fn busy(&self) -> Busy {
        self.0.store(BUSY, Ordering::Release);
        Busy(self.clone())
    }
}

struct Busy(Phase);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Release);
    }
}

/// What is read, which ends when a head takes too long, whatever drips.
struct Timed {
    tcp: OwnedReadHalf,
    phase: Phase,
    within: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tcp).poll_read(cx, buf);
        let phase = &this.phase.0;
        if read.is_ready() && buf.filled().len() > before {
            let _ = phase.compare_exchange(IDLE, HEAD, Ordering::AcqRel, Ordering::Acquire);
        }
        if phase.load(Ordering::Acquire) != HEAD {
            this.timer = None;
        } else if read.is_pending() {
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.within)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}
