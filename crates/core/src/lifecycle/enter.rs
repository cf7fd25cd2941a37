//! The entrance: who answers a request, decided in one order for the shell and for `explain` alike.
//!
//! 1. The edge itself, on any host: TRACE, `Max-Forwards: 0`, a client that has as many requests under way
//!    as it may, a connection whose certificate is another host's, an authority that looks whether a host is ours.
//! 2. The edge, where no contract has the host or the path.
//! 3. The edge with a redirect, where plain HTTP is to become HTTPS; not to a webhook. Before the token of a
//!    preview is looked at: a client shows it again over HTTPS, and the cookie is then for HTTPS only.
//! 4. The edge, where a preview is behind a token and this is not shown.
//! 5. The edge, below [`standing::RESERVED`].
//! 6. The artifact, where the request is for one of its files.
//! 7. Its route.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::contract::{Posture, Route, RouteClass, Unrouted};
use crate::id::AppName;
use crate::snapshot::{EnvView, Snapshot};

use super::access::{self, Access, Guess, PreviewPolicies, Stop};
use super::answer::Answer;
use super::asset::Visit;
use super::facts::{BadRequest, Facts};
use super::page::Brand;
use super::reply::{Problem, Reply};
use super::standing::{self, Standing};
use super::trace::{Outcome, StepKind, Trace};
use super::validation::Validations;

/// Whether plain HTTP is sent on to HTTPS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HttpsRedirect {
    /// It is served.
    #[default]
    Off,
    /// On the usual port, 443.
    ToDefaultPort,
    ToPort(u16),
}

/// What the operator wants of all requests; a reload swaps it.
#[derive(Clone, Default)]
pub struct Policies {
    pub redirect: HttpsRedirect,
    /// Who may see previews, by app.
    pub previews: PreviewPolicies,
    /// How the pages of the edge's own look.
    pub brands: Brands,
}

/// How the pages of the edge's own look, by app.
#[derive(Debug, Clone, Default)]
pub struct Brands {
    /// Those for hosts that have no owner, and of apps that are not in `apps`; `None`: plain.
    pub node: Option<Arc<Brand>>,
    pub apps: HashMap<AppName, Arc<Brand>>,
}

impl Policies {
    /// The tokens that open `view`'s environment; with none it is open to all.
    fn tokens(&self, view: &EnvView) -> &[Vec<u8>] {
        match self.previews.get(view.environment.app()) {
            Some(policy) if !view.environment.is_production() => &policy.tokens,
            _ => &[],
        }
    }

    /// What the pages are made with that are about `view`'s environment, or about no environment.
    pub fn brand(&self, view: Option<&EnvView>) -> &Brand {
        let own = view.and_then(|v| self.brands.apps.get(v.environment.app()));
        own.or(self.brands.node.as_ref()).map_or(Brand::plain(), |brand| &**brand)
    }

    /// Whether the environment's answers are marked `noindex`.
    pub fn noindex(&self, view: &EnvView) -> bool {
        !view.environment.is_production()
            && self.previews.get(view.environment.app()).is_none_or(|p| p.noindex)
    }
}

/// A request at the entrance, with what is known where its connection is.
pub struct Arrival<'a> {
    pub facts: Facts,
    /// What it was read from.
    pub headers: &'a HeaderMap,
    /// The answer where its client is at its limit, or its connection is for another host.
    pub refused: Option<Reply>,
    /// How long a client that showed too many wrong tokens has to wait before another one is looked at.
    pub locked: &'a dyn Fn(IpAddr) -> Option<Duration>,
    /// What authorities that look at hosts are answered now.
    pub validations: &'a Validations,
}

#[derive(Debug)]
pub enum Entered {
    /// The edge. The trace is whole.
    Edge(Box<Answered>),
    /// The artifact, or the edge in its place.
    Asset(Box<Visit>),
    /// The app, through [`super::journey::Journey`].
    Route {
        facts: Box<Facts>,
        /// Which route it takes.
        classified: Classified,
        /// A preview's token was shown in the query. `facts.query` is without it, and the app must not see
        /// it either.
        showed_token: bool,
    },
}

/// A request that the edge answers itself.
#[derive(Debug)]
pub struct Answered {
    pub facts: Facts,
    /// Whose host it is for, where that is known.
    pub view: Option<Arc<EnvView>>,
    pub trace: Trace,
    /// What it is told.
    pub answer: Answer,
    /// What counts against its client.
    pub guess: Option<Guess>,
}

