//! The promise of contract `edge`: for one key, the app sees the mutation at most once from the
//! edge, whatever is killed, whenever; and every answer says what is true.
//!
//! Clients send keyed actions and try again with the same key; the edge and the app are killed with
//! SIGKILL at random moments; the app itself dies before or after it has written. The app's own
//! database, in which each execution is counted in the transaction that does it, is the judge.
//!
//! `VANGO_EDGE_TEST_SEED`, `VANGO_EDGE_PROOF_REQUESTS` and `VANGO_EDGE_PROOF_KILLS` make it longer;
//! `scripts/at-most-once` is the long run.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vango_edge::clock::{Clock, Entropy, SeededEntropy, SystemClock};

use crate::keyed::artifact;
use crate::support::{Edge, eventually_some};

const CLIENTS: usize = 8;
/// Times a client sends one key.
const TRIES: usize = 60;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What one copy of a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// The app's answer, or its replay.
    Answered { replayed: bool, body: String },
    /// "not forwarded"
    NotForwarded(String),
    /// "forwarded, outcome unknown"
    Unknown,
    /// No whole answer: the edge was killed, or had not started.
    Nothing { sent: bool },
}

/// One copy of a request, on a connection of its own.
fn send(address: SocketAddr, key: &str, fault: Option<&str>) -> Said {
    let Ok(mut stream) = TcpStream::connect(address) else { return Said::Nothing { sent: false } };
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = format!("text={key}");
    let fault = fault.map_or_else(String::new, |f| format!("Studylab-Fault: {f}\r\n"));
    let request = format!(
        "POST /actions/save HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nCookie: vango_session=ada\r\n\
         Idempotency-Key: {key}\r\n{fault}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    if stream.write_all(request.as_bytes()).is_err() {
        return Said::Nothing { sent: true };
    }
    let mut read = Vec::new();
    // A reset after a whole answer leaves the answer.
    let _ = stream.read_to_end(&mut read);
    let text = String::from_utf8_lossy(&read);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Said::Nothing { sent: true };
    };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
    if length != Some(body.len()) {
        return Said::Nothing { sent: true };
    }
    if head.starts_with("http/1.1 200 ") {
        let replayed = head.contains("idempotent-replayed: true");
        return Said::Answered { replayed, body: body.to_owned() };
    }
    let details: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}"));
    match details["forwarded"].as_str() {
        Some("not forwarded") => Said::NotForwarded(details["type"].to_string()),
        Some("forwarded, outcome unknown") => Said::Unknown,
        _ => panic!("an answer that claims neither: {text}"),
    }
}

/// Sends one key until the app has answered, or the edge has said that the outcome is unknown.
fn client(address: &RwLock<SocketAddr>, key: &str, entropy: &SeededEntropy) -> Vec<Said> {
    let mut said = Vec::new();
    let fault = match entropy.next_u64() % 20 {
        0 => Some("exit-before"),
        1 => Some("exit-after"),
        2 | 3 => Some("slow:20ms"),
        _ => None,
    };
    for i in 0..TRIES {
        let at = *address.read().unwrap();
        let one = send(at, key, fault);
        said.push(one.clone());
        match one {
            // Once more now and then: a repeat of what was answered is its replay, also after a kill.
            Said::Answered { replayed, .. }
                if replayed || !entropy.next_u64().is_multiple_of(3) =>
            {
                break;
            }
            Said::Unknown if i > 0 && said[i - 1] == Said::Unknown => break,
            Said::Answered { .. } | Said::Unknown => {}
            Said::NotForwarded(_) | Said::Nothing { .. } => {
                std::thread::sleep(Duration::from_millis(20 + entropy.next_u64() % 60));
            }
        }
    }
    said
}

/// Checks everything that was said about one key against how often it ran.
fn check(key: &str, said: &[Said], ran: u64) {
    assert!(ran <= 1, "{key} ran {ran} times: {said:?}");
    let mut first: Option<&String> = None;
    let mut unknown = false;
    for one in said {
        match one {
            Said::Answered { replayed, body } => {
                assert_eq!(ran, 1, "{key} was acknowledged and is not in the database: {said:?}");
                assert!(body.contains(&format!("\"text\":\"{key}\"")), "{key}: {body}");
                if let Some(first) = first {
                    assert!(*replayed, "{key} was answered twice by the app: {said:?}");
                    assert_eq!(first, body, "{key}: a completed record changed");
                }
                assert!(!unknown, "{key} was unknown and then answered: {said:?}");
                first = Some(body);
            }
            Said::Unknown => {
                assert!(first.is_none(), "{key} was answered and then unknown: {said:?}");
                unknown = true;
            }
            Said::NotForwarded(_) | Said::Nothing { .. } => {}
        }
    }
    let may_have_run =
        said.iter().any(|s| !matches!(s, Said::NotForwarded(_) | Said::Nothing { sent: false }));
    assert!(ran == 0 || may_have_run, "{key} ran, and every answer said not forwarded: {said:?}");
}

