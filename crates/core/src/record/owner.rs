//! Who owns a host, what was deployed, when a preview was last used, and what is remembered of hosts that
//! have no owner any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{DeploymentId, Digest, Environment, Epoch, Host};

use super::Record;

/// Who owns a host and path prefix, and under which epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteOwner {
    pub host: Host,
    /// The path prefix; `/` is the only one given out today.
    pub path: String,
    /// The environment that answers.
    pub environment: Environment,
    /// Its current deployment.
    pub deployment: DeploymentId,
    pub digest: Digest,
    /// Only grows; see [`Epoch`].
    pub epoch: Epoch,
}
impl Record for RouteOwner {
    const KIND: &'static str = "route-owner";
}

/// An artifact that was given to an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    pub id: DeploymentId,
    /// The environment it was made for.
    pub environment: Environment,
    /// The artifact: an OCI manifest digest.
    pub digest: Digest,
    /// Text of the artifact's `vango-edge.toml`, as verified when the deployment was made.
    pub contract: String,
    pub created: Wall,
    /// Files in the artifact.
    pub files: u64,
    /// Bytes in those files.
    pub bytes: u64,
    /// The index of its static files, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<Digest>,
    /// When another deployment took the environment's routes over; `None` for the one that owns them
    /// and for one that never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Wall>,
    /// The deployment that was promoted to this one: the same artifact in another environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<DeploymentId>,
    /// The hash in the artifact's `state.schema_file`, where its contract names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Digest>,
}
impl Record for Deployment {
    const KIND: &'static str = "deployment";
}

/// When a preview last had a request or an open socket, as far as it was written down. A deploy is on
/// record with its deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// By the wall clock.
    pub at: Wall,
}
impl Record for Used {
    const KIND: &'static str = "used";
}

/// Hosts that were taken off their environments, with the owner each had last: so that its next
/// owner has a later epoch, and an environment that gets its hosts back serves what it
/// served. At most [`Retired::MOST`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retired {
    /// The last owner of each.
    pub hosts: BTreeMap<Host, RouteOwner>,
    /// No host that is forgotten here had an epoch above this one.
    pub floor: Epoch,
}
impl Record for Retired {
    const KIND: &'static str = "retired";
}

impl Retired {
    /// Hosts remembered one by one; the one with the lowest epoch is forgotten first.
    pub const MOST: usize = 512;

    /// Remembers the last owner of a host.
    pub fn add(&mut self, owner: RouteOwner) {
        self.hosts.insert(owner.host.clone(), owner);
        while self.hosts.len() > Self::MOST
            && let Some(oldest) = self.hosts.values().min_by_key(|o| o.epoch).cloned()
        {
            self.floor = self.floor.max(oldest.epoch);
            self.hosts.remove(&oldest.host);
        }
    }

    /// The epoch that a new owner of `host` has to be above.
    pub fn last_epoch(&self, host: &Host) -> Epoch {
        self.hosts.get(host).map_or(self.floor, |o| o.epoch)
    }
}
