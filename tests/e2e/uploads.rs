//! What a deploy uploads: many small files in few requests, nothing twice, and nothing left of one that was
//! killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Answer, Artifact, Connection, Edge, binary, eventually};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn blobs(edge: &Edge) -> PathBuf {
    edge.state().join("artifacts/blobs/sha256")
}

/// Every blob, with its inode: one that is written again is another file.
fn inodes(edge: &Edge) -> BTreeMap<String, u64> {
    let all = fs::read_dir(blobs(edge)).unwrap().map(Result::unwrap);
    all.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().ino())).collect()
}

fn script(n: usize) -> String {
    format!("// {n}\n") + &format!("export const value{n} = () => document.title;\n").repeat(20)
}

/// With `count` files that are worth encoding, of which every tenth has the content of another.
fn with_files(count: usize) -> Artifact {
    let artifact = Artifact::new();
    let dir = artifact.path().join("public/many");
    fs::create_dir(&dir).unwrap();
    for n in 0..count {
        let text = script(if n % 10 == 0 { 0 } else { n });
        fs::write(dir.join(format!("{n}.js")), text).unwrap();
    }
    artifact
}

fn post(edge: &Edge, path: &str, kind: &str, body: &[u8]) -> Answer {
    let mut connection = Connection::open(edge.admin);
    let length = body.len().to_string();
    let head = [
        ("Host", "localhost"),
        ("Connection", "close"),
        ("Content-Type", kind),
        ("Content-Length", &length),
    ];
    connection.send_head("POST", path, &head);
    connection.send(body);
    connection.answer().unwrap()
}

fn ask(edge: &Edge, path: &str, body: &Value) -> Value {
    let answer = post(edge, path, "application/json", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn encoded(edge: &Edge, path: &str, coding: &str) -> Answer {
    let answer = edge.ask("GET", path, &[("Accept-Encoding", coding)], "");
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(coding)), "{path}");
    answer
}

#[test]
fn what_is_there_is_neither_sent_nor_made_again() {
    let edge = Edge::start();
    let artifact = with_files(400);
    edge.deploy(&artifact);
    let before = inodes(&edge);
    // 361 contents, each in four forms, and what an artifact has besides.
    assert!(before.len() > 361 * 4, "{}", before.len());
    let known = |encoder: u32, file: &[u8]| {
        let digest = format!("sha256:{}", hex(file));
        let asked = json!({ "encoder": encoder, "digests": [digest] });
        ask(&edge, "/v1/blobs/encodings", &asked)["files"].clone()
    };
    let files = known(2, script(7).as_bytes());
    assert_eq!(files[0]["type"], "text/javascript; charset=utf-8");
    assert_eq!(files[0]["encodings"].as_array().unwrap().len(), 3);
    assert_eq!(known(1, script(7).as_bytes()), json!([]), "of other encoders nothing is known");
    assert_eq!(known(2, b"another file"), json!([]));

    // One file is another one; an encoding that nobody makes again was damaged since.
    let br = encoded(&edge, "/assets/many/8.js", "br").body;
    fs::write(blobs(&edge).join(hex(&br)), "damaged").unwrap();
    let missing = format!("sha256:{}", hex(&br));
    let there = format!("sha256:{}", hex(script(8).as_bytes()));
    let found = ask(&edge, "/v1/blobs/missing", &json!({ "digests": [there, missing] }));
    assert_eq!(found["digests"], json!([missing]));
    fs::write(artifact.path().join("public/many/7.js"), script(1007)).unwrap();
    let second = edge.deploy(&artifact);
    let after = inodes(&edge);
    for (name, inode) in &before {
        let again = after.get(name) != Some(inode);
        assert_eq!(again, *name == hex(&br), "{name} was written again: {again}");
    }
    // The file in four forms; layer, index, config and manifest, and what is beside a move on record.
    let new = after.keys().filter(|name| !before.contains_key(*name)).count();
    assert_eq!(new, 4 + 4);
    assert_eq!(encoded(&edge, "/assets/many/8.js", "br").body, br);
    assert_eq!(edge.get("/assets/many/7.js").text(), script(1007));

    // The edge that knows nothing of it says the same of the same directory.
    let beside = edge.start_beside();
    assert_eq!(beside.deploy(&artifact)["digest"], second["digest"]);
    assert_eq!(beside.get("/assets/many/399.js").text(), script(399));
    assert_eq!(beside.get("/assets/many/390.js").text(), script(0));
}

