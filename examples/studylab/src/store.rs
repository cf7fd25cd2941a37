//! The product database's one writer: a thread that owns the connection and takes jobs in order.
//!
//! Saves and events are jobs. Page renders and live connects are only counted here, in memory, and
//! written together every 50 ms, before any answer about executions and at the end: a process that
//! is killed with SIGKILL loses at most the last 50 ms of those two counts, and never a save.
//!
//! Bounds: jobs that wait, the time a job waits, sessions counted between two writes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::database::{Database, DatabaseError, Summary, route};

const WAITING_JOBS: usize = 1024;
const COUNTED_SESSIONS: usize = 50_000;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const WRITE_COUNTS_AFTER: Duration = Duration::from_millis(50);
/// Other processes may write to the same file; a page is never older than this.
const SUMMARY_AGE: Duration = Duration::from_millis(250);
const SUMMARY_WITHIN: Duration = Duration::from_millis(500);

/// Why the store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Too many jobs before this one for ten seconds; it was not begun.
    #[error("too many writes are waiting; this one was not begun")]
    Busy,
    /// Begun or waiting after ten seconds; it may still be done.
    #[error("the database took too long; whether this was written is not known")]
    Unknown,
    /// Not written.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// The way to the writer. Clones share it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    counts: Arc<Counts>,
    summary: watch::Receiver<(Instant, Arc<Summary>)>,
    refreshing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Counts {
    renders: AtomicU64,
    live: Mutex<BTreeMap<String, u64>>,
    some: Notify,
}

struct Writer {
    database: Database,
    counts: Arc<Counts>,
    summary: watch::Sender<(Instant, Arc<Summary>)>,
}

impl Store {
    /// Starts the writer. The receiver answers once the file is open and this start is counted
    /// under `start_key`; until then jobs wait.
    pub fn open(
        path: PathBuf,
        start_key: String,
    ) -> std::io::Result<(Self, oneshot::Receiver<Result<(), DatabaseError>>)> {
        let (jobs, waiting) = mpsc::channel(WAITING_JOBS);
        let (summary, seen) = watch::channel((Instant::now(), Arc::default()));
        let (opened, when_open) = oneshot::channel();
        let counts = Arc::new(Counts::default());
        let runtime = tokio::runtime::Handle::current();
        let theirs = Arc::clone(&counts);
        std::thread::Builder::new().name("product-db".into()).spawn(move || {
            let begun = Database::open(&path).and_then(|mut database| {
                database.add([(route::START, start_key.as_str(), 1)])?;
                let writer = Writer { database, counts: theirs, summary };
                writer.publish()?;
                Ok(writer)
            });
            match begun {
                Ok(writer) => {
                    // The receiver is gone if the process is stopping already.
                    let _ = opened.send(Ok(()));
                    runtime.block_on(writer.work(waiting));
                }
                Err(err) => drop(opened.send(Err(err))),
            }
        })?;
        Ok((Self { jobs, counts, summary: seen, refreshing: Arc::default() }, when_open))
    }

    /// Counts one render of the dashboard.
    pub fn count_render(&self) {
        self.counts.renders.fetch_add(1, Ordering::Relaxed);
        self.counts.some.notify_one();
    }

    /// Counts one live connect of a session.
    pub fn count_live(&self, session: &str) {
        let mut live = self.counts.live.lock().unwrap_or_else(PoisonError::into_inner);
        // Only reached while the database refuses writes; the connect is still counted.
        let key = if live.len() < COUNTED_SESSIONS { session } else { "" };
        *live.entry(key.to_owned()).or_default() += 1;
        drop(live);
        self.counts.some.notify_one();
    }

    /// Renders that are counted, but not yet in the database.
    pub fn pending_renders(&self) -> u64 {
        self.counts.renders.load(Ordering::Relaxed)
    }

    /// What the dashboard shows of the database, at most a quarter of a second old unless the
    /// database is in trouble: then what was last seen.
    pub async fn summary(&self) -> Arc<Summary> {
        let seen = || {
            let seen = self.summary.borrow();
            (seen.0.elapsed() < SUMMARY_AGE, Arc::clone(&seen.1))
        };
        let (fresh, summary) = seen();
        if fresh {
            return summary;
        }
        // A burst refreshes once: the second request finds it fresh.
        let refreshed = timeout(SUMMARY_WITHIN, async {
            let _one = self.refreshing.lock().await;
            if !seen().0 {
                let _ = self.run(|writer| writer.publish()).await;
            }
        });
        let _ = refreshed.await;
        seen().1
    }

    /// Writes through the database and shows the result on the dashboard before returning it.
    pub async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Database) -> Result<T, DatabaseError> + Send + 'static,
    {
        self.run(move |writer| {
            let done = work(&mut writer.database)?;
            if let Err(err) = writer.publish() {
                eprintln!("studylab: the page shows an older state: {err}");
            }
            Ok(done)
        })
        .await
    }

    /// Reads the database with every count in it.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Database) -> Result<T, DatabaseError> + Send + 'static,
    {
        self.run(move |writer| {
            writer.write_counts()?;
            work(&writer.database)
        })
        .await
    }

    /// Writes the counts that are left: the last thing before an orderly exit.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.run(Writer::write_counts).await
    }

    async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Writer) -> Result<T, DatabaseError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        // Done even if the client has left by then: it was asked for, and it is counted.
        let job: Job = Box::new(move |writer| drop(answer.send(work(writer))));
        match timeout(ANSWER_WITHIN, self.jobs.send(job)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(StoreError::Busy),
        }
        match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(_)) | Err(_) => Err(StoreError::Unknown),
        }
    }
}

impl Writer {
    async fn work(mut self, mut waiting: mpsc::Receiver<Job>) {
        let counts = Arc::clone(&self.counts);
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                job = waiting.recv() => match job {
                    Some(job) => job(&mut self),
                    None => break,
                },
                () = counts.some.notified(), if due.is_none() => {
                    due = Some(Instant::now() + WRITE_COUNTS_AFTER);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    if let Err(err) = self.write_counts() {
                        eprintln!("studylab: counts are kept for the next write: {err}");
                    }
                }
            }
        }
        if let Err(err) = self.write_counts() {
            eprintln!("studylab: the last counts are lost: {err}");
        }
    }

    /// Moves the counts into the database; on an error they stay.
    fn write_counts(&mut self) -> Result<(), DatabaseError> {
        let renders = self.counts.renders.load(Ordering::Relaxed);
        let live =
            std::mem::take(&mut *self.counts.live.lock().unwrap_or_else(PoisonError::into_inner));
        if renders == 0 && live.is_empty() {
            return Ok(());
        }
        let pages = (renders > 0).then_some((route::DASHBOARD, "", renders));
        let sockets = live.iter().map(|(session, n)| (route::LIVE, session.as_str(), *n));
        if let Err(err) = self.database.add(pages.into_iter().chain(sockets)) {
            let mut kept = self.counts.live.lock().unwrap_or_else(PoisonError::into_inner);
            for (session, n) in live {
                *kept.entry(session).or_default() += n;
            }
            drop(kept);
            self.counts.some.notify_one();
            return Err(err);
        }
        self.counts.renders.fetch_sub(renders, Ordering::Relaxed);
        self.publish()
    }

    fn publish(&self) -> Result<(), DatabaseError> {
        let summary = Arc::new(self.database.summary()?);
        self.summary.send_replace((Instant::now(), summary));
        Ok(())
    }
}
