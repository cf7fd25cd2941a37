//! Follows what the store says of certificates, and has this node show it: listeners the certificates, and both to
//! an authority that looks at a host what it is to see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::{oneshot, watch};

use crate::id::Host;
use crate::lifecycle::validation::Validations;
use crate::node::{Found, Node};
use crate::record::{
    CertificateOrder, ChallengeKind, HostCertificate, HostChallenge, Record, RecordError, key,
};
use crate::store::{Entry, EventKind, StoreError};
use crate::wire::Issued;
use crate::wire::certificate;

/// Pause before the store is listed again after it could not be followed.
const AGAIN: Duration = Duration::from_millis(500);

/// What the store says now.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) certificates: BTreeMap<Host, Arc<HostCertificate>>,
    pub(super) orders: BTreeMap<Host, Arc<Found<CertificateOrder>>>,
    /// Hosts whose order has an executor.
    pub(super) executed: BTreeSet<Host>,
    challenges: BTreeMap<Host, HostChallenge>,
}

/// What of certificates this node shows.
pub struct Shown {
    node: Node,
    issued: Arc<Issued>,
    validations: Arc<ArcSwap<Validations>>,
    known: watch::Sender<Arc<Known>>,
}

/// What is served of [`Known`]; a certificate is parsed once.
#[derive(Default)]
struct Served {
    certificates: BTreeMap<Host, certificate::Issued>,
    challenges: HashMap<String, (HostChallenge, Arc<CertifiedKey>)>,
}

impl Shown {
    /// `issued` is what listeners read.
    pub fn new(node: Node, issued: Arc<Issued>) -> Arc<Self> {
        let known = watch::Sender::default();
        Arc::new(Self { node, issued, validations: Arc::default(), known })
    }

    /// What authorities that look by HTTP are answered now.
    pub fn validations(&self) -> &Arc<ArcSwap<Validations>> {
        &self.validations
    }

