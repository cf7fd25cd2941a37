//! Promotions, and the evidence that they are judged by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{AllocationId, DeploymentId, Digest, Environment, Epoch, OperationId};

use super::{Failure, Record};

/// Where a promotion is. Exits of each state: `requested → policy_check`,
/// `policy_check → releasing | route_cas | failed`, `releasing → route_cas | release_lost | failed`,
/// `release_lost → failed`, `route_cas → edge_propagating | rolled_back | failed`,
/// `edge_propagating → healthy | rolled_back | failed`. The last three are terminal. An executor that
/// is lost leaves the state as it is, for the next one to go on from; but what a release command did whose
/// executor was lost cannot be told, so that it is never run again by itself: `releasing → release_lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum PromotionState {
    /// Recorded; maybe no executor has taken it up yet.
    Requested,
    /// The evidence is being judged.
    PolicyCheck,
    /// The artifact's release command runs, or did: recorded before it does anything.
    Releasing,
    /// Its executor was lost while the release command ran: what that did is not known.
    ReleaseLost,
    /// An allocation of the next epoch is being started; the owner moves once it is ready.
    RouteCas,
    /// The owner has moved; the edges are taking it up.
    EdgePropagating,
    /// Terminal: an allocation of the new epoch answers.
    Healthy,
    /// Terminal: it could not become healthy; what served before serves.
    RolledBack,
    /// Terminal: refused, or overtaken; nothing was changed.
    Failed,
}

impl PromotionState {
    /// Not terminal.
    pub fn in_progress(self) -> bool {
        !matches!(self, Self::Healthy | Self::RolledBack | Self::Failed)
    }
    /// The platform's own word.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Why an owner is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
#[serde(rename_all = "kebab-case")]
pub enum PromotionKind {
    /// To an artifact that was validated; the policy counts.
    Promote,
    /// To one that owned the routes before.
    Rollback,
    /// To the next artifact that was deployed.
    Redeploy,
    /// To the same artifact with other variables.
    Configure,
}

impl PromotionKind {
    /// The word shown to people.
    pub fn name(self) -> &'static str {
        self.into()
    }
    /// Whether the artifact's release command is run for it. What served before was released then, and other
    /// variables are no other artifact.
    pub fn releases(self) -> bool {
        matches!(self, Self::Promote | Self::Redeploy)
    }
}

/// An owner, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSeen {
    pub deployment: DeploymentId,
    pub digest: Digest,
    /// Its epoch.
    pub epoch: Epoch,
}

/// One move of an environment's owner to another artifact. Stored under the environment's key, so that
/// there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    pub id: OperationId,
    pub environment: Environment,
    pub kind: PromotionKind,
    /// The environment of the deployment whose evidence counts.
    pub source_environment: Environment,
    /// That deployment.
    pub source: DeploymentId,
    /// The deployment that is to own the routes, of `environment`.
    pub deployment: DeploymentId,
    /// Its artifact, the same as the source's.
    pub digest: Digest,
    /// The owner that it was decided on; `None` when the routes had no owner.
    pub from: Option<OwnerSeen>,
    pub state: PromotionState,
    /// How many times it was claimed; 0 before the first.
    pub attempt: u32,
    /// When it was asked for.
    pub requested: Wall,
    /// When it last changed.
    pub changed: Wall,
    /// The allocation that is to prove it.
    pub allocation: Option<AllocationId>,
    /// The epoch under which the owner moved.
    pub epoch: Option<Epoch>,
    /// Why it failed or was rolled back.
    pub failure: Option<Failure>,
    /// The in-toto statement of what was verified, once it was.
    pub statement: Option<String>,
}
impl Record for Promotion {
    const KIND: &'static str = "promotion";
    /// 2 added the states `releasing` and `release_lost` and the kind `configure`.
    const VERSION: u32 = 2;
}

/// A named check of a deployment, which the edge records and does not make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCheck {
    pub passed: bool,
    /// What was said about it.
    pub note: String,
    pub at: Wall,
}

/// What is known of a deployment's behaviour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// In which environment it served.
    pub environment: Environment,
    pub digest: Digest,
    /// Requests that were answered with it.
    pub requests: u64,
    /// Those among them that were answered 5xx.
    pub errors: u64,
    /// Numbers of the batches that were added last, so that one whose write had no clear outcome is not
    /// added again. Records of earlier builds have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<u64>,
    /// Named checks; the last word of each counts.
    pub checks: BTreeMap<String, NamedCheck>,
    /// When it last changed.
    pub changed: Wall,
}
impl Record for Evidence {
    const KIND: &'static str = "evidence";
}
