//! The exporter against a collector that answers what the test says, or nothing.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

use prost::Message;

use super::message::{ExportResponse, KeyValue, PartialSuccess, SERVER};
use super::*;
use crate::clock::{Mono, SeededEntropy, SystemClock, Wall};
use crate::id::RequestId;
use crate::lifecycle::trace::{Outcome, Trace};
use crate::telemetry::{Metrics, Ring};

/// What a collector does with one request.
#[derive(Clone)]
enum Answer {
    Status(u16, &'static str),
    Body(Vec<u8>),
    /// It takes the request and is silent.
    Silence,
}

/// A collector: what it was sent, and what it says to it; 200 when nothing is left to say.
struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<(String, ExportRequest)>>>,
}

impl Receiver {
    fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let (mut answers, seen) = (answers.into_iter().collect::<VecDeque<_>>(), Arc::clone(&got));
        std::thread::spawn(move || {
            // Those that were answered with silence stay open.
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                while let Some((head, body)) = request(&mut stream) {
                    seen.lock().unwrap().push((head, ExportRequest::decode(&*body).unwrap()));
                    match answers.pop_front().unwrap_or(Answer::Status(200, "")) {
                        Answer::Status(status, more) => answer(&mut stream, status, more, b""),
                        Answer::Body(body) => answer(&mut stream, 200, "", &body),
                        Answer::Silence => {
                            silent.push(stream);
                            break;
                        }
                    }
                }
            }
        });
        Self { address, got }
    }

    fn requests(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    fn paths(&self) -> Vec<String> {
        let got = self.got.lock().unwrap();
        let spans = got.iter().flat_map(|(_, r)| &r.resource_spans[0].scope_spans[0].spans);
        let path = |a: &&KeyValue| a.key == "url.path";
        spans
            .filter(|s| s.kind == SERVER)
            .map(|s| match s.attributes.iter().find(path).unwrap().value.clone().unwrap().value {
                Some(message::Value::StringValue(path)) => path,
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

/// One request of a connection; `None` at its end.
fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn answer(stream: &mut TcpStream, status: u16, more: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{more}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
}

fn telemetry(ring: usize) -> Arc<Telemetry> {
    let metrics = Metrics::new().unwrap();
    Arc::new(Telemetry { metrics, ring: Ring::new(ring) })
}

fn record(n: u64) -> Arc<TraceRecord> {
    let mut trace = Trace::new(RequestId::random(&SeededEntropy::new(n)), Mono(0));
    trace.outcome = Outcome::Woken;
    Arc::new(TraceRecord {
        method: http::Method::GET,
        host: "a.example".into(),
        path: format!("/{n}"),
        class: "page",
        environment: Some("a".parse().unwrap()),
        status: Some(200),
        operation: None,
        held: Duration::ZERO,
        total: Duration::from_micros(7),
        at: Wall(1000),
        trace,
    })
}

fn exporter(address: SocketAddr, telemetry: &Arc<Telemetry>) -> Follower {
    let target = Target { base: format!("http://{address}"), sample: 1.0, node: "n1".into() };
    let (clock, entropy) = (Arc::new(SystemClock::new()), Arc::new(SeededEntropy::new(1)));
    start(target, Arc::clone(telemetry), clock, entropy).unwrap()
}

/// Sent, refused and lost.
fn counts(telemetry: &Telemetry) -> (u64, u64, u64) {
    let count = |outcome| telemetry.metrics.otlp.with_label_values(&[outcome]).get();
    (count("sent"), count("refused"), count("lost"))
}

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let clock = SystemClock::new();
    let end = clock.now() + Duration::from_secs(30);
    while !holds() {
        assert!(clock.now() < end, "{what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn each_request_arrives_once_and_the_last_ones_at_the_end() {
    let (receiver, telemetry) = (Receiver::start([]), telemetry(1000));
    telemetry.ring.push(record(0));
    let exporter = exporter(receiver.address, &telemetry);
    (1..=600).for_each(|n| telemetry.ring.push(record(n)));
    eventually("a batch arrives", || receiver.requests() >= 1);
    telemetry.ring.push(record(601));
    drop(exporter);
    let wanted: Vec<_> = (1..=601).map(|n| format!("/{n}")).collect();
    assert_eq!(receiver.paths(), wanted, "what ended before it began is not its own");
    assert_eq!(counts(&telemetry), (601, 0, 0));
    let got = receiver.got.lock().unwrap();
    assert!(got.len() >= 3, "no message has more than {BATCH} requests");
    for (head, request) in &*got {
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let of = request.resource_spans[0].resource.as_ref().unwrap();
        let keys: Vec<_> = of.attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(keys, ["service.name", "service.version", "service.instance.id"]);
    }
}

#[test]
fn a_collector_that_asks_for_time_gets_the_same_again_and_one_that_refuses_does_not() {
    let partly = PartialSuccess { rejected_spans: 1, error_message: "too old".into() };
    let partly = ExportResponse { partial_success: Some(partly) }.encode_to_vec();
    let receiver = Receiver::start([
        Answer::Status(503, "Retry-After: 0\r\n"),
        Answer::Status(200, ""),
        Answer::Status(400, ""),
        Answer::Body(partly),
        Answer::Body(b"not a message".to_vec()),
    ]);
    let telemetry = telemetry(100);
    let _exporter = exporter(receiver.address, &telemetry);
    for (n, wanted) in [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 2, 0)), (4, (2, 2, 0))] {
        telemetry.ring.push(record(n));
        eventually("it is counted", || counts(&telemetry) == wanted);
    }
    assert_eq!(receiver.paths(), ["/1", "/1", "/2", "/3", "/4"]);
}

#[test]
fn a_collector_that_is_silent_or_away_costs_a_request_nothing_and_the_end_little() {
    let clock = SystemClock::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [Receiver::start(vec![Answer::Silence; 100]).address, closed] {
        let telemetry = telemetry(8);
        let exporter = exporter(address, &telemetry);
        telemetry.ring.push(record(0));
        // Its first batch is with the collector, or back from it.
        eventually("it was looked at", || {
            telemetry.ring.push(record(1));
            counts(&telemetry).2 > 0 || telemetry.ring.pushed() > 20
        });
        let begun = clock.now();
        (0..10_000).for_each(|n| telemetry.ring.push(record(n)));
        let took = clock.now().since(begun);
        assert!(took < Duration::from_secs(5), "{took:?} for 10,000");
        let begun = clock.now();
        drop(exporter);
        let took = clock.now().since(begun);
        assert!(took < LAST + Duration::from_secs(2), "the end waited {took:?}");
        assert_eq!(counts(&telemetry).0, 0);
    }
}

#[test]
fn what_the_ring_lets_go_before_it_was_read_is_counted() {
    let receiver = Receiver::start([]);
    let telemetry = telemetry(8);
    let target =
        Target { base: format!("http://{}", receiver.address), sample: 1.0, node: "n".into() };
    let mut sender = Sender {
        collector: Collector::at(&target.base),
        from: 0,
        failing: false,
        target,
        telemetry: Arc::clone(&telemetry),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SeededEntropy::new(1)),
    };
    (0..20).for_each(|n| telemetry.ring.push(record(n)));
    sender.look(&AtomicBool::new(false));
    assert_eq!(counts(&telemetry), (8, 0, 12));
    assert_eq!(receiver.paths().len(), 8);
}
