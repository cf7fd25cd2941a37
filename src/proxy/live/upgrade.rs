//! From a placement to an accepted socket: older sockets of the same tab end first, the socket waits
//! for its turn, and the app is asked. The socket is the app's only once it answers 101; any other answer is
//! passed on as it is.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pingora::http::RequestHeader;
use tokio::net::TcpStream;

use crate::app::{self, Leg};
use crate::contract::{Live as LiveRoute, LivePolicy, RouteClass, SessionSource, SocketEnd};
use crate::id::RequestId;
use crate::lifecycle::affinity::{Given, SessionId};
use crate::lifecycle::fields;
use crate::lifecycle::journey::{Event, Go, Journey};
use crate::lifecycle::trace::UpstreamFailure;
use crate::proxy::downstream::Downstream;
use crate::proxy::gate::{Gate, ProxyLimits};
use crate::proxy::head;
use crate::record::SessionRoute;
use crate::snapshot::AllocationView;
use crate::sockets::frames::Protocol;

use super::carry::Accepted;

/// What one upgrade is asked for with.
pub(super) struct Upgrade<'a> {
    pub(super) gate: &'a Gate,
    /// The client's request.
    pub(super) head: &'a RequestHeader,
    pub(super) limits: ProxyLimits,
}

impl Upgrade<'_> {
    /// Asks the allocation that it was placed on: older sockets of the same tab end first, and the socket
    /// waits for its turn.
    ///
    /// # Errors
    /// Where the request goes instead.
    pub(super) async fn ask(
        &self,
        downstream: &mut impl Downstream,
        journey: &mut Journey,
    ) -> Result<AppAnswer, Go> {
        let gate = self.gate;
        let Some(target) = journey.placement().map(|p| Arc::clone(&p.allocation)) else {
            return Err(gate.report(journey, Event::Failed(UpstreamFailure::Closed)));
        };
        let pick = gate.entropy.next_u64();
        if gate.sockets.open() >= self.limits.sockets {
            return Err(gate.report(journey, Event::NotAdmitted { pick }));
        }
        if let Some(tab) = journey.session().filter(|s| s.is_one_tabs()).map(|s| s.name()) {
            let environment = journey.view().environment.clone();
            gate.sockets.replace(&environment, tab).await;
        }
        let left = journey.deadline().since(gate.clock.now());
        let admitted = tokio::select! {
            biased;
            () = downstream.left(false) => return Err(gate.report(journey, Event::Left)),
            admitted = gate.upgrades.admit(&target.id, left, pick) => admitted,
        };
        let Ok(admitted) = admitted else {
            return Err(gate.report(journey, Event::NotAdmitted { pick }));
        };
        let mut head = self.head.clone();
        head::for_app(&mut head, journey, &target, gate.clock.now());
        // Every part of it was a part of a request before.
        let Ok(request) = request(&head) else {
            return Err(gate.report(journey, Event::Failed(UpstreamFailure::Closed)));
        };
        let asked = tokio::select! {
            biased;
            () = downstream.left(false) => return Err(gate.report(journey, Event::Left)),
            asked = ask(request, &target, self.limits.of_route(journey)) => asked,
        };
        drop(admitted);
        let answer = match asked {
            Ok(answer) => answer,
            Err(Unanswered::Refused) => return Err(gate.connect_failed(journey)),
            Err(Unanswered::Failed(failure)) => {
                gate.report(journey, Event::Connected);
                return Err(gate.report(journey, Event::Failed(failure)));
            }
        };
        gate.report(journey, Event::Connected);
        let status = match &answer {
            AppAnswer::Accepted(..) => 101,
            AppAnswer::Other(response) => response.status().as_u16(),
        };
        match gate.report(journey, Event::Answered { status }) {
            Go::PassOn => Ok(answer),
            go => Err(go),
        }
    }

    /// Takes an accepted socket in, and notes where it is.
    pub(super) fn socket(
        &self,
        journey: &Journey,
        app: TcpStream,
        from_app: Vec<u8>,
    ) -> Option<Accepted<TcpStream>> {
        let target = &journey.placement()?.allocation;
        let (view, gate) = (journey.view(), self.gate);
        let session = journey.session();
        // Of a route with `wakes = false` the upgrade wakes nothing; what an open socket means is the
        // contract's `sleep.live` for every route.
        let counts = !journey.facts().agent_has(&view.contract.wake.ignore_agents);
        let route = SessionRoute {
            allocation: target.id.clone(),
            generation: target.generation,
            digest: target.digest,
            schema: view.schema,
            at: gate.clock.wall(),
        };
        if let Some(id) = session {
            gate.sessions.routes.note(&view.environment, id.name(), route.clone());
        }
        let tab = session.filter(|s| s.is_one_tabs()).map(|s| s.name());
        let (hello, cut) = (waits_for_hello(journey), is_cut(journey));
        Some(Accepted {
            app,
            from_app,
            from_client: Vec::new(),
            seat: gate.sockets.seat(&view.environment, &target.id, tab, cut),
            pin: target.load.pin(),
            counters: Arc::clone(&view.counters),
            protocol: if hello { Protocol::Vango } else { Protocol::Unknown },
            touches: counts && view.contract.sleep.live == LivePolicy::Traffic,
            keeps_awake: counts,
            may_wake: journey.may_wake(),
            cut,
            route,
            idle: self.limits.socket_idle,
        })
    }

    /// The edge's own fields of a 101: the request's id, and the token if one is due.
    pub(super) fn fields(&self, journey: &Journey) -> Vec<(HeaderName, HeaderValue)> {
        let given = Given::Socket(journey.session().map(SessionId::name));
        let cookie = self.gate.affinity_cookie(journey, given);
        let token = cookie.map(|cookie| (header::SET_COOKIE, cookie));
        [request_id(journey.facts().id)].into_iter().chain(token).collect()
    }
}

