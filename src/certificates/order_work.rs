//! What an executor does with one order: from the state in which it finds it to its end.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::clock::Wall;
use crate::config::Acme;
use crate::id::{Host, OperationId};
use crate::node::{Node, ReadError};
use crate::record::{
    CertificateOrder, ChallengeKind, HostCertificate, HostChallenge, OrderEvent, OrderState,
    Private, Record, key,
};
use crate::store::{StoreError, Txn};
use crate::telemetry::Telemetry;
use crate::wake::{LeaseClaim, Leased, Lost, Work};
use crate::wire::certificate::Issued;
use vango_edge_core::control::certificates as plans;

use super::account;
use super::authority::{Heard, Refusal};
use super::shown::Shown;

/// Orders that this node carries out at a time.
const AT_ONCE: usize = 4;
/// For one order, whatever the authority does.
const WITHIN: Duration = Duration::from_secs(300);
/// For an authority to look at a host, and to issue.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(100));
/// For this node to show what it has put on record.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

type OrderClaim = LeaseClaim<CertificateOrder>;

impl Leased for CertificateOrder {
    type Subject = Host;
    type Event = OrderEvent;
    const NAME: &'static str = "order";
    const SYNCED: bool = true;
    const EXECUTORS: &'static str = key::ORDERERS;

    fn at(host: &Host) -> String {
        key::order(host)
    }
    fn kept_at(&self) -> String {
        key::ordered(self.requested, &self.id)
    }
    fn attempt(&self) -> (&OperationId, u32) {
        (&self.id, self.attempt)
    }
    fn state(&self) -> (&'static str, bool) {
        (self.state.name(), self.state.in_progress())
    }
    fn claimed(_: Duration) -> OrderEvent {
        OrderEvent::Claimed
    }
    fn after(&self, event: OrderEvent, now: Wall) -> Result<Self, String> {
        CertificateOrder::after(self, event, now).map_err(|e| e.to_string())
    }
}

/// Why an order is not carried on here.
enum Stopped {
    /// The claim is, or a step of the record was, another's.
    Lost(Lost),
    /// It is over.
    Refused(Refusal),
}

impl From<Lost> for Stopped {
    /// What an authority says may be too long for a record. Another try would end there as well: the order is over,
    /// and the next one waits. As a lost claim it would be placed again each second.
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Read(ReadError::Store(StoreError::Invalid(why))) => {
                Refusal::new(format!("what the authority said cannot be stored: {why}")).into()
            }
            lost => Self::Lost(lost),
        }
    }
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Carries orders out.
pub struct OrderWork {
    node: Node,
    shown: Arc<Shown>,
    telemetry: Arc<Telemetry>,
    places: Arc<Semaphore>,
    /// Held while the account is opened: two orders at once make one.
    opening: Mutex<()>,
}

impl Work for OrderWork {
    type Of = CertificateOrder;
    type Permit = Option<OwnedSemaphorePermit>;

    async fn permit(&self) -> Self::Permit {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    async fn carry(&self, claim: &mut OrderClaim, _permit: Self::Permit) -> Result<(), Lost> {
        let refusal = match tokio::time::timeout(WITHIN, self.carry_on(claim)).await {
            Ok(Ok(())) => {
                self.telemetry.metrics.order_ended(true);
                log::info!("{}: its certificate was issued", claim.record().host);
                return Ok(());
            }
            Ok(Err(Stopped::Lost(lost))) => return Err(lost),
            Ok(Err(Stopped::Refused(refusal))) => refusal,
            Err(_) => Refusal::new(format!("it was not issued within {WITHIN:?}")),
        };
        let Refusal { why, told_to_wait } = refusal;
        log::warn!("{}: no certificate was issued: {why}", claim.record().host);
        claim.commit(OrderEvent::Failed { why, told_to_wait }, Txn::new()).await?;
        self.telemetry.metrics.order_ended(false);
        Ok(())
    }

    /// Routing shows no orders: `Orders` looks for them.
    fn is_open(&self, _: &Host) -> bool {
        false
    }
}

impl OrderWork {
    /// `shown` says whether this node shows a challenge.
    pub fn new(node: Node, shown: Arc<Shown>, telemetry: Arc<Telemetry>) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Self { node, shown, telemetry, places, opening: Mutex::default() }
    }

