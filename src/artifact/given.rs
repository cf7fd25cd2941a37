//! The contract that a directory is deployed with: its `vango-edge.toml`, and what its `Procfile` says where
//! that file has no command or is not there.

use std::fs;
use std::io;
use std::path::Path;

use crate::contract::{self, Contract, procfile};
use crate::document::{Checked, quoted};
use crate::id::AppName;

use super::{ArtifactError, CONTRACT, MAX_CONTRACT};

/// Where the processes of an app stand that has no contract, or one without a command.
const PROCFILE: &str = "Procfile";

/// A directory's contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The text that goes into the artifact.
    pub text: String,
    /// The text of the file, by whose lines errors are named.
    own: String,
    /// The command from elsewhere.
    command: Vec<String>,
    /// What is not from the file, and where it is from; for people.
    pub taken: Vec<String>,
}

impl Given {
    /// Reads what `dir` has.
    ///
    /// # Errors
    /// [`ArtifactError::Refused`] where it has neither file, or one that cannot be used.
    pub fn of(dir: &Path) -> Result<Self, ArtifactError> {
        let own = read(dir, CONTRACT)?;
        if own.as_deref().is_some_and(|text| !lacks_a_command(text)) {
            let text = own.unwrap_or_default();
            return Ok(Self { own: text.clone(), text, command: Vec::new(), taken: Vec::new() });
        }
        let web = read(dir, PROCFILE)?.map(|text| procfile::web(&text)).transpose();
        let web = web.map_err(|why| ArtifactError::refused(dir.join(PROCFILE), why))?.flatten();
        match (own, web) {
            // Its parser says that the command is missing.
            (Some(own), None) => {
                Ok(Self { text: own.clone(), own, command: Vec::new(), taken: Vec::new() })
            }
            (Some(own), Some(command)) => {
                let Some(text) = procfile::with_command(&own, &command) else {
                    let why = "`process` is written so that the command of the Procfile cannot be put \
                               into it: begin a table with the line [process], or write the command";
                    return Err(ArtifactError::refused(dir.join(CONTRACT), why));
                };
                Ok(Self { text, own, taken: vec![taken(&command)], command })
            }
            (None, Some(command)) => {
                let name = app_name(dir)?;
                let head = format!("[app]\nname = {}\n", quoted(name.as_str()));
                let text = procfile::with_command(&head, &command).unwrap_or_default();
                let named = format!("the app's name from its directory: {name}");
                Ok(Self { own: text.clone(), text, taken: vec![named, taken(&command)], command })
            }
            (None, None) => {
                let why = format!(
                    "there is no {CONTRACT} in it, which says how the app is started and what its routes \
                     are, and no Procfile with a line `web: COMMAND`; `vango-edge init {}` writes one",
                    dir.display()
                );
                Err(ArtifactError::refused(dir, why))
            }
        }
    }

    /// The contract.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, dir: &Path) -> Checked<Contract> {
        contract::parse_or(&dir.join(CONTRACT), &self.own, &self.command)
    }

    /// The text whose lines errors name.
    pub fn own(&self) -> &str {
        &self.own
    }
}

fn taken(command: &[String]) -> String {
    let line = command.last().map_or("", String::as_str);
    format!("the command from the line `web` of the Procfile: {line}")
}

/// What is no TOML is for the contract's parser to say.
fn lacks_a_command(text: &str) -> bool {
    let read = text.parse::<toml::Table>();
    read.is_ok_and(|top| {
        let process = top.get("process");
        !process.is_some_and(|p| p.as_table().is_none_or(|p| p.contains_key("command")))
    })
}

/// A regular file of `dir`, if it is there.
fn read(dir: &Path, name: &str) -> Result<Option<String>, ArtifactError> {
    let path = dir.join(name);
    let failed = |e| ArtifactError::io(&path, e);
    match fs::symlink_metadata(&path) {
        Ok(meta) if !meta.is_file() => return Ok(None),
        Ok(meta) if meta.len() > MAX_CONTRACT => {
            return Err(ArtifactError::refused(path, format!("larger than {MAX_CONTRACT} bytes")));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.is_dir() => return Ok(None),
        Err(e) => {
            // The directory is what is wrong.
            return Err(ArtifactError::io(if dir.is_dir() { &path } else { dir }, e));
        }
    }
    let bytes = fs::read(&path).map_err(failed)?;
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| ArtifactError::refused(&path, "it is not UTF-8"))
}

/// A name for the app in `dir`, made of the directory's: lower case, and `-` for what no name has.
///
/// # Errors
/// Where nothing of it can be used.
pub fn app_name(dir: &Path) -> Result<AppName, ArtifactError> {
    let whole = dir.canonicalize().map_err(|e| ArtifactError::io(dir, e))?;
    let name = whole.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut out = String::new();
    for c in name.chars().take(63) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches('-').parse().map_err(|_| {
        let why = "no app's name can be made of the directory's: write [app] name = \"…\" into a \
                   vango-edge.toml in it";
        ArtifactError::refused(dir, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_names_its_app() {
        let dir = tempfile::tempdir().unwrap();
        for (name, app) in [
            ("My_App.v2", Some("my-app-v2")),
            ("-x-", Some("x")),
            ("größe", Some("gr-e")),
            ("___", None),
        ] {
            let at = dir.path().join(name);
            fs::create_dir(&at).unwrap();
            let found = app_name(&at).ok().map(|n| n.to_string());
            assert_eq!(found.as_deref(), app, "{name}");
        }
        let long = dir.path().join("a".repeat(200));
        fs::create_dir(&long).unwrap();
        assert_eq!(app_name(&long).unwrap().to_string().len(), 63);
    }

    #[test]
    fn a_procfile_gives_the_command_that_a_contract_lacks() {
        let dir = tempfile::Builder::new().prefix("shop-").tempdir().unwrap();
        let dir = dir.path();
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        assert!(Given::of(dir).unwrap_err().to_string().contains("vango-edge init"));
        write("Procfile", "web: ./run $PORT\nworker: ./work\n");
        let given = Given::of(dir).unwrap();
        let contract = given.parse(dir).unwrap();
        assert_eq!(contract.process.command, ["sh", "-c", "./run $PORT"]);
        assert!(contract.app.as_str().starts_with("shop-"), "{}", contract.app);
        assert_eq!(given.taken.len(), 2);
        // What the edge reads of the artifact is the same.
        assert_eq!(contract::parse(Path::new("x"), &given.text).unwrap(), contract);

        write(
            CONTRACT,
            "[app]\nname = \"a\"\n[process]\nready = { path = \"/\" }\n[wake]\nx = 1\n",
        );
        let given = Given::of(dir).unwrap();
        let wrong = given.parse(dir).unwrap_err();
        assert_eq!((wrong.len(), wrong[0].line), (1, 6), "by the file's own lines: {wrong:?}");
        write(CONTRACT, "[app]\nname = \"a\"\n[process]\nready = { path = \"/\" }\n");
        let given = Given::of(dir).unwrap();
        let contract = given.parse(dir).unwrap();
        assert_eq!(contract::parse(Path::new("x"), &given.text).unwrap(), contract);
        assert_eq!(given.taken.len(), 1);

        let whole = "[app]\nname = \"a\"\n[process]\ncommand = [\"./own\"]\n";
        write(CONTRACT, whole);
        let given = Given::of(dir).unwrap();
        assert_eq!((given.text.as_str(), given.taken.len()), (whole, 0));
        write(CONTRACT, "[app]\nname = \"a\"\n");
        write("Procfile", "web: a\nweb: b\n");
        assert!(Given::of(dir).unwrap_err().to_string().contains("two lines"));
    }
}
