//! The JSON documents of an OCI image layout, as far as this crate writes and reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::assets::Coding;
use crate::id::Digest;

use super::spool::Spool;
use super::{ArtifactError, MAX_BYTES, encode};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Where a blob is in the object store.
pub(super) fn key(digest: &Digest) -> object_store::path::Path {
    format!("blobs/sha256/{}", digest.hex()).into()
}

/// One blob of a packed artifact.
#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub media_type: &'static str,
    pub place: Place,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a spool, from here on.
    Spool(Arc<Spool>, u64),
    /// A file of the directory that was packed.
    File(PathBuf),
    /// Not made yet, since the edge has it: such an encoding of this file.
    Encoding(PathBuf, Coding),
}

impl Blob {
    /// Of `bytes`, which are kept in `spool`.
    pub fn write(
        bytes: &[u8],
        spool: &Arc<Spool>,
        media_type: &'static str,
    ) -> Result<Self, ArtifactError> {
        let place = Place::Spool(Arc::clone(spool), spool.append(bytes)?);
        Ok(Self { digest: digest_of(bytes), size: bytes.len() as u64, media_type, place })
    }

    /// Its bytes. That they are still those that were packed is for the edge to find out.
    ///
    /// # Errors
    /// [`ArtifactError::Io`]; [`ArtifactError::Refused`] for an encoding that cannot be made again.
    pub fn open(&self) -> Result<Box<dyn Read>, ArtifactError> {
        let read = |path: &Path| File::open(path).map_err(|e| ArtifactError::io(path, e));
        Ok(match &self.place {
            Place::Spool(spool, at) => Box::new(spool.read(*at, self.size)),
            Place::File(path) => Box::new(read(path)?),
            Place::Encoding(path, coding) => {
                let mut plain = Vec::new();
                let whole = read(path)?.read_to_end(&mut plain);
                whole.map_err(|e| ArtifactError::io(path, e))?;
                Box::new(io::Cursor::new(encode::one(*coding, &plain)))
            }
        })
    }

    /// All of its bytes.
    ///
    /// # Errors
    /// As [`Self::open`]; [`ArtifactError::Refused`] where they are not those that were packed.
    pub fn bytes(&self) -> Result<Vec<u8>, ArtifactError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0));
        let path = match &self.place {
            Place::Spool(..) => std::env::temp_dir(),
            Place::File(path) | Place::Encoding(path, _) => path.clone(),
        };
        let read = self.open()?.take(self.size + 1).read_to_end(&mut bytes);
        read.map_err(|e| ArtifactError::io(&path, e))?;
        if digest_of(&bytes) != self.digest {
            let why = "it was changed while it was packed; deploy again";
            return Err(ArtifactError::refused(path, why));
        }
        Ok(bytes)
    }
}

/// Annotation of a manifest that names the index of the static files. An annotation and not a layer,
/// so that the artifact stays an image that any container runner starts.
pub const ASSETS: &str = "dev.vango-edge.assets";

/// The content of the `oci-layout` file.
pub const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Names a blob. Source: OCI image spec, `descriptor.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn of(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The index of its static files.
    pub fn assets(&self, digest: Digest) -> Result<Option<Digest>, ArtifactError> {
        let Some(text) = self.annotations.get(ASSETS) else { return Ok(None) };
        let parsed = text.parse();
        let why = |e| ArtifactError::Malformed { digest, why: format!("annotation {ASSETS}: {e}") };
        parsed.map(Some).map_err(why)
    }

    /// The one layer of a manifest as [`super::pack`] makes it.
    pub fn read(digest: Digest, bytes: &[u8]) -> Result<Self, ArtifactError> {
        let malformed = |why: String| ArtifactError::Malformed { digest, why };
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|e| malformed(format!("it is no OCI image manifest: {e}")))?;
        if manifest.schema_version != 2 || manifest.media_type != MANIFEST {
            return Err(malformed(format!("expected schema version 2 and media type {MANIFEST}")));
        }
        if manifest.config.media_type != CONFIG {
            return Err(malformed(format!("expected a config of media type {CONFIG}")));
        }
        match &manifest.layers[..] {
            [layer] if layer.media_type != LAYER => Err(malformed(format!(
                "its layer is {}; expected {LAYER}, as `deploy` makes it",
                layer.media_type
            ))),
            // Headers and padding come on top of the files' own bytes.
            [layer] if layer.size > 2 * MAX_BYTES => {
                Err(ArtifactError::TooLarge { digest: layer.digest, limit: 2 * MAX_BYTES })
            }
            [_] => Ok(manifest),
            layers => Err(malformed(format!("it has {} layers; expected one", layers.len()))),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    pub architecture: String,
    pub os: String,
    pub rootfs: RootFs,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, media_type: INDEX.into(), manifests: Vec::new() }
    }
}

/// SHA-256 of bytes at hand.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// Whether what went into `hash` is the content of the blob `expected`.
///
/// # Errors
/// [`ArtifactError::Damaged`].
pub fn check(expected: Digest, hash: Sha256) -> Result<(), ArtifactError> {
    let found = Digest::from_bytes(hash.finalize().into());
    if found == expected {
        return Ok(());
    }
    Err(ArtifactError::Damaged { expected, found: found.to_string() })
}

/// Hashes what is read or written through it.
pub struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// The digest of all that went through.
    pub fn digest(self) -> Digest {
        Digest::from_bytes(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hash.update(&out[..n]);
        Ok(n)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
