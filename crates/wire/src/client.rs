//! One client connection: who it is, what it may take, and where its current request is, shared by
//! the stream that watches over it ([`crate::guard`]) and the callbacks that know.
//!
//! Callbacks find it in the session's digest, which Pingora carries from the stream to each
//! request, over HTTP/1.1 and HTTP/2 alike.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::HeaderMap;
use ipnet::IpNet;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use vango_edge_core::clock::Mono;
use vango_edge_core::lifecycle::facts::BadRequest;
use vango_edge_core::lifecycle::origin::{self, Origin};

use crate::admission::{Places, Share, Unproved};
use crate::limits::ClientLimits;
use crate::linger::Bounds;
use crate::observer::{Cut, Observer};
use crate::tls::Asked;
use crate::turns::Urgency;

/// Where an HTTP/1.1 connection's current request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of a head has come. `first` before the connection's first one.
    Idle,
    /// The head is coming.
    Head,
    /// The body is.
    Body,
    /// All of the request is there; the response is the app's matter.
    Answer,
    /// A live socket: silent for as long as its ends like.
    Upgraded,
    /// HTTP/2: many requests at once.
    Multiplexed,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Idle, Self::Head, Self::Body, Self::Answer, Self::Upgraded, Self::Multiplexed];
}

/// One client connection.
pub struct Client {
    /// Where it comes from; with PROXY protocol, what its proxy says.
    pub origin: Arc<Origin>,
    /// Who else may stand between it and a request's client; empty where it is a client's own.
    trusted: Arc<[IpNet]>,
    /// `Strict-Transport-Security` of its listener's encrypted requests.
    pub hsts: Option<Duration>,
    /// What it may take.
    pub limits: ClientLimits,
    /// Whether its work goes first.
    pub urgency: Arc<Urgency>,
    observer: Arc<dyn Observer>,
    /// Until it asks for something.
    unproved: Mutex<Option<Unproved>>,
    proved: OnceLock<bool>,
    /// Over TLS: what it asked for, once that is known.
    asked: OnceLock<Asked>,
    phase: AtomicU8,
    /// Counts phases, so that the stream notices each.
    entered: AtomicU32,
    /// It reads 1xx answers: its request is of HTTP/1.1.
    interim: AtomicBool,
    /// What it is answered is an event stream.
    stream: AtomicBool,
    /// Places were scarce when it asked.
    scarce: AtomicBool,
    /// HTTP/2: bodies that are being waited for.
    bodies: AtomicUsize,
    /// HTTP/2: who reads the connection, and has to know of bodies.
    reader: AtomicWaker,
    answered: AtomicU32,
    resets: AtomicU32,
    /// One more than the index of the reason; 0 while there is none.
    cut: AtomicU8,
}

/// HTTP/2 streams that a client may reset before its answers, beyond as many as it let be answered.
const FREE_RESETS: u32 = 100;

impl Client {
    /// A new connection.
    pub fn new(
        origin: Origin,
        trusted: &Arc<[IpNet]>,
        hsts: Option<Duration>,
        limits: ClientLimits,
        observer: Arc<dyn Observer>,
        unproved: Unproved,
        urgency: Arc<Urgency>,
    ) -> Arc<Self> {
        let is_proxy = origin::is_in(trusted, origin.address);
        Arc::new(Self {
            origin: Arc::new(origin),
            trusted: if is_proxy { Arc::clone(trusted) } else { Arc::default() },
            hsts,
            limits,
            urgency,
            observer,
            unproved: Mutex::new(Some(unproved)),
            proved: OnceLock::new(),
            asked: OnceLock::new(),
            phase: AtomicU8::new(Phase::Idle as u8),
            entered: AtomicU32::new(0),
            interim: AtomicBool::new(false),
            stream: AtomicBool::new(false),
            scarce: AtomicBool::new(false),
            bodies: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            answered: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            cut: AtomicU8::new(0),
        })
    }

    /// The handshake is over, in which it asked for this.
    pub fn asked_for(&self, asked: Asked) {
        // There is one handshake.
        let _ = self.asked.set(asked);
    }

    /// Whether requests for `host` belong on it: always where it named no host, and where it is a trusted
    /// proxy's, which has one name for its connections and many hosts.
    pub fn belongs(&self, host: &str) -> bool {
        !self.trusted.is_empty() || self.asked.get().is_none_or(|asked| asked.covers(host))
    }

    /// What the stream hands to Pingora, so that [`Client::of`] finds it.
    pub fn digest(self: &Arc<Self>) -> pingora::Result<ProxyDigest> {
        let nothing = Box::new(ResponseHeader::build(200, Some(0))?);
        Ok(ProxyDigest::new(nothing, Some(Box::new(Arc::clone(self)))))
    }

    /// The connection that `session` came on.
    pub fn of(session: &ServerSession) -> Option<&Arc<Self>> {
        let digest = session.digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref()
    }

    /// Where a request with `headers` on it comes from.
    pub fn origin_of(&self, headers: &HeaderMap) -> Arc<Origin> {
        if self.trusted.is_empty() {
            return Arc::clone(&self.origin);
        }
        self.origin
            .forwarded(headers, &self.trusted)
            .map_or_else(|| Arc::clone(&self.origin), Arc::new)
    }

