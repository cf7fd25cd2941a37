//! Deploying: the same directory is the same artifact, and what cannot be one is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::promotion::{deploy_preview, host};
use crate::support::{Artifact, Edge, binary};

fn deploy(edge: &Edge, artifact: &Artifact) -> Output {
    edge.command(&["deploy", artifact.write().to_str().unwrap()])
}

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(words.iter().all(|w| said.contains(w)), "{words:?} in {said}");
}

#[test]
fn the_same_directory_is_the_same_artifact() {
    let edge = Edge::start();
    let (one, copy) = (Artifact::new(), Artifact::new());
    let first = edge.deploy(&one);
    assert_eq!((&first["effect"], &first["epoch"]), (&json!("owns"), &json!(1)));
    for same in [edge.deploy(&one), edge.deploy(&copy)] {
        assert_eq!(first["digest"], same["digest"], "another place and time");
        assert_eq!(first["deployment"], same["deployment"], "nothing was deployed anew");
        assert_eq!((&same["effect"], &same["epoch"]), (&json!("unchanged"), &json!(1)));
    }
    assert_eq!(edge.processes(), [] as [u32; 0], "nothing was started either");
    let other = edge.deploy(&Artifact::new().env("LOG", "debug"));
    assert_ne!(first["digest"], other["digest"]);
    let all = edge.list(&["deployments"]);
    let current: Vec<_> = all.iter().filter(|d| d["current"] == true).collect();
    assert_eq!((all.len(), current.len()), (2, 1));
    assert_eq!(current[0]["id"], other["deployment"], "the second one took the hosts over");
}

#[test]
fn what_cannot_be_an_artifact_is_refused_with_the_reason() {
    let edge = Edge::start();
    let linked = Artifact::new();
    symlink("/etc/passwd", linked.write().join("public/passwd")).unwrap();
    assert_refused(&deploy(&edge, &linked), &["public/passwd", "symbolic link"]);

    let bare = Artifact::new();
    fs::remove_file(bare.write().join("vango-edge.toml")).unwrap();
    // Not written again.
    let output = edge.command(&["deploy", bare.path().to_str().unwrap()]);
    assert_refused(&output, &["vango-edge.toml"]);

    let wrong = Artifact::new().set("wake", "budgte", "\"1s\"").set("scale", "max", "\"one\"");
    assert_refused(
        &deploy(&edge, &wrong),
        &["2 errors", "did you mean `budget`?", "found \"one\""],
    );

    let unknown = Artifact::new().replace("name = \"studylab\"", "name = \"other\"");
    assert_refused(&deploy(&edge, &unknown), &["no app other", "it has studylab"]);

    let output = edge.command(&["deploy", "/does/not/exist"]);
    assert_refused(&output, &["/does/not/exist"]);
    assert_eq!(edge.list(&["deployments"]), [] as [Value; 0], "nothing was half done");
    assert_eq!(edge.list(&["routes"]), [] as [Value; 0]);
}

#[test]
fn a_terminal_sees_how_far_packing_and_uploading_are_and_nobody_else_does() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    let dir = artifact.write().display().to_string();
    // script(1) gives the command a terminal, and writes down what it was shown.
    let on_a_terminal = |arguments: &str| {
        let command = format!("{} deploy {arguments}", binary().display());
        let output = Command::new("script")
            .args(["-q", "-e", "-c", &command, "/dev/null"])
            .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (deployed, shown) = on_a_terminal(&dir);
    assert!(deployed, "{shown}");
    let bars = |what: &str| -> Vec<(u64, u64)> {
        let lines = shown.split('\r').filter(|l| l.contains(&format!("{what} [")));
        let numbers = lines.map(|l| {
            let words: Vec<&str> = l.split_once("] ").unwrap().1.split(' ').collect();
            (words[0].parse().unwrap(), words[2].parse().unwrap())
        });
        numbers.collect()
    };
    for what in ["packing", "encoding static files", "uploading"] {
        let bars = bars(what);
        let total = bars.last().unwrap_or_else(|| panic!("{what}: {shown}")).1;
        assert!(bars.windows(2).all(|w| w[0].0 <= w[1].0), "{what}: {bars:?}");
        assert_eq!(bars.last(), Some(&(total, total)), "{what}");
        assert!(bars.len() <= 110, "{what} is not written for each byte: {}", bars.len());
    }
    // One large layer is most of it, and is not one step.
    assert!(bars("uploading").len() > 20, "{:?}", bars("uploading"));
    let after = shown.rsplit_once("\x1b[K").unwrap().1;
    assert!(after.starts_with("studylab/production dp-"), "the line is gone: {after}");
    let (deployed, shown) = on_a_terminal("/nowhere");
    let after = shown.rsplit_once("\x1b[K").map_or(&*shown, |(_, after)| after);
    assert!(!deployed && after.contains("/nowhere"), "{shown}");
    let quiet = edge.command(&["deploy", &dir]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{quiet:?}");
}

/// Routing waits for the list of an artifact's files, which is long here.
#[test]
fn what_was_deployed_is_routed_when_the_command_ends() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    for n in 0..2000 {
        fs::write(artifact.path().join(format!("public/{n}.txt")), "x").unwrap();
    }
    edge.deploy(&artifact);
    assert_eq!(edge.get("/assets/1999.txt").status, 200);
    deploy_preview(&edge, &artifact.env("LOG", "debug"), "pr-7");
    assert_eq!(edge.ask("GET", "/assets/7.txt", &[("Host", &host("pr-7"))], "").status, 200);
    edge.json(&["remove", "studylab/pr-7"]);
    edge.ask("GET", "/", &[("Host", &host("pr-7"))], "").problem(404, "no-route");
}
