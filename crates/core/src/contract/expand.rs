//! `$NAME` and `${NAME}` in a command and in values of its environment, without a shell: a name is replaced
//! by its value, once; `$$` is a dollar sign; any other `$` is an error. What a value holds is not looked at
//! again, and no argument is split.
//!
//! The arguments of a shell (`["sh", "-c", "exec ./app -p $PORT"]`) are left to it: it has the same names in
//! its environment, and more of a syntax.

use std::collections::BTreeMap;

use crate::document::{self, Table};

use super::{CronEntry, Process, Release, Task, is_reserved};

/// Names that every process of an app has in its environment from the edge.
pub const GIVEN: &[&str] = &[
    "HOME",
    "TMPDIR",
    "PATH",
    "LANG",
    "VANGO_EDGE_ALLOCATION",
    "VANGO_EDGE_ENVIRONMENT",
    "VANGO_EDGE_EPOCH",
    "VANGO_EDGE_DIGEST",
];

/// The `env` of a process, without what the edge sets.
pub(super) fn env(t: &Table<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if let Some(table) = t.opt_table("env") {
        for (name, value) in table.entries("a string; secrets come from the operator by name") {
            if is_reserved(&name) {
                table.error(&name, "the edge sets this one; take it out");
            } else if name.is_empty() || name.contains(['=', '\0']) {
                table.error(&name, "not a name of an environment variable");
            }
            if let Some(why) = not_passed(name.len() + 1 + value.len(), &value) {
                table.error(&name, why);
            }
            env.insert(name, value);
        }
    }
    env
}
/// Names that besides only the process that takes requests has.
pub const OF_WEB: &[&str] = &["PORT", "HOST", "VANGO_EDGE_GENERATION"];

/// Why the kernel would not pass a text of `bytes` to a process, if it would not (execve(2): a string ends at its
/// first NUL, and has at most 128 KiB with it).
fn not_passed(bytes: usize, text: &str) -> Option<String> {
    const MOST: usize = 128 * 1024 - 1;
    if text.contains('\0') {
        return Some("a NUL cannot be passed to a process; take it out".to_owned());
    }
    (bytes > MOST).then(|| {
        format!(
            "{bytes} bytes, and a process is given at most {MOST} in one string; put it into a file"
        )
    })
}

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// It has a name that has no value.
    #[error("${0} has no value here")]
    Unknown(String),
    /// It has a `$` that begins no name.
    #[error("a `$` stands before a name, as $PORT or ${{PORT}}; `$$` is a dollar sign")]
    Stray,
}

/// `text` with the `value` of each name in it.
///
/// # Errors
/// [`ExpandError`]
pub fn expand(
    text: &str,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}').ok_or(ExpandError::Stray)?,
            None => {
                let end = after.find(|c: char| !is_of_a_name(c)).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        if !is_name(name) {
            return Err(ExpandError::Stray);
        }
        out.push_str(&value(name).ok_or_else(|| ExpandError::Unknown(name.to_owned()))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// As POSIX has the names of variables (XBD 8.1), in either case.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(is_of_a_name)
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether `program` is a shell, whose arguments are its own to expand.
pub fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    matches!(name, "sh" | "ash" | "bash" | "dash" | "fish" | "ksh" | "zsh")
}

/// A program and its arguments, with the `value` of each name in them.
///
/// # Errors
/// [`ExpandError`]
pub fn expand_command(
    command: &[String],
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    let shell = command.first().is_some_and(|program| is_shell(program));
    command
        .iter()
        .map(|text| if shell { Ok(text.clone()) } else { expand(text, &mut value) })
        .collect()
}

/// `command` so that [`expand_command`] gives it back as it is.
pub fn literal(command: &[String]) -> Vec<String> {
    let shell = command.first().is_some_and(|program| is_shell(program));
    command.iter().map(|text| if shell { text.clone() } else { text.replace('$', "$$") }).collect()
}

/// Names and values of an environment, as a contract has them.
type Values = BTreeMap<String, String>;

/// Says what the commands of a contract name that they cannot: the app's own, and each that runs beside it, where
/// there is no port.
pub(super) fn check_commands(
    top: &Table<'_>,
    process: &Process,
    release: Option<&Release>,
    cron: &[CronEntry],
) {
    let Process { env, secrets, workers, .. } = process;
    let t = top.table("process");
    Of { who: None, env: all(env), secrets }.check(&t, "command", &process.command);
    let beside = |t: &Table<'_>, key, who: &str, more: &Values, command: &[String]| {
        for (name, value) in more {
            if let Some(web) = names_of_web(value) {
                t.error(key, format!("{who}: its env has {name} = {value:?}: {}", no_port(web)));
            }
        }
        // A value that names a port is not there for what has none.
        let shared = env.iter().filter(|(_, value)| names_of_web(value).is_none());
        let env = all(shared.chain(more));
        Of { who: Some(who), env, secrets }.check(t, key, command);
    };
    for worker in workers {
        let who = format!("the worker {:?}", worker.name);
        beside(&t, "worker", &who, &worker.env, &worker.command);
    }
    if let Some(release) = release {
        let t = top.table("release");
        beside(&t, "command", "the release command", &Values::new(), &release.command);
    }
    for entry in cron {
        if let Task::Command { command, env } = &entry.task {
            beside(top, "cron", &format!("the schedule {:?}", entry.name), env, command);
        }
    }
}

