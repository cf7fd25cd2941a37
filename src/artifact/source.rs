//! The files that are packed, as they are found.

use std::fs;
use std::path::Path;

use crate::id::Digest;

use super::ArtifactError;
use super::layout::digest_of;

/// A file of the artifact: its name in it, and where it is.
pub type File<'a> = (&'a str, &'a Path);

/// The bytes of a file that had this digest when it was looked at.
pub fn unchanged(path: &Path, digest: &Digest) -> Result<Vec<u8>, ArtifactError> {
    let bytes = fs::read(path).map_err(|e| ArtifactError::io(path, e))?;
    if digest_of(&bytes) != *digest {
        let why = "it was changed while it was packed; deploy again";
        return Err(ArtifactError::refused(path, why));
    }
    Ok(bytes)
}
