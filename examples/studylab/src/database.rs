//! The product database: what was saved, which events arrived, and how often everything ran.
//!
//! Invariant: a save or an event and the count of its execution are one transaction, on disk
//! before the answer. The unique key is in that transaction too, so that of two executions with
//! one key exactly one writes, whatever crashes in between; the other reads the first one's result.
//!
//! Several processes may have the same file open (two allocations during a promotion).

mod submissions;

pub use submissions::{Attempt, Submitted};

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;

use crate::sessions::Stored;

/// Route names under which executions are counted.
pub mod route {
    pub const DASHBOARD: &str = "/dashboard";
    pub const SAVE: &str = "/actions/save";
    pub const SUBMIT: &str = "/actions/submit";
    pub const STRIPE: &str = "/webhooks/stripe";
    pub const LIVE: &str = "/vango/live";
    /// Not a route: one start of a process, by allocation.
    pub const START: &str = "start";
}

/// Rows in one answer about executions.
pub const MAX_ROWS: usize = 50_000;
const NOTES_SHOWN: usize = 12;
const BUSY: Duration = Duration::from_secs(5);
const VERSION: i64 = 3;
const SCHEMA: &str = "
    CREATE TABLE executions (
        route TEXT NOT NULL,
        key   TEXT NOT NULL, -- idempotency key, event id, session or allocation; '' without one
        count INTEGER NOT NULL,
        PRIMARY KEY (route, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE notes (
        id              INTEGER PRIMARY KEY,
        idempotency_key TEXT UNIQUE,
        text            TEXT NOT NULL,
        executions      INTEGER NOT NULL,
        allocation      TEXT NOT NULL,
        saved_at        INTEGER NOT NULL DEFAULT (unixepoch())
    ) STRICT;
    CREATE TABLE events (
        id          TEXT PRIMARY KEY,
        allocation  TEXT NOT NULL,
        received_at INTEGER NOT NULL DEFAULT (unixepoch())
    ) STRICT, WITHOUT ROWID;
";
/// Since version 2; the counter of a live session is its whole state.
const SESSIONS: &str = "
    CREATE TABLE sessions (
        id         TEXT PRIMARY KEY,
        count      INTEGER NOT NULL,
        schema     TEXT NOT NULL,
        changed_at INTEGER NOT NULL DEFAULT (unixepoch())
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 2;
";

/// Why the database did not do what was asked. Nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite refused: busy beyond five seconds, disk full, file damaged.
    #[error("product database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was written by a later version of this app.
    #[error("product database has schema version {0}, this app knows {VERSION}")]
    Newer(i64),
}

type Result<T> = std::result::Result<T, DatabaseError>;

/// A note as it is stored; also the answer to the save that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// 1, 2, 3 …: notes are never deleted.
    pub id: i64,
    /// What was saved.
    pub text: String,
    /// Executions of the action under this key (without a key: of all keyless ones) when this
    /// note was written, its own included.
    pub executions: i64,
    /// The allocation that wrote it.
    pub allocation: String,
    /// UTC, to the minute.
    #[serde(skip)]
    pub saved_at: String,
}

/// What became of a save.
#[derive(Debug, PartialEq, Eq)]
pub enum Saved {
    /// This execution wrote the note.
    First(Note),
    /// An earlier one with the same key did; `executions` counts this one.
    Repeat { first: Note, executions: i64 },
    /// The key belongs to a note with another text.
    KeyReused,
}

/// How often one route ran under one key.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Executions {
    pub route: String,
    pub key: String,
    pub count: i64,
}

/// What the dashboard shows of the database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Dashboard renders by every process so far.
    pub renders: i64,
    /// Process starts so far.
    pub starts: i64,
    /// All notes.
    pub notes: i64,
    /// The newest notes, newest first.
    pub latest: Vec<Note>,
}

/// Whether a transaction has to survive the machine's power, or only this process.
#[derive(Debug, Clone, Copy)]
enum Durability {
    /// Synced to disk before the commit returns.
    Disk,
    /// With the operating system. Counts only.
    Process,
}

/// One connection to the product database.
pub struct Database {
    connection: Connection,
}

