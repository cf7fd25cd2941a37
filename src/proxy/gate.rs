//! Performs a [`Journey`]'s decisions until it may be forwarded, is answered, or its client is
//! gone.

use std::sync::Arc;
use std::time::Duration;

use pingora_proxy::Session;

use crate::clock::{Clock, Entropy, Mono};
use crate::id::{Environment, RequestId};
use crate::lifecycle::admit::{Journey, Next, Woke};
use crate::lifecycle::place::Placement;
use crate::lifecycle::reply::Reply;
use crate::lifecycle::resume::StoreAnswer;
use crate::lifecycle::trace::HoldEnd;
use crate::session::{Ask, Sessions};
use crate::snapshot::{Live, SnapshotReader};
use crate::wake::hold::{HoldQueues, Release, Ticket};
use crate::wake::worker::Worker;

use super::watch;

/// What the gate works with.
pub struct Gate {
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
        // The count is read after the place is free; whoever joins the queue later looks again
        // itself.
        if self.live.waiting() > 0 {
            self.queues.pump(&self.environment);
        }
    }
}

/// A client that waits.
pub trait Downstream: Send {
    /// Resolves when it has left. Consumes nothing of an unread body. Cancel safe.
    fn left(&mut self, body_unread: bool) -> impl Future<Output = ()> + Send;
    /// Whether it is known to have left already.
    fn has_left(&mut self) -> bool;
}

impl Downstream for Session {
    fn left(&mut self, body_unread: bool) -> impl Future<Output = ()> + Send {
        watch::client_left(self, body_unread)
    }
    fn has_left(&mut self) -> bool {
        watch::has_left(self)
    }
}

/// How the gate was left.
pub enum Passed {
    /// Forward it there.
    Forward(Placed),
    /// Answer this.
    Reply(Reply),
    /// The client is gone; forward and answer nothing.
    Gone,
}

impl Gate {
    /// Asks and performs until there is an end. Bounded by the journey's deadline: each turn
    /// either ends or waits for a change, and after the deadline nothing waits.
    pub async fn pass(&self, session: &mut impl Downstream, journey: &mut Journey) -> Passed {
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
                // gave it: the host may be another one's by now, or nobody's.
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
                    let answer = self.ask_store(journey, &placed).await;
                    journey.store_answered(answer);
                    granted = placed.into_placement();
                }
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
                self.sessions.ask(&Ask { view: journey.view(), target, id }).await
            }
            _ => StoreAnswer::Unavailable,
        }
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
        let body_unread = facts.body;
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
        tokio::select! {
            biased;
            // First: a client that is gone and a place that came in the same moment mean gone.
            () = session.left(body_unread) => (HoldEnd::ClientLeft, None),
            told = ticket.released() => match told {
                // The place goes to the next one with the grant.
                Release::Granted(_) if session.has_left() => (HoldEnd::ClientLeft, None),
                Release::Granted(grant) => (HoldEnd::Released, grant.take()),
                Release::Recheck => (HoldEnd::Recheck, None),
                Release::ShuttingDown => (HoldEnd::ShuttingDown, None),
            },
            () = tokio::time::sleep(left) => (HoldEnd::DeadlinePassed, None),
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
