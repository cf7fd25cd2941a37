//! The pipes through which allocations print, and in memory the end of each one's output; on disk it is kept by
//! [`crate::output`].
//!
//! The output comes through named pipes that the process holds open for reading as well: an app
//! that prints while no edge reads waits once a pipe is full, and is not killed by SIGPIPE.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::line::Stream;
use crate::output::{Outputs, Source, pump};

/// The pipes in an allocation's directory, and what comes through each. The first is named as the only one of
/// earlier versions was.
pub const PIPES: [(&str, Stream); 2] = [("output", Stream::Stdout), ("errors", Stream::Stderr)];

/// The ends of the pipes that are read.
pub type Ends = Vec<(pipe::Receiver, Stream)>;

/// Bytes of each allocation's output that are kept in memory.
const TAIL: usize = 16 * 1024;

/// Reads what a process prints until it has ended.
#[derive(Default)]
pub struct Pumps(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

impl Pumps {
    /// Begins to read `ends`; of `source` the stream is each end's own.
    pub fn start(ends: Ends, outputs: &Arc<Outputs>, source: &Source, tail: &Arc<Tail>) -> Self {
        let start = |(end, stream)| {
            let (stop, stopped) = oneshot::channel();
            let (outputs, tail) = (Arc::clone(outputs), Arc::clone(tail));
            let source = Source { stream, ..source.clone() };
            let told = move |line: &str| tail.line(line);
            (stop, tokio::spawn(pump(end, outputs, source, told, stopped)))
        };
        Self(ends.into_iter().map(start).collect())
    }

    /// The process has ended: reads what is there still, and returns when it is kept.
    pub async fn finish(self) {
        for (stop, pump) in self.0 {
            drop(stop);
            let _ = pump.await;
        }
    }
}

/// The end of one allocation's output.
#[derive(Debug, Default)]
pub struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    /// Adds a line.
    pub fn line(&self, line: &str) {
        self.push(line.as_bytes());
        self.push(b"\n");
    }

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

/// Makes the named pipes in `dir`; returns the ends to read, and the process's standard output and error.
pub fn make_pipes(dir: &Path) -> io::Result<(Ends, [File; 2])> {
    let make = |(name, stream)| -> io::Result<_> {
        let (read, write) = make_pipe(&dir.join(name))?;
        Ok(((read, stream), write))
    };
    let [stdout, stderr] = PIPES.map(make);
    let ((stdout, out), (stderr, err)) = (stdout?, stderr?);
    Ok((vec![stdout, stderr], [out, err]))
}

fn make_pipe(path: &Path) -> io::Result<(pipe::Receiver, File)> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    let read = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
    // Opened a second time, so that it is not the reader's non-blocking one.
    let write = OpenOptions::new().read(true).write(true).open(path)?;
    Ok((read, write))
}

/// Opens the named pipes that an earlier process of the edge made in `dir`, to read on where it stopped.
pub fn reopen_pipes(dir: &Path) -> io::Result<Ends> {
    let mut ends = Vec::new();
    for (name, stream) in PIPES {
        match pipe::OpenOptions::new().read_write(true).open_receiver(dir.join(name)) {
            // Earlier versions made one.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !ends.is_empty() => {}
            end => ends.push((end?, stream)),
        }
    }
    Ok(ends)
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
}
