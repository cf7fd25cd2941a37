//! `[pages]` of the node and of an app: how the pages of the edge's own look. Files are read and checked with the
//! configuration, so that a reload takes a changed one, and no page is made of one that is wrong.

use std::path::Path;
use std::str::FromStr;

use crate::document::Table;
use crate::lifecycle::page::{Branding, Logo, MOST_LOGO, MOST_TEMPLATE, Template};

use super::keys::{Differences, Keys, keys};

keys! {
    for Branding in "pages." {
        now name = name(),
        now logo = file(MOST_LOGO, Logo::read),
        now color = parsed(),
        now contact = parsed(),
        now template = file(MOST_TEMPLATE, Template::parse),
    }
}

/// `[pages]` of an app's file.
pub(super) fn of_app(top: &Table<'_>) -> Branding {
    super::keys::table(top, "pages")
}

fn name(t: &Table<'_>, key: &'static str) -> Option<String> {
    let name = t.text(key)?;
    Branding::check_name(&name).map_err(|why| t.error(key, why)).ok()?;
    Some(name)
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(t: &Table<'_>, key: &'static str) -> Option<T> {
    t.parsed(key)
}

/// What `read` makes of the file that `key` names.
fn file<T>(
    t: &Table<'_>,
    key: &'static str,
    most: usize,
    read: fn(&[u8]) -> Result<T, String>,
) -> Option<T> {
    let path = t.beside(t.text(key)?);
    let read = bytes(&path, most).and_then(|bytes| read(&bytes));
    read.map_err(|why| t.error(key, format!("{}: {why}", path.display()))).ok()
}

/// One byte more than `most` at most, so that a file that is too long is seen to be.
fn bytes(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let unread = |e: std::io::Error| format!("cannot be read: {e}");
    let file = std::fs::File::open(path).map_err(unread)?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("is no file".into());
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(unread)?;
    Ok(bytes)
}
