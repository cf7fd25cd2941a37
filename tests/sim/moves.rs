//! Deployments, promotions and release commands, as shared truth and the machine have them: what each
//! transaction that moves an owner may and may not do.

use std::collections::{BTreeMap, BTreeSet};

use vango_edge::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, OperationId};
use vango_edge::record::{Deployment, Promotion, PromotionState as State, Record, RouteOwner, key};
use vango_edge::runner::{ExitStatus, Program};
use vango_edge::store::{Op, Txn};

use crate::world::{Sim, has_release};

/// A release command that was begun.
struct Release {
    promotion: OperationId,
    deployment: DeploymentId,
    /// That it was told.
    epoch: Epoch,
    /// It was told to end: what it says as it does is not that it did its work.
    asked: bool,
    ended: Option<ExitStatus>,
}

impl Release {
    fn ended_well(&self) -> bool {
        !self.asked && self.ended == Some(ExitStatus::Code(0))
    }
}

/// Records as the last transaction left them.
#[derive(Default)]
pub struct Moves {
    /// By their keys.
    deployments: BTreeMap<String, Deployment>,
    owners: BTreeMap<String, RouteOwner>,
    promotions: BTreeMap<OperationId, Promotion>,
    releases: BTreeMap<AllocationId, Release>,
    /// Artifacts that were uploaded, and whether they are on disk.
    uploaded: BTreeMap<Digest, bool>,
}

impl Moves {
    /// An artifact that is there already is not written again.
    pub fn upload(&mut self, digest: &Digest) {
        self.uploaded.entry(*digest).or_insert(false);
    }

    pub fn unflushed(&self) -> BTreeSet<Digest> {
        self.uploaded.iter().filter(|(_, on_disk)| !**on_disk).map(|(d, _)| *d).collect()
    }

    pub fn flushed(&mut self, written: BTreeSet<Digest>) {
        self.uploaded.extend(written.into_iter().map(|d| (d, true)));
    }

    pub fn promotions(&self) -> impl Iterator<Item = &Promotion> {
        self.promotions.values()
    }

    pub fn in_progress(&self) -> Option<&Promotion> {
        self.promotions.values().find(|p| p.state.in_progress())
    }

    /// The owner of an environment.
    pub fn owner(&self, environment: &Environment) -> Option<&RouteOwner> {
        self.owners.values().find(|o| o.environment == *environment)
    }

    /// Whether `deployment` may have traffic: its release command ended well, if it has one.
    pub fn is_released(&self, deployment: &DeploymentId, digest: &Digest) -> bool {
        let released = |r: &Release| r.deployment == *deployment && r.ended_well();
        !has_release(digest) || self.releases.values().any(released)
    }

    /// The epochs that release commands were told.
    pub fn released_under(&self) -> Vec<Epoch> {
        self.releases.values().map(|r| r.epoch).collect()
    }

    fn release_of(&self, promotion: &OperationId) -> Option<&Release> {
        self.releases.values().find(|r| r.promotion == *promotion)
    }
}

impl Sim {
    /// A release command is about to be run. It is told no promotion: it is of the last one that moves its
    /// environment to its artifact.
    pub fn about_to_release(&self, id: &AllocationId, program: &Program) {
        let environment = &program.environment;
        let mut truth = self.truth();
        let moves = &truth.moves;
        let epoch = program.epoch;
        let of = |p: &&Promotion| p.environment == *environment && p.digest == program.digest;
        let found =
            moves.promotions.values().filter(of).max_by_key(|p| (p.requested, p.id.clone()));
        let Some(p) = found else {
            drop(truth);
            self.broken(format!("the release command {id} of {environment} is of no promotion"))
        };
        let (promotion, deployment, state) = (p.id.clone(), p.deployment.clone(), p.state);
        let again = moves.release_of(&promotion).is_some();
        let release =
            Release { promotion: promotion.clone(), deployment, epoch, asked: false, ended: None };
        truth.moves.releases.insert(id.clone(), release);
        drop(truth);
        self.note(|| format!("the release command of {promotion} runs"));
        self.happened("a release command ran");
        if state != State::Releasing {
            let state = state.name();
            self.broken(format!("the release command of {promotion} runs, which is {state}"));
        }
        if again {
            self.broken(format!("the release command of {promotion} runs again"));
        }
    }

    /// A release command is told to end.
    pub fn told_to_end(&self, id: &AllocationId) {
        self.happened("a release command took too long");
        if let Some(release) = self.truth().moves.releases.get_mut(id) {
            release.asked = true;
        }
    }

    /// A release command ended.
    pub fn released(&self, id: &AllocationId, status: ExitStatus) {
        let mut truth = self.truth();
        let release = truth.moves.releases.get_mut(id).unwrap();
        release.ended = Some(status);
        let promotion = release.promotion.clone();
        drop(truth);
        self.note(|| format!("the release command of {promotion} ends: {status}"));
        if status != ExitStatus::Code(0) {
            self.happened("a release command failed");
        }
    }

