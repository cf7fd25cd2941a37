//! Notices that a held request's client has left. Pingora never cancels a filter: without this
//! watch, a held request would be forwarded after its client had gone.
//!
//! A client that has said all it will say may close its sending side and wait for its answer (RFC 9112
//! §9.6). From here that looks like one that has gone: both send a FIN. So one that sent a FIN is asked
//! whether it is still there, by a `100 Continue`, which every client of HTTP/1.1 must be able to read (RFC
//! 9110 §15.2): one that has gone answers it with a reset. Over HTTP/1.0 there is no such question; a FIN
//! counts as leaving there for what is unsafe, so that nothing is done for a client that may have gone.

use std::time::Duration;

use http::Version;
use pingora::protocols::SocketDigest;
use pingora_proxy::Session;

use super::client::{Client, Phase};

/// How often a connection is looked at whose body must stay unread.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a client may take to answer that it has gone: a round trip.
const ANSWERS_WITHIN: Duration = Duration::from_millis(250);

/// What a peer has said of its connection, as the kernel knows it (tcp(7), `tcpi_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// More may come.
    Open,
    /// It sends no more: a FIN came.
    Finished,
    /// It is gone: a reset came.
    Gone,
}

impl Peer {
    /// Of the connection with this digest.
    pub(super) fn of(socket: &SocketDigest) -> Self {
        const CLOSE: u8 = 7;
        const CLOSE_WAIT: u8 = 8;
        match socket.tcp_info().map(|i| i.tcpi_state) {
            Some(CLOSE) => Self::Gone,
            Some(CLOSE_WAIT) => Self::Finished,
            _ => Self::Open,
        }
    }
}

/// Resolves when the client has left. Consumes nothing of an unread body.
pub async fn client_left(session: &mut Session, body_unread: bool) {
    if let Some(client) = Client::of(session) {
        // An HTTP/2 connection has other requests.
        if !session.is_http2() {
            client.urgency.has_time();
        }
        if !body_unread {
            client.enter(Phase::Answer);
        }
    }
    let downstream = session.as_downstream_mut();
    if downstream.is_http2() {
        if let Some(closed) = downstream.watch_h2_stream_close() {
            let _ = closed.await;
        }
        return;
    }
    if !body_unread {
        // Nothing more is expected: whatever ends this read ends the connection. A pipelined
        // request does not, since pipelining is enabled for the session; nor does a FIN, about which the
        // stream asks (`super::guard`).
        let _ = downstream.read_body_or_idle(true).await;
        return;
    }
    // Reading would eat a byte of the body. The kernel knows whether a FIN or RST came.
    let mut asked = false;
    loop {
        match peer(session) {
            Peer::Gone => return,
            Peer::Finished if !asked => asked = ask(session).await,
            Peer::Finished | Peer::Open => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the client has left; asked once more when a place was given: [`client_left`] learns of it
/// later, and a request that is sent then is sent for a client that is gone.
pub async fn has_left(session: &mut Session) -> bool {
    match peer(session) {
        Peer::Open => return false,
        Peer::Gone => return true,
        Peer::Finished if session.is_http2() => return true,
        Peer::Finished => {}
    }
    if !ask(session).await {
        return !session.req_header().method.is_safe();
    }
    let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
    while waited < ANSWERS_WITHIN {
        if peer(session) == Peer::Gone {
            return true;
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause *= 2;
    }
    peer(session) == Peer::Gone
}

fn peer(session: &mut Session) -> Peer {
    let socket = session.as_downstream_mut().digest().and_then(|d| d.socket_digest.as_ref());
    socket.map_or(Peer::Open, |s| Peer::of(s))
}

/// Asks a client that sent a FIN whether it is there; `false` where it cannot be asked.
async fn ask(session: &mut Session) -> bool {
    if session.req_header().version < Version::HTTP_11 {
        return false;
    }
    // An error is a reset that came already.
    let _ = session.as_downstream_mut().write_continue_response().await;
    true
}
