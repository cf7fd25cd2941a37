//! What is kept: damage is noticed, durable means durable, and leftovers go.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::keyed::{artifact, keyed};
use crate::support::{Answer, Artifact, Edge, binary, eventually};

const KEYS: usize = 12;

fn save(edge: &Edge, key: usize) -> Answer {
    edge.ask("POST", "/actions/save", &keyed(&format!("k{key}"), &[]), &format!("text={key}"))
}

/// The newest log of the database in the state directory's `name`.
fn newest_log(edge: &Edge, name: &str) -> PathBuf {
    let files = fs::read_dir(edge.state().join(name).join("db")).unwrap();
    let logs =
        files.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "log"));
    logs.max().unwrap()
}

/// An edge on this directory that does not start; what it says.
fn refused(edge: &Edge) -> String {
    let run = Command::new(binary()).args(["run", "-c"]).arg(edge.config()).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(run.stdout.is_empty(), "it never said that it listens");
    said
}

/// An edge with answered keys and a running app, killed.
fn killed() -> Edge {
    let mut edge = Edge::start();
    edge.deploy(&artifact());
    for key in 0..KEYS {
        assert_eq!(save(&edge, key).status, 200);
    }
    edge.kill();
    assert_eq!(edge.processes().len(), 1, "the app goes on");
    edge
}

fn assert_every_key_is_answered_from_its_record(edge: &Edge) {
    for key in 0..KEYS {
        let again = save(edge, key);
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")));
    }
    assert_eq!(edge.executions("/actions/save"), KEYS as u64);
}

#[test]
fn a_byte_flipped_in_a_log_is_refused_and_its_app_is_no_orphan() {
    for name in ["ledger", "store"] {
        let mut edge = killed();
        let log = newest_log(&edge, name);
        let whole = fs::read(&log).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(&log, flipped).unwrap();
        let said = refused(&edge);
        let last = said.lines().last().unwrap();
        for word in [log.to_str().unwrap(), "damaged", "bytes are whole", "docs/operating.md"] {
            assert!(last.contains(word), "{word}: {last}");
        }
        assert_eq!(edge.processes(), [] as [u32; 0], "{name}: no edge watches over it: {said}");
        // Restored, it is as it was.
        fs::write(&log, whole).unwrap();
        edge.start_again();
        assert_every_key_is_answered_from_its_record(&edge);
        assert_eq!(edge.list(&["routes"])[0]["epoch"], 1);
    }
}

/// As programs do that write their title over it.
#[test]
fn an_app_whose_environment_does_not_tell_is_no_orphan_either() {
    let mut edge = Edge::start();
    let command = "[\"env\", \"-u\", \"VANGO_EDGE_ALLOCATION\", \"./studylab\"]";
    edge.deploy(&Artifact::new().set("process", "command", command));
    assert_eq!(edge.get("/dashboard").status, 200);
    // Empty once it has ended, whether it was reaped or not.
    let cmdline = format!("/proc/{}/cmdline", edge.ps()[0]["pid"]);
    let runs = || fs::read(&cmdline).is_ok_and(|line| !line.is_empty());
    edge.kill();
    let log = newest_log(&edge, "store");
    let whole = fs::read(&log).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&log, flipped).unwrap();
    assert!(runs());
    let said = refused(&edge);
    assert!(!runs(), "{said}");
    fs::write(&log, whole).unwrap();
    edge.start_again();
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn a_log_that_was_cut_off_is_repaired_and_said() {
    let mut edge = killed();
    // What a write leaves that was cut off: the beginning of a record, never acknowledged.
    for name in ["ledger", "store"] {
        let log = newest_log(&edge, name);
        let mut bytes = fs::read(&log).unwrap();
        bytes.extend([1, 2, 3, 4, 200, 0, 1, 9, 9]);
        fs::write(&log, bytes).unwrap();
    }
    edge.start_again();
    assert_eq!(edge.log().matches("cut off").count(), 2, "{}", edge.log());
    assert_every_key_is_answered_from_its_record(&edge);
}

