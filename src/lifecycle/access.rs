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

mod wrong;

use std::collections::HashMap;
use std::time::Duration;

use hmac::{Hmac, Mac};
use http::Method;
use http::header::{self, HeaderMap};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::clock::Wall;
use crate::id::AppName;

use super::facts::{ErrorForm, Facts};
use super::reply::{Problem, Reply};

pub use wrong::WrongTokens;

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
pub enum Verdict {
    /// It goes on.
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

/// What the edge tells a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This.
    Reply(Reply),
    /// 303 to this target, with this `Set-Cookie`: a browser's navigation showed a token in the query.
    Welcome {
        /// Path and query without the token.
        location: String,
        /// The cookie.
        cookie: String,
    },
}

/// A wrong token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// In a header or in the query.
    Token,
    /// A cookie that no good token proves. It counts once: the browser sends it again until it ran out.
    Cookie,
}

/// Decides. `tokens` are the ones that are good now; with none, everybody passes. `locked`: how long its
/// client has to wait before another token of it is looked at.
pub fn check(
    tokens: &[Vec<u8>],
    facts: &Facts,
    headers: &HeaderMap,
    locked: Option<Duration>,
    now: Wall,
) -> Verdict {
    if tokens.is_empty() || facts.is_preflight() {
        return Verdict::Pass;
    }
    // Before anything is compared, by header, query or cookie: whether a guess is right must not show.
    if let Some(wait) = locked {
        return stop("too many wrong ones", too_many(wait), None);
    }
    let good = |shown: &[u8]| tokens.iter().find(|t| same(t, shown));
    if let Some(shown) = headers.get(HEADER) {
        return if good(shown.as_bytes()).is_some() { Verdict::Pass } else { wrong() };
    }
    if let Some((shown, query)) = facts.query.as_deref().and_then(split_query) {
        let Some(token) = good(&percent_decoded(shown)) else { return wrong() };
        if !is_navigation(facts) {
            return Verdict::PassWith { query: Some(query).filter(|q| !q.is_empty()) };
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
        return Verdict::Stop(Stop { shown: "right", answer, guess: None });
    }
    // One that ran out shows nothing.
    match cookie(headers).and_then(|shown| proves(tokens, shown, &facts.host, now)) {
        Some(true) => Verdict::Pass,
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

fn wrong() -> Verdict {
    stop("wrong", refusal(WRONG), Some(Guess::Token))
}

fn stop(shown: &'static str, reply: Reply, guess: Option<Guess>) -> Verdict {
    Verdict::Stop(Stop { shown, answer: Answer::Reply(reply), guess })
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
    mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut hex, b| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{b:02x}");
        hex
    })
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
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
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

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let pair = || {
            let mut ahead = bytes.clone();
            let digit = |b: u8| char::from(b).to_digit(16);
            let (high, low) = (digit(ahead.next()?)?, digit(ahead.next()?)?);
            u8::try_from(high * 16 + low).ok()
        };
        match (b, (b == b'%').then(pair).flatten()) {
            (_, Some(decoded)) => {
                out.push(decoded);
                bytes.nth(1);
            }
            (b, None) => out.push(b),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Mono, SeededEntropy};
    use crate::id::RequestId;

    const NOW: Wall = Wall(1_700_000_000_000);

    const PAGE: (&str, &str) = ("accept", "text/html,*/*;q=0.8");

    fn ask(tokens: &[&str], target: &str, headers: &[(&'static str, &str)], now: Wall) -> Verdict {
        ask_by("GET", tokens, target, headers, now)
    }

    fn ask_by(
        method: &str,
        tokens: &[&str],
        target: &str,
        headers: &[(&'static str, &str)],
        now: Wall,
    ) -> Verdict {
        let mut request =
            http::Request::builder().method(method).header("host", "pr-7.preview.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let id = RequestId::random(&SeededEntropy::new(1));
        let facts = Facts::parse(&parts, target.as_bytes(), id, Mono(0)).unwrap();
        let tokens: Vec<_> = tokens.iter().map(|t| t.as_bytes().to_vec()).collect();
        check(&tokens, &facts, &parts.headers, None, now)
    }

    #[test]
    fn without_tokens_all_requests_pass_and_with_one_only_those_that_show_it() {
        assert_eq!(ask(&[], "/", &[], NOW), Verdict::Pass);
        assert!(
            matches!(ask(&["s3cret"], "/", &[], NOW), Verdict::Stop(Stop { answer: Answer::Reply(r), guess: None, .. }) if r.status == 401)
        );
        for wrong in ["", "s3cre", "s3crets", "S3cret"] {
            let verdict = ask(&["s3cret"], "/", &[(HEADER, wrong)], NOW);
            assert!(
                matches!(verdict, Verdict::Stop(Stop { guess: Some(Guess::Token), .. })),
                "{wrong}"
            );
        }
        assert_eq!(ask(&["old", "s3cret"], "/", &[(HEADER, "s3cret")], NOW), Verdict::Pass);
    }

    #[test]
    fn the_query_becomes_a_cookie_that_is_good_for_this_host_and_time_only() {
        let verdict = ask(&["s3 cret"], "/a?x=1&vango_preview=s3%20cret&y=2", &[PAGE], NOW);
        let Verdict::Stop(Stop { answer: Answer::Welcome { location, cookie }, .. }) = verdict
        else {
            panic!("{verdict:?}")
        };
        assert_eq!(location, "/a?x=1&y=2");
        assert!(!cookie.contains("s3") && cookie.contains("HttpOnly; SameSite=Lax"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        let with = |tokens: &[&str], pair: &str, now| ask(tokens, "/", &[("cookie", pair)], now);
        let also = format!("other=1; {pair}");
        assert_eq!(with(&["s3 cret"], &also, NOW), Verdict::Pass);
        assert!(matches!(
            with(&["rotated"], pair, NOW),
            Verdict::Stop(Stop { guess: Some(Guess::Cookie), .. })
        ));
        let later = Wall(NOW.0 + COOKIE_AGE * 1000);
        assert!(matches!(
            with(&["s3 cret"], pair, later),
            Verdict::Stop(Stop { shown: "none shown", .. })
        ));
        let forged = pair.replace(&(NOW.0 / 1000 + COOKIE_AGE).to_string(), "99999999999");
        assert!(matches!(
            with(&["s3 cret"], &forged, NOW),
            Verdict::Stop(Stop { shown: "none shown", .. })
        ));
        let other = proof(b"s3 cret", "pr-8.preview.test", NOW.0 / 1000 + 10);
        let other = format!("{COOKIE}={}.{other}", NOW.0 / 1000 + 10);
        assert!(matches!(
            with(&["s3 cret"], &other, NOW),
            Verdict::Stop(Stop { guess: Some(Guess::Cookie), .. })
        ));
    }

    #[test]
    fn only_a_navigation_is_sent_on_and_everything_else_goes_on_without_the_token() {
        let fetched = ("sec-fetch-mode", "cors");
        for (method, headers) in [
            ("POST", &[][..]),
            ("POST", &[PAGE]),
            ("PUT", &[]),
            ("GET", &[]),
            ("GET", &[PAGE, fetched]),
            ("HEAD", &[PAGE]),
        ] {
            for (target, rest) in [
                ("/hook?vango_preview=t", None),
                ("/hook?a=1&vango_preview=t&b=%20", Some("a=1&b=%20".to_owned())),
            ] {
                let verdict = ask_by(method, &["t"], target, headers, NOW);
                assert_eq!(verdict, Verdict::PassWith { query: rest }, "{method} {target}");
            }
            let wrong = ask_by(method, &["t"], "/hook?vango_preview=x", headers, NOW);
            assert!(
                matches!(wrong, Verdict::Stop(Stop { guess: Some(Guess::Token), .. })),
                "{method}"
            );
        }
    }

    #[test]
    fn a_preflight_passes_and_nothing_that_only_looks_like_one() {
        let origin = ("origin", "https://app.example");
        let asks = ("access-control-request-method", "POST");
        let preflight = |method, headers: &[_]| ask_by(method, &["t"], "/", headers, NOW);
        assert_eq!(preflight("OPTIONS", &[origin, asks]), Verdict::Pass);
        for (method, headers) in [
            ("OPTIONS", &[][..]),
            ("OPTIONS", &[origin]),
            ("OPTIONS", &[asks]),
            ("OPTIONS", &[origin, asks, ("content-length", "1")]),
            ("OPTIONS", &[origin, asks, ("x-http-method-override", "POST")]),
            ("GET", &[origin, asks]),
            ("POST", &[origin, asks]),
        ] {
            let verdict = preflight(method, headers);
            assert!(
                matches!(verdict, Verdict::Stop(Stop { shown: "none shown", .. })),
                "{method} {headers:?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn it_leads_to_no_other_host() {
        let verdict = ask(&["t"], "//evil.example/?vango_preview=t", &[PAGE], NOW);
        let Verdict::Stop(Stop { answer: Answer::Welcome { location, .. }, .. }) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(location, "/evil.example/");
    }
}
