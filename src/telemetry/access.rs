//! The access log: one JSON line for each request that ended, with everything the edge knows of it
//! and nothing of its query, its headers or its body.
//!
//! A request pays nothing for it: a thread of its own follows the ring of traces, formats into one
//! buffer and writes many lines at a time. The ring is the queue, and its bound is the log's: what
//! goes before it was read is counted, and so is what could not be written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::lifecycle::trace::StepKind;

use super::Telemetry;
use super::ring::{Follower, Since, TraceRecord, micros};

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

/// Starts to write what `telemetry` is told from now on. `sample` is the share of plainly served requests
/// that get a line, from 0 to 1; all others always do. When the thread is dropped, it ends with what is left
/// in the ring.
///
/// # Errors
/// When the file cannot be opened or the thread not be started.
pub fn start(target: Target, sample: f64, telemetry: Arc<Telemetry>) -> io::Result<Follower> {
    let out = Out::open(target)?;
    let from = telemetry.ring.pushed();
    let mut writer = Writer { out, sample, telemetry, from, lines: Vec::new(), failing: false };
    Follower::start("access-log", Duration::MAX, move |stop| {
        let mut looks = 0_u32;
        while !stop.load(Ordering::Acquire) {
            std::thread::park_timeout(EVERY);
            looks += 1;
            if looks.is_multiple_of(ROTATED) {
                writer.out.follow_rotation();
            }
            writer.look();
        }
        writer.look();
    })
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
        let count = |outcome, n| {
            self.telemetry.metrics.access_log.with_label_values(&[outcome]).inc_by(n);
        };
        count("lost", lost as u64);
        self.lines.clear();
        let mut n = 0;
        for record in records.iter().filter(|r| r.wanted(self.sample)) {
            let whole = self.lines.len();
            match serde_json::to_writer(&mut self.lines, &Line(record)) {
                Ok(()) => self.lines.push(b'\n'),
                // Nothing in it can fail; half a line is worse than none.
                Err(_) => self.lines.truncate(whole),
            }
            n += 1;
        }
        if n == 0 {
            return;
        }
        match self.out.write(&self.lines) {
            Ok(()) => {
                count("written", n);
                self.failing = false;
            }
            Err(e) => {
                count("lost", n);
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("the access log cannot be written, its lines are lost: {e}");
                }
            }
        }
    }
}

/// A request as one line.
struct Line<'a>(&'a TraceRecord);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(r) = self;
        let steps = r.trace.steps.iter();
        let refused = steps.filter(|s| matches!(s.kind, StepKind::ConnectFailed(..))).count();
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("at", &r.at.to_string())?;
        line.serialize_entry("request", &r.trace.request.to_string())?;
        line.serialize_entry("client", &r.trace.client)?;
        line.serialize_entry("method", r.method.as_str())?;
        line.serialize_entry("host", &r.host)?;
        line.serialize_entry("path", &r.path)?;
        line.serialize_entry("class", r.class)?;
        line.serialize_entry("environment", &r.environment)?;
        line.serialize_entry("epoch", &r.owner().map(|o| o.epoch.0))?;
        line.serialize_entry("artifact", &r.owner().map(|o| o.digest.to_string()))?;
        line.serialize_entry("allocation", &r.allocation())?;
        line.serialize_entry("operation", &r.operation)?;
        line.serialize_entry("outcome", r.trace.outcome.name())?;
        line.serialize_entry("risk", r.trace.risk().name())?;
        line.serialize_entry("status", &r.status)?;
        line.serialize_entry("total_us", &micros(r.total))?;
        line.serialize_entry("held_us", &micros(r.held))?;
        // Connections that were refused before one was made.
        line.serialize_entry("refused_connections", &refused)?;
        line.end()
    }
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
    use crate::lifecycle::trace::{Outcome, Trace};
    use crate::telemetry::{Metrics, Ring};

    fn telemetry(ring: usize) -> Arc<Telemetry> {
        let metrics = Metrics::new().unwrap();
        Arc::new(Telemetry { metrics, ring: Ring::new(ring) })
    }

    fn count(telemetry: &Telemetry, outcome: &str) -> u64 {
        telemetry.metrics.access_log.with_label_values(&[outcome]).get()
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
        let log = start(Target::File(path.clone()), 1.0, Arc::clone(&telemetry)).unwrap();
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
        assert_eq!(count(&telemetry, "written"), 3);
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
        assert_eq!((count(&telemetry, "written"), count(&telemetry, "lost")), (8, 12));
        assert_eq!(lines(&path).len(), 8);
    }

    #[test]
    fn a_sample_keeps_every_unusual_request() {
        let hot = |n| record(n, Outcome::Hot).wanted(0.25);
        let kept = (0..4000).filter(|n| hot(*n)).count();
        assert!((800..1200).contains(&kept), "{kept} of 4000");
        assert!((0..100).all(|n| record(n, Outcome::Woken).wanted(0.0)));
        assert!((0..100).all(|n| !record(n, Outcome::Hot).wanted(0.0)));
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
        let log = start(full, 1.0, Arc::clone(&telemetry)).unwrap();
        telemetry.ring.push(record(1, Outcome::Hot));
        drop(log);
        assert_eq!(count(&telemetry, "lost"), 1);
    }
}
