//! RocksDB's files, looked at before RocksDB reads them: whether what is in them is what was written.
//!
//! None of RocksDB's recovery modes can tell a write that a crash cut off from a byte that changed
//! later. The modes that forgive the first end at the second as well, and drop every record behind it
//! without a word. So the framing of the write-ahead logs and of the manifest is read here, where what
//! counts is the length that the last record says of itself:
//!
//! - **cut off** is a record at the end of the file that says more bytes than the file has, or whose
//!   bytes are zeroes from some sector to the end of the file, as a file system leaves what it had no time
//!   to write. It was never acknowledged as durable. The file is cut to where it begins, and the log says so.
//! - **damaged** is everything else that does not have the checksum that was written with it, a changed
//!   length included: nothing is opened then.
//!
//! Format: `db/log_format.h` and `db/log_writer.cc` of RocksDB, with kinds 1 to 4 only (logs are never
//! recycled or compressed here). A file is blocks of 32 KiB, a block is records, a record is
//! `crc32c: u32, length: u16, kind: u8` (little-endian) and so many bytes; up to 6 bytes at the end of a
//! block are filler. What does not fit in a block goes on in the next, as first, middle and last.
//!
//! Tables have checksums that RocksDB checks whenever it reads them ([`super::rocks`] reads them at the
//! start); `OPTIONS-*`, `IDENTITY` and `LOG*` are written and never read.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::OpenError;

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 7;
/// The least that a disk writes at once.
const SECTOR: usize = 512;

/// How a file of records ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a whole record.
    Whole,
    /// With one that was cut off, which begins here.
    CutOff(usize),
}

/// Where something else stands than was written, and what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Damage {
    at: usize,
    what: &'static str,
}

/// Looks at the files of the database in `db`, cuts off what a crash left unfinished, and refuses what
/// is damaged. The database must be closed, and locked by the caller.
///
/// # Errors
/// [`OpenError::Damaged`] with the file, or [`OpenError::Io`].
pub(super) fn look_at(db: &Path) -> Result<(), OpenError> {
    let mut logs = Vec::new();
    let mut tables = false;
    for entry in entries(db)? {
        match entry.extension().and_then(|e| e.to_str()) {
            Some("log") => logs.push(entry),
            Some("sst") => tables = true,
            _ => {}
        }
    }
    logs.sort_unstable();
    match manifest(db)? {
        Some(manifest) => _ = look_at_log(&manifest, true)?,
        // A database that was never finished has neither.
        None if logs.is_empty() && !tables => {}
        None => return Err(damaged(&db.join("CURRENT"), "the file is gone".into())),
    }
    let mut last = true;
    for log in logs.iter().rev() {
        // One that was begun and never written to is behind the one that was being written.
        last &= !look_at_log(log, last)?;
    }
    Ok(())
}

fn entries(db: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let listed = match fs::read_dir(db) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(|all| all.map(|e| e.map(|e| e.path())).collect()),
    };
    listed.map_err(|e| failed(db, &e))
}

/// The manifest that `CURRENT` names; none where there is no `CURRENT`.
fn manifest(db: &Path) -> Result<Option<PathBuf>, OpenError> {
    let current = db.join("CURRENT");
    let named = match fs::read(&current) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        named => named.map_err(|e| failed(&current, &e))?,
    };
    let name = named.strip_suffix(b"\n").and_then(|name| std::str::from_utf8(name).ok());
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-"));
    match (name, number) {
        (Some(name), Some(n)) if n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()) => {
            let path = db.join(name);
            match path.is_file() {
                true => Ok(Some(path)),
                false => Err(damaged(&current, format!("it names {name}, which is not there"))),
            }
        }
        _ => Err(damaged(&current, format!("it names no manifest, but {}", named.escape_ascii()))),
    }
}

/// Whether anything is in it. `last`: nothing was written after it, so that its end may be cut off.
fn look_at_log(path: &Path, last: bool) -> Result<bool, OpenError> {
    let bytes = fs::read(path).map_err(|e| failed(path, &e))?;
    let whole = |at| format!("{at} of {} bytes are whole", bytes.len());
    match read(&bytes) {
        Ok(End::Whole) => Ok(!bytes.is_empty()),
        Ok(End::CutOff(at)) if last => {
            let cut = OpenOptions::new().write(true).open(path);
            cut.and_then(|file| file.set_len(at as u64).and_then(|()| file.sync_all()))
                .map_err(|e| failed(path, &e))?;
            log::warn!(
                "{}: {}; the rest is a record that was being written when the process or the machine \
                 ended, and was not acknowledged: cut off",
                path.display(),
                whole(at)
            );
            Ok(true)
        }
        Ok(End::CutOff(at)) => {
            let what = format!("{}, and later records are in later files", whole(at));
            Err(damaged(path, what))
        }
        Err(Damage { at, what }) => Err(damaged(path, format!("{}, then {what}", whole(at)))),
    }
}

