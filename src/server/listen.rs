//! The clients' listeners: bound or taken over, and their addresses told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;

use crate::admin;
use crate::config::Config;
use crate::proxy::{self, AcceptRules, Certificates, Issued, Places, Tls};
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
    issued: &Arc<Issued>,
) -> Result<(Vec<proxy::Listener>, Vec<Secure>)> {
    let (mut listeners, mut secure) = (Vec::new(), Vec::new());
    let plain = config.server.listen.iter().copied();
    let all: Vec<SocketAddr> = plain.chain(config.server.tls.iter().map(|t| t.listen)).collect();
    let mut bind = |key: &str, address: SocketAddr| {
        let bound = match handed.listener(address, &all) {
            Some(listener) => proxy::adopt(listener),
            None => {
                proxy::bind(address, all.contains(&(Ipv4Addr::UNSPECIFIED, address.port()).into()))
            }
        };
        let other = handed.on_port(address.port());
        bound.with_context(|| match other {
            Some(other) => format!(
                "{key} {address}: the service manager handed over a socket for {other}, which no key \
                 names: write {other} there, or ListenStream={address} in the socket's unit"
            ),
            None => format!("{key} {address}"),
        })
    };
    for address in &config.server.listen {
        listeners.push(bind("server.listen", *address)?);
    }
    for tls in &config.server.tls {
        let bound = bind("server.tls", tls.listen)?;
        let certificates = Certificates::new(&tls.certificates, Arc::clone(issued));
        let hsts = Arc::new(ArcSwap::from_pointee(tls.hsts));
        let acceptor = proxy::acceptor(Arc::clone(&certificates))?;
        let port = bound.address.port();
        listeners.push(bound.with_tls(Tls {
            acceptor,
            certificates: Arc::clone(&certificates),
            hsts: Arc::clone(&hsts),
        }));
        secure.push(Secure { port, certificates, hsts });
    }
    handed.finish();
    Ok((listeners, secure))
}

/// Connections that operators may have at once: more than they need, and few enough that they take
/// no descriptors that clients and apps need, whatever connects to the port.
const OPERATORS: usize = 1024;

/// The admin listener's bounds: clients' own, for each connection.
pub(super) fn operators(rules: &Arc<ArcSwap<AcceptRules>>) -> admin::Bounds {
    let (counts, heads) = (Arc::clone(rules), Arc::clone(rules));
    let places = Arc::<Places>::default();
    let admit = move |from| {
        let limits = counts.load().limits;
        places.set_most(limits.max_connections.min(OPERATORS));
        let mut place = places.take()?;
        let counted = place.count_for(from, limits.max_connections_per_address);
        counted.then(|| Box::new(place) as admin::Place)
    };
    let heads = move || {
        let limits = heads.load().limits;
        admin::HeadLimits {
            timeout: limits.header_timeout,
            bytes: limits.header_bytes,
            fields: limits.header_fields,
            idle: limits.idle,
        }
    };
    admin::Bounds { admit: Box::new(admit), heads: Box::new(heads) }
}

/// One JSON line on stdout: a caller that asked for port 0 reads there which port it got.
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
