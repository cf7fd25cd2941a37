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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Entropy};

use super::Telemetry;
use super::ring::{Follower, Since, TraceRecord};
use message::{ExportRequest, Resource, ResourceSpans, Scope, ScopeSpans, text};
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

/// Starts to send what `telemetry` is told from now on. When the thread is dropped it sends what is left,
/// within a bound, and ends.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    target: Target,
    telemetry: Arc<Telemetry>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
) -> io::Result<Follower> {
    let collector = Collector::at(&target.base);
    let from = telemetry.ring.pushed();
    let mut sender = Sender { collector, target, telemetry, clock, entropy, from, failing: false };
    // A collector that keeps it waiting keeps no edge from its end.
    Follower::start("otlp", LAST, move |stop| {
        while !stop.load(Ordering::Acquire) {
            sender.rest(EVERY, stop);
            sender.look(stop);
        }
        sender.look(stop);
    })
}

struct Sender {
    collector: Collector,
    target: Target,
    telemetry: Arc<Telemetry>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    from: usize,
    /// The last batch did not arrive, and that was logged.
    failing: bool,
}

impl Sender {
    /// Waits for `time`, or until the edge stops.
    fn rest(&self, time: Duration, stop: &AtomicBool) {
        let end = self.clock.now() + time;
        while !stop.load(Ordering::Acquire) {
            let left = end.since(self.clock.now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    /// Sends what the ring has, a batch at a time.
    fn look(&mut self, stop: &AtomicBool) {
        loop {
            let Since { records, lost, next } = self.telemetry.ring.since_at_most(self.from, BATCH);
            let done = records.is_empty();
            self.from = next;
            self.count("lost", lost as u64);
            let records: Vec<_> =
                records.into_iter().filter(|r| r.wanted(self.target.sample)).collect();
            let arrived = records.is_empty() || self.deliver(&records, stop);
            if done || (stop.load(Ordering::Acquire) && !arrived) {
                return;
            }
        }
    }

    fn count(&self, outcome: &str, n: u64) {
        self.telemetry.metrics.otlp.with_label_values(&[outcome]).inc_by(n);
    }

    /// Sends one batch, again and again within its bounds. Whether the collector answered for it.
    fn deliver(&mut self, records: &[Arc<TraceRecord>], stop: &AtomicBool) -> bool {
        let request = self.message(records);
        let n = records.len() as u64;
        let mut pause = FIRST_PAUSE;
        for left in (0..TRIES).rev() {
            let last = stop.load(Ordering::Acquire);
            let within = if last { LAST_PATIENCE } else { PATIENCE };
            match self.collector.send(&request, within) {
                Sent::Taken { rejected, why } => {
                    let refused = rejected.min(n);
                    self.count("sent", n - refused);
                    self.count("refused", refused);
                    match refused {
                        0 => self.well(),
                        _ => self.ill(&format!("it did not take {rejected} spans: {why}")),
                    }
                    return true;
                }
                Sent::Refused(why) => {
                    self.count("refused", n);
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
                    self.rest(after.unwrap_or(pause) + Duration::from_millis(spread), stop);
                    pause *= 2;
                }
            }
        }
        self.count("lost", n);
        false
    }

    fn message(&self, records: &[Arc<TraceRecord>]) -> ExportRequest {
        let mut all = Vec::with_capacity(records.len() * 8);
        records.iter().for_each(|r| spans::add(r, &mut all));
        let version = env!("CARGO_PKG_VERSION");
        let attributes = vec![
            text("service.name", "vango-edge"),
            text("service.version", version),
            text("service.instance.id", self.target.node.as_str()),
        ];
        let scope =
            Scope { name: "vango-edge".into(), version: version.into(), ..Scope::default() };
        ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: all,
                    schema_url: spans::SCHEMA.into(),
                }],
                ..ResourceSpans::default()
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
