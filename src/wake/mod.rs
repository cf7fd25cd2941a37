//! Waking what sleeps: one operation for any number of requests.
//!
//! [`machine`] is pure: which operation to make or join, what each event does to it, how long to
//! back off, what those who wait are to do. [`hold`] keeps the waiters: bounded, in order, each
//! with its own absolute deadline, gone when dropped. [`worker`] performs an operation under a
//! lease, detached from every request.

pub mod ahead;
pub mod hold;
pub mod machine;
pub mod worker;
