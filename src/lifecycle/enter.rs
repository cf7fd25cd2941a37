//! The entrance: who answers a request, decided in one order for the shell and for `explain` alike.
//!
//! 1. The edge itself, on any host: TRACE, `Max-Forwards: 0`, a client that has as many requests under way
//!    as it may, a connection whose certificate is another host's.
//! 2. The edge, where no contract has the host or the path.
//! 3. The edge with a redirect, where plain HTTP is to become HTTPS; not to a webhook. Before the token of a
//!    preview is looked at: a client shows it again over HTTPS, and the cookie is then for HTTPS only.
//! 4. The edge, where a preview is behind a token and this is not shown.
//! 5. The artifact, where the request is for one of its files.
//! 6. Its route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

use crate::clock::{Mono, Wall};
use crate::contract::{RouteClass, Unrouted};
use crate::snapshot::{EnvView, Snapshot};

use super::access::{self, Answer, Guess, PreviewPolicies, Stop, Verdict};
use super::asset::Visit;
use super::classify::{Classified, classify, own_answer};
use super::facts::{BadRequest, Facts};
use super::reply::Reply;
use super::trace::{Outcome, StepKind, Trace};

/// What the operator wants of all requests; a reload swaps it.
#[derive(Clone, Default)]
pub struct Policies {
    /// Plain HTTP is sent on to HTTPS, on this port if it is not 443; `None` serves it.
    pub redirect: Option<Option<u16>>,
    /// Who may see previews, by app.
    pub previews: PreviewPolicies,
}

impl Policies {
    /// The tokens that open `view`'s environment; with none it is open to all.
    fn tokens(&self, view: &EnvView) -> &[Vec<u8>] {
        match self.previews.get(view.environment.app()) {
            Some(policy) if !view.environment.is_production() => &policy.tokens,
            _ => &[],
        }
    }

    /// Whether the environment's answers are marked `noindex`.
    pub fn noindex(&self, view: &EnvView) -> bool {
        !view.environment.is_production()
            && self.previews.get(view.environment.app()).is_none_or(|p| p.noindex)
    }
}

/// A request at the entrance, with what is known where its connection is.
pub struct Arrival<'a> {
    /// What it is.
    pub facts: Facts,
    /// What it was read from.
    pub headers: &'a HeaderMap,
    /// The answer where its client is at its limit, or its connection is for another host.
    pub refused: Option<Reply>,
    /// How long a client that showed too many wrong tokens has to wait before another one is looked at.
    pub locked: &'a dyn Fn(IpAddr) -> Option<Duration>,
}

/// Who answers.
#[derive(Debug)]
pub enum Entered {
    /// The edge. The trace is whole.
    Edge(Box<Answered>),
    /// The artifact, or the edge in its place.
    Asset(Box<Visit>),
    /// The app, through [`super::admit::Journey`].
    Route {
        /// What it is.
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
    /// What it was.
    pub facts: Facts,
    /// Whose host it is for, where that is known.
    pub view: Option<Arc<EnvView>>,
    /// What was decided.
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
    let Arrival { mut facts, headers, refused, locked } = arrival;
    if let Some(reply) = own_answer(&facts).or(refused) {
        return edge(facts, None, None, reply, now);
    }
    let classified = match classify(snapshot, &facts) {
        Ok(classified) => classified,
        Err(why) => {
            let (step, view) = match why {
                Unrouted::NoRoute => (StepKind::NoOwner(facts.host.clone()), None),
                Unrouted::Spelling => {
                    (StepKind::Unreadable(BadRequest::Spelling), snapshot.host(&facts.host))
                }
            };
            let reply = Reply::unrouted(why, &facts.host);
            return edge(facts, view.cloned(), Some(step), reply, now);
        }
    };
    let view = Arc::clone(&classified.view);
    facts.owned_by(&view.hosts);
    // A provider would not follow, or not with its body. A browser does, and its cookie is for HTTPS then.
    let follows = !matches!(classified.route().class, RouteClass::Webhook(_))
        || access::is_navigation(&facts);
    if let Some(port) = policies.redirect.filter(|_| !facts.is_secure() && follows) {
        let (step, reply) = (StepKind::LoadOwner(Arc::clone(&view)), https(&facts, port));
        return edge(facts, Some(view), Some(step), reply, now);
    }
    let tokens = policies.tokens(&view);
    let from = facts.origin.as_ref().map(|o| o.address).filter(|_| !tokens.is_empty());
    let showed_token = match access::check(tokens, &facts, headers, from.and_then(locked), wall) {
        Verdict::Pass => false,
        Verdict::PassWith { query } => {
            facts.query = query;
            true
        }
        Verdict::Stop(Stop { shown, answer, guess }) => {
            let step = StepKind::CheckAccess(Arc::clone(&view), shown);
            return answered(facts, Some(view), Some(step), answer, guess, now);
        }
    };
    match Visit::begin(facts, &view, headers, !tokens.is_empty(), now) {
        Ok(visit) => Entered::Asset(Box::new(visit)),
        Err(facts) => Entered::Route { facts, classified, showed_token },
    }
}

/// Where the same is served over HTTPS.
fn https(facts: &Facts, port: Option<u16>) -> Reply {
    let said = facts.forwarded_host().and_then(|h| h.to_str().ok());
    // Behind a trusted proxy it is the proxy that serves HTTPS, on a port that only it knows.
    let told = facts.origin.as_ref().is_some_and(|o| o.told);
    let (host, port) = (said.unwrap_or(&facts.host), port.filter(|_| !told));
    Reply::https_required(host, port, &facts.target())
}

fn edge(
    facts: Facts,
    view: Option<Arc<EnvView>>,
    step: Option<StepKind>,
    reply: Reply,
    now: Mono,
) -> Entered {
    answered(facts, view, step, Answer::Reply(reply), None, now)
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
    }
    Entered::Edge(Box::new(Answered { facts, view, trace, answer, guess }))
}
