//! Where a session was before: what the edge's own token says, what the session routing record
//! says, and the session's own id.
//!
//! All three are hints, never an authorization and never an address: they name an allocation, and
//! [`super::journey::choose`] looks for it among the owner's ready ones only. What cannot be read, is of
//! another environment or has run out is ignored, and never an error.
//!
//! The token's text is data here. It is sealed and opened, with keys, in [`crate::session`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap};
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::contract::{Contract, RouteClass, SessionSource};
use crate::id::{AllocationId, Digest, Environment, Generation};
use crate::snapshot::AllocationView;

use super::fields;

/// Longest session id that is taken from a request, in bytes.
pub const SESSION_ID_BYTES: usize = 128;

/// Where a session was, as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prior {
    /// On this allocation,
    pub allocation: AllocationId,
    /// which was this start of its environment.
    pub generation: Generation,
    /// The schema its state was written under; `None` when the artifact declared none.
    pub schema: Option<Digest>,
    pub known_by: KnownBy,
}

/// Who says where a session was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum KnownBy {
    /// The edge's token, which is one browser's.
    Token {
        /// Until when it is believed.
        expires: Wall,
        /// What it was given with.
        given: Given,
    },
    /// The routing record of the session's own id.
    Record,
}

impl KnownBy {
    /// For people.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What a token was given with. A browser has one token, whatever it does in how many tabs: it says of
/// a session only what it says by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// A page: the browser is there, and nothing is known of a session.
    Page,
    /// A live socket that its app accepted, of the session with that name; `None` where the session
    /// has no id of its own.
    Socket(Option<SessionName>),
}

/// Why a token was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Not sealed by a key in use for this host: forged, damaged, of another host, or too old.
    Unsealed,
    /// Sealed by us, in a form this build does not read.
    Malformed,
    /// Of another app or environment.
    OtherEnvironment,
    /// Past its date.
    Expired,
}

/// What a token says, as it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// `app/environment`.
    pub environment: &'a str,
    pub allocation: &'a str,
    /// Its generation.
    pub generation: Generation,
    /// The artifact it runs.
    pub digest: Digest,
    /// The schema its artifact declares.
    pub schema: Option<Digest>,
    /// What it was given with.
    pub given: Given,
    /// When it runs out.
    pub expires: Wall,
}

const WITH_SCHEMA: u8 = 1;
const OF_SOCKET: u8 = 2;
const WITH_SESSION: u8 = 4;

impl<'a> Token<'a> {
    /// Appends the text that is sealed.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let schema = if self.schema.is_some() { WITH_SCHEMA } else { 0 };
        let given = match self.given {
            Given::Page => 0,
            Given::Socket(None) => OF_SOCKET,
            Given::Socket(Some(_)) => OF_SOCKET | WITH_SESSION,
        };
        out.push(schema | given);
        out.extend_from_slice(&self.expires.0.to_be_bytes());
        out.extend_from_slice(&self.generation.0.to_be_bytes());
        out.extend_from_slice(self.digest.as_bytes());
        if let Some(schema) = &self.schema {
            out.extend_from_slice(schema.as_bytes());
        }
        if let Given::Socket(Some(name)) = self.given {
            out.extend_from_slice(&name.0.to_be_bytes());
        }
        out.extend_from_slice(self.environment.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.allocation.as_bytes());
    }

    /// Reads the text again.
    ///
    /// # Errors
    /// [`Ignored::Malformed`].
    pub fn decode(text: &'a [u8]) -> Result<Self, Ignored> {
        let wrong = Ignored::Malformed;
        let (&flags, rest) = text.split_first().ok_or(wrong)?;
        let (expires, rest) = rest.split_first_chunk::<8>().ok_or(wrong)?;
        let (generation, rest) = rest.split_first_chunk::<8>().ok_or(wrong)?;
        let (digest, rest) = rest.split_first_chunk::<32>().ok_or(wrong)?;
        let (schema, rest) = if flags & WITH_SCHEMA == 0 {
            (None, rest)
        } else {
            let (schema, rest) = rest.split_first_chunk::<32>().ok_or(wrong)?;
            (Some(Digest::from_bytes(*schema)), rest)
        };
        let (given, rest) = match flags & !WITH_SCHEMA {
            0 => (Given::Page, rest),
            OF_SOCKET => (Given::Socket(None), rest),
            f if f == OF_SOCKET | WITH_SESSION => {
                let (name, rest) = rest.split_first_chunk::<16>().ok_or(wrong)?;
                (Given::Socket(Some(SessionName(u128::from_be_bytes(*name)))), rest)
            }
            _ => return Err(wrong),
        };
        let names = std::str::from_utf8(rest).map_err(|_| wrong)?;
        let (environment, allocation) = names.split_once(' ').ok_or(wrong)?;
        Ok(Self {
            environment,
            allocation,
            generation: Generation(u64::from_be_bytes(*generation)),
            digest: Digest::from_bytes(*digest),
            schema,
            given,
            expires: Wall(u64::from_be_bytes(*expires)),
        })
    }

    /// What the token means for a request to `environment` at `now`.
    ///
    /// # Errors
    /// Why it means nothing.
    pub fn read(&self, environment: &Environment, now: Wall) -> Result<Prior, Ignored> {
        let same = self.environment.split_once('/').is_some_and(|(app, name)| {
            app == environment.app().as_str() && name == environment.name().as_str()
        });
        if !same {
            return Err(Ignored::OtherEnvironment);
        }
        if now >= self.expires {
            return Err(Ignored::Expired);
        }
        Ok(Prior {
            allocation: self.allocation.parse().map_err(|_| Ignored::Malformed)?,
            generation: self.generation,
            schema: self.schema,
            known_by: KnownBy::Token { expires: self.expires, given: self.given },
        })
    }
}

