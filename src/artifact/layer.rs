//! Reads a layer: checks every entry, and writes the tree if it is asked to. The caller checks the
//! digest over all bytes before it uses anything of it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::id::Digest;

use super::{CONTRACT, MAX_BYTES, MAX_CONTRACT, MAX_ENTRIES, MAX_PATH};

/// What was found in a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    /// The text of its contract.
    pub contract: String,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Digests of the files in the directory that was asked about, by their path below it.
    pub digests: BTreeMap<String, Digest>,
}

/// Why a layer could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is hostile or not a layer.
    #[error("{0}")]
    Refused(String),
    /// The reader's or the disk's.
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn refused<T>(why: String) -> Result<T, LayerError> {
    Err(LayerError::Refused(why))
}

/// Reads a whole layer from `input`; with `into`, writes its entries below that empty directory,
/// files as 0444 or 0555; with `digest`, hashes the files below that directory of the layer.
pub fn read(
    input: impl Read,
    into: Option<&Path>,
    digest: Option<&str>,
) -> Result<Layer, LayerError> {
    let mut archive = tar::Archive::new(input);
    let mut reading = Reading {
        seen: HashMap::new(),
        files: 0,
        bytes: 0,
        contract: None,
        into,
        below: digest.map(|dir| format!("{dir}/")),
        digests: BTreeMap::new(),
    };
    for entry in archive.entries()? {
        reading.entry(entry?)?;
    }
    // What follows the end-of-archive blocks belongs to the digest as well.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    match reading.contract {
        None => refused(format!("it has no {CONTRACT}")),
        Some(text) => match String::from_utf8(text) {
            Ok(contract) => Ok(Layer {
                contract,
                files: reading.files,
                bytes: reading.bytes,
                digests: reading.digests,
            }),
            Err(_) => refused(format!("{CONTRACT} is not UTF-8")),
        },
    }
}

struct Reading<'a> {
    /// Path → whether it is a directory.
    seen: HashMap<String, bool>,
    files: u64,
    bytes: u64,
    contract: Option<Vec<u8>>,
    into: Option<&'a Path>,
    below: Option<String>,
    digests: BTreeMap<String, Digest>,
}

impl Reading<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), LayerError> {
        let name = checked_name(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if !kind.is_dir() && kind != tar::EntryType::Regular {
            return refused(format!(
                "{name:?} is {kind:?}; an artifact holds directories and regular files only"
            ));
        }
        self.check_place(&name, kind.is_dir())?;
        let at = self.into.map(|root| root.join(&name));
        if kind.is_dir() {
            if let Some(at) = at {
                fs::create_dir(at)?;
            }
            return Ok(());
        }
        self.files += 1;
        self.bytes = self.bytes.saturating_add(entry.size());
        if self.bytes > MAX_BYTES {
            return refused(format!("its files have more than {MAX_BYTES} bytes"));
        }
        let executable = entry.header().mode()? & 0o111 != 0;
        let asset = self.below.as_ref().and_then(|below| name.strip_prefix(below.as_str()));
        if let Some(asset) = asset {
            let mut hashed = Hashed { inner: &mut entry, hash: Sha256::new() };
            write(at.as_deref(), &mut hashed, executable)?;
            let digest = Digest::from_bytes(hashed.hash.finalize().into());
            self.digests.insert(asset.to_owned(), digest);
            return Ok(());
        }
        if name != CONTRACT {
            return write(at.as_deref(), &mut entry, executable);
        }
        if entry.size() > MAX_CONTRACT {
            return refused(format!("{CONTRACT} is larger than {MAX_CONTRACT} bytes"));
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        write(at.as_deref(), &mut &text[..], executable)?;
        self.contract = Some(text);
        Ok(())
    }

    /// Each name once, below directories that came before it.
    fn check_place(&mut self, name: &str, directory: bool) -> Result<(), LayerError> {
        if self.seen.len() as u64 >= MAX_ENTRIES {
            return refused(format!("it has more than {MAX_ENTRIES} files and directories"));
        }
        if let Some((parent, _)) = name.rsplit_once('/')
            && self.seen.get(parent) != Some(&true)
        {
            return refused(format!("{name:?} comes before its directory"));
        }
        if self.seen.insert(name.to_owned(), directory).is_some() {
            return refused(format!("{name:?} is in it twice"));
        }
        Ok(())
    }
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hash.update(&out[..n]);
        Ok(n)
    }
}

fn write(at: Option<&Path>, body: &mut dyn Read, executable: bool) -> Result<(), LayerError> {
    let Some(at) = at else {
        io::copy(body, &mut io::sink())?;
        return Ok(());
    };
    let mode = if executable { 0o555 } else { 0o444 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(at)?;
    io::copy(body, &mut file)?;
    Ok(())
}

/// A relative path of plain names: nothing that could leave the root, and nothing that prints as
/// something else.
fn checked_name(bytes: &[u8]) -> Result<String, LayerError> {
    let Ok(name) = std::str::from_utf8(bytes) else {
        return refused("a path in it is not UTF-8".into());
    };
    let name = name.strip_suffix('/').unwrap_or(name);
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.len() > MAX_PATH || name.chars().any(char::is_control) || !name.split('/').all(plain) {
        return refused(format!(
            "path {:?} could leave the root or is not plain",
            name.chars().take(100).collect::<String>()
        ));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer of these entries, without the checks a well-behaved writer makes.
    fn layer(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, body) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(body.len() as u64);
            header.set_mode(0o755);
            header.set_cksum();
            tar.append(&header, *body).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn hostile_layers_are_refused_and_write_nothing_outside() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let contract = (CONTRACT, Regular, &b"x"[..]);
        type Entries<'a> = &'a [(&'a str, tar::EntryType, &'a [u8])];
        let hostile: &[(&str, Entries)] = &[
            ("could leave", &[contract, ("../evil", Regular, b"x")]),
            ("could leave", &[contract, ("/etc/evil", Regular, b"x")]),
            ("could leave", &[contract, ("a/../../evil", Regular, b"x")]),
            ("could leave", &[contract, ("./a", Regular, b"x")]),
            ("could leave", &[contract, ("a\nb", Regular, b"x")]),
            ("Symlink", &[contract, ("a", Symlink, b"")]),
            ("Link", &[contract, ("a", Link, b"")]),
            ("before its directory", &[contract, ("a/b", Regular, b"x")]),
            ("before its directory", &[contract, ("a", Regular, b"x"), ("a/b", Regular, b"x")]),
            ("twice", &[contract, ("a", Regular, b"x"), ("a", Directory, b"")]),
            ("no vango-edge.toml", &[("a", Regular, b"x")]),
            ("no vango-edge.toml", &[(CONTRACT, Directory, b"")]),
        ];
        for (expected, entries) in hostile {
            let around = tempfile::tempdir().unwrap();
            let root = around.path().join("root");
            fs::create_dir(&root).unwrap();
            let bytes = layer(entries);
            let error = read(&bytes[..], Some(&root), None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} instead of {expected}");
            assert_eq!(read(&bytes[..], None, None).unwrap_err().to_string(), error);
            assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_broken_off_layer_is_an_error() {
        let whole = layer(&[(CONTRACT, tar::EntryType::Regular, &[b'x'; 2000])]);
        assert!(read(&whole[..1500], None, None).is_err());
        assert!(read(&whole[..], None, None).is_ok());
    }
}
