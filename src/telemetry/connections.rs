//! Metrics of client connections: how many are open, and why others were cut off.

use std::path::Path;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Why the edge ended a connection or a request that its client would have gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As many connections as may are open.
    Connections,
    /// As many as may come from one address.
    Address,
    /// It had asked for nothing, and places became scarce.
    Displaced,
    /// No TLS handshake came about.
    Handshake,
    /// A PROXY header from who may not send one, or none from who must.
    ProxyHeader,
    /// The head was not whole in time.
    HeaderTime,
    /// The head is too large.
    HeaderSize,
    /// The body came too slowly.
    BodyRate,
    /// The client took the response too slowly.
    ResponseRate,
    /// The client took nothing at all.
    WriteTime,
    /// It reset too many streams.
    Resets,
}

impl Cut {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Connections,
        Self::Address,
        Self::Displaced,
        Self::Handshake,
        Self::ProxyHeader,
        Self::HeaderTime,
        Self::HeaderSize,
        Self::BodyRate,
        Self::ResponseRate,
        Self::WriteTime,
        Self::Resets,
    ];

    /// Its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Displaced => "displaced",
            Self::Handshake => "handshake",
            Self::ProxyHeader => "proxy-header",
            Self::HeaderTime => "header-time",
            Self::HeaderSize => "header-size",
            Self::BodyRate => "body-rate",
            Self::ResponseRate => "response-rate",
            Self::WriteTime => "write-time",
            Self::Resets => "resets",
        }
    }
}

/// Handles, made once.
#[derive(Debug)]
pub struct Connections {
    open: IntGauge,
    cuts: [IntCounter; Cut::ALL.len()],
    expiry: IntGaugeVec,
}

impl Connections {
    /// Registers them with `registry`.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let open = IntGauge::new("client_connections", "Client connections that are open.")?;
        let cuts = IntCounterVec::new(
            Opts::new("cutoffs_total", "Connections and requests that a limit ended."),
            &["limit"],
        )?;
        let expiry = IntGaugeVec::new(
            Opts::new(
                "certificate_expiry_timestamp_seconds",
                "Until when each certificate that is served is good.",
            ),
            &["certificate"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        registry.register(Box::new(open.clone()))?;
        registry.register(Box::new(cuts.clone()))?;
        Ok(Self { open, cuts: Cut::ALL.map(|c| cuts.with_label_values(&[c.name()])), expiry })
    }

    /// One is open until the guard is dropped.
    pub fn opened(&self) -> Open {
        Open::new(&self.open)
    }

    /// These certificates are served, by their files, until these seconds since 1970.
    pub fn certificates<'a>(&self, all: impl Iterator<Item = (&'a Path, u64)>) {
        self.expiry.reset();
        for (file, expires) in all {
            let gauge = self.expiry.with_label_values(&[&*file.to_string_lossy()]);
            gauge.set(i64::try_from(expires).unwrap_or(i64::MAX));
        }
    }

    /// One was cut off.
    pub fn cut(&self, why: Cut) {
        self.cuts[why as usize].inc();
    }
}

/// One of those that a gauge counts, until it is dropped.
#[derive(Debug)]
pub struct Open(IntGauge);

impl Open {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
