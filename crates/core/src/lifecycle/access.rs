//! Previews behind a token: who may pass, decided before the request's file, route or app counts.
//!
//! A browser shows the token once, in the query; it is answered with a cookie and sent to the same
//! address without it, so that the token stays in no history, no log and no `Referer`. The cookie is
//! proof of the token for one host and a limited time, and not the token. A program shows the token in
//! a header or in the query, each time: a provider that delivers to `…?vango_preview=TOKEN` is not sent
//! elsewhere, since it would not follow, or not with its body. The app never sees the token.
//!
//! A CORS preflight passes: a browser sends none of these with it, and reads only whether the request
//! that follows is allowed. That one shows the token.
//!
//! Sources: RFC 6265 §4.1 (cookies), RFC 2104 (HMAC), Fetch §3.2.1 and §4.8 (preflights). Comparisons take
//! the same time whatever differs.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use hmac::{Hmac, Mac};
use http::Method;
use http::header::HeaderMap;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::clock::{Mono, Wall};
use crate::id::AppName;

use super::answer::Answer;
use super::facts::{ErrorForm, Facts};
use super::fields;
use super::origin::customer;
use super::reply::{Problem, Reply};

/// The header that carries the token. The app never sees it, as no `vango-edge-` header of a client.
pub const HEADER: &str = "vango-edge-preview-token";
/// The query parameter that carries it.
pub const PARAMETER: &str = "vango_preview";
/// The cookie that proves it.
pub const COOKIE: &str = "vango_preview";
/// How long a cookie is good for, in seconds.
pub const COOKIE_AGE: u64 = 7 * 24 * 3600;

/// An app's previews, as its operator wants them.
#[derive(Clone, PartialEq, Eq)]
pub struct PreviewPolicy {
    /// Tokens that open them; none leaves them open. Never logged.
    pub tokens: Vec<Vec<u8>>,
    /// They are marked `noindex`.
    pub noindex: bool,
}

/// Policies by app.
pub type PreviewPolicies = HashMap<AppName, PreviewPolicy>;

/// What is to be done with a request for a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    Pass,
    /// It showed the token in the query, and goes on with this one, which is without it.
    PassWith {
        /// The rest of the query, if there is one.
        query: Option<String>,
    },
    /// It goes no further.
    Stop(Stop),
}

/// What a request that goes no further is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// What it showed, for the trace.
    pub shown: &'static str,
    /// What it is told.
    pub answer: Answer,
    /// What counts against its client.
    pub guess: Option<Guess>,
}

/// A wrong token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// In a header or in the query.
    Token,
    /// A cookie that no good token proves. It counts once: the browser sends it again until it ran out.
    Cookie,
}

/// `tokens` are the ones that are good now; with none, every client passes. `locked`: how long this
/// client has to wait before another token of it is looked at.
pub fn check(
    tokens: &[Vec<u8>],
    facts: &Facts,
    headers: &HeaderMap,
    locked: Option<Duration>,
    now: Wall,
) -> Access {
    if tokens.is_empty() || facts.is_preflight() {
        return Access::Pass;
    }
    // Before anything is compared, by header, query or cookie: whether a guess is right must not show.
    if let Some(wait) = locked {
        return stop("too many wrong ones", too_many(wait), None);
    }
    let good = |shown: &[u8]| tokens.iter().find(|t| same(t, shown));
    if let Some(shown) = headers.get(HEADER) {
        return if good(shown.as_bytes()).is_some() { Access::Pass } else { wrong() };
    }
    if let Some((shown, query)) = facts.query.as_deref().and_then(split_query) {
        let Some(token) = good(&percent_decode_str(shown).collect::<Vec<_>>()) else {
            return wrong();
        };
        if !is_navigation(facts) {
            return Access::PassWith { query: Some(query).filter(|q| !q.is_empty()) };
        }
        let expires = now.0 / 1000 + COOKIE_AGE;
        let secure = if facts.is_secure() { "; Secure" } else { "" };
        let cookie = format!(
            "{COOKIE}={expires}.{}; Path=/; Max-Age={COOKIE_AGE}; HttpOnly; SameSite=Lax{secure}",
            proof(token, &facts.host, expires)
        );
        let path = facts.sent();
        let location = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        // A path that begins with // would be read as another host.
        let location = format!("/{}", location.trim_start_matches('/'));
        let answer = Answer::Welcome { location, cookie };
        return Access::Stop(Stop { shown: "right", answer, guess: None });
    }
    // One that ran out shows nothing.
    match cookie(headers).and_then(|shown| proves(tokens, shown, &facts.host, now)) {
        Some(true) => Access::Pass,
        // Who guesses tokens can make the cookie of each guess.
        Some(false) => stop("wrong", refusal(WRONG), Some(Guess::Cookie)),
        None => {
            let none = "This preview is behind a token, and the request shows none.";
            stop("none shown", refusal(none), None)
        }
    }
}

const WRONG: &str = "The token is not one that opens this preview.";

