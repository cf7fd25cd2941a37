//! Providers' deliveries: each provider's rules as a row of data, and the check of a signature over
//! the raw bytes of a body. Pure: headers, bytes, secrets and the time in, a verdict out.
//!
//! Sources: the vendor page or specification named at each [`Provider`]. Strict where a vendor's own
//! library is lax: a signature header that is there twice, a timestamp that is no plain number, a
//! list without one usable entry are refusals. What was signed is the literal timestamp text and the
//! bytes as they came, compressed or not, UTF-8 or not.
//!
//! Comparisons are constant-time (`hmac`'s `verify_slice`, `ed25519-dalek`'s strict check). Which of
//! several secrets or signatures matched may be told from the time; how near a wrong one came not.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use http::Method;
use http::header::HeaderMap;
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::contract::{Encoding, EventId, GenericHmac, Provider, Webhook};

use super::idempotency::DEFAULT_WHOLE_BODY;

/// How far a timestamp may be from now, either way: Stripe's, Slack's and Standard Webhooks' own
/// default.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Signatures in one header that are looked at. A provider sends one for each secret in rotation.
const MOST_SIGNATURES: usize = 16;

/// Longest event id that is one; a longer or odd one is replaced by a hash of the body.
const MOST_ID: usize = 255;

/// What a provider does with a delivery that is not answered 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderRules {
    /// How long it waits for an answer.
    pub waits: Duration,
    /// It delivers again by itself.
    pub redelivers: bool,
    /// How long its events are remembered: longer than it goes on delivering.
    pub remember: Duration,
    /// Bytes of a body that are taken where the contract's route says nothing: as many as the provider
    /// may send, by its own documentation.
    pub largest: u64,
}

const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

/// A provider's manners; `generic` is the contract's own words for one that has no row.
pub fn provider_rules(webhook: &Webhook) -> ProviderRules {
    // Those with this bound publish none; their events are some KiB.
    let row = |waits, redelivers, remember| ProviderRules {
        waits: Duration::from_secs(waits),
        redelivers,
        remember,
        largest: DEFAULT_WHOLE_BODY,
    };
    match webhook.provider {
        // Up to three days; the time it waits is not published.
        Provider::Stripe => row(10, true, hours(96)),
        // 15 s; eight tries over about 28 hours.
        Provider::StandardWebhooks => row(15, true, hours(72)),
        // 10 s; never by itself, by hand for three days. "Payloads are capped at 25 MB":
        // <https://docs.github.com/webhooks/webhook-events-and-payloads>
        Provider::Github => ProviderRules { largest: 25 << 20, ..row(10, false, hours(96)) },
        // 5 s; eight tries in four hours.
        Provider::Shopify => row(5, true, hours(48)),
        // 3 s; at once, after one minute and after five.
        Provider::Slack => row(3, true, hours(24)),
        Provider::GenericHmac => {
            let waits = webhook.generic.as_ref().map_or(Duration::from_secs(10), |g| g.deadline);
            ProviderRules { waits, ..row(0, true, hours(96)) }
        }
    }
}

/// How long a delivery may be held: a tenth of the provider's patience is left for the answer.
pub fn hold_limit(webhook: &Webhook) -> Duration {
    provider_rules(webhook).waits * 9 / 10
}

/// Whether the provider delivers by `method`. By another it is not the provider, whatever it shows: the
/// method is not part of what was signed.
pub fn delivers_by(webhook: &Webhook, method: &Method) -> bool {
    *method == Method::POST || (webhook.provider == Provider::GenericHmac && *method == Method::PUT)
}

