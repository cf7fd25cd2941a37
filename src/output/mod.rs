//! What processes print, on disk: for each environment a row of files, the oldest of which goes when there are
//! too many bytes of the environment, of all together, or when it is too old. [`files`] keeps them, [`read`]
//! reads them, [`pump`] brings there what a process prints. How a line is written says
//! [`vango_edge_core::line`].
//!
//! Invariants: no more than [`Limits`] says is on disk, but for the line that is being written; what is dropped is
//! counted and said in the log itself. No process waits for the disk: what cannot be written in time is
//! dropped.

mod files;
mod pump;
mod read;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Mono, Wall};
use crate::id::{AllocationId, AppName, EnvName, Environment};
use crate::line::{Line, Rate, Stream};

use files::Files;

pub use pump::{Source, pump};
pub use read::{Row, Select, Wanted};

/// How often what is too old is looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// What is kept at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of each environment.
    pub each: u64,
    /// Bytes of all environments.
    pub total: u64,
    /// How long a file is kept after its last line.
    pub age: Duration,
    /// Bytes a second of each environment.
    pub rate: u64,
}

/// Why lines were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// More than the rate.
    Rate,
    /// The disk is full, away or too slow.
    Disk,
}

impl Dropped {
    /// As the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Disk => "disk",
        }
    }
}

/// Told how many lines were dropped, for metrics.
pub type Told = Box<dyn Fn(Dropped, u64) + Send + Sync>;

/// What every environment's processes printed.
pub struct Outputs {
    dir: PathBuf,
    limits: Limits,
    clock: Arc<dyn Clock>,
    told: Told,
    kept: Mutex<BTreeMap<Environment, Arc<Kept>>>,
    /// Bytes of all environments.
    total: AtomicU64,
}

/// One environment's.
struct Kept {
    files: Mutex<Files>,
    rate: Mutex<Rate>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outputs {
    /// What is below `dir`: `APP/ENVIRONMENT/NUMBER.log`.
    ///
    /// # Errors
    /// When `dir` cannot be made or listed.
    pub fn open(
        dir: &Path,
        limits: Limits,
        clock: Arc<dyn Clock>,
        told: Told,
    ) -> io::Result<Arc<Self>> {
        fs::create_dir_all(dir)?;
        let mut kept = BTreeMap::new();
        let mut total = 0;
        for (app, path) in named::<AppName>(dir)? {
            for (name, path) in named::<EnvName>(&path)? {
                let files = Files::found(path)?;
                total += files.bytes();
                kept.insert(
                    Environment::new(app.clone(), name),
                    Arc::new(Kept::new(files, limits, clock.now())),
                );
            }
        }
        let dir = dir.to_owned();
        let (kept, total) = (Mutex::new(kept), AtomicU64::new(total));
        Ok(Arc::new(Self { dir, limits, clock, told, kept, total }))
    }

    /// A small one in `dir/log`.
    #[cfg(test)]
    pub(crate) fn small(dir: &Path) -> Arc<Self> {
        let limits = Limits { each: 1 << 16, total: 1 << 20, age: 6 * SWEEP, rate: 1 << 16 };
        let clock = Arc::new(crate::clock::SystemClock::new());
        Self::open(&dir.join("log"), limits, clock, Box::new(|_, _| ())).unwrap()
    }

    fn of(&self, environment: &Environment) -> Arc<Kept> {
        let mut kept = locked(&self.kept);
        if let Some(found) = kept.get(environment) {
            return Arc::clone(found);
        }
        let (app, name) = (environment.app().as_str(), environment.name().as_str());
        let files = Files::new(self.dir.join(app).join(name));
        let new = Arc::new(Kept::new(files, self.limits, self.clock.now()));
        kept.insert(environment.clone(), Arc::clone(&new));
        new
    }

    /// The environments of an app of which something is kept, or all there are.
    fn environments(&self, app: Option<&AppName>) -> Vec<(Environment, Arc<Kept>)> {
        let kept = locked(&self.kept);
        let all = kept.iter().filter(|(e, _)| app.is_none_or(|app| e.app() == app));
        all.map(|(e, kept)| (e.clone(), Arc::clone(kept))).collect()
    }

    /// The edge's own word about a process; it is in the log like what the process prints. Returns at once.
    pub fn note(
        self: &Arc<Self>,
        environment: &Environment,
        allocation: &AllocationId,
        process: &str,
        text: &str,
    ) {
        let line = format!("{}\n", self.edges(allocation, process, text));
        let (outputs, environment) = (Arc::clone(self), environment.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(e) = outputs.append(&environment, line.as_bytes()) {
                ::log::warn!("{environment}: the log of its output was not written: {e}");
            }
        });
    }

