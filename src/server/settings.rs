//! What each part is told of the configuration: the same functions at the start and with a reload, so
//! that a part which is reloaded stands as if it had been started with it.

use std::sync::Arc;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;

use crate::admin::access::Access;
use crate::clock::{Clock, Entropy};
use crate::config::{self, Config, SecretValues};
use crate::control::{Commit, Prepare};
use crate::id::Environment;
use crate::lifecycle::access::{PreviewPolicies, PreviewPolicy};
use crate::lifecycle::enter::{Brands, HttpsRedirect, Policies};
use crate::lifecycle::page::{Brand, Branding};
use crate::proxy::{AcceptRules, BodyBudget, Places, Pool, Pools, ProxyLimits};
use crate::runner::Runner;
use crate::session::{KeyRing, Sessions};
use crate::snapshot::ExternalApp;
use crate::telemetry::Telemetry;
use crate::wake::hold::{HoldLimits, HoldQueues};

use super::listen::Secure;

/// What keeps a part of the configuration. Everything else reads it where it is in force.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) secrets: Arc<SecretValues>,
    pub(super) externals: Arc<tokio::sync::watch::Sender<Arc<Vec<ExternalApp>>>>,
    pub(super) pools: Arc<Pools>,
    pub(super) queues: Arc<HoldQueues>,
    pub(super) limits: Arc<ArcSwap<ProxyLimits>>,
    pub(super) budget: Arc<BodyBudget>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) access: Arc<ArcSwap<Access>>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) rules: Arc<ArcSwap<AcceptRules>>,
    pub(super) admission: Arc<Places>,
    pub(super) secure: Vec<Secure>,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) policies: Arc<ArcSwap<Policies>>,
}

/// How a reloaded configuration reaches these parts.
pub(super) fn prepare(parts: Parts) -> Prepare {
    Box::new(move |config| {
        let access = Access::new(&config.admin).map_err(|e| vec![e.to_string()])?;
        let keys = &config.affinity.keys;
        let affinity = KeyRing::load(keys, &config.state.dir, &*parts.clock, &*parts.entropy)
            .map_err(|e| vec![e.to_string()])?;
        let policies = policies(config, &parts.secure).map_err(|e| vec![e.to_string()])?;
        let most = max_connections(config);
        let (parts, config) = (parts.clone(), config.clone());
        let commit: Commit = Box::new(move || {
            parts.externals.send_replace(Arc::new(external_apps(&config)));
            parts.pools.watch(pools(&config));
            parts.access.store(Arc::new(access));
            parts.sessions.tokens.reload(affinity);
            parts.policies.store(Arc::new(policies));
            parts.queues.set_limits(hold_limits(&config));
            parts.limits.store(Arc::new(proxy_limits(&config)));
            parts.budget.set_most(config.limits.max_buffered_bytes);
            parts.secrets.read_again(&config);
            parts.rules.store(Arc::new(accept_rules(&config)));
            parts.admission.set_most(most);
            for (secure, tls) in parts.secure.iter().zip(&config.server.tls) {
                secure.certificates.replace(&tls.certificates);
                secure.hsts.store(Arc::new(tls.hsts));
            }
            tell_expiry(&config, &parts.telemetry, &*parts.clock);
            parts.runner.readiness_over_https(config.server.sees_https());
            parts.telemetry.ring.resize(config.trace.ring);
            crate::telemetry::set_log_level(config.log.level);
        });
        Ok(commit)
    })
}

pub(super) fn hold_limits(config: &Config) -> HoldLimits {
    HoldLimits { max_held: config.limits.max_held, max_held_bytes: config.limits.max_held_bytes }
}

pub(super) fn proxy_limits(config: &Config) -> ProxyLimits {
    ProxyLimits {
        connect_timeout: config.limits.connect_timeout,
        response_timeout: config.limits.response_timeout,
        max_route_timeout: config.limits.max_route_timeout,
        idle_timeout: config.limits.idle_keepalive,
        sockets: config.limits.sockets,
        socket_idle: config.limits.socket_idle,
        body_timeout: config.limits.body_timeout,
    }
}

