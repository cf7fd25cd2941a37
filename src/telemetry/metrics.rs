//! Metrics for Prometheus. Names are documented in `docs/metrics.md`; labels are bounded: classes,
//! outcomes and problems are fixed lists, environments are at most [`MAX_ENVIRONMENTS`] and the
//! rest are summed as `other`. Never a path, never a host.
//!
//! Counts of requests live in the environments' own counters ([`crate::snapshot::Live`]); they
//! become metrics when they are scraped, so that a request pays one atomic addition.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::clock::Mono;
use crate::lifecycle::delivery::Counted;
use crate::lifecycle::reply::Problem;
use crate::lifecycle::trace::{Outcome, StepKind};
use crate::snapshot::SnapshotReader;
use crate::sockets::Cause;
use crate::store::observed::Call;
use crate::store::record::{AllocationState, Operation, WakeState};

use super::CLASSES;
use super::access::Lines;
use super::connections::{Connections, Open};
use super::otlp::Exported;
use super::reloads::Reloads;
use super::ring::TraceRecord;

/// Environments that have a label of their own.
pub const MAX_ENVIRONMENTS: usize = 1000;

/// Terminal states of an operation, as a label.
pub const OPERATION_STATES: [&str; 2] = ["hot", "failed"];

/// All handles, made once.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The process's own figures, under the names that every exporter gives them.
    process: Registry,
    requests: [Histogram; 5],
    held: Histogram,
    wakes: IntCounterVec,
    phases: HashMap<&'static str, Histogram>,
    unrouted: IntCounterVec,
    webhooks_refused: IntCounterVec,
    webhooks_lost: IntCounter,
    queue: IntGaugeVec,
    snapshot_revision: IntGauge,
    snapshot_age: Gauge,
    allocations: IntGaugeVec,
    sockets: IntGauge,
    resting: IntGauge,
    socket_ends: IntCounterVec,
    upstreams: IntGaugeVec,
    store: [Histogram; 3],
    store_errors: IntCounter,
    /// Reloads of the configuration.
    pub reloads: Reloads,
    /// Of the access log.
    pub access_log: Lines,
    /// Of traces for a collector.
    pub otlp: Exported,
    /// Client connections.
    pub connections: Connections,
}

/// 50 µs to 60 s.
const LATENCY: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0,
    15.0, 60.0,
];