/// Whether it is a browser that goes to an address, and so follows a redirect and keeps a cookie.
pub(super) fn is_navigation(facts: &Facts) -> bool {
    facts.method == Method::GET && facts.error_form == ErrorForm::Page
}

fn wrong() -> Access {
    stop("wrong", refusal(WRONG), Some(Guess::Token))
}

fn stop(shown: &'static str, reply: Reply, guess: Option<Guess>) -> Access {
    Access::Stop(Stop { shown, answer: Answer::Reply(reply), guess })
}

fn refusal(why: &str) -> Reply {
    let detail = format!("{why} Ask its operator, then open it once with ?{PARAMETER}=TOKEN.");
    Reply::refused(Problem::PreviewAccess, 401, detail)
}

/// Too many wrong tokens from one address.
fn too_many(wait: Duration) -> Reply {
    let detail = "Too many wrong tokens came from this address.";
    Reply::refused(Problem::TooManyAttempts, 429, detail).retry_after(wait)
}

/// Equal, in a time that depends on nothing but the lengths of the digests.
fn same(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a).ct_eq(&Sha256::digest(b)).into()
}

fn proof(token: &[u8], host: &str, expires: u64) -> String {
    // A key of any length is a key (RFC 2104 §2).
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(token) else { return String::new() };
    mac.update(format!("vango-edge preview\n{host}\n{expires}").as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// Whether one of `tokens` made the cookie; `None` when it has run out, or is none of the edge's.
fn proves(tokens: &[Vec<u8>], shown: &str, host: &str, now: Wall) -> Option<bool> {
    let (expires, mac) = shown.split_once('.')?;
    let expires = expires.parse::<u64>().ok()?;
    let seconds = now.0 / 1000;
    // Neither over, nor good for longer than any that was given out.
    (seconds < expires && expires <= seconds + COOKIE_AGE)
        .then(|| tokens.iter().any(|t| same(proof(t, host, expires).as_bytes(), mac.as_bytes())))
}

/// The cookie that a request shows.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    fields::first_cookie(headers, COOKIE)
}

/// The token's value in a query, and the query without it.
fn split_query(query: &str) -> Option<(&str, String)> {
    let mut token = None;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((PARAMETER, value)) if token.is_none() => token = Some(value),
            _ => rest.push(pair),
        }
    }
    token.map(|t| (t, rest.join("&")))
}

/// Wrong tokens of one client before it has to wait.
const ATTEMPTS: u32 = 10;
/// How long one wrong token counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Clients that are counted at once. Beyond it the one that was counted first is forgotten: a client
/// with so many addresses has ten guesses from each of them anyway.
const CLIENTS: usize = 16_384;

/// Wrong tokens by client, so that guessing has an end. A client is an IPv4 address, or an IPv6 /64.
#[derive(Default)]
pub struct WrongTokens {
    counts: Mutex<Counts>,
    /// When the last client that has to wait need not any more, so that no request takes the lock while
    /// none has to.
    locked_until: AtomicU64,
}

#[derive(Default)]
struct Counts {
    by_client: HashMap<IpAddr, Count, RandomState>,
    /// In the order in which they were counted first.
    first: VecDeque<(IpAddr, Mono)>,
    hash: RandomState,
}

struct Count {
    wrong: u32,
    since: Mono,
    /// Of the wrong cookie that it showed last.
    cookie: u64,
}

impl WrongTokens {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic while it was held leaves counts that are too low at worst.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long `from` has to wait before it may try again; `None` when it may.
    pub fn wait(&self, from: IpAddr, now: Mono) -> Option<Duration> {
        if now.0 >= self.locked_until.load(Ordering::Acquire) {
            return None;
        }
        let counts = self.counts();
        let count = counts.by_client.get(&customer(from))?;
        let over = now.since(count.since);
        (count.wrong >= ATTEMPTS && over < WINDOW).then(|| WINDOW - over)
    }

    /// Counts a wrong token, or a wrong `cookie`. The same cookie again is no other guess: a browser
    /// whose token was rotated sends it with every request.
    pub fn count(&self, from: IpAddr, cookie: Option<&str>, now: Mono) {
        let mut counts = self.counts();
        let from = customer(from);
        let cookie = cookie.map(|c| counts.hash.hash_one(c));
        counts.forget(now);
        if let Some(count) = counts.by_client.get_mut(&from) {
            if cookie != Some(count.cookie) {
                count.wrong = count.wrong.saturating_add(1);
                count.cookie = cookie.unwrap_or(count.cookie);
            }
            if count.wrong >= ATTEMPTS {
                self.locked_until.fetch_max((count.since + WINDOW).0, Ordering::Release);
            }
            return;
        }
        let count = Count { wrong: 1, since: now, cookie: cookie.unwrap_or_default() };
        counts.by_client.insert(from, count);
        counts.first.push_back((from, now));
    }
}

impl Counts {
    /// Makes room for one more: what is over goes, and the oldest when there are too many.
    fn forget(&mut self, now: Mono) {
        while let Some((from, since)) = self.first.front()
            && (now.since(*since) >= WINDOW || self.first.len() >= CLIENTS)
        {
            self.by_client.remove(from);
            self.first.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
