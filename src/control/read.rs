//! What the store holds now, for those who decide on it.

use std::collections::BTreeSet;

use crate::id::{Environment, Host};
use crate::store::record::{Record, RecordError, RouteOwner, key};
use crate::store::{Entry, StoreError};

use super::Control;

/// Entries asked for at a time.
const PAGE: usize = 1000;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store could not be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A record could not be read.
    #[error("{0}")]
    Record(#[from] RecordError),
}

impl Control {
    /// Everything under `prefix`.
    pub(super) async fn listed(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
        let mut out: Vec<(String, Entry)> = Vec::new();
        loop {
            let after = out.last().map(|(key, _)| key.clone());
            let page = self.store.list(prefix, after.as_deref(), PAGE).await?;
            out.extend(page.entries);
            if !page.more {
                return Ok(out);
            }
        }
    }

    /// The owners of the environment's hosts, with their revisions: of those that routing knows and of
    /// those that the configuration names.
    pub(super) async fn owners_of(
        &self,
        environment: &Environment,
    ) -> Result<Vec<(RouteOwner, u64)>, ReadError> {
        let mut hosts: BTreeSet<Host> = BTreeSet::new();
        if let Some(view) = self.snapshots.load().environment(environment) {
            hosts.extend(view.hosts.iter().cloned());
        }
        if let Some(app) = self.config.load().apps.get(environment.app()) {
            hosts.extend(app.hosts_of(environment));
        }
        let mut out = Vec::new();
        for host in hosts {
            let Some(entry) = self.store.get(&key::owner(&host, "/")).await? else { continue };
            let owner = RouteOwner::decode(&entry.value)?;
            if owner.environment == *environment {
                out.push((owner, entry.mod_revision));
            }
        }
        Ok(out)
    }
}
