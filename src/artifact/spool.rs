//! What packing makes, in files without a name: whatever ends the process, nothing of it is left.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::ArtifactError;

/// A file that grows at its end.
#[derive(Debug)]
pub struct Spool {
    file: File,
    end: Mutex<u64>,
}

impl Spool {
    /// An empty one, where temporary files are.
    pub fn new() -> Result<Arc<Self>, ArtifactError> {
        let file = tempfile::tempfile().map_err(|e| ArtifactError::io(std::env::temp_dir(), e))?;
        Ok(Arc::new(Self { file, end: Mutex::new(0) }))
    }

    /// Writes `bytes`, and returns where they begin.
    pub fn append(&self, bytes: &[u8]) -> Result<u64, ArtifactError> {
        let at = {
            let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            let at = *end;
            *end += bytes.len() as u64;
            at
        };
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|e| ArtifactError::io(std::env::temp_dir(), e))?;
        Ok(at)
    }

    /// Bytes that were appended.
    pub fn size(&self) -> u64 {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `size` bytes from `at` on.
    pub fn read(self: &Arc<Self>, at: u64, size: u64) -> Spooled {
        Spooled { spool: Arc::clone(self), at, end: at + size }
    }
}

/// For what is written in one go; nothing else may be appended meanwhile.
impl Write for &Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map(|_| bytes.len()).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A part of a [`Spool`].
pub struct Spooled {
    spool: Arc<Spool>,
    at: u64,
    end: u64,
}

impl Read for Spooled {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(space.len());
        let n = self.spool.file.read_at(&mut space[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
