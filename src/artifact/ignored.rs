//! What of a directory stays behind when it is packed: what `.vango-edgeignore` in its root names, or, where
//! there is none, what `.gitignore` files name and an app does not run from.
//!
//! Git leaves out what can be made again: installed packages, what a build made. Here nothing is made again
//! after the deploy, so these stay in the artifact, by the names that tools give them and by what the contract
//! names. A `.vango-edgeignore` is taken at its word.
//!
//! Only files of the directory itself are read, none of its parents' and none of the user's: the same directory
//! gives the same artifact on any machine.
//!
//! Source: gitignore(5).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::contract::Contract;

use super::{ArtifactError, CONTRACT};

/// The file that counts alone.
const OWN: &str = ".vango-edgeignore";
const GIT: &str = ".gitignore";

/// Directories that tools put installed packages and what they built into.
const RUN_FROM: &[&str] = &[
    ".next",
    ".nuxt",
    ".output",
    ".svelte-kit",
    ".venv",
    "__pypackages__",
    "assets",
    "bin",
    "build",
    "dist",
    "lib",
    "lib64",
    "node_modules",
    "out",
    "public",
    "site-packages",
    "static",
    "staticfiles",
    "vendor",
    "venv",
];

/// What of these is a cache, by its parent's name and its own.
const CACHES: &[(&str, &str)] =
    &[(".next", "cache"), ("node_modules", ".cache"), (".nuxt", "cache")];

/// Names of left out things that are kept for people; the rest is counted.
const NAMED: usize = 8;

/// What was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The file that says so; `None` where nothing was.
    pub by: Option<&'static str>,
    /// The first few names; directories end in `/`.
    pub names: Vec<String>,
    /// How many more there are. Of a directory only itself counts.
    pub more: usize,
}

impl LeftOut {
    fn add(&mut self, by: &'static str, name: &str, is_dir: bool) {
        self.by = Some(by);
        if self.names.len() < NAMED {
            self.names.push(format!("{name}{}", if is_dir { "/" } else { "" }));
        } else {
            self.more += 1;
        }
    }

    /// In one sentence, if there is something to say.
    pub fn in_words(&self) -> Option<String> {
        let by = self.by?;
        let more = match self.more {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let how = match by {
            GIT => "; a .vango-edgeignore, even an empty one, counts instead",
            _ => "",
        };
        Some(format!("left out by {by}: {}{more}{how}", self.names.join(", ")))
    }
}

/// How a directory's entries are looked at.
#[derive(Debug, Clone)]
pub enum Under {
    /// By these rules, the innermost first.
    Rules(Vec<Arc<Gitignore>>),
    /// All of them stay: it is what an app runs from.
    All,
    /// Only those stay that the contract names.
    Named,
}

/// Decides what stays.
#[derive(Debug)]
pub struct Ignore {
    root: PathBuf,
    by: &'static str,
    /// What the contract names, and what is deployed always.
    named: BTreeSet<String>,
    /// What was left out.
    pub left_out: LeftOut,
}

impl Ignore {
    /// Of `root`, whose contract is `contract` as far as that could be read; with how the root's entries are
    /// looked at.
    ///
    /// # Errors
    /// A file that cannot be read, or a pattern in it that is none.
    pub fn of(root: &Path, contract: Option<&Contract>) -> Result<(Self, Under), ArtifactError> {
        let by = if root.join(OWN).is_file() { OWN } else { GIT };
        let mut named = BTreeSet::from([CONTRACT.to_owned()]);
        if let Some(contract) = contract.filter(|_| by == GIT) {
            named.extend(of_contract(contract));
        }
        let this = Self { root: root.to_owned(), by, named, left_out: LeftOut::default() };
        let rules = this.rules(root, by)?;
        Ok((this, Under::Rules(rules.into_iter().collect())))
    }

    fn rules(&self, dir: &Path, name: &str) -> Result<Option<Arc<Gitignore>>, ArtifactError> {
        let file = dir.join(name);
        if !file.is_file() {
            return Ok(None);
        }
        let refused = |e: ignore::Error| ArtifactError::refused(&file, e.to_string());
        let mut builder = GitignoreBuilder::new(dir);
        if let Some(e) = builder.add(&file) {
            return Err(refused(e));
        }
        Ok(Some(Arc::new(builder.build().map_err(refused)?)))
    }

