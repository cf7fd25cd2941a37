//! One reading of a path for classes, sessions and assets; request lines and hosts that have none.

mod heads;
mod names;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::{Answer, Artifact, Edge, UPGRADE};
use crate::tls::{edge_with, h2_connection};

/// An app of the operator's own, which keeps each head that it gets as it came and answers 200, or 101 to
/// what asks for a socket.
pub struct Recorder {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self { address: listener.local_addr().unwrap(), heads: Arc::default() };
        let heads = Arc::clone(&this.heads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let heads = Arc::clone(&heads);
                std::thread::spawn(move || serve(stream.unwrap(), &heads));
            }
        });
        this
    }

    /// An edge before it, with every class of route, and HTTPS.
    fn edge(&self) -> (Edge, tempfile::TempDir) {
        let (mut edge, dir) = edge_with("");
        assert!(edge.stop().success());
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "whsec_a").unwrap();
        let app = format!(
            "app = \"rec\"\nhosts = [\"rec.localhost\"]\nupstreams = [\"{}\"]\n\
             secrets = {{ S = {{ file = {:?} }} }}\n{ROUTES}",
            self.address,
            secret.display().to_string()
        );
        std::fs::write(edge.apps().join("rec.toml"), app).unwrap();
        edge.start_again();
        (edge, dir)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().unwrap())
    }

    /// The target of the only request that came.
    #[track_caller]
    fn target(&self) -> String {
        let heads = self.take();
        assert_eq!(heads.len(), 1, "{heads:?}");
        heads[0].split(' ').nth(1).unwrap().to_owned()
    }
}

const ROUTES: &str = r#"
[[route]]
path = "/live"
class = "live"
[[route]]
path = "/actions/public/*"
class = "page"
[[route]]
path = "/actions/plain/*"
class = "action"
[[route]]
path = "/actions/edge/*"
class = "action"
idempotency = "edge"
principal = "header:X-User"
[[route]]
path = "/actions/head/*"
class = "action"
idempotency = "edge"
principal = "header:X-User"
fingerprint = "head"
[[route]]
path = "/actions/pay"
class = "action"
idempotency = "app"
[[route]]
path = "/Actions/Pay"
class = "page"
[[route]]
path = "/hooks/stripe"
class = "webhook"
provider = "stripe"
secret = "S"
"#;

fn serve(mut stream: TcpStream, heads: &Mutex<Vec<String>>) {
    let mut read = Vec::new();
    let mut chunk = [0; 64 * 1024];
    loop {
        let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else {
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => read.extend_from_slice(&chunk[..n]),
                _ => return,
            }
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end + 4]).into_owned();
        read.clear();
        let socket = head.to_ascii_lowercase().contains("upgrade: websocket");
        heads.lock().unwrap().push(head);
        let answer: &[u8] = if socket {
            b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        } else {
            b"HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        };
        let _ = stream.write_all(answer);
        if !socket {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
            return;
        }
    }
}

const HOST: (&str, &str) = ("Host", "rec.localhost");

/// Ways to write `/first/second` that some server takes for it, less those below `own`, which the edge
/// does too.
fn spellings(first: &str, second: &str, own: &str) -> Vec<String> {
    let upper = first.to_ascii_uppercase();
    let escaped = format!("%{:02x}{}", first.as_bytes()[0], &first[1..]);
    [
        format!("//{first}/{second}"),
        format!("/{first}//{second}"),
        format!("/{first}%2f{second}"),
        format!("/{first}%2F{second}"),
        format!("/{first}%252f{second}"),
        format!("/{first}%255c{second}"),
        format!("/{first}/{second};x"),
        format!("/{first};a=b/{second}"),
        format!("/{upper}/{second}"),
        format!("/%25{}/{second}", &escaped[1..]),
        format!("/x/..;/{first}/{second}"),
        format!("/x/..%2f{first}/{second}"),
        format!("/x%2f..%2f{first}/{second}"),
        format!("/x/%252e%252e/{first}/{second}"),
        format!("/{first}%c0%af{second}"),
        format!("/{first}%ef%bc%8f{second}"),
        format!("/index.php/{first}/{second}"),
    ]
    .into_iter()
    .filter(|path| !path.starts_with(own))
    .collect()
}

