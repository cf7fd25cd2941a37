//! The static files of a directory that is packed: found, typed, encoded, and written as blobs with
//! an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::assets::{
    AssetIndex, Coding, Encoded, Entry, MAX_ASSETS, MAX_INDEX, MEDIA_TYPE, looks_fingerprinted,
};

use super::layout::digest_of;
use super::pack::Blob;
use super::{ArtifactError, encode};

/// Where an artifact's static files are; see `[assets]` of the contract.
#[derive(Debug, Clone, Copy)]
pub struct AssetSource<'a> {
    /// Directory in the artifact.
    pub dir: &'a str,
    /// Path prefix under which they are asked for.
    pub prefix: &'a str,
    /// File in the artifact that maps source names to fingerprinted ones.
    pub manifest: Option<&'a str>,
    /// Suffixes that say how a file is encoded.
    pub encoded_suffixes: &'a [String],
}

/// A file of the artifact: its name in it, and where it is.
pub type File<'a> = (&'a str, &'a Path);

/// Writes the blobs of the assets among `files` into `blobs`; the index is last. Files and directories
/// whose name begins with a dot are no assets, except `.well-known` (RFC 8615).
///
/// # Errors
/// [`ArtifactError::Refused`] for a manifest that cannot be read or names what is not there, and for
/// one name with two contents; [`ArtifactError::Io`] for what cannot be read or written.
pub fn write(
    root: &Path,
    source: &AssetSource<'_>,
    files: &[File<'_>],
    blobs: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Blob>, ArtifactError> {
    let below = format!("{}/", source.dir);
    let found: BTreeMap<&str, &Path> = files
        .iter()
        .filter_map(|(name, path)| Some((name.strip_prefix(&below)?, *path)))
        .filter(|(name, _)| name.split('/').all(|s| !s.starts_with('.') || s == ".well-known"))
        .collect();
    if found.len() > MAX_ASSETS {
        let why = format!("more than {MAX_ASSETS} static files");
        return Err(ArtifactError::refused(root.join(source.dir), why));
    }
    let fingerprinted = fingerprinted(root, source, files, &found)?;
    let found: Vec<_> = found.into_iter().collect();
    let made = each(&found, progress, |(name, path)| {
        one(source, (name, path), fingerprinted.contains(*name), blobs)
    })?;
    let (entries, made): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    let bytes = AssetIndex::write(source.dir, source.prefix, entries);
    if bytes.len() as u64 > MAX_INDEX {
        let why = format!("the index of its static files has more than {MAX_INDEX} bytes");
        return Err(ArtifactError::refused(root.join(source.dir), why));
    }
    let mut out: Vec<Blob> = made.into_iter().flatten().collect();
    out.sort_by_key(|b| b.digest);
    out.dedup_by_key(|b| b.digest);
    out.push(blob(&bytes, blobs, MEDIA_TYPE)?);
    Ok(out)
}

/// Runs `work` for each of `items` on as many threads as there are processors; results in order.
fn each<I: Sync, T: Send>(
    items: &[I],
    progress: &mut dyn FnMut(u64, u64),
    work: impl Fn(&I) -> Result<T, ArtifactError> + Sync,
) -> Result<Vec<T>, ArtifactError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<T, ArtifactError>>>> =
        Mutex::new(items.iter().map(|_| None).collect());
    let (told, telling) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            let (next, results, told, work) = (&next, &results, told.clone(), &work);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] =
                        Some(result);
                    // The receiver lives as long as this scope.
                    let _ = told.send(());
                }
            });
        }
        drop(told);
        for done in 1..=items.len() {
            if telling.recv().is_err() {
                return;
            }
            progress(done as u64, items.len() as u64);
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

fn one(
    source: &AssetSource<'_>,
    (name, path): File<'_>,
    fingerprinted: bool,
    blobs: &Path,
) -> Result<(Entry, Vec<Blob>), ArtifactError> {
    let bytes = fs::read(path).map_err(|e| ArtifactError::io(path, e))?;
    let encoded = stored_encoded(source.encoded_suffixes, name, &bytes);
    let media_type = match &encoded {
        Some((_, inner, start)) => media_type(inner, start),
        None => media_type(name, &bytes),
    };
    let coding = encoded.map(|(coding, ..)| coding);
    let plain = blob(&bytes, blobs, "application/octet-stream")?;
    let mut made = vec![plain.clone()];
    let mut encodings = Vec::new();
    let made_of = if coding.is_some() { &[] } else { &*bytes };
    for (coding, encoded) in encode::encode(made_of, &media_type) {
        if encode::decode(coding, &encoded, bytes.len()).as_ref() != Some(&bytes) {
            let why = format!("its {} encoding does not decode to it: a defect", coding.name());
            return Err(ArtifactError::refused(path, why));
        }
        let blob = blob(&encoded, blobs, "application/octet-stream")?;
        encodings.push(Encoded { coding, digest: blob.digest, size: blob.size });
        made.push(blob);
    }
    let entry = Entry {
        path: name.to_owned(),
        media_type,
        fingerprinted,
        coding,
        digest: plain.digest,
        size: plain.size,
        encodings,
    };
    Ok((entry, made))
}

fn blob(bytes: &[u8], dir: &Path, media_type: &'static str) -> Result<Blob, ArtifactError> {
    let digest = digest_of(bytes);
    let path = dir.join(digest.hex());
    fs::write(&path, bytes).map_err(|e| ArtifactError::io(&path, e))?;
    Ok(Blob { digest, size: bytes.len() as u64, path, media_type })
}

/// How a file is encoded by its name, the name it would have decoded, and its decoded beginning: of
/// `app.js.gz`, what `app.js` is. `None` for a name that says nothing of the kind, for bytes that are not
/// so encoded, and for archives: `backup.tar.gz` is kept as it is by the client that loads it.
fn stored_encoded(
    suffixes: &[String],
    name: &str,
    bytes: &[u8],
) -> Option<(Coding, String, Vec<u8>)> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let (coding, inner) = match suffix {
        "br" => (Coding::Br, stem.to_owned()),
        "gz" => (Coding::Gzip, stem.to_owned()),
        "zst" => (Coding::Zstd, stem.to_owned()),
        "svgz" => (Coding::Gzip, format!("{stem}.svg")),
        _ => return None,
    };
    let (before, extension) = inner.rsplit('/').next()?.rsplit_once('.')?;
    let archive = before.is_empty() || matches!(extension, "tar" | "cpio" | "warc");
    if archive || !suffixes.iter().any(|s| s == suffix) {
        return None;
    }
    let start = encode::beginning(coding, bytes)?;
    Some((coding, inner, start))
}

