//! Reads TOML written by people: every error of a file is collected, each with its line and column,
//! what was expected and what was found; an unknown key names the nearest known one.
//!
//! A [`Table`] notes each key it is asked for; [`Table::finish`] reports the others.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    pub file: PathBuf,
    /// Line, from 1; 0 for the file itself.
    pub line: usize,
    /// Column in characters, from 1; 0 for the file itself.
    pub column: usize,
    /// Dotted path of the key; empty for the file as a whole.
    pub key: String,
    /// What was expected, what was found, and what to do.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it says of a file's name may be hostile to a terminal.
        write!(f, "{}:", self.file.display().to_string().replace(char::is_control, "\u{fffd}"))?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        f.write_str(" ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// The least of most durations.
pub const MS: Duration = Duration::from_millis(1);
/// 24 hours.
pub const DAY: Duration = secs(86_400);

/// `n` seconds, for bounds and defaults of [`Table::duration`].
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A value, or everything that is wrong.
pub type Checked<T> = Result<T, Vec<Diagnostic>>;

/// The errors of one file.
#[derive(Debug)]
pub struct Errors<'t> {
    file: &'t Path,
    text: &'t str,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'t> Errors<'t> {
    /// None yet.
    pub fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, found: RefCell::default() }
    }

    /// Adds one about the bytes of `span`.
    pub fn add(&self, span: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.found.borrow_mut().push(Diagnostic {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key.into(),
            message: message.into(),
        });
    }

    /// All of them, in the file's order.
    pub fn take(&self) -> Vec<Diagnostic> {
        let mut found = self.found.take();
        found.sort();
        found
    }

    /// Parses the file's TOML; syntax errors are added, and what could be read is returned.
    pub fn parse(&self) -> Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for e in errors {
            self.add(&e.span().unwrap_or(0..0), "", format!("not TOML: {}", e.message()));
        }
        table
    }
}

/// Reads a file's `text` with `read`; with everything that is wrong, in the file's order. An unknown key is
/// wrong too.
pub fn read<T>(
    file: &Path,
    text: &str,
    read: impl FnOnce(&Table<'_>) -> T,
) -> (T, Vec<Diagnostic>) {
    let errors = Errors::new(file, text);
    let document = errors.parse();
    let top = Table::top(&errors, &document);
    let value = read(&top);
    top.finish();
    (value, errors.take())
}

/// The nearest of `known` to `unknown`, if one is near enough to be meant.
pub fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(unknown, k), *k))
        .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
        .min()
        .map(|(_, k)| k)
}

/// A table being read.
pub struct Table<'d> {
    errors: &'d Errors<'d>,
    table: &'d DeTable<'d>,
    path: String,
    span: Range<usize>,
    known: RefCell<Vec<&'static str>>,
}

impl<'d> Table<'d> {
    /// The file's top.
    pub fn top(errors: &'d Errors<'d>, table: &'d Spanned<DeTable<'d>>) -> Self {
        let known = RefCell::default();
        Self { errors, table: table.get_ref(), path: String::new(), span: 0..0, known }
    }

