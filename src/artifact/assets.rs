//! The static files of a directory that is packed: found, typed, encoded, and written as blobs with
//! an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::assets::{
    AssetIndex, Coding, Encoded, Entries, Entry, MAX_ASSETS, MAX_INDEX, MEDIA_TYPE,
};
use crate::contract::Assets;
use crate::id::Digest;

use super::each::each;
use super::layout::{Blob, Place, digest_of};
use super::source::{File, unchanged};
use super::spool::Spool;
use super::{ArtifactError, CONTRACT, build_manifest, encode, siblings};

/// Encodings that were made before, by the file's digest and its type.
pub type Known = HashMap<(Digest, String), Vec<Encoded>>;

const BYTES: &str = "application/octet-stream";

/// The blobs of the assets among `files`; the index is last. What has to be made is kept in `spool`. Files
/// and directories whose name begins with a dot are no assets, except `.well-known` (RFC 8615).
///
/// # Errors
/// [`ArtifactError::Refused`] for a manifest that cannot be read or names what is not there, and for
/// one name with two contents; [`ArtifactError::Io`] for what cannot be read or written; what `known` says.
pub fn write<E: From<ArtifactError>>(
    root: &Path,
    sources: &[Arc<Assets>],
    files: &[File<'_>],
    spool: &Arc<Spool>,
    known: impl FnOnce(&[Digest]) -> Result<Known, E>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Blob>, E> {
    let (mut entries, mut found, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for source in sources {
        let of_this = below(source, files);
        if found.len() + of_this.len() > MAX_ASSETS {
            let why = format!("more than {MAX_ASSETS} static files");
            return Err(ArtifactError::refused(root.join(&source.dir), why).into());
        }
        for page in [&source.fallback, &source.not_found].into_iter().flatten() {
            if !of_this.contains_key(&**page) {
                let why =
                    "the contract answers with it, and there is no such file among the static ones";
                let at = root.join(&source.dir).join(page);
                return Err(ArtifactError::refused(at, why).into());
            }
        }
        let named = build_manifest::fingerprinted(root, source, files, &of_this)?;
        let of_this: Vec<_> = of_this.into_iter().collect();
        let mut looked = each(&of_this, &mut |_, _| {}, |(name, path)| {
            let fingerprinted = named.contains(*name) || source.is_immutable(name);
            Ok(Entry { fingerprinted, ..look(source, (name, path))? })
        })?;
        siblings::take(&mut looked, &of_this)?;
        counts.push(looked.len());
        entries.extend(looked);
        found.extend(of_this);
    }
    let mut blobs: Vec<_> = entries.iter().zip(&found).map(|(e, f)| plain(e, f.1)).collect();
    encode_all(&mut entries, &found, &mut blobs, spool, known, progress)?;
    let mut entries = entries.into_iter();
    let folders = sources.iter().zip(counts).map(|(source, count)| Entries {
        dir: source.dir.clone(),
        prefix: source.prefix.clone(),
        assets: entries.by_ref().take(count).collect(),
    });
    let folders = folders.collect();
    let bytes = AssetIndex::write_all(folders);
    if bytes.len() as u64 > MAX_INDEX {
        let why = format!("the index of its static files has more than {MAX_INDEX} bytes");
        return Err(ArtifactError::refused(root, why).into());
    }
    blobs.sort_by_key(|b| b.digest);
    blobs.dedup_by_key(|b| b.digest);
    blobs.push(Blob::write(&bytes, spool, MEDIA_TYPE)?);
    Ok(blobs)
}

/// Those of `files` that are static files of `source`, by their names below its directory.
fn below<'a>(source: &Assets, files: &[File<'a>]) -> BTreeMap<&'a str, &'a Path> {
    let below = crate::assets::below(&source.dir);
    let shown = |s: &str| !s.starts_with('.') || s == ".well-known";
    files
        .iter()
        .filter(|(name, _)| *name != CONTRACT)
        .filter_map(|(name, path)| Some((name.strip_prefix(&below)?, *path)))
        .filter(|(name, _)| name.split('/').all(shown))
        .collect()
}

/// A content as it is sent: its digest and type.
type ContentKey = (Digest, String);

/// Gives `entries` the encodings that did not come with them: first those that are known, then what is made, each
/// content's once. Adds their blobs to `blobs`.
fn encode_all<E: From<ArtifactError>>(
    entries: &mut [Entry],
    found: &[File<'_>],
    blobs: &mut Vec<Blob>,
    spool: &Arc<Spool>,
    known: impl FnOnce(&[Digest]) -> Result<Known, E>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), E> {
    // What is wanted of each content, and one file that has it.
    let mut wanted: BTreeMap<ContentKey, (BTreeSet<Coding>, &Path)> = BTreeMap::new();
    for (entry, (_, path)) in entries.iter().zip(found) {
        if entry.coding.is_none() && encode::is_worth_it(entry.size, &entry.media_type) {
            let given = |coding: &Coding| entry.encodings.iter().any(|e| e.coding == *coding);
            let content = (entry.digest, entry.media_type.clone());
            let (codings, _) = wanted.entry(content).or_insert((BTreeSet::new(), path));
            codings.extend(encode::CODINGS.into_iter().filter(|c| !given(c)));
        }
    }
    wanted.retain(|_, (codings, _)| !codings.is_empty());
    let mut digests: Vec<_> = wanted.keys().map(|(digest, _)| *digest).collect();
    digests.dedup();
    let known = if digests.is_empty() { Known::new() } else { known(&digests)? };
    let mut made = Known::new();
    let mut todo = Vec::new();
    for (content, (codings, path)) in wanted {
        let Some(encodings) = known.get(&content) else {
            todo.push((content, codings, path));
            continue;
        };
        let encodings: Vec<_> =
            encodings.iter().filter(|e| codings.contains(&e.coding)).cloned().collect();
        blobs.extend(encodings.iter().map(|e| {
            let place = Place::Encoding(path.to_owned(), e.coding);
            Blob { digest: e.digest, size: e.size, media_type: BYTES, place }
        }));
        made.insert(content, encodings);
    }
    let encoded = each(&todo, progress, |((digest, _), codings, path)| {
        encodings(path, digest, codings, spool)
    })?;
    for ((content, ..), encoded) in todo.into_iter().zip(encoded) {
        let of = |(coding, b): &(Coding, Blob)| Encoded {
            coding: *coding,
            digest: b.digest,
            size: b.size,
            given: false,
        };
        made.insert(content, encoded.iter().map(of).collect());
        blobs.extend(encoded.into_iter().map(|(_, blob)| blob));
    }
    for entry in entries.iter_mut().filter(|e| e.coding.is_none()) {
        let more = made.get(&(entry.digest, entry.media_type.clone()));
        for one in more.into_iter().flatten() {
            if entry.encodings.iter().all(|e| e.coding != one.coding) {
                entry.encodings.push(one.clone());
            }
        }
    }
    Ok(())
}

fn plain(entry: &Entry, path: &Path) -> Blob {
    let place = Place::File(path.to_owned());
    Blob { digest: entry.digest, size: entry.size, media_type: BYTES, place }
}

/// What a file is, without its encodings.
fn look(source: &Assets, (name, path): File<'_>) -> Result<Entry, ArtifactError> {
    let bytes = fs::read(path).map_err(|e| ArtifactError::io(path, e))?;
    let encoded = stored_encoded(&source.encoded_suffixes, name, &bytes);
    let media_type = match &encoded {
        Some((_, inner, start)) => media_type(inner, start),
        None => media_type(name, &bytes),
    };
    Ok(Entry {
        path: name.to_owned(),
        media_type,
        fingerprinted: false,
        coding: encoded.map(|(coding, ..)| coding),
        digest: digest_of(&bytes),
        size: bytes.len() as u64,
        encodings: Vec::new(),
    })
}

/// Makes those encodings of a file that help, and decodes them again.
fn encodings(
    path: &Path,
    digest: &Digest,
    codings: &BTreeSet<Coding>,
    spool: &Arc<Spool>,
) -> Result<Vec<(Coding, Blob)>, ArtifactError> {
    let bytes = unchanged(path, digest)?;
    let mut made = Vec::new();
    for (coding, encoded) in encode::encode(&bytes, codings.iter().copied()) {
        if encode::decode(coding, &encoded, bytes.len()).as_ref() != Some(&bytes) {
            let why = format!("its {} encoding does not decode to it: a defect", coding.name());
            return Err(ArtifactError::refused(path, why));
        }
        made.push((coding, Blob::write(&encoded, spool, BYTES)?));
    }
    Ok(made)
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
        // RFC 9239 §6, RFC 8081 §4.4.5.
        Some("mjs") => Some("text/javascript"),
        Some("woff") => Some("font/woff"),
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
