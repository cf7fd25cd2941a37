//! Accepts connections and hands them to Pingora's HTTP engine, each with its place, its address
//! and its limits.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::memory::H2Memory;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{ALPN, GetProxyDigest, GetSocketDigest, SocketDigest, Ssl as _, Stream};
use pingora::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::clock::{Clock, Entropy};
use crate::lifecycle::origin::{self, Origin};
use crate::telemetry::{Cut, Telemetry};

use super::admission::{Place, Places, Unproved};
use super::client::{Client, ClientLimits, Phase, Shared};
use super::guard::Guarded;
use super::live::Engine;
use super::proxied;
use super::service::EdgeProxy;
use super::tls::Certificates;
use super::turns::{Turns, Urgency, behind};

/// Connections the kernel may queue before they are accepted; `net.core.somaxconn` bounds it too.
const BACKLOG: u32 = 4096;

/// Bytes of an answer that the kernel takes ahead of what it could send already
/// (`TCP_NOTSENT_LOWAT`, tcp(7)). Its own bound is megabytes for each connection: clients that ask
/// for much and read nothing would have the edge fetch and copy all that. It bounds nothing that is
/// on its way, so a fast client is not slower for it.
const UNSENT: u32 = 128 * 1024;

#[derive(Clone)]
struct NotSentLowAt;

nix::setsockopt_impl!(
    NotSentLowAt,
    libc::IPPROTO_TCP,
    libc::TCP_NOTSENT_LOWAT,
    u32,
    nix::sys::socket::sockopt::SetStruct<u32>
);

#[derive(Clone)]
struct AttachFilter;

nix::setsockopt_impl!(
    AttachFilter,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog,
    nix::sys::socket::sockopt::SetStruct<libc::sock_fprog>
);

/// How long a connection without a request is left open once the edge stops.
const QUIET: Duration = Duration::from_secs(1);

/// A client that resets HTTP/2 streams before they are accepted, or makes the edge reset them
/// (CVE-2023-44487, CVE-2025-8671), is sent away after so many.
const H2_RESETS: usize = 20;

const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Retry-After: 1\r\nCache-Control: no-store\r\n\
    Proxy-Status: vango-edge; error=connection_limit_reached\r\nContent-Length: 0\r\n\r\n";

/// A bound listening socket.
pub struct Listener {
    listener: TcpListener,
    /// Where it listens; the kernel's choice when port 0 was asked for.
    pub address: SocketAddr,
    tls: Option<Tls>,
    /// The service manager has it too, and gives it to the next process.
    shared: bool,
}

/// What a listener with TLS needs.
pub struct Tls {
    /// Performs handshakes.
    pub acceptor: Acceptor,
    /// With these.
    pub certificates: Arc<Certificates>,
    /// `Strict-Transport-Security: max-age` of its answers. Read for each connection.
    pub hsts: Arc<ArcSwap<Option<Duration>>>,
}

/// Binds `address`. `[::]` takes IPv4 clients too, unless `both`: then another listener has `0.0.0.0` on its
/// port.
///
/// # Errors
/// The system's: the address is in use, not ours, or privileged.
pub fn bind(address: SocketAddr, both: bool) -> std::io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if both && address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok(Listener { listener, address, tls: None, shared: false })
}

/// A socket that listens already, handed over by the service manager.
///
/// # Errors
/// The system's, when it is no listening socket.
pub fn adopt(listener: std::net::TcpListener) -> std::io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok(Listener { listener, address, tls: None, shared: true })
}

