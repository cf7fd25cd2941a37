//! Previews: their own artifact, their own host, their own secrets.

use std::fs;

use crate::support::{Answer, Artifact, Edge};

use super::keyed;
use super::promotion::{deploy_preview, host, visit};

#[test]
fn a_preview_runs_its_own_artifact_and_says_which() {
    let edge = Edge::start();
    let production = edge.deploy(&Artifact::new());
    let deployed = deploy_preview(&edge, &Artifact::new().env("LOG", "debug"), "pr-7");
    assert_eq!(deployed["environment"], "studylab/pr-7");
    assert_ne!(deployed["digest"], production["digest"]);
    let host = host("pr-7");
    let page = edge.ask("GET", "/debug/echo", &[("Host", &host)], "");
    let digest = deployed["digest"].as_str().unwrap();
    assert_eq!(page.header("vango-edge-artifact"), Some(digest));
    assert_eq!(page.header("x-robots-tag"), Some("noindex"));
    let seen = page.json()["headers"].to_string();
    assert!(seen.contains(digest) && seen.contains("studylab/pr-7"), "{seen}");
    let asset = edge.ask("GET", "/assets/app.css", &[("Host", &host)], "");
    assert_eq!(asset.header("vango-edge-artifact"), Some(digest));
    assert_eq!(asset.header("x-robots-tag"), Some("noindex"));
    assert_eq!(edge.ps().len(), 1, "production sleeps on");
    let page = edge.get("/debug/echo");
    assert_eq!((page.status, page.header("vango-edge-artifact")), (200, None));
    assert_eq!(page.header("x-robots-tag"), None);
    let trace = edge.trace(edge.ask("GET", "/dashboard", &[("Host", &host)], "").request_id());
    let actions: Vec<_> = trace["steps"].as_array().unwrap().iter().map(|s| &s["action"]).collect();
    assert!(actions.contains(&&"Run exact preview artifact.".into()), "{actions:?}");
    // What was not deployed has no owner, and wakes nothing.
    edge.ask("GET", "/", &[("Host", &super::promotion::host("pr-8"))], "").problem(404, "no-route");
    edge.json(&["sleep", "studylab/pr-7"]);
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_preview_that_is_awake_gets_its_next_artifact_without_a_dip() {
    let edge = Edge::start();
    let first = deploy_preview(&edge, &Artifact::new(), "pr-7");
    visit(&edge, "pr-7", 1);
    let next = deploy_preview(&edge, &Artifact::new().env("LOG", "debug"), "pr-7");
    assert_eq!((&first["epoch"], &next["epoch"]), (&1.into(), &2.into()));
    let page = edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "");
    assert_eq!(page.header("vango-edge-artifact"), next["digest"].as_str());
    assert_eq!(edge.trace(page.request_id())["outcome"], "hot", "it was ready before");
    // One that cannot start is refused, and what served serves on.
    let broken = Artifact::new().env("STUDYLAB_FAIL_START", "1");
    let arguments = ["deploy", broken.write().to_str().unwrap(), "--preview", "pr-7"];
    let refused = edge.command(&arguments);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("rolled_back"), "{said}");
    let page = edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "");
    assert_eq!(page.header("vango-edge-artifact"), next["digest"].as_str());
}

#[test]
fn a_preview_of_a_missing_artifact_says_so() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    deploy_preview(&edge, &Artifact::new().env("LOG", "debug"), "pr-7");
    let digest = edge.list(&["routes"]);
    let digest =
        digest.iter().find(|r| r["environment"] == "studylab/pr-7").unwrap()["digest"].clone();
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    fs::remove_dir_all(edge.state().join("trees").join(&hex)).unwrap();
    fs::remove_file(edge.state().join("artifacts/blobs/sha256").join(&hex)).unwrap();
    let answer = edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "");
    answer.retryable("artifact-unavailable");
    assert_eq!(answer.header("vango-edge-artifact"), digest.as_str());
    assert_eq!(edge.get("/dashboard").status, 200, "production is another matter");
}

