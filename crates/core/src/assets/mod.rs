//! The index of an artifact's static files: which path has which bytes, in which encodings.
//!
//! It is made at deploy, is a blob of the artifact named by its manifest, and is read back here,
//! once, into a type that cannot be wrong: every path plain and unique, every header value ready to
//! send. A request's path is only ever looked up in it; no name from a request reaches a file system.
//!
//! Deliberately absent: modification times (they differ between machines, and an entity tag says
//! more), and the bytes themselves.

mod names;

pub use names::{looks_fingerprinted, names_its_content};

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// Media type of the index.
pub const MEDIA_TYPE: &str = "application/vnd.vango-edge.assets.v1+json";
/// Bytes of an index, at most.
pub const MAX_INDEX: u64 = 32 << 20;
/// Files in an index, at most.
pub const MAX_ASSETS: usize = 50_000;

/// Which encoders made the encodings that did not come with the files: another number for other bytes. What is
/// known of encodings counts for those that made them only.
pub const ENCODER: u32 = 2;

/// That of indexes which do not say.
fn first_encoder() -> u32 {
    1
}

/// A content coding (RFC 9110 §8.4.1; br: RFC 7932, zstd: RFC 8878).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// Brotli.
    Br,
    /// Zstandard, with a window of at most 8 MiB (RFC 9659).
    Zstd,
    /// Gzip.
    Gzip,
}

impl Coding {
    /// As `Content-Encoding` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// One file as it is written into an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path below the index's directory, `/` between names; also its path below the prefix, once
    /// decoded.
    pub path: String,
    /// Its media type.
    #[serde(rename = "type")]
    pub media_type: String,
    /// Its name changes with its content: it may be kept for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fingerprinted: bool,
    /// Its bytes are encoded so, as its name says, and `media_type` is what they decode to. Such a file
    /// has no other encodings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coding: Option<Coding>,
    pub digest: Digest,
    pub size: u64,
    /// The same bytes, encoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encodings: Vec<Encoded>,
}

/// An encoding of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoded {
    pub coding: Coding,
    /// The encoded bytes.
    pub digest: Digest,
    pub size: u64,
    /// It came with the file, as another file of the directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
}

/// One folder's are said as they were before there could be several.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    media_type: String,
    #[serde(default = "first_encoder")]
    encoder: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assets: Option<Vec<Entry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folders: Option<Vec<Entries>>,
}

/// The files of one directory as they are written into an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    /// The directory in the artifact; `.` is all of it.
    pub dir: String,
    /// The path prefix under which they are asked for.
    pub prefix: String,
    pub assets: Vec<Entry>,
}

/// Why an index was refused.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not JSON of this form.
    #[error("it is no asset index: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Something in it cannot be.
    #[error("{path:?}: {why}")]
    Refused {
        /// The path in the index.
        path: String,
        why: &'static str,
    },
}

fn refused<T>(path: &str, why: &'static str) -> Result<T, IndexError> {
    Err(IndexError::Refused { path: path.chars().take(100).collect(), why })
}

/// One way to send a file, with the header values that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Representation {
    /// How what is sent is encoded.
    pub coding: Option<Coding>,
    /// Of exactly the bytes that are sent.
    pub digest: Digest,
    pub size: u64,
    /// A strong entity tag: the digest (RFC 9110 §8.8.3).
    pub etag: HeaderValue,
    /// `Repr-Digest` (RFC 9530 §3).
    pub repr_digest: HeaderValue,
}

impl Representation {
    fn new(coding: Option<Coding>, digest: Digest, size: u64) -> Self {
        let value = |text: String| {
            let value = HeaderValue::try_from(text);
            assert!(value.is_ok(), "hex and base64 are visible ASCII");
            value.unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        Self {
            coding,
            digest,
            size,
            etag: value(format!("\"{}\"", digest.hex())),
            repr_digest: value(format!("sha-256=:{}:", STANDARD.encode(digest.as_bytes()))),
        }
    }
}

/// A file of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// `Content-Type`.
    pub media_type: HeaderValue,
    /// Its name changes with its content.
    pub fingerprinted: bool,
    /// As it is.
    pub identity: Representation,
    /// Encoded, smallest first.
    pub encoded: Vec<Representation>,
    /// Some of these came with the file.
    pub given: bool,
}

impl Asset {
    /// Every representation, the plain one first.
    pub fn representations(&self) -> impl Iterator<Item = &Representation> {
        std::iter::once(&self.identity).chain(&self.encoded)
    }
}

/// An index that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetIndex {
    encoder: u32,
    folders: Vec<Folder>,
}

/// The files of one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    dir: String,
    prefix: String,
    assets: HashMap<Box<str>, Arc<Asset>>,
}

