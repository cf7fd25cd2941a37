//! gRPC by its own library on both sides of the edge, and what HTTP/2 to an app is made of.

mod plain;
mod upstream;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vango_edge::clock::{Clock, SystemClock};

use crate::support::{Artifact, Edge, Gate, Program, eventually, python};
use crate::tls::edge_with;

/// The app of `app.py`: calls of `Patient`, and with a key of `Held`, wait for a wake, the edge keeps keys of `Keyed`.
fn app() -> Artifact {
    let app = Artifact::new()
        .set("process", "command", &format!("[{:?}, \"app.py\"]", python().display().to_string()))
        .set("process", "ready", "{ tcp = true }")
        .set("process", "protocol", "\"h2c\"")
        .replace(
            "[[route]]\npath = \"/vango/live\"",
            "[[route]]\npath = \"/test.Test/Patient\"\ncold = \"hold\"\n\
             [[route]]\npath = \"/test.Test/Held\"\nclass = \"action\"\nidempotency = \"app\"\n\
             [[route]]\npath = \"/test.Test/Left\"\nclass = \"action\"\nidempotency = \"app\"\n\
             [[route]]\npath = \"/test.Test/Keyed\"\nclass = \"action\"\nidempotency = \"edge\"\n\
             principal = \"header:who\"\n[[route]]\npath = \"/vango/live\"",
        );
    std::fs::write(app.path().join("app.py"), include_str!("app.py")).unwrap();
    app
}

struct Client(Program);

impl Client {
    /// Over TLS with `ca`, without it over plain HTTP/2.
    fn start(edge: &Edge, ca: Option<&Path>) -> Self {
        let address = if ca.is_some() { edge.tls.unwrap() } else { edge.listen };
        let ca = ca.map(|ca| ca.display().to_string());
        Self(Program::start("grpc/client.py", [address.to_string()].into_iter().chain(ca)))
    }

    #[track_caller]
    fn call(&mut self, said: Value) -> Value {
        self.0.ask(said)
    }

    /// A call with a key, by which it waits for a wake.
    #[track_caller]
    fn held(&mut self, text: &str) -> Value {
        self.call(json!({ "to": "Held", "text": text, "metadata": { "idempotency-key": text } }))
    }

    /// How often the app was called so.
    #[track_caller]
    fn calls(&mut self, name: &str) -> usize {
        let all = self.call(json!({ "to": "Calls" }));
        all["reply"].as_str().unwrap_or_default().lines().filter(|l| *l == name).count()
    }
}

/// An edge that takes HTTP/2 over TLS and without, with the app asleep.
fn edge() -> (Edge, tempfile::TempDir) {
    edge_of(&app())
}

fn edge_of(artifact: &Artifact) -> (Edge, tempfile::TempDir) {
    let (mut edge, dir) = edge_with("");
    assert!(edge.stop().success());
    edge.reconfigure("[server]\n", "[server]\nh2c = true\n");
    edge.start_again();
    edge.deploy(artifact);
    (edge, dir)
}

#[test]
fn every_kind_of_call_passes_with_tls_and_without() {
    let (edge, dir) = edge();
    let ca = dir.path().join("one/ca.pem");
    for ca in [None, Some(ca.as_path())] {
        let mut client = Client::start(&edge, ca);
        // The first wakes the app.
        let woken = client.held("stressed");
        assert_eq!(
            (&woken["code"], &woken["reply"]),
            (&json!("OK"), &json!("desserts")),
            "{woken}"
        );

        let unary = client.call(json!({ "to": "Echo", "text": "abc" }));
        assert_eq!(unary["initial"]["seen-bin"], "AAH/", "{unary}");
        assert!(unary["initial"]["user"].as_str().unwrap().starts_with("grpc-python/"), "{unary}");
        assert!(unary["initial"]["x-request-id"].is_string(), "{unary}");
        assert_eq!(unary["trailing"], json!({ "last": "word", "last-bin": "AP8=" }));

        let count = client.call(json!({ "to": "Count", "text": "100" }));
        assert_eq!(count["reply"].as_array().unwrap().len(), 100, "{count}");
        let add = client.call(json!({ "to": "Add", "pieces": 200, "size": 10_000 }));
        assert_eq!(add["reply"], "2000000", "{add}");
        // Neither side is over while they talk.
        let talk = client.call(json!({ "to": "Talk", "pieces": 10 }));
        assert_eq!(talk["reply"].as_array().unwrap().len(), 10, "{talk}");
        // More than every window on the way.
        let large = client.call(json!({ "to": "Echo", "size": 20 << 20 }));
        assert_eq!(large["reply"], 20 << 20, "{large}");

        let fail = client.call(json!({ "to": "Fail" }));
        assert_eq!(
            (&fail["code"], &fail["details"], &fail["trailing"]["why"]),
            (&json!("FAILED_PRECONDITION"), &json!("ünd so on 100 %"), &json!("so"))
        );
        let none = client.call(json!({ "to": "None" }));
        assert_eq!(none["code"], "UNIMPLEMENTED", "{none}");
        let refuse = client.call(json!({ "to": "Refuse" }));
        assert_eq!(
            refuse["code"], "RESOURCE_EXHAUSTED",
            "answered before the request is over: {refuse}"
        );
    }
}

