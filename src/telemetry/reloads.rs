//! Metrics of reloads.

use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};

use crate::clock::Wall;

/// Handles, made once.
#[derive(Debug)]
pub struct Reloads {
    total: IntCounterVec,
    last_success: Gauge,
    last_successful: IntGauge,
}

/// Outcomes of a reload, as the label `outcome`.
const OUTCOMES: [&str; 2] = ["applied", "rejected"];

impl Reloads {
    /// Registers them with `registry`.
    ///
    /// # Errors
    /// Only for a name used twice: our own bug.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reloads = Self {
            total: IntCounterVec::new(
                Opts::new("config_reloads_total", "Attempts to reload the configuration."),
                &["outcome"],
            )?,
            last_success: Gauge::new(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was applied.",
            )?,
            last_successful: IntGauge::new(
                "config_last_reload_successful",
                "Whether the last attempt to reload the configuration was applied.",
            )?,
        };
        for outcome in OUTCOMES {
            reloads.total.with_label_values(&[outcome]);
        }
        registry.register(Box::new(reloads.total.clone()))?;
        registry.register(Box::new(reloads.last_success.clone()))?;
        registry.register(Box::new(reloads.last_successful.clone()))?;
        Ok(reloads)
    }

    /// A configuration is in force since `at`. The one the process starts with counts as an
    /// attempt too.
    pub fn applied(&self, at: Wall) {
        self.total.with_label_values(&[OUTCOMES[0]]).inc();
        self.last_success.set(at.0 as f64 / 1000.0);
        self.last_successful.set(1);
    }

    /// An attempt changed nothing.
    pub fn rejected(&self) {
        self.total.with_label_values(&[OUTCOMES[1]]).inc();
        self.last_successful.set(0);
    }
}
