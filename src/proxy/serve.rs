//! Accepts connections and hands them to Pingora's HTTP engine.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest};
use pingora::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

use super::live::Engine;
use super::service::EdgeProxy;

/// Connections the kernel may queue before they are accepted; `net.core.somaxconn` bounds it too.
const BACKLOG: u32 = 4096;

/// How long a connection without a request is left open once the edge stops.
const QUIET: Duration = Duration::from_secs(1);

/// A bound listening socket.
pub struct Listener {
    listener: TcpListener,
    /// Where it listens; the kernel's choice when port 0 was asked for.
    pub address: SocketAddr,
}

/// Binds `address`.
///
/// # Errors
/// The system's: the address is in use, not ours, or privileged.
pub fn bind(address: SocketAddr) -> std::io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok(Listener { listener, address })
}

/// The proxy's HTTP engine and its connections.
pub struct Serving {
    engine: Arc<Engine>,
    stop: watch::Sender<bool>,
    connections: Arc<Connections>,
}

#[derive(Default)]
struct Connections {
    open: AtomicUsize,
    closed: Notify,
}

struct OpenConnection(Arc<Connections>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.closed.notify_waiters();
    }
}

impl Serving {
    /// An engine for `proxy`. A client connection is closed after `keepalive_requests`. `threads`
    /// is how many serve, which sizes the pool of connections to allocations.
    pub fn new(proxy: EdgeProxy, threads: usize, keepalive_requests: u32) -> Self {
        let conf = ServerConf {
            threads,
            // All attempts of one request; what is tried again is decided by the lifecycle.
            max_retries: crate::lifecycle::retry::MAX_ATTEMPTS as usize + 1,
            ..ServerConf::default()
        };
        let mut engine = HttpProxy::new(proxy, Arc::new(conf));
        let mut options = HttpServerOptions::default();
        options.keepalive_request_limit = Some(keepalive_requests);
        engine.server_options = Some(options);
        engine.handle_init_modules();
        let (stop, _) = watch::channel(false);
        Self { engine: Arc::new(Engine::new(engine)), stop, connections: Arc::default() }
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.connections.open.load(Ordering::Acquire)
    }

    /// Accepts until [`Serving::drain`], and then what the kernel has queued: whoever was connected
    /// is served. Errors of single connections end those connections.
    pub async fn accept(&self, listener: Listener) {
        let mut stopped = self.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.listener.accept() => accepted,
                _ = stopped.wait_for(|s| *s) => break,
            };
            match accepted {
                Ok((tcp, peer)) => self.connected(tcp, peer),
                Err(e) => {
                    // Out of descriptors or memory: the connection stays queued. Spinning on it
                    // would take the time that is needed to free some.
                    log::warn!("{}: accept: {e}", listener.address);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        // Those who are still coming fill it again: not for ever.
        for _ in 0..BACKLOG {
            let queued = tokio::time::timeout(Duration::ZERO, listener.listener.accept());
            let Ok(Ok((tcp, peer))) = queued.await else { return };
            self.connected(tcp, peer);
        }
    }

    fn connected(&self, tcp: TcpStream, peer: SocketAddr) {
        if tcp.set_nodelay(true).is_err() {
            return;
        }
        let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // A new cell is empty.
        let _ = digest.peer_addr.set(Some(peer.into()));
        let mut stream = Stream::from(tcp);
        stream.set_socket_digest(digest);
        self.connections.open.fetch_add(1, Ordering::AcqRel);
        let open = OpenConnection(Arc::clone(&self.connections));
        let (engine, stop) = (Arc::clone(&self.engine), self.stop.subscribe());
        tokio::spawn(async move {
            engine.process_new(Box::new(stream), &stop).await;
            drop(open);
        });
    }

    /// Stops accepting, lets each connection finish what it is at, and returns when all are closed
    /// or `limit` is over; says how many were left.
    ///
    /// From the first moment each answer says `Connection: close`. A connection on which nothing is
    /// asked is closed only after [`QUIET`]: a client's next request may be on its way to us, and
    /// closing then would lose it.
    pub async fn drain(&self, limit: Duration) -> usize {
        // Nobody may be listening when there are no connections.
        self.stop.send_replace(true);
        let quiet = QUIET.min(limit);
        if self.closed_within(quiet).await == 0 {
            return 0;
        }
        self.engine.cleanup().await;
        self.closed_within(limit - quiet).await
    }

    /// Waits until every connection is closed, for at most `limit`; says how many were left.
    pub async fn closed_within(&self, limit: Duration) -> usize {
        let all_closed = async {
            loop {
                let closed = self.connections.closed.notified();
                if self.open() == 0 {
                    return;
                }
                // `notified` is armed before the count is read; a second covers keepalive
                // connections that Pingora closes at its own pace.
                let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
            }
        };
        let _ = tokio::time::timeout(limit, all_closed).await;
        self.open()
    }
}
