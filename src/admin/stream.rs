//! Server-sent events (WHATWG HTML, section 9.2): traces as they end, and revisions of what routing
//! stands on. A console gets a sample when there is more than a person can read; the sample is
//! taken here, so that neither the network nor a browser carries what no person would read.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;

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

struct Follower {
    admin: Admin,
    filter: TraceFilter,
    from: usize,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    fn look(&mut self) -> TraceBatch {
        let since = self.admin.control.telemetry.ring.since(self.from);
        self.from = since.next;
        let mut wanted = since.records;
        wanted.retain(|r| self.filter.wants(r));
        if std::mem::take(&mut self.first) {
            // What was before is for context: nothing of it counts as left out.
            let earlier = wanted.split_off(wanted.len().saturating_sub(EARLIER));
            return TraceBatch {
                rows: earlier.iter().map(|r| trace_row(r)).collect(),
                left_out: 0,
            };
        }
        let all = wanted.len();
        let chosen = choose(wanted, BATCH);
        TraceBatch {
            left_out: since.lost + all - chosen.len(),
            rows: chosen.iter().map(|r| trace_row(r)).collect(),
        }
    }
}

/// At most `most` of `records`, in their order: those that are not simply hot first, then hot ones
/// spread over the time.
fn choose(records: Vec<Arc<TraceRecord>>, most: usize) -> Vec<Arc<TraceRecord>> {
    if records.len() <= most {
        return records;
    }
    let is_hot = |r: &Arc<TraceRecord>| r.trace.outcome == Outcome::Hot;
    let others = records.iter().filter(|r| !is_hot(r)).count();
    let (unusual, hot) = (others.min(most), most - others.min(most));
    let hots = records.len() - others;
    let (mut seen_unusual, mut seen_hot) = (0, 0);
    let keep = |r: &Arc<TraceRecord>| {
        let (seen, of, keep) = if is_hot(r) {
            (&mut seen_hot, hots, hot)
        } else {
            (&mut seen_unusual, others, unusual)
        };
        *seen += 1;
        // True `keep` times in `of`, evenly.
        *seen * keep / of > (*seen - 1) * keep / of
    };
    let mut keep = keep;
    records.into_iter().filter(|r| keep(r)).collect()
}

type Events = Sse<
    axum::response::sse::KeepAliveStream<
        std::pin::Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>,
    >,
>;

fn permit(admin: &Admin) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&admin.streams)
        .try_acquire_owned()
        .map_err(|_| Problem::unavailable("as many streams are open as may be; close one"))
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
    let permit = permit(&admin)?;
    let follower = Follower { admin, filter, from: 0, first: true, _permit: permit };
    let stream = unfold(follower, async |mut f: Follower| {
        loop {
            let first = f.first;
            if !first {
                tokio::time::sleep(EVERY).await;
            }
            if !f.admin.ready.load(Ordering::Acquire) {
                return None;
            }
            let batch = f.look();
            if first || !batch.rows.is_empty() || batch.left_out > 0 {
                let event = Event::default().event("traces").json_data(&batch).unwrap_or_default();
                return Some((Ok(event), f));
            }
        }
    });
    Ok(events(stream))
}

fn events(stream: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Events {
    let boxed: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream);
    Sse::new(boxed).keep_alive(KeepAlive::default())
}

/// Revisions of what routing stands on: a `revision` event when something changed, at most four a
/// second. Its data is the number.
#[utoipa::path(get, path = "/v1/changes/stream", tag = "views",
    responses(
        (status = 200, description = "Events until the edge stops", body = String,
            content_type = "text/event-stream"),
        (status = 503, description = "As many streams are open as may be")))]
pub async fn change_stream(State(admin): State<Admin>) -> Result<Events, Problem> {
    let permit = permit(&admin)?;
    let stream = unfold((admin, None::<u64>, permit), async |(admin, seen, permit)| {
        loop {
            if seen.is_some() {
                tokio::time::sleep(EVERY).await;
            }
            if !admin.ready.load(Ordering::Acquire) {
                return None;
            }
            let revision = admin.control.snapshots.load().revision();
            if seen != Some(revision) {
                let event = Event::default().event("revision").data(revision.to_string());
                return Some((Ok(event), (admin, Some(revision), permit)));
            }
        }
    });
    Ok(events(stream))
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
