//! Brings what a process prints from its pipe to the disk, at its own pace: the process waits for this task, which
//! waits for nothing but to read; never for the disk, nor for a reader.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::id::{AllocationId, Environment};
use crate::line::{Line, Piece, Splitter, Stream};

use super::{Dropped, Kept, Outputs, locked};

/// Bytes that are read at a time: as many as a pipe has (pipe(7)).
const CHUNK: usize = 64 * 1024;

/// Bytes of lines that wait for the disk, at most.
const WAITING: usize = 1 << 20;

/// Pause after a part of a flood that is dropped: at least so long, and [`IDLE`] times as long as reading it took.
/// It takes processor time from everything else, and a process that prints so much can wait a little.
const FLOOD: Duration = Duration::from_millis(1);
const IDLE: u32 = 4;

/// How often it is said in the log that lines are dropped, while they are.
const SAID: Duration = Duration::from_secs(5);

/// Bytes that are read of a pipe whose process has ended, at most: more than a pipe has.
const AT_THE_END: usize = 1 << 20;

/// Whose output a pipe has.
#[derive(Debug, Clone)]
pub struct Source {
    pub environment: Environment,
    pub allocation: AllocationId,
    /// `web`, or the name of another process.
    pub process: String,
    pub stream: Stream,
}

/// Reads `pipe` until `ended` is told or dropped, and then what is in it still. `tail` is given each line as it comes.
pub async fn pump(
    pipe: pipe::Receiver,
    outputs: Arc<Outputs>,
    source: Source,
    tail: impl FnMut(&str) + Send,
    mut ended: oneshot::Receiver<()>,
) {
    let mut pumping = Pumping::new(outputs, source, tail);
    let mut chunk = vec![0u8; CHUNK];
    loop {
        tokio::select! {
            _ = &mut ended => break,
            readable = pipe.readable() => if readable.is_err() { break },
            () = pumping.wakes() => {
                pumping.look(false);
                continue;
            }
        }
        match pipe.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                let began = pumping.outputs.clock.now();
                let kept = pumping.take(&chunk[..n]);
                pumping.look(false);
                if !kept {
                    let took = pumping.outputs.clock.now().since(began);
                    tokio::time::sleep(FLOOD.max(IDLE * took)).await;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let mut left = AT_THE_END;
    while let Ok(n @ 1..) = pipe.try_read(&mut chunk) {
        pumping.take(&chunk[..n]);
        left = left.saturating_sub(n);
        if left == 0 {
            break;
        }
    }
    pumping.finish().await;
}

struct Pumping<T> {
    outputs: Arc<Outputs>,
    /// The environment's part of it.
    kept: Arc<Kept>,
    source: Source,
    tail: T,
    splitter: Splitter,
    /// Lines that wait for the disk.
    waiting: Vec<u8>,
    waiting_lines: u64,
    /// What is being written, and how many lines that are.
    writing: Option<(JoinHandle<io::Result<()>>, u64)>,
    /// Lines and bytes that were dropped and not said yet, by why.
    dropped: [(u64, u64); 2],
    said: Option<crate::clock::Mono>,
    complained: bool,
}

impl<T: FnMut(&str) + Send> Pumping<T> {
    fn new(outputs: Arc<Outputs>, source: Source, tail: T) -> Self {
        Self {
            kept: outputs.of(&source.environment),
            outputs,
            source,
            tail,
            splitter: Splitter::default(),
            waiting: Vec::new(),
            waiting_lines: 0,
            writing: None,
            dropped: [(0, 0); 2],
            said: None,
            complained: false,
        }
    }

    /// Until something is to be done without new bytes: a write ended, or the beginning of a line has waited.
    async fn wakes(&mut self) {
        let now = self.outputs.clock.now();
        let said = self.said.filter(|_| self.dropped != [(0, 0); 2]).map(|said| said + SAID);
        let due = self.splitter.due().into_iter().chain(said).min();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep(due.since(now)).await,
                None => std::future::pending().await,
            }
        };
        let written = async {
            match &mut self.writing {
                Some((writing, _)) => Some(writing.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            written = written => self.written(written),
        }
    }

    fn written(&mut self, outcome: Option<Result<io::Result<()>, tokio::task::JoinError>>) {
        let Some((_, lines)) = self.writing.take() else { return };
        let error = match outcome {
            Some(Ok(Err(e))) => e.to_string(),
            Some(Err(e)) => e.to_string(),
            Some(Ok(Ok(()))) | None => {
                self.complained = false;
                return;
            }
        };
        self.drop_lines(Dropped::Disk, lines, 0);
        if !std::mem::replace(&mut self.complained, true) {
            let Source { environment, allocation, .. } = &self.source;
            ::log::warn!("{environment}: what {allocation} printed was not written: {error}");
        }
    }

    fn drop_lines(&mut self, why: Dropped, lines: u64, bytes: u64) {
        let (all, size) = &mut self.dropped[why as usize];
        (*all, *size) = (*all + lines, *size + bytes);
        self.outputs.dropped(why, lines);
    }

    /// Takes what was read; whether all of it is kept.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let mut pieces = Vec::new();
        self.splitter.push(bytes, self.outputs.clock.now(), |piece| pieces.push(piece));
        let all = pieces.len();
        pieces.into_iter().filter(|piece| self.keep(piece)).count() == all
    }

    fn keep(&mut self, piece: &Piece) -> bool {
        (self.tail)(&piece.text);
        let now = self.outputs.clock.now();
        let Source { allocation, process, stream, .. } = &self.source;
        // With what is written beside the text.
        let bytes = (piece.text.len() + process.len() + 60) as u64;
        let why = if self.waiting.len() as u64 + bytes > WAITING as u64 {
            Some(Dropped::Disk)
        } else {
            (!locked(&self.kept.rate).take(bytes, now)).then_some(Dropped::Rate)
        };
        if let Some(why) = why {
            self.drop_lines(why, 1, bytes);
            return false;
        }
        let line = Line {
            at: self.outputs.clock.wall(),
            allocation: Some(allocation.clone()),
            process: process.clone(),
            stream: *stream,
            partial: piece.partial,
            text: piece.text.clone(),
        };
        self.wait(&format!("{line}\n"));
        true
    }

    fn wait(&mut self, line: &str) {
        self.waiting.extend_from_slice(line.as_bytes());
        self.waiting_lines += 1;
    }

    /// Does what is due: keeps the beginning of a line that has waited, says what was dropped, writes.
    fn look(&mut self, last: bool) {
        let now = self.outputs.clock.now();
        let due = self.splitter.due().is_some_and(|due| last || due <= now);
        let rest = if last { self.splitter.last() } else { None };
        let rest = rest.or_else(|| if due { self.splitter.unfinished() } else { None });
        if let Some(piece) = rest {
            self.keep(&piece);
        }
        let again = self.said.is_none_or(|said| now >= said + SAID);
        if self.dropped != [(0, 0); 2] && (last || again) {
            self.say_what_was_dropped();
            self.said = Some(now);
        }
        if self.writing.is_none() && !self.waiting.is_empty() {
            let lines = std::mem::take(&mut self.waiting);
            let count = std::mem::take(&mut self.waiting_lines);
            let (outputs, environment) =
                (Arc::clone(&self.outputs), self.source.environment.clone());
            let written = tokio::task::spawn_blocking(move || outputs.append(&environment, &lines));
            self.writing = Some((written, count));
        }
    }

    fn say_what_was_dropped(&mut self) {
        let Source { allocation, process, stream, .. } = &self.source;
        let [(by_rate, bytes), (by_disk, _)] = std::mem::take(&mut self.dropped);
        let mut words = Vec::new();
        if by_rate > 0 {
            words.push(format!(
                "{by_rate} lines ({bytes} bytes) of {} dropped: more than runner.log_rate",
                stream.as_ref()
            ));
        }
        if by_disk > 0 {
            words.push(format!(
                "{by_disk} lines of {} dropped: the disk did not take them",
                stream.as_ref()
            ));
        }
        let line = self.outputs.edges(allocation, process, &words.join("; "));
        self.wait(&format!("{line}\n"));
    }

    /// Writes what is left.
    async fn finish(mut self) {
        // A disk that takes nothing does not take either that it took nothing.
        for _ in 0..3 {
            self.look(true);
            let Some((writing, _)) = &mut self.writing else { return };
            let outcome = writing.await;
            self.written(Some(outcome));
        }
    }
}
