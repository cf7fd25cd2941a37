//! HTTPS: certificates by name, swapped while the edge runs, HTTP/2, and what the app is told.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::limits::proxied;
use crate::support::{Artifact, Edge, PATIENCE, eventually, over_tls, trusting};
use crate::webhook;

/// Makes `DIR/NAME/{cert,key,ca}.pem` for these host names.
pub fn certificate(dir: &Path, name: &str, hosts: &[&str]) {
    let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/dev-cert"))
        .arg(dir.join(name))
        .args(hosts)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An edge with TLS and a certificate for each of `one.test` and `*.wild.test`.
pub fn edge_with(more: &str) -> (Edge, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "one", &["studylab.localhost", "one.test"]);
    certificate(dir.path(), "wild", &["*.wild.test"]);
    let pair = |name: &str| {
        let dir = dir.path().join(name).display().to_string();
        format!("{{ cert = \"{dir}/cert.pem\", key = \"{dir}/key.pem\" }}")
    };
    let (one, wild) = (pair("one"), pair("wild"));
    let edge = Edge::start_with(&format!(
        "[[server.tls]]\nlisten = \"127.0.0.1:0\"\ncertificates = [{one}, {wild}]\n{more}"
    ));
    (edge, dir)
}

pub fn client_config(dir: &TempDir, trusted: &str, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    trusting(&dir.path().join(trusted).join("ca.pem"), alpn)
}

/// One request over TLS; what the server said, or why there was no handshake.
pub fn ask(
    to: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
    before: &[u8],
    request: &str,
) -> std::io::Result<String> {
    over_tls(to, config, name, before, request).map(|(_, said)| said)
}

const ECHO: &str =
    "GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: close\r\n\r\n";

fn seen(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(&answer[answer.find("\r\n\r\n").unwrap() + 4..]).unwrap()
}

fn header<'a>(seen: &'a Value, name: &str) -> &'a str {
    let all = seen["headers"].as_array().unwrap();
    all.iter().find(|h| h[0] == name).unwrap()[1].as_str().unwrap()
}

#[test]
fn a_certificate_answers_for_its_names_and_the_app_is_told() {
    let (edge, dir) = edge_with("hsts = \"180d\"\n");
    edge.deploy(&Artifact::new());
    let to = edge.tls.unwrap();
    let one = client_config(&dir, "one", &[b"http/1.1"]);
    let wild = client_config(&dir, "wild", &[b"http/1.1"]);
    let answer = ask(to, &one, "studylab.localhost", b"", ECHO).unwrap();
    assert!(answer.to_ascii_lowercase().contains("strict-transport-security: max-age=15552000"));
    let told = seen(&answer);
    assert_eq!(header(&told, "x-forwarded-proto"), "https");
    assert_eq!(header(&told, "x-forwarded-for"), "127.0.0.1");
    assert!(ask(to, &one, "one.test", b"", ECHO).is_ok());
    assert!(ask(to, &wild, "a.wild.test", b"", ECHO).is_ok());
    // Signed by another, for another: each of these is a certificate that is not the name's.
    assert!(ask(to, &one, "a.wild.test", b"", ECHO).is_err());
    assert!(ask(to, &wild, "a.b.wild.test", b"", ECHO).is_err());
    assert!(ask(to, &wild, "one.test", b"", ECHO).is_err());
    // Plain HTTP on a port for HTTPS is no HTTP, and no handshake either.
    let mut plain = crate::support::Connection::open(to);
    plain.send(ECHO);
    eventually("it is closed", || edge.metric("vango_edge_cutoffs_total{limit=\"handshake\"}") > 0);
    // A client over plain HTTP is told the truth too, and sees no HSTS.
    let answer = edge.get("/debug/echo");
    assert_eq!(header(&answer.json(), "x-forwarded-proto"), "http");
    assert_eq!(answer.header("strict-transport-security"), None);
}

