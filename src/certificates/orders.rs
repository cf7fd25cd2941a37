//! Looks which certificates are to be ordered, puts orders on record, and sees to it that they are carried out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Wall;
use crate::config::Acme;
use crate::id::{Host, OperationId};
use crate::node::{Found, Node, ReadError, as_read, at_revision};
use crate::record::{CertificateOrder, HostCertificate, OrderPace, Record, key};
use crate::store::{StoreError, Txn};
use crate::telemetry::Telemetry;
use crate::wake::Executor;
use vango_edge_core::control::certificates::{self as plans, Asked, Known as Plans, NotNow};

use super::order_work::OrderWork;
use super::shown::{Known, Shown};

/// From one look to the next: a wall clock that jumps is noticed, and so is another configuration.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is known of a host that nothing is ordered for any more is forgotten after so long, once its certificate
/// has run out.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How often an operator's order is tried while other orders are put on record at the same time.
const RACES_MOST: usize = 5;

/// Why no certificate is ordered although an operator asks for it.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The configuration has no authority.
    #[error("the configuration has no [acme]: certificates come from files")]
    NoAuthority,
    /// None is ordered for that host.
    #[error(
        "no certificate is ordered for {0}: it is no host of an app, a file covers it, its app says `acme = false`, \
         or it is no name that an authority could look at"
    )]
    NotOrdered(Host),
    /// Not before that time.
    #[error("{}", waits(.0, *.1, *.2))]
    Waits(Host, NotNow, Wall),
    /// Orders for other hosts were first, again and again.
    #[error("{0}: other orders began at the same time; ask again")]
    Raced(Host),
    /// The store could not be used.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<StoreError> for RenewError {
    fn from(e: StoreError) -> Self {
        Self::Read(e.into())
    }
}

fn waits(host: &Host, why: NotNow, until: Wall) -> String {
    match why {
        NotNow::NotDue => format!(
            "{host}: its certificate is good, and is renewed from {until} on; `force` orders another one now"
        ),
        NotNow::JustFailed => format!(
            "{host}: its last order has just failed; the next one may begin at {until} (acme.retry.first)"
        ),
        NotNow::Told => format!("{host}: the authority said to wait until {until}"),
        NotNow::HourIsFull => format!(
            "{host}: as many orders as acme.orders_per_hour allows were begun within the hour; the next one may \
             begin at {until}"
        ),
    }
}

/// Orders certificates.
pub struct Orders {
    node: Node,
    shown: Arc<Shown>,
    executor: Arc<Executor<OrderWork>>,
    telemetry: Arc<Telemetry>,
}

impl Orders {
    /// Which `executor` carries out.
    pub fn new(
        node: Node,
        shown: Arc<Shown>,
        executor: Arc<Executor<OrderWork>>,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        Arc::new(Self { node, shown, executor, telemetry })
    }

    /// Orders for as long as the process runs. The first look lets go of what an earlier process of this node
    /// had claimed.
    pub async fn run(self: Arc<Self>) {
        let (mut first, mut changes, mut held_back) = (true, self.shown.changes(), 0);
        loop {
            changes.mark_unchanged();
            match self.look(first).await {
                Ok(now) => {
                    if now > held_back {
                        log::warn!(
                            "{now} certificates are due and wait: acme.orders_per_hour orders were begun \
                             within the hour"
                        );
                    }
                    (first, held_back) = (false, now);
                }
                Err(e) => log::warn!("certificates cannot be ordered: {e}"),
            }
            let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
        }
    }

    /// How many orders are due and wait for the hour's bound.
    async fn look(&self, first: bool) -> Result<usize, ReadError> {
        if first {
            self.executor.let_go_of_claims().await?;
        }
        let (config, known) = (self.node.config.load_full(), self.shown.known());
        for (host, order) in &known.orders {
            if order.record.state.in_progress() && !known.executed.contains(host) {
                self.executor.consider(host);
            }
        }
        let wanted: BTreeSet<&Host> = config.ordered_hosts().collect();
        self.tell(&wanted, &known);
        let now = self.node.clock.wall();
        self.forget(&wanted, &known, now).await?;
        let Some(acme) = &config.acme else { return Ok(0) };
        let all: Vec<Plans<'_>> = wanted.iter().map(|host| known.of(host)).collect();
        // Most looks end here: without an order that is due nothing is read.
        let unlimited = plans::plan(all.iter().copied(), &OrderPace::default(), &acme.rules(), now);
        if unlimited.order.is_empty() {
            return Ok(unlimited.held_back);
        }
        let pace = self.node.read::<OrderPace>(key::ORDER_PACE).await?;
        let pace = pace.map(|found| found.record).unwrap_or_default();
        let plan = plans::plan(all, &pace, &acme.rules(), now);
        for host in &plan.order {
            self.request(host, acme, &known, now).await?;
        }
        Ok(plan.held_back)
    }

