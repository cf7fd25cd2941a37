//! Accepts connections and hands them to Pingora's HTTP engine, each with its place, its address
//! and its limits.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use nix::sys::socket::setsockopt;
use pingora::apps::{HttpServerApp, ReusedHttpStream, ServerApp as _};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{ALPN, GetProxyDigest, GetSocketDigest, SocketDigest, Ssl as _, Stream};
use pingora::server::ShutdownWatch;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use vango_edge_core::clock::{Clock, Entropy};
use vango_edge_core::lifecycle::origin::{self, Origin};

use crate::admission::{Place, Places, Unproved};
use crate::client::{Client, Phase};
use crate::guard::Guarded;
use crate::hello;
use crate::limits::AcceptRules;
use crate::listen::{BACKLOG, Listener, NotSentLowAt, Tls, UNSENT, next_queued, take_no_new};
use crate::observer::{Cut, Observer};
use crate::proxied;
use crate::turns::{self, Urgency, behind};

/// How long a connection without a request is left open once the edge stops.
const QUIET: Duration = Duration::from_secs(1);

const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Retry-After: 1\r\nCache-Control: no-store\r\n\
    Proxy-Status: vango-edge; error=connection_limit_reached\r\nContent-Length: 0\r\n\r\n";

/// The proxy's HTTP engine and its connections.
pub struct Serving<A> {
    engine: Arc<A>,
    stop: watch::Sender<bool>,
    /// Each listener that accepts has a receiver.
    accepting: watch::Sender<()>,
    rules: Arc<ArcSwap<AcceptRules>>,
    admission: Arc<Places>,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl<A: HttpServerApp + Send + Sync + 'static> Serving<A> {
    /// Connections for `engine`, taken under `rules` as they are when each comes.
    pub fn new(
        engine: Arc<A>,
        rules: Arc<ArcSwap<AcceptRules>>,
        admission: Arc<Places>,
        observer: Arc<dyn Observer>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let (stop, _) = watch::channel(false);
        let (accepting, _) = watch::channel(());
        Self { engine, stop, accepting, rules, admission, observer, clock, entropy }
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
            () = turns::run(&self.clock, Urgency::of_acceptor(), accepting) => {}
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
            self.observer.cut(Cut::Connections);
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
        let _open = self.observer.opened();
        let (unproved, displacement) = place.unproved();
        let urgency = Arc::<Urgency>::default();
        let undisturbed = self.undisturbed(tcp, peer, tls, place, unproved, Arc::clone(&urgency));
        tokio::select! {
            biased;
            () = displacement.told() => self.observer.cut(Cut::Displaced),
            () = turns::run(&self.clock, urgency, undisturbed) => {}
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
            // A plain one is waited for only to say whether it speaks HTTP/2.
            let why = match tls {
                _ if proxied => Cut::ProxyHeader,
                Some(_) => Cut::Handshake,
                None => Cut::HeaderTime,
            };
            return self.observer.cut(why);
        };
        match begun {
            Ok((stream, client)) => {
                let multiplexed = client.phase().0 == Phase::Multiplexed;
                let guarded = Guarded::new(stream, client, Arc::clone(&self.clock), began);
                self.serve(Box::new(guarded), multiplexed, &rules).await;
            }
            Err(Some(why)) => self.observer.cut(why),
            Err(None) => {}
        }
        drop(place);
    }