impl Database {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        let version = |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get(0));
        match version(&connection)? {
            VERSION => {}
            newer if newer > VERSION => return Err(DatabaseError::Newer(newer)),
            _ => {
                // WAL is a property of the file, so that only its first opener pays for it.
                connection.pragma_update(None, "journal_mode", "wal")?;
                let tx = begin(&mut connection, Durability::Disk)?;
                // Another process may have been faster.
                match version(&tx)? {
                    0 => tx.execute_batch(&format!("{SCHEMA}{SESSIONS}{}", submissions::SCHEMA))?,
                    1 => tx.execute_batch(&format!("{SESSIONS}{}", submissions::SCHEMA))?,
                    2 => tx.execute_batch(submissions::SCHEMA)?,
                    _ => {}
                }
                tx.commit()?;
            }
        }
        Ok(Self { connection })
    }

    /// Executes a save once per key.
    pub fn save(&mut self, key: Option<&str>, text: &str, allocation: &str) -> Result<Saved> {
        let tx = begin(&mut self.connection, Durability::Disk)?;
        let executions = count(&tx, route::SAVE, key.unwrap_or_default(), 1)?;
        let inserted = tx
            .prepare_cached(
                "INSERT INTO notes (idempotency_key, text, executions, allocation)
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING
                 RETURNING id, text, executions, allocation,
                           strftime('%Y-%m-%d %H:%M', saved_at, 'unixepoch')",
            )?
            .query_row(params![key, text, executions, allocation], note)
            .optional()?;
        let saved = match inserted {
            Some(note) => Saved::First(note),
            None => {
                let first = tx
                    .prepare_cached(
                        "SELECT id, text, executions, allocation,
                                strftime('%Y-%m-%d %H:%M', saved_at, 'unixepoch')
                         FROM notes WHERE idempotency_key = ?1",
                    )?
                    .query_row(params![key], note)?;
                if first.text == text {
                    Saved::Repeat { first, executions }
                } else {
                    Saved::KeyReused
                }
            }
        };
        // A repeat is committed too: it did run, and it is counted.
        tx.commit()?;
        Ok(saved)
    }

    /// Takes a provider's event; `true` if it is the first with this id.
    pub fn receive(&mut self, event: &str, allocation: &str) -> Result<bool> {
        let tx = begin(&mut self.connection, Durability::Disk)?;
        count(&tx, route::STRIPE, event, 1)?;
        let first = tx
            .prepare_cached(
                "INSERT INTO events (id, allocation) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute(params![event, allocation])?
            == 1;
        tx.commit()?;
        Ok(first)
    }

    /// A live session, if it was kept.
    pub fn session(&self, id: &str) -> Result<Option<Stored>> {
        let mut kept =
            self.connection.prepare_cached("SELECT count, schema FROM sessions WHERE id = ?1")?;
        let found = kept.query_row([id], |row| {
            let count: i64 = row.get(0)?;
            Ok(Stored { count: count.unsigned_abs(), schema: row.get(1)? })
        });
        Ok(found.optional()?)
    }

    /// Keeps a live session; those that were left alone for a day go.
    pub fn keep_session(&mut self, id: &str, session: &Stored) -> Result<()> {
        let tx = begin(&mut self.connection, Durability::Process)?;
        tx.prepare_cached(
            "INSERT INTO sessions (id, count, schema) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET count = excluded.count, schema = excluded.schema,
                                       changed_at = unixepoch()",
        )?
        .execute(params![
            id,
            i64::try_from(session.count).unwrap_or(i64::MAX),
            session.schema
        ])?;
        tx.execute("DELETE FROM sessions WHERE changed_at < unixepoch() - 86400", [])?;
        Ok(tx.commit()?)
    }

    /// Adds counts of executions, all or none.
    pub fn add<'k>(
        &mut self,
        counts: impl IntoIterator<Item = (&'static str, &'k str, u64)>,
    ) -> Result<()> {
        let tx = begin(&mut self.connection, Durability::Process)?;
        for (route, key, n) in counts {
            count(&tx, route, key, i64::try_from(n).unwrap_or(i64::MAX))?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Executions by route and key, in that order, at most [`MAX_ROWS`] and one more.
    pub fn executions(&self, route: Option<&str>, key: Option<&str>) -> Result<Vec<Executions>> {
        let mut rows = self.connection.prepare_cached(
            "SELECT route, key, count FROM executions
             WHERE (?1 IS NULL OR route = ?1) AND (?2 IS NULL OR key = ?2)
             ORDER BY route, key LIMIT ?3",
        )?;
        let found = rows.query_map(params![route, key, MAX_ROWS + 1], |row| {
            Ok(Executions { route: row.get(0)?, key: row.get(1)?, count: row.get(2)? })
        })?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    /// Notes and events that exist: the effects, where `executions` are the attempts.
    pub fn effects(&self) -> Result<(i64, i64)> {
        let pair = "SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM events)";
        Ok(self.connection.query_row(pair, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    }

    /// What the dashboard shows.
    pub fn summary(&self) -> Result<Summary> {
        let mut totals = self.connection.prepare_cached(
            // max(id) is the number of notes, since none is ever deleted, and costs no scan.
            "SELECT (SELECT coalesce(sum(count), 0) FROM executions WHERE route = ?1),
                    (SELECT coalesce(sum(count), 0) FROM executions WHERE route = ?2),
                    (SELECT coalesce(max(id), 0) FROM notes)",
        )?;
        let (renders, starts, notes) = totals
            .query_row(params![route::DASHBOARD, route::START], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let mut newest = self.connection.prepare_cached(
            "SELECT id, text, executions, allocation,
                    strftime('%Y-%m-%d %H:%M', saved_at, 'unixepoch')
             FROM notes ORDER BY id DESC LIMIT ?1",
        )?;
        let latest = newest.query_map([NOTES_SHOWN], note)?.collect::<rusqlite::Result<_>>()?;
        Ok(Summary { renders, starts, notes, latest })
    }
}

/// A write transaction. Immediate, since one that begins by reading cannot wait for its turn.
fn begin(connection: &mut Connection, durability: Durability) -> Result<Transaction<'_>> {
    let level = match durability {
        Durability::Disk => "FULL",
        Durability::Process => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", level)?;
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn count(tx: &Transaction<'_>, route: &str, key: &str, n: i64) -> Result<i64> {
    let mut upsert = tx.prepare_cached(
        "INSERT INTO executions (route, key, count) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET count = count + excluded.count RETURNING count",
    )?;
    Ok(upsert.query_row(params![route, key, n], |row| row.get(0))?)
}

fn note(row: &rusqlite::Row<'_>) -> rusqlite::Result<Note> {
    Ok(Note {
        id: row.get(0)?,
        text: row.get(1)?,
        executions: row.get(2)?,
        allocation: row.get(3)?,
        saved_at: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("studylab.db")).unwrap();
        (dir, db)
    }

    #[test]
    fn one_key_writes_one_note_and_every_execution_counts() {
        let (_dir, mut db) = database();
        let Saved::First(first) = db.save(Some("k"), "tea", "al-a").unwrap() else { panic!() };
        assert_eq!((first.id, first.executions), (1, 1));
        let repeat = db.save(Some("k"), "tea", "al-b").unwrap();
        assert_eq!(repeat, Saved::Repeat { first, executions: 2 });
        assert_eq!(db.save(Some("k"), "coffee", "al-a").unwrap(), Saved::KeyReused);
        assert!(matches!(db.save(None, "tea", "al-a").unwrap(), Saved::First(n) if n.id == 2));
        assert!(matches!(db.save(None, "tea", "al-a").unwrap(), Saved::First(n) if n.id == 3));
        assert_eq!(db.effects().unwrap(), (3, 0));
        let runs = db.executions(Some(route::SAVE), Some("k")).unwrap();
        assert_eq!(runs.iter().map(|r| r.count).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn an_event_is_first_once() {
        let (_dir, mut db) = database();
        assert!(db.receive("evt_1", "al-a").unwrap());
        assert!(!db.receive("evt_1", "al-a").unwrap());
        assert_eq!(db.effects().unwrap(), (0, 1));
    }

    #[test]
    fn processes_that_share_a_file_add_up() {
        let (dir, mut one) = database();
        let mut two = Database::open(&dir.path().join("studylab.db")).unwrap();
        one.add([(route::DASHBOARD, "", 3), (route::START, "al-a", 1)]).unwrap();
        two.add([(route::DASHBOARD, "", 4), (route::START, "al-b", 1)]).unwrap();
        one.save(None, "tea", "al-a").unwrap();
        let seen = two.summary().unwrap();
        assert_eq!((seen.renders, seen.starts, seen.notes), (7, 2, 1));
    }

    #[test]
    fn many_openers_of_a_new_file_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("studylab.db");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut db = Database::open(&path).unwrap();
                    db.add([(route::START, "al-a", 1)]).unwrap();
                });
            }
        });
        assert_eq!(Database::open(&path).unwrap().summary().unwrap().starts, 8);
    }

    #[test]
    fn a_session_is_kept_and_a_file_of_version_1_gets_a_place_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("studylab.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(&format!("{SCHEMA} PRAGMA user_version = 1;")).unwrap();
        drop(old);
        let mut db = Database::open(&path).unwrap();
        assert_eq!(db.session("s").unwrap(), None);
        for count in [3, 4] {
            let stored = Stored { count, schema: "sha256:x".into() };
            db.keep_session("s", &stored).unwrap();
            assert_eq!(db.session("s").unwrap(), Some(stored));
        }
    }

    #[test]
    fn a_later_schema_is_refused() {
        let (dir, db) = database();
        db.connection.pragma_update(None, "user_version", 9).unwrap();
        let again = Database::open(&dir.path().join("studylab.db"));
        assert!(matches!(again, Err(DatabaseError::Newer(9))));
    }
}