/// The new token that a response of `allocation` is to carry, which is `given` with it: there was
/// none, it named another allocation, it knew nothing of the socket's session, or less than half of its
/// time is left. A page leaves what the token knows of a session as it is.
pub fn token_due(
    seen: Option<&Prior>,
    allocation: &AllocationId,
    given: Given,
    now: Wall,
    lasts: Duration,
) -> Option<Given> {
    let Some((prior, KnownBy::Token { expires, given: before })) = seen.map(|p| (p, p.known_by))
    else {
        return Some(given);
    };
    if prior.allocation != *allocation {
        return Some(given);
    }
    let next = if given == Given::Page { before } else { given };
    (next != before || expires.since(now) < lasts / 2).then_some(next)
}

/// Whether a response may carry a token: an answer of a page or of a live socket that is not an
/// error, and that no shared cache may keep, since the cookie would go to every client of the cache.
pub fn may_carry_token(class: &RouteClass, status: u16, headers: &HeaderMap) -> bool {
    let class_and_status = match class {
        RouteClass::Page => (200..400).contains(&status) && status != 304,
        RouteClass::Live(_) => status == 101,
        RouteClass::Action(_) | RouteClass::Webhook(_) => false,
    };
    let shared = |value: &str| {
        value.split(',').map(str::trim).any(|directive| {
            directive.eq_ignore_ascii_case("public")
                || directive.eq_ignore_ascii_case("immutable")
                || directive.get(..9).is_some_and(|d| d.eq_ignore_ascii_case("s-maxage="))
        })
    };
    class_and_status
        && !headers
            .get_all(header::CACHE_CONTROL)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(shared)
}

/// Where a session id was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundIn {
    /// A cookie: one browser's, whose tabs share it.
    Cookie,
    /// The query: one tab's.
    Query,
    /// A Vango client's hello: one tab's.
    Hello,
}

/// An app's session id. A client that has it may act as the session, so nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionId {
    text: Box<str>,
    /// Where it was found.
    pub found_in: FoundIn,
}

impl SessionId {
    /// `None` when `text` is empty, longer than [`SESSION_ID_BYTES`], or has a character that is
    /// neither a letter, a digit, nor one of `-_.~`: such ids go into keys and paths.
    pub fn new(text: &str, found_in: FoundIn) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        let fits = (1..=SESSION_ID_BYTES).contains(&text.len()) && text.bytes().all(plain);
        (fits && !text.bytes().all(|b| b == b'.')).then(|| Self { text: text.into(), found_in })
    }

    /// The id itself, for the session store.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Whether each tab has its own, so that a new socket of it replaces an older one.
    pub fn is_one_tabs(&self) -> bool {
        self.found_in != FoundIn::Cookie
    }

    /// A name for records and placement: 128 bits of its SHA-256.
    pub fn name(&self) -> SessionName {
        let hash = Sha256::digest(self.text.as_bytes());
        let mut name = [0u8; 16];
        name.copy_from_slice(&hash[..16]);
        SessionName(u128::from_be_bytes(name))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({:?})", self.found_in)
    }
}

