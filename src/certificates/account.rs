//! The account at an authority: one for a fleet, made when the first order needs it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, Error, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::config::Acme;
use crate::crash;
use crate::node::{Found, Node, as_read};
use crate::record::{AcmeAccount, Private, Record, key};
use crate::store::Txn;

use super::authority::{Heard, Http, Refusal};

/// What an authority says of an account that it does not know (any more).
const UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Opens the account of `acme`, or makes it. Of one caller at a time in a process.
///
/// # Errors
/// [`Refusal`]
pub(super) async fn open(node: &Node, acme: &Acme, heard: &Heard) -> Result<Account, Refusal> {
    let at = key::acme_account(&acme.directory);
    let found = match node.read::<AcmeAccount>(&at).await.map_err(stored)? {
        Some(found) if found.record.id.is_some() || acme.external_account.is_none() => found,
        // One without an address was never made, or is not known any more.
        found if acme.external_account.is_some() => {
            return belonging(node, acme, heard, &at, found.as_ref()).await;
        }
        _ => with_key(node, acme, &at).await?,
    };
    let http = http(acme, heard).await?;
    let builder = Account::builder_with_http(http);
    let account = match &found.record.id {
        Some(id) => {
            let pkcs8 = pkcs8(&found.record)?;
            let opened = builder.from_parts(id.clone(), pkcs8, acme.directory.clone()).await;
            opened.map_err(|e| heard.refusal("the account could not be opened", &e))?
        }
        None => {
            let signing = Key::from_pkcs8_der(pkcs8(&found.record)?);
            let signing = signing.map_err(|e| heard.refusal("the account's key", &e))?;
            let key = (signing, PrivateKeyDer::Pkcs8(pkcs8(&found.record)?));
            // One that has this key already is found, not made again (RFC 8555 §7.3.1).
            let made = builder.create_from_key(key, acme.directory.clone()).await;
            made.map_err(|e| heard.refusal("no account was made", &e))?.0
        }
    };
    told_contact(node, acme, &found, &account).await;
    Ok(account)
}

/// A new key on record, before any authority sees it.
async fn with_key(node: &Node, acme: &Acme, at: &str) -> Result<Found<AcmeAccount>, Refusal> {
    let (_, pkcs8) = Key::generate_pkcs8().map_err(|e| Refusal::new(e.to_string()))?;
    let record = AcmeAccount {
        directory: acme.directory.clone(),
        key: private(&pkcs8),
        id: None,
        contact: Vec::new(),
    };
    let txn = Txn::new().absent(at).put(at, record.encode()).synced();
    let made = node.commit_if(txn).await.map_err(|e| Refusal::new(e.to_string()))?;
    crash::after("acme-account", "key");
    if made.is_some() {
        log::info!("a new account key for {} is on record", acme.directory);
    }
    // Another node's may have been first.
    node.read(at).await.map_err(stored)?.ok_or_else(|| Refusal::new("the account's record is gone"))
}

/// One that belongs to an account elsewhere: the protocol makes its key with it. A process that is killed between
/// the authority's answer and the record leaves an account behind that nothing was ordered under.
async fn belonging(
    node: &Node,
    acme: &Acme,
    heard: &Heard,
    at: &str,
    found: Option<&Found<AcmeAccount>>,
) -> Result<Account, Refusal> {
    let Some(elsewhere) = &acme.external_account else {
        return Err(Refusal::new("no external_account"));
    };
    let bytes = elsewhere.key().map_err(Refusal::new)?;
    let external = ExternalAccountKey::new(elsewhere.id.clone(), &bytes);
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: acme.terms_agreed,
        only_return_existing: false,
    };
    let builder = Account::builder_with_http(http(acme, heard).await?);
    let made = builder.create(&new, acme.directory.clone(), Some(&external)).await;
    let (account, credentials) = made.map_err(|e| heard.refusal("no account was made", &e))?;
    let record = AcmeAccount {
        directory: acme.directory.clone(),
        key: private(credentials.private_key()),
        id: Some(account.id().to_owned()),
        contact: acme.contact.clone(),
    };
    let txn = as_read(Txn::new(), at, found).put(at, record.encode()).synced();
    node.commit_if(txn).await.map_err(|e| Refusal::new(e.to_string()))?;
    Ok(account)
}

/// Puts on record what the authority knows now; the next order does what this one cannot.
async fn told_contact(node: &Node, acme: &Acme, found: &Found<AcmeAccount>, account: &Account) {
    let mut record = AcmeAccount { id: Some(account.id().to_owned()), ..found.record.clone() };
    if record.contact != acme.contact {
        let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
        match account.update_contacts(&contact).await {
            Ok(()) => record.contact.clone_from(&acme.contact),
            Err(e) => log::warn!("acme.contact was not told to {}: {e}", acme.directory),
        }
    }
    if record == found.record {
        return;
    }
    crash::before("acme-account", "id");
    let txn = as_read(Txn::new(), &found.at, Some(found)).put(&found.at, record.encode()).synced();
    if let Err(e) = node.commit_if(txn).await {
        log::warn!("the account at {} was not recorded: {e}", acme.directory);
    }
}

/// An authority that forgot the account is asked for another one, under the same key, by the next order.
pub(super) async fn forget_if_unknown(node: &Node, directory: &str, e: &Error) {
    let Error::Api(problem) = e else { return };
    if problem.r#type.as_deref() != Some(UNKNOWN) {
        return;
    }
    let at = key::acme_account(directory);
    let Ok(Some(found)) = node.read::<AcmeAccount>(&at).await else { return };
    let record = AcmeAccount { id: None, contact: Vec::new(), ..found.record.clone() };
    if let Err(e) = node.commit_if(found.unchanged().put(&at, record.encode())).await {
        log::warn!("the account at {directory} was not recorded: {e}");
    }
}

async fn http(acme: &Acme, heard: &Heard) -> Result<Box<Http>, Refusal> {
    let http = Http::new(acme.ca_file.clone(), heard.clone()).await;
    Ok(Box::new(http.map_err(Refusal::new)?))
}

fn private(pkcs8: &PrivatePkcs8KeyDer<'_>) -> Private {
    Private::new(URL_SAFE_NO_PAD.encode(pkcs8.secret_pkcs8_der()))
}

fn pkcs8(record: &AcmeAccount) -> Result<PrivatePkcs8KeyDer<'static>, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(record.key.expose());
    bytes.map(Into::into).map_err(|_| Refusal::new("the account's key on record cannot be read"))
}

fn stored(e: crate::node::ReadError) -> Refusal {
    Refusal::new(e.to_string())
}
