//! `[acme]`: the authority that certificates are ordered from, and how.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use vango_edge_core::control::certificates::{Retry, Rules};

use crate::document::Table;
use crate::record::ChallengeKind;

use super::keys::{DAY, Differences, Keys, flag, keys, number, secs, table, time, word};
use super::secret::{Secret, SecretSource, read_secret, source};

/// Contacts of an account; an authority takes a few.
const MOST_CONTACTS: usize = 10;

const CHALLENGES: [(&str, ChallengeKind); 2] =
    [("tls-alpn-01", ChallengeKind::TlsAlpn), ("http-01", ChallengeKind::Http)];

keys! {
    /// `[acme]`
    #[derive(Debug, Clone, PartialEq)]
    pub struct Acme in "acme.", checked by agreed {
        /// Where the authority says what it can do.
        now directory: String = directory(),
        /// Whom it may write to: `mailto:` addresses.
        now contact: Vec<String> = contacts(),
        /// The operator agrees to its terms of service.
        now terms_agreed: bool = flag(),
        /// How hosts are proved.
        now challenge: ChallengeKind = word(&CHALLENGES, ChallengeKind::TlsAlpn),
        /// So long before a certificate runs out it is renewed; `None`: a third of its life.
        now renew_before: Option<Duration> = renew_before(),
        /// Orders that begin in an hour.
        now orders_per_hour: usize = number(1..=1000, 60),
        /// Pause after an order that failed.
        each retry: Retry = table(),
        /// Who vouches for the authority's own address; `None`: those whom the system trusts.
        now ca_file: Option<PathBuf> = ca_file(),
        /// The account elsewhere that this one belongs to.
        now external_account: Option<ExternalAccount> = external_account(),
    }
}

/// `acme.external_account` (RFC 8555 §7.3.4)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The key's name.
    pub id: String,
    /// base64url of the key.
    pub key: SecretSource,
}

impl ExternalAccount {
    /// The key's bytes.
    ///
    /// # Errors
    /// Why it cannot be read; nothing of it is in that.
    pub fn key(&self) -> Result<Vec<u8>, String> {
        let read = read_secret(&self.key).map_err(|e| e.to_string())?;
        decoded(&read).ok_or_else(|| format!("{}: the key is not base64url", self.key))
    }
}

fn decoded(key: &Secret) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD
        .decode(key.expose().trim_end_matches('='))
        .ok()
        .filter(|bytes| !bytes.is_empty())
}

impl Acme {
    /// As the core decides by them.
    pub fn rules(&self) -> Rules<'_> {
        Rules {
            directory: &self.directory,
            renew_before: self.renew_before,
            retry: self.retry,
            orders_per_hour: self.orders_per_hour,
        }
    }
}

/// Reads `[acme]`; without it nothing is ordered.
pub(super) fn acme(t: &Table<'_>, key: &'static str) -> Option<Acme> {
    let t = t.opt_table(key)?;
    let acme = Acme::read(&t);
    t.finish();
    Some(acme)
}

fn agreed(acme: &Acme, t: &Table<'_>) {
    if !acme.terms_agreed {
        let why = "expected terms_agreed = true: an authority issues only to those who agree to its terms \
                   of service, which its directory links";
        t.error("terms_agreed", why);
    }
}

fn directory(t: &Table<'_>, key: &'static str) -> String {
    let Some(text) = t.required(key) else { return String::new() };
    let example = "expected an authority's directory such as \
                   \"https://acme-v02.api.letsencrypt.org/directory\"";
    match text.parse::<http::Uri>() {
        Ok(uri) => {
            let authority = uri.authority().map_or("", |a| a.as_str());
            if uri.scheme_str() != Some("https") || authority.is_empty() || authority.contains('@')
            {
                t.error(key, format!("{example}, found {text:?}"));
            }
        }
        Err(e) => t.error(key, format!("{example}: {e}")),
    }
    text
}

fn contacts(t: &Table<'_>, key: &'static str) -> Vec<String> {
    let all = t.texts(key);
    for contact in &all {
        let address = contact.strip_prefix("mailto:");
        let fits =
            |a: &str| a.contains('@') && a.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        if !address.is_some_and(fits) {
            t.error(key, format!("expected \"mailto:operator@app.example\", found {contact:?}"));
        }
    }
    if all.len() > MOST_CONTACTS {
        t.error(key, format!("expected at most {MOST_CONTACTS}, found {}", all.len()));
    }
    all
}

fn renew_before(t: &Table<'_>, key: &'static str) -> Option<Duration> {
    t.has(key).then(|| t.duration(key, secs(1)..=3650 * DAY, DAY))
}

fn ca_file(t: &Table<'_>, key: &'static str) -> Option<PathBuf> {
    let path = t.beside(t.text(key)?);
    if let Err(why) = roots(&path) {
        t.error(key, why);
    }
    Some(path)
}

/// The certificates in a file.
///
/// # Errors
/// When there is none.
pub fn roots(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(format!("{}: expected certificates in PEM form", path.display())),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

fn external_account(t: &Table<'_>, key: &'static str) -> Option<ExternalAccount> {
    let t = t.opt_table(key)?;
    let id = t.required("id");
    let from = t.opt_table("key").and_then(|k| {
        let from = source(&k);
        k.finish();
        from
    });
    if !t.has("key") {
        t.error_here(
            "expected { id = \"…\", key = { file = \"/path\" } }, or key = { env = \"NAME\" }",
        );
    }
    // It may be there only where the edge runs.
    if let Some(from) = &from
        && read_secret(from).is_ok_and(|secret| decoded(&secret).is_none())
    {
        t.error("key", format!("{from}: the key is not base64url"));
    }
    t.finish();
    Some(ExternalAccount { id: id?, key: from? })
}

keys! {
    for Retry in "acme.retry.", checked by grows {
        now first = time(secs(1)..=secs(86_400), secs(120)),
        now max = time(secs(1)..=7 * DAY, secs(12 * 3600)),
    }
}

fn grows(retry: &Retry, t: &Table<'_>) {
    if retry.first > retry.max {
        t.error("first", format!("expected at most max, which is {:?}", retry.max));
    }
}
