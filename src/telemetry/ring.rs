//! The last traces: a bounded ring that writers never wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Method;

use crate::clock::Wall;
use crate::id::{Environment, OperationId};
use crate::lifecycle::trace::Trace;

/// A finished request.
#[derive(Debug)]
pub struct TraceRecord {
    /// Its method.
    pub method: Method,
    /// Its host; empty when none could be read.
    pub host: String,
    /// Its normalised path, without the query, which may carry secrets; empty when none could be
    /// read.
    pub path: String,
    /// Its route's class; [`super::NO_CLASS`] for one that nobody owns.
    pub class: &'static str,
    /// Whose it was, if anybody's.
    pub environment: Option<Environment>,
    /// The status that was sent, if any.
    pub status: Option<u16>,
    /// The operation it waited for.
    pub operation: Option<OperationId>,
    /// How long it was held.
    pub held: Duration,
    /// From its head to its end.
    pub total: Duration,
    /// When it ended.
    pub at: Wall,
    /// Its steps.
    pub trace: Trace,
}

/// The ring. Writers take a number and swap one slot; readers copy pointers.
#[derive(Debug)]
pub struct Ring {
    slots: Box<[ArcSwapOption<TraceRecord>]>,
    next: AtomicUsize,
}

impl Ring {
    /// A ring of the last `size` traces; at least one.
    pub fn new(size: usize) -> Self {
        let slots = (0..size.max(1)).map(|_| ArcSwapOption::empty()).collect();
        Self { slots, next: AtomicUsize::new(0) }
    }

    /// Adds the newest; the oldest goes.
    pub fn push(&self, record: Arc<TraceRecord>) {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        self.slots[at].store(Some(record));
    }

    /// The newest first, at most `most`.
    pub fn newest(&self, most: usize) -> Vec<Arc<TraceRecord>> {
        let n = self.slots.len();
        let next = self.next.load(Ordering::Relaxed);
        (1..=n.min(next))
            .filter_map(|back| self.slots[(next - back) % n].load_full())
            .take(most)
            .collect()
    }

    /// How many were ever added; a reader that follows compares it.
    pub fn pushed(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }
}
