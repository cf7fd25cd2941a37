//! How often a key was sent to an app that deduplicates itself (contract `app`), as far as this
//! process remembers: the newest [`MOST`] keys. After a restart it begins anew; the app's own record
//! decides, and this is only what the edge can add.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Keys remembered.
pub const MOST: usize = 65_536;

/// The memory.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    sent: HashMap<String, u32>,
    oldest: VecDeque<String>,
}

impl Attempts {
    /// `subject` is being sent; says for which time, 1 for the first.
    pub fn next(&self, subject: String) -> u32 {
        // A panic while it was locked leaves at worst one key too many or too few.
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = memory.sent.get_mut(&subject) {
            *n = n.saturating_add(1);
            return *n;
        }
        if memory.oldest.len() >= MOST
            && let Some(oldest) = memory.oldest.pop_front()
        {
            memory.sent.remove(&oldest);
        }
        memory.oldest.push_back(subject.clone());
        memory.sent.insert(subject, 1);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_key_is_forgotten_first() {
        let attempts = Attempts::default();
        assert_eq!((attempts.next("a".into()), attempts.next("a".into())), (1, 2));
        for i in 0..MOST {
            attempts.next(i.to_string());
        }
        assert_eq!(attempts.next("a".into()), 1);
        assert_eq!(attempts.0.lock().unwrap().sent.len(), MOST);
    }
}
