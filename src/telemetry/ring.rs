//! The last traces: a bounded ring that writers never wait for, and the threads that follow it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::Method;

use crate::clock::{Mono, Wall};
use crate::id::{AllocationId, Environment, OperationId};
use crate::lifecycle::facts::{kept_method, kept_path};
use crate::lifecycle::trace::{Outcome, StepKind, Trace};
use crate::record::OwnerSeen;

/// The class of a request that the edge answered before its route counted.
const NO_CLASS: &str = "none";

/// A finished request.
#[derive(Debug)]
pub struct TraceRecord {
    pub method: Method,
    /// Its host; empty when none could be read.
    pub host: String,
    /// Its normalised path, without the query, which may carry secrets; empty when none could be
    /// read.
    pub path: String,
    /// Its route's class; `none` for one that was answered before that counted.
    pub class: &'static str,
    /// The environment that it was for, if one owns its host and path.
    pub environment: Option<Environment>,
    /// The status that was sent, if any.
    pub status: Option<u16>,
    /// The operation it waited for.
    pub operation: Option<OperationId>,
    /// How long it was held.
    pub held: Duration,
    /// From its head to its end.
    pub total: Duration,
    pub at: Wall,
    pub trace: Trace,
}

/// Whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl TraceRecord {
    /// The record of a request that the edge answered before its route counted, and that ended at `now`
    /// (`at` by wall time). Records of other requests say what differs.
    pub fn new(
        method: Method,
        host: String,
        path: String,
        trace: Trace,
        now: Mono,
        at: Wall,
    ) -> Self {
        Self {
            method,
            host,
            path,
            class: NO_CLASS,
            environment: None,
            status: None,
            operation: None,
            held: Duration::ZERO,
            total: now.since(trace.started),
            at,
            trace,
        }
    }

    /// Whether it is in a sample: `sample` is the share of plainly served requests that are, from 0 to
    /// 1; all others always are. By the request's id, which is random: the same request is in every
    /// edge's sample or in none.
    pub fn wanted(&self, sample: f64) -> bool {
        if sample >= 1.0 || !matches!(self.trace.outcome, Outcome::Hot | Outcome::Asset) {
            return true;
        }
        let id = self.trace.request.to_string();
        let share = u32::from_str_radix(id.get(..8).unwrap_or_default(), 16).unwrap_or(0);
        f64::from(share) < sample * f64::from(u32::MAX)
    }

    /// The last step of which something is found: after a hold the owner is read and an allocation
    /// chosen again.
    fn last<T>(&self, found: impl Fn(&StepKind) -> Option<&T>) -> Option<&T> {
        self.trace.steps.iter().rev().find_map(|step| found(&step.kind))
    }

    /// The owner of its host and path.
    pub fn owner(&self) -> Option<&OwnerSeen> {
        self.last(|kind| match kind {
            StepKind::LoadOwner(view) => Some(&view.owner),
            _ => None,
        })
    }

    /// The allocation that it was given to.
    pub fn allocation(&self) -> Option<&AllocationId> {
        self.last(|kind| match kind {
            StepKind::Select(allocation, ..) => Some(&allocation.id),
            _ => None,
        })
    }

    /// What its client chose freely, as far as it is kept: a full ring has a size, and so has a line of
    /// the access log.
    pub fn bounded(mut self) -> Self {
        self.path = kept_path(self.path);
        let name = kept_method(&self.method);
        if name.len() < self.method.as_str().len() {
            self.method = Method::from_bytes(name.as_bytes()).unwrap_or_default();
        }
        self
    }
}

/// The ring. Writers take a number and swap one slot; readers copy pointers.
#[derive(Debug)]
pub struct Ring {
    slots: ArcSwap<Box<[RingSlot]>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct RingSlot {
    record: ArcSwapOption<TraceRecord>,
    /// One more than the number of the record; 0 while there is none.
    filled: AtomicUsize,
}

/// What a reader that follows has missed and got.
#[derive(Debug, Default)]
pub struct Since {
    /// Oldest first.
    pub records: Vec<Arc<TraceRecord>>,
    /// Records that went before they were read.
    pub lost: usize,
    /// Where to go on.
    pub next: usize,
}

fn slots(size: usize) -> Box<[RingSlot]> {
    let slot = || RingSlot { record: ArcSwapOption::empty(), filled: AtomicUsize::new(0) };
    (0..size).map(|_| slot()).collect()
}

fn put(slots: &[RingSlot], number: usize, record: Arc<TraceRecord>) {
    if slots.is_empty() {
        return;
    }
    let slot = &slots[number % slots.len()];
    slot.record.store(Some(record));
    slot.filled.store(number.wrapping_add(1), Ordering::Release);
}

impl Ring {
    /// A ring of the last `size` traces; with 0, none is kept.
    pub fn new(size: usize) -> Self {
        Self { slots: ArcSwap::from_pointee(slots(size)), next: AtomicUsize::new(0) }
    }

