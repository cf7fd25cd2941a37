//! The access log: one JSON line for each request that ended, with everything the edge knows of it
//! and nothing of its query, its headers or its body.
//!
//! A request pays nothing for it: a thread of its own follows the ring of traces, formats into one
//! buffer and writes many lines at a time. The ring is the queue, and its bound is the log's: what
//! goes before it was read is counted, and so is what could not be written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde::Serialize;

use crate::lifecycle::trace::{Outcome, StepKind};

use super::Telemetry;
use super::ring::{Since, TraceRecord};

/// Time between looks at the ring. At its default size it holds what 80,000 requests a second
/// leave in this time.
const EVERY: Duration = Duration::from_millis(50);

/// Looks between two looks at whether the file was moved away (logrotate(8)).
const ROTATED: u32 = 20;

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The process's standard error.
    Stderr,
    /// Appended to this file; made when it is absent, opened anew when it was moved away.
    File(PathBuf),
}

/// Lines by what became of them.
#[derive(Debug)]
pub struct Lines {
    written: IntCounter,
    lost: IntCounter,
}

impl Lines {
    /// Registers the counters with `registry`.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let lines = IntCounterVec::new(
            Opts::new("access_log_lines_total", "Lines of the access log, written or lost."),
            &["outcome"],
        )?;
        registry.register(Box::new(lines.clone()))?;
        let of = |outcome| lines.with_label_values(&[outcome]);
        Ok(Self { written: of("written"), lost: of("lost") })
    }
}

/// The thread that writes; it ends with what is left in the ring when this is dropped.
#[derive(Debug)]
pub struct AccessLog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Starts to write what `telemetry` is told from now on. `sample` is the share of plainly
    /// served requests that get a line, from 0 to 1; all others always do.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn start(target: Target, sample: f64, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        let out = Out::open(target)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let from = telemetry.ring.pushed();
        let mut writer = Writer { out, sample, telemetry, from, lines: Vec::new(), failing: false };
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut looks = 0_u32;
            while !told.load(Ordering::Acquire) {
                std::thread::park_timeout(EVERY);
                looks += 1;
                if looks.is_multiple_of(ROTATED) {
                    writer.out.follow_rotation();
                }
                writer.look();
            }
            writer.look();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

struct Writer {
    out: Out,
    sample: f64,
    telemetry: Arc<Telemetry>,
    from: usize,
    lines: Vec<u8>,
    /// The last write failed and was logged.
    failing: bool,
}

impl Writer {
    fn look(&mut self) {
        let Since { records, lost, next } = self.telemetry.ring.since(self.from);
        self.from = next;
        let counts = &self.telemetry.metrics.access_log;
        counts.lost.inc_by(lost as u64);
        self.lines.clear();
        let mut n = 0;
        for record in records.iter().filter(|r| wanted(r, self.sample)) {
            format(record, &mut self.lines);
            n += 1;
        }
        if n == 0 {
            return;
        }
        match self.out.write(&self.lines) {
            Ok(()) => {
                counts.written.inc_by(n);
                self.failing = false;
            }
            Err(e) => {
                counts.lost.inc_by(n);
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("the access log cannot be written, its lines are lost: {e}");
                }
            }
        }
    }
}

/// By the request's id, which is random: the same request is in every edge's sample or in none.
pub(super) fn wanted(record: &TraceRecord, sample: f64) -> bool {
    if sample >= 1.0 || !matches!(record.trace.outcome, Outcome::Hot | Outcome::Asset) {
        return true;
    }
    let id = record.trace.request.to_string();
    let share = u32::from_str_radix(id.get(..8).unwrap_or_default(), 16).unwrap_or(0);
    f64::from(share) < sample * f64::from(u32::MAX)
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    request: String,
    client: Option<IpAddr>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    class: &'a str,
    environment: Option<String>,
    epoch: Option<u64>,
    artifact: Option<String>,
    allocation: Option<String>,
    operation: Option<String>,
    outcome: &'a str,
    risk: &'a str,
    status: Option<u16>,
    total_us: u64,
    held_us: u64,
    /// Connections that were refused before one was made.
    refused_connections: usize,
}

/// Adds the line of `record` to `lines`.
fn format(record: &TraceRecord, lines: &mut Vec<u8>) {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let steps = || record.trace.steps.iter().rev().map(|s| &s.kind);
    // The last of each: after a hold the owner was read and an allocation chosen again.
    let owner = steps().find_map(|k| match k {
        StepKind::LoadOwner(view) => Some(&view.owner),
        _ => None,
    });
    let allocation = steps().find_map(|k| match k {
        StepKind::Select(a, ..) => Some(a.id.to_string()),
        _ => None,
    });
    let line = Line {
        at: record.at.to_string(),
        request: record.trace.request.to_string(),
        client: record.trace.client,
        method: record.method.as_str(),
        host: &record.host,
        path: &record.path,
        class: record.class,
        environment: record.environment.as_ref().map(ToString::to_string),
        epoch: owner.map(|o| o.epoch.0),
        artifact: owner.map(|o| o.digest.to_string()),
        allocation,
        operation: record.operation.as_ref().map(ToString::to_string),
        outcome: record.trace.outcome.name(),
        risk: record.trace.risk().name(),
        status: record.status,
        total_us: us(record.total),
        held_us: us(record.held),
        refused_connections: steps().filter(|k| matches!(k, StepKind::ConnectFailed(..))).count(),
    };
    let whole = lines.len();
    if serde_json::to_writer(&mut *lines, &line).is_err() {
        // Nothing in it can fail; half a line is worse than none.
        lines.truncate(whole);
        return;
    }
    lines.push(b'\n');
}

