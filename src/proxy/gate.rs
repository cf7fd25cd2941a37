//! Performs a [`Journey`]'s decisions until it may be forwarded, is answered, or its client is
//! gone.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora_proxy::Session;

use crate::clock::{Clock, Entropy, Mono};
use crate::config::Secret;
use crate::id::{Environment, RequestId};
use crate::ledger::{Audit, Ledger, Reservation, Taken};
use crate::lifecycle::admit::{Journey, Next, Woke};
use crate::lifecycle::place::Placement;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::resume::StoreAnswer;
use crate::lifecycle::trace::{HoldEnd, QueueBound};
use crate::session::{Ask, Sessions};
use crate::snapshot::{Live, SnapshotReader};
use crate::store::record::ledger::StoredResponse;
use crate::wake::hold::{HoldQueues, Release, Ticket};
use crate::wake::worker::Worker;

use super::admission::Places;
use super::attempts::Attempts;
use super::body::{self, Buffered, Room, Unread};
use super::deliver::Exchanges;
use super::service::ProxyLimits;
use super::watch;

/// The operator's secrets by which providers' deliveries are verified; a reload swaps them.
pub trait WebhookSecrets: Send + Sync {
    /// Every value under `name` that counts now, the current one first; none where there is none.
    fn of(&self, environment: &Environment, name: &str) -> Vec<Secret>;
}

/// What the gate works with.
pub struct Gate {
    /// For verifying deliveries.
    pub secrets: Arc<dyn WebhookSecrets>,
    /// Keeps what was sent.
    pub ledger: Arc<Ledger>,
    /// Keeps what was decided.
    pub audit: Arc<Audit>,
    /// For bodies that are read whole.
    pub room: Arc<Room>,
    /// What goes on without its client.
    pub exchanges: Arc<Exchanges>,
    /// How often keys were sent to apps that deduplicate themselves.
    pub attempts: Attempts,
    /// Timeouts; a reload swaps them.
    pub limits: Arc<ArcSwap<ProxyLimits>>,
    /// What routing sees.
    pub snapshots: SnapshotReader,
    /// Those who wait.
    pub queues: Arc<HoldQueues>,
    /// Performs wakes.
    pub worker: Arc<Worker>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Where sessions were.
    pub sessions: Arc<Sessions>,
    /// How many connections there may be.
    pub admission: Arc<Places>,
}

/// A request's place in an allocation. Giving it back tells those who wait.
pub struct Placed {
    placement: Option<Placement>,
    environment: Environment,
    live: Arc<Live>,
    queues: Arc<HoldQueues>,
}

impl Placed {
    /// Where.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// The place itself and whose it is; from here on the caller gives it back.
    fn into_placement(mut self) -> Option<(Placement, Environment)> {
        Some((self.placement.take()?, self.environment.clone()))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        drop(self.placement.take());
        // The count is read after the place is free; a request that joins the queue later looks again
        // itself.
        if self.live.waiting() > 0 {
            self.queues.pump(&self.environment);
        }
    }
}

/// What a request carries through the gate besides itself.
#[derive(Default)]
pub struct Carried {
    /// Its body, once it was read.
    pub body: Option<Buffered>,
    /// Its key, once it was reserved; released when dropped.
    pub reservation: Option<Reservation>,
}

/// A client that waits.
pub trait Downstream: Send {
    /// Resolves when it has left. Consumes nothing of an unread body. Cancel safe.
    fn left(&mut self, body_unread: bool) -> impl Future<Output = ()> + Send;
    /// Whether it has left already. May ask it, and then takes a moment.
    fn has_left(&mut self) -> impl Future<Output = bool> + Send;
    /// Reads its whole body, at most `limit` bytes; one that sends none has nothing to read.
    fn read_whole(
        &mut self,
        _limit: u64,
        _room: &Arc<Room>,
        _within: Duration,
    ) -> impl Future<Output = Result<Buffered, Unread>> + Send {
        async { Err(Unread::Gone) }
    }
}

impl Downstream for Session {
    fn left(&mut self, body_unread: bool) -> impl Future<Output = ()> + Send {
        watch::client_left(self, body_unread)
    }
    fn has_left(&mut self) -> impl Future<Output = bool> + Send {
        watch::has_left(self)
    }
    fn read_whole(
        &mut self,
        limit: u64,
        room: &Arc<Room>,
        within: Duration,
    ) -> impl Future<Output = Result<Buffered, Unread>> + Send {
        body::read_whole(self, limit, room, within)
    }
}

/// How the gate was left.
pub enum Passed {
    /// Answer with this stored response.
    Replay(StoredResponse),
    /// Answer 200: the event was accepted before.
    Acknowledge,
    /// Forward it there.
    Forward(Placed),
    /// Answer this.
    Reply(Reply),
    /// The client is gone; forward and answer nothing.
    Gone,
}

