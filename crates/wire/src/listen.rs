//! Listening sockets: bound or taken over, and emptied before they are closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use pingora::listeners::tls::Acceptor;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::tls::Certificates;

/// Connections the kernel may queue before they are accepted; `net.core.somaxconn` bounds it too.
pub(crate) const BACKLOG: u32 = 4096;

/// Bytes of an answer that the kernel takes ahead of what it could send already
/// (`TCP_NOTSENT_LOWAT`, tcp(7)). Its own bound is megabytes for each connection: clients that ask
/// for much and read nothing would have the edge fetch and copy all that. It bounds nothing that is
/// on its way, so a fast client is not slower for it.
pub(crate) const UNSENT: u32 = 128 * 1024;

#[derive(Clone)]
pub(crate) struct NotSentLowAt;

nix::setsockopt_impl!(
    NotSentLowAt,
    libc::IPPROTO_TCP,
    libc::TCP_NOTSENT_LOWAT,
    u32,
    nix::sys::socket::sockopt::SetStruct<u32>
);

#[derive(Clone)]
struct AttachFilter;

nix::setsockopt_impl!(
    AttachFilter,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog,
    nix::sys::socket::sockopt::SetStruct<libc::sock_fprog>
);

/// A bound listening socket.
pub struct Listener {
    pub(crate) listener: TcpListener,
    /// Where it listens; the kernel's choice when port 0 was asked for.
    pub address: SocketAddr,
    pub(crate) tls: Option<Tls>,
    /// The service manager has it too, and gives it to the next process.
    pub(crate) shared: bool,
}

/// What a listener with TLS needs.
pub struct Tls {
    /// Performs handshakes.
    pub acceptor: Acceptor,
    pub certificates: Arc<Certificates>,
    /// `Strict-Transport-Security: max-age` of its answers. Read for each connection.
    pub hsts: Arc<ArcSwap<Option<Duration>>>,
}

/// Binds `address`. `[::]` takes IPv4 clients too, unless `both`: then another listener has `0.0.0.0` on its
/// port.
///
/// # Errors
/// The system's: the address is in use, not ours, or privileged.
pub fn bind(address: SocketAddr, both: bool) -> std::io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if both && address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok(Listener { listener, address, tls: None, shared: false })
}

/// A socket that listens already, handed over by the service manager.
///
/// # Errors
/// The system's, when it is no listening socket.
pub fn adopt(listener: std::net::TcpListener) -> std::io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok(Listener { listener, address, tls: None, shared: true })
}

/// Has the kernel drop every SYN to `listener`, with a filter of four instructions (SO_ATTACH_FILTER, socket(7)):
/// what it has queued can then be taken to the last one. Without it a client that connects between
/// the last accept and the close is reset. One whose SYN was dropped sends another, and is refused then.
/// A handshake whose last segment is still on its way when the listener closes is reset all the same.
pub(crate) fn take_no_new(listener: &TcpListener) -> nix::Result<()> {
    let code = |class: u32, rest: u32| (class | rest) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // A filter of a TCP socket sees the segment from its header on (RFC 9293 §3.1).
    let (flags, syn) = (13, 2);
    let mut program = [
        step(code(libc::BPF_LD, libc::BPF_B | libc::BPF_ABS), 0, 0, flags),
        step(code(libc::BPF_JMP, libc::BPF_JSET | libc::BPF_K), 0, 1, syn),
        step(code(libc::BPF_RET, libc::BPF_K), 0, 0, 0),
        step(code(libc::BPF_RET, libc::BPF_K), 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(listener, AttachFilter, &program)
}

/// The next connection that the kernel has queued; `None` where there is none. The kernel itself is asked: what
/// Tokio knows of a listener is as old as its last look at all sockets, which on a busy machine is before
/// many of them came.
///
/// # Errors
/// The system's: out of descriptors or memory, and the connection stays queued.
pub(crate) fn next_queued(
    listener: &std::net::TcpListener,
) -> std::io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok((tcp, peer)) => {
                tcp.set_nonblocking(true)?;
                return Ok(Some((TcpStream::from_std(tcp)?, peer)));
            }
            // This one is gone again (accept(2)).
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

impl Listener {
    /// Whether it is for HTTPS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The same, for HTTPS.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_has_queued_is_taken_to_the_last_and_nothing_more_comes() {
        let Listener { listener, address, .. } =
            bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        // Nothing has looked at the sockets of this runtime yet.
        let clients: Vec<_> = (0..50).map(|_| connect().unwrap()).collect();
        take_no_new(&listener).unwrap();
        assert!(connect().is_err(), "its SYN is dropped");
        let listener = listener.into_std().unwrap();
        let all = std::iter::from_fn(|| next_queued(&listener).unwrap());
        let taken: Vec<_> = all.map(|(_, peer)| peer).collect();
        drop(listener);
        let asked: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        assert_eq!(taken, asked);
        let refused = connect().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
