//! What changes something: the save, the handing in and the payment event. Each is recorded once per key, in the
//! transaction that makes them happen; the edge only has to say which key it is.

use std::sync::Arc;

use axum::extract::{Form, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Bytes};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use crate::app::{App, NO_STORE};
use crate::database::{Attempt, Saved, Submitted};
use crate::store::StoreError;
use crate::switches::parse_duration;

const MAX_TEXT: usize = 2_000;
const MAX_KEY: usize = 255;

#[derive(Deserialize)]
struct Save {
    text: String,
}

#[derive(Deserialize)]
struct Event {
    id: String,
}

/// `POST /actions/save` with `text`, as a form or as JSON.
pub async fn save(State(app): State<Arc<App>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let fault = Fault::of(&headers, app.switches.debug);
    let key = match idempotency_key(&headers) {
        Ok(key) => key,
        Err(why) => return problem(StatusCode::BAD_REQUEST, why),
    };
    let text = match read_text(&headers, request).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    fault.before().await;
    let allocation = app.identity.allocation().to_owned();
    let saved = app.store.write(move |db| db.save(key.as_deref(), &text, &allocation)).await;
    fault.after().await;
    match saved {
        Ok(Saved::First(note)) => ([NO_STORE], Json(note)).into_response(),
        // The first result as it was, plus how often it has been asked for.
        Ok(Saved::Repeat { first, executions }) => {
            let mut answer = ([NO_STORE], Json(first)).into_response();
            let headers = answer.headers_mut();
            headers.insert("studylab-repeat", HeaderValue::from_static("true"));
            headers.insert("studylab-executions", HeaderValue::from(executions));
            answer
        }
        Ok(Saved::KeyReused) => problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key belongs to a save of another text",
        ),
        Err(err) => failed(&err),
    }
}

/// `POST /actions/submit` with `text`: handed in once per student, the cookie `vango_session`, and
/// `Idempotency-Key`. Both are required. The edge keeps the keys of this one.
pub async fn submit(State(app): State<Arc<App>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let fault = Fault::of(&headers, app.switches.debug);
    let key = match idempotency_key(&headers) {
        Ok(Some(key)) => key,
        Ok(None) => return problem(StatusCode::BAD_REQUEST, "an Idempotency-Key is required"),
        Err(why) => return problem(StatusCode::BAD_REQUEST, why),
    };
    let Some(student) = student(&headers) else {
        return problem(StatusCode::BAD_REQUEST, "the cookie vango_session is required");
    };
    let text = match read_text(&headers, request).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    let attempt = attempt(&headers);
    fault.before().await;
    let allocation = app.identity.allocation().to_owned();
    let submitted = app
        .store
        .write(move |db| db.submit(attempt.as_ref(), &student, &key, &text, &allocation))
        .await;
    fault.after().await;
    match submitted {
        Ok(Submitted::First(submission) | Submitted::Repeat(submission)) => {
            ([NO_STORE], Json(submission)).into_response()
        }
        Ok(Submitted::KeyReused) => problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key belongs to another text that was handed in",
        ),
        Ok(Submitted::Disowned) => problem(
            StatusCode::CONFLICT,
            "this attempt came too late: it was declared not carried out, and was not",
        ),
        Err(err) => failed(&err),
    }
}

fn student(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut named = cookies
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().strip_prefix("vango_session="));
    named.next().filter(|id| is_key(id)).map(str::to_owned)
}

/// Which attempt of which record the edge says that this is.
fn attempt(headers: &HeaderMap) -> Option<Attempt> {
    let text = |name| headers.get(name)?.to_str().ok();
    let record = text("vango-edge-idempotency-record")?.to_owned();
    Some(Attempt { record, number: text("vango-edge-idempotency-attempt")?.parse().ok()? })
}

