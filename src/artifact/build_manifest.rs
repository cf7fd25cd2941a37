//! What a build says of its own files: which names carry a fingerprint of their content.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::assets::{below, names_its_content};
use crate::contract::Assets;

use super::ArtifactError;
use super::source::File;

/// The assets that the build's manifest names and whose names carry a fingerprint.
pub fn fingerprinted(
    root: &Path,
    source: &Assets,
    files: &[File<'_>],
    found: &BTreeMap<&str, &Path>,
) -> Result<BTreeSet<String>, ArtifactError> {
    let Some(manifest) = &source.manifest else { return Ok(BTreeSet::new()) };
    let at = root.join(manifest);
    let refused = |why: String| ArtifactError::refused(&at, why);
    let bytes = fs::read(&at).map_err(|e| ArtifactError::io(&at, e))?;
    let document: Value =
        serde_json::from_slice(&bytes).map_err(|e| refused(format!("it is no JSON: {e}")))?;
    let below = below(&source.dir);
    let files: HashSet<&str> = files.iter().map(|(name, _)| *name).collect();
    let mut out = BTreeSet::new();
    for (name, target) in targets(&document).map_err(refused)? {
        let places = places(source, manifest, &target);
        let here: Vec<&String> = places.iter().filter(|p| files.contains(p.as_str())).collect();
        let Some(first) = here.first() else {
            let why =
                format!("it names {target:?} for {name:?}, and there is no such file; build again");
            return Err(refused(why));
        };
        for other in &here[1..] {
            let read = |p: &str| {
                let path: PathBuf = root.join(p);
                fs::read(&path).map_err(|e| ArtifactError::io(path, e))
            };
            if read(first)? != read(other)? {
                let why = format!(
                    "{target:?} is {first:?} and {other:?}, with different bytes: one name has one \
                     content; remove one of them"
                );
                return Err(refused(why));
            }
        }
        for place in here {
            let asset = place.strip_prefix(&below);
            if let Some(asset) = asset.filter(|a| found.contains_key(a))
                && name != target
                && names_its_content(asset)
            {
                out.insert(asset.to_owned());
            }
        }
    }
    Ok(out)
}

const EXPECTED: &str = "expected an object of names: {\"app.css\": \"app.0123abcd.css\"}, or what Vite, Django, \
                        Sprockets, Propshaft or Phoenix write";

/// Source name and target of everything in a manifest: `{"app.css": "app.0123abcd.css"}`, as Vango and
/// webpack's plugins write it, or one of those that have such an object under a name of their own.
fn targets(document: &Value) -> Result<Vec<(String, String)>, String> {
    let top = document.as_object().ok_or(EXPECTED)?;
    // Django 3.2 to 5.2: staticfiles.json, with its version beside "paths"; Sprockets: "assets" beside what it
    // says of each in "files"; Phoenix: "latest" beside "digests".
    let wrapped = [("paths", "version"), ("assets", "files"), ("latest", "digests")];
    let inner = wrapped.iter().find(|(names, beside)| {
        top.get(*names).is_some_and(Value::is_object) && top.contains_key(*beside)
    });
    match inner.and_then(|(names, _)| top.get(*names)?.as_object()) {
        Some(inner) => named(inner),
        None => named(top),
    }
}

/// Of each name a file; of Vite's a chunk, `{"src/main.ts": {"file": …, "css": […], "assets": […]}}`; of
/// Propshaft's a file with more about it, `{"app.css": {"digested_path": …, "integrity": …}}`.
/// Source: <https://vite.dev/guide/backend-integration>.
fn named(entries: &Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let mut out = Vec::new();
    for (name, value) in entries {
        match value {
            Value::String(target) => out.push((name.clone(), target.clone())),
            Value::Object(chunk) => {
                let file = chunk.get("file").or_else(|| chunk.get("digested_path"));
                let file = file.and_then(Value::as_str).ok_or(EXPECTED)?;
                out.push((name.clone(), file.to_owned()));
                for list in ["css", "assets"] {
                    let listed = chunk.get(list).and_then(Value::as_array);
                    for more in listed.into_iter().flatten().filter_map(Value::as_str) {
                        out.push((format!("{name} ({list})"), more.to_owned()));
                    }
                }
            }
            _ => return Err(EXPECTED.into()),
        }
    }
    Ok(out)
}

/// Where in the artifact the file may be that a manifest calls `target`: in the assets' directory, by
/// its URL, beside the manifest, or beside the manifest's directory (Vite's `.vite/manifest.json`).
fn places(source: &Assets, manifest: &str, target: &str) -> Vec<String> {
    let plain = target.trim_start_matches('/');
    let parent = |p: &str| p.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    let beside = parent(manifest);
    let above = parent(beside.trim_end_matches('/'));
    let below = below(&source.dir);
    let mut out = vec![format!("{below}{plain}")];
    if let Some(rest) = target.strip_prefix(&*source.prefix) {
        out.push(format!("{below}{rest}"));
    }
    out.push(format!("{beside}{plain}"));
    if beside.ends_with(".vite/") {
        out.push(format!("{above}{plain}"));
    }
    out.sort();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_write_is_read() {
        let read = |text: &str| {
            let mut all = targets(&serde_json::from_str(text).unwrap())?;
            all.sort();
            Ok::<_, String>(all.into_iter().map(|(_, target)| target).collect::<Vec<_>>())
        };
        for (text, expected) in [
            (r#"{"app.css": "app.0123abcd.css"}"#, &["app.0123abcd.css"][..]),
            (
                r#"{"src/main.ts": {"file": "a-1.js", "src": "src/main.ts", "css": ["b-1.css"], "assets": ["c-1.svg"]}}"#,
                &["a-1.js", "c-1.svg", "b-1.css"],
            ),
            (
                r#"{"paths": {"css/a.css": "css/a.0123456789ab.css"}, "version": "1.1", "hash": "0123456789ab"}"#,
                &["css/a.0123456789ab.css"],
            ),
            (
                r#"{"files": {"a-01.js": {"logical_path": "a.js", "size": 1}}, "assets": {"a.js": "a-01.js"}}"#,
                &["a-01.js"],
            ),
            (r#"{"a.js": {"digested_path": "a-01.js", "integrity": null}}"#, &["a-01.js"]),
            (
                r#"{"digests": {"a-01.js": {"size": 1}}, "latest": {"a.js": "a-01.js"}, "version": 1}"#,
                &["a-01.js"],
            ),
            // Names that are files like any other.
            (
                r#"{"paths": "paths.0123abcd.js", "version": "version.0123abcd.js"}"#,
                &["paths.0123abcd.js", "version.0123abcd.js"],
            ),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for wrong in ["[]", "1", r#"{"a": 1}"#, r#"{"a": {"size": 1}}"#, r#"{"paths": {"a": "b"}}"#]
        {
            assert!(read(wrong).unwrap_err().contains("Django"), "{wrong}");
        }
    }
}
