//! How an app stands, told to every client that asks at one address of the app's own host: whether it is
//! up, starting, asleep, or failed to start, and when to ask again. The edge's page ([`super::page`]) asks
//! there until it may go on.
//!
//! Asking wakes nothing, waits for nothing, is no activity, and needs what any request for the host needs:
//! HTTPS where that is required, the token of a preview. The answer says nothing that a request for a page
//! would not say: no id, no cause, no count.

use std::time::Duration;

use http::Method;

use crate::clock::Mono;
use crate::record::WakeState;
use crate::snapshot::EnvView;

use super::facts::Facts;
use super::reply::{Problem, Reply};

/// Everything below is the edge's own, on every host that has an owner: no route and no file of an app is
/// asked for it (RFC 8615).
pub use crate::contract::RESERVED;
/// Where a client asks how the host's app stands.
pub const PATH: &str = "/.well-known/vango-edge/state";

/// How an app stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum State {
    /// A request is given to it; of a site without a process, answered from its files.
    Ready,
    /// A wake is under way.
    Starting,
    /// Its last start failed, and no new one is tried yet; or none of its upstreams is up.
    Failed,
    /// The next request that may wake it does.
    Asleep,
}

impl State {
    /// For programs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What a client is told that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub state: State,
    /// Seconds. Of an app that is ready: over how long its waiting clients are to come, 0 for at once. Of
    /// every other: not before this is it worth asking again.
    pub retry_after: u64,
}

/// An upstream that is down is looked at this often, unless its operator says otherwise.
const DOWN: u64 = 5;
/// Seconds between two questions of one client while an app starts, with an empty and with a full queue.
const STARTING: (u64, u64) = (1, 5);
/// Seconds over which clients come to an app that is up, with a full queue.
const SPREAD: u64 = 10;

impl Standing {
    /// How `view`'s app stands at `now`.
    pub fn of(view: &EnvView, now: Mono) -> Self {
        if view.contract.is_static {
            // Nothing of it starts or sleeps.
            return Self { state: State::Ready, retry_after: 0 };
        }
        let waiting = view.counters.waiting() as u64;
        let most = (view.contract.wake.max_held as u64).max(1);
        // A part of `all`, as the queue is filled.
        let part = |all: u64| (waiting.min(most) * all).div_ceil(most);
        if view.ready.iter().any(|a| !a.load.is_down()) {
            return Self { state: State::Ready, retry_after: part(SPREAD) };
        }
        if view.external {
            return Self { state: State::Failed, retry_after: DOWN };
        }
        let (least, more) = (STARTING.0, STARTING.1 - STARTING.0);
        // Only an operation of the epoch that owns the host now says anything about it.
        let current = view.operation.as_ref().filter(|o| o.epoch == view.owner.epoch);
        let left = current
            .filter(|o| o.state == WakeState::Failed)
            .and_then(|o| o.backoff_until)
            .map_or(Duration::ZERO, |until| until.since(now));
        if !left.is_zero() {
            let seconds = left.as_millis().div_ceil(1000) as u64;
            return Self { state: State::Failed, retry_after: seconds };
        }
        let starts = current.is_some_and(|o| o.state.in_progress());
        let state = if starts { State::Starting } else { State::Asleep };
        Self { state, retry_after: least + part(more) }
    }

    /// The body of the answer.
    pub fn json(self) -> String {
        let (state, seconds) = (self.state.name(), self.retry_after);
        format!("{{\"state\":\"{state}\",\"retry_after\":{seconds}}}\n")
    }
}

/// Whether the edge answers this path itself, on a host that has an owner.
pub fn is_reserved(facts: &Facts) -> bool {
    facts.path.starts_with(RESERVED)
}

/// What a request for a reserved path is refused with, if it is no question for [`PATH`].
pub fn refusal(facts: &Facts) -> Option<Reply> {
    if facts.path != PATH {
        let detail = format!("Below {RESERVED} the edge answers itself, and only {PATH} is there.");
        return Some(Reply::refused(Problem::NoRoute, 404, detail));
    }
    let asks = matches!(facts.method, Method::GET | Method::HEAD) && !facts.method_overridden;
    let detail = "This address answers GET and HEAD.";
    (!asks).then(|| Reply::refused(Problem::MethodRefused, 405, detail))
}
