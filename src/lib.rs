//! vango-edge: the edge of a scale-to-zero platform.
//!
//! Modules in reading order; `ARCHITECTURE.md` says how to read them and which way the arrows go,
//! and `tests/tidy.rs` enforces it.

pub mod clock;
pub mod crash;
pub mod id;

pub mod assets;
pub mod certificate;
pub mod document;

pub mod config;
pub mod contract;

pub mod store;

pub mod snapshot;

pub mod lifecycle;
pub mod wake;

pub mod ledger;
pub mod session;
pub mod sockets;

pub mod artifact;
pub mod runner;

pub mod control;
pub mod proxy;
pub mod telemetry;

pub mod admin;
pub mod cli;
pub mod server;
pub mod systemd;