    /// Keeps the last `size` from now on; those that are there and fit stay.
    pub fn resize(&self, size: usize) {
        let old = self.slots.load_full();
        let new = Arc::new(slots(size));
        if new.len() == old.len() {
            return;
        }
        let next = self.next.load(Ordering::Acquire);
        let fit = old.len().min(new.len());
        let copy = |number: usize| {
            let (from, to) = (&old[number % old.len()], &new[number % new.len()]);
            let filled = from.filled.load(Ordering::Acquire);
            if filled == number + 1 {
                to.record.store(from.record.load_full());
                to.filled.store(filled, Ordering::Release);
            }
        };
        (next.saturating_sub(fit)..next).for_each(copy);
        // What the smaller ring had dropped is known to be lost, not waited for.
        for number in next.saturating_sub(new.len())..next.saturating_sub(fit) {
            new[number % new.len()].filled.store(number + 1, Ordering::Release);
        }
        self.slots.store(Arc::clone(&new));
        // Those that were added meanwhile; who still writes to the old slots writes to the new ones
        // too.
        let end = self.next.load(Ordering::Acquire);
        (next.max(end.saturating_sub(fit))..end).for_each(copy);
        if old.is_empty() {
            // They went nowhere, and are not waited for either.
            for number in end.saturating_sub(new.len()).max(next)..end {
                new[number % new.len()].filled.fetch_max(number + 1, Ordering::AcqRel);
            }
        }
    }

    /// Whether any are kept.
    pub fn keeps(&self) -> bool {
        !self.slots.load().is_empty()
    }

    /// Adds the newest; the oldest goes.
    pub fn push(&self, record: Arc<TraceRecord>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slots = self.slots.load();
        put(&slots, number, Arc::clone(&record));
        let now = self.slots.load();
        if !Arc::ptr_eq(&slots, &now) {
            put(&now, number, record);
        }
    }

    /// The newest first, at most `most`.
    pub fn newest(&self, most: usize) -> Vec<Arc<TraceRecord>> {
        let slots = self.slots.load();
        let n = slots.len();
        let next = self.next.load(Ordering::Relaxed);
        (1..=n.min(next))
            .filter_map(|back| slots[(next - back) % n].record.load_full())
            .take(most)
            .collect()
    }

