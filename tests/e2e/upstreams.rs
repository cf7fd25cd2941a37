//! Apps that this edge does not run: forwarded to, looked at, never started.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use crate::support::{Edge, eventually};

/// A server of one answer, which can be told to say that it is ill, and to be gone.
struct Upstream {
    address: SocketAddr,
    health: Arc<AtomicU16>,
    served: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

impl Upstream {
    fn start() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            health: Arc::new(AtomicU16::new(200)),
            served: Arc::default(),
            gone: Arc::default(),
        };
        let (health, served) = (Arc::clone(&this.health), Arc::clone(&this.served));
        let gone = Arc::clone(&this.gone);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if gone.load(Ordering::Acquire) {
                    return;
                }
                let mut head = Vec::new();
                let mut chunk = [0; 4096];
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut chunk) {
                        Ok(n) if n > 0 => head.extend_from_slice(&chunk[..n]),
                        _ => break,
                    }
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let status = if text.starts_with("GET /health ") {
                    health.load(Ordering::Acquire)
                } else if head.is_empty() {
                    continue;
                } else {
                    served.fetch_add(1, Ordering::AcqRel);
                    200
                };
                let body = text.to_ascii_lowercase();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                // A close with something unread would reset the connection, answer included.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
            }
        });
        this
    }

    fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        // So that it looks.
        drop(std::net::TcpStream::connect(self.address));
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Acquire)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.leave();
    }
}

fn legacy(upstreams: &[&Upstream], health: &str) -> String {
    let all: Vec<_> = upstreams.iter().map(|u| format!("\"{}\"", u.address)).collect();
    format!(
        "app = \"legacy\"\nhosts = [\"legacy.localhost\"]\nupstreams = [{}]\n[health]\n\
         interval = \"100ms\"\n{health}\n[[route]]\npath = \"/actions/*\"\nclass = \"action\"\n\
         idempotency = \"app\"\n",
        all.join(", ")
    )
}

const HOST: (&str, &str) = ("Host", "legacy.localhost");
const HTTP: &str = "check = \"http\"\npath = \"/health\"";

#[test]
fn requests_are_forwarded_to_those_that_are_up() {
    let (a, b) = (Upstream::start(), Upstream::start());
    let edge = Edge::start_with_app("legacy", &legacy(&[&a, &b], HTTP));
    for _ in 0..40 {
        assert_eq!(edge.ask("GET", "/page", &[HOST], "").status, 200);
    }
    assert!(a.served() > 0 && b.served() > 0 && a.served() + b.served() == 40);
    let page = edge.ask("GET", "/page", &[HOST, ("Vango-Edge-Epoch", "9")], "");
    let seen = page.text();
    assert!(seen.contains("host: legacy.localhost") && seen.contains("vango-edge-allocation: al-"));
    assert!(!seen.contains("epoch: 9") && !seen.contains("vango-edge-artifact"));
    let trace = edge.trace(page.request_id());
    assert_eq!(
        (&trace["outcome"], &trace["environment"]),
        (&json!("hot"), &json!("legacy/production"))
    );

    a.health.store(500, Ordering::Release);
    let down = |edge: &Edge, address: SocketAddr| {
        edge.ps().iter().any(|r| r["address"] == address.to_string() && r["state"] == "down")
    };
    eventually("one is down", || down(&edge, a.address));
    let before = a.served();
    for _ in 0..40 {
        assert_eq!(edge.ask("GET", "/page", &[HOST], "").status, 200);
    }
    assert_eq!(a.served(), before);
    let metric = format!(
        "vango_edge_upstream_up{{environment=\"legacy/production\",upstream=\"{}\"}}",
        a.address
    );
    assert_eq!(edge.metric(&metric), 0);

    b.health.store(500, Ordering::Release);
    eventually("both are down", || edge.list(&["routes"]).iter().any(|r| r["state"] == "down"));
    edge.ask("GET", "/page", &[HOST], "").retryable("not-forwarded");
    let key = ("Idempotency-Key", "k");
    edge.ask("POST", "/actions/save", &[HOST, key], "x=1").retryable("not-forwarded");
    a.health.store(200, Ordering::Release);
    eventually("one is up again", || edge.ask("GET", "/page", &[HOST], "").status == 200);
    assert_eq!(edge.metric(&metric), 1);
}