impl AssetIndex {
    /// The bytes of an index of the files in one directory, asked for under `prefix`.
    pub fn write(dir: &str, prefix: &str, assets: Vec<Entry>) -> Vec<u8> {
        Self::write_all(vec![Entries { dir: dir.into(), prefix: prefix.into(), assets }])
    }

    /// The bytes of an index of the files in these directories; the same for the same files, in whatever
    /// order they come.
    pub fn write_all(mut folders: Vec<Entries>) -> Vec<u8> {
        for folder in &mut folders {
            folder.assets.sort_by(|a, b| a.path.cmp(&b.path));
            for asset in &mut folder.assets {
                asset.encodings.sort_by_key(|e| e.coding);
            }
        }
        let (media_type, encoder) = (MEDIA_TYPE.into(), ENCODER);
        let (mut dir, mut prefix, mut assets, mut all) = (None, None, None, None);
        match <[Entries; 1]>::try_from(folders) {
            Ok([one]) => {
                (dir, prefix, assets) = (Some(one.dir), Some(one.prefix), Some(one.assets))
            }
            Err(several) => all = Some(several),
        }
        let document = Document { media_type, encoder, dir, prefix, assets, folders: all };
        let bytes = serde_json::to_vec(&document);
        assert!(bytes.is_ok(), "an index has string keys and whole numbers only");
        bytes.unwrap_or_default()
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`IndexError`]: what in it cannot be.
    pub fn read(bytes: &[u8]) -> Result<Self, IndexError> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.media_type != MEDIA_TYPE {
            return refused(&document.media_type, "it has another media type");
        }
        let entries = match (document.dir, document.prefix, document.assets, document.folders) {
            (Some(dir), Some(prefix), Some(assets), None) => vec![Entries { dir, prefix, assets }],
            (None, None, None, Some(folders)) => folders,
            _ => return refused("", "it has neither one folder nor several"),
        };
        if entries.iter().map(|e| e.assets.len()).sum::<usize>() > MAX_ASSETS {
            return refused("", "it has too many files");
        }
        let folders: Result<_, _> = entries.into_iter().map(Folder::new).collect();
        Ok(Self { encoder: document.encoder, folders: folders? })
    }

    /// What made the encodings.
    pub fn encoder(&self) -> u32 {
        self.encoder
    }
    /// In the contract's order.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }
    /// All files, in no order.
    pub fn assets(&self) -> impl Iterator<Item = &Arc<Asset>> {
        self.folders.iter().flat_map(|folder| folder.assets.values())
    }
}

impl Folder {
    fn new(entries: Entries) -> Result<Self, IndexError> {
        let prefix = &entries.prefix;
        if !(prefix.starts_with('/') && prefix.ends_with('/')) {
            return refused(prefix, "a prefix begins and ends with /");
        }
        let mut assets = HashMap::with_capacity(entries.assets.len());
        for entry in &entries.assets {
            let asset = asset(entry)?;
            if assets.insert(entry.path.as_str().into(), Arc::new(asset)).is_some() {
                return refused(&entry.path, "it is in it twice");
            }
        }
        Ok(Self { dir: entries.dir, prefix: entries.prefix, assets })
    }

    /// The directory in the artifact that its files are in; `.` is all of it.
    pub fn dir(&self) -> &str {
        &self.dir
    }
    /// The path prefix under which they are asked for.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
    /// The file with this decoded path below the prefix.
    pub fn get(&self, path: &str) -> Option<&Arc<Asset>> {
        self.assets.get(path)
    }
    /// All files with their paths, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Asset>)> {
        self.assets.iter().map(|(path, asset)| (&**path, asset))
    }
}

/// What the names of all files below `dir` of an artifact begin with.
pub fn below(dir: &str) -> String {
    if dir == "." { String::new() } else { format!("{dir}/") }
}

