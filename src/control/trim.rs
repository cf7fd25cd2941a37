//! Takes off the store what has been kept long enough.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Wall;
use crate::store::record::key;
use crate::store::{StoreError, TXN_OPS, Txn};

use super::{Control, plan};

/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Entries asked for at a time.
const PAGE: usize = 1000;

impl Control {
    /// Trims the history of operations for as long as the process runs.
    pub async fn trim(self: &Arc<Self>) {
        loop {
            match self.trim_history().await {
                Ok(0) => {}
                Ok(n) => log::info!("{n} old operations were taken off the history"),
                Err(e) => log::warn!("the history of operations was not trimmed: {e}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn trim_history(&self) -> Result<usize, StoreError> {
        let operations = self.trim_log(key::HISTORY, key::history_from).await?;
        Ok(operations + self.trim_log(key::PROMOTED, key::promoted_from).await?)
    }

    async fn trim_log(&self, log: &str, from: fn(Wall) -> String) -> Result<usize, StoreError> {
        let mut keys = Vec::new();
        loop {
            let after = keys.last().map(String::as_str);
            let page = self.store.list(log, after, PAGE).await?;
            keys.extend(page.entries.into_iter().map(|(key, _)| key));
            if !page.more {
                break;
            }
        }
        let expired = &keys[..plan::expired(&keys, from, self.clock.wall())];
        for some in expired.chunks(TXN_OPS) {
            self.store.txn(some.iter().fold(Txn::new(), |txn, key| txn.delete(key))).await?;
        }
        Ok(expired.len())
    }
}
