//! Carries a promotion through its states. Every transaction names the promotion's and the claim's
//! revision: an executor that was paused past its lease changes nothing more.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::config::Promotion as Policy;
use crate::crash;
use crate::id::{Environment, Epoch};
use crate::store::record::{
    Allocation, Deployment, Evidence, Executor, Failure, Promotion, PromotionKind, PromotionState,
    Record, RouteOwner, key,
};
use crate::store::{LeaseId, StoreError, Txn};
use crate::wake::ahead::{AheadError, Wanted};
use crate::wake::worker::{AbortOnDrop, CLAIM_TTL, renew};

use super::super::{Control, plan};
use super::judge;
use super::machine::{PromotionEvent, advance};

/// How often promotions without an executor are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often this edge's routing is looked at while it takes the new owner up.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long the new owner's allocation may take to answer once the owner has moved, besides the
/// contract's own start timeout.
const TO_PROVE: Duration = Duration::from_secs(10);

/// Tries when owners change while an allocation is started for the next one.
const TRIES: u32 = 3;

/// Why an executor stopped without a terminal state: another executor has the promotion, or the store is
/// away. Either way it is claimable.
type Lost = anyhow::Error;

/// A promotion in hand: what every further transaction is conditioned on.
struct Claim {
    promotion: Promotion,
    revision: u64,
    executor_revision: u64,
    lease: LeaseId,
}

fn failure(safe: impl Into<String>, detail: impl Into<String>) -> Failure {
    Failure { safe: safe.into(), detail: detail.into(), artifact: false }
}

