//! A store in a directory, kept by RocksDB. The only module that knows RocksDB.
//!
//! The directory holds `lock` (held while open, says who holds it), `db/` (RocksDB's own files) and,
//! for moments, `probe`.
//!
//! Every write is in the write-ahead log before it is answered, so `kill -9` loses nothing. Before the
//! database is opened, [`super::files`] cuts off what a power cut or a kill left unfinished at the end of
//! the log, and refuses a log that is damaged. So RocksDB is to find every log whole
//! (`kAbsoluteConsistency`): its other modes drop what follows a damage.
//!
//! After a failed write (full disk, I/O error) RocksDB refuses writes, and its binding has no
//! resume. So the database is closed and opened again once the disk takes a probe file; reads wait
//! for that moment only. If it cannot be opened for writing, it is opened for reading until it can.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, ErrorKind, LiveFile, LogLevel,
    Options as DbOptions, ReadOptions, WriteBatch, WriteOptions,
};

use vango_edge_core::clock::Clock;

use super::storage::{Range, Scan, Storage, StorageError, Write, prefix_end};
use super::{Engine, OpenError, Options, files};

const MIB: usize = 1024 * 1024;
/// What the disk must take before the database is opened again: more than opening it writes.
const PROBE_BYTES: usize = 2 * MIB;
const PROBE: &str = "probe";
/// Bytes of tables that are read through at the start: about a third of a second of a slow disk.
const READ_AT_OPEN: usize = 64 * MIB;

/// A store in a directory.
pub type RocksStore = Engine<Rocks>;

impl RocksStore {
    /// Opens the store in `dir`, which is made if it is not there. Blocks while it is read.
    ///
    /// # Errors
    /// [`OpenError`]; `Locked` if another process, or this one, has it open.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, options: Options) -> Result<Self, OpenError> {
        Self::start(Rocks::open(dir)?, clock, options)
    }
}

/// A RocksDB database, its directory, and the right to it.
pub struct Rocks {
    dir: PathBuf,
    db: RwLock<State>,
    lock: Mutex<Option<Flock<File>>>,
}

enum State {
    Open(DB),
    /// A write failed, and opening it anew for writing failed too.
    ReadOnly(DB, String),
    /// It could not be opened in any way.
    Lost(String),
    Closed,
}

impl State {
    fn readable(&self) -> Result<&DB, StorageError> {
        match self {
            Self::Open(db) | Self::ReadOnly(db, _) => Ok(db),
            Self::Lost(said) => Err(StorageError::Io(said.clone())),
            Self::Closed => Err(StorageError::Closed),
        }
    }

    fn writable(&self) -> Result<&DB, StorageError> {
        match self {
            Self::Open(db) => Ok(db),
            Self::ReadOnly(_, said) | Self::Lost(said) => Err(StorageError::Io(said.clone())),
            Self::Closed => Err(StorageError::Closed),
        }
    }
}

impl Rocks {
    /// Opens the database in `dir`. One opening at a time, over all processes.
    ///
    /// # Errors
    /// [`OpenError::Locked`], [`OpenError::Damaged`] or [`OpenError::Io`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let failed =
            |what: &str, e: io::Error| OpenError::Io(format!("{}: {what}: {e}", dir.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| failed("cannot make the state directory", e))?;
        let lock = lock(dir)?;
        // A probe that a kill left.
        let _ = fs::remove_file(dir.join(PROBE));
        let path = dir.join("db");
        files::look_at(&path)?;
        let refused = |e: rocksdb::Error| {
            // RocksDB's own lock: its tools know no other.
            if e.kind() == ErrorKind::IOError && e.as_ref().contains("lock") {
                return OpenError::Locked {
                    dir: dir.to_owned(),
                    holder: format!("holder unknown: {e}"),
                };
            }
            match said(e) {
                StorageError::Corrupt(said) => files::damaged(&file_in(&said, &path), said),
                // A log is made into tables as it is opened, which takes room.
                other if other.to_string().contains("No space left") => OpenError::Io(format!(
                    "{}: {other}. Nothing is lost: make room on its file system and start again. What takes room \
                     is listed under \"A full disk\" in docs/operating.md",
                    dir.display()
                )),
                other => OpenError::Io(format!("{}: {other}", dir.display())),
            }
        };
        let db = DB::open(&options(), &path).map_err(refused)?;
        // A table that RocksDB replaces in the background meanwhile stays until it was looked for.
        db.disable_file_deletions().map_err(refused)?;
        let tables = db.live_files().map_err(refused)?;
        look_for(&tables, &path)?;
        db.enable_file_deletions().map_err(refused)?;
        read_tables(&db, &tables).map_err(refused)?;
        Ok(Self {
            dir: dir.to_owned(),
            db: RwLock::new(State::Open(db)),
            lock: Mutex::new(Some(lock)),
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&DB) -> Result<T, rocksdb::Error>,
    ) -> Result<T, StorageError> {
        let state = self.db.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        read(state.readable()?).map_err(said)
    }
}

/// Whether each of the database's tables is in `db` and has its size: RocksDB opens only some of them when it
/// opens (16, in `LoadTableHandlers`), and would miss another one when a request needs it.
fn look_for(tables: &[LiveFile], db: &Path) -> Result<(), OpenError> {
    for LiveFile { name, size, .. } in tables {
        let file = db.join(name.trim_start_matches('/'));
        match fs::metadata(&file).map(|meta| meta.len()) {
            Ok(found) if found == *size as u64 => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                // The disk refuses for now; what it keeps may be whole.
                return Err(OpenError::Io(format!("{}: {e}", file.display())));
            }
            _ => {
                let what = format!("it is gone, or has not its {size} bytes");
                return Err(files::damaged(&file, what));
            }
        }
    }
    Ok(())
}

