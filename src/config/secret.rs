//! Secrets: named in files, kept elsewhere, shown nowhere. Their values are read at the start and with each
//! reload, so that a request that needs one reads no file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use toml::de::DeValue;

use crate::document::Table;
use crate::id::{AppName, Environment};

use super::{App, Config};

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the edge's environment.
    Env(String),
    /// In a file, without its last line break.
    File(PathBuf),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// The secrets that the table `key` names, each with the sources that count together.
pub(super) fn secrets(top: &Table<'_>, key: &'static str) -> BTreeMap<String, Vec<SecretSource>> {
    let Some(t) = top.opt_table(key) else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    for (name, span, value) in t.raw_entries() {
        let sources: Vec<_> = match value.get_ref() {
            DeValue::Table(table) => vec![source(&t.child(name, table, span))],
            DeValue::Array(items) if !items.is_empty() => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::Table(table) => source(&t.child(name, table, item.span())),
                    _ => not_a_source(&t, name),
                })
                .collect(),
            _ => vec![not_a_source(&t, name)],
        };
        out.insert(name.to_owned(), sources.into_iter().flatten().collect());
    }
    out
}

/// Says what is wrong without printing what was found: it may be the secret itself.
fn not_a_source(t: &Table<'_>, name: &str) -> Option<SecretSource> {
    t.error(
        name,
        "expected { env = \"NAME\" } or { file = \"/path\" }, or a list of them: secrets are never \
         written into this file",
    );
    None
}

/// A secret's value. Neither `Debug` nor anything else prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment has none, or it is not text.
    #[error("environment variable {0} is not set")]
    NotSet(String),
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// There is nothing in it.
    #[error("{0} is empty")]
    Empty(String),
}

/// Reads a secret now, so that a rotated file counts.
///
/// # Errors
/// [`SecretError`]; never with any of the value.
pub fn read_secret(source: &SecretSource) -> Result<Secret, SecretError> {
    let value = match source {
        SecretSource::Env(name) => {
            std::env::var(name).map_err(|_| SecretError::NotSet(name.clone()))?
        }
        SecretSource::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| SecretError::Unreadable(path.clone(), e))?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            text.strip_suffix('\r').unwrap_or(text).to_owned()
        }
    };
    if value.is_empty() {
        return Err(SecretError::Empty(source.to_string()));
    }
    Ok(Secret(value))
}

/// Writes a secret of the edge's own: whole or not at all, and readable by the edge's user only from its first
/// byte on.
///
/// # Errors
/// What the file system says; what was there before stays.
pub fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    // One that a crash left may be there, with another mode.
    let _ = fs::remove_file(&part);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(part, file)
}

/// Reads where a secret is.
pub(super) fn source(t: &Table<'_>) -> Option<SecretSource> {
    let (env, file) = (t.text("env"), t.text("file"));
    match (env, file) {
        (Some(name), None) if !name.is_empty() => Some(SecretSource::Env(name)),
        (None, Some(path)) if !path.is_empty() => Some(SecretSource::File(t.beside(path))),
        _ => {
            t.error_here("expected either env = \"NAME\" or file = \"/path\"");
            None
        }
    }
}

type Values = BTreeMap<(AppName, bool, String), Vec<Secret>>;

/// Values by app, whether they are production's, and name. Swapped whole; nothing prints them.
#[derive(Default)]
pub struct SecretValues(ArcSwap<Values>);

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretValues").field("names", &self.0.load().len()).finish()
    }
}

impl SecretValues {
    /// Reads what `config` names. A source that cannot be read is left out and logged, by name.
    pub fn read(config: &Config) -> Arc<Self> {
        let values = Self::default();
        values.read_again(config);
        Arc::new(values)
    }

    /// The same, in place of what was read before.
    pub fn read_again(&self, config: &Config) {
        let mut values = Values::new();
        for app in config.apps.values() {
            for (production, names) in [(true, &app.secrets), (false, &app.preview_secrets)] {
                for (name, sources) in names {
                    let read = read_all(app, name, sources);
                    values.insert((app.name.clone(), production, name.clone()), read);
                }
            }
        }
        self.0.store(Arc::new(values));
    }

    /// Every value under `name` that counts for `environment`, the current one first. Previews never
    /// see production's.
    pub fn of(&self, environment: &Environment, name: &str) -> Vec<Secret> {
        let production = *environment == Environment::production(environment.app().clone());
        let key = (environment.app().clone(), production, name.to_owned());
        self.0.load().get(&key).cloned().unwrap_or_default()
    }
}

fn read_all(app: &App, name: &str, sources: &[SecretSource]) -> Vec<Secret> {
    let read = sources.iter().filter_map(|source| match read_secret(source) {
        Ok(secret) => Some(secret),
        Err(e) => {
            log::warn!("{}: secret {name}: {e}; what it verifies is answered 503", app.name);
            None
        }
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_loses_one_line_break_and_nothing_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "geheim\n\n").unwrap();
        let secret = read_secret(&SecretSource::File(path.clone())).unwrap();
        assert_eq!(secret.expose(), "geheim\n");
        assert!(!format!("{secret:?}").contains("geheim"));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(read_secret(&SecretSource::File(path)), Err(SecretError::Empty(_))));
        let unset = SecretSource::Env("VANGO_EDGE_NO_SUCH_VARIABLE".into());
        assert!(matches!(read_secret(&unset), Err(SecretError::NotSet(_))));
    }

    #[test]
    fn a_list_rotates_and_previews_see_their_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("apps")).unwrap();
        std::fs::write(dir.path().join("edge.toml"), "[state]\ndir = \"s\"\n").unwrap();
        let app = "app = \"a\"\nhosts = [\"a.example\"]\n\
                   secrets = { S = [{ file = \"new\" }, { file = \"old\" }, { file = \"gone\" }] }\n\
                   preview_secrets = { S = { file = \"preview\" } }\n";
        std::fs::write(dir.path().join("apps/a.toml"), app).unwrap();
        for name in ["new", "old", "preview"] {
            std::fs::write(dir.path().join("apps").join(name), format!("{name}-value\n")).unwrap();
        }
        let config = crate::config::load(&dir.path().join("edge.toml")).unwrap();
        let values = SecretValues::read(&config);
        let of = |environment: &str, name: &str| {
            let all = values.of(&environment.parse().unwrap(), name);
            all.iter().map(|s| s.expose().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("a", "S"), ["new-value", "old-value"]);
        assert_eq!(of("a/pr-1", "S"), ["preview-value"]);
        assert!(of("a", "T").is_empty() && of("b", "S").is_empty());
        std::fs::write(dir.path().join("apps/new"), "newer").unwrap();
        assert_eq!(of("a", "S")[0], "new-value");
        values.read_again(&config);
        assert_eq!(of("a", "S")[0], "newer");
        assert!(!format!("{values:?}").contains("newer"));
    }
}