    /// What an operator's wish for a certificate of `host` comes to: the order that is under way now, an earlier one
    /// or a new one. `force`: also where the certificate that it has is good.
    ///
    /// # Errors
    /// [`RenewError`]
    pub async fn renew(&self, host: &Host, force: bool) -> Result<CertificateOrder, RenewError> {
        let config = self.node.config.load_full();
        let acme = config.acme.as_ref().ok_or(RenewError::NoAuthority)?;
        if !config.ordered_hosts().any(|wanted| wanted == host) {
            return Err(RenewError::NotOrdered(host.clone()));
        }
        for _ in 0..RACES_MOST {
            let now = self.node.clock.wall();
            let pace = self.node.read::<OrderPace>(key::ORDER_PACE).await?;
            let before = self.node.read::<CertificateOrder>(&key::order(host)).await?;
            let certificate = self.node.read::<HostCertificate>(&key::certificate(host)).await?;
            let counted = pace.as_ref().map(|p| p.record.clone()).unwrap_or_default();
            let known = Plans {
                host,
                certificate: certificate.as_ref().map(|c| &c.record),
                order: before.as_ref().map(|b| &b.record),
            };
            let next = match plans::asked(&known, &counted, &acme.rules(), force, now) {
                Asked::Waits(why, until) => {
                    return Err(RenewError::Waits(host.clone(), why, until));
                }
                Asked::Begins(next) => next,
                Asked::Joins => match before {
                    Some(before) => return Ok(before.record),
                    None => continue,
                },
            };
            let paced = (pace.as_ref(), next);
            if let Some(order) = self.record(host, acme, before.as_ref(), paced, now).await? {
                return Ok(order);
            }
        }
        Err(RenewError::Raced(host.clone()))
    }

    /// Waits until the order is over; not longer than `limit`.
    pub async fn over(&self, order: &CertificateOrder, limit: Duration) {
        let mut known = self.shown.changes();
        // This node may not have seen yet that it began.
        let is_over = |k: &Arc<Known>| {
            let newest = k.orders.get(&order.host).map(|o| &o.record);
            newest.is_some_and(|newest| {
                newest.requested >= order.requested
                    && (newest.id != order.id || !newest.state.in_progress())
            })
        };
        let _ = tokio::time::timeout(limit, known.wait_for(is_over)).await;
    }

    /// Puts an order on record, if none was made since it was planned and the hour has room still.
    async fn request(
        &self,
        host: &Host,
        acme: &Acme,
        known: &Known,
        now: Wall,
    ) -> Result<(), ReadError> {
        let pace = self.node.read::<OrderPace>(key::ORDER_PACE).await?;
        let counted = pace.as_ref().map(|p| p.record.clone()).unwrap_or_default();
        let Some(next) = plans::begin(&counted, &acme.rules(), now) else { return Ok(()) };
        let before = known.orders.get(host).map(|b| &**b);
        self.record(host, acme, before, (pace.as_ref(), next), now).await?;
        Ok(())
    }

    /// Puts an order on record, and has it carried out; `None` where another was first. `paced`: what was counted of
    /// the hour, and what is counted with this one.
    async fn record(
        &self,
        host: &Host,
        acme: &Acme,
        before: Option<&Found<CertificateOrder>>,
        paced: (Option<&Found<OrderPace>>, OrderPace),
        now: Wall,
    ) -> Result<Option<CertificateOrder>, ReadError> {
        let (at, (pace, next)) = (key::order(host), paced);
        let before_record = before.map(|b| &b.record).filter(|b| b.directory == acme.directory);
        let id = OperationId::random(&*self.node.entropy);
        let order = CertificateOrder::new(
            id,
            host.clone(),
            acme.directory.clone(),
            acme.challenge,
            before_record,
            now,
        );
        let txn = as_read(Txn::new(), key::ORDER_PACE, pace);
        let txn = at_revision(txn, &at, before.map(|b| b.revision))
            .put(key::ORDER_PACE, next.encode())
            .put(&at, order.encode());
        if self.node.commit_if(txn.synced()).await?.is_none() {
            return Ok(None);
        }
        log::info!("{host}: a certificate is ordered from {} ({})", acme.directory, order.id);
        self.executor.consider(host);
        Ok(Some(order))
    }

    /// Removes what is kept of hosts that want no certificate any more.
    async fn forget(
        &self,
        wanted: &BTreeSet<&Host>,
        known: &Known,
        now: Wall,
    ) -> Result<(), ReadError> {
        let hosts: BTreeSet<&Host> = known.certificates.keys().chain(known.orders.keys()).collect();
        for host in hosts.difference(wanted) {
            let over = |at: Wall| now.since(at) >= FORGET_AFTER;
            let certificate = known.certificates.get(*host);
            let order = known.orders.get(*host);
            let used = certificate.is_some_and(|c| !over(c.not_after))
                || order.is_some_and(|o| o.record.state.in_progress() || !over(o.record.changed));
            if used {
                continue;
            }
            let mut txn = at_revision(Txn::new(), &key::order(host), order.map(|o| o.revision));
            txn = txn.delete(key::order(host)).delete(key::certificate(host));
            if self.node.commit_if(txn).await?.is_some() {
                log::info!("{host}: its certificate has run out and is wanted no more: forgotten");
            }
        }
        Ok(())
    }

    fn tell(&self, wanted: &BTreeSet<&Host>, known: &Known) {
        let all = wanted.iter().map(|host| {
            let until = known.certificates.get(*host).map(|c| c.not_after);
            (host.as_str(), until.map(|at| at.0 / 1000))
        });
        self.telemetry.metrics.ordered(all);
    }
}

impl Known {
    /// As the plan is made of it.
    pub(super) fn of<'k>(&'k self, host: &'k Host) -> Plans<'k> {
        Plans {
            host,
            certificate: self.certificates.get(host).map(|c| &**c),
            order: self.orders.get(host).map(|o| &o.record),
        }
    }
}
