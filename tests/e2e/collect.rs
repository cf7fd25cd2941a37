//! What nothing refers to goes, the rest stays, and killing it in between changes neither.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use vango_edge::clock::{Entropy, SeededEntropy};

use crate::support::{Edge, binary, eventually};

use super::promotion::{deploy_preview, host, version, visit};

const SOON: &str = "[assets]\nretention = \"1ms\"\nkeep_deployments = 1\n";

fn count(edge: &Edge, dir: &str) -> usize {
    fs::read_dir(edge.state().join(dir)).unwrap().count()
}

#[test]
fn owners_previews_and_the_way_back_keep_what_they_need() {
    let edge = Edge::start_with(SOON);
    let first = edge.deploy(&version("0"));
    for n in ["1", "2", "3"] {
        deploy_preview(&edge, &version(n), &format!("pr-{n}"));
        visit(&edge, &format!("pr-{n}"), 1);
        edge.json(&["promote", "studylab", &format!("pr-{n}")]);
    }
    edge.json(&["remove", "studylab/pr-1"]);
    edge.ask("GET", "/", &[("Host", &host("pr-1"))], "").problem(404, "no-route");
    eventually("what ran of the preview ends", || {
        edge.ps().iter().all(|a| a["environment"] != "studylab/pr-1")
    });
    let before = count(&edge, "artifacts/blobs/sha256");
    let done = edge.json(&["collect"]);
    // Of production: 3 owns, 2 is the way back; 1 and 0 are over. 1 is still the removed preview's.
    assert_eq!((&done["deployments"], &done["trees"]), (&2.into(), &1.into()), "{done}");
    let removed = usize::try_from(done["blobs"].as_u64().unwrap()).unwrap();
    assert!(removed >= 3 && count(&edge, "artifacts/blobs/sha256") == before - removed, "{done}");
    let again = edge.json(&["collect"]);
    assert_eq!(
        (&again["deployments"], &again["blobs"], &again["trees"]),
        (&0.into(), &0.into(), &0.into())
    );

    edge.json(&["sleep", "studylab"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.json(&["sleep", "studylab/pr-2"]);
    visit(&edge, "pr-2", 1);
    assert_eq!(edge.get("/assets/app.css").status, 200);
    assert_eq!(edge.json(&["rollback", "studylab"])["state"], "healthy");
    let gone = edge.command(&["promote", "studylab", first["digest"].as_str().unwrap()]);
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(said.contains("no deployment of studylab has the artifact"), "{said}");
    let back = edge.deploy(&version("0"));
    assert_eq!(back["digest"], first["digest"], "what was collected can be deployed again");
    edge.json(&["collect"]);
    edge.json(&["sleep", "studylab"]);
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn an_artifact_that_is_not_whole_stops_the_collection() {
    let edge = Edge::start_with(SOON);
    let artifact = version("0");
    let deployed = edge.deploy(&artifact);
    let hex = deployed["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let manifest = edge.state().join("artifacts/blobs/sha256").join(hex);
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, "damaged").unwrap();
    let before = count(&edge, "artifacts/blobs/sha256");
    let refused = edge.command(&["collect"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("deploy that artifact again"), "{said}");
    assert_eq!(count(&edge, "artifacts/blobs/sha256"), before);
    fs::write(&manifest, whole).unwrap();
    edge.json(&["collect"]);
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn it_can_be_killed_anywhere() {
    const ROUNDS: u64 = 5;
    let entropy = SeededEntropy::new(7);
    let mut edge = Edge::start_with(SOON);
    edge.deploy(&version("0"));
    for round in 0..ROUNDS {
        for n in 0..3 {
            let name = format!("pr-{round}-{n}");
            deploy_preview(&edge, &version(&name), &name);
            deploy_preview(&edge, &version(&format!("{name}-next")), &name);
            edge.json(&["remove", &format!("studylab/{name}")]);
        }
        let mut collecting = Command::new(binary())
            .arg("collect")
            .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A time that passes without being waited for: a question takes about a millisecond.
        for _ in 0..entropy.next_u64() % 20 {
            edge.held();
        }
        edge.kill();
        let _ = collecting.wait();
        edge.start_again();
        edge.json(&["sleep", "studylab"]);
        assert_eq!(edge.get("/dashboard").status, 200, "round {round}");
        assert_eq!(edge.get("/assets/app.css").status, 200, "round {round}");
    }
    edge.json(&["collect"]);
    assert_eq!(edge.json(&["collect"])["blobs"], 0, "nothing is left over from being killed");
}

fn tree(edge: &Edge, deployed: &Value) -> PathBuf {
    let hex = deployed["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    edge.state().join("trees").join(hex)
}

#[test]
fn what_only_a_command_runs_from_is_kept_until_it_has_ended() {
    let edge = Edge::start_with(SOON);
    edge.deploy(&version("0"));
    let artifact = version("1");
    fs::write(artifact.path().join("fixture.txt"), "a fixture\n").unwrap();
    let deployed = deploy_preview(&edge, &artifact, "pr-1");
    let script = "echo up; read -r go; cat fixture.txt";
    let mut command = Command::new(binary())
        .args(["exec", "studylab/pr-1", "--", "sh", "-c", script])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(command.stdout.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    deploy_preview(&edge, &version("2"), "pr-1");
    edge.json(&["remove", "studylab/pr-1"]);
    let done = edge.json(&["collect"]);
    assert_eq!((&done["deployments"], &done["trees"]), (&1.into(), &0.into()), "{done}");
    assert!(tree(&edge, &deployed).is_dir());
    command.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut rest = String::new();
    printed.read_to_string(&mut rest).unwrap();
    assert!(command.wait().unwrap().success());
    assert_eq!(rest, "a fixture\n");
    assert_eq!(edge.json(&["collect"])["trees"], 1);
    assert!(!tree(&edge, &deployed).exists());
}

#[test]
fn a_worker_that_ends_slowly_keeps_what_it_runs_from() {
    let edge = Edge::start_with(SOON);
    let script = "trap 'while [ ! -e \"$HOME/go\" ]; do sleep 0.05; done; cat fixture.txt; exit 0' TERM; \
                  echo up; while :; do sleep 0.05; done";
    let worker = format!(
        "[[process.worker]]\nname = \"slow\"\nrun = \"always\"\ncommand = [\"sh\", \"-c\", {script:?}]\n[wake]"
    );
    let artifact = version("0").replace("[wake]", &worker).set("process", "stop_timeout", "\"5m\"");
    fs::write(artifact.path().join("fixture.txt"), "a fixture\n").unwrap();
    let deployed = edge.deploy(&artifact);
    let printed = || edge.said(&["logs", "studylab", "--process", "slow"]);
    eventually("it runs", || printed().contains("up"));
    edge.deploy(&version("1"));
    edge.deploy(&version("2"));
    eventually("it ends", || edge.ps().iter().any(|row| row["state"] == "ending"));
    let done = edge.json(&["collect"]);
    assert_eq!(done["deployments"], 1, "{done}");
    assert!(tree(&edge, &deployed).is_dir());
    fs::write(edge.state().join("run/home/studylab/production/go"), "").unwrap();
    eventually("it has ended", || printed().contains("stopped: exit code 0"));
    assert!(printed().contains("a fixture"), "{}", printed());
    eventually("nothing needs it", || {
        edge.json(&["collect"]);
        !tree(&edge, &deployed).exists()
    });
}
