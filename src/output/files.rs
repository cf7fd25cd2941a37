//! The files of one environment: numbered, appended to, the oldest removed first.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::clock::Wall;
use crate::line::Position;

/// Largest file: what is read at a time.
pub const LARGEST: u64 = 4 << 20;

/// Files that an environment's bytes are spread over: the share that goes with the oldest.
const SHARES: u64 = 8;

/// One file, as it was when it was last written to.
#[derive(Debug, Clone, Copy)]
pub struct OneFile {
    pub number: u64,
    pub bytes: u64,
    pub changed: Wall,
}

/// The files in a folder, oldest first.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    all: VecDeque<OneFile>,
    /// The number of the next file: none has it, nor had it.
    next: u64,
    /// Up to where lines were removed: a reader that is not as far has missed some.
    removed: Position,
}

impl Files {
    /// None yet; the folder is made with the first line.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, all: VecDeque::new(), next: 1, removed: Position::default() }
    }

    /// Those that an earlier process left.
    pub fn found(dir: PathBuf) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|n| n.strip_suffix(".log")?.parse::<u64>().ok());
            if let (Some(number), Ok(meta)) = (number, fs::metadata(&path)) {
                let changed = changed(&path).unwrap_or_default();
                all.push(OneFile { number, bytes: meta.len(), changed });
            }
        }
        all.sort_by_key(|file| file.number);
        let next = all.last().map_or(1, |file| file.number + 1);
        let mut files = Self { dir, all: all.into(), next, removed: Position::default() };
        files.end_torn_line();
        Ok(files)
    }

    /// An earlier process may have died while it wrote: what it began is a line of its own.
    fn end_torn_line(&mut self) {
        let Some(last) = self.all.back().copied() else { return };
        let ended = || -> io::Result<u64> {
            let path = self.path(last.number);
            let mut file = OpenOptions::new().read(true).append(true).open(path)?;
            if last.bytes == 0 {
                return Ok(0);
            }
            file.seek(SeekFrom::End(-1))?;
            let mut end = [0u8];
            file.read_exact(&mut end)?;
            if end == *b"\n" {
                return Ok(0);
            }
            file.write_all(b"\n")?;
            Ok(1)
        };
        if let (Ok(more), Some(last)) = (ended(), self.all.back_mut()) {
            last.bytes += more;
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        path(&self.dir, number)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Of all of them.
    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|file| file.bytes).sum()
    }

    pub fn list(&self) -> impl DoubleEndedIterator<Item = OneFile> {
        self.all.iter().copied()
    }

    /// The number of the one that is written to.
    pub fn last(&self) -> Option<u64> {
        self.all.back().map(|file| file.number)
    }

    /// Where the next line will be, or before it.
    pub fn end(&self) -> Position {
        let last = self.all.back().map(|last| Position { file: last.number, offset: last.bytes });
        last.unwrap_or(Position { file: self.next, offset: 0 })
    }

    /// Up to where lines were removed.
    pub fn removed(&self) -> Position {
        self.removed
    }

    /// Adds whole lines, in as many files as they need, and keeps at most `limit` bytes of all files.
    pub fn append(&mut self, mut lines: &[u8], limit: u64, now: Wall) -> io::Result<()> {
        let share = (limit / SHARES).min(LARGEST);
        while !lines.is_empty() {
            let room = self.all.back().map_or(0, |last| share.saturating_sub(last.bytes));
            let mut part = whole_lines(lines, room);
            if part == 0 {
                self.begin(now)?;
                // One line that is longer than a file's share has a file to itself.
                let first = lines.iter().position(|b| *b == b'\n').map_or(lines.len(), |n| n + 1);
                part = first.max(whole_lines(lines, share));
            }
            self.write(&lines[..part], now)?;
            lines = &lines[part..];
            while self.bytes() > limit && self.all.len() > 1 {
                let Some(oldest) = self.all.front().map(|file| file.number) else { break };
                self.remove(oldest);
            }
        }
        Ok(())
    }

    fn begin(&mut self, now: Wall) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let number = self.next;
        File::create(self.path(number))?;
        self.next += 1;
        self.all.push_back(OneFile { number, bytes: 0, changed: now });
        Ok(())
    }

    fn write(&mut self, lines: &[u8], now: Wall) -> io::Result<()> {
        let Some(path) = self.last().map(|last| self.path(last)) else { return Ok(()) };
        let written = OpenOptions::new().append(true).create(true).open(&path).and_then(|file| {
            let mut file = file;
            file.write_all(lines)
        });
        if let Some(last) = self.all.back_mut() {
            last.changed = now;
            match &written {
                Ok(()) => last.bytes += lines.len() as u64,
                // A full disk takes a part: what is there counts, and the next line is one of its own.
                Err(_) => last.bytes = fs::metadata(&path).map_or(last.bytes, |meta| meta.len()),
            }
        }
        if written.is_err() {
            self.end_torn_line();
        }
        written
    }

    /// Removes one; how many bytes that frees.
    pub fn remove(&mut self, number: u64) -> u64 {
        let Some(at) = self.all.iter().position(|file| file.number == number) else { return 0 };
        match fs::remove_file(self.path(number)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                ::log::warn!("{}: {e}", self.path(number).display());
            }
            _ => {}
        }
        let Some(OneFile { bytes, .. }) = self.all.remove(at) else { return 0 };
        self.removed = self.removed.max(Position { file: number, offset: bytes });
        bytes
    }

    /// Removes what was last written to `age` ago or earlier.
    pub fn remove_older(&mut self, now: Wall, age: Duration) {
        let old = |file: &OneFile| now.since(file.changed) >= age;
        let numbers: Vec<u64> = self.list().filter(old).map(|file| file.number).collect();
        for number in numbers {
            self.remove(number);
        }
    }

    /// Removes the folder, and its app's if that was its last.
    pub fn leave(&self) {
        let _ = fs::remove_dir(&self.dir);
        let _ = self.dir.parent().map(fs::remove_dir);
    }
}

/// The file of that number in `dir`.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.log"))
}

/// How many of the first bytes are whole lines and at most `room`.
fn whole_lines(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
    lines[..room].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
}

/// When a file was last written to.
pub fn changed(path: &Path) -> Option<Wall> {
    let at = fs::metadata(path).ok()?.modified().ok()?;
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    Some(Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

/// The whole lines of a file from `offset` on, at most `most` bytes of them; none of one that was removed.
pub fn read(path: &Path, offset: u64, most: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    bytes.truncate(whole);
    Ok(bytes)
}
