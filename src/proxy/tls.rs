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
    names: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(certificates: &[Certificate]) -> Self {
        let mut names = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                // The first that has a name answers for it.
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&certificate.served));
            }
        }
        Self { names, default: certificates.first().map(|c| Arc::clone(&c.served)) }
    }

    fn get(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = name else { return self.default.clone() };
        let name = name.to_ascii_lowercase();
        // A wildcard stands for exactly one label (RFC 6125 §6.4.3).
        let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(&name).or_else(wildcard).or(self.default.as_ref()).cloned()
    }
}

impl Certificates {
    /// Of `certificates`; the first answers for names that none has.
    pub fn new(certificates: &[Certificate]) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(ByName::new(certificates))))
    }

    /// Others from the next handshake on.
    pub fn replace(&self, certificates: &[Certificate]) {
        self.0.store(Arc::new(ByName::new(certificates)));
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().get(hello.server_name())
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
