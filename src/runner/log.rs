//! What allocations print: a file for each environment, rotated once it is full, and in memory the
//! end of each allocation's output.
//!
//! The output comes through a named pipe that the process holds open for reading as well: an app
//! that prints while no edge reads waits once the pipe is full, and is not killed by SIGPIPE.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// Name of the pipe in an allocation's directory.
pub const PIPE: &str = "output";

/// Bytes of each allocation's output that are kept in memory.
const TAIL: usize = 16 * 1024;

/// The end of one allocation's output.
#[derive(Debug, Default)]
pub struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let over = tail.len().saturating_sub(TAIL);
        tail.drain(..over);
    }

    /// At most `max` bytes, from the end.
    pub fn last(&self, max: usize) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().skip(tail.len().saturating_sub(max)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// One environment's log file: at most `limit` bytes, and as many again in the one before it
/// (`….log.1`).
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limit: u64,
    open: Mutex<Option<(File, u64)>>,
}

impl LogFile {
    pub fn new(path: PathBuf, limit: u64) -> Self {
        Self { path, limit, open: Mutex::new(None) }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut file, mut size) = match open.take() {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
                let size = file.metadata()?.len();
                (file, size)
            }
        };
        let half = self.limit / 2;
        if size > 0 && size + bytes.len() as u64 > half {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            size = 0;
        }
        file.write_all(bytes)?;
        *open = Some((file, size + bytes.len() as u64));
        Ok(())
    }
}

/// Makes the named pipe `path`; returns the end to read, and the one for the process.
pub fn make_pipe(path: &Path) -> io::Result<(pipe::Receiver, File)> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    let read = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
    // Opened a second time, so that it is not the reader's non-blocking one.
    let write = OpenOptions::new().read(true).write(true).open(path)?;
    Ok((read, write))
}

/// Opens the named pipe that an earlier process of the edge made, to read on where it stopped.
pub fn reopen_pipe(path: &Path) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().read_write(true).open_receiver(path)
}

/// Reads the pipe until `ended` is told or dropped, and then what is in it still.
pub async fn pump(
    pipe: pipe::Receiver,
    file: Arc<LogFile>,
    tail: Arc<Tail>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut chunk = vec![0u8; 32 * 1024];
    let mut complained = false;
    let mut last = false;
    loop {
        if !last {
            tokio::select! {
                _ = &mut ended => last = true,
                readable = pipe.readable() => if readable.is_err() { return },
            }
        }
        match pipe.try_read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                tail.push(&chunk[..n]);
                let (file, bytes) = (Arc::clone(&file), chunk[..n].to_vec());
                let written = tokio::task::spawn_blocking(move || {
                    file.append(&bytes).map_err(|e| format!("{}: {e}", file.path.display()))
                });
                // A full disk stops no app: the tail in memory stays.
                if let Ok(Err(e)) = written.await
                    && !complained
                {
                    complained = true;
                    ::log::warn!("an app's output was not written: {e}");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !last => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded() {
        let tail = Tail::default();
        for i in 0..100_000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        tail.push(&[b'x'; 3 * TAIL]);
        tail.push(b"\nthe end");
        assert_eq!(tail.last(7), "the end");
        assert_eq!(tail.last(usize::MAX).len(), TAIL);
    }

    #[test]
    fn the_file_is_bounded_and_its_last_lines_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let log = LogFile::new(path.clone(), 2000);
        for i in 0..1000 {
            log.append(format!("line {i}\n").as_bytes()).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        let before = fs::read_to_string(dir.path().join("a.log.1")).unwrap();
        assert!(text.ends_with("line 999\n") && before.ends_with('\n'));
        assert!(text.len() <= 1000 && before.len() <= 1000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
