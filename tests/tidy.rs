//! Enforces the arrows of ARCHITECTURE.md inside a crate: who may import what. That the core does no
//! I/O and that only the store knows RocksDB is said by `crates/*/Cargo.toml`. A module that is not listed
//! here fails the test, so that the list stays whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each module of the core and the others that it may name.
const CORE: &[(&str, &[&str])] = &[
    ("lib", &[]),
    ("clock", &[]),
    ("id", &["clock"]),
    ("line", &["clock", "id"]),
    ("document", &[]),
    ("assets", &["id"]),
    ("contract", &["clock", "id", "document"]),
    ("record", &["clock", "id"]),
    ("snapshot", &["assets", "clock", "id", "contract", "record"]),
    ("lifecycle", &["assets", "clock", "id", "contract", "snapshot", "record"]),
    ("wake", &["clock", "id", "snapshot", "record"]),
    ("control", &["clock", "id", "contract", "snapshot", "record"]),
];

/// Each module of the connections' crate and the others that it may name.
const WIRE: &[(&str, &[&str])] = &[
    ("lib", &[]),
    ("observer", &[]),
    ("limits", &[]),
    ("pace", &[]),
    ("peer", &[]),
    ("proxied", &[]),
    ("meter", &[]),
    ("gather", &[]),
    ("certificate", &[]),
    ("turns", &[]),
    ("admission", &[]),
    ("tls", &["certificate"]),
    ("hello", &["tls"]),
    ("listen", &["tls"]),
    ("linger", &["pace"]),
    ("client", &["admission", "limits", "linger", "observer", "tls", "turns"]),
    ("guard", &["client", "gather", "linger", "meter", "observer", "pace", "peer"]),
    (
        "serve",
        &[
            "admission",
            "client",
            "guard",
            "hello",
            "limits",
            "listen",
            "observer",
            "proxied",
            "turns",
        ],
    ),
];

/// Each module of the edge and the others that it may name, `store` and `wire` being crates of their own. What
/// the core has may be named anywhere.
const EDGE: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("crash", &[]),
    ("files", &[]),
    ("app", &[]),
    ("config", &["wire::ClientLimits", "wire::certificate"]),
    ("node", &["clock", "config", "store"]),
    ("wake::hold", &["clock", "wake"]),
    ("wake::executor", &["clock", "crash", "node", "store", "wake"]),
    ("wake::starts", &["artifact", "node", "runner", "store", "wake"]),
    ("wake", &["clock", "node", "runner", "store"]),
    ("session", &["app", "clock", "config", "store"]),
    ("sockets", &["clock"]),
    ("ledger", &["clock", "config", "store"]),
    ("artifact", &["clock", "crash", "files"]),
    (
        "certificates",
        &[
            "clock",
            "config",
            "crash",
            "node",
            "store",
            "telemetry",
            "wake",
            "wire::Issued",
            "wire::certificate",
        ],
    ),
    ("output", &["clock"]),
    ("runner", &["app", "clock", "files", "output"]),
    (
        "control",
        &[
            "app",
            "clock",
            "crash",
            "config",
            "node",
            "sockets",
            "store",
            "artifact",
            "runner",
            "wake",
            "telemetry",
        ],
    ),
    (
        "proxy",
        &[
            "app",
            "artifact",
            "clock",
            "config",
            "wake",
            "session",
            "sockets",
            "ledger",
            "telemetry",
            "wire",
        ],
    ),
    ("telemetry", &["clock", "sockets", "store::observed", "wake", "wire::Cut"]),
    (
        "admin",
        &[
            "artifact",
            "certificates",
            "clock",
            "config",
            "control",
            "ledger",
            "node",
            "output",
            "runner",
            "session",
            "telemetry",
            "wake::hold",
        ],
    ),
    ("cli", &["admin", "artifact", "clock", "config", "control", "server", "telemetry"]),
    (
        "server",
        &[
            "admin",
            "artifact",
            "certificates",
            "clock",
            "config",
            "control",
            "ledger",
            "node",
            "output",
            "proxy",
            "runner",
            "session",
            "sockets",
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

/// Words that say nothing about what a module does.
const UNUSED: &[&str] = &["utils", "common", "helpers", "manager", "misc"];

/// The crates whose sources are read, by the folder that has them.
const CRATES: &[&str] = &["src", "crates/core/src", "crates/store/src", "crates/wire/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn all_sources() -> BTreeMap<PathBuf, String> {
    CRATES.iter().flat_map(|folder| sources(folder)).collect()
}

fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
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
    walk(&root().join(folder), &mut out);
    out
}

/// `src/wake/hold.rs` → `wake::hold`; `src/wake/mod.rs` → `wake`.
fn module(path: &Path) -> String {
    let rest = path.strip_prefix(root()).unwrap().to_string_lossy();
    let (_, rest) = rest.split_once("src/").unwrap();
    let text = rest.trim_end_matches(".rs").replace('/', "::");
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

type Arrows = &'static [(&'static str, &'static [&'static str])];

