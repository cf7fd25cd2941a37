//! What a live socket's app is told about the session's state: `resume`, `hydrate` or `fresh`.
//!
//! Hydrating is promised only on proof: the contract says that sessions may move, the app's own
//! durable store answers that this one is there, and the target's artifact declares that it reads
//! the schema the session was written under. Anything unproven is fresh, with the reason.

use crate::contract::{Contract, Resume, RouteClass};
use crate::id::Digest;
use crate::record::AllocationState;
use crate::snapshot::{AllocationView, EnvView};

use super::affinity::{Given, KnownBy, Prior, SessionId};

/// What was found about a session before it is placed.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Its own id, where the contract's sources have one.
    pub id: Option<SessionId>,
    /// What the edge's token says.
    pub token: Option<Prior>,
    /// What its routing record says.
    pub record: Lookup,
    /// What the durable store says.
    pub store: StoreAnswer,
}

impl Session {
    /// Where the session was. A record is of this very session, and counts where there is one. A
    /// token is of the browser: it counts for the session that it was given with, and one that was given
    /// with a page says nothing about a session.
    pub fn prior(&self) -> Option<&Prior> {
        match &self.record {
            Lookup::Found(prior) => Some(prior),
            _ => self.token.as_ref().filter(|token| self.is_of(token)),
        }
    }

    /// Where it would like to be: where it was, and otherwise where its browser's page is.
    pub fn near(&self) -> Option<&Prior> {
        self.prior().or(self.token.as_ref())
    }

    fn is_of(&self, token: &Prior) -> bool {
        match token.known_by {
            KnownBy::Token { given: Given::Socket(of), .. } => {
                of == self.id.as_ref().map(SessionId::name)
            }
            KnownBy::Token { given: Given::Page, .. } | KnownBy::Record => false,
        }
    }
}

/// What came of looking for the session's routing record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Lookup {
    /// It was not looked for: there is no id to look for, or nothing is looked up when only explaining.
    #[default]
    NotAsked,
    /// It is there.
    Found(Prior),
    /// There is none.
    Absent,
    /// It could not be read in time.
    Unavailable,
}

/// What the app's durable session store answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreAnswer {
    /// It was not asked.
    #[default]
    NotAsked,
    /// The session is there.
    Present,
    /// It is not.
    Absent,
    /// No answer within the deadline, an error, or a circuit that is open.
    Unavailable,
}

/// What the app is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Verdict {
    /// The session's own allocation: its state is in memory, as far as the edge can know.
    Resume,
    /// Another allocation, for which it is proved that it can read the session's state.
    Hydrate,
    /// Begin anew, because of this.
    Fresh(Why),
}

/// Why a session begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Why {
    /// Nothing names an earlier place of it.
    NoSession,
    /// It has an id, but no record of it, and no token of it: it is new, or was too long ago.
    NotRecorded,
    /// Its allocation is gone, and the route does not promise that sessions move.
    NotPromised,
    /// The contract declares no durable store.
    NoStore,
    /// There is no session id by which to ask the store.
    NoSessionId,
    /// The store says that it is not there.
    NotInStore,
    /// The store did not answer.
    StoreUnavailable,
    /// The session's schema, or the target's, is not declared.
    SchemaUnknown,
    /// The target does not read the session's schema.
    SchemaNotAccepted,
}

impl Verdict {
    /// For the app: `vango-edge-resume`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// For the app: `vango-edge-resume-reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Resume => "original-allocation",
            Self::Hydrate => "store-and-schema",
            Self::Fresh(why) => why.into(),
        }
    }
}

/// What the durable store has to do with a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreStep {
    /// Not asked: the original allocation takes the session.
    Original,
    /// Not asked: there is no session to look for.
    NoSession,
    /// Not asked: the contract does not promise that sessions move.
    NotPromised,
    /// Not asked: the contract declares none.
    NoStore,
    /// Asked, or to be asked.
    Asked(StoreAnswer),
}

/// How far the decision is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The durable store must be asked first.
    AskStore,
    Decided(StoreStep, Verdict),
}

/// Decides for a session that was placed on `target`, by the contract that `target` runs.
pub fn decide(
    session: &Session,
    route: Option<&RouteClass>,
    view: &EnvView,
    target: &AllocationView,
) -> Decision {
    let fresh = |step, why| Decision::Decided(step, Verdict::Fresh(why));
    let Some(prior) = session.prior() else {
        let why = if session.id.is_some() { Why::NotRecorded } else { Why::NoSession };
        return fresh(StoreStep::NoSession, why);
    };
    if prior.allocation == target.id && prior.generation == target.generation {
        return Decision::Decided(StoreStep::Original, Verdict::Resume);
    }
    let promised =
        matches!(route, Some(RouteClass::Live(live)) if live.resume == Resume::CrossAllocation);
    if !promised {
        return fresh(StoreStep::NotPromised, Why::NotPromised);
    }
    if view.contract.state.as_ref().is_none_or(|s| s.store.is_none()) {
        return fresh(StoreStep::NoStore, Why::NoStore);
    }
    if session.id.is_none() {
        return fresh(StoreStep::NoSession, Why::NoSessionId);
    }
    let step = StoreStep::Asked(session.store);
    match session.store {
        StoreAnswer::NotAsked => Decision::AskStore,
        StoreAnswer::Absent => fresh(step, Why::NotInStore),
        StoreAnswer::Unavailable => fresh(step, Why::StoreUnavailable),
        StoreAnswer::Present => {
            Decision::Decided(step, schema(prior.schema, view.schema, &view.contract))
        }
    }
}

fn schema(written: Option<Digest>, target: Option<Digest>, contract: &Contract) -> Verdict {
    match (written, target) {
        (Some(written), Some(target)) if written == target => Verdict::Hydrate,
        (Some(written), Some(_))
            if contract.state.as_ref().is_some_and(|s| s.accepts.contains(&written)) =>
        {
            Verdict::Hydrate
        }
        (Some(_), Some(_)) => Verdict::Fresh(Why::SchemaNotAccepted),
        _ => Verdict::Fresh(Why::SchemaUnknown),
    }
}

/// What became of the allocation a session was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Original {
    /// Ready, under the owner's epoch.
    Ready,
    /// Takes no new requests.
    Draining,
    /// Runs for an epoch that owns nothing any more.
    EarlierEpoch,
    /// In the registry no more.
    Gone,
}

impl Original {
    /// Looks for it.
    pub fn of(view: &EnvView, prior: &Prior) -> Self {
        let is = |a: &AllocationView| a.id == prior.allocation && a.generation == prior.generation;
        if view.ready.iter().any(|a| is(a)) {
            return Self::Ready;
        }
        match view.others.iter().find(|a| is(a)) {
            Some(a) if a.state == AllocationState::Draining => Self::Draining,
            Some(_) => Self::EarlierEpoch,
            None => Self::Gone,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::EarlierEpoch => "of an earlier epoch",
            Self::Gone => "gone",
        }
    }
}
