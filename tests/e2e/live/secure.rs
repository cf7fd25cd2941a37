//! Live sockets over TLS: the cookie that only TLS may set, and the protocol a socket needs.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Artifact, Edge, PATIENCE, eventually};
use crate::tls::{client_config, edge_with, h2_connection, request, runtime};

use super::browser::Browser;
use super::{Socket, UPGRADE, echo, open_over};

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(edge: &Edge, dir: &TempDir, alpn: &[&[u8]]) -> Tls {
    let socket = TcpStream::connect(edge.tls.unwrap()).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("studylab.localhost").unwrap();
    let connection = ClientConnection::new(client_config(dir, "one", alpn), name).unwrap();
    StreamOwned::new(connection, socket)
}

fn open(edge: &Edge, dir: &TempDir, path: &str, headers: &[(&str, &str)]) -> Socket<Tls> {
    let stream = connect(edge, dir, &[b"http/1.1"]);
    open_over(stream, &format!("wss://studylab.localhost{path}"), headers).expect("a 101")
}

#[test]
fn the_cookie_of_a_socket_over_tls_has_the_prefix_and_its_attributes() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let live = "/vango/live?sid=s-1";
    let mut socket = open(&edge, &dir, live, &[]);
    assert_eq!(socket.json()["verdict"], "fresh");
    let set = socket.set_cookie.clone().expect("a cookie");
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert!(pair.starts_with("__Host-vango_edge="), "{set}");
    // RFC 6265bis section 4.1.3.2: Secure, Path=/ and no Domain, or the browser drops it.
    let attributes: Vec<_> = attributes.split("; ").collect();
    for wanted in ["Secure", "Path=/", "HttpOnly", "SameSite=Lax"] {
        assert!(attributes.contains(&wanted), "{set}");
    }
    assert!(!attributes.iter().any(|a| a.starts_with("Domain")), "{set}");
    assert_eq!(socket.add(), 1);
    drop(socket);
    let hello = open(&edge, &dir, live, &[("Cookie", pair)]).json();
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("resume"), &json!(1)));

    // The prefix is what a neighbour's plain page cannot set: without it a value means nothing here,
    // and with it nothing over plain HTTP.
    let value = pair.split_once('=').unwrap().1;
    let unprefixed = format!("vango_edge={value}");
    let other = "/vango/live?sid=s-2";
    let hello = open(&edge, &dir, other, &[("Cookie", &unprefixed)]);
    assert!(hello.cookie.is_some_and(|c| c.starts_with("__Host-")));
    let (socket, _) = Socket::greeted(&edge, other, &[("Cookie", pair)]);
    assert!(socket.cookie.is_some_and(|c| c.starts_with("vango_edge=")));
}

#[test]
fn bytes_pass_over_tls_and_the_ends_are_the_same() {
    let (edge, dir) = edge_with("");
    edge.deploy(&echo("session = [\"query:sid\"]"));
    let mut stream = connect(&edge, &dir, &[b"http/1.1"]);
    let head = format!("GET /vango/live HTTP/1.1\r\nHost: studylab.localhost\r\n{UPGRADE}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    // The head of a frame of 1 MiB, and its payload in pieces across the records of TLS.
    let mut sent = vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 2, 3, 4];
    sent.extend((0..1u32 << 20).map(|n| (n % 251) as u8));
    for piece in sent.chunks(40_000) {
        stream.write_all(piece).unwrap();
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == piece);
    }
    assert_eq!(edge.ps()[0]["sockets"], 1);
    drop(stream);
    eventually("the leg of a client that is gone is closed", || edge.ps()[0]["sockets"] == 0);
    let socket = open(&edge, &dir, "/vango/live?sid=s-2", &[]);
    edge.json(&["sleep", "studylab"]);
    assert_eq!(socket.closed(), Some(1012));
}

#[test]
fn a_client_that_speaks_http2_opens_its_socket_over_http1() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    // A client that offers both for a page and HTTP/1.1 for a socket, as browsers do.
    let mut both = connect(&edge, &dir, &[b"h2", b"http/1.1"]);
    both.conn.complete_io(&mut both.sock).unwrap();
    assert_eq!(both.conn.alpn_protocol(), Some(&b"h2"[..]));
    let mut one = connect(&edge, &dir, &[b"http/1.1"]);
    one.conn.complete_io(&mut one.sock).unwrap();
    assert_eq!(one.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        let (answer, _) = send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request("GET", "/dashboard"), true)
            .unwrap();
        let page = answer.await.unwrap();
        assert_eq!(page.status(), 200);
        let cookie = page.headers()["set-cookie"].to_str().unwrap();
        assert!(
            page.headers().get_all("set-cookie").iter().any(|c| {
                let c = c.to_str().unwrap();
                c.starts_with("__Host-vango_edge=") && c.contains("; Secure")
            }),
            "{cookie}"
        );
        // RFC 8441: without the setting no client may try, and none does.
        assert!(!send.is_extended_connect_protocol_enabled());
    });
}

/// A page of its own in Chromium, over HTTP/2, whose socket comes over HTTP/1.1.
#[test]
fn a_browser_gets_its_page_over_http2_and_its_socket_all_the_same() {
    let (edge, _dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let url = format!("https://studylab.localhost:{}/dashboard", edge.tls.unwrap().port());
    // No authority that it knows signed the certificate.
    let mut browser = Browser::open_with(&url, &["--ignore-certificate-errors"]);
    browser.until("live", "connected");
    let protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.evaluate(protocol), "h2");
    assert_eq!(browser.evaluate("socket.url.split(':')[0]"), "wss");
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", "1");
    let cookies = browser.ask("Network.getCookies", json!({}));
    let cookies = cookies["cookies"].as_array().unwrap();
    let ours = cookies.iter().find(|c| c["name"] == "__Host-vango_edge").expect("it kept it");
    assert_eq!(
        (&ours["secure"], &ours["httpOnly"], &ours["sameSite"], &ours["path"]),
        (&json!(true), &json!(true), &json!("Lax"), &json!("/"))
    );
    browser.evaluate("socket.close()");
    browser.until("live-reconnects", "1");
    browser.until("live-verdict", "resume: original-allocation");
    browser.until("count", "1");
    let traces = edge.list(&["traces", "-n", "50"]);
    assert!(traces.iter().filter(|t| t["class"] == "live").all(|t| t["status"] == 101));
    assert_eq!(traces.iter().filter(|t| t["class"] == "live").count(), 2);
}
