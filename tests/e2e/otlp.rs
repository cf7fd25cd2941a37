//! Spans at a collector: the steps of a request of the real binary, and a collector that is away.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use prost::Message;
use vango_edge::telemetry::otlp::message::{ExportRequest, INTERNAL, SERVER, Span, Value};

use crate::support::{Artifact, Edge, eventually_some};

/// A collector that takes everything.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, kept) = (stream.unwrap(), Arc::clone(&kept));
                std::thread::spawn(move || {
                    while let Some(body) = body(&mut stream) {
                        let request = ExportRequest::decode(&*body).unwrap();
                        let scopes = request.resource_spans.into_iter().flat_map(|r| r.scope_spans);
                        kept.lock().unwrap().extend(scopes.flat_map(|s| s.spans));
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    }
                });
            }
        });
        Self { address, spans }
    }

    /// The spans of one request, once they are here: its own first, then its steps'.
    fn of(&self, request: &str) -> Vec<Span> {
        eventually_some("its spans arrive", || {
            let all = self.spans.lock().unwrap();
            let is = |s: &&Span| text(s, "vango_edge.request").as_deref() == Some(request);
            let own = all.iter().find(is)?.clone();
            let steps = all.iter().filter(|s| s.parent_span_id == own.span_id).cloned();
            let steps: Vec<_> = steps.collect();
            Some([vec![own], steps].concat())
        })
    }
}

fn body(stream: &mut std::net::TcpStream) -> Option<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn text(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|a| a.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(n) => Some(n.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_woken_request_is_at_the_collector_step_by_step_as_the_console_shows_it() {
    let collector = Collector::start();
    let telemetry = format!("[telemetry]\notlp = \"http://{}\"\n", collector.address);
    let edge = Edge::start_with(&telemetry);
    edge.deploy(&Artifact::new());
    let answer = edge.ask("GET", "/dashboard?token=secret", &[("Cookie", "c=secret")], "");
    assert_eq!(answer.status, 200);
    let spans = collector.of(answer.request_id());
    let (own, steps) = spans.split_first().unwrap();
    assert_eq!((own.name.as_str(), own.kind), ("GET /*", SERVER));
    assert_eq!(text(own, "http.route").as_deref(), Some("/*"));
    assert_eq!(text(own, "vango_edge.outcome").as_deref(), Some("woken"));
    assert_eq!(text(own, "vango_edge.environment").as_deref(), Some("studylab/production"));
    let trace = edge.trace(answer.request_id());
    let drawn: Vec<_> = trace["steps"].as_array().unwrap().iter().collect();
    assert_eq!(steps.len(), drawn.len());
    for (span, step) in steps.iter().zip(drawn) {
        assert_eq!((span.name.as_str(), span.kind), (step["action"].as_str().unwrap(), INTERNAL));
        for (key, member) in [("actor", "actor"), ("truth", "truth"), ("value", "value")] {
            let found = text(span, &format!("vango_edge.step.{key}"));
            assert_eq!(found.as_deref(), step[member].as_str());
        }
        assert!(span.start_time_unix_nano >= own.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= own.end_time_unix_nano);
    }
    // Neither the query nor a header.
    let all = format!("{spans:?}");
    assert!(!all.contains("secret"), "{all}");

    // A client's own trace is gone on with; a refused request is there too.
    let parent = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    let answer = edge.ask("GET", "/dashboard", &parent, "");
    let own = &collector.of(answer.request_id())[0];
    assert_eq!(own.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(own.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    let answer = edge.ask("POST", "/actions/save", &[], "text=a");
    answer.problem(400, "idempotency-key-missing");
    let own = &collector.of(answer.request_id())[0];
    assert_eq!(text(own, "http.response.status_code").as_deref(), Some("400"));
    assert!(edge.metric("vango_edge_otlp_traces_total{outcome=\"sent\"}") >= 3);
}

#[test]
fn the_app_s_own_spans_are_below_the_edge_s() {
    let collector = Collector::start();
    let telemetry = format!("[telemetry]\notlp = \"http://{}\"\n", collector.address);
    let edge = Edge::start_with(&telemetry);
    edge.deploy(&Artifact::new());
    let answer = edge.get("/debug/echo");
    let told = answer.json()["headers"].as_array().unwrap().clone();
    let told = told.iter().find(|h| h[0] == "traceparent").unwrap()[1].as_str().unwrap().to_owned();
    let own = &collector.of(answer.request_id())[0];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(told, format!("00-{}-{}-00", hex(&own.trace_id), hex(&own.span_id)));
}

#[test]
fn a_collector_that_is_away_or_silent_costs_no_request_and_does_not_keep_the_edge() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let telemetry = format!(
        "[telemetry]\notlp = \"http://{}\"\n[trace]\nring = 16\n",
        silent.local_addr().unwrap()
    );
    let mut edge = Edge::start_with(&telemetry);
    edge.deploy(&Artifact::new());
    for _ in 0..200 {
        assert_eq!(edge.get("/readyz").status, 200);
    }
    assert!(edge.stop().success());
    drop(silent);
    edge.start_again();
    for _ in 0..200 {
        assert_eq!(edge.get("/readyz").status, 200);
    }
    eventually_some("what could not be sent is counted", || {
        edge.get("/readyz");
        (edge.metric("vango_edge_otlp_traces_total{outcome=\"lost\"}") > 100).then_some(())
    });
    assert_eq!(edge.metric("vango_edge_otlp_traces_total{outcome=\"sent\"}"), 0);
}
