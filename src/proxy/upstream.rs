//! How Pingora connects to where a request was placed, and what an error of that connection means.

use std::time::Duration;

use pingora::ErrorSource;
use pingora::prelude::{Error, ErrorType, HttpPeer};
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;

use crate::app;
use crate::contract::{Posture, Protocol};
use crate::lifecycle::journey::Journey;
use crate::lifecycle::trace::UpstreamFailure;

use super::edge::EdgeProxy;

/// Requests that one connection of HTTP/2 to an app carries at once, at most; fewer where the app says so or
/// `scale.concurrency` does. More take another connection.
const H2_STREAMS: u32 = 100;

/// Bytes that an app may send ahead on one of them. A client that takes nothing holds so much; the window of
/// the connection has room for all of them, so that it holds up no other.
const H2_WINDOW: u32 = 64 << 10;

impl EdgeProxy {
    /// Where the journey was placed, and how to connect there.
    pub(super) fn peer(&self, journey: &Journey) -> Option<HttpPeer> {
        let allocation = &journey.placement()?.allocation;
        let mut peer = HttpPeer::new(allocation.address?, false, String::new());
        // A restarted allocation on the same port never gets an old connection.
        peer.group_key = allocation.pool_key;
        let h2c = allocation.contract.process.protocol == Protocol::H2c;
        let limits = self.gate.limits.load().of_route(journey);
        let options = &mut peer.options;
        options.connection_timeout = Some(limits.connect_timeout);
        options.total_connection_timeout = Some(limits.connect_timeout);
        options.idle_timeout = Some(limits.idle_timeout);
        options.write_timeout = Some(limits.response_timeout);
        // Over HTTP/2 an app that closes says which requests it did nothing with, so that what is unsafe
        // shares a connection too.
        let first = journey.placements_tried() <= 1;
        let pooled = first && (h2c || journey.posture() == Posture::Safe);
        if !pooled {
            // A connection from the pool may be closing just now, and after the first byte that
            // looks like an app that died: what may not be sent twice gets one of its own, under a
            // key that no other request asks for. So does what is sent again because one was closing: an
            // app closes all that have been idle for as long.
            peer.group_key ^= self.gate.entropy.next_u64() | 1;
            options.idle_timeout = Some(Duration::ZERO);
        }
        // Once its client waits no more, no answer is waited for either.
        let left = journey.patience_left(self.now()).unwrap_or(limits.response_timeout);
        options.read_timeout = Some(limits.response_timeout.min(left));
        // Sockets go another way ([`super::live`]): what Pingora carries is never a tunnel.
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        if h2c {
            options.set_http_version(2, 2);
            let streams = if pooled { allocation.concurrency.clamp(1, H2_STREAMS) } else { 1 };
            options.max_h2_streams = streams as usize;
            options.h2_stream_window_size = Some(H2_WINDOW);
            options.h2_connection_window_size = Some(H2_WINDOW * streams);
        }
        Some(peer)
    }
}

/// How the app failed, of an error that is not the client's.
pub(super) fn failure(e: &Error) -> UpstreamFailure {
    match e.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => UpstreamFailure::Silent,
        _ => UpstreamFailure::Closed,
    }
}

/// Whether the app says that it did nothing with the request.
pub(super) fn is_unprocessed(e: &Error) -> bool {
    // A client over HTTP/2 has the same words for its own side.
    *e.esource() == ErrorSource::Upstream
        && e.root_cause().downcast_ref::<h2::Error>().is_some_and(|e| app::is_unprocessed(e))
}
