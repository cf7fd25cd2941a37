//! The decision on the newest snapshot: answer, do something first, wait, or take a place in one of the
//! owner's ready allocations and connect.

use std::sync::Arc;

use crate::clock::Mono;
use crate::contract::Unrouted;
use crate::id::AllocationId;
use crate::lifecycle::affinity::{Affinity, on_ring};
use crate::lifecycle::enter::may_wake;
use crate::lifecycle::idempotency::DEFAULT_WHOLE_BODY;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::resume::Decision;
use crate::lifecycle::trace::StepKind;
use crate::lifecycle::webhook;
use crate::snapshot::{AllocationView, EnvCounters, EnvView, Slot};

use super::wait::HoldFor;
use super::{Ask, Command, Go, Journey, Look, State};

impl Journey {
    /// Decides on `look`, which has the environment in the newest snapshot, or none when the host has no
    /// owner any more. `granted` is a place that is this request's already.
    pub(super) fn decide(
        &mut self,
        first: bool,
        granted: Option<Placement>,
        look: Look,
        now: Mono,
    ) -> Command {
        // The contract that counts is that of the owner who would get it, not of one before.
        let found = look.view.as_ref().ok_or(Unrouted::NoRoute);
        let found = found.and_then(|v| Ok((v, v.contract.route(&self.facts.asked())?)));
        let (view, route, posture) = match found {
            Ok((view, taken)) => (view, taken.index, taken.posture()),
            Err(why) => return self.answer_with(Reply::unrouted(why, &self.facts.host), now),
        };
        let posture_changed = posture != self.posture;
        let other_rules = self.reads_under_other_rules(view, route, posture);
        (self.route, self.posture) = (route, posture);
        self.may_wake = may_wake(view, route, &self.facts);
        // After the store's answer, the step `LoadOwner` is added again only if the view has changed.
        let same_view_after_store =
            self.store_was_asked() && granted.is_some() && Arc::ptr_eq(view, &self.view);
        if view.environment != self.view.environment {
            self.environment_changed();
        }
        self.view = Arc::clone(view);
        if first || !same_view_after_store {
            self.trace.push(now, StepKind::LoadOwner(Arc::clone(view)));
        }
        if first {
            self.session_found(now);
        }
        if other_rules {
            return self.answer_with(Reply::rules_changed(), now);
        }
        // What the owner's contract refuses, cold and hot alike.
        let too_long = self.check_length();
        let refused = too_long
            .or_else(|| if first || posture_changed { self.check_contract(now) } else { None });
        if let Some(refused) = refused {
            return self.answer_with(refused, now);
        }
        let granted = granted.filter(|p| self.still_ready(p));
        let granted = match self.follow_record(granted, now) {
            Ok(granted) => granted,
            Err(command) => return command,
        };
        match granted {
            Some(placed) => self.place(placed, now),
            None => self.place_or_wait(&look, now),
        }
    }

    fn place_or_wait(&mut self, look: &Look, now: Mono) -> Command {
        let (view, pick) = (Arc::clone(&self.view), look.pick);
        // Those who wait go first: a newcomer does not overtake the queue.
        let overtaking = look.reserves && !self.hold.waited && view.counters.waiting() > 0;
        let choice = if overtaking && !view.ready.is_empty() {
            Choice::Full
        } else {
            choose(&view, &self.wish(), &self.excluded, pick, look.reserves)
        };
        match choice {
            Choice::Place(placed) => self.place(placed, now),
            // Its body took all the time that its provider gives: the next delivery finds the app awake.
            Choice::Cold if now >= self.deadline && self.is_delivery() && self.may_wake => {
                self.cold(now, pick)
            }
            _ if now >= self.deadline => {
                let reply = self.too_late(now, pick);
                self.answer_with(reply, now)
            }
            // The edge can bring none up: there is nothing to wait for.
            Choice::Refused if view.external => self.answer_with(Reply::not_forwarded(), now),
            // It is not worth a wake, and so not worth a wait that may end in one.
            Choice::Cold if !self.may_wake => {
                let reply = self.asleep(now);
                self.answer_with(reply, now)
            }
            Choice::Full | Choice::Refused if !self.may_wake => {
                let reply = self.too_late(now, pick);
                self.answer_with(reply, now)
            }
            Choice::Full | Choice::Refused => self.hold(now, HoldFor::Place),
            Choice::Cold => self.cold(now, pick),
        }
    }

    /// A grant is honoured only inside the owner's authority as it is **now**.
    fn still_ready(&self, placed: &Placement) -> bool {
        self.view.ready.iter().any(|a| a.id == placed.allocation.id)
            && !self.excluded.contains(&placed.allocation.id)
    }

    /// It has a place; a socket's session is decided on first.
    fn place(&mut self, placed: Placement, now: Mono) -> Command {
        match self.decide_session(&placed) {
            Some(Decision::AskStore) => {
                self.state = State::AskingStore(placed);
                Command::Do(Ask::AskStore)
            }
            decision => self.placed(placed, decision, now),
        }
    }

    /// It goes to `placed`, with what was decided about the session of a live socket.
    pub(super) fn placed(
        &mut self,
        placed: Placement,
        session: Option<Decision>,
        now: Mono,
    ) -> Command {
        self.placements_tried += 1;
        self.trace.push(now, StepKind::Select(Arc::clone(&placed.allocation), placed.affinity));
        self.session_decided(&placed, session, now);
        self.state = State::Placed(placed);
        Command::Go(Go::Connect)
    }

