//! The Pingora shell: it performs what [`crate::lifecycle`] decides, and decides nothing itself.
//!
//! `early_request_filter` reads the facts, looks for an asset and classifies, `request_filter` gates
//! and holds, `upstream_peer` places (again, after a failed connection). What is kept on record is not
//! sent by Pingora's loop but by [`exchange`], which outlives the client. [`serve`] accepts connections: the
//! edge runs Pingora's HTTP engine on its own runtime, since Pingora's server owns signals,
//! shutdown and listening sockets in ways that an edge with reload and drain cannot use.

mod admission;
mod affinity;
mod answer;
mod app;
mod asset;
mod attempts;
mod body;
mod client;
mod deliver;
mod entrance;
mod exchange;
mod gate;
mod gather;
mod guard;
mod headers;
mod linger;
mod live;
mod meter;
mod pools;
mod preview;
mod proxied;
mod received;
mod record;
mod reply;
mod request;
mod response;
mod serve;
mod service;
mod tls;
mod turns;
mod unread;
mod upload;
mod visit;
mod watch;

pub use admission::Places;
pub use attempts::Attempts;
pub use body::Room;
pub use client::ClientLimits;
pub use deliver::Exchanges;
pub use gate::{Gate, WebhookSecrets};
pub use pools::{Pool, Pools};
pub use serve::{AcceptRules, H2Limits, Listener, Serving, Tls, adopt, bind};
pub use service::{EdgeProxy, ProxyLimits, ProxyParts};
pub use tls::{Certificates, acceptor};
