//! The app's side of an upgrade: connect, send the head, and see what the app says. The socket is the
//! app's only once it answers 101; any other answer is passed on as it is.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::net::TcpStream;

use crate::lifecycle::retry::UpstreamFailure;
use crate::proxy::app::{self, Leg};
use crate::proxy::response::{self, Pieces};
use crate::snapshot::AllocationView;

/// Hop-by-hop fields (RFC 9110 §7.6.1): each side makes its own.
const HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What became of asking.
pub enum Asked {
    /// No connection; nothing was sent.
    Refused,
    /// It was sent, and no answer came.
    Failed(UpstreamFailure),
    /// The app accepts: the answer's head, the connection, and what came after the head.
    Accepted(HeaderMap, TcpStream, Vec<u8>),
    /// The app answers something else.
    Answered(Response<Incoming>),
}

/// The head of the upgrade as the app is to get it: `head` is what it gets of any request, and the
/// upgrade is made anew.
pub fn request(head: &RequestHeader) -> Result<Request<Empty<Bytes>>, http::Error> {
    let target = String::from_utf8_lossy(head.raw_path()).into_owned();
    let mut request = Request::get(target);
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &head.headers {
            headers.append(name.clone(), value.clone());
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    request.body(Empty::new())
}

/// Asks `target` to take the socket.
pub async fn ask(
    request: Request<Empty<Bytes>>,
    target: &AllocationView,
    connect_within: Duration,
    answer_within: Duration,
) -> Asked {
    let Some(address) = target.address else { return Asked::Refused };
    let connected = tokio::time::timeout(connect_within, TcpStream::connect(address)).await;
    let Ok(Ok(stream)) = connected else { return Asked::Refused };
    // Small frames must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(answer_within, exchange(request, stream)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(_)) => Asked::Failed(UpstreamFailure::Closed),
        Err(_) => Asked::Failed(UpstreamFailure::Silent),
    }
}

async fn exchange(request: Request<Empty<Bytes>>, stream: TcpStream) -> hyper::Result<Asked> {
    let (mut send, connection) = app::http()
        .title_case_headers(true)
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(Leg::new(stream)))
        .await?;
    // Ends with the connection, which is either upgraded, or closed when its answer is dropped.
    tokio::spawn(connection.with_upgrades());
    let answer = send.send_request(request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Asked::Answered(answer));
    }
    let headers = answer.headers().clone();
    let upgraded = hyper::upgrade::on(answer).await?;
    match upgraded.downcast::<TokioIo<Leg>>() {
        Ok(parts) => {
            let tcp = parts.io.into_inner().into_inner();
            Ok(Asked::Accepted(headers, tcp, parts.read_buf.to_vec()))
        }
        // It is what was put in.
        Err(_) => Ok(Asked::Failed(UpstreamFailure::Closed)),
    }
}

/// Passes on an answer that is no 101, with what `mark` adds. `answer_within` bounds each read of it.
///
/// # Errors
/// Those of [`response::stream`].
pub async fn relay(
    session: &mut Session,
    answer: Response<Incoming>,
    mark: impl FnOnce(&mut ResponseHeader) -> pingora::Result<()>,
    answer_within: Duration,
) -> pingora::Result<()> {
    let (parts, body) = answer.into_parts();
    let mut head = response::copied(parts.status, &parts.headers)?;
    mark(&mut head)?;
    session.set_keepalive(None);
    let body = Body { body, within: answer_within };
    response::stream(session, head, Bytes::new(), body, &mut response::Nothing).await
}

/// The body of an answer that is no 101.
struct Body {
    body: Incoming,
    within: Duration,
}

impl Pieces for Body {
    async fn next(&mut self) -> Option<Result<Bytes, UpstreamFailure>> {
        loop {
            match tokio::time::timeout(self.within, self.body.frame()).await {
                Err(_) => return Some(Err(UpstreamFailure::Silent)),
                Ok(None) => return None,
                Ok(Some(Err(_))) => return Some(Err(UpstreamFailure::Closed)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Some(Ok(bytes));
                    }
                }
            }
        }
    }
}

/// The 101 for the client: what the app answered, and the edge's own.
pub fn accepted(headers: &HeaderMap, ours: &[(HeaderName, HeaderValue)]) -> Vec<u8> {
    let mut head =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            .to_vec();
    let theirs = headers.iter().filter(|(n, _)| !HOP.contains(&n.as_str()));
    for (name, value) in theirs.chain(ours.iter().map(|(n, v)| (n, v))) {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}
