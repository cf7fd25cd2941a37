//! The sealed form of the token, and its cookie.
//!
//! `base64url(1 ‖ key id ‖ nonce ‖ AES-256-GCM(text))`, with the host as associated data, so that a
//! token of another host does not open. Nonces are random: a key may seal 2³² tokens (NIST
//! SP 800-38D §8.3), and the tokens of one allocation and host are the same for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use ring::aead::{Aad, NONCE_LEN, Nonce};

use crate::clock::{Entropy, Wall};
use crate::id::{AllocationId, Environment};
use crate::lifecycle::affinity::{Given, Ignored, Prior, Token};
use crate::lifecycle::fields;
use crate::snapshot::{AllocationView, EnvView};

use super::keys::KeyRing;

const VERSION: u8 = 1;
const HEAD: usize = 1 + 4 + NONCE_LEN;
/// Longest sealed token, decoded: the longest environment's names fit.
const MOST: usize = 512;
/// Cookies that are kept made.
const KEPT: usize = 4096;

/// The cookie's name (RFC 6265bis §4.1.3.2). Without TLS browsers refuse the prefix.
pub fn cookie_name(tls: bool) -> &'static str {
    if tls { "__Host-vango_edge" } else { "vango_edge" }
}

/// Seals and opens tokens.
pub struct Tokens {
    ring: ArcSwap<KeyRing>,
    /// How long tokens last.
    pub(crate) lasts: Duration,
    made: ArcSwap<HashMap<MadeFor, Made>>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct MadeFor {
    allocation: AllocationId,
    host: String,
    tls: bool,
}

#[derive(Clone)]
struct Made {
    at: Wall,
    cookie: HeaderValue,
}

impl Tokens {
    /// Tokens last for `lasts` from when they are made.
    pub fn new(ring: KeyRing, lasts: Duration, entropy: Arc<dyn Entropy>) -> Self {
        let made = ArcSwap::default();
        Self { ring: ArcSwap::from_pointee(ring), lasts, made, entropy }
    }

    /// Takes other keys into use. Tokens of keys that are not among them are ignored from here on.
    pub fn reload(&self, ring: KeyRing) {
        self.ring.store(Arc::new(ring));
        self.made.store(Arc::default());
    }

    /// Where the session of a request was, if it carries a token that says so.
    pub fn read(
        &self,
        headers: &HeaderMap,
        host: &str,
        tls: bool,
        environment: &Environment,
        now: Wall,
    ) -> Option<Prior> {
        let sealed = fields::first_cookie(headers, cookie_name(tls))?;
        self.open(sealed.trim_matches('"'), host, environment, now).ok()
    }

    /// Opens a sealed token.
    ///
    /// # Errors
    /// Why it means nothing.
    pub fn open(
        &self,
        sealed: &str,
        host: &str,
        environment: &Environment,
        now: Wall,
    ) -> Result<Prior, Ignored> {
        let mut space = [0u8; MOST];
        let length = URL_SAFE_NO_PAD
            .decode_slice(sealed.as_bytes(), &mut space)
            .map_err(|_| Ignored::Unsealed)?;
        let sealed = &mut space[..length];
        if length < HEAD || sealed[0] != VERSION {
            return Err(Ignored::Unsealed);
        }
        let (head, text) = sealed.split_at_mut(HEAD);
        let id = [head[1], head[2], head[3], head[4]];
        let mut nonce = [0u8; NONCE_LEN];
        nonce.copy_from_slice(&head[5..]);
        let ring = self.ring.load();
        let key = ring.named(id).ok_or(Ignored::Unsealed)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let text = key
            .aead
            .open_in_place(nonce, Aad::from(host.as_bytes()), text)
            .map_err(|_| Ignored::Unsealed)?;
        Token::decode(text)?.read(environment, now)
    }

