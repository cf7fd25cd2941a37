//! The Pingora shell: it performs what [`crate::lifecycle`] decides, and decides nothing itself.
//!
//! A request meets [`service`] first, where Pingora's callbacks are: `early_request_filter` reads the head
//! and says who answers, `request_filter` gates and holds, `upstream_peer` places (again, after a failed
//! connection). What is kept on record is not sent by Pingora's loop but by [`exchange`], which outlives
//! the client; live sockets are taken over from it ([`live`]). What is below HTTP is [`crate::wire`].

mod answer;
mod asset;
mod downstream;
mod edge;
mod engine;
mod exchange;
mod gate;
mod head;
mod live;
mod pools;
mod send_recorded;
mod service;
mod silence;
mod upstream;

pub use downstream::{BodyBudget, Buffered, Downstream, Unread};
pub use edge::EdgeProxy;
pub use engine::{Serving, serving};
pub use exchange::Exchanges;
pub use gate::{Attempts, Carried, Gate, ProxyLimits, UPGRADES, WebhookSecrets};
pub use pools::{Pool, Pools};

pub use crate::wire::{
    AcceptRules, Certificates, Issued, Listener, Places, Tls, acceptor, adopt, bind,
};
