//! Blobs by content in an object store, and the trees unpacked from them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use sha2::{Digest as _, Sha256};

use crate::id::Digest;

use crate::assets::{AssetIndex, MAX_INDEX};
use crate::clock::Wall;

use super::in_use::{InUse, TreeUse};
use super::layer::{self, Into, LayerError};
use super::layout::{self, Descriptor, Image, Index, Manifest, key};
use super::sweep;
use super::tree::{Found, Trees, Wrote, named};
use super::upload::Unsynced;
use super::{ArtifactError, MAX_MANIFEST};

/// An unpacked artifact.
#[derive(Debug)]
pub struct Tree {
    pub root: PathBuf,
    /// What was found in it that is not of the artifact.
    pub wrote: Option<Wrote>,
    /// Held for as long as anything runs from it; without it the tree may be collected.
    pub used: Option<TreeUse>,
}

/// The artifact store of a node.
///
/// Keys are content digests only (`blobs/sha256/<hex>`): pointers live in the state store, since
/// not every object store can compare and swap.
#[derive(Debug)]
pub struct Artifacts {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Where `objects` is, if it is a directory.
    pub(super) directory: Option<PathBuf>,
    /// What of it may not be on disk yet.
    pub(super) unsynced: Unsynced,
    trees: Trees,
    in_use: InUse,
    /// One unpacking at a time for each artifact: the second caller finds the first one's tree.
    unpacking: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// `index.json` is read, changed and written by one at a time.
    noting: tokio::sync::Mutex<()>,
}

