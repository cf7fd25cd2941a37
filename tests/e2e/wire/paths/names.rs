//! The name that a connection was opened for, and the hosts that requests on it name (RFC 9110 §7.4,
//! §15.5.20).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::http2::peer::{END_HEADERS, END_STREAM, End, HEADERS, Peer, fields, frame};
use crate::support::{Artifact, Edge, PATIENCE};
use crate::tls::{client_config, edge_with};

/// The answer's head to one request over HTTP/1.1 on a connection opened for `name`.
fn ask(edge: &Edge, config: &Arc<ClientConfig>, name: &str, host: &str) -> String {
    let socket = TcpStream::connect(edge.tls.unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    let request = format!("GET /debug/echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A close without close_notify is how most servers end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_host_that_the_connections_certificate_does_not_cover_is_misdirected() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let one = client_config(&dir, "one", &[b"http/1.1"]);
    let wild = client_config(&dir, "wild", &[b"http/1.1"]);
    for (config, name, host, status) in [
        (&one, "studylab.localhost", "studylab.localhost", 200),
        (&one, "studylab.localhost", "STUDYLAB.localhost.:443", 200),
        // Another name of the same certificate: browsers share a connection for both.
        (&one, "one.test", "studylab.localhost", 200),
        (&one, "studylab.localhost", "one.test", 404),
        (&wild, "a.wild.test", "b.wild.test", 404),
        // Another certificate's.
        (&wild, "a.wild.test", "studylab.localhost", 421),
        (&wild, "a.wild.test", "a.b.wild.test", 421),
        (&one, "studylab.localhost", "a.wild.test", 421),
        (&one, "studylab.localhost", "evil.test", 421),
    ] {
        let answer = ask(&edge, config, name, host);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}, {host}: {answer}");
        assert_eq!(answer.contains("problems/misdirected-request"), status == 421, "{answer}");
    }
    // What named nothing was promised nothing: one that knows only the address is served.
    assert!(
        ask(&edge, &without_names(&one), "studylab.localhost", "studylab.localhost")
            .starts_with("HTTP/1.1 200")
    );
}

#[test]
fn a_trusted_proxy_has_one_name_for_many_hosts() {
    let (edge, dir) = edge_with("");
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    let wild = client_config(&dir, "wild", &[b"http/1.1"]);
    assert!(ask(&edge, &wild, "a.wild.test", "studylab.localhost").starts_with("HTTP/1.1 200"));
}

fn without_names(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(config);
    config.enable_sni = false;
    Arc::new(config)
}

#[test]
fn the_same_over_http2() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let mut peer = Peer::open(&edge, &client_config(&dir, "one", &[b"h2"]));
    let mut of = |stream, host: &str| {
        let head = fields(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", host),
            (":path", "/debug/echo"),
        ]);
        peer.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, head));
        peer.end_of(stream)
    };
    assert_eq!(of(1, "studylab.localhost"), End::Answered(200));
    // HPACK has no index for 421.
    assert_eq!(of(3, "a.wild.test"), End::Answered(0));
    assert_eq!(of(5, "one.test"), End::Answered(404));
    assert_eq!(of(7, "studylab.localhost"), End::Answered(200), "the connection goes on");
}
