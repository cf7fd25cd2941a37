//! Sockets whose first frame names their session (`session = ["vango-hello"]`): the edge accepts the
//! upgrade itself, reads that frame within ten seconds, chooses the allocation, and passes the frame
//! on byte for byte. Per tab, not per browser.
//!
//! The edge accepts without extensions and without a subprotocol, since no app has been asked yet;
//! Vango's client offers none that it needs. A first frame that is no hello goes to any ready allocation,
//! untouched.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use tokio::io::AsyncReadExt as _;

use crate::contract::Unrouted;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::enter::{Classified, classify};
use crate::lifecycle::facts::Facts;
use crate::lifecycle::hello::{FirstFrame, HELLO_BYTES, first_frame};
use crate::lifecycle::journey::{Event, Go, Journey};
use crate::lifecycle::reply::{Problem, Reply};
use crate::proxy::downstream::Downstream;
use crate::proxy::gate::{Carried, Gate, ProxyLimits};
use crate::sockets::frames::{Frames, Protocol};

use super::carry::{self, Client, Resting};
use super::upgrade::{AppAnswer, Upgrade, accepted, request_id};

/// Vango's own limit for its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// What a client may send while it waits for its allocation.
const AHEAD_BYTES: usize = 64 * 1024;
/// Try again later: the close code for what would be a 503 before the 101 (IANA's registry).
const LATER: u16 = 1013;
/// How long a client is kept that is to come back later, where the answer does not say when.
const LATER_PAUSE: Duration = Duration::from_secs(1);
/// Longest such time, and that of one that is refused: the longest pause of Vango's client.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Policy violation: the client sent no hello in time.
const SILENT: (u16, &str) = (1008, "no hello came");

/// A socket that is accepted before its session is known.
pub(super) struct Hello {
    pub(super) gate: Arc<Gate>,
    pub(super) facts: Facts,
    pub(super) head: RequestHeader,
    pub(super) limits: ProxyLimits,
    /// How it ends where the app is not asked.
    pub(super) cut: bool,
}

/// What the edge checks where the app is not asked yet (RFC 6455 §4.2.1, §10.2). `forwarded` is the
/// host that the client asked a trusted proxy for.
pub(super) fn check(
    headers: &HeaderMap,
    forwarded: Option<&HeaderValue>,
) -> Result<HeaderValue, Reply> {
    let one = |name: HeaderName| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    let key = one(header::SEC_WEBSOCKET_KEY).filter(|k| k.len() == 24);
    let version = one(header::SEC_WEBSOCKET_VERSION).is_some_and(|v| v.as_bytes() == b"13");
    let Some(key) = key.filter(|_| version) else {
        let detail = "Send Sec-WebSocket-Version: 13 and one Sec-WebSocket-Key of 16 bytes.";
        return Err(Reply::refused(Problem::UpgradeInvalid, 400, detail));
    };
    let origin = match headers.get(header::ORIGIN) {
        None => return Ok(accept_key(key)),
        Some(origin) => origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, h)| h),
    };
    let host = forwarded.or(one(header::HOST)).and_then(|h| h.to_str().ok());
    match (origin, host) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(accept_key(key)),
        _ => {
            let detail = "The page that opens this socket is of another host.";
            Err(Reply::refused(Problem::OriginRefused, 403, detail))
        }
    }
}

