//! Traces for an OpenTelemetry collector: each finished request as spans, over OTLP/HTTP in protobuf.
//!
//! A request pays nothing for it: a thread of its own follows the ring of traces, makes spans and
//! sends some hundred requests' at a time. The ring is the queue and its bound is the queue's: while
//! the collector is away or slow, the ring goes round, and what went before it was read is counted as
//! lost. Nothing is ever kept for a collector beyond one batch.
//!
//! Deliberately absent: OpenTelemetry's SDK, which has a queue, a clock and a context of its own; TLS
//! and secrets for a collector far away (one on this machine, or a proxy, adds them).

pub mod message;
mod send;
mod spans;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::clock::{Clock, Entropy};

use super::Telemetry;
use super::access::wanted;
use super::ring::{Since, TraceRecord};
use message::{ExportRequest, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans};
use send::{Collector, Sent};

/// Time between looks at the ring.
const EVERY: Duration = Duration::from_millis(200);
/// Requests in one message, at most.
const BATCH: usize = 256;
/// How long the collector may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for each of the last ones, when the edge stops; and for all of them, which
/// the edge's end waits for.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(2);
/// How often one is sent before it is given up, and the pause before the second time; it doubles.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Traces by what became of them.
#[derive(Debug)]
pub struct Exported {
    sent: IntCounter,
    refused: IntCounter,
    lost: IntCounter,
}

impl Exported {
    /// Registers the counters with `registry`.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let traces = IntCounterVec::new(
            Opts::new("otlp_traces_total", "Traces for the collector, sent, refused or lost."),
            &["outcome"],
        )?;
        registry.register(Box::new(traces.clone()))?;
        let of = |outcome| traces.with_label_values(&[outcome]);
        Ok(Self { sent: of("sent"), refused: of("refused"), lost: of("lost") })
    }
}

/// Where traces go, and which.
#[derive(Debug, Clone)]
pub struct Target {
    /// The collector's address, without `/v1/traces`.
    pub base: String,
    /// Share of plainly served requests that are sent, from 0 to 1; all others always are.
    pub sample: f64,
    /// This edge's name, as `service.instance.id`.
    pub node: String,
}

/// The thread that sends. When this is dropped it sends what is left, within a bound, and ends.
#[derive(Debug)]
pub struct Exporter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl Exporter {
    /// Starts to send what `telemetry` is told from now on.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        target: Target,
        telemetry: Arc<Telemetry>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sender = Sender {
            collector: Collector::at(&target.base),
            from: telemetry.ring.pushed(),
            stop: Arc::clone(&stop),
            failing: false,
            target,
            telemetry,
            clock,
            entropy,
        };
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || {
            while !sender.stopping() {
                sender.rest(EVERY);
                sender.look();
            }
            sender.look();
            drop(end);
        })?;
        Ok(Self { stop, thread, ended })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // A thread that a collector keeps waiting is left to the end of the process.
        let _ = self.ended.recv_timeout(LAST);
    }
}

struct Sender {
    collector: Collector,
    target: Target,
    telemetry: Arc<Telemetry>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    from: usize,
    stop: Arc<AtomicBool>,
    /// The last batch did not arrive, and that was logged.
    failing: bool,
}

impl Sender {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for `time`, or until the edge stops.
    fn rest(&self, time: Duration) {
        let end = self.clock.now() + time;
        while !self.stopping() {
            let left = end.since(self.clock.now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    /// Sends what the ring has, a batch at a time.
    fn look(&mut self) {
        loop {
            let Since { records, lost, next } = self.telemetry.ring.since_at_most(self.from, BATCH);
            let done = records.is_empty();
            self.from = next;
            self.count().lost.inc_by(lost as u64);
            let records: Vec<_> =
                records.into_iter().filter(|r| wanted(r, self.target.sample)).collect();
            let arrived = records.is_empty() || self.deliver(&records);
            if done || (self.stopping() && !arrived) {
                return;
            }
        }
    }

    fn count(&self) -> &Exported {
        &self.telemetry.metrics.otlp
    }

    /// Sends one batch, again and again within its bounds. Whether the collector answered for it.
    fn deliver(&mut self, records: &[Arc<TraceRecord>]) -> bool {
        let request = self.message(records);
        let n = records.len() as u64;
        let mut pause = FIRST_PAUSE;
        for left in (0..TRIES).rev() {
            let last = self.stopping();
            let within = if last { LAST_PATIENCE } else { PATIENCE };
            match self.collector.send(&request, within) {
                Sent::All => {
                    self.count().sent.inc_by(n);
                    self.well();
                    return true;
                }
                Sent::Partly { rejected, why } => {
                    let refused = rejected.min(n);
                    self.count().sent.inc_by(n - refused);
                    self.count().refused.inc_by(refused);
                    self.ill(&format!("it did not take {rejected} spans: {why}"));
                    return true;
                }
                Sent::Refused(why) => {
                    self.count().refused.inc_by(n);
                    self.ill(&why);
                    return true;
                }
                Sent::Later { why, after } => {
                    self.ill(&why);
                    if last || left == 0 {
                        break;
                    }
                    // Edges that lost one collector do not all come back to it at once.
                    let spread = self.entropy.next_u64() % 250;
                    self.rest(after.unwrap_or(pause) + Duration::from_millis(spread));
                    pause *= 2;
                }
            }
        }
        self.count().lost.inc_by(n);
        false
    }

    fn message(&self, records: &[Arc<TraceRecord>]) -> ExportRequest {
        let mut all = Vec::with_capacity(records.len() * 8);
        records.iter().for_each(|r| spans::add(r, &mut all));
        let version = env!("CARGO_PKG_VERSION");
        let attributes = vec![
            KeyValue::text("service.name", "vango-edge"),
            KeyValue::text("service.version", version),
            KeyValue::text("service.instance.id", self.target.node.as_str()),
        ];
        let scope = Scope { name: "vango-edge".into(), version: version.into() };
        ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: all,
                    schema_url: spans::SCHEMA.into(),
                }],
            }],
        }
    }

    fn well(&mut self) {
        if std::mem::take(&mut self.failing) {
            log::info!("telemetry.otlp: {} takes traces again", self.target.base);
        }
    }

    /// Once for each time that it begins to fail; the counters say how much.
    fn ill(&mut self, why: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            log::warn!("telemetry.otlp: {} does not take traces: {why}", self.target.base);
        }
    }
}

#[cfg(test)]
mod tests;