    /// Bytes that the body may have; `None`: any number.
    pub fn max_body(&self) -> Option<u64> {
        let of_route = self.route().and_then(|r| r.max_body);
        of_route.or_else(|| self.reads_whole_body().then(|| self.default_whole_body()))
    }

    /// The bound of a body that is read whole.
    pub(super) fn whole_body_limit(&self) -> u64 {
        self.max_body().unwrap_or_else(|| self.default_whole_body())
    }

    fn default_whole_body(&self) -> u64 {
        self.webhook().map_or(DEFAULT_WHOLE_BODY, |w| webhook::provider_rules(w).largest)
    }

    /// A body that says it is too long is refused before anything wakes.
    fn check_length(&self) -> Option<Reply> {
        let most = self.max_body()?;
        (self.facts.content_length? > most).then(|| Reply::content_too_large(most))
    }

    /// Records how the request was classified.
    pub(super) fn show_posture(&mut self, now: Mono) {
        self.posture_shown = true;
        let classify = StepKind::Classify(self.posture, Arc::clone(&self.view), self.route);
        self.trace.push(now, classify);
    }
}

/// Where a request goes, with its place in the allocation's concurrency. The place is given back when this
/// is dropped, and then the hold queue looks whom it is for.
#[derive(Debug)]
pub struct Placement {
    pub allocation: Arc<AllocationView>,
    /// What became of the session's own allocation.
    pub affinity: Affinity,
    /// Its place, and whom to tell when that is free; none where it is only explained.
    place: Option<(Slot, Arc<EnvCounters>)>,
}

impl Placement {
    /// Gives the place back without a look at the hold queue, which the caller is in.
    pub fn give_back_unseen(mut self) {
        self.place = None;
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        if let Some((slot, live)) = self.place.take() {
            drop(slot);
            // After the place is free: a request that joins the queue later looks again itself.
            live.place_freed();
        }
    }
}

/// Where a request would like to go.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// To the session's own allocation.
    pub allocation: Option<AllocationId>,
    /// Without one that is ready: where on the ring its session stands.
    pub ring: Option<u64>,
}

/// Whether there is a place.
#[derive(Debug)]
pub enum Choice {
    /// Here.
    Place(Placement),
    /// Every ready allocation is at its concurrency.
    Full,
    /// Ready allocations exist, but all of them refused this request's connection, or are down.
    Refused,
    /// Nothing is ready.
    Cold,
}

/// Chooses which ready allocation takes a request, and takes the place if `reserve`. `pick` is 64 random
/// bits.
///
/// The session's own if it is still ready; otherwise, for a session that has an id, the one that the ring
/// gives it; otherwise the less loaded of two picked at random (Mitzenmacher, "The Power of Two Choices",
/// 2001). Health and load choose **among** the owner's allocations; nothing here can reach outside them.
pub fn choose(
    view: &EnvView,
    wish: &Wish,
    excluded: &[AllocationId],
    pick: u64,
    reserve: bool,
) -> Choice {
    let allowed = |a: &&Arc<AllocationView>| !excluded.contains(&a.id) && !a.load.is_down();
    let take = |a: &Arc<AllocationView>, affinity| {
        let place = if reserve {
            Some((a.load.reserve(a.concurrency)?, Arc::clone(&view.counters)))
        } else if a.load.in_flight() < a.concurrency {
            None
        } else {
            return None;
        };
        Some(Choice::Place(Placement { allocation: Arc::clone(a), affinity, place }))
    };
    let wanted = wish.allocation.as_ref();
    let own = wanted.and_then(|id| view.ready.iter().filter(allowed).find(|a| a.id == *id));
    if let Some(placed) = own.and_then(|a| take(a, Affinity::Kept)) {
        return placed;
    }
    let affinity = if wanted.is_some() { Affinity::Lost } else { Affinity::None };
    let n = view.ready.len();
    if n == 0 {
        return Choice::Cold;
    }
    let ringed = wish.ring.filter(|_| n > 1);
    let (first, second) = match ringed.and_then(|s| on_ring(&view.ready, allowed, s)) {
        Some(first) => (first, first),
        None => {
            let (a, b) = two_of(n, pick);
            let (a, b) = (&view.ready[a], &view.ready[b]);
            if b.load.in_flight() < a.load.in_flight() { (b, a) } else { (a, b) }
        }
    };
    // Those picked, then every other: a free place anywhere is taken before anyone waits.
    let candidates = [first, second].into_iter().chain(&view.ready).filter(allowed);
    let mut any = false;
    for candidate in candidates {
        any = true;
        if let Some(placed) = take(candidate, affinity) {
            return placed;
        }
    }
    if any { Choice::Full } else { Choice::Refused }
}

/// Two different indices below `n`, or the same one when there is only one.
fn two_of(n: usize, pick: u64) -> (usize, usize) {
    let a = (pick & 0xffff_ffff) as usize % n;
    if n == 1 {
        return (0, 0);
    }
    let b = (pick >> 32) as usize % (n - 1);
    (a, if b >= a { b + 1 } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_picks_two_different_ones_of_all() {
        let mut seen = [[false; 4]; 4];
        for pick in 0..64u64 {
            let (a, b) = two_of(4, pick * 0x1_0000_0003);
            assert_ne!(a, b);
            seen[a][b] = true;
        }
        assert!(seen.iter().flatten().filter(|s| **s).count() > 8);
        assert_eq!(two_of(1, 12345), (0, 0));
    }
}