fn accept_key(key: &HeaderValue) -> HeaderValue {
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    HeaderValue::try_from(accept).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Hello {
    /// Accepts, listens, places, and carries.
    pub(super) async fn run(mut self, stream: Option<Stream>, accept: HeaderValue) {
        let fields = [request_id(self.facts.id), (header::SEC_WEBSOCKET_ACCEPT, accept)];
        let head = accepted(&HeaderMap::new(), &fields);
        let client = carry::greet(stream, &head).await;
        let Some(client) = client else { return self.gone() };
        let mut waiting = Waiting { client, sent: Vec::new() };
        let listening = tokio::time::timeout(HELLO_WITHIN, waiting.first_frame());
        match listening.await {
            Ok(Some(session)) => self.facts.session = session,
            Ok(None) => return self.gone(),
            Err(_) => {
                let close = Some(SILENT).filter(|_| !self.cut);
                waiting.close(close).await;
                return self.gone();
            }
        }
        self.place(waiting).await;
    }

    /// Nothing was decided, and nothing is woken.
    fn gone(self) {
        if let Ok(classified) = self.classified() {
            let mut journey = Journey::begin(self.facts, classified);
            self.gate.report(&mut journey, Event::Left);
            self.gate.close(journey, Some(101), None, false);
        }
    }

    /// On the newest snapshot: a while has passed since the upgrade.
    fn classified(&self) -> Result<Classified, Unrouted> {
        classify(&self.gate.snapshots.load(), &self.facts)
    }

    async fn place(mut self, mut waiting: Waiting) {
        // The budget begins here.
        self.facts.received = self.gate.clock.now();
        // No app was asked about these when the socket was accepted.
        self.head.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
        self.head.remove_header(&header::SEC_WEBSOCKET_PROTOCOL);
        let classified = self.classified();
        let Self { gate, facts, head, limits, cut } = self;
        let Ok(classified) = classified else {
            return waiting.turn_away((LATER, Problem::NoRoute.name()), cut, REFUSED_PAUSE).await;
        };
        let mut journey = Journey::begin(facts, classified);
        let upgrade = Upgrade { gate: &gate, head: &head, limits };
        while gate.drive(&mut waiting, &mut journey, &mut Carried::default()).await == Go::Connect {
            match upgrade.ask(&mut waiting, &mut journey).await {
                Ok(AppAnswer::Accepted(_, app, from_app)) => {
                    let socket = upgrade.socket(&journey, app, from_app);
                    drop(journey.take_placement());
                    gate.close(journey, Some(101), None, false);
                    let Some(mut socket) = socket else { return };
                    socket.from_client = waiting.sent;
                    tokio::spawn(socket.carry(waiting.client, Arc::clone(&gate)));
                    return;
                }
                Ok(AppAnswer::Other(answer)) => {
                    let status = answer.status().as_u16();
                    drop(answer);
                    gate.close(journey, Some(status), None, false);
                    let (code, pause) = match status {
                        ..500 => (SILENT.0, REFUSED_PAUSE),
                        _ => (LATER, LATER_PAUSE),
                    };
                    let reason = format!("the app answered {status}");
                    return waiting.turn_away((code, &reason), cut, pause).await;
                }
                Err(Go::Again) => {}
                Err(_) => break,
            }
        }
        match journey.reply().cloned() {
            Some(reply) => refuse(&gate, journey, waiting, &reply, cut).await,
            // It has left.
            None => gate.close(journey, Some(101), None, false),
        }
    }
}

/// Says what would be an error's answer as a close, or by an end after the time that the answer would
/// have named.
async fn refuse(gate: &Arc<Gate>, journey: Journey, waiting: Waiting, reply: &Reply, cut: bool) {
    let (environment, may_wake) = (journey.view().environment.clone(), journey.may_wake());
    gate.close(journey, Some(101), None, false);
    if cut && reply.problem == Problem::Asleep {
        let mut frames = Frames::of(Protocol::Vango);
        frames.follow(&waiting.sent);
        let (seat, idle) = (gate.sockets.rest(&environment, true), gate.limits.load().socket_idle);
        let client = waiting.client;
        let resting = Resting { client, frames, seat, asleep: true, may_wake, idle };
        tokio::spawn(resting.run(Arc::clone(gate)));
        return;
    }
    let pause = reply.retry_after.map_or(LATER_PAUSE, Duration::from_secs).min(REFUSED_PAUSE);
    waiting.turn_away((LATER, reply.problem.name()), cut, pause).await;
}

/// A client that has been accepted and waits for its allocation.
struct Waiting {
    client: Client,
    /// Everything it has sent.
    sent: Vec<u8>,
}

impl Waiting {
    /// Closes it with `close`. With `cut` it waits for `pause` first: a client that was accepted takes the end
    /// for a new loss, and comes back after its own shortest pause.
    async fn turn_away(mut self, close: (u16, &str), cut: bool, pause: Duration) {
        if cut {
            tokio::select! {
                () = self.left(false) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.close(Some(close).filter(|_| !cut)).await;
    }

    async fn close(mut self, close: Option<(u16, &str)>) {
        carry::say_goodbye(&mut self.client, close).await;
        carry::linger(self.client).await;
    }

    /// Reads until the first frame is whole; `None` when the client is gone.
    async fn first_frame(&mut self) -> Option<Option<SessionId>> {
        loop {
            if let FirstFrame::Whole(session) = first_frame(&self.sent) {
                return Some(session);
            }
            self.read(HELLO_BYTES + 64).await?;
        }
    }

    /// Reads some more, up to `most` bytes in all. Cancel safe.
    async fn read(&mut self, most: usize) -> Option<()> {
        let mut space = [0; 2048];
        let room = most.saturating_sub(self.sent.len()).min(space.len());
        let n = self.client.read(&mut space[..room]).await.ok().filter(|n| *n > 0)?;
        self.sent.extend_from_slice(&space[..n]);
        Some(())
    }
}

impl Downstream for Waiting {
    async fn left(&mut self, _body_unread: bool) {
        while self.sent.len() < AHEAD_BYTES {
            if self.read(AHEAD_BYTES).await.is_none() {
                return;
            }
        }
        // It has sent all that it may: that it leaves is seen when it is written to.
        std::future::pending().await
    }

    /// Whether it is still there is seen when the app's answer is written to it.
    async fn has_left(&mut self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn the_origin_is_the_apps_own_and_the_handshake_is_whole() {
        let good = [
            ("host", "app.example:8443"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let accept = check(&headers(&good), None).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455 §1.3");
        let with = |origin| check(&headers(&[good[0], good[1], good[2], ("origin", origin)]), None);
        assert!(with("https://APP.example:8443").is_ok());
        let forwarded = HeaderValue::from_static("www.example");
        let through = |origin| {
            let all = headers(&[good[0], good[1], good[2], ("origin", origin)]);
            check(&all, Some(&forwarded))
        };
        assert!(through("https://www.example").is_ok());
        assert!(through("https://app.example:8443").is_err());
        for foreign in ["https://evil.example", "https://app.example", "null", ""] {
            let refused = with(foreign).unwrap_err();
            assert_eq!((refused.problem, refused.status), (Problem::OriginRefused, 403));
        }
        for broken in
            [&good[..2], &[good[0], good[2]], &[good[0], good[1], ("sec-websocket-key", "x")]]
        {
            let refused = check(&headers(broken), None).unwrap_err();
            assert_eq!((refused.problem, refused.status), (Problem::UpgradeInvalid, 400));
        }
    }
}
