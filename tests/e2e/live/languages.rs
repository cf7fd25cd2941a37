//! A client library of another language.

use serde_json::json;

use crate::support::{Artifact, Edge, Program};

use super::{redeploy, version};

fn client(edge: &Edge) -> Program {
    Program::start("live/client.py", [edge.listen.port().to_string()])
}

#[test]
fn a_client_in_python_keeps_its_counter() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let mut client = client(&edge);
    let session = "vango_session=py-1";
    let hello = client.ask(format!("open {session}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("fresh"), &json!(0)));
    let both = format!("{session}; {}", hello["cookie"].as_str().unwrap());
    assert_eq!(client.ask("inc")["count"], 1);
    assert_eq!(client.ask("inc")["count"], 2);

    let hello = client.ask(format!("open {both}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("resume"), &json!(2)));
    edge.json(&["sleep", "studylab"]);
    assert_eq!(client.ask("closed")["code"], 1012);
    let hello = client.ask(format!("open {both}"));
    assert_eq!((&hello["verdict"], &hello["count"]), (&json!("hydrate"), &json!(2)));
    assert_eq!(hello["state"], "hydrated");
    assert_eq!(client.ask("inc")["count"], 3);
}

#[test]
fn a_client_in_python_over_redeploys() {
    let edge = Edge::start();
    edge.deploy(&version(Some('a'), &[]));
    let mut client = client(&edge);
    let session = "vango_session=py-2";
    let hello = client.ask(format!("open {session}"));
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
        let hello = client.ask(format!("open {session}; {cookie}"));
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