    async fn carry_on(&self, claim: &mut OrderClaim) -> Result<(), Stopped> {
        let config = self.node.config.load_full();
        let Some(acme) = &config.acme else {
            return Err(Refusal::new("the configuration has no [acme] any more").into());
        };
        if acme.directory != claim.record().directory {
            return Err(Refusal::new("acme.directory is another one now").into());
        }
        let heard = Heard::default();
        let account = {
            let _alone = self.opening.lock().await;
            account::open(&self.node, acme, &heard).await?
        };
        let mut order = self.placed(claim, acme, &account, &heard).await?;
        if claim.record().state != OrderState::Finalizing {
            self.prove(claim, &mut order, &heard).await?;
            claim.commit(OrderEvent::Proved, Txn::new()).await?;
        }
        self.finish(claim, &mut order, &heard).await
    }

    /// The order as the authority has it: a new one, or the one that an earlier executor placed.
    async fn placed(
        &self,
        claim: &mut OrderClaim,
        acme: &Acme,
        account: &Account,
        heard: &Heard,
    ) -> Result<Order, Stopped> {
        let placed = match claim.record().url.clone() {
            Some(url) => account.order(url).await,
            None => {
                let name = [Identifier::Dns(claim.record().host.to_string())];
                account.new_order(&NewOrder::new(&name)).await
            }
        };
        let order = match placed {
            Ok(order) => order,
            Err(e) => {
                account::forget_if_unknown(&self.node, &acme.directory, &e).await;
                return Err(heard.refusal("the order was not taken", &e).into());
            }
        };
        if claim.record().state == OrderState::Requested {
            let key = KeyPair::generate().map_err(|e| Refusal::new(e.to_string()))?;
            let key = Private::new(key.serialize_pem());
            let url = order.url().to_owned();
            claim.commit(OrderEvent::Placed { url, key }, Txn::new()).await?;
        }
        Ok(order)
    }

    /// Shows the challenge on every node, has the authority look, and waits until it believes.
    async fn prove(
        &self,
        claim: &mut OrderClaim,
        order: &mut Order,
        heard: &Heard,
    ) -> Result<(), Stopped> {
        if order.state().status == OrderStatus::Pending {
            self.answer_challenges(claim, order, heard).await?;
            let waited = order.poll_ready(&POLL).await;
            if !matches!(waited, Ok(OrderStatus::Ready))
                && order.state().status != OrderStatus::Invalid
            {
                let why = match waited {
                    Err(e) => heard.refusal("the authority did not look in time", &e),
                    Ok(status) => {
                        Refusal::new(format!("the authority has the order as {status:?}"))
                    }
                };
                return Err(why.into());
            }
        }
        match order.state().status {
            OrderStatus::Invalid => Err(why_invalid(order).await.into()),
            _ => Ok(()),
        }
    }