    /// A transaction was applied.
    pub fn moved(&self, txn: &Txn) {
        let mut news = News::default();
        for op in &txn.ops {
            match op {
                Op::Put { key: at, value, .. } if at.starts_with(key::DEPLOYMENTS) => {
                    let next = Deployment::decode(value).unwrap();
                    let before = self.truth().moves.deployments.insert(at.clone(), next.clone());
                    if before.is_none() {
                        news.deployments.push(next);
                    }
                }
                Op::Put { key: at, value, .. } if at.starts_with(key::OWNERS) => {
                    let next = RouteOwner::decode(value).unwrap();
                    let before = self.truth().moves.owners.insert(at.clone(), next.clone());
                    self.owner_moved(before.as_ref(), &next);
                    news.owners.push(next);
                }
                Op::Put { key: at, value, .. } if at.starts_with(key::PROMOTIONS) => {
                    news.promotions.push(Promotion::decode(value).unwrap());
                }
                Op::Delete { key: at } => {
                    let moves = &mut self.truth().moves;
                    moves.deployments.remove(at);
                    moves.owners.remove(at);
                }
                Op::Put { .. } => {}
            }
        }
        for deployment in &news.deployments {
            self.deployed(deployment, &news);
        }
        for owner in &news.owners {
            self.owned(owner);
        }
        // Of one environment at once; a host that the configuration took off it may still be an older owner's.
        for (a, b) in news.owners.iter().zip(news.owners.iter().skip(1)) {
            let one = a.environment == b.environment;
            if one && (&a.deployment, a.epoch) != (&b.deployment, b.epoch) {
                self.broken(format!("{} is owned by halves: {a:?} and {b:?}", a.environment));
            }
        }
        self.check_owned();
        for p in &news.promotions {
            self.promoted(p, &news);
        }
    }

    fn owner_moved(&self, before: Option<&RouteOwner>, next: &RouteOwner) {
        match before {
            Some(b) if b.deployment == next.deployment => {}
            Some(b) if b.digest == next.digest => {
                self.happened("the owner moved under the same digest");
            }
            Some(_) => self.happened("the owner moved to another digest"),
            None => {}
        }
    }

    /// A deployment is there for the first time: as a whole, and what it names is on disk.
    fn deployed(&self, deployment: &Deployment, news: &News) {
        let Deployment { id, environment, digest, .. } = deployment;
        self.note(|| format!("{environment} has the deployment {id}"));
        if self.truth().moves.uploaded.get(digest) != Some(&true) {
            self.broken(format!("{id} is recorded, and a power cut takes its artifact"));
        }
        let asked = news.promotions.iter().any(|p| p.deployment == *id);
        let owns = news.owners.iter().any(|o| o.deployment == *id);
        if !asked && !owns {
            self.broken(format!("{id} is recorded, and neither owns a host nor is to"));
        }
    }

    /// A host was given to a deployment.
    fn owned(&self, owner: &RouteOwner) {
        let RouteOwner { host, deployment, digest, .. } = owner;
        if !self.truth().moves.is_released(deployment, digest) {
            self.broken(format!("{host} is given to {deployment}, which was not released"));
        }
    }

    /// No owner is without its deployment.
    fn check_owned(&self) {
        let truth = self.truth();
        let mut wrong = None;
        for owner in truth.moves.owners.values() {
            let RouteOwner { host, environment, deployment, .. } = owner;
            let at = key::deployment(environment, deployment);
            if !truth.moves.deployments.contains_key(&at) {
                wrong = Some(format!("{host} is owned by {deployment}, which is not there"));
            }
        }
        drop(truth);
        if let Some(wrong) = wrong {
            self.broken(wrong);
        }
    }

    /// A promotion goes on.
    fn promoted(&self, next: &Promotion, news: &News) {
        let (id, state) = (&next.id, next.state);
        let mut truth = self.truth();
        let before = truth.moves.promotions.insert(id.clone(), next.clone()).map(|p| p.state);
        let release = truth.moves.release_of(id);
        let (ran, well) = (release.is_some(), release.is_some_and(Release::ended_well));
        let runs = release.is_some_and(|r| r.ended.is_none());
        let started = truth.allocations().any(|a| a.operation == *id);
        drop(truth);
        self.note(|| format!("promotion {id} of {} is {}", next.environment, state.name()));
        match state {
            State::Healthy => self.happened("a promotion moved the owner"),
            State::RolledBack => self.happened("a promotion went back"),
            _ => {}
        }
        if before.is_some_and(|before| !before.in_progress()) {
            self.broken(format!("{id} is over, and is {} now", state.name()));
        }
        let releases = next.kind.releases() && has_release(&next.digest);
        let moves = matches!(state, State::RouteCas | State::EdgePropagating | State::Healthy);
        if releases && moves && !well {
            let state = state.name();
            self.broken(format!("{id} is {state}, and its release command did not end well"));
        }
        let Some(before @ (State::Releasing | State::ReleaseLost)) = before else { return };
        if state != State::Failed {
            return;
        }
        let lost = before == State::ReleaseLost;
        self.happened(if lost {
            "a release command was lost"
        } else if ran {
            "a promotion was refused for its release command"
        } else {
            "a release command could not be run"
        });
        if started || !news.owners.is_empty() {
            self.broken(format!(
                "{id} failed before anything was started, and is not without trace"
            ));
        }
        let said = next.failure.as_ref().map_or("", |f| &*f.safe);
        let expected = match lost {
            true => "the outcome of its release command is unknown",
            false => "its release command failed",
        };
        let said_so = said == expected || !lost && !ran && !said.is_empty();
        if !said_so {
            self.broken(format!("{id} says {said:?}, and {expected}"));
        }
        if !lost && (well || runs) {
            self.broken(format!("{id} says {said:?}, and its release command did not fail"));
        }
    }
}

/// What a transaction put.
#[derive(Default)]
struct News {
    /// Those that were not there before.
    deployments: Vec<Deployment>,
    owners: Vec<RouteOwner>,
    promotions: Vec<Promotion>,
}
