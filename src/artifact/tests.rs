//! From a directory to a tree and on: what packing refuses, and what a tree that was touched costs.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::bytes::Bytes;
use futures_util::stream;
use tempfile::TempDir;

use super::*;
use crate::clock::Wall;
use crate::contract::{self, Assets};

fn pack_in(dir: &Path, assets: &[Arc<Assets>]) -> Result<Packed, ArtifactError> {
    pack(dir, assets, |_| Ok(Known::new()), &mut |_| {})
}

/// The [assets] of a contract with these lines in it.
fn assets(lines: &str) -> Vec<Arc<Assets>> {
    let text = format!(
        "[app]\nname = \"a\"\n[process]\ncommand = [\"a\"]\n[assets]\ndir = \"public\"\n{lines}"
    );
    contract::parse(Path::new(CONTRACT), &text).unwrap().assets
}

/// A directory as package managers leave it.
fn installed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at(CONTRACT), "x").unwrap();
    fs::create_dir_all(at("node_modules/.bin")).unwrap();
    fs::create_dir_all(at("node_modules/tool/bin")).unwrap();
    fs::write(at("node_modules/tool/bin/tool.js"), "#!/usr/bin/env node\n").unwrap();
    symlink("../tool/bin/tool.js", at("node_modules/.bin/tool")).unwrap();
    fs::create_dir_all(at("venv/lib")).unwrap();
    fs::write(at("venv/lib/module.py"), "print()\n").unwrap();
    symlink("lib", at("venv/lib64")).unwrap();
    dir
}

/// The store with the artifact of `dir` in it.
async fn stored(dir: &Path) -> (TempDir, Arc<Artifacts>, Digest) {
    let state = tempfile::tempdir().unwrap();
    let artifacts =
        Artifacts::local(&state.path().join("artifacts"), &state.path().join("trees")).unwrap();
    let packed = pack_in(dir, &[]).unwrap();
    for blob in &packed.blobs {
        let content = stream::iter([Ok::<_, std::io::Error>(Bytes::from(blob.bytes().unwrap()))]);
        artifacts.put(&blob.digest, u64::MAX, content).await.unwrap();
    }
    (state, Arc::new(artifacts), packed.digest)
}

/// Every entry of a tree, with the inode of each that is no directory.
fn entries(root: &Path) -> HashMap<PathBuf, u64> {
    let (mut all, mut todo) = (HashMap::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let (path, meta) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
            let inode = if meta.is_dir() { 0 } else { meta.ino() };
            assert_eq!(meta.mode() & 0o222, if meta.is_symlink() { 0o222 } else { 0 }, "{path:?}");
            if meta.is_dir() {
                todo.push(path.clone());
            }
            all.insert(path, inode);
        }
    }
    all
}

fn writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn links_between_files_are_part_of_the_artifact() {
    let (one, other) = (installed(), installed());
    let (_state, artifacts, digest) = stored(one.path()).await;
    assert_eq!(stored(other.path()).await.2, digest, "the same anywhere");
    artifacts.verify(&digest, Decoded::new()).await.unwrap();
    let root = artifacts.tree(&digest, || false).await.unwrap().root;
    let link = fs::read_link(root.join("node_modules/.bin/tool")).unwrap();
    assert_eq!(link, Path::new("../tool/bin/tool.js"));
    assert_eq!(fs::read_to_string(root.join("venv/lib64/module.py")).unwrap(), "print()\n");
    fs::remove_file(other.path().join("venv/lib64")).unwrap();
    symlink("./lib", other.path().join("venv/lib64")).unwrap();
    assert_ne!(stored(other.path()).await.2, digest, "where a link leads counts");
}

/// Links came later: what has none is what it was.
#[tokio::test]
async fn an_artifact_without_links_keeps_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lib")).unwrap();
    for (name, text) in [(CONTRACT, "app"), ("lib/a", "a"), ("run", "#!/bin/sh\n")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    writable(&dir.path().join("run"));
    let packed = pack_in(dir.path(), &[]).unwrap();
    assert_eq!(packed.digest.to_string(), DIGEST_BEFORE_LINKS);
}
const DIGEST_BEFORE_LINKS: &str =
    "sha256:fe8a69a67c278a511674a6d08c68137d8c1b32a00ca1e748c0c2518a2068ecdd";

