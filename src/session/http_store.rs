//! `state.store = { kind = "http", … }`: a GET to the app's own runtime service, in the allocation
//! that is to take the session. 2xx: the session is there; 404 or 410: it is not; anything else is
//! no answer. No other request reaches that path: [`crate::contract::Contract::route`] takes it off
//! the routes.

use async_trait::async_trait;
use http::{Request, StatusCode, header};
use http_body_util::Empty;

use crate::app;
use crate::contract::SessionStore;

use super::stores::{DurableStore, Question, StoreFailure};

/// Asks the app's runtime service.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpStore;

fn away(e: impl std::fmt::Display) -> StoreFailure {
    StoreFailure::Away(format!("runtime service: {e}"))
}

#[async_trait]
impl DurableStore for HttpStore {
    async fn has(&self, question: &Question<'_>) -> Result<bool, StoreFailure> {
        let Some(SessionStore::Http { path }) =
            question.view.contract.state.as_ref().and_then(|s| s.store.as_ref())
        else {
            return Err(StoreFailure::Configured("the contract names no runtime service".into()));
        };
        let address =
            question.target.address.ok_or_else(|| away("the allocation has no address"))?;
        let host = question.view.hosts.first().map_or("localhost", |h| h.as_str());
        // A session id has only characters that a path may have.
        let mut request = Request::get(path.of(question.id.expose()))
            .header(header::HOST, host)
            .header(header::ACCEPT, "*/*");
        for (name, value) in &question.target.headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::new()).map_err(away)?;
        let protocol = question.target.contract.process.protocol;
        match app::ask(address, protocol, request).await.map_err(away)?.status {
            s if s.is_success() => Ok(true),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(false),
            other => Err(away(format!("status {other}"))),
        }
    }
}
