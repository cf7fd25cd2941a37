//! vango-edge: the edge of a scale-to-zero platform.
//!
//! Modules in reading order; `ARCHITECTURE.md` says how to read them and which way the arrows go,
//! and `tests/tidy.rs` enforces it.

/// What the edge decides; see [`vango_edge_core`].
pub use vango_edge_core::{assets, contract, document, id, lifecycle, line, record, snapshot};
/// Shared truth; see [`vango_edge_store`].
pub use vango_edge_store as store;
/// Clients' connections; see [`vango_edge_wire`].
pub use vango_edge_wire as wire;

pub mod clock;
pub mod crash;
pub mod files;

pub mod app;

pub mod config;

pub mod node;

pub mod wake;

pub mod ledger;
pub mod session;
pub mod sockets;

pub mod artifact;
pub mod certificates;
pub mod output;
pub mod runner;

pub mod control;
pub mod proxy;
pub mod telemetry;

pub mod admin;
pub mod cli;
pub mod server;
pub mod systemd;
