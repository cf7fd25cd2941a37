//! A client library of another language.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Artifact, Edge};

use super::{redeploy, version};

/// Python with the library `websockets`, in an environment that `scripts/test` makes.
fn python() -> PathBuf {
    let python = std::env::var_os("VANGO_EDGE_TEST_PYTHON").map(PathBuf::from);
    python.expect("VANGO_EDGE_TEST_PYTHON is not set: run this by `scripts/test languages`")
}

struct Client {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Client {
    fn start(edge: &Edge) -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/live/client.py");
        let mut child = Command::new(python())
            .arg(script)
            .arg(edge.listen.port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, say, hear: BufReader::new(hear) }
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.say, "{command}").unwrap();
        let mut line = String::new();
        self.hear.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{command}: {line:?}: {e}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_in_python_keeps_its_counter() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let mut client = Client::start(&edge);
    let session = "vango_session=py-1";
    let hello = client.ask(&format!("open {session}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("fresh"), &json!(0)));
    let both = format!("{session}; {}", hello["cookie"].as_str().unwrap());
    assert_eq!(client.ask("inc")["count"], 1);
    assert_eq!(client.ask("inc")["count"], 2);

    let hello = client.ask(&format!("open {both}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("resume"), &json!(2)));
    edge.json(&["sleep", "studylab"]);
    assert_eq!(client.ask("closed")["code"], 1012);
    let hello = client.ask(&format!("open {both}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("hydrate"), &json!(2)));
    assert_eq!(hello["state"], "hydrated");
    assert_eq!(client.ask("inc")["count"], 3);
}

#[test]
fn a_client_in_python_over_redeploys() {
    let edge = Edge::start();
    edge.deploy(&version(Some('a'), &[]));
    let mut client = Client::start(&edge);
    let session = "vango_session=py-2";
    let hello = client.ask(&format!("open {session}"));
    assert_eq!((&hello["verdict"], &hello["reason"]), (&json!("fresh"), &json!("not-recorded")));
    let mut cookie = hello["cookie"].as_str().unwrap().to_owned();
    assert_eq!(client.ask("inc")["count"], 1);
    assert_eq!(client.ask("inc")["count"], 2);
    let mut before = hello["allocation"].clone();
    let mut count = 2;
    let redeploys = [
        (version(Some('b'), &['a']), "hydrate", "store-and-schema"),
        (version(Some('c'), &['a']), "fresh", "schema-not-accepted"),
        (version(None, &['a', 'b', 'c']), "fresh", "schema-unknown"),
        // What was written under no declared schema proves nothing either.
        (version(Some('d'), &['a', 'b', 'c']), "fresh", "schema-unknown"),
        (version(Some('e'), &['d']), "hydrate", "store-and-schema"),
    ];
    for (n, (artifact, verdict, reason)) in redeploys.into_iter().enumerate() {
        redeploy(&edge, &artifact, &format!("v{n}"));
        assert_eq!(client.ask("closed")["code"], 1012, "the edge's own, before the app's SIGTERM");
        let hello = client.ask(&format!("open {session}; {cookie}"));
        let kept = if verdict == "hydrate" { count } else { 0 };
        assert_eq!(
            (&hello["verdict"], &hello["reason"], &hello["count"]),
            (&json!(verdict), &json!(reason), &json!(kept)),
            "redeploy {n}"
        );
        assert_ne!(hello["allocation"], before);
        before = hello["allocation"].clone();
        cookie = hello["cookie"].as_str().unwrap().to_owned();
        count = kept + 1;
        assert_eq!(client.ask("inc")["count"], count);
    }
}
