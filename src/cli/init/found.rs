//! What was found in a folder, and the contract that is written for it.

use crate::document::quoted;
use crate::id::AppName;

use super::folder::Folder;

/// How an app is deployed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What it is, and what says so.
    pub what: String,
    /// None of a site, which has no process.
    pub command: Vec<String>,
    /// What is to be said about the command, in the file.
    pub about: Vec<String>,
    /// Directories of the artifact before PATH.
    pub path: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Names of secrets.
    pub secrets: Vec<String>,
    /// A path that it answers 2xx by itself; without one its port is asked.
    pub ready: Option<String>,
    /// Why it writes beside its code, if it does.
    pub writes: Option<String>,
    pub assets: Option<Assets>,
    /// More tables, as they are written.
    pub tables: Vec<String>,
    /// Commands that come before the deploy, in its folder.
    pub before: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Static files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assets {
    pub dir: String,
    pub prefix: String,
    pub manifest: Option<String>,
    /// Patterns of names that change with their content.
    pub immutable: Vec<String>,
    /// The page for what is no file, whose scripts say what is there.
    pub fallback: Option<String>,
    /// The page of a 404.
    pub not_found: Option<String>,
    /// What they are.
    pub about: String,
}

/// Files in `dir` without a program: the edge answers them all itself.
pub fn site_in(folder: &Folder, dir: &str, what: &str) -> Found {
    let not_found = folder.has(&format!("{dir}/404.html")).then(|| "404.html".to_owned());
    Found::new(format!("{what} ({dir}/), without a process"), &[]).assets(Some(Assets {
        dir: dir.to_owned(),
        prefix: "/".into(),
        not_found,
        ..Assets::default()
    }))
}

impl Found {
    pub fn new(what: impl Into<String>, command: &[&str]) -> Self {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Self { what: what.into(), command, ..Self::default() }
    }

    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about.push(about.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn before(mut self, command: impl Into<String>) -> Self {
        self.before.push(command.into());
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub fn writes(mut self, why: impl Into<String>) -> Self {
        self.writes = Some(why.into());
        self
    }

    pub fn assets(mut self, assets: Option<Assets>) -> Self {
        self.assets = assets;
        self
    }

    /// Whether it is files and nothing else.
    pub fn is_site(&self) -> bool {
        self.command.is_empty()
    }

    /// The contract, with comments for who goes on from it.
    pub fn contract(&self, app: &AppName) -> String {
        let mut out = format!(
            "# How vango-edge runs this app: {}. Made by `vango-edge init`; it is yours from here on.\n\
             # Every key, with its default: docs/vango-edge.toml of vango-edge.\n\n\
             [app]\nname = {}\n",
            self.what,
            quoted(app.as_str()),
        );
        if !self.is_site() {
            self.process(&mut out);
        }
        if let Some(assets) = &self.assets {
            let about = match self.is_site() {
                true => {
                    "The edge answers these itself: nothing is started, and nothing sleeps.".into()
                }
                false => {
                    let about = &assets.about;
                    format!("{about}: the edge answers for them itself, also while the app sleeps.")
                }
            };
            out.push_str(&format!("\n# {about}\n{}", assets.table()));
        }
        for table in &self.tables {
            out.push_str(&format!("\n{}\n", table.trim_end()));
        }
        out
    }

    /// How its process runs, and when it sleeps.
    fn process(&self, out: &mut String) {
        out.push_str("\n[process]\n");
        for line in &self.about {
            out.push_str(&format!("# {line}\n"));
        }
        out.push_str(
            "# $PORT is the port to listen on, on 127.0.0.1. No shell is asked: each item is one argument.\n",
        );
        out.push_str(&format!("command = {}\n", list(&self.command)));
        if !self.path.is_empty() {
            out.push_str("# Folders of the artifact that programs are looked for in first.\n");
            out.push_str(&format!("path = {}\n", list(&self.path)));
        }
        if !self.env.is_empty() {
            let all: Vec<_> = self
                .env
                .iter()
                .map(|(name, value)| format!("{name} = {}", quoted(value)))
                .collect();
            out.push_str(&format!("env = {{ {} }}\n", all.join(", ")));
        }
        if !self.secrets.is_empty() {
            out.push_str("# The operator says where each is; the app has it in its environment.\n");
            out.push_str(&format!("secrets = {}\n", list(&self.secrets)));
        }
        match &self.ready {
            Some(path) => out.push_str(&format!(
                "# It takes requests once this path is answered 2xx.\nready = {{ path = {} }}\n",
                quoted(path)
            )),
            None => out.push_str(
                "# It takes requests once its port accepts. Better, if it has such a path: { path = \"/healthz\" }\n\
                 ready = { tcp = true }\n",
            ),
        }
        if let Some(why) = &self.writes {
            out.push_str(&format!(
                "# It may write beside its code ({why}), into a copy that is gone when the process ends: what\n\
                 # is to stay belongs below $HOME.\nwritable = \"scratch\"\n"
            ));
        }
        out.push_str(
            "\n[sleep]\n# Without requests for so long the process is stopped; the next request starts it.\n\
             after = \"5m\"\n",
        );
    }
}

impl Assets {
    fn table(&self) -> String {
        let (dir, prefix) = (quoted(&self.dir), quoted(&self.prefix));
        let mut out = format!("[assets]\ndir = {dir}\nprefix = {prefix}\n");
        if let Some(manifest) = &self.manifest {
            out.push_str(&format!("manifest = {}\n", quoted(manifest)));
        }
        if !self.immutable.is_empty() {
            out.push_str(
                "# Their names change with their content: browsers keep them for a year.\n",
            );
            out.push_str(&format!("immutable = {}\n", list(&self.immutable)));
        }
        if let Some(fallback) = &self.fallback {
            out.push_str(
                "# What is no file is answered by this page, whose scripts say what is there; without it, 404.\n",
            );
            out.push_str(&format!("fallback = {}\n", quoted(fallback)));
        }
        if let Some(not_found) = &self.not_found {
            out.push_str(&format!("not_found = {}\n", quoted(not_found)));
        }
        out
    }
}

fn list(items: &[String]) -> String {
    let all: Vec<_> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", all.join(", "))
}