#[test]
fn everything_that_cannot_be_part_of_an_artifact_is_said_at_once() {
    let dir = installed();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("venv/bin")).unwrap();
    symlink("/usr/bin/python3", at("venv/bin/python")).unwrap();
    symlink("../../elsewhere", at("venv/out")).unwrap();
    symlink("round", at("round")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(at("public")).unwrap();
    symlink("../run", at("public/app.js")).unwrap();
    let text =
        "[app]\nname = \"a\"\n[process]\ncommand = [\"./run\"]\n[assets]\ndir = \"public\"\n";
    let contract = crate::contract::parse(Path::new(CONTRACT), text).unwrap();
    let (found, _) = check(dir.path(), Some(&contract)).unwrap();
    let expected = [
        ("pipe", "neither"),
        ("public/app.js", "[assets].dir"),
        ("round", "circle"),
        ("venv/bin/python", "--copies"),
        ("venv/out", "out of the artifact"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((path, why), (name, word)) in found.iter().zip(expected) {
        assert!(*path == at(name) && why.contains(word), "{path:?}: {why}");
    }
    let source = assets("prefix = \"/\"\n");
    let refused = pack_in(dir.path(), &source).unwrap_err();
    let said = refused.to_string();
    assert!(found.iter().all(|(path, why)| said.contains(&format!("{}: {why}", path.display()))));
    assert!(said.contains("5 things"), "{said}");
}

#[tokio::test]
async fn what_was_added_to_a_tree_is_removed_and_nothing_is_unpacked_for_it() {
    let dir = installed();
    let (_state, artifacts, digest) = stored(dir.path()).await;
    let root = artifacts.tree(&digest, || false).await.unwrap().root;
    let before = entries(&root);
    // As an app does that takes the right to write.
    writable(&root.join("venv/lib"));
    fs::create_dir(root.join("venv/lib/__pycache__")).unwrap();
    fs::write(root.join("venv/lib/__pycache__/module.pyc"), "12345").unwrap();
    writable(&root);
    fs::write(root.join("data.db"), "1234567").unwrap();
    let wrote = artifacts.tree(&digest, || true).await.unwrap().wrote.unwrap();
    assert_eq!((wrote.files, wrote.bytes, wrote.removed), (2, 12, false));
    assert!(root.join("data.db").exists(), "another process runs from it");
    let wrote = artifacts.tree(&digest, || false).await.unwrap().wrote.unwrap();
    assert_eq!((wrote.files, wrote.bytes, wrote.removed), (2, 12, true));
    assert_eq!(wrote.paths, "data.db, venv/lib/__pycache__");
    assert_eq!(entries(&root), before, "no file was written anew, nothing is writable");
    assert_eq!(artifacts.tree(&digest, || unreachable!()).await.unwrap().wrote, None);
}

#[tokio::test]
async fn what_was_changed_in_a_tree_is_written_again_and_the_rest_stays() {
    let dir = installed();
    let (state, artifacts, digest) = stored(dir.path()).await;
    let root = artifacts.tree(&digest, || false).await.unwrap().root;
    let before = entries(&root);
    let outside = state.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for dir in ["", "venv", "venv/lib", "node_modules", "node_modules/.bin"] {
        writable(&root.join(dir));
    }
    // The same length; and a directory whose place a link out of the tree takes.
    let module = root.join("venv/lib/module.py");
    writable(&module);
    fs::write(&module, "evil()\n\n").unwrap();
    fs::rename(root.join("node_modules/tool"), outside.join("tool")).unwrap();
    symlink(&outside, root.join("node_modules/tool")).unwrap();
    fs::remove_file(root.join("node_modules/.bin/tool")).unwrap();
    assert_eq!(artifacts.tree(&digest, || unreachable!()).await.unwrap().wrote, None);
    assert_eq!(fs::read_to_string(&module).unwrap(), "print()\n");
    assert!(root.join("node_modules/.bin/tool").is_file());
    let after = entries(&root);
    assert_eq!(before.len(), after.len());
    let same = root.join(CONTRACT);
    assert_eq!(before[&same], after[&same], "what was not changed was not written");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was written through the link");
    assert_eq!(entries(&root), after);
    artifacts.tree(&digest, || false).await.unwrap();
    assert_eq!(entries(&root), after, "it is known to be whole");

    // From a layer that is damaged nothing is written that is then started from.
    writable(&module);
    fs::write(&module, "evil()\n\n").unwrap();
    for blob in fs::read_dir(state.path().join("artifacts/blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        if fs::metadata(&path).unwrap().len() > 4096 {
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    for _ in 0..2 {
        let refused = artifacts.tree(&digest, || false).await.unwrap_err();
        assert!(matches!(refused, ArtifactError::Damaged { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_tree_that_is_held_is_neither_tidied_nor_collected() {
    let dir = installed();
    let (_state, artifacts, digest) = stored(dir.path()).await;
    let held = artifacts.tree(&digest, || false).await.unwrap();
    let file = held.root.join("data.db");
    writable(&held.root);
    fs::write(&file, "1234567").unwrap();
    let wrote = artifacts.tree(&digest, || false).await.unwrap().wrote.unwrap();
    assert!(!wrote.removed && file.exists(), "what holds it may have written it");
    let none = BTreeSet::new();
    let collected = || artifacts.sweep(&none, &none, Duration::MAX, Wall(0));
    assert_eq!(collected().await.unwrap().2, 0);
    assert!(file.exists());
    drop(held);
    assert_eq!(collected().await.unwrap().2, 1);
    assert!(!file.exists());
}
