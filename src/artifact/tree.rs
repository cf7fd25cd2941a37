//! An unpacked artifact on disk, and the listing that tells whether it is still what was unpacked.
//!
//! The listing holds what `stat` says of each entry, and is written once everything was verified. A change
//! of a file's content or mode changes its `ctime`, which no program can set: a tree that was touched is
//! found for the price of a `stat` an entry, on every wake, without reading a file. What this does not find
//! is a disk that returns other bytes than were written, and a root user who sets the clock back.
//!
//! Only root can write to a tree without taking the right first. What is found in it all the same is
//! removed if it was added, and written again if it was changed or is gone; the rest of the tree stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crash;
use crate::files::remove;

use super::ArtifactError;

/// The listing's file, beside the tree's root. One of an earlier version had another name; its tree is
/// unpacked once more, read-only.
const LISTING: &str = "listing.json";

/// Paths of what was found in a tree that are named in the log.
const NAMED: usize = 5;

/// What `stat` says of one entry. Of a directory only the mode counts: what was added to it or taken away
/// is found by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    inode: u64,
    mode: u32,
    size: u64,
    ctime: (i64, i64),
}

impl Stat {
    fn of(meta: &fs::Metadata) -> Self {
        if meta.is_dir() {
            return Self { inode: 0, mode: meta.mode(), size: 0, ctime: (0, 0) };
        }
        let ctime = (meta.ctime(), meta.ctime_nsec());
        Self { inode: meta.ino(), mode: meta.mode(), size: meta.size(), ctime }
    }
}

/// Path within a tree → its state after it was unpacked. The root is left out: it is renamed into place
/// after the listing is made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listing(BTreeMap<String, Stat>);

impl Listing {
    /// Of `root` as it is. What is below a directory that `skip` says is not looked at.
    fn of(root: &Path, skip: impl Fn(&str) -> bool) -> io::Result<Self> {
        let mut all = BTreeMap::new();
        let mut todo = vec![(root.to_owned(), String::new())];
        while let Some((dir, prefix)) = todo.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if meta.is_dir() && !skip(&name) {
                    todo.push((entry.path(), format!("{name}/")));
                }
                all.insert(name, Stat::of(&meta));
            }
        }
        Ok(Self(all))
    }
}

/// A tree that is there.
#[derive(Debug)]
pub struct Found {
    pub root: PathBuf,
    /// What was added; of a directory that was, only itself.
    pub added: BTreeSet<String>,
    /// Directories with another mode.
    opened: BTreeSet<String>,
    /// What else is not as it was unpacked, or is gone.
    pub changed: BTreeSet<String>,
}

