//! Reads what was kept: backward from the newest line, and forward from where a reader has come. Lines of several
//! environments of an app come in the order of their times. Every function here blocks for the disk.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Wall;
use crate::id::{AllocationId, AppName, EnvName, Environment};
use crate::line::{Cursor, Line, Position, Stream};

use super::files::{self, LARGEST, OneFile};
use super::{Kept, Outputs, locked};

/// Bytes that a look forward reads of each environment.
const AT_ONCE: u64 = 256 << 10;

/// Of which environments.
#[derive(Debug, Clone)]
pub struct Select {
    pub app: AppName,
    /// One of the app's; otherwise all.
    pub name: Option<EnvName>,
}

/// Which lines.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub allocation: Option<AllocationId>,
    pub process: Option<String>,
    pub stream: Option<Stream>,
    /// Not earlier than this.
    pub since: Wall,
}

impl Wanted {
    fn wants(&self, line: &Line) -> bool {
        self.allocation.as_ref().is_none_or(|id| line.allocation.as_ref() == Some(id))
            && self.process.as_ref().is_none_or(|process| line.process == *process)
            && self.stream.is_none_or(|stream| line.stream == stream)
            && line.at >= self.since
    }
}

/// A line and whose it is.
pub type Row = (Environment, Line);

/// What a look forward found.
#[derive(Debug, Default)]
pub struct Found {
    pub rows: Vec<Row>,
    /// Lines were removed before they were read.
    pub missed: bool,
    /// There is more already.
    pub more: bool,
}

impl Outputs {
    fn selected(&self, select: &Select) -> Vec<(Environment, Arc<Kept>)> {
        let mut all = self.environments(Some(&select.app));
        all.retain(|(e, _)| select.name.as_ref().is_none_or(|name| e.name() == name));
        all
    }

    /// Behind the newest line.
    pub fn end(&self, select: &Select) -> Cursor {
        let all = self.selected(select).into_iter();
        Cursor(all.map(|(e, kept)| (e.name().clone(), locked(&kept.files).end())).collect())
    }

    /// The newest lines before `cursor`, at most `most`, newest first; and before which place to read on, if
    /// there may be more.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn before(
        &self,
        select: &Select,
        wanted: &Wanted,
        cursor: &Cursor,
        most: usize,
    ) -> io::Result<(Vec<Row>, Option<Cursor>)> {
        let mut all: Vec<Back> = self
            .selected(select)
            .into_iter()
            .filter_map(|(e, kept)| {
                let end = *cursor.0.get(e.name())?;
                Some(Back::new(e, &kept, end, wanted.since))
            })
            .collect();
        let mut rows = Vec::new();
        while let Some(newest) = all.iter_mut().max_by_key(|back| back.newest()) {
            if newest.newest().is_none() {
                return Ok((rows, None));
            }
            // One whose file is not read yet may have an older line than that file's last change says.
            if newest.line.is_none() {
                newest.step(wanted)?;
                continue;
            }
            if rows.len() == most {
                let at = |back: &Back| (back.environment.name().clone(), back.end());
                return Ok((rows, Some(Cursor(all.iter().map(at).collect()))));
            }
            if let Some((_, line)) = newest.line.take() {
                rows.push((newest.environment.clone(), line));
            }
            newest.step(wanted)?;
        }
        Ok((rows, None))
    }

    /// The lines after `cursor`, which goes on to their end.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn after(
        &self,
        select: &Select,
        wanted: &Wanted,
        cursor: &mut Cursor,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        for (environment, kept) in self.selected(select) {
            let at = cursor.0.entry(environment.name().clone()).or_default();
            let (end, removed, list, path) = {
                let files = locked(&kept.files);
                let list: Vec<OneFile> = files.list().collect();
                (files.end(), files.removed(), list, files.dir().to_owned())
            };
            // Its files were removed for their age, and are counted from one again.
            if *at > end {
                *at = Position::default();
            }
            found.missed |= *at != Position::default() && *at < removed;
            let mut left = AT_ONCE;
            let from = at.file;
            for file in list.iter().filter(|file| file.number >= from) {
                let offset = if file.number == at.file { at.offset } else { 0 };
                let bytes = files::read(&files::path(&path, file.number), offset, left)?;
                *at = Position { file: file.number, offset: offset + bytes.len() as u64 };
                left -= bytes.len() as u64;
                found.rows.extend(
                    lines(&bytes)
                        .filter(|line| wanted.wants(line))
                        .map(|line| (environment.clone(), line)),
                );
                // Not the whole file: it was too much for now. If there is nothing at all, its last line is torn.
                let whole = Position { file: file.number, offset: file.bytes };
                if *at < whole && left < AT_ONCE {
                    found.more = true;
                    break;
                }
            }
        }
        found.rows.sort_by_key(|(_, line)| line.at);
        Ok(found)
    }

    /// Whose an allocation is or was, by what it printed. Reads all there is, newest first.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn locate(&self, allocation: &AllocationId) -> io::Result<Option<Environment>> {
        let mark = format!(" {allocation} ");
        for (environment, kept) in self.environments(None) {
            let (list, dir) = {
                let files = locked(&kept.files);
                (files.list().rev().collect::<Vec<_>>(), files.dir().to_owned())
            };
            for file in list {
                let bytes = files::read(&files::path(&dir, file.number), 0, 2 * LARGEST)?;
                let text = String::from_utf8_lossy(&bytes);
                if text.contains(&mark) {
                    return Ok(Some(environment));
                }
            }
        }
        Ok(None)
    }
}

