//! Metrics for Prometheus. Names are documented in `docs/metrics.md`; labels are bounded: classes,
//! outcomes and problems are fixed lists, environments are at most [`MAX_ENVIRONMENTS`] and the
//! rest are summed as `other`. Never a path, never a host.
//!
//! Counts of requests live in the environments' own counters ([`crate::snapshot::EnvCounters`]); they
//! become a metric when they are scraped, so that a request pays one atomic addition.

use std::path::Path;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::clock::{Mono, Wall};
use crate::lifecycle::journey::DeliveryMetric;
use crate::lifecycle::reply::Problem;
use crate::lifecycle::trace::{Outcome, StepKind};
use crate::record::{AllocationState, Operation, WakeState};
use crate::snapshot::{Snapshot, SnapshotReader};
use crate::sockets::Cause;
use crate::store::observed::Call;
use crate::wire::Cut;

use super::CLASSES;
use super::ring::TraceRecord;

/// What every name begins with, but for the process's own.
const PREFIX: &str = "vango_edge";

/// Environments that have a label of their own.
pub const MAX_ENVIRONMENTS: usize = 1000;

/// Terminal states of an operation, as a label.
pub const OPERATION_STATES: [&str; 2] = ["hot", "failed"];

/// Outcomes of a reload, as the label `outcome`.
const RELOADS: [&str; 2] = ["applied", "rejected"];

/// 50 µs to 60 s.
const LATENCY: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0,
    15.0, 60.0,
];

/// Phases of a wake, as the label `phase`.
const PHASES: [&str; 7] = ["reserve", "artifact", "start", "ready", "thaw", "notify", "first_byte"];

/// All handles, made once.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The process's own figures, under the names that every exporter gives them.
    process: Registry,
    requests: [Histogram; 5],
    held: Histogram,
    wakes: IntCounterVec,
    phases: [Histogram; PHASES.len()],
    unrouted: IntCounterVec,
    standings: IntCounter,
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
    reloads: IntCounterVec,
    last_reload: Gauge,
    last_reload_applied: IntGauge,
    connections: IntGauge,
    cuts: [IntCounter; Cut::ALL.len()],
    certificates: IntGaugeVec,
    acme_certificates: IntGaugeVec,
    acme_missing: IntGauge,
    acme_orders: IntCounterVec,
    /// Lines of the access log: `written` or `lost`.
    pub access_log: IntCounterVec,
    /// Lines that apps printed and that were not kept, by why.
    pub log_dropped: IntCounterVec,
    /// Traces for a collector: `sent`, `refused` or `lost`.
    pub otlp: IntCounterVec,
}

/// Makes metrics, each registered. An error is a name used twice: our own bug.
struct New<'r>(&'r Registry);

