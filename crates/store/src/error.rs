//! What can go wrong with a store, and what the caller can do about it.

use std::path::PathBuf;

use super::LeaseId;

/// Why a call did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A check did not hold; nothing was applied. Read again, decide again.
    #[error("{key}: changed meanwhile")]
    Conflict {
        /// The key of the first check that failed.
        key: String,
    },
    /// The watch cannot be continued without a gap: list, then watch from the list's revision + 1.
    #[error("history before revision {oldest} is gone: list again")]
    Compacted {
        /// The first revision that can still be watched from.
        oldest: u64,
    },
    /// The lease ended or never was. Its keys are gone or going.
    #[error("lease {0} has ended")]
    LeaseGone(LeaseId),
    /// The call breaks a documented bound: the caller's fault.
    #[error("invalid call: {0}")]
    Invalid(String),
    /// Too much is waiting already; nothing was applied.
    #[error("store busy: too many calls are waiting")]
    Busy,
    /// The store was closed.
    #[error("store closed")]
    Closed,
    /// The storage failed or did not answer in time; what it said. For a transaction the outcome is
    /// unknown until its keys are read again.
    #[error("storage unavailable: {0}")]
    Unavailable(String),
    /// An earlier write failed, and the storage takes none until it has recovered: nothing was applied.
    #[error("storage takes no writes: {0}")]
    NotWritable(String),
    /// What is stored cannot be read; needs an operator.
    #[error("store damaged: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether a transaction that was answered so was certainly not applied, and will not be.
    pub fn applied_nothing(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::LeaseGone(_)
            | Self::Invalid(_)
            | Self::Busy
            | Self::NotWritable(_) => true,
            Self::Compacted { .. } | Self::Closed | Self::Unavailable(_) | Self::Corrupt(_) => {
                false
            }
        }
    }

    /// Whether the same call may succeed later without a new decision of its caller.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Busy | Self::Unavailable(_) | Self::NotWritable(_) => true,
            Self::Conflict { .. }
            | Self::Compacted { .. }
            | Self::LeaseGone(_)
            | Self::Invalid(_)
            | Self::Closed
            | Self::Corrupt(_) => false,
        }
    }
}

/// Why a store was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{dir}: in use by another process ({holder}); a state directory serves one vango-edge at a time",
        dir = .dir.display()
    )]
    Locked {
        dir: PathBuf,
        /// Who holds it, as far as known: `pid 123` or `holder unknown`.
        holder: String,
    },
    /// Written by a build that knows a later form.
    #[error(
        "store format {found} is newer than {known}, the latest this build reads: run a newer vango-edge"
    )]
    NewerFormat {
        found: u32,
        /// The latest format this build reads.
        known: u32,
    },
    /// Not a store, or a damaged one.
    #[error("store damaged: {0}")]
    Corrupt(String),
    /// In a file stands something else than was written to it.
    #[error(
        "{file}: damaged: {what}. What was acknowledged may be missing, so nothing is served. Restore \
         the state directory from a copy, or see \"Damaged state\" in docs/operating.md for what can be \
         given up instead",
        file = .file.display()
    )]
    Damaged {
        /// The file, or the directory where it is not known which.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory cannot be made, read or written, or the writer's thread cannot start.
    #[error("{0}")]
    Io(String),
}
