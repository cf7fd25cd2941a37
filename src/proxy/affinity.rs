//! The token that brings a browser back to where its session is: read from a request before it is
//! placed, added to a response that may carry one. The rules are [`crate::lifecycle::affinity`]'s.

use http::header;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::lifecycle::affinity::{self, Given};
use crate::lifecycle::classify::Classified;
use crate::lifecycle::facts::Facts;

use super::gate::Placed;
use super::request::Ctx;
use super::service::EdgeProxy;

impl EdgeProxy {
    /// Reads what names an earlier place of the request's session.
    pub(super) fn recognise(&self, session: &Session, classified: &Classified, facts: &mut Facts) {
        let (headers, gate) = (&session.req_header().headers, &self.parts.gate);
        let now = || gate.clock.wall();
        gate.sessions.recognise(classified, headers, now, facts);
    }

    /// Adds the token to a response that may carry one, if the browser needs a new one.
    pub(super) fn keep_affinity(
        &self,
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
        let (seen, lasts) = (facts.affinity.as_ref(), tokens.lasts());
        let at = (&*facts.host, facts.is_secure());
        if carries
            && let Some(given) = affinity::token_due(seen, &target.id, Given::Page, now, lasts)
            && let Some(cookie) = tokens.cookie(view, target, given, at, now)
        {
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        Ok(())
    }
}
