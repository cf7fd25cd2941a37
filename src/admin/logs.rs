//! What apps print: pages of it, and a stream that follows it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;

use crate::clock::Wall;
use crate::id::{AllocationId, AppName, EnvName};
use crate::line::{Cursor, Stream};
use crate::output::{Outputs, Row, Select, Wanted};

use super::Admin;
use super::page::{Asked, Page, PageQuery, Rows};
use super::problem::Problem;
use super::stream::{Events, permit};

/// Time between looks.
const EVERY: Duration = Duration::from_millis(250);

/// Reads at the same time. One may read all that is kept, on a thread of those that starts of apps need too.
static READS: Semaphore = Semaphore::const_new(8);

/// How long a read waits for its turn.
const PLACE: Duration = Duration::from_secs(2);

/// Bytes of an allocation's text.
const TEXT: usize = 64 * 1024;

/// Lines of an allocation's text, at most.
const TEXT_LINES: usize = 1000;

/// Which lines.
#[derive(Debug, Default, Clone, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogFilter {
    /// Only this app's. May be left out where `allocation` is given.
    pub app: Option<String>,
    /// Only this environment of the app: `production` or a preview's name.
    pub environment: Option<String>,
    /// Only this allocation's.
    pub allocation: Option<String>,
    /// Only this process's: `web`, or the name of another.
    pub process: Option<String>,
    /// Only this stream: `stdout`, `stderr`, or `edge` for what the edge says of the process.
    pub stream: Option<String>,
    /// Only lines not earlier than this, in milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// Where a stream begins.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FollowQuery {
    /// Earlier lines to begin with, 0 to 1000; 100 when absent.
    #[param(minimum = 0, maximum = 1000)]
    pub tail: Option<usize>,
    /// Go on after this place instead: the `id` of the last event that was read.
    pub after: Option<String>,
}

/// A line that a process printed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogRow {
    /// When the edge read it (RFC 3339).
    pub at: String,
    /// `app/environment`.
    pub environment: String,
    /// The allocation.
    pub allocation: Option<String>,
    /// `web`, or the name of another process.
    pub process: String,
    /// `stdout`, `stderr`, or `edge` for what the edge says of the process.
    pub stream: String,
    /// The line, as UTF-8; what was none is replaced.
    pub text: String,
    /// The line was too long, or had no end for a second: the next of this stream goes on.
    pub partial: bool,
}

/// What a stream of lines sends at a time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogBatch {
    /// New lines, oldest first.
    pub rows: Vec<LogRow>,
    /// Lines were removed from the disk before they were sent.
    pub missed: bool,
}

fn row((environment, line): Row) -> LogRow {
    LogRow {
        at: line.at.to_string(),
        environment: environment.to_string(),
        allocation: line.allocation.map(|id| id.to_string()),
        process: line.process,
        stream: line.stream.as_ref().to_owned(),
        text: line.text,
        partial: line.partial,
    }
}

/// Runs what waits for the disk, so many at a time.
async fn read<T: Send + 'static>(
    reads: &'static Semaphore,
    outputs: &Arc<Outputs>,
    what: impl FnOnce(&Outputs) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let outputs = Arc::clone(outputs);
    let place = tokio::time::timeout(PLACE, reads.acquire()).await;
    let Ok(Ok(place)) = place else {
        return Err(Problem::unavailable("as many reads of logs go on as may; try again"));
    };
    let done = tokio::task::spawn_blocking(move || {
        // Until it is over: a client that leaves ends no read.
        let _place = place;
        what(&outputs)
    });
    done.await.map_err(Problem::unavailable)?.map_err(Problem::unavailable)
}

