//! Reads a layer: checks every entry, and writes the tree if it is asked to. The caller checks the
//! digest over all bytes before it uses anything of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use crate::assets::below;
use crate::id::Digest;

use super::layout::Hashed;
use super::links::{self, Kind};
use super::{CONTRACT, DIRECTORY, MAX_BYTES, MAX_CONTRACT, MAX_ENTRIES, MAX_PATH};

/// Where a layer's entries are written.
#[derive(Debug, Clone, Copy)]
pub enum Into<'a> {
    /// Nowhere: they are only checked.
    Nowhere,
    /// Below this empty directory.
    Empty(&'a Path),
    /// Below the directory of an earlier time: these of them, in place of whatever is there.
    Again(&'a Path, &'a BTreeSet<String>),
}

impl<'a> Into<'a> {
    fn root(self) -> Option<&'a Path> {
        match self {
            Self::Nowhere => None,
            Self::Empty(root) | Self::Again(root, _) => Some(root),
        }
    }
    /// Whether the entry is to be written; what is in its place is gone then.
    fn wants(self, name: &str) -> io::Result<bool> {
        match self {
            Self::Nowhere => Ok(false),
            Self::Empty(_) => Ok(true),
            Self::Again(root, some) if some.contains(name) => {
                crate::files::remove(&root.join(name))?;
                Ok(true)
            }
            Self::Again(..) => Ok(false),
        }
    }
}

/// What was found in a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// The text of its contract.
    pub contract: String,
    pub files: u64,
    pub bytes: u64,
    /// Digests of the files in the directories that were asked about, by their path in the layer.
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

/// Reads a whole layer from `input` and writes its entries to `into`, so that its own user cannot change
/// them unless it is root: files as 0444 or 0555, directories as 0555. With `hashed`, hashes the files below
/// these directories of the layer; `.` is all of it.
pub fn read(input: impl Read, into: Into<'_>, hashed: &[String]) -> Result<Layer, LayerError> {
    let mut archive = tar::Archive::new(input);
    let mut reading = Reading {
        seen: HashMap::new(),
        into,
        below: hashed.iter().map(|dir| below(dir)).collect(),
        layer: Layer::default(),
    };
    for entry in archive.entries()? {
        reading.entry(entry?)?;
    }
    // What follows the end-of-archive blocks belongs to the digest as well.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    reading.finish()?;
    if reading.seen.get(CONTRACT) != Some(&Kind::File) {
        return refused(format!("it has no {CONTRACT}"));
    }
    Ok(reading.layer)
}

struct Reading<'a> {
    seen: HashMap<String, Kind>,
    into: Into<'a>,
    below: Vec<String>,
    layer: Layer,
}

