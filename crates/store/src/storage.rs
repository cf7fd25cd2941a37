//! What the engine needs from a place that keeps bytes, and how it lays out what it keeps there.
//!
//! | key | value |
//! |---|---|
//! | `k` key | create revision, mod revision, lease (0: none), each u64 big-endian; then the value |
//! | `l` lease | time to live in seconds, u64 |
//! | `a` lease key | empty: the key is attached to the lease |
//! | `m` name | `format` u32, `revision` u64, `lease` u64 (the last id given out) |
//!
//! Leases in keys are u64 big-endian, so that they sort and have a fixed length.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Entry, LeaseId, StoreError};

/// What the storage itself said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// It failed to read or write; may pass.
    #[error("{0}")]
    Io(String),
    /// What it reads is not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// It was closed.
    #[error("closed")]
    Closed,
}

impl From<StorageError> for StoreError {
    fn from(e: StorageError) -> Self {
        match e {
            StorageError::Io(said) => Self::Unavailable(said),
            StorageError::Corrupt(said) => Self::Corrupt(said),
            StorageError::Closed => Self::Closed,
        }
    }
}

/// One change of one stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(Vec<u8>, Bytes),
    /// Removes it, if it is there.
    Delete(Vec<u8>),
}

/// A stored key and its value.
pub type Row = (Vec<u8>, Bytes);

/// Which rows a scan returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first key wanted.
    pub from: Vec<u8>,
    /// Only keys that begin with this. Not empty; its last byte is not 255.
    pub prefix: Vec<u8>,
    /// At most so many rows, at least one.
    pub limit: usize,
    /// The row that takes keys and values to so many bytes is the last.
    pub bytes: usize,
}

/// What a scan found, all from one state of the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The rows, in byte order of their keys.
    pub rows: Vec<Row>,
    /// Whether rows of the range follow.
    pub more: bool,
    /// The value of the key that was to be read together with them.
    pub beside: Option<Bytes>,
}

/// An ordered map of bytes with atomic batches. Reads come from any thread, writes from one.
pub trait Storage: Send + Sync + 'static {
    /// Whether reads may wait for a disk, so that an async thread must not call them.
    const BLOCKING: bool;

    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The rows of `range`, and the value of `beside` at the same moment.
    fn scan(&self, range: &Range, beside: &[u8]) -> Result<Scan, StorageError>;

    /// Applies all of `batch` or nothing; a reader sees all of it or nothing. Survives the process
    /// once it returns; with `sync` also a power cut, as does everything written before.
    ///
    /// # Errors
    /// After an error nothing is applied as far as readers see, but it may turn out to be there
    /// after [`recover`](Self::recover). Nothing more is written before that.
    fn write(&self, batch: Vec<Write>, sync: bool) -> Result<(), StorageError>;

    /// Makes the storage writable again after a failed write. Reads go on meanwhile, but for the
    /// moment of the switch. The caller reads again what it thinks it knows.
    fn recover(&self) -> Result<(), StorageError>;

    /// Gives up everything held. Reads and writes afterwards are [`StorageError::Closed`].
    fn close(&self);
}

/// The format this build writes, and the latest it reads.
pub(super) const FORMAT: u32 = 1;
pub(super) const FORMAT_KEY: &[u8] = b"mformat";
pub(super) const REVISION_KEY: &[u8] = b"mrevision";
pub(super) const LAST_LEASE_KEY: &[u8] = b"mlease";
pub(super) const ENTRY: u8 = b'k';
pub(super) const LEASE: u8 = b'l';
pub(super) const ATTACHED: u8 = b'a';
const ENTRY_HEADER: usize = 24;

pub(super) fn entry_key(key: &str) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(ENTRY);
    stored.extend_from_slice(key.as_bytes());
    stored
}

pub(super) fn lease_key(lease: LeaseId) -> Vec<u8> {
    let mut stored = vec![LEASE];
    stored.extend_from_slice(&lease.0.to_be_bytes());
    stored
}

pub(super) fn attached_key(lease: LeaseId, key: &str) -> Vec<u8> {
    let mut stored = Vec::with_capacity(9 + key.len());
    stored.push(ATTACHED);
    stored.extend_from_slice(&lease.0.to_be_bytes());
    stored.extend_from_slice(key.as_bytes());
    stored
}

pub(super) fn encode_u64(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

pub(super) fn decode_u64(what: &[u8], bytes: &[u8]) -> Result<u64, StorageError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| {
        StorageError::Corrupt(format!("{}: {} bytes, expected 8", what.escape_ascii(), bytes.len()))
    })
}

/// The lease of a stored `l` or `a` key, and what follows it.
pub(super) fn decode_lease(stored: &[u8]) -> Result<(LeaseId, &str), StorageError> {
    let corrupt = || StorageError::Corrupt(format!("lease key {}", stored.escape_ascii()));
    let (id, rest) = stored.get(1..).and_then(|s| s.split_at_checked(8)).ok_or_else(corrupt)?;
    let key = std::str::from_utf8(rest).map_err(|_| corrupt())?;
    Ok((LeaseId(decode_u64(stored, id)?), key))
}

/// The key of a stored `k` key.
pub(super) fn decode_entry_key(stored: &[u8]) -> Result<String, StorageError> {
    stored
        .get(1..)
        .and_then(|key| std::str::from_utf8(key).ok())
        .map(str::to_owned)
        .ok_or_else(|| StorageError::Corrupt(format!("key {} is not UTF-8", stored.escape_ascii())))
}

pub(super) fn encode_entry(entry: &Entry) -> Bytes {
    let mut out = BytesMut::with_capacity(ENTRY_HEADER + entry.value.len());
    out.put_u64(entry.create_revision);
    out.put_u64(entry.mod_revision);
    out.put_u64(entry.lease.map_or(0, |lease| lease.0));
    out.put_slice(&entry.value);
    out.freeze()
}

pub(super) fn decode_entry(key: &[u8], stored: &Bytes) -> Result<Entry, StorageError> {
    let field = |at: usize| decode_u64(key, stored.get(at..at + 8).unwrap_or_default());
    let lease = field(16)?;
    Ok(Entry {
        create_revision: field(0)?,
        mod_revision: field(8)?,
        lease: (lease != 0).then_some(LeaseId(lease)),
        value: stored.slice(ENTRY_HEADER..),
    })
}

/// The least key above all that begin with `prefix`.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Not reached: every prefix begins with a letter of the layout.
    debug_assert!(false, "prefix {prefix:?} has no end");
    vec![u8::MAX; 16]
}
