//! The bytes of static files, close to the requests: small ones in memory up to a bound, large ones
//! from the local disk. Nothing is believed before its digest was checked over all of it; those who
//! ask for the same bytes at the same time share one reading and one check.
//!
//! Keys are digests: what is cached cannot become stale, only unused.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};

use crate::id::Digest;

use super::{ArtifactError, Artifacts, layout};

/// Larger ones are read from disk each time, so that one video does not push out every style sheet.
const IN_MEMORY: u64 = 1 << 20;
/// Large files whose digest was checked, kept open.
const OPEN_FILES: usize = 64;
/// Read from disk at a time, and held while a client takes nothing.
const CHUNK: usize = 64 * 1024;

#[derive(Clone)]
struct ByLength;

impl quick_cache::Weighter<Digest, Bytes> for ByLength {
    fn weight(&self, _: &Digest, bytes: &Bytes) -> u64 {
        // What an entry costs besides; an empty file is not free.
        bytes.len() as u64 + 128
    }
}

/// Bytes by digest.
pub struct AssetBytes {
    artifacts: Arc<Artifacts>,
    memory: Cache<Digest, Bytes, ByLength>,
    open: Cache<Digest, Arc<Large>>,
}

/// A large file, open, and what it was when its digest was checked.
pub struct Large {
    file: File,
    checked: Stat,
}

/// Size and time of the last change, which no program can set.
type Stat = (u64, i64, i64);

fn stat(file: &File) -> io::Result<Stat> {
    let meta = file.metadata()?;
    Ok((meta.size(), meta.ctime(), meta.ctime_nsec()))
}

/// Bytes that were checked.
#[derive(Clone)]
pub enum Content {
    /// All of them.
    Memory(Bytes),
    /// In a file; see [`Content::read`].
    Disk(Arc<Large>),
}

impl Content {
    /// The bytes of `part`, or as many of its first ones as are read at a time.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] when the disk fails or the file became shorter.
    pub async fn read(&self, part: Range<u64>) -> Result<Bytes, ArtifactError> {
        let large = match self {
            Self::Memory(all) => {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(all.len());
                return Ok(all.slice(at(part.start)..at(part.end)));
            }
            Self::Disk(large) => Arc::clone(large),
        };
        let length = usize::try_from(part.end - part.start).unwrap_or(CHUNK).min(CHUNK);
        let read = tokio::task::spawn_blocking(move || {
            let mut out = vec![0; length];
            large.file.read_exact_at(&mut out, part.start)?;
            Ok(Bytes::from(out))
        });
        read.await?.map_err(|e: io::Error| ArtifactError::io("asset", e))
    }
}

impl AssetBytes {
    /// At most about `capacity` bytes in memory.
    pub fn new(artifacts: Arc<Artifacts>, capacity: u64) -> Self {
        let items = usize::try_from(capacity / (16 * 1024)).unwrap_or(usize::MAX).max(64);
        Self {
            artifacts,
            memory: Cache::with_weighter(items, capacity, ByLength),
            open: Cache::new(OPEN_FILES),
        }
    }

    /// Bytes kept in memory now, and how many files they are.
    pub fn kept(&self) -> (u64, usize) {
        (self.memory.weight(), self.memory.len())
    }

    /// The `size` bytes with this digest.
    ///
    /// # Errors
    /// [`ArtifactError`]: they are missing or damaged.
    pub async fn open(&self, digest: &Digest, size: u64) -> Result<Content, ArtifactError> {
        let path = self.artifacts.blob_path(digest).filter(|_| size > IN_MEMORY);
        let Some(path) = path else {
            let read = async {
                let bytes = self.artifacts.whole(digest, size).await?;
                has_size(digest, bytes.len() as u64, size)?;
                Ok(bytes)
            };
            return self.memory.get_or_insert_async(digest, read).await.map(Content::Memory);
        };
        if let Some(known) = self.open.get(digest)
            && stat(&known.file).is_ok_and(|now| now != known.checked)
        {
            self.open.remove(digest);
        }
        let digest = *digest;
        let check = async {
            let large = tokio::task::spawn_blocking(move || check(&path, &digest, size)).await??;
            Ok(Arc::new(large))
        };
        self.open.get_or_insert_async(&digest, check).await.map(Content::Disk)
    }
}

fn has_size(digest: &Digest, found: u64, size: u64) -> Result<(), ArtifactError> {
    if found == size {
        return Ok(());
    }
    let found = format!("{found} bytes instead of {size}");
    Err(ArtifactError::Damaged { expected: *digest, found })
}

