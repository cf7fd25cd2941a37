//! What the edge decides: a pure core, without a runtime, a proxy, files, sockets or clocks among its
//! dependencies. Facts, a snapshot, live counters and the time go in; the next thing to do comes out.
//!
//! Modules in reading order. Those that have a namesake in `vango-edge` are the pure part of that one.

pub mod clock;
pub mod document;
pub mod id;
pub mod line;

pub mod assets;
pub mod contract;
pub mod record;

pub mod snapshot;

pub mod control;
pub mod lifecycle;
pub mod wake;