/// Has the kernel drop every SYN to `listener`, with a filter of four instructions (SO_ATTACH_FILTER, socket(7)):
/// what it has queued can then be taken to the last one. Without it a client that connects between
/// the last accept and the close is reset. One whose SYN was dropped sends another, and is refused then.
/// A handshake whose last segment is still on its way when the listener closes is reset all the same.
fn take_no_new(listener: &TcpListener) -> nix::Result<()> {
    let code = |class: u32, rest: u32| (class | rest) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // A filter of a TCP socket sees the segment from its header on (RFC 9293 §3.1).
    let (flags, syn) = (13, 2);
    let mut program = [
        step(code(libc::BPF_LD, libc::BPF_B | libc::BPF_ABS), 0, 0, flags),
        step(code(libc::BPF_JMP, libc::BPF_JSET | libc::BPF_K), 0, 1, syn),
        step(code(libc::BPF_RET, libc::BPF_K), 0, 0, 0),
        step(code(libc::BPF_RET, libc::BPF_K), 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(listener, AttachFilter, &program)
}

/// The next connection that the kernel has queued; `None` where there is none. The kernel itself is asked: what
/// Tokio knows of a listener is as old as its last look at all sockets, which on a busy machine is before
/// many of them came.
///
/// # Errors
/// The system's: out of descriptors or memory, and the connection stays queued.
fn next_queued(
    listener: &std::net::TcpListener,
) -> std::io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok((tcp, peer)) => {
                tcp.set_nonblocking(true)?;
                return Ok(Some((TcpStream::from_std(tcp)?, peer)));
            }
            // This one is gone again (accept(2)).
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Out of descriptors or memory: the connection stays queued. Spinning on it would take the time that is needed
/// to free some.
async fn not_accepted(address: SocketAddr, e: &std::io::Error) {
    log::warn!("{address}: accept: {e}");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

impl Listener {
    /// Whether it is for HTTPS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The same, for HTTPS.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

/// What connections are taken under; read for each of them.
#[derive(Debug, Clone)]
pub struct AcceptRules {
    /// What a client may take.
    pub limits: ClientLimits,
    /// Who says with a PROXY header for whom it connects.
    pub proxies: Vec<IpNet>,
    /// Whose `X-Forwarded-*` and `Forwarded` count.
    pub trusted: Arc<[IpNet]>,
    /// `Strict-Transport-Security: max-age` of plain listeners' answers to requests that came to a
    /// trusted proxy over HTTPS.
    pub hsts: Option<Duration>,
}

/// HTTP/2 as it is offered; built into the engine.
#[derive(Debug, Clone, Copy)]
pub struct H2Limits {
    /// Streams of a connection at once.
    pub streams: u32,
    /// Bytes of a body that a stream may send ahead.
    pub window: u32,
    /// Bytes that windows may grow to together beyond it, and that answers may hold which wait for their
    /// clients.
    pub memory: usize,
    /// Bytes a second of a response, while a stream's client is waited for; 0 for none.
    pub min_rate: u64,
    /// Bytes of a head.
    pub header_bytes: u32,
    /// Without a stream.
    pub idle: Duration,
}

/// The proxy's HTTP engine and its connections.
pub struct Serving {
    engine: Arc<Engine>,
    stop: watch::Sender<bool>,
    /// Each listener that accepts has a receiver.
    accepting: watch::Sender<()>,
    rules: Arc<ArcSwap<AcceptRules>>,
    admission: Arc<Places>,
    telemetry: Arc<Telemetry>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    turns: Turns,
}

impl Serving {
    /// An engine for `proxy`. `threads` is how many serve, which sizes the pool of connections to
    /// allocations.
    pub fn new(
        proxy: EdgeProxy,
        threads: usize,
        h2: H2Limits,
        rules: Arc<ArcSwap<AcceptRules>>,
    ) -> Self {
        let conf = ServerConf {
            threads,
            // All attempts of one request; what is tried again is decided by the lifecycle.
            max_retries: crate::lifecycle::retry::MAX_ATTEMPTS as usize + 1,
            ..ServerConf::default()
        };
        let Shared { admission, telemetry, clock, entropy } = proxy.shared();
        let mut engine = HttpProxy::new(proxy, Arc::new(conf));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(h2.idle);
        options.h2_memory = Some((H2Memory::new(h2.memory, h2.min_rate), h2.window));
        engine.server_options = Some(options);
        let mut offered = default_h2_options();
        offered
            .max_concurrent_streams(h2.streams)
            .initial_window_size(h2.window)
            .initial_connection_window_size(h2.window.saturating_mul(4))
            .max_header_list_size(h2.header_bytes)
            .max_pending_accept_reset_streams(H2_RESETS)
            .max_local_error_reset_streams(Some(H2_RESETS));
        engine.h2_options = Some(offered);
        engine.handle_init_modules();
        let (stop, _) = watch::channel(false);
        let (accepting, _) = watch::channel(());
        let turns = Turns::new(threads, Arc::clone(&clock));
        Self {
            engine: Arc::new(Engine::new(engine, turns.clone())),
            stop,
            accepting,
            rules,
            admission,
            telemetry,
            clock,
            entropy,
            turns,
        }
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.admission.open()
    }

    /// Accepts until [`Serving::drain`], and then what the kernel has queued: each client that was
    /// connected is served. Errors of single connections end those connections.
    pub async fn accept(self: Arc<Self>, listener: Listener) {
        let mut stopped = self.stop.subscribe();
        let _accepting = self.accepting.subscribe();
        let tls = listener.tls.map(Arc::new);
        let (listener, address, shared) = (listener.listener, listener.address, listener.shared);
        // Accepted sockets inherit it. Without it they only take more memory.
        let _ = setsockopt(&listener, NotSentLowAt, &UNSENT);
        let accepting = self.accept_forever(&listener, address, tls.as_ref());
        // Outside of turns: the end waits for no other task.
        tokio::select! {
            biased;
            _ = stopped.wait_for(|s| *s) => {}
            () = self.turns.run(Urgency::of_acceptor(), accepting) => {}
        }
        if !shared && let Err(e) = take_no_new(&listener) {
            log::warn!("{address}: clients that connect while it is closed are reset: {e}");
        }
        let Ok(listener) = listener.into_std() else { return };
        // Where it takes new ones, they fill it again: not for ever.
        let most = if shared { BACKLOG as usize } else { usize::MAX };
        for _ in 0..most {
            match next_queued(&listener) {
                Ok(None) => break,
                Ok(Some((tcp, peer))) => {
                    self.connected(tcp, peer, tls.as_ref());
                    // One that was displaced must run to give its place back.
                    tokio::task::yield_now().await;
                }
                Err(e) => not_accepted(address, &e).await,
            }
        }
    }

    async fn accept_forever(
        self: &Arc<Self>,
        listener: &TcpListener,
        address: SocketAddr,
        tls: Option<&Arc<Tls>>,
    ) {
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    self.connected(tcp, peer, tls);
                    // Each is a turn of its own. And one that was displaced must run to give its
                    // place back.
                    behind().await;
                }
                Err(e) => not_accepted(address, &e).await,
            }
        }
    }

    fn connected(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr, tls: Option<&Arc<Tls>>) {
        self.admission.make_room();
        let Some(place) = self.admission.take() else {
            self.telemetry.metrics.connections.cut(Cut::Connections);
            if tls.is_none() {
                // As much as its empty buffer takes, which is all of it.
                let _ = tcp.try_write(NO_PLACE);
            }
            return;
        };
        let (serving, tls) = (Arc::clone(self), tls.cloned());
        tokio::spawn(async move { serving.connection(tcp, peer, tls.as_deref(), place).await });
    }

    async fn connection(&self, tcp: TcpStream, peer: SocketAddr, tls: Option<&Tls>, place: Place) {
        let _open = self.telemetry.metrics.connections.opened();
        let (unproved, displacement) = place.unproved();
        let urgency = Arc::<Urgency>::default();
        let undisturbed = self.undisturbed(tcp, peer, tls, place, unproved, Arc::clone(&urgency));
        tokio::select! {
            biased;
            () = displacement.told() => self.telemetry.metrics.connections.cut(Cut::Displaced),
            () = self.turns.run(urgency, undisturbed) => {}
        }
    }

    async fn undisturbed(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        tls: Option<&Tls>,
        mut place: Place,
        unproved: Unproved,
        urgency: Arc<Urgency>,
    ) {
        let began = self.clock.now();
        let rules = self.rules.load_full();
        let within = rules.limits.header_timeout;
        // Boxed: a TLS handshake takes 8 KiB, which the connection gives back when it is over.
        let begun = Box::pin(self.begin(tcp, peer, tls, &rules, &mut place, (unproved, urgency)));
        let Ok(begun) = tokio::time::timeout(within, begun).await else {
            let proxied = origin::is_in(&rules.proxies, peer.ip());
            let why = if proxied { Cut::ProxyHeader } else { Cut::Handshake };
            return self.telemetry.metrics.connections.cut(why);
        };
        match begun {
            Ok((stream, client)) => {
                let multiplexed = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
                if multiplexed {
                    client.enter(Phase::Multiplexed);
                }
                let guarded = Guarded::new(
                    stream,
                    client,
                    Arc::clone(&self.clock),
                    Arc::clone(&self.entropy),
                    began,
                );
                self.serve(Box::new(guarded), multiplexed, &rules.limits).await;
            }
            Err(Some(why)) => self.telemetry.metrics.connections.cut(why),
            Err(None) => {}
        }
        drop(place);
    }

    /// All that comes before HTTP: whose it is, whether that one may, and its handshake.
    async fn begin(
        &self,
        mut tcp: TcpStream,
        peer: SocketAddr,
        tls: Option<&Tls>,
        rules: &AcceptRules,
        place: &mut Place,
        (unproved, urgency): (Unproved, Arc<Urgency>),
    ) -> Result<(Stream, Arc<Client>), Option<Cut>> {
        tcp.set_nodelay(true).map_err(|_| None)?;
        let (mut address, mut secure) = (peer, tls.is_some());
        if origin::is_in(&rules.proxies, peer.ip()) {
            let said = proxied::read(&mut tcp).await.map_err(|_| Some(Cut::ProxyHeader))?;
            address = said.source.unwrap_or(peer);
            secure = said.secure.unwrap_or(secure);
        }
        let origin = Origin::new(address.ip(), secure);
        // A trusted proxy's connections carry many clients.
        let counts = !origin::is_in(&rules.trusted, origin.address);
        if counts && !place.count_for(origin.address, rules.limits.max_per_address) {
            if tls.is_none() {
                let _ = tcp.try_write(NO_PLACE);
            }
            return Err(Some(Cut::Address));
        }
        let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // A new cell is empty.
        let _ = digest.peer_addr.set(Some(address.into()));
        let hsts = tls.map_or(rules.hsts, |t| **t.hsts.load());
        let telemetry = Arc::clone(&self.telemetry);
        let limits = rules.limits.apart(self.entropy.next_u64());
        let trusted = &rules.trusted;
        let client = Client::new(origin, trusted, hsts, limits, telemetry, unproved, urgency);
        let mut socket = Socket::from(tcp);
        socket.set_socket_digest(digest);
        socket.set_proxy_digest(client.digest().map_err(|_| None)?);
        let stream: Stream = match tls {
            Some(tls) => {
                let secure = tls.acceptor.tls_handshake(socket).await;
                let secure = secure.map_err(|_| Some(Cut::Handshake))?;
                let name = secure.get_ssl().and_then(|tls| tls.server_name());
                if let Some(asked) = tls.certificates.asked(name) {
                    client.asked_for(asked);
                }
                Box::new(secure)
            }
            None => Box::new(socket),
        };
        Ok((stream, client))
    }

    async fn serve(&self, stream: Stream, multiplexed: bool, limits: &ClientLimits) {
        let stop = self.stop.subscribe();
        if multiplexed {
            self.engine.process_new(stream, &stop).await;
            return;
        }
        // What Pingora's own loop does, with this connection's limits.
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive((!*stop.borrow()).then_some(limits.idle.as_secs().max(1)));
        session.set_keepalive_reuses_remaining(Some(limits.requests));
        let mut next = self.engine.process_new_http(session, &stop).await;
        while let Some(reused) = next {
            let (stream, settings) = reused.consume();
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            next = self.engine.process_new_http(session, &stop).await;
        }
    }

    /// Stops accepting, lets each connection finish what it is at, and returns when all are closed
    /// or `limit` is over; says how many were left.
    ///
    /// From the first moment each answer says `Connection: close`. A connection on which nothing is
    /// asked is closed only after [`QUIET`]: a client's next request may be on its way to us, and
    /// closing then would lose it.
    pub async fn drain(&self, limit: Duration) -> usize {
        // There may be no receiver when there are no connections.
        self.stop.send_replace(true);
        let quiet = QUIET.min(limit);
        // What is still queued is not counted among the connections before it is accepted.
        let _ = tokio::time::timeout(quiet, self.accepting.closed()).await;
        if self.closed_within(quiet).await == 0 {
            return 0;
        }
        self.engine.cleanup().await;
        self.closed_within(limit - quiet).await
    }

    /// Waits until every connection is closed, for at most `limit`; says how many were left.
    pub async fn closed_within(&self, limit: Duration) -> usize {
        let _ = tokio::time::timeout(limit, self.admission.until_empty()).await;
        self.open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_has_queued_is_taken_to_the_last_and_nothing_more_comes() {
        let Listener { listener, address, .. } =
            bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        // Nothing has looked at the sockets of this runtime yet.
        let clients: Vec<_> = (0..50).map(|_| connect().unwrap()).collect();
        take_no_new(&listener).unwrap();
        assert!(connect().is_err(), "its SYN is dropped");
        let listener = listener.into_std().unwrap();
        let all = std::iter::from_fn(|| next_queued(&listener).unwrap());
        let taken: Vec<_> = all.map(|(_, peer)| peer).collect();
        drop(listener);
        let asked: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        assert_eq!(taken, asked);
        let refused = connect().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
