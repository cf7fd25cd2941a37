//! The book in `docs/` against the code: each problem has its page, each page leads somewhere, and
//! nothing in it is out of reach from its first page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use vango_edge::lifecycle::reply::Problem;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every page below `dir`.
fn pages(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(pages(&path));
        } else if path.extension().is_some_and(|e| e == "md") {
            out.push(path);
        }
    }
    out
}

/// The name of a heading in an address: GitHub's way.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Where the links of a page lead, without what is outside of this project.
fn links(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut out = Vec::new();
    for part in text.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        if !target.contains("://") {
            let (path, anchor) =
                target.split_once('#').map_or((target, None), |(p, a)| (p, Some(a)));
            out.push((path, anchor));
        }
    }
    out
}

#[test]
fn each_problem_has_its_page_and_its_row_with_the_title_that_clients_get() {
    let dir = root().join("docs/problems");
    let index = read(&dir.join("README.md"));
    let mut rows = BTreeMap::new();
    for row in index.lines().filter(|l| l.starts_with("| [")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_start_matches('[').split(']').next().unwrap().to_owned();
        assert_eq!(cells[1], format!("[{name}]({name}.md)"));
        let row = (cells[2].to_owned(), cells[3].to_owned());
        assert!(rows.insert(name.clone(), row).is_none(), "{name} has two rows");
    }
    for problem in Problem::ALL {
        let (name, title) = (problem.name(), problem.title());
        let (status, said) = rows.remove(name).unwrap_or_else(|| panic!("{name} has no row"));
        assert_eq!(said, title, "{name}");
        let page = read(&dir.join(format!("{name}.md")));
        let mut lines = page.lines().filter(|l| !l.is_empty());
        assert_eq!(lines.next(), Some(&*format!("# {name}")));
        let line = lines.next().unwrap_or_default();
        assert!(line.ends_with(&format!(": {title}.")), "{name}: {line}");
        assert!(line.starts_with(&status[..3]), "{name}: {status} in the list, {line}");
        for part in ["**When.**", "**What became of the request.**", "**What to do.**"] {
            assert!(page.contains(part), "{name} does not say {part}");
        }
    }
    assert!(rows.is_empty(), "rows of no problem: {rows:?}");
    let names: BTreeSet<_> = Problem::ALL.iter().map(|p| format!("{}.md", p.name())).collect();
    for page in pages(&dir) {
        let file = page.file_name().unwrap().to_string_lossy().into_owned();
        assert!(file == "README.md" || names.contains(&file), "{file} is of no problem");
    }
}

#[test]
fn each_link_of_the_book_leads_somewhere_and_each_page_is_linked() {
    let docs = root().join("docs");
    let mut all = pages(&docs);
    all.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|f| root().join(f)));
    let mut linked = BTreeSet::new();
    let mut wrong = Vec::new();
    for page in &all {
        let text = read(page);
        for (path, wanted) in links(&text) {
            let target =
                if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{}: {path} is not there", page.display()));
                continue;
            };
            if let Some(wanted) = wanted {
                let of = read(&target);
                let headings = of.lines().filter(|l| l.starts_with('#')).map(anchor);
                if !headings.into_iter().any(|a| a == wanted) {
                    wrong.push(format!("{}: {path} has no #{wanted}", page.display()));
                }
            }
            if target != page.canonicalize().unwrap() {
                linked.insert(target);
            }
        }
    }
    let first = docs.join("README.md").canonicalize().unwrap();
    for page in pages(&docs) {
        let page = page.canonicalize().unwrap();
        if page != first && !linked.contains(&page) {
            wrong.push(format!("nothing leads to {}", page.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