    pub(super) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    /// Tells when something changed.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Known>> {
        self.known.subscribe()
    }

    /// Whether this node shows the challenge within `limit`.
    pub(super) async fn shows(&self, challenge: &HostChallenge, limit: Duration) -> bool {
        let mut known = self.known.subscribe();
        let shown = known.wait_for(|k| k.challenges.get(&challenge.host) == Some(challenge));
        tokio::time::timeout(limit, shown).await.is_ok_and(|shown| shown.is_ok())
    }

    /// Follows the store for as long as the process runs; what was shown last stays meanwhile. `ready` is told
    /// after the first listing.
    pub async fn follow(&self, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        loop {
            match self.follow_from_listing(&mut ready).await {
                StoreError::Closed => return,
                StoreError::Compacted { .. } => {}
                e => {
                    log::warn!("certificates cannot be followed: {e}; the last ones are served");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn follow_from_listing(&self, ready: &mut Option<oneshot::Sender<()>>) -> StoreError {
        match self.try_follow(ready).await {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    async fn try_follow(
        &self,
        ready: &mut Option<oneshot::Sender<()>>,
    ) -> Result<std::convert::Infallible, StoreError> {
        // Subscribed before it is listed: what changes while the pages are read comes again.
        let from = self.node.store.revision().await? + 1;
        let mut watch = self.node.store.watch(key::ACME, from).await?;
        let (mut known, mut served) = (Known::default(), Served::default());
        for (at, entry) in self.node.listed(key::ACME).await? {
            known.take(&at, Some(&entry));
        }
        self.show(&known, &mut served);
        if let Some(ready) = ready.take() {
            // The receiver is gone only when startup was given up.
            let _ = ready.send(());
        }
        loop {
            for event in watch.next().await? {
                let entry = match &event.kind {
                    EventKind::Put(entry) => Some(entry),
                    EventKind::Delete => None,
                };
                known.take(&event.key, entry);
            }
            self.show(&known, &mut served);
        }
    }

    fn show(&self, known: &Known, served: &mut Served) {
        let before = self.known();
        served.certificates.retain(|host, _| {
            known.certificates.get(host).is_some_and(|c| before.certificates.get(host) == Some(c))
        });
        for (host, c) in &known.certificates {
            if served.certificates.contains_key(host) {
                continue;
            }
            match certificate::Issued::from_pem(&c.chain, c.key.expose()) {
                Ok(read) => drop(served.certificates.insert(host.clone(), read)),
                Err(why) => log::error!("{host}: the certificate on record is not served: {why}"),
            }
        }
        self.issued.replace(served.certificates.iter().map(|(host, c)| (host.as_str(), c)));
        self.validate(known, served);
        self.known.send_replace(Arc::new(known.clone()));
    }

    fn validate(&self, known: &Known, served: &mut Served) {
        let of = |kind| known.challenges.values().filter(move |c| c.kind == kind);
        let by_http = of(ChallengeKind::Http)
            .map(|c| (c.token.clone(), (c.host.to_string(), c.authorization.clone())));
        self.validations.store(Arc::new(Validations::new(by_http)));
        served.challenges.retain(|host, (shown, _)| {
            known.challenges.iter().any(|(h, c)| h.as_str() == host && c == shown)
        });
        for c in of(ChallengeKind::TlsAlpn) {
            if served.challenges.contains_key(c.host.as_str()) {
                continue;
            }
            match validation(c) {
                Ok(key) => drop(served.challenges.insert(c.host.to_string(), (c.clone(), key))),
                Err(why) => log::error!("{}: its challenge cannot be shown: {why}", c.host),
            }
        }
        let all = served.challenges.iter().map(|(host, (_, key))| (host.clone(), Arc::clone(key)));
        self.issued.show(all.collect());
    }
}

impl Known {
    /// One record as the store has it now; `None`: it has it no more. What cannot be read is left out.
    fn take(&mut self, at: &str, entry: Option<&Entry>) {
        let prefixes = [key::CERTIFICATES, key::ORDERS, key::ORDERERS, key::CHALLENGES];
        let found = prefixes.into_iter().find_map(|p| Some((p, at.strip_prefix(p)?.parse().ok()?)));
        let Some((prefix, host)): Option<(&str, Host)> = found else { return };
        if let Err(e) = self.taken(prefix, at, &host, entry) {
            log::error!("{at}: {e}");
        }
    }

    fn taken(
        &mut self,
        prefix: &str,
        at: &str,
        host: &Host,
        entry: Option<&Entry>,
    ) -> Result<(), RecordError> {
        let Some(entry) = entry else {
            match prefix {
                key::CERTIFICATES => drop(self.certificates.remove(host)),
                key::ORDERS => drop(self.orders.remove(host)),
                key::ORDERERS => drop(self.executed.remove(host)),
                _ => drop(self.challenges.remove(host)),
            }
            return Ok(());
        };
        let host = host.clone();
        match prefix {
            key::CERTIFICATES => {
                let record = HostCertificate::decode(&entry.value)?;
                self.certificates.insert(host, Arc::new(record));
            }
            key::ORDERS => {
                let found = Found::decode(at.to_owned(), entry)?;
                self.orders.insert(host, Arc::new(found));
            }
            key::ORDERERS => drop(self.executed.insert(host)),
            _ => drop(self.challenges.insert(host, HostChallenge::decode(&entry.value)?)),
        }
        Ok(())
    }
}

/// The certificate by which a host is proved (RFC 8737 §3), under a key that is for nothing else.
fn validation(c: &HostChallenge) -> Result<Arc<CertifiedKey>, String> {
    let params = CertificateParams::new(vec![c.host.to_string()]);
    let mut params = params.map_err(|e| e.to_string())?;
    let digest = Sha256::digest(&c.authorization);
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let signed = params.self_signed(&key).map_err(|e| e.to_string())?;
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let signing = any_supported_type(&private).map_err(|e| e.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![signed.der().clone()], signing)))
}
