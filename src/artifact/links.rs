//! Which symbolic links an artifact may hold: relative ones that stay in it, however many of its links they
//! lead through. `npm install` and virtual environments make them.
//!
//! A target is walked as the kernel walks it (path_resolution(7)), over the artifact's own list of entries
//! and never over a file system. Nothing is written through a link either: an entry's parent has to be a
//! directory.

use std::collections::HashMap;

use super::MAX_PATH;

/// What an entry of an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    /// A symbolic link, with its target as it was written.
    Link(String),
}

/// Links that one target may lead through: as many as Linux follows.
const MOST_LINKS: usize = 40;
/// Names that are looked at for one target.
const MOST_STEPS: usize = 4096;

const WHERE_TO: &str =
    "; put the file itself here, or a relative link to one that is in the artifact";

/// What is wrong with each link among `entries`, by its path, sorted.
pub fn wrong(entries: &HashMap<String, Kind>) -> Vec<(String, String)> {
    let links = entries.iter().filter_map(|(path, kind)| match kind {
        Kind::Link(target) => Some((path, target)),
        _ => None,
    });
    let mut wrong: Vec<_> = links
        .filter_map(|(path, target)| Some((path.clone(), why_not(entries, path, target)?)))
        .collect();
    wrong.sort();
    wrong
}

fn why_not(entries: &HashMap<String, Kind>, path: &str, target: &str) -> Option<String> {
    let link = format!("it is a symbolic link to {target}");
    if target.is_empty() || target.len() > MAX_PATH || target.chars().any(char::is_control) {
        return Some(format!("it is a symbolic link with a target of no plain name{WHERE_TO}"));
    }
    if target.starts_with('/') {
        return Some(format!("{link}, which is absolute{WHERE_TO}{}", of_python(path)));
    }
    let why = match walk(entries, path, target) {
        Ok(()) => return None,
        Err(why) => why,
    };
    Some(format!("{link}, which {why}{WHERE_TO}"))
}

fn walk(entries: &HashMap<String, Kind>, path: &str, target: &str) -> Result<(), String> {
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    let mut todo: Vec<&str> = target.rsplit('/').collect();
    let (mut links, mut steps) = (1, 0);
    while let Some(name) = todo.pop() {
        steps += 1;
        if steps > MOST_STEPS {
            return Err(format!("has more than {MOST_STEPS} names"));
        }
        match name {
            "" | "." => continue,
            ".." => {
                at.pop().ok_or("leads out of the artifact")?;
                continue;
            }
            name => at.push(name),
        }
        if let Some(Kind::Link(next)) = entries.get(&at.join("/")) {
            links += 1;
            if links > MOST_LINKS {
                return Err(format!("leads in a circle, or through more than {MOST_LINKS} links"));
            }
            if next.starts_with('/') {
                return Err(format!("leads out of the artifact through {}", at.join("/")));
            }
            at.pop();
            todo.extend(next.rsplit('/'));
        }
    }
    Ok(())
}

/// The link that every virtual environment has, and what to do about it.
fn of_python(path: &str) -> &'static str {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    if dir.ends_with("bin") && name.starts_with("python") {
        "; a virtual environment's own: make it with `python3 -m venv --copies`, or install with \
         `pip install --target DIR` and start the node's python3 with PYTHONPATH"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_in_the_artifact_whatever_it_leads_through() {
        let link = |to: &str| Kind::Link(to.into());
        let entries = HashMap::from(
            [
                ("bin", Kind::Directory),
                ("bin/tool", link("../lib/tool.js")),
                ("lib", Kind::Directory),
                ("lib/tool.js", Kind::File),
                ("lib/self", link(".")),
                ("lib/up", link("..")),
                ("lib/root", link("self/../lib/./up/")),
                ("dangling", link("lib/not/../there")),
                ("far", link("deep/er")),
                ("deep", Kind::Directory),
                ("deep/er", Kind::Directory),
                // Where `far/..` is `deep`, not the root: this is `deep/er` again.
                ("back", link("far/../er")),
                ("absolute", link("/etc/passwd")),
                ("bin/python", link("/usr/bin/python3")),
                ("out", link("../x")),
                ("lib/out", link("../../x")),
                // Each stays inside if its text alone is read.
                ("lib/through", link("up/../x")),
                ("lib/over", link("../absolute")),
                ("a", link("b")),
                ("b", link("a")),
                ("empty", link("")),
                ("line", link("a\nb")),
            ]
            .map(|(path, kind)| (path.to_owned(), kind)),
        );
        let found = wrong(&entries);
        let expected = [
            ("a", "circle"),
            ("absolute", "absolute"),
            ("b", "circle"),
            ("bin/python", "--copies"),
            ("empty", "plain"),
            ("lib/out", "out of the artifact"),
            ("lib/over", "through absolute"),
            ("lib/through", "out of the artifact"),
            ("line", "plain"),
            ("out", "out of the artifact"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((path, why), (expected, word)) in found.iter().zip(expected) {
            assert!(path == expected && why.contains(word), "{path}: {why}");
        }
    }
}