impl Artifacts {
    /// Blobs in the directory `dir`, trees in `trees`; both are made if need be, and what a process that
    /// was killed left of uploads and trees is removed. No other process may use them.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] or [`ArtifactError::Store`] when a directory cannot be used.
    pub fn local(dir: &Path, trees: &Path) -> Result<Self, ArtifactError> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|e| ArtifactError::io(dir, e))?;
        let (count, bytes) = sweep::unfinished(&blobs)?;
        if count > 0 {
            log::info!("removed {count} uploads of {bytes} bytes that an earlier process left");
        }
        Ok(Self {
            objects: Arc::new(LocalFileSystem::new_with_prefix(dir)?),
            directory: Some(dir.to_owned()),
            unsynced: Unsynced::default(),
            trees: Trees::open(trees)?,
            in_use: InUse::default(),
            unpacking: Mutex::default(),
            noting: tokio::sync::Mutex::default(),
        })
    }

    /// Over another object store than a directory.
    #[cfg(test)]
    pub(super) fn over(objects: Arc<dyn ObjectStore>, trees: &Path) -> Result<Self, ArtifactError> {
        let (trees, unpacking) = (Trees::open(trees)?, Mutex::default());
        let noting = tokio::sync::Mutex::default();
        let (unsynced, in_use) = Default::default();
        Ok(Self { objects, directory: None, unsynced, trees, in_use, unpacking, noting })
    }

    /// Every blob that the artifact `digest` is made of, itself included.
    ///
    /// # Errors
    /// [`ArtifactError`]: what of it is missing or damaged, so that the rest is not known.
    pub async fn parts(&self, digest: &Digest) -> Result<Vec<Digest>, ArtifactError> {
        let manifest = Manifest::read(*digest, &self.whole(digest, MAX_MANIFEST).await?)?;
        let mut parts = vec![*digest, manifest.config.digest];
        parts.extend(manifest.layers.iter().map(|l| l.digest));
        if let Some(assets) = manifest.assets(*digest)? {
            parts.push(assets);
            let index = self.asset_index(&assets).await?;
            for asset in index.assets() {
                parts.extend(asset.representations().map(|r| r.digest));
            }
        }
        Ok(parts)
    }

    /// Removes blobs that are not among `blobs` and are older than `uploading`, and trees of artifacts
    /// that are not among `trees` and that nothing runs from; does nothing where blobs are not in a directory. Returns how many
    /// blobs, of how many bytes, and how many trees.
    ///
    /// # Errors
    /// [`ArtifactError::Io`]; what was removed until then is gone.
    pub async fn sweep(
        &self,
        blobs: &BTreeSet<Digest>,
        trees: &BTreeSet<Digest>,
        uploading: Duration,
        now: Wall,
    ) -> Result<(usize, u64, usize), ArtifactError> {
        let Some(directory) = self.directory.clone() else { return Ok((0, 0, 0)) };
        let (blobs, trees, kept) = (blobs.clone(), trees.clone(), self.trees.clone());
        let in_use = self.in_use.clone();
        let at = Wall(now.0.saturating_sub(uploading.as_millis() as u64));
        let swept = tokio::task::spawn_blocking(move || {
            let (n, bytes) = sweep::blobs(&directory.join("blobs/sha256"), &blobs, at)?;
            let may_go = |name: &str| {
                let kept = trees.iter().any(|d| d.hex() == name);
                if kept { None } else { in_use.unused(name) }
            };
            Ok((n, bytes, kept.sweep(may_go)?))
        });
        swept.await?
    }

    /// Where the blob is, if the artifact store is a directory.
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        self.directory.as_ref().map(|d| d.join("blobs/sha256").join(digest.hex()))
    }

    /// The index of static files with this digest.
    ///
    /// # Errors
    /// [`ArtifactError`]: it is missing, damaged or not one.
    pub async fn asset_index(&self, digest: &Digest) -> Result<Arc<AssetIndex>, ArtifactError> {
        let bytes = self.whole(digest, MAX_INDEX).await?;
        let malformed =
            |e| ArtifactError::Malformed { digest: *digest, why: format!("asset index: {e}") };
        AssetIndex::read(&bytes).map(Arc::new).map_err(malformed)
    }

    /// The unpacked tree of the artifact `digest`: every digest was checked before it was put in place, and
    /// it is the same still. Made from the layer if there is none; where there is one, what was added to it
    /// is removed, unless it is `in_use` or something else holds it, and what was changed is written again. Those
    /// who ask at the same time share one unpacking.
    ///
    /// # Errors
    /// [`ArtifactError`]: what is missing, damaged or hostile, or why it could not be written.
    pub async fn tree(
        &self,
        digest: &Digest,
        in_use: impl FnOnce() -> bool,
    ) -> Result<Tree, ArtifactError> {
        // From before it is looked for: it could be collected between the look and the start.
        let used = self.in_use.take(digest);
        let shared = || self.in_use.is_shared(&used) || in_use();
        let Tree { root, wrote, .. } = self.looked_up(digest, shared).await?;
        Ok(Tree { root, wrote, used: Some(used) })
    }

    async fn looked_up(
        &self,
        digest: &Digest,
        in_use: impl FnOnce() -> bool,
    ) -> Result<Tree, ArtifactError> {
        let unpacking = {
            let mut all = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, other| Arc::strong_count(other) > 1);
            Arc::clone(all.entry(*digest).or_default())
        };
        let _unpacking = unpacking.lock().await;
        let (trees, name) = (self.trees.clone(), digest.hex());
        let found = tokio::task::spawn_blocking(move || trees.look(&name)).await?;
        if let Some(found) = found {
            match self.put_right(digest, found, in_use).await {
                // What cannot be put right is unpacked anew.
                Err(e) if e.is_artifact() => return Err(e),
                Err(e) => log::warn!("the tree of {digest} could not be repaired: {e}"),
                Ok(tree) => return Ok(tree),
            }
        }
        log::info!("unpacking {digest}");
        let (trees, name) = (self.trees.clone(), digest.hex());
        let (layer, _) = self.parts_of(digest).await?;
        let (objects, handle) = (Arc::clone(&self.objects), tokio::runtime::Handle::current());
        let made = tokio::task::spawn_blocking(move || {
            trees.make(&name, |root| {
                let input = handle.block_on(open(&*objects, layer))?;
                checked(input, &handle, |input| layer::read(input, Into::Empty(root), &[]))
            })
        });
        Ok(Tree { root: made.await??.0, wrote: None, used: None })
    }

    async fn put_right(
        &self,
        digest: &Digest,
        found: Found,
        in_use: impl FnOnce() -> bool,
    ) -> Result<Tree, ArtifactError> {
        let root = found.root.clone();
        if found.is_intact() {
            return Ok(Tree { root, wrote: None, used: None });
        }
        let remove = !found.added.is_empty() && !in_use();
        let tidied = tokio::task::spawn_blocking(move || {
            let wrote = (!found.added.is_empty()).then(|| found.wrote(remove));
            found.tidy(remove)?;
            Ok::<_, ArtifactError>((wrote, found.changed))
        });
        let (wrote, changed) = tidied.await??;
        if changed.is_empty() {
            return Ok(Tree { root, wrote, used: None });
        }
        log::warn!(
            "{} entries of the tree of {digest} were changed since it was unpacked, and are written \
             again from the artifact: {}",
            changed.len(),
            named(&changed)
        );
        let (layer, _) = self.parts_of(digest).await?;
        let (trees, name, at) = (self.trees.clone(), digest.hex(), root.clone());
        let repaired = move |input: &mut dyn Read| {
            let layer = layer::read(input, Into::Again(&at, &changed), &[])?;
            Ok((layer, changed))
        };
        let changed = self.read_layer(layer, repaired).await?.1;
        tokio::task::spawn_blocking(move || trees.repaired(&name, &changed)).await??;
        Ok(Tree { root, wrote, used: None })
    }

    pub(super) async fn read_layer<T: Send + 'static>(
        &self,
        layer: Descriptor,
        read: impl FnOnce(&mut dyn Read) -> Result<T, LayerError> + Send + 'static,
    ) -> Result<T, ArtifactError> {
        let input = open(&*self.objects, layer).await?;
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || checked(input, &handle, read)).await?
    }

    /// The layer that the manifest and config of `digest` agree on, and the index of static files.
    pub(super) async fn parts_of(
        &self,
        digest: &Digest,
    ) -> Result<(Descriptor, Option<Digest>), ArtifactError> {
        let manifest = Manifest::read(*digest, &self.whole(digest, MAX_MANIFEST).await?)?;
        let assets = manifest.assets(*digest)?;
        let config = manifest.config.digest;
        let image: Image = serde_json::from_slice(&self.whole(&config, MAX_MANIFEST).await?)
            .map_err(|e| ArtifactError::Malformed {
                digest: config,
                why: format!("it is no OCI config: {e}"),
            })?;
        let layer = manifest.layers.into_iter().next().expect("`Manifest::read` checked for one");
        if image.rootfs.diff_ids != [layer.digest] {
            let why = "its diff_ids are not the manifest's layer".into();
            return Err(ArtifactError::Malformed { digest: config, why });
        }
        Ok((layer, assets))
    }

    /// A whole blob of at most `limit` bytes, its digest checked.
    ///
    /// # Errors
    /// [`ArtifactError`]: it is missing, damaged or larger.
    pub async fn whole(&self, digest: &Digest, limit: u64) -> Result<Bytes, ArtifactError> {
        let got = self.objects.get(&key(digest)).await.map_err(|e| missing(digest, e))?;
        if got.meta.size > limit {
            return Err(ArtifactError::TooLarge { digest: *digest, limit });
        }
        let bytes = got.bytes().await?;
        layout::check(*digest, Sha256::new_with_prefix(&bytes))?;
        Ok(bytes)
    }

    /// Lists the artifact in `index.json`, so that other tools can read the directory as an OCI
    /// image layout. Nothing here reads it.
    ///
    /// # Errors
    /// [`ArtifactError`] when it cannot be read or written.
    pub async fn note(
        &self,
        digest: &Digest,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), ArtifactError> {
        let _one = self.noting.lock().await;
        let size = self.objects.head(&key(digest)).await.map_err(|e| missing(digest, e))?.size;
        let at = Key::from("index.json");
        let mut index: Index = match self.objects.get(&at).await {
            // One that cannot be read is of no use: it is written anew.
            Ok(got) => serde_json::from_slice(&got.bytes().await?).unwrap_or_default(),
            Err(object_store::Error::NotFound { .. }) => Index::default(),
            Err(e) => return Err(e.into()),
        };
        index.manifests.retain(|d| d.digest != *digest);
        index
            .manifests
            .push(Descriptor { annotations, ..Descriptor::of(layout::MANIFEST, *digest, size) });
        let bytes = serde_json::to_vec(&index).map_err(io::Error::other);
        let bytes = bytes.map_err(|e| ArtifactError::io("index.json", e))?;
        self.objects.put(&at, PutPayload::from(bytes)).await?;
        let marker = PutPayload::from_static(layout::OCI_LAYOUT.as_bytes());
        self.objects.put(&Key::from("oci-layout"), marker).await?;
        Ok(())
    }
}

