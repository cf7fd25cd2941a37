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
    /// The file.
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

    fn value(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn wrong(&self, key: &str, expected: &str, found: &DeValue<'_>) {
        self.error(key, format!("expected {expected}, found {}", shown(found)));
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let value = self.value(key)?.get_ref();
        if value.as_str().is_none() {
            self.wrong(key, "a string", value);
        }
        value.as_str().map(str::to_owned)
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
    pub fn parsed<T>(&self, key: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.text(key).and_then(|text| self.parse(key, &text))
    }

    /// `text`, found under `key`, as `T`.
    pub fn parse<T>(&self, key: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
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
        let value = self.value(key)?.get_ref();
        if value.as_bool().is_none() {
            self.wrong(key, "true or false", value);
        }
        value.as_bool()
    }

    /// A whole number within `bounds`.
    pub fn integer(&self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?.get_ref();
        let number = value.as_integer().and_then(|i| {
            let digits = i.as_str().replace('_', "");
            u64::from_str_radix(digits.trim_start_matches('+'), i.radix()).ok()
        });
        match number {
            Some(n) if bounds.contains(&n) => Some(n),
            _ => {
                let (low, high) = bounds.into_inner();
                self.wrong(key, &format!("a whole number from {low} to {high}"), value);
                None
            }
        }
    }

    /// A number from 0 to 1.
    pub fn fraction(&self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?.get_ref();
        let text = value
            .as_float()
            .map(|f| f.as_str().to_owned())
            .or_else(|| value.as_integer().map(|i| i.as_str().to_owned()));
        match text.and_then(|t| t.parse::<f64>().ok()) {
            Some(n) if (0.0..=1.0).contains(&n) => Some(n),
            _ => {
                self.wrong(key, "a number from 0.0 to 1.0", value);
                None
            }
        }
    }

    /// A duration within `bounds`, such as "10s".
    pub fn duration(
        &self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(found) = self.value(key) else { return default };
        let value = found.get_ref();
        match value.as_str().and_then(duration) {
            Some(d) if bounds.contains(&d) => d,
            _ => {
                let (low, high) = bounds.into_inner();
                let expected =
                    format!("a duration such as \"10s\" or \"300ms\" ({low:?} to {high:?})");
                self.wrong(key, &expected, value);
                default
            }
        }
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
        let value = self.value(key)?.get_ref();
        match value.as_str().and_then(size) {
            Some(n) if bounds.contains(&n) => Some(n),
            _ => {
                let (low, high) = bounds.into_inner();
                let expected =
                    format!("a size such as \"64KiB\", \"8MiB\" or \"1GiB\" ({low} B to {high} B)");
                self.wrong(key, &expected, value);
                None
            }
        }
    }

    /// A list of strings; empty when absent.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        let Some(found) = self.value(key) else { return Vec::new() };
        let Some(array) = found.get_ref().as_array() else {
            self.wrong(key, "a list of strings", found.get_ref());
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) => out.push(text.to_owned()),
                None => {
                    let message = format!("expected a string, found {}", shown(item.get_ref()));
                    self.errors.add(&item.span(), self.path_of(key), message);
                }
            }
        }
        out
    }

    /// A list of strings that parse as `T`.
    pub fn all_parsed<T>(&self, key: &'static str) -> Vec<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.texts(key).iter().filter_map(|text| self.parse(key, text)).collect()
    }

    /// A table; one that is absent reads as an empty one.
    pub fn table(&self, key: &'static str) -> Table<'d> {
        self.opt_table(key).unwrap_or_else(|| self.child(key, empty(), self.span.clone()))
    }

    /// A table, if it is there.
    pub fn opt_table(&self, key: &'static str) -> Option<Table<'d>> {
        let found = self.value(key)?;
        match found.get_ref().as_table() {
            Some(table) => Some(self.child(key, table, found.span())),
            None => {
                self.wrong(key, "a table", found.get_ref());
                None
            }
        }
    }

    /// A list of tables; empty when absent.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'d>> {
        let Some(found) = self.value(key) else { return Vec::new() };
        let Some(array) = found.get_ref().as_array() else {
            self.wrong(key, &format!("tables, each under [[{key}]]"), found.get_ref());
            return Vec::new();
        };
        let items = array.iter().enumerate().filter_map(|(i, item)| {
            let path = format!("{key}[{i}]");
            match item.get_ref().as_table() {
                Some(table) => Some(self.child(&path, table, item.span())),
                None => {
                    let message = format!("expected a table, found {}", shown(item.get_ref()));
                    self.errors.add(&item.span(), self.path_of(&path), message);
                    None
                }
            }
        });
        items.collect()
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

/// `300ms`, `10s`, `5m`, `1h`, `7d`; whole numbers.
fn duration(text: &str) -> Option<Duration> {
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
