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
use http::header::HeaderMap;
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::contract::{Encoding, EventId, GenericHmac, Provider, Webhook};

/// How far a timestamp may be from now, either way: Stripe's, Slack's and Standard Webhooks' own
/// default.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Signatures in one header that are looked at. A provider sends one for each secret in rotation.
const MOST_SIGNATURES: usize = 16;

/// Longest event id that is one; a longer or odd one is replaced by a hash of the body.
const MOST_ID: usize = 255;

/// What a provider does with a delivery that is not answered 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// How long it waits for an answer.
    pub waits: Duration,
    /// It delivers again by itself.
    pub redelivers: bool,
    /// How long its events are remembered: longer than it goes on delivering.
    pub remember: Duration,
}

const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

/// A provider's manners; `generic` is the contract's own words for one that has no row.
pub fn manners(webhook: &Webhook) -> Manners {
    let row = |waits, redelivers, remember| Manners {
        waits: Duration::from_secs(waits),
        redelivers,
        remember,
    };
    match webhook.provider {
        // Up to three days; the time it waits is not published.
        Provider::Stripe => row(10, true, hours(96)),
        // 15 s; eight tries over about 28 hours.
        Provider::StandardWebhooks => row(15, true, hours(72)),
        // 10 s; never by itself, by hand for three days.
        Provider::Github => row(10, false, hours(96)),
        // 5 s; eight tries in four hours.
        Provider::Shopify => row(5, true, hours(48)),
        // 3 s; at once, after one minute and after five.
        Provider::Slack => row(3, true, hours(24)),
        Provider::GenericHmac => {
            let waits = webhook.generic.as_ref().map_or(Duration::from_secs(10), |g| g.deadline);
            Manners { waits, redelivers: true, remember: hours(96) }
        }
    }
}

/// How long a delivery may be held: a tenth of the provider's patience is left for the answer.
pub fn hold_limit(webhook: &Webhook) -> Duration {
    manners(webhook).waits * 9 / 10
}

/// Why a delivery is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
}

impl Refusal {
    /// Every one, for metrics.
    pub const ALL: [Self; 5] =
        [Self::Missing, Self::Repeated, Self::Malformed, Self::Stale, Self::Wrong];

    /// Its name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::Stale => "stale",
            Self::Wrong => "wrong",
        }
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
        own.filter(|id| is_id(id)).unwrap_or_else(|| {
            let hash = Sha256::digest(body);
            hash[..16].iter().fold("body-".to_owned(), |s, b| format!("{s}{b:02x}"))
        })
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
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Refusal::Malformed);
    }
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).map_err(|_| Refusal::Malformed)?;
        u8::from_str_radix(text, 16).map_err(|_| Refusal::Malformed)
    };
    digits.chunks(2).map(byte).collect()
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
            // Other schemes, and more than anybody rotates.
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
mod tests {
    use super::*;
    use crate::contract::{Duplicate, WhenCold};

