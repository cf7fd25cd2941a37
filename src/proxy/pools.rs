//! Health of upstreams, which this edge does not run, by pingora-load-balancing's pools and checks.
//!
//! Placement is the lifecycle's, over the snapshot, as for allocations: the least loaded of those that
//! are up. What its pools cannot give is made up for here. They take a new upstream for healthy: it is
//! looked at as often as it takes to be found down before a request is placed on it, and is down until
//! then. They want a service for each pool, none after the start: each pool is a task, and a reload
//! replaces it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use pingora::http::RequestHeader;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, LoadBalancer};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::config::Health;
use crate::contract::Protocol;
use crate::id::Environment;
use crate::snapshot::SnapshotReader;

/// What is looked at in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The environment whose upstreams these are.
    pub environment: Environment,
    /// Its upstreams.
    pub addresses: Vec<SocketAddr>,
    /// How they are looked at.
    pub health: Health,
    /// What they speak.
    pub protocol: Protocol,
    /// Whether a request says that it came over HTTPS.
    pub https: bool,
}

/// The tasks that look at the pools.
pub struct Pools {
    snapshots: SnapshotReader,
    runtime: Handle,
    /// Each with its task, which is aborted when the set is dropped.
    running: Mutex<Vec<(Pool, JoinSet<()>)>>,
}

impl Pools {
    /// None yet. `snapshots` is where the upstreams are found whose health is told.
    pub fn new(snapshots: SnapshotReader, runtime: Handle) -> Self {
        Self { snapshots, runtime, running: Mutex::default() }
    }

    /// Looks at these pools from here on, and at no others. One that did not change goes on.
    pub fn watch(&self, pools: Vec<Pool>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(pool, _)| pools.contains(pool));
        for pool in pools {
            if !running.iter().any(|(known, _)| *known == pool) {
                let mut task = JoinSet::new();
                task.spawn_on(look(pool.clone(), self.snapshots.clone()), &self.runtime);
                running.push((pool, task));
            }
        }
    }

    /// Looks at each of `pools` once, to the end: the snapshot shows afterwards what is up.
    pub async fn first_look(&self, pools: &[Pool]) {
        join_all(pools.iter().map(|pool| first_look(pool, &self.snapshots))).await;
    }
}

fn balancer(pool: &Pool) -> Option<LoadBalancer<RoundRobin>> {
    let mut balancer = match LoadBalancer::try_from_iter(&pool.addresses) {
        Ok(balancer) => balancer,
        Err(e) => {
            // Addresses, not names: nothing is looked up.
            log::error!("{}: its upstreams make no pool: {e}", pool.environment);
            return None;
        }
    };
    match check(pool) {
        Ok(check) => balancer.set_health_check(check),
        Err(e) => {
            log::error!("{}: no health check can be made: {e}", pool.environment);
            return None;
        }
    }
    Some(balancer)
}

fn check(pool: &Pool) -> pingora::Result<Box<dyn HealthCheck + Send + Sync>> {
    let (up, down) = (pool.health.healthy_after as usize, pool.health.unhealthy_after as usize);
    let Some((path, host)) = &pool.health.request else {
        let mut check = TcpHealthCheck::new();
        check.consecutive_success = up;
        check.consecutive_failure = down;
        check.peer_template.options.connection_timeout = Some(pool.health.timeout);
        return Ok(check);
    };
    let mut check = HttpHealthCheck::new(host, false);
    let mut request = RequestHeader::build("GET", path.as_bytes(), None)?;
    request.insert_header("host", host.as_str())?;
    // What traffic says: an app that sends plain HTTP on to HTTPS would be down for ever.
    request.insert_header("x-forwarded-proto", if pool.https { "https" } else { "http" })?;
    request.insert_header("x-forwarded-host", host.as_str())?;
    request.insert_header("user-agent", "vango-edge-health")?;
    if pool.protocol == Protocol::H2c {
        // Without it Pingora says that it is https.
        if let Ok(uri) = format!("http://{host}{path}").parse() {
            request.set_uri(uri);
        }
        request.remove_header("host");
        check.peer_template.options.set_http_version(2, 2);
    } else {
        request.insert_header("connection", "close")?;
    }
    check.req = request;
    check.consecutive_success = up;
    check.consecutive_failure = down;
    let options = &mut check.peer_template.options;
    options.connection_timeout = Some(pool.health.timeout);
    options.read_timeout = Some(pool.health.timeout);
    options.write_timeout = Some(pool.health.timeout);
    Ok(Box::new(check))
}

/// As many looks as it takes to find out what is down: a pool takes new ones for healthy.
async fn first_look(pool: &Pool, snapshots: &SnapshotReader) -> Option<LoadBalancer<RoundRobin>> {
    let balancer = balancer(pool)?;
    for _ in 0..pool.health.unhealthy_after {
        balancer.backends().run_health_check(true).await;
    }
    tell(pool, &balancer, snapshots);
    Some(balancer)
}

async fn look(pool: Pool, snapshots: SnapshotReader) {
    let Some(balancer) = first_look(&pool, &snapshots).await else { return };
    loop {
        tokio::time::sleep(pool.health.interval).await;
        balancer.backends().run_health_check(true).await;
        tell(&pool, &balancer, &snapshots);
    }
}

/// Tells each upstream's counters what was found.
fn tell(pool: &Pool, balancer: &LoadBalancer<RoundRobin>, snapshots: &SnapshotReader) {
    let snapshot = snapshots.load();
    let Some(view) = snapshot.environment(&pool.environment).filter(|v| v.external) else { return };
    for upstream in &view.ready {
        let Some(address) = upstream.address else { continue };
        let Ok(backend) = Backend::new(&address.to_string()) else { continue };
        let down = !balancer.backends().ready(&backend);
        if upstream.load.is_down() != down {
            upstream.load.set_down(down);
            let word = if down { "down" } else { "up" };
            log::info!("{}: upstream {address} is {word}", pool.environment);
        }
    }
}
