//! What Pingora's callbacks ([`super::service`]) and the modules beside them share: the edge ([`EdgeProxy`]),
//! and one request on its way through the callbacks ([`Ctx`]). Nothing is decided here.

use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::artifact::AssetBytes;
use crate::clock::Mono;
use crate::id::RequestId;
use crate::lifecycle::access::WrongTokens;
use crate::lifecycle::answer::Answer;
use crate::lifecycle::asset::Visit;
use crate::lifecycle::enter::Policies;
use crate::lifecycle::facts::ErrorForm;
use crate::lifecycle::fields::Trailers;
use crate::lifecycle::journey::{Event, Go, Journey};
use crate::lifecycle::origin::Origin;
use crate::lifecycle::validation::Validations;
use crate::snapshot::EnvView;
use crate::telemetry::TraceRecord;
use crate::wire::{Client, ExpectedBody, Share};

use super::gate::{Carried, Gate};

/// The edge, as Pingora sees it.
pub struct EdgeProxy {
    /// Shared with live sockets, which outlive their requests.
    pub(super) gate: Arc<Gate>,
    pub(super) files: Arc<AssetBytes>,
    pub(super) policies: Arc<ArcSwap<Policies>>,
    pub(super) wrong: WrongTokens,
    pub(super) validations: Arc<ArcSwap<Validations>>,
}

impl EdgeProxy {
    /// The edge that performs with `gate` what journeys ask for, sends static files from `files`, and knows
    /// by `policies`, which a reload swaps, what its operator wants of all requests, and by `validations` what
    /// certificate authorities are answered now.
    pub fn new(
        gate: Gate,
        files: AssetBytes,
        policies: Arc<ArcSwap<Policies>>,
        validations: Arc<ArcSwap<Validations>>,
    ) -> Self {
        let (gate, files) = (Arc::new(gate), Arc::new(files));
        Self { gate, files, policies, wrong: WrongTokens::default(), validations }
    }

    pub(super) fn now(&self) -> Mono {
        self.gate.clock.now()
    }

    /// Drives the request on; a request without a journey was answered when it came.
    pub(super) async fn drive(&self, session: &mut Session, ctx: &mut Ctx) -> Go {
        let Some(journey) = &mut ctx.journey else { return Go::Tell };
        ctx.tried = false;
        let go = self.gate.drive(session, journey, &mut ctx.carried).await;
        ctx.body_unread &= !journey.body_is_read();
        go
    }

    /// Reports what happened to the request.
    pub(super) fn report(&self, ctx: &mut Ctx, event: Event) -> Go {
        ctx.journey.as_mut().map_or(Go::Stop, |j| self.gate.report(j, event))
    }

    /// Adds what the app's answers, static files and the edge's replies have: the request's id, `Strict-Transport-Security` over HTTPS (RFC 6797
    /// §6.1), and the marks of a preview. Pingora's `response_filter` runs on the app's answers only.
    pub(super) fn mark(&self, head: &mut ResponseHeader, ctx: &Ctx) -> pingora::Result<()> {
        head.insert_header("x-request-id", ctx.id.header_value())?;
        let is_secure = ctx.origin.as_ref().is_some_and(|o| o.secure);
        if let Some(age) = ctx.client.as_ref().and_then(|c| c.hsts).filter(|_| is_secure) {
            let age = format!("max-age={}", age.as_secs());
            head.insert_header("strict-transport-security", age)?;
        }
        let Some(view) = ctx.view.as_ref().filter(|v| !v.environment.is_production()) else {
            return Ok(());
        };
        head.insert_header("vango-edge-artifact", view.owner.digest.to_string())?;
        if self.policies.load().noindex(view) {
            head.insert_header("x-robots-tag", "noindex")?;
        }
        Ok(())
    }
}

/// One request on its way: what each of Pingora's callbacks leaves for the next.
pub struct Ctx {
    pub(super) id: RequestId,
    pub(super) received: Mono,
    pub(super) form: ErrorForm,
    pub(super) body_unread: bool,
    pub(super) body_bytes: u64,
    pub(super) journey: Option<Journey>,
    /// A request for a static file; it makes no journey.
    pub(super) visit: Option<Box<Visit>>,
    /// The trace of a request that the edge answers where it enters; it makes no journey either.
    pub(super) unrouted: Option<TraceRecord>,
    /// The edge's answer to a request without a journey.
    pub(super) own_answer: Option<Answer>,
    /// The environment that owns its host, once that is known.
    pub(super) view: Option<Arc<EnvView>>,
    /// The audit has its evidence already.
    pub(super) audited: bool,
    /// What goes with it through the gate.
    pub(super) carried: Carried,
    /// Its placement was used by `upstream_peer`.
    pub(super) tried: bool,
    /// Its connection is at its end: it is not looked at.
    pub(super) ignored: bool,
    /// Something of an answer came from the app, a 1xx included.
    pub(super) heard: bool,
    pub(super) client: Option<Arc<Client>>,
    /// Where it comes from: not always where its connection does.
    pub(super) origin: Option<Arc<Origin>>,
    /// What may come behind its answer.
    pub(super) trailers: Trailers,
    /// What it takes of its client's share, where a trusted proxy passes it on. Given back when dropped.
    pub(super) share: Option<Share>,
    /// HTTP/2: the rest of its body is waited for.
    pub(super) expected: Option<ExpectedBody>,
}

impl Ctx {
    /// A request that came at `received`.
    pub(super) fn new(id: RequestId, received: Mono) -> Self {
        Self {
            id,
            received,
            form: ErrorForm::Problem,
            body_unread: false,
            body_bytes: 0,
            journey: None,
            visit: None,
            unrouted: None,
            own_answer: None,
            view: None,
            audited: false,
            carried: Carried::default(),
            tried: false,
            ignored: false,
            heard: false,
            client: None,
            origin: None,
            trailers: Trailers::default(),
            share: None,
            expected: None,
        }
    }
    /// What its client is answered, where that is not the app's answer.
    pub(super) fn answer(&self) -> Option<&Answer> {
        self.own_answer.as_ref().or_else(|| self.journey.as_ref()?.answer())
    }
    /// The status of the edge's answer to a call of gRPC's, over which HTTP's says nothing.
    pub(super) fn refusal_to_grpc(&self) -> Option<u16> {
        let reply = self.answer()?.reply()?;
        matches!(self.form, ErrorForm::Grpc(_)).then_some(reply.status)
    }
    /// Whether its client is gone: nothing is answered.
    pub(super) fn is_gone(&self) -> bool {
        self.ignored || self.journey.as_ref().is_some_and(Journey::is_gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn drive<'a>(
        gate: &'a Gate,
        session: &'a mut Session,
        journey: &'a mut Journey,
        carried: &'a mut Carried,
    ) -> impl Future<Output = Go> + 'a {
        gate.drive(session, journey, carried)
    }

    /// Each request has the box of the first, and ten thousand that are held have the future of the
    /// second as well.
    #[test]
    fn a_request_and_a_held_request_have_room_for_nothing_else() {
        let (hot, held) = (size_of::<Ctx>(), size(drive));
        assert!(hot <= 2048 && held <= 1408, "{hot} and {held} bytes");
    }
}