    /// Whether the entry `name` at `path` stays; and for a directory how its entries are looked at.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn look(
        &mut self,
        name: &str,
        path: &Path,
        is_dir: bool,
        under: &Under,
    ) -> Result<Option<Under>, ArtifactError> {
        let rules = match under {
            Under::All => {
                let last = || name.rsplit('/');
                let cache = self.by == GIT
                    && is_dir
                    && CACHES.iter().any(|(dir, own)| last().take(2).eq([*own, *dir]));
                if cache {
                    self.left_out.add(self.by, name, true);
                }
                return Ok((!cache).then_some(Under::All));
            }
            Under::Named => return Ok(self.of_name(name)),
            Under::Rules(rules) => rules,
        };
        let left_out = rules.iter().find_map(|rules| match rules.matched(path, is_dir) {
            Match::None => None,
            Match::Ignore(_) => Some(true),
            Match::Whitelist(_) => Some(false),
        });
        if left_out != Some(true) {
            let inner = match is_dir && self.by == GIT && *path != self.root {
                true => self.rules(path, GIT)?,
                false => None,
            };
            return Ok(Some(Under::Rules(
                inner.into_iter().chain(rules.iter().cloned()).collect(),
            )));
        }
        if self.by == GIT && is_dir && is_run_from(name, path) {
            return Ok(Some(Under::All));
        }
        let stays = self.of_name(name);
        if !matches!(stays, Some(Under::All)) {
            // Of one that is left out but for what is named in it, too.
            self.left_out.add(self.by, name, is_dir);
        }
        Ok(stays)
    }

    /// For what would be left out: it stays if the contract names it or something in it.
    fn of_name(&self, name: &str) -> Option<Under> {
        if self.named.contains(name) {
            return Some(Under::All);
        }
        let below = format!("{name}/");
        let next = self.named.range(below.clone()..).next();
        next.is_some_and(|next| next.starts_with(&below)).then_some(Under::Named)
    }
}

fn is_run_from(name: &str, path: &Path) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    RUN_FROM.contains(&last) || path.join("pyvenv.cfg").is_file()
}

/// Paths of the artifact that a contract names.
fn of_contract(contract: &Contract) -> Vec<String> {
    let process = &contract.process;
    let words = process.command.iter().cloned();
    let env = process.env.values().flat_map(|value| value.split(':').map(str::to_owned));
    let assets = contract
        .assets
        .iter()
        .flat_map(|a| [Some(a.dir.clone()), a.manifest.clone()].into_iter().flatten());
    let schema = contract.state.iter().filter_map(|s| s.schema_file.clone());
    let all = words.chain(env).chain(process.path.iter().cloned()).chain(assets).chain(schema);
    all.map(|path| path.trim_start_matches("./").trim_end_matches('/').to_owned())
        .filter(|path| !path.is_empty() && !path.starts_with('/'))
        .collect()
}

