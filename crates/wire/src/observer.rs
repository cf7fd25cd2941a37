//! Who is told of connections, and what of.

use std::any::Any;
use std::net::IpAddr;

use vango_edge_core::clock::Mono;
use vango_edge_core::lifecycle::facts::BadRequest;

/// Counts connections, and speaks for the edge where Pingora would.
pub trait Observer: Send + Sync {
    /// A connection was accepted and has a place; it is open until what is returned is dropped.
    fn opened(&self) -> Box<dyn Any + Send>;
    /// One was cut off.
    fn cut(&self, why: Cut);
    /// The answer, as it is sent, to a head that Pingora cannot read; it came from `client` and began to
    /// come at `began` (0 where that is not known).
    fn unreadable(&self, client: IpAddr, why: BadRequest, began: Mono) -> Vec<u8>;
}

/// Why the edge ended a connection or a request that its client would have gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As many connections as may are open.
    Connections,
    /// As many as may come from one address.
    Address,
    /// It had asked for nothing, and places became scarce.
    Displaced,
    /// No TLS handshake came about.
    Handshake,
    /// A PROXY header from who may not send one, or none from who must.
    ProxyHeader,
    /// The head was not whole in time.
    HeaderTime,
    /// The head is too large.
    HeaderSize,
    /// The body came too slowly.
    BodyRate,
    /// The client took the response too slowly.
    ResponseRate,
    /// The client took nothing at all.
    WriteTime,
    /// It reset too many streams.
    Resets,
}

impl Cut {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Connections,
        Self::Address,
        Self::Displaced,
        Self::Handshake,
        Self::ProxyHeader,
        Self::HeaderTime,
        Self::HeaderSize,
        Self::BodyRate,
        Self::ResponseRate,
        Self::WriteTime,
        Self::Resets,
    ];

    /// Its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Displaced => "displaced",
            Self::Handshake => "handshake",
            Self::ProxyHeader => "proxy-header",
            Self::HeaderTime => "header-time",
            Self::HeaderSize => "header-size",
            Self::BodyRate => "body-rate",
            Self::ResponseRate => "response-rate",
            Self::WriteTime => "write-time",
            Self::Resets => "resets",
        }
    }
}