/// What was written into a tree since it was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrote {
    /// Files and links.
    pub files: u64,
    pub bytes: u64,
    /// The first few paths, as people read them.
    pub paths: String,
    /// Whether it was removed: not while another process runs from the tree.
    pub removed: bool,
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
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().contains('.') {
                remove(&entry.path()).map_err(failed)?;
            }
        }
        Ok(Self(dir.to_owned()))
    }

    /// The tree `name`, and how it differs from what was unpacked; `None` where there is none.
    pub fn look(&self, name: &str) -> Option<Found> {
        let dir = self.0.join(name);
        let listed: Listing = serde_json::from_slice(&fs::read(dir.join(LISTING)).ok()?).ok()?;
        let root = dir.join("root");
        let now = Listing::of(&root, |name| !listed.0.contains_key(name)).ok()?;
        let added = now.0.keys().filter(|name| !listed.0.contains_key(*name));
        let added = added.cloned().collect();
        let (mut opened, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for (name, stat) in &listed.0 {
            match now.0.get(name) {
                Some(same) if same == stat => {}
                // As only directories are told of.
                Some(dir) if (dir.inode, stat.inode) == (0, 0) => {
                    opened.insert(name.clone());
                }
                _ => {
                    changed.insert(name.clone());
                }
            }
        }
        Some(Found { root, added, opened, changed })
    }

    /// Writes the listing of a tree anew of which `changed` was written again.
    pub fn repaired(&self, name: &str, changed: &BTreeSet<String>) -> Result<(), ArtifactError> {
        let dir = self.0.join(name);
        let write = || {
            let listed: Listing = serde_json::from_slice(&fs::read(dir.join(LISTING))?)?;
            let now = Listing::of(&dir.join("root"), |_| false)?;
            let kept = |all: &Listing| -> BTreeMap<String, Stat> {
                let kept = all.0.iter().filter(|(name, _)| !changed.contains(*name));
                kept.map(|(name, stat)| (name.clone(), stat.clone())).collect()
            };
            if kept(&listed) != kept(&now) {
                return Err(io::Error::other("it changed while it was repaired"));
            }
            nix::unistd::syncfs(File::open(&dir)?)?;
            let next = dir.join("listing.next");
            fs::write(&next, serde_json::to_vec(&now)?)?;
            fs::rename(next, dir.join(LISTING))
        };
        write().map_err(|e| ArtifactError::io(&dir, e))
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

    /// Removes the trees of which `may_go` says so by their name; returns how many. Each is put aside first, while
    /// what `may_go` gave lives: one that is half removed is no tree.
    pub fn sweep<G>(&self, may_go: impl Fn(&str) -> Option<G>) -> Result<usize, ArtifactError> {
        let failed = |e| ArtifactError::io(&self.0, e);
        let mut removed = 0;
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Those with a dot are being made or removed.
            if name.contains('.') || may_go(&name).is_none() {
                continue;
            }
            let aside = self.0.join(format!("{name}.aside"));
            remove(&aside).map_err(failed)?;
            {
                // Asked again: what was put aside before may have taken its time to remove.
                let Some(_unused) = may_go(&name) else { continue };
                fs::rename(entry.path(), &aside).map_err(failed)?;
            }
            crash::before("collect", "tree");
            remove(&aside).map_err(failed)?;
            crash::after("collect", "tree");
            removed += 1;
        }
        Ok(removed)
    }

    fn finish(&self, name: &str, partial: &Path) -> io::Result<()> {
        let listing = Listing::of(&partial.join("root"), |_| false)?;
        let bytes = serde_json::to_vec(&listing).map_err(io::Error::other)?;
        fs::write(partial.join(LISTING), bytes)?;
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

impl Found {
    /// What was added, counted.
    pub fn wrote(&self, removed: bool) -> Wrote {
        let (mut files, mut bytes) = (0, 0);
        let mut todo: Vec<_> = self.added.iter().map(|name| self.root.join(name)).collect();
        while let Some(path) = todo.pop() {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
            } else {
                files += 1;
                bytes += meta.len();
            }
        }
        Wrote { files, bytes, paths: named(&self.added), removed }
    }

    /// Whether it is what was unpacked.
    pub fn is_intact(&self) -> bool {
        self.added.is_empty() && self.opened.is_empty() && self.changed.is_empty()
    }

    /// Removes what was added, if `remove`, and takes the right to write away where it was taken.
    pub fn tidy(&self, remove_added: bool) -> Result<(), ArtifactError> {
        let set = |path: &Path, mode| {
            let done = fs::set_permissions(path, Permissions::from_mode(mode));
            done.map_err(|e| ArtifactError::io(path, e))
        };
        for path in self.added.iter().filter(|_| remove_added).map(|name| self.root.join(name)) {
            let parent = path.parent().unwrap_or(&self.root);
            set(parent, 0o700)?;
            remove(&path).map_err(|e| ArtifactError::io(&path, e))?;
            set(parent, super::DIRECTORY)?;
        }
        self.opened.iter().try_for_each(|name| set(&self.root.join(name), super::DIRECTORY))
    }
}

/// The first few of `paths`, and how many there are besides. Control characters are escaped.
pub fn named(paths: &BTreeSet<String>) -> String {
    let mut all: Vec<_> = paths.iter().take(NAMED).map(|p| p.escape_debug().to_string()).collect();
    if paths.len() > NAMED {
        all.push(format!("and {} more", paths.len() - NAMED));
    }
    all.join(", ")
}
