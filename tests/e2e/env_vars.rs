//! Variables that an operator sets: in force with the next epoch, or not at all, and shown to nobody by accident.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Artifact, Edge, binary, eventually};

use super::promotion::{deploy_preview, host, route};

/// An app that answers with its environment, and does not start with `BROKEN=1`.
fn shown() -> Artifact {
    let artifact = Artifact::perl(
        r#"
        my $all = join('', map { "$_=$ENV{$_}\n" } sort keys %ENV);
        print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($all)
            . "\r\nConnection: close\r\n\r\n$all";
        "#,
    );
    let program = fs::read_to_string(artifact.path().join("app.pl")).unwrap();
    let program = format!("die \"broken\\n\" if $ENV{{BROKEN}};\n{program}");
    fs::write(artifact.path().join("app.pl"), program).unwrap();
    artifact.set("process", "ready", "{ tcp = true }").env("LOG", "info").env("KEPT", "contract")
}

fn value(edge: &Edge, at: &str, name: &str) -> Option<String> {
    let answer = edge.ask("GET", "/", &[("Host", at)], "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let lines = answer.text().lines().filter_map(|l| l.split_once('='));
    lines.filter(|(n, _)| *n == name).map(|(_, v)| v.to_owned()).next()
}

const PRODUCTION: &str = "studylab.localhost";

#[test]
fn a_change_serves_under_the_next_epoch_and_outlives_deployments_rollbacks_and_restarts() {
    let mut edge = Edge::start();
    let stored = edge.json(&["env", "set", "studylab", "FIRST=1"]);
    assert_eq!(stored["effect"], "stored");
    let first = edge.deploy(&shown());
    assert_eq!(value(&edge, PRODUCTION, "FIRST").as_deref(), Some("1"));

    let done = edge.json(&["env", "set", "studylab", "LOG=debug", "URL=a=b c"]);
    assert_eq!((&done["kind"], &done["state"]), (&json!("configure"), &json!("healthy")));
    assert_eq!((&done["epoch"], &done["digest"]), (&json!(2), &first["digest"]));
    assert_eq!(edge.list(&["deployments"]).len(), 1, "no artifact and no deployment is made");
    for (name, expected) in [
        ("LOG", Some("debug")),
        ("URL", Some("a=b c")),
        ("KEPT", Some("contract")),
        ("FIRST", Some("1")),
    ] {
        assert_eq!(value(&edge, PRODUCTION, name).as_deref(), expected, "{name}");
    }
    eventually("what served before is gone", || edge.ps().len() == 1);
    let same = edge.json(&["env", "set", "studylab", "LOG=debug"]);
    assert_eq!(same["effect"], "unchanged");

    edge.deploy(&shown().env("VERSION", "2"));
    assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some("debug"));
    assert_eq!(edge.json(&["rollback", "studylab"])["digest"], first["digest"]);
    assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some("debug"));
    edge.kill();
    edge.start_again();
    edge.json(&["sleep", "studylab"]);
    assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some("debug"));

    // Asleep as well, and seen by commands.
    edge.json(&["sleep", "studylab"]);
    edge.json(&["env", "unset", "studylab", "LOG", "FIRST", "NEVER_SET"]);
    assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some("info"), "the contract's again");
    assert_eq!(value(&edge, PRODUCTION, "FIRST"), None);
    assert_eq!(edge.said(&["exec", "studylab", "-n", "--", "printenv", "URL"]), "a=b c\n");
}