#[test]
fn another_spelling_of_a_guarded_path_is_refused_and_never_a_page() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    let guarded = [("actions", "pay"), ("hooks", "stripe"), ("actions", "plain/x")];
    for (first, second) in guarded {
        let mut all = spellings(first, second, "/actions/plain/");
        if !second.contains('/') {
            // Below a prefix these are under the contract as they are.
            all.extend(
                [".", ";/x", "/", "%3fx", "%23x", "%2500", "%20", ".json"]
                    .map(|end| format!("/{first}/{second}{end}")),
            );
        }
        for path in &all {
            for method in ["POST", "PUT", "DELETE", "PATCH", "MOVE"] {
                let answer = edge.ask(method, path, &[HOST, ("X-User", "u")], "");
                let problem = answer.problem(400, "bad-path");
                assert!(problem["detail"].as_str().unwrap().contains("exactly"), "{problem}");
            }
            // A key does not help, and what a trace shows is what was sent.
            let keyed = [HOST, ("Idempotency-Key", "k"), ("Content-Length", "0")];
            let answer = edge.ask("POST", path, &keyed, "");
            answer.problem(400, "bad-path");
            let trace = edge.trace(answer.request_id());
            assert_eq!(
                (&trace["path"], &trace["host"]),
                (&path.as_str().into(), &"rec.localhost".into())
            );
            assert_eq!(trace["environment"], "rec/production");
        }
    }
    // The index below a prefix, and a way out of it again.
    for path in ["/actions/plain", "/ACTIONS/plain/x", "/actions/plain/../../x", "/actions/edge;/x"]
    {
        edge.ask("POST", path, &[HOST], "").problem(400, "bad-path");
    }
    assert_eq!(app.take(), [] as [String; 0], "nothing of this reached the app");
}

#[test]
fn a_declared_path_is_what_the_contract_says_and_safe_methods_need_no_guard() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    for (method, path, told) in [
        ("POST", "/hooks/stripe", 403),
        ("POST", "/x/../hooks/stripe", 403),
        ("POST", "/h%6foks/stripe", 403),
        ("POST", "/actions/pay", 400),
        ("POST", "/actions/edge/x", 400),
        // Spelled out in the contract, or carved out of what is guarded.
        ("POST", "/Actions/Pay", 200),
        ("POST", "/actions/public/x", 200),
        ("POST", "/actions/public/a%2Fb;v=1", 200),
        ("POST", "/elsewhere/a%2fb;c=d//e/", 200),
        ("POST", "/hooks", 200),
        ("POST", "/hooks/stripes", 200),
        ("POST", "/hooks/other/stripe", 200),
        ("GET", "//hooks/stripe", 200),
        ("HEAD", "/hooks%2fstripe", 200),
        ("OPTIONS", "/ACTIONS/pay", 200),
    ] {
        let answer = edge.ask(method, path, &[HOST], "");
        assert_eq!(
            answer.status,
            told,
            "{method} {path}: {:?}",
            String::from_utf8_lossy(&answer.body)
        );
        assert!(!String::from_utf8_lossy(&answer.body).contains("bad-path"), "{method} {path}");
        assert_eq!(app.take().len(), usize::from(told == 200), "{method} {path}");
    }
}

#[test]
fn no_field_says_another_path_or_method() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    for name in ["X-Original-URL", "x-rewrite-url", "X.Original.Url"] {
        assert_eq!(edge.ask("POST", "/", &[HOST, (name, "/hooks/stripe")], "").status, 200);
        let heads = app.take();
        assert!(!heads[0].contains("/hooks/stripe"), "{heads:?}");
    }
    let method = ("X-HTTP-Method-Override", "POST");
    edge.ask("GET", "//hooks/stripe", &[HOST, method], "").problem(400, "bad-path");
    assert_eq!(app.take(), [] as [String; 0]);
}

#[test]
fn the_same_is_refused_over_http2() {
    let (edge, dir) = edge_with("");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    edge.deploy(&Artifact::new());
    runtime.block_on(async {
        let (send, ended) = h2_connection(&edge, &dir).await;
        for path in
            ["//webhooks/stripe", "/webhooks%2Fstripe", "/Actions/save", "/x/..;/actions/save"]
        {
            let request = http::Request::post(format!("https://studylab.localhost{path}"));
            let mut send = send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 400, "{path}");
        }
        drop(send);
        ended.abort();
    });
    assert_eq!(edge.ops().len(), 0, "nothing is woken for it");
}

#[test]
fn no_spelling_reaches_the_apps_sessions() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    for method in ["GET", "POST", "OPTIONS"] {
        for path in ["/internal/sessions/abc", "/internal/./sessions/abc", "/internal/%73essions/"]
        {
            edge.ask(method, path, &[], "").problem(404, "no-route");
        }
        for path in spellings("internal", "sessions/abc", "/internal/sessions/") {
            edge.ask(method, &path, &[], "").problem(400, "bad-path");
        }
        edge.ask(method, "/internal/sessions%2fabc", &[], "").problem(400, "bad-path");
    }
    assert_eq!(edge.ops().len(), 0, "nothing is woken for it");
    assert_eq!(edge.get("/debug/echo").status, 200);
}