/// The request's id as a field of an answer.
pub(super) fn request_id(id: RequestId) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static("x-request-id"), id.header_value())
}

/// The live route that a request takes.
fn route(journey: &Journey) -> Option<&LiveRoute> {
    match &journey.route()?.class {
        RouteClass::Live(live) => Some(live),
        _ => None,
    }
}

/// Whether a request's route wants its first frame looked at.
pub(super) fn waits_for_hello(journey: &Journey) -> bool {
    route(journey).is_some_and(|live| live.session.contains(&SessionSource::VangoHello))
}

/// Whether its sockets end without a close frame of the edge's own.
pub(super) fn is_cut(journey: &Journey) -> bool {
    route(journey).is_some_and(|live| live.end == SocketEnd::Cut)
}

/// Why the app gave no answer.
enum Unanswered {
    /// No connection; nothing was sent.
    Refused,
    /// It was sent, and no answer came.
    Failed(UpstreamFailure),
}

/// What the app answered.
pub(super) enum AppAnswer {
    /// 101: the head's fields, the connection, and what came after the head.
    Accepted(HeaderMap, TcpStream, Vec<u8>),
    /// Anything else.
    Other(Response<Incoming>),
}

/// The head of the upgrade as the app is to get it: `head` is what it gets of any request, and the
/// upgrade is made anew.
fn request(head: &RequestHeader) -> Result<Request<Empty<Bytes>>, http::Error> {
    let target = String::from_utf8_lossy(head.raw_path()).into_owned();
    let mut request = Request::get(target).body(Empty::new())?;
    let mut headers = head.headers.clone();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    *request.headers_mut() = headers;
    Ok(request)
}

/// Asks `target` to take the socket.
async fn ask(
    request: Request<Empty<Bytes>>,
    target: &AllocationView,
    limits: ProxyLimits,
) -> Result<AppAnswer, Unanswered> {
    let Some(address) = target.address else { return Err(Unanswered::Refused) };
    let connected = tokio::time::timeout(limits.connect_timeout, TcpStream::connect(address)).await;
    let Ok(Ok(stream)) = connected else { return Err(Unanswered::Refused) };
    // Small frames must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(limits.response_timeout, exchange(request, stream)).await {
        Ok(answer) => answer.ok_or(Unanswered::Failed(UpstreamFailure::Closed)),
        Err(_) => Err(Unanswered::Failed(UpstreamFailure::Silent)),
    }
}

/// What the app answers, none where its connection ends before that.
async fn exchange(request: Request<Empty<Bytes>>, stream: TcpStream) -> Option<AppAnswer> {
    let mut http = app::http();
    http.title_case_headers(true).max_buf_size(64 * 1024);
    let (mut send, connection) = http.handshake(TokioIo::new(Leg::new(stream))).await.ok()?;
    // Ends with the connection, which is either upgraded, or closed when its answer is dropped.
    tokio::spawn(connection.with_upgrades());
    let answer = send.send_request(request).await.ok()?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Some(AppAnswer::Other(answer));
    }
    let headers = answer.headers().clone();
    let upgraded = hyper::upgrade::on(answer).await.ok()?;
    // It is what was put in.
    let parts = upgraded.downcast::<TokioIo<Leg>>().ok()?;
    let tcp = parts.io.into_inner().into_inner();
    Some(AppAnswer::Accepted(headers, tcp, parts.read_buf.to_vec()))
}

/// The 101 for the client: what the app answered, and the edge's own.
pub(super) fn accepted(headers: &HeaderMap, ours: &[(HeaderName, HeaderValue)]) -> Vec<u8> {
    let mut head =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            .to_vec();
    let mut theirs = headers.clone();
    fields::strip_hop_by_hop(&mut theirs);
    for (name, value) in theirs.iter().chain(ours.iter().map(|(n, v)| (n, v))) {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_app_s_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "upgrade, X-Hop"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("sec-websocket-accept", "a"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let ours = [(header::SET_COOKIE, HeaderValue::from_static("b=1"))];
        let head = String::from_utf8(accepted(&headers, &ours)).unwrap();
        let fields: Vec<_> = head.trim_end().lines().skip(1).collect();
        let kept = ["Connection: Upgrade", "Upgrade: websocket", "sec-websocket-accept: a"];
        assert_eq!(fields, [&kept[..], &["set-cookie: b=1"]].concat());
    }
}
