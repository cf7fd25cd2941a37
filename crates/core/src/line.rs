//! What processes print, as lines: how bytes become lines ([`Splitter`]), how many are kept in a second
//! ([`Rate`]), what is written of one ([`Line`]), and how far a reader has come ([`Cursor`]).
//!
//! Invariants: a line has at most [`LONGEST`] bytes of UTF-8 and no line break, whatever was printed; a longer one
//! goes on in the next, which it says. A credential of the edge's own that an app prints is not in it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::id::{AllocationId, EnvName};

/// Bytes of a line that are kept together; what comes after them is another line.
pub const LONGEST: usize = 16 * 1024;

/// How long the beginning of a line waits for its end before it is kept as it is: a program that asks something
/// and waits for the answer prints no line break.
pub const UNFINISHED: Duration = Duration::from_secs(1);

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::AsRefStr, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
    /// The edge says something about the process: that it started, how it ended, what was dropped.
    Edge,
}

/// One line, as it is kept: `TIME ALLOCATION PROCESS STREAM F|P TEXT`, where `P` says that it goes on in the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was read.
    pub at: Wall,
    pub allocation: Option<AllocationId>,
    /// `web`, or the name of another process.
    pub process: String,
    pub stream: Stream,
    /// The rest of it is the next line of this stream.
    pub partial: bool,
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allocation = self.allocation.as_ref().map_or("-", AllocationId::as_str);
        let (process, stream) = (&self.process, self.stream.as_ref());
        let part = if self.partial { 'P' } else { 'F' };
        write!(f, "{} {allocation} {process} {stream} {part} {}", self.at, self.text)
    }
}

impl FromStr for Line {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut fields = line.splitn(6, ' ');
        let mut next = || fields.next().ok_or(());
        let (at, allocation, process) = (next()?, next()?, next()?);
        let (stream, part, text) = (next()?, next()?, next()?);
        Ok(Self {
            at: at.parse().map_err(|_| ())?,
            allocation: match allocation {
                "-" => None,
                id => Some(id.parse().map_err(|_| ())?),
            },
            process: process.to_owned(),
            stream: stream.parse().map_err(|_| ())?,
            partial: part == "P",
            text: text.to_owned(),
        })
    }
}

/// Bytes of the code at the end of an allocation's credential.
const CODE: usize = 43;

/// `text` without the secret part of a credential that the edge gave an allocation
/// (`VANGO_EDGE_SELF_TOKEN`): `APP/ENVIRONMENT/ALLOCATION/CODE`. An app that prints its environment prints it.
pub fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("/al-") {
        let id = &rest[at + 1..];
        let end = id.find('/').unwrap_or(id.len());
        let code = id.get(end + 1..).unwrap_or_default();
        let of_code = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let sealed = AllocationId::is(&id[..end])
            && code.len() >= CODE
            && code.as_bytes()[..CODE].iter().all(of_code);
        let kept = if sealed { at + 1 + end + 1 } else { at + 4 };
        out.push_str(&rest[..kept]);
        rest = &rest[kept..];
        if sealed {
            out.push_str("[redacted]");
            rest = &rest[CODE..];
        }
    }
    out.push_str(rest);
    out
}

/// A line, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    pub partial: bool,
}

/// Makes lines of what is read, whatever the parts in which it comes.
#[derive(Debug, Default)]
pub struct Splitter {
    /// What has no line break yet, at most [`LONGEST`] bytes.
    begun: Vec<u8>,
    /// Since when it waits.
    since: Option<Mono>,
}

