//! Release commands: before an artifact serves, once, and what happens when they fail or the edge is killed.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Artifact, Edge, binary, eventually, eventually_some};

use super::promotion::{deploy_preview, promote, route, visit};

/// An artifact whose release command appends `name` to a file in HOME and then runs `then`.
fn releasing(name: &str, then: &str) -> Artifact {
    let artifact = Artifact::new()
        .env("VERSION", name)
        .replace("[wake]", "[release]\ncommand = [\"sh\", \"release.sh\"]\n[wake]");
    let script =
        format!("echo \"$VERSION of $VANGO_EDGE_ENVIRONMENT\" >>\"$HOME/released\"\n{then}\n");
    fs::write(artifact.path().join("release.sh"), script).unwrap();
    artifact
}

/// What release commands of an environment wrote.
fn released(edge: &Edge, environment: &str) -> Vec<String> {
    let file = edge.state().join("run/home/studylab").join(environment).join("released");
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn last(edge: &Edge) -> Value {
    eventually_some("the promotion is over", || {
        let last = edge.admin("GET", "/v1/environments/studylab/production/promotion").json();
        (last["in_progress"] == false).then_some(last)
    })
}

#[test]
fn it_runs_once_before_an_artifact_serves_and_a_failure_changes_nothing() {
    let edge = Edge::start();
    let first = edge.deploy(&releasing("1", "echo migrated"));
    assert_eq!((&first["effect"], &first["epoch"]), (&"moved".into(), &1.into()));
    assert_eq!(released(&edge, "production"), ["1 of studylab/production"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.deploy(&releasing("1", "echo migrated"));
    edge.json(&["sleep", "studylab"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(
        released(&edge, "production").len(),
        1,
        "nothing was deployed, and no start runs it"
    );

    let dir = releasing("2", "echo the table is locked >&2; exit 3");
    let said = edge.refused(&["deploy", dir.write().to_str().unwrap()]);
    for words in ["ended with exit code 3", "the table is locked"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!((&route(&edge)["digest"], &route(&edge)["epoch"]), (&first["digest"], &1.into()));
    assert_eq!(edge.ps().len(), 1, "no process of it was started");
    let log = edge.said(&["logs", "studylab"]);
    let printed = |l: &str| l.contains("release") && l.ends_with("the table is locked");
    assert!(log.lines().any(printed), "{log}");

    let slow = releasing("3", "sleep 1000");
    let slow = slow.replace("release.sh\"]", "release.sh\"]\ntimeout = \"1s\"");
    let said = edge.refused(&["deploy", slow.write().to_str().unwrap()]);
    assert!(said.contains("was not over within 1s (release.timeout)"), "{said}");

    let next = edge.deploy(&releasing("4", "exit 0"));
    assert_eq!((&next["effect"], &next["epoch"]), (&"moved".into(), &2.into()));
    let back = edge.json(&["rollback", "studylab"]);
    assert_eq!((&back["digest"], &back["epoch"]), (&first["digest"], &3.into()));
    let names: Vec<_> = released(&edge, "production").iter().map(|l| l[..1].to_owned()).collect();
    assert_eq!(names, ["1", "2", "3", "4"], "a rollback runs none");
}

#[test]
fn a_preview_and_a_promotion_of_it_run_it_each_in_their_own_environment() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    deploy_preview(&edge, &releasing("1", ""), "pr-7");
    assert_eq!(released(&edge, "pr-7"), ["1 of studylab/pr-7"]);
    edge.json(&["sleep", "studylab/pr-7"]);
    deploy_preview(&edge, &releasing("2", ""), "pr-7");
    assert_eq!(released(&edge, "pr-7").len(), 2, "also for one that sleeps");
    visit(&edge, "pr-7", 1);
    assert_eq!(edge.json(&["promote", "studylab", "pr-7"])["state"], "healthy");
    assert_eq!(released(&edge, "production"), ["2 of studylab/production"]);
}

/// An edge that stops tells it to end: that it says 0 then is no success.
#[test]
fn one_that_the_stopping_edge_ends_is_no_success_whatever_it_exits_with() {
    let mut edge = Edge::start();
    let first = edge.deploy(&Artifact::new());
    let then = "trap 'exit 0' TERM\ntouch \"$HOME/up\"\nwhile :; do sleep 0.01; done";
    let dir = releasing("2", then);
    let mut deploying = Command::new(binary())
        .args(["deploy", dir.write().to_str().unwrap()])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let up = edge.state().join("run/home/studylab/production/up");
    eventually("it waits to be told", || up.exists());
    assert!(edge.stop().success());
    assert!(!deploying.wait().unwrap().success());
    edge.start_again();
    let over = last(&edge);
    assert_eq!(over["state"], "failed", "{over}");
    assert!(over["reason"].as_str().unwrap().contains("not run again by itself"), "{over}");
    assert_eq!(route(&edge)["digest"], first["digest"]);
}

/// What waits for a release command holds no collection up, and so no other app's commands.
#[test]
fn a_collection_ends_while_a_deployment_waits_for_its_release_command() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let then = "touch \"$HOME/up\"\nwhile [ ! -e \"$HOME/go\" ]; do sleep 0.01; done";
    let dir = releasing("2", then);
    let mut deploying = Command::new(binary())
        .args(["deploy", dir.write().to_str().unwrap()])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let home = edge.state().join("run/home/studylab/production");
    eventually("it runs", || home.join("up").exists());
    let mut collecting = Command::new(binary())
        .arg("collect")
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is over", || collecting.try_wait().unwrap().is_some());
    assert!(collecting.wait().unwrap().success());
    fs::write(home.join("go"), "").unwrap();
    assert!(deploying.wait().unwrap().success(), "what it deploys was kept");
}

/// Killed just before it runs, while it runs, and after it ended: each time it is not known what it did.
#[test]
fn an_edge_that_is_killed_while_it_runs_does_not_run_it_again() {
    let mut edge = Edge::start();
    let first = edge.deploy(&Artifact::new());
    for (round, point) in ["after releasing", "meanwhile", "after released"].into_iter().enumerate()
    {
        let then = if point == "meanwhile" { "sleep 1000" } else { "" };
        let preview = format!("pr-{round}");
        let artifact = releasing(
            &preview,
            &format!(
                "[ \"$VANGO_EDGE_ENVIRONMENT\" = studylab/{preview} ] && exit 0\n{then}\nexit 0"
            ),
        );
        deploy_preview(&edge, &artifact, &preview);
        visit(&edge, &preview, 1);
        edge.json(&["sleep", &format!("studylab/{preview}")]);
        let before = released(&edge, "production").len();
        if point != "meanwhile" {
            edge.crash_at(&format!("promotion {point}"));
        }
        let mut asking = promote(&edge, &preview);
        if point == "meanwhile" {
            eventually("it runs", || released(&edge, "production").len() > before);
            edge.kill();
        } else {
            edge.crashed();
        }
        assert!(!asking.wait().unwrap().success());
        edge.start_again();
        let over = last(&edge);
        assert_eq!(over["state"], "failed", "{point}: {over}");
        assert!(over["reason"].as_str().unwrap().contains("not run again by itself"), "{over}");
        let ran = released(&edge, "production").len() - before;
        assert_eq!(ran, usize::from(point != "after releasing"), "{point}");
        assert_eq!(route(&edge)["digest"], first["digest"], "{point}");
        eventually("what it left is ended", || edge.processes().len() == edge.ps().len());
        assert_eq!(edge.get("/dashboard").status, 200);
    }
    // Asked for again, it runs again.
    let before = released(&edge, "production").len();
    assert_eq!(edge.json(&["promote", "studylab", "pr-2"])["state"], "healthy");
    assert_eq!(released(&edge, "production").len(), before + 1);
}

/// Whose release command waits, once it has begun, for a file `go` in HOME.
fn waiting(name: &str) -> Artifact {
    releasing(
        name,
        "while [ ! -e \"$HOME/go\" ]; do sleep 0.02; done; echo over >>\"$HOME/released\"",
    )
}

fn go(edge: &Edge) {
    fs::write(edge.state().join("run/home/studylab/production/go"), "").unwrap();
}

#[test]
fn it_goes_on_where_the_client_that_deploys_hangs_up() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let artifact = waiting("1");
    let mut deploying = std::process::Command::new(crate::support::binary())
        .args(["deploy", artifact.write().to_str().unwrap()])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it runs", || released(&edge, "production").len() == 1);
    deploying.kill().unwrap();
    deploying.wait().unwrap();
    go(&edge);
    eventually("what it was for serves", || route(&edge)["epoch"] == 2);
    assert_eq!(released(&edge, "production"), ["1 of studylab/production", "over"]);
}

#[test]
fn of_two_deployments_at_once_one_releases() {
    let edge = Edge::start();
    let first = edge.deploy(&Artifact::new());
    let (one, two) = (waiting("1"), waiting("2"));
    let dirs = [one.write().to_str().unwrap(), two.write().to_str().unwrap()];
    let done = std::thread::scope(|scope| {
        let asked = dirs.map(|dir| scope.spawn(|| edge.command(&["deploy", dir])));
        eventually("one runs", || released(&edge, "production").len() == 1);
        go(&edge);
        asked.map(|a| a.join().unwrap())
    });
    let won = done.iter().filter(|d| d.status.success()).count();
    let lines = released(&edge, "production");
    // The other came while it went on, and is refused; or after it, and releases then.
    assert_eq!(lines.len(), 2 * won, "{lines:?}");
    assert!(
        lines.iter().skip(1).step_by(2).all(|line| line == "over"),
        "never two at a time: {lines:?}"
    );
    assert!(won >= 1 && route(&edge)["digest"] != first["digest"]);
}
