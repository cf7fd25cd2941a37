//! Artifacts: a directory packed into an OCI image layout, kept by content, verified and unpacked
//! before anything runs.
//!
//! Invariants: the same directory gives the same manifest digest on any machine and at any time;
//! no tree is started from before the digest over all of its bytes is right; an artifact
//! holds directories, regular files and symbolic links, and none of them leads out of its root.
//!
//! Static files are blobs of their own besides, with their encodings and an index that the manifest
//! names, so that the edge can answer for them without unpacking or starting anything.
//!
//! Deliberately absent: compression of layers (its output differs between versions of a compressor,
//! and so would the digest; the encoders of static files are pinned for it), timestamps and owners (they differ between machines), references that can be
//! moved (pointers live in the state store).
//!
//! Source: OCI image spec 1.1, `image-layout.md`, `manifest.md`, `layer.md`, `config.md`.

mod assets;
mod build_manifest;
mod bytes;
mod each;
mod encode;
mod given;
mod ignored;
mod in_use;
mod layer;
mod layout;
mod links;
mod pack;
mod siblings;
mod source;
mod spool;
mod store;
mod sweep;
#[cfg(test)]
mod tests;
mod tree;
mod upload;
mod verify;

pub use assets::Known;
pub use bytes::{AssetBytes, Content};
pub use given::{Given, app_name};
pub use in_use::TreeUse;
pub use layout::Blob;
pub use pack::{Noticed, PackProgress, Packed, Phase, Refusal, check, pack};
pub use store::{Artifacts, Tree};
pub use tree::Wrote;
pub use upload::{ASKED, BATCH_BLOBS, BATCH_BYTES, SMALL, batch};
pub use verify::Decoded;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::assets::AssetIndex;
use crate::id::Digest;

/// The contract's file in an artifact's root.
pub const CONTRACT: &str = "vango-edge.toml";

/// The mode of a tree's directories: only root adds to them. The directory around all trees is the
/// edge's user's alone.
const DIRECTORY: u32 = 0o555;

/// Directories and files of an artifact, at most.
pub const MAX_ENTRIES: u64 = 100_000;
/// Bytes of all files of an artifact, at most.
pub const MAX_BYTES: u64 = 4 << 30;
/// Bytes of a path within an artifact, at most; what a plain tar header and its prefix hold is
/// less, longer ones use the GNU extension.
pub const MAX_PATH: usize = 1024;
/// Bytes of a contract, at most.
pub const MAX_CONTRACT: u64 = 1 << 20;
/// Bytes of a manifest or a config, at most (OCI distribution spec 1.1, "Pushing Manifests").
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Where what is started gets its artifact from, unpacked.
#[async_trait]
pub trait TreeSource: Send + Sync {
    /// As [`Artifacts::tree`].
    ///
    /// # Errors
    /// [`ArtifactError`]: it cannot be had.
    async fn tree(
        &self,
        digest: &Digest,
        in_use: &(dyn Fn() -> bool + Sync),
    ) -> Result<Tree, ArtifactError>;
}

#[async_trait]
impl TreeSource for Artifacts {
    async fn tree(
        &self,
        digest: &Digest,
        in_use: &(dyn Fn() -> bool + Sync),
    ) -> Result<Tree, ArtifactError> {
        self.tree(digest, in_use).await
    }
}

/// Where a deployment gets the artifact from that was uploaded for it.
#[async_trait]
pub trait ArtifactSource: Send + Sync {
    /// As [`Artifacts::verify`].
    ///
    /// # Errors
    /// [`ArtifactError`]: it is damaged, incomplete or hostile.
    async fn verified(
        self: Arc<Self>,
        digest: &Digest,
        decoded: Decoded,
    ) -> Result<Verified, ArtifactError>;

    /// As [`Artifacts::flush`].
    ///
    /// # Errors
    /// [`ArtifactError`]: whether it is on disk is not known.
    async fn flush(&self) -> Result<(), ArtifactError>;