/// Says until when each certificate is good, in a metric and, of those that are over or soon will be, in
/// the log. They are served all the same: a client that minds says so itself.
pub(super) fn tell_expiry(config: &Config, telemetry: &Telemetry, clock: &dyn Clock) {
    let all = config.server.tls.iter().flat_map(|l| &l.certificates);
    let known = all.filter_map(|c| Some((c.cert.as_path(), c.expires?)));
    telemetry.metrics.certificates(known);
    for warning in config.warnings(clock.wall().0 / 1000) {
        log::warn!("{warning}");
    }
}

/// Apps that this edge does not run.
pub(super) fn external_apps(config: &Config) -> Vec<ExternalApp> {
    let apps = config.apps.values().filter_map(|app| {
        let upstreams = app.upstreams.as_ref()?;
        Some(ExternalApp {
            environment: Environment::production(app.name.clone()),
            hosts: app.hosts.clone(),
            contract: Arc::clone(&upstreams.contract),
            addresses: upstreams.addresses.clone(),
            checked: upstreams.health.is_some(),
        })
    });
    apps.collect()
}

/// Apps whose upstreams are looked at.
pub(super) fn pools(config: &Config) -> Vec<Pool> {
    let apps = config.apps.values().filter_map(|app| {
        let upstreams = app.upstreams.as_ref()?;
        Some(Pool {
            environment: Environment::production(app.name.clone()),
            addresses: upstreams.addresses.clone(),
            health: upstreams.health.clone()?,
            protocol: upstreams.contract.process.protocol,
            https: config.server.sees_https(),
        })
    });
    apps.collect()
}

pub(super) fn accept_rules(config: &Config) -> AcceptRules {
    AcceptRules {
        limits: config.limits.client.connection,
        requests: config.limits.keepalive_requests,
        h2c: config.server.h2c,
        proxies: config.server.proxy_protocol_from.clone(),
        trusted: Arc::clone(&config.server.trusted_proxies),
        hsts: config.server.hsts,
    }
}

/// An eighth of the descriptors is for connections to apps and everything else. Where that is too
/// little, accepting waits until some are free.
pub(super) fn max_connections(config: &Config) -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let wanted = config.limits.client.connection.max_connections;
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let most = usize::try_from(most / 8 * 7).unwrap_or(usize::MAX).max(16);
    if most < wanted {
        log::warn!(
            "limits.client.max_connections is {wanted}, but this process may open so few files that \
             it takes {most}: raise the limit (LimitNOFILE= of systemd)"
        );
    }
    wanted.min(most)
}

/// Where plain HTTP goes, and who may see each app's previews. A token that cannot be read is an error: the
/// previews would be open to all.
pub(super) fn policies(config: &Config, secure: &[Secure]) -> Result<Policies> {
    // Without a listener of its own it is a proxy in front that serves HTTPS, on the usual port.
    let redirect = match secure.first().map(|s| s.port).filter(|p| *p != 443) {
        _ if !config.server.redirect_http => HttpsRedirect::Off,
        Some(port) => HttpsRedirect::ToPort(port),
        None => HttpsRedirect::ToDefaultPort,
    };
    let mut previews = PreviewPolicies::new();
    for app in config.apps.values() {
        let mut tokens = Vec::new();
        for source in &app.preview_access {
            let token = config::read_secret(source)
                .with_context(|| format!("preview_access of {}", app.name))?;
            tokens.push(token.expose().as_bytes().to_vec());
        }
        let policy = PreviewPolicy { tokens, noindex: app.preview_noindex };
        previews.insert(app.name.clone(), policy);
    }
    Ok(Policies { redirect, previews, brands: brands(config) })
}

/// How the pages of the edge's own look.
fn brands(config: &Config) -> Brands {
    let of = |branding| Arc::new(Brand::new(branding));
    let said = config.apps.values().filter(|app| app.pages != Branding::default());
    Brands {
        node: Some(of(config.pages.clone())),
        apps: said.map(|app| (app.name.clone(), of(app.pages.over(&config.pages)))).collect(),
    }
}
