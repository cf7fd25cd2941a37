//! From a placement to an accepted socket: older sockets of the same tab end first, the socket waits
//! for its turn, and the app is asked.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use pingora::http::RequestHeader;
use tokio::net::TcpStream;

use crate::contract::LivePolicy;
use crate::id::RequestId;
use crate::lifecycle::admit::Journey;
use crate::lifecycle::affinity::{self, Given, SessionId};
use crate::lifecycle::reply::Reply;
use crate::lifecycle::retry::UpstreamFailure;
use crate::proxy::gate::{Downstream, Placed};
use crate::proxy::headers;
use crate::proxy::service::ProxyLimits;
use crate::sockets::frames::Protocol;
use crate::store::record::SessionRoute;

use super::upgrade::{self, Asked};
use super::{Accepted, LiveParts, hello};

/// What one upgrade is asked for with.
pub(super) struct Way<'a> {
    pub(super) parts: &'a Arc<LiveParts>,
    /// The client's request.
    pub(super) head: &'a RequestHeader,
    pub(super) limits: ProxyLimits,
}

impl Way<'_> {
    /// Asks the allocation it was placed on. `None`: the client left. [`Asked::Refused`]: to be placed
    /// again.
    ///
    /// # Errors
    /// The answer to give.
    pub(super) async fn ask(
        &self,
        downstream: &mut impl Downstream,
        journey: &mut Journey,
        placed: Placed,
    ) -> Result<Option<(Placed, Asked)>, Reply> {
        let gate = &self.parts.gate;
        let now = || gate.clock.now();
        let Some(target) = placed.placement().map(|p| Arc::clone(&p.allocation)) else {
            return Err(journey.upstream_failed(UpstreamFailure::Closed, now()));
        };
        if self.parts.sockets.open() >= self.limits.sockets {
            return Err(journey.not_admitted(now(), gate.entropy.next_u64()));
        }
        if let Some(tab) = journey.session().filter(|s| s.is_one_tabs()).map(|s| s.name()) {
            let environment = journey.view().environment.clone();
            self.parts.sockets.replace(&environment, tab).await;
        }
        let (left, pick) = (journey.deadline().since(now()), gate.entropy.next_u64());
        let turn = tokio::select! {
            biased;
            () = downstream.left(false) => return Ok(None),
            turn = self.parts.admission.turn(&target.id, left, pick) => turn,
        };
        let Ok(turn) = turn else { return Err(journey.not_admitted(now(), pick)) };
        let mut head = self.head.clone();
        let (facts, verdict) = (journey.facts(), journey.verdict());
        headers::for_app(&mut head, facts, &target, verdict);
        // Every part of it was a part of a request before.
        let Ok(request) = upgrade::request(&head) else {
            return Err(journey.upstream_failed(UpstreamFailure::Closed, now()));
        };
        let (connect, answer) = (self.limits.connect_timeout, self.limits.response_timeout);
        let asked = tokio::select! {
            biased;
            () = downstream.left(false) => return Ok(None),
            asked = upgrade::ask(request, &target, connect, answer) => asked,
        };
        drop(turn);
        match asked {
            Asked::Refused => {
                let refused = placed.placement().and_then(|p| gate.connect_failed(journey, p));
                refused.map_or(Ok(Some((placed, Asked::Refused))), Err)
            }
            Asked::Failed(failure) => Err(journey.upstream_failed(failure, now())),
            asked => Ok(Some((placed, asked))),
        }
    }

    /// Takes an accepted socket in, and notes where it is.
    pub(super) fn accepted(
        &self,
        journey: &Journey,
        placed: &Placed,
        app: TcpStream,
        from_app: Vec<u8>,
    ) -> Option<Accepted<TcpStream>> {
        let target = &placed.placement()?.allocation;
        let (view, gate) = (journey.view(), &self.parts.gate);
        let session = journey.session();
        // Of a route with `wakes = false` the upgrade wakes nothing; what an open socket means is the
        // contract's `sleep.live` for every route.
        let counts = !journey.facts().agent_has(&view.contract.wake.ignore_agents);
        let route = SessionRoute {
            allocation: target.id.clone(),
            generation: target.generation,
            digest: target.digest,
            schema: view.schema,
            at: gate.clock.wall(),
        };
        if let Some(id) = session {
            gate.sessions.routes.note(&view.environment, id.name(), route.clone());
        }
        let tab = session.filter(|s| s.is_one_tabs()).map(|s| s.name());
        let (hello, cut) = journey
            .route()
            .map_or((false, false), |r| (hello::wanted(&r.class), hello::is_cut(&r.class)));
        Some(Accepted {
            app,
            from_app,
            from_client: Vec::new(),
            seat: self.parts.sockets.seat(&view.environment, &target.id, tab, cut),
            pin: target.load.pin(),
            environment: Arc::clone(&view.live),
            protocol: if hello { Protocol::Vango } else { Protocol::Unknown },
            touches: counts && view.contract.sleep.live == LivePolicy::Traffic,
            wakes: counts,
            rouses: journey.wakes(),
            cut,
            route,
            idle: self.limits.socket_idle,
        })
    }

    /// The edge's own headers of a 101: the request's id, and the token if one is due.
    pub(super) fn ours(
        &self,
        journey: &Journey,
        placed: &Placed,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut ours = request_id(journey.facts().id);
        let (view, facts) = (journey.view(), journey.facts());
        let (tokens, now) = (&self.parts.gate.sessions.tokens, self.parts.gate.clock.wall());
        let given = Given::Socket(journey.session().map(SessionId::name));
        let (seen, lasts, at) =
            (facts.affinity.as_ref(), tokens.lasts(), (&*facts.host, facts.is_secure()));
        if let Some(placement) = placed.placement()
            && view.contract.live().is_some()
            && let Some(given) =
                affinity::token_due(seen, &placement.allocation.id, given, now, lasts)
            && let Some(cookie) = tokens.cookie(view, &placement.allocation, given, at, now)
        {
            ours.push((header::SET_COOKIE, cookie));
        }
        ours
    }
}

/// The request's id as a header of an answer.
pub(super) fn request_id(id: RequestId) -> Vec<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(id.to_string()).ok();
    value.map(|id| (HeaderName::from_static("x-request-id"), id)).into_iter().collect()
}