impl Control {
    /// Takes up promotions that no executor has, for as long as the process runs. The first look lets
    /// go of what an earlier process of this node had claimed: the state directory's lock says that
    /// it is gone.
    pub async fn carry_promotions(self: &Arc<Self>) {
        let mut first = true;
        loop {
            if let Err(e) = self.look_for_promotions(first).await {
                log::warn!("promotions cannot be looked for: {e}");
            } else {
                first = false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look_for_promotions(self: &Arc<Self>, first: bool) -> Result<(), StoreError> {
        if first {
            for (at, entry) in self.listed(key::PROMOTERS).await? {
                if Executor::decode(&entry.value).is_ok_and(|e| e.node == self.worker.node) {
                    let txn = Txn::new().unchanged(&at, entry.mod_revision).delete(&at);
                    self.store.txn(txn).await?;
                }
            }
        }
        for (at, entry) in self.listed(key::PROMOTIONS).await? {
            match Promotion::decode(&entry.value) {
                Ok(p) if p.state.in_progress() => self.consider_promotion(&p.environment),
                Ok(_) => {}
                Err(e) => log::error!("{at}: {e}"),
            }
        }
        Ok(())
    }

    /// Takes the environment's promotion up if this process is not at it already. Returns at once.
    pub(in crate::control) fn consider_promotion(self: &Arc<Self>, environment: &Environment) {
        let mut promoting = self.promoting.lock().unwrap_or_else(PoisonError::into_inner);
        if !promoting.insert(environment.clone()) {
            return;
        }
        drop(promoting);
        let (control, environment) = (Arc::clone(self), environment.clone());
        tokio::spawn(async move {
            if let Err(e) = control.execute_promotion(&environment).await {
                log::debug!("{environment}: promotion let go of: {e:#}");
            }
            let mut promoting = control.promoting.lock().unwrap_or_else(PoisonError::into_inner);
            promoting.remove(&environment);
        });
    }

    async fn execute_promotion(self: &Arc<Self>, environment: &Environment) -> Result<(), Lost> {
        let Some(mut claim) = self.claim_promotion(environment).await? else { return Ok(()) };
        // Dropped, and so ended, with this function.
        let renewing = AbortOnDrop(tokio::spawn(renew(Arc::clone(&self.store), claim.lease)));
        let outcome = self.carry(&mut claim).await;
        drop(renewing);
        let _ = self.store.lease_revoke(claim.lease).await;
        outcome
    }

    async fn claim_promotion(&self, environment: &Environment) -> Result<Option<Claim>, Lost> {
        let at = key::promotion(environment);
        let Some(entry) = self.store.get(&at).await? else { return Ok(None) };
        let promotion = Promotion::decode(&entry.value)?;
        if !promotion.state.in_progress() {
            return Ok(None);
        }
        let next = advance(&promotion, PromotionEvent::Claimed, self.clock.wall())?;
        let lease = self.store.lease_grant(CLAIM_TTL).await?;
        let executor_key = key::promoter(environment);
        let executor = Executor {
            node: self.worker.node.clone(),
            operation: next.id.clone(),
            attempt: next.attempt,
        };
        let txn = Txn::new()
            .absent(&executor_key)
            .unchanged(&at, entry.mod_revision)
            .put_leased(&executor_key, executor.encode(), lease)
            .put(&at, next.encode());
        crash::before("promotion", next.state.name());
        match self.store.txn(txn.synced()).await {
            Ok(revision) => {
                crash::after("promotion", next.state.name());
                Ok(Some(Claim { promotion: next, revision, executor_revision: revision, lease }))
            }
            Err(e) => {
                let _ = self.store.lease_revoke(lease).await;
                Err(e.into())
            }
        }
    }

    /// Until a terminal state. Ends: each turn changes the state or is an error.
    async fn carry(self: &Arc<Self>, claim: &mut Claim) -> Result<(), Lost> {
        while claim.promotion.state.in_progress() {
            match claim.promotion.state {
                PromotionState::PolicyCheck => self.check_policy(claim).await?,
                PromotionState::RouteCas => self.move_owner(claim).await?,
                _ => self.prove(claim).await?,
            }
        }
        let p = &claim.promotion;
        let why = p.failure.as_ref().map_or_else(String::new, |f| format!(": {}", f.detail));
        let (kind, state) = (p.kind.name(), p.state.name());
        log::info!("{}: {kind} {} to {} is {state}{why}", p.environment, p.id, p.digest);
        Ok(())
    }

    /// One transition, in one synced transaction with whatever else `with` adds to it.
    async fn step(
        &self,
        claim: &mut Claim,
        event: PromotionEvent,
        with: impl FnOnce(Txn) -> Txn,
    ) -> Result<(), StepError> {
        let next = advance(&claim.promotion, event, self.clock.wall()).map_err(Lost::from)?;
        let at = key::promotion(&next.environment);
        let mut txn = Txn::new()
            .unchanged(&at, claim.revision)
            .unchanged(key::promoter(&next.environment), claim.executor_revision)
            .put(&at, next.encode());
        if !next.state.in_progress() {
            txn = txn.put(key::promoted(next.requested, &next.id), next.encode());
        }
        crash::before("promotion", next.state.name());
        match self.store.txn(with(txn).synced()).await {
            Ok(revision) => {
                crash::after("promotion", next.state.name());
                claim.revision = revision;
                claim.promotion = next;
                Ok(())
            }
            Err(StoreError::Conflict { key }) if !key.starts_with("pr") => Err(StepError::Conflict),
            Err(e) => Err(StepError::Lost(e.into())),
        }
    }

    async fn refuse(&self, claim: &mut Claim, why: Failure) -> Result<(), Lost> {
        let made = self.made_for(&claim.promotion).await?;
        // A copy that was made for this promotion goes with it.
        let with = |txn: Txn| made.iter().fold(txn, |txn, at| txn.delete(at));
        Ok(self.step(claim, PromotionEvent::Refused(why), with).await?)
    }

    /// The deployment that only this promotion has a use for.
    async fn made_for(&self, p: &Promotion) -> Result<Option<String>, Lost> {
        let at = key::deployment(&p.environment, &p.deployment);
        let Some(entry) = self.store.get(&at).await? else { return Ok(None) };
        let deployment = Deployment::decode(&entry.value)?;
        let copied = deployment.promoted_from.is_some() && deployment.replaced.is_none();
        Ok((copied && p.kind == PromotionKind::Promote).then_some(at))
    }

    async fn check_policy(&self, claim: &mut Claim) -> Result<(), Lost> {
        let p = claim.promotion.clone();
        let config = self.config.load().clone();
        let policy = config.apps.get(p.environment.app()).map(|a| a.promotion.clone());
        let Some(policy) = policy else {
            let detail = format!("this edge has no app {} any more", p.environment.app());
            return self.refuse(claim, failure("the app is gone", detail)).await;
        };
        if p.kind != PromotionKind::Promote {
            let event = PromotionEvent::PolicyMet { statement: None };
            return Ok(self.step(claim, event, |txn| txn).await?);
        }
        // What was counted since the last time counts.
        self.flush_evidence().await;
        let at = key::evidence(&p.source_environment, &p.source);
        let evidence = self.store.get(&at).await?;
        let evidence = evidence.map(|e| Evidence::decode(&e.value)).transpose()?;
        let missing = judge::missing(&policy, evidence.as_ref());
        if !missing.is_empty() {
            let detail = refusal(&p, &policy, &missing);
            return self
                .refuse(claim, failure("the evidence does not satisfy the policy", detail))
                .await;
        }
        let about = judge::Subject {
            verifier: &self.worker.node,
            app: p.environment.app(),
            digest: &p.digest,
            promotion: Some(&p),
        };
        let now = self.clock.wall();
        let statement = judge::statement(&about, &policy, evidence.as_ref(), now);
        let event = PromotionEvent::PolicyMet { statement: Some(statement) };
        Ok(self.step(claim, event, |txn| txn).await?)
    }

    /// Starts an allocation of the next epoch, then moves the owner, if it still is the one that was
    /// read.
    async fn move_owner(self: &Arc<Self>, claim: &mut Claim) -> Result<(), Lost> {
        self.end_started_for(&claim.promotion).await?;
        let environment = claim.promotion.environment.clone();
        for _ in 0..TRIES {
            let seen = match self.next_owners(&claim.promotion, Owner::New).await? {
                Ok(seen) => seen,
                Err(why) => return self.refuse(claim, why).await,
            };
            let p = &claim.promotion;
            let wanted = Wanted {
                environment: environment.clone(),
                deployment: p.deployment.clone(),
                digest: p.digest,
                epoch: seen.epoch,
                operation: p.id.clone(),
            };
            let allocation = match self.worker.start_ahead(&wanted).await {
                Ok(allocation) => allocation,
                Err(AheadError::Start(why)) => {
                    return Ok(self.step(claim, PromotionEvent::WentBack(why), |txn| txn).await?);
                }
                Err(e) => return Err(e.into()),
            };
            crash::after("promotion", "started");
            match self.move_to(claim, &allocation, seen.epoch).await {
                Ok(()) => return Ok(()),
                Err(StepError::Conflict) => self.end_started_for(&claim.promotion).await?,
                Err(StepError::Lost(e)) => {
                    self.end_started_for(&claim.promotion).await?;
                    return Err(e);
                }
            }
        }
        let detail = "the owners changed each time an allocation was ready for the next one";
        self.refuse(claim, failure("the owners changed meanwhile", detail)).await
    }

    async fn move_to(
        &self,
        claim: &mut Claim,
        allocation: &Allocation,
        epoch: Epoch,
    ) -> Result<(), StepError> {
        let _owners = self.changing_owners.lock().await;
        let seen = match self.next_owners(&claim.promotion, Owner::New).await? {
            Ok(seen) if seen.epoch == epoch => seen,
            _ => return Err(StepError::Conflict),
        };
        let at = key::allocation(&allocation.environment, &allocation.id);
        let id = allocation.id.clone();
        let event = PromotionEvent::Moved { epoch, allocation: id };
        self.step(claim, event, |txn| seen.write(txn.exists(at))).await
    }

    /// Waits until this edge routes to an allocation of the new epoch; starts one if the one that was
    /// ready is gone. If none can be had, the owner goes back.
    async fn prove(self: &Arc<Self>, claim: &mut Claim) -> Result<(), Lost> {
        let p = claim.promotion.clone();
        let started = self.clock.now();
        let mut asked = false;
        let why = loop {
            let view = self.snapshots.load().environment(&p.environment).cloned();
            let limit =
                view.as_ref().map_or(TO_PROVE, |v| TO_PROVE + v.contract.wake.start_timeout);
            if let Some(view) = &view
                && Some(view.owner.epoch) >= p.epoch
            {
                if Some(view.owner.epoch) > p.epoch {
                    // A later promotion or deployment moved it on: that one decides now.
                    let detail = format!("the owner is at epoch {} already", view.owner.epoch);
                    let why = failure("the owner moved on", detail);
                    return Ok(self.step(claim, PromotionEvent::Refused(why), |t| t).await?);
                }
                if !view.ready.is_empty() {
                    return Ok(self.step(claim, PromotionEvent::Proved, |txn| txn).await?);
                }
                let current = view.operation.as_ref().filter(|o| Some(o.epoch) == p.epoch);
                match current {
                    Some(o) if o.failure.is_some() && asked => {
                        let why = o.failure.clone();
                        break why.unwrap_or_else(|| failure("it did not start", "no reason"));
                    }
                    _ if !asked => {
                        asked = true;
                        self.worker.wake(&p.environment).await;
                    }
                    _ => {}
                }
            }
            if self.clock.now().since(started) >= limit {
                let detail =
                    format!("no allocation of epoch {:?} answered within {limit:?}", p.epoch);
                break failure("it did not become ready", detail);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.go_back(claim, why).await
    }

    /// The owner from before, under a still later epoch: an epoch never comes back.
    async fn go_back(&self, claim: &mut Claim, why: Failure) -> Result<(), Lost> {
        for _ in 0..TRIES {
            let _owners = self.changing_owners.lock().await;
            let seen = match self.next_owners(&claim.promotion, Owner::Before).await? {
                Ok(seen) => seen,
                Err(_) => return Ok(self.step(claim, PromotionEvent::Refused(why), |t| t).await?),
            };
            let event = PromotionEvent::WentBack(why.clone());
            match self.step(claim, event, |txn| seen.write(txn)).await {
                Err(StepError::Conflict) => {}
                Err(StepError::Lost(e)) => return Err(e),
                Ok(()) => return Ok(()),
            }
        }
        Err(anyhow::anyhow!("the owners kept changing"))
    }

    /// Allocations that were started for this promotion and never got an owner.
    async fn end_started_for(&self, p: &Promotion) -> Result<(), Lost> {
        for (at, entry) in self.listed(&key::allocations(&p.environment)).await? {
            let record = Allocation::decode(&entry.value)?;
            if record.operation == p.id {
                let grace = self.stop_timeout(&p.environment);
                self.worker.end_recorded(&record, grace).await;
                self.store.txn(Txn::new().delete(&at)).await?;
            }
        }
        Ok(())
    }

    /// The transaction that moves `p`'s owner, as the store is now.
    async fn next_owners(
        &self,
        p: &Promotion,
        to: Owner,
    ) -> Result<Result<NextOwners, Failure>, Lost> {
        let config = self.config.load().clone();
        let hosts = config.apps.get(p.environment.app()).map(|a| a.hosts_of(&p.environment));
        let Some(hosts) = hosts.filter(|h| !h.is_empty()) else {
            let detail = format!("the configuration gives {} no host any more", p.environment);
            return Ok(Err(failure("it has no host", detail)));
        };
        let owners = self.owners_of(&p.environment).await?;
        let now = owners.iter().map(|(o, _)| o).max_by_key(|o| o.epoch);
        let expected = match to {
            Owner::New => p.from.as_ref().map(|f| f.epoch),
            Owner::Before => p.epoch,
        };
        if now.map(|o| o.epoch) != expected {
            let found = now.map_or("none".into(), |o| format!("epoch {}", o.epoch));
            let detail = format!(
                "the owner was read at epoch {}, and is now {found}: another change was first",
                expected.map_or("none".into(), |e| e.to_string()),
            );
            return Ok(Err(failure("another change of the owner was first", detail)));
        }
        let wanted = match (to, &p.from) {
            (Owner::New, _) => p.deployment.clone(),
            (Owner::Before, Some(from)) => from.deployment.clone(),
            (Owner::Before, None) => {
                return Ok(Err(failure("there is nothing to go back to", "no owner before")));
            }
        };
        let at = key::deployment(&p.environment, &wanted);
        let Some(entry) = self.store.get(&at).await? else {
            return Ok(Err(failure("the deployment is gone", format!("no record {at}"))));
        };
        let deployment = Deployment::decode(&entry.value)?;
        let mut seen = std::collections::BTreeMap::new();
        for host in &hosts {
            let entry = self.store.get(&key::owner(host, "/")).await?;
            let owner = entry
                .map(|e| RouteOwner::decode(&e.value).map(|o| (o, e.mod_revision)))
                .transpose()?;
            if let Some((o, _)) = owner.as_ref().filter(|(o, _)| o.environment != p.environment) {
                let detail = format!("{host} is owned by {}", o.environment);
                return Ok(Err(failure("a host is another's", detail)));
            }
            seen.insert(host.clone(), owner);
        }
        let retired = self.retired().await?.0;
        let puts = match plan::take_hosts(&deployment, &hosts, &seen, &retired) {
            Ok(puts) => puts,
            Err((host, owner)) => {
                let detail = format!("{host} is owned by {owner}");
                return Ok(Err(failure("a host is another's", detail)));
            }
        };
        let epoch = puts.first().map_or(Epoch(1), |(o, _)| o.epoch);
        let mut records =
            vec![(at, entry.mod_revision, Deployment { replaced: None, ..deployment })];
        if let Some(now) = now.filter(|o| o.deployment != wanted) {
            let at = key::deployment(&p.environment, &now.deployment);
            if let Some(entry) = self.store.get(&at).await? {
                let before = Deployment::decode(&entry.value)?;
                let replaced = Some(self.clock.wall());
                records.push((at, entry.mod_revision, Deployment { replaced, ..before }));
            }
        }
        Ok(Ok(NextOwners { puts, epoch, records }))
    }
}

/// Which owner is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    New,
    Before,
}

/// Owners and deployments to write, with the revisions they replace.
struct NextOwners {
    puts: Vec<plan::Replacing<RouteOwner>>,
    epoch: Epoch,
    records: Vec<(String, u64, Deployment)>,
}

impl NextOwners {
    fn write(&self, mut txn: Txn) -> Txn {
        for (owner, replaces) in &self.puts {
            let at = key::owner(&owner.host, &owner.path);
            txn = match replaces {
                Some(revision) => txn.unchanged(&at, *revision),
                None => txn.absent(&at),
            };
            txn = txn.put(&at, owner.encode());
        }
        for (at, revision, deployment) in &self.records {
            txn = txn.unchanged(at, *revision).put(at, deployment.encode());
        }
        txn
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// What the step stands on changed; the promotion is still ours.
    #[error("the owners changed")]
    Conflict,
    /// The promotion is not ours any more, or the store is away.
    #[error("{0}")]
    Lost(#[from] Lost),
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
