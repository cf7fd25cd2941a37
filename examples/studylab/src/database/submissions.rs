//! What was handed in: the action whose keys the edge keeps, and the app's word for attempts that
//! of which only the app knows the outcome.
//!
//! Invariant: an attempt and what it changed are one transaction, and an attempt is in `attempts` once.
//! The one that writes it first, the action or the question, decides what became of it for good: an action
//! that was disowned changes nothing, however late it comes.

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::{Database, Durability, Result, begin, count, route};

/// Since version 3.
pub(super) const SCHEMA: &str = "
    CREATE TABLE submissions (
        id              INTEGER PRIMARY KEY,
        student         TEXT NOT NULL,
        idempotency_key TEXT NOT NULL,
        text            TEXT NOT NULL,
        allocation      TEXT NOT NULL,
        UNIQUE (student, idempotency_key)
    ) STRICT;
    CREATE TABLE attempts (
        record      TEXT NOT NULL,    -- Vango-Edge-Idempotency-Record
        attempt     INTEGER NOT NULL, -- Vango-Edge-Idempotency-Attempt
        carried_out INTEGER NOT NULL,
        at          INTEGER NOT NULL DEFAULT (unixepoch()),
        PRIMARY KEY (record, attempt)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 3;
";
/// How long attempts are kept: longer than any contract lets the edge ask for them (90 days).
const KEPT_SECONDS: i64 = 100 * 24 * 3600;

/// One attempt of one key, as the edge names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub record: String,
    pub number: u32,
}

/// As it is stored; also the answer to the client that handed it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Submission {
    pub id: i64,
    pub text: String,
    /// The allocation that wrote it.
    pub allocation: String,
}

/// What became of handing something in.
#[derive(Debug, PartialEq, Eq)]
pub enum Submitted {
    /// This execution wrote it.
    First(Submission),
    /// An earlier one with the same key did.
    Repeat(Submission),
    /// The key belongs to another text.
    KeyReused,
    /// The app has said of this attempt that it was not carried out; so it is not.
    Disowned,
}

impl Database {
    /// Hands in `text` once per student and key. `attempt` is what the edge says, if it came from one.
    pub fn submit(
        &mut self,
        attempt: Option<&Attempt>,
        student: &str,
        key: &str,
        text: &str,
        allocation: &str,
    ) -> Result<Submitted> {
        let tx = begin(&mut self.connection, Durability::Disk)?;
        if let Some(Attempt { record, number }) = attempt {
            let new = tx
                .prepare_cached(
                    "INSERT INTO attempts (record, attempt, carried_out) VALUES (?1, ?2, 1)
                     ON CONFLICT DO NOTHING",
                )?
                .execute(params![record, number])?;
            if new == 0 {
                // Dropped with everything in it.
                return Ok(Submitted::Disowned);
            }
        }
        count(&tx, route::SUBMIT, key, 1)?;
        let of = |row: &rusqlite::Row<'_>| {
            Ok(Submission { id: row.get(0)?, text: row.get(1)?, allocation: row.get(2)? })
        };
        let inserted = tx
            .prepare_cached(
                "INSERT INTO submissions (student, idempotency_key, text, allocation)
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING RETURNING id, text, allocation",
            )?
            .query_row(params![student, key, text, allocation], of)
            .optional()?;
        let submitted = match inserted {
            Some(submission) => Submitted::First(submission),
            None => {
                let first = tx
                    .prepare_cached(
                        "SELECT id, text, allocation FROM submissions
                         WHERE student = ?1 AND idempotency_key = ?2",
                    )?
                    .query_row(params![student, key], of)?;
                if first.text == text { Submitted::Repeat(first) } else { Submitted::KeyReused }
            }
        };
        tx.commit()?;
        Ok(submitted)
    }

    /// Whether an attempt was carried out. If it was not, it never will be: this call has seen to it.
    pub fn carried_out(&mut self, attempt: &Attempt) -> Result<bool> {
        let tx = begin(&mut self.connection, Durability::Disk)?;
        tx.execute("DELETE FROM attempts WHERE at < unixepoch() - ?1", [KEPT_SECONDS])?;
        tx.execute(
            "INSERT INTO attempts (record, attempt, carried_out) VALUES (?1, ?2, 0)
             ON CONFLICT DO NOTHING",
            params![attempt.record, attempt.number],
        )?;
        let carried_out = tx.query_row(
            "SELECT carried_out FROM attempts WHERE record = ?1 AND attempt = ?2",
            params![attempt.record, attempt.number],
            |row| row.get(0),
        )?;
        tx.commit()?;
        Ok(carried_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32) -> Attempt {
        Attempt { record: "ab".into(), number }
    }

    #[test]
    fn a_key_hands_in_once_and_its_attempt_is_carried_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Database::open(&dir.path().join("studylab.db")).unwrap();
        let mut submit = |n, student: &str, text: &str| {
            db.submit(Some(&attempt(n)), student, "k", text, "al-a").unwrap()
        };
        let Submitted::First(first) = submit(1, "ada", "essay") else { panic!("the first") };
        assert_eq!(submit(2, "ada", "essay"), Submitted::Repeat(first));
        assert_eq!(submit(3, "ada", "another"), Submitted::KeyReused);
        assert!(matches!(submit(4, "bob", "another"), Submitted::First(_)));
        assert!(db.carried_out(&attempt(1)).unwrap());
    }

    #[test]
    fn the_first_decides_and_a_late_attempt_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("studylab.db");
        let (mut slow, mut asked) =
            (Database::open(&path).unwrap(), Database::open(&path).unwrap());
        assert!(!asked.carried_out(&attempt(1)).unwrap());
        let late = slow.submit(Some(&attempt(1)), "ada", "k", "essay", "al-a").unwrap();
        assert_eq!(late, Submitted::Disowned);
        assert!(!asked.carried_out(&attempt(1)).unwrap());
        assert_eq!(slow.executions(Some(route::SUBMIT), None).unwrap(), []);
        let again = slow.submit(Some(&attempt(2)), "ada", "k", "essay", "al-a").unwrap();
        assert!(matches!(again, Submitted::First(_)));
        assert!(asked.carried_out(&attempt(2)).unwrap());
    }
}
