//! Notices that a held request's client has left. Pingora never cancels a filter: without this
//! watch, a held request would be forwarded after its client had gone.

use std::time::Duration;

use pingora_proxy::Session;

use super::client::{Client, Phase};

/// How often a connection is looked at whose body must stay unread.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// TCP states in which the peer has said that it sends no more (tcp(7), `tcpi_state`).
const CLOSE_WAIT: u8 = 8;
const CLOSED: u8 = 7;

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
        // request does not, since pipelining is enabled for the session.
        let _ = downstream.read_body_or_idle(true).await;
        return;
    }
    // Reading would eat a byte of the body. The kernel knows whether a FIN or RST came.
    while !has_left(session) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the kernel has been told that the client left. Asked once more when a place was given:
/// [`client_left`] learns of it a moment later, and a request that is sent then is sent for nobody.
pub fn has_left(session: &mut Session) -> bool {
    let downstream = session.as_downstream_mut();
    let socket = downstream.digest().and_then(|d| d.socket_digest.as_ref());
    socket.and_then(|s| s.tcp_info()).is_some_and(|i| matches!(i.tcpi_state, CLOSE_WAIT | CLOSED))
}
