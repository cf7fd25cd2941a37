//! Deliveries: believed or not, first or again, and what the app was given.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use vango_edge::clock::{Clock, SystemClock};

use crate::support::{Answer, Artifact, Edge, Gate};

pub const EVENT: &str = r#"{"id":"evt_1","object":"event"}"#;

pub fn seconds() -> u64 {
    SystemClock::new().wall().0 / 1000
}

fn signature(secret: &str, at: u64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at}.{body}").as_bytes());
    let hex = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("t={at},v1={hex}")
}

pub fn deliver(edge: &Edge, secret: &str, at: u64, body: &str) -> Answer {
    let signature = signature(secret, at, body);
    edge.ask("POST", "/webhooks/stripe", &[("Stripe-Signature", &signature)], body)
}

/// Puts secrets where the operator's file says they are, and has them read.
pub fn secrets(edge: &Edge, values: &[&str]) {
    let dir = edge.config().parent().unwrap().to_owned();
    let mut sources = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let file = dir.join(format!("secret-{i}"));
        std::fs::write(&file, value).unwrap();
        sources.push(format!("{{ file = {:?} }}", file.display().to_string()));
    }
    let text = format!(
        "app = \"studylab\"\nhosts = [\"studylab.localhost\"]\n\
         secrets = {{ STRIPE_WEBHOOK_SECRET = [{}] }}\n",
        sources.join(", ")
    );
    std::fs::write(dir.join("apps/studylab.toml"), text).unwrap();
    let output = edge.command(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_event_is_given_to_the_app_until_it_is_accepted_and_then_never_again() {
    let edge = Edge::start();
    secrets(&edge, &["whsec_a"]);
    edge.deploy(&Artifact::new());
    let first = deliver(&edge, "whsec_a", seconds(), EVENT);
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.json()["first"], true);
    let again = deliver(&edge, "whsec_a", seconds(), EVENT);
    assert_eq!(again.status, 200);
    assert_eq!(again.header("vango-edge-webhook-verdict"), Some("duplicate"));
    assert_eq!(edge.executions("/webhooks/stripe"), 1);
    edge.assert_sleeps_without_a_trace();
    assert_eq!(deliver(&edge, "whsec_a", seconds(), EVENT).status, 200);
    assert_eq!(edge.processes(), [] as [u32; 0], "answered from the record; nothing woke");
    let audit = edge.list(&["audit", "--event", "evt_1"]);
    let seen: Vec<_> = audit.iter().map(|r| r["decision"].as_str().unwrap()).collect();
    assert!(seen.iter().filter(|d| **d == "duplicate").count() == 2, "{seen:?}");
}

#[test]
fn an_event_that_the_app_did_not_accept_is_given_to_it_again() {
    let edge = Edge::start();
    secrets(&edge, &["whsec_a"]);
    edge.deploy(&Artifact::new());
    // No id that the app takes: 400, which is no acceptance.
    let odd = r#"{"object":"event"}"#;
    for attempt in 1..=2 {
        let answer = deliver(&edge, "whsec_a", seconds(), odd);
        assert_eq!(answer.status, 400, "{}", answer.text());
        let rows = edge.list(&["ledger", "--state", "refused"]);
        assert_eq!((rows.len(), &rows[0]["attempt"]), (1, &attempt.into()));
    }
}

#[test]
fn a_flood_of_deliveries_that_are_not_believed_wakes_nothing_and_is_counted() {
    const FLOOD: u64 = 500;
    let edge = Edge::start();
    secrets(&edge, &["whsec_a"]);
    edge.deploy(&Artifact::new());
    let now = seconds();
    for i in 0..FLOOD {
        let (secret, at) = if i % 2 == 0 { ("whsec_b", now) } else { ("whsec_a", now - 301) };
        deliver(&edge, secret, at, EVENT).problem(403, "webhook-signature-invalid");
    }
    assert_eq!((edge.ops(), edge.processes()), (vec![], vec![]));
    let counted =
        |why: &str| edge.metric(&format!("vango_edge_webhooks_refused_total{{reason=\"{why}\"}}"));
    assert_eq!((counted("wrong"), counted("stale")), (FLOOD / 2, FLOOD / 2));
    let rows = edge.list(&["audit", "-n", "1000"]);
    assert!(!rows.is_empty() && rows.len() <= 40, "{} rows", rows.len());
    let mut client = edge.connect();
    let signed = signature("whsec_a", now, EVENT);
    let long = [("Stripe-Signature", signed.as_str()), ("Content-Length", "1048577")];
    client.send_head("POST", "/webhooks/stripe", &long);
    client.answer().unwrap().problem(413, "content-too-large");
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn secrets_rotate_under_a_reload() {
    let edge = Edge::start();
    secrets(&edge, &["whsec_old"]);
    edge.deploy(&Artifact::new());
    let event = |n: u64| format!("{{\"id\":\"evt_{n}\"}}");
    assert_eq!(deliver(&edge, "whsec_old", seconds(), &event(1)).status, 200);
    secrets(&edge, &["whsec_new", "whsec_old"]);
    assert_eq!(deliver(&edge, "whsec_old", seconds(), &event(2)).status, 200);
    assert_eq!(deliver(&edge, "whsec_new", seconds(), &event(3)).status, 200);
    secrets(&edge, &["whsec_new"]);
    deliver(&edge, "whsec_old", seconds(), &event(4)).problem(403, "webhook-signature-invalid");
    assert_eq!(deliver(&edge, "whsec_new", seconds(), &event(5)).status, 200);
    for line in edge.log().lines() {
        assert!(!line.contains("whsec_"), "a secret in the log: {line}");
    }
}

#[test]
fn a_delivery_that_is_held_goes_on_when_its_secret_is_rotated_away() {
    let edge = Edge::start();
    secrets(&edge, &["whsec_old"]);
    let gate = Gate::closed();
    edge.deploy(&Artifact::behind(&gate));
    let event = r#"{"id":"evt_held"}"#;
    let (length, signed) = (event.len().to_string(), signature("whsec_old", seconds(), event));
    let headers = [("Stripe-Signature", signed.as_str()), ("Content-Length", &length)];
    let mut held = edge.connect();
    held.send_head("POST", "/webhooks/stripe", &headers);
    held.send(event);
    edge.until_held(1);
    secrets(&edge, &["whsec_new"]);
    // It was verified when it came; what comes now is verified with what counts now.
    deliver(&edge, "whsec_old", seconds(), EVENT).problem(403, "webhook-signature-invalid");
    gate.open();
    let answer = held.answer().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["first"], true);
    assert_eq!(deliver(&edge, "whsec_new", seconds(), EVENT).status, 200);
    assert_eq!((edge.executions("/webhooks/stripe"), edge.ops().len()), (2, 1));
}
