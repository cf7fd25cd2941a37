//! What was decided at an operator's command, on record with what it changes: a row of the audit in the same
//! transaction. The audit is in another store, where it is kept apart from shared truth, so the row is brought
//! there afterwards, and taken off here once it is there.
//!
//! Safe to kill anywhere: the row's place in the audit is that of its record, so that bringing it twice is bringing
//! it once; what an earlier process left is brought at the start.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::crash;
use crate::id::Environment;
use crate::node::{Node, ReadError};
use crate::record::ledger::AuditEvidence;
use crate::record::{Record, key};
use crate::store::{StoreError, Txn};

/// How often it is looked whether something could not be brought before.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Keeps a row in the audit at a place, once.
pub type Keep =
    Box<dyn Fn(String, AuditEvidence) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// Brings decisions to the audit.
pub struct Decisions {
    node: Node,
    keep: Keep,
}

impl Decisions {
    /// To the audit that `keep` writes.
    pub fn new(node: Node, keep: Keep) -> Arc<Self> {
        Arc::new(Self { node, keep })
    }

    /// `txn`, and on record with it that `decision` was taken about `environment`: both, or neither.
    pub(super) fn with(
        &self,
        txn: Txn,
        environment: &Environment,
        decision: &str,
        why: &str,
    ) -> Txn {
        let now = self.node.clock.wall();
        let row = AuditEvidence::of_environment(environment, now, decision, why);
        txn.put(key::decision(now, self.node.entropy.next_u64()), row.encode())
    }

    /// Brings what is on record. What cannot be brought now is brought later.
    pub(super) async fn bring(&self) {
        if let Err(e) = self.bring_all().await {
            log::warn!("what was decided is not in the audit yet: {e}");
        }
    }

    async fn bring_all(&self) -> Result<(), ReadError> {
        for found in self.node.readable::<AuditEvidence>(key::DECISIONS).await? {
            let place = found.at.strip_prefix(key::DECISIONS).unwrap_or(&found.at).to_owned();
            crash::before("audit", "kept");
            (self.keep)(place, found.record.clone()).await?;
            crash::after("audit", "kept");
            // Another look may have been quicker.
            self.node.commit_if(found.unchanged().delete(&found.at)).await?;
        }
        Ok(())
    }

    /// Brings what could not be brought before, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.bring().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
