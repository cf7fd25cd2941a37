//! Promotions: the same digest, without a request failing for it, whatever happens in between.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vango_edge::clock::{Clock, Entropy, SeededEntropy, SystemClock};

use crate::support::{
    Artifact, Connection, Edge, Gate, UPGRADE, binary, eventually, eventually_some,
};

pub fn host(preview: &str) -> String {
    format!("{preview}.preview.studylab.localhost")
}

#[track_caller]
pub fn deploy_preview(edge: &Edge, artifact: &Artifact, preview: &str) -> Value {
    edge.json(&["deploy", artifact.write().to_str().unwrap(), "--preview", preview])
}

/// So many pages of the preview, and so its evidence.
#[track_caller]
pub fn visit(edge: &Edge, preview: &str, times: usize) {
    for _ in 0..times {
        let page = edge.ask("GET", "/dashboard", &[("Host", &host(preview))], "");
        assert_eq!(page.status, 200, "{}", page.text());
    }
}

pub fn route(edge: &Edge) -> Value {
    let routes = edge.list(&["routes"]);
    let mut ours = routes.into_iter().filter(|r| r["host"] == "studylab.localhost");
    let route = ours.next().expect("an owner");
    assert!(ours.next().is_none(), "exactly one owner");
    route
}

/// An artifact that differs from every other of another `name`.
pub fn version(name: &str) -> Artifact {
    Artifact::new().env("VERSION", name)
}

