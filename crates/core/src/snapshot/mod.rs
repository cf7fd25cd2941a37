//! What the hot path reads: who owns each host, under which epoch, and what is ready.
//!
//! A snapshot is immutable. It is made by one function ([`compile`]), published by one writer
//! ([`publish`]) and swapped atomically; a request pins one for each attempt. The last good one
//! outlives a bad configuration or a lost store. Publishing costs what changed: maps are split
//! into shards, and only the shards of changed names are made anew.

mod compile;
mod model;
mod publish;
mod shards;

pub use compile::{Change, Records, compile};
pub use model::{
    AllocationView, EnvCounters, EnvView, ExternalApp, Load, MAX_CLASSES, MAX_OUTCOMES,
    OperationView, Pin, Shelf, Slot, Snapshot, Tally, WaitsForRoom,
};
pub use publish::{Publisher, SnapshotReader};
