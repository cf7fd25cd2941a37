//! The JSON documents of an OCI image layout, as far as this crate writes and reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::Digest;

use super::{ArtifactError, MAX_BYTES};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

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