    /// Whether HTTP/2 begins on a plain connection. HTTP/1.1 has no method `PRI` (RFC 9113 §3.4), so that its
    /// first bytes say which it is; the rest of the preface is looked at by what reads it.
    async fn begins_h2(&self, stream: &mut Stream) -> Result<bool, Option<Cut>> {
        // No request of HTTP/1 is shorter, and what `Guarded` looks for in the first bytes is in them.
        let mut first = [0; 5];
        let mut stop = self.stop.subscribe();
        tokio::select! {
            biased;
            peeked = stream.try_peek(&mut first) => match peeked {
                Ok(peeked) => Ok(peeked && first == *b"PRI *"),
                Err(_) => Err(None),
            },
            // It says nothing, and is closed as such connections are.
            _ = stop.wait_for(|s| *s) => Ok(false),
        }
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
        if counts && !place.count_for(origin.address, rules.limits.max_connections_per_address) {
            if tls.is_none() {
                let _ = tcp.try_write(NO_PLACE);
            }
            return Err(Some(Cut::Address));
        }
        let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // A new cell is empty.
        let _ = digest.peer_addr.set(Some(address.into()));
        let hsts = tls.map_or(rules.hsts, |t| **t.hsts.load());
        let observer = Arc::clone(&self.observer);
        let limits = rules.limits.apart(self.entropy.next_u64());
        let trusted = &rules.trusted;
        let client = Client::new(origin, trusted, hsts, limits, observer, unproved, urgency);
        let mut unread = Vec::new();
        if let Some(tls) = tls.filter(|tls| tls.certificates.may_have_none()) {
            let read = hello::read(&mut tcp, &tls.certificates).await;
            unread = read.ok().flatten().ok_or(Some(Cut::Handshake))?;
        }
        let mut socket = Socket::from(tcp);
        socket.rewind(&unread);
        socket.set_socket_digest(digest);
        socket.set_proxy_digest(client.digest().map_err(|_| None)?);
        let mut stream: Stream = match tls {
            Some(tls) => {
                let secure = tls.acceptor.tls_handshake(socket).await;
                let secure = secure.map_err(|_| Some(Cut::Handshake))?;
                // Of what the acceptor offers only an authority's look has no name of Pingora's: nothing follows
                // such a handshake (RFC 8737 §3).
                if matches!(secure.selected_alpn_proto(), Some(ALPN::Custom(_))) {
                    return Err(None);
                }
                let name = secure.get_ssl().and_then(|tls| tls.server_name());
                if let Some(asked) = tls.certificates.asked(name) {
                    client.asked_for(asked);
                }
                Box::new(secure)
            }
            None => Box::new(socket),
        };
        let h2 = match stream.selected_alpn_proto() {
            Some(ALPN::H2) => true,
            _ => tls.is_none() && rules.h2c && self.begins_h2(&mut stream).await?,
        };
        if h2 {
            client.enter(Phase::Multiplexed);
        }
        Ok((stream, client))
    }

    async fn serve(&self, stream: Stream, multiplexed: bool, rules: &AcceptRules) {
        let stop = self.stop.subscribe();
        if multiplexed {
            self.engine.process_new(stream, &stop).await;
            return;
        }
        // What Pingora's own loop does, with this connection's limits. A session is made outside of this
        // future, which would keep room for each for as long as the connection is open.
        let first = |session: &mut ServerSession| {
            session.set_keepalive((!*stop.borrow()).then_some(rules.limits.idle.as_secs().max(1)));
            session.set_keepalive_reuses_remaining(Some(rules.requests));
        };
        let mut next = self.next(stream, first, &stop).await;
        while let Some(reused) = next {
            let (stream, settings) = reused.consume();
            let as_before = |session: &mut ServerSession| {
                if let Some(settings) = settings {
                    settings.apply_to_session(session);
                }
            };
            next = self.next(stream, as_before, &stop).await;
        }
    }

    fn next<'a>(
        &'a self,
        stream: Stream,
        settle: impl FnOnce(&mut ServerSession),
        stop: &'a ShutdownWatch,
    ) -> BoxFuture<'a, Option<ReusedHttpStream>> {
        let mut session = ServerSession::new_http1(stream);
        settle(&mut session);
        self.engine.process_new_http(session, stop)
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

/// Out of descriptors or memory: the connection stays queued. Spinning on it would take the time that is needed
/// to free some.
async fn not_accepted(address: SocketAddr, e: &std::io::Error) {
    log::warn!("{address}: accept: {e}");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::net::IpAddr;

    use vango_edge_core::clock::Mono;
    use vango_edge_core::lifecycle::facts::BadRequest;

    use super::*;

    struct Nothing;

    #[async_trait::async_trait]
    impl HttpServerApp for Nothing {
        async fn process_new_http(
            self: &Arc<Self>,
            _: ServerSession,
            _: &ShutdownWatch,
        ) -> Option<ReusedHttpStream> {
            None
        }
    }

    impl Observer for Nothing {
        fn opened(&self) -> Box<dyn Any + Send> {
            Box::new(())
        }
        fn cut(&self, _: Cut) {}
        fn unreadable(&self, _: IpAddr, _: BadRequest, _: Mono) -> Vec<u8> {
            Vec::new()
        }
    }

    /// The size of what `Serving::connection` returns.
    fn size<F>(
        _: impl Fn(&'static Serving<Nothing>, TcpStream, SocketAddr, Option<&'static Tls>, Place) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Each open connection has one of each, silent or not.
    #[test]
    fn what_an_idle_connection_keeps_has_room_for_nothing_else() {
        let sizes = [
            ("its task", size(Serving::<Nothing>::connection), 832),
            ("its stream", size_of::<Guarded>(), 264),
            ("what is known of it", size_of::<Client>(), 320),
        ];
        for (what, size, most) in sizes {
            assert!(size <= most, "{what} has {size} bytes, more than {most}");
        }
    }
}
