//! A view of an artifact's tree that a process may write to, gone with it: `process.writable = "scratch"`. The
//! tree itself stays as it is, for every other process and the next start.
//!
//! As root the view is an overlay file system in a mount namespace of the process's own, at the tree's own
//! path: it costs nothing to make, and only what is written takes space. Without that right, or where the file
//! system of the state directory takes no overlay, it is a copy of the tree below the allocation's directory:
//! by reference where the file system shares blocks (btrfs, XFS), byte by byte elsewhere.
//!
//! Not a hard link to each file: a program that opens one for writing would write into the tree.
//!
//! Source: Linux `Documentation/filesystems/overlayfs.rst`, mount_namespaces(7).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::files::remove;
use crate::id::Environment;

use super::group::Group;

/// The view's directory in an allocation's.
const NAME: &str = "scratch";
/// What of it is written to.
const UPPER: &str = "upper";
const COPY: &str = "tree";

/// How often what a process wrote is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL for one that wrote too much.
const GRACE: Duration = Duration::from_secs(10);

/// A view that was prepared. It is there once the process is.
pub struct Scratch {
    /// Where the process finds it.
    pub root: PathBuf,
    /// What has to be mounted, between fork and exec.
    pub mount: Option<Mount>,
}

/// One mount, with all that it needs in memory already.
pub struct Mount {
    target: CString,
    options: CString,
}

impl Scratch {
    /// Of the tree at `root`, for the allocation whose directory is `dir`.
    ///
    /// # Errors
    /// A file that cannot be made or read, a full disk among them.
    pub fn make(dir: &Path, root: &Path, overlay: bool) -> io::Result<Self> {
        let dir = dir.join(NAME);
        if overlay && let Some(mount) = Mount::of(root, &dir) {
            for part in [UPPER, "work"] {
                fs::create_dir_all(dir.join(part))?;
            }
            // What the root of the tree allows is what the root of the view does.
            fs::set_permissions(dir.join(UPPER), fs::metadata(root)?.permissions())?;
            return Ok(Self { root: root.to_owned(), mount: Some(mount) });
        }
        let copy = dir.join(COPY);
        fs::create_dir_all(&copy)?;
        copy_tree(root, &copy)?;
        Ok(Self { root: copy, mount: None })
    }
}

impl Mount {
    /// `None` where the options cannot say a path.
    fn of(root: &Path, dir: &Path) -> Option<Self> {
        let plain =
            |path: &Path| !path.as_os_str().as_bytes().iter().any(|b| b",:\\\0".contains(b));
        if !plain(root) || !plain(dir) {
            return None;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            root.display(),
            dir.join(UPPER).display(),
            dir.join("work").display()
        );
        let target = CString::new(root.as_os_str().as_bytes()).ok()?;
        Some(Self { target, options: CString::new(options).ok()? })
    }

    /// Mounts it in a mount namespace of the calling thread's own, and makes it its working directory. Allocates
    /// nothing: it is called between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: plain system calls; every pointer is to a string that ends in 0 and outlives the call.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS))?;
            // What is mounted here is not seen outside; what the operator mounts later is seen here.
            let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_SLAVE);
            done(libc::mount(c"none".as_ptr(), c"/".as_ptr(), none, flags, none.cast()))?;
            let options = self.options.as_ptr().cast();
            let kind = c"overlay".as_ptr();
            let (target, flags) = (self.target.as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
            done(libc::mount(kind, target, kind, flags, options))?;
            // By its path again: the working directory is the one below the mount.
            done(libc::chdir(target))
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether views below `dir` can be overlays: tried once, in a thread whose mounts go with it.
pub fn can_overlay(dir: &Path) -> bool {
    // Only root may write where a tree's modes say that nothing may.
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let tried = || -> io::Result<()> {
        let at = dir.join("overlay-test");
        let _ = fs::remove_dir_all(&at);
        let tree = at.join("lower");
        fs::create_dir_all(&tree)?;
        let Scratch { root, mount: Some(mount) } = Scratch::make(&at, &tree, true)? else {
            return Err(io::Error::other("its path"));
        };
        let entered = std::thread::spawn(move || {
            mount.enter()?;
            fs::write(root.join("written"), "1")
        });
        let entered = entered.join().unwrap_or_else(|_| Err(io::Error::other("the trial ended")));
        let outside = tree.join("written").exists();
        fs::remove_dir_all(&at)?;
        entered?;
        if outside { Err(io::Error::other("it was written through")) } else { Ok(()) }
    };
    match tried() {
        Ok(()) => true,
        Err(e) => {
            ::log::info!("no overlay file system can be mounted ({e}): scratch trees are copies");
            false
        }
    }
}

/// Copies a tree so that its owner may write to all of it.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut todo = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = todo.pop() {
        for entry in fs::read_dir(&from)? {
            let (entry, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
            let target = to.join(entry.file_name().unwrap_or_default());
            if kind.is_dir() {
                fs::create_dir(&target)?;
                todo.push((entry, target));
            } else if kind.is_symlink() {
                symlink(fs::read_link(&entry)?, &target)?;
            } else {
                // By copy_file_range(2), which shares blocks where the file system can.
                fs::copy(&entry, &target)?;
                let mode = fs::metadata(&target)?.mode();
                fs::set_permissions(&target, Permissions::from_mode(mode | 0o200))?;
            }
        }
    }
    Ok(())
}

