//! Carries a promotion through its states, each in one transaction, under a lease: an executor that is lost
//! leaves it claimable, in the state it was in.
//!
//! The order is what keeps requests whole: an allocation of the **next** epoch is started first, and
//! gets no request, since it has no authority yet. Then the owner moves, in one transaction that names
//! the epoch that was read; from that revision on every new request goes to the new allocation, which is
//! ready. Then what served before drains ([`super::retirer`]).
//!
//! | state | what is done | events |
//! |---|---|---|
//! | `PolicyCheck` | `check_policy` | `PolicyMet`, `Refused` |
//! | `Releasing` | `release` | `Released`, `Refused` |
//! | `ReleaseLost` | | `Refused` |
//! | `RouteCas` | `move_owner` | `Moved`, `WentBack`, `Refused` |
//! | `EdgePropagating` | `prove` | `Proved`, `WentBack`, `Refused` |

use std::sync::Arc;
use std::time::Duration;

use vango_edge_core::control::promotion::{self, PromotionEvent, advance};

use crate::clock::Wall;
use crate::config::Promotion as Policy;
use crate::contract::Release;
use crate::crash;
use crate::id::{Environment, Epoch, OperationId};
use crate::node::{Node, ReadError};
use crate::record::{
    Allocation, Deployment, Evidence, Failure, Promotion, PromotionKind, PromotionState, Record,
    Turn, Variables, key,
};
use crate::store::Txn;
use crate::wake::{self, Allocations, Leased, Lost, NotStarted, StartRequest, Starts, Wakes, Work};

use super::counts::Counts;
use super::one_offs::{OneOffs, release_lost};
use super::owners::{Owners, TakeError};

/// How often this edge's routing is looked at while it takes the new owner up.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long the new owner's allocation may take to answer once the owner has moved, besides the
/// contract's own start timeout.
const TO_PROVE: Duration = Duration::from_secs(10);

/// Tries when owners change while an allocation is started for the next one.
const TRIES: u32 = 3;

/// A promotion that is carried out.
type PromotionClaim = wake::LeaseClaim<Promotion>;

impl Leased for Promotion {
    type Subject = Environment;
    type Event = PromotionEvent;
    const NAME: &'static str = "promotion";
    const SYNCED: bool = true;
    const EXECUTORS: &'static str = key::PROMOTERS;

    fn at(environment: &Environment) -> String {
        key::promotion(environment)
    }
    fn kept_at(&self) -> String {
        key::promoted(self.requested, &self.id)
    }
    fn attempt(&self) -> (&OperationId, u32) {
        (&self.id, self.attempt)
    }
    fn state(&self) -> (&'static str, bool) {
        (self.state.name(), self.state.in_progress())
    }
    fn claimed(_: Duration) -> PromotionEvent {
        PromotionEvent::Claimed
    }
    fn after(&self, event: PromotionEvent, now: Wall) -> Result<Self, String> {
        advance(self, event, now).map_err(|e| e.to_string())
    }
}

/// Which owner is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The one that is promoted.
    New,
    /// The one that it was promoted over.
    Before,
}

/// Whether the owner can move.
enum NextOwner {
    /// Under this epoch, by this transaction.
    Moves(Epoch, Txn),
    Stays(Failure),
}

impl NextOwner {
    fn stays(safe: &str, detail: impl Into<String>) -> Self {
        Self::Stays(Failure::new(safe, detail))
    }
}

/// What an executor does with a promotion.
pub struct PromotionWork {
    node: Node,
    counts: Arc<Counts>,
    owners: Arc<Owners>,
    starts: Arc<Starts>,
    allocations: Arc<Allocations>,
    wakes: Arc<Wakes>,
    one_offs: Arc<OneOffs>,
}

impl Work for PromotionWork {
    type Of = Promotion;
    type Permit = ();

    async fn permit(&self) {}

    /// Ends: each round changes the state or is an error.
    async fn carry(&self, claim: &mut PromotionClaim, (): ()) -> Result<(), Lost> {
        while claim.record().state.in_progress() {
            match claim.record().state {
                PromotionState::PolicyCheck => self.check_policy(claim).await?,
                PromotionState::Releasing => self.release(claim).await?,
                PromotionState::ReleaseLost => self.refuse(claim, release_lost()).await?,
                PromotionState::RouteCas => self.move_owner(claim).await?,
                _ => self.prove(claim).await?,
            }
        }
        let p = claim.record();
        let why = p.failure.as_ref().map_or_else(String::new, |f| format!(": {}", f.detail));
        let (kind, state) = (p.kind.name(), p.state.name());
        log::info!("{}: {kind} {} to {} is {state}{why}", p.environment, p.id, p.digest);
        Ok(())
    }

