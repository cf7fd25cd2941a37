//! An unpacked artifact on disk, and the index that tells whether it is still what was unpacked.
//!
//! The index holds what `stat` says of each file and directory. A change of content, mode or
//! entries changes a `ctime`, which no program can set: a tree that was touched is found for the
//! price of a `stat` a file, on every wake. What this does not find is a disk that returns other
//! bytes than were written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crash;

use super::ArtifactError;

/// What `stat` says of one entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    inode: u64,
    mode: u32,
    size: u64,
    ctime: (i64, i64),
}

/// The index of a tree: path within it → its state after it was unpacked. The root is left out: it
/// is renamed into place after the index is made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Index(BTreeMap<String, Stat>);

impl Index {
    fn of(root: &Path) -> io::Result<Self> {
        let mut index = BTreeMap::new();
        let mut todo = vec![(root.to_owned(), String::new())];
        while let Some((dir, prefix)) = todo.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if meta.is_dir() {
                    todo.push((entry.path(), format!("{name}/")));
                }
                let stat = Stat {
                    inode: meta.ino(),
                    mode: meta.mode(),
                    size: if meta.is_dir() { 0 } else { meta.size() },
                    ctime: (meta.ctime(), meta.ctime_nsec()),
                };
                index.insert(name, stat);
            }
        }
        Ok(Self(index))
    }
}

/// Where the trees of one node are.
#[derive(Debug, Clone)]
pub struct Trees(PathBuf);

impl Trees {
    /// Opens `dir`, making it if need be, and removes what earlier processes left unfinished or
    /// put aside.
    pub fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let failed = |e| ArtifactError::io(dir, e);
        fs::create_dir_all(dir).map_err(failed)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().contains('.') {
                remove(&entry.path()).map_err(failed)?;
            }
        }
        Ok(Self(dir.to_owned()))
    }

    /// The root of the tree `name`, if it is there and still what was unpacked.
    pub fn intact(&self, name: &str) -> Option<PathBuf> {
        let dir = self.0.join(name);
        let index: Index = serde_json::from_slice(&fs::read(dir.join("index.json")).ok()?).ok()?;
        let root = dir.join("root");
        (Index::of(&root).ok()? == index).then_some(root)
    }

    /// Makes the tree `name` with `unpack`, which is given an empty directory. Nothing takes its
    /// place unless `unpack` succeeds; one that was there is put aside, so that what still runs
    /// from it keeps its files.
    pub fn make<T, E: From<ArtifactError>>(
        &self,
        name: &str,
        unpack: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(PathBuf, T), E> {
        let partial = self.0.join(format!("{name}.partial"));
        let failed = |e| ArtifactError::io(&partial, e);
        remove(&partial).map_err(failed)?;
        let root = partial.join("root");
        fs::create_dir_all(&root).map_err(failed)?;
        let done = match unpack(&root) {
            Ok(done) => done,
            Err(e) => {
                let _ = remove(&partial);
                return Err(e);
            }
        };
        self.finish(name, &partial).map_err(failed)?;
        Ok((self.0.join(name).join("root"), done))
    }

    /// Removes the trees whose name `keep` does not want; returns how many. Each is put aside first: one
    /// that is half removed is no tree.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool) -> Result<usize, ArtifactError> {
        let failed = |e| ArtifactError::io(&self.0, e);
        let mut removed = 0;
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Those with a dot are being made or removed.
            if name.contains('.') || keep(&name) {
                continue;
            }
            let aside = self.0.join(format!("{name}.aside"));
            remove(&aside).map_err(failed)?;
            fs::rename(entry.path(), &aside).map_err(failed)?;
            crash::before("collect", "tree");
            remove(&aside).map_err(failed)?;
            crash::after("collect", "tree");
            removed += 1;
        }
        Ok(removed)
    }

    fn finish(&self, name: &str, partial: &Path) -> io::Result<()> {
        let index = Index::of(&partial.join("root"))?;
        let bytes = serde_json::to_vec(&index).map_err(io::Error::other)?;
        fs::write(partial.join("index.json"), bytes)?;
        // All of it at once: a file each would cost a flush each.
        nix::unistd::syncfs(File::open(partial)?)?;
        let at = self.0.join(name);
        let aside = self.0.join(format!("{name}.aside"));
        remove(&aside)?;
        match fs::rename(&at, &aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::rename(partial, &at)?;
        File::open(&self.0)?.sync_all()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