/// Whether a verified `body` is a handshake and no event. An event is answered from its record when it
/// comes again; a handshake's answer is the app's, each time.
///
/// Sources: <https://docs.slack.dev/reference/events/url_verification>; the contract, for a provider
/// that has no row.
pub fn is_handshake(webhook: &Webhook, body: &[u8]) -> bool {
    let (pointer, value) = match (webhook.provider, &webhook.generic) {
        (Provider::Slack, _) => ("/type", "url_verification"),
        (Provider::GenericHmac, Some(GenericHmac { handshake: Some(h), .. })) => {
            (h.pointer.as_str(), h.value.as_str())
        }
        _ => return false,
    };
    let json: Result<serde_json::Value, _> = serde_json::from_slice(body);
    json.is_ok_and(|json| json.pointer(pointer).and_then(|v| v.as_str()) == Some(value))
}

/// Why a delivery is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Refusal {
    /// No signature, or none of a kind that is checked.
    Missing,
    /// A header that may be there once is there twice.
    Repeated,
    /// A header cannot be read.
    Malformed,
    /// The timestamp is too far from now.
    Stale,
    /// No signature matches any secret.
    Wrong,
    /// The provider does not deliver by this method.
    Method,
    /// Its body was not read to the end: it is too long, came too slowly, or there was no room for it.
    Unread,
}

impl Refusal {
    /// Its name in metrics and traces.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What a head says of a signature, before the body is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What stands before the body in what was signed.
    before: Vec<u8>,
    /// What stands after it.
    after: Vec<u8>,
    signatures: Vec<Signature>,
    /// The event's id, where a header has it.
    id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Signature {
    Hmac(Vec<u8>),
    Ed25519([u8; 64]),
}

impl Signed {
    /// Reads what the provider's rules need from `headers`.
    ///
    /// # Errors
    /// [`Refusal`]: nothing of the body needs to be read.
    pub fn parse(webhook: &Webhook, headers: &HeaderMap, now: Wall) -> Result<Self, Refusal> {
        match webhook.provider {
            Provider::Stripe => stripe(headers, now),
            Provider::StandardWebhooks => standard(headers, now),
            Provider::Github => {
                plain(headers, "x-hub-signature-256", "sha256=", "x-github-delivery")
            }
            Provider::Shopify => {
                let signature = once(headers, "x-shopify-hmac-sha256")?.ok_or(Refusal::Missing)?;
                let id = once(headers, "x-shopify-webhook-id")?.map(str::to_owned);
                Ok(Self::hmac(Vec::new(), vec![unbase64(signature)?], id))
            }
            Provider::Slack => slack(headers, now),
            Provider::GenericHmac => match &webhook.generic {
                Some(generic) => generic_hmac(generic, headers, now),
                None => Err(Refusal::Malformed),
            },
        }
    }

    fn hmac(before: Vec<u8>, signatures: Vec<Vec<u8>>, id: Option<String>) -> Self {
        let signatures = signatures.into_iter().map(Signature::Hmac).collect();
        Self { before, after: Vec::new(), signatures, id }
    }

    /// Checks the signatures over `body` with each of `secrets`, and names the event.
    ///
    /// # Errors
    /// [`Refusal::Wrong`] when none matches.
    pub fn verify(
        &self,
        webhook: &Webhook,
        body: &[u8],
        secrets: &[&[u8]],
    ) -> Result<String, Refusal> {
        let keys: Vec<Key> = secrets.iter().filter_map(|s| Key::of(webhook.provider, s)).collect();
        let matches = |signature: &Signature| keys.iter().any(|k| self.matches(k, signature, body));
        if !self.signatures.iter().any(matches) {
            return Err(Refusal::Wrong);
        }
        Ok(self.event(webhook, body))
    }

    fn matches(&self, key: &Key, signature: &Signature, body: &[u8]) -> bool {
        match (key, signature) {
            (Key::Hmac(key), Signature::Hmac(signature)) => {
                let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return false };
                mac.update(&self.before);
                mac.update(body);
                mac.update(&self.after);
                mac.verify_slice(signature).is_ok()
            }
            (Key::Ed25519(key), Signature::Ed25519(signature)) => {
                let message = [&self.before, body, &self.after].concat();
                let signature = ed25519_dalek::Signature::from_bytes(signature);
                key.verify_strict(&message, &signature).is_ok()
            }
            _ => false,
        }
    }

