//! The service manager: sockets that it hands over (sd_listen_fds(3)), and what it is told
//! (sd_notify(3)). Without one, none of this does anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use sd_notify::NotifyState;

/// Listening sockets that were handed over.
#[derive(Debug, Default)]
pub struct Handed(Vec<(SocketAddr, TcpListener)>);

impl Handed {
    /// Takes them. Once a process, and before there are threads: it changes the environment, so that
    /// no child takes them for its own.
    pub fn take() -> Self {
        let mut all = Vec::new();
        let mut handed = listenfd::ListenFd::from_env();
        for n in 0..handed.len() {
            match handed.take_tcp_listener(n) {
                Ok(Some(listener)) => match listener.local_addr() {
                    Ok(address) => all.push((address, listener)),
                    Err(e) => log::warn!("handed over socket {n}: {e}"),
                },
                Ok(None) => {}
                Err(e) => log::warn!("handed over socket {n} is no TCP listener: {e}"),
            }
        }
        Self(all)
    }

    /// The one that listens on `address`. `ListenStream=443` makes one for both families on `[::]:443`,
    /// which serves `0.0.0.0:443` unless another of `all` addresses names it.
    pub fn listener(&mut self, address: SocketAddr, all: &[SocketAddr]) -> Option<TcpListener> {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        let serves = |(a, listener): &(SocketAddr, TcpListener)| {
            *a == both
                && address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                && !all.contains(a)
                && getsockopt(listener, Ipv6V6Only) == Ok(false)
        };
        let own = self.0.iter().position(|(a, _)| *a == address);
        let at = own.or_else(|| self.0.iter().position(serves))?;
        Some(self.0.swap_remove(at).1)
    }

    /// One on `port` that was not asked for.
    pub fn on_port(&self, port: u16) -> Option<SocketAddr> {
        self.0.iter().map(|(a, _)| *a).find(|a| a.port() == port)
    }

    /// Says which ones no key of the configuration asked for; they are closed.
    pub fn finish(self) {
        for (address, _) in self.0 {
            log::warn!("a socket for {address} was handed over, and no key names that address");
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::warn!("the service manager could not be told: {e}");
    }
}

/// It takes traffic, or a reload is over.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => log::warn!("the service manager could not be told: {e}"),
    }
}

/// It is going to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}