#[test]
fn the_app_gets_the_bytes_that_the_client_sent() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    let odd = "%e8%E8%7E~%61/a%2fb%2Fc//d/./e/../f;g=h:@!$&'()*+,=/%20?q=%e8%7e%2e./";
    for below in ["/", "/actions/plain/", "/actions/edge/", "/actions/head/"] {
        let sent = format!("{below}{odd}");
        for (method, body) in [("GET", ""), ("POST", "x")] {
            let key = format!("{method}{below}");
            let headers = [HOST, ("X-User", "u"), ("Idempotency-Key", &key)];
            let answer = edge.ask(method, &sent, &headers, body);
            assert_eq!(answer.status, 200, "{method} {sent}: {}", answer.text());
            assert_eq!(app.target(), sent, "{method}");
            let path = sent.split('?').next().unwrap();
            assert_eq!(edge.trace(answer.request_id())["path"], path);
        }
    }
    // Two spellings of one resource are one request for its key (RFC 3986 §6.2.2).
    let keyed = [HOST, ("X-User", "u"), ("Idempotency-Key", "k")];
    let first = edge.ask("POST", "/actions/edge/a%7eb", &keyed, "x");
    assert_eq!((first.status, app.target().as_str()), (200, "/actions/edge/a%7eb"));
    let replayed = edge.ask("POST", "/actions/edge/a~b", &keyed, "x");
    assert_eq!(replayed.header("idempotent-replayed"), Some("true"));
    assert_eq!(app.take().len(), 0);
    // Absolute form becomes origin form (RFC 9112 §3.2.1), and nothing else.
    let answer = edge.ask("GET", "http://rec.localhost/%e8/./%7E?%e8", &[HOST], "");
    assert_eq!((answer.status, app.target().as_str()), (200, "/%e8/./%7E?%e8"));
    // A socket too.
    let mut socket = edge.connect();
    socket.send_head("GET", "/%6cive?%e8=%7E", &[&[HOST], &UPGRADE[..]].concat());
    socket.read_until("101 ");
    assert_eq!(app.target(), "/%6cive?%e8=%7E");
}

#[test]
fn a_redirect_keeps_what_was_sent() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    edge.reconfigure("[server]\n", "[server]\nredirect_http = true\n");
    edge.json(&["reload"]);
    let answer = edge.ask("GET", "/%e8/%7E//x?%e8", &[HOST], "");
    let location = answer.header("location").unwrap();
    assert!(location.ends_with("/%e8/%7E//x?%e8"), "{location}");
}

fn explain(edge: &Edge, method: &str, url: &str) -> Value {
    edge.json(&["explain", method, url])
}

#[test]
fn explain_says_what_the_wire_does() {
    let app = Recorder::start();
    let (edge, _dir) = app.edge();
    let told = |answer: &Answer| {
        answer.json()["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    };
    for (method, target) in [
        ("POST", "//hooks/stripe"),
        ("POST", "/hooks%2fstripe"),
        ("POST", "/x/..;/hooks/stripe"),
        ("POST", "/Hooks/stripe/"),
        ("GET", "/pa th"),
        ("GET", "/a#b"),
        ("GET", "/a%00"),
        ("GET", "/../a"),
        ("GET", "/a%zz"),
        ("TRACE", "/a"),
    ] {
        let answer = edge.ask(method, target, &[HOST], "");
        let found = explain(&edge, method, &format!("http://rec.localhost{target}"));
        assert_eq!(found["outcome"], told(&answer), "{method} {target}: {found}");
    }
    assert_eq!(app.take(), [] as [String; 0]);
    for length in [65_000, 65_520, 65_534, 65_600] {
        let target = format!("/{}", "a".repeat(length));
        let found = explain(&edge, "GET", &format!("http://rec.localhost{target}"));
        let answer = edge.ask("GET", &target, &[HOST], "");
        match answer.status {
            200 => assert_eq!((&found["outcome"], app.take().len()), (&"hot".into(), 1)),
            _ => assert_eq!(found["outcome"], told(&answer), "{length}"),
        }
    }
    for (method, url) in [
        ("GET", "http://rec.localhost/%e8//x"),
        ("GET", "HTTP://REC.localhost:8080?q"),
        ("POST", "http://rec.localhost/Actions/Pay"),
    ] {
        assert_eq!(explain(&edge, method, url)["outcome"], "hot", "{url}");
    }
    assert_eq!(explain(&edge, "GET", "http://rec.localhost%20/")["outcome"], "bad-host");
    assert_eq!(app.take(), [] as [String; 0], "nothing is sent for it");
}