enum Out {
    Stderr,
    File { path: PathBuf, file: File },
}

impl Out {
    fn open(target: Target) -> io::Result<Self> {
        Ok(match target {
            Target::Stderr => Self::Stderr,
            Target::File(path) => Self::File { file: append(&path)?, path },
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(lines),
            Self::File { file, .. } => file.write_all(lines),
        }
    }

    /// Opens the file anew when its name stands for another one, or none.
    fn follow_rotation(&mut self) {
        let Self::File { path, file } = self else { return };
        let same = match (file.metadata(), std::fs::metadata(&*path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        if !same {
            // When it cannot be opened, what is open goes on.
            if let Ok(new) = append(path) {
                *file = new;
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Mono, SeededEntropy, Wall};
    use crate::id::RequestId;
    use crate::lifecycle::trace::Trace;
    use crate::snapshot::Publisher;
    use crate::telemetry::{Metrics, Ring};

    fn telemetry(ring: usize) -> Arc<Telemetry> {
        let metrics = Metrics::new(Publisher::new().reader()).unwrap();
        Arc::new(Telemetry { metrics, ring: Ring::new(ring) })
    }

    fn record(n: u64, outcome: Outcome) -> Arc<TraceRecord> {
        let mut trace = Trace::new(RequestId::random(&SeededEntropy::new(n)), Mono(0));
        trace.outcome = outcome;
        Arc::new(TraceRecord {
            method: http::Method::GET,
            host: "a.example".into(),
            path: format!("/{n}\"\n"),
            class: "page",
            environment: Some("a".parse().unwrap()),
            status: Some(200),
            operation: None,
            held: Duration::ZERO,
            total: Duration::from_micros(7),
            at: Wall(0),
            trace,
        })
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn each_request_is_one_line_whatever_its_path_and_the_last_ones_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let telemetry = telemetry(64);
        telemetry.ring.push(record(0, Outcome::Hot));
        let log =
            AccessLog::start(Target::File(path.clone()), 1.0, Arc::clone(&telemetry)).unwrap();
        for n in 1..=3 {
            telemetry.ring.push(record(n, Outcome::Hot));
        }
        drop(log);
        let found = lines(&path);
        assert_eq!(found.len(), 3, "what ended before it began is not its own");
        assert_eq!(found[0]["path"], "/1\"\n");
        assert_eq!(found[0]["environment"], "a/production");
        assert_eq!(
            (found[0]["status"].as_u64(), found[0]["total_us"].as_u64()),
            (Some(200), Some(7))
        );
        assert_eq!(telemetry.metrics.access_log.written.get(), 3);
    }

    #[test]
    fn a_burst_beyond_the_ring_is_counted_and_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let telemetry = telemetry(8);
        let out = Out::open(Target::File(path.clone())).unwrap();
        let (lines_, from) = (Vec::new(), 0);
        let mut writer = Writer {
            out,
            sample: 1.0,
            telemetry: Arc::clone(&telemetry),
            from,
            lines: lines_,
            failing: false,
        };
        (0..20).for_each(|n| telemetry.ring.push(record(n, Outcome::Hot)));
        writer.look();
        let counts = &telemetry.metrics.access_log;
        assert_eq!((counts.written.get(), counts.lost.get()), (8, 12));
        assert_eq!(lines(&path).len(), 8);
    }

    #[test]
    fn a_sample_keeps_every_unusual_request() {
        let hot = |n| wanted(&record(n, Outcome::Hot), 0.25);
        let kept = (0..4000).filter(|n| hot(*n)).count();
        assert!((800..1200).contains(&kept), "{kept} of 4000");
        assert!((0..100).all(|n| wanted(&record(n, Outcome::Woken), 0.0)));
        assert!((0..100).all(|n| !wanted(&record(n, Outcome::Hot), 0.0)));
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_a_full_disk_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let mut out = Out::open(Target::File(path.clone())).unwrap();
        out.write(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("access.log.1")).unwrap();
        out.follow_rotation();
        out.write(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");

        // full(4): every write fails with ENOSPC.
        let telemetry = telemetry(8);
        let full = Target::File("/dev/full".into());
        let log = AccessLog::start(full, 1.0, Arc::clone(&telemetry)).unwrap();
        telemetry.ring.push(record(1, Outcome::Hot));
        drop(log);
        assert_eq!(telemetry.metrics.access_log.lost.get(), 1);
    }
}
