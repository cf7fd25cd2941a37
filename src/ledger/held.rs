//! What a request holds of the ledger: a reservation, then a sending. Both are let go of by being
//! dropped, whatever ends the request: an answer, a client that leaves, a panic.

use std::sync::Arc;
use std::time::Duration;

use crate::lifecycle::idempotency::{self, Came};
use crate::store::record::Record;
use crate::store::record::ledger::{AttemptState, Attempted, StoredResponse, Subject, key};
use crate::store::{StoreError, Txn};

use super::{Ledger, LedgerError, Slot};

/// Tries to write what came of a sending; the pause doubles.
const TRIES: u32 = 8;
/// First pause between them: 100 ms, 200 ms, … 12.8 s; with the last, 25 s in all.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries to take back what was not sent.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// A subject that is this request's, of which nothing was sent.
pub struct Reservation {
    held: Option<(Slot, Attempted, u64)>,
}

impl Reservation {
    pub(super) fn new(slot: Slot, record: Attempted, revision: u64) -> Self {
        Self { held: Some((slot, record, revision)) }
    }

    pub(super) fn into_parts(mut self) -> (Slot, Attempted, u64) {
        let Some(held) = self.held.take() else {
            unreachable!("taken out once: by this call, which takes the reservation, or by drop")
        };
        held
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some((slot, record, _)) = self.held.take() else { return };
        let ledger = Arc::clone(&slot.ledger);
        ledger.undo_later(slot, record.claim);
    }
}

/// A subject of which the record says `forwarded`.
pub struct Sending {
    held: Option<(Slot, Attempted, u64)>,
}

impl Sending {
    pub(super) fn new(slot: Slot, record: Attempted, revision: u64) -> Self {
        Self { held: Some((slot, record, revision)) }
    }

    /// Which attempt of its key this is; 1 for the first.
    pub fn attempt(&self) -> u32 {
        self.held.as_ref().map_or(0, |(_, record, _)| record.attempt)
    }

    /// Nothing was sent after all, and nothing will be.
    pub fn unsent(mut self) {
        if let Some((slot, record, _)) = self.held.take() {
            let ledger = Arc::clone(&slot.ledger);
            ledger.undo_later(slot, record.claim);
        }
    }

    /// Records what came of it; returns once an answer is on disk. Where the store does not take it, the
    /// record stays `forwarded` without a holder, which reads as unknown, and it is tried again for a
    /// while without the caller.
    pub async fn ended(mut self, came: Came, response: Option<StoredResponse>) {
        let Some((slot, record, revision)) = self.held.take() else { return };
        let ledger = Arc::clone(&slot.ledger);
        let end = Ending { record, revision, came, response };
        match ledger.end(&slot, &end).await {
            Ok(()) => {}
            Err(e) => {
                log::warn!("ledger: {}: what came of it is not recorded yet: {e}", slot.at);
                ledger.end_later(slot, end);
            }
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some((slot, record, revision)) = self.held.take() else { return };
        let ledger = Arc::clone(&slot.ledger);
        ledger.end_later(slot, Ending { record, revision, came: Came::Nothing, response: None });
    }
}

struct Ending {
    record: Attempted,
    revision: u64,
    came: Came,
    response: Option<StoredResponse>,
}

impl Ledger {
    async fn end(&self, slot: &Slot, end: &Ending) -> Result<(), LedgerError> {
        let at = key::attempt(&slot.at);
        let next = idempotency::ended(&end.record, end.came, self.wall());
        let mut txn = Txn::new().unchanged(&at, end.revision).put(&at, next.encode());
        // An event's acceptance is remembered; its response is not kept, since it is not sent again.
        if let (AttemptState::Completed, Subject::Action, Some(response)) =
            (next.state, next.subject, &end.response)
        {
            txn = txn.put(key::response(&slot.at), response.encode());
        }
        txn = txn.delete(key::open(&slot.at));
        // After a power cut, `forwarded` reads as unknown anyway.
        if end.came != Came::Nothing {
            txn = txn.synced();
        }
        match self.commit(txn).await {
            Err(LedgerError::Store(StoreError::Conflict { .. })) => {
                // An earlier try of this one was committed after all, or an operator or the app has
                // resolved it. Either way it is no longer open under this attempt.
                Ok(())
            }
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        }
    }

    fn end_later(self: &Arc<Self>, slot: Slot, end: Ending) {
        let ledger = Arc::clone(self);
        self.runtime.spawn(async move {
            let mut pause = PAUSE;
            for _ in 0..TRIES {
                match ledger.end(&slot, &end).await {
                    Ok(()) => return,
                    Err(_) => tokio::time::sleep(pause).await,
                }
                pause *= 2;
            }
            log::error!("ledger: {}: what came of it is not recorded; it is unknown", slot.at);
        });
    }

    /// Takes back a record of which nothing was sent, if it is the one that `claim` made. The
    /// subject stays held meanwhile, for as long as the store takes no writes: a record that says
    /// `forwarded` and has no holder would read as unknown.
    pub(super) fn undo_later(self: &Arc<Self>, slot: Slot, claim: String) {
        let ledger = Arc::clone(self);
        self.runtime.spawn(async move {
            let mut pause = PAUSE;
            loop {
                match ledger.undo(&slot.at, &claim).await {
                    Ok(()) => return,
                    Err(LedgerError::Store(StoreError::Closed)) => break,
                    Err(LedgerError::Record(e)) => {
                        log::error!("ledger: {}: {e}", slot.at);
                        break;
                    }
                    Err(_) => tokio::time::sleep(pause).await,
                }
                pause = (pause * 2).min(MOST_PAUSE);
            }
            log::error!("ledger: {}: a reservation could not be taken back", slot.at);
        });
    }

    async fn undo(&self, subject: &str, claim: &str) -> Result<(), LedgerError> {
        let at = key::attempt(subject);
        let (record, revision) = match self.read(subject).await? {
            Some((record, revision)) if record.claim == claim && record.state.open() => {
                (record, revision)
            }
            // It is not there, or not yet: its transaction may still be waiting, or have failed and be
            // found on disk when the store recovers. Only a transaction behind it can tell.
            Some((_, revision)) => return self.settle(Txn::new().unchanged(&at, revision)).await,
            None => return self.settle(Txn::new().absent(&at)).await,
        };
        // A `forwarded` that was not sent is the reservation it was made from.
        let sent = record.state == AttemptState::Forwarded;
        let sent_before = record.attempt - u32::from(sent);
        let reserved =
            Attempted { state: AttemptState::Reserved, attempt: sent_before, ..record.clone() };
        let next = idempotency::released(&reserved, self.wall());
        self.put_back(subject, revision, next, &record, sent).await
    }

    async fn settle(&self, unchanged: Txn) -> Result<(), LedgerError> {
        self.commit(unchanged).await.map(|_| ())
    }

    /// Writes the record that follows one that was open; `None` takes it away. `durably` where the one
    /// before, found after a power cut, would be taken for a request that was sent.
    pub(super) async fn put_back(
        &self,
        subject: &str,
        revision: u64,
        next: Option<Attempted>,
        before: &Attempted,
        durably: bool,
    ) -> Result<(), LedgerError> {
        let at = key::attempt(subject);
        let gone = next.is_none();
        let txn = Txn::new().unchanged(&at, revision).delete(key::open(subject));
        let txn = match next {
            Some(next) => txn.put(&at, next.encode()),
            None => txn.delete(&at).delete(key::expiry(before.expires, subject)),
        };
        self.commit(if durably { txn.synced() } else { txn }).await?;
        if gone {
            self.forget(1);
        }
        Ok(())
    }
}
