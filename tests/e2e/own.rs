//! What an app may say of its own keys, with the credential that its process was given.

use std::fs;

use serde_json::{Value, json};

use crate::keyed::{artifact, keyed};
use crate::support::{Answer, Artifact, Connection, Edge, eventually_some};

use super::promotion::deploy_preview;

/// What a process of the environment finds in its own environment: where to ask, and with what.
fn given(edge: &Edge, environment: &str) -> (String, String) {
    let of = |pid: u32| {
        let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let all = String::from_utf8(all).unwrap();
        let value = |name: &str| {
            let mut entries = all.split('\0').filter_map(|e| e.split_once('='));
            entries.find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        };
        (value("VANGO_EDGE_ENVIRONMENT")? == environment).then(|| {
            (value("VANGO_EDGE_SELF_URL").unwrap(), value("VANGO_EDGE_SELF_TOKEN").unwrap())
        })
    };
    eventually_some("a process of the environment", || edge.processes().into_iter().find_map(of))
}

/// A request to the admin API, as an app makes it.
fn asked(edge: &Edge, method: &str, path: &str, token: Option<&str>, body: &Value) -> Answer {
    let mut connection = Connection::open(edge.admin);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (host, length) = (edge.admin.to_string(), body.len().to_string());
    let bearer = token.map(|t| format!("Bearer {t}"));
    let mut headers = vec![("Host", host.as_str()), ("Connection", "close")];
    headers.extend(bearer.as_deref().map(|b| ("Authorization", b)));
    if !body.is_empty() {
        headers.extend([("Content-Type", "application/json"), ("Content-Length", &length)]);
    }
    connection.send_head(method, path, &headers);
    connection.send(&body);
    connection.answer().expect("an answer")
}

fn list(edge: &Edge, token: &str) -> Answer {
    asked(edge, "GET", "/v1/self/ledger?state=unknown", Some(token), &Value::Null)
}

fn resolve(edge: &Edge, token: &str, record: &str, attempt: u32, outcome: &str) -> Answer {
    let say = json!({ "attempt": attempt, "outcome": outcome, "note": "looked in notes" });
    asked(edge, "POST", &format!("/v1/self/ledger/{record}/resolve"), Some(token), &say)
}

fn save(edge: &Edge, fault: &[(&str, &str)]) -> Answer {
    edge.ask("POST", "/actions/save", &keyed("k1", fault), "text=tea")
}

#[test]
fn an_app_says_what_became_of_its_own_keys_and_of_no_others() {
    let edge = Edge::start();
    edge.deploy(&artifact());
    deploy_preview(&edge, &artifact(), "pr-7");
    edge.json(&["wake", "studylab/pr-7"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    let (url, dead) = given(&edge, "studylab/production");
    assert_eq!(url, format!("http://{}/v1/self", edge.admin));
    assert_eq!(list(&edge, &dead).json(), json!([]));
    assert_eq!(save(&edge, &[("Studylab-Fault", "exit-before")]).status, 502);
    eventually_some("the app is up again", || (edge.get("/dashboard").status == 200).then_some(()));

    // A credential ends with its allocation; one of another environment sees and changes nothing.
    assert_eq!(list(&edge, &dead).status, 401);
    let (_, preview) = given(&edge, "studylab/pr-7");
    let (_, own) = given(&edge, "studylab/production");
    assert_ne!(own, dead);
    let unknown = list(&edge, &own).json();
    let rows = unknown.as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["attempt"]), (1, &json!(1)), "{unknown}");
    let record = rows[0]["at"].as_str().unwrap().rsplit('/').next().unwrap();
    assert_eq!(list(&edge, &preview).json(), json!([]));
    assert_eq!(resolve(&edge, &preview, record, 1, "not-carried-out").status, 409);
    for forged in [preview.replace("pr-7", "production"), own[..own.len() - 1].to_owned()] {
        assert_eq!(resolve(&edge, &forged, record, 1, "not-carried-out").status, 401, "{forged}");
    }
    assert_eq!(asked(&edge, "GET", "/v1/self/ledger", None, &Value::Null).status, 401);

    assert_eq!(resolve(&edge, &own, record, 2, "not-carried-out").status, 409, "another attempt");
    assert_eq!(resolve(&edge, &own, record, 1, "perhaps").status, 400);
    assert_eq!(resolve(&edge, &own, "../production", 1, "carried-out").status, 404);
    let said = resolve(&edge, &own, record, 1, "not-carried-out");
    assert_eq!((said.status, &said.json()["state"]), (200, &json!("released")), "{}", said.text());
    assert_eq!(resolve(&edge, &own, record, 1, "carried-out").status, 409, "said once");
    let again = save(&edge, &[]);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, None));
    assert_eq!(edge.executions("/actions/save"), 1);

    // Who said so is on record before the answer.
    let audit = edge.list(&["audit", "studylab", "--key", "k1"]);
    let of = |decision| audit.iter().find(|r| r["decision"] == decision);
    let row = of("resolved-not-carried-out").unwrap_or_else(|| panic!("{audit:?}"));
    let why = row["why"].as_str().unwrap();
    let allocation = own.rsplit('/').nth(1).unwrap();
    assert_eq!(why, format!("by app {allocation}: looked in notes"));
    assert_eq!(row["forwarded"], "forwarded, not carried out");

    // The credential is in the process and nowhere else.
    let code = own.rsplit('/').next().unwrap();
    let traces = edge.json(&["traces", "-n", "1000"]).to_string();
    let metrics = edge.admin("GET", "/metrics");
    for (what, text) in
        [("log", edge.log()), ("traces", traces), ("metrics", metrics.text().into())]
    {
        assert!(!text.contains(code), "a credential in the {what}");
    }
}