/// How long or how often, from the environment; scripts ask for more than the suite takes.
pub fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn production_gets_exactly_what_was_validated_and_nothing_without_evidence() {
    let edge = Edge::start();
    let apps = edge.config().with_file_name("apps").join("studylab.toml");
    let policy = "\npromotion = { min_requests = 3, max_error_rate = 0.0, checks = [\"smoke\"] }\n";
    let app = std::fs::read_to_string(&apps).unwrap() + policy;
    std::fs::write(&apps, app).unwrap();
    edge.json(&["reload"]);
    let first = edge.deploy(&version("1"));
    let preview = deploy_preview(&edge, &version("2"), "pr-7");
    visit(&edge, "pr-7", 2);
    let said = edge.refused(&["promote", "studylab", "pr-7"]);
    for words in
        ["answered 2 requests, and 3 are asked for", "\"smoke\" is not recorded", "--check"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(route(&edge)["digest"], first["digest"], "nothing was changed");
    visit(&edge, "pr-7", 1);
    edge.json(&["evidence", "studylab", "pr-7", "--check", "smoke=failed"]);
    assert!(edge.refused(&["promote", "studylab", "pr-7"]).contains("did not pass"));
    let evidence =
        edge.json(&["evidence", "studylab", "pr-7", "--check", "smoke=passed", "--note", "n"]);
    assert_eq!((&evidence["requests"], &evidence["satisfied"]), (&json!(3), &json!(true)));
    // A digest that was not validated.
    let other = format!("sha256:{}", "ab".repeat(32));
    assert!(
        edge.refused(&["promote", "studylab", &other]).contains("a rebuild is a new deployment")
    );
    // One that was deployed, and never served.
    let stored = edge.deploy(&version("3"));
    let stored = stored["digest"].as_str().unwrap().to_owned();
    assert!(edge.refused(&["promote", "studylab", &stored]).contains("0 requests"));

    let done = edge.json(&["promote", "studylab", "pr-7"]);
    assert_eq!((&done["state"], &done["epoch"]), (&json!("healthy"), &json!(2)));
    assert_eq!((&done["digest"], &done["previous"]), (&preview["digest"], &first["digest"]));
    assert_eq!(route(&edge)["digest"], preview["digest"]);
    assert!(edge.refused(&["promote", "studylab", "pr-7"]).contains("already"));
    let statement = edge.command(&["evidence", "studylab", "production", "--statement"]);
    let statement: Value = serde_json::from_slice(&statement.stdout).unwrap();
    let subject = &statement["subject"][0]["digest"]["sha256"];
    assert_eq!(
        format!("sha256:{}", subject.as_str().unwrap()),
        preview["digest"].as_str().unwrap()
    );
    assert_eq!(statement["predicate"]["verificationResult"], "PASSED");
    assert_eq!(statement["predicate"]["previousDigest"], first["digest"]);
    assert_eq!(statement["predicate"]["toEpoch"], 2);

    let back = edge.json(&["rollback", "studylab"]);
    assert_eq!((&back["digest"], &back["epoch"]), (&first["digest"], &json!(3)));
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("one allocation of production is left", || {
        let ps = edge.ps();
        ps.iter().filter(|a| a["environment"] == "studylab/production").count() == 1
    });
}

/// Each answer ended after a 1xx: the app closed, fell silent, or wrote half a head or something else.
#[test]
fn a_preview_that_answers_with_nothing_but_a_1xx_is_not_promoted() {
    let edge = Edge::start_with("[limits]\nresponse_timeout = \"700ms\"\n");
    let apps = edge.apps().join("studylab.toml");
    let app = std::fs::read_to_string(&apps).unwrap();
    let policy = |errors: &str| {
        let policy = format!("promotion = {{ min_requests = 5, max_error_rate = {errors} }}");
        std::fs::write(&apps, format!("{app}\n{policy}\n")).unwrap();
        edge.json(&["reload"]);
    };
    policy("0.5");
    edge.deploy(&version("1"));
    let preview = Artifact::perl(
        r#"
        if ($line =~ m{^GET /(\d+)-(\w+) }) {
            print $client "HTTP/1.1 $1 Wait\r\n\r\n";
            print $client "HTTP/1.1 200 OK\r\nContent-Le" if $2 eq 'half';
            print $client "\x00\x01 what?\r\n\r\n" if $2 eq 'garbage';
            if ($2 eq 'silent') { 1 while <$client> }
        } else {
            print $client $ok;
        }
        "#,
    );
    let preview = deploy_preview(&edge, &preview, "pr-7");
    let failing =
        [("100-closed", 502), ("103-half", 502), ("102-garbage", 502), ("103-closed", 502)];
    for (path, status) in failing.into_iter().chain([("100-silent", 504)]) {
        let mut client = edge.connect();
        client.send_head("GET", &format!("/{path}"), &[("Host", &host("pr-7"))]);
        let last = std::iter::from_fn(|| client.answer()).find(|answer| answer.status >= 200);
        assert_eq!(last.expect("an answer proper").status, status, "{path}");
    }
    let said = edge.refused(&["promote", "studylab", "pr-7"]);
    assert!(said.contains("5 of its 5 answers were errors (1.0000), and at most 0.5"), "{said}");
    assert_eq!(route(&edge)["epoch"], 1, "nothing was changed");
    // Nothing else is wrong with it.
    policy("1.0");
    let done = edge.json(&["promote", "studylab", "pr-7"]);
    assert_eq!((&done["state"], &done["digest"]), (&json!("healthy"), &preview["digest"]));
}

#[test]
fn what_cannot_become_healthy_goes_back_by_itself() {
    let edge = Edge::start();
    let file = edge.config().with_file_name("broken");
    let first = edge.deploy(&version("1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    let next = version("2").env("STUDYLAB_FAIL_FILE", file.to_str().unwrap());
    deploy_preview(&edge, &next, "pr-7");
    visit(&edge, "pr-7", 1);
    std::fs::write(&file, "").unwrap();
    let said = edge.refused(&["promote", "studylab", "pr-7"]);
    assert!(said.contains("rolled_back") && said.contains("ended before it was ready"), "{said}");
    let page = edge.get("/dashboard");
    assert_eq!(edge.trace(page.request_id())["outcome"], "hot", "what served serves on");
    assert_eq!(
        (route(&edge)["digest"].clone(), &route(&edge)["epoch"]),
        (first["digest"].clone(), &json!(1))
    );
    std::fs::remove_file(&file).unwrap();
    assert_eq!(edge.json(&["promote", "studylab", "pr-7"])["state"], "healthy");
}

#[test]
fn of_two_promotions_one_wins_and_the_other_is_told() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&version("1"));
    deploy_preview(&edge, &Artifact::behind(&gate), "slow");
    deploy_preview(&edge, &version("2"), "quick");
    gate.open();
    visit(&edge, "slow", 1);
    visit(&edge, "quick", 1);
    gate.close();
    let mut slow = promote(&edge, "slow");
    let id = eventually_some("it starts an allocation", || {
        let found = edge.ops().into_iter().find(|o| o["kind"] == "promote")?;
        (found["state"] == "route_cas").then(|| found["id"].as_str().unwrap().to_owned())
    });
    assert!(edge.refused(&["promote", "studylab", "quick"]).contains(&id));
    assert!(edge.refused(&["rollback", "studylab"]).contains("no earlier artifact"));
    gate.open();
    assert!(slow.wait().unwrap().success());
    assert_eq!(route(&edge)["epoch"], 2);
    // At the very same moment: those that lose changed nothing and say so.
    let racing: Vec<_> = (0..4).map(|_| promote(&edge, "quick")).collect();
    let ended: Vec<bool> = racing.into_iter().map(|mut p| p.wait().unwrap().success()).collect();
    assert_eq!(ended.iter().filter(|ok| **ok).count(), 1, "{ended:?}");
    assert_eq!(route(&edge)["epoch"], 3, "one move");
}

pub fn promote(edge: &Edge, preview: &str) -> std::process::Child {
    Command::new(binary())
        .args(["promote", "studylab", preview])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_live_socket_outlives_the_move_of_its_owner() {
    let edge = Edge::start();
    edge.deploy(&version("1"));
    deploy_preview(&edge, &version("2"), "pr-7");
    visit(&edge, "pr-7", 1);
    let mut socket = edge.connect();
    socket.send_head("GET", "/vango/live?sid=s-1", &UPGRADE);
    assert_eq!(socket.answer().unwrap().status, 101);
    let of_production = |a: &Value| a["environment"] == "studylab/production";
    let old = edge.ps().into_iter().find(of_production).unwrap()["id"].clone();
    edge.json(&["promote", "studylab", "pr-7"]);
    let ps: Vec<Value> = edge.ps().into_iter().filter(of_production).collect();
    let before = ps.iter().find(|a| a["id"] == old).expect("it drains, and is still there");
    assert_eq!(before["sockets"], 1);
    assert_eq!(edge.get("/dashboard").status, 200);
    drop(socket);
    eventually("it ends with its last socket", || {
        edge.ps().iter().filter(|a| of_production(a)).all(|a| a["id"] != old)
    });
}

/// What the load saw.
#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    failed: Mutex<Vec<String>>,
    /// Every epoch of each environment that answered, and by which artifact.
    served: Mutex<BTreeMap<(String, u64), BTreeMap<String, u64>>>,
}

/// Two promotions and a rollback under load, previews coming and going: nothing fails, and each epoch is
/// served by its own artifact only.
#[test]
fn promotions_under_load_fail_no_request() {
    let edge = Edge::start_alone("");
    let first = edge.deploy(&version("1"));
    deploy_preview(&edge, &version("2"), "two");
    deploy_preview(&edge, &version("3"), "three");
    visit(&edge, "two", 1);
    visit(&edge, "three", 1);
    assert_eq!(edge.get("/dashboard").status, 200);
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let pause = Duration::from_secs(asked("VANGO_EDGE_LOAD_SECONDS", 10)) / 4;
    let mut owners = BTreeMap::from([(1, first["digest"].as_str().unwrap().to_owned())]);
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (edge, seen, stop) = (&edge, &seen, &stop);
            scope.spawn(move || load(edge, n, seen, stop));
        }
        for step in [
            &["promote", "studylab", "two"][..],
            &["promote", "studylab", "three"],
            &["rollback", "studylab"],
        ] {
            run_for(&edge, pause);
            let done = edge.json(step);
            assert_eq!(done["state"], "healthy");
            owners.insert(
                done["epoch"].as_u64().unwrap(),
                done["digest"].as_str().unwrap().to_owned(),
            );
            deploy_preview(&edge, &version(&format!("{step:?}")), "two");
        }
        run_for(&edge, pause);
        stop.store(true, Ordering::SeqCst);
    });
    let failed = seen.failed.into_inner().unwrap();
    assert_eq!(failed, [] as [String; 0], "of {}", seen.requests.load(Ordering::SeqCst));
    let mut wrong = 0;
    let served = seen.served.into_inner().unwrap();
    for ((environment, epoch), by) in &served {
        assert_eq!(by.len(), 1, "{environment} epoch {epoch} was served by {by:?}");
        if environment == "studylab/production" {
            wrong += u64::from(by.keys().next() != owners.get(epoch));
        }
    }
    assert_eq!(wrong, 0, "{served:?}");
    assert_eq!(owners.len(), 4);
    println!(
        "{} requests, 0 failed, 0 by another artifact, {} epochs",
        seen.requests.load(Ordering::SeqCst),
        served.len()
    );
}

