//! What a client that deploys asks and sends: which blobs are missing, one large blob, many small ones.
//!
//! A blob is there whole or not at all while the system runs: it is written beside its place and renamed
//! there after its digest was checked. It is on disk before a deployment that names it is recorded
//! ([`Artifacts::flush`]), and not before: a blob that a power cut took half of has another digest than its
//! name, so that the next deploy uploads it again.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::crash;
use crate::id::Digest;

use super::each::each;
use super::layout::{self, Blob, Hashed, digest_of, key};
use super::{ArtifactError, Artifacts, sweep};

/// Bytes of an upload that are kept in memory before they are written.
const CHUNK: usize = 1 << 20;

/// Larger blobs are sent one by one.
pub const SMALL: u64 = 1 << 20;
/// Bytes of a batch, its framing included, at most.
pub const BATCH_BYTES: usize = 16 << 20;
/// Blobs of a batch, at most.
pub const BATCH_BLOBS: usize = 8192;
/// Digests that are asked about at once, at most.
pub const ASKED: usize = 10_000;

/// Blobs that are flushed one by one; of more, the file system.
const ONE_BY_ONE: usize = 64;

/// What may not be on disk yet.
#[derive(Debug, Default, Clone)]
pub struct Unsynced(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
enum Pending {
    These(BTreeSet<Digest>),
    /// More than are flushed one by one, or what an earlier process wrote.
    #[default]
    Many,
}

impl Pending {
    fn add(&mut self, digest: Digest) {
        if let Self::These(these) = self {
            these.insert(digest);
            if these.len() > ONE_BY_ONE {
                *self = Self::Many;
            }
        }
    }
}

impl Artifacts {
    /// Whether the blob is there and undamaged: all of it is read, so that deploying an artifact
    /// again repairs what was damaged on disk.
    ///
    /// # Errors
    /// [`ArtifactError::Store`] when the object store cannot say.
    pub async fn has(&self, digest: &Digest) -> Result<bool, ArtifactError> {
        let mut content = match self.objects.get(&key(digest)).await {
            Ok(got) => got.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        // The client that asks is about to deploy it: it counts as uploaded now.
        if let Some(path) = self.blob_path(digest) {
            sweep::touch(&path);
        }
        let mut hash = Sha256::new();
        while let Some(bytes) = content.next().await {
            hash.update(bytes?);
        }
        Ok(layout::check(*digest, hash).is_ok())
    }

    /// Those of `digests` that are not there, or damaged.
    ///
    /// # Errors
    /// As [`Self::has`]; [`ArtifactError::Io`].
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, ArtifactError> {
        let Some(blobs) = self.blobs() else {
            let mut missing = Vec::new();
            for digest in digests {
                if !self.has(&digest).await? {
                    missing.push(digest);
                }
            }
            return Ok(missing);
        };
        let looked = tokio::task::spawn_blocking(move || {
            let there = each(&digests, &mut |_, _| {}, |digest| {
                let path = blobs.join(digest.hex());
                let there = hash_of(&path)?.is_some_and(|(found, _)| found == *digest);
                if there {
                    sweep::touch(&path);
                }
                Ok(there)
            })?;
            let missing = digests.iter().zip(there).filter(|(_, there)| !there);
            Ok(missing.map(|(digest, _)| *digest).collect())
        });
        looked.await?
    }

    /// Stores `content` as the blob `digest`. It is there whole or not at all.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] when the content is not the digest's, [`ArtifactError::TooLarge`]
    /// above `limit` bytes, [`ArtifactError::Interrupted`] when the stream ends with an error.
    pub async fn put<S, E>(
        &self,
        digest: &Digest,
        limit: u64,
        content: S,
    ) -> Result<u64, ArtifactError>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: fmt::Display,
    {
        let upload = self.objects.put_multipart(&key(digest)).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, CHUNK);
        match copy(digest, limit, content, &mut writer).await {
            Ok(size) => {
                // Before it has its name, and locked until then: one that is there and is not flushed would be
                // named by the next deployment, also where this client leaves or the end of it fails.
                let mut pending = self.unsynced.0.lock().await;
                pending.add(*digest);
                writer.finish().await?;
                Ok(size)
            }
            Err(e) => {
                writer.abort().await?;
                Err(e)
            }
        }
    }

    /// Stores every blob of a [`batch`]; those before one that is refused are stored. Returns how many.
    ///
    /// # Errors
    /// [`ArtifactError::Batch`] for what is no such archive, [`ArtifactError::Damaged`] for a blob that is not
    /// what its name says, [`ArtifactError::Io`] where it cannot be written.
    pub async fn put_batch(&self, archive: Bytes) -> Result<usize, ArtifactError> {
        let (blobs, unsynced) = (self.blobs(), self.unsynced.clone());
        let read = tokio::task::spawn_blocking(move || {
            let all = unpack(&archive)?;
            let Some(dir) = blobs else { return Ok(all) };
            each(&all, &mut |_, _| {}, |(digest, bytes)| write(&dir, digest, bytes, &unsynced))?;
            Ok::<_, ArtifactError>(all)
        });
        let all = read.await??;
        if self.directory.is_none() {
            for (digest, bytes) in &all {
                self.objects.put(&key(digest), PutPayload::from(bytes.clone())).await?;
            }
        }
        Ok(all.len())
    }

    /// Returns once every blob that was stored is on disk, with its name.
    ///
    /// # Errors
    /// [`ArtifactError::Io`]: that is not known, and the next call tries again.
    pub async fn flush(&self) -> Result<(), ArtifactError> {
        let Some(blobs) = self.blobs() else { return Ok(()) };
        // Held meanwhile: who comes next may need the same blobs.
        let mut pending = self.unsynced.0.lock().await;
        let before = std::mem::take(&mut *pending);
        let flushed = tokio::task::spawn_blocking(move || {
            let synced = |path: &Path, how: fn(&File) -> io::Result<()>| {
                let done = File::open(path).and_then(|file| how(&file));
                done.map_err(|e| ArtifactError::io(path, e))
            };
            match before {
                Pending::Many => synced(&blobs, |dir| Ok(nix::unistd::syncfs(dir)?)),
                Pending::These(these) if these.is_empty() => Ok(()),
                Pending::These(these) => {
                    for digest in these {
                        match synced(&blobs.join(digest.hex()), File::sync_all) {
                            // Collected, or uploaded for a deployment that will not find it.
                            Err(ArtifactError::Io { source, .. })
                                if source.kind() == io::ErrorKind::NotFound => {}
                            done => done?,
                        }
                    }
                    synced(&blobs, File::sync_all)
                }
            }
        });
        flushed.await??;
        *pending = Pending::These(BTreeSet::new());
        Ok(())
    }

    fn blobs(&self) -> Option<std::path::PathBuf> {
        self.directory.as_ref().map(|dir| dir.join("blobs/sha256"))
    }
}

/// Digest and size of a file, unless there is none.
pub(super) fn hash_of(path: &Path) -> Result<Option<(Digest, u64)>, ArtifactError> {
    let failed = |e| ArtifactError::io(path, e);
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut hashed = Hashed::new(&mut file);
    let size = io::copy(&mut hashed, &mut io::sink()).map_err(failed)?;
    Ok(Some((hashed.digest(), size)))
}

/// Tells the files of writers apart that store one blob at the same time.
static WRITERS: AtomicU64 = AtomicU64::new(0);

fn write(
    dir: &Path,
    digest: &Digest,
    bytes: &[u8],
    unsynced: &Unsynced,
) -> Result<(), ArtifactError> {
    let found = digest_of(bytes);
    if found != *digest {
        return Err(ArtifactError::Damaged { expected: *digest, found: found.to_string() });
    }
    // No digest: a start removes it if this process is killed before it has its name.
    let number = WRITERS.fetch_add(1, Ordering::Relaxed);
    let part = dir.join(format!("{}#batch-{number}", digest.hex()));
    let written = fs::write(&part, bytes).and_then(|()| {
        crash::before("upload", "blob");
        // One step for `flush`: a batch that fails further on, or whose client leaves, has stored this one.
        let mut pending = unsynced.0.blocking_lock();
        pending.add(*digest);
        fs::rename(&part, dir.join(digest.hex()))
    });
    written.map_err(|e| {
        // A full disk: what was written of it helps nobody.
        let _ = fs::remove_file(&part);
        ArtifactError::io(part, e)
    })
}

/// Many small blobs as one upload: an archive of tar, each named by the hexadecimal digits of its digest.
///
/// # Errors
/// As [`Blob::bytes`].
pub fn batch<'a>(blobs: impl IntoIterator<Item = &'a Blob>) -> Result<Vec<u8>, ArtifactError> {
    let mut tar = tar::Builder::new(Vec::new());
    let in_memory = |e| ArtifactError::io("batch", e);
    for blob in blobs {
        let bytes = blob.bytes()?;
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, blob.digest.hex(), &*bytes).map_err(in_memory)?;
    }
    tar.into_inner().map_err(in_memory)
}