/// Where to look, and for what.
async fn selected(admin: &Admin, filter: LogFilter) -> Result<(Select, Wanted), Problem> {
    let parsed = |what: &str, e: String| Problem::bad(format!("{what}: {e}"));
    let app = filter.app.map(|app| app.parse::<AppName>()).transpose();
    let app = app.map_err(|e| parsed("app", e.to_string()))?;
    let name = filter.environment.map(|name| name.parse::<EnvName>()).transpose();
    let name = name.map_err(|e| parsed("environment", e.to_string()))?;
    let allocation = filter.allocation.map(|id| id.parse::<AllocationId>()).transpose();
    let allocation = allocation.map_err(|e| parsed("allocation", e.to_string()))?;
    let stream = filter.stream.map(|stream| stream.parse::<Stream>()).transpose();
    let stream =
        stream.map_err(|_| parsed("stream", "expected stdout, stderr or edge".to_owned()))?;
    let select = match (app, &allocation) {
        (Some(app), _) => Select { app, name },
        (None, Some(id)) => whose(admin, id).await?,
        (None, None) => return Err(Problem::bad("expected an app or an allocation")),
    };
    let since = Wall(filter.since_ms.unwrap_or(0));
    Ok((select, Wanted { allocation, process: filter.process, stream, since }))
}

/// The environment of an allocation that runs or that has printed something.
async fn whose(admin: &Admin, id: &AllocationId) -> Result<Select, Problem> {
    let snapshot = admin.node.snapshots.load();
    let runs = snapshot
        .environments()
        .find(|view| view.ready.iter().chain(&view.others).any(|allocation| allocation.id == *id));
    let environment = match runs.map(|view| view.environment.clone()) {
        Some(environment) => Some(environment),
        None => {
            let id = id.clone();
            read(&READS, &admin.outputs, move |outputs| outputs.locate(&id)).await?
        }
    };
    let found = environment.ok_or_else(|| {
        Problem::not_found(format!("{id} does not run, and nothing that it printed is kept"))
    })?;
    Ok(Select { app: found.app().clone(), name: Some(found.name().clone()) })
}

/// What apps printed, newest first, over restarts and failed starts, as far as it is kept.
#[utoipa::path(get, path = "/v1/logs", tag = "views", params(PageQuery, LogFilter),
    responses(
        (status = 200, description = "A page of lines", body = Vec<LogRow>),
        (status = 404, description = "The allocation is not known"),
        (status = 503, description = "It cannot be read")))]
pub async fn logs(
    State(admin): State<Admin>,
    asked: Asked,
    Query(filter): Query<LogFilter>,
) -> Rows<LogRow> {
    let limit = asked.limit()?;
    let (select, wanted) = selected(&admin, filter).await?;
    let cursor = asked.after().map(str::parse::<Cursor>).transpose();
    let cursor = cursor.map_err(|e| Problem::bad(format!("after: {e}")))?;
    let (rows, older) = read(&READS, &admin.outputs, move |outputs| {
        let cursor = cursor.unwrap_or_else(|| outputs.end(&select));
        outputs.before(&select, &wanted, &cursor, limit)
    })
    .await?;
    let rows = rows.into_iter().map(row).collect();
    Ok(Page::until(rows, older.map(|older| older.to_string()), &asked))
}

/// The last 64 KiB that an allocation printed, as text.
#[utoipa::path(get, path = "/v1/allocations/{id}/log", tag = "views",
    params(("id" = String, Path, description = "The allocation")),
    responses(
        (status = 200, description = "Its output", body = String, content_type = "text/plain"),
        (status = 404, description = "The allocation is not known"),
        (status = 503, description = "It cannot be read")))]
pub async fn text(State(admin): State<Admin>, Path(id): Path<String>) -> Result<String, Problem> {
    let id: AllocationId = id.parse().map_err(Problem::bad)?;
    let select = whose(&admin, &id).await?;
    let wanted = Wanted { allocation: Some(id), ..Wanted::default() };
    let rows = read(&READS, &admin.outputs, move |outputs| {
        let end = outputs.end(&select);
        Ok(outputs.before(&select, &wanted, &end, TEXT_LINES)?.0)
    })
    .await?;
    let mut left = TEXT;
    let printed = rows.into_iter().filter(|(_, line)| line.stream != Stream::Edge);
    let mut lines: Vec<String> = printed
        .map(|(_, line)| format!("{}\n", line.text))
        .take_while(|line| {
            let fits = line.len() <= left;
            left = left.saturating_sub(line.len());
            fits
        })
        .collect();
    lines.reverse();
    Ok(lines.concat())
}

