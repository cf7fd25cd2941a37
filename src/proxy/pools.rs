//! Health of upstreams, which this edge does not run, by pingora-load-balancing's pools and checks.
//!
//! Placement is the lifecycle's, over the snapshot, as for allocations: the least loaded of those that
//! are up. What its pools cannot give is made up for here. They take a new upstream for healthy: it is
//! looked at as often as it takes to be found down before a request is placed on it, and is down until
//! then. They want a service for each pool, none after the start: each pool is a task, and a reload
//! replaces it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use pingora::http::RequestHeader;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, LoadBalancer};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::id::Environment;
use crate::snapshot::SnapshotReader;

/// What is looked at in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Whose.
    pub environment: Environment,
    /// Its upstreams.
    pub addresses: Vec<SocketAddr>,
    /// `GET` of this path with this host is answered 200; `None`: it accepts a connection.
    pub request: Option<(String, String)>,
    /// Whether that request says that it came over HTTPS.
    pub https: bool,
    /// From one look to the next.
    pub interval: Duration,
    /// For one look.
    pub timeout: Duration,
    /// Failed looks in a row that make one down.
    pub unhealthy_after: u32,
    /// Passed ones that make it up again.
    pub healthy_after: u32,
}

/// The tasks that look at the pools.
pub struct Pools {
    snapshots: SnapshotReader,
    runtime: Handle,
    running: Mutex<Vec<(Pool, JoinHandle<()>)>>,
}

impl Pools {
    /// None yet. `snapshots` is where the upstreams are found whose health is told.
    pub fn new(snapshots: SnapshotReader, runtime: Handle) -> Self {
        Self { snapshots, runtime, running: Mutex::default() }
    }

    /// Looks at these pools from here on, and at no others. One that did not change goes on.
    pub fn watch(&self, pools: Vec<Pool>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(pool, task)| {
            let kept = pools.contains(pool);
            if !kept {
                task.abort();
            }
            kept
        });
        for pool in pools {
            if !running.iter().any(|(known, _)| *known == pool) {
                let snapshots = self.snapshots.clone();
                let task = self.runtime.spawn(look(pool.clone(), snapshots));
                running.push((pool, task));
            }
        }
    }

    /// Looks at each of `pools` once, to the end: who asks afterwards finds what is up.
    pub async fn first_look(&self, pools: &[Pool]) {
        join_all(pools.iter().filter_map(|pool| Some((pool, balancer(pool)?))).map(
            |(pool, balancer)| async move {
                settle(pool, &balancer).await;
                tell(pool, &balancer, &self.snapshots);
            },
        ))
        .await;
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        for (_, task) in self.running.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
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
    balancer.set_health_check(check(pool)?);
    Some(balancer)
}

fn check(pool: &Pool) -> Option<Box<dyn HealthCheck + Send + Sync>> {
    let (up, down) = (pool.healthy_after as usize, pool.unhealthy_after as usize);
    let Some((path, host)) = &pool.request else {
        let mut check = TcpHealthCheck::new();
        check.consecutive_success = up;
        check.consecutive_failure = down;
        check.peer_template.options.connection_timeout = Some(pool.timeout);
        return Some(check);
    };
    let mut check = HttpHealthCheck::new(host, false);
    let request = RequestHeader::build("GET", path.as_bytes(), None).and_then(|mut request| {
        request.insert_header("host", host.as_str())?;
        // What traffic says: an app that sends plain HTTP on to HTTPS would be down for ever.
        let proto = if pool.https { "https" } else { "http" };
        request.insert_header("x-forwarded-proto", proto)?;
        request.insert_header("x-forwarded-host", host.as_str())?;
        request.insert_header("user-agent", "vango-edge-health")?;
        request.insert_header("connection", "close")?;
        Ok(request)
    });
    match request {
        Ok(request) => check.req = request,
        Err(e) => {
            log::error!("{}: no health check can be made: {e}", pool.environment);
            return None;
        }
    }
    check.consecutive_success = up;
    check.consecutive_failure = down;
    let options = &mut check.peer_template.options;
    options.connection_timeout = Some(pool.timeout);
    options.read_timeout = Some(pool.timeout);
    options.write_timeout = Some(pool.timeout);
    Some(Box::new(check))
}

/// As many looks as it takes to find out what is down: a pool takes new ones for healthy.
async fn settle(pool: &Pool, balancer: &LoadBalancer<RoundRobin>) {
    for _ in 0..pool.unhealthy_after {
        balancer.backends().run_health_check(true).await;
    }
}

async fn look(pool: Pool, snapshots: SnapshotReader) {
    let Some(balancer) = balancer(&pool) else { return };
    settle(&pool, &balancer).await;
    loop {
        tell(&pool, &balancer, &snapshots);
        tokio::time::sleep(pool.interval).await;
        balancer.backends().run_health_check(true).await;
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