fn unpack(archive: &[u8]) -> Result<Vec<(Digest, Bytes)>, ArtifactError> {
    let no_archive = |e: io::Error| ArtifactError::Batch(format!("it is no archive of tar: {e}"));
    let mut all = Vec::new();
    for entry in tar::Archive::new(archive).entries().map_err(no_archive)? {
        let mut entry = entry.map_err(no_archive)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Ok(digest) = format!("sha256:{name}").parse() else {
            let why = format!("{:?} is no SHA-256 digest in hexadecimal", truncated(&name));
            return Err(ArtifactError::Batch(why));
        };
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(ArtifactError::Batch(format!("{name} is no regular file")));
        }
        if entry.size() > SMALL {
            return Err(ArtifactError::TooLarge { digest, limit: SMALL });
        }
        if all.len() == BATCH_BLOBS {
            return Err(ArtifactError::Batch(format!("it has more than {BATCH_BLOBS} blobs")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
        entry.read_to_end(&mut bytes).map_err(no_archive)?;
        all.push((digest, Bytes::from(bytes)));
    }
    Ok(all)
}

fn truncated(name: &str) -> String {
    name.chars().take(100).collect()
}

async fn copy<S, E>(
    digest: &Digest,
    limit: u64,
    content: S,
    writer: &mut WriteMultipart,
) -> Result<u64, ArtifactError>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: fmt::Display,
{
    let mut content = pin!(content);
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    while let Some(bytes) = content.next().await {
        let bytes = bytes
            .map_err(|e| ArtifactError::Interrupted { digest: *digest, why: e.to_string() })?;
        size += bytes.len() as u64;
        if size > limit {
            return Err(ArtifactError::TooLarge { digest: *digest, limit });
        }
        hash.update(&bytes);
        // A slow disk slows the upload down instead of filling the memory.
        writer.wait_for_capacity(4).await?;
        writer.put(bytes);
    }
    layout::check(*digest, hash)?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a batch is for clients: digests as names, whether they are the content's or not.
    fn archive(blobs: &[(Digest, &[u8])]) -> Bytes {
        let mut tar = tar::Builder::new(Vec::new());
        for (digest, bytes) in blobs {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, digest.hex(), *bytes).unwrap();
        }
        tar.into_inner().unwrap().into()
    }

    #[tokio::test]
    async fn what_a_failed_batch_stored_is_flushed_with_the_next_deployment() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts =
            Artifacts::local(&dir.path().join("artifacts"), &dir.path().join("trees")).unwrap();
        artifacts.flush().await.unwrap();
        let mut blobs: Vec<(Digest, &[u8])> = vec![(digest_of(b"good"), b"good")];
        // Work stops at the damaged one; what comes before it was stored.
        blobs.push((digest_of(b"other"), b"damaged"));
        let failed = artifacts.put_batch(archive(&blobs)).await;
        assert!(matches!(failed, Err(ArtifactError::Damaged { .. })), "{failed:?}");
        assert!(artifacts.has(&blobs[0].0).await.unwrap());
        let pending = artifacts.unsynced.0.lock().await;
        let Pending::These(these) = &*pending else { panic!("{pending:?}") };
        assert_eq!(these.iter().collect::<Vec<_>>(), [&blobs[0].0]);
    }
}