pub(super) fn damaged(file: &Path, what: String) -> OpenError {
    OpenError::Damaged { file: file.to_owned(), what }
}

fn failed(path: &Path, e: &io::Error) -> OpenError {
    OpenError::Io(format!("{}: {e}", path.display()))
}

/// Reads all records of a file; `at` of a damage is the end of the last record that is whole.
fn read(bytes: &[u8]) -> Result<End, Damage> {
    let mut at = 0;
    // Where the record begins of which the last part has not come yet.
    let mut begun = None;
    while at < bytes.len() {
        let room = BLOCK - at % BLOCK;
        if room < HEADER {
            at += room;
            continue;
        }
        let start = begun.unwrap_or(at);
        let damage = |what| Err(Damage { at: start, what });
        let rest = &bytes[at..];
        let Some((&[c0, c1, c2, c3, l0, l1, kind], body)) = rest.split_first_chunk() else {
            return Ok(End::CutOff(start));
        };
        let stored = u32::from_le_bytes([c0, c1, c2, c3]);
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if ends_in_zeroes(bytes, at, at + HEADER) {
            return Ok(End::CutOff(start));
        }
        if (stored, length, kind) == (0, 0, 0) {
            return match rest.iter().all(|b| *b == 0) {
                true => Ok(End::CutOff(start)),
                false => damage("zeroes with records behind them"),
            };
        }
        if length > room - HEADER {
            return damage("a record that says it is larger than its block");
        }
        let Some(body) = body.get(..length) else {
            return match has_checksum_before_its_end(stored, kind, body) {
                true => damage("a record whose length is not the one that it was written with"),
                false => Ok(End::CutOff(start)),
            };
        };
        if checksum(kind, body) != stored {
            return match ends_in_zeroes(bytes, at, at + HEADER + length) {
                true => Ok(End::CutOff(start)),
                false => damage("a record that does not have the checksum it was written with"),
            };
        }
        match (kind, begun) {
            (1, None) => {}
            (2, None) => begun = Some(at),
            (3, Some(_)) => {}
            (4, Some(_)) => begun = None,
            _ => return damage("parts of records that do not belong together"),
        }
        at += HEADER + length;
    }
    Ok(begun.map_or(End::Whole, End::CutOff))
}

/// Whether the record from `at` to `end` is the last of the file, and its bytes are zeroes from a sector's
/// beginning on.
fn ends_in_zeroes(bytes: &[u8], at: usize, end: usize) -> bool {
    let last = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    last.max(at).next_multiple_of(SECTOR) < end
}

/// Whether `stored` is the checksum of some beginning of `body`: of a record that is whole, and says
/// another length than it has.
fn has_checksum_before_its_end(stored: u32, kind: u8, body: &[u8]) -> bool {
    let mut crc = crc32c(!0, &[kind]);
    masked(!crc) == stored
        || body.iter().any(|b| {
            crc = crc32c(crc, &[*b]);
            masked(!crc) == stored
        })
}

fn checksum(kind: u8, body: &[u8]) -> u32 {
    masked(!crc32c(crc32c(!0, &[kind]), body))
}

/// As RocksDB stores them: a checksum of bytes that hold checksums would be a weak one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), eight bytes at a time. Written here since no crate that is
/// built anyway has this polynomial: `crc32fast` has the one of IEEE 802.3.
fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    let (eights, rest) = bytes.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in eights {
        let [a, b, c, d] = (crc ^ u32::from_le_bytes([a, b, c, d])).to_le_bytes();
        crc = [a, b, c, d, e, f, g, h]
            .into_iter()
            .zip(TABLES.iter().rev())
            .fold(0, |crc, (byte, table)| crc ^ table[usize::from(byte)]);
    }
    rest.iter().fold(crc, |crc, b| (crc >> 8) ^ TABLES[0][usize::from(*b ^ crc as u8)])
}