    /// Routing shows no promotions: `Promotions` looks for them.
    fn is_open(&self, _: &Environment) -> bool {
        false
    }
}

impl PromotionWork {
    /// The next allocation is started by `starts`, what got no owner is taken off `allocations`, release commands
    /// are run by `one_offs`.
    pub fn new(
        node: Node,
        counts: Arc<Counts>,
        owners: Arc<Owners>,
        starts: Arc<Starts>,
        allocations: Arc<Allocations>,
        wakes: Arc<Wakes>,
        one_offs: Arc<OneOffs>,
    ) -> Self {
        Self { node, counts, owners, starts, allocations, wakes, one_offs }
    }

    async fn refuse(&self, claim: &mut PromotionClaim, why: Failure) -> Result<(), Lost> {
        // A copy that was made for this promotion goes with it.
        let made = self.made_for(claim.record()).await?;
        let gone = made.into_iter().fold(Txn::new(), Txn::delete);
        let gone = gone.and(self.variables(claim.record(), Turn::Over).await?);
        claim.commit(PromotionEvent::Refused(why), gone).await
    }

    /// The deployment that only this promotion has a use for.
    async fn made_for(&self, p: &Promotion) -> Result<Option<String>, Lost> {
        let at = key::deployment(&p.environment, &p.deployment);
        let Some(found) = self.node.read::<Deployment>(&at).await? else { return Ok(None) };
        let deployment = found.record;
        let copied = deployment.promoted_from.is_some() && deployment.replaced.is_none();
        Ok((copied && p.kind == PromotionKind::Promote).then_some(at))
    }

    async fn check_policy(&self, claim: &mut PromotionClaim) -> Result<(), Lost> {
        let p = claim.record().clone();
        let config = self.node.config.load().clone();
        let policy = config.apps.get(p.environment.app()).map(|a| a.promotion.clone());
        let Some(policy) = policy else {
            let detail = format!("this edge has no app {} any more", p.environment.app());
            return self.refuse(claim, Failure::new("the app is gone", detail)).await;
        };
        let releases = match self.release_of(&p).await {
            Ok(release) => release.is_some(),
            Err(NotStarted::Failed(why) | NotStarted::NoRoom(why)) => {
                return self.refuse(claim, why).await;
            }
            Err(NotStarted::Lost(e)) => return Err(e),
        };
        if p.kind != PromotionKind::Promote {
            let event = PromotionEvent::PolicyMet { statement: None, releases };
            return claim.commit(event, Txn::new()).await;
        }
        // What was counted since the last time counts.
        self.counts.flush().await;
        let at = key::evidence(&p.source_environment, &p.source);
        let evidence = self.node.read::<Evidence>(&at).await?.map(|f| f.record);
        let missing = promotion::missing(&policy, evidence.as_ref());
        if !missing.is_empty() {
            let detail = refusal(&p, &policy, &missing);
            return self
                .refuse(claim, Failure::new("the evidence does not satisfy the policy", detail))
                .await;
        }
        let about = promotion::Subject {
            verifier: &self.node.name,
            app: p.environment.app(),
            digest: &p.digest,
            promotion: Some(&p),
        };
        let now = self.node.clock.wall();
        let statement = promotion::statement(&about, &policy, evidence.as_ref(), now);
        let event = PromotionEvent::PolicyMet { statement: Some(statement), releases };
        claim.commit(event, Txn::new()).await
    }

    /// The release command that is run for a promotion.
    async fn release_of(&self, p: &Promotion) -> Result<Option<Release>, NotStarted> {
        if !p.kind.releases() {
            return Ok(None);
        }
        Ok(self.starts.contract(&p.environment, &p.deployment).await?.release)
    }

    /// Runs the release command. That it is begun is on record, by this executor: one that comes after it
    /// finds `ReleaseLost`.
    async fn release(&self, claim: &mut PromotionClaim) -> Result<(), Lost> {
        let p = claim.record().clone();
        // The one that its artifact is to serve under. What cannot move any more is not migrated to.
        let epoch = match self.next_owners(&p, Owner::New).await? {
            NextOwner::Moves(epoch, _) => epoch,
            NextOwner::Stays(why) => return self.refuse(claim, why).await,
        };
        let ended = match self.release_of(&p).await {
            Ok(Some(release)) => self.one_offs.release(&wanted(&p, epoch), &release).await,
            Ok(None) => Ok(()),
            Err(NotStarted::Failed(why) | NotStarted::NoRoom(why)) => Err(why),
            Err(NotStarted::Lost(e)) => return Err(e),
        };
        crash::after("promotion", "released");
        match ended {
            Ok(()) => claim.commit(PromotionEvent::Released, Txn::new()).await,
            Err(why) => self.refuse(claim, why).await,
        }
    }

