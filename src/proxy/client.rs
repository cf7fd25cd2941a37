//! One client connection: who it is, what it may take, and where its current request is, shared by
//! the stream that watches over it ([`super::guard`]) and the callbacks that know.
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

use crate::clock::{Clock, Entropy};
use crate::lifecycle::origin::{self, Origin};
use crate::telemetry::{Cut, Telemetry, TraceRecord};

use super::admission::{Places, Share, Unproved};
use super::linger::Bounds;
use super::tls::Asked;
use super::turns::Urgency;

/// What a client may take. A reload counts for connections that come after it.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64; loopback addresses are not counted.
    pub max_per_address: usize,
    /// Requests on one connection before it is closed (HTTP/1.1).
    pub requests: u32,
    /// From the connection's begin, or a later request's first byte, to the end of the head.
    pub header_timeout: Duration,
    /// Bytes of a head.
    pub header_bytes: usize,
    /// Header fields.
    pub header_fields: usize,
    /// Between requests.
    pub idle: Duration,
    /// Bytes a second of a body while it is waited for; 0 for none.
    pub min_body_rate: u64,
    /// Bytes a second of a response while the client is waited for; 0 for none.
    pub min_response_rate: u64,
    /// Waiting that the rates allow whatever was sent.
    pub rate_grace: Duration,
    /// Longest wait for the client to take anything at all.
    pub write_timeout: Duration,
}

impl ClientLimits {
    /// The same with up to an eighth more time, by `pick` (64 random bits). What came in one wave is not
    /// cut off in one: that would keep everybody else waiting for as long as it takes.
    pub fn apart(self, pick: u64) -> Self {
        let share = (pick % 1024) as u32;
        let longer = |time: Duration| time + time / 8 * share / 1024;
        Self {
            header_timeout: longer(self.header_timeout),
            rate_grace: longer(self.rate_grace),
            write_timeout: longer(self.write_timeout),
            ..self
        }
    }
}

/// What connections share with the proxy that serves them.
#[derive(Clone)]
pub struct Shared {
    /// Connections that are open.
    pub admission: Arc<Places>,
    /// Counts and traces.
    pub telemetry: Arc<Telemetry>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

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
#[derive(Debug)]
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
    telemetry: Arc<Telemetry>,
    /// Until it asks for something.
    unproved: Mutex<Option<Unproved>>,
    proved: OnceLock<bool>,
    /// Over TLS: what it asked for, once that is known.
    asked: OnceLock<Asked>,
    phase: AtomicU8,
    /// Counts phases, so that the stream notices each.
    turns: AtomicU32,
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
        telemetry: Arc<Telemetry>,
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
            telemetry,
            unproved: Mutex::new(Some(unproved)),
            proved: OnceLock::new(),
            asked: OnceLock::new(),
            phase: AtomicU8::new(Phase::Idle as u8),
            turns: AtomicU32::new(0),
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
    pub(super) fn asked_for(&self, asked: Asked) {
        // There is one handshake.
        let _ = self.asked.set(asked);
    }

    /// Whether requests for `host` belong on it: always where it named no host, and where it is a trusted
    /// proxy's, which has one name for its connections and many hosts.
    pub(super) fn belongs(&self, host: &str) -> bool {
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
        self.origin.told(headers, &self.trusted).map_or_else(|| Arc::clone(&self.origin), Arc::new)
    }

    /// A share for a request of `origin`, where a trusted proxy has said whose it is: the proxy's connections
    /// carry many clients, each of which has as many requests at once as another client has connections.
    ///
    /// # Errors
    /// How many that are, if it has them.
    pub(super) fn share(
        &self,
        origin: &Origin,
        places: &Arc<Places>,
    ) -> Result<Option<Share>, usize> {
        let most = self.limits.max_per_address;
        if !origin.told || origin.address == self.origin.address {
            return Ok(None);
        }
        places.share(origin.address, most).map(Some).ok_or(most)
    }

    /// Where it is, and how often that has changed.
    pub fn phase(&self) -> (Phase, u32) {
        let turn = self.turns.load(Ordering::Acquire);
        let phase = self.phase.load(Ordering::Acquire);
        (Phase::ALL.get(usize::from(phase)).copied().unwrap_or(Phase::Answer), turn)
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
    pub(super) fn begins(&self, interim: bool, scarce: bool) {
        self.interim.store(interim, Ordering::Relaxed);
        self.stream.store(false, Ordering::Relaxed);
        self.scarce.store(scarce, Ordering::Relaxed);
    }

    /// The answer proper begins; `stream` says whether it is an event stream.
    pub(super) fn answers(&self, stream: bool) {
        self.stream.store(stream, Ordering::Relaxed);
    }

    /// Whether its present request is one of HTTP/1.1, to which a 1xx may be sent.
    pub(super) fn reads_interim(&self) -> bool {
        self.interim.load(Ordering::Relaxed)
    }

    /// Whether it is answered with an event stream.
    pub(super) fn reads_stream(&self) -> bool {
        self.stream.load(Ordering::Relaxed)
    }

    /// Whether places were scarce when it asked.
    pub(super) fn is_crowded(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// How long what it still sends after its answer is read and dropped.
    pub(super) fn lingers(&self) -> Duration {
        Bounds::of(self).time
    }

    /// A head of it could not be read.
    pub(super) fn unread(&self, record: TraceRecord) {
        self.telemetry.unrouted(record);
    }

    /// Enters another phase. An HTTP/2 connection has only one, and nothing follows a live socket.
    pub fn enter(&self, phase: Phase) {
        let was = self.phase.load(Ordering::Acquire);
        let last = was == Phase::Multiplexed as u8 || was == Phase::Upgraded as u8;
        if !last && was != phase as u8 {
            self.phase.store(phase as u8, Ordering::Release);
            self.turns.fetch_add(1, Ordering::AcqRel);
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
            self.telemetry.metrics.connections.cut(why);
        }
    }

    /// Why it was cut off.
    pub fn why_cut(&self) -> Option<Cut> {
        let mark = usize::from(self.cut.load(Ordering::Acquire));
        Cut::ALL.get(mark.checked_sub(1)?).copied()
    }
}

/// See [`Client::expect_body`].
#[derive(Debug)]
pub struct ExpectedBody(Arc<Client>);

impl Drop for ExpectedBody {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_came_together_are_not_cut_off_together() {
        const S: Duration = Duration::from_secs(8);
        let limits = ClientLimits {
            max_connections: 1,
            max_per_address: 1,
            requests: 1,
            header_timeout: S,
            header_bytes: 1,
            header_fields: 1,
            idle: S,
            min_body_rate: 1,
            min_response_rate: 1,
            rate_grace: S,
            write_timeout: S,
        };
        let of = |pick| limits.apart(pick).header_timeout;
        assert_eq!((of(0), of(512)), (S, S + S / 16));
        assert!(of(1023) < S + S / 8 && of(u64::MAX) >= S);
        assert_eq!(limits.apart(1023).idle, S);
    }
}