/// What each value of a byte makes of the checksum, with 0 to 7 bytes behind it.
static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
            bit += 1;
        }
        tables[0][n] = crc;
        n += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut n = 0;
        while n < 256 {
            let before = tables[k - 1][n];
            tables[k][n] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            n += 1;
        }
        k += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The records as RocksDB writes them, and where each ends.
    fn written(records: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut file, mut ends) = (Vec::new(), vec![0]);
        for record in records {
            let (mut left, mut first) = (&record[..], true);
            loop {
                let mut room = BLOCK - file.len() % BLOCK;
                if room < HEADER {
                    file.extend(vec![0; room]);
                    room = BLOCK;
                }
                let (part, more) = left.split_at(left.len().min(room - HEADER));
                let kind = match (first, more.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                };
                file.extend(checksum(kind, part).to_le_bytes());
                file.extend((part.len() as u16).to_le_bytes());
                file.push(kind);
                file.extend(part);
                (left, first) = (more, false);
                if left.is_empty() {
                    break;
                }
            }
            ends.push(file.len());
        }
        (file, ends)
    }

    fn some() -> (Vec<u8>, Vec<usize>) {
        let sizes = [1, 700, 0, 5000, 30_000, 70_000, 12, 40, 3];
        let records = sizes.map(|n: usize| (0..n).map(|i| (i * 31 + n) as u8).collect());
        written(&records)
    }

    /// Every place around a header or a block's end, and some within records.
    fn places(file: &[u8], ends: &[usize]) -> Vec<usize> {
        let blocks = (BLOCK..file.len()).step_by(BLOCK);
        let edges = ends.iter().copied().chain(blocks).flat_map(|at| at.saturating_sub(9)..at + 9);
        edges.chain((0..file.len()).step_by(701)).filter(|at| *at < file.len()).collect()
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720 appendix B.4, and Google's check value.
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(!0, &(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_file_cut_off_anywhere_ends_with_its_last_whole_record() {
        let (file, ends) = some();
        assert_eq!(read(&file), Ok(End::Whole));
        for length in places(&file, &ends) {
            let whole = *ends.iter().rev().find(|end| **end <= length).unwrap();
            let filler = file[whole..length].iter().all(|b| *b == 0) && length - whole < HEADER;
            match read(&file[..length]) {
                // A record that would not fit begins behind the filler.
                Ok(End::CutOff(at)) => assert!((whole..whole + HEADER).contains(&at), "{length}"),
                Ok(End::Whole) => assert!(length == whole || filler, "{length}"),
                Err(damage) => panic!("{length}: {damage:?}"),
            }
        }
    }

    #[test]
    fn zeroes_from_a_sector_on_are_what_was_never_written() {
        let (file, ends) = some();
        for from in (SECTOR..file.len()).step_by(SECTOR) {
            // A block's filler is zeroes anyway, and a record that ends here is whole.
            let mut cut = file.clone();
            cut[from..].fill(0);
            let whole = *ends.iter().rev().find(|end| **end <= from).unwrap();
            match read(&cut) {
                Ok(End::CutOff(at)) => assert!((whole..whole + HEADER).contains(&at), "{from}"),
                other => panic!("{from}: {other:?}"),
            }
        }
    }

    /// A flipped bit is damage wherever it is: also in a length that then says more than the file has.
    #[test]
    fn one_bit_flipped_anywhere_is_damage() {
        let (file, ends) = some();
        for at in places(&file, &ends) {
            let bit = 1 << (at % 8);
            let mut flipped = file.clone();
            flipped[at] ^= bit;
            match read(&flipped) {
                Err(damage) => assert!(damage.at <= at, "{at}: {damage:?}"),
                // Filler at the end of a block is part of no record.
                other => assert!(other == Ok(End::Whole) && at % BLOCK > BLOCK - HEADER, "{at}"),
            }
        }
        // Every bit of every header.
        let (file, _) = written(&[vec![7; 100], vec![8; 50]]);
        for (at, bit) in (0..file.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped).is_err(), "byte {at}, bit {bit}");
        }
    }

    #[test]
    fn only_the_newest_log_may_end_in_the_middle_of_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let (file, ends) = some();
        let (older, newest) = (dir.path().join("000004.log"), dir.path().join("000010.log"));
        fs::write(dir.path().join("MANIFEST-000003"), &file).unwrap();
        fs::write(dir.path().join("CURRENT"), "MANIFEST-000003\n").unwrap();
        fs::write(&older, &file).unwrap();
        fs::write(&newest, &file[..file.len() - 2]).unwrap();
        fs::write(dir.path().join("000011.log"), "").unwrap();
        look_at(dir.path()).unwrap();
        let cut = ends[ends.len() - 2];
        assert_eq!(fs::read(&newest).unwrap(), file[..cut], "cut to its last whole record");
        fs::write(&older, &file[..file.len() - 2]).unwrap();
        let refused = look_at(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("000004.log") && refused.contains("later files"), "{refused}");
    }

    #[test]
    fn a_database_without_its_manifest_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        look_at(&dir.path().join("none")).unwrap();
        look_at(dir.path()).unwrap();
        fs::write(dir.path().join("000004.log"), "").unwrap();
        for current in [None, Some("MANIFEST-00000"), Some("MANIFEST-000009\n"), Some("\n")] {
            if let Some(current) = current {
                fs::write(dir.path().join("CURRENT"), current).unwrap();
            }
            let refused = look_at(dir.path()).unwrap_err().to_string();
            assert!(refused.contains("CURRENT"), "{refused}");
        }
    }
}