#[test]
fn a_credential_outlives_the_edge_and_is_no_operators_token() {
    let mut edge = Edge::start();
    edge.deploy(&artifact());
    let echo = edge.ask("GET", "/debug/echo", &[("Vango-Edge-Idempotency-Record", "ab")], "");
    assert!(!echo.text().contains("vango-edge-idempotency-record"), "a client's is taken off");
    let (_, own) = given(&edge, "studylab/production");
    edge.kill();
    let token = edge.config().with_file_name("operate.token");
    fs::write(&token, "an-operators-own-token").unwrap();
    edge.reconfigure(
        "[admin]\n",
        &format!("[admin]\ntokens = [{{ role = \"operate\", file = {token:?} }}]\n"),
    );
    edge.start_again();
    assert_eq!(list(&edge, &own).status, 200, "its allocation was adopted");
    assert_eq!(list(&edge, "an-operators-own-token").status, 401);
    for (method, path) in [
        ("GET", "/v1/ledger"),
        ("GET", "/v1/routes"),
        ("POST", "/v1/environments/studylab/production/sleep"),
    ] {
        assert_eq!(asked(&edge, method, path, Some(&own), &Value::Null).status, 401, "{path}");
    }
    let foreign = [
        ("Host", "evil.example"),
        ("Connection", "close"),
        ("Authorization", &format!("Bearer {own}")),
    ];
    let mut connection = Connection::open(edge.admin);
    connection.send_head("GET", "/v1/self/ledger", &foreign);
    assert_eq!(connection.answer().unwrap().status, 403);
}

#[test]
fn the_sample_app_settles_its_own_unknown_attempts() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_RECONCILE", "100ms"));
    let submit = |key: &str, fault: &[(&str, &str)]| {
        edge.ask("POST", "/actions/submit", &keyed(key, fault), "text=essay")
    };
    let up = || {
        eventually_some("the app is up", || (edge.get("/dashboard").status == 200).then_some(()));
    };
    let settled = |key: &str| {
        let rows = edge.list(&["ledger", "--key", key]);
        rows[0]["resolved"].as_str().map(|who| (who.to_owned(), rows[0]["state"].clone()))
    };
    up();
    assert_eq!(submit("k1", &[]).status, 200);
    assert_eq!(submit("k1", &[]).header("idempotent-replayed"), Some("true"));

    // It died before it wrote: the app says so, and the repeat is sent.
    assert_eq!(submit("k2", &[("Studylab-Fault", "exit-before")]).status, 502);
    up();
    let (who, state) = eventually_some("the app has said it", || settled("k2"));
    assert!(who.starts_with("app al-") && who.ends_with(": by its attempts"), "{who}");
    assert_eq!(state, "released");
    let again = submit("k2", &[]);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, None));

    // It died after it wrote: repeats are told that it was carried out.
    assert_eq!(submit("k3", &[("Studylab-Fault", "exit-after")]).status, 502);
    up();
    assert_eq!(eventually_some("said", || settled("k3")).1, "completed_unreplayable");
    let told = submit("k3", &[]);
    assert_eq!(told.status, 409, "{}", told.text());
    assert_eq!(told.json()["type"], "https://vango-edge.dev/problems/response-not-replayable");
    assert_eq!(told.json()["forwarded"], "answered by the app");
    let ran = edge.get("/debug/executions?route=/actions/submit").json();
    let ran = ran["executions"].as_array().unwrap();
    assert_eq!(ran.iter().map(|r| &r["count"]).collect::<Vec<_>>(), [1, 1, 1], "{ran:?}");
}