/// Stands for a session id where the id itself must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(pub u128);

impl SessionName {
    /// Where on the ring the session stands; the same on every edge.
    pub fn ring(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The session id of a request, by the sources its live route names, in their order. A page is
/// looked at by the sources of the contract's first live route, so that a page and its socket
/// agree.
pub fn session_id(
    contract: &Contract,
    route: usize,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Option<SessionId> {
    let own = contract.routes.get(route).map(|r| &r.class);
    let live = match own {
        Some(RouteClass::Live(live)) => live,
        _ => contract.live()?,
    };
    live.session.iter().find_map(|source| match source {
        SessionSource::Cookie(name) => {
            let value = fields::first_cookie(headers, name)?;
            SessionId::new(value.trim_matches('"'), FoundIn::Cookie)
        }
        SessionSource::Query(name) => {
            let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.filter(|(n, _)| n == name).map(|(_, v)| v).next()?;
            SessionId::new(value, FoundIn::Query)
        }
        SessionSource::VangoHello => None,
    })
}

/// What affinity meant for a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// The request named no allocation.
    None,
    /// Placed on the one it named.
    Kept,
    /// The one it named is gone or full; placed anew.
    Lost,
}

/// Where the ring puts a session: rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads
/// (Mirrokni, Thorup, Zadimoghaddam, 2016). Every edge gives a session the same allocation without asking
/// another, and one that has a quarter more than its share is passed over.
///
/// The allowed allocation with the highest weight for the session among those whose load is within a
/// quarter of the average, counting the request to be placed; the least loaded always is. Only those
/// that are allowed count: the sessions of one that died, and that was not taken off yet, spread over all
/// that are left. `None`: none is allowed.
pub(super) fn on_ring<'v>(
    ready: &'v [Arc<AllocationView>],
    allowed: impl Fn(&&'v Arc<AllocationView>) -> bool,
    session: u64,
) -> Option<&'v Arc<AllocationView>> {
    let loads = || ready.iter().filter(&allowed).map(|a| u64::from(a.load.in_flight()));
    let (n, total) = loads().fold((0, 0), |(n, total), load| (n + 1, total + load));
    if n == 0 {
        return None;
    }
    let bound = ((total + 1) * 5).div_ceil(n * 4);
    let within = |a: &&Arc<AllocationView>| u64::from(a.load.in_flight()) < bound;
    let weight = |a: &&Arc<AllocationView>| mixed(session ^ mixed(hash_of(a.id.as_str())));
    ready.iter().filter(&allowed).filter(within).max_by_key(weight)
}

/// FNV-1a, 64 bits: the same in every build and on every node.
fn hash_of(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64: each bit of the input moves half of the output's.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token<'static> {
        Token {
            environment: "studylab/production",
            allocation: "al-aaaaaaaaaaaaaaaa",
            generation: Generation(3),
            digest: Digest::from_bytes([1; 32]),
            schema: Some(Digest::from_bytes([2; 32])),
            given: Given::Page,
            expires: Wall(10_000),
        }
    }

    #[test]
    fn a_token_reads_back_whole_and_no_part_of_it_does() {
        let (declared, name) = (Some(Digest::from_bytes([2; 32])), Some(SessionName(7)));
        for (schema, given) in [
            (None, Given::Page),
            (declared, Given::Page),
            (declared, Given::Socket(None)),
            (None, Given::Socket(name)),
            (declared, Given::Socket(name)),
        ] {
            let token = Token { schema, given, ..token() };
            let mut text = Vec::new();
            token.encode(&mut text);
            assert_eq!(Token::decode(&text), Ok(token));
            for cut in 0..text.len() {
                let whole = Token::decode(&text[..cut])
                    .and_then(|t| t.read(&"studylab".parse().unwrap(), Wall(0)));
                assert!(whole.is_err(), "{cut}");
            }
            for flags in [WITH_SESSION, 8, 0x80] {
                text[0] = flags;
                assert_eq!(Token::decode(&text), Err(Ignored::Malformed));
            }
        }
    }

    #[test]
    fn another_environments_or_an_old_token_means_nothing() {
        let at = |env: &str, now| token().read(&env.parse().unwrap(), Wall(now)).map(|p| p.schema);
        assert_eq!(at("studylab", 9_999), Ok(Some(Digest::from_bytes([2; 32]))));
        assert_eq!(at("studylab", 10_000), Err(Ignored::Expired));
        assert_eq!(at("studylab/pr-7", 0), Err(Ignored::OtherEnvironment));
        assert_eq!(at("other", 0), Err(Ignored::OtherEnvironment));
    }

    #[test]
    fn a_token_is_renewed_when_it_must_be() {
        let a: AllocationId = "al-aaaaaaaaaaaaaaaa".parse().unwrap();
        let b: AllocationId = "al-bbbbbbbbbbbbbbbb".parse().unwrap();
        let prior = token().read(&"studylab".parse().unwrap(), Wall(0)).unwrap();
        let due = |seen: Option<&Prior>, at, given, now| {
            token_due(seen, at, given, Wall(now), Duration::from_secs(10))
        };
        let (page, socket) = (Given::Page, Given::Socket(Some(SessionName(7))));
        assert_eq!(due(None, &a, page, 0), Some(page));
        assert_eq!(due(Some(&prior), &a, page, 5_000), None);
        assert_eq!(due(Some(&prior), &a, page, 5_001), Some(page));
        assert_eq!(due(Some(&prior), &b, page, 0), Some(page));
        let record = Prior { known_by: KnownBy::Record, ..prior.clone() };
        assert_eq!(due(Some(&record), &a, page, 0), Some(page));
        // A socket says of its session what a page cannot; a page takes nothing of it away.
        assert_eq!(due(Some(&prior), &a, socket, 0), Some(socket));
        let known_by = KnownBy::Token { expires: Wall(10_000), given: socket };
        let prior = Prior { known_by, ..prior };
        assert_eq!(due(Some(&prior), &a, socket, 0), None);
        assert_eq!(due(Some(&prior), &a, page, 0), None);
        assert_eq!(due(Some(&prior), &a, page, 5_001), Some(socket), "renewed as it is");
        assert_eq!(due(Some(&prior), &b, page, 0), Some(page), "the session is not known there");
        let other = Given::Socket(Some(SessionName(8)));
        assert_eq!(due(Some(&prior), &a, other, 0), Some(other));
    }

    #[test]
    fn a_token_is_on_pages_and_sockets_and_on_nothing_a_shared_cache_keeps() {
        let page = RouteClass::Page;
        let empty = HeaderMap::new();
        for (status, may) in [(200, true), (303, true), (304, false), (404, false), (503, false)] {
            assert_eq!(may_carry_token(&page, status, &empty), may, "{status}");
        }
        let resume = crate::contract::Resume::SameAllocation;
        let live = RouteClass::Live(crate::contract::Live {
            session: Vec::new(),
            resume,
            end: crate::contract::SocketEnd::Close,
        });
        assert!(may_carry_token(&live, 101, &empty) && !may_carry_token(&live, 200, &empty));
        for (control, may) in [
            ("no-store", true),
            ("private, max-age=3", true),
            ("Public, max-age=3", false),
            ("max-age=3, immutable", false),
            ("S-MaxAge=3", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, control.parse().unwrap())]);
            assert_eq!(may_carry_token(&page, 200, &headers), may, "{control}");
        }
    }

    #[test]
    fn a_session_id_is_found_where_the_contract_says_and_printed_nowhere() {
        for bad in ["", "a b", "a/b", "..", "a%2f", &"s".repeat(129)] {
            assert!(SessionId::new(bad, FoundIn::Query).is_none(), "{bad:?}");
        }
        let id = SessionId::new("geheim", FoundIn::Cookie).unwrap();
        assert!(!format!("{id:?} {}", id.name()).contains("geheim"));
        assert!(!id.is_one_tabs());
        assert_eq!(id.name(), SessionId::new("geheim", FoundIn::Hello).unwrap().name());
    }
}
