//! What clients may take, as plain values that the configuration fills.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// What connections are taken under; read for each of them.
#[derive(Debug, Clone)]
pub struct AcceptRules {
    /// What a client may take.
    pub limits: ClientLimits,
    /// Whether a plain connection may be one of HTTP/2, by prior knowledge (RFC 9113 §3.3).
    pub h2c: bool,
    /// Requests on one connection before it is closed (HTTP/1.1).
    pub requests: u32,
    /// Who says with a PROXY header for whom it connects.
    pub proxies: Vec<IpNet>,
    /// Whose `X-Forwarded-*` and `Forwarded` count.
    pub trusted: Arc<[IpNet]>,
    /// `Strict-Transport-Security: max-age` of plain listeners' answers to requests that came to a
    /// trusted proxy over HTTPS.
    pub hsts: Option<Duration>,
}

/// What a client may take. A reload counts for connections that come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64; loopback addresses are not counted.
    pub max_connections_per_address: usize,
    /// From the connection's begin, or a later request's first byte, to the end of the head.
    pub header_timeout: Duration,
    /// Bytes of a head.
    pub header_bytes: usize,
    pub header_fields: usize,
    /// Between requests.
    pub idle: Duration,
    /// Bytes a second of a body, over the time that the edge waits for it; 0 for none.
    pub min_body_rate: u64,
    /// Bytes a second of a response, over the time that the edge waits for the client to take it; 0 for
    /// none.
    pub min_response_rate: u64,
    /// Waiting that the rates allow whatever was sent.
    pub rate_grace: Duration,
    /// Longest wait for the client to take anything at all.
    pub write_timeout: Duration,
}

impl ClientLimits {
    /// The same with up to an eighth more time, by `pick` (64 random bits). What came in one wave is not
    /// cut off in one: that would keep everybody else waiting for as long as it takes.
    pub fn apart(self, pick: u64) -> Self {
        let share = (pick % 1024) as u32;
        let longer = |time: Duration| time + time / 8 * share / 1024;
        Self {
            header_timeout: longer(self.header_timeout),
            rate_grace: longer(self.rate_grace),
            write_timeout: longer(self.write_timeout),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_came_together_are_not_cut_off_together() {
        const S: Duration = Duration::from_secs(8);
        let limits = ClientLimits {
            max_connections: 1,
            max_connections_per_address: 1,
            header_timeout: S,
            header_bytes: 1,
            header_fields: 1,
            idle: S,
            min_body_rate: 1,
            min_response_rate: 1,
            rate_grace: S,
            write_timeout: S,
        };
        let of = |pick| limits.apart(pick).header_timeout;
        assert_eq!((of(0), of(512)), (S, S + S / 16));
        assert!(of(1023) < S + S / 8 && of(u64::MAX) >= S);
        assert_eq!(limits.apart(1023).idle, S);
    }
}