    /// What becomes of the variables that a promotion is about.
    async fn variables(&self, p: &Promotion, turn: Turn) -> Result<Txn, ReadError> {
        if p.kind != PromotionKind::Configure {
            return Ok(Txn::new());
        }
        let at = key::variables(&p.environment);
        let Some(found) = self.node.read::<Variables>(&at).await? else { return Ok(Txn::new()) };
        let txn = found.unchanged();
        Ok(txn.put(&at, found.record.after(&p.id, turn, self.node.clock.wall()).encode()))
    }

    /// Starts an allocation of the next epoch, then moves the owner, if it still is the one that was
    /// read.
    async fn move_owner(&self, claim: &mut PromotionClaim) -> Result<(), Lost> {
        self.end_started_for(claim.record()).await?;
        for _ in 0..TRIES {
            let epoch = match self.next_owners(claim.record(), Owner::New).await? {
                NextOwner::Moves(epoch, _) => epoch,
                NextOwner::Stays(why) => return self.refuse(claim, why).await,
            };
            let started = match self.start(claim.record(), epoch).await {
                Ok(started) => started,
                Err(NotStarted::Failed(why) | NotStarted::NoRoom(why)) => {
                    // What could not be ended where it failed: once this is over, nothing looks for it.
                    self.end_started_for(claim.record()).await?;
                    let back = self.variables(claim.record(), Turn::WentBack).await?;
                    return claim.commit(PromotionEvent::WentBack(why), back).await;
                }
                Err(NotStarted::Lost(e)) => return Err(e),
            };
            crash::after("promotion", "started");
            match self.move_to(claim, started, epoch).await {
                Ok(()) => return Ok(()),
                Err(e) => {
                    self.end_started_for(claim.record()).await?;
                    if !matches!(e, Lost::Raced) {
                        return Err(e);
                    }
                }
            }
        }
        let detail = "the owners changed each time an allocation was ready for the next one";
        self.refuse(claim, Failure::new("the owners changed meanwhile", detail)).await
    }

    /// An allocation of what is promoted, unless that has no process.
    async fn start(&self, p: &Promotion, epoch: Epoch) -> Result<Option<Allocation>, NotStarted> {
        if self.starts.contract(&p.environment, &p.deployment).await?.is_static {
            return Ok(None);
        }
        self.starts.start_ahead(&wanted(p, epoch), &self.allocations).await.map(Some)
    }

    async fn move_to(
        &self,
        claim: &mut PromotionClaim,
        started: Option<Allocation>,
        epoch: Epoch,
    ) -> Result<(), Lost> {
        let _owners = self.owners.change().await;
        let txn = match self.next_owners(claim.record(), Owner::New).await? {
            NextOwner::Moves(next, txn) if next == epoch => txn,
            _ => return Err(Lost::Raced),
        };
        let txn = match &started {
            Some(a) => txn.exists(key::allocation(&a.environment, &a.id)),
            None => txn,
        };
        let event = PromotionEvent::Moved { epoch, allocation: started.map(|a| a.id) };
        let txn = txn.and(self.variables(claim.record(), Turn::Moved).await?);
        claim.commit(event, txn).await
    }