/// `POST /webhooks/stripe` with an event as JSON; its `id` is the key.
pub async fn stripe(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let fault = Fault::of(&headers, app.switches.debug);
    let event = match serde_json::from_slice::<Event>(&body) {
        Ok(event) if is_key(&event.id) => event,
        _ => return problem(StatusCode::BAD_REQUEST, "expected a JSON event with an id"),
    };
    fault.before().await;
    let allocation = app.identity.allocation().to_owned();
    let received = app.store.write(move |db| db.receive(&event.id, &allocation)).await;
    fault.after().await;
    match received {
        Ok(first) => {
            ([NO_STORE], Json(json!({ "received": true, "first": first }))).into_response()
        }
        Err(err) => failed(&err),
    }
}

async fn read_text(headers: &HeaderMap, request: Request) -> Result<String, Response> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"));
    let read = if is_json {
        Json::<Save>::from_request(request, &()).await.map_err(IntoResponse::into_response)?.0
    } else {
        Form::<Save>::from_request(request, &()).await.map_err(IntoResponse::into_response)?.0
    };
    let text = read.text.trim();
    if text.is_empty() || text.chars().count() > MAX_TEXT {
        return Err(problem(StatusCode::BAD_REQUEST, "text has to be 1 to 2000 characters long"));
    }
    Ok(text.to_owned())
}

/// The key of `Idempotency-Key`, quoted (a structured-field string, as in
/// draft-ietf-httpapi-idempotency-key-header) or bare.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("more than one Idempotency-Key");
    }
    let wrong = "an Idempotency-Key is 1 to 255 printable ASCII characters";
    let text = value.to_str().map_err(|_| wrong)?.trim();
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if is_key(key) { Ok(Some(key.to_owned())) } else { Err(wrong) }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\')
}

fn failed(err: &StoreError) -> Response {
    eprintln!("studylab: {err}");
    problem(StatusCode::SERVICE_UNAVAILABLE, &err.to_string())
}

/// An error for programs (RFC 9457).
pub fn problem(status: StatusCode, detail: &str) -> Response {
    let body =
        json!({ "status": status.as_u16(), "title": status.canonical_reason(), "detail": detail });
    let kind = (header::CONTENT_TYPE, "application/problem+json");
    (status, [NO_STORE, kind], body.to_string()).into_response()
}

/// What a test asks for in the header `Studylab-Fault`, with `STUDYLAB_DEBUG=1` only: to die before
/// or after the transaction, or to answer late. These are the outcomes that a caller cannot know.
enum Fault {
    None,
    ExitBefore,
    ExitAfter,
    Slow(std::time::Duration),
}

impl Fault {
    fn of(headers: &HeaderMap, debug: bool) -> Self {
        let asked = headers.get("studylab-fault").filter(|_| debug);
        match asked.and_then(|value| value.to_str().ok()) {
            Some("exit-before") => Self::ExitBefore,
            Some("exit-after") => Self::ExitAfter,
            Some(other) => other
                .strip_prefix("slow:")
                .and_then(parse_duration)
                .map_or(Self::None, |time| Self::Slow(time.min(crate::debug::MAX_SLOW))),
            None => Self::None,
        }
    }

    async fn before(&self) {
        if matches!(self, Self::ExitBefore) {
            std::process::exit(70);
        }
    }

    async fn after(&self) {
        match self {
            Self::ExitAfter => std::process::exit(70),
            Self::Slow(time) => sleep(*time).await,
            Self::None | Self::ExitBefore => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("idempotency-key", HeaderValue::from_str(value).unwrap());
        }
        idempotency_key(&headers)
    }

    #[test]
    fn quoted_and_bare_keys_are_one() {
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&["abc"]), Ok(Some("abc".into())));
        assert_eq!(key(&["\"abc\""]), Ok(Some("abc".into())));
    }

    #[test]
    fn hostile_keys_are_refused() {
        let long = "k".repeat(256);
        for wrong in ["", "\"", "\"\"", "a\"b", "a\\b", "é", long.as_str()] {
            assert!(key(&[wrong]).is_err(), "{wrong:?}");
        }
        assert!(key(&["a", "a"]).is_err());
    }
}
