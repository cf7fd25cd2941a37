//! The real binary over real TCP: what it counts, what it does once, how it starts and stops.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::Instant;
use tungstenite::client::IntoClientRequest;
use tungstenite::{HandshakeError, Message, WebSocket};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// One process, killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

fn command(dir: &Path, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_studylab"));
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/app"))
        .env_clear()
        .env("PORT", "0")
        .env("HOME", dir)
        .env("STUDYLAB_DEBUG", "1")
        .env("VANGO_EDGE_ALLOCATION", "al-test")
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Server {
    fn start(dir: &Path, env: &[(&str, &str)]) -> Self {
        let mut child = command(dir, env).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("one line with the address");
        let address = said["listening"].as_str().unwrap().parse().unwrap();
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.connect();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: lab.test\r\nConnection: close\r\n");
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        Answer::read(stream)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    fn save(&self, key: &str, text: &str) -> Answer {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
        self.ask("POST", "/actions/save", &headers, &json!({ "text": text }).to_string())
    }

    fn executions(&self, route: &str) -> i64 {
        let seen = self.get(&format!("/debug/executions?route={route}")).json();
        seen["totals"][route].as_i64().unwrap_or(0)
    }

    fn live(&self, sid: &str) -> WebSocket<TcpStream> {
        let url = format!("ws://{}/vango/live?sid={sid}", self.address);
        tungstenite::client(url, self.connect()).unwrap().0
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// The exit code; everything it said on stderr.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: bytes[end + 4..].to_vec() }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Waits for a condition, asking every 20 ms.
fn until(mut condition: impl FnMut() -> bool) {
    let tries = PATIENCE.as_millis() / 20;
    let came = (0..tries).any(|_| {
        let came = condition();
        if !came {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        came
    });
    assert!(came, "the condition did not come true in time");
}

fn hear(socket: &mut WebSocket<TcpStream>) -> Value {
    match socket.read().unwrap() {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_execution_is_counted_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for _ in 0..3 {
        let page = server.get("/dashboard");
        assert_eq!(page.status, 200);
        assert!(page.text().contains("al-test"));
        assert!(page.head.contains("set-cookie: vango_session="));
    }
    assert_eq!(server.get("/").status, 303);
    assert_eq!(server.executions("/dashboard"), 3);
    hear(&mut server.live("s-1"));
    assert_eq!(server.executions("/vango/live"), 1);
    server.get("/dashboard");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended().0, Some(0));

    let server = Server::start(dir.path(), &[("VANGO_EDGE_ALLOCATION", "al-next")]);
    assert_eq!(server.executions("/dashboard"), 4, "the last one was written on SIGTERM");
    let starts = server.get("/debug/executions?route=start").json();
    let key = |n: usize| starts["executions"][n]["key"].clone();
    assert_eq!((key(0), key(1)), (json!("al-next"), json!("al-test")));
}

#[test]
fn a_save_with_a_key_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let first = server.save("k-1", "tea <b>");
    assert_eq!(first.status, 200);
    let made = json!({ "id": 1, "text": "tea <b>", "executions": 1, "allocation": "al-test" });
    assert_eq!(first.json(), made);
    let again = server.save("\"k-1\"", "tea <b>");
    assert_eq!(again.json(), made);
    assert!(again.head.contains("studylab-repeat: true"));
    assert!(again.head.contains("studylab-executions: 2"));
    assert_eq!(server.save("k-1", "coffee").status, 422);
    assert_eq!(server.save("", "tea").status, 400);
    assert_eq!(server.save("k-2", " ").status, 400);
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    assert_eq!(server.ask("POST", "/actions/save", &form, "text=milk+tea").json()["id"], 2);
    let page = server.get("/dashboard");
    assert!(page.text().contains("tea &lt;b&gt;") && page.text().contains("milk tea"));
    let seen = server.get("/debug/executions").json();
    assert_eq!(seen["effects"], json!({ "notes": 2, "events": 0 }));
    assert_eq!(seen["totals"]["/actions/save"], 4);
}

#[test]
fn what_is_handed_in_needs_a_key_and_a_student_and_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let (key, ada) = (("Idempotency-Key", "k1"), ("Cookie", "vango_session=ada"));
    let submit = |headers: &[(&str, &str)], text: &str| {
        server.ask("POST", "/actions/submit", &[&[form], headers].concat(), text)
    };
    assert_eq!(submit(&[ada], "text=a").status, 400);
    assert_eq!(submit(&[key], "text=a").status, 400);
    let first = submit(&[key, ada], "text=a").json();
    assert_eq!((&first["id"], &first["text"]), (&json!(1), &json!("a")));
    assert_eq!(submit(&[key, ada], "text=a").json(), first);
    assert_eq!(submit(&[key, ada], "text=b").status, 422);
    assert_eq!(submit(&[key, ("Cookie", "vango_session=bob")], "text=a").json()["id"], 2);
}

#[test]
fn many_saves_with_one_key_at_once_make_one_note() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let firsts = std::thread::scope(|scope| {
        let saves: Vec<_> = (0..24).map(|_| scope.spawn(|| server.save("k", "tea"))).collect();
        saves.into_iter().map(|save| save.join().unwrap()).fold(0, |n, answer| {
            assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(1)));
            n + usize::from(!answer.head.contains("studylab-repeat"))
        })
    });
    assert_eq!((firsts, server.executions("/actions/save")), (1, 24));
}