fn all<'a>(
    values: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> BTreeMap<&'a str, &'a str> {
    values.into_iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Whose command is checked, and what it may name.
struct Of<'a> {
    /// What runs beside the app; none for the app itself, which alone has what is [`OF_WEB`].
    who: Option<&'a str>,
    env: BTreeMap<&'a str, &'a str>,
    secrets: &'a [String],
}

impl Of<'_> {
    /// Says what `command` names that has no value, and secrets, since every user of the machine reads the arguments
    /// of all processes.
    fn check(&self, t: &Table<'_>, key: &'static str, command: &[String]) {
        let of_web: &[&str] = if self.who.is_none() { OF_WEB } else { &[] };
        let known = of_web.iter().chain(GIVEN).copied();
        let known: Vec<&str> = known.chain(self.env.keys().copied()).collect();
        let said = |why: String| {
            let who = self.who.map_or_else(String::new, |who| format!("{who}: "));
            t.error(key, format!("{who}{why}"));
        };
        for why in command.iter().filter_map(|text| not_passed(text.len(), text)) {
            said(why);
        }
        let is_secret = |name: &str| self.secrets.iter().any(|s| s == name);
        let value = |name: &str| {
            // Said below, for each that there is.
            (known.contains(&name) || is_secret(name)).then(String::new)
        };
        match expand_command(command, value) {
            Ok(_) => {}
            Err(ExpandError::Unknown(name)) if OF_WEB.contains(&&*name) => said(no_port(&name)),
            Err(e) => said(in_words(&e, &known)),
        }
        if command.first().is_some_and(|program| is_shell(program)) {
            return;
        }
        let holds_one =
            self.env.iter().filter(|(_, value)| self.secrets.iter().any(|s| names(value, s)));
        for secret in
            self.secrets.iter().map(String::as_str).chain(holds_one.map(|(name, _)| *name))
        {
            if command.iter().any(|text| names(text, secret)) {
                let why = "holds a secret, and every user of a machine can read the arguments of its \
                           processes: let the app read it from its environment";
                said(format!("${secret} {why}"));
            }
        }
    }
}

fn no_port(name: &str) -> String {
    format!(
        "${name} has no value here: only the process that takes requests has it. Take it out; what is to reach the \
         app asks one of its hosts (`$$` is a dollar sign)"
    )
}

/// What `text` names that only the process that takes requests has.
pub fn names_of_web(text: &str) -> Option<&'static str> {
    OF_WEB.iter().copied().find(|name| names(text, name))
}

/// Whether `text` names `name`.
fn names(text: &str, name: &str) -> bool {
    let mut found = false;
    // What else is wrong with it is said elsewhere.
    let _ = expand(text, |n| {
        found |= n == name;
        Some(String::new())
    });
    found
}

/// Says what a value of the environment names that it cannot. It may name what the edge gives, and secrets;
/// not another value beside it.
pub(super) fn check_value(t: &Table<'_>, name: &str, value: &str, secrets: &[String]) {
    let given = OF_WEB.iter().chain(GIVEN).copied();
    let known: Vec<&str> = given.chain(secrets.iter().map(String::as_str)).collect();
    if let Err(e) = expand(value, |name| known.contains(&name).then(String::new)) {
        t.error(name, in_words(&e, &known));
    }
}

fn in_words(e: &ExpandError, known: &[&str]) -> String {
    let ExpandError::Unknown(name) = e else { return e.to_string() };
    match document::nearest(name, known) {
        Some(near) => format!("{e}; did you mean ${near}? (`$$` is a dollar sign)"),
        None => format!("{e}; known here: {} (`$$` is a dollar sign)", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("4711".into()),
            // Not looked at again.
            "PASSWORD" => Some("a$PORT$$".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn names_are_replaced_once() {
        for (text, wanted) in [
            ("--bind=127.0.0.1:$PORT", "--bind=127.0.0.1:4711"),
            ("${PORT}", "4711"),
            ("$PORT$PORT/${PORT}0", "47114711/47110"),
            ("pg://app:${PASSWORD}@db", "pg://app:a$PORT$$@db"),
            ("[$EMPTY]", "[]"),
            ("$$PORT costs $$5$$", "$PORT costs $5$"),
            ("no name, größer", "no name, größer"),
            ("", ""),
        ] {
            assert_eq!(expand(text, given).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_an_error() {
        for text in
            ["$", "a$", "$ PORT", "$5", "$-x", "${", "${PORT", "${}", "${PORT:-80}", "$(id)", "$ö"]
        {
            assert_eq!(expand(text, given), Err(ExpandError::Stray), "{text}");
        }
        for (text, name) in [("$PORTS", "PORTS"), ("${prot}", "prot"), ("$PORT_", "PORT_")] {
            assert_eq!(expand(text, given), Err(ExpandError::Unknown(name.into())), "{text}");
        }
    }

    #[test]
    fn a_shell_expands_its_own() {
        let command = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let shell = command(&["/bin/sh", "-c", "x=1; exec ./app $x ${PORT:-80}"]);
        assert_eq!(expand_command(&shell, given).as_ref(), Ok(&shell));
        for words in [&shell[..], &command(&["./app", "$PORT", "$5", "$$x"])] {
            assert_eq!(expand_command(&literal(words), given).as_deref(), Ok(words));
        }
        let plain = command(&["./app", "$PORT"]);
        assert_eq!(expand_command(&plain, given), Ok(command(&["./app", "4711"])));
    }
}