/// Whether a file of this name holds secrets by custom: it is deployed all the same, and told of.
pub fn is_secret(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let last = parts.next().unwrap_or(name);
    // What packages bring along is published.
    if parts.any(|dir| matches!(dir, "node_modules" | "site-packages" | "vendor")) {
        return false;
    }
    const NONE: &[&str] = &["example", "sample", "template", "dist", "defaults"];
    match last {
        ".env" | ".netrc" | ".pypirc" | ".git-credentials" => true,
        "id_rsa" | "id_ecdsa" | "id_ed25519" => true,
        _ => last
            .strip_prefix(".env.")
            .is_some_and(|rest| !rest.split('.').any(|part| NONE.contains(&part))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn contract(more: &str) -> Contract {
        let text =
            format!("[app]\nname = \"a\"\n[process]\ncommand = [\"./target/release/app\"]\n{more}");
        crate::contract::parse(Path::new("x"), &text).unwrap()
    }

    /// What stays of `files`, and what was left out.
    fn walk(files: &[(&str, &str)], more: &str) -> (Vec<String>, LeftOut) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (mut ignore, under) = Ignore::of(dir.path(), Some(&contract(more))).unwrap();
        let mut todo = vec![(dir.path().to_owned(), String::new(), under)];
        let mut stays = Vec::new();
        while let Some((at, prefix, under)) = todo.pop() {
            let mut entries: Vec<_> = fs::read_dir(at).unwrap().flatten().collect();
            entries.sort_by_key(std::fs::DirEntry::path);
            for entry in entries {
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                let is_dir = entry.path().is_dir();
                match ignore.look(&name, &entry.path(), is_dir, &under).unwrap() {
                    Some(under) if is_dir => todo.push((entry.path(), format!("{name}/"), under)),
                    Some(_) => stays.push(name),
                    None => {}
                }
            }
        }
        stays.sort();
        (stays, ignore.left_out)
    }

    const FILES: &[(&str, &str)] = &[
        ("app.py", ""),
        (".env", ""),
        ("db.sqlite3", ""),
        ("log/a.log", ""),
        ("log/.gitkeep", ""),
        ("node_modules/x/dist/i.js", ""),
        ("node_modules/x/.env", ""),
        ("node_modules/x/a.log", ""),
        ("node_modules/.cache/y", ""),
        ("my-env/pyvenv.cfg", ""),
        ("my-env/lib/a.py", ""),
        (".next/cache/z", ""),
        (".next/BUILD_ID", ""),
        ("target/release/app", ""),
        ("target/release/other", ""),
        ("target/debug/app", ""),
        ("generated/site/i.css", ""),
        ("sub/.gitignore", "!keep.log\n/only\n"),
        ("sub/keep.log", ""),
        ("sub/only", ""),
    ];
    const RULES: &str =
        "*.log\n.env\nnode_modules/\nmy-env\n/.next/\ntarget\n/generated\n*.sqlite3\nlib/\n";

    #[test]
    fn what_an_app_runs_from_stays_though_git_leaves_it_out() {
        let files = [FILES, &[(".gitignore", RULES)]].concat();
        let (stays, left_out) = walk(&files, "[assets]\ndir = \"generated/site\"\n");
        let wanted = [
            ".gitignore",
            ".next/BUILD_ID",
            "app.py",
            "generated/site/i.css",
            "log/.gitkeep",
            "my-env/lib/a.py",
            "my-env/pyvenv.cfg",
            "node_modules/x/.env",
            "node_modules/x/a.log",
            "node_modules/x/dist/i.js",
            "sub/.gitignore",
            "sub/keep.log",
            "target/release/app",
        ];
        assert_eq!(stays, wanted);
        assert_eq!(left_out.by, Some(".gitignore"));
        let said = left_out.in_words().unwrap();
        for name in
            [".env", "db.sqlite3", "generated/", "target/", "sub/only", "node_modules/.cache/"]
        {
            assert!(said.contains(name), "{name}: {said}");
        }
    }

    #[test]
    fn the_edges_own_file_is_taken_at_its_word_and_alone() {
        let files = [
            FILES,
            &[
                (".gitignore", RULES),
                (".vango-edgeignore", "/node_modules\ntarget/debug\n*.toml\n"),
            ],
        ];
        let (stays, left_out) = walk(&files.concat(), "");
        assert!(stays.contains(&".env".to_owned()) && stays.contains(&"log/a.log".to_owned()));
        assert!(stays.contains(&"target/release/other".to_owned()), "{stays:?}");
        assert!(
            !stays.iter().any(|n| n.starts_with("node_modules") || n.starts_with("target/debug"))
        );
        let said = left_out.in_words().unwrap();
        assert_eq!(said, "left out by .vango-edgeignore: node_modules/, target/debug/");
        let (stays, left_out) =
            walk(&[FILES, &[(".gitignore", RULES), (".vango-edgeignore", "")]].concat(), "");
        assert_eq!((stays.len(), left_out), (FILES.len() + 2, LeftOut::default()));
    }

    #[test]
    fn files_that_hold_secrets_are_known_by_name() {
        for name in [".env", "api/.env.production", ".env.local", "id_rsa", ".netrc"] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "env",
            ".env.example",
            ".env.local.sample",
            ".envrc.txt",
            "node_modules/a/.env",
            "x/.environment",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
