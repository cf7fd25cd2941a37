//! Server-sent events (WHATWG HTML, section 9.2): traces as they end, and revisions of what routing
//! stands on; what apps print is followed by [`super::logs`]. A console gets a sample when there is more than a person can read; the sample is
//! taken here, so that neither the network nor a browser carries what no person would read.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, KeepAliveStream, Sse};
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::MissedTickBehavior;

use crate::lifecycle::trace::Outcome;
use crate::telemetry::TraceRecord;

use super::Admin;
use super::api::{TraceFilter, trace_row};
use super::problem::Problem;
use super::types::TraceBatch;

/// Streams at the same time, of all kinds.
pub const MOST_STREAMS: usize = 64;

/// Time between looks: four batches a second.
const EVERY: Duration = Duration::from_millis(250);

/// Traces in one batch: a hundred a second are more than one can read.
const BATCH: usize = 25;

/// Earlier traces in the first batch.
const EARLIER: usize = 100;

/// Follows the ring of traces.
struct NewTraces {
    filter: TraceFilter,
    from: usize,
    first: bool,
}

impl NewTraces {
    /// What is new; nothing when there is nothing to tell.
    fn look(&mut self, admin: &Admin) -> Option<Event> {
        let since = admin.telemetry.ring.since(self.from);
        self.from = since.next;
        let mut wanted = since.records;
        wanted.retain(|r| self.filter.wants(r));
        let first = std::mem::take(&mut self.first);
        let (chosen, left_out) = if first {
            // What was before is for context: nothing of it counts as left out.
            (wanted.split_off(wanted.len().saturating_sub(EARLIER)), 0)
        } else {
            let all = wanted.len();
            let chosen = choose(wanted, BATCH);
            let left_out = since.lost + all - chosen.len();
            (chosen, left_out)
        };
        let batch = TraceBatch { rows: chosen.iter().map(|r| trace_row(r)).collect(), left_out };
        (first || !batch.rows.is_empty() || left_out > 0)
            .then(|| Event::default().event("traces").json_data(&batch).unwrap_or_default())
    }
}

/// At most `most` of `records`, in their order: those that are not simply hot first, then hot ones
/// spread over the time.
fn choose(mut records: Vec<Arc<TraceRecord>>, most: usize) -> Vec<Arc<TraceRecord>> {
    let is_hot = |r: &TraceRecord| r.trace.outcome == Outcome::Hot;
    let hot = records.iter().filter(|r| is_hot(r)).count();
    let others = records.len() - hot;
    let left = most.saturating_sub(others);
    // Of those that are not hot, and of those that are: how many there are, are kept and were seen.
    let mut kinds = [(others, others.min(most), 0), (hot, hot.min(left), 0)];
    records.retain(|r| {
        let (of, keep, seen) = &mut kinds[usize::from(is_hot(r))];
        *seen += 1;
        // True `keep` times in `of`, evenly.
        *seen * *keep / *of > (*seen - 1) * *keep / *of
    });
    records
}

pub(super) type Events = Sse<KeepAliveStream<BoxStream<'static, Result<Event, Infallible>>>>;

/// One more stream.
///
/// # Errors
/// When as many are open as may be.
pub(super) fn permit(admin: &Admin) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&admin.streams)
        .try_acquire_owned()
        .map_err(|_| Problem::unavailable("as many streams are open as may be; close one"))
}

/// Sends what `look` finds, at once and then four times a second, until the edge stops.
fn events(
    admin: Admin,
    look: impl FnMut(&Admin) -> Option<Event> + Send + 'static,
) -> Result<Events, Problem> {
    let permit = permit(&admin)?;
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream =
        unfold((admin, look, every, permit), async |(admin, mut look, mut every, permit)| {
            loop {
                every.tick().await;
                if !admin.ready.load(Ordering::Acquire) {
                    return None;
                }
                if let Some(event) = look(&admin) {
                    return Some((Ok(event), (admin, look, every, permit)));
                }
            }
        });
    Ok(Sse::new(stream.boxed()).keep_alive(KeepAlive::default()))
}

/// Traces as they end: `traces` events, each a TraceBatch; the first has up to 100 earlier ones.
/// At most 25 traces four times a second, unusual outcomes first; the rest is counted.
#[utoipa::path(get, path = "/v1/traces/stream", tag = "traces", params(TraceFilter),
    responses(
        (status = 200, description = "Events until the edge stops", body = String,
            content_type = "text/event-stream"),
        (status = 503, description = "As many streams are open as may be")))]
pub async fn trace_stream(
    State(admin): State<Admin>,
    Query(filter): Query<TraceFilter>,
) -> Result<Events, Problem> {
    let mut follower = NewTraces { filter, from: 0, first: true };
    events(admin, move |admin| follower.look(admin))
}

/// Revisions of what routing stands on: a `revision` event when something changed, at most four a
/// second. Its data is the number.
#[utoipa::path(get, path = "/v1/changes/stream", tag = "views",
    responses(
        (status = 200, description = "Events until the edge stops", body = String,
            content_type = "text/event-stream"),
        (status = 503, description = "As many streams are open as may be")))]
pub async fn change_stream(State(admin): State<Admin>) -> Result<Events, Problem> {
    let mut seen = None;
    events(admin, move |admin| {
        let now = Some(admin.node.snapshots.load().revision());
        let revision = now.filter(|_| std::mem::replace(&mut seen, now) != now)?;
        Some(Event::default().event("revision").data(revision.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Mono, SeededEntropy, Wall};
    use crate::id::RequestId;
    use crate::lifecycle::trace::Trace;

    fn record(n: u64, outcome: Outcome) -> Arc<TraceRecord> {
        let mut trace = Trace::new(RequestId::random(&SeededEntropy::new(n)), Mono(0));
        trace.outcome = outcome;
        Arc::new(TraceRecord {
            method: axum::http::Method::GET,
            host: String::new(),
            path: n.to_string(),
            class: "page",
            environment: None,
            status: None,
            operation: None,
            held: Duration::ZERO,
            total: Duration::ZERO,
            at: Wall(0),
            trace,
        })
    }

    #[test]
    fn what_is_unusual_is_chosen_first_and_the_order_stays() {
        let records: Vec<_> = (0..1000)
            .map(|n| record(n, if n % 300 == 7 { Outcome::Woken } else { Outcome::Hot }))
            .collect();
        let chosen = choose(records, 25);
        assert_eq!(chosen.len(), 25);
        assert_eq!(chosen.iter().filter(|r| r.trace.outcome == Outcome::Woken).count(), 4);
        let numbers: Vec<u64> = chosen.iter().map(|r| r.path.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers[0] < 100 && numbers[24] > 900, "{numbers:?}");
        let all_unusual: Vec<_> = (0..100).map(|n| record(n, Outcome::Held)).collect();
        assert_eq!(choose(all_unusual, 25).len(), 25);
    }
}
