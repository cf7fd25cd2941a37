//! Whether an uploaded artifact is what its digest says: every blob, every entry of the layer, and that the
//! static files and their encodings are those of the layer.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use crate::assets::{Asset, AssetIndex, Folder, Representation, below};
use crate::id::Digest;

use super::each::each;
use super::layer::{self, Into, Layer};
use super::upload::hash_of;
use super::{ArtifactError, Artifacts, MAX_BYTES, Verified, encode, layout};

/// Files' digests, each with that of an encoding which was seen to decode to it. What the bytes of two digests
/// are does not change: it need not be seen again.
pub type Decoded = HashSet<(Digest, Digest)>;

impl Artifacts {
    /// Checks every digest of the artifact `digest`, every entry of its layer, and that its static
    /// files and their encodings are those of the layer.
    ///
    /// # Errors
    /// [`ArtifactError`]: what is missing, damaged or hostile.
    pub async fn verify(
        self: &Arc<Self>,
        digest: &Digest,
        decoded: Decoded,
    ) -> Result<Verified, ArtifactError> {
        let (layer, assets) = self.parts_of(digest).await?;
        let index = match assets {
            Some(assets) => Some((assets, self.asset_index(&assets).await?)),
            None => None,
        };
        let folders = index.iter().flat_map(|(_, index)| index.folders());
        let dirs: Vec<_> = folders.map(|f| f.dir().to_owned()).collect();
        let read = move |input: &mut dyn Read| layer::read(input, Into::Nowhere, &dirs);
        let mut found = self.read_layer(layer, read).await?;
        if let Some((at, index)) = &index {
            let checking = Checking {
                artifacts: Arc::clone(self),
                handle: Handle::current(),
                at: *at,
                layer: std::mem::take(&mut found.digests),
                decoded,
            };
            let index = Arc::clone(index);
            tokio::task::spawn_blocking(move || checking.all(&index)).await??;
        }
        let Layer { contract, files, bytes, .. } = found;
        Ok(Verified { contract, files, bytes, assets: index })
    }
}

struct Checking {
    artifacts: Arc<Artifacts>,
    handle: Handle,
    /// The index.
    at: Digest,
    /// Of the layer's files below its directories.
    layer: BTreeMap<String, Digest>,
    decoded: Decoded,
}

impl Checking {
    fn all(&self, index: &AssetIndex) -> Result<(), ArtifactError> {
        let of = |folder: &'_ Folder| below(folder.dir());
        let files: Vec<_> = index
            .folders()
            .iter()
            .flat_map(|f| f.iter().map(move |(path, asset)| (of(f) + path, asset)))
            .collect();
        each(&files, &mut |_, _| {}, |(path, asset)| self.one(path, asset)).map(|_| ())
    }

    /// The file is the layer's, and every encoding decodes to it.
    fn one(&self, path: &str, asset: &Asset) -> Result<(), ArtifactError> {
        let malformed = |why: String| Err(ArtifactError::Malformed { digest: self.at, why });
        let plain = &asset.identity;
        if self.layer.get(path) != Some(&plain.digest) {
            return malformed(format!("{path:?} has other bytes than in the layer"));
        }
        let is_seen = |e: &&Representation| self.decoded.contains(&(plain.digest, e.digest));
        let (seen, unseen): (Vec<_>, Vec<_>) = asset.encoded.iter().partition(is_seen);
        for there in seen.into_iter().chain(unseen.is_empty().then_some(plain)) {
            if self.size(&there.digest)? != there.size {
                return malformed(format!("{path:?} has another size than it says"));
            }
        }
        if unseen.is_empty() {
            return Ok(());
        }
        let bytes = self.whole(&plain.digest, MAX_BYTES)?;
        if bytes.len() as u64 != plain.size {
            return malformed(format!("{path:?} has another size than it says"));
        }
        for encoded in unseen {
            let Some(coding) = encoded.coding else { continue };
            let from = self.whole(&encoded.digest, encoded.size)?;
            if encode::decode(coding, &from, bytes.len()).as_deref() != Some(&*bytes) {
                return malformed(format!("{path:?} does not decode from its {}", coding.name()));
            }
        }
        Ok(())
    }

    /// A blob whose digest is right.
    fn whole(&self, digest: &Digest, limit: u64) -> Result<Bytes, ArtifactError> {
        let Some(path) = self.artifacts.blob_path(digest) else {
            return self.handle.block_on(self.artifacts.whole(digest, limit));
        };
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => ArtifactError::Missing(*digest),
            _ => ArtifactError::io(&path, e),
        };
        // Without the hop to another thread that an object store's own file takes.
        if fs::metadata(&path).map_err(failed)?.len() > limit {
            return Err(ArtifactError::TooLarge { digest: *digest, limit });
        }
        let bytes = fs::read(&path).map_err(failed)?;
        layout::check(*digest, Sha256::new_with_prefix(&bytes))?;
        Ok(bytes.into())
    }

    /// Of a blob whose digest is right.
    fn size(&self, digest: &Digest) -> Result<u64, ArtifactError> {
        let Some(path) = self.artifacts.blob_path(digest) else {
            return self.whole(digest, MAX_BYTES).map(|bytes| bytes.len() as u64);
        };
        let (found, size) = hash_of(&path)?.ok_or(ArtifactError::Missing(*digest))?;
        if found != *digest {
            return Err(ArtifactError::Damaged { expected: *digest, found: found.to_string() });
        }
        Ok(size)
    }
}
