//! A program as it is executed: found, with the names in its command and its environment replaced. The one
//! place that says which of two values of a variable counts, whatever is started beside the app.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::contract::{self, ExpandError};

use super::Program;

/// Where an app's programs are looked for, after the directories of its artifact that its contract names.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names and values of a process's environment.
pub type Variables = BTreeMap<String, OsString>;

/// What is executed.
#[derive(Debug, PartialEq, Eq)]
pub struct Expanded {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// All of its environment.
    pub env: Variables,
}

/// `program`, whose root is at `root`, among variables that its environment may set anew, `defaults`, and others that it cannot, `fixed`.
///
/// # Errors
/// What it names that has no value. A contract that was checked names nothing of the kind, in the command of an
/// allocation.
pub fn expanded(
    program: &Program,
    root: &Path,
    defaults: &Variables,
    fixed: &Variables,
) -> Result<Expanded, ExpandError> {
    let text = |value: &OsString| value.to_string_lossy().into_owned();
    let of_edge = |name: &str| fixed.get(name).or_else(|| defaults.get(name)).map(text);
    let of_secrets = |name: &str| {
        program.secrets.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone())
    };
    let mut env = defaults.clone();
    // Variables whose values hold a secret.
    let mut secret: Vec<&str> = program.secrets.iter().map(|(name, _)| name.as_str()).collect();
    for (name, value) in &program.env {
        // Of the process that takes requests alone: elsewhere a value that is made of it is none.
        let missing = |web| of_edge(web).is_none();
        if contract::names_of_web(value).is_some_and(missing) {
            env.remove(name);
            continue;
        }
        let mut holds_one = false;
        let value = contract::expand(value, |n| {
            of_edge(n).or_else(|| {
                holds_one = true;
                of_secrets(n)
            })
        })?;
        if holds_one {
            secret.push(name);
        }
        env.insert(name.clone(), value.into());
    }
    env.extend(program.secrets.iter().map(|(name, value)| (name.clone(), value.into())));
    env.extend(fixed.clone());
    if let Some(path) = env.get_mut("PATH") {
        let mut all = OsString::new();
        for dir in &program.path {
            all.push(root.join(dir));
            all.push(":");
        }
        all.push(&*path);
        *path = all;
    }
    // Every user of the machine can read a command.
    let is_secret = |name: &str| secret.contains(&name) && !fixed.contains_key(name);
    let value = |name: &str| if is_secret(name) { None } else { env.get(name).map(text) };
    let mut command = contract::expand_command(&program.command, value)?.into_iter();
    let name = command.next().unwrap_or_default();
    let found = if name.contains('/') { root.join(name) } else { PathBuf::from(name) };
    Ok(Expanded { program: found, arguments: command.collect(), env })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, Epoch};

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn variables(all: &[(&str, &str)]) -> Variables {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
    }

    fn program(command: &[&str]) -> Program {
        Program {
            environment: "studylab".parse().unwrap(),
            epoch: Epoch(1),
            digest: Digest::from_bytes([1; 32]),
            root: "/tree".into(),
            needs: Default::default(),
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            path: vec!["venv/bin".into(), "bin".into()],
            env: pairs(&[("DB", "pg://:${PASSWORD}@db"), ("HOME", "/h"), ("OLD", "${HOME}")]),
            secrets: pairs(&[("PASSWORD", "pa$$word"), ("PORT", "1")]),
            scratch: false,
        }
    }

    fn of(command: &[&str]) -> Result<Expanded, ExpandError> {
        let program = program(command);
        let defaults = variables(&[("PATH", "/bin"), ("HOME", "/home/app")]);
        expanded(&program, &program.root, &defaults, &variables(&[("PORT", "4711")]))
    }

    #[test]
    fn a_command_and_its_environment_name_what_there_is() {
        let found = of(&["gunicorn", "--bind=127.0.0.1:$PORT", "$HOME", "$OLD"]).unwrap();
        let Expanded { program, arguments, env } = found;
        assert_eq!(program, Path::new("gunicorn"), "it is looked for in PATH");
        assert_eq!(arguments, ["--bind=127.0.0.1:4711", "/h", "/home/app"]);
        let wanted = variables(&[
            ("PATH", "/tree/venv/bin:/tree/bin:/bin"),
            ("HOME", "/h"),
            ("DB", "pg://:pa$$word@db"),
            ("OLD", "/home/app"),
            ("PORT", "4711"),
            ("PASSWORD", "pa$$word"),
        ]);
        assert_eq!(env, wanted);
        assert_eq!(of(&["./run"]).unwrap().program, Path::new("/tree/./run"));
        assert_eq!(of(&["${HOME}/run"]).unwrap().program, Path::new("/h/run"));
    }

    #[test]
    fn what_has_no_port_has_no_value_that_is_made_of_one() {
        let program = Program {
            env: pairs(&[("BIND", "[$HOST]:${PORT}"), ("PRICE", "$$PORT"), ("LOG", "info")]),
            secrets: Vec::new(),
            ..program(&["./task", "$LOG"])
        };
        let none = Variables::new();
        let found = expanded(&program, &program.root, &none, &none).unwrap();
        assert_eq!(found.env, variables(&[("PRICE", "$PORT"), ("LOG", "info")]));
        assert_eq!(found.arguments, ["info"]);
    }

    #[test]
    fn a_secret_is_in_no_argument() {
        let unknown = |name: &str| Err(ExpandError::Unknown(name.into()));
        assert_eq!(of(&["./run", "$PASSWORD"]), unknown("PASSWORD"));
        assert_eq!(of(&["./run", "$DB"]), unknown("DB"), "its value holds one");
        assert_eq!(of(&["./run", "$NONE"]), unknown("NONE"));
    }
}