/// Phases of a wake, as the label `phase`.
const PHASES: [&str; 7] = ["reserve", "artifact", "start", "ready", "thaw", "notify", "first_byte"];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new(snapshots: SnapshotReader) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("vango_edge".into()), None)?;
        let histogram = |name: &str, help: &str, labels: &[(&str, &str)]| {
            let labels: HashMap<String, String> =
                labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let opts = HistogramOpts::new(name, help).const_labels(labels);
            let h = Histogram::with_opts(opts.buckets(LATENCY.to_vec()))?;
            registry.register(Box::new(h.clone()))?;
            Ok::<_, prometheus::Error>(h)
        };
        let request = |class: &'static str| {
            histogram(
                "request_seconds",
                "From a request's head to its end, holds included.",
                &[("class", class)],
            )
        };
        let call = |call: Call| {
            let help = "How long calls of the store took.";
            histogram("store_seconds", help, &[("call", call.name())])
        };
        let mut phases = HashMap::new();
        for phase in PHASES {
            let help = "How long each phase of a wake took.";
            phases.insert(phase, histogram("wake_phase_seconds", help, &[("phase", phase)])?);
        }
        let metrics = Self {
            requests: [
                request(CLASSES[0])?,
                request(CLASSES[1])?,
                request(CLASSES[2])?,
                request(CLASSES[3])?,
                request(CLASSES[4])?,
            ],
            held: histogram("hold_seconds", "How long held requests were held.", &[])?,
            phases,
            store: [call(Call::ALL[0])?, call(Call::ALL[1])?, call(Call::ALL[2])?],
            store_errors: IntCounter::new(
                "store_errors_total",
                "Calls of the store that were not answered.",
            )?,
            wakes: IntCounterVec::new(
                Opts::new("wakes_total", "Wake operations that ended, by their state."),
                &["state"],
            )?,
            unrouted: IntCounterVec::new(
                Opts::new(
                    "unrouted_requests_total",
                    "Requests that the edge answered before their route counted.",
                ),
                &["problem"],
            )?,
            webhooks_refused: IntCounterVec::new(
                Opts::new("webhooks_refused_total", "Deliveries that were not believed, by why."),
                &["reason"],
            )?,
            webhooks_lost: IntCounter::new(
                "webhooks_lost_total",
                "Verified deliveries without a 2xx, of providers that never deliver again.",
            )?,
            queue: IntGaugeVec::new(
                Opts::new("held", "Requests held now, and their header bytes."),
                &["unit"],
            )?,
            snapshot_revision: IntGauge::new(
                "snapshot_revision",
                "Revision of the store that routing stands on.",
            )?,
            snapshot_age: Gauge::new(
                "snapshot_age_seconds",
                "How long ago the store was last known to be followed.",
            )?,
            sockets: IntGauge::new("sockets", "Live sockets open on allocations in the registry.")?,
            resting: IntGauge::new(
                "sockets_resting",
                "Live sockets whose client stays while it has no app.",
            )?,
            socket_ends: IntCounterVec::new(
                Opts::new("socket_ends_total", "Live sockets that ended, by their cause."),
                &["cause"],
            )?,
            allocations: IntGaugeVec::new(
                Opts::new("allocations", "Allocations in the registry, by state."),
                &["state"],
            )?,
            reloads: Reloads::new(&registry)?,
            access_log: Lines::new(&registry)?,
            otlp: Exported::new(&registry)?,
            upstreams: IntGaugeVec::new(
                Opts::new("upstream_up", "Whether an upstream of the configuration is up."),
                &["environment", "upstream"],
            )?,
            connections: Connections::new(&registry)?,
            registry,
            process: Registry::new(),
        };
        for state in OPERATION_STATES {
            metrics.wakes.with_label_values(&[state]);
        }
        metrics.register(snapshots)?;
        Ok(metrics)
    }

    fn register(&self, snapshots: SnapshotReader) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(self.wakes.clone()))?;
        self.registry.register(Box::new(self.store_errors.clone()))?;
        self.registry.register(Box::new(self.unrouted.clone()))?;
        self.registry.register(Box::new(self.webhooks_refused.clone()))?;
        self.registry.register(Box::new(self.webhooks_lost.clone()))?;
        self.registry.register(Box::new(self.queue.clone()))?;
        self.registry.register(Box::new(self.snapshot_revision.clone()))?;
        self.registry.register(Box::new(self.snapshot_age.clone()))?;
        self.registry.register(Box::new(self.allocations.clone()))?;
        self.registry.register(Box::new(self.sockets.clone()))?;
        self.registry.register(Box::new(self.resting.clone()))?;
        self.registry.register(Box::new(self.socket_ends.clone()))?;
        for cause in Cause::ALL {
            self.socket_ends.with_label_values(&[cause.name()]);
        }
        self.registry.register(Box::new(self.upstreams.clone()))?;
        self.registry.register(Box::new(Requests::new(snapshots)?))?;
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.process.register(Box::new(process))
    }

    /// A request of a class took so long.
    pub fn request(&self, class: usize, total: Duration) {
        if let Some(h) = self.requests.get(class) {
            h.observe(total.as_secs_f64());
        }
    }

    /// A request was held so long.
    pub fn held(&self, held: Duration) {
        self.held.observe(held.as_secs_f64());
    }

    fn phase(&self, phase: &'static str, seconds: f64) {
        if let Some(h) = self.phases.get(phase) {
            h.observe(seconds);
        }
    }

    /// A request was answered after a wake: from its release to its placement, and on to the
    /// app's first byte.
    pub fn notified(&self, record: &TraceRecord) {
        let at = |found: fn(&StepKind) -> bool| {
            record.trace.steps.iter().rev().find(|s| found(&s.kind)).map(|s| s.at)
        };
        let released = at(|k| matches!(k, StepKind::Hold { .. }));
        let placed = at(|k| matches!(k, StepKind::Select(..)));
        let answered = at(|k| matches!(k, StepKind::Run { .. } | StepKind::RunPreview { .. }));
        if let (Some(released), Some(placed)) = (released, placed) {
            self.phase("notify", placed.saturating_sub(released).as_secs_f64());
        }
        if let (Some(placed), Some(answered)) = (placed, answered) {
            self.phase("first_byte", answered.saturating_sub(placed).as_secs_f64());
        }
    }

    /// A live socket's client rests until the guard is dropped.
    pub fn rests(&self) -> Open {
        Open::new(&self.resting)
    }

    /// A live socket ended.
    pub fn socket_ended(&self, cause: Cause) {
        self.socket_ends.with_label_values(&[cause.name()]).inc();
    }

    /// A wake ended.
    pub fn wake(&self, operation: &Operation) {
        let state = OPERATION_STATES[usize::from(operation.state != WakeState::Hot)];
        self.wakes.with_label_values(&[state]).inc();
        let p = &operation.phases;
        let named = [
            ("reserve", p.reserve_us),
            ("artifact", p.artifact_us),
            ("start", p.spawn_us),
            ("ready", p.ready_us),
            ("thaw", p.thaw_us),
        ];
        for (phase, us) in named {
            if let Some(us) = us {
                self.phase(phase, us as f64 / 1e6);
            }
        }
    }

    /// A request that belongs to no environment was answered.
    pub fn unrouted(&self, problem: Problem) {
        self.unrouted.with_label_values(&[problem.name()]).inc();
    }

    /// A delivery was not believed, or is lost.
    pub fn delivery(&self, counted: Counted) {
        match counted {
            Counted::Refused(why) => self.webhooks_refused.with_label_values(&[why.name()]).inc(),
            Counted::Lost => self.webhooks_lost.inc(),
        }
    }

    /// A call of the store took so long.
    pub fn store(&self, call: Call, took: Duration, answered: bool) {
        self.store[call as usize].observe(took.as_secs_f64());
        if !answered {
            self.store_errors.inc();
        }
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// The encoder's, for metrics that are not valid: our own bug.
    pub fn text(
        &self,
        snapshots: &SnapshotReader,
        held: usize,
        held_bytes: u64,
        now: Mono,
    ) -> Result<String, prometheus::Error> {
        let to_i64 = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.queue.with_label_values(&["requests"]).set(to_i64(held as u64));
        self.queue.with_label_values(&["bytes"]).set(to_i64(held_bytes));
        let snapshot = snapshots.load();
        self.snapshot_revision.set(to_i64(snapshot.revision()));
        self.snapshot_age.set(snapshots.age(now).as_secs_f64());
        for state in AllocationState::ALL.map(AllocationState::name) {
            let of_state = snapshot
                .environments()
                .filter(|e| !e.external)
                .flat_map(|e| e.ready.iter().chain(&e.others))
                .filter(|a| a.state.name() == state);
            self.allocations.with_label_values(&[state]).set(to_i64(of_state.count() as u64));
        }
        let all = snapshot.environments().flat_map(|e| e.ready.iter().chain(&e.others));
        self.sockets.set(all.map(|a| i64::from(a.load.sockets())).sum());
        // Those that a reload took away go.
        self.upstreams.reset();
        for view in snapshot.environments().filter(|e| e.external).take(MAX_ENVIRONMENTS) {
            let name = view.environment.to_string();
            for (upstream, address) in view.ready.iter().filter_map(|a| Some((a, a.address?))) {
                let up = i64::from(!upstream.load.is_down());
                self.upstreams.with_label_values(&[name.as_str(), &address.to_string()]).set(up);
            }
        }
        let mut out = Vec::new();
        for registry in [&self.registry, &self.process] {
            TextEncoder::new().encode(&registry.gather(), &mut out)?;
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

/// Reads the environments' own counters when scraped.
struct Requests {
    snapshots: SnapshotReader,
    desc: Desc,
}

impl Requests {
    fn new(snapshots: SnapshotReader) -> Result<Self, prometheus::Error> {
        let labels = ["environment", "class", "outcome"].map(str::to_owned).to_vec();
        let desc = Desc::new(
            "requests_total".into(),
            "Requests by environment, class and outcome.".into(),
            labels,
            HashMap::new(),
        )?;
        Ok(Self { snapshots, desc })
    }
}

impl Collector for Requests {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.snapshots.load();
        let opts = Opts::new("requests_total", self.desc.help.clone());
        let Ok(counter) = IntCounterVec::new(opts, &["environment", "class", "outcome"]) else {
            return Vec::new();
        };
        let mut environments: Vec<_> = snapshot.environments().collect();
        environments.sort_by(|a, b| a.environment.cmp(&b.environment));
        for (i, view) in environments.into_iter().enumerate() {
            let name = view.environment.to_string();
            let label = if i < MAX_ENVIRONMENTS { name.as_str() } else { "other" };
            for (c, class) in CLASSES.iter().enumerate() {
                for outcome in Outcome::all() {
                    let n = view.live.counted(c, outcome.index());
                    if n > 0 {
                        counter.with_label_values(&[label, class, outcome.name()]).inc_by(n);
                    }
                }
            }
        }
        counter.collect()
    }
}