impl New<'_> {
    fn registered<M: Collector + Clone + 'static>(&self, metric: M) -> prometheus::Result<M> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.registered(IntCounter::new(name, help)?)
    }

    /// A counter for each value of a label; those of `values` are there from the start.
    fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        values.iter().for_each(|value| drop(counters.with_label_values(&[value])));
        self.registered(counters)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.registered(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.registered(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.registered(Gauge::new(name, help)?)
    }

    /// A histogram of seconds for each value of a label.
    fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: [&str; N],
    ) -> prometheus::Result<[Histogram; N]> {
        let opts = HistogramOpts::new(name, help).buckets(LATENCY.to_vec());
        let all = self.registered(HistogramVec::new(opts, &[label])?)?;
        Ok(values.map(|value| all.with_label_values(&[value])))
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some(PREFIX.into()), None)?;
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        let new = New(&registry);
        let cuts = Cut::ALL.map(Cut::name);
        let help = "Connections and requests that a limit ended.";
        let cut = new.counters("cutoffs_total", help, "limit", &cuts)?;
        let held = HistogramOpts::new("hold_seconds", "How long held requests were held.");
        Ok(Self {
            requests: new.histograms(
                "request_seconds",
                "From a request's head to its end, holds included.",
                "class",
                CLASSES,
            )?,
            held: new.registered(Histogram::with_opts(held.buckets(LATENCY.to_vec()))?)?,
            phases: new.histograms(
                "wake_phase_seconds",
                "How long each phase of a wake took.",
                "phase",
                PHASES,
            )?,
            store: new.histograms(
                "store_seconds",
                "How long calls of the store took.",
                "call",
                Call::ALL.map(Call::name),
            )?,
            store_errors: new
                .counter("store_errors_total", "Calls of the store that were not answered.")?,
            wakes: new.counters(
                "wakes_total",
                "Wake operations that ended, by their state.",
                "state",
                &OPERATION_STATES,
            )?,
            unrouted: new.counters(
                "unrouted_requests_total",
                "Requests that the edge answered before their route counted.",
                "problem",
                &[],
            )?,
            standings: new.counter(
                "state_requests_total",
                "Times that a client asked how its host's app stands.",
            )?,
            webhooks_refused: new.counters(
                "webhooks_refused_total",
                "Deliveries that were not believed, by why.",
                "reason",
                &[],
            )?,
            webhooks_lost: new.counter(
                "webhooks_lost_total",
                "Verified deliveries without a 2xx, of providers that never deliver again.",
            )?,
            queue: new.gauges("held", "Requests held now, and their header bytes.", &["unit"])?,
            snapshot_revision: new
                .gauge("snapshot_revision", "Revision of the store that routing stands on.")?,
            snapshot_age: new.seconds(
                "snapshot_age_seconds",
                "How long ago the store was last known to be followed.",
            )?,
            sockets: new.gauge("sockets", "Live sockets open on allocations in the registry.")?,
            resting: new
                .gauge("sockets_resting", "Live sockets whose client stays while it has no app.")?,
            socket_ends: new.counters(
                "socket_ends_total",
                "Live sockets that ended, by their cause.",
                "cause",
                &Cause::ALL.map(Cause::name),
            )?,
            allocations: new.gauges(
                "allocations",
                "Allocations in the registry, by state.",
                &["state"],
            )?,
            upstreams: new.gauges(
                "upstream_up",
                "Whether an upstream of the configuration is up.",
                &["environment", "upstream"],
            )?,
            reloads: new.counters(
                "config_reloads_total",
                "Attempts to reload the configuration.",
                "outcome",
                &RELOADS,
            )?,
            last_reload: new.seconds(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was applied.",
            )?,
            last_reload_applied: new.gauge(
                "config_last_reload_successful",
                "Whether the last attempt to reload the configuration was applied.",
            )?,
            connections: new.gauge("client_connections", "Client connections that are open.")?,
            cuts: cuts.map(|limit| cut.with_label_values(&[limit])),
            certificates: new.gauges(
                "certificate_expiry_timestamp_seconds",
                "Until when each certificate that is served is good.",
                &["certificate"],
            )?,
            acme_certificates: new.gauges(
                "acme_certificate_expiry_timestamp_seconds",
                "Until when the certificate that was issued for a host is good.",
                &["host"],
            )?,
            acme_missing: new.gauge(
                "acme_hosts_without_certificate",
                "Hosts that want a certificate of the authority and have none.",
            )?,
            acme_orders: new.counters(
                "acme_orders_total",
                "Orders of certificates that ended on this node.",
                "outcome",
                &["issued", "failed"],
            )?,
            access_log: new.counters(
                "access_log_lines_total",
                "Lines of the access log, written or lost.",
                "outcome",
                &["written", "lost"],
            )?,
            log_dropped: new.counters(
                "app_log_lines_dropped_total",
                "Lines that apps printed and that were not kept, by why.",
                "reason",
                &["rate", "disk"],
            )?,
            otlp: new.counters(
                "otlp_traces_total",
                "Traces for the collector, sent, refused or lost.",
                "outcome",
                &["sent", "refused", "lost"],
            )?,
            registry,
            process,
        })
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

    fn phase(&self, phase: &str, took: Duration) {
        if let Some(at) = PHASES.iter().position(|p| *p == phase) {
            self.phases[at].observe(took.as_secs_f64());
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
            self.phase("notify", placed.saturating_sub(released));
        }
        if let (Some(placed), Some(answered)) = (placed, answered) {
            self.phase("first_byte", answered.saturating_sub(placed));
        }
    }

    /// A client's connection is open until the guard is dropped.
    pub fn opened(&self) -> Counting {
        Counting::new(&self.connections)
    }

    /// A connection or a request was cut off.
    pub fn cut(&self, why: Cut) {
        self.cuts[why as usize].inc();
    }

    /// These certificates are served, by their files, until these seconds since 1970.
    pub fn certificates<'a>(&self, all: impl Iterator<Item = (&'a Path, u64)>) {
        self.certificates.reset();
        for (file, expires) in all {
            let gauge = self.certificates.with_label_values(&[&*file.to_string_lossy()]);
            gauge.set(i64::try_from(expires).unwrap_or(i64::MAX));
        }
    }

    /// These hosts want a certificate of the authority; until these seconds since 1970 they have one.
    pub fn ordered<'h>(&self, all: impl Iterator<Item = (&'h str, Option<u64>)>) {
        self.acme_certificates.reset();
        let mut missing = 0;
        for (host, until) in all {
            let Some(until) = until else {
                missing += 1;
                continue;
            };
            let gauge = self.acme_certificates.with_label_values(&[host]);
            gauge.set(i64::try_from(until).unwrap_or(i64::MAX));
        }
        self.acme_missing.set(missing);
    }

    /// An order of a certificate ended.
    pub fn order_ended(&self, issued: bool) {
        let outcome = if issued { "issued" } else { "failed" };
        self.acme_orders.with_label_values(&[outcome]).inc();
    }

    /// An attempt to reload the configuration, with the time since when it is in force, or `None`
    /// where it changed nothing. The configuration that the process starts with counts as an attempt too.
    pub fn reloaded(&self, applied: Option<Wall>) {
        let outcome = RELOADS[usize::from(applied.is_none())];
        self.reloads.with_label_values(&[outcome]).inc();
        self.last_reload_applied.set(applied.is_some().into());
        if let Some(at) = applied {
            self.last_reload.set(at.0 as f64 / 1000.0);
        }
    }

    /// A live socket's client rests until the guard is dropped.
    pub fn rests(&self) -> Counting {
        Counting::new(&self.resting)
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
                self.phase(phase, Duration::from_micros(us));
            }
        }
    }

    /// A request that belongs to no environment was answered.
    pub fn unrouted(&self, problem: Problem) {
        self.unrouted.with_label_values(&[problem.name()]).inc();
    }

    /// A client was told how its host's app stands.
    pub fn standing(&self) {
        self.standings.inc();
    }

    /// A delivery was not believed, or is lost.
    pub fn delivery(&self, metric: DeliveryMetric) {
        match metric {
            DeliveryMetric::Refused(why) => {
                self.webhooks_refused.with_label_values(&[why.name()]).inc()
            }
            DeliveryMetric::Lost => self.webhooks_lost.inc(),
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
        for state in AllocationState::ALL.iter().map(|state| state.name()) {
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
        let requests = Registry::new_custom(Some(PREFIX.into()), None)?;
        requests.register(Box::new(served(&snapshot)?))?;
        let mut out = Vec::new();
        for registry in [&self.registry, &requests, &self.process] {
            TextEncoder::new().encode(&registry.gather(), &mut out)?;
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

/// The environments' own counters of requests.
fn served(snapshot: &Snapshot) -> prometheus::Result<IntCounterVec> {
    let opts = Opts::new("requests_total", "Requests by environment, class and outcome.");
    let counters = IntCounterVec::new(opts, &["environment", "class", "outcome"])?;
    let mut environments: Vec<_> = snapshot.environments().collect();
    environments.sort_by(|a, b| a.environment.cmp(&b.environment));
    for (i, view) in environments.into_iter().enumerate() {
        let name = view.environment.to_string();
        let label = if i < MAX_ENVIRONMENTS { name.as_str() } else { "other" };
        for (c, class) in CLASSES.iter().enumerate() {
            for outcome in Outcome::all() {
                let n = view.counters.counted(c, outcome.index());
                if n > 0 {
                    counters.with_label_values(&[label, class, outcome.name()]).inc_by(n);
                }
            }
        }
    }
    Ok(counters)
}

/// One of those that a gauge counts, until it is dropped.
#[derive(Debug)]
pub struct Counting(IntGauge);

impl Counting {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.dec();
    }
}