    fn of(provider: Provider) -> Webhook {
        Webhook {
            provider,
            secret: "S".into(),
            when_cold: WhenCold::Hold,
            duplicate: Duplicate::Answer,
            generic: None,
        }
    }
    fn heads(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }
    fn check(
        provider: Provider,
        pairs: &[(&'static str, &str)],
        at: u64,
        body: &[u8],
        secrets: &[&str],
    ) -> Result<String, Refusal> {
        let webhook = of(provider);
        let secrets: Vec<&[u8]> = secrets.iter().map(|s| s.as_bytes()).collect();
        Signed::parse(&webhook, &heads(pairs), Wall(at * 1000))?.verify(&webhook, body, &secrets)
    }

    const STRIPE: &str = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
    const STRIPE_BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;

    fn stripe_with(
        header: &str,
        at: u64,
        body: &[u8],
        secrets: &[&str],
    ) -> Result<String, Refusal> {
        check(Provider::Stripe, &[("stripe-signature", header)], at, body, secrets)
    }

    #[test]
    fn stripe_form() {
        let header = format!("t=1700000000,v1={STRIPE}");
        let ok = |at| stripe_with(&header, at, STRIPE_BODY, &["whsec_test_secret"]);
        assert_eq!(ok(1_700_000_000), Ok("evt_1".into()));
        // The tolerance to the second, both ways.
        assert!(ok(1_700_000_300).is_ok() && ok(1_699_999_700).is_ok());
        assert_eq!(ok(1_700_000_301), Err(Refusal::Stale));
        assert_eq!(ok(1_699_999_699), Err(Refusal::Stale));
        let now = 1_700_000_000;
        let with = |header: &str| stripe_with(header, now, STRIPE_BODY, &["whsec_test_secret"]);
        let other = "0".repeat(64);
        for good in [
            format!("t={now},v1={other},v1={STRIPE}"),
            format!("t={now},v1={STRIPE},v1={other},v0={other}"),
            format!("v1={STRIPE}, t={now}"),
            format!("t={now},v1={}", STRIPE.to_uppercase()),
        ] {
            assert!(with(&good).is_ok(), "{good}");
        }
        for (bad, why) in [
            (format!("t={now},v0={STRIPE}"), Refusal::Missing),
            (format!("t={now}"), Refusal::Missing),
            (format!("v1={STRIPE}"), Refusal::Malformed),
            (format!("t={now},v1={}", &STRIPE[..62]), Refusal::Malformed),
            (format!("t={now},t={now},v1={STRIPE}"), Refusal::Repeated),
            (format!("t=+{now},v1={STRIPE}"), Refusal::Malformed),
            (format!("t=0{now},v1={STRIPE}"), Refusal::Wrong),
            (format!("t={now},v1={other}"), Refusal::Wrong),
            (String::new(), Refusal::Malformed),
        ] {
            assert_eq!(with(&bad), Err(why), "{bad}");
        }
        let twice = [("stripe-signature", header.as_str()), ("stripe-signature", header.as_str())];
        let secret = &["whsec_test_secret"];
        assert_eq!(
            check(Provider::Stripe, &twice, now, STRIPE_BODY, secret),
            Err(Refusal::Repeated)
        );
        assert_eq!(check(Provider::Stripe, &[], now, b"", secret), Err(Refusal::Missing));
        let body = [STRIPE_BODY, b" "].concat();
        assert_eq!(stripe_with(&header, now, &body, secret), Err(Refusal::Wrong));
        // Rotation: any of the list.
        assert!(stripe_with(&header, now, STRIPE_BODY, &["new", "whsec_test_secret"]).is_ok());
        assert_eq!(stripe_with(&header, now, STRIPE_BODY, &[]), Err(Refusal::Wrong));
    }

    #[test]
    fn githubs_published_vector() {
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let pairs = [("x-hub-signature-256", signature), ("x-github-delivery", "72d3162e")];
        let secret = &["It's a Secret to Everybody"];
        let verified = check(Provider::Github, &pairs, 0, b"Hello, World!", secret);
        assert_eq!(verified, Ok("72d3162e".into()));
        let wrong = check(Provider::Github, &pairs, 0, b"Hello, World?", secret);
        assert_eq!(wrong, Err(Refusal::Wrong));
        // Without a delivery id, the body stands for the event.
        let id = check(Provider::Github, &pairs[..1], 0, b"Hello, World!", secret).unwrap();
        assert!(id.starts_with("body-") && id.len() == 37, "{id}");
        let sha1 = [("x-hub-signature-256", &signature[7..])];
        assert_eq!(check(Provider::Github, &sha1, 0, b"", secret), Err(Refusal::Malformed));
    }

    /// From the specification's own libraries' `test_sign`; v1a from Python's `cryptography`, the
    /// private key being the bytes 0 to 31.
    #[test]
    fn standard_webhooks_vectors() {
        const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        const BODY: &[u8] = br#"{"test": 2432232314}"#;
        const AT: u64 = 1_614_265_330;
        const V1: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        const V1A: &str = "v1a,yoUrgEkc12aGqm0n4Sydmdz55xJfTz4AsAgieHFjmkR7LJtqVCZOQYzvvHjI5kAey\
                           +r4iaBGxTFRrl2iBQxtDQ==";
        const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        const PUBLIC: &str = "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
        let with = |id: &str, list: &str, secret: &str, at: u64| {
            let stamp = AT.to_string();
            let pairs = [
                ("webhook-id", id),
                ("webhook-timestamp", stamp.as_str()),
                ("webhook-signature", list),
            ];
            check(Provider::StandardWebhooks, &pairs, at, BODY, &[secret])
        };
        assert_eq!(with(ID, V1, SECRET, AT), Ok(ID.into()));
        assert_eq!(with(ID, V1, &SECRET[6..], AT), Ok(ID.into()));
        assert_eq!(with(ID, V1A, PUBLIC, AT), Ok(ID.into()));
        assert!(with(ID, &format!("v2,x {V1} {V1A}"), PUBLIC, AT).is_ok());
        // Neither kind of key answers for the other kind of signature.
        assert_eq!(with(ID, V1A, SECRET, AT), Err(Refusal::Wrong));
        assert_eq!(with(ID, V1, PUBLIC, AT), Err(Refusal::Wrong));
        assert_eq!(with("msg_other", V1, SECRET, AT), Err(Refusal::Wrong));
        assert_eq!(with("msg.p5j", V1, SECRET, AT), Err(Refusal::Malformed));
        assert_eq!(with(ID, "v1", SECRET, AT), Err(Refusal::Malformed));
        assert_eq!(with(ID, "v3,AAAA", SECRET, AT), Err(Refusal::Missing));
        assert_eq!(with(ID, V1, SECRET, AT + 301), Err(Refusal::Stale));
        let stamp = AT.to_string();
        let svix = [("svix-id", ID), ("svix-timestamp", stamp.as_str()), ("svix-signature", V1)];
        assert_eq!(check(Provider::StandardWebhooks, &svix, AT, BODY, &[SECRET]), Ok(ID.into()));
    }

    /// Slack's is the example of its documentation; Shopify's and the JSON one are from Python's
    /// `hmac`.
    #[test]
    fn slack_and_shopify_vectors() {
        let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
            &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner\
            &command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands\
            %2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.\
            47445629121.803a0bc887a14d10d2c447fce8b6703c";
        let mine = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
        let slack = |at: &str, now: u64, signature: &str, body: &[u8], secret: &str| {
            let pairs = [("x-slack-signature", signature), ("x-slack-request-timestamp", at)];
            check(Provider::Slack, &pairs, now, body, &[secret])
        };
        let secret = "8f742231b10e8888abcd99yyyzzz85a5";
        let id = slack("1531420618", 1_531_420_618, mine, body, secret).unwrap();
        assert!(id.starts_with("body-"));
        assert_eq!(slack("1531420618", 1_531_420_919, mine, body, secret), Err(Refusal::Stale));
        let json = br#"{"event_id":"Ev1","type":"event_callback"}"#;
        let signature = "v0=06a8bcf2ad633a9e7ad6b1797a10ecda1aa81a0cbc2e77e204706fcaed8cea31";
        let event = slack("1700000000", 1_700_000_000, signature, json, "slack_secret");
        assert_eq!(event, Ok("Ev1".into()));

        let signature = "HkXBngMRo/tlppMNoopcz4KNfS22Q5FtteEt7Di9wOo=";
        let pairs = [("x-shopify-hmac-sha256", signature), ("x-shopify-webhook-id", "b54557e4")];
        let shopify = check(Provider::Shopify, &pairs, 0, br#"{"id":1}"#, &["shopify_secret"]);
        assert_eq!(shopify, Ok("b54557e4".into()));
        let cut = [("x-shopify-hmac-sha256", &signature[..43])];
        assert_eq!(check(Provider::Shopify, &cut, 0, b"", &["s"]), Err(Refusal::Malformed));
    }

    #[test]
    fn bytes_are_checked_and_not_text() {
        // Not UTF-8, and what gzip makes of something: signed and checked as they are.
        for body in [&b"\xff\xfe\0"[..], b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b""] {
            let mut mac = Hmac::<Sha256>::new_from_slice(b"s").unwrap();
            mac.update(body);
            let hex = mac
                .finalize()
                .into_bytes()
                .iter()
                .fold(String::new(), |s, b| format!("{s}{b:02x}"));
            let header = format!("sha256={hex}");
            let pairs = [("x-hub-signature-256", header.as_str())];
            assert!(check(Provider::Github, &pairs, 0, body, &["s"]).is_ok(), "{body:?}");
        }
    }

    #[test]
    fn a_generic_hmac_is_what_its_contract_says() {
        let webhook = Webhook {
            generic: Some(GenericHmac {
                header: "x-sig".into(),
                prefix: String::new(),
                encoding: Encoding::Hex,
                signed: "{timestamp}.{body}".into(),
                timestamp: Some("x-at".into()),
                tolerance: TOLERANCE,
                event: EventId::Json("/id".into()),
                deadline: Duration::from_secs(10),
            }),
            ..of(Provider::GenericHmac)
        };
        let headers = heads(&[("x-sig", STRIPE), ("x-at", "1700000000")]);
        let signed = Signed::parse(&webhook, &headers, Wall(1_700_000_000_000)).unwrap();
        let verified = signed.verify(&webhook, STRIPE_BODY, &[b"whsec_test_secret"]);
        assert_eq!(verified, Ok("evt_1".into()));
    }

    #[test]
    fn no_hold_outlasts_its_provider() {
        use Provider as P;
        for provider in [P::Stripe, P::StandardWebhooks, P::Github, P::Shopify, P::Slack] {
            let webhook = of(provider);
            assert!(hold_limit(&webhook) < manners(&webhook).waits);
        }
        assert!(!manners(&of(P::Github)).redelivers);
    }
}