    /// As [`Artifacts::note`].
    ///
    /// # Errors
    /// [`ArtifactError`]: the index for other tools is as it was.
    async fn note(
        &self,
        digest: &Digest,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), ArtifactError>;
}

#[async_trait]
impl ArtifactSource for Artifacts {
    async fn verified(
        self: Arc<Self>,
        digest: &Digest,
        decoded: Decoded,
    ) -> Result<Verified, ArtifactError> {
        self.verify(digest, decoded).await
    }
    async fn flush(&self) -> Result<(), ArtifactError> {
        self.flush().await
    }
    async fn note(
        &self,
        digest: &Digest,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), ArtifactError> {
        self.note(digest, annotations).await
    }
}

/// An artifact whose every digest was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The text of its `vango-edge.toml`.
    pub contract: String,
    pub files: u64,
    pub bytes: u64,
    /// The digest and content of the index of its static files, where it has one.
    pub assets: Option<(Digest, Arc<AssetIndex>)>,
}

/// Why an artifact was refused or could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Something in the directory cannot be part of an artifact.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The path in the artifact.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Several things cannot be.
    #[error("{}: {} things in it cannot be part of an artifact\n{}", dir.display(), all.len(), listed(all))]
    Several {
        dir: PathBuf,
        /// Each, and why.
        all: Vec<Refusal>,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A blob is not there.
    #[error("the artifact store has no blob {0}; deploy the artifact again")]
    Missing(Digest),
    /// A blob's content is not what its name says.
    #[error("blob {expected} is damaged: its content has {found}; deploy the artifact again")]
    Damaged {
        expected: Digest,
        /// What its content is.
        found: String,
    },
    /// A blob is larger than it may be.
    #[error("blob {digest} is larger than {limit} bytes")]
    TooLarge { digest: Digest, limit: u64 },
    /// A blob has the right digest but is not what this version reads, or is hostile.
    #[error("blob {digest}: {why}")]
    Malformed {
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// What was sent as many blobs in one is not.
    #[error("a batch of blobs: {0}")]
    Batch(String),
    /// An upload broke off.
    #[error("the upload of {digest} broke off: {why}")]
    Interrupted { digest: Digest, why: String },
    /// The object store failed.
    #[error("the artifact store failed: {0}")]
    Store(#[from] object_store::Error),
    /// A background task ended abnormally.
    #[error("unpacking was interrupted: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Of so many refusals each is said; the rest is counted.
const LISTED: usize = 100;

fn listed(all: &[Refusal]) -> String {
    let one = |(path, why): &Refusal| format!("{}: {why}", path.display());
    let mut lines: Vec<_> = all.iter().take(LISTED).map(one).collect();
    if all.len() > LISTED {
        lines.push(format!("and {} more", all.len() - LISTED));
    }
    lines.join("\n")
}

impl ArtifactError {
    /// All of them in one error, unless there are none.
    pub(crate) fn of_refusals(dir: &std::path::Path, all: Vec<Refusal>) -> Result<(), Self> {
        match <[Refusal; 1]>::try_from(all) {
            Ok([(path, why)]) => Err(Self::Refused { path, why }),
            Err(all) if all.is_empty() => Ok(()),
            Err(all) => Err(Self::Several { dir: dir.to_owned(), all }),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn refused(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::Refused { path: path.into(), why: why.into() }
    }

    /// What a client may be told: no path, no cause of the system.
    pub fn safe_cause(&self) -> &'static str {
        match self {
            Self::Missing(_) => "the artifact is missing",
            Self::Damaged { .. } => "the artifact is damaged",
            Self::Refused { .. }
            | Self::Several { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::Batch(_) => "the artifact is not valid",
            Self::Io { .. } | Self::Interrupted { .. } | Self::Store(_) | Self::Task(_) => {
                "the artifact could not be read"
            }
        }
    }

    /// Whether the artifact itself is missing or damaged, and not the disk or the network.
    pub fn is_artifact(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Damaged { .. } | Self::Malformed { .. })
    }

    /// Whether the same call may succeed later without a change of its input.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Interrupted { .. } | Self::Store(_) | Self::Task(_))
    }
}