impl Splitter {
    /// Gives `take` each line that is complete with `bytes`, and each full part of a longer one.
    pub fn push(&mut self, mut bytes: &[u8], now: Mono, mut take: impl FnMut(Piece)) {
        while !bytes.is_empty() {
            let room = LONGEST - self.begun.len();
            let end = bytes[..bytes.len().min(room + 1)].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                self.begun.extend_from_slice(&bytes[..end]);
                bytes = &bytes[end + 1..];
                take(self.cut(self.begun.len(), false));
                continue;
            }
            let part = bytes.len().min(room);
            self.begun.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            // More follows, and it is no line break: that was looked for.
            if !bytes.is_empty() {
                let whole = before_a_character(&self.begun);
                take(self.cut(whole, true));
            }
        }
        self.since = (!self.begun.is_empty()).then(|| self.since.unwrap_or(now));
    }

    /// Until when what has no line break waits for it.
    pub fn due(&self) -> Option<Mono> {
        self.since.map(|since| since + UNFINISHED)
    }

    /// What waits for its end, as it is; it may go on.
    pub fn unfinished(&mut self) -> Option<Piece> {
        (!self.begun.is_empty()).then(|| self.cut(self.begun.len(), true))
    }

    /// What waits for its end, which does not come any more.
    pub fn last(&mut self) -> Option<Piece> {
        (!self.begun.is_empty()).then(|| self.cut(self.begun.len(), false))
    }

    fn cut(&mut self, at: usize, partial: bool) -> Piece {
        let rest = self.begun.split_off(at);
        let bytes = std::mem::replace(&mut self.begun, rest);
        self.since = None;
        let whole = bytes.strip_suffix(b"\r").filter(|_| !partial);
        let line = whole.unwrap_or(&bytes);
        Piece { text: redacted(&String::from_utf8_lossy(line)), partial }
    }
}

/// Where `bytes` can be cut so that no character is: at their end, or before one that is not whole.
fn before_a_character(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let lead = bytes[tail..].iter().rposition(|b| *b >= 0xC0);
    match lead.map(|at| tail + at) {
        Some(at) if std::str::from_utf8(&bytes[at..]).is_err() && at > 0 => at,
        _ => bytes.len(),
    }
}

/// How much is kept in a second: a bucket of `burst` bytes that fills by `rate` bytes a second.
#[derive(Debug)]
pub struct Rate {
    rate: u64,
    left: u64,
    at: Mono,
}

impl Rate {
    /// How many seconds' worth may come at once: a start prints more than a day's quiet work.
    const BURST: u64 = 4;

    /// Full at `now`.
    pub fn new(rate: u64, now: Mono) -> Self {
        Self { rate, left: rate.saturating_mul(Self::BURST), at: now }
    }

