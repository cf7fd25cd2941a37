//! Writes the edge's own answers: the one place where their common headers are added, since
//! Pingora's `response_filter` does not run on them.

use bytes::Bytes;
use http::Method;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::id::RequestId;
use crate::lifecycle::facts::ErrorForm;
use crate::lifecycle::reply::Reply;

/// Name of this proxy in `Proxy-Status` (RFC 9209).
pub(super) const NAME: &str = "vango-edge";

/// Sends `reply`, `mark`ed with what depends on whose it is. A connection with an unread body is closed after it: its bytes would be read as
/// the next request.
///
/// # Errors
/// Pingora's, when the client is gone.
pub async fn write(
    session: &mut Session,
    reply: &Reply,
    form: ErrorForm,
    request: RequestId,
    body_unread: bool,
    mark: impl FnOnce(&mut ResponseHeader) -> pingora::Result<()>,
) -> pingora::Result<()> {
    let (content_type, body) = reply.body(form, request);
    let mut head = ResponseHeader::build(reply.status, Some(8))?;
    head.insert_header("content-type", content_type)?;
    head.insert_header("content-length", body.len())?;
    head.insert_header("x-request-id", request.to_string())?;
    for (name, value) in reply.headers(NAME) {
        head.insert_header(name, value)?;
    }
    mark(&mut head)?;
    if body_unread {
        session.set_keepalive(None);
    }
    let no_body = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), no_body).await?;
    if !no_body {
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}

/// Sends the client to `location`, with `cookie`.
///
/// # Errors
/// Pingora's, when the client is gone.
pub async fn welcome(
    session: &mut Session,
    location: &str,
    cookie: &str,
    request: RequestId,
    body_unread: bool,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(303, Some(8))?;
    head.insert_header("location", location)?;
    head.insert_header("set-cookie", cookie)?;
    head.insert_header("cache-control", "no-store")?;
    // No site is told the address that carried the token.
    head.insert_header("referrer-policy", "no-referrer")?;
    head.insert_header("content-length", "0")?;
    head.insert_header("x-request-id", request.to_string())?;
    if body_unread {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(head), true).await
}