/// How often each key ran, by the app's own database.
fn executions(edge: &Edge) -> HashMap<String, u64> {
    let rows = eventually_some("the app answers", || {
        let answer = edge.get("/debug/executions?route=/actions/save");
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(rows["truncated"], false);
    let rows = rows["executions"].as_array().unwrap();
    rows.iter()
        .map(|r| (r["key"].as_str().unwrap().to_owned(), r["count"].as_u64().unwrap()))
        .collect()
}

/// Says that no more is asked for, when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills the edge or the app, and starts the edge again; says which.
fn one_kill(
    edge: &mut Edge,
    address: &RwLock<SocketAddr>,
    entropy: &SeededEntropy,
) -> &'static str {
    let apps = edge.processes();
    if entropy.next_u64().is_multiple_of(3) && !apps.is_empty() {
        for pid in apps {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL);
        }
        return "app";
    }
    edge.kill();
    edge.start_again();
    *address.write().unwrap() = edge.listen;
    "edge"
}

#[test]
fn a_key_runs_at_most_once_whatever_is_killed_and_every_answer_is_true() {
    let seed = setting("VANGO_EDGE_TEST_SEED", 1);
    let (requests, kills) =
        (setting("VANGO_EDGE_PROOF_REQUESTS", 300), setting("VANGO_EDGE_PROOF_KILLS", 6));
    println!("seed {seed}, {requests} keys, {kills} kills");
    let clock = SystemClock::new();
    let began = clock.now();
    let mut edge = Edge::start_with(
        "[runner.backoff]\nfirst = \"10ms\"\nmax = \"50ms\"\n[log]\nlevel = \"error\"\n",
    );
    edge.deploy(&artifact());
    let address = RwLock::new(edge.listen);
    let said: Mutex<HashMap<String, Vec<Said>>> = Mutex::default();
    let (next, done, sent) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicU64::new(0));
    let all_sent = AtomicBool::new(false);
    let (mut edges, mut apps) = (0, 0);
    std::thread::scope(|scope| {
        for c in 0..CLIENTS {
            let (address, said, next, done, sent) = (&address, &said, &next, &done, &sent);
            let all_sent = &all_sent;
            scope.spawn(move || {
                let entropy = SeededEntropy::new(seed.wrapping_mul(1000) + c as u64);
                // Goes on past the asked number until the last kill was made.
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= requests && all_sent.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("k{n}");
                    let answers = client(address, &key, &entropy);
                    sent.fetch_add(answers.len() as u64, Ordering::Relaxed);
                    said.lock().unwrap().insert(key, answers);
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        // Whatever ends the killing ends the clients.
        let _ends = Ends(&all_sent);
        let entropy = SeededEntropy::new(seed);
        for k in 0..kills {
            // At a random moment, and not before its share of the requests is under way.
            let share = requests * k / kills;
            eventually_some("requests go on", || {
                (next.load(Ordering::Relaxed) >= share).then_some(())
            });
            std::thread::sleep(Duration::from_millis(entropy.next_u64() % 150));
            match one_kill(&mut edge, &address, &entropy) {
                "edge" => edges += 1,
                _ => apps += 1,
            }
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), CLIENTS);
    let ran = executions(&edge);
    let said = said.into_inner().unwrap();
    for (key, answers) in &said {
        check(key, answers, ran.get(key).copied().unwrap_or(0));
    }
    for key in ran.keys() {
        assert!(said.contains_key(key), "{key} ran, and no client sent it");
    }
    let ends = |f: fn(&Said) -> bool| said.values().filter(|s| s.last().is_some_and(f)).count();
    let answered = ends(|s| matches!(s, Said::Answered { .. }));
    let unknown = ends(|s| *s == Said::Unknown);
    println!(
        "{} keys in {} requests; {edges} kills of the edge, {apps} of the app; {answered} answered, \
         {unknown} unknown, {} given up; {} ran, none twice; {:.0?}",
        said.len(),
        sent.load(Ordering::Relaxed),
        said.len() - answered - unknown,
        ran.len(),
        clock.now().since(began),
    );
    assert!(answered > 0 && said.len() as u64 >= requests);
    // What is not known is on record as such, and nothing is open.
    let open = edge.list(&["ledger", "--state", "forwarded"]);
    assert_eq!(open, [] as [Value; 0]);
}
