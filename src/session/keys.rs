//! The keys that seal the token: the operator's, or the edge's own, kept in its state directory.
//!
//! A key is named by the first bytes of its own hash, so that edges that share keys agree on their
//! names without agreeing on anything else. The first key seals; all of them open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use sha2::{Digest as _, Sha256};

use crate::clock::{Clock, Entropy, Wall};
use crate::config::{SecretSource, read_secret, write_private};

/// Most keys that open tokens.
pub const MOST_KEYS: usize = 8;
/// The edge's own key is replaced when it is this old and the edge starts or reloads.
const OWN_KEY_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Own keys that are kept: the current one and the one before.
const OWN_KEYS: usize = 2;
/// Largest key file that is read.
const MAX_FILE: u64 = 4096;

/// Why there are no keys. Nothing of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// The operator's secret cannot be read.
    #[error("affinity.keys: {0}")]
    Secret(#[from] crate::config::SecretError),
    /// What was read is no key.
    #[error("{0}: expected 32 random bytes as 64 hex digits or as base64 (`openssl rand -hex 32`)")]
    NotAKey(String),
}

/// One key, ready for use.
pub(super) struct Key {
    pub(super) id: [u8; 4],
    pub(super) aead: LessSafeKey,
}

/// The keys in use; the first seals.
pub struct KeyRing {
    keys: Vec<Key>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys)", self.keys.len())
    }
}

impl KeyRing {
    /// Reads the operator's keys, or the edge's own where there are none; makes those that are
    /// missing or too old. `dir` is the state directory.
    ///
    /// # Errors
    /// [`KeyError`]; the ring in use, if any, stays as it was.
    pub fn load(
        sources: &[SecretSource],
        dir: &Path,
        clock: &dyn Clock,
        entropy: &dyn Entropy,
    ) -> Result<Self, KeyError> {
        if sources.is_empty() {
            return Self::own(&dir.join("affinity.keys"), clock.wall(), entropy);
        }
        let mut keys = Vec::new();
        for source in sources.iter().take(MOST_KEYS) {
            let secret = read_secret(source)?;
            let bytes = parse(secret.expose())
                .ok_or_else(|| KeyError::NotAKey(format!("affinity.keys: {source}")))?;
            keys.push(Self::key(&bytes));
        }
        Ok(Self { keys })
    }

    /// A ring of these keys, the first of which seals.
    pub fn of(keys: &[[u8; 32]]) -> Self {
        Self { keys: keys.iter().map(Self::key).collect() }
    }

    fn key(bytes: &[u8; 32]) -> Key {
        let hash = Sha256::new().chain_update(b"vango-edge affinity key\0").chain_update(bytes);
        let hash = hash.finalize();
        let unbound = UnboundKey::new(&AES_256_GCM, bytes);
        assert!(unbound.is_ok(), "AES-256 takes 32 bytes");
        let Ok(unbound) = unbound else { unreachable!("asserted above") };
        Key { id: [hash[0], hash[1], hash[2], hash[3]], aead: LessSafeKey::new(unbound) }
    }

    /// The key that seals.
    pub(super) fn current(&self) -> Option<&Key> {
        self.keys.first()
    }

    /// The key of that name.
    pub(super) fn named(&self, id: [u8; 4]) -> Option<&Key> {
        self.keys.iter().find(|k| k.id == id)
    }

    /// One line a key, the newest first: milliseconds since 1970 and 64 hex digits.
    fn own(file: &Path, now: Wall, entropy: &dyn Entropy) -> Result<Self, KeyError> {
        let mut kept = read_own(file)?;
        let too_old = kept.first().is_none_or(|(made, _)| now.since(*made) >= OWN_KEY_AGE);
        if too_old {
            let mut key = [0u8; 32];
            entropy.fill(&mut key);
            kept.insert(0, (now, key));
            kept.truncate(OWN_KEYS);
            write_own(file, &kept)?;
        }
        let keys: Vec<_> = kept.iter().map(|(_, key)| *key).collect();
        Ok(Self::of(&keys))
    }
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let mut out = [0u8; 32];
    if hex::decode_to_slice(text, &mut out).is_ok() {
        return Some(out);
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn read_own(file: &Path) -> Result<Vec<(Wall, [u8; 32])>, KeyError> {
    let io = |e| KeyError::Io(file.to_owned(), e);
    let text = match std::fs::metadata(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
        Ok(m) if m.len() > MAX_FILE => {
            return Err(KeyError::NotAKey(format!("{}: too long", file.display())));
        }
        Ok(_) => std::fs::read_to_string(file).map_err(io)?,
    };
    let line = |line: &str| {
        let (made, key) = line.split_once(' ')?;
        Some((Wall(made.parse().ok()?), parse(key)?))
    };
    text.lines()
        .map(|l| line(l).ok_or_else(|| KeyError::NotAKey(file.display().to_string())))
        .collect()
}

fn write_own(file: &Path, keys: &[(Wall, [u8; 32])]) -> Result<(), KeyError> {
    let line = |(made, key): &(Wall, [u8; 32])| format!("{} {}\n", made.0, hex::encode(key));
    let text: String = keys.iter().map(line).collect();
    write_private(file, text.as_bytes()).map_err(|e| KeyError::Io(file.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::{ManualClock, SeededEntropy};

    #[test]
    fn own_keys_are_made_once_kept_private_and_replaced_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, entropy) = (ManualClock::new(), SeededEntropy::new(1));
        let ids = |ring: &KeyRing| ring.keys.iter().map(|k| k.id).collect::<Vec<_>>();
        let load = || KeyRing::load(&[], dir.path(), &clock, &entropy).unwrap();
        let first = ids(&load());
        assert_eq!(first.len(), 1);
        assert_eq!(ids(&load()), first, "a restart keeps them");
        let mode = std::fs::metadata(dir.path().join("affinity.keys")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        clock.advance(OWN_KEY_AGE);
        let second = ids(&load());
        assert_eq!((second.len(), second[1]), (2, first[0]), "the one before still opens");
        clock.advance(OWN_KEY_AGE);
        let third = ids(&load());
        assert_eq!(third[1], second[0]);
        assert!(!third.contains(&first[0]), "the oldest is gone");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        let source = [SecretSource::File(file.clone())];
        let load =
            || KeyRing::load(&source, dir.path(), &ManualClock::new(), &SeededEntropy::new(1));
        for good in ["ab".repeat(32), STANDARD.encode([7u8; 32])] {
            std::fs::write(&file, format!("{good}\n")).unwrap();
            assert!(load().is_ok(), "{good}");
        }
        for bad in ["geheim".into(), "ab".repeat(31), STANDARD.encode([7u8; 31])] {
            std::fs::write(&file, &bad).unwrap();
            let said = load().unwrap_err().to_string();
            assert!(said.contains("openssl") && !said.contains(&bad), "{said}");
        }
    }
}