/// Lets so much time pass, without being waited for: each question takes about a millisecond.
fn run_for(edge: &Edge, time: Duration) {
    let clock = SystemClock::new();
    let end = clock.now() + time;
    while clock.now() < end {
        edge.held();
    }
}

fn load(edge: &Edge, n: usize, seen: &Seen, stop: &AtomicBool) {
    let mut connection: Option<Connection> = None;
    let mut asked = 0u64;
    while !stop.load(Ordering::SeqCst) {
        let open = connection.get_or_insert_with(|| edge.connect());
        let preview = host("two");
        let key = format!("load-{n}-{asked}");
        let (method, path, headers) = match n {
            0 => ("GET", "/debug/echo", vec![("Host", preview.as_str())]),
            1 => ("POST", "/actions/save", vec![("Idempotency-Key", key.as_str())]),
            2 => ("GET", "/assets/app.css", vec![]),
            _ => ("GET", "/debug/echo", vec![]),
        };
        let body = if method == "POST" { "text=load" } else { "" };
        let length = body.len().to_string();
        let mut all = headers;
        if !body.is_empty() {
            all.push(("Content-Length", &length));
            all.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        open.send_head(method, path, &all);
        open.send(body);
        asked += 1;
        let Some(answer) = open.answer() else {
            // Nothing came back, and nothing is known of it: that is a failure.
            let why = format!("{method} {path}: closed");
            seen.failed.lock().unwrap().push(why);
            connection = None;
            continue;
        };
        seen.requests.fetch_add(1, Ordering::SeqCst);
        if !(200..300).contains(&answer.status) {
            let why = format!("{method} {path}: {} {}", answer.status, answer.text());
            seen.failed.lock().unwrap().push(why);
        } else if path == "/debug/echo" {
            let echoed = answer.json();
            let headers = echoed["headers"].as_array().unwrap();
            let value = |name: &str| {
                let found = headers.iter().find(|h| h[0] == name).unwrap();
                found[1].as_str().unwrap().to_owned()
            };
            let at = (value("vango-edge-environment"), value("vango-edge-epoch").parse().unwrap());
            let mut served = seen.served.lock().unwrap();
            *served.entry(at).or_default().entry(value("vango-edge-artifact")).or_insert(0) += 1;
        }
        if answer.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
            connection = None;
        }
    }
}

