//! One byte of one file is not what was written: the store is refused and names the file, or nothing of
//! what was acknowledged is missing. And what a crash leaves is not taken for damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vango_edge_core::clock::{Entropy, ManualClock, SeededEntropy};
use vango_edge_store::{OpenError, Options, RocksStore, StateStore, Txn};

use crate::open;

type Records = BTreeMap<String, Vec<u8>>;

/// Leaves two tables in `dir/whole`, a manifest that names them, and a log of several blocks.
///
/// Closing writes no table of the log, so the files are those that `kill -9` would leave. Only a closed
/// database may be copied: releasing a snapshot lets RocksDB rewrite its oldest table in the background
/// ("BottommostFiles"), after which the replaced one, which nothing reads, stays for some moments.
/// Closing waits for that and removes what the manifest does not name.
async fn written(dir: &Path) -> Records {
    let (clock, entropy) = (Arc::new(ManualClock::new()), SeededEntropy::new(7));
    let mut records = Records::new();
    for life in 0..3 {
        // Opening makes a table of the log that the life before has left.
        let store = open(&dir.join("whole"), &clock);
        for n in 0..60 {
            let mut value = vec![0; usize::try_from(entropy.next_u64() % 3000).unwrap()];
            entropy.fill(&mut value);
            let key = format!("k/{life}/{n:03}");
            store.txn(Txn::new().put(&key, value.clone()).synced()).await.unwrap();
            records.insert(key, value);
        }
        store.close().await.unwrap();
    }
    records
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => _ = fs::copy(entry.path(), to.join(entry.file_name())).unwrap(),
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join("whole/db")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn only(dir: &Path, ending: &str) -> PathBuf {
    files(dir).into_iter().find(|f| f.to_str().unwrap().ends_with(ending)).unwrap()
}

async fn everything(store: &RocksStore) -> Records {
    let page = store.list("k/", None, 1000).await.unwrap();
    page.entries.into_iter().map(|(key, entry)| (key, entry.value.to_vec())).collect()
}

/// Opens a copy in which `file` has other bytes, or none is there; what it says, or what it holds.
async fn with(dir: &Path, file: &Path, bytes: Option<&[u8]>) -> Result<Records, OpenError> {
    let damaged = dir.join("damaged");
    let _ = fs::remove_dir_all(&damaged);
    copy(&dir.join("whole"), &damaged);
    let file = damaged.join("db").join(file.file_name().unwrap());
    match bytes {
        Some(bytes) => fs::write(file, bytes).unwrap(),
        None => fs::remove_file(file).unwrap(),
    }
    let store = RocksStore::open(&damaged, Arc::new(ManualClock::new()), Options::default())?;
    let found = everything(&store).await;
    store.close().await.unwrap();
    Ok(found)
}

/// `VANGO_EDGE_TEST_FLIPS` is how many positions of each file are tried, `VANGO_EDGE_TEST_SEED` which.
#[tokio::test]
async fn one_byte_flipped_in_any_file_is_refused_by_name_or_costs_nothing() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |s| s.parse().unwrap());
    let (seed, flips) = (setting("VANGO_EDGE_TEST_SEED", 1), setting("VANGO_EDGE_TEST_FLIPS", 24));
    println!("seed {seed}");
    let entropy = SeededEntropy::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let records = written(dir.path()).await;
    let mut found: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for file in files(dir.path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&file).unwrap();
        let length = bytes.len() as u64;
        // RocksDB's own text log is never read, and LOCK has no byte.
        if bytes.is_empty() || name.starts_with("LOG") {
            continue;
        }
        let few = flips.min(length);
        let ends = (0..few.min(16)).chain(length - few.min(16)..length);
        let positions: Vec<u64> =
            ends.chain((0..few).map(|_| entropy.next_u64() % length)).collect();
        for at in positions {
            let mut flipped = bytes.clone();
            flipped[usize::try_from(at).unwrap()] ^= match entropy.next_u64() % 3 {
                0 => 0xff,
                _ => 1 << (entropy.next_u64() % 8),
            };
            let what = format!("seed {seed}, {name}, byte {at} of {length}");
            let kind = name.trim_start_matches(|c: char| c.is_ascii_digit());
            let kind = kind.split('-').next().unwrap().to_owned();
            let [refused, whole] = found.entry(kind).or_default();
            match with(dir.path(), &file, Some(&flipped)).await {
                Err(OpenError::Damaged { file, what: said }) => {
                    assert!(
                        file.ends_with(Path::new("db").join(&name)),
                        "{what}: {file:?}: {said}"
                    );
                    *refused += 1;
                }
                Err(other) => panic!("{what}: {other}"),
                Ok(kept) => {
                    assert!(kept == records, "{what}: {} of {}", kept.len(), records.len());
                    *whole += 1;
                }
            }
        }
    }
    println!("refused, opened with everything: {found:#?}");
    // What is read is refused, and what is never read is not.
    for (kind, [refused, whole]) in found {
        match kind.as_str() {
            ".log" | "MANIFEST" | "CURRENT" => assert_eq!(whole, 0, "{kind}"),
            "OPTIONS" | "IDENTITY" => assert_eq!(refused, 0, "{kind}"),
            _ => assert!(refused > whole, "{kind}"),
        }
    }
}

/// A record that was being written when the machine stopped: some of its bytes, or zeroes in their place.
#[tokio::test]
async fn a_log_that_a_crash_cut_off_opens_with_every_record_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let records = written(dir.path()).await;
    let log = only(dir.path(), ".log");
    let bytes = fs::read(&log).unwrap();
    let entropy = SeededEntropy::new(3);
    let mut before = usize::MAX;
    let mut lengths: Vec<usize> =
        (0..24).map(|_| usize::try_from(entropy.next_u64()).unwrap() % bytes.len()).collect();
    lengths.extend([bytes.len(), 0, 1, 6, 7, 8]);
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    for length in lengths {
        let kept = with(dir.path(), &log, Some(&bytes[..length])).await.unwrap();
        // A beginning of what was written, and the shorter the log the shorter.
        let first: Records = records.clone().into_iter().take(kept.len()).collect();
        assert!(kept == first && kept.len() <= before, "{length}: {}", kept.len());
        before = kept.len();
        let mut zeroes = bytes.clone();
        zeroes[length.next_multiple_of(512).min(bytes.len())..].fill(0);
        let kept = with(dir.path(), &log, Some(&zeroes)).await.unwrap();
        assert!(kept.len() >= before, "{length}: {} with zeroes behind it", kept.len());
    }
    assert_eq!(before, 120, "the tables' records are there without any log");
}

#[tokio::test]
async fn a_file_that_is_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let gone = files(dir.path()).into_iter().filter(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.ends_with(".sst") || name == "CURRENT" || name.starts_with("MANIFEST")
    });
    let gone: Vec<_> = gone.collect();
    assert_eq!(gone.len(), 4, "two tables, the manifest and its name: {gone:?}");
    for file in gone {
        let refused = with(dir.path(), &file, None).await.err();
        let refused = refused.unwrap_or_else(|| panic!("{file:?} is gone")).to_string();
        assert!(refused.contains("damaged/db"), "{refused}");
    }
}