    /// The event's id: the provider's own, or a hash of the body where it gives none.
    fn event(&self, webhook: &Webhook, body: &[u8]) -> String {
        let member = |pointer: &str| {
            let json: serde_json::Value = serde_json::from_slice(body).ok()?;
            json.pointer(pointer)?.as_str().map(str::to_owned)
        };
        let own = match (&self.id, webhook.provider) {
            (Some(id), _) => Some(id.clone()),
            (None, Provider::Stripe) => member("/id"),
            (None, Provider::Slack) => member("/event_id"),
            (None, Provider::GenericHmac) => match webhook.generic.as_ref().map(|g| &g.event) {
                Some(EventId::Json(pointer)) => member(pointer),
                _ => None,
            },
            (None, _) => None,
        };
        own.filter(|id| is_id(id))
            .unwrap_or_else(|| format!("body-{}", hex::encode(&Sha256::digest(body)[..16])))
    }
}

/// Fit for a header and for people.
fn is_id(id: &str) -> bool {
    (1..=MOST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

enum Key {
    Hmac(Vec<u8>),
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl Key {
    /// The key that `secret` stands for; none for one that cannot be the provider's.
    fn of(provider: Provider, secret: &[u8]) -> Option<Self> {
        if provider != Provider::StandardWebhooks {
            return Some(Self::Hmac(secret.to_vec()));
        }
        if let Some(public) = secret.strip_prefix(b"whpk_") {
            let bytes: [u8; 32] = BASE64.decode(public).ok()?.try_into().ok()?;
            return ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok().map(Self::Ed25519);
        }
        // Base64 with or without its prefix, as the specification's own libraries take it.
        let text = secret.strip_prefix(b"whsec_").unwrap_or(secret);
        BASE64.decode(text).ok().map(Self::Hmac)
    }
}

/// A header's value; a second one is a refusal.
fn once<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::Repeated);
    }
    first.to_str().map(|v| Some(v.trim())).map_err(|_| Refusal::Malformed)
}

fn unhex(text: &str) -> Result<Vec<u8>, Refusal> {
    hex::decode(text).ok().filter(|mac| mac.len() == 32).ok_or(Refusal::Malformed)
}

fn unbase64(text: &str) -> Result<Vec<u8>, Refusal> {
    match BASE64.decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(bytes),
        _ => Err(Refusal::Malformed),
    }
}

/// Whether `text` is a plain number of seconds within `tolerance` of `now`.
fn fresh(text: &str, now: Wall, tolerance: Duration) -> Result<(), Refusal> {
    let plain = (1..=12).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let at: u64 = text.parse().ok().filter(|_| plain).ok_or(Refusal::Malformed)?;
    if (now.0 / 1000).abs_diff(at) <= tolerance.as_secs() { Ok(()) } else { Err(Refusal::Stale) }
}

/// `Stripe-Signature: t=<seconds>,v1=<hex>[,v1=<hex>…][,v0=…]`; any `v1` counts, `v0` never.
fn stripe(headers: &HeaderMap, now: Wall) -> Result<Signed, Refusal> {
    let header = once(headers, "stripe-signature")?.ok_or(Refusal::Missing)?;
    let (mut at, mut signatures) = (None, Vec::new());
    for item in header.split(',') {
        match item.trim().split_once('=').ok_or(Refusal::Malformed)? {
            ("t", _) if at.is_some() => return Err(Refusal::Repeated),
            ("t", text) => at = Some(text),
            ("v1", hex) if signatures.len() < MOST_SIGNATURES => signatures.push(unhex(hex)?),
            // Other schemes, and more signatures than a rotation needs.
            _ => {}
        }
    }
    let at = at.ok_or(Refusal::Malformed)?;
    if signatures.is_empty() {
        return Err(Refusal::Missing);
    }
    fresh(at, now, TOLERANCE)?;
    Ok(Signed::hmac(format!("{at}.").into_bytes(), signatures, None))
}

