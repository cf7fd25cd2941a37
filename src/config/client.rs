//! What a client may take: `[limits.client]`, and the listeners that need more than an address.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::document::Table;
use crate::wire::ClientLimits;
use crate::wire::certificate::Certificate;

use super::keys::{DAY, Differences, Keys, MS, keys, number, secs, size, time};

keys! {
    /// `[limits.client]`
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ClientConfig in "limits.client." {
        /// What each connection may take.
        each connection: ClientLimits = of_this_table(),
        /// HTTP/2 streams of a connection at once.
        restart h2_streams: u32 = number(1..=10_000, 100),
        /// HTTP/2: bytes of a body that a stream may send ahead.
        restart h2_window: u32 = size(1024..=16 << 20, 64 << 10),
        /// HTTP/2: bytes on the node that windows may grow to together beyond it, and that answers may hold
        /// which wait for their clients.
        restart h2_memory: usize = size(1 << 20..=1 << 40, 256 << 20),
    }
}

keys! {
    for ClientLimits in "limits.client." {
        with_table max_connections = number(1..=10_000_000, 32_768),
        with_table max_connections_per_address = number(1..=10_000_000, 1024),
        with_table header_timeout = time(MS..=secs(600), secs(10)),
        with_table header_bytes = size(1024..=1 << 20, 64 << 10),
        with_table header_fields = number(8..=256, 128),
        with_table idle = time(secs(1)..=secs(3600), secs(60)),
        with_table min_body_rate = size(0..=1 << 30, 240),
        with_table min_response_rate = size(0..=1 << 30, 240),
        with_table rate_grace = time(MS..=secs(600), secs(10)),
        with_table write_timeout = time(MS..=secs(600), secs(30)),
    }
}

/// Keys of this very table.
fn of_this_table<T: Keys>(t: &Table<'_>, _: &'static str) -> T {
    T::read(t)
}

/// `[[server.tls]]`
#[derive(Debug, Clone, PartialEq)]
pub struct TlsListener {
    /// The address that clients connect to.
    pub listen: SocketAddr,
    /// By the names in them; the first answers for every other name. None only where an authority issues them.
    pub certificates: Vec<Certificate>,
    /// `Strict-Transport-Security: max-age`; `None` sends none.
    pub hsts: Option<Duration>,
}

impl Differences {
    /// The sockets stay; certificates are read again.
    pub fn listeners(
        &mut self,
        key: &str,
        running: &Vec<TlsListener>,
        file: &mut Vec<TlsListener>,
    ) {
        let listens = |all: &[TlsListener]| all.iter().map(|l| l.listen).collect::<Vec<_>>();
        if listens(running) == listens(file) {
            self.now(key, running, file);
        } else {
            self.restart(&format!("{key}.listen"), running, file);
        }
    }
}

/// `text`, found under `key`, as an address; `example` says what one is.
pub fn address(t: &Table<'_>, key: &str, text: &str, example: &str) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        let expected = format!("expected an address and port such as {example:?}");
        t.error(key, format!("{expected}, found {text:?}"));
    }
    address
}

/// Reads every `[[server.tls]]`.
pub fn tls(server: &Table<'_>, key: &'static str) -> Vec<TlsListener> {
    let mut out: Vec<TlsListener> = Vec::new();
    for t in server.tables(key) {
        let listen =
            t.required("listen").and_then(|text| address(&t, "listen", &text, "0.0.0.0:443"));
        let mut certificates = Vec::new();
        for c in t.tables("certificates") {
            if let (Some(cert), Some(key)) = (c.required("cert"), c.required("key")) {
                match Certificate::load(&t.beside(cert), &t.beside(key)) {
                    Ok(certificate) => certificates.push(certificate),
                    Err(e) => c.error_here(e.to_string()),
                }
            }
            c.finish();
        }
        let hsts = hsts(&t, "hsts");
        if let Some(listen) = listen {
            if out.iter().any(|l| l.listen == listen) && listen.port() != 0 {
                t.error("listen", format!("{listen} is there twice"));
            }
            out.push(TlsListener { listen, certificates, hsts });
        }
        t.finish();
    }
    out
}

/// Reads `hsts`; `None` sends none.
pub fn hsts(t: &Table<'_>, key: &'static str) -> Option<Duration> {
    let age = t.duration(key, Duration::ZERO..=2 * 366 * DAY, Duration::ZERO);
    (!age.is_zero()).then_some(age)
}

/// Reads `proxy_protocol_from` or `trusted_proxies`: addresses or networks.
pub fn networks<T: FromIterator<IpNet>>(t: &Table<'_>, key: &'static str) -> T {
    let parse = |text: &String| {
        let net = text.parse::<IpNet>().ok();
        let net = net.or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
        if net.is_none() {
            let expected = "expected an address or network such as \"10.0.0.0/8\"";
            t.error(key, format!("{expected}, found {text:?}"));
        }
        net
    };
    t.texts(key).iter().filter_map(parse).collect()
}
