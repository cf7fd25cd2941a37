//! What a request holds of the ledger: a reservation, then a sending. Both are let go of by being
//! dropped, whatever ends the request: an answer, a client that leaves, a panic.

use std::time::Duration;

use crate::lifecycle::idempotency::{self, AttemptOutcome};
use crate::record::Record;
use crate::record::ledger::{AttemptState, Attempted, StoredResponse, Subject, key};
use crate::store::{StoreError, Txn};

use super::{Held, Ledger, LedgerError, SubjectLock};

/// Tries to write what came of a sending; the pause doubles.
const TRIES: u32 = 8;
/// First pause between them: 100 ms, 200 ms, … 12.8 s; with the last, 25 s in all.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries to take back what was not sent.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// A subject that is this request's, of which nothing was sent.
pub struct Reservation(pub(super) Option<Held>);

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some((lock, record, _)) = self.0.take() else { return };
        lock.undo_later(record.claim);
    }
}

/// A subject of which the record says `forwarded`.
pub struct Sending(pub(super) Option<Held>);

impl Sending {
    /// Which attempt of its key this is; 1 for the first.
    pub fn attempt(&self) -> u32 {
        self.0.as_ref().map_or(0, |(_, record, _)| record.attempt)
    }

    /// Nothing was sent after all, and nothing will be.
    pub fn unsent(mut self) {
        if let Some((lock, record, _)) = self.0.take() {
            lock.undo_later(record.claim);
        }
    }

    /// Records what came of it; returns once an answer is on disk. Where the store does not take it, the
    /// record stays `forwarded` without a holder, which reads as unknown, and it is tried again for a
    /// while without the caller.
    pub async fn ended(mut self, came: AttemptOutcome, response: Option<StoredResponse>) {
        let Some((lock, record, revision)) = self.0.take() else { return };
        let end = Ending { record, revision, came, response };
        if let Err(e) = lock.end(&end).await {
            log::warn!("ledger: {}: what came of it is not recorded yet: {e}", lock.at);
            lock.end_later(end);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some((lock, record, revision)) = self.0.take() else { return };
        lock.end_later(Ending { record, revision, came: AttemptOutcome::Nothing, response: None });
    }
}

struct Ending {
    record: Attempted,
    revision: u64,
    came: AttemptOutcome,
    response: Option<StoredResponse>,
}

impl SubjectLock {
    async fn end(&self, end: &Ending) -> Result<(), LedgerError> {
        let at = key::attempt(&self.at);
        let next = idempotency::ended(&end.record, end.came, self.ledger.clock.wall());
        let mut txn = Txn::new().unchanged(&at, end.revision).put(&at, next.encode());
        // An event's acceptance is remembered; its response is not kept, since it is not sent again.
        if let (AttemptState::Completed, Subject::Action, Some(response)) =
            (next.state, next.subject, &end.response)
        {
            txn = txn.put(key::response(&self.at), response.encode());
        }
        txn = txn.delete(key::open(&self.at));
        // After a power cut, `forwarded` reads as unknown anyway.
        if end.came != AttemptOutcome::Nothing {
            txn = txn.synced();
        }
        match self.ledger.commit(txn).await {
            Err(LedgerError::Store(StoreError::Conflict { .. })) => {
                // An earlier try of this one was committed after all, or an operator or the app has
                // resolved it. Either way it is no longer open under this attempt.
                Ok(())
            }
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        }
    }

    fn end_later(self, end: Ending) {
        let runtime = self.ledger.runtime.clone();
        runtime.spawn(async move {
            let mut pause = PAUSE;
            for _ in 0..TRIES {
                match self.end(&end).await {
                    Ok(()) => return,
                    Err(_) => tokio::time::sleep(pause).await,
                }
                pause *= 2;
            }
            log::error!("ledger: {}: what came of it is not recorded; it is unknown", self.at);
        });
    }

    /// Takes back a record of which nothing was sent, if it is the one that `claim` made. The
    /// subject stays held meanwhile, for as long as the store takes no writes: a record that says
    /// `forwarded` and has no holder would read as unknown.
    pub(super) fn undo_later(self, claim: String) {
        let runtime = self.ledger.runtime.clone();
        runtime.spawn(async move {
            let mut pause = PAUSE;
            loop {
                match self.ledger.undo(&self.at, &claim).await {
                    Ok(()) => return,
                    Err(LedgerError::Store(StoreError::Closed)) => break,
                    Err(LedgerError::Record(e)) => {
                        log::error!("ledger: {}: {e}", self.at);
                        break;
                    }
                    Err(_) => tokio::time::sleep(pause).await,
                }
                pause = (pause * 2).min(MOST_PAUSE);
            }
            log::error!("ledger: {}: a reservation could not be taken back", self.at);
        });
    }
}

impl Ledger {
    async fn undo(&self, subject: &str, claim: &str) -> Result<(), LedgerError> {
        let at = key::attempt(subject);
        let (record, revision) = match self.read(subject).await? {
            Some((record, revision)) if record.claim == claim && record.state.open() => {
                (record, revision)
            }
            // It is not there, or not yet: its transaction may still be waiting, or have failed and be
            // found on disk when the store recovers. Only a transaction behind it can tell.
            other => {
                let unchanged = match other {
                    Some((_, revision)) => Txn::new().unchanged(&at, revision),
                    None => Txn::new().absent(&at),
                };
                return self.commit(unchanged).await.map(drop);
            }
        };
        // A `forwarded` that was not sent is the reservation it was made from.
        let sent = record.state == AttemptState::Forwarded;
        let sent_before = record.attempt - u32::from(sent);
        let reserved =
            Attempted { state: AttemptState::Reserved, attempt: sent_before, ..record.clone() };
        let next = idempotency::released(&reserved, self.clock.wall());
        self.put_back(subject, revision, next, &record, sent).await
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