fn missing(digest: &Digest, e: object_store::Error) -> ArtifactError {
    match e {
        object_store::Error::NotFound { .. } => ArtifactError::Missing(*digest),
        e => e.into(),
    }
}

/// A blob that is being read.
struct Open {
    blob: Descriptor,
    stream: futures_util::stream::BoxStream<'static, object_store::Result<Bytes>>,
}

async fn open(objects: &dyn ObjectStore, blob: Descriptor) -> Result<Open, ArtifactError> {
    let got = objects.get(&key(&blob.digest)).await.map_err(|e| missing(&blob.digest, e))?;
    if got.meta.size != blob.size {
        let found = format!("{} bytes instead of {}", got.meta.size, blob.size);
        return Err(ArtifactError::Damaged { expected: blob.digest, found });
    }
    Ok(Open { blob, stream: got.into_stream() })
}

/// Lets `read` read all of a blob on a blocking thread; its result counts only if the digest over
/// all bytes is right.
fn checked<T>(
    open: Open,
    handle: &tokio::runtime::Handle,
    read: impl FnOnce(&mut dyn Read) -> Result<T, LayerError>,
) -> Result<T, ArtifactError> {
    let digest = open.blob.digest;
    let mut input = Input {
        stream: open.stream,
        handle,
        rest: Bytes::new(),
        hash: Sha256::new(),
        failed: None,
    };
    let done = read(&mut input);
    // After a refusal the rest is read all the same: damage explains more than its symptom does.
    let drained = io::copy(&mut input, &mut io::sink());
    if let Some(e) = input.failed.take() {
        return Err(e.into());
    }
    layout::check(digest, input.hash)?;
    match (done, drained) {
        (Ok(done), Ok(_)) => Ok(done),
        (Err(LayerError::Refused(why)), _) => Err(ArtifactError::Malformed { digest, why }),
        (Err(LayerError::Io(e)), _) | (_, Err(e)) => Err(ArtifactError::io("layer", e)),
    }
}

struct Input<'a> {
    stream: futures_util::stream::BoxStream<'static, object_store::Result<Bytes>>,
    handle: &'a tokio::runtime::Handle,
    rest: Bytes,
    hash: Sha256,
    failed: Option<object_store::Error>,
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.handle.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(bytes)) => {
                    self.hash.update(&bytes);
                    self.rest = bytes;
                }
                Some(Err(e)) => {
                    let why = e.to_string();
                    self.failed = Some(e);
                    return Err(io::Error::other(why));
                }
            }
        }
        let n = out.len().min(self.rest.len());
        out[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}