#[test]
fn one_that_is_gone_at_the_start_gets_nothing_and_one_that_leaves_costs_no_request() {
    let (a, b) = (Upstream::start(), Upstream::start());
    let gone = a.address;
    a.leave();
    eventually("it is gone", || std::net::TcpStream::connect(gone).is_err());
    let edge = Edge::start_with_app("legacy", &legacy(&[&a, &b], ""));
    for _ in 0..10 {
        assert_eq!(edge.ask("GET", "/page", &[HOST], "").status, 200);
    }
    let trace = |status: &Value| status["steps"].to_string().contains("Connect refused");
    assert!(edge.list(&["traces", "--steps"]).iter().all(|t| !trace(t)), "it was known before");
    let a = Upstream::at(gone);
    eventually("it is up", || {
        edge.ask("GET", "/page", &[HOST], "").status == 200 && a.served() > 0
    });
    b.leave();
    eventually("it is gone", || std::net::TcpStream::connect(b.address).is_err());
    // Between its end and the next look a connection is refused, and the other is tried.
    for _ in 0..20 {
        let post = edge.ask("POST", "/actions/save", &[HOST, ("Idempotency-Key", "k")], "x=1");
        assert_eq!(post.status, 200);
    }
}

#[test]
fn it_is_neither_deployed_woken_nor_put_to_sleep() {
    let a = Upstream::start();
    let mut edge = Edge::start_with_app("legacy", &legacy(&[&a], ""));
    for verb in ["sleep", "wake"] {
        let said = edge.command(&[verb, "legacy"]);
        assert!(!said.status.success());
        assert!(String::from_utf8_lossy(&said.stderr).contains("does not run"));
    }
    let missing = edge.ask("POST", "/actions/save", &[HOST], "x=1");
    missing.problem(400, "idempotency-key-missing");
    assert_eq!(edge.ask("GET", "/page", &[HOST], "").status, 200);
    assert_eq!(edge.processes(), [] as [u32; 0]);
    // What is counted as evidence is written down at a stop; here there is no deployment to count for.
    assert!(edge.stop().success());
    assert!(!edge.log().contains("evidence"), "{}", edge.log());
}

/// A server that answers one request on each connection, those for `/open` once three are there, and ends
/// the connection when another one comes on it.
fn once_each() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let three = Arc::new(Barrier::new(3));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), three) = (stream, Arc::clone(&three)) else { return };
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut chunk = [0; 4096];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut chunk) {
                        Ok(n @ 1..) => head.extend_from_slice(&chunk[..n]),
                        _ => return,
                    }
                }
                if head.starts_with(b"GET /open ") {
                    three.wait();
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                let _ = stream.read(&mut chunk);
            });
        }
    });
    address
}

/// An app closes all connections that have been idle for as long as it keeps them, at about the same time.
#[test]
fn a_safe_request_is_not_lost_to_several_connections_that_the_app_is_closing() {
    let address = once_each();
    let edge = Edge::start_with_app(
        "legacy",
        &format!("app = \"legacy\"\nhosts = [\"legacy.localhost\"]\nupstreams = [\"{address}\"]\n"),
    );
    let mut open: Vec<_> = (0..3).map(|_| edge.connect()).collect();
    for connection in &mut open {
        connection.send_head("GET", "/open", &[HOST]);
    }
    for connection in &mut open {
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    for _ in 0..3 {
        assert_eq!(edge.ask("GET", "/page", &[HOST], "").status, 200);
    }
}
