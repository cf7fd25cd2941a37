//! What is particular to previews: the token that opens them, and the headers that mark them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use foldhash::quality::RandomState;
use http::HeaderValue;
use pingora::http::ResponseHeader;

use crate::clock::Mono;
use crate::id::AppName;
use crate::snapshot::EnvView;

/// Wrong tokens from one address before it has to wait.
const ATTEMPTS: u32 = 10;
/// How long one wrong token counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses are counted in so many places; two that share one share its count.
const PLACES: usize = 4096;

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

/// Wrong tokens by address.
pub struct WrongTokens {
    hash: RandomState,
    places: Vec<Mutex<(u32, Mono)>>,
}

impl Default for WrongTokens {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| Mutex::new((0, Mono(0)))).collect();
        Self { hash: RandomState::default(), places }
    }
}

impl WrongTokens {
    fn place(&self, from: IpAddr) -> &Mutex<(u32, Mono)> {
        // An IPv6 client has a /64 at least (RFC 6177).
        let name = match from {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6) >> 64 | 1 << 64,
        };
        let at = self.hash.hash_one(name) as usize % PLACES;
        &self.places[at]
    }

    /// How long `from` has to wait before it may try again; `None` when it may.
    pub fn wait(&self, from: IpAddr, now: Mono) -> Option<Duration> {
        let place = self.place(from).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (count, since) = *place;
        let over = now.since(since);
        (count >= ATTEMPTS && over < WINDOW).then(|| WINDOW - over)
    }

    /// Counts a wrong token.
    pub fn count(&self, from: IpAddr, now: Mono) {
        let mut place = self.place(from).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (count, since) = *place;
        let anew = count == 0 || now.since(since) >= WINDOW;
        *place = if anew { (1, now) } else { (count.saturating_add(1), since) };
    }
}

/// Marks an answer of a preview; leaves production's alone.
///
/// # Errors
/// Pingora's; ours are header values always.
pub fn mark(head: &mut ResponseHeader, view: &EnvView, noindex: bool) -> pingora::Result<()> {
    if view.environment.is_production() {
        return Ok(());
    }
    head.insert_header("vango-edge-artifact", view.owner.digest.to_string())?;
    if noindex {
        head.insert_header("x-robots-tag", HeaderValue::from_static("noindex"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_are_counted_by_address_and_forgotten() {
        let attempts = WrongTokens::default();
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let start = Mono(10_000_000_000);
        for _ in 0..ATTEMPTS {
            assert_eq!(attempts.wait(a, start), None);
            attempts.count(a, start);
        }
        assert_eq!(
            attempts.wait(a, start + Duration::from_secs(10)),
            Some(Duration::from_secs(50))
        );
        let shared = std::ptr::eq(attempts.place(a), attempts.place(b));
        assert!(shared || attempts.wait(b, start).is_none());
        assert_eq!(attempts.wait(a, start + WINDOW), None);
        attempts.count(a, start + WINDOW);
        assert_eq!(attempts.wait(a, start + WINDOW), None, "one attempt only");
    }
}