/// Says who answers the request, and what where that is the edge.
pub fn enter(
    arrival: Arrival<'_>,
    snapshot: &Snapshot,
    policies: &Policies,
    now: Mono,
    wall: Wall,
) -> Entered {
    let Arrival { mut facts, headers, refused, locked, validations } = arrival;
    // Also what its owner's contract has no part in is read by the scripts that it names.
    let owner = || snapshot.host(&facts.host).cloned();
    if let Some(reply) = own_answer(&facts).or(refused) {
        let view = owner();
        return answered(facts, view, None, Answer::Reply(reply), None, now);
    }
    if let Some(shown) = validations.answer(&facts) {
        let answer = Answer::Validation(shown.to_owned());
        return answered(facts, None, None, answer, None, now);
    }
    let classified = match classify(snapshot, &facts) {
        Ok(classified) => classified,
        Err(why) => {
            let step = match why {
                Unrouted::NoRoute => StepKind::NoOwner(facts.host.clone()),
                Unrouted::Spelling => StepKind::Unreadable(BadRequest::Spelling),
                Unrouted::Method => StepKind::Unreadable(BadRequest::Method),
            };
            let answer = Answer::Reply(Reply::unrouted(why, &facts.host));
            let view = owner();
            return answered(facts, view, Some(step), answer, None, now);
        }
    };
    let view = Arc::clone(&classified.view);
    facts.drop_foreign_forwarded_host(&view.hosts);
    // A provider would not follow, or not with its body. A browser does, and its cookie is for HTTPS then.
    let follows = !matches!(classified.route().class, RouteClass::Webhook(_))
        || access::is_navigation(&facts);
    if policies.redirect != HttpsRedirect::Off && !facts.is_secure() && follows {
        let step = StepKind::LoadOwner(Arc::clone(&view));
        let answer = Answer::Reply(https(&facts, policies.redirect));
        return answered(facts, Some(view), Some(step), answer, None, now);
    }
    let tokens = policies.tokens(&view);
    let from = facts.origin.as_ref().map(|o| o.address).filter(|_| !tokens.is_empty());
    let showed_token = match access::check(tokens, &facts, headers, from.and_then(locked), wall) {
        Access::Pass => false,
        Access::PassWith { query } => {
            facts.query = query;
            true
        }
        Access::Stop(Stop { shown, answer, guess }) => {
            let step = StepKind::CheckAccess(Arc::clone(&view), shown);
            return answered(facts, Some(view), Some(step), answer, guess, now);
        }
    };
    if standing::is_reserved(&facts) {
        let step = StepKind::LoadOwner(Arc::clone(&view));
        let told = Answer::Standing(Standing::of(&view, now));
        let answer = standing::refusal(&facts).map_or(told, Answer::Reply);
        return answered(facts, Some(view), Some(step), answer, None, now);
    }
    match Visit::begin(facts, &view, headers, !tokens.is_empty(), now) {
        Ok(visit) => Entered::Asset(Box::new(visit)),
        Err(facts) => Entered::Route { facts, classified, showed_token },
    }
}

/// Where the same is served over HTTPS.
fn https(facts: &Facts, redirect: HttpsRedirect) -> Reply {
    let said = facts.forwarded_host().and_then(|h| h.to_str().ok());
    // Behind a trusted proxy it is the proxy that serves HTTPS, on a port that only it knows.
    let by_proxy = facts.origin.as_ref().is_some_and(|o| o.by_proxy);
    let port = match redirect {
        HttpsRedirect::ToPort(port) if !by_proxy => Some(port),
        _ => None,
    };
    Reply::https_required(said.unwrap_or(&facts.host), port, &facts.target())
}

fn answered(
    facts: Facts,
    view: Option<Arc<EnvView>>,
    step: Option<StepKind>,
    answer: Answer,
    guess: Option<Guess>,
    now: Mono,
) -> Entered {
    let mut trace = Trace::new(facts.id, facts.received);
    trace.parent = facts.parent;
    if let Some(step) = step {
        trace.push(now, step);
    }
    match &answer {
        Answer::Reply(reply) => trace.answered(now, reply),
        Answer::Welcome { .. } => trace.outcome = Outcome::Welcomed,
        Answer::Standing(standing) => {
            trace.push(now, StepKind::TellStanding(*standing));
            trace.outcome = Outcome::Told;
        }
        Answer::Validation(_) => trace.outcome = Outcome::Validated,
        Answer::Stored(_) | Answer::Acknowledge => {
            debug_assert!(false, "only a journey is answered from a record");
        }
    }
    Entered::Edge(Box::new(Answered { facts, view, trace, answer, guess }))
}

/// A request that has an owner.
#[derive(Debug, Clone)]
pub struct Classified {
    /// Whose it is, as of the snapshot it was classified on.
    pub view: Arc<EnvView>,
    /// Index of the route in the contract.
    pub route: usize,
    /// What the class means.
    pub posture: Posture,
    /// Whether it may wake the app, and keeps it awake. The contract says of which routes and which
    /// clients that is not so.
    pub may_wake: bool,
}

impl Classified {
    pub fn route(&self) -> &Route {
        &self.view.contract.routes[self.route]
    }
}

/// Whose the request is, and what it means there.
///
/// # Errors
/// [`Unrouted`], also for a host without an owner.
pub fn classify(snapshot: &Snapshot, facts: &Facts) -> Result<Classified, Unrouted> {
    let view = snapshot.host(&facts.host).ok_or(Unrouted::NoRoute)?;
    let taken = view.contract.route(&facts.asked())?;
    let (route, posture) = (taken.index, taken.posture());
    let may_wake = may_wake(view, route, facts);
    Ok(Classified { view: Arc::clone(view), route, posture, may_wake })
}

/// The edge's own answer to a request that goes to no app, on any host (RFC 9110 §7.6.2, §9.3.8):
/// TRACE, which would tell a client the fields that only the app is to see, and OPTIONS that has passed
/// as many intermediaries as it may.
pub fn own_answer(facts: &Facts) -> Option<Reply> {
    if facts.method == Method::TRACE {
        let detail = "TRACE is answered by no app behind this edge.";
        return Some(Reply::refused(Problem::MethodRefused, 501, detail));
    }
    let last = facts.max_forwards == Some(0);
    last.then(|| Reply::refused(Problem::MaxForwards, 200, "Max-Forwards is 0: this edge answers."))
}

/// Whether the contract lets a request of this route and this client wake the app.
pub fn may_wake(view: &EnvView, route: usize, facts: &Facts) -> bool {
    view.contract.routes.get(route).is_none_or(|r| r.wakes)
        && !facts.agent_has(&view.contract.wake.ignore_agents)
}
