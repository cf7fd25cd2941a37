//! Enforces the arrows of ARCHITECTURE.md: who may import what. A module that is not listed here
//! fails the test, so that the list stays whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each module and the modules of this crate that it may name. `store::record` is the pure part of
/// `store`: records and keys, no I/O.
const ARROWS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("crash", &[]),
    ("id", &["clock"]),
    ("document", &[]),
    ("assets", &["id"]),
    ("certificate", &[]),
    ("config", &["id", "document", "contract", "certificate"]),
    ("contract", &["id", "document"]),
    ("store::record", &["clock", "id"]),
    ("store::observed", &["clock", "store"]),
    ("store", &["clock", "id", "store"]),
    ("snapshot", &["assets", "clock", "id", "contract", "store::record", "snapshot"]),
    ("lifecycle", &["assets", "clock", "id", "contract", "snapshot", "store::record", "lifecycle"]),
    ("wake::machine", &["clock", "id", "snapshot", "store::record", "wake::machine"]),
    ("wake::hold", &["clock", "id", "snapshot", "lifecycle", "wake"]),
    (
        "wake::worker",
        &[
            "clock",
            "id",
            "contract",
            "snapshot",
            "lifecycle",
            "store",
            "artifact",
            "runner",
            "wake",
        ],
    ),
    ("wake::ahead", &["clock", "id", "contract", "runner", "store", "wake"]),
    ("wake", &["wake"]),
    (
        "session",
        &["clock", "id", "config", "contract", "snapshot", "lifecycle", "store", "session"],
    ),
    ("sockets", &["clock", "id", "lifecycle", "sockets"]),
    ("ledger", &["clock", "id", "lifecycle", "store", "ledger"]),
    ("artifact", &["assets", "clock", "crash", "id"]),
    ("runner", &["clock", "id"]),
    ("control::plan", &["clock", "id", "contract", "snapshot", "store::record"]),
    ("control::keep", &["clock", "id", "store::record"]),
    ("control::promotion::judge", &["clock", "config", "id", "store::record"]),
    ("control::promotion::machine", &["clock", "id", "store::record"]),
    (
        "control",
        &[
            "assets",
            "clock",
            "crash",
            "document",
            "id",
            "config",
            "contract",
            "snapshot",
            "lifecycle",
            "sockets",
            "store",
            "artifact",
            "runner",
            "wake",
            "telemetry",
            "control",
        ],
    ),
    (
        "proxy",
        &[
            "artifact",
            "certificate",
            "clock",
            "config",
            "id",
            "contract",
            "snapshot",
            "lifecycle",
            "store::record",
            "wake",
            "session",
            "sockets",
            "ledger",
            "telemetry",
            "proxy",
        ],
    ),
    (
        "telemetry",
        &[
            "clock",
            "id",
            "lifecycle",
            "sockets",
            "snapshot",
            "store::record",
            "store::observed",
            "wake",
            "telemetry",
        ],
    ),
    (
        "admin",
        &[
            "clock",
            "id",
            "config",
            "snapshot",
            "lifecycle",
            "store::record",
            "runner",
            "session",
            "telemetry",
            "ledger",
            "control",
            "admin",
        ],
    ),
    (
        "cli",
        &[
            "admin",
            "artifact",
            "clock",
            "config",
            "contract",
            "control",
            "id",
            "lifecycle",
            "server",
            "telemetry",
            "cli",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "artifact",
            "clock",
            "config",
            "contract",
            "control",
            "id",
            "ledger",
            "lifecycle",
            "proxy",
            "runner",
            "session",
            "sockets",
            "snapshot",
            "store",
            "telemetry",
            "wake",
            "systemd",
        ],
    ),
    ("systemd", &[]),
    ("lib", &[]),
    ("main", &["cli"]),
];

/// Words STYLE.md does not use for modules.
const UNUSED: &[&str] = &["utils", "common", "helpers", "manager", "misc"];

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.insert(path.clone(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    out
}

/// `src/wake/hold.rs` → `wake::hold`; `src/wake/mod.rs` → `wake`.
fn module(path: &Path) -> String {
    let rest = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let text = rest.with_extension("").to_string_lossy().replace('/', "::");
    text.trim_end_matches("::mod").to_owned()
}

/// Code without comments and without the module of unit tests, which may reach further.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|l| l.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The listed module that `module` belongs to: the longest prefix.
fn listed(module: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    ARROWS
        .iter()
        .filter(|(name, _)| module == *name || module.starts_with(&format!("{name}::")))
        .max_by_key(|(name, _)| name.len())
}

/// Every `crate::a::b` in `code`, and every `crate::{…}` group's members.
fn imports(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + 7..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        out.push(rest[..end.unwrap_or(rest.len())].trim_matches(':').to_owned());
    }
    out
}

fn may(from: &str, allowed: &[&str], import: &str) -> bool {
    let Some((target, _)) = listed(import) else { return false };
    let inside = |outer: &str| *target == outer || target.starts_with(&format!("{outer}::"));
    inside(from) || allowed.iter().any(|a| inside(a))
}

#[test]
fn imports_follow_the_arrows() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        let Some((from, allowed)) = listed(&module) else {
            wrong.push(format!("{module} is not in tests/tidy.rs: add it with its arrows"));
            continue;
        };
        for import in imports(&code(&text)) {
            if !may(from, allowed, &import) {
                wrong.push(format!("{module} names crate::{import}; {from} may name {allowed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn engines_stay_in_their_rooms() {
    let rooms: &[(&str, &[&str])] = &[
        ("pingora", &["proxy", "server"]),
        ("rocksdb::", &["store::rocks"]),
        ("axum", &["admin"]),
        ("ureq", &["cli", "telemetry::otlp::send"]),
        ("object_store", &["artifact"]),
        ("redis::aio", &["session::redis"]),
        ("ring::aead", &["session"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        let code = code(&text);
        for (engine, allowed) in rooms {
            let at_home =
                allowed.iter().any(|a| module == *a || module.starts_with(&format!("{a}::")));
            let used = code.lines().any(|l| {
                l.contains(&format!("use {engine}")) || l.contains(&format!(" {engine}::"))
            });
            if used && !at_home {
                wrong.push(format!("{module} uses {engine}; only {allowed:?} may"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_has_no_io_no_clock_and_no_randomness() {
    let pure = [
        "assets",
        "lifecycle",
        "snapshot::compile",
        "snapshot::model",
        "wake::machine",
        "control::keep",
        "control::plan",
        "control::promotion::judge",
        "control::promotion::machine",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        if !pure.iter().any(|p| module == *p || module.starts_with(&format!("{p}::"))) {
            continue;
        }
        for word in [
            "tokio",
            "async ",
            "Instant",
            "SystemTime",
            "rand::",
            "std::fs",
            "std::net::Tcp",
            "dyn Clock",
            "dyn Entropy",
        ] {
            if code(&text).contains(word) {
                wrong.push(format!("{module} has {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file aims at 300 lines; what does not fit into twice that has more than one purpose.
const MOST_LINES: usize = 600;

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > MOST_LINES {
            let module = module(&path);
            wrong.push(format!("{module} has {lines} lines, more than {MOST_LINES}: split it"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_have_a_purpose_and_a_fair_name() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        if !text.starts_with("//!") {
            wrong.push(format!("{module} does not say what it is for: begin it with //!"));
        }
        if UNUSED.iter().any(|w| module.split("::").any(|m| m == *w)) {
            wrong.push(format!("{module}: name it after what it does"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