    fn edges(&self, allocation: &AllocationId, process: &str, text: &str) -> Line {
        Line {
            at: self.clock.wall(),
            allocation: Some(allocation.clone()),
            process: process.to_owned(),
            stream: Stream::Edge,
            partial: false,
            text: text.replace('\n', " "),
        }
    }

    /// Adds whole lines. Blocks for the disk.
    fn append(&self, environment: &Environment, lines: &[u8]) -> io::Result<()> {
        let kept = self.of(environment);
        let mut files = locked(&kept.files);
        let before = files.bytes();
        let written = files.append(lines, self.limits.each, self.clock.wall());
        let after = files.bytes();
        drop(files);
        let total = if after >= before {
            self.total.fetch_add(after - before, Ordering::AcqRel) + (after - before)
        } else {
            self.total.fetch_sub(before - after, Ordering::AcqRel) - (before - after)
        };
        if total > self.limits.total {
            self.make_room(environment);
        }
        written
    }

    /// Removes the oldest files of all, until a sixteenth of what may be kept is free. The file that was written to
    /// last stays.
    fn make_room(&self, writing: &Environment) {
        let goal = self.limits.total - self.limits.total / 16;
        let mut oldest: Vec<(Wall, Arc<Kept>, u64)> = Vec::new();
        for (environment, kept) in self.environments(None) {
            let files = locked(&kept.files);
            let last = files.last().filter(|_| environment == *writing);
            for file in files.list().filter(|file| Some(file.number) != last) {
                oldest.push((file.changed, Arc::clone(&kept), file.number));
            }
        }
        oldest.sort_by_key(|(changed, _, number)| (*changed, *number));
        for (_, kept, number) in oldest {
            if self.total.load(Ordering::Acquire) <= goal {
                return;
            }
            let freed = locked(&kept.files).remove(number);
            self.total.fetch_sub(freed, Ordering::AcqRel);
        }
    }

    /// Removes what is too old, for as long as it is polled.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            let outputs = Arc::clone(&self);
            let swept = tokio::task::spawn_blocking(move || outputs.sweep_once());
            if let Err(e) = swept.await {
                ::log::error!("old output of apps was not removed: {e}");
            }
            tokio::time::sleep(SWEEP).await;
        }
    }

    fn sweep_once(&self) {
        let now = self.clock.wall();
        let all = self.environments(None);
        for (environment, kept) in all {
            let mut files = locked(&kept.files);
            let before = files.bytes();
            files.remove_older(now, self.limits.age);
            self.total.fetch_sub(before - files.bytes(), Ordering::AcqRel);
            drop(files);
            // Its next line makes it anew. Under this lock no other task comes to have it; those that do, have it
            // still.
            let mut map = locked(&self.kept);
            if Arc::strong_count(&kept) == 2 && locked(&kept.files).bytes() == 0 {
                locked(&kept.files).leave();
                map.remove(&environment);
            }
        }
        // What versions before this one kept: two files for each environment, without times.
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let changed = files::changed(&path);
            if changed.is_none_or(|changed| now.since(changed) >= self.limits.age) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Says that lines were dropped.
    fn dropped(&self, why: Dropped, lines: u64) {
        (self.told)(why, lines);
    }
}

impl Kept {
    fn new(files: Files, limits: Limits, now: Mono) -> Self {
        Self { files: Mutex::new(files), rate: Mutex::new(Rate::new(limits.rate, now)) }
    }
}

/// The folders in `dir` whose name is one.
fn named<T: std::str::FromStr>(dir: &Path) -> io::Result<Vec<(T, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            all.push((name, entry.path()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
