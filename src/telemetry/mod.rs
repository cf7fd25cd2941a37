//! What operators read: metrics and the ring of traces. Nothing here decides anything, and nothing
//! here takes a lock on the hot path.

mod access;
mod logger;
mod metrics;
pub mod otlp;
mod ring;

pub use access::{Target as AccessTarget, start as start_access_log};
pub use logger::{set_level as set_log_level, start as start_log};
pub use metrics::{Metrics, OPERATION_STATES};
pub use ring::{Follower, Ring, TraceRecord, micros};

use std::sync::Arc;
use std::time::Duration;

use crate::lifecycle::journey::DeliveryMetric;
use crate::lifecycle::trace::Outcome;
use crate::record::Operation;
use crate::snapshot::EnvCounters;
use crate::store::observed::{Call, StoreObserver};
use crate::wake::Observer;

/// Classes as metrics name them; see [`crate::contract::RouteClass::name`].
pub const CLASSES: [&str; 5] = ["page", "action", "webhook", "live", "asset"];

/// The class of a request that the artifact answers; it has no route.
pub const ASSET: &str = CLASSES[4];

/// Everything that is told about finished work.
#[derive(Debug)]
pub struct Telemetry {
    /// For Prometheus.
    pub metrics: Metrics,
    pub ring: Ring,
}

impl Telemetry {
    /// A request ended.
    pub fn finished(&self, record: TraceRecord, counters: &EnvCounters) {
        let class = CLASSES.iter().position(|c| *c == record.class).unwrap_or(0);
        counters.count(class, record.trace.outcome.index());
        self.metrics.request(class, record.total);
        if !record.held.is_zero() {
            self.metrics.held(record.held);
            if record.trace.outcome == Outcome::Woken {
                self.metrics.notified(&record);
            }
        }
        self.keep(record);
    }

    fn keep(&self, record: TraceRecord) {
        if self.ring.keeps() {
            self.ring.push(Arc::new(record.bounded()));
        }
    }

    /// A delivery was not believed, or is lost.
    pub fn delivery(&self, metric: DeliveryMetric) {
        self.metrics.delivery(metric);
    }

    /// A request ended that was for no environment.
    pub fn unrouted(&self, record: TraceRecord) {
        if let Outcome::Refused(problem) = record.trace.outcome {
            self.metrics.unrouted(problem);
        }
        self.keep(record);
    }
}

impl StoreObserver for Telemetry {
    fn took(&self, call: Call, took: Duration, answered: bool) {
        self.metrics.store(call, took, answered);
    }
}

impl Observer for Telemetry {
    fn finished(&self, operation: &Operation) {
        self.metrics.wake(operation);
    }
}
