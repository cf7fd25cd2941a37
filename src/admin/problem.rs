//! Errors of the admin API: always `application/problem+json` (RFC 9457), also where axum itself
//! refuses a request before a handler sees it.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::types::ProblemBody;

/// Longest reason of axum's own that is passed on.
const DETAIL: usize = 4096;

const PROBLEM_JSON: &str = "application/problem+json";

/// An error of the admin API.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    /// `detail` says what was wrong and what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
    /// 400
    pub fn bad(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail.to_string())
    }
    /// 404
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }
    /// 503
    pub fn unavailable(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail.to_string())
    }
    /// 401
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            status: self.status.as_u16(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: self.detail,
        };
        let headers = [(header::CONTENT_TYPE, PROBLEM_JSON), (header::CACHE_CONTROL, "no-store")];
        // RFC 9110 §15.5.2: a 401 has a challenge.
        let challenge = (self.status == StatusCode::UNAUTHORIZED)
            .then_some([(header::WWW_AUTHENTICATE, "Bearer realm=\"vango-edge\"")]);
        (self.status, challenge, headers, Json(body)).into_response()
    }
}

/// Gives every error under `/v1` that is not a problem yet the form of one, with its own text as
/// the detail: a body that is not JSON, a query that cannot be read, a method that is not taken.
pub async fn in_one_form(request: Request, next: Next) -> Response {
    let api = request.uri().path().starts_with("/v1");
    let method = request.method().clone();
    let response = next.run(request).await;
    let status = response.status();
    let error = status.is_client_error() || status.is_server_error();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !api || !error || kind.is_some_and(|k| k == PROBLEM_JSON) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, DETAIL).await.unwrap_or_default();
    let mut detail = String::from_utf8_lossy(&text).trim().to_owned();
    if detail.is_empty() && status == StatusCode::METHOD_NOT_ALLOWED {
        detail =
            format!("this resource does not take {method}; the header Allow says what it does");
    }
    let mut response = Problem::new(status, detail).into_response();
    let written_anew: [HeaderName; 2] = [header::CONTENT_TYPE, header::CONTENT_LENGTH];
    for (name, value) in &parts.headers {
        if !written_anew.contains(name) {
            response.headers_mut().insert(name.clone(), value.clone());
        }
    }
    response
}