#[test]
fn certificates_are_read_again_and_bad_ones_change_nothing() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    let to = edge.tls.unwrap();
    let old = client_config(&dir, "one", &[b"http/1.1"]);
    assert!(ask(to, &old, "studylab.localhost", b"", ECHO).is_ok());
    certificate(dir.path(), "one", &["studylab.localhost"]);
    let new = client_config(&dir, "one", &[b"http/1.1"]);
    assert!(ask(to, &new, "studylab.localhost", b"", ECHO).is_err(), "not before it is asked for");
    let said = edge.json(&["reload"]);
    assert_eq!(said["last_attempt"]["changed"], json!(["server.tls"]));
    assert!(ask(to, &new, "studylab.localhost", b"", ECHO).is_ok());
    assert!(ask(to, &old, "studylab.localhost", b"", ECHO).is_err());

    // A key of another certificate is refused, by name and without a word of the key.
    let key = dir.path().join("one/key.pem");
    std::fs::copy(dir.path().join("wild/key.pem"), &key).unwrap();
    let refused = edge.command(&["reload"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(why.contains("is not the key of") && why.contains("server.tls[0]"), "{why}");
    assert!(!why.contains("PRIVATE"), "{why}");
    assert!(ask(to, &new, "studylab.localhost", b"", ECHO).is_ok(), "what ran goes on");
}

#[test]
fn plain_http_is_sent_on_except_for_webhooks_and_strangers() {
    let (edge, _dir) = edge_with("");
    edge.reconfigure("[server]\n", "[server]\nredirect_http = true\n");
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    let port = edge.tls.unwrap().port();
    for (method, path) in
        [("GET", "/dashboard?a=b"), ("POST", "/actions/save"), ("GET", "/assets/app.css")]
    {
        let answer = edge.ask(method, path, &[], "");
        assert_eq!((answer.status, answer.text()), (308, "https-required\n"));
        let there = format!("https://studylab.localhost:{port}{path}");
        assert_eq!(answer.header("location"), Some(there.as_str()));
        let explained = |scheme| {
            edge.json(&["explain", method, &format!("{scheme}://studylab.localhost{path}")])
        };
        assert_eq!(explained("http")["outcome"], "https-required", "{path}");
        assert_ne!(explained("https")["outcome"], "https-required", "{path}");
    }
    assert_eq!(edge.ops().len(), 0, "nothing is woken for it");
    webhook::secrets(&edge, &["whsec_a"]);
    let delivered = webhook::deliver(&edge, "whsec_a", webhook::seconds(), webhook::EVENT);
    assert_eq!((delivered.status, &delivered.json()["first"]), (200, &true.into()));
    edge.ask("GET", "/", &[("Host", "evil.test")], "").problem(404, "no-route");
}

#[test]
fn a_proxy_in_front_speaks_first_and_the_client_is_its_client() {
    let (edge, dir) = edge_with("");
    edge.reconfigure("[server]\n", "[server]\nproxy_protocol_from = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    let config = client_config(&dir, "one", &[b"http/1.1"]);
    let before = proxied([192, 0, 2, 9]);
    let answer = ask(edge.tls.unwrap(), &config, "studylab.localhost", &before, ECHO).unwrap();
    assert_eq!(header(&seen(&answer), "x-forwarded-for"), "192.0.2.9");
    assert!(ask(edge.tls.unwrap(), &config, "studylab.localhost", b"", ECHO).is_err());
}

pub type H2 = h2::client::SendRequest<bytes::Bytes>;

pub async fn h2_connection(
    edge: &Edge,
    dir: &TempDir,
) -> (H2, tokio::task::JoinHandle<Option<h2::Reason>>) {
    let connector = tokio_rustls::TlsConnector::from(client_config(dir, "one", &[b"h2"]));
    let socket = tokio::net::TcpStream::connect(edge.tls.unwrap()).await.unwrap();
    let name = ServerName::try_from("studylab.localhost").unwrap();
    let stream = connector.connect(name, socket).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(async move { connection.await.err().and_then(|e| e.reason()) });
    (send, ended)
}

pub fn request(method: &str, path: &str) -> http::Request<()> {
    let uri = format!("https://studylab.localhost{path}");
    http::Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn body(mut body: h2::RecvStream) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        out.extend_from_slice(&chunk);
    }
    out
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn http2_is_spoken_and_many_requests_share_a_connection() {
    let (edge, dir) = edge_with("");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    runtime().block_on(async {
        let (send, _ended) = h2_connection(&edge, &dir).await;
        let mut asked = Vec::new();
        for n in 0..20 {
            let mut send = send.clone().ready().await.unwrap();
            let (answer, mut stream) =
                send.send_request(request("POST", "/debug/echo"), false).unwrap();
            stream.send_data(format!("body {n}").into(), true).unwrap();
            asked.push((n, answer));
        }
        for (n, answer) in asked {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let seen: Value = serde_json::from_slice(&body(answer.into_body()).await).unwrap();
            assert_eq!(seen["body_start"], format!("body {n}"));
            assert_eq!(header(&seen, "x-forwarded-proto"), "https");
        }
    });
}

#[test]
fn a_rapid_reset_ends_its_connection_and_nobody_elses() {
    let (edge, dir) =
        edge_with("[limits.client]\nrate_grace = \"500ms\"\nmin_body_rate = \"1KiB\"\n");
    edge.deploy(&Artifact::new());
    runtime().block_on(async {
        let (send, ended) = h2_connection(&edge, &dir).await;
        let mut resets = 0;
        // CVE-2023-44487: a stream is opened and reset at once, without end.
        while let Ok(mut ready) = send.clone().ready().await {
            let Ok((answer, mut stream)) =
                ready.send_request(request("GET", "/debug/slow?ms=1000"), false)
            else {
                break;
            };
            stream.send_reset(h2::Reason::CANCEL);
            drop(answer);
            resets += 1;
            tokio::task::yield_now().await;
            assert!(resets < 20_000, "nothing ends it");
        }
        let reason = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
        println!("ended after {resets} resets: {reason:?}");
        // Another connection, at the same time and after.
        let (beside, _ended) = h2_connection(&edge, &dir).await;
        let (answer, _) = beside
            .ready()
            .await
            .unwrap()
            .send_request(request("GET", "/debug/echo"), true)
            .unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    });
    eventually("the app is free of them", || edge.ps().iter().all(|a| a["in_flight"] == 0));
}

#[test]
fn a_slow_body_over_http2_is_cut_off_and_a_held_one_is_not() {
    let (edge, dir) =
        edge_with("[limits.client]\nrate_grace = \"300ms\"\nmin_body_rate = \"1KiB\"\n");
    let gate = crate::support::Gate::closed();
    edge.deploy(&Artifact::behind(&gate));
    runtime().block_on(async {
        // Held with its body sent: nothing is waited for.
        let (send, _ended) = h2_connection(&edge, &dir).await;
        let mut action = request("POST", "/actions/save");
        action.headers_mut().insert("idempotency-key", "k-1".parse().unwrap());
        action
            .headers_mut()
            .insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        let (answer, mut stream) = send.ready().await.unwrap().send_request(action, false).unwrap();
        stream.send_data("text=tea".into(), true).unwrap();
        tokio::time::timeout(PATIENCE, async {
            while edge.held() != 1 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        // Three times the grace: had the hold counted, it would be cut off by now.
        assert!(edge.connect().is_silent(Duration::from_millis(900)));
        gate.open();
        assert_eq!(answer.await.unwrap().status(), 200);

        let (send, ended) = h2_connection(&edge, &dir).await;
        let (answer, mut stream) = send
            .ready()
            .await
            .unwrap()
            .send_request(request("POST", "/debug/echo"), false)
            .unwrap();
        stream.send_data("a".into(), false).unwrap();
        assert!(tokio::time::timeout(PATIENCE, answer).await.unwrap().is_err());
        tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    });
    assert_eq!(edge.metric("vango_edge_cutoffs_total{limit=\"body-rate\"}"), 1);
}
