//! A transaction: checks, operations, and how durable its answer must be.

use std::collections::HashSet;

use bytes::Bytes;

use super::{KEY_BYTES, LeaseId, StoreError, TXN_BYTES, TXN_OPS, VALUE_BYTES};

/// What must be true for a transaction to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The key does not exist.
    Absent(String),
    /// The key exists and its last put was at `mod_revision`.
    Unchanged {
        key: String,
        /// Its `mod_revision` as last seen.
        mod_revision: u64,
    },
    /// The key exists.
    Exists(String),
}

impl Check {
    /// The key the check is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::Unchanged { key, .. } => key,
        }
    }

    /// Whether it holds for a key last put at `mod_revision`, or absent.
    pub fn holds(&self, mod_revision: Option<u64>) -> bool {
        match self {
            Self::Absent(_) => mod_revision.is_none(),
            Self::Exists(_) => mod_revision.is_some(),
            Self::Unchanged { mod_revision: seen, .. } => mod_revision == Some(*seen),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        key: String,
        value: Bytes,
        /// The lease whose end deletes it.
        lease: Option<LeaseId>,
    },
    /// Removes a key, if it exists.
    Delete { key: String },
}

impl Op {
    /// The key that changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What an acknowledged transaction survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// In the operating system's hands: survives `kill -9`, not a power cut.
    #[default]
    Buffered,
    /// On disk before the answer: survives a power cut, together with all that was answered before.
    Synced,
}

/// Checks and operations that apply together or not at all.
///
/// Bounds: [`TXN_OPS`] checks, [`TXN_OPS`] operations, [`TXN_BYTES`] in all, a key at most once among
/// the operations. They are checked when the transaction is given to a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold, at the revision before the transaction's.
    pub checks: Vec<Check>,
    /// Applied in order, at one revision.
    pub ops: Vec<Op>,
    /// What the answer promises.
    pub durability: Durability,
}

impl Txn {
    /// An empty transaction, [`Durability::Buffered`].
    pub fn new() -> Self {
        Self::default()
    }
    /// Only if `key` does not exist.
    pub fn absent(mut self, key: impl Into<String>) -> Self {
        self.checks.push(Check::Absent(key.into()));
        self
    }
    /// Only if the last put of `key` was at `mod_revision`.
    pub fn unchanged(mut self, key: impl Into<String>, mod_revision: u64) -> Self {
        self.checks.push(Check::Unchanged { key: key.into(), mod_revision });
        self
    }
    /// Only if `key` exists.
    pub fn exists(mut self, key: impl Into<String>) -> Self {
        self.checks.push(Check::Exists(key.into()));
        self
    }
    /// Creates or replaces `key`.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }
    /// Creates or replaces `key`, which goes when `lease` ends.
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }
    /// Removes `key`, if it exists.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }
    /// Together with `other`, as durable as the more durable of the two.
    pub fn and(mut self, other: Self) -> Self {
        self.checks.extend(other.checks);
        self.ops.extend(other.ops);
        self.durability = self.durability.max(other.durability);
        self
    }
    /// Answered only once it is on disk.
    pub fn synced(mut self) -> Self {
        self.durability = Durability::Synced;
        self
    }

    /// Whether the transaction keeps to the bounds; then its size: bytes of all keys and values.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] names the bound.
    pub fn validate(&self) -> Result<usize, StoreError> {
        if self.checks.len() > TXN_OPS || self.ops.len() > TXN_OPS {
            return Err(StoreError::Invalid(format!(
                "{} checks and {} operations; at most {TXN_OPS} of each",
                self.checks.len(),
                self.ops.len()
            )));
        }
        let mut bytes = 0;
        for check in &self.checks {
            validate_key(check.key())?;
            bytes += check.key().len();
        }
        let mut seen = HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            validate_key(op.key())?;
            bytes += op.key().len();
            if !seen.insert(op.key()) {
                return Err(StoreError::Invalid(format!(
                    "key {:?} is changed twice in one transaction",
                    op.key()
                )));
            }
            if let Op::Put { key, value, .. } = op {
                if value.len() > VALUE_BYTES {
                    return Err(StoreError::Invalid(format!(
                        "value of {key:?} has {} bytes; at most {VALUE_BYTES}",
                        value.len()
                    )));
                }
                bytes += value.len();
            }
        }
        if bytes > TXN_BYTES {
            return Err(StoreError::Invalid(format!(
                "transaction of {bytes} bytes; at most {TXN_BYTES}"
            )));
        }
        Ok(bytes)
    }
}

/// Whether `key` has 1 to [`KEY_BYTES`] bytes.
pub(super) fn validate_key(key: &str) -> Result<(), StoreError> {
    if (1..=KEY_BYTES).contains(&key.len()) {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("key of {} bytes; expected 1 to {KEY_BYTES}", key.len())))
}

/// Whether `prefix` has at most [`KEY_BYTES`] bytes.
pub(super) fn validate_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.len() <= KEY_BYTES {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("prefix of {} bytes; at most {KEY_BYTES}", prefix.len())))
}