    /// Dotted path of `key` in this table.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Adds an error about `key`, or about the table when it has no such key.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        let span = self.table.get(key).map_or_else(|| self.span.clone(), Spanned::span);
        self.errors.add(&span, self.path_of(key), message);
    }

    /// Adds an error about the table itself.
    pub fn error_here(&self, message: impl Into<String>) {
        self.errors.add(&self.span, self.path.clone(), message);
    }

    /// `path` as it is meant in this file: a relative one begins where the file is.
    pub fn beside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.errors.file.parent().unwrap_or(Path::new("")).join(path)
    }

    fn value(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        self.table.get(key)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// What `read` makes of the value, if it is there; what it cannot make anything of is not `expected`.
    fn read<T>(
        &self,
        key: &'static str,
        expected: impl FnOnce() -> String,
        read: impl FnOnce(&'d DeValue<'d>) -> Option<T>,
    ) -> Option<T> {
        let found = self.value(key)?.get_ref();
        let value = read(found);
        if value.is_none() {
            self.error(key, format!("expected {}, found {}", expected(), shown(found)));
        }
        value
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Option<String> {
        self.read(key, || "a string".into(), |v| v.as_str().map(str::to_owned))
    }

    /// A string that must be there.
    pub fn required(&self, key: &'static str) -> Option<String> {
        if !self.has(key) {
            self.known.borrow_mut().push(key);
            self.error_here(format!("`{key}` is missing: add it"));
            return None;
        }
        self.text(key)
    }

    /// A string that parses as `T`.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<T> {
        self.text(key).and_then(|text| self.parse(key, &text))
    }

    /// `text`, found under `key`, as `T`.
    pub fn parse<T: FromStr<Err: fmt::Display>>(&self, key: &str, text: &str) -> Option<T> {
        text.parse().map_err(|e: T::Err| self.error(key, e.to_string())).ok()
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        if let Some((_, value)) = words.iter().find(|(w, _)| *w == text) {
            return *value;
        }
        let all: Vec<_> = words.iter().map(|(w, _)| format!("{w:?}")).collect();
        self.error(key, format!("expected one of {}, found {text:?}", all.join(", ")));
        default
    }

    /// Yes or no.
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        self.read(key, || "true or false".into(), |v| v.as_bool())
    }

    /// A whole number within `bounds`.
    pub fn integer(&self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let expected = || format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let number = |value: &DeValue<'_>| {
            let number = value.as_integer()?;
            let digits = number.as_str().replace('_', "");
            u64::from_str_radix(digits.trim_start_matches('+'), number.radix()).ok()
        };
        self.read(key, expected, |v| number(v).filter(|n| bounds.contains(n)))
    }

    /// A number from 0 to 1.
    pub fn fraction(&self, key: &'static str) -> Option<f64> {
        let number = |value: &DeValue<'_>| {
            let whole = value.as_integer().map(|i| i.as_str());
            value.as_float().map(|f| f.as_str()).or(whole)?.parse::<f64>().ok()
        };
        let expected = || "a number from 0.0 to 1.0".into();
        self.read(key, expected, |v| number(v).filter(|n| (0.0..=1.0).contains(n)))
    }

    /// A duration within `bounds`, such as "10s".
    pub fn duration(
        &self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let expected = || {
            let (low, high) = (bounds.start(), bounds.end());
            format!("a duration such as \"10s\" or \"300ms\" ({low:?} to {high:?})")
        };
        let time = |v: &DeValue<'_>| v.as_str().and_then(duration).filter(|d| bounds.contains(d));
        self.read(key, expected, time).unwrap_or(default)
    }

    /// A duration, or "never".
    pub fn duration_or_never(
        &self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Option<Duration> {
        if self.table.get(key).and_then(|v| v.get_ref().as_str()) == Some("never") {
            self.known.borrow_mut().push(key);
            return None;
        }
        Some(self.duration(key, bounds, default))
    }

    /// A size within `bounds` bytes, such as "8MiB".
    pub fn size(&self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let expected = || {
            let (low, high) = (bounds.start(), bounds.end());
            format!("a size such as \"64KiB\", \"8MiB\" or \"1GiB\" ({low} B to {high} B)")
        };
        self.read(key, expected, |v| v.as_str().and_then(size).filter(|n| bounds.contains(n)))
    }

    /// What `read` makes of each item of a list, with its number; empty when absent. `what` names the
    /// list in errors, `one` an item.
    fn items<T>(
        &self,
        key: &'static str,
        (what, one): (&str, &str),
        path: impl Fn(usize) -> String,
        read: impl Fn(usize, &'d Spanned<DeValue<'d>>) -> Option<T>,
    ) -> Vec<T> {
        let Some(array) = self.read(key, || what.into(), DeValue::as_array) else {
            return Vec::new();
        };
        let items = array.iter().enumerate().filter_map(|(i, item)| {
            let value = read(i, item);
            if value.is_none() {
                let message = format!("expected {one}, found {}", shown(item.get_ref()));
                self.errors.add(&item.span(), path(i), message);
            }
            value
        });
        items.collect()
    }

    /// A list of strings; empty when absent.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        let path = |_| self.path_of(key);
        let text = |_, item: &Spanned<DeValue<'_>>| item.get_ref().as_str().map(str::to_owned);
        self.items(key, ("a list of strings", "a string"), path, text)
    }

    /// A list of strings that parse as `T`.
    pub fn all_parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Vec<T> {
        self.texts(key).iter().filter_map(|text| self.parse(key, text)).collect()
    }

    /// A table; one that is absent reads as an empty one.
    pub fn table(&self, key: &'static str) -> Table<'d> {
        self.opt_table(key).unwrap_or_else(|| self.child(key, empty(), self.span.clone()))
    }

    /// A table, if it is there.
    pub fn opt_table(&self, key: &'static str) -> Option<Table<'d>> {
        let table = self.read(key, || "a table".into(), DeValue::as_table)?;
        Some(self.child(key, table, self.table.get(key)?.span()))
    }

    /// A list of tables; empty when absent.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'d>> {
        let what = format!("tables, each under [[{key}]]");
        let name = |i| format!("{key}[{i}]");
        let table = |i, item: &'d Spanned<DeValue<'d>>| {
            Some(self.child(&name(i), item.get_ref().as_table()?, item.span()))
        };
        self.items(key, (&what, "a table"), |i| self.path_of(&name(i)), table)
    }

    /// A table, or a list of them; empty when absent.
    pub fn one_or_more(&self, key: &'static str) -> Vec<Table<'d>> {
        let is_list = self.table.get(key).is_some_and(|v| v.get_ref().as_array().is_some());
        if is_list { self.tables(key) } else { self.opt_table(key).into_iter().collect() }
    }

    /// Names and values of a table whose keys are the author's own, as strings. `what` names the
    /// values in errors.
    pub fn entries(&self, what: &str) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for (key, value) in self.table.iter() {
            match value.get_ref().as_str() {
                Some(text) => out.push((key.get_ref().to_string(), text.to_owned())),
                None => {
                    let found = shown(value.get_ref());
                    let path = self.path_of(key.get_ref());
                    self.errors.add(&value.span(), path, format!("expected {what}, found {found}"));
                }
            }
        }
        out
    }

    /// The author's own keys with their raw values.
    pub fn raw_entries(
        &self,
    ) -> impl Iterator<Item = (&'d str, Range<usize>, &'d Spanned<DeValue<'d>>)> {
        self.table.iter().map(|(k, v)| (k.get_ref().as_ref(), k.span(), v))
    }

    /// A table inside this one, under the author's own key.
    pub fn child(&self, key: &str, table: &'d DeTable<'d>, span: Range<usize>) -> Table<'d> {
        Table {
            errors: self.errors,
            table,
            path: self.path_of(key),
            span,
            known: RefCell::default(),
        }
    }

    /// Reports every key that was not asked for, with the nearest one that could have been.
    pub fn finish(self) {
        let known = self.known.take();
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let hint = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "this table takes no keys".into(),
                None => format!("known here: {}", known.join(", ")),
            };
            self.errors.add(&key.span(), self.path_of(name), format!("unknown key; {hint}"));
        }
    }
}