    /// Whether `bytes` more are kept at `now`.
    pub fn take(&mut self, bytes: u64, now: Mono) -> bool {
        let passed = now.since(self.at);
        let filled = (u128::from(self.rate) * passed.as_nanos() / 1_000_000_000)
            .min(u128::from(u64::MAX)) as u64;
        // Where it is too soon for a byte, the time counts on.
        if filled > 0 {
            self.left =
                (self.left.saturating_add(filled)).min(self.rate.saturating_mul(Self::BURST));
            self.at = now;
        }
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// A place in what is kept of an environment: the number of a file, and bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub file: u64,
    pub offset: u64,
}

/// How far the environments of an app were read: what is before each place was, what is at or after it was not.
/// Shown as `NAME:FILE.OFFSET` for each, with commas between.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor(pub BTreeMap<EnvName, Position>);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, Position { file, offset })) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{name}:{file}.{offset}")?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (name, at) = part.split_once(':')?;
            let (file, offset) = at.split_once('.')?;
            let at = Position { file: file.parse().ok()?, offset: offset.parse().ok()? };
            Some((name.parse().ok()?, at))
        };
        let all = text.split(',').filter(|part| !part.is_empty());
        let all: Option<BTreeMap<_, _>> = all.map(one).collect();
        all.map(Self).ok_or_else(|| format!("{text:?} is no place in a log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(parts: &[&[u8]]) -> Vec<Piece> {
        let (mut splitter, mut out) = (Splitter::default(), Vec::new());
        for part in parts {
            splitter.push(part, Mono(0), |piece| out.push(piece));
        }
        out.extend(splitter.last());
        out
    }

    fn texts(parts: &[&[u8]]) -> Vec<String> {
        split(parts).into_iter().map(|p| p.text).collect()
    }

    #[test]
    fn lines_are_the_same_in_whatever_parts_they_come() {
        let whole = "one\r\n\ntwo ä€𝄞 three\nthe end".as_bytes();
        let wanted = ["one", "", "two ä€𝄞 three", "the end"];
        assert_eq!(texts(&[whole]), wanted);
        for size in 1..9 {
            assert_eq!(texts(&whole.chunks(size).collect::<Vec<_>>()), wanted, "{size}");
        }
    }

    #[test]
    fn a_long_line_goes_on_in_the_next_and_no_character_is_cut() {
        let exact = "x".repeat(LONGEST);
        let all = split(&[exact.as_bytes(), b"\nnext\n"]);
        assert_eq!(all.len(), 2, "a line break right after its end");
        assert!(!all[0].partial);
        // One byte more than fits, in characters of three bytes.
        let long = "€".repeat(LONGEST);
        for size in [7, LONGEST, usize::MAX] {
            let parts: Vec<_> = long.as_bytes().chunks(size.min(long.len())).collect();
            let all = split(&parts);
            assert!(all.iter().all(|p| p.text.len() <= LONGEST && !p.text.contains('\u{fffd}')));
            assert_eq!(all.iter().map(|p| p.text.as_str()).collect::<String>(), long);
            let (last, before) = all.split_last().unwrap();
            assert!(before.iter().all(|p| p.partial) && before.len() == 3 && !last.partial);
        }
    }

    #[test]
    fn what_is_no_utf_8_is_replaced_and_nothing_else_is() {
        assert_eq!(texts(&[b"a\xffb\xc3\n\xe2\x82\nc"]), ["a\u{fffd}b\u{fffd}", "\u{fffd}", "c"]);
        // Bytes that never make a character are cut all the same.
        let noise = vec![0xC3u8; 3 * LONGEST];
        assert!(split(&[&noise]).iter().all(|p| p.text.len() <= 3 * LONGEST));
    }

    #[test]
    fn what_has_no_end_is_kept_after_a_while() {
        let mut splitter = Splitter::default();
        splitter.push(b"whole\nPassword: ", Mono(5), |p| assert_eq!(p.text, "whole"));
        splitter.push(b"?", Mono(9), |_| panic!("no line ended"));
        assert_eq!(splitter.due(), Some(Mono(5) + UNFINISHED), "since its first byte");
        let piece = splitter.unfinished().unwrap();
        assert_eq!((piece.text.as_str(), piece.partial), ("Password: ?", true));
        assert_eq!((splitter.due(), splitter.unfinished()), (None, None));
    }

    #[test]
    fn the_edges_own_credential_is_not_kept() {
        let id = "al-4sz3kfbtlfb75zso";
        let code = "A-_".repeat(14) + "x";
        let said = format!("TOKEN=studylab/pr-7/{id}/{code} and /{id}/log of {code}");
        let kept = redacted(&said);
        assert_eq!(kept, format!("TOKEN=studylab/pr-7/{id}/[redacted] and /{id}/log of {code}"));
        for fine in ["/al-", "/al-x/y", "GET /al-gebra/book", &format!("/{id}/"), ""] {
            assert_eq!(redacted(fine), fine);
        }
        assert!(!texts(&[said.as_bytes()])[0].contains(&format!("{id}/{code}")));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let line = Line {
            at: Wall(1_700_000_000_123),
            allocation: Some("al-4sz3kfbtlfb75zso".parse().unwrap()),
            process: "mailer".into(),
            stream: Stream::Stderr,
            partial: true,
            text: "  two  spaces ".into(),
        };
        assert_eq!(line.to_string().parse(), Ok(line.clone()));
        let none = Line { allocation: None, stream: Stream::Edge, text: String::new(), ..line };
        assert_eq!(none.to_string().parse(), Ok(none));
        for torn in ["", "2023-11-14T22:13:20.123Z", "x al-4sz3kfbtlfb75zso web stdout F x"] {
            assert_eq!(torn.parse::<Line>(), Err(()));
        }
    }

    #[test]
    fn a_rate_lets_a_burst_through_and_then_so_much_a_second() {
        let second = Duration::from_secs(1);
        let mut now = Mono(0);
        let mut rate = Rate::new(1000, now);
        let mut taken = |now| (0..).take_while(|_| rate.take(100, now)).count();
        assert_eq!(taken(now), 40);
        assert_eq!(taken(now), 0);
        for _ in 0..10 {
            now = now + second;
            assert_eq!(taken(now), 10);
        }
        now = now + 3600 * second;
        assert_eq!(taken(now), 40, "no more than a burst");
        // Looked at again and again, it still fills.
        let mut slow = Rate::new(1, now);
        assert!(slow.take(4, now) && !slow.take(1, now));
        let tenth = second / 10;
        let granted = (1..=20).filter(|n| slow.take(1, now + *n * tenth)).count();
        assert_eq!(granted, 2);
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for text in ["", "production:1.0", "pr-7:3.17,production:12.4000"] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
        for bad in ["x", "production", "production:1", "production:-1.0", "P:1.0", "a:1.2.3"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }
}