/// `webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64> v1a,<base64> …`; Svix sends the
/// same under `svix-`.
fn standard(headers: &HeaderMap, now: Wall) -> Result<Signed, Refusal> {
    let prefix = if headers.contains_key("webhook-signature") { "webhook" } else { "svix" };
    let part = |name: &str| -> Result<&str, Refusal> {
        once(headers, &format!("{prefix}-{name}"))?.ok_or(Refusal::Missing)
    };
    let (list, id, at) = (part("signature")?, part("id")?, part("timestamp")?);
    // A dot in the id would let one signed text be read as two.
    if !is_id(id) || id.contains('.') {
        return Err(Refusal::Malformed);
    }
    let mut signatures = Vec::new();
    for item in list.split(' ').filter(|i| !i.is_empty()).take(MOST_SIGNATURES) {
        match item.split_once(',').ok_or(Refusal::Malformed)? {
            ("v1", text) => signatures.push(Signature::Hmac(unbase64(text)?)),
            ("v1a", text) => {
                let bytes = BASE64.decode(text).map_err(|_| Refusal::Malformed)?;
                let bytes = bytes.try_into().map_err(|_| Refusal::Malformed)?;
                signatures.push(Signature::Ed25519(bytes));
            }
            _ => {}
        }
    }
    if signatures.is_empty() {
        return Err(Refusal::Missing);
    }
    fresh(at, now, TOLERANCE)?;
    let before = format!("{id}.{at}.").into_bytes();
    Ok(Signed { before, after: Vec::new(), signatures, id: Some(id.to_owned()) })
}

/// The body alone, in hex behind a prefix; the event's id in a header.
fn plain(headers: &HeaderMap, name: &str, prefix: &str, id: &str) -> Result<Signed, Refusal> {
    let header = once(headers, name)?.ok_or(Refusal::Missing)?;
    let signature = unhex(header.strip_prefix(prefix).ok_or(Refusal::Malformed)?)?;
    let id = once(headers, id)?.map(str::to_owned);
    Ok(Signed::hmac(Vec::new(), vec![signature], id))
}

/// `X-Slack-Signature: v0=<hex>` over `v0:<timestamp>:<body>`.
fn slack(headers: &HeaderMap, now: Wall) -> Result<Signed, Refusal> {
    let header = once(headers, "x-slack-signature")?.ok_or(Refusal::Missing)?;
    let at = once(headers, "x-slack-request-timestamp")?.ok_or(Refusal::Missing)?;
    let signature = unhex(header.strip_prefix("v0=").ok_or(Refusal::Malformed)?)?;
    fresh(at, now, TOLERANCE)?;
    Ok(Signed::hmac(format!("v0:{at}:").into_bytes(), vec![signature], None))
}

fn generic_hmac(rules: &GenericHmac, headers: &HeaderMap, now: Wall) -> Result<Signed, Refusal> {
    let header = once(headers, &rules.header)?.ok_or(Refusal::Missing)?;
    let text = header.strip_prefix(rules.prefix.as_str()).ok_or(Refusal::Malformed)?;
    let signature = match rules.encoding {
        Encoding::Hex => unhex(text)?,
        Encoding::Base64 => unbase64(text)?,
    };
    let at = match &rules.timestamp {
        Some(name) => {
            let at = once(headers, name)?.ok_or(Refusal::Missing)?;
            fresh(at, now, rules.tolerance)?;
            at
        }
        None => "",
    };
    let id = match &rules.event {
        EventId::Header(name) => once(headers, name)?.map(str::to_owned),
        EventId::Json(_) | EventId::Body => None,
    };
    // The contract's parser has seen that {body} is there once.
    let (before, after) = rules.signed.split_once("{body}").ok_or(Refusal::Malformed)?;
    let fill = |part: &str| part.replace("{timestamp}", at).into_bytes();
    let signatures = vec![Signature::Hmac(signature)];
    Ok(Signed { before: fill(before), after: fill(after), signatures, id })
}

#[cfg(test)]
mod tests;
