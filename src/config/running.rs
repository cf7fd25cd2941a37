//! The configuration in force: an immutable value that is swapped whole, so that a reader sees
//! one configuration and never half of two.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::Config;

/// Readers load it each time they need it; the reloader is its one writer.
#[derive(Debug)]
pub struct Running(ArcSwap<Config>);

impl Running {
    /// The configuration that the process started with.
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(config)))
    }

    /// The configuration now, pinned for as long as the guard lives. No lock.
    pub fn load(&self) -> Guard<Arc<Config>> {
        self.0.load()
    }

    /// Puts another one in force.
    pub fn replace(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}
