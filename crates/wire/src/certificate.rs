//! Certificates with their keys, read from PEM files or texts and checked: what is loaded can be served.
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
    pub cert: PathBuf,
    pub key: PathBuf,
    /// DNS names in it, lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Until when it is good, in seconds since 1970, where that can be read.
    pub expires: Option<u64>,
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
    Mismatch { cert: PathBuf, key: PathBuf },
}

/// A chain and its key, from PEM texts that stand in no file.
#[derive(Clone)]
pub struct Issued {
    /// DNS names in it, lower case.
    pub names: Vec<String>,
    /// From when it is good, and until when, in seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    pub(crate) served: Arc<CertifiedKey>,
}

impl Issued {
    /// Reads a chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// Why it cannot be served; nothing of the key is in it.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, String> {
        let Checked { names, valid, served } =
            check(chain.as_bytes(), key.as_bytes()).map_err(|wrong| match wrong {
                Wrong::Unreadable(why) | Wrong::Unusable(why) => format!("its certificate: {why}"),
                Wrong::NoCertificate => "it has no certificate in PEM form".into(),
                Wrong::NoKey => "it has no private key in PEM form".into(),
                Wrong::UnknownKey => "its key is not of a kind that is known".into(),
                Wrong::Mismatch => "its key is another certificate's".into(),
            })?;
        let (not_before, not_after) = valid.ok_or("its time cannot be read")?;
        Ok(Self { names, not_before, not_after, served })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("names", &self.names).finish_non_exhaustive()
    }
}

/// What can be served.
struct Checked {
    names: Vec<String>,
    /// From when, and until when.
    valid: Option<(u64, u64)>,
    served: Arc<CertifiedKey>,
}

/// What is wrong with a chain or its key.
enum Wrong {
    Unreadable(String),
    Unusable(String),
    NoCertificate,
    NoKey,
    UnknownKey,
    Mismatch,
}

fn check(chain: &[u8], key: &[u8]) -> Result<Checked, Wrong> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|e| Wrong::Unreadable(e.to_string()))?;
    let own = chain.first().ok_or(Wrong::NoCertificate)?;
    let valid = valid(own);
    let names = names(own).map_err(|e| Wrong::Unusable(e.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| Wrong::NoKey)?;
    let signing = any_supported_type(&private).map_err(|_| Wrong::UnknownKey)?;
    let served = CertifiedKey::new(chain, signing);
    served.keys_match().map_err(|_| Wrong::Mismatch)?;
    Ok(Checked { names, valid, served: Arc::new(served) })
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub fn load(cert: &Path, key: &Path) -> Result<Self, CertificateError> {
        let checked = check(&read(cert)?, &read(key)?);
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let Checked { names, valid, served } = match checked {
            Ok(checked) => checked,
            Err(wrong) => {
                return Err(match wrong {
                    Wrong::Unreadable(why) => CertificateError::Unreadable(cert, why),
                    Wrong::Unusable(why) => CertificateError::Unusable(cert, why),
                    Wrong::NoCertificate => CertificateError::Nothing(cert, "a certificate"),
                    Wrong::NoKey => CertificateError::Nothing(key, "a private key"),
                    Wrong::UnknownKey => {
                        CertificateError::Unusable(key, "not a kind of key that is known".into())
                    }
                    Wrong::Mismatch => CertificateError::Mismatch { cert, key },
                });
            }
        };
        Ok(Self { cert, key, names, expires: valid.map(|(_, until)| until), served })
    }

    /// Whether it answers for `host`, lower case.
    pub fn covers(&self, host: &str) -> bool {
        covers(&self.names, host)
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

/// From when and until when it is good.
fn valid(own: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = X509Certificate::from_der(own).ok()?;
    // One from before 1970 is over all the same.
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
    Some((seconds(parsed.validity().not_before), seconds(parsed.validity().not_after)))
}

/// A wildcard stands for exactly one label (RFC 6125 §6.4.3).
pub(crate) fn covers(names: &[String], host: &str) -> bool {
    let below = host.split_once('.').map(|(_, rest)| rest);
    names.iter().any(|name| match name.strip_prefix("*.") {
        Some(rest) => below == Some(rest),
        None => name == host,
    })
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