#[test]
fn a_death_around_the_transaction_leaves_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (fault, notes) in [("exit-before", 0), ("exit-after", 1)] {
        let server = Server::start(dir.path(), &[]);
        let mut stream = server.connect();
        let head = "POST /actions/save HTTP/1.1\r\nHost: lab.test\r\nIdempotency-Key: k\r\n\
                    Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 6\r\n";
        write!(stream, "{head}Studylab-Fault: {fault}\r\n\r\ntext=a").unwrap();
        let mut nothing = Vec::new();
        // An end or a reset: either way no answer.
        let _ = stream.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
        assert_eq!(server.ended().0, Some(70));
        let server = Server::start(dir.path(), &[]);
        let seen = server.get("/debug/executions").json();
        assert_eq!(seen["effects"]["notes"], notes, "{fault}");
    }
    let server = Server::start(dir.path(), &[("STUDYLAB_DEBUG", "0")]);
    let headers = [
        ("Studylab-Fault", "exit-before"),
        ("Idempotency-Key", "k"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    let again = server.ask("POST", "/actions/save", &headers, "text=a");
    assert!(again.head.contains("studylab-repeat: true"), "no faults without debug");
    assert_eq!(server.get("/debug/executions").status, 404);
}

#[test]
fn an_event_is_first_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let event = r#"{"id":"evt_1","object":"event"}"#;
    let send = || server.ask("POST", "/webhooks/stripe", &[], event).json();
    assert_eq!(send(), json!({ "received": true, "first": true }));
    assert_eq!(send(), json!({ "received": true, "first": false }));
    for wrong in ["{}", "[", r#"{"id":""}"#, r#"{"id":7}"#] {
        assert_eq!(server.ask("POST", "/webhooks/stripe", &[], wrong).status, 400, "{wrong}");
    }
    assert_eq!(server.executions("/webhooks/stripe"), 2);
}

#[test]
fn live_tabs_share_their_session_and_learn_of_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut one = server.live("s-1");
    let hello = hear(&mut one);
    assert_eq!((&hello["session"], &hello["count"]), (&json!("s-1"), &json!(0)));
    assert_eq!(hello["resumed"], false);
    let mut two = server.live("s-1");
    assert_eq!(hear(&mut two)["resumed"], true);
    one.send(Message::text(r#"{"type":"inc"}"#)).unwrap();
    assert_eq!(hear(&mut one)["count"], 1);
    assert_eq!(hear(&mut two)["count"], 1);
    two.send(Message::text("inc")).unwrap();
    assert_eq!(hear(&mut two)["count"], 2);
    one.send(Message::text("what")).unwrap();
    let heard = [hear(&mut one)["type"].clone(), hear(&mut one)["type"].clone()];
    assert!(heard.contains(&json!("count")) && heard.contains(&json!("error")));
    drop(two);
    let mut other = server.live("s-2");
    assert_eq!(hear(&mut other)["count"], 0);
    server.signal(Signal::SIGTERM);
    match one.read().unwrap() {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1012),
        other => panic!("{other:?}"),
    }
    drop((one, other));
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn a_silent_socket_is_pinged_and_dropped_and_another_origin_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[("STUDYLAB_PING", "40ms")]);
    let mut socket = server.live("s");
    assert_eq!(hear(&mut socket)["type"], "hello");
    assert_eq!(hear(&mut socket)["type"], "ping");
    assert!(matches!(socket.read().unwrap(), Message::Close(Some(f)) if u16::from(f.code) == 1008));
    let url = format!("ws://{}/vango/live", server.address);
    let mut foreign = url.into_client_request().unwrap();
    foreign.headers_mut().insert("origin", "http://evil.test".parse().unwrap());
    match tungstenite::client(foreign, server.connect()) {
        Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            assert_eq!(answer.status(), 403);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn readiness_comes_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[("STUDYLAB_READY_DELAY", "2s")]);
    let early = server.get("/readyz");
    assert_eq!(early.status, 503);
    assert!(early.head.contains("retry-after: 1"));
    assert_eq!(server.get("/dashboard").status, 503);
    until(|| server.get("/readyz").status == 200);
    assert_eq!(server.executions("/dashboard"), 0, "what was refused was not executed");
}

