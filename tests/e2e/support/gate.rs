//! Holds an app's start for exactly as long as a test wants.

use std::path::PathBuf;

use tempfile::TempDir;

/// While this gate is closed, a process that was started behind it opens no port. A delay would
/// make a test guess how long the rest takes; a gate does not.
pub struct Gate {
    dir: TempDir,
}

impl Gate {
    pub fn closed() -> Self {
        let gate = Self { dir: tempfile::tempdir().unwrap() };
        gate.close();
        gate
    }

    /// The file that is there while it is closed.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("closed")
    }

    pub fn close(&self) {
        std::fs::write(self.path(), "").unwrap();
    }

    pub fn open(&self) {
        std::fs::remove_file(self.path()).unwrap();
    }

    /// The contract's `process.command`, as TOML. The shell becomes the app, so that the process
    /// that the edge started is the app itself.
    pub fn command(&self) -> String {
        let path = self.path();
        let wait = format!("while [ -e {} ]; do sleep 0.02; done; exec ./studylab", path.display());
        format!("[\"sh\", \"-c\", {wait:?}]")
    }
}
