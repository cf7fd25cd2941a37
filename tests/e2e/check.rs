//! `check`: everything that is wrong, at once, with its place.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Artifact, binary, write_config};

fn check(config: &Path, more: &[&str]) -> Output {
    Command::new(binary()).args(["check", "-c"]).arg(config).args(more).output().unwrap()
}

#[track_caller]
fn assert_passes(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    assert_eq!(output.stdout, b"ok\n");
}

fn shipped(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every `# key = value` without its `# `; other comments stay.
fn uncomment(text: &str) -> (String, usize) {
    let mut n = 0;
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if is_setting(rest) => {
            n += 1;
            rest
        }
        _ => line,
    });
    (lines.collect::<Vec<_>>().join("\n"), n)
}

fn is_setting(line: &str) -> bool {
    let key = line.split_once(" = ").map_or("", |(key, _)| key);
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[test]
fn the_shipped_configuration_passes() {
    assert_passes(&check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/edge.toml"), &[]));
}

#[test]
fn every_default_that_the_shipped_files_name_is_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("apps")).unwrap();
    let (node, of_node) = uncomment(&shipped("conf/edge.toml"));
    let (app, of_app) = uncomment(&shipped("conf/apps/studylab.toml"));
    let (contract, of_contract) = uncomment(&shipped("docs/vango-edge.toml"));
    for (file, n) in [("edge", of_node), ("app", of_app), ("contract", of_contract)] {
        assert!(n >= 2, "{n} commented defaults of the {file} were found");
    }
    let config = dir.path().join("edge.toml");
    fs::write(&config, node).unwrap();
    let secrets = "secrets = { SESSION_STORE_URL = { env = \"SESSION_STORE_URL\" },";
    let app = app.replace("secrets = { STRIPE", &format!("{secrets} STRIPE"));
    fs::write(dir.path().join("apps/studylab.toml"), app).unwrap();
    assert_passes(&check(&config, &[]));
    // What the contract names has to be there: so it is in the sample app.
    let sample = Artifact::new();
    let artifact = sample.write();
    fs::write(artifact.join("vango-edge.toml"), contract).unwrap();
    assert_passes(&check(&config, &["--artifact", artifact.to_str().unwrap()]));
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[limits]\nmax_hold = 1\nconnect_timeout = \"1y\"\n");
    let app = dir.path().join("apps/studylab.toml");
    fs::write(&app, "app = \"Study Lab\"\nhosts = [\"studylab.localhost\"]\nsecret = {}\n")
        .unwrap();
    let artifact = Artifact::new().set("wake", "budgte", "\"1s\"").set("scale", "max", "\"one\"");
    let output = check(&config, &["--artifact", artifact.write().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let contract = artifact.write().join("vango-edge.toml");
    let line_of = |key: &str| {
        let text = fs::read_to_string(&contract).unwrap();
        text.lines().position(|l| l.starts_with(key)).unwrap() + 1
    };
    for (file, place, words) in [
        (&config, "11:1", "limits.max_hold: unknown key; did you mean `max_held`?"),
        (&config, "12:19", "limits.connect_timeout: expected"),
        (&app, "1:7", "app: "),
        (&app, "3:1", "secret: unknown key; did you mean `secrets`?"),
        (&contract, &format!("{}:1", line_of("budgte")), "did you mean `budget`?"),
        (&contract, &format!("{}:7", line_of("max")), "found \"one\""),
    ] {
        let start = format!("{}:{place}: ", file.display());
        let line = said.lines().find(|l| l.starts_with(&start));
        assert!(line.is_some_and(|l| l.contains(words)), "{start}{words}\nin:\n{said}");
    }
    assert_eq!(said.lines().last(), Some("6 errors"));
}

#[test]
fn what_deploy_and_the_first_start_would_meet_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let artifact = Artifact::new();
    assert_passes(&check(&config, &["--artifact", artifact.write().to_str().unwrap()]));
    let artifact = artifact
        .set("process", "secrets", "[\"NO_SUCH\", \"IN_A_FILE\"]")
        .set("assets", "dir", "\"gone\"")
        .set("wake", "budget", "\"10m\"")
        .replace("vango_state_schema.json", "no_schema.json");
    let at = artifact.write().to_owned();
    fs::set_permissions(at.join("studylab"), fs::Permissions::from_mode(0o644)).unwrap();
    symlink("/usr/bin/python3", at.join("python3")).unwrap();
    let app = dir.path().join("apps/studylab.toml");
    let text = fs::read_to_string(&app).unwrap();
    fs::write(
        &app,
        text.replace("secrets = { STRIPE", "secrets = { IN_A_FILE = { file = \"/none\" }, STRIPE"),
    )
    .unwrap();
    let output = check(&config, &["--artifact", at.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let contract = at.join("vango-edge.toml").display().to_string();
    for (start, words) in [
        (at.join("python3").display().to_string(), "symbolic link to /usr/bin/python3"),
        (contract.clone(), "process.command: ./studylab is not executable"),
        (contract.clone(), "process.secrets: the operator has no secret NO_SUCH"),
        (contract.clone(), "process.secrets: secret IN_A_FILE: /none"),
        (contract.clone(), "assets.dir: the artifact has no directory gone"),
        (contract.clone(), "wake.budget: server.grace is 300s"),
        (contract.clone(), "state.schema_file: no_schema.json"),
    ] {
        let found = said.lines().any(|l| l.starts_with(&start) && l.contains(words));
        assert!(found, "{start} … {words} in:\n{said}");
    }
    assert_eq!(said.lines().last(), Some("7 errors"), "{said}");

    let other = Artifact::new()
        .set("process", "command", "[\"studylab\"]")
        .replace("name = \"studylab\"", "name = \"other\"");
    let output = check(&config, &["--artifact", other.write().to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<_> =
        found.as_array().unwrap().iter().map(|d| d["message"].to_string()).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|m| m.contains("this edge has no app other")), "{found:?}");
    assert!(found.iter().any(|m| m.contains("the artifact's own is ./studylab")), "{found:?}");

    // The program is gone, and so is the contract: the links are said all the same.
    fs::remove_file(at.join("vango-edge.toml")).unwrap();
    let output = check(&config, &["--artifact", at.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no vango-edge.toml") && said.contains("2 errors"), "{said}");
}

#[test]
fn programs_get_the_same_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[limits]\nmax_hold = 1\n");
    let output = check(&config, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!((&found[0]["line"], &found[0]["key"]), (&11.into(), &"limits.max_hold".into()));
    assert_eq!(found[0]["file"], config.to_str().unwrap());
}

#[test]
fn an_edge_with_a_broken_configuration_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[limits]\nmax_hold = 1\n");
    let output = Command::new(binary()).args(["run", "-c"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `max_held`?"));
    assert!(!dir.path().join("state").exists(), "it touched nothing");
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    for wrong in [&["frobnicate"][..], &["explain", "GET"], &["sleep"], &["sleep", "Not A Name"]] {
        let output = Command::new(binary()).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let nowhere = ["ps", "--admin", "http://127.0.0.1:1"];
    let output = Command::new(binary()).args(nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no edge answers"));
}