#[test]
fn failing_starts_say_why_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken");
    std::fs::write(&file, "").unwrap();
    let broken = file.to_str().unwrap();
    for env in [("STUDYLAB_FAIL_START", "1"), ("STUDYLAB_FAIL_FILE", broken)] {
        let output = command(dir.path(), &[env]).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8(output.stderr).unwrap().contains("refusing to start"));
    }
    let wrong = command(dir.path(), &[("STUDYLAB_READY_DELAY", "soon")]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    std::fs::remove_file(&file).unwrap();
    let server = Server::start(dir.path(), &[("STUDYLAB_FAIL_FILE", broken)]);
    assert_eq!(server.executions("start"), 3);
    let port = server.address.port().to_string();
    let taken = command(dir.path(), &[("PORT", &port)]).output().unwrap();
    assert_eq!(taken.status.code(), Some(5));
    let exits = Server::start(dir.path(), &[("STUDYLAB_EXIT_AFTER_READY", "1ms")]);
    assert_eq!(exits.ended().0, Some(1));
}

#[test]
fn a_start_that_hangs_still_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &[("STUDYLAB_HANG_START", "1")]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("never listening"));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn readiness_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let env = [("STUDYLAB_NOTIFY", "1"), ("NOTIFY_SOCKET", path.to_str().unwrap())];
    let _server = Server::start(dir.path(), &env);
    let mut said = [0; 64];
    let length = socket.recv(&mut said).unwrap();
    assert_eq!(&said[..length], b"READY=1");
}

#[test]
fn a_request_in_flight_is_finished_and_idle_connections_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let _never_used = server.connect();
    let mut used = server.connect();
    used.write_all(b"GET /healthz HTTP/1.1\r\nHost: lab.test\r\n\r\n").unwrap();
    let mut start = [0; 12];
    used.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let headers = [
                ("Studylab-Fault", "slow:600ms"),
                ("Content-Type", "application/x-www-form-urlencoded"),
            ];
            server.ask("POST", "/actions/save", &headers, "text=tea").status
        });
        until(|| server.executions("/actions/save") == 1);
        server.signal(Signal::SIGTERM);
        assert_eq!(slow.join().unwrap(), 200);
    });
    let stopping = Instant::now();
    assert_eq!(server.ended().0, Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(5), "idle connections were waited for");
}

#[test]
fn term_can_be_ignored_and_a_stray_outlives_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("STUDYLAB_IGNORE_TERM", "1"), ("STUDYLAB_SETSID", "1")];
    let mut server = Server::start(dir.path(), &env);
    let mut stderr = BufReader::new(server.child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let stray = Pid::from_raw(line.trim().rsplit(' ').next().unwrap().parse().unwrap());
    server.signal(Signal::SIGTERM);
    line.clear();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("staying"));
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::SIGKILL);
    server.child.wait().unwrap();
    kill(stray, None).expect("it is still there");
    kill(stray, Signal::SIGKILL).unwrap();
}

#[test]
fn assets_are_a_fixed_list() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let css = server.get("/assets/app.css");
    assert_eq!(css.status, 200);
    assert!(css.head.contains("content-type: text/css") && css.head.contains("no-cache"));
    let manifest = server.get("/assets/manifest.json").json();
    let mark = server.get(&format!("/assets/{}", manifest["mark.svg"].as_str().unwrap()));
    assert_eq!(mark.status, 200);
    assert!(mark.head.contains("immutable") && mark.head.contains("image/svg+xml"));
    for path in [
        "../vango-edge.toml",
        "..%2fvango-edge.toml",
        "%2e%2e/vango-edge.toml",
        "x/../../vango-edge.toml",
        "..%5cvango-edge.toml",
        "/etc/passwd",
        "%00",
        "app.css/",
        "./app.css",
        "mark.svg",
        "",
    ] {
        assert_eq!(server.get(&format!("/assets/{path}")).status, 404, "{path}");
    }
}

#[test]
fn the_fingerprint_is_the_content() {
    let public = Path::new(env!("CARGO_MANIFEST_DIR")).join("app/public");
    let manifest = std::fs::read(public.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for name in manifest.as_object().unwrap().values() {
        let name = name.as_str().unwrap();
        let sum = Command::new("sha256sum").arg(public.join(name)).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        assert_eq!(name.split('.').nth(1), sum.get(..8), "{name}");
    }
}

#[test]
fn what_arrived_can_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let seen = server.ask("PUT", "/debug/echo?a=b", &[("X-A", "1"), ("X-A", "2")], "hello").json();
    assert_eq!((&seen["method"], &seen["path"]), (&json!("PUT"), &json!("/debug/echo")));
    assert_eq!((&seen["query"], &seen["body_length"]), (&json!("a=b"), &json!(5)));
    let headers = seen["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-a", "1"])) && headers.contains(&json!(["x-a", "2"])));
    let bytes = server.get("/debug/bytes?n=200001");
    assert!(bytes.head.contains("content-length: 200001"));
    assert_eq!(bytes.body.len(), 200_001);
    assert_eq!(server.get("/debug/bytes?n=99999999999").status, 400);
}
