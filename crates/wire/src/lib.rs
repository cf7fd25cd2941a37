//! Clients' connections under Pingora's HTTP: what the edge adds there, and why.
//!
//! Pingora serves HTTP over any stream that it is given. Its own server, which would give it those, owns
//! signals, shutdown and listening sockets in ways that an edge with reload and drain cannot use, and bounds
//! little of what a client may take. So the edge accepts connections itself and hands each one over, wrapped.
//! Nothing here knows of routes, apps or requests' contents: [`Observer`] says what the edge is told, and
//! Pingora's engine is a parameter of [`Serving`].
//!
//! From the socket up, what each part adds to Pingora and what fails without it:
//!
//! | part | what it adds | without it |
//! |---|---|---|
//! | `listen` | binds, or takes over from the service manager; empties the kernel's queue under a filter that drops each SYN | a client that connects while the edge stops is reset |
//! | `serve` | the accept loop, the order in which a connection begins, keepalive by the client's limits, and draining | Pingora's grace period is a sleep of fixed length, and its listeners close first |
//! | `admission` | so many connections in all and from one address; those that asked for nothing give way | a flood takes every place, and the clients that ask get none |
//! | `proxied` | the PROXY protocol, version 2, from trusted proxies only, with or without TLS below it | Pingora reads it on TLS listeners only |
//! | `certificate`, `tls` | certificates by name that a reload or an authority replaces, which names one covers, and what an authority that validates a name is shown | a request could reach another host than its client verified (RFC 9113 §9.1.1) |
//! | `hello` | says that a name has no certificate, where that may be | rustls says `access_denied`, which reads as the client's fault |
//! | `client` | what is known of a connection, found by the callbacks in its session's digest | the guard could not know for whom the edge waits, nor a callback who asks |
//! | `limits` | what a client may take, as plain values | |
//! | `guard` | deadlines and rates for head, body and answer, sizes of a head, what a FIN means, and the edge's own answer to a head that Pingora cannot read | a byte a minute keeps a connection (Pingora's timeouts are for each read), and such a head is answered as `Server: Pingora`, uncounted |
//! | `meter` | counts only time in which the client was waited for | a slow app would be held against its client |
//! | `pace` | 64 KiB of an answer, then other tasks have their turn; timers that exist once they are needed | one fast reader takes a thread for megabytes; an idle connection keeps two timers |
//! | `gather` | head and body of a small answer in one write | Pingora makes two, and the second costs more than the rest of the request |
//! | `linger` | what still comes after an answer is read and dropped, within bounds | a close with bytes unread is a reset, which takes the answer with it (RFC 9112 §9.6) |
//! | [`turns`] | on each thread, an order: a request of usual size on a connection that was answered before goes first | a wave of bodies that drip, or of handshakes, has a hot request wait behind all of it (figures on its page) |
//! | [`peer`] | whether a peer is still there, asked of the kernel | a held request goes to its app after its client has gone |
//!
//! Invariants:
//! - An address, a name or a rate is judged once, where it enters; a reload counts for connections that come
//!   after it, and certificates for the next handshake.
//! - Whatever is waited for has a deadline, and each cut is counted once, under its own name ([`Cut`]).
//! - A connection that was proved is never displaced, and a displaced one asks for nothing.
//! - What an idle connection keeps is asserted in `serve`'s tests.
//!
//! Deliberately absent: HTTP. What is wrong in Pingora's own reading of it is corrected in `vendor/`.

mod admission;
pub mod certificate;
mod client;
mod gather;
mod guard;
mod hello;
mod limits;
mod linger;
mod listen;
mod meter;
mod observer;
mod pace;
pub mod peer;
mod proxied;
mod serve;
mod tls;
pub mod turns;

pub use admission::{Places, Share};
pub use client::{Client, ExpectedBody, Phase};
pub use guard::Guarded;
pub use limits::{AcceptRules, ClientLimits};
pub use listen::{Listener, Tls, adopt, bind};
pub use observer::{Cut, Observer};
pub use serve::Serving;
pub use tls::{Certificates, Issued, acceptor};