fn asset(entry: &Entry) -> Result<Asset, IndexError> {
    let path = entry.path.as_str();
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.len() > 1024 || path.chars().any(char::is_control) || !path.split('/').all(plain) {
        return refused(path, "a path of plain names was expected");
    }
    let Ok(media_type) = HeaderValue::from_str(&entry.media_type) else {
        return refused(path, "its media type cannot be sent");
    };
    if entry.coding.is_some() && !entry.encodings.is_empty() {
        return refused(path, "what is encoded has other encodings");
    }
    let mut encoded: Vec<Representation> = Vec::new();
    for e in &entry.encodings {
        if encoded.iter().any(|r| r.coding == Some(e.coding)) {
            return refused(path, "it has one encoding twice");
        }
        if e.size >= entry.size {
            return refused(path, "an encoding does not make it smaller");
        }
        encoded.push(Representation::new(Some(e.coding), e.digest, e.size));
    }
    encoded.sort_by_key(|r| (r.size, r.coding));
    Ok(Asset {
        media_type,
        fingerprinted: entry.fingerprinted,
        identity: Representation::new(entry.coding, entry.digest, entry.size),
        encoded,
        given: entry.encodings.iter().any(|e| e.given),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(coding: Coding, n: u8, size: u64) -> Encoded {
        Encoded { coding, digest: Digest::from_bytes([n; 32]), size, given: false }
    }

    fn entry(path: &str) -> Entry {
        let encodings = vec![
            Encoded { given: true, ..encoded(Coding::Gzip, 2, 60) },
            encoded(Coding::Br, 3, 50),
        ];
        Entry {
            path: path.into(),
            media_type: "text/css".into(),
            fingerprinted: false,
            coding: None,
            digest: Digest::from_bytes([1; 32]),
            size: 100,
            encodings,
        }
    }

    #[test]
    fn an_index_is_the_same_in_any_order_and_reads_back() {
        let a = AssetIndex::write("public", "/assets/", vec![entry("a"), entry("b/c")]);
        let b = AssetIndex::write("public", "/assets/", vec![entry("b/c"), entry("a")]);
        assert_eq!(a, b);
        let index = AssetIndex::read(&a).unwrap();
        let [folder] = index.folders() else { panic!("{index:?}") };
        let asset = folder.get("b/c").unwrap();
        assert!(asset.given && index.encoder() == ENCODER);
        let named = (folder.iter().count(), folder.prefix(), folder.dir());
        assert_eq!(named, (2, "/assets/", "public"));
        assert_eq!(asset.encoded[0].coding, Some(Coding::Br), "smallest first");
        assert_eq!(asset.identity.etag.to_str().unwrap(), format!("\"{}\"", "01".repeat(32)));
        assert!(folder.get("../a").is_none() && folder.get("").is_none());
    }

    /// An artifact's digest covers its index: what needs no field has none, and what was written before there
    /// was one is read.
    #[test]
    fn an_index_of_plain_files_is_written_as_ever() {
        let mut plain = entry("a");
        plain.encodings.clear();
        let digest = plain.digest;
        let text = format!(
            "{{\"mediaType\":\"{MEDIA_TYPE}\",\"encoder\":2,\"dir\":\"p\",\"prefix\":\"/a/\",\"assets\":[{{\"path\":\"a\",\
             \"type\":\"text/css\",\"digest\":\"{digest}\",\"size\":100}}]}}"
        );
        assert_eq!(AssetIndex::write("p", "/a/", vec![plain.clone()]), text.as_bytes());
        let asset = |index: &AssetIndex| Arc::clone(index.assets().next().unwrap());
        let before = AssetIndex::read(text.replace("\"encoder\":2,", "").as_bytes()).unwrap();
        assert_eq!((before.encoder(), asset(&before).given), (1, false));
        plain.coding = Some(Coding::Gzip);
        let index = AssetIndex::read(&AssetIndex::write("p", "/a/", vec![plain])).unwrap();
        assert_eq!(asset(&index).identity.coding, Some(Coding::Gzip));
        let both = Entry { coding: Some(Coding::Gzip), ..entry("a") };
        assert!(AssetIndex::read(&AssetIndex::write("p", "/a/", vec![both])).is_err());
    }

    #[test]
    fn several_folders_are_one_index() {
        let folder = |dir: &str, prefix: &str| Entries {
            dir: dir.into(),
            prefix: prefix.into(),
            assets: vec![entry("a")],
        };
        let bytes = AssetIndex::write_all(vec![
            folder("public", "/"),
            folder(".next/static", "/_next/static/"),
        ]);
        let index = AssetIndex::read(&bytes).unwrap();
        let dirs: Vec<_> = index.folders().iter().map(Folder::dir).collect();
        assert_eq!((dirs, index.assets().count()), (vec!["public", ".next/static"], 2));
        let neither = format!("{{\"mediaType\":\"{MEDIA_TYPE}\"}}");
        assert!(AssetIndex::read(neither.as_bytes()).is_err());
        assert_eq!((below("a/b"), below(".")), ("a/b/".to_owned(), String::new()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let twice = AssetIndex::write("p", "/a/", vec![entry("a"), entry("a")]);
        assert!(AssetIndex::read(&twice).unwrap_err().to_string().contains("twice"));
        for path in ["../a", "/a", "a//b", "a/./b", "", "a\nb"] {
            let bytes = AssetIndex::write("p", "/a/", vec![entry(path)]);
            assert!(AssetIndex::read(&bytes).is_err(), "{path:?}");
        }
        let mut large = entry("a");
        large.encodings[0].size = 100;
        assert!(AssetIndex::read(&AssetIndex::write("p", "/a/", vec![large])).is_err());
        let mut split = entry("a");
        split.media_type = "text/css\r\nset-cookie: a=b".into();
        assert!(AssetIndex::read(&AssetIndex::write("p", "/a/", vec![split])).is_err());
        assert!(AssetIndex::read(&AssetIndex::write("p", "a", vec![])).is_err());
    }
}
