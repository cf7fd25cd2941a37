//! Removes blobs that nothing names any more from a directory.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::clock::Wall;
use crate::crash;
use crate::id::Digest;

use super::ArtifactError;

/// Says that a blob is wanted now, by its time of change. What cannot be said is found to be missing when
/// it is needed, and deployed again.
pub fn touch(path: &Path) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let now = TimeSpec::UTIME_NOW;
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, UtimensatFlags::FollowSymlink);
}

/// Removes the files of `dir` whose name is no digest: what uploads left that were broken off. Returns
/// how many, and their bytes.
pub fn unfinished(dir: &Path) -> Result<(usize, u64), ArtifactError> {
    remove(dir, |_| true, |_| true, || {})
}

/// Removes the files of `dir` whose name is no digest among `keep` and that last changed before `before`:
/// blobs, and what an upload that broke off left. Returns how many, and their bytes.
pub fn blobs(
    dir: &Path,
    keep: &BTreeSet<Digest>,
    before: Wall,
) -> Result<(usize, u64), ArtifactError> {
    let is_old = |meta: &Metadata| {
        let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        // One whose time cannot be read is not old.
        changed.is_some_and(|t| (t.as_millis() as u64) < before.0)
    };
    remove(dir, |digest| keep.contains(&digest), is_old, || crash::after("collect", "blob"))
}

/// Removes the old files of `dir` but those that stay by the digest that they are named by, which are not looked at.
fn remove(
    dir: &Path,
    stays: impl Fn(Digest) -> bool,
    is_old: impl Fn(&Metadata) -> bool,
    removed: impl Fn(),
) -> Result<(usize, u64), ArtifactError> {
    let failed = |e| ArtifactError::io(dir, e);
    let (mut count, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|name| format!("sha256:{name}").parse().ok());
        if digest.is_some_and(&stays) {
            continue;
        }
        let meta = entry.metadata().map_err(failed)?;
        if meta.is_file() && is_old(&meta) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| ArtifactError::io(&path, e))?;
            removed();
            count += 1;
            bytes += meta.len();
        }
    }
    Ok((count, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_old_and_unnamed_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (Digest::from_bytes([1; 32]), Digest::from_bytes([2; 32]));
        for name in [kept.hex(), gone.hex(), format!("{}#1", gone.hex())] {
            fs::write(dir.path().join(name), "12345").unwrap();
        }
        let keep = BTreeSet::from([kept]);
        assert_eq!(blobs(dir.path(), &keep, Wall(1000)).unwrap(), (0, 0), "all are young");
        assert_eq!(
            unfinished(dir.path()).unwrap(),
            (1, 5),
            "no upload goes on with it after a start"
        );
        fs::write(dir.path().join(format!("{}#1", gone.hex())), "12345").unwrap();
        let later = Wall(u64::MAX);
        assert_eq!(blobs(dir.path(), &keep, later).unwrap(), (2, 10));
        assert_eq!(blobs(dir.path(), &keep, later).unwrap(), (0, 0), "again is once");
        assert!(dir.path().join(kept.hex()).exists());
    }
}