impl Reading<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), LayerError> {
        let name = checked_name(&entry.path_bytes())?;
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Regular => Kind::File,
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                // One that is not UTF-8 is refused with the others, as an empty one.
                Kind::Link(String::from_utf8(target).unwrap_or_default())
            }
            kind => {
                return refused(format!(
                    "{name:?} is {kind:?}; an artifact holds directories, regular files and \
                     symbolic links between them"
                ));
            }
        };
        self.check_place(&name, kind.clone())?;
        match kind {
            Kind::Directory => return self.directory(&name),
            // Made at the end, when all of them were checked.
            Kind::Link(_) => return Ok(()),
            Kind::File => {}
        }
        let at = self.into.root().map(|root| root.join(&name));
        let at = if self.into.wants(&name)? { at } else { None };
        self.layer.files += 1;
        self.layer.bytes = self.layer.bytes.saturating_add(entry.size());
        if self.layer.bytes > MAX_BYTES {
            return refused(format!("its files have more than {MAX_BYTES} bytes"));
        }
        let executable = entry.header().mode()? & 0o111 != 0;
        if name != CONTRACT {
            if !self.below.iter().any(|below| name.starts_with(below)) {
                return write(at.as_deref(), &mut entry, executable);
            }
            let mut hashed = Hashed::new(&mut entry);
            write(at.as_deref(), &mut hashed, executable)?;
            self.layer.digests.insert(name, hashed.digest());
            return Ok(());
        }
        if entry.size() > MAX_CONTRACT {
            return refused(format!("{CONTRACT} is larger than {MAX_CONTRACT} bytes"));
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        write(at.as_deref(), &mut &text[..], executable)?;
        match String::from_utf8(text) {
            Ok(contract) => self.layer.contract = contract,
            Err(_) => return refused(format!("{CONTRACT} is not UTF-8")),
        }
        Ok(())
    }

    /// Made so that it can be written to until [`Self::finish`]. A link that took its place is not followed.
    fn directory(&self, name: &str) -> Result<(), LayerError> {
        let Some(root) = self.into.root() else { return Ok(()) };
        let at = root.join(name);
        if !fs::symlink_metadata(&at).is_ok_and(|m| m.is_dir()) {
            crate::files::remove(&at)?;
            fs::create_dir(&at)?;
        }
        Ok(fs::set_permissions(&at, Permissions::from_mode(0o700))?)
    }

    /// Checks the links, makes those that are wanted, and takes the right to write away.
    fn finish(&self) -> Result<(), LayerError> {
        let wrong = links::wrong(&self.seen);
        if !wrong.is_empty() {
            let all: Vec<_> =
                wrong.into_iter().map(|(path, why)| format!("{path:?}: {why}")).collect();
            return refused(all.join("; "));
        }
        let Some(root) = self.into.root() else { return Ok(()) };
        for (name, kind) in &self.seen {
            if let Kind::Link(target) = kind
                && self.into.wants(name)?
            {
                symlink(target, root.join(name))?;
            }
        }
        let directories = self.seen.iter().filter(|(_, kind)| **kind == Kind::Directory);
        for name in directories.map(|(name, _)| name.as_str()).chain([""]) {
            fs::set_permissions(root.join(name), Permissions::from_mode(DIRECTORY))?;
        }
        Ok(())
    }

    /// Each name once, below directories that came before it.
    fn check_place(&mut self, name: &str, kind: Kind) -> Result<(), LayerError> {
        if self.seen.len() as u64 >= MAX_ENTRIES {
            return refused(format!("it has more than {MAX_ENTRIES} files and directories"));
        }
        if let Some((parent, _)) = name.rsplit_once('/')
            && self.seen.get(parent) != Some(&Kind::Directory)
        {
            return refused(format!("{name:?} comes before its directory"));
        }
        if self.seen.insert(name.to_owned(), kind).is_some() {
            return refused(format!("{name:?} is in it twice"));
        }
        Ok(())
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

    /// A layer of these entries, without the checks a well-behaved writer makes; the body of a link is its
    /// target.
    fn layer(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, body) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            let mut body = *body;
            if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                header.as_old_mut().linkname[..body.len()].copy_from_slice(body);
                body = b"";
            }
            header.set_size(body.len() as u64);
            header.set_mode(0o755);
            header.set_cksum();
            tar.append(&header, body).unwrap();
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
            ("plain", &[contract, ("a", Symlink, b"")]),
            ("plain", &[contract, ("a", Symlink, b"b\xff")]),
            ("absolute", &[contract, ("a", Symlink, b"/etc/passwd")]),
            ("out of the artifact", &[contract, ("a", Symlink, b"../root/vango-edge.toml")]),
            ("out of the artifact", &[contract, ("a", Symlink, b"../../etc/passwd")]),
            ("circle", &[contract, ("a", Symlink, b"a")]),
            // A file, and a link, behind a link that leads out.
            ("before its directory", &[contract, ("a", Symlink, b".."), ("a/evil", Regular, b"x")]),
            ("before its directory", &[contract, ("a", Symlink, b"."), ("a/b", Symlink, b"x")]),
            (
                "out of the artifact",
                &[
                    contract,
                    ("d", Directory, b""),
                    ("d/up", Symlink, b".."),
                    ("e", Symlink, b"d/up/.."),
                ],
            ),
            (
                "through d/out",
                &[
                    contract,
                    ("d", Directory, b""),
                    ("d/out", Symlink, b"/etc"),
                    ("e", Symlink, b"d/out/passwd"),
                ],
            ),
            // The link comes first, what it is said to be later, and the other way round.
            ("twice", &[contract, ("a", Symlink, b".."), ("a", Directory, b"")]),
            (
                "twice",
                &[contract, ("a", Directory, b""), ("a", Symlink, b".."), ("a/x", Regular, b"")],
            ),
            ("Link", &[contract, ("a", Link, b"/etc/passwd")]),
            ("no vango-edge.toml", &[("x", Regular, b"x"), (CONTRACT, Symlink, b"x")]),
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
            let error = read(&bytes[..], Into::Empty(&root), &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} instead of {expected}");
            assert_eq!(read(&bytes[..], Into::Nowhere, &[]).unwrap_err().to_string(), error);
            assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn links_between_its_own_entries_are_kept() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let bytes = layer(&[
            (CONTRACT, Regular, b"x"),
            ("bin", Directory, b""),
            // Before what it leads to.
            ("bin/tool", Symlink, b"../lib/tool.js"),
            ("lib", Directory, b""),
            ("lib/tool.js", Regular, b"tool"),
        ]);
        let root = tempfile::tempdir().unwrap();
        read(&bytes[..], Into::Empty(root.path()), &[]).unwrap();
        assert_eq!(fs::read(root.path().join("bin/tool")).unwrap(), b"tool");
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().permissions().mode();
        assert_eq!((mode("") & 0o777, mode("bin") & 0o777), (0o555, 0o555));
        assert_eq!(mode("lib/tool.js") & 0o222, 0);
        crate::files::remove(root.path()).unwrap();
    }

    #[test]
    fn a_broken_off_layer_is_an_error() {
        let whole = layer(&[(CONTRACT, tar::EntryType::Regular, &[b'x'; 2000])]);
        assert!(read(&whole[..1500], Into::Nowhere, &[]).is_err());
        assert!(read(&whole[..], Into::Nowhere, &[]).is_ok());
    }
}