    /// Seals a token for `host`. `None` only without a key.
    pub fn seal(&self, token: &Token<'_>, host: &str) -> Option<String> {
        let ring = self.ring.load();
        let key = ring.current()?;
        let mut nonce = [0u8; NONCE_LEN];
        self.entropy.fill(&mut nonce);
        let mut sealed = Vec::with_capacity(MOST);
        sealed.push(VERSION);
        sealed.extend_from_slice(&key.id);
        sealed.extend_from_slice(&nonce);
        let mut text = Vec::with_capacity(MOST);
        token.encode(&mut text);
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.aead.seal_in_place_append_tag(nonce, Aad::from(host.as_bytes()), &mut text).ok()?;
        sealed.extend_from_slice(&text);
        Some(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The cookie by which a browser comes back to `allocation`. Pages' is made once for each
    /// allocation and host, and again when a quarter of its time is over; a socket's names its session,
    /// and is made each time.
    pub fn cookie(
        &self,
        view: &EnvView,
        allocation: &AllocationView,
        given: Given,
        (host, tls): (&str, bool),
        now: Wall,
    ) -> Option<HeaderValue> {
        if given != Given::Page {
            return self.make(view, allocation, given, (host, tls), now);
        }
        let made_for = MadeFor { allocation: allocation.id.clone(), host: host.to_owned(), tls };
        let made = self.made.load();
        if let Some(made) = made.get(&made_for)
            && now.since(made.at) < self.lasts / 4
            && now >= made.at
        {
            return Some(made.cookie.clone());
        }
        let cookie = self.make(view, allocation, given, (host, tls), now)?;
        let mut kept = HashMap::clone(&made);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(made_for, Made { at: now, cookie: cookie.clone() });
        // Two at once: one of the two cookies is made again later.
        self.made.store(Arc::new(kept));
        Some(cookie)
    }

    fn make(
        &self,
        view: &EnvView,
        allocation: &AllocationView,
        given: Given,
        (host, tls): (&str, bool),
        now: Wall,
    ) -> Option<HeaderValue> {
        let environment = view.environment.to_string();
        let token = Token {
            environment: &environment,
            allocation: allocation.id.as_str(),
            generation: allocation.generation,
            digest: allocation.digest,
            schema: view.schema,
            given,
            expires: Wall(now.0.saturating_add(self.lasts.as_millis() as u64)),
        };
        let cookie = format!(
            "{}={}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{}",
            cookie_name(tls),
            self.seal(&token, host)?,
            self.lasts.as_secs(),
            if tls { "; Secure" } else { "" },
        );
        HeaderValue::try_from(cookie).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededEntropy;
    use crate::id::{Digest, Generation};

    const KEY: [u8; 32] = [7; 32];
    const OLD: [u8; 32] = [8; 32];

    fn tokens(keys: &[[u8; 32]]) -> Tokens {
        let entropy = Arc::new(SeededEntropy::new(1));
        Tokens::new(KeyRing::of(keys), Duration::from_secs(60), entropy)
    }
    fn token() -> Token<'static> {
        Token {
            environment: "studylab/production",
            allocation: "al-aaaaaaaaaaaaaaaa",
            generation: Generation(3),
            digest: Digest::from_bytes([1; 32]),
            schema: None,
            given: Given::Page,
            expires: Wall(1_000),
        }
    }
    fn open(tokens: &Tokens, sealed: &str, host: &str) -> Result<Prior, Ignored> {
        tokens.open(sealed, host, &"studylab".parse().unwrap(), Wall(0))
    }

    #[test]
    fn it_opens_for_its_host_only_and_no_changed_bit_of_it_does() {
        let tokens = tokens(&[KEY]);
        let sealed = tokens.seal(&token(), "a.example").unwrap();
        let prior = open(&tokens, &sealed, "a.example").unwrap();
        assert_eq!(prior.allocation.as_str(), "al-aaaaaaaaaaaaaaaa");
        assert_eq!(open(&tokens, &sealed, "b.example"), Err(Ignored::Unsealed));
        for at in 0..sealed.len() {
            let mut forged = sealed.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(open(&tokens, &forged, "a.example"), Err(Ignored::Unsealed), "{at}");
        }
        for odd in ["", "AQ", "====", &"A".repeat(5_000), &sealed[..40]] {
            assert_eq!(open(&tokens, odd, "a.example"), Err(Ignored::Unsealed), "{odd}");
        }
    }

    #[test]
    fn keys_rotate() {
        let before = tokens(&[OLD]);
        let sealed = before.seal(&token(), "h").unwrap();
        let both = tokens(&[KEY, OLD]);
        assert!(open(&both, &sealed, "h").is_ok());
        both.reload(KeyRing::of(&[KEY]));
        assert_eq!(open(&both, &sealed, "h"), Err(Ignored::Unsealed));
    }
}
