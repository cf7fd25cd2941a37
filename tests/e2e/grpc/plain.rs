//! HTTP/2 from clients without TLS, where the operator lets plain listeners take it.

use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use vango_edge::clock::{Clock, SystemClock};

use crate::http2::peer::PREFACE;
use crate::support::{Artifact, Connection, Edge, Gate, eventually};

fn edge(server: &str) -> Edge {
    let mut edge = Edge::start_with("[limits.client]\nheader_timeout = \"1s\"\n");
    assert!(edge.stop().success());
    edge.reconfigure("[server]\n", &format!("[server]\n{server}\n"));
    edge.start_again();
    edge
}

/// One request over a plain connection of HTTP/2: the answer's head, its body, and its trailers.
fn ask(edge: &Edge, request: Request<()>) -> (Response<()>, Vec<u8>, HeaderMap) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(edge.listen).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        let (answer, _) = send.ready().await.unwrap().send_request(request, true).unwrap();
        let (head, mut body) = answer.await.unwrap().into_parts();
        let mut all = Vec::new();
        while let Some(piece) = body.data().await {
            let piece: Bytes = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            all.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        (Response::from_parts(head, ()), all, trailers)
    })
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://studylab.localhost{path}"))
}

#[test]
fn a_plain_listener_takes_http2_beside_http1_where_it_is_asked_to() {
    let edge = edge("h2c = true");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    let (answer, body, _) = ask(&edge, get("/debug/echo").body(()).unwrap());
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    let seen = String::from_utf8_lossy(&body).to_lowercase();
    assert!(seen.contains("x-forwarded-proto") && seen.contains("studylab.localhost"), "{seen}");
    // The shortest request that there is, and a method that begins as the preface does.
    let mut short = edge.connect();
    short.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(short.answer().unwrap().status, 400);
    assert_ne!(edge.ask("PROPFIND", "/debug/echo", &[], "").status, 408);
}

#[test]
fn without_a_word_of_the_operator_s_it_takes_none() {
    let edge = edge("");
    let mut connection = edge.connect();
    connection.send(PREFACE);
    let answer = connection.answer();
    assert!(answer.is_none_or(|a| a.status >= 400), "a request of HTTP/1.1 that is none");
}

#[test]
fn what_does_not_say_which_it_is_is_cut_off_in_time() {
    let edge = edge("h2c = true");
    for begin in ["", "P", "PRI *", "PRI * HTTP/2.0\r\n\r\nSM\r\n", "GET / HT"] {
        let mut connection = Connection::over(TcpStream::connect(edge.listen).unwrap());
        let (clock, before) = (SystemClock::new(), SystemClock::new().now());
        connection.send(begin);
        // Of HTTP/1.1 with an answer.
        let said = connection.rest();
        assert!(clock.now().since(before) >= Duration::from_millis(900), "{begin:?}: {said:?}");
    }
    // Silent ones are no reason for a stop to wait.
    let _silent = edge.connect();
    eventually("it is open", || edge.metric("vango_edge_client_connections") == 1);
}

#[test]
fn a_call_is_held_no_longer_than_its_client_waits() {
    let gate = Gate::closed();
    let edge = edge("h2c = true");
    edge.deploy(&Artifact::behind(&gate));
    // A client that goes on waiting all the same.
    let call = get("/dashboard").header("content-type", "application/grpc");
    let (answer, body, trailers) =
        ask(&edge, call.header("grpc-timeout", "400m").body(()).unwrap());
    let said = |name: &str| answer.headers().get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!((answer.status().as_u16(), said("grpc-status")), (200, "14".to_owned()));
    assert!(said("grpc-message").starts_with("wake-timeout: "), "{answer:?}");
    assert!(body.is_empty() && trailers.is_empty());
    assert_eq!(edge.held(), 0);
    gate.open();
}
