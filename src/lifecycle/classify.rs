//! First decision: whose request is it, which route of the contract does it take, and may it be
//! held and sent again if nothing of it was sent before?

use std::sync::Arc;

use http::Method;

use crate::contract::{Idempotency, Route, RouteClass, Unrouted};
use crate::snapshot::{EnvView, Snapshot};

use super::facts::Facts;
use super::reply::{Problem, Reply};

/// What a request's class means for the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// Safe by its method (RFC 9110 §9.2.1), whatever the route's class: it may wake, wait, and be
    /// sent again where nothing was sent. See [`is_safe`].
    Safe,
    /// Unsafe, and the contract gives it no idempotency: it is forwarded once when hot, and never
    /// held for a cold app.
    Unsafe,
    /// Unsafe, and the app deduplicates by key: it may wait for a wake, with its body unread.
    AppIdempotent,
    /// Unsafe, and the edge is to keep the record of its key.
    EdgeIdempotent,
    /// Unsafe, on a webhook's route: a provider's delivery, whose signature comes first.
    Webhook,
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
    pub wakes: bool,
}

impl Classified {
    /// The route.
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
    let (route, posture) = under(view, facts)?;
    let wakes = wakes(view, route, facts);
    Ok(Classified { view: Arc::clone(view), route, posture, wakes })
}

/// Route and posture under one owner's contract: also for a request that was classified before,
/// since its owner may have changed while it waited.
///
/// # Errors
/// [`Unrouted`]
pub fn under(view: &EnvView, facts: &Facts) -> Result<(usize, Posture), Unrouted> {
    let (route, found) = view.contract.route(&facts.path, facts.sent(), is_safe(facts))?;
    Ok((route, posture(&found.class, facts)))
}

/// Whether the request is safe: it asks for no change, so that no key, no signature and no guard is
/// asked of it. A browser's preflight, a provider's GET that tries an endpoint, a HEAD are such on
/// every class of route.
///
/// The methods that are safe by IANA's registry (RFC 9110 §16.1.1), but for TRACE, which the edge
/// passes to no app, and PRI, which is no request. A field by which some frameworks read another method
/// makes it unsafe: behind Slim or Yii a GET with `X-HTTP-Method-Override: POST` **is** a POST.
pub fn is_safe(facts: &Facts) -> bool {
    let method = facts.method.as_str();
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY")
        && !facts.method_overridden
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
pub fn wakes(view: &EnvView, route: usize, facts: &Facts) -> bool {
    view.contract.routes.get(route).is_none_or(|r| r.wakes)
        && !facts.agent_has(&view.contract.wake.ignore_agents)
}

fn posture(class: &RouteClass, facts: &Facts) -> Posture {
    if is_safe(facts) {
        return Posture::Safe;
    }
    match class {
        RouteClass::Webhook(_) => Posture::Webhook,
        RouteClass::Action(a) => match a.idempotency {
            Idempotency::None => Posture::Unsafe,
            Idempotency::App => Posture::AppIdempotent,
            Idempotency::Edge => Posture::EdgeIdempotent,
        },
        RouteClass::Page | RouteClass::Live(_) => Posture::Unsafe,
    }
}
