//! A directory → an OCI image layout. What is read is checked; what is written is the same on any
//! machine: entries sorted by path, no time, no owner, modes 0755 and 0644 only.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::assets::below;
use crate::contract::{Assets, Contract};
use crate::id::Digest;

use super::assets::{self, Known};
use super::given::Given;
use super::ignored::{self, Ignore, LeftOut};
use super::layout::{self, Blob, Descriptor, Hashed, Image, Manifest, Place, RootFs};
use super::links::{self, Kind};
use super::spool::Spool;
use super::{ArtifactError, CONTRACT, MAX_BYTES, MAX_ENTRIES, MAX_PATH};

/// What packing is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Files are put into the layer.
    Layer,
    /// Static files are encoded.
    Assets,
}

/// How far packing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackProgress {
    /// What it is at.
    pub phase: Phase,
    /// Files done.
    pub files: u64,
    /// Of so many.
    pub files_total: u64,
}

/// What [`pack`] made.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The manifest's digest: the artifact's identity.
    pub digest: Digest,
    /// What is to be uploaded, in this order: the manifest is last.
    pub blobs: Vec<Blob>,
    pub files: u64,
    pub bytes: u64,
    /// The text of its contract.
    pub contract: String,
    pub noticed: Noticed,
}

/// What is to be said about a directory besides what is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noticed {
    /// What stays behind.
    pub left_out: LeftOut,
    /// Files that hold secrets by their names, and are in the artifact.
    pub secrets: Vec<String>,
}

impl Noticed {
    /// In sentences, one a line.
    pub fn in_words(&self) -> Vec<String> {
        let left_out = self.left_out.in_words().map(|words| format!("note: {words}"));
        let secret = self.secrets.iter().map(|name| {
            format!(
                "warning: {name} goes into the artifact, with the secrets that may be in it: name it in a \
                 .vango-edgeignore, and let the operator give them (process.secrets)"
            )
        });
        left_out.into_iter().chain(secret).collect()
    }
}

struct Found {
    /// Within the artifact, `/` between names.
    name: String,
    path: PathBuf,
    kind: Kind,
    executable: bool,
    size: u64,
    /// What is packed instead of the file's bytes.
    text: Option<String>,
}

/// What cannot be part of an artifact, and why.
pub type Refusal = (PathBuf, String);

/// Packs `dir` into the blobs of an OCI image. A folder or file named `.git` in its root is left out.
/// `assets` says which of its files the edge is to answer for, and `known` which encodings of files, by
/// their digests, need not be made since the edge has them.
///
/// # Errors
/// [`ArtifactError::Refused`] or [`ArtifactError::Several`] for what [`check`] finds; [`ArtifactError::Io`]
/// for what cannot be read or written; what `known` says.
pub fn pack<E: From<ArtifactError>>(
    dir: &Path,
    assets: &[Arc<Assets>],
    known: impl FnOnce(&[Digest]) -> Result<Known, E>,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<Packed, E> {
    let mut refused = Vec::new();
    let given = Given::of(dir)?;
    let read = given.parse(dir).ok();
    let (mut found, noticed) = survey(dir, assets, read.as_ref(), &mut refused)?;
    ArtifactError::of_refusals(dir, refused)?;
    let contract = given.text;
    put_contract(&mut found, dir, &contract);
    let spool = Spool::new()?;
    let mut packing = Packing { progress, done: 0, total: 0, architecture: None };
    packing.total = found.iter().filter(|f| f.kind == Kind::File).count() as u64;
    let layer = packing.write_layer(&found)?;
    let image = Image {
        architecture: packing.architecture.unwrap_or("unknown").into(),
        os: "linux".into(),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![layer.digest] },
    };
    let config = Blob::write(&json(&image), &spool, layout::CONFIG)?;
    let total = packing.total;
    let files: Vec<(&str, &Path)> =
        found.iter().filter(|f| f.kind == Kind::File).map(|f| (&*f.name, &*f.path)).collect();
    let mut blobs = match assets {
        [] => Vec::new(),
        all => assets::write(dir, all, &files, &spool, known, &mut |done, of| {
            progress(PackProgress { phase: Phase::Assets, files: done, files_total: of });
        })?,
    };
    let index = blobs.last().map(|b| (layout::ASSETS.to_owned(), b.digest.to_string()));
    let manifest = Manifest {
        annotations: index.into_iter().collect(),
        schema_version: 2,
        media_type: layout::MANIFEST.into(),
        config: Descriptor::of(config.media_type, config.digest, config.size),
        layers: vec![Descriptor::of(layer.media_type, layer.digest, layer.size)],
    };
    let manifest = Blob::write(&json(&manifest), &spool, layout::MANIFEST)?;
    Ok(Packed {
        digest: manifest.digest,
        files: total,
        bytes: found.iter().map(|f| f.size).sum(),
        blobs: {
            blobs.extend([layer, config, manifest]);
            blobs
        },
        contract,
        noticed,
    })
}

