//! One request on its way through Pingora's callbacks: what each leaves for the next. Nothing is
//! decided here.

use std::sync::Arc;

use crate::clock::Mono;
use crate::id::RequestId;
use crate::lifecycle::admit::Journey;
use crate::lifecycle::asset::Visit;
use crate::lifecycle::facts::ErrorForm;
use crate::lifecycle::origin::Origin;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::trailers::Trailers;
use crate::snapshot::EnvView;
use crate::store::record::ledger::StoredResponse;
use crate::telemetry::TraceRecord;

use super::admission::{Places, Share};
use super::client::{Client, ExpectedBody};
use super::gate::{Carried, Placed};

/// One request on its way.
pub struct Ctx {
    pub(super) id: RequestId,
    pub(super) received: Mono,
    pub(super) form: ErrorForm,
    pub(super) body_unread: bool,
    pub(super) body_bytes: u64,
    pub(super) journey: Option<Journey>,
    /// A request for an asset, which makes no journey either.
    pub(super) visit: Option<Box<Visit>>,
    /// What is traced of a request that the edge answers at its entrance: it makes no journey.
    pub(super) unrouted: Option<TraceRecord>,
    /// The answer to give instead of forwarding.
    pub(super) reply: Option<Reply>,
    /// Where to send who showed a preview's token, and the cookie.
    pub(super) welcome: Option<(String, String)>,
    /// Whose it is, once that is known.
    pub(super) view: Option<Arc<EnvView>>,
    /// The stored response to give instead.
    pub(super) replay: Option<StoredResponse>,
    /// The event was accepted before.
    pub(super) acknowledge: bool,
    /// It was answered from a record.
    pub(super) from_record: bool,
    /// Its evidence is kept already.
    pub(super) audited: bool,
    /// What goes with it through the gate.
    pub(super) carried: Carried,
    /// Where it goes; `tried` once `upstream_peer` has used it.
    pub(super) placed: Option<Placed>,
    pub(super) tried: bool,
    pub(super) gone: bool,
    /// Something of an answer came, a 1xx included.
    pub(super) heard: bool,
    pub(super) first_byte: Option<Mono>,
    pub(super) client: Option<Arc<Client>>,
    /// Where it comes from: not always where its connection does.
    pub(super) origin: Option<Arc<Origin>>,
    /// What may come behind its answer.
    pub(super) trailers: Trailers,
    /// What it takes of its client's share, where a trusted proxy passes it on.
    share: Option<Share>,
    /// HTTP/2: the rest of its body is waited for.
    pub(super) expected: Option<ExpectedBody>,
}

impl Ctx {
    /// One that came at `received`.
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
            reply: None,
            welcome: None,
            view: None,
            replay: None,
            acknowledge: false,
            from_record: false,
            audited: false,
            carried: Carried::default(),
            placed: None,
            tried: false,
            gone: false,
            heard: false,
            first_byte: None,
            client: None,
            origin: None,
            trailers: Trailers::default(),
            share: None,
            expected: None,
        }
    }
    /// Counts it for its client.
    ///
    /// # Errors
    /// The answer where that has as many requests as it may.
    pub(super) fn take_share(&mut self, places: &Arc<Places>) -> Result<(), Reply> {
        if let (Some(client), Some(origin)) = (&self.client, &self.origin) {
            self.share = client.share(origin, places).map_err(Reply::too_many_requests)?;
        }
        Ok(())
    }
    pub(super) fn id(&self) -> RequestId {
        self.id
    }
    pub(super) fn journey(&self) -> Option<&Journey> {
        self.journey.as_ref()
    }
    pub(super) fn take_journey(&mut self) -> Option<Journey> {
        self.journey.take()
    }
    /// The journey, and its place, which is the caller's from here on.
    pub(super) fn journey_and_place(&mut self) -> Option<(&mut Journey, Placed)> {
        let placed = self.placed.take()?;
        Some((self.journey.as_mut()?, placed))
    }
    /// The app's answer began.
    pub(super) fn answered_at(&mut self, now: Mono) {
        self.first_byte = Some(now);
    }
    /// The client is gone; nothing is answered.
    pub(super) fn left(&mut self) {
        self.gone = true;
    }
    /// An answer that the journey has recorded.
    pub(super) fn reply_with(&mut self, reply: Reply) {
        self.reply = Some(reply);
    }
    /// Answers instead of deciding.
    pub(super) fn refuse(&mut self, reply: Reply, now: Mono) {
        self.reply = self.journey.as_mut().map(|j| j.refuse(reply, now));
    }
    pub(super) fn is_a_live_socket(&self) -> bool {
        self.journey.as_ref().is_some_and(|j| j.facts().websocket)
    }
}
