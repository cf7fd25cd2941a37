//! The pure core: facts about a request + an immutable snapshot + live counters + the time → the
//! next thing to do. No I/O, no clock, no randomness: the same inputs give the same steps.
//!
//! Read the files in the order a request meets them: [`origin`] says where it comes from, [`facts`] what
//! it is, [`hop`] what of it belongs to the connection it came on ([`trailers`] what may come behind a body),
//! [`enter`] who answers it: [`classify`] whose it is and what may be done with it, [`access`] whether a
//! preview is open to it, [`asset`] whether the artifact answers without the app, [`admit`] whether it
//! goes on, waits or is answered, [`idempotency`] what a key's record says and
//! becomes ([`print`] when two requests are one), [`webhook`] whether a provider's delivery is believed, [`recorded`] and [`delivery`] how a
//! request follows its record, [`place`] where it goes, [`retry`] what a failure allows, [`reply`] what
//! the edge answers itself, and [`trace`] keeps what was decided and why ([`parent`] says
//! below whose span), [`evidence`] for longer.
//! [`affinity`] says where a session was before, [`resume`] what a live socket's app is told about it,
//! [`hello`] which session a Vango client names. [`explain`] asks the same questions of a request
//! that is never sent.
//!
//! A cold request is a hot request plus one bounded wait: after the wait, [`admit::Journey`]
//! decides again, on the newest snapshot.

pub mod access;
pub mod admit;
pub mod affinity;
pub mod asset;
pub mod classify;
pub mod delivery;
pub mod enter;
pub mod evidence;
pub mod explain;
pub mod facts;
pub mod hello;
pub mod hop;
pub mod idempotency;
pub mod origin;
pub mod parent;
pub mod place;
pub mod print;
pub mod recorded;
pub mod reply;
pub mod resume;
pub mod retry;
pub mod trace;
pub mod trailers;
pub mod webhook;