#[test]
fn a_copy_of_a_running_edges_state_adopts_and_ends_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let (running, pid) = (edge.processes(), edge.ps()[0]["pid"].clone());
    let mut copy = edge.start_beside();
    assert!(copy.stop().success());
    fs::remove_dir_all(copy.state()).unwrap();
    let copied = Command::new("cp").arg("-a").args([edge.state(), copy.state()]).status().unwrap();
    assert!(copied.success());
    copy.start_again();
    let said = format!("is a copy of {}", edge.state().canonicalize().unwrap().display());
    assert!(copy.log().contains(&said), "{}", copy.log());
    assert_eq!((copy.ps(), edge.processes()), (Vec::<Value>::new(), running.clone()));
    // It has its own, and at its stop it ends its own.
    assert_eq!(copy.get("/dashboard").status, 200);
    assert_ne!(copy.ps()[0]["pid"], pid);
    assert!(copy.stop().success());
    assert_eq!((edge.processes(), &edge.ps()[0]["pid"]), (running, &pid));
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.executions("start"), 1);
    // From then on it is a directory of its own.
    copy.start_again();
    assert_eq!(copy.log().matches("is a copy of").count(), 1);
}

/// A moved directory is the same one.
#[test]
fn a_moved_state_directory_is_no_copy() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    assert!(edge.stop().success());
    let aside = edge.state().with_file_name("moved");
    fs::rename(edge.state(), &aside).unwrap();
    fs::rename(&aside, edge.state()).unwrap();
    edge.start_again();
    assert!(!edge.log().contains("is a copy of"), "{}", edge.log());
}

#[test]
fn an_upload_that_was_killed_leaves_nothing() {
    let mut edge = Edge::start();
    let blobs = edge.state().join("artifacts/blobs/sha256");
    let mut upload = crate::support::Connection::open(edge.admin);
    let path = format!("/v1/blobs/sha256:{}", "a".repeat(64));
    let head = [("Host", "localhost"), ("Content-Length", "60000000")];
    upload.send_head("PUT", &path, &head);
    let unfinished = || {
        let all = fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        all.sum::<u64>()
    };
    for _ in 0..8 {
        upload.send(vec![7; 1 << 20]);
    }
    eventually("some of it is on disk", || unfinished() >= 1 << 20);
    edge.kill();
    edge.start_again();
    assert_eq!(unfinished(), 0);
    assert!(edge.log().contains("uploads"), "{}", edge.log());
}

#[test]
fn a_flood_of_refusals_takes_no_row_of_what_was_forwarded() {
    const FLOOD: usize = 300;
    let edge = Edge::start_with("[audit]\nmax_rows = 40\n");
    edge.deploy(&artifact());
    for key in 0..KEYS {
        assert_eq!(save(&edge, key).status, 200);
    }
    for _ in 0..FLOOD {
        let answer =
            edge.ask("POST", "/actions/save", &[("Cookie", "vango_session=ada")], "text=1");
        answer.problem(400, "idempotency-key-missing");
    }
    assert_eq!(save(&edge, KEYS).status, 200);
    let rows = || edge.list(&["audit", "-n", "1000"]);
    let forwarded =
        |rows: &[Value]| rows.iter().filter(|r| r["forwarded"] == "answered by the app").count();
    eventually("the last action has its row", || forwarded(&rows()) == KEYS + 1);
    let rows = rows();
    let refused = rows.len() - forwarded(&rows);
    assert!((1..=10).contains(&refused), "a quarter of 40 rows at most: {refused}");
    let newest: Vec<&str> = rows.iter().map(|r| r["at"].as_str().unwrap()).collect();
    assert!(newest.is_sorted_by(|a, b| a >= b), "newest first: {newest:?}");
}

#[test]
fn what_is_kept_is_for_the_edges_user_alone() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    assert!(edge.stop().success());
    // As an earlier version made it.
    fs::set_permissions(edge.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let log = edge.config().with_file_name("access.log");
    let config = fs::read_to_string(edge.config()).unwrap();
    fs::write(edge.config(), format!("{config}[access_log]\npath = {log:?}\n")).unwrap();
    edge.start_again();
    assert_eq!(edge.get("/dashboard").status, 200);
    eventually("the access log is there", || log.exists());
    let open = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o077;
    assert_eq!((open(&edge.state()), open(&log)), (0, 0));
    let mut todo = vec![edge.state()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            // What an app reads of its tree is the artifact's matter, in a directory that is private.
            if kind.is_dir() && path.parent() != Some(&edge.state().join("trees")) {
                todo.push(path.clone());
            }
            if kind.is_file() {
                assert_eq!(open(&path), 0, "{}", path.display());
            }
        }
    }
}