    async fn answer_challenges(
        &self,
        claim: &mut OrderClaim,
        order: &mut Order,
        heard: &Heard,
    ) -> Result<(), Stopped> {
        let (host, kind) = (claim.record().host.clone(), claim.record().challenge);
        let mut all = order.authorizations();
        while let Some(next) = all.next().await {
            let mut one = next.map_err(|e| heard.refusal("the order cannot be read", &e))?;
            match one.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => {
                    return Err(
                        Refusal::new(format!("the authority has {host} as {status:?}")).into()
                    );
                }
            }
            let wanted = match kind {
                ChallengeKind::Http => ChallengeType::Http01,
                ChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
            };
            let Some(mut challenge) = one.challenge(wanted) else {
                let why = format!("the authority does not offer {} for {host}", kind.name());
                return Err(Refusal::new(why).into());
            };
            let authorization = challenge.key_authorization().as_str().to_owned();
            let token = challenge.token.clone();
            let shown = HostChallenge { host: host.clone(), kind, token, authorization };
            let put = claim.put_leased(&key::challenge(&host), shown.encode());
            if claim.record().state == OrderState::Ordered {
                claim.commit(OrderEvent::Shown, put).await?;
            } else {
                self.node.commit(claim.holds().and(put)).await.map_err(Lost::from)?;
            }
            // Not before a request for it would be answered: an authority looks at once, and once.
            if !self.shown.shows(&shown, SHOWN_WITHIN).await {
                return Err(Refusal::new("this node did not show the challenge in time").into());
            }
            let ready = challenge.set_ready().await;
            ready.map_err(|e| heard.refusal("the authority does not look", &e))?;
        }
        Ok(())
    }

    /// Asks for the certificate with the key that is on record, and puts it on record.
    async fn finish(
        &self,
        claim: &mut OrderClaim,
        order: &mut Order,
        heard: &Heard,
    ) -> Result<(), Stopped> {
        let record = claim.record();
        let Some(private) = record.key.clone() else {
            return Err(Refusal::new("the order's record has no key").into());
        };
        let host = record.host.clone();
        if order.state().status == OrderStatus::Ready {
            let request = request(&host, &private).map_err(Refusal::new)?;
            let asked = order.finalize_csr(&request).await;
            asked.map_err(|e| heard.refusal("the certificate was not issued", &e))?;
        }
        let issued = order.poll_certificate(&POLL).await;
        let chain = issued.map_err(|e| heard.refusal("the certificate did not come", &e))?;
        let read = Issued::from_pem(&chain, private.expose())
            .map_err(|why| Refusal::new(format!("what was issued cannot be served: {why}")))?;
        if !read.names.iter().any(|name| name == host.as_str()) {
            return Err(Refusal::new("what was issued is not for this host").into());
        }
        let record = claim.record();
        let certificate = HostCertificate {
            host: host.clone(),
            directory: record.directory.clone(),
            chain,
            key: private,
            not_before: Wall(read.not_before.saturating_mul(1000)),
            not_after: Wall(read.not_after.saturating_mul(1000)),
            issued: self.node.clock.wall(),
            order: record.id.clone(),
        };
        let at = key::certificate(&host);
        let before = self.node.read::<HostCertificate>(&at).await.map_err(Lost::from)?;
        let (from, until) = (certificate.not_before, certificate.not_after);
        let before = before.as_ref().map(|found| &found.record);
        if let Some(why) = plans::unfit(before, from, until, certificate.issued) {
            return Err(Refusal::new(why).into());
        }
        let put = Txn::new().put(at, certificate.encode());
        Ok(claim.commit(OrderEvent::Issued, put).await?)
    }
}

/// The certificate request in DER.
fn request(host: &Host, key: &Private) -> Result<Vec<u8>, String> {
    let signing =
        KeyPair::from_pem(key.expose()).map_err(|_| "the key on record cannot be read")?;
    let params = CertificateParams::new(vec![host.to_string()]);
    let mut params = params.map_err(|e| e.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&signing).map_err(|e| e.to_string())?;
    Ok(request.der().to_vec())
}

/// What the authority says of a host that it does not believe is ours.
async fn why_invalid(order: &mut Order) -> Refusal {
    let said = order.state().error.as_ref().map(ToString::to_string);
    let mut all = order.authorizations();
    while let Some(Ok(one)) = all.next().await {
        let mut problems = one.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(problem) = problems.next_back() {
            return Refusal::new(problem.to_string());
        }
    }
    Refusal::new(said.unwrap_or_else(|| "the authority does not say why".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_stored_ends_the_order_and_a_store_that_is_away_does_not() {
        let stopped = |e| Stopped::from(Lost::from(e));
        let too_long = stopped(StoreError::Invalid("value of 2 MiB".into()));
        assert!(matches!(too_long, Stopped::Refused(r) if r.why.contains("value of 2 MiB")));
        assert!(matches!(stopped(StoreError::Closed), Stopped::Lost(Lost::Read(_))));
    }
}