    /// A share for a request of `origin`, where a trusted proxy has said whose it is: the proxy's connections
    /// carry many clients, each of which has as many requests at once as another client has connections.
    ///
    /// # Errors
    /// How many that are, if it has them.
    pub fn share(&self, origin: &Origin, places: &Arc<Places>) -> Result<Option<Share>, usize> {
        let most = self.limits.max_connections_per_address;
        if !origin.by_proxy || origin.address == self.origin.address {
            return Ok(None);
        }
        places.share(origin.address, most).map(Some).ok_or(most)
    }

    /// Where it is, and how often that has changed.
    pub fn phase(&self) -> (Phase, u32) {
        let entered = self.entered.load(Ordering::Acquire);
        let phase = self.phase.load(Ordering::Acquire);
        (Phase::ALL.get(usize::from(phase)).copied().unwrap_or(Phase::Answer), entered)
    }

    /// It asks for something. `false` when it was displaced a moment before: it is about to be closed,
    /// and nothing may be done for it.
    pub fn asks(&self) -> bool {
        *self.proved.get_or_init(|| {
            let unproved = self.unproved.lock().unwrap_or_else(PoisonError::into_inner).take();
            unproved.is_none_or(|u| u.prove())
        })
    }

    /// A request of it begins: whether it reads 1xx answers, and whether places are scarce.
    pub fn begins(&self, interim: bool, scarce: bool) {
        self.interim.store(interim, Ordering::Relaxed);
        self.stream.store(false, Ordering::Relaxed);
        self.scarce.store(scarce, Ordering::Relaxed);
    }

    /// The answer proper begins; `stream` says whether it is an event stream.
    pub fn answers(&self, stream: bool) {
        self.stream.store(stream, Ordering::Relaxed);
    }

    /// Whether its present request is one of HTTP/1.1, to which a 1xx may be sent.
    pub fn reads_interim(&self) -> bool {
        self.interim.load(Ordering::Relaxed)
    }

    /// Whether it is answered with an event stream.
    pub fn reads_stream(&self) -> bool {
        self.stream.load(Ordering::Relaxed)
    }

    /// Whether places were scarce when it asked.
    pub fn is_crowded(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// How long what it still sends after its answer is read and dropped.
    pub fn lingers(&self) -> Duration {
        self.linger_bounds().time
    }

    /// How far it is read after its answer.
    pub fn linger_bounds(&self) -> Bounds {
        let body = matches!(self.phase().0, Phase::Body | Phase::Multiplexed);
        let short = !body || self.is_crowded() || self.why_cut().is_some();
        if short { Bounds::SHORT } else { Bounds::BODY }
    }

    /// What it is answered to a head that began to come at `began` and cannot be read.
    pub fn unreadable(&self, why: BadRequest, began: Mono) -> Vec<u8> {
        self.observer.unreadable(self.origin.address, why, began)
    }

    /// Enters another phase. An HTTP/2 connection has only one, and nothing follows a live socket.
    pub fn enter(&self, phase: Phase) {
        let was = self.phase.load(Ordering::Acquire);
        let last = was == Phase::Multiplexed as u8 || was == Phase::Upgraded as u8;
        if !last && was != phase as u8 {
            self.phase.store(phase as u8, Ordering::Release);
            self.entered.fetch_add(1, Ordering::AcqRel);
            match phase {
                Phase::Idle => self.urgency.answered(),
                // The stream says when it has to be waited for.
                Phase::Body | Phase::Answer => self.urgency.awaits(false),
                Phase::Head | Phase::Upgraded | Phase::Multiplexed => {}
            }
        }
    }

    /// HTTP/2: a body is waited for until the guard is dropped.
    pub fn expect_body(self: &Arc<Self>) -> ExpectedBody {
        self.bodies.fetch_add(1, Ordering::AcqRel);
        self.reader.wake();
        ExpectedBody(Arc::clone(self))
    }

    /// HTTP/2: wakes `reader` when a body is waited for.
    pub fn reads(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    /// HTTP/2: bodies that are being waited for.
    pub fn bodies(&self) -> usize {
        self.bodies.load(Ordering::Acquire)
    }

    /// HTTP/2: a stream ended, by its answer or by a reset before one. Who resets without end is
    /// cut off: each reset costs the edge a request (CVE-2023-44487).
    pub fn stream_ended(&self, reset: bool) {
        if !reset {
            self.answered.fetch_add(1, Ordering::Relaxed);
            self.urgency.answered();
            return;
        }
        let resets = self.resets.fetch_add(1, Ordering::Relaxed) + 1;
        let most = FREE_RESETS.saturating_add(self.answered.load(Ordering::Relaxed));
        if resets > most {
            self.cut(Cut::Resets);
        }
    }

    /// Cuts it off; counted once.
    pub fn cut(&self, why: Cut) {
        let mark = why as u8 + 1;
        if self.cut.compare_exchange(0, mark, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.observer.cut(why);
        }
    }

    /// Why it was cut off.
    pub fn why_cut(&self) -> Option<Cut> {
        let mark = usize::from(self.cut.load(Ordering::Acquire));
        Cut::ALL.get(mark.checked_sub(1)?).copied()
    }
}

/// See [`Client::expect_body`].
pub struct ExpectedBody(Arc<Client>);

impl Drop for ExpectedBody {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Ordering::AcqRel);
    }
}