/// Everything in `dir`, whose contract is `contract` as far as that could be read, that cannot be part of an
/// artifact: links that lead out of it or into a directory
/// of static files, devices, sockets, names that are not UTF-8 or have control characters; no
/// contract; more than the limits of this module.
///
/// # Errors
/// [`ArtifactError`] where `dir` cannot be read.
pub fn check(
    dir: &Path,
    contract: Option<&Contract>,
) -> Result<(Vec<Refusal>, Noticed), ArtifactError> {
    let mut refused = Vec::new();
    let assets = contract.map_or(&[][..], |c| &c.assets);
    let (_, noticed) = survey(dir, assets, contract, &mut refused)?;
    if let Err(e) = Given::of(dir) {
        match e {
            ArtifactError::Refused { path, why } => refused.push((path, why)),
            e => return Err(e),
        }
    }
    Ok((refused, noticed))
}

/// The contract is packed as the text that was read, which may be more than the file's.
fn put_contract(found: &mut Vec<Found>, dir: &Path, text: &str) {
    let one = Found {
        name: CONTRACT.to_owned(),
        path: dir.join(CONTRACT),
        kind: Kind::File,
        executable: false,
        size: text.len() as u64,
        text: Some(text.to_owned()),
    };
    match found.binary_search_by(|f| f.name.as_str().cmp(CONTRACT)) {
        Ok(at) => found[at] = one,
        Err(at) => found.insert(at, one),
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types hold nothing JSON cannot say")
}

fn survey(
    dir: &Path,
    assets: &[Arc<Assets>],
    contract: Option<&Contract>,
    refused: &mut Vec<Refusal>,
) -> Result<(Vec<Found>, Noticed), ArtifactError> {
    let root = fs::metadata(dir).map_err(|e| ArtifactError::io(dir, e))?;
    if !root.is_dir() {
        return Err(ArtifactError::refused(dir, "it is not a directory"));
    }
    let mut found = Vec::new();
    let (mut ignore, rules) = Ignore::of(dir, contract)?;
    let mut todo = vec![(dir.to_owned(), String::new(), rules)];
    let mut bytes = 0u64;
    while let Some((at, prefix, rules)) = todo.pop() {
        for entry in fs::read_dir(&at).map_err(|e| ArtifactError::io(&at, e))? {
            let entry = entry.map_err(|e| ArtifactError::io(&at, e))?;
            let path = entry.path();
            if prefix.is_empty() && entry.file_name() == ".git" {
                continue;
            }
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let Some(inner) = ignore.look(&name, &path, is_dir, &rules)? else { continue };
            let one = match look(path.clone(), &prefix, entry.file_name().to_str())? {
                Ok(one) => one,
                Err(why) => {
                    refused.push((path, why));
                    continue;
                }
            };
            bytes = bytes.saturating_add(one.size);
            if bytes > MAX_BYTES {
                return Err(ArtifactError::refused(dir, format!("more than {MAX_BYTES} bytes")));
            }
            if one.kind == Kind::Directory {
                todo.push((one.path.clone(), format!("{}/", one.name), inner));
            }
            found.push(one);
            if found.len() as u64 > MAX_ENTRIES {
                let why = format!("more than {MAX_ENTRIES} files and directories");
                return Err(ArtifactError::refused(dir, why));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let entries: HashMap<_, _> = found.iter().map(|f| (f.name.clone(), f.kind.clone())).collect();
    refused.extend(links::wrong(&entries).into_iter().map(|(name, why)| (dir.join(name), why)));
    for assets in assets {
        let below = below(&assets.dir);
        let links = found.iter().filter(|f| matches!(f.kind, Kind::Link(_)));
        for link in links.filter(|f| f.name == assets.dir || f.name.starts_with(&below)) {
            let why = "it is a symbolic link in [assets].dir, whose files the edge serves itself; put \
                       the file itself here";
            refused.push((link.path.clone(), why.to_owned()));
        }
    }
    refused.sort();
    refused.dedup_by(|a, b| a.0 == b.0);
    let files = found.iter().filter(|f| f.kind == Kind::File).map(|f| &f.name);
    let secrets = files.filter(|name| ignored::is_secret(name)).cloned().collect();
    let mut left_out = ignore.left_out;
    left_out.names.sort();
    Ok((found, Noticed { left_out, secrets }))
}

/// One entry, or why it cannot be one.
fn look(
    path: PathBuf,
    prefix: &str,
    name: Option<&str>,
) -> Result<Result<Found, String>, ArtifactError> {
    let refused = |why: &str| Ok(Err(why.to_owned()));
    let Some(name) = name else { return refused("its name is not UTF-8; rename it") };
    if name.chars().any(char::is_control) {
        return refused("its name has a control character; rename it");
    }
    let name = format!("{prefix}{name}");
    if name.len() > MAX_PATH {
        return refused("its path is longer than 1024 bytes");
    }
    let meta = fs::symlink_metadata(&path).map_err(|e| ArtifactError::io(&path, e))?;
    let file = meta.file_type();
    let kind = if file.is_symlink() {
        let target = fs::read_link(&path).map_err(|e| ArtifactError::io(&path, e))?;
        Kind::Link(target.into_os_string().into_string().unwrap_or_default())
    } else if file.is_dir() {
        Kind::Directory
    } else if file.is_file() {
        Kind::File
    } else {
        return refused(
            "it is neither a directory, a regular file nor a symbolic link; take it out",
        );
    };
    let regular = kind == Kind::File;
    Ok(Ok(Found {
        name,
        executable: regular && meta.permissions().mode() & 0o111 != 0,
        size: if regular { meta.size() } else { 0 },
        text: None,
        kind,
        path,
    }))
}

struct Packing<'a> {
    progress: &'a mut dyn FnMut(PackProgress),
    done: u64,
    total: u64,
    architecture: Option<&'static str>,
}

impl Packing<'_> {
    fn write_layer(&mut self, found: &[Found]) -> Result<Blob, ArtifactError> {
        let spool = Spool::new()?;
        let failed = |e| ArtifactError::io(std::env::temp_dir(), e);
        let mut tar = tar::Builder::new(Hashed::new(BufWriter::with_capacity(1 << 16, &*spool)));
        for one in found {
            self.append(&mut tar, one)?;
        }
        let mut written = tar.into_inner().map_err(failed)?;
        written.flush().map_err(failed)?;
        let (digest, size) = (written.digest(), spool.size());
        Ok(Blob { digest, size, media_type: layout::LAYER, place: Place::Spool(spool, 0) })
    }

    fn append<W: Write>(
        &mut self,
        tar: &mut tar::Builder<W>,
        one: &Found,
    ) -> Result<(), ArtifactError> {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(one.size);
        let plain = one.kind == Kind::File && !one.executable;
        header.set_mode(if plain { 0o644 } else { 0o755 });
        let failed = |e| ArtifactError::io(&one.path, e);
        match &one.kind {
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                let name = format!("{}/", one.name);
                return tar.append_data(&mut header, name, io::empty()).map_err(failed);
            }
            Kind::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                return tar.append_link(&mut header, &one.name, target).map_err(failed);
            }
            Kind::File => header.set_entry_type(tar::EntryType::Regular),
        }
        let mut file: Box<dyn Read> = match &one.text {
            Some(text) => Box::new(text.as_bytes()),
            None => Box::new(File::open(&one.path).map_err(failed)?),
        };
        let mut start = Vec::new();
        (&mut file).take(20).read_to_end(&mut start).map_err(failed)?;
        if self.architecture.is_none() {
            self.architecture = elf_architecture(&start);
        }
        // Exactly as many bytes as the header says, whatever happens to the file meanwhile.
        let mut body = start.chain(file).take(one.size);
        tar.append_data(&mut header, &one.name, &mut body).map_err(failed)?;
        if body.limit() > 0 {
            let why = "it became shorter while it was packed; deploy again";
            return Err(ArtifactError::refused(&one.path, why));
        }
        self.done += 1;
        let (files, files_total) = (self.done, self.total);
        (self.progress)(PackProgress { phase: Phase::Layer, files, files_total });
        Ok(())
    }
}

/// The architecture of an ELF file, as the OCI config names it (`GOARCH` values).
/// Source: ELF gABI, `e_ident` and `e_machine`.
fn elf_architecture(start: &[u8]) -> Option<&'static str> {
    if start.len() < 20 || &start[..4] != b"\x7fELF" {
        return None;
    }
    let machine = [start[18], start[19]];
    let machine =
        if start[5] == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    match machine {
        3 => Some("386"),
        40 => Some("arm"),
        62 => Some("amd64"),
        183 => Some("arm64"),
        243 => Some("riscv64"),
        _ => None,
    }
}