/// `kill -9` at any moment of a promotion, from a seed: there is one owner always, it owns a digest that is
/// served, and what the promotion says of itself is true.
#[test]
fn kill_9_at_any_moment_of_a_promotion() {
    let rounds = asked("VANGO_EDGE_KILLS", 6);
    let seed = asked("VANGO_EDGE_SEED", 6);
    let entropy = SeededEntropy::new(seed);
    let mut edge = Edge::start();
    edge.deploy(&version("0"));
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for round in 1..=rounds {
        let name = format!("pr-{round}");
        let next = deploy_preview(&edge, &version(&round.to_string()), &name);
        visit(&edge, &name, 1);
        edge.json(&["sleep", &format!("studylab/{name}")]);
        let before = route(&edge);
        let mut promoting = promote(&edge, &name);
        // A time that passes without being waited for: a question takes about a millisecond.
        for _ in 0..entropy.next_u64() % 120 {
            edge.held();
        }
        edge.kill();
        let _ = promoting.wait();
        edge.start_again();
        let over = eventually_some("the promotion is over", || {
            let all = edge.ops();
            let ours = all.into_iter().find(|o| o["kind"] == "promote");
            match ours {
                None => Some(json!({ "state": "never recorded" })),
                Some(o)
                    if ["healthy", "rolled_back", "failed"].iter().any(|s| o["state"] == *s) =>
                {
                    Some(o)
                }
                Some(_) => None,
            }
        });
        let after = route(&edge);
        let moved = after["digest"] == next["digest"];
        let state = over["state"].as_str().unwrap().to_owned();
        assert!(
            moved || after["digest"] == before["digest"],
            "seed {seed}, round {round}: {after}"
        );
        assert!(after["epoch"].as_u64() >= before["epoch"].as_u64());
        if state == "healthy" && over["attempt"].as_u64() > Some(1) {
            *found.entry("healthy after a takeover".into()).or_default() += 1;
        }
        *found.entry(format!("{state}{}", if moved { ", moved" } else { "" })).or_default() += 1;
        let page = edge.get("/debug/echo");
        assert_eq!(page.status, 200, "seed {seed}, round {round}: {}", page.text());
        let headers = page.json()["headers"].to_string();
        assert!(headers.contains(after["digest"].as_str().unwrap()), "{headers}");
    }
    println!("seed {seed}: {found:?}");
    eventually("one allocation of production is left", || {
        edge.ps().iter().filter(|a| a["environment"] == "studylab/production").count() == 1
    });
}
