//! Whose connection it is, and what it may take: trusted proxies, addresses, HTTP/2 windows.

mod bounds;
mod proxies;
mod sockets;
mod windows;
