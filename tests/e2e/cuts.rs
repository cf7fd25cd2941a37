//! Contract `edge` and an app whose answer is cut: at every byte of it, in order or by a reset, with
//! bytes that are no HTTP/1.1; and clients of HTTP/2 that reset their request or go away. The app gets
//! each key at most once, and every answer says what is true.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{setsockopt, sockopt};

use crate::keyed::{artifact, assert_unknown, keyed};
use crate::support::{Edge, PATIENCE, eventually, eventually_some};
use crate::tls::{edge_with, h2_connection, request, runtime};

const WHOLE: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello";
/// A GOAWAY frame and a RST_STREAM frame of HTTP/2 (RFC 9113 §6.8, §6.4): what an upstream that
/// speaks it would send. The edge speaks HTTP/1.1 to apps, and takes them for what they are there.
const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const RST_STREAM: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];

/// An app that reads one request of each connection, answers what is next, and ends the connection.
struct Cutter {
    address: SocketAddr,
    next: Arc<Mutex<(Vec<u8>, bool)>>,
    /// How often each key came.
    got: Arc<Mutex<HashMap<String, usize>>>,
}

impl Cutter {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            next: Arc::default(),
            got: Arc::default(),
        };
        let (next, got) = (Arc::clone(&this.next), Arc::clone(&this.got));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Some(key) = read_request(&mut stream) else { continue };
                *got.lock().unwrap().entry(key).or_default() += 1;
                let (bytes, reset) = next.lock().unwrap().clone();
                let _ = stream.write_all(&bytes);
                if reset {
                    let now = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&stream, sockopt::Linger, &now).unwrap();
                }
            }
        });
        this
    }

    fn answers(&self, bytes: &[u8], reset: bool) {
        *self.next.lock().unwrap() = (bytes.to_vec(), reset);
    }

    fn got(&self, key: &str) -> usize {
        self.got.lock().unwrap().get(key).copied().unwrap_or(0)
    }
}

/// The key of a whole request with a body of 8 bytes; none for a look at the port.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
    while !read.ends_with(b"text=tea") {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        read.extend_from_slice(&chunk[..n]);
    }
    let text = String::from_utf8(read).unwrap().to_ascii_lowercase();
    text.lines().find_map(|l| l.strip_prefix("idempotency-key: ")).map(str::to_owned)
}

#[test]
fn an_answer_that_is_cut_at_any_byte_is_unknown_and_never_asked_for_again() {
    let app = Cutter::start();
    let file = format!(
        "app = \"cutter\"\nhosts = [\"cutter.localhost\"]\nupstreams = [\"{}\"]\n[[route]]\n\
         path = \"/*\"\nclass = \"action\"\nidempotency = \"edge\"\n\
         principal = \"cookie:vango_session\"\n",
        app.address
    );
    let edge = Edge::start_with_app("cutter", &file);
    let send = |key: &str| {
        edge.ask("POST", "/save", &keyed(key, &[("Host", "cutter.localhost")]), "text=tea")
    };
    let mut cases: Vec<(String, Vec<u8>, bool)> = Vec::new();
    for reset in [false, true] {
        for cut in 0..=WHOLE.len() {
            cases.push((format!("cut-{cut}-{reset}"), WHOLE[..cut].to_vec(), reset));
        }
        cases.push((format!("goaway-{reset}"), GOAWAY.to_vec(), reset));
        cases.push((format!("rst-stream-{reset}"), RST_STREAM.to_vec(), reset));
        let after = [&WHOLE[..30], GOAWAY].concat();
        cases.push((format!("goaway-mid-header-{reset}"), after, reset));
    }
    let (mut whole, mut unknown) = (0, 0);
    for (key, bytes, reset) in &cases {
        app.answers(bytes, *reset);
        let first = send(key);
        // A reset may take a whole answer with it; anything less never counts as one.
        if first.status == 201 {
            assert_eq!((bytes.as_slice(), &first.body[..]), (WHOLE, &b"hello"[..]), "{key}");
            whole += 1;
        } else {
            assert_unknown(&first, 502);
            unknown += 1;
        }
        app.answers(WHOLE, false);
        let again = send(key);
        match first.status {
            201 => assert_eq!(
                (again.status, again.header("idempotent-replayed"), &again.body),
                (201, Some("true"), &first.body),
                "{key}"
            ),
            _ => assert_unknown(&again, 409),
        }
        assert_eq!(app.got(key), 1, "{key}");
    }
    println!("{} answers: {whole} whole, {unknown} cut", cases.len());
    assert!(whole >= 1 && unknown >= 2 * WHOLE.len());
}

#[test]
fn a_client_of_http2_that_resets_or_goes_away_leaves_an_action_that_ran_once_and_is_on_record() {
    let (edge, dir) = edge_with("");
    edge.deploy(&artifact());
    assert_eq!(edge.get("/dashboard").status, 200);
    for (key, goes_away) in [("reset", false), ("goaway", true)] {
        runtime().block_on(async {
            let (send, ended) = h2_connection(&edge, &dir).await;
            let mut action = request("POST", "/actions/save");
            for (name, value) in keyed(key, &[("studylab-fault", "slow:300ms")]) {
                let name: http::HeaderName = name.parse().unwrap();
                action.headers_mut().insert(name, value.parse().unwrap());
            }
            let ready = send.clone().ready();
            let (answer, mut stream) = ready.await.unwrap().send_request(action, false).unwrap();
            stream.send_data("text=tea".into(), true).unwrap();
            while edge.list(&["ledger", "--key", key, "--state", "forwarded"]).is_empty() {
                tokio::task::yield_now().await;
            }
            if goes_away {
                // Without a sender of requests, the library says GOAWAY and ends the connection.
                drop((send, answer, stream));
                tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
            } else {
                stream.send_reset(h2::Reason::CANCEL);
                // Frames keep their order: once this is answered, the reset has arrived.
                let beside =
                    send.ready().await.unwrap().send_request(request("GET", "/debug/echo"), true);
                assert_eq!(beside.unwrap().0.await.unwrap().status(), 200);
                drop(answer);
            }
        });
        eventually("what came of it is on record", || {
            edge.list(&["ledger", "--key", key, "--state", "completed"]).len() == 1
        });
        let again = eventually_some("its repeat", || {
            let answer = edge.ask(
                "POST",
                "/actions/save",
                &keyed(key, &[("Studylab-Fault", "slow:300ms")]),
                "text=tea",
            );
            (answer.status == 200).then_some(answer)
        });
        assert!(again.header("idempotent-replayed").is_some(), "{key}");
    }
    assert_eq!(edge.executions("/actions/save"), 2);
}
