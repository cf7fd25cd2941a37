//! The steps of a live socket as text. Session ids are in none of them: a client that has one may
//! act as the session.

use crate::id::{AllocationId, Digest};
use crate::lifecycle::affinity::Prior;
use crate::lifecycle::resume::{Original, StoreAnswer, StoreStep, Verdict};

/// What is known of a live socket's session before it is placed.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it was.
    pub prior: Option<Prior>,
    /// What became of that allocation.
    pub original: Option<Original>,
    /// Where its browser is, by the edge's token.
    pub browser_on: Option<AllocationId>,
    /// The request carries the app's own session id.
    pub has_id: bool,
    /// The routing record could not be read.
    pub record_unavailable: bool,
}

pub(super) fn found_values(found: &Found) -> (String, String) {
    let value = match &found.prior {
        Some(p) => format!("{} generation {} ({})", p.allocation, p.generation, p.known_by.name()),
        None => "none".into(),
    };
    let detail = match (found.original, found.has_id, &found.browser_on) {
        (Some(original), ..) => original.name().to_owned(),
        (None, true, None) => "a session id, and no record of it".into(),
        (None, false, None) => "no token and no session id".into(),
        (None, true, Some(at)) => {
            format!("a session id, and no record of it; its browser is on {at}")
        }
        (None, false, Some(at)) => format!("no session id; its browser is on {at}"),
    };
    let unread = if found.record_unavailable { "; the record could not be read" } else { "" };
    (value, format!("{detail}{unread}"))
}

pub(super) fn store_values(step: StoreStep) -> (&'static str, &'static str) {
    match step {
        StoreStep::Original => ("not asked", "the original allocation takes it"),
        StoreStep::NoSession => ("not asked", "no session to look for"),
        StoreStep::NotPromised => ("not asked", "cross-allocation resume is not promised"),
        StoreStep::NoStore => ("not asked", "the contract declares none"),
        StoreStep::Asked(StoreAnswer::NotAsked) => ("would be asked", ""),
        StoreStep::Asked(StoreAnswer::Present) => ("present", ""),
        StoreStep::Asked(StoreAnswer::Absent) => ("absent", ""),
        StoreStep::Asked(StoreAnswer::Unavailable) => ("unavailable", "no answer in time"),
    }
}

pub(super) fn hydrate_values(
    verdict: Option<Verdict>,
    (written, target): (Option<Digest>, Option<Digest>),
) -> (String, String) {
    let Some(verdict) = verdict else {
        return ("would be decided".into(), "by the store's answer and the schemas".into());
    };
    let short = |d: Option<Digest>| d.map_or_else(|| "none".into(), |d| d.short());
    let schemas = match (written, target) {
        (None, None) => String::new(),
        _ => format!("; schema {} on {}", short(written), short(target)),
    };
    (verdict.name().into(), format!("{}{schemas}", verdict.reason()))
}