/// Where an allocation with this directory writes beside its code, and whether that is only what it wrote;
/// `None` where it does not.
pub fn written(dir: &Path) -> Option<(PathBuf, bool)> {
    let dir = dir.join(NAME);
    let upper = dir.join(UPPER);
    let copy = dir.join(COPY);
    if upper.is_dir() { Some((upper, true)) } else { copy.is_dir().then_some((copy, false)) }
}

/// Bytes on disk of all files below `dir`. Files that go meanwhile count nothing.
pub fn size(dir: &Path) -> u64 {
    let (mut todo, mut bytes) = (vec![dir.to_owned()], 0u64);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => bytes = bytes.saturating_add(meta.blocks() * 512),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Ends a process that has written more than `limit` bytes into the view below `dir`. Never ends itself.
pub async fn bound(dir: &Path, limit: u64, environment: &Environment, group: &Group) -> Infallible {
    let Some((at, only)) = written(dir) else { return std::future::pending().await };
    let mut before = None;
    loop {
        let looked = at.clone();
        let found = tokio::task::spawn_blocking(move || size(&looked)).await.unwrap_or_default();
        // Of a copy what was copied does not count.
        let wrote = found.saturating_sub(*before.get_or_insert(if only { 0 } else { found }));
        if wrote > limit {
            ::log::warn!(
                "{environment}: {} has {wrote} bytes beside its code, more than runner.scratch_bytes ({limit}), \
                 and is ended: what is to stay belongs below $HOME, what is not below $TMPDIR",
                group.allocation
            );
            group.signal_group(Signal::SIGTERM);
            tokio::time::sleep(GRACE).await;
            group.signal_group(Signal::SIGKILL);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Removes the view below `dir`, on a blocking thread: it may hold as many files as the artifact. What is left
/// goes with the allocation's directory.
pub async fn end(dir: PathBuf) {
    if written(&dir).is_some() {
        let _ = tokio::task::spawn_blocking(move || remove(&dir.join(NAME))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("tree/lib")).unwrap();
        for (name, mode) in [("tree/app.py", 0o444), ("tree/lib/run", 0o555)] {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        symlink("lib/run", at("tree/link")).unwrap();
        fs::set_permissions(at("tree/lib"), Permissions::from_mode(0o555)).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let all = fs::read_dir(dir).unwrap().flatten();
        let mut all: Vec<_> = all.map(|e| e.file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_copy_may_be_written_to_and_the_tree_stays() {
        let dir = tree();
        let (root, allocation) = (dir.path().join("tree"), dir.path().join("al"));
        let Scratch { root: view, mount } = Scratch::make(&allocation, &root, false).unwrap();
        assert!(mount.is_none() && view.starts_with(&allocation));
        assert_eq!(fs::read_to_string(view.join("link")).unwrap(), "tree/lib/run");
        assert_eq!(fs::metadata(view.join("lib/run")).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(view.join("app.py")).unwrap().mode() & 0o777, 0o644);
        let before = written(&allocation).map(|(at, own)| (size(&at), own)).unwrap();
        fs::write(view.join("lib/new"), vec![b'x'; 100_000]).unwrap();
        fs::write(view.join("lib/run"), "other").unwrap();
        let after = written(&allocation).map(|(at, own)| (size(&at), own)).unwrap();
        assert!(after.0 >= before.0 + 100_000 && !after.1, "{before:?} {after:?}");
        assert_eq!(fs::read_to_string(root.join("lib/run")).unwrap(), "tree/lib/run");
        assert_eq!(names(&root.join("lib")), ["run"]);
        fs::set_permissions(view.join("lib"), Permissions::from_mode(0o500)).unwrap();
        remove(&allocation).unwrap();
        assert!(!allocation.exists());
    }

    #[test]
    fn an_overlay_is_seen_by_its_own_process_only() {
        let dir = tree();
        let (root, allocation) = (dir.path().join("tree"), dir.path().join("al"));
        if !can_overlay(dir.path()) {
            return;
        }
        assert_eq!(names(dir.path()), ["tree"], "the trial left nothing");
        let Scratch { root: view, mount } = Scratch::make(&allocation, &root, true).unwrap();
        assert_eq!(view, root);
        let inside = std::thread::spawn(move || {
            mount.unwrap().enter().unwrap();
            fs::write(view.join("lib/new"), "1").unwrap();
            fs::remove_file(view.join("link")).unwrap();
            (names(&view), names(&view.join("lib")))
        });
        let (top, lib) = inside.join().unwrap();
        assert_eq!(
            (top, lib),
            (vec!["app.py".into(), "lib".into()], vec!["new".into(), "run".into()])
        );
        assert_eq!((names(&root).len(), names(&root.join("lib")).len()), (3, 1));
        let (at, only) = written(&allocation).unwrap();
        assert!(only && at.join("lib/new").is_file());
        remove(&allocation).unwrap();
    }
}
