//! Questions that tests ask. Served with `STUDYLAB_DEBUG=1` only.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use crate::actions::problem;
use crate::app::{App, NO_STORE};
use crate::database::MAX_ROWS;

/// The longest time that an answer can be asked to take.
pub const MAX_SLOW: Duration = Duration::from_secs(60);
const MAX_BYTES: u64 = 64 << 20;
const BODY_SHOWN: usize = 256;

#[derive(Deserialize)]
pub struct Filter {
    route: Option<String>,
    key: Option<String>,
}

/// `GET /debug/executions[?route=][&key=]`: how often everything ran, by every process so far.
pub async fn executions(State(app): State<Arc<App>>, Query(filter): Query<Filter>) -> Response {
    let read = app.store.read(move |db| {
        let rows = db.executions(filter.route.as_deref(), filter.key.as_deref())?;
        Ok((rows, db.effects()?))
    });
    match read.await {
        Ok((mut rows, (notes, events))) => {
            let truncated = rows.len() > MAX_ROWS;
            rows.truncate(MAX_ROWS);
            let mut totals = BTreeMap::<&str, i64>::new();
            for row in &rows {
                *totals.entry(&row.route).or_default() += row.count;
            }
            let body = json!({
                "executions": rows,
                "totals": totals,
                "effects": { "notes": notes, "events": events },
                "truncated": truncated,
            });
            ([NO_STORE], Json(body)).into_response()
        }
        Err(err) => problem(StatusCode::SERVICE_UNAVAILABLE, &err.to_string()),
    }
}

/// Any method on `/debug/echo`: the request as it arrived here, its body read to the end.
pub async fn echo(State(app): State<Arc<App>>, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let (mut length, mut start, mut complete) = (0u64, Vec::new(), true);
    loop {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => break,
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    length += bytes.len() as u64;
                    let room = BODY_SHOWN.saturating_sub(start.len()).min(bytes.len());
                    start.extend_from_slice(&bytes[..room]);
                }
            }
            Some(Err(_)) => {
                complete = false;
                break;
            }
        }
    }
    let headers: Vec<(&str, String)> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let seen = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body_length": length,
        "body_start": String::from_utf8_lossy(&start),
        "body_complete": complete,
        "allocation": app.identity.allocation(),
        "environment": app.identity.environment,
    });
    ([NO_STORE], Json(seen)).into_response()
}

#[derive(Deserialize)]
pub struct Slow {
    ms: u64,
}

/// `GET /debug/slow?ms=`: an answer after that many milliseconds, at most a minute.
pub async fn slow(Query(asked): Query<Slow>) -> Response {
    sleep(Duration::from_millis(asked.ms).min(MAX_SLOW)).await;
    ([NO_STORE], "slow\n").into_response()
}

#[derive(Deserialize)]
pub struct Count {
    n: u64,
}

/// `GET /debug/bytes?n=`: that many bytes, at most 64 MiB, streamed with their length declared.
pub async fn bytes(Query(asked): Query<Count>) -> Response {
    if asked.n > MAX_BYTES {
        return problem(StatusCode::BAD_REQUEST, "n has to be at most 67108864");
    }
    let headers = [NO_STORE, (header::CONTENT_TYPE, "application/octet-stream")];
    (headers, Body::new(Dots { left: asked.n })).into_response()
}

#[derive(Deserialize)]
pub struct Exit {
    #[serde(default)]
    code: u8,
}

/// `POST /debug/exit?code=`: the process ends at once, without an answer.
pub async fn exit(Query(asked): Query<Exit>) -> Response {
    eprintln!("studylab: asked to exit with {}", asked.code);
    std::process::exit(i32::from(asked.code))
}

/// A body of dots.
struct Dots {
    left: u64,
}

impl HttpBody for Dots {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        // Small, so that no system call of the app's takes long: hyper writes sixteen at once.
        static CHUNK: [u8; 4 << 10] = [b'.'; 4 << 10];
        let length = self.left.min(CHUNK.len() as u64);
        self.left -= length;
        let chunk = Bytes::from_static(&CHUNK).slice(..length as usize);
        Poll::Ready((length > 0).then(|| Ok(http_body::Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left)
    }
}
