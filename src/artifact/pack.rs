//! A directory → an OCI image layout. What is read is checked; what is written is the same on any
//! machine: entries sorted by path, no time, no owner, modes 0755 and 0644 only.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::id::Digest;

use super::assets::{self, AssetSource};
use super::layout::{self, Descriptor, Image, Index, Manifest, RootFs, digest_of};
use super::links::{self, Kind};
use super::{ArtifactError, CONTRACT, MAX_BYTES, MAX_CONTRACT, MAX_ENTRIES, MAX_PATH};

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

/// One blob of a packed artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// The file it is in.
    pub path: PathBuf,
    /// What it is.
    pub media_type: &'static str,
}

/// What [`pack`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The manifest's digest: the artifact's identity.
    pub digest: Digest,
    /// What is to be uploaded, in this order: the manifest is last.
    pub blobs: Vec<Blob>,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The text of its contract.
    pub contract: String,
}

struct Found {
    /// Within the artifact, `/` between names.
    name: String,
    path: PathBuf,
    kind: Kind,
    executable: bool,
    size: u64,
}

/// What cannot be part of an artifact, and why.
pub type Refusal = (PathBuf, String);

/// Packs `dir` into an OCI image layout in the existing directory `out`. A folder or file named
/// `.git` in its root is left out. `assets` says which of its files the edge is to answer for.
///
/// # Errors
/// [`ArtifactError::Refused`] or [`ArtifactError::Several`] for what [`check`] finds; [`ArtifactError::Io`]
/// for what cannot be read or written.
pub fn pack(
    dir: &Path,
    out: &Path,
    assets: Option<&AssetSource<'_>>,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<Packed, ArtifactError> {
    let mut refused = Vec::new();
    let found = survey(dir, assets.map(|a| a.dir), &mut refused)?;
    ArtifactError::of_refusals(dir, refused)?;
    let contract = read_contract(dir, &found)?;
    let blobs_dir = out.join("blobs/sha256");
    fs::create_dir_all(&blobs_dir).map_err(|e| ArtifactError::io(&blobs_dir, e))?;
    let mut packing = Packing { progress, done: 0, total: 0, architecture: None };
    packing.total = found.iter().filter(|f| f.kind == Kind::File).count() as u64;
    let layer = packing.write_layer(&found, &blobs_dir)?;
    let image = Image {
        architecture: packing.architecture.unwrap_or("unknown").into(),
        os: "linux".into(),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![layer.digest] },
    };
    let config = write_json(&blobs_dir, layout::CONFIG, &image)?;
    let total = packing.total;
    let files: Vec<(&str, &Path)> =
        found.iter().filter(|f| f.kind == Kind::File).map(|f| (&*f.name, &*f.path)).collect();
    let mut blobs = match assets {
        None => Vec::new(),
        Some(source) => assets::write(dir, source, &files, &blobs_dir, &mut |done, of| {
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
    let manifest = write_json(&blobs_dir, layout::MANIFEST, &manifest)?;
    let index = Index {
        manifests: vec![Descriptor::of(layout::MANIFEST, manifest.digest, manifest.size)],
        ..Index::default()
    };
    write(&out.join("index.json"), &json(&index))?;
    write(&out.join("oci-layout"), layout::OCI_LAYOUT.as_bytes())?;
    Ok(Packed {
        digest: manifest.digest,
        files: total,
        bytes: found.iter().map(|f| f.size).sum(),
        blobs: {
            blobs.extend([layer, config, manifest]);
            blobs
        },
        contract,
    })
}

/// Everything in `dir` that cannot be part of an artifact: links that lead out of it or into its directory
/// `assets` of static files, devices, sockets, names that are not UTF-8 or have control characters; no
/// contract; more than the limits of this module.
///
/// # Errors
/// [`ArtifactError`] where `dir` cannot be read.
pub fn check(dir: &Path, assets: Option<&str>) -> Result<Vec<Refusal>, ArtifactError> {
    let mut refused = Vec::new();
    let found = survey(dir, assets, &mut refused)?;
    if let Err(e) = read_contract(dir, &found) {
        match e {
            ArtifactError::Refused { path, why } => refused.push((path, why)),
            e => return Err(e),
        }
    }
    Ok(refused)
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types hold nothing JSON cannot say")
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    fs::write(path, bytes).map_err(|e| ArtifactError::io(path, e))
}

fn write_json(
    dir: &Path,
    media_type: &'static str,
    value: &impl serde::Serialize,
) -> Result<Blob, ArtifactError> {
    let bytes = json(value);
    let digest = digest_of(&bytes);
    let path = dir.join(digest.hex());
    write(&path, &bytes)?;
    Ok(Blob { digest, size: bytes.len() as u64, path, media_type })
}

fn read_contract(dir: &Path, found: &[Found]) -> Result<String, ArtifactError> {
    let path = dir.join(CONTRACT);
    let Some(file) = found.iter().find(|f| f.name == CONTRACT && f.kind == Kind::File) else {
        return Err(ArtifactError::refused(
            dir,
            format!(
                "there is no {CONTRACT} in it: it says how the app is started and what its routes are"
            ),
        ));
    };
    if file.size > MAX_CONTRACT {
        return Err(ArtifactError::refused(path, format!("larger than {MAX_CONTRACT} bytes")));
    }
    let bytes = fs::read(&path).map_err(|e| ArtifactError::io(&path, e))?;
    String::from_utf8(bytes).map_err(|_| ArtifactError::refused(path, "it is not UTF-8"))
}

fn survey(
    dir: &Path,
    assets: Option<&str>,
    refused: &mut Vec<Refusal>,
) -> Result<Vec<Found>, ArtifactError> {
    let root = fs::metadata(dir).map_err(|e| ArtifactError::io(dir, e))?;
    if !root.is_dir() {
        return Err(ArtifactError::refused(dir, "it is not a directory"));
    }
    let mut found = Vec::new();
    let mut todo = vec![(dir.to_owned(), String::new())];
    let mut bytes = 0u64;
    while let Some((at, prefix)) = todo.pop() {
        for entry in fs::read_dir(&at).map_err(|e| ArtifactError::io(&at, e))? {
            let entry = entry.map_err(|e| ArtifactError::io(&at, e))?;
            let path = entry.path();
            if prefix.is_empty() && entry.file_name() == ".git" {
                continue;
            }
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
                todo.push((one.path.clone(), format!("{}/", one.name)));
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
    if let Some(assets) = assets {
        let below = format!("{assets}/");
        let links = found.iter().filter(|f| matches!(f.kind, Kind::Link(_)));
        for link in links.filter(|f| f.name == assets || f.name.starts_with(&below)) {
            let why = "it is a symbolic link in [assets].dir, whose files the edge serves itself; put \
                       the file itself here";
            refused.push((link.path.clone(), why.to_owned()));
        }
    }
    refused.sort();
    refused.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
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
    fn write_layer(&mut self, found: &[Found], dir: &Path) -> Result<Blob, ArtifactError> {
        let unnamed = dir.join("layer.partial");
        let file = File::create(&unnamed).map_err(|e| ArtifactError::io(&unnamed, e))?;
        let hashed = Hashed { inner: BufWriter::new(file), hash: Sha256::new(), size: 0 };
        let mut tar = tar::Builder::new(hashed);
        for one in found {
            self.append(&mut tar, one)?;
        }
        let mut hashed = tar.into_inner().map_err(|e| ArtifactError::io(&unnamed, e))?;
        hashed.flush().map_err(|e| ArtifactError::io(&unnamed, e))?;
        let digest = Digest::from_bytes(hashed.hash.finalize().into());
        let path = dir.join(digest.hex());
        fs::rename(&unnamed, &path).map_err(|e| ArtifactError::io(&unnamed, e))?;
        Ok(Blob { digest, size: hashed.size, path, media_type: layout::LAYER })
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
        let mut file = File::open(&one.path).map_err(failed)?;
        let mut start = [0u8; 20];
        let have = read_up_to(&mut file, &mut start).map_err(failed)?;
        if self.architecture.is_none() {
            self.architecture = elf_architecture(&start[..have]);
        }
        // Exactly as many bytes as the header says, whatever happens to the file meanwhile.
        let body = start[..have].chain(file).take(one.size);
        let mut counted = Counted { inner: body, read: 0 };
        tar.append_data(&mut header, &one.name, &mut counted).map_err(failed)?;
        if counted.read != one.size {
            let why = "it became shorter while it was packed; deploy again";
            return Err(ArtifactError::refused(&one.path, why));
        }
        self.done += 1;
        let (files, files_total) = (self.done, self.total);
        (self.progress)(PackProgress { phase: Phase::Layer, files, files_total });
        Ok(())
    }
}

fn read_up_to(file: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < out.len() {
        match file.read(&mut out[have..])? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
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

struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.read += n as u64;
        Ok(n)
    }
}

struct Hashed<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