#[test]
fn a_call_without_a_key_waits_where_the_contract_says_so_and_is_carried_out_once() {
    let (edge, dir) = edge();
    let ca = dir.path().join("one/ca.pem");
    let mut client = Client::start(&edge, Some(&ca));
    let woken = client.call(json!({ "to": "Patient", "size": 9000 }));
    assert_eq!((&woken["code"], woken["reply"].as_str().map(str::len)), (&json!("OK"), Some(9000)));
    let trace = edge.trace(woken["initial"]["x-request-id"].as_str().unwrap());
    assert_eq!(trace["outcome"], "woken", "{trace}");
    assert_eq!(client.calls("echo"), 1);
}

#[test]
fn what_the_edge_refuses_has_a_status_of_grpc_and_says_whether_it_was_sent() {
    let (edge, _dir) = edge();
    let mut client = Client::start(&edge, None);
    let cold = client.call(json!({ "to": "Echo", "text": "abc" }));
    assert_eq!(cold["code"], "UNAVAILABLE", "{cold}");
    assert!(cold["details"].as_str().unwrap().starts_with("app-cold: "), "{cold}");
    let pushback: u64 =
        cold["trailing"]["grpc-retry-pushback-ms"].as_str().unwrap().parse().unwrap();
    assert!(pushback >= 1000, "{cold}");
    let trace = edge.trace(cold["trailing"]["x-request-id"].as_str().unwrap());
    assert_eq!((&trace["outcome"], &trace["status"]), (&json!("app-cold"), &json!(503)));
    let keyless = client.call(json!({ "to": "Held", "text": "abc" }));
    assert_eq!(keyless["code"], "INVALID_ARGUMENT", "{keyless}");

    edge.until_hot();
    assert_eq!(client.held("a")["code"], "OK");
    assert_eq!(client.calls("echo"), 1, "the refused ones did not reach it");
    let dead = client.call(json!({ "to": "Die" }));
    // UNAVAILABLE is what clients send again by themselves.
    assert_eq!(dead["code"], "UNKNOWN", "{dead}");
    assert!(dead["details"].as_str().unwrap().starts_with("outcome-unknown: "), "{dead}");
    assert_eq!(dead["trailing"]["grpc-retry-pushback-ms"], "-1", "{dead}");
    eventually("it is up again", || client.held("b")["code"] == "OK");
    assert_eq!(client.calls("die"), 1);
}

#[test]
fn an_answer_that_breaks_off_is_no_cancellation() {
    let (edge, _dir) = edge();
    let mut client = Client::start(&edge, None);
    assert_eq!(client.held("a")["code"], "OK");
    let broken = client.call(json!({ "to": "Begin" }));
    assert_eq!(broken["code"], "UNKNOWN", "{broken}");
    assert!(broken["details"].as_str().unwrap().starts_with("upstream-closed: "), "{broken}");
    assert_eq!(broken["trailing"]["grpc-retry-pushback-ms"], "-1", "{broken}");
}

#[test]
fn a_key_of_the_edge_s_carries_a_call_out_once_and_replays_its_trailers() {
    let (edge, dir) = edge();
    let ca = dir.path().join("one/ca.pem");
    let mut client = Client::start(&edge, Some(&ca));
    let metadata = json!({ "idempotency-key": "k", "who": "me" });
    let call = json!({ "to": "Keyed", "text": "abc", "metadata": metadata });
    let first = client.call(call.clone());
    assert_eq!((&first["code"], &first["reply"]), (&json!("OK"), &json!("cba")), "{first}");
    assert_eq!(first["trailing"]["last-bin"], "AP8=", "{first}");
    let again = client.call(call);
    assert_eq!((&again["code"], &again["reply"]), (&json!("OK"), &json!("cba")), "{again}");
    assert_eq!(again["initial"]["idempotent-replayed"], "true", "{again}");
    assert_eq!(again["trailing"], first["trailing"]);
    assert_eq!(client.calls("echo"), 1);
}

#[test]
fn a_call_that_its_client_leaves_ends_at_the_app() {
    let (edge, _dir) = edge();
    let mut client = Client::start(&edge, None);
    assert_eq!(client.held("a")["code"], "OK");
    let left = client.call(json!({ "to": "Talk", "pieces": 1, "leave": true }));
    assert_eq!(left["code"], "CANCELLED", "{left}");
    eventually("the app learns of it", || client.calls("talk is over") == 1);
}

#[test]
fn the_app_is_told_how_long_the_client_waits_after_a_wake() {
    let gate = Gate::closed();
    let artifact = app().env("GATE", gate.path().display().to_string());
    let (edge, _dir) = edge_of(&artifact.set("wake", "budget", "\"5m\""));
    let mut client = Client::start(&edge, None);
    let metadata = json!({ "idempotency-key": "k" });
    let call = json!({ "to": "Left", "timeout": 600, "metadata": metadata });
    let waiting = std::thread::spawn(move || client.call(call));
    edge.until_held(1);
    let (clock, before) = (SystemClock::new(), SystemClock::new().now());
    eventually("a while", || clock.now().since(before) > Duration::from_millis(300));
    gate.open();
    let left = waiting.join().unwrap();
    let left: u64 = left["reply"].as_str().unwrap_or_else(|| panic!("{left}")).parse().unwrap();
    assert!((500_000..599_700).contains(&left), "{left} ms of 600 s, of which 300 ms were waited");
}