#[test]
fn a_token_opens_it_once_and_is_written_nowhere() {
    let mut edge = Edge::start();
    let token = "t0ken-for-preview-7";
    let apps = edge.config().with_file_name("apps");
    fs::write(apps.join("token"), format!("{token}\n")).unwrap();
    let app = fs::read_to_string(apps.join("studylab.toml")).unwrap();
    let access = format!("{app}\npreview_access = {{ token = {{ file = \"token\" }} }}\n");
    fs::write(apps.join("studylab.toml"), access).unwrap();
    edge.json(&["reload"]);
    deploy_preview(&edge, &Artifact::new(), "pr-7");
    let host = host("pr-7");
    let ask = |target: &str, headers: &[(&str, &str)]| {
        edge.ask("GET", target, &[headers, &[("Host", &host)]].concat(), "")
    };
    for path in ["/dashboard", "/assets/app.css"] {
        ask(path, &[]).problem(401, "preview-access");
        let url = format!("http://{host}{path}");
        assert_eq!(edge.json(&["explain", "GET", &url])["outcome"], "preview-access");
        let shown = format!("Vango-Edge-Preview-Token: {token}");
        let explained = edge.json(&["explain", "GET", &url, "-H", &shown]);
        assert_eq!(explained["outcome"], if path == "/dashboard" { "woken" } else { "asset" });
    }
    // Who may only look is not to find out the token by asking.
    let guess = ["explain", "GET", &format!("http://{host}/"), "-H", "Vango-Edge-Preview-Token: x"];
    let told: Vec<_> = (0..11).map(|_| edge.json(&guess)["outcome"].clone()).collect();
    assert_eq!((&told[9], &told[10]), (&"preview-access".into(), &"too-many-attempts".into()));
    ask("/dashboard", &[]).problem(401, "preview-access");
    ask("/dashboard?vango_preview=wrong", &[]).problem(401, "preview-access");
    assert_eq!(edge.processes(), [] as [u32; 0], "nothing wakes for a stranger");
    let page = [("Accept", "text/html,*/*;q=0.8")];
    let welcome = ask(&format!("/debug/echo?a=1&vango_preview={token}"), &page);
    assert_eq!((welcome.status, welcome.header("location")), (303, Some("/debug/echo?a=1")));
    let cookie = welcome.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let page = ask("/debug/echo?a=1", &[("Cookie", &cookie)]);
    assert_eq!(page.status, 200);
    assert_eq!(ask("/assets/app.css", &[("Cookie", &cookie)]).status, 200);
    let page = ask("/debug/echo", &[("Vango-Edge-Preview-Token", token)]);
    assert!(!page.text().contains(token), "the app does not see it: {}", page.text());
    // Guessing has an end, and then nothing of this client is looked at, by whatever way.
    let answers: Vec<u16> = (0..12)
        .map(|_| ask("/dashboard", &[("Vango-Edge-Preview-Token", "guess")]).status)
        .collect();
    assert_eq!((answers.iter().filter(|s| **s == 401).count(), answers[11]), (9, 429));
    let limited = ask(&format!("/?vango_preview={token}"), &[]);
    limited.problem(429, "too-many-attempts");
    ask("/dashboard", &[("Cookie", &cookie)]).problem(429, "too-many-attempts");
    let traces = edge.json(&["traces", "-n", "1000"]).to_string();
    assert!(!traces.contains(token) && !edge.log().contains(token));
    assert!(edge.stop().success());
}

/// The operator's file with these secrets for production and for previews.
fn with_secrets(edge: &Edge, production: &str, previews: &str) {
    let app = edge.apps().join("studylab.toml");
    let text = fs::read_to_string(&app).unwrap();
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("secrets", _)) => format!("secrets = {production}\n"),
        Some(("preview_secrets", _)) => format!("preview_secrets = {previews}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(&app, lines.collect::<String>()).unwrap();
    edge.json(&["reload"]);
}

/// The very same artifact, and yet: other secrets, another home, keys of its own.
#[test]
fn a_preview_shares_nothing_with_production() {
    let edge = Edge::start();
    for (file, value) in [("live", "live-7f3a"), ("test", "test-9c1e")] {
        fs::write(edge.apps().join(file), value).unwrap();
    }
    with_secrets(&edge, "{ API_KEY = { file = \"live\" } }", "{ API_KEY = { file = \"test\" } }");
    let artifact = keyed::artifact().set("process", "secrets", "[\"API_KEY\"]");
    let production = edge.deploy(&artifact);
    let preview = deploy_preview(&edge, &artifact, "pr-7");
    assert_eq!(production["digest"], preview["digest"]);
    let pr7 = host("pr-7");
    let save = |host: &str, text: &str| -> Answer {
        let headers = [
            ("Host", host),
            ("Idempotency-Key", "k1"),
            ("Cookie", "vango_session=ada"),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        edge.ask("POST", "/actions/save", &headers, &format!("text={text}"))
    };
    // One key, two scopes: each is sent, and neither is the other's repeat.
    for (host, text) in [("studylab.localhost", "tea"), (&*pr7, "milk")] {
        let first = save(host, text);
        assert_eq!((first.status, first.header("idempotent-replayed")), (200, None), "{host}");
        let again = save(host, text);
        assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, Some("true")));
    }
    let environ = |environment: &str| {
        let ps = edge.ps();
        let pid = ps.iter().find(|a| a["environment"] == environment).unwrap()["pid"].clone();
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let home = text.split('\0').find(|e| e.starts_with("HOME=")).unwrap().to_owned();
        (text, home)
    };
    let (live, live_home) = environ("studylab/production");
    let (test, test_home) = environ("studylab/pr-7");
    assert!(live.contains("API_KEY=live-7f3a") && !live.contains("test-9c1e"));
    assert!(test.contains("API_KEY=test-9c1e") && !test.contains("live-7f3a"));
    assert_ne!(live_home, test_home);
    // Where previews have no such secret, one does not get production's: it does not start.
    with_secrets(&edge, "{ API_KEY = { file = \"live\" } }", "{}");
    deploy_preview(&edge, &artifact, "pr-8");
    let page = edge.ask("GET", "/dashboard", &[("Host", &host("pr-8"))], "");
    page.retryable("wake-failed");
    assert!(edge.log().contains("API_KEY") && !edge.log().contains("live-7f3a"));
    // One that goes and comes again finds its keys, for as long as they are kept.
    with_secrets(&edge, "{ API_KEY = { file = \"live\" } }", "{ API_KEY = { file = \"test\" } }");
    edge.json(&["remove", "studylab/pr-7"]);
    deploy_preview(&edge, &artifact, "pr-7");
    assert_eq!(save(&pr7, "milk").header("idempotent-replayed"), Some("true"));
    save(&pr7, "tea").problem(422, "idempotency-key-reused");
}
