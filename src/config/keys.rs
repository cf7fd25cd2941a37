//! How a table of the configuration is declared: each key once, with its field, how it is read, its default,
//! and what a reload does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::document::Table;
pub(super) use crate::document::{DAY, MS, secs};
use crate::id::AppName;

/// A table that [`keys!`] declares.
pub(super) trait Keys {
    /// Reads it. What is wrong is told, and a default stands in for it.
    fn read(t: &Table<'_>) -> Self;

    /// Names what differs in `file`, and sets back there what only a restart changes.
    fn reload(&self, file: &mut Self, differences: &mut Differences);
}

/// What differs. Each method is what a reload does with a key: `key` in `file` is compared with what runs.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) changed: Vec<String>,
    pub(super) restart: Vec<String>,
}

impl Differences {
    /// It takes effect.
    pub fn now<T: PartialEq>(&mut self, key: &str, running: &T, file: &mut T) {
        if running != file {
            self.changed.push(key.to_owned());
        }
    }

    /// It is built into the process, and keeps its value.
    pub fn restart<T: PartialEq + Clone>(&mut self, key: &str, running: &T, file: &mut T) {
        if running != file {
            self.restart.push(key.to_owned());
            file.clone_from(running);
        }
    }

    /// A table: as each of its keys says.
    pub fn each<T: Keys>(&mut self, _key: &str, running: &T, file: &mut T) {
        running.reload(file, self);
    }

    /// A table that is named itself for those of its keys that are `with_table`.
    pub fn whole<T: Keys + PartialEq>(&mut self, key: &str, running: &T, file: &mut T) {
        running.reload(file, self);
        self.now(key, running, file);
    }

    /// It takes effect, and its table is named for it.
    pub fn with_table<T>(&mut self, _key: &str, _running: &T, _file: &mut T) {}

    /// Each of them is a file of its own.
    pub fn apps<T: PartialEq>(
        &mut self,
        key: &str,
        running: &BTreeMap<AppName, T>,
        file: &mut BTreeMap<AppName, T>,
    ) {
        let names: BTreeSet<_> = running.keys().chain(file.keys()).collect();
        let differ = names.into_iter().filter(|name| running.get(*name) != file.get(*name));
        self.changed.extend(differ.map(|name| format!("{key}.{name}")));
    }
}

/// Declares a table. A key is `WHEN NAME: TYPE = READ(…)`: `WHEN` is a method of [`Differences`], `READ` a
/// function of the table, the key and what stands in the brackets. Keys are read in their order. With `for`,
/// the struct stands elsewhere.
macro_rules! keys {
    (
        $(#[$about:meta])*
        pub struct $name:ident in $path:literal $(, checked by $check:path)? {
            $($(#[$doc:meta])* $when:ident $key:ident: $type:ty = $read:ident($($with:expr),* $(,)?),)*
        }
    ) => {
        $(#[$about])*
        pub struct $name {
            $($(#[$doc])* pub $key: $type,)*
        }

        keys! {
            for $name in $path $(, checked by $check)? {
                $($when $key = $read($($with),*),)*
            }
        }
    };
    (
        for $name:ident in $path:literal $(, checked by $check:path)? {
            $($when:ident $key:ident = $read:ident($($with:expr),* $(,)?),)*
        }
    ) => {
        impl Keys for $name {
            fn read(t: &Table<'_>) -> Self {
                let read = Self { $($key: $read(t, stringify!($key), $($with),*),)* };
                $($check(&read, t);)?
                read
            }

            fn reload(&self, file: &mut Self, differences: &mut Differences) {
                $(differences.$when(concat!($path, stringify!($key)), &self.$key, &mut file.$key);)*
            }
        }
    };
}
pub(super) use keys;

/// A table in this one.
pub(super) fn table<T: Keys>(t: &Table<'_>, key: &'static str) -> T {
    let t = t.table(key);
    let read = T::read(&t);
    t.finish();
    read
}

/// A whole number.
pub(super) fn number<T: TryFrom<u64>>(
    t: &Table<'_>,
    key: &'static str,
    bounds: RangeInclusive<u64>,
    default: T,
) -> T {
    t.integer(key, bounds).and_then(|n| n.try_into().ok()).unwrap_or(default)
}

/// A size in bytes.
pub(super) fn size<T: TryFrom<u64>>(
    t: &Table<'_>,
    key: &'static str,
    bounds: RangeInclusive<u64>,
    default: T,
) -> T {
    t.size(key, bounds).and_then(|n| n.try_into().ok()).unwrap_or(default)
}

/// A duration.
pub(super) fn time(
    t: &Table<'_>,
    key: &'static str,
    bounds: RangeInclusive<Duration>,
    default: Duration,
) -> Duration {
    t.duration(key, bounds, default)
}

/// One of a few words.
pub(super) fn word<T: Copy>(
    t: &Table<'_>,
    key: &'static str,
    words: &[(&str, T)],
    default: T,
) -> T {
    t.word(key, words, default)
}

/// Yes or no; no if it is not said.
pub(super) fn flag(t: &Table<'_>, key: &'static str) -> bool {
    t.boolean(key).unwrap_or(false)
}

/// A number from 0 to 1.
pub(super) fn fraction(t: &Table<'_>, key: &'static str, default: f64) -> f64 {
    t.fraction(key).unwrap_or(default)
}