/// By its name; text says its character set where it has the one that the web expects.
fn media_type(name: &str, bytes: &[u8]) -> String {
    let known = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("map") => Some("application/json"),
        _ => mime_guess::from_path(name).first_raw(),
    };
    match known {
        Some(text) if text.starts_with("text/") && std::str::from_utf8(bytes).is_ok() => {
            format!("{text}; charset=utf-8")
        }
        Some(known) => known.to_owned(),
        None => "application/octet-stream".to_owned(),
    }
}

/// The assets that the build's manifest names and whose names carry a fingerprint.
fn fingerprinted(
    root: &Path,
    source: &AssetSource<'_>,
    files: &[File<'_>],
    found: &BTreeMap<&str, &Path>,
) -> Result<BTreeSet<String>, ArtifactError> {
    let Some(manifest) = source.manifest else { return Ok(BTreeSet::new()) };
    let at = root.join(manifest);
    let refused = |why: String| ArtifactError::refused(&at, why);
    let bytes = fs::read(&at).map_err(|e| ArtifactError::io(&at, e))?;
    let document: Value =
        serde_json::from_slice(&bytes).map_err(|e| refused(format!("it is no JSON: {e}")))?;
    let mut out = BTreeSet::new();
    for (name, target) in targets(&document).map_err(refused)? {
        let places = places(source, manifest, &target);
        let mut here: Vec<&String> =
            places.iter().filter(|p| files.iter().any(|(f, _)| f == p)).collect();
        here.dedup();
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
            let asset = place.strip_prefix(&format!("{}/", source.dir));
            if let Some(asset) = asset.filter(|a| found.contains_key(a))
                && name != target
                && looks_fingerprinted(asset)
            {
                out.insert(asset.to_owned());
            }
        }
    }
    Ok(out)
}

/// Source name and target of everything in a manifest: `{"app.css": "app.0123abcd.css"}` as Vango
/// writes it, or Vite's `{"src/main.ts": {"file": …, "css": […], "assets": […]}}`.
/// Source: <https://vite.dev/guide/backend-integration>.
fn targets(document: &Value) -> Result<Vec<(String, String)>, String> {
    let expected = "expected an object of names: {\"app.css\": \"app.0123abcd.css\"}, or Vite's";
    let entries = document.as_object().ok_or(expected)?;
    let mut out = Vec::new();
    for (name, value) in entries {
        match value {
            Value::String(target) => out.push((name.clone(), target.clone())),
            Value::Object(chunk) => {
                let file = chunk.get("file").and_then(Value::as_str).ok_or(expected)?;
                out.push((name.clone(), file.to_owned()));
                for list in ["css", "assets"] {
                    let listed = chunk.get(list).and_then(Value::as_array);
                    for more in listed.into_iter().flatten().filter_map(Value::as_str) {
                        out.push((format!("{name} ({list})"), more.to_owned()));
                    }
                }
            }
            _ => return Err(expected.into()),
        }
    }
    Ok(out)
}

/// Where in the artifact the file may be that a manifest calls `target`: in the assets' directory, by
/// its URL, beside the manifest, or beside the manifest's directory (Vite's `.vite/manifest.json`).
fn places(source: &AssetSource<'_>, manifest: &str, target: &str) -> Vec<String> {
    let plain = target.trim_start_matches('/');
    let parent = |p: &str| p.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    let beside = parent(manifest);
    let above = parent(beside.trim_end_matches('/'));
    let mut out = vec![format!("{}/{plain}", source.dir)];
    if let Some(rest) = target.strip_prefix(source.prefix) {
        out.push(format!("{}/{rest}", source.dir));
    }
    out.push(format!("{beside}{plain}"));
    if beside.ends_with(".vite/") {
        out.push(format!("{above}{plain}"));
    }
    out.sort();
    out.dedup();
    out
}
