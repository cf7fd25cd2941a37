//! The store's rules, synchronously: one revision for each transaction whose checks hold, and a
//! log of revisions that snapshots follow with a lag.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A key's value and the revisions of its making and its last change.
#[derive(Debug, Clone)]
pub struct Entry {
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// A transaction: the revisions its keys must have (`None`: absent), and what it changes
/// (`None`: deletes).
#[derive(Debug, Clone, Default)]
pub struct Txn {
    checks: Vec<(String, Option<u64>)>,
    changes: Vec<(String, Option<Bytes>)>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn unchanged(mut self, key: impl Into<String>, revision: u64) -> Self {
        self.checks.push((key.into(), Some(revision)));
        self
    }
    pub fn absent(mut self, key: impl Into<String>) -> Self {
        self.checks.push((key.into(), None));
        self
    }
    pub fn replaces(self, key: impl Into<String>, revision: Option<u64>) -> Self {
        match revision {
            Some(revision) => self.unchanged(key, revision),
            None => self.absent(key),
        }
    }
    pub fn put(mut self, key: impl Into<String>, value: Bytes) -> Self {
        self.changes.push((key.into(), Some(value)));
        self
    }
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.changes.push((key.into(), None));
        self
    }
    pub fn changes(&self) -> &[(String, Option<Bytes>)] {
        &self.changes
    }
}

/// Some check did not hold; nothing was changed.
#[derive(Debug)]
pub struct Conflict;

#[derive(Debug, Default)]
pub struct Store {
    rows: BTreeMap<String, Entry>,
    log: Vec<Vec<(String, Option<Bytes>)>>,
}

impl Store {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.rows.get(key)
    }
    pub fn list<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.rows.range(prefix.to_owned()..).take_while(move |(k, _)| k.starts_with(prefix))
    }
    pub fn revision(&self) -> u64 {
        self.log.len() as u64
    }
    /// What the revision after `published` changed.
    pub fn after(&self, published: u64) -> Option<&Vec<(String, Option<Bytes>)>> {
        self.log.get(usize::try_from(published).ok()?)
    }
    pub fn holds(&self, txn: &Txn) -> bool {
        txn.checks.iter().all(|(k, want)| self.rows.get(k).map(|e| e.mod_revision) == *want)
    }
    pub fn txn(&mut self, txn: Txn) -> Result<u64, Conflict> {
        if !self.holds(&txn) {
            return Err(Conflict);
        }
        let revision = self.revision() + 1;
        let mut events = Vec::new();
        for (key, value) in txn.changes {
            match &value {
                Some(value) => {
                    let create_revision =
                        self.rows.get(&key).map_or(revision, |e| e.create_revision);
                    let entry =
                        Entry { value: value.clone(), create_revision, mod_revision: revision };
                    self.rows.insert(key.clone(), entry);
                }
                None => {
                    if self.rows.remove(&key).is_none() {
                        continue;
                    }
                }
            }
            events.push((key, value));
        }
        if events.is_empty() {
            return Ok(self.revision());
        }
        self.log.push(events);
        Ok(revision)
    }
}