#[test]
fn what_does_not_start_with_them_leaves_the_old_ones_in_force() {
    let mut edge = Edge::start();
    edge.deploy(&shown());
    edge.json(&["env", "set", "studylab", "LOG=debug"]);
    let before = route(&edge);
    let said = edge.refused(&["env", "set", "studylab", "BROKEN=1", "LOG=trace"]);
    assert!(said.contains("rolled_back") && said.contains("exit code"), "{said}");
    assert_eq!(route(&edge), before);
    for _ in 0..2 {
        edge.json(&["sleep", "studylab"]);
        assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some("debug"));
        assert_eq!(edge.said(&["env", "list", "studylab", "--values"]), "LOG=debug\n");
        edge.kill();
        edge.start_again();
    }
    // Killed on either side of the owner's move: the values are those of the owner.
    for (point, state, expected) in [
        ("after started", "healthy", "a"),
        ("after edge_propagating", "healthy", "b"),
        ("before requested", "none", "b"),
    ] {
        edge.crash_at(&format!("promotion {point}"));
        let set = format!("LOG={}", if point == "before requested" { "c" } else { expected });
        let asked = edge.command(&["env", "set", "studylab", &set]);
        assert!(!asked.status.success(), "{point}");
        edge.crashed();
        edge.start_again();
        eventually("the change is over", || {
            let at = "/v1/environments/studylab/production/promotion";
            let last = edge.admin("GET", at).json();
            last["in_progress"] == false && (state == "none" || last["state"] == state)
        });
        assert_eq!(value(&edge, PRODUCTION, "LOG").as_deref(), Some(expected), "{point}");
    }
}

#[test]
fn previews_have_their_own_and_values_are_shown_to_nobody_by_accident() {
    let edge = Edge::start();
    edge.deploy(&shown());
    deploy_preview(&edge, &shown(), "pr-7");
    let mut child = Command::new(binary())
        .args(["env", "set", "studylab/pr-7"])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = b"# of the preview\nWORD=geheim-1\n\nOTHER=geheim-2\n";
    child.stdin.take().unwrap().write_all(lines).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(value(&edge, &host("pr-7"), "WORD").as_deref(), Some("geheim-1"));
    assert_eq!(value(&edge, PRODUCTION, "WORD"), None);

    assert_eq!(edge.said(&["env", "list", "studylab/pr-7"]), "OTHER\nWORD\n");
    assert_eq!(edge.said(&["env", "list", "studylab"]), "");
    let values = edge.said(&["env", "list", "studylab/pr-7", "--values"]);
    assert_eq!(values, "OTHER=geheim-2\nWORD=geheim-1\n");
    let refused = edge.refused(&["env", "set", "studylab/pr-7", "WORD=geheim-3", "PORT=1"]);
    assert!(refused.contains("PORT is set by the edge itself"), "{refused}");
    let none = edge.refused(&["env", "set", "studylab/pr-8", "WORD=geheim-3"]);
    assert!(none.contains("there is no preview studylab/pr-8"), "{none}");
    let long = format!("WORD={}", "x".repeat(32 * 1024 + 1));
    assert!(edge.refused(&["env", "set", "studylab", &long]).contains("at most 32768 fit"));

    let audit = edge.list(&["audit", "studylab"]);
    let why = |decision: &str| {
        let row = audit.iter().find(|r| r["decision"] == decision).expect("a row");
        row["why"].as_str().unwrap().to_owned()
    };
    assert!(why("env").contains("an operator set OTHER WORD"), "{}", why("env"));
    assert!(why("env-shown").contains("studylab/pr-7"));
    let everything = [
        edge.log(),
        Value::from(audit.clone()).to_string(),
        edge.json(&["ops"]).to_string(),
        edge.json(&["ps"]).to_string(),
        edge.admin("GET", "/v1/environments").text().to_owned(),
        edge.admin("GET", "/v1/environments/studylab/pr-7/env").text().to_owned(),
        none + &refused,
    ];
    for text in everything {
        assert!(!text.contains("geheim"), "{text}");
    }

    edge.json(&["remove", "studylab/pr-7"]);
    deploy_preview(&edge, &shown(), "pr-7");
    assert_eq!(value(&edge, &host("pr-7"), "WORD"), None, "they went with the preview");
}

