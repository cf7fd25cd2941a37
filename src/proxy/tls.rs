//! TLS toward clients: versions 1.2 and 1.3, HTTP/2 by ALPN, certificates by the name that is asked
//! for (SNI). Certificates can be swapped while connections go on.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certificate::Certificate;

/// The certificates of one listener.
#[derive(Debug)]
pub struct Certificates(ArcSwap<ByName>);

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

/// A wildcard stands for exactly one label (RFC 6125 §6.4.3).
fn covers(names: &[String], host: &str) -> bool {
    let below = host.split_once('.').map(|(_, rest)| rest);
    names.iter().any(|name| match name.strip_prefix("*.") {
        Some(rest) => below == Some(rest),
        None => name == host,
    })
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

    fn get(&self, name: Option<&str>) -> Option<Arc<Served>> {
        let Some(name) = name else { return self.default.clone() };
        let name = name.to_ascii_lowercase();
        let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(&name).or_else(wildcard).or(self.default.as_ref()).cloned()
    }
}

impl Certificates {
    /// Of `certificates`; the first answers for names that none has.
    pub fn new(certificates: &[Certificate]) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(ByName::new(certificates))))
    }

    /// What the client of a handshake that is over asked for; `None` when it named nothing, as one that
    /// knows only an address does.
    pub fn asked(&self, name: Option<&str>) -> Option<Asked> {
        let name = name?.to_ascii_lowercase();
        Some(Asked { shown: self.0.load().get(Some(&name)), name })
    }

    /// Others from the next handshake on.
    pub fn replace(&self, certificates: &[Certificate]) {
        self.0.store(Arc::new(ByName::new(certificates)));
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().get(hello.server_name()).map(|served| Arc::clone(&served.key))
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
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
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
