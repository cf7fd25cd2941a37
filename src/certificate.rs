//! Certificates with their keys, read from PEM files and checked: what is loaded can be served.
//!
//! The names a certificate answers for are those in it (RFC 6125 §6.4: DNS names in
//! subjectAltName), so that no list of names can disagree with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Largest PEM file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// A certificate chain and its key.
#[derive(Clone)]
pub struct Certificate {
    /// The chain's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// DNS names in it, lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// What is served.
    pub served: Arc<CertifiedKey>,
}

/// Why a certificate cannot be used. Nothing of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, String),
    /// The file has no such thing.
    #[error("{0}: expected {1} in PEM form")]
    Nothing(PathBuf, &'static str),
    /// It cannot be used.
    #[error("{0}: {1}")]
    Unusable(PathBuf, String),
    /// The key is another certificate's.
    #[error("{key} is not the key of {cert}")]
    Mismatch {
        /// The chain's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub fn load(cert: &Path, key: &Path) -> Result<Self, CertificateError> {
        let chain = read(cert)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|e| CertificateError::Unreadable(cert.to_owned(), e.to_string()))?;
        let Some(own) = chain.first() else {
            return Err(CertificateError::Nothing(cert.to_owned(), "a certificate"));
        };
        let names =
            names(own).map_err(|e| CertificateError::Unusable(cert.to_owned(), e.to_string()))?;
        let private = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|_| CertificateError::Nothing(key.to_owned(), "a private key"))?;
        let signing = any_supported_type(&private).map_err(|_| {
            CertificateError::Unusable(key.to_owned(), "not a kind of key that is known".into())
        })?;
        let served = CertifiedKey::new(chain, signing);
        if served.keys_match().is_err() {
            let (cert, key) = (cert.to_owned(), key.to_owned());
            return Err(CertificateError::Mismatch { cert, key });
        }
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), names, served: Arc::new(served) })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let unreadable = |why: String| CertificateError::Unreadable(path.to_owned(), why);
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(unreadable(format!("larger than {MAX_FILE} bytes")));
    }
    std::fs::read(path).map_err(|e| unreadable(e.to_string()))
}

fn names(own: &CertificateDer<'_>) -> Result<Vec<String>, webpki::Error> {
    let parsed = webpki::EndEntityCert::try_from(own)?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

/// Equal when a client could not tell them apart.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        (&self.cert, &self.key) == (&other.cert, &other.key)
            && self.served.cert == other.served.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("cert", &self.cert)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}
