//! Secrets: named in files, kept elsewhere, shown nowhere.

use std::fmt;
use std::path::PathBuf;

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
}
