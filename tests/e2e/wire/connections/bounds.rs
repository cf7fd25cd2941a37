//! The admin listener under clients' own bounds; certificates that run out; readiness that is sent elsewhere.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Artifact, Connection, Edge, eventually};
use crate::tls::edge_with;

fn admin(edge: &Edge) -> Connection {
    Connection::open(edge.admin)
}

const HOST: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";

#[test]
fn a_head_on_the_admin_port_has_a_deadline_and_a_size() {
    let edge = Edge::start_with("[limits.client]\nheader_timeout = \"500ms\"\nidle = \"1s\"\n");
    // One byte at a time, each well within any timeout for a single read.
    let mut slow = admin(&edge);
    slow.send("GET /healthz HTTP/1.1\r\nX-Slow: ");
    let dripped = (0..3000).find(|_| {
        slow.send("a");
        !slow.is_silent(Duration::from_millis(20))
    });
    assert!(dripped.is_some(), "it is closed");
    assert!(admin(&edge).ends_here(), "nothing at all is closed too");
    // A later head of a connection has the same deadline, and the time between two another.
    let mut later = admin(&edge);
    later.send(format!("{HOST}\r\n"));
    assert_eq!(later.answer().unwrap().status, 200);
    assert!(later.ends_here(), "idle is closed");
    let mut large = admin(&edge);
    large.send(format!("{HOST}X-Large: {}\r\n\r\n", "a".repeat(70 * 1024)));
    assert_eq!(large.answer().unwrap().status, 431);
    let mut many = admin(&edge);
    let fields: String = (0..129).map(|n| format!("x-{n}: a\r\n")).collect();
    many.send(format!("{HOST}{fields}\r\n"));
    assert_eq!(many.answer().unwrap().status, 431);
    let mut fits = admin(&edge);
    fits.send(format!("{HOST}X-Large: {}\r\n\r\n", "a".repeat(60 * 1024)));
    assert_eq!(fits.answer().unwrap().status, 200);
}

#[test]
fn a_long_answer_and_a_long_upload_outlive_the_deadline_of_heads() {
    let edge = Edge::start_with("[limits.client]\nheader_timeout = \"300ms\"\nidle = \"1s\"\n");
    let mut stream = admin(&edge);
    stream.send("GET /v1/traces/stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.read_until("200 OK");
    let mut upload = admin(&edge);
    upload
        .send("POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    upload.send("Content-Length: 51\r\nConnection: close\r\n\r\n{\"method\":\"GET\",");
    // Longer than a head may take.
    assert!(upload.is_silent(Duration::from_millis(900)));
    upload.send("\"url\":\"http://nobody.test/\"");
    upload.send("        }");
    let answer = upload.answer().expect("an answer");
    assert!(answer.status < 500, "{}", answer.status);
    edge.ask("GET", "/", &[("Host", "nobody.test")], "");
    stream.read_until("nobody.test");
}

#[test]
fn connections_of_operators_are_counted() {
    let edge = Edge::start_with("[limits.client]\nmax_connections = 8\n");
    let mut open: Vec<_> = (0..8).map(|_| admin(&edge)).collect();
    for connection in &mut open {
        connection.send(format!("{HOST}\r\n"));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    let refused = admin(&edge).answer().unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    // Those that are open go on, and a place that is given back is taken again.
    open[0].send(format!("{HOST}\r\n"));
    assert_eq!(open[0].answer().unwrap().status, 200);
    drop(open);
    eventually("there is a place", || edge.admin_status("/healthz") == 200);
}

/// The certificate of `dir` anew, for so many days.
fn sign(dir: &Path, days: &str) {
    let script = "openssl req -new -key key.pem -subj /CN=x -out r.pem && \
                  printf subjectAltName=DNS:studylab.localhost > e && \
                  openssl x509 -req -in r.pem -signkey key.pem -days $0 -extfile e -out cert.pem";
    let made = Command::new("sh").args(["-c", script, days]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_certificate_that_runs_out_is_served_and_said() {
    let (edge, dir) = edge_with("");
    let one = dir.path().join("one");
    let file = one.join("cert.pem").display().to_string();
    let metric =
        format!("vango_edge_certificate_expiry_timestamp_seconds{{certificate=\"{file}\"}}");
    let good = edge.metric(&metric);
    assert!(good > 1_700_000_000 && !edge.log().contains("cert.pem"), "{good}\n{}", edge.log());
    let config = edge.config().display().to_string();
    // With none it is over with the second in which it is made; openssl 3.5 makes none that began later.
    for (days, word) in [("3", "runs out in"), ("0", "ran out")] {
        sign(&one, days);
        eventually(word, || {
            edge.json(&["reload"]);
            edge.log().contains(word)
        });
        assert!(edge.metric(&metric) < good);
        let check = edge.command(&["check", "-c", &config]);
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(check.status.success() && said.contains(word) && said.contains(&file), "{said}");
    }
}

/// A server that sends whatever is not asked over HTTPS, or for another host, there.
const FORCING: &str = r#"
import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        want = os.environ["WANT"]
        right = self.headers["X-Forwarded-Proto"] == want and self.headers["Host"] == "studylab.localhost"
        self.send_response(200 if right else 301)
        self.send_header("Location", "https://elsewhere.test/")
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"#;

fn forcing(want: &str) -> Artifact {
    let artifact = Artifact::new().env("WANT", want);
    fs::write(artifact.path().join("forcing.py"), FORCING).unwrap();
    artifact.set("process", "command", "[\"python3\", \"forcing.py\"]").set(
        "wake",
        "start_timeout",
        "\"2s\"",
    )
}

#[test]
fn readiness_says_what_traffic_says_and_a_redirect_is_named() {
    let edge = Edge::start();
    edge.deploy(&forcing("https"));
    let told = edge.get("/dashboard").retryable("wake-failed").to_string();
    assert!(told.contains("the app was not ready in time"), "{told}");
    let (ops, log) = (edge.ops()[0].to_string(), edge.log());
    // The whole reason is the operator's: a client is told neither where the app sends it nor why.
    for part in ["301", "https://elsewhere.test/", "X-Forwarded-Proto", "process.ready"] {
        assert!(ops.contains(part) && log.contains(part), "{part}: {ops}\n{log}");
        assert!(!told.contains(part), "{part}: {told}");
    }
    // Behind a proxy that serves HTTPS the same app is ready.
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    eventually("it wakes", || {
        edge.ask("GET", "/dashboard", &[("X-Forwarded-Proto", "https")], "").status == 200
    });
}