    /// How many were ever added: the number of the next one.
    pub fn pushed(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Those added from number `from` on, for a reader that follows. It ends before one that is
    /// being written right now, so that none is read twice or passed over.
    pub fn since(&self, from: usize) -> Since {
        self.since_at_most(from, usize::MAX)
    }

    /// The same, at most `most` of them.
    pub fn since_at_most(&self, from: usize, most: usize) -> Since {
        let slots = self.slots.load();
        let end = self.next.load(Ordering::Acquire);
        let start = from.max(end.saturating_sub(slots.len()));
        let mut out = Since { lost: start.saturating_sub(from), next: start, ..Since::default() };
        while out.next < end && out.records.len() < most {
            let slot = &slots[out.next % slots.len()];
            let filled = slot.filled.load(Ordering::Acquire);
            if filled < out.next + 1 {
                break;
            }
            match slot.record.load_full() {
                Some(record) if filled == out.next + 1 => out.records.push(record),
                // A later one took its place meanwhile.
                _ => out.lost += 1,
            }
            out.next += 1;
        }
        out
    }
}

/// A thread that follows the ring. When this is dropped, it is told to stop and awaited.
#[derive(Debug)]
pub struct Follower {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
    last: Duration,
}

impl Follower {
    /// Starts `run`, which ends soon once it is told to stop; it is awaited for `last` at most.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        name: &str,
        last: Duration,
        run: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            run(&told);
            drop(end);
        })?;
        Ok(Self { stop, thread, ended, last })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // Beyond that, the thread is left to the end of the process.
        let _ = self.ended.recv_timeout(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Mono;
    use crate::id::RequestId;

    fn record(n: u64) -> Arc<TraceRecord> {
        let id = RequestId::random(&crate::clock::SeededEntropy::new(n));
        Arc::new(TraceRecord {
            method: Method::GET,
            host: String::new(),
            path: n.to_string(),
            class: "page",
            environment: None,
            status: None,
            operation: None,
            held: Duration::ZERO,
            total: Duration::ZERO,
            at: Wall(0),
            trace: Trace::new(id, Mono(0)),
        })
    }

    fn paths(records: &[Arc<TraceRecord>]) -> Vec<&str> {
        records.iter().map(|r| r.path.as_str()).collect()
    }

    #[test]
    fn what_a_client_chose_freely_is_kept_up_to_a_bound() {
        let record = || Arc::into_inner(record(0)).unwrap();
        let long = TraceRecord {
            path: format!("/{}", "a".repeat(60_000)),
            method: Method::from_bytes("M".repeat(60_000).as_bytes()).unwrap(),
            ..record()
        };
        let kept = long.bounded();
        assert_eq!((kept.path.len(), kept.path.capacity()), (1024, 1024));
        assert_eq!(kept.method.as_str(), "M".repeat(32));
        let usual = TraceRecord { path: "/a".into(), method: Method::DELETE, ..record() };
        let kept = usual.bounded();
        assert_eq!((kept.path.as_str(), kept.method), ("/a", Method::DELETE));
    }

    #[test]
    fn who_follows_sees_each_once_and_learns_what_was_lost() {
        let ring = Ring::new(3);
        for n in 0..2 {
            ring.push(record(n));
        }
        let first = ring.since(0);
        assert_eq!((paths(&first.records), first.lost, first.next), (vec!["0", "1"], 0, 2));
        let one = ring.since_at_most(0, 1);
        assert_eq!((paths(&one.records), one.lost, one.next), (vec!["0"], 0, 1));
        assert!(ring.since(first.next).records.is_empty());
        for n in 2..7 {
            ring.push(record(n));
        }
        let then = ring.since(first.next);
        assert_eq!((paths(&then.records), then.lost, then.next), (vec!["4", "5", "6"], 2, 7));
        assert_eq!(paths(&ring.newest(2)), ["6", "5"]);
    }

    #[test]
    fn a_ring_that_grows_or_shrinks_keeps_what_fits() {
        let ring = Ring::new(4);
        for n in 0..6 {
            ring.push(record(n));
        }
        ring.resize(2);
        assert_eq!(paths(&ring.newest(9)), ["5", "4"]);
        ring.resize(8);
        ring.push(record(6));
        assert_eq!(paths(&ring.newest(9)), ["6", "5", "4"]);
        let all = ring.since(0);
        assert_eq!((paths(&all.records), all.lost, all.next), (vec!["4", "5", "6"], 4, 7));
    }

    #[test]
    fn a_ring_of_none_keeps_none_until_it_grows() {
        let ring = Ring::new(0);
        ring.push(record(0));
        assert!(!ring.keeps() && ring.newest(9).is_empty());
        let since = ring.since(0);
        assert_eq!((since.records.len(), since.lost, since.next), (0, 1, 1));
        ring.resize(2);
        ring.push(record(1));
        assert_eq!(paths(&ring.since(1).records), ["1"]);
        ring.resize(0);
        ring.push(record(2));
        assert!(!ring.keeps() && ring.newest(9).is_empty());
    }

    #[test]
    fn none_is_lost_to_a_reader_while_the_ring_grows() {
        let ring = Ring::new(4096);
        let end = 2000;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..end).for_each(|n| ring.push(record(n))));
            for size in (0..50).map(|n| 4096 + n) {
                ring.resize(size);
            }
        });
        let all = ring.since(0);
        assert_eq!((all.records.len(), all.lost, all.next), (end as usize, 0, end as usize));
    }

    #[test]
    fn followers_and_writers_at_once_count_to_the_same_number() {
        let ring = Arc::new(Ring::new(64));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let ring = Arc::clone(&ring);
                std::thread::spawn(move || (0..5000).for_each(|n| ring.push(record(n))))
            })
            .collect();
        let (mut from, mut seen) = (0, 0);
        while from < 20_000 {
            let since = ring.since(from);
            seen += since.records.len() + since.lost;
            from = since.next;
            std::thread::yield_now();
        }
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(seen, 20_000);
    }
}