/// Follows what apps print.
struct Follower {
    admin: Admin,
    select: Select,
    wanted: Wanted,
    cursor: Cursor,
    /// Lines to begin with.
    first: Option<usize>,
    every: tokio::time::Interval,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; `None` when the edge stops.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            let batch = match self.first.take() {
                Some(tail) => {
                    self.every.tick().await;
                    self.begin(tail).await
                }
                None => {
                    self.every.tick().await;
                    self.look().await
                }
            };
            if !self.admin.ready.load(Ordering::Acquire) {
                return None;
            }
            let Some(batch) = batch else { continue };
            let event = Event::default().event("logs").id(self.cursor.to_string());
            let event = event.json_data(&batch).unwrap_or_default();
            return Some((Ok(event), self));
        }
    }

    async fn begin(&mut self, tail: usize) -> Option<LogBatch> {
        let (select, wanted) = (self.select.clone(), self.wanted.clone());
        let found = read(&READS, &self.admin.outputs, move |outputs| {
            let end = outputs.end(&select);
            let (rows, _) = outputs.before(&select, &wanted, &end, tail)?;
            Ok((end, rows))
        });
        let Ok((end, mut rows)) = found.await else {
            // It begins with the next look: from nowhere it would send all that is kept.
            self.first = Some(tail);
            return None;
        };
        rows.reverse();
        self.cursor = end;
        Some(LogBatch { rows: rows.into_iter().map(row).collect(), missed: false })
    }

    async fn look(&mut self) -> Option<LogBatch> {
        let (select, wanted) = (self.select.clone(), self.wanted.clone());
        let mut cursor = self.cursor.clone();
        let found = read(&READS, &self.admin.outputs, move |outputs| {
            let found = outputs.after(&select, &wanted, &mut cursor)?;
            Ok((found, cursor))
        });
        // What cannot be read now is read with the next look.
        let (found, cursor) = found.await.ok()?;
        self.cursor = cursor;
        if found.more {
            self.every.reset_immediately();
        }
        (found.missed || !found.rows.is_empty()).then(|| LogBatch {
            rows: found.rows.into_iter().map(row).collect(),
            missed: found.missed,
        })
    }
}

/// What apps print, as it comes: `logs` events, each a LogBatch. The `id` of an event is the place to go on after.
#[utoipa::path(get, path = "/v1/logs/stream", tag = "views", params(LogFilter, FollowQuery),
    responses(
        (status = 200, description = "Events until the edge stops", body = String,
            content_type = "text/event-stream"),
        (status = 404, description = "The allocation is not known"),
        (status = 503, description = "As many streams are open as may be")))]
pub async fn log_stream(
    State(admin): State<Admin>,
    Query(filter): Query<LogFilter>,
    Query(from): Query<FollowQuery>,
) -> Result<Events, Problem> {
    let permit = permit(&admin)?;
    let (select, wanted) = selected(&admin, filter).await?;
    let cursor = from.after.as_deref().map(str::parse::<Cursor>).transpose();
    let cursor = cursor.map_err(|e| Problem::bad(format!("after: {e}")))?;
    let first = match (&cursor, from.tail.unwrap_or(100)) {
        (Some(_), _) => None,
        (None, tail @ 0..=1000) => Some(tail),
        (None, n) => return Err(Problem::bad(format!("tail: expected 0 to 1000, found {n}"))),
    };
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let cursor = cursor.unwrap_or_default();
    let follower = Follower { admin, select, wanted, cursor, first, every, _permit: permit };
    let events = unfold(follower, Follower::next);
    Ok(Sse::new(events.boxed()).keep_alive(KeepAlive::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_has_its_place_until_it_is_over_whatever_becomes_of_its_client() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::small(dir.path());
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (go, goes) = std::sync::mpsc::channel::<()>();
        let client = {
            let outputs = Arc::clone(&outputs);
            tokio::spawn(async move {
                read(&ONE, &outputs, move |_| {
                    let _ = begun.send(());
                    goes.recv().map_err(std::io::Error::other)
                })
                .await
                .is_ok()
            })
        };
        begins.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!(ONE.available_permits(), 0);
        assert!(read(&ONE, &outputs, |_| Ok(())).await.is_err(), "another has no place");
        go.send(()).unwrap();
        drop(ONE.acquire().await.unwrap());
        assert!(read(&ONE, &outputs, |_| Ok(())).await.is_ok());
    }
}
