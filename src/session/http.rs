//! `state.store = { kind = "http", … }`: a GET to the app's own runtime service, in the allocation
//! that is to take the session. 2xx: the session is there; 404 or 410: it is not; anything else is
//! no answer. No other request reaches that path: [`crate::contract::Contract::route`] takes it off
//! the routes.

use async_trait::async_trait;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::contract::SessionStore;

use super::durable::{Ask, DurableStore, StoreFailure};

/// Asks the app's runtime service.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpStore;

fn away(e: impl std::fmt::Display) -> StoreFailure {
    StoreFailure::Away(format!("runtime service: {e}"))
}

#[async_trait]
impl DurableStore for HttpStore {
    async fn has(&self, ask: &Ask<'_>) -> Result<bool, StoreFailure> {
        let Some(SessionStore::Http { path }) =
            ask.view.contract.state.as_ref().and_then(|s| s.store.as_ref())
        else {
            return Err(StoreFailure::Configured("the contract names no runtime service".into()));
        };
        let address = ask.target.address.ok_or_else(|| away("the allocation has no address"))?;
        let stream = TcpStream::connect(address).await.map_err(away)?;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(away)?;
        let host = ask.view.hosts.first().map_or("localhost", |h| h.as_str());
        // A session id has only characters that a path may have.
        let mut request = Request::get(path.of(ask.id.expose()))
            .header(header::HOST, host)
            .header(header::ACCEPT, "*/*");
        for (name, value) in &ask.target.headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(away)?;
        let answered = send.send_request(request);
        tokio::pin!(answered);
        // The connection is driven here and dropped with the answer's head: its body is of no use. One
        // that has ended may have brought the answer before: that is there then, or never.
        let answer = tokio::select! {
            answer = &mut answered => answer,
            _ = connection => answered.await,
        };
        let answer = answer.map_err(away)?;
        match answer.status() {
            s if s.is_success() => Ok(true),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(false),
            other => Err(away(format!("status {other}"))),
        }
    }
}
