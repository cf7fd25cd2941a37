//! Whether a peer is still there, without reading from its connection.

use std::time::Duration;

use pingora::protocols::SocketDigest;

/// How often a connection is looked at whose body must stay unread.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a peer has said of its connection, as the kernel knows it (tcp(7), `tcpi_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// More may come.
    Open,
    /// It sends no more: a FIN came.
    Finished,
    /// It is gone: a reset came.
    Gone,
}

impl Peer {
    /// Of the connection with this digest.
    pub fn of(socket: &SocketDigest) -> Self {
        const CLOSE: u8 = 7;
        const CLOSE_WAIT: u8 = 8;
        match socket.tcp_info().map(|i| i.tcpi_state) {
            Some(CLOSE) => Self::Gone,
            Some(CLOSE_WAIT) => Self::Finished,
            _ => Self::Open,
        }
    }
}
