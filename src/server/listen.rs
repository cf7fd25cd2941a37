//! The clients' listeners: bound or taken over, and their addresses told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;

use crate::config::Config;
use crate::proxy::{self, Certificates, Tls};
use crate::systemd::Handed;

/// A listener's certificates and what else of it a reload changes.
#[derive(Clone)]
pub(super) struct Secure {
    pub(super) port: u16,
    pub(super) certificates: Arc<Certificates>,
    pub(super) hsts: Arc<ArcSwap<Option<Duration>>>,
}

/// Every listener of clients, in the configuration's order: plain ones first. One that was handed
/// over listens already.
pub(super) fn bind(
    config: &Config,
    mut handed: Handed,
) -> Result<(Vec<proxy::Listener>, Vec<Secure>)> {
    let (mut listeners, mut secure) = (Vec::new(), Vec::new());
    let mut bind = |address| match handed.listener(address) {
        Some(listener) => proxy::adopt(listener),
        None => proxy::bind(address),
    };
    for address in &config.server.listen {
        let bound = bind(*address);
        listeners.push(bound.with_context(|| format!("server.listen {address}"))?);
    }
    for tls in &config.server.tls {
        let bound = bind(tls.listen).with_context(|| format!("server.tls {}", tls.listen))?;
        let certificates = Certificates::new(&tls.certificates);
        let hsts = Arc::new(ArcSwap::from_pointee(tls.hsts));
        let acceptor = proxy::acceptor(Arc::clone(&certificates))?;
        let port = bound.address.port();
        listeners.push(bound.with_tls(Tls { acceptor, hsts: Arc::clone(&hsts) }));
        secure.push(Secure { port, certificates, hsts });
    }
    handed.finish();
    Ok((listeners, secure))
}

/// One JSON line on stdout, so that whoever asked for port 0 learns what it got.
pub(super) fn print_addresses(
    listeners: &[proxy::Listener],
    admin: &tokio::net::TcpListener,
) -> Result<()> {
    use std::io::Write;
    let of = |secure: bool| -> Vec<String> {
        let listeners = listeners.iter().filter(|l| l.is_secure() == secure);
        listeners.map(|l| l.address.to_string()).collect()
    };
    let admin = admin.local_addr()?.to_string();
    let mut line = serde_json::json!({ "listen": of(false), "admin": admin });
    if !of(true).is_empty() {
        line["tls"] = of(true).into();
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// Where this machine reaches a listener that is bound to `bound`.
pub(super) fn from_here(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, bound.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, bound.port()).into(),
        _ => bound,
    }
}
