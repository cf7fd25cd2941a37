//! Waking what sleeps: one operation for any number of requests.
//!
//! [`machine`], of the core, is pure: which operation to make or join, what each event does to it, how long to
//! back off, what the requests that wait are to do. [`hold`] keeps the waiters: bounded, in order, each
//! with its own absolute deadline, gone when dropped. [`Wakes`] is where requests ask; an [`Executor`] carries
//! out what they ask for, under a lease, detached from every request. [`Starts`] is the only way up for an
//! allocation, for a wake or ahead of an owner's move; [`Allocations`] the only way back and the only way
//! down. [`Exits`] are told by the processes themselves, [`Inheritance`] is what one process of the edge
//! leaves to the next.

mod allocations;
mod executor;
mod exits;
pub mod hold;
mod inherit;
mod starts;
mod wakes;

pub use vango_edge_core::wake::machine;

pub use allocations::{Allocations, Froze};
pub use executor::{Executor, LeaseClaim, Leased, Lost, Work};
pub use exits::Exits;
pub use inherit::{Inheritance, TakenOver};
pub use starts::{NotStarted, Secrets, StartRequest, Starts};
pub use wakes::{Observer, WakeWork, Wakes};
