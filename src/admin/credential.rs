//! What an allocation shows to be believed that it is one: an environment's and an allocation's name
//! with a code that only this node can make.
//!
//! Invariants: nothing of it is stored, and it opens nothing once the allocation's record is gone
//! ([`super::own`] looks); it is handed to the process by its environment and printed nowhere. The key
//! is the node's own, in its state directory, so that an allocation that is adopted by the next
//! process of the edge keeps its credential.
//!
//! Deliberately absent: rotation. Who can read the key can read the store beside it.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::clock::Entropy;
use crate::config::write_private;
use crate::id::{AllocationId, Environment};

/// Longest credential that is looked at: two labels, an id and a code are well below it.
const LONGEST: usize = 512;

/// Why there is no key. Nothing of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// What is in it is no key.
    #[error(
        "{0}: expected the 32 bytes that the edge wrote; remove the file to have them made anew: \
         apps that run then lose their credential until their next start"
    )]
    NotAKey(PathBuf),
}

/// Makes and reads credentials.
pub struct Credentials {
    key: [u8; 32],
}

impl Credentials {
    /// The key in `dir`, the node's state directory; made when there is none.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn load(dir: &Path, entropy: &dyn Entropy) -> Result<Self, CredentialError> {
        let file = dir.join("allocations.key");
        match std::fs::read(&file) {
            Ok(bytes) => match bytes.try_into() {
                Ok(key) => Ok(Self { key }),
                Err(_) => Err(CredentialError::NotAKey(file)),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut key = [0u8; 32];
                entropy.fill(&mut key);
                write_private(&file, &key).map_err(|e| CredentialError::Io(file, e))?;
                Ok(Self { key })
            }
            Err(e) => Err(CredentialError::Io(file, e)),
        }
    }

    fn code(&self, environment: &str, allocation: &str) -> Hmac<Sha256> {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            unreachable!("HMAC takes a key of any length (RFC 2104 §2)")
        };
        for part in ["vango-edge allocation", environment, allocation] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// The credential of one allocation.
    pub fn seal(&self, environment: &Environment, allocation: &AllocationId) -> String {
        let code = self.code(&environment.to_string(), allocation.as_str()).finalize();
        let code = URL_SAFE_NO_PAD.encode(code.into_bytes());
        format!("{environment}/{allocation}/{code}")
    }

    /// Whose it is; `None` for one that this node did not make. Compared in constant time.
    pub fn open(&self, credential: &str) -> Option<(Environment, AllocationId)> {
        if credential.len() > LONGEST {
            return None;
        }
        let (whose, code) = credential.rsplit_once('/')?;
        let (environment, allocation) = whose.rsplit_once('/')?;
        let code = URL_SAFE_NO_PAD.decode(code).ok()?;
        self.code(environment, allocation).verify_slice(&code).ok()?;
        Some((environment.parse().ok()?, allocation.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::SeededEntropy;

    #[test]
    fn a_credential_opens_for_the_node_that_made_it_and_for_what_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        let load = || Credentials::load(dir.path(), &entropy).unwrap();
        let environment: Environment = "studylab/pr-7".parse().unwrap();
        let allocation = AllocationId::random(&entropy);
        let sealed = load().seal(&environment, &allocation);
        assert_eq!(
            load().open(&sealed),
            Some((environment, allocation)),
            "a restart keeps the key"
        );
        let mode = std::fs::metadata(dir.path().join("allocations.key")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let elsewhere = tempfile::tempdir().unwrap();
        let other = Credentials::load(elsewhere.path(), &entropy).unwrap();
        assert_eq!(other.open(&sealed), None);
        let promoted = sealed.replace("pr-7", "production");
        let longer = format!("{sealed}{}", "A".repeat(LONGEST));
        for forged in [&*promoted, &sealed[..sealed.len() - 1], &longer, "", "/", "a/b/c", "//"] {
            assert_eq!(load().open(forged), None, "{forged}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("allocations.key"), "geheim").unwrap();
        let said = Credentials::load(dir.path(), &SeededEntropy::new(1)).err().unwrap();
        assert!(!said.to_string().contains("geheim"), "{said}");
    }
}
