//! The pure core: facts about a request + an immutable snapshot + live counters + the time → the
//! next thing to do. No I/O, no clock, no randomness: the same inputs give the same steps.
//!
//! Read the files in the order a request meets them: [`origin`] says where it comes from, [`facts`] what
//! it is, [`fields`] which fields of it belong to the connection it came on and which cookies it brings,
//! [`forms`] how its body is written, [`validation`] whether an authority looks at its host,
//! [`enter`] who answers it, what may be done with it, and under which route: [`access`] whether a
//! preview is open to it, [`asset`] whether the artifact answers without the app, [`journey`] how it goes
//! on: where it is placed, sent, held, answered; [`idempotency`] when two requests are one, and what a
//! key's record says and becomes, [`webhook`] whether a provider's delivery is to be believed, [`reply`]
//! what the edge answers itself, [`answer`] how: [`grpc_status`] to a call of gRPC's ([`grpc`] knows one),
//! [`page`] to a person, [`standing`] where that page asks how its app stands, and [`trace`] keeps what was decided and why.
//! [`affinity`] says where a session was before, [`resume`] what a live socket's app is told about it,
//! [`hello`] which session a Vango client names. [`explain`] asks the same questions of a request
//! that is never sent.

pub mod access;
pub mod affinity;
pub mod answer;
pub mod asset;
pub mod enter;
pub mod explain;
pub mod facts;
pub mod fields;
pub mod forms;
pub mod grpc;
pub mod grpc_status;
pub mod hello;
pub mod idempotency;
pub mod journey;
pub mod origin;
pub mod page;
pub mod reply;
pub mod resume;
pub mod standing;
pub mod trace;
pub mod validation;
pub mod webhook;
