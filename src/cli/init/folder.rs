//! A folder that is looked at. Nothing is run, and nothing outside of it is read.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// No file that says what an app is has more.
const MOST: u64 = 1 << 20;
/// Source files that are looked at for an app's object.
const SOURCES: usize = 200;

pub struct Folder(pub PathBuf);

impl Folder {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    pub fn has_dir(&self, name: &str) -> bool {
        self.path(name).is_dir()
    }

    /// The first of `names` that is there.
    pub fn first<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// A file's text; nothing for one that is not there or is no text.
    pub fn text(&self, name: &str) -> String {
        let path = self.path(name);
        let small = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MOST);
        if small { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() }
    }

    pub fn json(&self, name: &str) -> Option<Value> {
        serde_json::from_str(&self.text(name)).ok()
    }

    /// Names of the files with this extension in `dir`, of the root for `""`, sorted.
    pub fn files(&self, dir: &str, extension: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let mut all: Vec<String> = entries
            .filter(|e| e.path().extension().is_some_and(|found| found == extension))
            .filter_map(|e| Some(format!("{prefix}{}", e.file_name().to_str()?)))
            .collect();
        all.sort();
        all.truncate(SOURCES);
        all
    }

    /// Directories of the root, sorted, without hidden ones.
    pub fn dirs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut all: Vec<String> = entries
            .filter(|e| e.path().is_dir())
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        all.sort();
        all.truncate(SOURCES);
        all
    }
}

/// Whether `program` is found where an app's programs are.
pub fn is_installed(program: &str) -> bool {
    place_of(program, crate::control::APP_PATH).is_some()
}

/// The directory of `path` that has `program`.
pub fn place_of(program: &str, path: &str) -> Option<PathBuf> {
    path.split(':').map(Path::new).find(|dir| dir.join(program).is_file()).map(Path::to_owned)
}
