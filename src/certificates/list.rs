//! Which certificate each host has, and what is being done about it; nothing of a key is in that.

use std::collections::BTreeMap;

use crate::clock::Wall;
use crate::config::Config;
use vango_edge_core::control::certificates::{Due, due, is_orderable};

use super::shown::Shown;

/// Where a host's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File,
    Acme,
    /// It has none, and none is ordered.
    None,
}

impl Source {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Acme => "acme",
            Self::None => "none",
        }
    }
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// A host, or a wildcard of a file.
    pub name: String,
    pub source: Source,
    pub file: Option<String>,
    /// Until when it is good.
    pub expires: Option<Wall>,
    /// Where its newest order is.
    pub order: Option<&'static str>,
    /// Why that failed.
    pub error: Option<String>,
    /// When the next order is due.
    pub next: Option<Wall>,
}

/// Every name that has a certificate, or an app, by name.
pub fn rows(config: &Config, shown: &Shown, now: Wall) -> Vec<Row> {
    let mut all = BTreeMap::new();
    let row = |name: &str, source| Row {
        name: name.to_owned(),
        source,
        file: None,
        expires: None,
        order: None,
        error: None,
        next: None,
    };
    if !config.server.tls.is_empty() {
        for host in config.apps.values().flat_map(|app| &app.hosts) {
            let mut none = row(host.as_str(), Source::None);
            if !is_orderable(host) && config.acme.is_some() {
                none.error = Some("it is no name that an authority could look at".into());
            }
            all.insert(none.name.clone(), none);
        }
    }
    for file in config.server.tls.iter().flat_map(|l| &l.certificates) {
        let covered = all.keys().filter(|host| file.covers(host)).cloned();
        for name in file.names.iter().cloned().chain(covered.collect::<Vec<_>>()) {
            let mut one = row(&name, Source::File);
            one.file = Some(file.cert.display().to_string());
            one.expires = file.expires.map(|at| Wall(at.saturating_mul(1000)));
            all.entry(name)
                .and_modify(|known| {
                    if known.source == Source::None {
                        *known = one.clone();
                    }
                })
                .or_insert(one);
        }
    }
    let known = shown.known();
    for (acme, host) in config.acme.iter().flat_map(|a| config.ordered_hosts().map(move |h| (a, h)))
    {
        let mut one = row(host.as_str(), Source::Acme);
        one.expires = known.certificates.get(host).map(|c| c.not_after);
        let order = known.orders.get(host).map(|o| &o.record);
        one.order = order.map(|o| o.state.name());
        one.error = order.and_then(|o| o.failure.clone());
        one.next = match due(&known.of(host), &acme.rules(), now) {
            Due::UnderWay => None,
            Due::Now => Some(now),
            Due::At(at) => Some(at),
        };
        all.insert(one.name.clone(), one);
    }
    all.into_values().collect()
}
