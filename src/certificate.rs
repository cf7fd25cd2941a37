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
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Largest PEM file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// What is left when a warning begins: authorities that issue for 90 days have it renewed at 30.
const SOON: u64 = 14 * 86_400;

/// A certificate chain and its key.
#[derive(Clone)]
pub struct Certificate {
    /// The chain's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// DNS names in it, lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Until when it is good, in seconds since 1970, where that can be read.
    pub expires: Option<u64>,
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
        let expires = expires(own);
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
        let (cert, key) = (cert.to_owned(), key.to_owned());
        Ok(Self { cert, key, names, expires, served: Arc::new(served) })
    }

    /// What an operator should know at `now`, in seconds since 1970: that it is over, or soon will be.
    pub fn warning(&self, now: u64) -> Option<String> {
        let (file, days) = (self.cert.display(), |seconds: u64| seconds / 86_400);
        let expires = self.expires?;
        match expires.checked_sub(now) {
            None => Some(format!(
                "{file} ran out {} days ago: clients refuse it. Renew it, then reload",
                days(now - expires)
            )),
            Some(left) if left < SOON => {
                Some(format!("{file} runs out in {} days: renew it, then reload", days(left)))
            }
            Some(_) => None,
        }
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

fn expires(own: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(own).ok()?;
    // One from before 1970 is over all the same.
    Some(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0))
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