fn empty() -> &'static DeTable<'static> {
    static EMPTY: std::sync::LazyLock<DeTable<'static>> = std::sync::LazyLock::new(DeTable::new);
    &EMPTY
}

/// A found value in a message: its text if short, else its type.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) if s.chars().count() <= 40 => format!("{s:?}"),
        DeValue::Integer(i) => i.to_string(),
        DeValue::Float(f) => f.to_string(),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Array(_) => "a list".into(),
        other => format!("a {}", other.type_str()),
    }
}

/// `text` as a basic string of TOML (TOML 1.0, "String").
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `300ms`, `10s`, `5m`, `1h`, `7d`; whole numbers.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = text[..digits].parse().ok()?;
    let ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(n.checked_mul(ms)?))
}

/// `512B`, `64KiB`, `8MiB`, `1GiB`; whole numbers.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    n.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact() {
        assert_eq!(duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(duration("2d"), Some(Duration::from_secs(172_800)));
        assert_eq!(size("8MiB"), Some(8 << 20));
        for bad in ["", "10", "s", "1.5s", "-1s", "10 s", "99999999999999999999s", "8MB"] {
            assert!(duration(bad).is_none() && size(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_error_has_its_place() {
        let text = "a = 1\n[b]\nbudgte = \"1s\"\nn = \"x\"\n";
        let errors = Errors::new(Path::new("f.toml"), text);
        let parsed = errors.parse();
        let top = Table::top(&errors, &parsed);
        assert_eq!(top.integer("a", 0..=5), Some(1));
        let b = top.table("b");
        b.duration("budget", Duration::ZERO..=Duration::MAX, Duration::ZERO);
        b.integer("n", 1..=2);
        b.finish();
        top.finish();
        let all: Vec<_> = errors.take().iter().map(ToString::to_string).collect();
        assert_eq!(
            all,
            [
                "f.toml:3:1: b.budgte: unknown key; did you mean `budget`?",
                "f.toml:4:5: b.n: expected a whole number from 1 to 2, found \"x\"",
            ]
        );
    }
}