/// What is written of lines, as lines; what is none is passed over.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Line> {
    let all = bytes.split(|b| *b == b'\n');
    all.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok())
}

/// Reads one environment backward.
struct Back {
    environment: Environment,
    dir: PathBuf,
    /// Those that are not read yet, newest first.
    files: VecDeque<OneFile>,
    /// Where to begin in the first of them.
    from: Position,
    /// The file that is read, and the bytes of it that are not looked at.
    number: u64,
    bytes: Vec<u8>,
    /// The next line, and where it ends.
    line: Option<(Position, Line)>,
}

impl Back {
    fn new(environment: Environment, kept: &Kept, from: Position, since: Wall) -> Self {
        let files = locked(&kept.files);
        let before = |file: &OneFile| file.number <= from.file && file.changed >= since;
        Self {
            environment,
            dir: files.dir().to_owned(),
            files: files.list().rev().filter(before).collect(),
            from,
            number: 0,
            bytes: Vec::new(),
            line: None,
        }
    }

    /// Not earlier than the next line, if there may be one.
    fn newest(&self) -> Option<Wall> {
        match &self.line {
            Some((_, line)) => Some(line.at),
            None if !self.bytes.is_empty() => Some(Wall(u64::MAX)),
            None => self.files.front().map(|file| file.changed),
        }
    }

    /// Looks for the next line, in what is read or in one file more.
    fn step(&mut self, wanted: &Wanted) -> io::Result<()> {
        if self.bytes.is_empty()
            && let Some(file) = self.files.pop_front()
        {
            self.number = file.number;
            self.bytes = files::read(&files::path(&self.dir, file.number), 0, 2 * LARGEST)?;
            if file.number == self.from.file {
                let end = usize::try_from(self.from.offset).unwrap_or(usize::MAX);
                // Up to the beginning of the line that the place is in or at.
                let end = end.min(self.bytes.len());
                let whole = self.bytes[..end].iter().rposition(|b| *b == b'\n');
                self.bytes.truncate(whole.map_or(0, |at| at + 1));
            }
        }
        while let Some(end) = self.bytes.len().checked_sub(1) {
            let start = self.bytes[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let line = std::str::from_utf8(&self.bytes[start..end]).ok();
            let line = line.and_then(|line| line.parse::<Line>().ok());
            self.bytes.truncate(start);
            if let Some(line) = line.filter(|line| wanted.wants(line)) {
                let at = Position { file: self.number, offset: end as u64 + 1 };
                self.line = Some((at, line));
                return Ok(());
            }
        }
        Ok(())
    }

    /// The place behind the next line: what is before it was not given away.
    fn end(&self) -> Position {
        match &self.line {
            Some((at, _)) => *at,
            None if !self.bytes.is_empty() => {
                Position { file: self.number, offset: self.bytes.len() as u64 }
            }
            None => match self.files.front() {
                Some(file) if file.number == self.from.file => self.from,
                Some(file) => Position { file: file.number, offset: file.bytes },
                None => Position::default(),
            },
        }
    }
}
