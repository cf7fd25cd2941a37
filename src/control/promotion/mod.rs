//! Promotions: an environment's owner moves to another artifact without a request failing for it.
//!
//! [`judge`] and [`machine`] are pure. [`request`] records what is asked for, [`execute`] carries it
//! through its states, each in one transaction, under a lease: an executor that is lost leaves the
//! promotion claimable, in the state it was in.
//!
//! The order is what keeps requests whole: an allocation of the **next** epoch is started first, and
//! gets no request, since it has no authority yet. Then the owner moves, in one transaction that names
//! the epoch that was read; from that revision on every new request goes to the new allocation, which is
//! ready. Then what served before drains ([`super::retire`]).

mod execute;
pub mod judge;
pub mod machine;
mod request;

pub use request::{PromoteError, Wanted};