impl Gate {
    /// Asks and performs until there is an end. Bounded by the journey's deadline: each turn
    /// either ends, waits for a change, or takes one of few steps that are taken once (the body is
    /// read, the ledger is asked); after the deadline nothing waits.
    pub async fn pass(
        &self,
        session: &mut impl Downstream,
        journey: &mut Journey,
        carried: &mut Carried,
    ) -> Passed {
        let mut granted: Option<(Placement, Environment)> = None;
        if let Some(id) = journey.session().filter(|_| journey.trace.steps.is_empty()).cloned() {
            let environment = journey.view().environment.clone();
            journey.recorded(self.sessions.look_up(&environment, &id).await);
        }
        loop {
            let (now, pick) = (self.clock.now(), self.entropy.next_u64());
            let (placement, from) = granted.take().unzip();
            let next = {
                let snapshot = self.snapshots.load();
                let view = snapshot.host(&journey.facts().host);
                journey.decide(view, placement, now, pick)
            };
            if let Some(environment) = &from {
                // If the grant was not taken up, its place is free again, in the environment that
                // gave it: the host may have another owner by now, or none.
                self.queues.pump(environment);
            }
            match next {
                Next::Forward(placement) => {
                    return Passed::Forward(self.placed(journey, placement));
                }
                Next::Reply(reply) => return Passed::Reply(reply),
                Next::AskStore(placement) => {
                    // With its place kept, so that the answer is about where it will be.
                    let placed = self.placed(journey, placement);
                    let answer = tokio::select! {
                        biased;
                        () = session.left(false) => return Passed::Gone,
                        answer = self.ask_store(journey, &placed) => answer,
                    };
                    journey.store_answered(answer);
                    granted = placed.into_placement();
                }
                Next::ReadBody { limit, granted: kept } => {
                    granted = kept.zip(from);
                    if let Some(end) = self.read_body(session, journey, carried, limit).await {
                        return end;
                    }
                }
                Next::Reserve => {
                    if let Some(end) = self.reserve(journey, carried).await {
                        return end;
                    }
                }
                Next::Replay => return self.replay(journey).await,
                Next::Acknowledge => return Passed::Acknowledge,
                Next::Wake { hold: false } => {
                    let woke = self.wake(journey).await;
                    match journey.woke(&woke, false, self.clock.now()) {
                        Some(reply) => return Passed::Reply(reply),
                        None => continue,
                    }
                }
                Next::Wake { hold: true } | Next::Hold => {
                    let wake = matches!(next, Next::Wake { .. });
                    match self.hold(session, journey, wake).await {
                        Held::Again(placement) => granted = placement,
                        Held::Reply(reply) => return Passed::Reply(reply),
                        Held::Gone => return Passed::Gone,
                    }
                }
            }
        }
    }

    async fn ask_store(&self, journey: &Journey, placed: &Placed) -> StoreAnswer {
        match (placed.placement(), journey.session()) {
            (Some(placement), Some(id)) => {
                let target = &placement.allocation;
                let within = journey.deadline().since(self.clock.now());
                self.sessions.ask(&Ask { view: journey.view(), target, id }, within).await
            }
            _ => StoreAnswer::Unavailable,
        }
    }

    async fn read_body(
        &self,
        session: &mut impl Downstream,
        journey: &mut Journey,
        carried: &mut Carried,
        limit: u64,
    ) -> Option<Passed> {
        let within = self.limits.load().body_timeout;
        match session.read_whole(limit, &self.room, within).await {
            Ok(body) => {
                let secrets = self.secrets_for(journey);
                let secrets: Vec<&[u8]> = secrets.iter().map(|s| s.expose().as_bytes()).collect();
                let refused = journey.body_read(&body.bytes, &secrets, self.clock.now());
                carried.body = Some(body);
                refused.map(Passed::Reply)
            }
            Err(Unread::Refused(why)) => {
                Some(Passed::Reply(journey.body_refused(why, self.clock.now())))
            }
            Err(Unread::Gone) => Some(Passed::Gone),
        }
    }

    /// The values that a delivery is verified with; none for anything else.
    pub fn secrets_for(&self, journey: &Journey) -> Vec<Secret> {
        journey.secret_wanted().map_or_else(Vec::new, |(e, name)| self.secrets.of(e, name))
    }

    async fn reserve(&self, journey: &mut Journey, carried: &mut Carried) -> Option<Passed> {
        let taken = match journey.claim() {
            Some(claim) => self.ledger.reserve(claim, journey.reads_whole_body()).await,
            None => return None,
        };
        let now = self.clock.now();
        match taken {
            Ok(Taken::Held(reservation)) => {
                carried.reservation = Some(reservation);
                journey.reserved(None, now);
            }
            Ok(Taken::Found(seen)) => journey.reserved(Some(seen), now),
            Err(e) => {
                log::debug!("ledger: {e}");
                return Some(Passed::Reply(journey.ledger_failed(now)));
            }
        }
        None
    }

