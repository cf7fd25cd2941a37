//! Which trees are in use: of what runs from them, or is about to. A record says it of allocations only; commands
//! that run once, workers and what schedules start have none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::Digest;

/// How often each tree is in use.
#[derive(Debug, Clone, Default)]
pub(super) struct InUse(Arc<Mutex<HashMap<Digest, usize>>>);

/// A tree stays where it is for as long as this lives.
#[derive(Debug)]
pub struct TreeUse {
    digest: Digest,
    all: InUse,
}

/// While this lives, a tree that was not in use is not.
pub(super) struct Unused<'a> {
    _all: MutexGuard<'a, HashMap<Digest, usize>>,
}

impl InUse {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, digest: &Digest) -> TreeUse {
        *self.lock().entry(*digest).or_default() += 1;
        TreeUse { digest: *digest, all: self.clone() }
    }

    /// Whether `used` is not the only use of its tree.
    pub(super) fn is_shared(&self, used: &TreeUse) -> bool {
        self.lock().get(&used.digest).is_some_and(|n| *n > 1)
    }

    /// `None` where the tree that is named by `hex` is in use.
    pub(super) fn unused(&self, hex: &str) -> Option<Unused<'_>> {
        let all = self.lock();
        let used = all.keys().any(|digest| digest.hex() == hex);
        (!used).then_some(Unused { _all: all })
    }
}

impl Drop for TreeUse {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(n) = all.get_mut(&self.digest) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.digest);
            }
        }
    }
}