/// Reads every table through, so that one that is damaged is found at the start and not by a request
/// that needs it. More than [`READ_AT_OPEN`] would keep a node with a large ledger from serving for
/// seconds: then each block is checked when it is read, and what needs a damaged one is refused.
fn read_tables(db: &DB, tables: &[LiveFile]) -> Result<(), rocksdb::Error> {
    let bytes: usize = tables.iter().map(|table| table.size).sum();
    if bytes > READ_AT_OPEN {
        return Ok(());
    }
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options.set_readahead_size(MIB);
    let mut cursor = db.raw_iterator_opt(options);
    cursor.seek_to_first();
    while cursor.valid() {
        cursor.next();
    }
    cursor.status()
}

/// The file of the database in `db` that RocksDB complains of, or all of them if it does not say.
fn file_in(said: &str, db: &Path) -> PathBuf {
    let words = said.split([' ', ',', ';', ':', '\'', '"']).map(Path::new);
    let mut files = words.filter(|word| word.parent() == Some(db));
    files.next().unwrap_or(db).to_owned()
}

fn said(e: rocksdb::Error) -> StorageError {
    match e.kind() {
        ErrorKind::Corruption => StorageError::Corrupt(e.into_string()),
        _ => StorageError::Io(e.into_string()),
    }
}

/// Small: what the edge keeps is thousands of short records, read through the snapshot, not here.
fn options() -> DbOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(8 * MIB));
    table.set_bloom_filter(10.0, false);
    let mut options = DbOptions::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(4 * MIB);
    options.set_max_write_buffer_number(3);
    options.set_max_total_wal_size(32 * MIB as u64);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
    // A log that is missing, or shorter than it was when it was closed, is damage too.
    options.set_track_and_verify_wals_in_manifest(true);
    // RocksDB's own text log: warnings, four files of at most 1 MiB.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(MIB);
    options.set_keep_log_file_num(4);
    options.set_stats_dump_period_sec(0);
    options
}

/// Tries for the lock, and how long between them: a second in all.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// A process that was killed while it was starting another leaves the lock to that one until it
/// becomes its own program: moments, in which its successor may be here already.
fn lock_soon(file: File) -> Result<Flock<File>, (File, Errno)> {
    let mut held = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    for _ in 0..LOCK_TRIES {
        match held {
            Err((file, Errno::EWOULDBLOCK)) => {
                std::thread::sleep(LOCK_PAUSE);
                held = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            }
            other => return other,
        }
    }
    held
}

