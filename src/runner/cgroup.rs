//! A control group (v2) for each allocation: the one way to end everything that it started, `setsid`
//! or not, in one write. Used where there is one that we may write to.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst` (`cgroup.procs`, `cgroup.kill` from 5.14,
//! `cgroup.events`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::id::AllocationId;

/// The directory under which allocations get theirs.
#[derive(Debug, Clone)]
pub struct Cgroups(PathBuf);

impl Cgroups {
    /// The edge's own group of the v2 hierarchy, if we may make groups below it.
    pub fn detect() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|l| l.strip_prefix("0::"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find_map(v2_mount_point)?;
        let root = Path::new(mount).join(own.trim_start_matches('/')).join("vango-edge");
        // Another edge on this machine may have made it.
        match fs::create_dir(&root) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        let usable = root.join("cgroup.kill").exists()
            && OpenOptions::new().write(true).open(root.join("cgroup.procs")).is_ok();
        usable.then_some(Self(root))
    }

    /// Makes the group of an allocation.
    pub fn make(&self, allocation: &AllocationId) -> io::Result<Cgroup> {
        let dir = self.0.join(allocation.as_str());
        match fs::create_dir(&dir) {
            // Another edge of this machine took the empty directory with it as it ended.
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&dir)?,
            made => made?,
        }
        Ok(Cgroup(dir))
    }

    /// The group that an earlier process made for an allocation, if it is there still.
    pub fn find(&self, allocation: &AllocationId) -> Option<Cgroup> {
        let dir = self.0.join(allocation.as_str());
        dir.is_dir().then_some(Cgroup(dir))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Goes when it is empty; another edge's allocations keep it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The mount point in a line of `/proc/PID/mountinfo` that mounts the whole v2 hierarchy.
fn v2_mount_point(line: &str) -> Option<&str> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (kind.starts_with("cgroup2 ") && root == "/").then_some(point)
}

/// Asks until it is so, at most for `limit`, with pauses that grow from 0.2 to 20 ms. Says whether it is.
pub async fn until<E>(limit: Duration, is_so: impl Fn() -> Result<bool, E>) -> Result<bool, E> {
    let asked = async {
        let mut pause = Duration::from_micros(200);
        while !is_so()? {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(true)
    };
    tokio::time::timeout(limit, asked).await.unwrap_or(Ok(false))
}

/// One allocation's group.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group in a record of an earlier process, if it is there still and is that allocation's.
    pub fn recorded(path: &Path, allocation: &AllocationId) -> Option<Self> {
        let own = path.file_name().is_some_and(|name| name == allocation.as_str());
        (own && path.join("cgroup.kill").exists()).then(|| Self(path.to_owned()))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Open, so that a child writes itself into it between fork and exec.
    pub fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Its processes' ids.
    pub fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Takes processor time away from everything in it, and what it forks at the moment (`cgroup.freeze`,
    /// Linux 5.2), or gives it back. The kernel takes its time: see [`Self::is_frozen`].
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether everything in it stands still.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let events = fs::read_to_string(self.0.join("cgroup.events"))?;
        Ok(events.lines().any(|l| l == "frozen 1"))
    }

    /// SIGKILL for everything in it, forks of the moment included; waits until it is empty, for at
    /// most `limit`, and removes it. Whether it is gone.
    pub async fn kill(&self, limit: Duration) -> io::Result<bool> {
        if let Err(e) = fs::write(self.0.join("cgroup.kill"), "1") {
            return if e.kind() == io::ErrorKind::NotFound { Ok(true) } else { Err(e) };
        }
        until(limit, || Ok(self.remove_if_empty())).await
    }

    /// Removes it unless something is in it; whether it is gone.
    pub fn remove_if_empty(&self) -> bool {
        match fs::remove_dir(&self.0) {
            Ok(()) => true,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found() {
        let v1 = "37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer";
        let v2 = "38 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let part = "38 31 0:38 /a /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(v2_mount_point(v1), None);
        assert_eq!(v2_mount_point(v2), Some("/sys/fs/cgroup/unified"));
        assert_eq!(v2_mount_point(part), None);
    }
}
