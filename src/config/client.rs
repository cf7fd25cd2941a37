//! What a client may take: `[limits.client]`, and the listeners that need more than an address.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use crate::certificate::Certificate;
use crate::document::Table;

const MS: Duration = Duration::from_millis(1);
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `[limits.client]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64.
    pub max_connections_per_address: usize,
    /// From a connection's begin, or a later request's first byte, to the end of the head.
    pub header_timeout: Duration,
    /// Bytes of a head.
    pub header_bytes: usize,
    /// Header fields.
    pub header_fields: usize,
    /// Between requests.
    pub idle: Duration,
    /// Bytes a second of a body, over the time that the edge waits for it; 0 for none.
    pub min_body_rate: u64,
    /// Bytes a second of a response, over the time that the edge waits for the client to take it;
    /// 0 for none.
    pub min_response_rate: u64,
    /// Waiting that the rates allow whatever was sent.
    pub rate_grace: Duration,
    /// Longest wait for the client to take anything at all.
    pub write_timeout: Duration,
    /// HTTP/2 streams of a connection at once.
    pub h2_streams: u32,
    /// HTTP/2: bytes of a body that a stream may send ahead.
    pub h2_window: u32,
    /// HTTP/2: bytes on the node that windows may grow to together beyond it, and that answers may hold
    /// which wait for their clients.
    pub h2_memory: usize,
}

/// Reads `[limits.client]`.
pub fn limits(limits: &Table<'_>) -> ClientLimits {
    let t = limits.table("client");
    let count = |key, default: u64| t.integer(key, 1..=10_000_000).unwrap_or(default) as usize;
    let client = ClientLimits {
        max_connections: count("max_connections", 32_768),
        max_connections_per_address: count("max_connections_per_address", 1024),
        header_timeout: t.duration("header_timeout", MS..=secs(600), secs(10)),
        header_bytes: t.size("header_bytes", 1024..=1 << 20).unwrap_or(64 << 10) as usize,
        header_fields: t.integer("header_fields", 8..=256).unwrap_or(128) as usize,
        idle: t.duration("idle", secs(1)..=secs(3600), secs(60)),
        min_body_rate: t.size("min_body_rate", 0..=1 << 30).unwrap_or(240),
        min_response_rate: t.size("min_response_rate", 0..=1 << 30).unwrap_or(240),
        rate_grace: t.duration("rate_grace", MS..=secs(600), secs(10)),
        write_timeout: t.duration("write_timeout", MS..=secs(600), secs(30)),
        h2_streams: t.integer("h2_streams", 1..=10_000).unwrap_or(100) as u32,
        h2_window: t.size("h2_window", 1024..=16 << 20).unwrap_or(64 << 10) as u32,
        h2_memory: t.size("h2_memory", 1 << 20..=1 << 40).unwrap_or(256 << 20) as usize,
    };
    t.finish();
    client
}

/// `[[server.tls]]`
#[derive(Debug, Clone, PartialEq)]
pub struct TlsListener {
    /// Where.
    pub listen: SocketAddr,
    /// By the names in them; the first answers for every other name. Never empty.
    pub certificates: Vec<Certificate>,
    /// `Strict-Transport-Security: max-age`; `None` sends none.
    pub hsts: Option<Duration>,
}

/// Reads every `[[server.tls]]`.
pub fn tls(server: &Table<'_>, base: &Path) -> Vec<TlsListener> {
    let mut out: Vec<TlsListener> = Vec::new();
    for t in server.tables("tls") {
        let listen = t.required("listen").and_then(|text| match text.parse::<SocketAddr>() {
            Ok(a) => Some(a),
            Err(_) => {
                let expected = "expected an address and port such as \"0.0.0.0:443\"";
                t.error("listen", format!("{expected}, found {text:?}"));
                None
            }
        });
        let mut certificates = Vec::new();
        let tables = t.tables("certificates");
        if tables.is_empty() {
            let how = "expected certificates = [{ cert = \"cert.pem\", key = \"key.pem\" }]";
            t.error("certificates", how);
        }
        for c in tables {
            if let (Some(cert), Some(key)) = (c.required("cert"), c.required("key")) {
                match Certificate::load(&base.join(cert), &base.join(key)) {
                    Ok(certificate) => certificates.push(certificate),
                    Err(e) => c.error_here(e.to_string()),
                }
            }
            c.finish();
        }
        let hsts = hsts(&t);
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
pub fn hsts(t: &Table<'_>) -> Option<Duration> {
    let age = t.duration("hsts", Duration::ZERO..=secs(2 * 366 * 86_400), Duration::ZERO);
    (!age.is_zero()).then_some(age)
}

/// Reads `proxy_protocol_from` or `trusted_proxies`: addresses or networks.
pub fn networks(t: &Table<'_>, key: &'static str) -> Vec<IpNet> {
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
