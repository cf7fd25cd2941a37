//! What the engine keeps in memory, read from the storage when it opens and after it recovered.

use std::time::Duration;

use vango_edge_core::clock::Mono;

use super::lease::Leases;
use super::storage::{
    self, ATTACHED, FORMAT, FORMAT_KEY, LAST_LEASE_KEY, LEASE, REVISION_KEY, Range, Row, Storage,
    StorageError, Write,
};
use super::{LeaseId, OpenError};

/// Rows read at a time.
const ROWS: usize = 1024;

pub(super) struct Loaded {
    pub(super) revision: u64,
    pub(super) leases: Leases,
}

/// Refuses a storage of a newer format or of another program; marks an empty one as ours.
pub(super) fn check_format(storage: &impl Storage) -> Result<(), OpenError> {
    match storage.get(FORMAT_KEY)? {
        Some(stored) => {
            let found = <[u8; 4]>::try_from(&stored[..]).map(u32::from_be_bytes).map_err(|_| {
                OpenError::Corrupt(format!("format {}, expected 4 bytes", stored.escape_ascii()))
            })?;
            if found > FORMAT {
                return Err(OpenError::NewerFormat { found, known: FORMAT });
            }
            Ok(())
        }
        None if storage.get(REVISION_KEY)?.is_some() => {
            Err(OpenError::Corrupt("there is a revision but no format".into()))
        }
        None => {
            let format = bytes::Bytes::copy_from_slice(&FORMAT.to_be_bytes());
            Ok(storage.write(vec![Write::Put(FORMAT_KEY.to_vec(), format)], true)?)
        }
    }
}

/// Reads revision and leases; `deadline` says when a lease with that time to live ends.
pub(super) fn load(
    storage: &impl Storage,
    deadline: impl Fn(LeaseId, Duration) -> Mono,
) -> Result<Loaded, StorageError> {
    let counter = |key: &[u8]| -> Result<u64, StorageError> {
        storage.get(key)?.map_or(Ok(0), |stored| storage::decode_u64(key, &stored))
    };
    let revision = counter(REVISION_KEY)?;
    let mut leases = Leases::new(counter(LAST_LEASE_KEY)?);
    each(storage, LEASE, |(stored, ttl)| {
        let (id, _) = storage::decode_lease(&stored)?;
        let ttl = Duration::from_secs(storage::decode_u64(&stored, &ttl)?);
        leases.grant(id, ttl, deadline(id, ttl));
        Ok(())
    })?;
    each(storage, ATTACHED, |(stored, _)| {
        let (id, key) = storage::decode_lease(&stored)?;
        leases.attach(id, key);
        Ok(())
    })?;
    Ok(Loaded { revision, leases })
}

/// Every row whose key begins with `first`.
fn each(
    storage: &impl Storage,
    first: u8,
    mut visit: impl FnMut(Row) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let mut from = vec![first];
    loop {
        let range = Range { from, prefix: vec![first], limit: ROWS, bytes: usize::MAX };
        let scan = storage.scan(&range, REVISION_KEY)?;
        let next = scan.rows.last().map(|(key, _)| [key.as_slice(), &[0]].concat());
        scan.rows.into_iter().try_for_each(&mut visit)?;
        match next {
            Some(next) if scan.more => from = next,
            _ => return Ok(()),
        }
    }
}

impl From<StorageError> for OpenError {
    fn from(e: StorageError) -> Self {
        match e {
            StorageError::Corrupt(said) => Self::Corrupt(said),
            StorageError::Io(_) | StorageError::Closed => Self::Io(e.to_string()),
        }
    }
}
