//! A map that is cheap to copy with a few changes: a fixed number of shards behind `Arc`s, chosen
//! by hash. A lookup is one hash, one index and one probe; a changed copy shares every shard that
//! did not change.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

/// With 1,024 shards, 100k names leave about 100 in each: a change copies 100 entries and 1,024
/// pointers.
const SHARDS: usize = 1024;

type Shard<K, V> = HashMap<K, V, RandomState>;

/// The map. Cloning it copies [`SHARDS`] pointers.
#[derive(Debug, Clone)]
pub struct Shards<K, V> {
    choose: FixedState,
    shards: Vec<Option<Arc<Shard<K, V>>>>,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { choose: FixedState::default(), shards: vec![None; SHARDS], len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    fn index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The high bits: a HashMap inside uses the low ones of its own hash.
        (self.choose.hash_one(key) >> 32) as usize % SHARDS
    }

    /// The value of `key`.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards[self.index(key)].as_ref()?.get(key)
    }

    /// Sets `key`; copies its shard if another snapshot shares it.
    pub fn insert(&mut self, key: K, value: V) {
        let at = self.index(&key);
        let shard = self.shards[at].get_or_insert_default();
        if Arc::make_mut(shard).insert(key, value).is_none() {
            self.len += 1;
        }
    }

    /// Removes `key`.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let at = self.index(key);
        let Some(shard) = &mut self.shards[at] else { return };
        if shard.contains_key(key) && Arc::make_mut(shard).remove(key).is_some() {
            self.len -= 1;
        }
    }

    /// How many names it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flatten().flat_map(|s| s.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_copy_leaves_the_original_alone() {
        let mut a: Shards<String, u32> = Shards::default();
        for i in 0..5_000 {
            a.insert(i.to_string(), i);
        }
        let mut b = a.clone();
        b.insert("7".into(), 700);
        b.remove("8");
        b.remove("no such");
        assert_eq!((a.get("7"), a.get("8"), a.len()), (Some(&7), Some(&8), 5_000));
        assert_eq!((b.get("7"), b.get("8"), b.len()), (Some(&700), None, 4_999));
        let shared = a.shards.iter().zip(&b.shards).filter(|(x, y)| match (x, y) {
            (Some(x), Some(y)) => Arc::ptr_eq(x, y),
            (None, None) => true,
            _ => false,
        });
        assert!(shared.count() >= SHARDS - 2);
        assert_eq!(b.iter().count(), 4_999);
    }
}
