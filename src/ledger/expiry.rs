//! What a start finds, and what retention ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::lifecycle::idempotency;
use crate::record::ledger::{AttemptState, key};
use crate::store::{Pages, StoreError, Txn};

use super::{Ledger, LedgerError, count};

/// How often expired records are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Records that go in one transaction: four keys each, and a transaction takes 128.
const AT_ONCE: usize = 25;

/// What a start found open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Reservations of a process that is gone: released, nothing was sent.
    pub released: usize,
    /// Sent by a process that is gone: unknown.
    pub unknown: usize,
}

impl Ledger {
    /// Looks at what an earlier process of this node left open, before anything is served, and
    /// counts what is kept.
    ///
    /// # Errors
    /// [`LedgerError`] when the store cannot be read or written.
    pub async fn recover(&self) -> Result<Recovered, LedgerError> {
        let mut found = Recovered::default();
        let mut pages = Pages::new(&*self.store, key::OPEN, None);
        while let Some(page) = pages.next().await? {
            for (open, _) in &page.entries {
                let Some(subject) = open.strip_prefix(key::OPEN) else { continue };
                match self.read(subject).await? {
                    Some((record, revision))
                        if record.state.open()
                            && record.node == self.holder.node
                            && record.run != self.holder.run =>
                    {
                        let next = idempotency::recovered(&record, self.clock.wall());
                        let sent = record.state == AttemptState::Forwarded;
                        // The count is not made yet.
                        self.records.fetch_add(u64::from(next.is_none()), Ordering::Relaxed);
                        self.put_back(subject, revision, next, &record, false).await?;
                        *(if sent { &mut found.unknown } else { &mut found.released }) += 1;
                    }
                    Some((record, _)) if record.state.open() => {}
                    _ => {
                        self.commit(Txn::new().delete(open.as_str())).await?;
                    }
                }
            }
        }
        let kept = count(&*self.store, key::EXPIRIES).await?;
        self.records.fetch_add(kept, Ordering::Relaxed);
        Ok(found)
    }

    pub(super) fn forget(&self, n: u64) {
        // Saturating: a count that was made while records came and went is only near.
        let _ = self
            .records
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all.saturating_sub(n)));
    }

    /// Ends what retention ends, for as long as the process runs. Wall time: a clock that jumps
    /// forward ends records early, and is an operator's fault that the edge cannot see.
    pub async fn expire(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.expire_due().await {
                Ok(0) => {}
                Ok(n) => log::debug!("ledger: {n} records were kept long enough"),
                Err(e) => log::warn!("ledger: expired records were not taken away: {e}"),
            }
        }
    }

    /// Takes away what is due now; says how many.
    ///
    /// # Errors
    /// [`LedgerError`] when the store cannot be read or written.
    pub async fn expire_due(&self) -> Result<usize, LedgerError> {
        let until = key::expiry_from(self.clock.wall());
        let mut gone = 0;
        let mut pages = Pages::new(&*self.store, key::EXPIRIES, None);
        while let Some(page) = pages.next().await? {
            let due: Vec<&str> =
                page.entries.iter().map(|(k, _)| k.as_str()).take_while(|k| **k < *until).collect();
            for some in due.chunks(AT_ONCE) {
                gone += self.expire_some(some).await?;
            }
            if due.len() < page.entries.len() {
                break;
            }
        }
        Ok(gone)
    }

    async fn expire_some(&self, expiries: &[&str]) -> Result<usize, LedgerError> {
        let mut txn = Txn::new();
        let mut n = 0;
        for expiry in expiries {
            let Some(subject) = key::expiring(expiry) else { continue };
            // One that is at work now outlives its time until it has ended.
            if self.held().contains(subject) {
                continue;
            }
            let at = key::attempt(subject);
            txn = match self.read(subject).await? {
                // It was taken again since these were listed, and is kept longer now.
                Some((record, _)) if key::expiry(record.expires, subject) != **expiry => continue,
                Some((_, revision)) => txn.unchanged(&at, revision).delete(&at),
                None => txn.absent(&at),
            };
            txn = txn.delete(key::response(subject)).delete(key::open(subject)).delete(*expiry);
            n += 1;
        }
        match self.commit(txn).await {
            Ok(_) => {
                self.forget(n as u64);
                Ok(n)
            }
            // A request took one of them meanwhile: the next round looks again.
            Err(LedgerError::Store(StoreError::Conflict { .. })) => Ok(0),
            Err(e) => Err(e),
        }
    }
}
