//! Contract `edge`, seen from both sides: what clients are answered, and what the app got.

use serde_json::{Value, json};

use crate::support::{Answer, Artifact, Edge, eventually, eventually_some};

pub const EDGE: &str =
    "idempotency = \"edge\"\nprincipal = \"cookie:vango_session\"\nmax_body = \"8MiB\"";

pub fn artifact() -> Artifact {
    Artifact::new().replace("idempotency = \"app\"", EDGE)
}

/// Headers of a keyed form of ada's.
pub fn keyed<'a>(key: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![
        ("Idempotency-Key", key),
        ("Cookie", "vango_session=ada"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    all.extend(more);
    all
}

fn save(edge: &Edge, key: &str, text: &str) -> Answer {
    edge.ask("POST", "/actions/save", &keyed(key, &[]), &format!("text={text}"))
}

/// Asserts that the edge says: sent, and its outcome is not known.
#[track_caller]
pub fn assert_unknown(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["type"], "https://vango-edge.dev/problems/outcome-unknown");
    assert_eq!(json["forwarded"], "forwarded, outcome unknown");
    assert_eq!(answer.header("retry-after"), None);
}

#[test]
fn a_key_is_sent_once_and_a_repeat_gets_the_same_answer_without_a_wake() {
    let edge = Edge::start();
    edge.deploy(&artifact());
    let first = save(&edge, "k1", "tea");
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("idempotent-replayed"), None);
    assert_eq!(first.header("vango-edge-idempotency-retention"), Some("86400"));
    let again = save(&edge, "\"k1\"", "tea");
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_ne!(again.request_id(), first.request_id());
    save(&edge, "k1", "milk").problem(422, "idempotency-key-reused");
    let other = [
        ("Idempotency-Key", "k1"),
        ("Cookie", "vango_session=bob"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    let bobs = edge.ask("POST", "/actions/save", &other, "text=tea");
    assert_eq!((bobs.status, bobs.header("idempotent-replayed")), (200, None));
    let nameless = edge.ask("POST", "/actions/save", &[("Idempotency-Key", "k1")], "text=tea");
    nameless.problem(400, "principal-missing");

    edge.assert_sleeps_without_a_trace();
    let asleep = save(&edge, "k1", "tea");
    assert_eq!((asleep.status, &asleep.body), (200, &first.body));
    save(&edge, "k1", "milk").problem(422, "idempotency-key-reused");
    assert_eq!(edge.processes(), [] as [u32; 0], "answered from the record; nothing woke");
    assert_eq!(edge.executions("/actions/save"), 2, "ada's and bob's");
}

#[test]
fn a_response_is_recorded_although_its_client_has_left() {
    let edge = Edge::start();
    edge.deploy(&artifact());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut leaves = edge.connect();
    let slow = keyed("k1", &[("Studylab-Fault", "slow:300ms"), ("Content-Length", "8")]);
    leaves.send_head("POST", "/actions/save", &slow);
    leaves.send("text=tea");
    eventually("the app was given it", || {
        let rows = edge.list(&["ledger", "--state", "forwarded"]);
        rows.len() == 1
    });
    leaves.reset();
    let during = edge.ask(
        "POST",
        "/actions/save",
        &keyed("k1", &[("Studylab-Fault", "slow:300ms")]),
        "text=tea",
    );
    if during.status != 200 {
        during.problem(409, "request-in-progress");
        assert!(during.header("retry-after").is_some());
    }
    let replayed = eventually_some("the first one's answer", || {
        let answer = save(&edge, "k1", "tea");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(replayed.header("idempotent-replayed"), Some("true"));
    assert_eq!(edge.executions("/actions/save"), 1);
}

#[test]
fn kill_9_of_the_edge_over_a_sent_action_leaves_it_unknown_until_an_operator_says() {
    let mut edge = Edge::start();
    edge.deploy(&artifact());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut client = edge.connect();
    let slow = keyed("k1", &[("Studylab-Fault", "slow:60s"), ("Content-Length", "8")]);
    client.send_head("POST", "/actions/save", &slow);
    client.send("text=tea");
    eventually("the app carried it out", || edge.executions("/actions/save") == 1);
    edge.kill();
    assert!(client.answer().is_none());
    edge.start_again();
    let repeat = || save(&edge, "k1", "tea");
    assert_unknown(&repeat(), 409);
    save(&edge, "k1", "milk").problem(422, "idempotency-key-reused");
    let rows = edge.list(&["ledger", "studylab", "--state", "unknown", "--key", "k1"]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["attempt"], &rows[0]["subject"]), (&json!(1), &json!("action")));
    assert!(!rows[0].to_string().contains("\"k1\""), "the key itself is nowhere");
    let record = rows[0]["at"].as_str().unwrap();
    let wrong = edge.command(&["resolve", record, "2", "carried-out"]);
    assert_eq!(wrong.status.code(), Some(1), "another attempt is not resolved");
    edge.json(&["resolve", record, "1", "carried-out", "--note", "looked"]);
    let told = repeat();
    assert_eq!(told.status, 409);
    assert_eq!(told.json()["type"], "https://vango-edge.dev/problems/response-not-replayable");
    assert_eq!(told.json()["forwarded"], "answered by the app");
    assert_eq!(edge.executions("/actions/save"), 1);

    // Evidence of each of these, by key.
    let audit = eventually_some("the evidence is written", || {
        let rows = edge.list(&["audit", "studylab", "--key", "k1", "--since", "1h"]);
        (rows.len() >= 3).then_some(rows)
    });
    let decisions: Vec<&Value> = audit.iter().map(|r| &r["decision"]).collect();
    assert!(decisions.contains(&&json!("outcome-unknown")), "{decisions:?}");
    assert!(decisions.contains(&&json!("idempotency-key-reused")), "{decisions:?}");
    let lines = edge.command(&["audit", "--lines"]);
    let text = String::from_utf8(lines.stdout).unwrap();
    assert!(text.lines().all(|l| serde_json::from_str::<Value>(l).unwrap().is_object()));
}

#[test]
fn what_was_not_carried_out_is_sent_again_once_an_operator_says_so() {
    let edge = Edge::start();
    edge.deploy(&artifact());
    assert_eq!(edge.get("/dashboard").status, 200);
    // Long enough up to be believed: its end is an end, and no failed start.
    let die = keyed("k1", &[("Studylab-Fault", "exit-before")]);
    assert_unknown(&edge.ask("POST", "/actions/save", &die, "text=tea"), 502);
    assert_unknown(&save(&edge, "k1", "tea"), 409);
    let rows = edge.list(&["ledger", "--state", "unknown"]);
    let record = rows[0]["at"].as_str().unwrap();
    edge.json(&["resolve", record, "1", "not-carried-out"]);
    let again = eventually_some("the app is up again", || {
        let answer = save(&edge, "k1", "tea");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(again.header("idempotent-replayed"), None);
    assert_eq!(edge.executions("/actions/save"), 1);
    let rows = edge.list(&["ledger", "--state", "completed"]);
    assert_eq!(rows[0]["attempt"], 2);
}

#[test]
fn a_body_beyond_what_pingora_keeps_arrives_whole() {
    let edge = Edge::start();
    edge.deploy(&artifact().replace("path = \"/actions/*\"", "path = \"/debug/echo\""));
    let body: String = (0..300_000).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
    let echo = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = answer.json();
        assert_eq!(got["body_length"], body.len());
        assert_eq!(got["body_complete"], true);
        assert!(body.starts_with(got["body_start"].as_str().unwrap()));
        let headers = got["headers"].as_array().unwrap().clone();
        let of = |name: &str| headers.iter().find(|h| h[0] == name).map(|h| h[1].clone());
        assert_eq!(of("vango-edge-idempotency-attempt"), Some(json!("1")));
        let record = of("vango-edge-idempotency-record").unwrap();
        let rows = edge.list(&["ledger"]);
        assert!(rows.iter().any(|r| r["at"].as_str().unwrap().ends_with(record.as_str().unwrap())));
        assert_eq!((of("expect"), of("content-length")), (None, Some(json!("300000"))));
    };
    echo(&edge.ask("POST", "/debug/echo", &keyed("big", &[]), &body));

    // The edge has to say 100: the app sees the request only once it is whole.
    let mut client = edge.connect();
    let expecting = keyed("expects", &[("Content-Length", "300000"), ("Expect", "100-continue")]);
    client.send_head("POST", "/debug/echo", &expecting);
    assert_eq!(client.answer().unwrap().status, 100);
    client.send(&body);
    echo(&client.answer().unwrap());

    // One byte too long, said in the head: nothing of it is read.
    let long = (8 * 1024 * 1024 + 1).to_string();
    let mut client = edge.connect();
    client.send_head("POST", "/debug/echo", &keyed("long", &[("Content-Length", &long)]));
    client.answer().unwrap().problem(413, "content-too-large");
    // And not said: it is cut off while it is read, and the app gets nothing of it.
    let mut client = edge.connect();
    client.send_head("POST", "/debug/echo", &keyed("chunked", &[("Transfer-Encoding", "chunked")]));
    let chunk = format!("{:x}\r\n{}\r\n", 1024 * 1024, "x".repeat(1024 * 1024));
    for _ in 0..8 {
        client.send(&chunk);
    }
    client.send("1\r\nx\r\n");
    client.answer().unwrap().problem(413, "content-too-large");
    assert_eq!(edge.list(&["ledger", "--key", "chunked"]), [] as [Value; 0]);
}

#[test]
fn a_stop_in_order_leaves_a_ledger_that_knows_everything() {
    let mut edge = Edge::start();
    edge.deploy(&artifact());
    assert_eq!(edge.get("/dashboard").status, 200);
    let mut client = edge.connect();
    let slow = keyed("k1", &[("Studylab-Fault", "slow:300ms"), ("Content-Length", "8")]);
    client.send_head("POST", "/actions/save", &slow);
    client.send("text=tea");
    eventually("the app was given it", || {
        edge.list(&["ledger", "--state", "forwarded"]).len() == 1
    });
    // It is waited for, and its evidence, which no answer waits for otherwise, is written too.
    edge.terminate();
    assert_eq!(client.answer().unwrap().status, 200);
    assert!(edge.ended().success());
    let log = edge.log();
    assert!(!log.contains("left unwritten") && !log.contains("not closed in order"), "{log}");
    edge.start_again();
    assert!(!edge.log().contains("an earlier process left"), "{}", edge.log());
    assert_eq!(edge.list(&["ledger", "--state", "completed"]).len(), 1);
    let rows = edge.list(&["audit", "--key", "k1"]);
    assert_eq!((rows.len(), &rows[0]["status"]), (1, &json!(200)), "{rows:?}");
    assert_eq!(save(&edge, "k1", "tea").header("idempotent-replayed"), Some("true"));
}