/// Opens a large blob and reads all of it once.
fn check(path: &Path, digest: &Digest, size: u64) -> Result<Large, ArtifactError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => ArtifactError::Missing(*digest),
        _ => ArtifactError::io(path, e),
    };
    let mut file = File::open(path).map_err(failed)?;
    let checked = stat(&file).map_err(failed)?;
    has_size(digest, checked.0, size)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(failed)?;
    layout::check(*digest, hash)?;
    Ok(Large { file, checked })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::path::Path as Key;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::*;
    use crate::artifact::layout::digest_of;

    async fn store(dir: &Path, bytes: Vec<u8>) -> (Arc<Artifacts>, Digest, u64) {
        let artifacts = Arc::new(Artifacts::local(&dir.join("a"), &dir.join("t")).unwrap());
        let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
        let content = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from(bytes))]);
        artifacts.put(&digest, u64::MAX, content).await.unwrap();
        (artifacts, digest, size)
    }

    #[tokio::test]
    async fn small_and_large_files_are_checked_before_they_are_believed() {
        for size in [1000usize, IN_MEMORY as usize + 1000] {
            let dir = tempfile::tempdir().unwrap();
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let (artifacts, digest, size) = store(dir.path(), bytes.clone()).await;
            let files = AssetBytes::new(Arc::clone(&artifacts), 1 << 20);
            let content = files.open(&digest, size).await.unwrap();
            assert_eq!(&content.read(10..30).await.unwrap()[..], &bytes[10..30]);
            let other_size = AssetBytes::new(Arc::clone(&artifacts), 1 << 20);
            assert!(other_size.open(&digest, size - 1).await.is_err());

            let blob = artifacts.blob_path(&digest).unwrap();
            let mut damaged = bytes.clone();
            damaged[500] ^= 1;
            std::fs::write(&blob, damaged).unwrap();
            let fresh = AssetBytes::new(Arc::clone(&artifacts), 1 << 20);
            let error = fresh.open(&digest, size).await.err().unwrap();
            assert!(matches!(error, ArtifactError::Damaged { .. }), "{error}");
            std::fs::remove_file(&blob).unwrap();
            let error = fresh.open(&digest, size).await.err().unwrap();
            assert!(matches!(error, ArtifactError::Missing(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut files: Option<AssetBytes> = None;
        for n in 0..200u8 {
            let (artifacts, digest, size) = store(dir.path(), vec![n; 10_000]).await;
            let files = files.get_or_insert_with(|| AssetBytes::new(artifacts, 500_000));
            files.open(&digest, size).await.unwrap();
            assert!(files.kept().0 <= 500_000);
        }
        assert!(files.unwrap().kept().1 > 5);
    }

    /// Those who ask at once share one reading, whatever comes of it; a failure is no answer to later ones.
    #[tokio::test]
    async fn a_hundred_who_ask_at_once_are_one_reading_of_the_artifact_store() {
        let dir = tempfile::tempdir().unwrap();
        let gated = Arc::new(Gated::default());
        let objects = Arc::clone(&gated) as Arc<dyn ObjectStore>;
        let artifacts = Arc::new(Artifacts::over(objects, dir.path()).unwrap());
        let files = Arc::new(AssetBytes::new(Arc::clone(&artifacts), 1 << 20));
        let bytes = Bytes::from(vec![7u8; 5000]);
        let (digest, damaged) = (digest_of(&bytes), Bytes::from(vec![8u8; 5000]));
        let at = Key::from(format!("blobs/sha256/{}", digest.hex()));
        for (stored, good, reads) in [(damaged, 0, 100), (bytes.clone(), 100, 1)] {
            gated.inner.put(&at, stored.into()).await.unwrap();
            gated.reads.store(0, Ordering::SeqCst);
            let asking: Vec<_> = (0..100)
                .map(|_| {
                    let files = Arc::clone(&files);
                    tokio::spawn(async move { files.open(&digest, 5000).await })
                })
                .collect();
            while gated.reads.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            gated.gate.add_permits(1000);
            let mut served = 0;
            for answer in asking {
                match answer.await.unwrap() {
                    Ok(content) => {
                        served += 1;
                        assert_eq!(content.read(0..5000).await.unwrap(), bytes);
                    }
                    Err(e) => assert!(matches!(e, ArtifactError::Damaged { .. }), "{e}"),
                }
            }
            assert_eq!(served, good, "nothing is believed before its digest was checked");
            let read = gated.reads.load(Ordering::SeqCst);
            assert!((1..=reads).contains(&read), "{read}");
            gated.gate.forget_permits(1000);
        }
    }

    /// Counts what is read of it, and answers once there are permits.
    #[derive(Debug)]
    struct Gated {
        inner: InMemory,
        reads: AtomicUsize,
        gate: tokio::sync::Semaphore,
    }
    impl Default for Gated {
        fn default() -> Self {
            let gate = tokio::sync::Semaphore::new(0);
            Self { inner: InMemory::new(), reads: AtomicUsize::new(0), gate }
        }
    }
    impl std::fmt::Display for Gated {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Gated")
        }
    }
    #[async_trait::async_trait]
    impl ObjectStore for Gated {
        async fn get_opts(&self, at: &Key, options: GetOptions) -> Result<GetResult> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let _permit = self.gate.acquire().await.unwrap();
            self.inner.get_opts(at, options).await
        }
        async fn put_opts(&self, at: &Key, p: PutPayload, o: PutOptions) -> Result<PutResult> {
            self.inner.put_opts(at, p, o).await
        }
        async fn put_multipart_opts(
            &self,
            at: &Key,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(at, options).await
        }
        fn delete_stream(
            &self,
            at: BoxStream<'static, Result<Key>>,
        ) -> BoxStream<'static, Result<Key>> {
            self.inner.delete_stream(at)
        }
        fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }
}