    /// Waits until this edge routes to an allocation of the new epoch; starts one if the one that was
    /// ready is gone. If none can be had, the owner goes back.
    async fn prove(&self, claim: &mut PromotionClaim) -> Result<(), Lost> {
        let p = claim.record().clone();
        let started = self.node.clock.now();
        let mut asked = false;
        let why = loop {
            let view = self.node.view(&p.environment);
            let limit =
                view.as_ref().map_or(TO_PROVE, |v| TO_PROVE + v.contract.wake.start_timeout);
            if let Some(view) = &view
                && Some(view.owner.epoch) >= p.epoch
            {
                if Some(view.owner.epoch) > p.epoch {
                    // A later promotion or deployment moved it on: that one decides now.
                    let detail = format!("the owner is at epoch {} already", view.owner.epoch);
                    let why = Failure::new("the owner moved on", detail);
                    let over = self.variables(&p, Turn::Over).await?;
                    return claim.commit(PromotionEvent::Refused(why), over).await;
                }
                if !view.ready.is_empty() || view.contract.is_static {
                    let over = self.variables(&p, Turn::Over).await?;
                    return claim.commit(PromotionEvent::Proved, over).await;
                }
                let current = view.operation.as_ref().filter(|o| Some(o.epoch) == p.epoch);
                if asked && let Some(why) = current.and_then(|o| o.failure.clone()) {
                    break why;
                }
                if !asked {
                    asked = true;
                    self.wakes.wake(&p.environment).await;
                }
            }
            if self.node.clock.now().since(started) >= limit {
                let detail =
                    format!("no allocation of epoch {:?} answered within {limit:?}", p.epoch);
                break Failure::new("it did not become ready", detail);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.go_back(claim, why).await
    }

    /// The owner from before, under a still later epoch: an epoch never comes back.
    async fn go_back(&self, claim: &mut PromotionClaim, why: Failure) -> Result<(), Lost> {
        for _ in 0..TRIES {
            let _owners = self.owners.change().await;
            let txn = match self.next_owners(claim.record(), Owner::Before).await? {
                NextOwner::Moves(_, txn) => txn,
                NextOwner::Stays(_) => {
                    let over = self.variables(claim.record(), Turn::Over).await?;
                    return claim.commit(PromotionEvent::Refused(why), over).await;
                }
            };
            let txn = txn.and(self.variables(claim.record(), Turn::WentBack).await?);
            match claim.commit(PromotionEvent::WentBack(why.clone()), txn).await {
                Err(Lost::Raced) => {}
                over => return over,
            }
        }
        Err(Lost::Raced)
    }

    /// How the owner moves, as the store is now.
    async fn next_owners(&self, p: &Promotion, to: Owner) -> Result<NextOwner, ReadError> {
        let config = self.node.config.load().clone();
        let hosts = config.apps.get(p.environment.app()).map(|a| a.hosts_of(&p.environment));
        let Some(hosts) = hosts.filter(|h| !h.is_empty()) else {
            let detail = format!("the configuration gives {} no host any more", p.environment);
            return Ok(NextOwner::stays("it has no host", detail));
        };
        let now = self.node.newest_owner(&p.environment).await?;
        let expected = match to {
            Owner::New => p.from.as_ref().map(|f| f.epoch),
            Owner::Before => p.epoch,
        };
        if now.as_ref().map(|o| o.epoch) != expected {
            let found = now.as_ref().map_or("none".into(), |o| format!("epoch {}", o.epoch));
            let detail = format!(
                "the owner was read at epoch {}, and is now {found}: another change was first",
                expected.map_or("none".into(), |e| e.to_string()),
            );
            return Ok(NextOwner::stays("another change of the owner was first", detail));
        }
        let wanted = match (to, &p.from) {
            (Owner::New, _) => p.deployment.clone(),
            (Owner::Before, Some(from)) => from.deployment.clone(),
            (Owner::Before, None) => {
                return Ok(NextOwner::stays("there is nothing to go back to", "no owner before"));
            }
        };
        let at = key::deployment(&p.environment, &wanted);
        let Some(found) = self.node.read::<Deployment>(&at).await? else {
            return Ok(NextOwner::stays("the deployment is gone", format!("no record {at}")));
        };
        let taken = self.owners.seen(&p.environment, &hosts).await;
        let (epoch, txn) = match taken.and_then(|seen| seen.take(&found.record)) {
            Ok(take) => take,
            Err(TakeError::Read(e)) => return Err(e),
            Err(taken) => {
                return Ok(NextOwner::stays("a host is another's", taken.to_string()));
            }
        };
        let txn = txn.and(found.unchanged());
        let mut txn = txn.put(&at, Deployment { replaced: None, ..found.record }.encode());
        if let Some(now) = now.filter(|o| o.deployment != wanted) {
            txn = txn.and(self.owners.replaced(&p.environment, &now.deployment).await?);
        }
        Ok(NextOwner::Moves(epoch, txn))
    }

    /// Allocations that were started for this promotion and never got an owner.
    async fn end_started_for(&self, p: &Promotion) -> Result<(), Lost> {
        for found in self.node.all::<Allocation>(&key::allocations(&p.environment)).await? {
            if found.record.operation == p.id {
                let grace = self.node.stop_timeout(&found.record);
                self.allocations.end(&found.record, grace, Txn::new()).await?;
            }
        }
        Ok(())
    }
}

/// What is started for a promotion, under the epoch after the one that it was decided on.
fn wanted(p: &Promotion, epoch: Epoch) -> StartRequest {
    StartRequest {
        environment: p.environment.clone(),
        deployment: p.deployment.clone(),
        digest: p.digest,
        epoch,
        operation: p.id.clone(),
    }
}

fn refusal(p: &Promotion, policy: &Policy, missing: &[String]) -> String {
    let (app, name) = (p.source_environment.app(), p.source_environment.name());
    let mut out = format!(
        "{} of {} does not satisfy the promotion policy of {app}: {}",
        p.digest,
        p.source_environment,
        missing.join("; ")
    );
    if !policy.checks.is_empty() {
        out.push_str(&format!(
            "; record a check with `vango-edge evidence {app} {name} --check NAME=passed`"
        ));
    }
    out
}
