//! Looks which certificates are to be ordered, puts orders on record, and sees to it that they are carried out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Wall;
use crate::config::Acme;
use crate::id::{Host, OperationId};
use crate::node::{Node, ReadError, as_read, at_revision};
use crate::record::{CertificateOrder, OrderPace, Record, key};
use crate::store::Txn;
use crate::telemetry::Telemetry;
use crate::wake::Executor;
use vango_edge_core::control::certificates::{self as plans, Known as Plans};

use super::order_work::OrderWork;
use super::shown::{Known, Shown};

/// From one look to the next: a wall clock that jumps is noticed, and so is another configuration.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is known of a host that nothing is ordered for any more is forgotten after so long, once its certificate
/// has run out.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

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
        let (at, before) = (key::order(host), known.orders.get(host));
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
        let txn = as_read(Txn::new(), key::ORDER_PACE, pace.as_ref());
        let txn = at_revision(txn, &at, before.map(|b| b.revision))
            .put(key::ORDER_PACE, next.encode())
            .put(&at, order.encode());
        if self.node.commit_if(txn.synced()).await?.is_some() {
            log::info!("{host}: a certificate is ordered from {} ({})", acme.directory, order.id);
            self.executor.consider(host);
        }
        Ok(())
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