fn audited(edge: &Edge) -> Vec<String> {
    let rows = edge.list(&["audit", "studylab"]).into_iter().filter(|r| r["decision"] == "env");
    rows.map(|r| r["why"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_change_is_in_the_audit_once_wherever_the_edge_is_killed() {
    let mut edge = Edge::start();
    edge.deploy(&shown());
    for (n, point) in [
        "promotion before requested",
        "promotion after requested",
        "audit before kept",
        "audit after kept",
    ]
    .into_iter()
    .enumerate()
    {
        edge.crash_at(point);
        let asked = edge.command(&["env", "set", "studylab", &format!("N{n}=1")]);
        assert!(!asked.status.success(), "{point}");
        edge.crashed();
        edge.start_again();
        eventually("the change is over", || {
            let at = "/v1/environments/studylab/production/promotion";
            edge.admin("GET", at).json()["in_progress"] != true
        });
        let is_set = edge.said(&["env", "list", "studylab"]).contains(&format!("N{n}\n"));
        assert_eq!(is_set, n > 0, "{point}");
        let rows =
            || audited(&edge).iter().filter(|why| why.contains(&format!("set N{n} "))).count();
        eventually("it is in the audit if it is on record", || rows() == usize::from(is_set));
    }
    // Bringing again what was brought adds nothing.
    edge.kill();
    edge.start_again();
    edge.json(&["env", "set", "studylab", "LAST=1"]);
    assert_eq!(audited(&edge).len(), 4, "{:?}", audited(&edge));
}

#[test]
fn of_two_changes_at_once_each_is_whole_or_refused() {
    let edge = Edge::start();
    edge.deploy(&shown());
    let set = |name: &str| {
        let words = [format!("{name}=1"), format!("{name}_TOO=1")];
        edge.command(&["env", "set", "studylab", &words[0], &words[1]])
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| set("TWO"));
        (set("ONE"), other.join().unwrap())
    });
    let names = edge.said(&["env", "list", "studylab"]);
    for (name, asked) in [("ONE", &one), ("TWO", &two)] {
        let done = asked.status.success();
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(done || said.contains("vango-edge ops") || said.contains("wait for it"), "{said}");
        assert_eq!(names.contains(&format!("{name}\n{name}_TOO\n")), done, "{names}{said}");
        assert_eq!(names.contains(name), done, "{names}{said}");
        let rows = audited(&edge).iter().filter(|why| why.contains(&format!(" {name} "))).count();
        assert_eq!(rows, usize::from(done), "{:?}", audited(&edge));
    }
    assert!(one.status.success() || two.status.success());
}

#[test]
fn the_audit_names_the_token_and_never_shows_it() {
    let mut edge = Edge::start();
    edge.deploy(&shown());
    let (named, bare) =
        (edge.config().with_file_name("ci.token"), edge.config().with_file_name("bare.token"));
    fs::write(&named, "a-secret-token-of-ci").unwrap();
    fs::write(&bare, "a-secret-token-of-none").unwrap();
    let tokens = format!(
        "[admin]\ntokens = [{{ role = \"operate\", name = \"ci\", file = {named:?} }}, \
         {{ role = \"operate\", file = {bare:?} }}]\n"
    );
    edge.reconfigure("[admin]\n", &tokens);
    edge.kill();
    edge.start_again();
    let (named, bare) = (named.to_str().unwrap(), bare.to_str().unwrap());
    let by = |token: &str, words: &[&str]| edge.json(&[&["--token-file", token], words].concat());
    by(named, &["env", "set", "studylab", "A=1"]);
    by(bare, &["env", "set", "studylab", "B=1"]);
    by(named, &["env", "list", "studylab", "--values"]);
    let exec = edge.command(&["--token-file", named, "exec", "studylab", "-n", "--", "true"]);
    assert!(exec.status.success());
    let audit = by(named, &["audit", "studylab"]).to_string();
    for words in [
        "studylab/production: the token ci set A (",
        &format!("studylab/production: the token in file {bare} set B ("),
        "the token ci looked at all values",
        "the token ci runs it once: true",
    ] {
        assert!(audit.contains(words), "{words}: {audit}");
    }
    assert!(!audit.contains("a-secret-token") && !edge.log().contains("a-secret-token"), "{audit}");
}
