//! Sockets whose first frame says whose they are (`session = ["vango-hello"]`): the edge accepts the
//! upgrade itself, reads that frame within ten seconds, chooses the allocation, and passes the frame
//! on byte for byte. Per tab, not per browser.
//!
//! The edge accepts without extensions and without a subprotocol, since no app has been asked yet;
//! Vango's client offers none that it needs. Whatever is no hello goes to any ready allocation,
//! untouched.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use tokio::io::AsyncReadExt as _;

use crate::contract::{RouteClass, SessionSource, SocketEnd};
use crate::lifecycle::admit::Journey;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::classify::{Classified, classify};
use crate::lifecycle::facts::Facts;
use crate::lifecycle::hello::{FirstFrame, HELLO_BYTES, first_frame};
use crate::lifecycle::reply::{Problem, Reply};
use crate::proxy::gate::{Carried, Downstream, Passed};
use crate::proxy::record::{self, End};
use crate::proxy::service::ProxyLimits;
use crate::sockets::frames::{Frames, Protocol};

use super::client::Client;
use super::rest::Resting;
use super::upgrade::{Asked, accepted};
use super::way::request_id;
use super::{LiveParts, Way, carry};

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

/// A socket that is to be accepted before it is known whose it is.
pub(super) struct Hello {
    pub(super) parts: Arc<LiveParts>,
    pub(super) facts: Facts,
    pub(super) head: RequestHeader,
    pub(super) limits: ProxyLimits,
    /// How it ends where the app is not asked.
    pub(super) cut: bool,
}

/// Whether a request's route wants its first frame looked at.
pub(super) fn wanted(class: &RouteClass) -> bool {
    matches!(class, RouteClass::Live(live) if live.session.contains(&SessionSource::VangoHello))
}

/// Whether its sockets end without a close frame of the edge's own.
pub(super) fn is_cut(class: &RouteClass) -> bool {
    matches!(class, RouteClass::Live(live) if live.end == SocketEnd::Cut)
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
        let mut ours = request_id(self.facts.id);
        ours.push((header::SEC_WEBSOCKET_ACCEPT, accept));
        let head = accepted(&HeaderMap::new(), &ours);
        let client = carry::greet(stream, &head).await;
        let Some(client) = client else { return self.gone() };
        let mut waiting = Waiting { client, sent: Vec::new() };
        let listening = tokio::time::timeout(HELLO_WITHIN, waiting.first_frame());
        match listening.await {
            Ok(Some(session)) => self.facts.session = session,
            Ok(None) => return self.gone(),
            Err(_) => {
                let close = Some(SILENT).filter(|_| !self.cut);
                waiting.client.close(close).await;
                return self.gone();
            }
        }
        self.place(waiting).await;
    }

    /// Nothing was decided, and nothing is woken.
    fn gone(self) {
        let parts = Arc::clone(&self.parts);
        if let Some(journey) = self.journey() {
            record::close(&parts.gate, &parts.telemetry, journey, End::Left { status: Some(101) });
        }
    }

    /// On the newest snapshot: a while has passed since the upgrade.
    fn classified(&self) -> Option<Classified> {
        classify(&self.parts.gate.snapshots.load(), &self.facts).ok()
    }

    fn journey(self) -> Option<Journey> {
        let classified = self.classified()?;
        Some(Journey::begin(self.facts, classified))
    }

    async fn place(mut self, mut waiting: Waiting) {
        let parts = Arc::clone(&self.parts);
        // The budget begins here.
        self.facts.received = parts.gate.clock.now();
        // No app was asked about these when the socket was accepted.
        self.head.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
        self.head.remove_header(&header::SEC_WEBSOCKET_PROTOCOL);
        let Self { facts, head, limits, cut, .. } = self;
        let Ok(classified) = classify(&parts.gate.snapshots.load(), &facts) else {
            return waiting.turn_away((LATER, Problem::NoRoute.name()), cut, REFUSED_PAUSE).await;
        };
        let mut journey = Journey::begin(facts, classified);
        let way = Way { parts: &parts, head: &head, limits };
        loop {
            let placed =
                match parts.gate.pass(&mut waiting, &mut journey, &mut Carried::default()).await {
                    Passed::Forward(placed) => placed,
                    Passed::Reply(reply) => {
                        return refuse(&parts, journey, waiting, &reply, cut).await;
                    }
                    // A live route keeps no record, so that nothing is answered from one.
                    Passed::Gone | Passed::Replay(_) | Passed::Acknowledge => {
                        let end = End::Left { status: Some(101) };
                        return record::close(&parts.gate, &parts.telemetry, journey, end);
                    }
                };
            match way.ask(&mut waiting, &mut journey, placed).await {
                Ok(Some((placed, Asked::Accepted(_, app, from_app)))) => {
                    let socket = way.accepted(&journey, &placed, app, from_app);
                    drop(placed);
                    let end = End::Answered { status: Some(101) };
                    record::close(&parts.gate, &parts.telemetry, journey, end);
                    let Some(mut socket) = socket else { return };
                    socket.from_client = waiting.sent;
                    tokio::spawn(socket.carry(waiting.client, parts));
                    return;
                }
                Ok(Some((_, Asked::Answered(answer)))) => {
                    let status = answer.status().as_u16();
                    drop(answer);
                    let end = End::Answered { status: Some(status) };
                    record::close(&parts.gate, &parts.telemetry, journey, end);
                    let (code, pause) = match status {
                        ..500 => (SILENT.0, REFUSED_PAUSE),
                        _ => (LATER, LATER_PAUSE),
                    };
                    let reason = format!("the app answered {status}");
                    return waiting.turn_away((code, &reason), cut, pause).await;
                }
                // Choose again.
                Ok(Some((_, Asked::Refused | Asked::Failed(_)))) => {}
                Ok(None) => {
                    let end = End::Left { status: Some(101) };
                    return record::close(&parts.gate, &parts.telemetry, journey, end);
                }
                Err(reply) => return refuse(&parts, journey, waiting, &reply, cut).await,
            }
        }
    }
}

/// Says what would be an error's answer as a close, or by an end after the time that the answer would
/// have named.
async fn refuse(
    parts: &Arc<LiveParts>,
    journey: Journey,
    waiting: Waiting,
    reply: &Reply,
    cut: bool,
) {
    let end = End::Replied { status: Some(101) };
    let (environment, wakes) = (journey.view().environment.clone(), journey.wakes());
    record::close(&parts.gate, &parts.telemetry, journey, end);
    if cut && reply.problem == Problem::Asleep {
        let mut frames = Frames::of(Protocol::Vango);
        frames.follow(&waiting.sent);
        let (seat, idle) =
            (parts.sockets.rest(&environment, true), parts.gate.limits.load().socket_idle);
        let client = waiting.client;
        let resting = Resting { client, frames, seat, asleep: true, wakes, idle };
        tokio::spawn(resting.run(Arc::clone(parts)));
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
    /// Ends it by `close`; by `cut` after a pause, since a client that was accepted takes the end for a
    /// new loss, and begins again with its shortest pause.
    async fn turn_away(mut self, close: (u16, &str), cut: bool, pause: Duration) {
        if cut {
            tokio::select! {
                () = self.left(false) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.client.close(Some(close).filter(|_| !cut)).await;
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