/// The listed module that `module` belongs to: the longest prefix.
fn listed(
    arrows: Arrows,
    module: &str,
) -> Option<&'static (&'static str, &'static [&'static str])> {
    arrows.iter().filter(|(name, _)| inside(module, name)).max_by_key(|(name, _)| name.len())
}

fn inside(module: &str, outer: &str) -> bool {
    module == outer || module.starts_with(&format!("{outer}::"))
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

fn wrong_imports(folder: &str, arrows: Arrows, free: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in sources(folder) {
        let module = module(&path);
        let Some((from, allowed)) = listed(arrows, &module) else {
            wrong.push(format!("{module} is not in tests/tidy.rs: add it with its arrows"));
            continue;
        };
        for import in imports(&code(&text)) {
            let may = inside(&import, from.split("::").next().unwrap())
                || allowed.iter().chain(free).any(|a| inside(&import, a));
            if !may {
                wrong.push(format!("{module} names crate::{import}; {from} may name {allowed:?}"));
            }
        }
    }
    wrong
}

#[test]
fn imports_follow_the_arrows() {
    let of_the_core: Vec<_> = CORE
        .iter()
        .map(|(name, _)| *name)
        .filter(|n| !EDGE.iter().any(|(of_the_edge, _)| inside(of_the_edge, n)))
        .collect();
    let mut wrong = wrong_imports("src", EDGE, &of_the_core);
    wrong.extend(wrong_imports("crates/core/src", CORE, &[]));
    wrong.extend(wrong_imports("crates/wire/src", WIRE, &[]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn engines_stay_in_their_rooms() {
    let rooms: &[(&str, &[&str])] = &[
        ("pingora", &["proxy", "server"]),
        ("axum", &["admin"]),
        ("ureq", &["cli", "telemetry::otlp::send"]),
        ("object_store", &["artifact"]),
        ("redis::aio", &["session::redis_store"]),
        ("ring::aead", &["session"]),
        ("instant_acme", &["certificates"]),
        ("rcgen", &["certificates"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module(&path);
        let code = code(&text);
        for (engine, allowed) in rooms {
            let used = code.lines().any(|l| {
                l.contains(&format!("use {engine}")) || l.contains(&format!(" {engine}::"))
            });
            if used && !allowed.iter().any(|a| inside(&module, a)) {
                wrong.push(format!("{module} uses {engine}; only {allowed:?} may"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The core's dependencies can do no I/O; the standard library could.
#[test]
fn the_core_leaves_files_sockets_threads_and_clocks_alone() {
    let mut wrong = Vec::new();
    for (path, text) in sources("crates/core/src") {
        for word in [
            "std::fs",
            "std::process",
            "std::thread",
            "std::env",
            "std::io",
            "Instant",
            "TcpStream",
        ] {
            if code(&text).contains(word) {
                wrong.push(format!("{} has {word}", path.display()));
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
    for (path, text) in all_sources() {
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
    for (path, text) in all_sources() {
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
