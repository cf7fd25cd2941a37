//! The token that brings a browser back to where its session is: read from a request before it is
//! placed, added to a response that may carry one. The rules are [`crate::lifecycle::affinity`]'s.

use http::header;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::lifecycle::affinity;
use crate::lifecycle::classify::Classified;
use crate::lifecycle::facts::Facts;

use super::gate::Placed;
use super::request::{Ctx, is_tls};
use super::service::EdgeProxy;

impl EdgeProxy {
    /// Reads what names an earlier place of the request's session. Only apps with a live route have
    /// sessions that are somewhere.
    pub(super) fn recognise(&self, session: &Session, classified: &Classified, facts: &mut Facts) {
        let view = &classified.view;
        if view.contract.live().is_none() {
            return;
        }
        let headers = &session.req_header().headers;
        if headers.contains_key(header::COOKIE) {
            let now = self.parts.gate.clock.wall();
            let tls = is_tls(session);
            let tokens = &self.parts.gate.sessions.tokens;
            facts.affinity = tokens.read(headers, &facts.host, tls, &view.environment, now);
        }
        // A page's is only for the ring, and with one allocation there is nothing to choose.
        if facts.websocket || (facts.affinity.is_none() && view.ready.len() > 1) {
            let query = facts.query.as_deref();
            facts.session = affinity::session_id(&view.contract, classified.route, headers, query);
        }
    }

    /// Adds the token to a response that may carry one, if the browser needs a new one.
    pub(super) fn keep_affinity(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &Ctx,
    ) -> pingora::Result<()> {
        let (Some(journey), Some(placement)) =
            (&ctx.journey, ctx.placed.as_ref().and_then(Placed::placement))
        else {
            return Ok(());
        };
        let (view, facts, target) = (journey.view(), journey.facts(), &placement.allocation);
        let carries = view.contract.live().is_some()
            && journey.route().is_some_and(|r| {
                affinity::may_carry_token(&r.class, response.status.as_u16(), &response.headers)
            });
        let tokens = &self.parts.gate.sessions.tokens;
        let now = self.parts.gate.clock.wall();
        if carries
            && affinity::token_due(facts.affinity.as_ref(), &target.id, now, tokens.lasts())
            && let Some(cookie) = tokens.cookie(view, target, &facts.host, is_tls(session), now)
        {
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        Ok(())
    }
}
