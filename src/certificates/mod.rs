//! Certificates by ACME (RFC 8555): [`Orders`] records which are wanted, [`OrderWork`] carries an order out under a
//! lease, and [`Shown`] has on every node what the store says: the certificates that listeners serve, and what an
//! authority that looks at a host is to see. [`vango_edge_core::control::certificates`] decides when.
//!
//! A fleet orders once: an order is a record that one node makes and one executor claims, and the challenge is a
//! record as well, so that whichever node the authority's connection reaches answers it.
//!
//! What a killed process leaves, at each point, is on record before it is done: the account's key before the
//! authority sees it, the order's address with the certificate's key before the host is proved, and the certificate
//! in one transaction with the order's end. The next executor goes on from there.
//!
//! Private keys are in the store's records and in no log, trace, metric or answer of the admin API.
//!
//! Deliberately absent: wildcards, which need a record in the DNS, and orders for names that a client asks for:
//! any client could have any number ordered.

mod account;
mod authority;
mod list;
mod order_work;
mod orders;
mod shown;

pub use list::{Row, Source, rows};
pub use order_work::OrderWork;
pub use orders::{Orders, RenewError};
pub use shown::Shown;