    async fn replay(&self, journey: &mut Journey) -> Passed {
        let stored = match journey.claim() {
            Some(claim) => self.ledger.response(&claim.at).await,
            None => Ok(None),
        };
        match stored {
            Ok(Some(stored)) => Passed::Replay(stored),
            Ok(None) => Passed::Reply(journey.replay_missing(self.clock.now())),
            Err(e) => {
                log::debug!("ledger: {e}");
                Passed::Reply(journey.ledger_failed(self.clock.now()))
            }
        }
    }

    /// A connection to `placed` could not be made: the worker looks why, if this edge runs it. `Some` is
    /// the answer to give.
    pub fn connect_failed(&self, journey: &mut Journey, placed: &Placement) -> Option<Reply> {
        if !placed.allocation.external {
            self.worker.doubt(&journey.view().environment, &placed.allocation.id);
        }
        journey.connect_failed(placed, self.clock.now())
    }

    fn placed(&self, journey: &Journey, placement: Placement) -> Placed {
        let view = journey.view();
        Placed {
            placement: Some(placement),
            environment: view.environment.clone(),
            live: Arc::clone(&view.live),
            queues: Arc::clone(&self.queues),
        }
    }

    async fn wake(&self, journey: &Journey) -> Woke {
        let asked = self.worker.wake(&journey.view().environment);
        let left = journey.deadline().since(self.clock.now()).max(Duration::from_millis(1));
        tokio::time::timeout(left, asked).await.unwrap_or(Woke::Unavailable)
    }

    async fn hold(&self, session: &mut impl Downstream, journey: &mut Journey, wake: bool) -> Held {
        let view = Arc::clone(journey.view());
        let facts = journey.facts();
        let body_unread = facts.body && !journey.body_is_read();
        if self.admission.is_crowded() {
            // Each hold keeps a connection: the last places are for what need not wait.
            return self.held(journey, HoldEnd::QueueFull(QueueBound::Node), None);
        }
        let entered = self.queues.enter(
            &view,
            facts.header_bytes,
            journey.wish(),
            journey.excluded().to_vec(),
            wake,
            journey.waits_cold(),
        );
        let mut ticket = match entered {
            Ok(ticket) => ticket,
            Err(bound) => return self.held(journey, HoldEnd::QueueFull(bound), None),
        };
        if wake {
            // The place in the queue is taken: whatever the wake publishes from here on is seen.
            let woke = self.wake(journey).await;
            if let Some(reply) = journey.woke(&woke, true, self.clock.now()) {
                return Held::Reply(reply);
            }
            if matches!(woke, Woke::Ready | Woke::BackingOff) {
                // The snapshot is about to show it; if it does already, the queue was looked at
                // before. Look once more.
                self.queues.pump(&view.environment);
            }
        }
        let (end, grant) = self.wait(session, &mut ticket, journey.deadline(), body_unread).await;
        drop(ticket);
        self.held(journey, end, grant.map(|g| (g, view.environment.clone())))
    }

    async fn wait(
        &self,
        session: &mut impl Downstream,
        ticket: &mut Ticket,
        deadline: Mono,
        body_unread: bool,
    ) -> (HoldEnd, Option<Placement>) {
        let left = deadline.since(self.clock.now());
        let told = tokio::select! {
            biased;
            // First: a client that is gone and a place that came in the same moment mean gone.
            () = session.left(body_unread) => return (HoldEnd::ClientLeft, None),
            told = ticket.released() => told,
            () = tokio::time::sleep(left) => return (HoldEnd::DeadlinePassed, None),
        };
        match told {
            Release::Granted(grant) => {
                if session.has_left().await {
                    // The place goes to the next one with the grant.
                    return (HoldEnd::ClientLeft, None);
                }
                (HoldEnd::Released, grant.take())
            }
            Release::Recheck => (HoldEnd::Recheck, None),
            Release::ShuttingDown => (HoldEnd::ShuttingDown, None),
        }
    }

    fn held(
        &self,
        journey: &mut Journey,
        end: HoldEnd,
        grant: Option<(Placement, Environment)>,
    ) -> Held {
        let view = {
            let snapshot = self.snapshots.load();
            snapshot.host(&journey.facts().host).cloned()
        };
        match journey.held(end, view.as_ref(), self.clock.now(), self.entropy.next_u64()) {
            Some(reply) => Held::Reply(reply),
            None if end == HoldEnd::ClientLeft => Held::Gone,
            None => Held::Again(grant),
        }
    }

    /// A new public id.
    pub fn request_id(&self) -> RequestId {
        RequestId::random(&*self.entropy)
    }
}

enum Held {
    Again(Option<(Placement, Environment)>),
    Reply(Reply),
    Gone,
}
