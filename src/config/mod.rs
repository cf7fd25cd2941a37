//! The operator's configuration: `edge.toml` and one file an app. What is read here is checked
//! whole; nothing later can find it wrong.
//!
//! Every key is documented with its default in `conf/`.

mod acme;
mod client;
mod edge;
mod keys;
mod load;
mod pages;
pub mod reload;
mod secret;

pub use crate::document::{Checked, Diagnostic};
pub use acme::{Acme, ExternalAccount, roots};
pub use client::{ClientConfig, TlsListener};
pub use edge::{
    AccessLogConfig, AccessLogPath, Admin, AdminToken, Affinity, AssetsConfig, AuditLimits, Config,
    LedgerLimits, Limits, LogConfig, OnExit, Role, RunnerConfig, Server, StateDir, TelemetryConfig,
    TraceConfig,
};
pub use load::load;
pub use secret::{Secret, SecretError, SecretSource, SecretValues, read_secret, write_private};
pub use vango_edge_core::control::promotion::Policy as Promotion;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::contract::Contract;
use crate::id::{AppName, EnvName, Environment, Host};
use crate::lifecycle::page::Branding;

/// The configuration in force: an immutable value that is swapped whole, so that a reader sees one
/// configuration and never half of two. The reloader is its one writer.
pub type Running = ArcSwap<Config>;

/// One file of `apps.dir`.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: AppName,
    /// Hosts of its production.
    pub hosts: Vec<Host>,
    /// Hosts of its previews.
    pub preview_hosts: Vec<HostPattern>,
    /// Secrets of its production; a list rotates, the first is the current one.
    pub secrets: BTreeMap<String, Vec<SecretSource>>,
    /// Secrets of its previews; they never see production's.
    pub preview_secrets: BTreeMap<String, Vec<SecretSource>>,
    /// Allocations at most, whatever its contract says.
    pub max_allocations: u32,
    /// Previews say `X-Robots-Tag: noindex`.
    pub preview_noindex: bool,
    /// Tokens that open its previews; none leaves them open to all. A list rotates.
    pub preview_access: Vec<SecretSource>,
    /// A preview for which nothing came for so long is removed; `None` keeps them.
    pub preview_age: Option<Duration>,
    /// What a promotion needs.
    pub promotion: Promotion,
    /// The app's file says so itself: production moves by a promotion only, and a deployment is stored.
    pub gated: bool,
    /// How the edge's own pages for it look, where that is not as the node says.
    pub pages: Branding,
    /// Its hosts' certificates are ordered where `[acme]` is, if no file has them.
    pub acme: bool,
    /// Where it runs, if this edge does not run it.
    pub upstreams: Option<Upstreams>,
}

/// A host with `{preview}` as one label or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// Before `{preview}`.
    pub before: String,
    /// After it.
    pub after: String,
}

impl App {
    /// The hosts that `environment` is to own: none for a preview whose name makes no host.
    pub fn hosts_of(&self, environment: &Environment) -> Vec<Host> {
        if environment.is_production() {
            return self.hosts.clone();
        }
        self.preview_hosts.iter().filter_map(|p| p.host(environment.name())).collect()
    }
}

impl HostPattern {
    /// The host of the preview `name`; `None` when it would be none (RFC 1035 §2.3.4).
    pub fn host(&self, name: &EnvName) -> Option<Host> {
        format!("{}{name}{}", self.before, self.after).parse().ok()
    }
}

/// An app that this edge does not run.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstreams {
    /// Where; none twice.
    pub addresses: Vec<SocketAddr>,
    /// Its routes and bounds.
    pub contract: Arc<Contract>,
    /// How it is found out which of them are up; `None`: each is, until it refuses a connection.
    pub health: Option<Health>,
}

/// `[health]` of an app that this edge does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `GET` of this path with this host is answered 200; `None`: it accepts a connection.
    pub request: Option<(String, String)>,
    /// From one check to the next.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Failed checks in a row that make one down.
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it up again.
    pub healthy_after: u32,
}
