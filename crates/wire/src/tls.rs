//! TLS toward clients: versions 1.2 and 1.3, HTTP/2 by ALPN, certificates by the name that is asked
//! for (SNI). Certificates can be swapped while connections go on. An authority that looks whether a name is
//! ours (RFC 8737) asks for nothing but [`VALIDATION`] and is shown what it is to see, and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certificate::{self, Certificate, covers};

/// The protocol of an authority's look at a name (RFC 8737 §4).
const VALIDATION: &[u8] = b"acme-tls/1";

/// What all listeners have besides their files: what an authority issued, and what it is to be shown.
#[derive(Debug, Default)]
pub struct Issued {
    certificates: ArcSwap<HashMap<String, Arc<Served>>>,
    challenges: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
}

impl Issued {
    /// These from the next handshake on, each for its host, lower case.
    pub fn replace<'c>(&self, all: impl Iterator<Item = (&'c str, &'c certificate::Issued)>) {
        let served = |c: &certificate::Issued| {
            Arc::new(Served { key: Arc::clone(&c.served), names: c.names.clone() })
        };
        let all = all.map(|(host, certificate)| (host.to_owned(), served(certificate)));
        self.certificates.store(Arc::new(all.collect()));
    }

    /// What an authority that looks at these hosts is shown from now on.
    pub fn show(&self, challenges: HashMap<String, Arc<CertifiedKey>>) {
        self.challenges.store(Arc::new(challenges));
    }
}

/// The certificates of one listener.
#[derive(Debug)]
pub struct Certificates {
    files: ArcSwap<ByName>,
    issued: Arc<Issued>,
}

#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<Served>>,
    default: Option<Arc<Served>>,
}

#[derive(Debug)]
struct Served {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

/// The name for which a client opened its connection, and the certificate that it was shown.
#[derive(Debug, Clone)]
pub struct Asked {
    name: String,
    shown: Option<Arc<Served>>,
}

impl Asked {
    /// Whether requests for `host`, lower case, belong on the connection: it is the name that was asked
    /// for, or the certificate covers it too, so that browsers use the connection for both (RFC 9113
    /// §9.1.1).
    pub fn covers(&self, host: &str) -> bool {
        self.name == host || self.shown.as_ref().is_some_and(|shown| covers(&shown.names, host))
    }
}

impl ByName {
    fn new(certificates: &[Certificate]) -> Self {
        let mut names = HashMap::new();
        let mut default = None;
        for certificate in certificates {
            let (key, all) = (Arc::clone(&certificate.served), certificate.names.clone());
            let served = Arc::new(Served { key, names: all });
            for name in &certificate.names {
                // The first that has a name answers for it.
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&served));
            }
            default.get_or_insert(served);
        }
        Self { names, default }
    }

    /// Of `name`, lower case.
    fn get(&self, name: &str) -> Option<&Arc<Served>> {
        let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(name).or_else(wildcard)
    }
}

impl Certificates {
    /// Of `certificates`, and of `issued` for names that none of them has; the first answers for names that
    /// neither has.
    pub fn new(certificates: &[Certificate], issued: Arc<Issued>) -> Arc<Self> {
        Arc::new(Self { files: ArcSwap::from_pointee(ByName::new(certificates)), issued })
    }

    fn get(&self, name: Option<&str>) -> Option<Arc<Served>> {
        let files = self.files.load();
        let Some(name) = name else { return files.default.clone() };
        let name = name.to_ascii_lowercase();
        if let Some(found) = files.get(&name) {
            return Some(Arc::clone(found));
        }
        let issued = self.issued.certificates.load().get(&name).cloned();
        issued.or_else(|| files.default.clone())
    }

    /// Whether some names have no certificate here: then a handshake is looked at before it begins.
    pub(crate) fn may_have_none(&self) -> bool {
        self.files.load().default.is_none()
    }

    /// Whether a client that says this is shown a certificate.
    pub(crate) fn has_for(&self, hello: &ClientHello<'_>) -> bool {
        if validates(hello) {
            return self.challenge(hello).is_some();
        }
        self.get(hello.server_name()).is_some()
    }

    fn challenge(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.issued.challenges.load().get(&name).cloned()
    }

    /// What the client of a handshake that is over asked for; `None` when it named nothing, as one that
    /// knows only an address does.
    pub fn asked(&self, name: Option<&str>) -> Option<Asked> {
        let name = name?.to_ascii_lowercase();
        Some(Asked { shown: self.get(Some(&name)), name })
    }

    /// Others from the next handshake on.
    pub fn replace(&self, certificates: &[Certificate]) {
        self.files.store(Arc::new(ByName::new(certificates)));
    }
}

/// Whether it is an authority that looks at a name: it asks for that protocol alone (RFC 8737 §3). A client that
/// names others as well gets one of those.
fn validates(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut all| all.next() == Some(VALIDATION) && all.next().is_none())
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if validates(&hello) {
            return self.challenge(&hello);
        }
        self.get(hello.server_name()).map(|served| Arc::clone(&served.key))
    }
}

/// What performs handshakes with `certificates`.
///
/// # Errors
/// Rustls's, when its provider lacks a version: our own bug.
pub fn acceptor(certificates: Arc<Certificates>) -> Result<Acceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), VALIDATION.to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    // Nothing is taken before the handshake is over: early data may be replayed (RFC 8446 §8).
    config.max_early_data_size = 0;
    Ok(Acceptor::from_server_config(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_covers_its_names_and_one_label_of_a_wildcard() {
        let names = ["a.test".to_owned(), "*.wild.test".to_owned()];
        for (host, covered) in [
            ("a.test", true),
            ("b.test", false),
            ("x.a.test", false),
            ("x.wild.test", true),
            ("wild.test", false),
            ("x.y.wild.test", false),
            ("[::1]", false),
        ] {
            assert_eq!(covers(&names, host), covered, "{host}");
        }
        let asked = Asked { name: "own.test".into(), shown: None };
        assert!(asked.covers("own.test") && !asked.covers("a.test"));
    }
}