/// A tar archive of files by these names.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        // As it is: the crate writes no `..`.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_batch_holds_what_it_says_or_is_refused() {
    let edge = Edge::start();
    let (good, other) = (hex(b"good"), hex(b"other"));
    let put = |body: &[u8]| post(&edge, "/v1/blobs", "application/x-tar", body);
    let large = vec![7; (1 << 20) + 1];
    let of_large = hex(&large);
    for (status, why, files) in [
        (400, "is damaged", &[(&*other, &b"not it"[..])][..]),
        (400, "no SHA-256 digest", &[("../../evil", b"good")]),
        (400, "no SHA-256 digest", &[("index.json", b"good")]),
        (413, "larger than", &[(&of_large, &large)]),
    ] {
        let answer = put(&archive(files));
        let said = answer.text().to_owned();
        assert_eq!(answer.status, status, "{said}");
        assert!(said.contains(why), "{said}");
    }
    let cut = archive(&[(&good, b"good")]);
    assert_eq!(put(&cut[..600]).status, 400);
    assert_eq!(
        put(b"no archive at all, but longer than a block of one ".repeat(20).as_slice()).status,
        400
    );
    assert_eq!(put(&vec![0; (16 << 20) + 1]).status, 413);
    assert_eq!(inodes(&edge), BTreeMap::new(), "nothing was kept");
    let stored = put(&archive(&[(&good, b"good"), (&other, b"other")]));
    assert_eq!((stored.status, stored.json()["stored"].as_u64()), (201, Some(2)));
    assert_eq!(fs::read(blobs(&edge).join(&good)).unwrap(), b"good");
    assert_eq!(inodes(&edge).len(), 2);
    let many: Vec<_> = (0..10_001).map(|_| format!("sha256:{good}")).collect();
    for (path, body) in [
        ("/v1/blobs/missing", json!({ "digests": many })),
        ("/v1/blobs/missing", json!({ "digests": ["sha256:12"] })),
        ("/v1/blobs/encodings", json!({ "encoder": 2, "digests": many })),
    ] {
        let answer = post(&edge, path, "application/json", body.to_string().as_bytes());
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

#[test]
fn an_upload_whose_client_leaves_is_removed_at_once() {
    let edge = Edge::start();
    let mut upload = Connection::open(edge.admin);
    let path = format!("/v1/blobs/sha256:{}", "a".repeat(64));
    upload.send_head("PUT", &path, &[("Host", "localhost"), ("Content-Length", "60000000")]);
    for _ in 0..4 {
        upload.send(vec![7; 1 << 20]);
    }
    eventually("some of it is on disk", || !inodes(&edge).is_empty());
    drop(upload);
    eventually("nothing of it is left", || inodes(&edge).is_empty());
}

#[test]
fn what_a_killed_edge_left_of_a_batch_is_removed_at_its_next_start() {
    let mut edge = Edge::start();
    let artifact = with_files(20);
    edge.crash_at("upload before blob");
    edge.refused(&["deploy", artifact.write().to_str().unwrap()]);
    edge.crashed();
    let unnamed = |edge: &Edge| inodes(edge).keys().filter(|name| name.contains('#')).count();
    assert!(unnamed(&edge) > 0, "{:?}", inodes(&edge));
    edge.start_again();
    assert_eq!(unnamed(&edge), 0);
    edge.deploy(&artifact);
    assert_eq!(encoded(&edge, "/assets/many/8.js", "gzip").status, 200);
}

/// Files that `pid` has open below `dir`.
fn open_below(pid: u32, dir: &Path) -> usize {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir))).count()
}

#[test]
fn a_deploy_that_is_killed_leaves_nothing_of_what_it_packed() {
    let edge = Edge::start();
    let artifact = with_files(50);
    // Sparse, and long to pack.
    let film = fs::File::create(artifact.path().join("film")).unwrap();
    film.set_len(3 << 30).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut deploying = Command::new(binary())
        .args(["deploy", artifact.write().to_str().unwrap()])
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .env("TMPDIR", scratch.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it packs", || open_below(deploying.id(), scratch.path()) > 0);
    deploying.kill().unwrap();
    deploying.wait().unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