/// Takes the directory's lock and writes this process's id into it.
///
/// # Errors
/// [`OpenError::Locked`], or [`OpenError::Io`].
pub fn lock(dir: &Path) -> Result<Flock<File>, OpenError> {
    let path = dir.join("lock");
    let failed = |e: io::Error| OpenError::Io(format!("{}: {e}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match lock_soon(file) {
        Ok(mut lock) => {
            // On a full disk the id is missing, the lock is held all the same.
            let id = format!("pid {}\n", std::process::id());
            let written = lock.set_len(0).and_then(|()| lock.write_all(id.as_bytes()));
            if let Err(e) = written {
                log::warn!("{}: cannot write the process id: {e}", path.display());
            }
            Ok(lock)
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // The holder may write anything there; it ends up in a message.
            let read = file.take(64).read_to_string(&mut holder);
            let holder = match read.map(|_| holder.trim()) {
                Ok(id) if !id.is_empty() => id.escape_default().to_string(),
                _ => "holder unknown".to_owned(),
            };
            Err(OpenError::Locked { dir: dir.to_owned(), holder })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// Whether the disk takes what opening the database writes.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE);
    let written = File::create(&path).and_then(|mut file| {
        let block = vec![0x5a; 64 * 1024];
        (0..PROBE_BYTES / block.len()).try_for_each(|_| file.write_all(&block))?;
        file.sync_all()
    });
    // A probe that stays is in the way of nothing but space.
    let _ = fs::remove_file(&path);
    written
}

impl Storage for Rocks {
    const BLOCKING: bool = true;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.read(|db| Ok(db.get(key)?.map(Bytes::from)))
    }

    fn scan(&self, range: &Range, beside: &[u8]) -> Result<Scan, StorageError> {
        self.read(|db| {
            let snapshot = db.snapshot();
            let beside = snapshot.get(beside)?.map(Bytes::from);
            let mut bounds = ReadOptions::default();
            bounds.set_iterate_upper_bound(prefix_end(&range.prefix));
            let mut rows = Vec::new();
            let mut bytes = 0;
            let mut cursor = snapshot.raw_iterator_opt(bounds);
            cursor.seek(&range.from);
            while rows.len() < range.limit
                && bytes < range.bytes
                && let Some((key, value)) = cursor.item()
            {
                bytes += key.len() + value.len();
                rows.push((key.to_vec(), Bytes::copy_from_slice(value)));
                cursor.next();
            }
            // An iterator that failed looks like one at its end.
            cursor.status()?;
            Ok(Scan { rows, more: cursor.valid(), beside })
        })
    }

    fn write(&self, batch: Vec<Write>, sync: bool) -> Result<(), StorageError> {
        let mut writes = WriteBatch::default();
        for write in &batch {
            match write {
                Write::Put(key, value) => writes.put(key, value),
                Write::Delete(key) => writes.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        let state = self.db.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.writable()?.write_opt(writes, &options).map_err(said)
    }

    fn recover(&self) -> Result<(), StorageError> {
        // Before giving up a database that can still be read.
        probe(&self.dir)
            .map_err(|e| StorageError::Io(format!("{}: cannot write: {e}", self.dir.display())))?;
        let mut state = self.db.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if matches!(*state, State::Closed) {
            return Err(StorageError::Closed);
        }
        // Closed first: RocksDB locks its directory within a process too.
        *state = State::Lost("being opened again".into());
        let path = self.dir.join("db");
        // The write that failed may have left the beginning of a record.
        let looked = files::look_at(&path).map_err(|e| match e {
            OpenError::Damaged { .. } => StorageError::Corrupt(e.to_string()),
            e => StorageError::Io(e.to_string()),
        });
        match looked.and_then(|()| DB::open(&options(), &path).map_err(said)) {
            Ok(db) => {
                *state = State::Open(db);
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                *state = match DB::open_for_read_only(&options(), &path, false) {
                    Ok(db) => State::ReadOnly(db, text),
                    Err(_) => State::Lost(text),
                };
                Err(error)
            }
        }
    }

    fn close(&self) {
        *self.db.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = State::Closed;
        // After the database: the process that gets the lock must find it closed.
        self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_gone_or_shorter_is_found_without_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = DB::open(&options(), dir.path()).unwrap();
        db.put("k", "v").unwrap();
        db.flush().unwrap();
        let tables = db.live_files().unwrap();
        assert_eq!(tables.len(), 1);
        look_for(&tables, dir.path()).unwrap();
        let table = dir.path().join(tables[0].name.trim_start_matches('/'));
        let whole = fs::read(&table).unwrap();
        fs::write(&table, &whole[1..]).unwrap();
        let refused = |e: OpenError| matches!(e, OpenError::Damaged { file, .. } if file == table);
        assert!(look_for(&tables, dir.path()).is_err_and(refused));
        fs::remove_file(&table).unwrap();
        assert!(look_for(&tables, dir.path()).is_err_and(refused));
    }
}
