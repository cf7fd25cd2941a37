//! Previews: their own artifact, their own host, nobody else's business.

use std::fs;

use crate::support::{Artifact, Edge};

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
    // What nobody deployed is nobody's, and wakes nothing.
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
    let token = "t0ken-for-pr-7";
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
    }
    ask("/dashboard?vango_preview=wrong", &[]).problem(401, "preview-access");
    assert_eq!(edge.processes(), [] as [u32; 0], "nothing wakes for a stranger");
    let welcome = ask(&format!("/debug/echo?a=1&vango_preview={token}"), &[]);
    assert_eq!((welcome.status, welcome.header("location")), (303, Some("/debug/echo?a=1")));
    let cookie = welcome.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let page = ask("/debug/echo?a=1", &[("Cookie", &cookie)]);
    assert_eq!(page.status, 200);
    assert_eq!(ask("/assets/app.css", &[("Cookie", &cookie)]).status, 200);
    let page = ask("/debug/echo", &[("Vango-Edge-Preview-Token", token)]);
    assert!(!page.text().contains(token), "the app does not see it: {}", page.text());
    // Guessing has an end; who has the cookie is not kept out by it.
    let answers: Vec<u16> = (0..12)
        .map(|_| ask("/dashboard", &[("Vango-Edge-Preview-Token", "guess")]).status)
        .collect();
    assert_eq!((answers.iter().filter(|s| **s == 401).count(), answers[11]), (9, 429));
    let limited = ask(&format!("/?vango_preview={token}"), &[]);
    limited.problem(429, "too-many-attempts");
    assert_eq!(ask("/dashboard", &[("Cookie", &cookie)]).status, 200);
    let traces = edge.json(&["traces", "-n", "1000"]).to_string();
    assert!(!traces.contains(token) && !edge.log().contains(token));
    assert!(edge.stop().success());
}
